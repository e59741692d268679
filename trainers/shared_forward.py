"""A model forward over groups of rows that have the prompt in common, each prompt and its images taken once.

GRPO has G completions of T tokens to each of n prompts of P tokens. Row by row a forward takes n · G · (P + T) tokens;

    [x_1 .. x_{P-1}] of n prompts | [x_P, y_1 .. y_{T-1}] of n · G completions        n · (P - 1 + G · T) tokens

go through the model once, each completion behind its prompt (see `shared_attention`), at the positions that it has in
a row of its own. Log-probs, entropies and gradients are those of the rows up to float rounding.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import split_pixel_values_by_grid

from .rollouts import TOKEN_TYPES, Rollout, select_rows
from .shared_attention import SHARED_PROMPT, build_layout

ROW_COUNTS = ("num_images", "num_tiles")
"""Entries that say which rows of the image tensors are whose, and are no input of a model."""


class Rows(NamedTuple):
    """R prompts of up to P tokens with a completion of up to T tokens each."""

    input_ids: Tensor
    """(R, P + T), padded on the left of the prompt and on the right of the completion."""
    attention_mask: Tensor
    """(R, P + T)."""
    completion_length: int
    """T."""
    fields: Rollout
    """What else the forward takes, see `rollouts.FORWARD_FIELDS`."""

    @property
    def prompt_width(self) -> int:
        return self.input_ids.size(1) - self.completion_length

    def chunks(self, size: int) -> list["Rows"]:
        """The rows in parts of at most `size`."""
        count = len(self.input_ids)
        if size >= count:
            return [self]
        parts = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        return [
            Rows(
                self.input_ids[rows],
                self.attention_mask[rows],
                self.completion_length,
                select_rows(self.fields, rows),
            )
            for rows in parts
        ]


class Groups(NamedTuple):
    """Rows of a batch that have prompt and images in common."""

    first: list[int]
    """The first row of each of the n groups."""
    owner: list[int]
    """The group, in [0, n), of each row."""

    @property
    def share(self) -> bool:
        return len(self.first) < len(self.owner)


def network_of(model: Any) -> Any:
    """The transformers model inside an adapter; wrappers of data parallelism are for the caller to take off."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def why_not_shared(network: PreTrainedModel) -> str | None:
    """What keeps a model from sharing prompts exactly, in half a sentence, or None; facts of its architecture."""
    config = network.config.get_text_config()
    layers = getattr(config, "layer_types", None) or []
    parts = (network.base_model, getattr(network.base_model, "language_model", None))
    if config._attn_implementation not in ("sdpa", SHARED_PROMPT):
        return f"attention is {config._attn_implementation!r}, and only 'sdpa' is known to be exact"
    if set(layers) - {"full_attention"}:
        return f"the model has layers of {min(set(layers) - {'full_attention'})}"
    if not layers and getattr(config, "sliding_window", None):
        return f"the model's attention slides over {config.sliding_window} tokens"
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        return "the model is a mixture of experts"
    if getattr(config, "rope_parameters", None) is None:
        return "the model's positions are not rotary"
    if getattr(config, "use_bidirectional_attention", None):
        return "the tokens of an image see each other in both directions"
    if not all(takes_keywords(part.forward) for part in parts if part is not None):
        return "the model's forward takes no further arguments"
    return None


def takes_keywords(forward: Callable) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(forward).parameters.values())


def prepare_to_share(network: PreTrainedModel) -> None:
    """Have the language model call `shared_prompt_attention`, which is SDPA until it gets a layout."""
    text = network.config.get_text_config()
    key = next((name for name in network.config.sub_configs if getattr(network.config, name) is text), "")
    network.set_attn_implementation({key: SHARED_PROMPT})


def group_rows(rows: Rows) -> Groups:
    """Which rows have the same prompt tokens and the same image tensors, where they can be shared at all.

    Shared are prompts of two tokens or more that end in text, before completions without images.
    """
    start, types = rows.prompt_width, rows.fields.get("mm_token_type_ids")
    ends_in_text = types is None or not types[:, start - 1 :].any()
    is_long = rows.attention_mask[:, :start].sum(dim=1) >= 2
    if "token_type_ids" in rows.fields or not ends_in_text or not is_long.all():
        return Groups(list(range(len(is_long))), list(range(len(is_long))))
    prompts = prompt_tokens(rows.input_ids[:, :start], rows.attention_mask[:, :start])
    images = {name: value for name, value in rows.fields.items() if name not in TOKEN_TYPES}
    return group_by(prompts, split_pixel_values_by_grid(images))


def prompt_tokens(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Token ids of each prompt, -1 on padding."""
    return ids.masked_fill(mask == 0, -1).tolist()


def group_by(prompts: list[list[int]], images: Rollout) -> Groups:
    """Groups of equal prompts with equal images.

    Args:
        prompts: token ids of each row.
        images: entries with one value per row, as `split_pixel_values_by_grid` makes them.
    """

    def equal_images(a: int, b: int) -> bool:
        pairs = [(values[a], values[b]) for values in images.values()]
        return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)

    groups = Groups([], [])
    known: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        candidates = known.setdefault(tuple(prompt), [])
        group = next((group for group in candidates if equal_images(groups.first[group], row)), len(groups.first))
        if group == len(groups.first):
            groups.first.append(row)
            candidates.append(group)
        groups.owner.append(group)
    return groups


class Packed(NamedTuple):
    """Shared prompts and their completions as the inputs of one forward, and the way back to rows."""

    inputs: dict[str, Any]
    shape: tuple[int, int]
    """R and the longest completion."""

    def rows(self, values: Tensor, completion_length: int) -> Tensor:
        """(R, T) values of the completion tokens, 0 on padding, from the (1, n · (P - 1) + R · t) of the forward."""
        rows, width = self.shape
        return F.pad(values[0, -rows * width :].view(rows, width), (0, completion_length - width))


def pack(network: PreTrainedModel, rows: Rows, groups: Groups) -> Packed:
    """The inputs of a forward with `fused_lm_head=True` over rows whose prompts are shared.

    Args:
        network: knows the positions of image tokens.
        rows: R rows.
        groups: of them, by `group_rows`.
    """
    ids, mask, end = rows.input_ids, rows.attention_mask.bool(), rows.prompt_width
    length = int(mask[:, :end].sum(dim=1).max())
    width = max(1, int(mask[:, end:].sum(dim=1).max()))
    is_prompt, is_completion = slice(end - length, end), slice(end, end + width)
    prompts, prompt_mask = ids[groups.first, is_prompt], mask[groups.first, is_prompt]
    completions = ids[:, is_completion]
    owner = torch.tensor(groups.owner, device=ids.device)
    shared = select_rows(rows.fields, groups.first)
    types = shared["mm_token_type_ids"][:, is_prompt] if "mm_token_type_ids" in shared else None

    positions = prompt_positions(network, prompts, prompt_mask, types, shared.get("image_grid_thw"))
    following = positions[..., owner, -1:] + torch.arange(width, device=owner.device)
    behind = torch.cat([prompts[owner, -1:], completions[:, :-1]], dim=1)
    no_labels = torch.full_like(prompts[:, :-1], -100)
    labels = completions.masked_fill(~mask[:, is_completion], -100)
    layout = build_layout(owner, prompt_mask[:, :-1], width)
    inputs = {name: value for name, value in shared.items() if name not in (*ROW_COUNTS, *TOKEN_TYPES)}
    inputs |= {
        "input_ids": in_one_row(prompts[:, :-1], behind),
        "position_ids": in_one_row(positions[..., :-1], following),
        "shift_labels": in_one_row(no_labels, labels),
        "attention_mask": layout.completion_mask,  # four dimensions, which the model hands on as they are
        "shared_prompt": layout,
    }
    return Packed(inputs, (len(owner), width))


def in_one_row(prompts: Tensor, completions: Tensor) -> Tensor:
    """(..., n, P) and (..., R, T) as (..., 1, n · P + R · T)."""
    return torch.cat([prompts.flatten(-2), completions.flatten(-2)], dim=-1).unsqueeze(-2)


def prompt_positions(
    network: PreTrainedModel, prompts: Tensor, mask: Tensor, types: Tensor | None, grids: Tensor | None
) -> Tensor:
    """Positions of the tokens of prompts padded on the left: (n, P), or (3, n, P) where images have a grid of them."""
    rope_index = getattr(network.base_model, "get_rope_index", None)
    if rope_index is None or types is None or grids is None or not len(grids):
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    positions, _ = rope_index(prompts, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=mask.long())
    return positions
