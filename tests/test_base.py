"""The base class without a method computes what TRL 1.16 computes, at the same cost."""

import inspect

import pytest
import torch
from support import FAST, Recorder, dataset_of, uneven_reward
from transformers import AutoConfig
from trl import GRPOTrainer

from vlm_entropy.data.families import vision_token_ids
from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer
from vlm_entropy.trainers.rollouts import merge_rollout
from vlm_entropy.trainers.sampler import EpochSampler

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
SIGNATURES = {
    "_calculate_rewards": "(self, inputs, prompts, completions, completion_ids_list)",
    "_compute_loss": "(self, model, inputs)",
    "_generate_and_score_completions": "(self, inputs: list[dict[str, torch.Tensor | typing.Any]])"
    " -> dict[str, torch.Tensor | typing.Any]",
    "_generate_single_turn": "(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False)",
    "_get_per_token_logps_and_entropies": "(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None,"
    " compute_entropy=False, compute_aux_loss=False, pixel_values=None, image_grid_thw=None, num_images=None,"
    " pixel_attention_mask=None, spatial_shapes=None, num_tiles=None, image_sizes=None, token_type_ids=None,"
    " mm_token_type_ids=None, image_position_ids=None)"
    " -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]",
    "_get_train_sampler": "(self, dataset: datasets.arrow_dataset.Dataset | None = None)"
    " -> torch.utils.data.sampler.Sampler",
    "_prepare_inputs": "(self, generation_batch: dict[str, torch.Tensor | typing.Any])"
    " -> dict[str, torch.Tensor | typing.Any]",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_trl_still_has_the_private_method_that_the_base_class_overrides(name):
    actual = str(inspect.signature(getattr(GRPOTrainer, name))).replace("'", "")
    assert actual == SIGNATURES[name], f"TRL changed GRPOTrainer.{name}; check its override in trainers/base.py."


def recording(trainer_class):
    class Recording(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.losses, self.recorder = [], Recorder()
            self.add_callback(self.recorder)

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.losses.append(loss.detach().clone())
            return loss

    return Recording


def train(trainer_class, tiny_model, shapes, tmp_path, **options):
    # The base class never samples placeholder tokens; TRL is told the same here, so that rollouts agree.
    suppress = {"generation_kwargs": {"suppress_tokens": sorted(placeholder_ids(tiny_model))}}
    config = EntropyGRPOConfig(output_dir=str(tmp_path), **{**FAST, **suppress, "max_steps": 2, **options})
    trainer = recording(trainer_class)(
        model=str(tiny_model),
        reward_funcs=[uneven_reward],
        args=config,
        train_dataset=dataset_of(shapes, tiny_model),
    )
    trainer.train()
    return trainer


def placeholder_ids(tiny_model):
    return vision_token_ids(AutoConfig.from_pretrained(tiny_model))


@pytest.mark.parametrize(
    "options",
    [
        *({"loss_type": loss_type} for loss_type in LOSS_TYPES),
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 3},
        {"gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 3},
        {"gradient_accumulation_steps": 3, "steps_per_generation": 2, "loss_type": "grpo"},
        {"beta": 0.1},
        {"beta": 0.1, "num_iterations": 2, "loss_type": "bnpo", "max_steps": 3},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_without_hooks_losses_gradients_and_forward_passes_are_those_of_trl(tiny_model, shapes, tmp_path, options):
    trl = train(GRPOTrainer, tiny_model, shapes, tmp_path / "trl", **options)
    ours = train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path / "ours", **options)
    assert len(ours.losses) == len(trl.losses) > 0
    torch.testing.assert_close(torch.stack(ours.losses), torch.stack(trl.losses), rtol=0, atol=1e-10)
    assert len(ours.recorder.gradients) == len(trl.recorder.gradients) == trl.state.max_steps
    for our_step, trl_step in zip(ours.recorder.gradients, trl.recorder.gradients, strict=True):
        assert max(gradient.abs().max() for gradient in trl_step.values()) > 1e-4
        torch.testing.assert_close(our_step, trl_step, rtol=0, atol=1e-10)
    assert ours.recorder.forwards == trl.recorder.forwards


class Doubling(EntropyGRPOTrainer):
    """Advantages of one number per token, twice TRL's, and a loss term of 3 per micro-batch."""

    def shape_advantages(self, advantages, policy, rollout):
        self.shapes = (advantages.shape, policy.logps.shape, policy.entropies.shape, policy.mask.shape)
        return super().shape_advantages(advantages, policy, rollout)[:, None] * 2.0 * torch.ones_like(policy.logps)

    def extra_loss(self, policy, rollout):
        assert rollout["advantages"].shape == policy.logps.shape
        return super().extra_loss(policy, rollout) + 3.0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_trl_reads_the_advantages_that_the_hook_returns(tiny_model, shapes, tmp_path, loss_type):
    options = {"loss_type": loss_type, "max_steps": 1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    plain = train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path / "plain", **options)
    doubled = train(Doubling, tiny_model, shapes, tmp_path / "doubled", **options)
    tokens = doubled.shapes[1]
    assert doubled.shapes == ((4,), tokens, tokens, tokens)
    # Every loss type is linear in the advantages at ratio 1, and 3 / 2 accumulation steps is added to each loss.
    expected = 2 * torch.stack(plain.losses) + 1.5
    torch.testing.assert_close(torch.stack(doubled.losses), expected, rtol=0, atol=1e-6)
    for twice, once in zip(doubled.recorder.gradients, plain.recorder.gradients, strict=True):
        torch.testing.assert_close(twice, {name: 2 * gradient for name, gradient in once.items()}, rtol=0, atol=1e-7)


class GroupStatistics(EntropyGRPOTrainer):
    """Adds each row's total reward to the rollout, and checks in the loss that it still belongs to its row."""

    def prepare_rollout(self, rollout, examples, rewards):
        assert rewards.shape == (len(examples), 1)
        return {**super().prepare_rollout(rollout, examples, rewards), "total": self.local_rows(rewards.sum(dim=1))}

    def extra_loss(self, policy, rollout):
        ids = [row[mask].tolist() for row, mask in zip(rollout["completion_ids"], policy.mask, strict=True)]
        assert rollout["total"].tolist() == uneven_reward(ids)
        return super().extra_loss(policy, rollout)


def test_entries_added_after_scoring_follow_their_rows_through_shuffle_and_split(tiny_model, shapes, tmp_path):
    train(GroupStatistics, tiny_model, shapes, tmp_path, gradient_accumulation_steps=4)


def test_entries_that_trl_could_not_split_are_refused():
    rollout = {"advantages": torch.zeros(4)}
    merged = merge_rollout(rollout, {"correct": torch.ones(4, 2), "scale": torch.tensor(1.0)}, rows=4)
    assert sorted(merged) == ["advantages", "correct", "scale"]
    with pytest.raises(ValueError, match=r"'patches' as \[9, 3\]; it must be a 0-d or \(4, ...\) tensor"):
        merge_rollout(rollout, {"patches": torch.zeros(9, 3)}, rows=4)
    with pytest.raises(ValueError, match="'scale' as float"):
        merge_rollout(rollout, {"scale": 1.0}, rows=4)
    with pytest.raises(ValueError, match="'advantages', which the rollout already has"):
        merge_rollout(rollout, {"advantages": torch.zeros(4)}, rows=4)


def test_the_placeholder_tokens_of_images_are_never_sampled(tiny_model, shapes, tmp_path):
    trainer = train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path, generation_kwargs=None, max_steps=1)
    assert set(trainer.generation_config.suppress_tokens) == placeholder_ids(tiny_model) != set()


class ToySampler:
    def __init__(self, size: int):
        self.num_samples, self.seed, self.shuffle = size, 3, True
        self.generator = torch.Generator().manual_seed(3)

    def __iter__(self):
        return iter(torch.randperm(self.num_samples, generator=self.generator).tolist())

    def __len__(self):
        return self.num_samples


def test_a_resumed_epoch_has_the_order_of_the_uninterrupted_run():
    uninterrupted = ToySampler(20)
    epochs = [list(uninterrupted) for _ in range(3)]
    for epoch, order in enumerate(epochs):
        assert list(EpochSampler(ToySampler(20), completed_epochs=lambda epoch=epoch: epoch)) == order


@pytest.mark.parametrize(
    ("options", "rows", "expected"),
    [
        # 4 rows at a time, 4 generations: 1 prompt a step, 32 steps an epoch.
        ({"max_steps": -1, "num_train_epochs": 2}, 32, 64),
        # 2 micro-batches a step: 2 prompts a step.
        ({"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 2}, 31, 15),
        # Every rollout is trained on twice.
        ({"max_steps": -1, "num_train_epochs": 1, "num_iterations": 2, "gradient_accumulation_steps": 2}, 32, 32),
        ({"max_steps": 7}, 32, 7),
    ],
)
def test_the_length_of_a_run_is_known_before_it_starts(tmp_path, options, rows, expected):
    defaults = {"per_device_train_batch_size": 4, "num_generations": 4, "bf16": False, "use_cpu": True}
    config = EntropyGRPOConfig(output_dir=str(tmp_path), **{**defaults, **options})
    assert config.total_steps(rows) == expected


def test_data_that_does_not_fill_one_generation_batch_is_refused(tmp_path):
    config = EntropyGRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=16, num_generations=4, bf16=False, use_cpu=True
    )
    with pytest.raises(ValueError, match=r"takes 4 different prompts .* the data has 3"):
        config.total_steps(3)
