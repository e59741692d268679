"""Noise baselines of SaEI: part of each group from images with random noise (NoisyRollout, arXiv 2504.13055)."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .changed_images import ChangedImageConfig, ChangedImageTrainer, Prompt, check_alpha
from .saei import perturb

DIFFUSION_STEPS = 1000
BETA_RANGE = (1e-5, 5e-3)


def noise_decay(progress: float, *, midpoint: float = 2 / 3, steepness: float = 30.0) -> float:
    """Share of the initial noise strength that is left at a point of the run.

    d(p) = 1 - σ(κ · (p - p_mid)),   σ the logistic function

    Source: arXiv 2504.13055, noise annealing; there κ = 30 and the midpoint is optimizer step 40, of about 60 on
    Geometry3K, hence 2/3.

    Args:
        progress: p, optimizer steps done divided by those of the run, in [0, 1].
        midpoint: p_mid, where half of the strength is left.
        steepness: κ > 0; larger falls more suddenly.

    Returns:
        d in (0, 1), falling.
    """
    return 1 / (1 + math.exp(steepness * (progress - midpoint)))


def signal_shares() -> Tensor:
    """(1000,) ᾱ_t, the share of the signal's variance that is left after t + 1 steps of forward diffusion.

    ᾱ_t = Π_{s ≤ t} (1 - β_s),   β_s = 1e-5 + σ(-6 + 12 s / 999) · (5e-3 - 1e-5)

    Source: the code of arXiv 2504.13055. In float64.
    """
    low, high = BETA_RANGE
    betas = low + torch.linspace(-6, 6, DIFFUSION_STEPS, dtype=torch.float64).sigmoid() * (high - low)
    return (1 - betas).cumprod(dim=0)


def diffuse(picture: Tensor, noise: Tensor, *, step: int) -> Tensor:
    """A picture after some steps of forward diffusion.

    x_t = clip(√ᾱ_t · x + √(1 - ᾱ_t) · ε, 0, 1)

    Source: the code of arXiv 2504.13055, which noises the image at the file's size; here it is the picture that the
    processor keeps, so that resizing does not smooth the noise away.

    Args:
        picture: x, any shape, in [0, 1].
        noise: ε, standard normal, like `picture`.
        step: t in 0 to 999; 500, the paper's start, leaves 0.74 of the signal's variance.

    Returns:
        Like `picture`.
    """
    share = signal_shares()[step].item()
    return (math.sqrt(share) * picture + math.sqrt(1 - share) * noise).clamp(0, 1)


@dataclass
class NoisyRolloutConfig(ChangedImageConfig):
    """Options of the noise baselines, besides TRL's. Defaults: arXiv 2504.13055, Geometry3K."""

    noise: Literal["gaussian", "sign"] = field(
        default="gaussian",
        metadata={"help": "'gaussian': NoisyRollout's, decaying; 'sign': SaEI's step in a random direction."},
    )
    noise_step: int = field(
        default=500,
        metadata={"help": "Gaussian: diffusion step of the noise at the start, 0 to 999; larger is noisier."},
    )
    decay_midpoint: float = field(
        default=2 / 3,
        metadata={"help": "Gaussian: share of the run after which half of `noise_step` is left, 0 to 1."},
    )
    decay_steepness: float = field(
        default=30.0,
        metadata={"help": "Gaussian: how suddenly the noise falls around the midpoint, > 0."},
    )
    alpha: float = field(
        default=2 / 255,
        metadata={"help": "Sign: size of the step, 1 = full intensity, as in saei."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_alpha(self.alpha)
        if self.noise not in ("gaussian", "sign"):
            raise ValueError(f"noise must be 'gaussian' or 'sign', got {self.noise!r}.")
        if not 0 <= self.noise_step < DIFFUSION_STEPS:
            raise ValueError(f"noise_step must lie in 0 to {DIFFUSION_STEPS - 1}, got {self.noise_step}.")
        if not 0 <= self.decay_midpoint <= 1:
            raise ValueError(f"decay_midpoint must lie in [0, 1], got {self.decay_midpoint}.")
        if not (math.isfinite(self.decay_steepness) and self.decay_steepness > 0):
            raise ValueError(f"decay_steepness must be a finite number > 0, got {self.decay_steepness}.")


class NoisyRolloutTrainer(ChangedImageTrainer):
    """GRPO with part of each group sampled from images with random noise; the model has no part in it.

    The noise comes from torch's global generator, whose state a checkpoint keeps.
    """

    args: NoisyRolloutConfig
    config_class = NoisyRolloutConfig
    metric_prefix = "noisy_rollout"

    def change_pictures(self, prompts: list[Prompt]) -> list[list[Tensor]]:
        if self.args.noise == "sign":
            return [[self._random_signs(picture) for picture in prompt.pictures] for prompt in prompts]
        decay = noise_decay(
            self.state.global_step / self.state.max_steps,
            midpoint=self.args.decay_midpoint,
            steepness=self.args.decay_steepness,
        )
        step = int(self.args.noise_step * decay)
        self.log_scalar("noisy_rollout/noise_step", step)
        return [[diffuse(x, torch.randn_like(x), step=step) for x in prompt.pictures] for prompt in prompts]

    def _random_signs(self, picture: Tensor) -> Tensor:
        return perturb(picture, torch.randn_like(picture), alpha=self.args.alpha)
