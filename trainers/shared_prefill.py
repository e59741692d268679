"""Generation of several completions to each prompt that reads the prompt once.

`num_return_sequences` has transformers encode the images of a prompt once, and then read the prompt again for each
completion. Here the first forward gets one row per prompt, and its cache and logits are repeated.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

PER_ROW = ("input_ids", "attention_mask", "mm_token_type_ids")


@contextmanager
def shared_prefill(network: PreTrainedModel, config: GenerationConfig, repeats: int) -> Iterator[None]:
    """Within it, `network.generate(..., generation_config=config)` gives `repeats` completions to each row.

    They come one after another, as if each row stood `repeats` times in the batch, and are sampled by the same draws.
    """
    shared = False

    def first_rows(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        nonlocal shared
        shared = is_prefill(kwargs, repeats)
        return (args, one_row_per_prompt(kwargs, repeats, network.config)) if shared else None

    def all_rows(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if shared:
            output.past_key_values.batch_repeat_interleave(repeats)
            output.logits = output.logits.repeat_interleave(repeats, dim=0)
        return output

    hooks = [
        network.register_forward_pre_hook(first_rows, with_kwargs=True),
        network.register_forward_hook(all_rows, with_kwargs=True),
    ]
    before, config.num_return_sequences = config.num_return_sequences, repeats
    try:
        yield
    finally:
        config.num_return_sequences = before
        for hook in hooks:
            hook.remove()


def is_prefill(kwargs: dict[str, Any], repeats: int) -> bool:
    """Whether these are the inputs of a first forward, in a form that can be cut down to one row per prompt."""
    cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
    if cache is None or ids is None or cache.get_seq_length() > 0 or len(ids) % repeats:
        return False
    return kwargs.get("pixel_values") is None


def one_row_per_prompt(kwargs: dict[str, Any], repeats: int, config: Any) -> dict[str, Any]:
    """The inputs of a first forward without the repetitions of each row."""
    picked = {name: kwargs[name][::repeats] for name in PER_ROW if kwargs.get(name) is not None}
    if kwargs.get("position_ids") is not None:
        picked["position_ids"] = kwargs["position_ids"][..., ::repeats, :]
    if kwargs.get("mm_encoder_outputs"):
        picked["mm_encoder_outputs"] = {
            kind: encoded
            and encoded_once(encoded, kwargs["input_ids"] == getattr(config, f"{kind}_token_id"), repeats)
            for kind, encoded in kwargs["mm_encoder_outputs"].items()
        }
    return {**kwargs, **picked}


def encoded_once(encoded: Any, is_placeholder: Tensor, repeats: int) -> Any:
    """The encoded images of the first of every `repeats` rows.

    Args:
        encoded: the output of the image encoder, an entry per image in `pooler_output` and in each layer of
            `deepstack_features`.
        is_placeholder: (R, P) bool, true where a token stands for a part of an image.
        repeats: how often each row stands in a row.
    """
    ends = list(accumulate(is_placeholder.sum(dim=1).tolist()))
    sizes = [len(features) for features in encoded.pooler_output]
    starts = [end - size for end, size in zip(accumulate(sizes), sizes)]
    kept = [index for index, start in enumerate(starts) if bisect_right(ends, start) % repeats == 0]

    def keep(features: Any) -> Any:
        return features[kept] if isinstance(features, Tensor) else [features[index] for index in kept]

    fields: dict[str, Any] = {"pooler_output": keep(encoded.pooler_output)}
    if getattr(encoded, "deepstack_features", None) is not None:
        fields["deepstack_features"] = [keep(layer) for layer in encoded.deepstack_features]
    return type(encoded)(**fields)
