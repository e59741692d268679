"""A tiny vision-language model from nothing: real architecture, random weights, the synthetic tasks' tokenizer.

What it writes loads with `AutoModelForImageTextToText` and `AutoProcessor` like any checkpoint, so tests, the demo and
CI run the code that a real model runs.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .shapes import COLOURS, COLUMNS_OF_IMAGE, ROWS_OF_IMAGE, SHAPES

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
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
QWEN_PROCESSORS: dict[str, tuple[Any, Any]] = {
    "qwen2_vl": (Qwen2VLProcessor, Qwen2VLVideoProcessor),
    "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
    "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
}
MODEL_TYPES = (*QWEN_PROCESSORS, "internvl")

MERGE = 2
HEAD_DIM = 16
INITIALIZER_RANGE = 0.1
MAX_IMAGE_TOKENS = 64
MAX_TILES = 4
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "system\n", "user\n", "assistant\n", ", ", "Find")
PROMPT_WORDS = (
    "First output the thinking process in tags and then the final answer Please provide bounding box coordinate of "
    "region this sentence describes object image where is a an point click Output JSON format"
)
WORDS = (*COLOURS, *SHAPES, *ROWS_OF_IMAGE, *COLUMNS_OF_IMAGE, *PROMPT_WORDS.split())

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


def vocabulary(words: Sequence[str], largest_number: int) -> tuple[list[str], list[str]]:
    """The token strings, all in byte-level spelling, and those of them that are longer than a byte.

    Each of `words` is known with and without the space before it; the 256 bytes cover everything else.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = [*TAGS, *(space + word for word in words for space in ("", " "))]
    pieces = [byte_level.pre_tokenize_str(text)[0][0] for text in dict.fromkeys(texts)]
    numbers = [str(number) for number in range(largest_number + 1)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return list(dict.fromkeys([*letters, *numbers, *pieces])), [piece for piece in pieces if len(piece) > 1]


def build_tokenizer(
    special: dict[str, str], *, largest_number: int = 1000, words: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a byte fallback: any text in, no unknown token, the same text out.

    Bytes are spelled as printable letters first (as in GPT-2), then the text is cut into known words, numbers and,
    where nothing else fits, single bytes. Tags such as `<think>` are ordinary words, so they survive
    `decode(skip_special_tokens=True)` and rewards can parse them.

    Args:
        special: the family's image tokens, attribute name -> token.
        largest_number: numbers above it are spelled digit by digit.
        words: further words worth a single token each, for other tasks.
    """
    tokens, pieces = vocabulary([*WORDS, *words], largest_number)
    longest_first = sorted(map(re.escape, pieces), key=len, reverse=True)
    numbers = "|".join(map(str, range(largest_number, -1, -1)))
    pattern = "|".join([*longest_first, f"(?<![0-9])(?:{numbers})(?![0-9])", "."])
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = [PAD, TURN_START, TURN_END, *special.values()]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=special,
    )


def text_config(model_type: str, *, hidden_size: int, layers: int) -> dict[str, Any]:
    """The language model: heads of 16 dimensions; Qwen's rotary positions are split into (time, row, column)."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if model_type != "internvl":
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
    if model_type == "qwen2_5_vl":
        return qwen | {"fullatt_block_indexes": [layers - 1], "window_size": image_size}
    return qwen | {"num_position_embeddings": (image_size // patch_size) ** 2, "deepstack_visual_indexes": [0]}


def build_processor(
    model_type: str, *, image_size: int, patch_size: int, largest_number: int, words: Sequence[str]
) -> ProcessorMixin:
    """Tokenizer, image processor and chat template of the family, sized for small images.

    Qwen keeps an image of whole merge blocks as it is, up to 64 image tokens; InternVL resizes to tiles of
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
    layout: dict[str, Any] = {
        "patch_size": patch_size,
        "merge_size": MERGE,
        "size": {"shortest_edge": block, "longest_edge": MAX_IMAGE_TOKENS * block},
    }
    processor_class, video_class = QWEN_PROCESSORS[model_type]
    return processor_class(
        image_processor=Qwen2VLImageProcessor(**layout),
        tokenizer=build_tokenizer(QWEN_SPECIAL, **text),
        video_processor=video_class(**layout),
        chat_template=CHAT_TEMPLATE.replace("@IMAGE@", "<|vision_start|><|image_pad|><|vision_end|>"),
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
        options["video_token_id"] = processor.video_token_id
        for end, name in (("start", "vision_bos_token"), ("end", "vision_eos_token")):
            options[f"vision_{end}_token_id"] = tokenizer.convert_tokens_to_ids(QWEN_SPECIAL[name])
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
