"""ECVGPO inside the trainer: its gradient, its group statistics, its company, and which way it moves entropy."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support import FAST, Recorder, dataset_of, uneven_reward
from transformers import AutoProcessor

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import read_rows
from vlm_entropy.data.shapes import make_shapes
from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.rewards import get_rewards
from vlm_entropy.trainers import EntropyGRPOTrainer, TwoStageConfig, TwoStageTrainer
from vlm_entropy.trainers.__main__ import main
from vlm_entropy.trainers.ecvgpo import EcvgpoConfig, EcvgpoTrainer

OPTIONS = {**FAST, "gradient_accumulation_steps": 2, "max_steps": 1, "max_grad_norm": 0.0, "loss_type": "grpo"}


def uneven_lengths(prompt_ids, images, fields):
    """Completions of 3 to 8 ordinary tokens, digits among them, all different, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (len(prompt_ids),), generator=generator).tolist()
    return [torch.randint(5, 400, (length,), generator=generator).tolist() for length in lengths], None


class Recording:
    """Keeps the loss and the rollout of every micro-batch, the advantages of every loss, and the gradients."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts, self.losses, self.shaped, self.recorder = [], [], [], Recorder()
        self.add_callback(self.recorder)

    def sample(self, prompt_ids, images, fields, *, generate):
        return uneven_lengths(prompt_ids, images, fields)

    def shape_advantages(self, advantages, policy, rollout):
        result = super().shape_advantages(advantages, policy, rollout)
        self.shaped.append((result, policy.logps.detach()))
        return result

    def compute_loss(self, model, inputs, **kwargs):
        self.rollouts.append(dict(inputs))
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(loss.item())
        return loss


class Plain(Recording, EntropyGRPOTrainer):
    pass


class Ecvgpo(Recording, EcvgpoTrainer):
    pass


class TwoStage(Recording, TwoStageTrainer):
    pass


@dataclass
class BothConfig(TwoStageConfig, EcvgpoConfig):
    pass


TwoStageEcvgpo = type("TwoStageEcvgpo", (Recording, TwoStageTrainer, EcvgpoTrainer), {"config_class": BothConfig})
EcvgpoTwoStage = type("EcvgpoTwoStage", (Recording, EcvgpoTrainer, TwoStageTrainer), {"config_class": BothConfig})


def train(trainer_class, tiny_model, shapes, tmp_path, *, rewards=(uneven_reward,), **options):
    config = trainer_class.config_class(output_dir=str(tmp_path), **{**OPTIONS, **options})
    trainer = trainer_class(
        model=str(tiny_model),
        reward_funcs=list(rewards),
        args=config,
        train_dataset=dataset_of(shapes, tiny_model),
    )
    trainer.train()
    return trainer


def written_out_logps(model, rollout):
    """log π of the completion tokens of each row, from full logits, as a list of unpadded vectors."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    images = {
        name: rollout[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids") if name in rollout
    }
    logits = model(input_ids=ids, attention_mask=attention, **images).logits
    prompt, rows = rollout["prompt_ids"].size(1), []
    for row, tokens, length in zip(
        logits, rollout["completion_ids"], rollout["completion_mask"].sum(dim=1).tolist(), strict=True
    ):
        distribution = torch.distributions.Categorical(logits=row[prompt - 1 : prompt - 1 + length])
        rows.append(distribution.log_prob(tokens[:length]))
    return rows


def written_out_advantages(advantages, logps, r0):
    """Eq. 17 with l0 = 25 and δ = inf, token by token in Python."""
    return [
        torch.tensor([max(a / 25, a + logp / r0) if a > 0 else a for logp in row.tolist()], dtype=torch.float64)
        for a, row in zip(advantages.tolist(), logps, strict=True)
    ]


@pytest.mark.parametrize("r0", [30.0, -30.0])
def test_the_gradient_is_that_of_the_written_out_formula(tiny_model, shapes, tmp_path, r0):
    trainer = train(Ecvgpo, tiny_model, shapes, tmp_path, learning_rate=0.0, r0=r0)
    loss = 0.0
    for rollout in trainer.rollouts:
        logps = written_out_logps(trainer.model, rollout)
        constants = written_out_advantages(rollout["advantages"], logps, r0)
        # The ratio is 1 and its derivative that of log π; mean over tokens, rows, and two micro-batches.
        terms = [-(a * (row - row.detach()).exp()).mean() for a, row in zip(constants, logps, strict=True)]
        loss = loss + sum(terms) / len(terms) / 2
    assert sum(trainer.losses) == pytest.approx(loss.item(), rel=0, abs=1e-5)
    names = list(trainer.recorder.gradients[0])
    gradients = torch.autograd.grad(loss, [trainer.model.get_parameter(name) for name in names])
    # TRL's fused head computes in float32 whatever the model's type, so 1e-6 of gradients of 1e-2 and more.
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(trainer.recorder.gradients[0][name], gradient, rtol=0, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-2


def test_without_reshaping_losses_and_gradients_are_those_of_grpo(tiny_model, shapes, tmp_path):
    plain = train(Plain, tiny_model, shapes, tmp_path / "plain", max_steps=2)
    assert max(map(abs, plain.losses)) > 1e-3
    for index, options in enumerate(({"r0": 1e12}, {"r0": 30.0, "std_threshold": 1e-9})):
        ecvgpo = train(Ecvgpo, tiny_model, shapes, tmp_path / str(index), max_steps=2, **options)
        assert ecvgpo.losses == plain.losses
        torch.testing.assert_close(ecvgpo.recorder.gradients, plain.recorder.gradients, rtol=0, atol=0)
        assert {log["ecvgpo/reshaped"] for log in ecvgpo.state.log_history[:2]} == {0.0}


def test_reshaping_costs_no_forward_pass(tiny_model, shapes, tmp_path):
    plain = train(Plain, tiny_model, shapes, tmp_path / "plain", num_iterations=2, max_steps=2)
    ecvgpo = train(Ecvgpo, tiny_model, shapes, tmp_path / "ecvgpo", num_iterations=2, max_steps=2, r0=30.0)
    assert ecvgpo.recorder.forwards == plain.recorder.forwards
    assert ecvgpo.losses != plain.losses


def partial_reward(completion_ids, **kwargs):
    """Judges completions of even length only."""
    return [None if len(ids) % 2 else float(ids[0] % 5) for ids in completion_ids]


def shy_reward(completion_ids, **kwargs):
    """Judges no completion of three tokens."""
    return [None if len(ids) == 3 else float(sum(ids) % 7) for ids in completion_ids]


def test_each_row_has_the_reward_std_of_its_group_after_shuffling(tiny_model, shapes, tmp_path):
    trainer = train(
        Ecvgpo,
        tiny_model,
        shapes,
        tmp_path,
        rewards=[shy_reward, partial_reward],
        reward_weights=[2.0, 0.5],
        gradient_accumulation_steps=4,
        std_mode="population",
        r0=30.0,
    )
    completions, _ = uneven_lengths([None] * 16, None, None)
    first, second = shy_reward(completions), partial_reward(completions)
    totals = [np.nan if a is b is None else 2 * (a or 0) + 0.5 * (b or 0) for a, b in zip(first, second, strict=True)]
    groups = [[total for total in totals[i : i + 4] if not np.isnan(total)] for i in range(0, 16, 4)]
    stds = {tuple(ids): np.std(groups[i // 4]) for i, ids in enumerate(completions)}
    assert np.isnan(totals).any()
    seen = [
        (tuple(ids[mask.bool()].tolist()), std.item())
        for rollout in trainer.rollouts
        for ids, mask, std in zip(
            rollout["completion_ids"], rollout["completion_mask"], rollout["group_reward_std"], strict=True
        )
    ]
    assert len(seen) == len(stds) == 16
    assert [ids for ids, _ in seen] != [tuple(ids) for ids in completions]
    assert [std for _, std in seen] == pytest.approx([stds[ids] for ids, _ in seen], rel=1e-6)


def test_off_policy_the_self_information_is_that_of_the_policy_being_updated(tiny_model, shapes, tmp_path):
    trainer = train(
        Ecvgpo, tiny_model, shapes, tmp_path, num_iterations=2, gradient_accumulation_steps=1, max_steps=2, r0=30.0
    )
    rollout, (shaped, logps) = trainer.rollouts[1], trainer.shaped[1]
    mask = rollout["completion_mask"].bool()
    assert (logps - rollout["old_per_token_logps"])[mask].abs().max() > 1e-2
    rows = [row[keep] for row, keep in zip(logps, mask, strict=True)]
    expected = torch.cat(written_out_advantages(rollout["advantages"], rows, 30.0))
    assert shaped[mask].tolist() == pytest.approx(expected.tolist(), rel=0, abs=1e-6)


def test_with_two_stage_the_loss_is_the_sum_of_the_parts(tiny_model, shapes, tmp_path):
    options = {"lambda_max": 0.5}, {"r0": 30.0}
    plain = train(Plain, tiny_model, shapes, tmp_path / "plain")
    two_stage = train(TwoStage, tiny_model, shapes, tmp_path / "two_stage", **options[0])
    ecvgpo = train(Ecvgpo, tiny_model, shapes, tmp_path / "ecvgpo", **options[1])
    parts = [t + e - p for t, e, p in zip(two_stage.losses, ecvgpo.losses, plain.losses, strict=True)]
    assert min(abs(e - p) for e, p in zip(ecvgpo.losses, plain.losses, strict=True)) > 1e-2
    for both_class in (TwoStageEcvgpo, EcvgpoTwoStage):
        both = train(both_class, tiny_model, shapes, tmp_path / both_class.__name__, **options[0], **options[1])
        assert both.losses == pytest.approx(parts, rel=0, abs=1e-6)
        for name, gradient in both.recorder.gradients[0].items():
            t, e, p = (run.recorder.gradients[0][name] for run in (two_stage, ecvgpo, plain))
            torch.testing.assert_close(gradient, t + e - p, rtol=0, atol=1e-6)


class Rising(EntropyGRPOTrainer):
    """Advantages that grow by a step from the rollout, 1, from token to token."""

    def prepare_rollout(self, rollout, examples, rewards):
        return {**super().prepare_rollout(rollout, examples, rewards), "step": torch.ones(len(examples), 1)}

    def shape_advantages(self, advantages, policy, rollout):
        before = super().shape_advantages(advantages, policy, rollout)
        return before[:, None] + rollout["step"] * torch.arange(policy.logps.size(1))


def test_advantages_per_token_of_another_method_are_reshaped_per_token(tiny_model, shapes, tmp_path):
    both_class = type("EcvgpoRising", (Recording, EcvgpoTrainer, Rising), {})
    trainer = train(both_class, tiny_model, shapes, tmp_path, r0=30.0)
    (shaped, logps), rollout = trainer.shaped[0], trainer.rollouts[0]
    for i, t in rollout["completion_mask"].nonzero().tolist():
        a, logp = rollout["advantages"][i].item() + t, logps[i, t].item()
        assert shaped[i, t].item() == pytest.approx(max(a / 25, a + logp / 30) if a > 0 else a, rel=0, abs=1e-5)


def test_the_log_describes_the_tokens_of_the_step(tiny_model, shapes, tmp_path):
    trainer = train(Ecvgpo, tiny_model, shapes, tmp_path, gradient_accumulation_steps=1, learning_rate=0.0, r0=14.0)
    (rollout,), (log, *_) = trainer.rollouts, trainer.state.log_history
    logps = written_out_logps(trainer.model, rollout)
    shaped = torch.cat(written_out_advantages(rollout["advantages"], logps, 14.0)).numpy()
    lengths = [len(row) for row in logps]
    plain = np.repeat(rollout["advantages"].double().numpy(), lengths)
    values = torch.cat(logps).detach().numpy()
    tokenizer = AutoProcessor.from_pretrained(tiny_model).tokenizer
    tokens = [tokenizer.decode([i]) for i in rollout["completion_ids"][rollout["completion_mask"].bool()].tolist()]
    is_numeric = np.array([any(letter in "0123456789" for letter in token) for token in tokens])
    positive = plain > 0
    assert 0 < is_numeric[positive].sum() < positive.sum() < len(plain)
    expected = {
        "reshaped": (shaped != plain).mean(),
        "at_floor": (positive & np.isclose(shaped, plain / 25, rtol=1e-9)).mean(),
        "self_information": -values[positive].mean(),
        "probability": np.exp(values[positive]).mean(),
        "numeric_probability": np.exp(values[positive & is_numeric]).mean(),
        "covariance_before": np.cov(values, plain, ddof=0)[0, 1],
        "covariance_after": np.cov(values, shaped, ddof=0)[0, 1],
    }
    actual = {name.removeprefix("ecvgpo/"): value for name, value in log.items() if name.startswith("ecvgpo/")}
    assert actual == pytest.approx(expected, rel=1e-4)
    assert 0 < expected["at_floor"] < expected["reshaped"]


def test_without_positive_samples_there_is_no_mean_over_them(tiny_model, shapes, tmp_path):
    def equal_reward(completion_ids, **kwargs):
        return [1.0] * len(completion_ids)

    trainer = train(Ecvgpo, tiny_model, shapes, tmp_path, rewards=[equal_reward], r0=30.0)
    log = trainer.state.log_history[0]
    shares = {name: value for name, value in log.items() if name.startswith("ecvgpo/")}
    assert shares == dict.fromkeys(
        ("ecvgpo/reshaped", "ecvgpo/at_floor", "ecvgpo/covariance_before", "ecvgpo/covariance_after"), 0.0
    )
    assert max(gradient.abs().max() for gradient in trainer.recorder.gradients[0].values()) == 0.0


TINY = {"image_size": 56, "patch_size": 14}
STRENGTHS = (10.0, 25.0, -50.0, 2.0, -2.0)
BATCHES = 6


@pytest.fixture(scope="module")
def warm_model(tmp_path_factory):
    """An InternVL that finds the only object with a mean IoU of .2, unsure as ECVGPO assumes; and its data."""
    folder = tmp_path_factory.mktemp("warm")
    make_shapes(folder / "data", rows=1024, seed=0, image_size=56, objects=1)
    build_tiny_vlm("internvl", folder / "fresh", **TINY)
    flags = {
        "method": "sft",
        "response_column": "response",
        "task_type": "plain",
        "model_name_or_path": folder / "fresh",
        "data_file_paths": folder / "data" / "train.jsonl",
        "image_folders": folder / "data" / "images",
        "output_dir": folder / "warm",
        "per_device_train_batch_size": 32,
        "max_steps": 220,
        "learning_rate": 3e-3,
        "bf16": "false",
        "use_cpu": "true",
        "gradient_checkpointing": "false",
        "save_strategy": "no",
        "logging_steps": 50,
        "disable_tqdm": "true",
    }
    main([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    return folder


class OneStep(EntropyGRPOTrainer):
    """Keeps its only rollout, which repeats the given completions, if any."""

    completions = None

    def sample(self, prompt_ids, images, fields, *, generate):
        if self.completions is None:
            self.completions = generate(prompt_ids, images, fields)
        return self.completions

    def compute_loss(self, model, inputs, **kwargs):
        self.rollout = dict(inputs)
        return super().compute_loss(model, inputs, **kwargs)


class OneEcvgpoStep(OneStep, EcvgpoTrainer):
    pass


def one_step(trainer_class, warm_model, out_dir, *, seed, completions=None, **options):
    """A trainer after one AdamW step on 32 prompts, 8 completions each."""
    rows, _ = read_rows(str(warm_model / "data" / "train.jsonl"), str(warm_model / "data" / "images"))
    processor = AutoProcessor.from_pretrained(warm_model / "warm", padding_side="left")
    step = {
        "max_steps": 1,
        "per_device_train_batch_size": 256,
        "num_generations": 8,
        "max_completion_length": 32,
        "optim": "adamw_torch",
        "learning_rate": 3e-4,
    }
    trainer = trainer_class(
        model=str(warm_model / "warm"),
        reward_funcs=get_rewards(["iou", "format"]),
        args=trainer_class.config_class(output_dir=str(out_dir), seed=seed, **{**FAST, **step, **options}),
        train_dataset=build_dataset(rows, family=FAMILIES["internvl"], processor=processor, task_type="plain"),
        processing_class=processor,
    )
    trainer.completions = completions
    trainer.train()
    return trainer


def sorted_rows(rollout):
    """Tokens and advantage of each row, without the order that TRL shuffled them into."""
    columns = rollout["prompt_ids"], rollout["completion_ids"], rollout["advantages"][:, None]
    return sorted(torch.cat(columns, dim=1).tolist())


def entropy_on(rollout, model):
    """Mean entropy in nats of the model on the tokens of a rollout."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention, pixel_values=rollout["pixel_values"]).logits
    start = rollout["prompt_ids"].size(1) - 1
    entropies = torch.distributions.Categorical(logits=logits[:, start:-1]).entropy()
    return entropies[rollout["completion_mask"].bool()].mean().item()


@pytest.mark.slow
def test_one_step_lowers_entropy_for_positive_r0_and_raises_it_for_negative(warm_model, tmp_path):
    # Same weights, same rollouts, one step: entropy after ECVGPO minus entropy after GRPO, on the same tokens.
    changes = {r0: [] for r0 in STRENGTHS}
    for seed in range(BATCHES):
        plain = one_step(OneStep, warm_model, tmp_path, seed=seed)
        after = entropy_on(plain.rollout, plain.model)
        for r0 in STRENGTHS:
            other = one_step(OneEcvgpoStep, warm_model, tmp_path, seed=seed, completions=plain.completions, r0=r0)
            assert sorted_rows(other.rollout) == sorted_rows(plain.rollout)
            changes[r0].append(entropy_on(plain.rollout, other.model) - after)
    right = {r0: sum(value * r0 < 0 for value in values) for r0, values in changes.items()}
    means = {r0: np.mean(values) for r0, values in changes.items()}
    for r0, values in changes.items():
        each = ", ".join(f"{value:+.1e}" for value in values)
        print(f"\nr0 {r0:3g}: mean {means[r0]:+.2e} nats, expected sign in {right[r0]} of {BATCHES}: {each}", end="")
    # At r0 = 2 the floor takes most of the reinforcement of positive samples, which itself lowers entropy.
    assert all(right[r0] >= BATCHES - 1 for r0 in (10.0, 25.0, -50.0, -2.0))
    assert max(means[10.0], means[25.0]) < 0 < means[-50.0] < means[-2.0]
