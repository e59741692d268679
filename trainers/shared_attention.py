"""Attention over prompts that stand once and the completions that continue them.

The tokens of n prompts and R completions lie in one row of a batch:

    prompt 1 ... prompt n | completion 1 ... completion R         n · P + R · T tokens, each part padded to P or T

A prompt attends to itself, a completion to its prompt and to itself: two calls of the usual attention, of shapes
(n, P, P) and (R, T, P + T). Everything else in a transformer is per token and does not notice. Registered with
transformers under `SHARED_PROMPT`; a forward without a `Layout` is plain SDPA.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_PROMPT = "sdpa_shared_prompt"


class Layout(NamedTuple):
    """Where the tokens of a row of shared prompts lie and what they attend to.

    It travels as an argument of the model (`shared_prompt=`), so that gradient checkpointing recomputes with it.
    """

    owner: Tensor
    """(R,) number in [0, n) of the prompt that each completion continues."""
    prompts: tuple[int, int]
    """n and P."""
    prompt_mask: Tensor | None
    """(n, 1, P, P) bool, true = attend; None for causal attention without padding."""
    completion_mask: Tensor
    """(R or 1, 1, T, P + T) bool, true = attend."""


def build_layout(owner: Tensor, prompt_mask: Tensor, completion_length: int) -> Layout:
    """The layout of padded prompts and completions.

    Args:
        owner: (R,) prompt of each completion.
        prompt_mask: (n, P) bool, padding on the left.
        completion_length: T, padding on the right: no mask is needed, as no real token comes after it.
    """
    is_padded = not prompt_mask.all()
    causal = torch.ones(prompt_mask.size(1), prompt_mask.size(1), dtype=torch.bool, device=owner.device).tril()
    # A padding query has no key; one of its own keeps its softmax, which nobody reads, from being NaN.
    own = torch.eye(prompt_mask.size(1), dtype=torch.bool, device=owner.device)
    to_prompt = prompt_mask[owner] if is_padded else prompt_mask[:1]
    to_itself = torch.ones(completion_length, completion_length, dtype=torch.bool, device=owner.device).tril()
    completion_mask = torch.cat(
        [
            to_prompt[:, None, None].expand(-1, 1, completion_length, -1),
            to_itself.expand(len(to_prompt), 1, -1, -1),
        ],
        dim=3,
    )
    return Layout(
        owner,
        (prompt_mask.size(0), prompt_mask.size(1)),
        ((causal & prompt_mask[:, None]) | own)[:, None] if is_padded else None,
        completion_mask,
    )


def shared_prompt_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prompt: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA, or with a layout the two calls of it that the layout means.

    Args:
        query: (1, heads, n · P + R · T, head size); `key` and `value` likewise with the key-value heads.
        attention_mask: not read with a layout.

    Returns:
        (1, n · P + R · T, heads, head size), and None in the place of the weights.
    """
    if shared_prompt is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    (count, length), owner = shared_prompt.prompts, shared_prompt.owner

    def parts(states: Tensor) -> tuple[Tensor, Tensor]:
        prompts, completions = states[0].split([count * length, states.size(2) - count * length], dim=1)
        return (
            prompts.unflatten(1, (count, length)).transpose(0, 1),
            completions.unflatten(1, (len(owner), -1)).transpose(0, 1),
        )

    (q, q_own), (k, k_own), (v, v_own) = parts(query), parts(key), parts(value)
    prompts, _ = sdpa_attention_forward(module, q, k, v, shared_prompt.prompt_mask, **kwargs)
    keys, values = (torch.cat([shared[owner], own], dim=2) for shared, own in ((k, k_own), (v, v_own)))
    completions, _ = sdpa_attention_forward(module, q_own, keys, values, shared_prompt.completion_mask, **kwargs)
    return torch.cat([prompts.flatten(0, 1), completions.flatten(0, 1)])[None], None


AttentionInterface.register(SHARED_PROMPT, shared_prompt_attention)
AttentionMaskInterface.register(SHARED_PROMPT, sdpa_mask)
