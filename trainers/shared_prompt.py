"""A GRPO step that pays for each prompt and image once: what the base trainer asks for."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby, islice
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import GenerationConfig
from trl.trainer.utils import split_pixel_values_by_grid

from vlm_entropy.data.generation import repeats_images_apart

from .rollouts import FORWARD_FIELDS, TOKEN_TYPES, Rollout, select_rows
from .shared_forward import (
    ROW_COUNTS,
    Rows,
    group_by,
    group_rows,
    network_of,
    pack,
    prepare_to_share,
    prompt_tokens,
    why_not_shared,
)
from .shared_images import processing_images_once
from .shared_prefill import shared_prefill

logger = logging.getLogger(__name__)

SharePrompts = Literal["auto", "on", "off"]

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
"""Mean difference in nats between a shared and a plain forward that is no error. Rounding stays below 1e-5 in float32;
a wrong position, mask or image is worth 0.3 and more."""

PerToken = tuple[Tensor, Tensor | None]
"""(R, T) log-probs, and entropies where they are asked for."""


class PromptSharing:
    """Sharing of the prompts of a run: which of its parts are on, and the check of the first forward.

    Args:
        mode: "off"; "auto", where it is exact, with a sentence in the log where it is not; "on", an error there, but
            also with dropout, whose mask is then one for the prompt of a group: unbiased, and not TRL's.
        models: the policy and, if any, the reference model, out of their wrappers of data parallelism.
        accelerator: of the trainer.
        obstacle: what in the set-up of the trainer forbids sharing, in a sentence, or None.

    Raises:
        ValueError: for "on" where prompts cannot be shared.
    """

    def __init__(self, mode: SharePrompts, models: list[Any], *, accelerator: Accelerator, obstacle: str | None):
        self.accelerator = accelerator
        self.is_on = mode != "off"
        self._is_checked = False
        if not self.is_on:
            return
        networks = [network_of(model) for model in models]
        self._network = networks[0]
        obstacle = obstacle or next(filter(None, map(why_not_shared, networks)), None)
        if mode == "auto" and has_dropout(models[0]):
            obstacle = obstacle or "dropout would hit the prompt of a whole group alike; share_prompts 'on' allows it"
        if obstacle is None:
            for network in networks:
                prepare_to_share(network)
        elif mode == "on":
            raise ValueError(f"share_prompts is 'on', but {obstacle}.")
        else:
            self._turn_off(f"Prompts are not shared: {obstacle}.")

    def per_token(
        self, plain: Callable[[Rows], PerToken], model: nn.Module, rows: Rows, *, batch_size: int | None
    ) -> PerToken:
        """What `plain` computes, with each prompt of a batch taken once and as many calls of the model.

        Nothing is shared before the check, which all processes make together.

        Args:
            plain: TRL's forward, row by row.
            model: the model that it calls.
            rows: R rows.
            batch_size: rows per call, all of them for None.
        """
        parts = rows.chunks(batch_size or len(rows.input_ids))
        if not self._is_checked and not is_attack(rows):
            self._check(plain, model, parts[0])
        share = self.is_on and self._is_checked
        results = [self._shared(plain, model, part) if share else plain(part) for part in parts]
        logps, entropies = zip(*results)
        return torch.cat(logps), None if entropies[0] is None else torch.cat(entropies)

    def generate(
        self,
        generate: Callable[[list[list[int]], list | None, dict[str, Any]], Any],
        config: GenerationConfig,
        prompt_ids: list[list[int]],
        images: list | None,
        fields: dict[str, Any],
    ) -> Any:
        """What `generate` samples for these rows, with equal prompts that follow each other read once.

        Args:
            generate: TRL's sampler on transformers.
            config: what it samples with.
            prompt_ids: token ids of each row.
            images: the images of each row, or None.
            fields: the processor's tensors.
        """
        repeats = 1
        if self.is_on and config.do_sample and config.num_return_sequences in (None, 1):
            counts = row_counts(self._network, prompt_ids, images, fields)
            by_row = {**stacked(fields), **counts}
            parts = split_pixel_values_by_grid({name: by_row[name] for name in by_row if name not in TOKEN_TYPES})
            repeats = common_repeats(group_by(prompt_ids, parts).owner)
            if max(counts.get("num_images", [0])) > 1 and repeats_images_apart(self._network):
                repeats = 1
        if repeats == 1:
            return generate(prompt_ids, images, fields)
        rows = list(range(0, len(prompt_ids), repeats))
        picked = {name: value for name, value in select_rows(by_row, rows).items() if name not in ROW_COUNTS}
        with shared_prefill(self._network, config, repeats):
            return generate(
                [prompt_ids[row] for row in rows], None if images is None else [images[row] for row in rows], picked
            )

    def processing(self, processor: Any) -> AbstractContextManager[None]:
        """Within it, the processor takes each different image of a call once."""
        return processing_images_once(processor) if self.is_on else nullcontext()

    def _shared(self, plain: Callable[[Rows], PerToken], model: nn.Module, rows: Rows) -> PerToken:
        groups = group_rows(rows)
        if not groups.share:
            return plain(rows)
        packed = pack(self._network, rows, groups)
        with self.accelerator.autocast():
            output = model(**packed.inputs, fused_lm_head=True)
        entropies = None if output.entropy is None else packed.rows(output.entropy, rows.completion_length)
        return packed.rows(output.log_probs, rows.completion_length), entropies

    def _check(self, plain: Callable[[Rows], PerToken], model: nn.Module, rows: Rows) -> None:
        """Compare the first shared forward of the run with the plain one, on all processes; end sharing on a miss."""
        shares = torch.tensor([group_rows(rows).share], device=rows.input_ids.device)
        if not self.accelerator.gather(shares).any():
            return
        self._is_checked = True
        is_real = rows.attention_mask[:, -rows.completion_length :].bool()
        with torch.no_grad(), evaluating(model):
            pairs = zip(self._shared(plain, model, rows), plain(rows))
            differences = [(a - b).float().abs()[is_real].sum() for a, b in pairs if a is not None and b is not None]
        mean = (torch.stack(differences).max() / is_real.sum().clamp(min=1)).nan_to_num(nan=torch.inf)
        worst = self.accelerator.gather(mean.reshape(1)).max().item()
        tolerance = TOLERANCE[compute_dtype(model, self.accelerator)]
        if worst > tolerance:
            self._turn_off(
                f"Prompts are not shared in this run: its first forward that shares them differs by {worst:.2g} nats "
                f"a token from a plain one, more than {tolerance:g}."
            )

    def _turn_off(self, sentence: str) -> None:
        self.is_on = False
        if self.accelerator.is_main_process:
            logger.warning(sentence)


def has_dropout(model: nn.Module) -> bool:
    """Whether a forward in training leaves something out at random, in the model or in its adapters."""
    attention = getattr(network_of(model).config.get_text_config(), "attention_dropout", 0.0)
    return bool(attention) or any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())


def is_attack(rows: Rows) -> bool:
    """Whether a forward is one of those that each process makes on its own, for the gradient of its images."""
    return "pixel_values" in rows.fields and rows.fields["pixel_values"].requires_grad


def row_counts(
    network: Any, prompt_ids: list[list[int]], images: list | None, fields: dict[str, Any]
) -> dict[str, list[int]]:
    """`num_images` of each row, and `num_tiles` where image tensors are stored by tile; {} without images."""
    if images is None or fields.get("pixel_values") is None:
        return {}
    counts = {"num_images": [len(row or ()) for row in images]}
    stored = len(fields["pixel_values"])
    if "image_grid_thw" not in fields and stored != sum(counts["num_images"]):
        tokens = [ids.count(network.config.image_token_id) for ids in prompt_ids]
        counts["num_tiles"] = [count * stored // sum(tokens) for count in tokens]
    return counts


def stacked(fields: dict[str, Any]) -> dict[str, Any]:
    """The processor's entries, with those that are lists of tensors as tensors."""
    return {
        name: torch.stack(value) if isinstance(value, list) and isinstance(value[0], Tensor) else value
        for name, value in fields.items()
    }


def common_repeats(owner: list[int]) -> int:
    """The largest m so that the rows are m of one prompt, m of the next (perhaps the same), and so on."""
    runs = [len(list(run)) for _, run in groupby(owner)]
    return math.gcd(*runs)


def compute_dtype(model: nn.Module, accelerator: Accelerator) -> torch.dtype:
    """What a forward computes in: that of autocast, or that of the weights."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return mixed.get(accelerator.mixed_precision) or next(model.parameters()).dtype


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model without dropout for a while; every module gets its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def keep_groups(microbatches: list[Rollout]) -> list[Rollout]:
    """The rows of a rollout dealt out again, so that those with equal prompts and images stay together.

    Groups come in the order in which the micro-batches have their first rows, and rows in theirs: the order stays one
    that the shuffle into micro-batches drew.
    """
    joined = {name: join([batch[name] for batch in microbatches]) for name in microbatches[0]}
    rows = {name: value for name, value in joined.items() if not is_single(value)}
    prompts = prompt_tokens(rows["prompt_ids"], rows["prompt_mask"])
    images = {name: rows[name] for name in FORWARD_FIELDS if name in rows and name not in TOKEN_TYPES}
    owner = group_by(prompts, split_pixel_values_by_grid(images)).owner
    order = iter(sorted(range(len(owner)), key=owner.__getitem__))
    single = {name: value for name, value in joined.items() if is_single(value)}
    return [{**single, **select_rows(rows, list(islice(order, len(batch["prompt_ids"]))))} for batch in microbatches]


def is_single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def join(values: list[Any]) -> Any:
    """An entry of all micro-batches, row after row."""
    if is_single(values[0]):
        return values[0]
    return torch.cat(values) if isinstance(values[0], Tensor) else [row for value in values for row in value]
