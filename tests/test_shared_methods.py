"""Every method decides and learns the same with shared prompts."""

import pytest
import torch
from distributed_cases import CASES, run_case
from transformers import AutoModelForImageTextToText

from vlm_entropy.trainers import METHODS

OTHERS = (
    "two_stage by token, in parts",
    "kl_cov, in parts",
    "clip_cov, in parts",
    "calibrl, in parts",
    "four methods",
)
"""Cases beside the methods of their names; those in parts accumulate over two micro-batches."""
# Supervised learning has one completion per prompt.
SHARING = [
    pytest.param(name, marks=pytest.mark.slow if name in OTHERS[:-1] else ())
    for name in (*METHODS, *OTHERS)
    if name != "sft"
]


def change_of_weights(record, start):
    return torch.cat([(record["weights"][name].double() - weight).flatten() for name, weight in start.items()])


@pytest.fixture(scope="module")
def start(tiny_model):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float64)
    return {name: weight.detach() for name, weight in model.named_parameters()}


def both_ways(case, tiny_model, shapes, out, **changes):
    return [
        run_case(case, tiny_model, shapes, out / mode, processes=1, share_prompts=mode, **changes)
        for mode in ("off", "auto")
    ]


@pytest.mark.parametrize("name", SHARING)
def test_a_step_with_shared_prompts_equals_the_step_row_by_row(tiny_model, shapes, tmp_path, start, caplog, name):
    # The first attack comes before the first forward that all make together, and so before anything is shared.
    steps = {"max_steps": 2, "learning_rate": 1e-2} if "alpha" in CASES[name].options else {}
    off, auto = both_ways(CASES[name], tiny_model, shapes, tmp_path, **steps)
    expected, actual = (change_of_weights(record, start) for record in (off, auto))
    assert expected.norm() > 1e-4
    assert (actual - expected).norm() / expected.norm() < 1e-5
    for theirs, ours in zip(off["logs"], auto["logs"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-6)
    assert sorted(auto["selected"][0]) == sorted(off["selected"][0])
    assert auto["pictures"] == off["pictures"]
    assert "not shared" not in caplog.text


def test_equal_prompts_are_attacked_each_by_its_own_answers(tiny_model, shapes, tmp_path):
    steps = {"max_steps": 2, "learning_rate": 1e-2}
    off, auto = both_ways(CASES["saei"], tiny_model, shapes, tmp_path, order=[0, 0, 1, 0], **steps)
    pictures = [sums for _, (sums,) in off["pictures"][0]]
    assert len(pictures) == 8
    assert len(set(pictures)) > 1
    assert auto["pictures"] == off["pictures"]
