"""Our formulas, and the head of TRL that they build on, on a device against float64 on the CPU.

An error is the largest difference from the reference, which gets the same rounded inputs, over the largest value of
the reference: of one rounding 6e-8 in float32 and 4e-3 in bfloat16. Tolerances are ten to some tens of roundings.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

from vlm_entropy.trainers.advantages import group_advantages
from vlm_entropy.trainers.aggregation import aggregate, row_normalisers
from vlm_entropy.trainers.calibrl import exploration_term, log_prob_gap
from vlm_entropy.trainers.covariance import covariance
from vlm_entropy.trainers.ecvgpo import reshape_advantages
from vlm_entropy.trainers.entropy_advantage import entropy_advantage
from vlm_entropy.trainers.luffy import luffy_term
from vlm_entropy.trainers.pixels import get_layout
from vlm_entropy.trainers.saei import attacked_entropy, perturb, select_tokens

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCES = {
    "formula": {torch.float32: 2e-6, torch.bfloat16: 0.04},
    "head": {torch.float32: 1e-5, torch.bfloat16: 0.04},
    "model": {torch.float32: 1e-3, torch.bfloat16: 0.1},
    "exact": {torch.float32: 1e-6},
}
"""By kind: a formula of a few operations, a sum over the hidden size and the vocabulary, a whole model (whose patch
embedding is a convolution, in which GPUs round float32 to TF32), and pixels, in float32 wherever they are used."""

Inputs = dict[str, Tensor]
Formula = Callable[..., Tensor | tuple[Tensor, ...]]


class Check(NamedTuple):
    """One line of the table."""

    name: str
    dtype: torch.dtype
    error: float
    tolerance: float

    @property
    def is_passed(self) -> bool:
        return self.error <= self.tolerance


def error_of(value: Tensor, reference: Tensor) -> float:
    """max |value - reference| / max |reference|, in float64; not finite where a value is not."""
    if not torch.isfinite(value).all():
        return math.inf
    reference = reference.detach()
    scale = reference.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((value.detach().double().cpu() - reference).abs().max() / scale)


def compare(formula: Formula, inputs: Inputs, *, device: torch.device, dtype: torch.dtype) -> list[float]:
    """Errors of what a formula gives on the device, in the order it gives it.

    Args:
        formula: takes the inputs by name.
        inputs: those that are floating-point are rounded to `dtype`, for the reference too.
        device: to check.
        dtype: to check.
    """
    rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in rounded.items()}
    values = formula(**{name: value.to(device) for name, value in rounded.items()})
    references = formula(**exact)
    if isinstance(values, Tensor):
        values, references = (values,), (references,)
    return [error_of(value, reference) for value, reference in zip(values, references, strict=True)]


def rollout(*, rows: int, tokens: int, seed: int) -> Inputs:
    """Random numbers of the sizes that a rollout has; `mask` leaves 1 to `tokens` tokens of a row."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=random)
    return {
        "rewards": torch.rand(rows, generator=random),
        "advantages": torch.randn(rows, generator=random),
        "logps": -3 * torch.rand(rows, tokens, generator=random),
        "entropies": 2 * torch.rand(rows, tokens, generator=random),
        "expert_logps": -3 * torch.rand(rows, tokens, generator=random),
        "mask": torch.arange(tokens) < lengths,
    }


def gradient_of(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient


def attack_objective(entropies: Tensor, mask: Tensor) -> Tensor:
    return attacked_entropy(entropies, select_tokens(entropies, mask))


def policy_mean(entropies: Tensor, mask: Tensor) -> Tensor:
    tokens = mask.sum()
    normalisers = row_normalisers(mask, loss_type="grpo", tokens_per_microbatch=tokens, max_completion_length=9)
    return aggregate(entropies, mask, normalisers)


def formulas(values: Inputs) -> dict[str, tuple[Formula, Inputs]]:
    """What is checked, by name, with its inputs."""
    advantages, logps, entropies, mask = (values[name] for name in ("advantages", "logps", "entropies", "mask"))
    tokens = {"advantages": advantages, "logps": logps}
    expert = {"expert_logps": values["expert_logps"], "correct": values["rewards"] > 0.5}

    def calibrl(advantages: Tensor, logps: Tensor, expert_logps: Tensor, mask: Tensor, correct: Tensor) -> Tensor:
        gap = log_prob_gap(logps, mask, expert_logps, mask)
        return exploration_term(gap, correct, advantages)

    def ecvgpo(advantages: Tensor, logps: Tensor, rewards: Tensor) -> Tensor:
        return reshape_advantages(advantages, logps, rewards, r0=10.0)

    return {
        "group advantages": (lambda rewards: group_advantages(rewards, 8), {"rewards": values["rewards"]}),
        "aggregation": (policy_mean, {"entropies": entropies, "mask": mask}),
        "aggregation, gradient": (
            lambda entropies, mask: gradient_of(lambda x: policy_mean(x, mask), entropies),
            {"entropies": entropies, "mask": mask},
        ),
        "ECVGPO advantages": (ecvgpo, {**tokens, "rewards": values["rewards"]}),
        "entropy advantages": (entropy_advantage, {"advantages": advantages, "entropies": entropies}),
        "covariance": (covariance, {**tokens, "mask": mask}),
        "CalibRL term": (
            calibrl,
            {**tokens, **expert, "mask": mask},
        ),
        "LUFFY term": (luffy_term, tokens),
        "LUFFY term, gradient": (
            lambda advantages, logps: gradient_of(lambda x: luffy_term(advantages, x).sum(), logps),
            tokens,
        ),
        "SaEI objective": (attack_objective, {"entropies": entropies, "mask": mask}),
    }


def check_formulas(device: torch.device, *, rows: int, tokens: int) -> Iterator[Check]:
    for name, (formula, inputs) in formulas(rollout(rows=rows, tokens=tokens, seed=0)).items():
        for dtype in DTYPES:
            error = max(compare(formula, inputs, device=device, dtype=dtype))
            yield Check(name, dtype, error, TOLERANCES["formula"][dtype])


def check_head(device: torch.device, *, positions: int, hidden: int, vocabulary: int) -> Iterator[Check]:
    """TRL's fused head, with the gradients of a loss of log-probs and entropies."""
    random = torch.Generator().manual_seed(0)
    inputs = {
        "states": torch.randn(positions, hidden, generator=random),
        "weight": 3 / math.sqrt(hidden) * torch.randn(vocabulary, hidden, generator=random),
        "targets": torch.randint(vocabulary, (positions,), generator=random),
    }

    def fused(states: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_()
        logps, entropies, *_ = ChunkedLogProbFunction.apply(
            states, weight, None, targets, 0.8, 32768, None, 1.0, ("entropy",)
        )
        return logps, entropies, *torch.autograd.grad((logps - 0.3 * entropies).sum(), (states, weight))

    def plain(states: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_()
        log_probs = (states @ weight.T / 0.8).log_softmax(dim=-1)
        logps = log_probs.gather(1, targets[:, None])[:, 0]
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
        return logps, entropies, *torch.autograd.grad((logps - 0.3 * entropies).sum(), (states, weight))

    def on_device(**tensors: Tensor) -> tuple[Tensor, ...]:
        return (plain if tensors["states"].dtype == torch.float64 else fused)(**tensors)

    names = ("log-probs", "entropies", "gradient of the states", "gradient of the weights")
    for dtype in DTYPES:
        errors = compare(on_device, inputs, device=device, dtype=dtype)
        for name, error in zip(names, errors, strict=True):
            yield Check(f"fused head, {name}", dtype, error, TOLERANCES["head"][dtype])


def check_model(device: torch.device, folder: Path, image: Any) -> Iterator[Check]:
    """Log-probs and entropies of a whole model on a prompt with an image."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Find the red circle"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = dict(processor(text=[text], images=[image], return_tensors="pt"))

    def forward(dtype: torch.dtype, where: torch.device) -> tuple[Tensor, Tensor]:
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval().to(where)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        with torch.no_grad():
            tensors = {name: value.to(where) for name, value in inputs.items()}
            output = model(**tensors, labels=tensors["input_ids"], fused_lm_head=True)
        return output.log_probs, output.entropy

    references = forward(torch.float64, torch.device("cpu"))
    for dtype in DTYPES:
        values = forward(dtype, device)
        for name, value, reference in zip(("log-probs", "entropies"), values, references, strict=True):
            error = error_of(value, reference.double())
            yield Check(f"Qwen2.5-VL, {name}", dtype, error, TOLERANCES["model"][dtype])


def check_pixels(device: torch.device, folder: Path, image: Any) -> Iterator[Check]:
    """The way of a picture to a model's pixel values and back, and steps of an attack on it."""
    layout = get_layout("qwen2_5_vl", AutoProcessor.from_pretrained(folder))
    fields = layout.process([image])[0]
    grid = layout.grids([image], fields)[0]
    picture = layout.picture(fields["pixel_values"].double(), grid)
    direction = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    alpha = 2 / 255

    def round_trip(picture: Tensor) -> tuple[Tensor, Tensor]:
        values = layout.pixel_values(picture)
        return values, layout.picture(values, grid)

    def attack(picture: Tensor, direction: Tensor) -> Tensor:
        for step in (1, -1, 1):
            picture = perturb(picture, step * direction, alpha=alpha)
        return picture

    errors = compare(round_trip, {"picture": picture}, device=device, dtype=torch.float32)
    errors += compare(attack, {"picture": picture, "direction": direction}, device=device, dtype=torch.float32)
    names = ("pixel values of a picture", "picture of pixel values", "three steps of an attack")
    for name, error in zip(names, errors, strict=True):
        yield Check(name, torch.float32, error, TOLERANCES["exact"][torch.float32])
