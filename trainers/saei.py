"""SaEI: sample part of each group from images perturbed so that the policy's entropy rises (arXiv 2512.10414)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .changed_images import ChangedImageConfig, ChangedImageTrainer, Prompt, check_alpha
from .pixels import Row, join_rows

TokenScope = Literal["response", "pooled", "all"]


def select_tokens(entropies: Tensor, mask: Tensor, *, scope: TokenScope = "response") -> Tensor:
    """The tokens of moderate entropy: the middle third by rank.

    keep_it = ⌊L/3⌋ ≤ rank(H_it) < L - ⌊L/3⌋,   ranks from 0 in ascending order, ties by position

    Source: arXiv 2512.10414, section 4.3 (TsEC). The paper gives neither the rounding, which never leaves nothing
    here (L = 1 keeps 1, 2 keeps 2, 4 keeps 2, 5 keeps 3), nor the set that is ranked, which is `scope` here.

    Args:
        entropies: (B, T) in nats, the responses of one prompt.
        mask: (B, T) bool or 0/1, true = a real completion token; others are never ranked or kept.
        scope: rank the L tokens of each "response", the L tokens of all responses "pooled", or keep "all".

    Returns:
        (B, T) bool, true = the token's entropy is attacked.

    Raises:
        ValueError: for another scope.
    """
    if scope not in ("response", "pooled", "all"):
        raise ValueError(f"scope must be 'response', 'pooled' or 'all', got {scope!r}.")
    valid = mask.bool()
    if scope == "all":
        return valid
    ranked = valid if scope == "response" else valid.reshape(1, -1)
    ascending = entropies.detach().masked_fill(~valid, math.inf).view_as(ranked).argsort(dim=1, stable=True)
    rank = ascending.argsort(dim=1)
    length = ranked.sum(dim=1, keepdim=True)
    third = length // 3
    return ((rank >= third) & (rank < length - third)).view_as(valid)


def attacked_entropy(entropies: Tensor, keep_mask: Tensor) -> Tensor:
    """The objective of the attack on the images of one prompt.

    H = (1/n) Σ_i (1/|S_i|) Σ_{t in S_i} H_it   over the n responses with a token in S_i

    Source: arXiv 2512.10414, sections 4.2 and 4.3. There every response counts; one without a token has no mean.

    Args:
        entropies: (B, T) in nats, the responses of one prompt; gradients flow through.
        keep_mask: (B, T) bool, S: see `select_tokens`.

    Returns:
        Scalar in nats, 0 if nothing is kept.
    """
    counts = keep_mask.sum(dim=1)
    means = torch.where(keep_mask, entropies, 0.0).sum(dim=1) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def perturb(
    pixels: Tensor,
    gradient: Tensor,
    *,
    alpha: float | Tensor,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
) -> Tensor:
    """One step of entropy ascent on an image.

    I' = clip(I + α · sign(∇_I H), low, high)

    Source: arXiv 2512.10414, section 4.2 (EgAS), which writes I + α' · sign(∇_I(-H)) with α' = -α < 0.

    T steps of α stay within α · T of the start in every pixel, so no projection to that ball is needed.

    Args:
        pixels: any shape.
        gradient: like `pixels`, of the entropy to raise; a pixel with gradient 0 (or NaN) stays as it is.
        alpha: step, in the unit of the pixels; alpha, low and high broadcast: in normalised pixels with mean μ_c and
            deviation σ_c they are α/σ_c, (0 - μ_c)/σ_c and (1 - μ_c)/σ_c.
        low: smallest value of a pixel.
        high: largest value of a pixel.

    Returns:
        Like `pixels`, detached.
    """
    return (pixels.detach() + alpha * gradient.detach().sign()).clamp(min=low).clamp(max=high)


@dataclass
class SaeiConfig(ChangedImageConfig):
    """Options of SaEI, besides TRL's. Defaults: arXiv 2512.10414; the paper samples 6 + 6 completions."""

    alpha: float = field(
        default=2 / 255,
        metadata={
            "help": "Size of an attack step, 1 = full intensity; the paper has 2/255 and 3/255. Larger raises entropy "
            "more and spoils the image more."
        },
    )
    attack_steps: int = field(
        default=1,
        metadata={"help": "Steps of the attack, each a forward and a backward pass; the paper's runs collapse at 2."},
    )
    token_scope: TokenScope = field(
        default="response",
        metadata={
            "help": "Attack the tokens of the middle third by entropy of each 'response', of all responses of a "
            "prompt 'pooled', or 'all' tokens."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        check_alpha(self.alpha)
        if self.attack_steps < 1:
            raise ValueError(f"attack_steps must be >= 1, got {self.attack_steps}.")
        if self.token_scope not in ("response", "pooled", "all"):
            raise ValueError(f"token_scope must be 'response', 'pooled' or 'all', got {self.token_scope!r}.")


class SaeiTrainer(ChangedImageTrainer):
    """GRPO with part of each group sampled from images attacked to raise the policy's entropy on its own answers.

    The attack differentiates to the pixels alone: all weights are frozen during it, which spares their gradients and
    activations, and none keeps a gradient. The model stays in the mode it samples in, that of training: checkpointing
    works there only, and dropout, if any, is that of sampling. Under ZeRO-3 and FSDP all processes must attack equally
    many prompts.
    """

    args: SaeiConfig
    config_class = SaeiConfig
    metric_prefix = "saei"

    def change_pictures(self, prompts: list[Prompt]) -> list[list[Tensor]]:
        attacked = [prompt for prompt in prompts if prompt.pictures]
        size = max(1, self.args.per_device_train_batch_size // self.args.group_parts()[0])
        chunks = distinct_chunks(attacked, size)
        self._check_equal_work(len(chunks))
        sums = dict.fromkeys(("entropy", "clipped", "values"), 0.0)
        with frozen(self.model), torch.enable_grad():
            results = iter([pictures for chunk in chunks for pictures in self._attack(chunk, sums)])
        self.log_ratio("saei/clean_entropy", sums["entropy"], len(attacked))
        self.log_ratio("saei/clipped_pixels", sums["clipped"], sums["values"])
        return [next(results) if prompt.pictures else [] for prompt in prompts]

    def _attack(self, prompts: list[Prompt], sums: dict[str, float]) -> list[list[Tensor]]:
        """The attacked pictures of some prompts, by `attack_steps` forward and backward passes over their answers."""
        device = self.accelerator.device
        pictures = [[picture.detach().to(device) for picture in prompt.pictures] for prompt in prompts]
        keep_masks: list[Tensor] = []
        for step in range(self.args.attack_steps):
            leaves = [[picture.requires_grad_() for picture in some] for some in pictures]
            entropies, masks = self._entropies(prompts, leaves, as_processed=step == 0)
            if not keep_masks:  # ranked once, on the clean image
                keep_masks = [select_tokens(h, m, scope=self.args.token_scope) for h, m in zip(entropies, masks)]
            objective = torch.stack([attacked_entropy(h, keep) for h, keep in zip(entropies, keep_masks)]).sum()
            gradients = iter(self._gradients(objective, [picture for some in leaves for picture in some]))
            sums["entropy"] += objective.item() if step == 0 else 0.0
            pictures = [[self._ascend(picture, next(gradients), sums) for picture in some] for some in leaves]
        return pictures

    def _ascend(self, picture: Tensor, gradient: Tensor, sums: dict[str, float]) -> Tensor:
        changed = perturb(picture, gradient, alpha=self.args.alpha)
        short = (changed - picture.detach()).abs() < 0.999 * self.args.alpha
        sums["clipped"] += (short & (gradient != 0)).sum().item()
        sums["values"] += changed.numel()
        return changed

    def _entropies(
        self, prompts: list[Prompt], pictures: list[list[Tensor]], *, as_processed: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(n, T) token entropies of the n answers to each prompt, differentiable in the pictures, and their masks.

        With `as_processed` the pixel values are what the processor made of the clean images, up to float rounding;
        without, what the layout makes of the pictures.
        """
        rows, answers = [], []
        for prompt, some in zip(prompts, pictures, strict=True):
            values = [self._layout.pixel_values(picture) for picture in some]
            if as_processed:
                processed = [part.to(value) for part, value in zip(prompt.row.fields["pixel_values"], values)]
                values = [value + (part - value).detach() for part, value in zip(processed, values, strict=True)]
            row = replace(prompt.row, fields={**prompt.row.fields, "pixel_values": values})
            rows += [row] * len(prompt.completions)
            answers += prompt.completions
        inputs, mask = teacher_forced(rows, answers, pad_token_id=self.model.config.get_text_config().pad_token_id)
        entropies = self.forward_answers(mask.size(1), **to_device(inputs, self.accelerator.device))
        sizes = [len(prompt.completions) for prompt in prompts]
        return list(entropies.split(sizes)), list(mask.to(entropies.device).split(sizes))

    def _gradients(self, objective: Tensor, pictures: list[Tensor]) -> list[Tensor]:
        """∂ objective / ∂ picture. Reentrant checkpointing knows `backward` only, which reaches no weight either."""
        checkpointing: Any = self.args.gradient_checkpointing_kwargs or {}
        if self.args.gradient_checkpointing and checkpointing.get("use_reentrant"):
            objective.backward()
            return [torch.zeros_like(picture) if picture.grad is None else picture.grad for picture in pictures]
        return list(torch.autograd.grad(objective, pictures))

    def _check_equal_work(self, passes: int) -> None:
        """Refuse what would hang: with weights spread over processes, every pass needs all of them."""
        plugin = self.accelerator.state.deepspeed_plugin
        if self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            counts = self.accelerator.gather(torch.tensor([passes], device=self.accelerator.device)).tolist()
            if len(set(counts)) > 1:
                raise ValueError(
                    "Under ZeRO-3 and FSDP every process must attack equally many prompts; the passes over prompts "
                    f"with images are {counts}. Leave out the rows of text, or use DDP or ZeRO-2."
                )


def distinct_chunks(prompts: list[Prompt], size: int) -> list[list[Prompt]]:
    """The prompts in order, in parts of at most `size` without equals: a shared forward would take those for one."""
    chunks: list[list[Prompt]] = []
    for prompt in prompts:
        if not chunks or len(chunks[-1]) == size or any(is_same(prompt, other) for other in chunks[-1]):
            chunks.append([])
        chunks[-1].append(prompt)
    return chunks


def is_same(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts have equal tokens and equal pictures."""
    return one.row.prompt_ids == other.row.prompt_ids and all(map(torch.equal, one.pictures, other.pictures))


def teacher_forced(
    rows: list[Row], completions: list[list[int]], *, pad_token_id: int
) -> tuple[dict[str, Any], Tensor]:
    """The rows of a forward, prompts padded on the left with completions padded on the right, and the latter's mask.

    Args:
        rows: B prompts.
        completions: token ids of each.
        pad_token_id: fills both ends, and the one column of completions that are all empty.

    Returns:
        `input_ids`, `attention_mask`, the processor's tensors, those with a value per token extended by 0, and how
        many images and tiles each row has; and (B, T) bool, true where a completion token stands.
    """

    def padded(values: list[list[int]], *, side: str, fill: int = 0) -> Tensor:
        return pad_sequence([torch.tensor(v, dtype=torch.long) for v in values], True, fill, side)

    def ones(values: list[list[int]]) -> list[list[int]]:
        return [[1] * len(ids) for ids in values]

    prompts = [row.prompt_ids for row in rows]
    prompt_ids, prompt_mask = padded(prompts, side="left", fill=pad_token_id), padded(ones(prompts), side="left")
    completion_ids, mask = (
        padded(completions, side="right", fill=pad_token_id),
        padded(ones(completions), side="right"),
    )
    if not mask.size(1):
        completion_ids, mask = F.pad(completion_ids, (0, 1), value=pad_token_id), F.pad(mask, (0, 1))
    inputs: dict[str, Any] = {
        "input_ids": torch.cat([prompt_ids, completion_ids], dim=1),
        "attention_mask": torch.cat([prompt_mask, mask], dim=1),
        "num_images": [len(row.images) for row in rows],
    }
    fields = join_rows(rows)
    for name, values in fields.items():
        if isinstance(values, list):  # one value per prompt token, such as mm_token_type_ids
            values = torch.cat([padded(values, side="left"), torch.zeros_like(completion_ids)], dim=1)
        inputs[name] = values
    if "image_grid_thw" not in fields:
        inputs["num_tiles"] = [sum(map(len, row.fields.get("pixel_values", []))) for row in rows]
    return inputs, mask.bool()


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """A module whose parameters need no gradient for a while; the flags come back as they were."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
