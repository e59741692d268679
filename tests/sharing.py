"""Batches whose rows have prompts in common, and what the model gives each row on its own."""

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.grpo_trainer import add_fused_lm_head

from vlm_entropy.data.tiny import MODEL_TYPES, build_tiny_vlm
from vlm_entropy.trainers.rollouts import select_rows
from vlm_entropy.trainers.shared_forward import ROW_COUNTS, Rows, prepare_to_share

SIDES = {"small": (32, 32), "wide": (64, 32), "other": (32, 32)}
"""Width and height of the pictures of noise; 'small' and 'other' differ in their pixels alone."""
PROMPTS = (
    (("small",), "Find the red circle"),
    (("other",), "Find the red circle"),
    (("wide", "small"), "Find the blue square, please"),
    ((), "Find a point"),
)
"""Images and text: two prompts of equal tokens, one of several images, one of none."""


ALWAYS = ("qwen2_5_vl", "internvl")
EVERY_FAMILY = pytest.mark.parametrize("model_type", MODEL_TYPES)
TWO_FAMILIES = pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in MODEL_TYPES]
)
"""One that sees patches and one that sees tiles; the others with `-m slow`."""


class Batch(NamedTuple):
    prompts: list[int]
    """Of each row, its number in `PROMPTS`."""
    rows: Rows


_folders = tempfile.TemporaryDirectory()


@functools.cache
def family(model_type):
    """The folder of a tiny model of a family, sharp enough that entropies differ from token to token."""
    folder = Path(_folders.name) / model_type
    build_tiny_vlm(model_type, folder, hidden_size=32)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 3
    model.save_pretrained(folder)
    return folder


def picture(name):
    width, height = SIDES[name]
    generator = np.random.default_rng(list(SIDES).index(name))
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def processor_of(folder):
    return AutoProcessor.from_pretrained(folder, padding_side="left")


def load(folder, *, share, dtype=torch.float32):
    """A network with TRL's output layer, prepared to share prompts or as it is."""
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    if share:
        prepare_to_share(network)
    add_fused_lm_head(network, outputs=("log_probs", "entropy"))
    return network


def encode(folder, prompts):
    """What the processor makes of prompts by their numbers, padded on the left, and the images of each row."""
    processor = processor_of(folder)
    images = [[picture(name) for name in PROMPTS[number][0]] for number in prompts]
    turns = [
        [{"type": "image"}] * len(some) + [{"type": "text", "text": PROMPTS[n][1]}] for n, some in zip(prompts, images)
    ]
    texts = [
        processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True, tokenize=False)
        for turn in turns
    ]
    if any(images):
        return processor(text=texts, images=images, padding=True, return_tensors="pt"), images
    return processor(text=texts, padding=True, return_tensors="pt"), images


def tiles_of(folder, images):
    """Tiles of each row, or None for a family without tiles."""
    image_processor = processor_of(folder).image_processor
    if not hasattr(image_processor, "crop_to_patches"):
        return None
    tiles = [
        image_processor(images=[image], crop_to_patches=True, return_tensors="pt") for some in images for image in some
    ]
    counts = iter([len(tile["pixel_values"]) for tile in tiles])
    return [sum(next(counts) for _ in some) for some in images]


def batch_of(folder, *, prompts=(0, 1, 2, 3) * 4, lengths=None, longest=7, seed=0):
    """Rows of the prompts of these numbers, with completions of random tokens and of 1 to `longest` of them."""
    generator = torch.Generator().manual_seed(seed)
    encoded, images = encode(folder, prompts)
    if lengths is None:
        lengths = torch.randint(1, longest + 1, (len(prompts),), generator=generator).tolist()
    completions = torch.randint(5, 200, (len(prompts), longest), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    fields = {name: value for name, value in encoded.items() if name not in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in fields:
        fields["mm_token_type_ids"] = F.pad(fields["mm_token_type_ids"], (0, longest))
    if any(images):
        fields["num_images"] = [len(some) for some in images]
        tiles = tiles_of(folder, images)
        fields |= {} if tiles is None else {"num_tiles": tiles}
    ids = torch.cat([encoded["input_ids"], completions], dim=1)
    return Batch(list(prompts), Rows(ids, torch.cat([encoded["attention_mask"], mask], dim=1), longest, fields))


def alone(rows, row):
    """A row without padding: token ids, where its completion starts, and the tensors of its images."""
    real = rows.attention_mask[row].bool()
    fields = select_rows(rows.fields, [row])
    fields = {
        name: value[:, real] if name == "mm_token_type_ids" else value
        for name, value in fields.items()
        if name not in ROW_COUNTS and (name not in ("pixel_values", "image_grid_thw") or len(value))
    }
    return rows.input_ids[row, real][None], int(real[: rows.prompt_width].sum()), fields


def row_by_row(network, rows):
    """(R, T) log-probs and entropies by a forward per row without padding and a log-softmax of all logits."""
    logps, entropies = [], []
    for row in range(len(rows.input_ids)):
        ids, start, fields = alone(rows, row)
        distribution = network(input_ids=ids, **fields).logits[0, start - 1 : -1].float().log_softmax(dim=-1)
        logps.append(distribution.gather(1, ids[0, start:, None])[:, 0])
        entropies.append(-(distribution.exp() * distribution).sum(dim=1))
    missing = (0, rows.completion_length - max(map(len, logps)))
    return tuple(F.pad(pad_sequence(values, batch_first=True), missing) for values in (logps, entropies))


def trl_rows(network, rows):
    """(R, T) log-probs and entropies as TRL computes them, all rows in one forward."""
    labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
    labels[:, : rows.prompt_width] = -100
    fields = {
        name: value
        for name, value in rows.fields.items()
        if name not in ROW_COUNTS and (name not in ("pixel_values", "image_grid_thw") or len(value))
    }
    output = network(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, **fields, labels=labels, fused_lm_head=True
    )
    return tuple(values[:, -rows.completion_length :] for values in (output.log_probs, output.entropy))


def relative_difference(actual, expected):
    """Largest difference over the largest magnitude of what is expected."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


class Counted:
    """Patches (or tiles) through the vision tower, tokens through the language model and its attention, by call."""

    def __init__(self, network):
        self.patches, self.tokens, self.attended = [], [], []
        base = network.base_model
        tower = getattr(base, "visual", None) or base.vision_tower
        tower.register_forward_pre_hook(self._count_patches, with_kwargs=True)
        base.language_model.register_forward_pre_hook(self._count_tokens, with_kwargs=True)
        base.language_model.layers[0].self_attn.register_forward_pre_hook(self._count_attended, with_kwargs=True)

    def _count_patches(self, module, args, kwargs):
        self.patches.append(len(args[0] if args else next(iter(kwargs.values()))))

    def _count_tokens(self, module, args, kwargs):
        embeddings = kwargs["inputs_embeds"]
        self.tokens.append(embeddings.size(0) * embeddings.size(1))

    def _count_attended(self, module, args, kwargs):
        states = kwargs["hidden_states"]
        self.attended.append(states.size(0) * states.size(1))
