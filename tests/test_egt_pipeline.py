"""EGT from preference pairs to a reward, by the commands of the README in their order, on a tiny model."""

import json
from pathlib import Path

import pytest

from vlm_entropy.data.__main__ import main as data
from vlm_entropy.data.pairs_task import make_pairs
from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.eval.__main__ import main as evaluate
from vlm_entropy.trainers.__main__ import main as train

TRAINING = (
    "--image_folders {images} --use_cpu true --bf16 false --gradient_checkpointing false --report_to none "
    "--save_strategy no --max_steps 2 --logging_steps 1 "
)
ROLLOUT = "--per_device_train_batch_size 4 --num_generations 4 --max_completion_length 4 "


def run(command, flags, **paths):
    """Run a command; {name} in its flags is one of the paths."""
    command([word.format(**paths) for word in flags.split()])


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A model, and preference pairs as someone might have them."""
    folder = tmp_path_factory.mktemp("egt")
    make_pairs(folder / "task", rows=24, seed=0, held_out=4, over="colours")
    rows = [
        {
            "image": row["image"],
            "question": row["question"],
            "response_1": row["responses"][0],
            "response_2": row["responses"][1],
            "label": int(row["conversations"][1]["value"]),
        }
        for row in lines(folder / "task" / "train.jsonl")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_tiny_vlm("internvl", folder / "start", hidden_size=32)
    return {"d": str(folder), "images": str(folder / "task" / "images")}


def test_from_pairs_to_a_reward(paths):
    folder = Path(paths["d"])
    run(data, "convert --from preference_jsonl --data {d}/pairs.jsonl --out {d}/converted.jsonl", **paths)
    run(data, "pairs --data {d}/converted.jsonl --seed 0 --out {d}/train.jsonl", **paths)
    train_rows = lines(folder / "train.jsonl")
    assert sum(row["conversations"][1]["value"] == "1" for row in train_rows) == 12

    def traced(row, number):
        label = row["conversations"][1]["value"]
        said = label if number % 4 else {"1": "2", "2": "1"}[label]  # every fourth trace contradicts its label
        return {**row, "trace": f"<think>I look.</think><answer>{said}</answer>"}

    rows = [traced(row, number) for number, row in enumerate(train_rows)]
    (folder / "traced.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(data, "traces --data {d}/traced.jsonl --column trace --out {d}/cold_start.jsonl", **paths)
    assert len(lines(folder / "cold_start.jsonl")) == 18
    run(
        train,
        f"--method sft --response_column trace --data_file_paths {{d}}/cold_start.jsonl {TRAINING}"
        "--model_name_or_path {d}/start --output_dir {d}/cold_start",
        **paths,
    )
    run(
        data,
        "curate --model {d}/cold_start --data {d}/train.jsonl --images {images} --samples 2 --max_new_tokens 4 "
        "--keep_fraction 0.5 --out {d}/scored.jsonl",
        **paths,
    )
    kept = [row["response_entropy"] for row in lines(folder / "scored_kept.jsonl")]
    assert len(kept) == 12
    assert kept == sorted(kept)
    run(
        train,
        f"--method egt --reward_funcs preference format --data_file_paths {{d}}/scored_kept.jsonl {TRAINING}{ROLLOUT}"
        "--model_name_or_path {d}/cold_start --output_dir {d}/judge",
        **paths,
    )
    steps = [line["egt/entropy"] for line in lines(folder / "judge" / "metrics.jsonl") if "egt/entropy" in line]
    assert steps == pytest.approx(kept[:2])  # a prompt a step, the surest first
    run(
        evaluate,
        "run --model {d}/judge --bench pairs --data {d}/task/heldout.jsonl --images {images} --max_new_tokens 4 "
        "--out {d}/results",
        **paths,
    )
    result = json.loads((folder / "results" / "result.json").read_text())
    assert (result["items"], result["metrics"]["accuracy"]["items"]) == (8, 4)
    assert {"consistency", "both_orders_correct"} <= set(result["totals"])
    run(
        train,
        f"--method grpo --reward_funcs reward_model:{{d}}/judge format {TRAINING}{ROLLOUT}"
        "--reward_model_max_new_tokens 4 --model_name_or_path {d}/start --data_file_paths {d}/train.jsonl "
        "--output_dir {d}/policy",
        **paths,
    )
    assert "rewards/reward_model/mean" in lines(folder / "policy" / "metrics.jsonl")[0]
