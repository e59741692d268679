"""KL-Cov and Clip-Cov inside the trainer: their gradient over a whole optimizer step, identities, and cost."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support import FAST, Recorder, dataset_of, uneven_reward
from transformers import TrainerCallback

from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers.base import EntropyGRPOTrainer
from vlm_entropy.trainers.clip_cov import ClipCovTrainer
from vlm_entropy.trainers.ecvgpo import EcvgpoTrainer
from vlm_entropy.trainers.kl_cov import KlCovTrainer
from vlm_entropy.trainers.two_stage import TwoStageTrainer

OPTIONS = {**FAST, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
"""Every optimizer step has two micro-batches."""
OFF_POLICY = {"steps_per_generation": 4, "num_iterations": 2, "max_steps": 4}
"""One rollout is trained on in two optimizer steps, twice."""


class Weights(TrainerCallback):
    """The weights before every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.detach().clone() for name, p in model.named_parameters()})


class Recording:
    """Completions of 1 to 8 tokens, the same in every run, and what each micro-batch and optimizer step came to."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts, self.losses, self.recorder, self.weights = [], [], Recorder(), Weights()
        self.add_callback(self.recorder)
        self.add_callback(self.weights)
        self.generator = torch.Generator().manual_seed(0)

    def sample(self, prompt_ids, images, fields, *, generate):
        lengths = torch.randint(1, 9, (len(prompt_ids),), generator=self.generator).tolist()
        return [torch.randint(5, 200, (length,), generator=self.generator).tolist() for length in lengths], None

    def compute_loss(self, model, inputs, **kwargs):
        self.rollouts.append(dict(inputs))
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(loss.item())
        return loss


class RecordingGRPO(Recording, EntropyGRPOTrainer):
    pass


class RecordingKlCov(Recording, KlCovTrainer):
    pass


class RecordingClipCov(Recording, ClipCovTrainer):
    pass


def build(trainer_class, tiny_model, shapes, tmp_path, **options):
    config = trainer_class.config_class(output_dir=str(tmp_path), **{**OPTIONS, "max_steps": 1, **options})
    return trainer_class(
        model=str(tiny_model), reward_funcs=[uneven_reward], args=config, train_dataset=dataset_of(shapes, tiny_model)
    )


def train(*args, **options):
    trainer = build(*args, **options)
    trainer.train()
    return trainer


def token_logps(model, rollout):
    """For each row a list of its tokens' log-probs, from full logits, without a mask."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    images = {name: rollout[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
    distributions = model(input_ids=ids, attention_mask=attention, **images).logits.log_softmax(dim=-1)
    start = rollout["prompt_ids"].size(1)
    rows = []
    for row, length in enumerate(rollout["completion_mask"].sum(dim=1).tolist()):
        tokens = rollout["completion_ids"][row, :length].tolist()
        rows.append([distributions[row, start - 1 + place, token] for place, token in enumerate(tokens)])
    return rows


def flat(rows):
    return [token for row in rows for token in row]


def load(model, weights):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def written_out(model, rollouts, sampling_weights, weights):
    """A, log π and log π_old of all tokens of an optimizer step, one by one, and their covariances (Eq. 10)."""
    load(model, sampling_weights)
    with torch.no_grad():
        old = [token for rollout in rollouts for token in flat(token_logps(model, rollout))]
    load(model, weights)
    rows = [row for rollout in rollouts for row in token_logps(model, rollout)]
    per_row = [value.item() for rollout in rollouts for value in rollout["advantages"]]
    advantages = [value for value, row in zip(per_row, rows, strict=True) for _ in row]
    old_values = np.array([value.item() for value in old])
    covariances = (np.array(advantages) - np.mean(advantages)) * (old_values - old_values.mean())
    return advantages, flat(rows), old, covariances


def selection(rollouts, name):
    return np.concatenate([batch[name][batch["completion_mask"].bool()].numpy() for batch in rollouts])


def gradients_of(model, loss, names):
    parameters = [model.get_parameter(name) for name in names]
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True))


def assert_gradients(actual, expected):
    # TRL's fused head computes in float32 whatever the model's type: 1e-6 of gradients of 1e-2 and more.
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def kl_cov(tiny_model, shapes, tmp_path_factory):
    options = {"kl_cov_coef": 0.5, "kl_cov_per_10000": 2000, "learning_rate": 0.03, **OFF_POLICY}
    return train(RecordingKlCov, tiny_model, shapes, tmp_path_factory.mktemp("kl_cov"), **options)


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_the_gradient_of_kl_cov_is_that_of_the_written_out_formula(kl_cov, step):
    rollouts, model = kl_cov.rollouts[2 * step : 2 * step + 2], kl_cov.model
    sampling_weights, weights = kl_cov.weights.steps[0], kl_cov.weights.steps[step]
    advantages, logps, old, covariances = written_out(model, rollouts, sampling_weights, weights)
    top = set(np.argsort(-covariances)[: int(0.2 * len(covariances))])
    assert set(np.flatnonzero(selection(rollouts, "kl_cov_selected"))) == top
    assert len(top) >= 4
    # TRL's dapo: the tokens of the rollout of four micro-batches, as many of them as an optimizer step has.
    normaliser = sum(batch["completion_mask"].sum() for batch in kl_cov.rollouts[:4]) * 2 / 4
    ratios = [(new - before).exp() for new, before in zip(logps, old, strict=True)]
    # Outside TRL's default clip range of [0.8, 1.2] on both sides: what is clipped would show.
    assert step == 0 or (min(ratios) < 0.7 and max(ratios) > 1.3)
    policy = -sum(a * ratio for a, ratio in zip(advantages, ratios, strict=True)) / normaliser
    penalty = sum((logps[token] - old[token]).abs() for token in top) / normaliser
    names = list(kl_cov.recorder.gradients[step])
    penalty_gradients = gradients_of(model, penalty, names) if step else {}
    expected = gradients_of(model, policy, names)
    for name, gradient in penalty_gradients.items():
        expected[name] = expected[name] + 0.5 * gradient
    # In the first step the policy is the one that sampled, and the penalty has no gradient at all.
    assert step == 0 or max(gradient.abs().max() for gradient in penalty_gradients.values()) > 1e-2
    assert_gradients(kl_cov.recorder.gradients[step], expected)
    total = policy.item() + 0.5 * penalty.item()
    assert sum(kl_cov.losses[2 * step : 2 * step + 2]) == pytest.approx(total, rel=1e-5)


def test_the_metrics_of_kl_cov_are_those_of_its_selection(kl_cov):
    # The first log line has the two optimizer steps of the rollout: each logs once, when it is prepared.
    shares, means, tops = [], [], []
    for step in (0, 1):
        rollouts = kl_cov.rollouts[2 * step : 2 * step + 2]
        sampling_weights = kl_cov.weights.steps[0]
        _, _, _, covariances = written_out(kl_cov.model, rollouts, sampling_weights, sampling_weights)
        top = np.sort(covariances)[::-1][: int(0.2 * len(covariances))]
        shares.append(len(top) / len(covariances))
        means.append(covariances.mean())
        tops.append(top.mean())
    log = kl_cov.state.log_history[0]
    assert log["kl_cov/covariance"] == pytest.approx(np.mean(means), rel=1e-4)
    assert log["kl_cov/selected_covariance"] == pytest.approx(np.mean(tops), rel=1e-4)
    assert log["kl_cov/selected_share"] == pytest.approx(np.mean(shares), rel=1e-6)
    assert all(log["clip_ratio/region_mean"] == 0 for log in kl_cov.state.log_history[:4])
    penalties = [log["kl_cov/penalty"] for log in kl_cov.state.log_history[:4]]
    assert penalties[0] == pytest.approx(0.0, abs=1e-6)
    assert min(penalties[1:]) > 1e-3


CLIP_COV = {"clip_cov_low": 0.0, "clip_cov_high": math.inf, "clip_cov_per_10000": 2000}


@pytest.mark.parametrize("off_policy", [False, True])
def test_the_gradient_of_clip_cov_is_that_of_the_written_out_formula(tiny_model, shapes, tmp_path, off_policy):
    steps = 4 if off_policy else 1
    options = {**CLIP_COV, "clip_cov_high": 3.0, **(OFF_POLICY if off_policy else {}), "epsilon": 10.0}
    trainer = train(RecordingClipCov, tiny_model, shapes, tmp_path, **options)
    generation = trainer.rollouts[: 4 if off_policy else 2]
    normaliser = sum(batch["completion_mask"].sum() for batch in generation) * 2 / len(generation)
    for step in range(steps):
        rollouts = trainer.rollouts[2 * step : 2 * step + 2]
        assert ("old_per_token_logps" in rollouts[0]) == off_policy
        first, weights = trainer.weights.steps[0], trainer.weights.steps[step]
        advantages, logps, old, covariances = written_out(trainer.model, rollouts, first, weights)
        dropped = set(np.flatnonzero(selection(rollouts, "clip_cov_dropped")))
        candidates = set(np.flatnonzero((covariances > 0) & (covariances < 3)))
        assert dropped <= candidates
        assert len(dropped) == min(int(0.2 * len(covariances)), len(candidates)) > 3
        kept = [token for token in range(len(logps)) if token not in dropped]
        loss = -sum(advantages[token] * (logps[token] - old[token]).exp() for token in kept) / normaliser
        names = list(trainer.recorder.gradients[step])
        assert_gradients(trainer.recorder.gradients[step], gradients_of(trainer.model, loss, names))


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "luspo"])
def test_the_penalty_weighs_as_the_policy_loss_does(tiny_model, shapes, tmp_path, loss_type):
    """With every token selected and A = 1 the two terms are means of the same kind, of |log-ratio| and -ratio."""

    class Ones(RecordingKlCov):
        def group_advantages(self, rollout, examples, rewards):
            return torch.ones_like(rollout["advantages"])

        def extra_loss(self, policy, rollout):
            extra = super().extra_loss(policy, rollout)
            difference = (policy.logps - rollout["old_per_token_logps"]).detach()
            self.terms.append((extra.item(), difference, policy.mask))
            return extra

    trainer = build(Ones, tiny_model, shapes, tmp_path, loss_type=loss_type, kl_cov_per_10000=10_000, **OFF_POLICY)
    trainer.terms = []
    trainer.train()
    for loss, (extra, difference, mask) in zip(trainer.losses[2:], trainer.terms[2:], strict=True):
        policy = 2 * loss - extra  # two micro-batches
        means = [weighted(values, mask, loss_type) for values in (-difference.exp(), difference.abs())]
        assert policy == pytest.approx(means[0], rel=1e-5)
        assert extra == pytest.approx(means[1], rel=1e-4)


def weighted(values, mask, loss_type):
    """A micro-batch's loss of given token losses, from the definitions of the loss types."""
    sums, lengths = (values * mask).sum(dim=1), mask.sum(dim=1)
    return {
        "grpo": (sums / lengths).mean(),
        "bnpo": sums.sum() / lengths.sum(),
        "dr_grpo": sums.sum() / (len(sums) * FAST["max_completion_length"]),
        "luspo": sums.mean(),
    }[loss_type].item()


def assert_same_training(trainer, plain):
    assert trainer.losses == plain.losses
    torch.testing.assert_close(trainer.recorder.gradients, plain.recorder.gradients, rtol=0, atol=0)
    assert trainer.recorder.forwards == plain.recorder.forwards


def test_a_coefficient_of_0_gives_grpo_without_clipping(tiny_model, shapes, tmp_path):
    plain = train(RecordingGRPO, tiny_model, shapes, tmp_path / "plain", epsilon=math.inf, **OFF_POLICY)
    zero = train(RecordingKlCov, tiny_model, shapes, tmp_path / "zero", kl_cov_coef=0.0, **OFF_POLICY)
    assert_same_training(zero, plain)


def test_bounds_that_no_covariance_reaches_give_grpo(tiny_model, shapes, tmp_path):
    plain = train(RecordingGRPO, tiny_model, shapes, tmp_path / "plain", epsilon=1.0, **OFF_POLICY)
    options = {"clip_cov_low": 1e6, "clip_cov_high": math.inf, **OFF_POLICY}
    none = train(RecordingClipCov, tiny_model, shapes, tmp_path / "none", **options)
    assert_same_training(none, plain)
    assert [none.state.log_history[0][f"clip_cov/{name}"] for name in ("candidates", "selected")] == [0, 0]


def test_clip_cov_costs_a_forward_only_where_trl_keeps_no_log_probs(tiny_model, shapes, tmp_path):
    plain = train(RecordingGRPO, tiny_model, shapes, tmp_path / "plain")
    on_policy = train(RecordingClipCov, tiny_model, shapes, tmp_path / "clip", **CLIP_COV)
    # Two micro-batches, each of four rows; the off-policy case is part of the identities above.
    assert len(on_policy.recorder.forwards) == len(plain.recorder.forwards) + 2
    assert on_policy.recorder.forwards[:2] == on_policy.recorder.forwards[2:]


def test_the_log_probs_of_a_micro_batch_are_those_of_its_policy_forward(tiny_model, shapes, tmp_path):
    seen = []

    class Comparing(RecordingClipCov):
        def forward_rollout(self, rollout, **kwargs):
            policy = super().forward_rollout(rollout, **kwargs)
            seen.append(policy.logps)
            return policy

        def extra_loss(self, policy, rollout):
            seen.append(policy.logps.detach())
            return super().extra_loss(policy, rollout)

    train(Comparing, tiny_model, shapes, tmp_path, **CLIP_COV)
    assert len(seen) == 4
    for before, during in zip(seen[:2], seen[2:], strict=True):
        assert not before.requires_grad
        torch.testing.assert_close(before, during, rtol=0, atol=1e-6)
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)


def test_an_update_without_any_token_changes_nothing(tiny_model, shapes, tmp_path):
    # No completion ends, so all are masked.
    for trainer_class, options in ((RecordingKlCov, OFF_POLICY), (RecordingClipCov, {})):
        trainer = train(
            trainer_class,
            tiny_model,
            shapes,
            tmp_path / trainer_class.__name__,
            mask_truncated_completions=True,
            **options,
        )
        gradients = [gradient for step in trainer.recorder.gradients for gradient in step.values()]
        assert all((gradient == 0).all() for gradient in gradients)
        prefix = "kl_cov" if options else "clip_cov"
        assert trainer.state.log_history[0][f"{prefix}/selected"] == 0


def draws(trainer, *, step, updates=1):
    """What Clip-Cov drops of a batch of 40 equal rows of 8 tokens, in the updates of a rollout at a step."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "advantages": torch.randn(40, generator=generator),
        "completion_mask": torch.ones(40, 8),
        "old_per_token_logps": -torch.rand(40, 8, generator=generator),
    }
    trainer.state.global_step = step
    trainer.prepare_rollout({}, [], torch.zeros(0))
    return [trainer.prepare_update([batch])[0]["clip_cov_dropped"] for _ in range(updates)]


def test_the_draw_is_that_of_the_seed_and_the_step(tiny_model, shapes, tmp_path):
    trainer = build(RecordingClipCov, tiny_model, shapes, tmp_path, **CLIP_COV)
    (first,) = draws(trainer, step=3)
    assert first.sum() == 64
    assert torch.equal(draws(trainer, step=3)[0], first)
    assert not torch.equal(draws(trainer, step=4)[0], first)
    one, two = draws(trainer, step=3, updates=2)
    assert torch.equal(one, first)
    assert not torch.equal(two, one)
    trainer.args.seed += 1
    assert not torch.equal(draws(trainer, step=3)[0], first)


@pytest.mark.parametrize("clip_first", [True, False])
def test_dropped_tokens_stay_dropped_when_another_method_shapes_the_advantages(
    tiny_model, shapes, tmp_path, clip_first
):
    parts = (ClipCovTrainer, EcvgpoTrainer) if clip_first else (EcvgpoTrainer, ClipCovTrainer)
    configs = tuple(part.config_class for part in parts)
    seen = []

    class Both(Recording, *parts):
        config_class = dataclass(type("BothConfig", configs, {}))

        def shape_advantages(self, advantages, policy, rollout):
            shaped = super().shape_advantages(advantages, policy, rollout)
            seen.append((advantages, shaped, rollout["clip_cov_dropped"], policy.mask))
            return shaped

    train(Both, tiny_model, shapes, tmp_path, r0=2.0, **CLIP_COV)
    for advantages, shaped, dropped, mask in seen:
        assert (shaped[dropped] == 0).all()
        kept = mask & ~dropped
        reshaped = kept & (advantages[:, None] > 0)
        assert (shaped[reshaped] < advantages[:, None].expand_as(shaped)[reshaped]).all()
        assert torch.equal(shaped[kept & ~reshaped], advantages[:, None].expand_as(shaped)[kept & ~reshaped])
    assert sum(dropped.sum() for _, _, dropped, _ in seen) > 3


def test_other_methods_keep_their_part_beside_kl_cov(tiny_model, shapes, tmp_path):
    parts = (KlCovTrainer, ClipCovTrainer, TwoStageTrainer)

    class All(Recording, *parts):
        config_class = dataclass(type("AllConfig", tuple(part.config_class for part in parts), {}))

    trainer = train(All, tiny_model, shapes, tmp_path, lambda_max=0.5, switch_step=4, **OFF_POLICY, **CLIP_COV)
    assert {"kl_cov_selected", "clip_cov_dropped"} <= set(trainer.rollouts[0])
    log = trainer.state.log_history[0]
    # At ratio 1 the policy loss is -A on the tokens that are kept, and the penalty is 0.
    normaliser = sum(batch["completion_mask"].sum() for batch in trainer.rollouts[:4]) * 2 / 4
    kept = [(batch, batch["completion_mask"].bool() & ~batch["clip_cov_dropped"]) for batch in trainer.rollouts[:2]]
    policy = -sum((batch["advantages"][:, None] * mask).sum() for batch, mask in kept) / normaliser
    expected = policy.item() - 0.5 * log["two_stage/entropy"]
    assert sum(trainer.losses[:2]) == pytest.approx(expected, rel=1e-5)


LEARNING = {
    "model_init_kwargs": None,
    "optim": "adamw_torch",
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 32,
    "num_generations": 8,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 4,
    "max_steps": 30,
}
"""Four updates per rollout, 256 tokens in each."""


def share_of_odd_tokens(completion_ids, **kwargs):
    """A reward that any model learns, for all prompts at once."""
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


def learn(trainer_class, tiny_model, shapes, tmp_path, **options):
    """Mean entropy of the last ten steps, and mean distance from the sampling policy on the selected tokens."""
    trainer = trainer_class(
        model=str(tiny_model),
        reward_funcs=[share_of_odd_tokens],
        args=trainer_class.config_class(output_dir=str(tmp_path), **{**FAST, **LEARNING, **options}),
        train_dataset=dataset_of(shapes, tiny_model),
    )
    trainer.train()
    logs = trainer.state.log_history[:30]
    return np.mean([log["entropy"] for log in logs[-10:]]), np.mean([log.get("kl_cov/penalty", 0) for log in logs])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_ends_with_more_entropy_than_grpo_has(shapes, tmp_path, seed):
    """Not that it learns more: at this scale both learn more slowly than GRPO with the same number of steps."""
    model = build_tiny_vlm("qwen2_5_vl", tmp_path / "model", hidden_size=32)
    kl_cov = {"seed": seed, "kl_cov_per_10000": 1000}
    entropy, distance = learn(KlCovTrainer, model, shapes, tmp_path, kl_cov_coef=0.0, **kl_cov)
    held_entropy, held_distance = learn(KlCovTrainer, model, shapes, tmp_path, kl_cov_coef=10.0, **kl_cov)
    assert held_entropy > entropy
    assert held_distance < 0.9 * distance
    clip_cov = {"seed": seed, "clip_cov_high": math.inf, "clip_cov_per_10000": 2000}
    entropy, _ = learn(ClipCovTrainer, model, shapes, tmp_path, clip_cov_low=1e6, **clip_cov)
    held_entropy, _ = learn(ClipCovTrainer, model, shapes, tmp_path, clip_cov_low=0.2, **clip_cov)
    assert held_entropy > entropy
