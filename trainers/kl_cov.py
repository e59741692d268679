"""KL-Cov: hold the tokens that lower entropy most close to the policy that sampled them (arXiv 2505.22617)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import EntropyGRPOConfig, EntropyGRPOTrainer, Policy
from .covariance import check_per_10000, check_update_options, mean_or_zero, token_count, update_covariances
from .rollouts import Rollout


def top_covariance(covariances: Tensor, *, per_10000: float) -> Tensor:
    """The tokens of the highest covariance.

    I_KL = {i : rank(Cov_i) ≤ k · n}, k = per_10000 / 10 000

    Source: arXiv 2505.22617, Eq. 13; k · n is rounded down, but at least 1, as in the authors' code.

    Args:
        covariances: (n,) of the real tokens of an update batch; of equal ones the first count as higher.
        per_10000: 1 to 10 000, tokens to select out of 10 000.

    Returns:
        (n,) bool.
    """
    count = token_count(covariances.numel(), per_10000)
    chosen = covariances.argsort(descending=True, stable=True)[:count]
    return torch.zeros_like(covariances, dtype=torch.bool).index_fill(0, chosen, True)


def kl_penalty(logps: Tensor, old_logps: Tensor, is_selected: Tensor) -> Tensor:
    """Distance from the sampling policy on the selected tokens.

    ℓ_it = |log π_θ(y_t) - log π_old(y_t)|  if selected, else 0

    Source: arXiv 2505.22617, D_KL of Eq. 14 in the form of Listing 1. Gradient ±∇ log π_θ(y_t), and 0 where the two
    are equal.

    Args:
        logps: (B, T) log-probs of the sampled tokens in nats; gradients flow through.
        old_logps: (B, T) those of the policy that sampled.
        is_selected: (B, T) bool.

    Returns:
        (B, T) ≥ 0 in nats.
    """
    return torch.where(is_selected, logps - old_logps.detach(), 0.0).abs()


@dataclass
class KlCovConfig(EntropyGRPOConfig):
    """Options of KL-Cov, besides TRL's. Defaults: arXiv 2505.22617, section 4.3, for Qwen2.5-7B."""

    epsilon: float = field(
        default=math.inf,
        metadata={"help": "Clip range of the ratio of new to old probability: none, KL-Cov takes no other than inf."},
    )
    kl_cov_coef: float = field(
        default=1.0,
        metadata={
            "help": "Coefficient of |log-ratio| on the selected tokens, reward units per nat; larger keeps entropy up "
            "more."
        },
    )
    kl_cov_per_10000: float = field(
        default=20.0,
        metadata={
            "help": "Tokens of highest covariance that get the penalty, out of 10 000 of an optimizer step, 1 to "
            "10000; more keep entropy up more. The paper has 20 for 7B and 2 for 32B."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not (math.isfinite(self.kl_cov_coef) and self.kl_cov_coef >= 0):
            raise ValueError(f"kl_cov_coef must be a finite number >= 0, got {self.kl_cov_coef}.")
        check_per_10000("kl_cov_per_10000", self.kl_cov_per_10000)
        if self.epsilon != math.inf or self.epsilon_high not in (None, math.inf) or self.delta is not None:
            raise ValueError(
                "kl_cov clips no ratio: leave epsilon and epsilon_high at inf and delta off "
                f"(got {self.epsilon}, {self.epsilon_high} and {self.delta})."
            )
        check_update_options(self, "kl_cov")
        if self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) == 0:
            raise ValueError(
                "kl_cov's penalty is 0 while the policy is the one that sampled: train on a rollout in several "
                f"optimizer steps, with num_iterations > 1 (got {self.num_iterations}) or steps_per_generation above "
                f"gradient_accumulation_steps (got {self.steps_per_generation} and "
                f"{self.gradient_accumulation_steps})."
            )
        if self.top_entropy_quantile < 1 or self.off_policy_mask_threshold is not None:
            raise ValueError(
                "kl_cov selects among all tokens: leave top_entropy_quantile at 1 and off_policy_mask_threshold off "
                f"(got {self.top_entropy_quantile} and {self.off_policy_mask_threshold})."
            )


class KlCovTrainer(EntropyGRPOTrainer):
    """GRPO without clipping whose only change is the term +β · Σ_i (1/n_i) Σ_t `kl_penalty`_it in the loss (Eq. 14).

    n_i is the policy loss's own `row_normalisers`, and the tokens are the `top_covariance` of the whole update batch:
    all micro-batches and processes of an optimizer step. The term has no importance correction of a sampler. With
    another method the covariance is still of TRL's advantages as sampled.

    Departure: log π in the covariance is that of the policy that sampled in place of the current one, because the
    whole batch is to be known before its first forward. The two are equal in the first update of a rollout, and no
    further forward is needed. Where `num_iterations` repeats a rollout, its tokens stay selected.
    """

    args: KlCovConfig
    config_class = KlCovConfig

    def prepare_update(self, microbatches: list[Rollout]) -> list[dict[str, Tensor]]:
        extras = super().prepare_update(microbatches)
        logps = [batch["old_per_token_logps"] for batch in microbatches]
        update = update_covariances(microbatches, logps, accelerator=self.accelerator)
        is_selected = top_covariance(update.values, per_10000=self.args.kl_cov_per_10000)
        self.log_scalar("kl_cov/covariance", mean_or_zero(update.values))
        self.log_scalar("kl_cov/selected_covariance", mean_or_zero(update.values[is_selected]))
        self.log_scalar("kl_cov/selected", is_selected.sum().item())
        self.log_scalar("kl_cov/selected_share", mean_or_zero(is_selected.float()))
        selections = update.to_microbatches(is_selected)
        return [{**extra, "kl_cov_selected": tokens} for extra, tokens in zip(extras, selections, strict=True)]

    def extra_loss(self, policy: Policy, rollout: Rollout) -> Tensor | float:
        term = kl_penalty(policy.logps, rollout["old_per_token_logps"], rollout["kl_cov_selected"])
        loss = self.aggregate_as_policy_loss(term, policy, rollout)
        self.log_scalar("kl_cov/penalty", loss)
        return super().extra_loss(policy, rollout) + self.args.kl_cov_coef * loss
