"""The entropy baselines inside the trainer: gradients of whole steps, identities with GRPO, and what they cost."""

import math

import pytest
import torch
from support import FAST, Recording, dataset_of, uneven_reward

from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer
from vlm_entropy.trainers.entropy_advantage import EntropyAdvantageConfig, EntropyAdvantageTrainer
from vlm_entropy.trainers.entropy_minimisation import EntropyMinimisationConfig, EntropyMinimisationTrainer
from vlm_entropy.trainers.entropy_reward import EntropyRewardConfig, EntropyRewardTrainer
from vlm_entropy.trainers.intuitor import IntuitorConfig, IntuitorTrainer
from vlm_entropy.trainers.label_entropy import LabelEntropyConfig, LabelEntropyTrainer

OPTIONS = {
    **FAST,
    "gradient_accumulation_steps": 2,
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "learning_rate": 0.0,
    "loss_type": "dapo",
    "shuffle_dataset": False,
}
NOISY = [row % 3 == 0 for row in range(32)]


def train(trainer_class, config_class, tiny_model, shapes, tmp_path, **options):
    recording = type("Recording", (Recording, trainer_class), {})
    config = config_class(output_dir=str(tmp_path), **{**OPTIONS, **options})
    dataset = dataset_of(shapes, tiny_model).add_column("is_noisy", NOISY)
    trainer = recording(model=str(tiny_model), reward_funcs=[uneven_reward], args=config, train_dataset=dataset)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def plain(tiny_model, shapes, tmp_path_factory):
    return train(EntropyGRPOTrainer, EntropyGRPOConfig, tiny_model, shapes, tmp_path_factory.mktemp("plain"))


def logits_of(model, rollout):
    """(B, T, V) logits of the completion tokens, from a forward of transformers."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    images = {name: rollout[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
    logits = model(input_ids=ids, attention_mask=attention, **images).logits
    return logits[:, rollout["prompt_ids"].size(1) - 1 : -1]


def policy_gradient(model, rollouts, advantages):
    """Gradient of -Σ A_it · log π_it / (tokens of the step), which is GRPO's at ratio 1 with the loss "dapo"."""
    tokens = sum(rollout["completion_mask"].sum() for rollout in rollouts)
    loss = 0.0
    for rollout, values in zip(rollouts, advantages, strict=True):
        logps = logits_of(model, rollout).log_softmax(dim=-1)
        chosen = logps.gather(2, rollout["completion_ids"].unsqueeze(2)).squeeze(2)
        loss = loss - (values * chosen * rollout["completion_mask"]).sum() / tokens
    return loss


def assert_gradient(trainer, loss, *, minimum=1e-2):
    gradients = trainer.recorder.gradients[0]
    expected = torch.autograd.grad(loss, [trainer.model.get_parameter(name) for name in gradients])
    # TRL's fused head computes in float32 whatever the model's type, so 2e-6 of gradients of 1e-2 and more.
    for actual, gradient in zip(gradients.values(), expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=2e-6)
    assert max(gradient.abs().max() for gradient in expected) > minimum


def entropies_of(model, rollout):
    return torch.distributions.Categorical(logits=logits_of(model, rollout)).entropy()


def response_means(rollout, values):
    """(B,) means of (B, T) values over real tokens, row by row."""
    lengths = rollout["completion_mask"].sum(dim=1).tolist()
    return torch.stack([row[:length].mean() for row, length in zip(values, lengths, strict=True)])


def normalised(rollouts, rewards):
    """GRPO's advantages of rows that TRL shuffled over the micro-batches of a step: rows of equal prompts are a group.

    Args:
        rollouts: micro-batches of B rows.
        rewards: (B,) of each.

    Returns:
        (B, 1) of each.
    """
    prompts = [tuple(ids) for rollout in rollouts for ids in rollout["prompt_ids"].tolist()]
    values = torch.cat(rewards)
    advantages = torch.empty_like(values)
    for prompt in set(prompts):
        rows = [index for index, other in enumerate(prompts) if other == prompt]
        assert len(rows) == 4
        advantages[rows] = (values[rows] - values[rows].mean()) / (values[rows].std() + 1e-4)
    return advantages.unsqueeze(1).split([len(reward) for reward in rewards])


def test_the_gradient_of_entropy_advantage_is_that_of_the_raised_advantages(tiny_model, shapes, tmp_path):
    trainer = train(EntropyAdvantageTrainer, EntropyAdvantageConfig, tiny_model, shapes, tmp_path)
    raised = []
    for rollout in trainer.rollouts:
        base = rollout["advantages"].unsqueeze(1).double()
        entropies = entropies_of(trainer.model, rollout).detach()
        raised.append(base + torch.minimum(0.4 * entropies, base.abs() / 2))
    assert_gradient(trainer, policy_gradient(trainer.model, trainer.rollouts, raised))
    assert trainer.state.log_history[0]["entropy_advantage/bonus"] > 0.01


def test_the_gradient_of_entropy_reward_is_that_of_the_renormalised_rewards(tiny_model, shapes, tmp_path):
    trainer = train(EntropyRewardTrainer, EntropyRewardConfig, tiny_model, shapes, tmp_path, entropy_reward_coef=5.0)
    rewards = []
    for rollout in trainer.rollouts:
        lengths = rollout["completion_mask"].sum(dim=1).tolist()
        tokens = [row[:length].tolist() for row, length in zip(rollout["completion_ids"], lengths, strict=True)]
        means = response_means(rollout, entropies_of(trainer.model, rollout).detach())
        rewards.append(torch.tensor(uneven_reward(tokens), dtype=torch.float64) + 5.0 * means)
    advantages = normalised(trainer.rollouts, rewards)
    assert_gradient(trainer, policy_gradient(trainer.model, trainer.rollouts, advantages))


def test_the_gradient_of_intuitor_is_that_of_self_certainty_as_the_reward(tiny_model, shapes, tmp_path):
    trainer = train(IntuitorTrainer, IntuitorConfig, tiny_model, shapes, tmp_path)
    certainties = []
    for rollout in trainer.rollouts:
        logps = logits_of(trainer.model, rollout).detach().log_softmax(dim=-1)
        per_token = -(logps + math.log(logps.size(-1))).mean(dim=-1)
        certainties.append(response_means(rollout, per_token))
    advantages = normalised(trainer.rollouts, certainties)
    assert_gradient(trainer, policy_gradient(trainer.model, trainer.rollouts, advantages))


def test_the_gradient_of_entropy_minimisation_is_that_of_the_mean_over_all_tokens(tiny_model, shapes, tmp_path):
    trainer = train(EntropyMinimisationTrainer, EntropyMinimisationConfig, tiny_model, shapes, tmp_path)
    tokens = sum(rollout["completion_mask"].sum() for rollout in trainer.rollouts)
    entropy = sum(
        (entropies_of(trainer.model, rollout) * rollout["completion_mask"]).sum() for rollout in trainer.rollouts
    )
    assert_gradient(trainer, entropy / tokens)


@pytest.mark.parametrize("raise_on", ["false", "true"])
def test_the_gradient_of_label_entropy_follows_the_column_of_wrong_labels(
    plain, tiny_model, shapes, tmp_path, raise_on
):
    trainer = train(
        LabelEntropyTrainer,
        LabelEntropyConfig,
        tiny_model,
        shapes,
        tmp_path,
        raise_on=raise_on,
        label_entropy_coef=0.5,
    )
    loss, signs = 0.0, []
    for rollout in trainer.rollouts:
        means = response_means(rollout, entropies_of(trainer.model, rollout))
        sign = torch.where(rollout["is_raised"], 1.0, -1.0)
        loss = loss - 0.5 * (sign * means).sum() / 8
        signs += sign.tolist()
    assert set(signs) == {1.0, -1.0}
    share = trainer.state.log_history[0]["label_entropy/noisy"]
    assert share == pytest.approx(signs.count(1.0 if raise_on == "false" else -1.0) / 8)
    advantages = [rollout["advantages"].unsqueeze(1) for rollout in trainer.rollouts]
    assert_gradient(trainer, loss + policy_gradient(trainer.model, trainer.rollouts, advantages))


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "options"),
    [
        (EntropyAdvantageTrainer, EntropyAdvantageConfig, {"entropy_advantage_alpha": 0.0}),
        (LabelEntropyTrainer, LabelEntropyConfig, {"label_entropy_coef": 0.0}),
    ],
)
def test_a_coefficient_of_zero_gives_grpo(plain, tiny_model, shapes, tmp_path, trainer_class, config_class, options):
    zero = train(trainer_class, config_class, tiny_model, shapes, tmp_path, **options)
    assert zero.losses == plain.losses
    torch.testing.assert_close(zero.recorder.gradients, plain.recorder.gradients, rtol=0, atol=0)
    assert zero.recorder.forwards == plain.recorder.forwards


def test_entropy_reward_of_zero_gives_grpo_and_costs_a_forward_of_each_row(plain, tiny_model, shapes, tmp_path):
    zero = train(EntropyRewardTrainer, EntropyRewardConfig, tiny_model, shapes, tmp_path, entropy_reward_coef=0.0)
    # the advantages are computed again, in another order of additions
    torch.testing.assert_close(zero.recorder.gradients, plain.recorder.gradients, rtol=1e-5, atol=1e-7)
    rows = sum(shape[0] for shape in plain.recorder.forwards)
    assert sum(shape[0] for shape in zero.recorder.forwards) == rows + 8


def test_rewards_do_not_matter_to_intuitor_and_entropy_minimisation(tiny_model, shapes, tmp_path):
    for trainer_class, config_class in (
        (IntuitorTrainer, IntuitorConfig),
        (EntropyMinimisationTrainer, EntropyMinimisationConfig),
    ):
        first = train(trainer_class, config_class, tiny_model, shapes, tmp_path / "first")
        weighted = train(trainer_class, config_class, tiny_model, shapes, tmp_path / "second", reward_weights=[-7.0])
        torch.testing.assert_close(first.recorder.gradients, weighted.recorder.gradients, rtol=0, atol=0)
