"""SaEI: token selection and the step on the image by hand, their laws, and what the options refuse."""

import math

import numpy as np
import pytest
import torch

from vlm_entropy.trainers.changed_images import check_groups
from vlm_entropy.trainers.saei import SaeiConfig, SaeiTrainer, attacked_entropy, perturb, select_tokens

F64 = torch.float64


def config(tmp_path, **options) -> SaeiConfig:
    defaults = {"per_device_train_batch_size": 12, "num_generations": 12, "bf16": False, "use_cpu": True}
    return SaeiConfig(output_dir=str(tmp_path), **{**defaults, **options})


@pytest.mark.parametrize(
    ("entropies", "kept"),
    [
        # floor(L/3) lowest and floor(L/3) highest go.
        ([5.0], [1]),  # 0 and 0 of 1
        ([5.0, 1.0], [1, 1]),  # 0 and 0 of 2
        ([3.0, 1.0, 2.0], [0, 0, 1]),  # 1 and 1 of 3
        ([4.0, 1.0, 3.0, 2.0], [0, 0, 1, 1]),  # 1 and 1 of 4
        ([4.0, 1.0, 5.0, 3.0, 2.0], [1, 0, 0, 1, 1]),  # 1 and 1 of 5
        ([6.0, 1.0, 5.0, 2.0, 4.0, 3.0], [0, 0, 0, 0, 1, 1]),  # 2 and 2 of 6
        ([7.0, 7.0, 7.0], [0, 1, 0]),  # ties: the first counts as the lowest
        ([2.0, 1.0, 1.0, 1.0, 2.0, 2.0], [1, 0, 0, 1, 0, 0]),  # ranks 3 0 1 2 4 5
    ],
)
def test_the_middle_third_of_a_response_by_hand(entropies, kept):
    row = torch.tensor([entropies], dtype=F64)
    assert select_tokens(row, torch.ones_like(row)).tolist() == [[bool(k) for k in kept]]


def test_padding_is_never_ranked_or_kept_whatever_it_holds():
    # Row 1 ranks 3, 1, 2 and keeps the 2; row 2 has no token; row 3 has one.
    entropies = torch.tensor([[3.0, 0.0, 1.0, math.nan, 2.0], [0.0] * 5, [math.inf, 9.0, math.nan, 0.0, -1.0]])
    mask = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    kept = select_tokens(entropies, mask)
    assert kept.int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert select_tokens(entropies, mask, scope="all").tolist() == mask.bool().tolist()


def test_pooled_ranks_the_tokens_of_all_responses_together():
    # 1 2 3 4 5 6 over two rows: 3 and 4 are the middle third. Alone, each row of three would keep its middle.
    entropies = torch.tensor([[1.0, 6.0, 2.0], [3.0, 5.0, 4.0]])
    assert select_tokens(entropies, torch.ones(2, 3), scope="pooled").int().tolist() == [[0, 0, 0], [1, 0, 1]]
    assert select_tokens(entropies, torch.ones(2, 3)).int().tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("scope", ["response", "pooled"])
def test_selection_agrees_with_sorting_places(scope):
    generator = np.random.default_rng(0)
    entropies, lengths = generator.integers(0, 5, (7, 11)).astype(float), generator.integers(0, 12, 7)
    mask = np.arange(11) < lengths[:, None]
    expected = np.zeros_like(mask)
    groups = [[(i, t) for t in range(n)] for i, n in enumerate(lengths)]
    pools = groups if scope == "response" else [[place for group in groups for place in group]]
    for places in pools:
        places = sorted(places, key=lambda place: entropies[place])  # stable: ties by position
        third = len(places) // 3
        for place in places[third : len(places) - third]:
            expected[place] = True
    actual = select_tokens(torch.from_numpy(entropies), torch.from_numpy(mask), scope=scope)
    np.testing.assert_array_equal(actual.numpy(), expected)
    kept, valid = actual.sum(dim=1).numpy(), lengths
    if scope == "response":
        np.testing.assert_array_equal(kept, valid - 2 * (valid // 3))
        assert all(kept[valid > 0] >= 1)


def test_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="scope must be 'response', 'pooled' or 'all', got 'group'"):
        select_tokens(torch.zeros(1, 1), torch.ones(1, 1), scope="group")


def test_the_objective_is_a_mean_of_means_over_responses_with_tokens():
    # Row 1 keeps 1 and 3: 2. Row 2 keeps 5. Row 3 keeps nothing and is left out: (2 + 5) / 2.
    entropies = torch.tensor([[1.0, 9.0, 3.0], [5.0, 9.0, 9.0], [9.0, math.nan, 9.0]], dtype=F64, requires_grad=True)
    keep_mask = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 0]]).bool()
    objective = attacked_entropy(entropies, keep_mask)
    assert objective.item() == 3.5
    objective.backward()
    expected = torch.tensor([[0.25, 0, 0.25], [0.5, 0, 0], [0, 0, 0]], dtype=F64)
    torch.testing.assert_close(entropies.grad, expected, rtol=0, atol=0)
    assert attacked_entropy(torch.ones(2, 2), torch.zeros(2, 2).bool()).item() == 0


def test_a_step_raises_where_the_gradient_is_positive_and_stays_in_the_image():
    # .5 + .1, .5 - .1, sign(0) = 0, .95 + .1 clipped to 1, .05 - .1 clipped to 0, and no direction in NaN.
    pixels = torch.tensor([0.5, 0.5, 0.5, 0.95, 0.05, 0.5], dtype=F64)
    gradient = torch.tensor([1e-9, -3.0, 0.0, 2.0, -1.0, math.nan], dtype=F64)
    expected = torch.tensor([0.6, 0.4, 0.5, 1.0, 0.0, 0.5], dtype=F64)
    torch.testing.assert_close(perturb(pixels, gradient, alpha=0.1), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(perturb(pixels, gradient, alpha=0.0), pixels, rtol=0, atol=0)


def test_in_normalised_pixels_step_and_limits_are_per_channel_and_give_the_same_image():
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.5, 0.25, 0.4], dtype=F64).view(3, 1, 1)
    std = torch.tensor([0.5, 0.25, 0.1], dtype=F64).view(3, 1, 1)
    image = torch.rand(3, 4, 4, generator=generator, dtype=F64)
    gradient = torch.randn(3, 4, 4, generator=generator, dtype=F64)
    normalised = perturb(
        (image - mean) / std, gradient * std, alpha=0.2 / std, low=(0 - mean) / std, high=(1 - mean) / std
    )
    torch.testing.assert_close(normalised * std + mean, perturb(image, gradient, alpha=0.2), rtol=0, atol=1e-15)


def test_the_step_is_detached():
    pixels = torch.rand(3, dtype=F64, requires_grad=True)
    assert not perturb(pixels, torch.ones(3, dtype=F64, requires_grad=True), alpha=0.1).requires_grad


def test_several_steps_stay_in_the_ball_of_radius_alpha_times_steps():
    clean = pixels = torch.rand(100, dtype=F64)
    for seed in range(5):
        pixels = perturb(pixels, torch.randn(100, generator=torch.Generator().manual_seed(seed)), alpha=0.01)
    assert (pixels - clean).abs().max() <= 5 * 0.01 + 1e-15


def test_a_step_of_ascent_raises_a_written_out_entropy():
    # Entropy of softmax(W x), its gradient by hand: dH/dz = -p (log p + H), dH/dx = W^T dH/dz.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 30, generator=generator, dtype=F64)
    image = torch.rand(30, generator=generator, dtype=F64)

    def entropy(x):
        return torch.distributions.Categorical(logits=weight @ x).entropy()

    p = (weight @ image).softmax(dim=0)
    gradient = weight.T @ (-p * (p.log() + entropy(image)))
    assert entropy(perturb(image, gradient, alpha=2 / 255)) > entropy(image)
    assert entropy(perturb(image, -gradient, alpha=2 / 255)) < entropy(image)


def test_the_defaults_are_the_papers_step_and_halves(tmp_path):
    options = config(tmp_path)
    assert (options.clean_generations, options.adversarial_generations) == (6, 6)
    assert (options.alpha, options.attack_steps, options.token_scope) == (2 / 255, 1, "response")
    assert options.save_adversarial_images == 0


def test_the_part_that_is_not_given_follows_from_the_other(tmp_path):
    def parts(**options):
        made = config(tmp_path, **options)
        return made.clean_generations, made.adversarial_generations

    assert parts(clean_generations=2) == (2, 10)
    assert parts(adversarial_generations=2) == (10, 2)
    assert parts(num_generations=3) == (2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean_generations": 6, "adversarial_generations": 5}, r"add up to num_generations \(12\), got 6 and 5"),
        ({"clean_generations": 12}, "must be >= 1 and add up to num_generations .* got 12 and 0"),
        ({"adversarial_generations": 13}, "got -1 and 13"),
        ({"alpha": 2}, r"alpha must be a float in \[0, 1\], 1 = full intensity .*, got 2\."),
        ({"alpha": 2.0}, "got 2.0"),
        ({"alpha": -0.01}, "got -0.01"),
        ({"alpha": math.nan}, "got nan"),
        ({"alpha": True}, "got True"),
        ({"attack_steps": 0}, "attack_steps must be >= 1, got 0"),
        ({"token_scope": "group"}, "token_scope must be 'response', 'pooled' or 'all', got 'group'"),
        ({"save_adversarial_images": -1}, "save_adversarial_images must be >= 0, got -1"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_a_group_that_straddles_processes_is_refused(tmp_path, monkeypatch):
    # 2 processes of 6 rows hold one group of 12 together, none alone.
    monkeypatch.setattr(SaeiConfig, "world_size", 2)
    with pytest.raises(ValueError, match=r"whole groups: .* \(6\) must be a multiple of num_generations \(12\)"):
        config(tmp_path, per_device_train_batch_size=6)


def test_rows_that_are_not_whole_groups_are_refused():
    check_groups([[1], [1], [2], [2]], 2)
    check_groups([], 2)
    with pytest.raises(ValueError, match="Rows 2 to 3 are not 2 rows of the same prompt"):
        check_groups([[1], [1], [2], [1]], 2)
    with pytest.raises(ValueError, match="Rows 2 to 2 are not 2 rows"):
        check_groups([[1], [1], [2]], 2)


@pytest.mark.parametrize("option", ["tools", "environment_factory", "rollout_func"])
def test_sampling_that_bypasses_the_groups_is_refused(tmp_path, option):
    with pytest.raises(ValueError, match=f"samples whole groups itself and does not support {option}"):
        SaeiTrainer(model="unused", args=config(tmp_path), **{option: [print]})
