"""Answers of a model to many prompts: batches by length, greedy or sampled, with their token entropy if asked for."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig, GenerationMixin
from trl import prepare_multimodal_messages

from .families import vision_token_ids
from .models import adapter_base
from .processes import processes
from .token_measures import LogitsRecorder, TokenMeasures

Conversation = list[dict[str, Any]]
"""Chat messages up to the answer, with their images in place; see `conversation`."""
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. The model's own generation settings count for nothing, so that a number says all."""

    max_new_tokens: int
    """Longest answer in tokens, >= 1."""
    temperature: float = 0.0
    """0: greedy. Above: sampled from softmax(logits / temperature); 1 is the policy as it is trained."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are sampled, in (0, 1]."""
    samples: int = 1
    """Answers per prompt, >= 1."""

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.samples < 1:
            raise ValueError(f"max_new_tokens and samples must be >= 1, got {self.max_new_tokens}, {self.samples}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number >= 0, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}.")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples is {self.samples}, all alike at temperature 0; set a temperature above it.")


class Answer(NamedTuple):
    """One answer of a model."""

    text: str
    """Without special tokens."""
    tokens: int
    """Its length, the end token included."""
    is_truncated: bool
    """Whether it has no end token, having reached `max_new_tokens`."""
    entropy: float | None
    """Mean over its tokens of the full-vocabulary entropy at temperature 1, in nats; None if not asked for, or if the
    model's logits are not finite."""
    measures: list[TokenMeasures] | None = None
    """Of each of its tokens, the end token included; None if not asked for."""


def load_model(name: str, *, revision: str | None = None) -> Any:
    """A checkpoint to ask, or an adapter merged into its base, on this process's device.

    Args:
        name: folder of a checkpoint or of a PEFT adapter, or a name on the hub.
        revision: on the hub.
    """
    base = adapter_base(name)
    model: Any = AutoModelForImageTextToText.from_pretrained(base or name, revision=revision, dtype="auto")
    ends = model.generation_config.eos_token_id
    if base is not None:
        model = PeftModel.from_pretrained(model, name).merge_and_unload()  # type: ignore[operator]
    # `generate` fills what its caller leaves open from here: Qwen2.5-VL's has a repetition penalty of 1.05.
    model.generation_config = GenerationConfig(eos_token_id=ends)
    return model.to(processes().device).eval()


def conversation(messages: Sequence[dict[str, str]], images: Sequence[Image.Image]) -> Conversation:
    """Messages of plain text with the images before the text of the first user message."""
    return prepare_multimodal_messages(list(messages), images=list(images))


def tokenize(processor: Any, conversations: Sequence[Conversation]) -> Any:
    """The model's inputs for a batch of conversations, padded on the left."""
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def repeats_images_apart(model: Any) -> bool:
    """Whether `generate` with `num_return_sequences` repeats the images A, B of a prompt as A, A, B, B.

    The first copy of the prompt would get A twice. That is so for GLM-4.1V in transformers 5.23, which overrides the
    repetition A, B, A, B of all other families.
    """
    return type(model)._expand_multimodal_outputs is not GenerationMixin._expand_multimodal_outputs


def has_several_images(model: Any, inputs: Any) -> bool:
    """Whether a prompt of a batch of a family with `image_grid_thw` has more than one image."""
    rows = (inputs["input_ids"] == model.config.image_token_id).any(dim=1).sum()
    return "image_grid_thw" in inputs and len(inputs["image_grid_thw"]) > rows


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's softmax, -Σ_v p_v log p_v, p_v = 0 counting as 0.

    Args:
        logits: (..., V), any dtype; computed in float32.

    Returns:
        (...) in nats.
    """
    return torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1)


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    inputs: Any,
    *,
    decoding: Decoding,
    seed: int = 0,
    with_entropy: bool = False,
    with_measures: bool = False,
) -> list[list[Answer]]:
    """Answer a batch of prompts.

    The placeholder tokens of images are never sampled, as in training. The global random state stays as it was.

    Args:
        model: what `load_model` returns, without generation settings of its own but the end tokens.
        processor: its processor.
        inputs: of `tokenize`.
        decoding: how to draw.
        seed: of the draw; the same seed and batch give the same answers.
        with_entropy: whether to measure `Answer.entropy`.
        with_measures: whether to measure every token, `Answer.measures`.

    Returns:
        For each prompt its `decoding.samples` answers.

    Raises:
        ValueError: for several answers to prompts with several images, of a model that `repeats_images_apart`.
    """
    config, tokenizer = _generation_config(model, processor, decoding), processor.tokenizer
    if decoding.samples > 1 and has_several_images(model, inputs) and repeats_images_apart(model):
        raise ValueError(
            f"{type(model).__name__} cannot draw {decoding.samples} answers to a prompt with several images: "
            "transformers would mix the images; ask for one answer at a time."
        )
    inputs = inputs.to(model.device)
    entropies: list[Tensor] = []

    def measure(module: Any, args: Any, output: Any) -> None:
        entropies.append(token_entropy(output.logits[:, -1]))

    devices = [model.device] if model.device.type == "cuda" else []
    recorder = LogitsRecorder()
    measuring = model.register_forward_hook(measure) if with_entropy else nullcontext()
    recording = model.register_forward_hook(recorder, with_kwargs=True) if with_measures else nullcontext()
    with measuring, recording, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        ids = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].size(1) :]
    ends = torch.isin(ids, torch.tensor(config.eos_token_id, device=ids.device))
    lengths = torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, ids.size(1))
    means: list[float | None] = [None] * len(ids)
    if with_entropy:
        mask = torch.arange(ids.size(1), device=ids.device) < lengths[:, None]
        sums = torch.where(mask, torch.stack(entropies, dim=1), 0.0).sum(dim=1)
        means = [mean if math.isfinite(mean) else None for mean in (sums / lengths).tolist()]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    measures: list[Any] = recorder.finish(ids, lengths.tolist(), tokenizer) if with_measures else [None] * len(ids)
    columns = (texts, lengths.tolist(), (~ends.any(dim=1)).tolist(), means, measures)
    answers = [Answer(*fields) for fields in zip(*columns, strict=True)]
    return [answers[start : start + decoding.samples] for start in range(0, len(answers), decoding.samples)]


def _generation_config(model: Any, processor: Any, decoding: Decoding) -> GenerationConfig:
    own, tokenizer = model.generation_config, processor.tokenizer
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    sampling = (
        {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.temperature else {}
    )
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=decoding.temperature > 0,
        num_return_sequences=decoding.samples,
        suppress_tokens=sorted(vision_token_ids(model.config)) or None,
        eos_token_id=ends if isinstance(ends, list) else [ends],
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of row numbers, longest rows first, so that little is padded and the largest batch comes at once.

    Args:
        lengths: tokens of each row's prompt.
        batch_size: rows of a batch, >= 1; the last one may hold fewer.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def prefetch(prepare: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[tuple[Key, Value]]:
    """Yield (key, prepare(key)) in order; the next one is prepared in a thread while this one is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for key in keys:
            ahead = key, pool.submit(prepare, key)
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = ahead
        if pending is not None:
            yield pending[0], pending[1].result()
