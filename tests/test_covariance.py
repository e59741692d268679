"""Covariance of tokens, its selections and KL-Cov's penalty: hand-worked cases, laws, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support import FAST

from vlm_entropy.trainers.clip_cov import ClipCovConfig, draw_tokens, high_covariance
from vlm_entropy.trainers.covariance import covariance, token_count, token_sums, update_covariances
from vlm_entropy.trainers.kl_cov import KlCovConfig, kl_penalty, top_covariance

TWICE = {**FAST, "num_iterations": 2}


def random_batch(seed=0, rows=5, length=7):
    generator = torch.Generator().manual_seed(seed)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    logps = -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return advantages, logps, torch.arange(length) < lengths


def test_the_covariance_worked_by_hand():
    advantages = torch.tensor([3.0, -3.0])
    logps = torch.tensor([[-1.0, -3.0, 9.0], [-5.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    # mean A = (3 + 3 - 3) / 3 = 1, mean log π = (-1 - 3 - 5) / 3 = -3.
    # (3 - 1) · (-1 + 3) = 4, (3 - 1) · (-3 + 3) = 0, (-3 - 1) · (-5 + 3) = 8.
    assert covariance(advantages, logps, mask).tolist() == [[4.0, 0.0, 0.0], [8.0, 0.0, 0.0]]
    assert token_sums(advantages, logps, mask).tolist() == [3.0, -9.0, 3.0]


def test_the_covariance_is_that_of_a_loop_over_tokens():
    advantages, logps, mask = random_batch()
    tokens = [(i, t) for i in range(5) for t in range(7) if mask[i, t]]
    a = np.array([advantages[i].item() for i, _ in tokens])
    log_pi = np.array([logps[token].item() for token in tokens])
    result = covariance(advantages, logps, mask)
    for number, token in enumerate(tokens):
        expected = (log_pi[number] - log_pi.sum() / len(tokens)) * (a[number] - a.sum() / len(tokens))
        assert result[token].item() == pytest.approx(expected, rel=0, abs=1e-12)
    # NumPy 2: the mean of the cross-products is the covariance without Bessel's correction.
    assert result[mask].mean().item() == pytest.approx(np.cov(a, log_pi, ddof=0)[0, 1], rel=0, abs=1e-12)
    assert (result[~mask] == 0).all()


def test_the_covariance_moves_with_its_row_and_does_not_see_padding():
    advantages, logps, mask = random_batch()
    whole = covariance(advantages, logps, mask)
    order = torch.tensor([3, 0, 4, 1, 2])
    # Sums in another order: float64.
    torch.testing.assert_close(
        covariance(advantages[order], logps[order], mask[order]), whole[order], rtol=0, atol=1e-14
    )
    padded = [torch.cat([tensor, tensor.new_full((5, 2), value)], 1) for tensor, value in ((logps, -9.0), (mask, 0))]
    torch.testing.assert_close(covariance(advantages, *padded)[:, :7], whole, rtol=0, atol=1e-14)


def test_parts_of_a_batch_with_its_sums_have_the_covariances_of_the_whole():
    advantages, logps, mask = random_batch()
    parts = [(advantages[rows], logps[rows], mask[rows]) for rows in (slice(0, 2), slice(2, 5))]
    sums = sum(token_sums(*part) for part in parts)
    split = torch.cat([covariance(*part, sums=sums) for part in parts])
    torch.testing.assert_close(split, covariance(advantages, logps, mask), rtol=0, atol=1e-14)
    assert not torch.allclose(covariance(*parts[0]), split[:2])


def test_the_covariance_has_no_gradient_and_an_empty_batch_has_none_to_show():
    advantages, logps, mask = random_batch()
    assert not covariance(advantages.requires_grad_(), logps.requires_grad_(), mask).requires_grad
    assert covariance(advantages, logps, torch.zeros_like(mask)).eq(0).all()
    junk = logps.detach().masked_fill(~mask, -math.inf)
    assert torch.equal(covariance(advantages, junk, mask), covariance(advantages, logps, mask))


def test_advantages_that_differ_inside_a_response_are_refused():
    _, logps, mask = random_batch()
    with pytest.raises(ValueError, match=r"one number for each of the 5 rows of logps, got shape \[5, 7\]"):
        covariance(torch.zeros(5, 7), logps, mask)


@pytest.mark.parametrize(("total", "per_10000", "count"), [(10_000, 20, 20), (9_999, 20, 19), (400, 20, 1), (7, 2, 1)])
def test_tokens_out_of_10000_are_rounded_down_to_at_least_one(total, per_10000, count):
    assert token_count(total, per_10000) == count


def test_kl_cov_selects_the_tokens_of_highest_covariance():
    values = torch.tensor([0.5, -9.0, 4.0, 0.5, 2.0, 0.0])
    # 6 · 0.5 = 3 tokens; of the two 0.5 the first.
    assert top_covariance(values, per_10000=5000).tolist() == [True, False, True, False, True, False]
    assert top_covariance(values, per_10000=1).tolist() == [False, False, True, False, False, False]
    assert top_covariance(values, per_10000=10_000).all()
    assert top_covariance(torch.zeros(0), per_10000=20).tolist() == []


def test_candidates_of_clip_cov_lie_strictly_between_its_bounds():
    values = torch.tensor([0.9, 1.0, 1.1, 4.9, 5.0, 9.0])
    assert high_covariance(values, low=1.0, high=5.0).tolist() == [False, False, True, True, False, False]


def test_clip_cov_draws_its_number_of_candidates_and_no_other_token():
    values = torch.arange(20.0)
    is_candidate = (values > 4) & (values < 15)  # ten
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        drawn = draw_tokens(values, is_candidate, per_10000=1500, generator=generator)  # 20 · 0.15 = 3
        assert drawn.sum() == 3
        assert not (drawn & ~is_candidate).any()
    everything = draw_tokens(values, is_candidate, per_10000=10_000)
    assert torch.equal(everything, is_candidate)
    assert not draw_tokens(values, torch.zeros(20, dtype=torch.bool), per_10000=10_000).any()
    assert draw_tokens(torch.zeros(0), torch.zeros(0, dtype=torch.bool), per_10000=1).tolist() == []


def test_clip_cov_draws_each_candidate_equally_often():
    values, generator = torch.arange(10.0), torch.Generator().manual_seed(0)
    is_candidate = values % 2 == 0
    counts = sum(draw_tokens(values, is_candidate, per_10000=2000, generator=generator).long() for _ in range(5000))
    # Two of five, 5000 times: 2000 each, standard deviation sqrt(5000 · 0.4 · 0.6) = 35.
    assert counts[~is_candidate].sum() == 0
    assert ((counts[is_candidate] - 2000).abs() < 4 * 35).all()


def test_clip_cov_draws_the_same_tokens_however_they_are_ordered():
    values = torch.randn(50, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    draws = []
    for tokens in (values, values[order]):
        generator = torch.Generator().manual_seed(3)
        draws.append(draw_tokens(tokens, tokens > 0, per_10000=2000, generator=generator))
    assert torch.equal(draws[0][order], draws[1])


def test_the_penalty_is_the_distance_from_the_sampling_policy_on_selected_tokens():
    logps = torch.tensor([[-1.0, -2.0, -3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.5, -1.0, -1.0, -1.0]], dtype=torch.float64)
    is_selected = torch.tensor([[True, True, False, True]])
    penalty = kl_penalty(logps, old, is_selected)
    assert penalty.tolist() == [[0.5, 1.0, 0.0, 0.0]]
    penalty.sum().backward()
    # Up where the policy has moved down, and nothing where it has not moved.
    assert logps.grad.tolist() == [[1.0, -1.0, 0.0, 0.0]]


def test_the_penalty_ignores_what_stands_in_unselected_tokens():
    logps = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    penalty = kl_penalty(logps, torch.tensor([[-2.0, -math.inf]]), torch.tensor([[True, False]]))
    penalty.sum().backward()
    assert penalty.tolist() == [[1.0, 0.0]]
    assert logps.grad.tolist() == [[1.0, 0.0]]


def test_selections_of_an_update_come_back_to_the_rows_they_are_from():
    advantages, logps, mask = random_batch(rows=6)
    batches = [
        {"advantages": advantages[rows], "completion_mask": mask[rows].long()} for rows in (slice(0, 4), slice(4, 6))
    ]
    update = update_covariances(batches, [logps[:4], logps[4:]], accelerator=Accelerator(cpu=True))
    whole = covariance(advantages, logps, mask)
    torch.testing.assert_close(update.values, whole[mask], rtol=0, atol=1e-14)
    selected = torch.cat(update.to_microbatches(update.values > 0.5))
    assert torch.equal(selected, whole > 0.5)
    assert selected.sum() > 1


def test_tokens_of_a_tool_are_no_tokens_of_the_update():
    advantages, logps, mask = random_batch()
    tool = torch.ones_like(mask).index_fill(1, torch.tensor([0]), False)
    batch = {"advantages": advantages, "completion_mask": mask.long(), "tool_mask": tool.long()}
    update = update_covariances([batch], [logps], accelerator=Accelerator(cpu=True))
    torch.testing.assert_close(
        update.values, covariance(advantages, logps, mask & tool)[mask & tool], rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_cov_coef": -1.0}, "kl_cov_coef must be a finite number >= 0, got -1.0"),
        ({"kl_cov_coef": math.inf}, "kl_cov_coef must be a finite number >= 0, got inf"),
        ({"kl_cov_per_10000": 0.2}, r"got 0.2: multiply a fraction .* by 10 000 and a percentage .* by 100"),
        ({"kl_cov_per_10000": 10_001}, r"must lie in \[1, 10000\], got 10001"),
        ({"kl_cov_per_10000": math.nan}, "got nan"),
        ({"epsilon": 0.2}, r"clips no ratio.*\(got 0.2, None and None\)"),
        ({"epsilon_high": 0.28}, r"clips no ratio.*\(got inf, 0.28 and None\)"),
        ({"delta": 4.0}, r"clips no ratio.*\(got inf, None and 4.0\)"),
        ({"loss_type": "cispo"}, "loss_type must be one of grpo, bnpo, dr_grpo, dapo, luspo .* got 'cispo'"),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, "'token', got 'grpo' and 'sequence'"),
        ({"num_iterations": 1}, r"num_iterations > 1 \(got 1\) or steps_per_generation above .* \(got 1 and 1\)"),
        (
            {"num_iterations": 1, "gradient_accumulation_steps": 2},
            r"penalty is 0 .* steps_per_generation above gradient_accumulation_steps \(got 2 and 2\)",
        ),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
            r"kl_cov needs every optimizer step to lie inside one rollout: steps_per_generation \(1\)",
        ),
        ({"top_entropy_quantile": 0.2}, r"selects among all tokens.*\(got 0.2 and None\)"),
        ({"off_policy_mask_threshold": 0.5}, r"selects among all tokens.*\(got 1.0 and 0.5\)"),
    ],
)
def test_kl_cov_refuses_what_it_cannot_do(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        KlCovConfig(output_dir=str(tmp_path), **{**TWICE, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_cov_low": 5.0}, "clip_cov_low must lie below clip_cov_high, got 5.0 and 5.0"),
        ({"clip_cov_high": math.nan}, "got 1.0 and nan"),
        ({"clip_cov_per_10000": 2e-4}, r"clip_cov_per_10000 counts tokens in 10 000 .* got 0.0002"),
        ({"loss_type": "sapo"}, "got 'sapo' and 'token'"),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, "'token', got 'grpo' and 'sequence'"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
            "clip_cov needs every optimizer step to lie inside one rollout",
        ),
    ],
)
def test_clip_cov_refuses_what_it_cannot_do(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ClipCovConfig(output_dir=str(tmp_path), **{**FAST, **options})


def test_the_defaults_are_those_of_the_paper(tmp_path):
    kl = KlCovConfig(output_dir=str(tmp_path), **TWICE)
    assert (kl.epsilon, kl.kl_cov_coef, kl.kl_cov_per_10000 / 10_000) == (math.inf, 1.0, 2e-3)
    clip = ClipCovConfig(output_dir=str(tmp_path), **FAST)
    assert (clip.epsilon, clip.clip_cov_low, clip.clip_cov_high) == (1.0, 1.0, 5.0)
    assert clip.clip_cov_per_10000 / 10_000 == 2e-4


def test_several_optimizer_steps_per_rollout_suffice_for_kl_cov(tmp_path):
    options = {**FAST, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    assert KlCovConfig(output_dir=str(tmp_path), **options).num_iterations == 1


def test_a_clip_range_of_infinity_survives_json(tmp_path):
    config = KlCovConfig(output_dir=str(tmp_path), **{**TWICE, "model_init_kwargs": None})
    assert json.loads(config.to_json_string())["epsilon"] == math.inf
