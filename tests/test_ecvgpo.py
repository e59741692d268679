"""ECVGPO: the formulas by hand, their laws, and what the options refuse."""

import math

import numpy as np
import pytest
import torch
from trl import TrlParser

from vlm_entropy.trainers.ecvgpo import (
    EcvgpoConfig,
    EcvgpoTrainer,
    entropy_covariance,
    group_reward_std,
    numeric_token_ids,
    reshape_advantages,
    reshape_metrics,
    self_information,
    total_rewards,
)

INF, NAN = math.inf, math.nan


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, atol=1e-15):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def batch(rows=6, tokens=9, seed=0):
    """Advantages of both signs, log-probs, lengths of 0 to T as a mask, and reward stds."""
    generator = np.random.default_rng(seed)
    mask = np.arange(tokens) < generator.integers(0, tokens + 1, size=rows)[:, None]
    arrays = generator.normal(size=rows), -3 * generator.random((rows, tokens)), mask, generator.random(rows)
    return [torch.from_numpy(array) for array in arrays]


def test_the_total_reward_is_the_weighted_sum_of_the_functions_that_judged():
    # 2 · 1 + 0.5 · 4 = 4;  2 · 3 = 6;  0.5 · 2 = 1;  nobody judged.
    rewards = double([1, 4], [3, NAN], [NAN, 2], [NAN, NAN])
    close(total_rewards(rewards, double(2, 0.5))[:3], double(4, 6, 1))
    assert total_rewards(rewards, double(2, 0.5))[3].isnan()


@pytest.mark.parametrize(
    # Deviations of 1, 1, 1, 5 from their mean 2 are -1, -1, -1, 3: squares sum to 12. Over 3, over 4, undivided.
    ("mode", "expected"),
    [("sample", 2.0), ("population", math.sqrt(3)), ("sum", math.sqrt(12))],
)
def test_the_three_readings_of_the_reward_std_by_hand(mode, expected):
    # The second group's rewards are equal.
    actual = group_reward_std(double(1, 1, 1, 5, 7, 7, 7, 7), 4, mode=mode)
    close(actual, double(*[expected] * 4, *[0.0] * 4))


def test_the_sample_std_is_numpys_and_is_the_default():
    rewards = np.random.default_rng(0).random(24)
    expected = np.repeat([np.std(group, ddof=1) for group in rewards.reshape(3, 8)], 8)
    close(group_reward_std(torch.from_numpy(rewards), 8), torch.from_numpy(expected))


@pytest.mark.parametrize("mode", ["sample", "population", "sum"])
def test_rows_that_nobody_judged_do_not_count_and_a_group_of_one_has_no_spread(mode):
    judged = group_reward_std(double(1, 3, 5), 3, mode=mode)[0].item()
    actual = group_reward_std(double(1, 3, NAN, 5, NAN, 2, NAN, NAN, NAN, NAN, NAN, NAN), 4, mode=mode)
    close(actual, double(*[judged] * 4, *[0.0] * 8))
    close(group_reward_std(double(3, 8), 1, mode=mode), double(0, 0))


def test_the_reward_std_does_not_see_the_order_inside_a_group_nor_a_shift():
    rewards = double(0.25, 1, 2, 0.5)
    close(group_reward_std(rewards, 4), group_reward_std(rewards[[2, 0, 3, 1]] + 8, 4))


def test_the_reward_std_refuses_other_modes_and_broken_groups():
    with pytest.raises(ValueError, match="mode must be one of sample, population, sum, got 'batch'"):
        group_reward_std(torch.zeros(4), 2, mode="batch")
    with pytest.raises(ValueError, match="5 rewards are not whole groups of num_generations 2"):
        group_reward_std(torch.zeros(5), 2)


def test_self_information_of_a_token_and_of_a_response_by_hand():
    logps, mask = double([-1, -3, -8], [-2, -8, -8]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    close(self_information(logps), double([1, 3, 8], [2, 8, 8]))
    # (1 + 3) / 2 = 2 and 2 / 1 = 2; an empty row 0.
    close(self_information(logps, mask, level="sequence"), double([2, 2, 2], [2, 2, 2]))
    close(self_information(logps, torch.zeros(2, 3), level="sequence"), torch.zeros(2, 3, dtype=torch.float64))


def test_advantages_by_hand():
    advantages, logps = double(2, -2, 0), double([-1, -4, -100], [-1, -4, -100], [-1, -4, -100])
    # r0 = 10: 2 - 0.1 = 1.9;  2 - 0.4 = 1.6;  2 - 10 < 0, so the floor 2 / 4 = 0.5. Others as they were.
    actual = reshape_advantages(advantages, logps, torch.ones(3), r0=10.0, l0=4.0)
    close(actual, double([1.9, 1.6, 0.5], [-2, -2, -2], [0, 0, 0]))
    # r0 = -10: 2.1, 2.4, 12; with cap 3 the last is 6.
    close(reshape_advantages(advantages, logps, torch.ones(3), r0=-10.0)[0], double(2.1, 2.4, 12))
    close(reshape_advantages(advantages, logps, torch.ones(3), r0=-10.0, cap=3.0)[0], double(2.1, 2.4, 6))


def test_the_sequence_level_takes_the_mean_over_real_tokens():
    # S = (1 + 3) / 2 = 2, so 1 - 2 / 8 = 0.75 on both real tokens; the padding keeps 1.
    actual = reshape_advantages(
        double(1), double([-1, -3, -50]), torch.ones(1), r0=8.0, level="sequence", mask=torch.tensor([[1, 1, 0]])
    )
    close(actual, double([0.75, 0.75, 1]))


def test_only_groups_below_the_threshold_are_reshaped():
    std = double(0.05, 0.1, 0.2, NAN)
    actual = reshape_advantages(double(1, 1, 1, 1), torch.full((4, 1), -2.0), std, r0=4.0, delta=0.1)
    close(actual, double([0.5], [1], [1], [1]))  # 1 - 2 / 4; a spread of exactly δ is not below it


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("r0", [2.0, -2.0])
def test_the_formula_agrees_with_a_loop_in_numpy(level, r0):
    advantages, logps, mask, std = batch()
    actual = reshape_advantages(advantages, logps, std, r0=r0, l0=3.0, delta=0.7, level=level, mask=mask).numpy()
    for i, t in np.ndindex(*logps.shape):
        a, lengths = advantages[i].item(), int(mask[i].sum())
        if level == "token":
            information = -logps[i, t].item()
        else:
            information = sum(-logps[i, k].item() for k in range(lengths)) / max(lengths, 1)
        reshaped = a > 0 and std[i] < 0.7 and t < lengths
        expected = max(a / 3, a - information / r0) if reshaped else a
        assert actual[i, t] == pytest.approx(expected, rel=0, abs=1e-14)
    assert ((actual != advantages[:, None].numpy()) & mask.numpy()).sum() > 3


@pytest.mark.parametrize("r0", [1e308, -1e308])
def test_an_infinite_r0_is_grpo_exactly(r0):
    advantages, logps, mask, std = batch()
    actual = reshape_advantages(advantages, logps, std, r0=r0, mask=mask)
    close(actual, advantages[:, None].expand_as(logps), atol=0)


def test_the_change_is_the_self_information_over_r0():
    # Where the floor does not act: halving r0 doubles the change, its sign is against r0.
    logps, std = double([-0.5, -0.25, -1]), torch.zeros(1)
    changes = [reshape_advantages(double(9), logps, std, r0=r0) - 9 for r0 in (8.0, 4.0, -4.0)]
    close(changes[0], double([-0.0625, -0.03125, -0.125]))
    close(changes[1], 2 * changes[0])
    close(changes[2], -changes[1])


@pytest.mark.parametrize("r0", [1e-3, 0.5, 30.0, -0.5, -30.0])
def test_positive_samples_stay_positive_and_between_floor_and_cap(r0):
    advantages, logps, mask, std = batch(rows=40)
    actual = reshape_advantages(advantages, logps, std, r0=r0, l0=25.0, cap=3.0, mask=mask)
    positive = (advantages > 0)[:, None] & mask
    ratios = (actual / advantages[:, None])[positive]
    low, high = (1 / 25, 1) if r0 > 0 else (1, 3)
    assert ratios.min() >= low * (1 - 1e-15)
    assert ratios.max() <= high * (1 + 1e-15)
    close(actual[~positive], advantages[:, None].expand_as(actual)[~positive], atol=0)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rows_do_not_see_each_other(level):
    advantages, logps, mask, std = batch()
    order = torch.tensor([3, 0, 5, 2, 4, 1])
    options = {"r0": 2.0, "delta": 0.7, "level": level}
    whole = reshape_advantages(advantages, logps, std, mask=mask, **options)
    shuffled = reshape_advantages(advantages[order], logps[order], std[order], mask=mask[order], **options)
    close(shuffled, whole[order], atol=0)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_padding_changes_nothing_even_as_nan(level):
    advantages, logps, _, std = batch()
    padded = torch.cat([logps, torch.full((6, 2), NAN, dtype=torch.float64)], dim=1)
    mask = torch.cat([torch.ones(6, 9), torch.zeros(6, 2)], dim=1)
    actual = reshape_advantages(advantages, padded, std, r0=2.0, level=level, mask=mask)
    alone = reshape_advantages(advantages, logps, std, r0=2.0, level=level, mask=torch.ones(6, 9))
    close(actual, torch.cat([alone, advantages[:, None].expand(6, 2)], dim=1))


def test_advantages_per_token_are_reshaped_token_by_token():
    # 1 - 2 / 4 = 0.5;  -1 stays;  3 - 2 / 4 = 2.5
    actual = reshape_advantages(double([1, -1, 3]), double([-2, -2, -2]), torch.zeros(1), r0=4.0)
    close(actual, double([0.5, -1, 2.5]))
    advantages, logps, mask, std = batch()
    rows = reshape_advantages(advantages, logps, std, r0=2.0, mask=mask)
    close(reshape_advantages(advantages[:, None].expand_as(logps), logps, std, r0=2.0, mask=mask), rows, atol=0)


def test_impossible_and_certain_tokens():
    # log 0 = -inf: the floor 1 / 25 with r0 > 0, the cap 3 with r0 < 0. log 1 = 0: the advantage as it was.
    logps = double([-INF, 0])
    close(reshape_advantages(double(1), logps, torch.zeros(1), r0=10.0), double([0.04, 1]))
    close(reshape_advantages(double(1), logps, torch.zeros(1), r0=-10.0, cap=3.0), double([3, 1]))


def test_a_group_without_spread_has_advantages_of_zero_and_keeps_them():
    std = group_reward_std(double(2, 2), 2)
    close(reshape_advantages(double(0, 0), double([-1], [-2]), std, r0=-2.0), double([0], [0]))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_gradient_of_the_loss_is_that_of_grpo_with_constant_advantages(level):
    advantages, logps, mask, std = batch()
    logps.requires_grad_()
    options = {"r0": 2.0, "l0": 3.0, "level": level, "mask": mask}
    ratio = (logps - logps.detach()).exp()
    shaped = reshape_advantages(advantages, logps, std, **options)
    (actual,) = torch.autograd.grad(-(ratio * shaped * mask).sum(), logps)
    # d/dlogp of -ratio · A' at ratio 1 is -A'; a derivative of A' would add ratio · (-1/r0) for positive samples.
    assert not shaped.requires_grad
    close(actual, -torch.where(mask, shaped, 0.0), atol=1e-14)


def test_shapes_levels_missing_masks_and_zero_are_refused():
    logps, ones = torch.zeros(2, 3), torch.ones(2)
    with pytest.raises(ValueError, match=r"r0 must not be 0, got 0.0"):
        reshape_advantages(ones, logps, ones, r0=0.0)
    with pytest.raises(ValueError, match=r"need advantages of \[2\] .* got \[2, 1\] and \[2\]"):
        reshape_advantages(ones[:, None], logps, ones, r0=1.0)
    with pytest.raises(ValueError, match=r"reward_std of \[2\], got \[2\] and \[1\]"):
        reshape_advantages(ones, logps, ones[:1], r0=1.0)
    with pytest.raises(ValueError, match="level must be 'token' or 'sequence', got 'group'"):
        reshape_advantages(ones, logps, ones, r0=1.0, level="group")
    with pytest.raises(ValueError, match="needs their mask, got None"):
        reshape_advantages(ones, logps, ones, r0=1.0, level="sequence")


def test_the_covariance_by_hand():
    # log-probs -1, -3 (mean -2), advantages 4, 0 (mean 2): (1 · 2 + (-1) · (-2)) / 2 = 2.
    logps, advantages = double([-1, -9], [-3, NAN]), double([4, 7], [0, NAN])
    mask = torch.tensor([[1, 0], [1, 0]])
    assert entropy_covariance(logps, advantages, mask).item() == 2.0
    assert entropy_covariance(logps, advantages, torch.zeros(2, 2)).item() == 0.0


def test_the_covariance_is_numpys():
    advantages, logps, mask, _ = batch()
    advantages = advantages[:, None].expand_as(logps)
    expected = np.cov(logps[mask].numpy(), advantages[mask].numpy(), ddof=0)[0, 1]
    assert entropy_covariance(logps, advantages, mask).item() == pytest.approx(expected, rel=0, abs=1e-14)


@pytest.mark.parametrize("r0", [10.0, -10.0])
def test_reshaping_moves_the_covariance_by_the_variance_of_the_log_probs_over_r0(r0):
    # All positive, no floor: Cov(log p, A + log p / r0) - Cov(log p, A) = Var(log p) / r0.
    _, logps, _, std = batch()
    mask, advantages = torch.ones_like(logps), double(5, 6, 7, 8, 9, 10)
    after = reshape_advantages(advantages, logps, std, r0=r0)
    before = advantages[:, None].expand_as(logps)
    moved = entropy_covariance(logps, after, mask) - entropy_covariance(logps, before, mask)
    assert moved.item() == pytest.approx(logps.var(unbiased=False).item() / r0, rel=0, abs=1e-13)


def test_the_metrics_by_hand():
    logps = double([0.5, 0.25, 0.125], [0.5, 0.5, 0.5]).log()
    before, mask = double([1, 1, 1], [-1, -1, -1]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    is_numeric = torch.tensor([[False, True, True], [True, True, True]])
    # r0 = ln 2: 1 - 1 = 0 and 1 - 2 < 0, so both real tokens of row 1 stand at the floor 1 / 4.
    after = reshape_advantages(before, logps, torch.zeros(2), r0=math.log(2), l0=4.0, mask=mask)
    metrics = reshape_metrics(before, after, logps, mask, is_numeric, l0=4.0)
    pairs = {name: metrics[name].tolist() for name in ("reshaped", "at_floor", "probability", "numeric_probability")}
    assert pairs == {
        "reshaped": [2, 5],
        "at_floor": [2, 5],
        "probability": [0.75, 2],  # 0.5 + 0.25
        "numeric_probability": [0.25, 1],  # only the second token of row 1
    }
    assert metrics["self_information"].tolist() == pytest.approx([3 * math.log(2), 2], rel=1e-6)  # ln 2 + 2 ln 2
    # Mean log-prob over 5 tokens: -(4 + 2) ln 2 / 5. Only the second token differs from the other four, by -ln 2.
    # Before: (1 · 2 tokens - 1 · 3 tokens) / 5 = -0.2; Cov = (Σ log p · A) / 5 - mean · mean, in units of ln 2:
    # (-1 - 2 + 3) / 5 - (-6 / 5) · (-0.2) = -0.24. After, A' = 1/4: (-0.75 + 3) / 5 - (-1.2) · (-2.5 / 5) = -0.15.
    assert metrics["covariance_before"].tolist() == pytest.approx([5 * -0.24 * math.log(2), 5], rel=1e-6)
    assert metrics["covariance_after"].tolist() == pytest.approx([5 * -0.15 * math.log(2), 5], rel=1e-6)
    assert "at_cap" not in metrics


def test_the_metrics_count_the_tokens_at_the_cap():
    before, logps = double([1, 1]), double([-1, -50])
    after = reshape_advantages(before, logps, torch.zeros(1), r0=-10.0, cap=3.0)  # 1.1 and 3
    metrics = reshape_metrics(before, after, logps, torch.ones(1, 2), torch.ones(1, 2).bool(), l0=25.0, cap=3.0)
    assert metrics["at_cap"].tolist() == [1, 2]
    assert metrics["at_floor"].tolist() == [0, 2]


def test_the_metrics_of_nothing_have_a_count_of_zero():
    nothing = torch.zeros(2, 3)
    metrics = reshape_metrics(nothing, nothing, nothing, nothing, nothing.bool(), l0=25.0, cap=3.0)
    assert {tuple(pair.tolist()) for pair in metrics.values()} == {(0.0, 0.0)}


def test_numeric_tokens_are_those_whose_text_holds_a_digit():
    class Tokenizer:
        texts = ("a", "7", " 12", "<|reserved_1|>", "x²", "[", "½")

        def __len__(self):
            return len(self.texts)

        def batch_decode(self, ids, skip_special_tokens):
            assert skip_special_tokens
            return ["" if self.texts[index].startswith("<|") else self.texts[index] for (index,) in ids]

    assert numeric_token_ids(Tokenizer()).tolist() == [1, 2, 4]


def config(tmp_path, **options) -> EcvgpoConfig:
    defaults = {"per_device_train_batch_size": 4, "num_generations": 4, "bf16": False, "use_cpu": True}
    return EcvgpoConfig(output_dir=str(tmp_path), **{**defaults, **options})


def test_the_defaults_are_the_papers(tmp_path):
    assert config(tmp_path, r0=10.0).reshaping() == {
        "r0": 10.0,
        "l0": 25.0,
        "delta": INF,
        "level": "token",
        "cap": INF,
    }
    assert config(tmp_path, r0=10.0).std_mode == "sample"


def test_every_option_reaches_the_formula(tmp_path):
    options = config(tmp_path, r0=-2.0, l0=5.0, std_threshold=0.3, level="sequence", advantage_cap=4.0)
    assert options.reshaping() == {"r0": -2.0, "l0": 5.0, "delta": 0.3, "level": "sequence", "cap": 4.0}


@pytest.mark.parametrize(
    ("preset", "r0", "threshold"),
    [("qwen2_5_vl_3b", 10.0, 0.1), ("internvl3_2b", 25.0, INF), ("internvl3_8b", -50.0, INF)],
)
def test_a_preset_fills_what_was_not_given(tmp_path, preset, r0, threshold):
    options = config(tmp_path, preset=preset)
    assert (options.r0, options.l0, options.std_threshold) == (r0, 25.0, threshold)
    options = config(tmp_path, preset=preset, r0=75.0)
    assert (options.r0, options.std_threshold) == (75.0, threshold)
    options = config(tmp_path, preset=preset, std_threshold=0.3)
    assert (options.r0, options.std_threshold) == (r0, 0.3)


def test_the_threshold_is_not_trls_two_sided_clipping_which_stays_usable(tmp_path):
    options = config(tmp_path, preset="qwen2_5_vl_3b", delta=4.0)
    assert (options.delta, options.std_threshold) == (4.0, 0.1)
    assert config(tmp_path, preset="qwen2_5_vl_3b").delta is None


def test_the_options_can_be_given_on_the_command_line(tmp_path):
    flags = f"--output_dir {tmp_path} --bf16 false --use_cpu true --preset internvl3_8b --std_threshold inf --l0 5"
    (options,) = TrlParser([EcvgpoConfig]).parse_args_and_config(flags.split())
    assert options.reshaping() == {"r0": -50.0, "l0": 5.0, "delta": INF, "level": "token", "cap": INF}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "r0 is missing: give a number, or one of the presets qwen2_5_vl_3b, internvl3_2b, internvl3_8b"),
        ({"r0": 0.0}, "r0 must be a finite number other than 0, got 0.0"),
        ({"r0": NAN}, "r0 must be a finite number other than 0, got nan"),
        ({"r0": INF}, "got inf"),
        ({"r0": -INF}, "got -inf"),
        ({"r0": 0.0, "preset": "internvl3_2b"}, "got 0.0"),
        ({"r0": 10.0, "l0": 1.0}, "l0 must be a finite number > 1, got 1.0"),
        ({"r0": 10.0, "l0": NAN}, "got nan"),
        ({"r0": 10.0, "std_threshold": 0.0}, r"std_threshold must be > 0 \(inf is allowed\), got 0.0"),
        ({"r0": 10.0, "std_threshold": -0.1}, "got -0.1"),
        ({"r0": 10.0, "std_threshold": NAN}, "got nan"),
        ({"r0": 10.0, "std_mode": "batch"}, "std_mode must be one of sample, population, sum, got 'batch'"),
        ({"r0": 10.0, "level": "group"}, "level must be one of token, sequence, got 'group'"),
        ({"preset": "qwen"}, "preset must be one of qwen2_5_vl_3b, internvl3_2b, internvl3_8b, got 'qwen'"),
        ({"r0": -10.0, "advantage_cap": 1.0}, "advantage_cap must be a finite number > 1 and needs r0 < 0, got 1.0"),
        ({"r0": -10.0, "advantage_cap": INF}, "got inf and"),
        ({"r0": 10.0, "advantage_cap": 3.0}, "needs r0 < 0, got 3.0 and r0 10.0"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_options_of_another_trainer_are_refused():
    with pytest.raises(TypeError, match="takes args=EcvgpoConfig"):
        EcvgpoTrainer(model="unused", args=None)
