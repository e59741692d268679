"""A tiny vision-language model from nothing: real architecture, random weights, the synthetic tasks' tokenizer.

What it writes loads with `AutoModelForImageTextToText` and `AutoProcessor` like any checkpoint, so tests, the demo and
CI run the code that a real model runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .tiny_tokenizer import build_tokenizer

QWEN_SPECIAL = {
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
INTERNVL_SPECIAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
GLM_SPECIAL = {
    "image_bos_token": "<|begin_of_image|>",
    "image_eos_token": "<|end_of_image|>",
    "video_bos_token": "<|begin_of_video|>",
    "video_eos_token": "<|end_of_video|>",
    "image_token": "<|image|>",
    "video_token": "<|video|>",
}
PATCH_PROCESSORS: dict[str, tuple[Any, Any, Any, dict[str, str], int]] = {
    "qwen2_vl": (Qwen2VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, QWEN_SPECIAL, 1),
    "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, QWEN_SPECIAL, 1),
    "qwen3_vl": (Qwen3VLProcessor, Qwen2VLImageProcessor, Qwen3VLVideoProcessor, QWEN_SPECIAL, 1),
    "glm4v": (Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor, GLM_SPECIAL, 2),
}
"""Families that see an image as patches: their processors, special tokens, and the frames that size limits count."""
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "glm4v")

MERGE = 2
HEAD_DIM = 16
INITIALIZER_RANGE = 0.1
MAX_IMAGE_TOKENS = 64
MAX_TILES = 4

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{- content -}}{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{- '@IMAGE@' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}
{%- else -%}{{- raise_exception('the tiny model reads text and images, not ' + part['type']) -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- text(message['content']) + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}{{- text(message['content']) + '<|im_end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


def text_config(model_type: str, *, hidden_size: int, layers: int) -> dict[str, Any]:
    """The language model: heads of 16 dimensions; rotary positions are (time, row, column), InternVL's one number."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if model_type in PATCH_PROCESSORS:
        rope["mrope_section"] = [HEAD_DIM // 2 - 2 * (HEAD_DIM // 6), HEAD_DIM // 6, HEAD_DIM // 6]
    if model_type == "qwen3_vl":
        rope["mrope_interleaved"] = True
    return {
        "model_type": "qwen2" if model_type == "internvl" else f"{model_type}_text",
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // HEAD_DIM,
        "num_key_value_heads": hidden_size // HEAD_DIM,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 4096,
        "rope_parameters": rope,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": True,
    }


def vision_config(
    model_type: str, *, hidden_size: int, layers: int, image_size: int, patch_size: int
) -> dict[str, Any]:
    """The vision tower, in each architecture's own words."""
    heads, wide = hidden_size // HEAD_DIM, 2 * hidden_size
    if model_type == "internvl":
        return {
            "hidden_size": hidden_size,
            "intermediate_size": wide,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": image_size,
            "patch_size": patch_size,
            "layer_scale_init_value": 1.0,
            "initializer_range": INITIALIZER_RANGE,
        }
    qwen: dict[str, Any] = {"depth": layers, "num_heads": heads, "patch_size": patch_size, "spatial_merge_size": MERGE}
    qwen |= {"initializer_range": INITIALIZER_RANGE}
    if model_type == "qwen2_vl":
        return qwen | {"embed_dim": hidden_size, "hidden_size": hidden_size, "mlp_ratio": 2}
    qwen |= {"hidden_size": hidden_size, "out_hidden_size": hidden_size, "intermediate_size": wide}
    if model_type == "glm4v":
        return qwen | {"image_size": image_size}
    if model_type == "qwen2_5_vl":
        return qwen | {"fullatt_block_indexes": [layers - 1], "window_size": image_size}
    return qwen | {"num_position_embeddings": (image_size // patch_size) ** 2, "deepstack_visual_indexes": [0]}


def build_processor(
    model_type: str, *, image_size: int, patch_size: int, largest_number: int, words: Sequence[str]
) -> ProcessorMixin:
    """Tokenizer, image processor and chat template of the family, sized for small images.

    Qwen and GLM keep an image of whole merge blocks as it is, up to 64 image tokens; InternVL resizes to tiles of
    `image_size`.
    """
    text: dict[str, Any] = {"largest_number": largest_number, "words": words}
    if model_type == "internvl":
        size = {"height": image_size, "width": image_size}
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(size=size, max_patches=MAX_TILES),
            tokenizer=build_tokenizer(INTERNVL_SPECIAL, **text),
            video_processor=InternVLVideoProcessor(size=size),
            image_seq_length=(image_size // patch_size // MERGE) ** 2,
            chat_template=CHAT_TEMPLATE.replace("@IMAGE@", "<IMG_CONTEXT>"),
        )
    block = (patch_size * MERGE) ** 2
    processor_class, image_class, video_class, special, counted_frames = PATCH_PROCESSORS[model_type]
    layout: dict[str, Any] = {
        "patch_size": patch_size,
        "merge_size": MERGE,
        "size": {"shortest_edge": counted_frames * block, "longest_edge": counted_frames * MAX_IMAGE_TOKENS * block},
    }
    start, end = list(special.values())[:2]
    return processor_class(
        image_processor=image_class(**layout),
        tokenizer=build_tokenizer(special, **text),
        video_processor=video_class(**layout),
        chat_template=CHAT_TEMPLATE.replace("@IMAGE@", start + special["image_token"] + end),
    )


def build_config(model_type: str, processor: Any, *, text: dict[str, Any], vision: dict[str, Any]) -> PreTrainedConfig:
    """The model's config, with the token ids that it must share with the processor."""
    tokenizer = processor.tokenizer
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = text | ids | {"vocab_size": len(tokenizer), "bos_token_id": None}
    options = ids | {"image_token_id": processor.image_token_id, "tie_word_embeddings": True}
    if model_type == "internvl":
        options["image_seq_length"] = processor.image_seq_length
    else:
        for name, token in PATCH_PROCESSORS[model_type][3].items():
            option = name.replace("bos", "start").replace("eos", "end") + "_id"
            options[option] = tokenizer.convert_tokens_to_ids(token)
    return AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **options)


def check_arguments(
    model_type: str, *, hidden_size: int, layers: int, image_size: int, patch_size: int, largest_number: int
) -> None:
    """Raise ValueError, naming the value, for a model that cannot be built."""
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}")
    if hidden_size < HEAD_DIM or hidden_size % HEAD_DIM:
        raise ValueError(f"hidden_size must be a multiple of {HEAD_DIM}, got {hidden_size}")
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    if patch_size < 1 or image_size < 1 or image_size % (MERGE * patch_size):
        raise ValueError(f"image_size must be a multiple of {MERGE} x patch_size {patch_size}, got {image_size}")
    if largest_number < 9:
        raise ValueError(f"largest_number must be at least 9, got {largest_number}")


def build_tiny_vlm(
    model_type: str,
    out_dir: str | Path,
    *,
    seed: int = 0,
    hidden_size: int = 64,
    layers: int = 2,
    image_size: int = 32,
    patch_size: int = 8,
    largest_number: int = 1000,
    words: Sequence[str] = (),
) -> Path:
    """Write a float32 model with random weights, its processor and its generation config to `out_dir`.

    Args:
        model_type: one of `MODEL_TYPES`.
        out_dir: a checkpoint folder; files of the same names are replaced.
        seed: of the weights; the global generator is left as it was.
        hidden_size: width of both towers, a multiple of 16.
        layers: depth of each tower, >= 1.
        image_size: side in pixels of the images the model is meant for, a multiple of two patches.
        patch_size: side of a vision patch in pixels; a token covers two by two patches.
        largest_number: whole numbers up to this one are a single token each, >= 9. A smaller vocabulary is faster;
            relative coordinates need 1000, pixel coordinates the image size.
        words: further words that get a token of their own.

    Returns:
        `out_dir` as a path.

    Raises:
        ValueError: for an unknown `model_type` or a size that does not divide.
    """
    tower = {"hidden_size": hidden_size, "layers": layers}
    image = {"image_size": image_size, "patch_size": patch_size}
    check_arguments(model_type, **tower, **image, largest_number=largest_number)
    processor = build_processor(model_type, **image, largest_number=largest_number, words=words)
    text, vision = text_config(model_type, **tower), vision_config(model_type, **tower, **image)
    config = build_config(model_type, processor, text=text, vision=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    return Path(out_dir)
