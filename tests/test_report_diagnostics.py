"""What the trainers log for the report: entropies by part and verdict, covariance, memory; options and expert gaps."""

import json
import math
import re
from collections import defaultdict

import numpy as np
import pytest
import torch
from command_runs import argv, task_row, trainer_of, write_rows
from support import FAST, dataset_of
from transformers import AutoTokenizer

from vlm_entropy.rewards.token_parts import token_parts
from vlm_entropy.trainers import CalibrlConfig, EntropyGRPOConfig, EntropyGRPOTrainer
from vlm_entropy.trainers.__main__ import main
from vlm_entropy.trainers.diagnostics import advantage_metrics, advantage_sums, entropy_sums

NAN = math.nan


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # t thinking, a answer, c number in the answer, o other
        (
            "<think>|left|</think>|\n|<answer>|[|7|,| 12|]|</answer>|<end>",
            "otoooacacaoo",
        ),
        ("<|think|>|a|b|</|think|>|<|answer|>|x", "ooottooooooa"),
        ("<think>|7|<answer>|8|</answer>", "otttt"),  # never closed: all of it is thinking
        ("left|</think>|<answer>|8", "tooc"),  # opened by the prompt
        ("<think>|<answer>|1|</answer>|</think>|<answer>|2|</answer>", "otttooco"),  # a quoted answer is thinking
        ("<think>|a|</think>|b|</think>|1", "otttoc"),  # the last end counts
        ("<think>|t|</think>|yes|4", "otoac"),  # without tags the rest is the answer
        ("[|4|]", "aca"),
        ("", ""),
    ],
)
def test_each_token_has_the_part_of_the_response_it_stands_in(pieces, expected):
    found = token_parts(pieces.split("|") if pieces else [])
    assert "".join(part[0] for part in found) == expected


def test_entropies_by_part_and_verdict_by_hand():
    entropies = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    parts = torch.tensor([[0, 1, 3], [1, 2, 3], [2, 0, 0]])
    sums = entropy_sums(entropies, mask, parts, torch.tensor([0.6, 0.5, NAN]))
    assert {name: pair.tolist() for name, pair in sums.items()} == {
        "entropy/other": [1.0, 1.0],
        "entropy/think": [2.0 + 8.0, 2.0],
        "entropy/answer": [16.0 + 64.0, 2.0],
        "entropy/coordinate": [4.0, 1.0],
        "entropy/correct": [7.0, 3.0],  # 0.6 > 0.5
        "entropy/wrong": [24.0, 2.0],  # 0.5 is not above; the third row has no verdict
    }


def test_covariance_and_sizes_are_those_of_numpy_over_the_real_tokens():
    rng = np.random.default_rng(0)
    advantages, logps = rng.normal(size=5), -rng.random((5, 7))
    mask, used = rng.random((5, 7)) < 0.6, rng.normal(size=(5, 7))
    logps[0, ~mask[0]] = -np.inf
    of_token = np.repeat(advantages[:, None], 7, axis=1)
    tensors = [torch.tensor(value) for value in (advantages, used, logps, mask)]
    halves = [advantage_sums(*(value[rows] for value in tensors)) for rows in (slice(0, 2), slice(2, 5))]
    metrics = advantage_metrics(sum(halves))
    expected = np.cov(of_token[mask], logps[mask], bias=True)[0, 1]
    assert metrics["advantage/covariance"] == pytest.approx(expected, abs=1e-6)
    assert metrics["advantage/sampled_abs"] == pytest.approx(np.abs(of_token[mask]).mean(), rel=1e-6)
    assert metrics["advantage/used_abs"] == pytest.approx(np.abs(used[mask]).mean(), rel=1e-6)
    assert advantage_metrics(torch.zeros(6)) == {}


def partly_judged(completion_ids, **kwargs):
    """1, 0 or None by the tokens."""
    return [[1.0, 0.0, None][sum(ids) % 3] for ids in completion_ids]


class Spy(EntropyGRPOTrainer):
    """Doubles the advantages, and keeps what its losses saw."""

    seen: list

    def shape_advantages(self, advantages, policy, rollout):
        return 2 * super().shape_advantages(advantages, policy, rollout)

    def extra_loss(self, policy, rollout):
        kept = (policy.entropies, policy.logps, policy.mask, rollout["completion_ids"], rollout["advantages"])
        self.seen.append([value.detach().clone() for value in kept])
        return super().extra_loss(policy, rollout)


def test_a_log_line_is_the_mean_over_all_tokens_of_its_losses(tiny_model, shapes, tmp_path):
    config = EntropyGRPOConfig(
        output_dir=str(tmp_path), **{**FAST, "gradient_accumulation_steps": 2, "max_steps": 4, "logging_steps": 2}
    )
    rewards = [partly_judged, lambda completion_ids, **kwargs: [float(sum(ids) % 5) for ids in completion_ids]]
    rewards[1].__name__ = "other"
    trainer = Spy(str(tiny_model), rewards, config, train_dataset=dataset_of(shapes, tiny_model))
    trainer.seen = []
    trainer.train()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    for line, losses in zip(lines, (trainer.seen[:4], trainer.seen[4:])):
        expected: dict[str, list[float]] = defaultdict(list)
        sampled, logps, verdicts = [], [], []
        for entropies, logp, mask, ids, advantage in (row for loss in losses for row in zip(*loss)):
            tokens = ids[mask].tolist()
            verdict = partly_judged([tokens])[0]
            for token, entropy in zip(tokens, entropies[mask].tolist()):
                # Random weights write no tags: all is answer, and its numbers are coordinates.
                part = "coordinate" if re.search("[0-9]", tokenizer.decode([token])) else "answer"
                expected[f"entropy/{part}"].append(entropy)
                expected[{1.0: "entropy/correct", 0.0: "entropy/wrong", None: "unknown"}[verdict]].append(entropy)
            verdicts += [] if verdict is None else [verdict]
            sampled += [advantage.item() / 2] * len(tokens)
            logps += logp[mask].tolist()
        assert len(expected) == 5
        for name in set(expected) - {"unknown"}:
            assert line[name] == pytest.approx(np.mean(expected[name]), rel=1e-5), name
        assert line["accuracy"] == pytest.approx(np.mean(verdicts))
        assert line["advantage/covariance"] == pytest.approx(np.cov(sampled, logps, bias=True)[0, 1], abs=1e-5)
        assert line["advantage/used_abs"] == pytest.approx(2 * line["advantage/sampled_abs"], rel=1e-5)
        assert 0.1 < line["memory/peak_gib"] < 100
        assert not {f"entropy/{part}" for part in ("think", "other")} & set(line)


def test_a_run_leaves_its_options_its_gaps_and_the_same_figures_in_tensorboard(tiny_model, shapes, tmp_path):
    event_files = pytest.importorskip("tensorboardX.proto.event_pb2")
    rows = write_rows(tmp_path / "rows.jsonl", [task_row(f"train-{n:06d}.png", n) for n in range(8)])
    flags = {"method": "calibrl", "max_steps": 3, "save_expert_gaps": 2, "report_to": "tensorboard"}
    out = tmp_path / "out"
    main(argv(tiny_model, rows, shapes / "images", out, **flags, log_completions="true", seed=7))
    options = json.loads((out / "run_config.json").read_text())
    asked = {
        "method": "calibrl",
        "seed": 7,
        "save_expert_gaps": 2,
        "data_file_paths": str(rows),
        "learning_rate": 0.01,
    }
    assert {name: options[name] for name in asked} == asked
    assert options["model_name_or_path"] == str(tiny_model)
    [gap] = [json.loads(line) for line in (out / "expert_gaps.jsonl").read_text().splitlines()]
    assert gap["step"] == 2
    assert len(gap["tokens"]) == len(gap["gap"]) > 0
    assert isinstance(gap["correct"], bool)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    [events] = out.glob("runs/*/events*")
    summaries = read_events(events, event_files)
    for name in ("reward", "entropy/answer", "advantage/covariance", "memory/peak_gib", "calibrl/gap"):
        assert summaries[f"train/{name}"] == pytest.approx([line[name] for line in logged[:3]], rel=1e-6), name
    assert (out / "completions" / "completions_00003.parquet").is_file()


def read_events(path, event_files):
    """The scalars of a TensorBoard file by tag: records of a length, its checksum, an event, its checksum."""
    data, place, found = path.read_bytes(), 0, {}
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        event = event_files.Event.FromString(data[place + 12 : place + 12 + size])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(value.simple_value)
        place += size + 16
    return found


def test_a_sequence_has_one_gap_and_steps_are_not_written_twice(tiny_model, shapes, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [task_row(f"train-{n:06d}.png", n) for n in range(8)])
    flags = {
        "method": "calibrl",
        "delta_mode": "sequence_sum",
        "save_expert_gaps": 1,
        "gradient_accumulation_steps": 2,
    }
    trainer = trainer_of(argv(tiny_model, rows, shapes / "images", tmp_path / "out", **flags))
    (tmp_path / "out").mkdir(exist_ok=True)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "out" / "expert_gaps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(len(line["gap"]) == 1 for line in lines)


def test_a_negative_interval_is_refused(tmp_path):
    with pytest.raises(ValueError, match="save_expert_gaps must be >= 0, got -1"):
        CalibrlConfig(output_dir=str(tmp_path), expert_column="e", save_expert_gaps=-1, bf16=False, use_cpu=True)
