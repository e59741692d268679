"""Combined methods: on the same rollout each part adds to the loss what it adds alone."""

from collections import Counter

import pytest
import torch
from support import FAST, dataset_of, uneven_reward

from vlm_entropy.trainers import EntropyGRPOTrainer, get_method

OPTIONS = {
    "two_stage": {"lambda_max": 0.5},
    "ecvgpo": {"r0": 2.0},
    "calibrl": {"expert_column": "expert", "exploration_weight": 0.5, "correct_threshold": 3.0},
    "saei": {"alpha": 0.1},
    "noisy_rollout": {"noise": "sign"},
}


class Fixed(EntropyGRPOTrainer):
    """Completions that depend on the prompt and on how often it was asked for, whoever asks."""

    def sample(self, prompt_ids, images, fields, *, generate):
        self.images = images
        self.asked = getattr(self, "asked", Counter())
        return [self.completion(tuple(ids)) for ids in prompt_ids], None

    def completion(self, prompt):
        self.asked[prompt] += 1
        generator = torch.Generator().manual_seed(sum(prompt) + 1000 * self.asked[prompt])
        length = int(torch.randint(2, 9, (1,), generator=generator))
        return torch.randint(5, 200, (length,), generator=generator).tolist()


def loss_of(name, tiny_model, shapes, tmp_path):
    method = get_method(name)
    options = {key: value for part in name.split("+") for key, value in OPTIONS.get(part, {}).items()}
    dataset = dataset_of(shapes, tiny_model).select([0])
    dataset = dataset.add_column("expert", ["red square"])
    config = method.config(
        output_dir=str(tmp_path / name), **{**FAST, "max_steps": 1, "learning_rate": 0.0, **options}
    )
    bases = (Fixed,) if method.trainer is EntropyGRPOTrainer else (method.trainer, Fixed)
    trainer_class = type("FixedTrainer", bases, {})
    trainer = trainer_class(model=str(tiny_model), reward_funcs=[uneven_reward], args=config, train_dataset=dataset)
    trainer.train()
    return trainer.state.log_history[0]["loss"], trainer


@pytest.mark.parametrize(
    "name",
    [
        "two_stage+saei",
        "ecvgpo+two_stage",
        "calibrl+two_stage",
        "saei+ecvgpo",
        "calibrl+ecvgpo",
        "saei+calibrl",
        "noisy_rollout+two_stage",
        "two_stage+ecvgpo+calibrl+saei",
    ],
)
def test_each_part_of_a_combination_adds_to_the_loss_what_it_adds_alone(tiny_model, shapes, tmp_path, name):
    plain, _ = loss_of("grpo", tiny_model, shapes, tmp_path)
    combined, trainer = loss_of(name, tiny_model, shapes, tmp_path)
    parts = {part: loss_of(part, tiny_model, shapes, tmp_path)[0] - plain for part in name.split("+")}
    assert combined - plain == pytest.approx(sum(parts.values()), rel=1e-4, abs=1e-6)
    sampling = {"saei", "noisy_rollout"}
    # Methods of sampling change no loss of given completions; the others do.
    assert all((abs(difference) > 1e-3) == (part not in sampling) for part, difference in parts.items())
    if sampling & set(name.split("+")):
        assert f"{trainer.metric_prefix}/reward_adversarial" in trainer.state.log_history[0]


def test_two_methods_of_sampling_are_refused():
    with pytest.raises(ValueError, match="saei and noisy_rollout both decide how a group is sampled"):
        get_method("saei+noisy_rollout")
