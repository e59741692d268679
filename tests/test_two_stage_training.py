"""Two-stage entropy GRPO inside the trainer: its gradient, its stages, and what it costs."""

import pytest
import torch
from support import FAST, Recording, dataset_of, uneven_reward

from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer, TwoStageConfig, TwoStageTrainer

OPTIONS = {**FAST, "gradient_accumulation_steps": 2, "max_steps": 1, "max_grad_norm": 0.0}


class RecordingGRPO(Recording, EntropyGRPOTrainer):
    pass


class RecordingTwoStage(Recording, TwoStageTrainer):
    pass


def train(trainer_class, tiny_model, shapes, tmp_path, **options):
    config_class = TwoStageConfig if issubclass(trainer_class, TwoStageTrainer) else EntropyGRPOConfig
    config = config_class(output_dir=str(tmp_path), **{**OPTIONS, **options})
    trainer = trainer_class(
        model=str(tiny_model), reward_funcs=[uneven_reward], args=config, train_dataset=dataset_of(shapes, tiny_model)
    )
    trainer.train()
    return trainer


def written_out_entropy(model, rollouts, norm):
    """H̄ over all rows of an optimizer step, from full logits, row by row, without a mask."""
    sums, lengths = [], []
    for rollout in rollouts:
        ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        images = {name: rollout[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
        logits = model(input_ids=ids, attention_mask=attention, **images).logits
        prompt = rollout["prompt_ids"].size(1)
        for row, length in zip(logits, rollout["completion_mask"].sum(dim=1).tolist(), strict=True):
            distribution = torch.distributions.Categorical(logits=row[prompt - 1 : prompt - 1 + length])
            sums.append(distribution.entropy().sum())
            lengths.append(length)
    if norm == "token":
        return sum(sums) / sum(lengths)
    return sum(total / length for total, length in zip(sums, lengths, strict=True)) / len(sums)


@pytest.mark.parametrize("norm", ["sequence", "token"])
@pytest.mark.parametrize(("switch_step", "coefficient"), [(1, 0.5), (0, -0.25)])
def test_the_gradient_is_that_of_the_written_out_formula(tiny_model, shapes, tmp_path, norm, switch_step, coefficient):
    plain = train(RecordingGRPO, tiny_model, shapes, tmp_path / "plain", learning_rate=0.0)
    two_stage = train(
        RecordingTwoStage,
        tiny_model,
        shapes,
        tmp_path / "two_stage",
        learning_rate=0.0,
        lambda_max=0.5,
        lambda_min=0.25,
        switch_step=switch_step,
        entropy_norm=norm,
    )
    model = plain.model
    entropy = written_out_entropy(model, plain.rollouts, norm)
    names = list(plain.recorder.gradients[0])
    gradients = torch.autograd.grad(entropy, [model.get_parameter(name) for name in names])
    assert sum(two_stage.losses) - sum(plain.losses) == pytest.approx(-coefficient * entropy.item(), rel=1e-5)
    # TRL's fused head computes in float32 whatever the model's type, so 1e-6 of gradients of 1e-2 and more.
    for name, gradient in zip(names, gradients, strict=True):
        actual = two_stage.recorder.gradients[0][name] - plain.recorder.gradients[0][name]
        torch.testing.assert_close(actual, -coefficient * gradient, rtol=0, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-2
    assert two_stage.state.log_history[0]["two_stage/entropy"] == pytest.approx(entropy.item(), rel=1e-5)


def test_the_stage_follows_the_optimizer_step_with_one_sign_per_accumulation_window(tiny_model, shapes, tmp_path):
    trainer = train(RecordingTwoStage, tiny_model, shapes, tmp_path, max_steps=5, switch_fraction=0.6, lambda_min=0.02)
    logs = trainer.state.log_history[:5]
    assert [log["two_stage/coefficient"] for log in logs] == pytest.approx([0.01, 0.01, 0.01, -0.02, -0.02])
    assert [log["two_stage/stage"] for log in logs] == [1, 1, 1, 2, 2]


def test_zero_coefficients_give_grpo(tiny_model, shapes, tmp_path):
    plain = train(RecordingGRPO, tiny_model, shapes, tmp_path / "plain", max_steps=2)
    zero = train(RecordingTwoStage, tiny_model, shapes, tmp_path / "zero", max_steps=2, lambda_max=0.0, lambda_min=0.0)
    assert zero.losses == plain.losses
    torch.testing.assert_close(zero.recorder.gradients, plain.recorder.gradients, rtol=0, atol=0)
    assert zero.recorder.forwards == plain.recorder.forwards


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"])
def test_the_term_is_the_same_under_every_loss_type(tiny_model, shapes, tmp_path, loss_type):
    plain = train(RecordingGRPO, tiny_model, shapes, tmp_path / "plain", loss_type=loss_type)
    two_stage = train(RecordingTwoStage, tiny_model, shapes, tmp_path / "two", loss_type=loss_type, lambda_max=0.5)
    entropy = two_stage.state.log_history[0]["two_stage/entropy"]
    assert sum(two_stage.losses) - sum(plain.losses) == pytest.approx(-0.5 * entropy, rel=1e-5)


def test_a_switch_outside_the_run_stops_training_before_its_first_step(tiny_model, shapes, tmp_path):
    with pytest.raises(ValueError, match="switch_step 9 lies outside the run, which has 1 steps"):
        train(RecordingTwoStage, tiny_model, shapes, tmp_path, switch_step=9)


def test_impossible_tokens_leave_entropy_and_gradient_finite(tiny_model, shapes, tmp_path):
    class Masked(RecordingTwoStage):
        def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
            with torch.no_grad():
                model.get_input_embeddings().weight[200:] *= 1e9  # tied: logits of 1e9 and -1e9
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    trainer = train(Masked, tiny_model, shapes, tmp_path, lambda_max=0.5, learning_rate=0.0)
    assert trainer.state.log_history[0]["two_stage/entropy"] == pytest.approx(0.0, abs=1e-6)
    assert all(gradient.isfinite().all() for gradient in trainer.recorder.gradients[0].values())
