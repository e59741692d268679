"""Clip-Cov: leave out some of the tokens that lower entropy most, drawn at random (arXiv 2505.22617)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .advantages import per_token
from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .covariance import check_per_10000, check_update_options, mean_or_zero, token_count, update_covariances
from .rollouts import Rollout


def high_covariance(covariances: Tensor, *, low: float, high: float) -> Tensor:
    """Where ω_low < Cov < ω_high, a bool tensor like `covariances`: the candidates of arXiv 2505.22617, Eq. 11.

    Open at both ends as in the authors' code; the paper prints a closed interval.
    """
    return (low < covariances) & (covariances < high)


def draw_tokens(
    covariances: Tensor, is_candidate: Tensor, *, per_10000: float, generator: torch.Generator | None = None
) -> Tensor:
    """Some of the candidates, each set of them as likely as any other.

    I_clip: r · n of the candidates, uniformly and without replacement, r = per_10000 / 10 000; all if they are fewer

    Source: arXiv 2505.22617, Eq. 11; r · n is rounded down, but at least 1, as in the authors' code.

    The draw is among the candidates in order of their covariance, so that it does not depend on how the same tokens
    are spread over rows and processes.

    Args:
        covariances: (n,) of the real tokens of an update batch.
        is_candidate: (n,) bool.
        per_10000: 1 to 10 000, tokens to draw for each 10 000 of the n.
        generator: of the CPU; PyTorch's own by default.

    Returns:
        (n,) bool, all false without candidates.
    """
    candidates = is_candidate.nonzero().flatten()
    candidates = candidates[covariances[candidates].argsort(stable=True)]
    order = torch.randperm(candidates.numel(), generator=generator).to(candidates.device)
    drawn = candidates[order[: token_count(covariances.numel(), per_10000)]]
    return torch.zeros_like(is_candidate).index_fill(0, drawn, True)


@dataclass
class ClipCovConfig(EntropyGRPOConfig):
    """Options of Clip-Cov, besides TRL's. Defaults: arXiv 2505.22617, section 4.3; epsilon: the authors' script."""

    epsilon: float = field(
        default=1.0,
        metadata={
            "help": "Clip range of the ratio of new to old probability, [1 - epsilon, 1 + epsilon]; larger clips less."
        },
    )
    clip_cov_low: float = field(
        default=1.0,
        metadata={
            "help": "Only tokens with a covariance above may be left out, nats times units of advantage; larger "
            "leaves out fewer. Watch clip_cov/candidates: unscaled advantages of rewards in [0, 1] seldom reach 1."
        },
    )
    clip_cov_high: float = field(
        default=5.0,
        metadata={"help": "Only tokens with a covariance below may be left out (inf: no bound); larger allows more."},
    )
    clip_cov_per_10000: float = field(
        default=2.0,
        metadata={
            "help": "Tokens to leave out, out of 10 000 of an optimizer step, 1 to 10000; more keep entropy up more."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.clip_cov_low < self.clip_cov_high:
            raise ValueError(
                f"clip_cov_low must lie below clip_cov_high, got {self.clip_cov_low} and {self.clip_cov_high}."
            )
        check_per_10000("clip_cov_per_10000", self.clip_cov_per_10000)
        check_update_options(self, "clip_cov")


class ClipCovTrainer(EntropyGRPOTrainer):
    """GRPO whose only change is that the policy loss of the tokens of `draw_tokens` is 0 (Eq. 12).

    They still count in the normaliser of the loss. The candidates are `high_covariance` among the tokens of the whole
    update batch: all micro-batches and processes of an optimizer step. The draw depends on the seed and the step
    alone. With another method the covariance is still of TRL's advantages as sampled.

    Departures: log π in the covariance is that of the policy that sampled in place of the current one, because the
    whole batch is to be known before its first forward; the two are equal in the first update of a rollout. It costs
    nothing where TRL keeps those log-probs, and where it does not, with one update per rollout, a forward without
    gradient. The authors take tokens that PPO clips out of the candidates: which those are is not known before the
    forward. None is in the first update, and one drawn and clipped later has no gradient either way.
    """

    args: ClipCovConfig
    config_class = ClipCovConfig

    def prepare_rollout(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> dict[str, Tensor]:
        # A generator of PyTorch takes the last 32 bits of its seed.
        self._generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        return super().prepare_rollout(rollout, examples, rewards)

    def prepare_update(self, microbatches: list[Rollout]) -> list[dict[str, Tensor]]:
        extras = super().prepare_update(microbatches)
        logps = [
            batch["old_per_token_logps"] if "old_per_token_logps" in batch else self.forward_rollout(batch).logps
            for batch in microbatches
        ]
        update = update_covariances(microbatches, logps, accelerator=self.accelerator)
        is_candidate = high_covariance(update.values, low=self.args.clip_cov_low, high=self.args.clip_cov_high)
        is_dropped = draw_tokens(
            update.values, is_candidate, per_10000=self.args.clip_cov_per_10000, generator=self._generator
        )
        self.log_scalar("clip_cov/covariance", mean_or_zero(update.values))
        self.log_scalar("clip_cov/candidates", is_candidate.sum().item())
        self.log_scalar("clip_cov/selected", is_dropped.sum().item())
        self.log_scalar("clip_cov/selected_share", mean_or_zero(is_dropped.float()))
        selections = update.to_microbatches(is_dropped)
        return [{**extra, "clip_cov_dropped": tokens} for extra, tokens in zip(extras, selections, strict=True)]

    def shape_advantages(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        advantages = super().shape_advantages(advantages, policy, rollout)
        return per_token(advantages, policy.logps) * ~rollout["clip_cov_dropped"]
