"""Every family in every setting of the training command: image tokens, gradients, and what must not change them.

The default run has two families, one that sees patches and one that sees tiles; `-m slow` has the other three, and
every method on every family.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from command_runs import all_finite, argv, changed, task_row, trainer_of, weights_of, write_rows
from PIL import Image
from support import uneven_lengths
from transformers import AutoModelForImageTextToText

from vlm_entropy.data.families import vision_token_ids
from vlm_entropy.data.tiny import MODEL_TYPES, build_tiny_vlm
from vlm_entropy.trainers.__main__ import prepare
from vlm_entropy.trainers.methods import METHODS

ALWAYS = ("internvl", "glm4v")
FAMILY = pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in MODEL_TYPES]
)
SIZES = [(32, 32), (64, 32), (2000, 1000), (1, 1), (8, 8), (3, 5), (32, 16)]
ACTIVE = {"share_prompts": "off", "max_grad_norm": 0.0, "max_steps": 1, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of each family, built when first asked for, sharp enough that entropies differ from token to token."""
    folders = {}

    def model_of(model_type):
        if model_type not in folders:
            folder = build_tiny_vlm(model_type, tmp_path_factory.mktemp("models") / model_type, hidden_size=32)
            model = AutoModelForImageTextToText.from_pretrained(folder)
            with torch.no_grad():
                model.get_input_embeddings().weight *= 3
            model.save_pretrained(folder)
            folders[model_type] = folder
        return folders[model_type]

    return model_of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with an image of noise of each of `SIZES`, named by its size."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for width, height in SIZES:
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{width}x{height}.png")
    return folder


@pytest.fixture
def command(models, images, tmp_path):
    """The command line of a run of a family on rows whose images are given by size: None, "32x32" or several."""

    def build(model_type, kinds, **changes):
        named = [[f"{size}.png" for size in kind.split()] if kind else None for kind in kinds]
        rows = [task_row(names, index) for index, names in enumerate(named)]
        data = write_rows(tmp_path / "rows.jsonl", rows)
        return argv(models(model_type), data, images, tmp_path / "out", **changes)

    return build


class FixedCompletions:
    """Completions of 1 to 8 tokens, the same in every run."""

    def sample(self, prompt_ids, images, fields, *, generate):
        return uneven_lengths(prompt_ids, images, fields)


class KeptPolicies:
    """Keeps what the policy forward of each loss computed."""

    policies: list

    def shape_advantages(self, advantages, policy, rollout):
        self.policies = [*getattr(self, "policies", []), policy]
        return super().shape_advantages(advantages, policy, rollout)


def image_token_counts(trainer):
    """How many rows of a rollout have how many image tokens in their prompt."""
    image_token = trainer.model.config.image_token_id
    counts = [(rollout["prompt_ids"] == image_token).sum(dim=1).tolist() for rollout in trainer.rollouts]
    return Counter(count for some in counts for count in some)


def train(trainer):
    """Train, and hold to what every cell of the matrix must show."""
    before = weights_of(trainer)
    trainer.train()
    updated = changed(before, weights_of(trainer))
    assert all_finite(trainer)
    assert any("language_model" in name for name in updated)
    return trainer, updated


def gradients_of(command_line, **options):
    trainer, _ = train(trainer_of(command_line, mixins=(FixedCompletions, KeptPolicies), **options))
    return trainer, trainer.recorder.gradients


def assert_same_gradients(actual, expected):
    """Up to float32, in which TRL's output layer and the attention of some towers compute."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(gradient.abs().max().item(), 1e-6)
        torch.testing.assert_close(actual[name] / scale, gradient / scale, rtol=0, atol=1e-5, msg=name)


# -- images ------------------------------------------------------------------------------------------------------

# Cells of 16 pixels are a token for Qwen and GLM. InternVL cuts tiles of 32 pixels with 4 tokens, and adds a thumbnail
# where there is more than one.
INPUTS = {
    # 2 x 2 cells; one tile
    "an image": (["32x32"], {}, {"patches": [4], "tiles": [4]}),
    # and 4 x 2 cells; and 2 tiles with a thumbnail
    "two images": (["32x32 64x32"], {}, {"patches": [4 + 8], "tiles": [4 + 12]}),
    "rows of text, one image and two": (
        [None, "32x32", "32x32 64x32", None],
        {},
        {"patches": [0, 4, 12, 0], "tiles": [0, 4, 16, 0]},
    ),
    # 2000 x 1000 in 4096 pixels: divided by sqrt(2e6 / 4096) = 22.1 it is 90.5 x 45.3, 5 x 2 whole cells; 2 x 1 tiles
    "a large image": (
        ["2000x1000"],
        {"patches": {"max_pixels": 4096}, "tiles": {"max_anyres_num": 2}},
        {"patches": [10], "tiles": [12]},
    ),
    # One cell each, but 1 x 2 of 3 x 5 pixels. As tiles: one, but 1 x 2 (ratio 0.5) for 3 x 5 (0.6).
    "tiny images": (["1x1", "8x8", "3x5"], {}, {"patches": [1, 1, 2], "tiles": [4, 4, 12]}),
}


@FAMILY
@pytest.mark.parametrize("kind", INPUTS)
def test_every_row_has_the_image_tokens_that_its_images_cost(command, model_type, kind):
    kinds, limits, expected = INPUTS[kind]
    see = "tiles" if model_type == "internvl" else "patches"
    # All prompts in each rollout, 4 completions of each in micro-batches of 2 rows, some of which hold no image.
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2 * len(kinds)}
    trainer, updated = train(trainer_of(command(model_type, kinds, **batches, **limits.get(see, {}), max_steps=2)))
    assert image_token_counts(trainer) == Counter(expected[see] * 4 * 2)
    assert any("vis" in name for name in updated)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_limit_that_a_family_does_not_have_is_refused(command, model_type):
    flag, sentence = {"max_pixels": 4096}, "has no limits in pixels .it cuts tiles."
    if model_type != "internvl":
        flag, sentence = {"max_anyres_num": 2}, "cuts no tiles; use set_pixel_limits"
    with pytest.raises(ValueError, match=sentence):
        prepare(command(model_type, ["2000x1000"], **flag))


# -- settings that change no gradient ----------------------------------------------------------------------------

MIXED = [None, "32x32 64x32", "64x32", "32x32"]


@FAMILY
def test_gradient_checkpointing_changes_no_gradient(command, model_type):
    plain, expected = gradients_of(command(model_type, MIXED, **ACTIVE))
    saving, actual = gradients_of(command(model_type, MIXED, **ACTIVE, gradient_checkpointing="true"))
    assert saving.model.is_gradient_checkpointing
    assert not plain.model.is_gradient_checkpointing
    assert saving.losses == pytest.approx(plain.losses, abs=1e-6)
    assert_same_gradients(actual[0], expected[0])


@FAMILY
def test_accumulation_changes_no_gradient(command, model_type):
    rows = {**ACTIVE, "num_generations": 2}
    _, (expected,) = gradients_of(command(model_type, MIXED, **rows, per_device_train_batch_size=4))
    for size in (2, 1):
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        trainer, (actual,) = gradients_of(command(model_type, MIXED, **rows, **steps))
        assert len(trainer.losses) == 4 // size
        assert_same_gradients(actual, expected)


@FAMILY
def test_a_second_iteration_takes_the_clipped_ratio_to_the_policy_that_sampled(command, model_type):
    options = {**ACTIVE, "loss_type": "grpo", "epsilon": 0.01, "learning_rate": 0.1, "optim": "sgd"}
    _, (expected,) = gradients_of(command(model_type, MIXED, **options))
    trainer, gradients = gradients_of(command(model_type, MIXED, **options | {"num_iterations": 2, "max_steps": 2}))
    assert_same_gradients(gradients[0], expected)
    first, second = trainer.rollouts
    order = [second["completion_ids"].tolist().index(ids) for ids in first["completion_ids"].tolist()]
    assert sorted(order) == list(range(8))
    old, new = second["old_per_token_logps"], trainer.policies[1].logps.detach()
    torch.testing.assert_close(old[order], first["old_per_token_logps"], rtol=0, atol=0)
    # min(r A, clip(r, 0.99, 1.01) A), mean over the tokens of a row, mean over rows
    ratio, mask = (new - old).exp(), second["completion_mask"]
    advantages = second["advantages"][:, None]
    terms = torch.minimum(ratio * advantages, ratio.clamp(0.99, 1.01) * advantages)
    loss = -((terms * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    assert ((ratio - 1).abs() > 0.01)[mask.bool()].any()
    assert trainer.losses[1] == pytest.approx(loss.item(), abs=1e-6)


@FAMILY
@pytest.mark.parametrize("setting", ["autocast", "weights"])
def test_bfloat16_changes_gradients_by_its_rounding(command, model_type, setting):
    _, (expected,) = gradients_of(command(model_type, MIXED, **ACTIVE))
    flags, dtype = ({"bf16": "true"}, torch.float32) if setting == "autocast" else ({}, torch.bfloat16)
    trainer, (actual,) = gradients_of(command(model_type, MIXED, **{**ACTIVE, **flags}), dtype=dtype)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {dtype}
    plain, rounded = (torch.cat([some[name].double().flatten() for name in expected]) for some in (expected, actual))
    # 8 bits of a number, 2^-9 of rounding in each of some tens of sums; seen: 0.8 to 2.9 %
    assert 1e-4 < (rounded - plain).norm() / plain.norm() < 0.06


# -- sampling ----------------------------------------------------------------------------------------------------


@FAMILY
def test_a_policy_that_favours_image_tokens_never_samples_one(command, model_type):
    trainer = trainer_of(command(model_type, MIXED, max_steps=2))
    placeholders = sorted(vision_token_ids(trainer.model.config))
    assert trainer.model.config.image_token_id in placeholders

    def favour(module, args, logits):
        logits[..., placeholders] += 50
        return logits

    trainer.model.get_output_embeddings().register_forward_hook(favour)
    train(trainer)
    sampled = torch.cat([rollout["completion_ids"].flatten() for rollout in trainer.rollouts])
    assert not torch.isin(sampled, torch.tensor(placeholders)).any()
    assert len(sampled.unique()) > 8  # and not a pad in their place


# -- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_every_family(command, model_type, method):
    trainer, updated = train(trainer_of(command(model_type, MIXED[1:], method=method, max_steps=1)))
    assert trainer.state.global_step == 1
    assert any("vis" in name for name in updated)
    assert all(gradient.isfinite().all() for gradient in trainer.recorder.gradients[0].values())
