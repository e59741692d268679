"""What EGT shows on synthetic pairs: entropy against accuracy and wrong labels, curation and order against controls.

Half of the pictures are under grain, and half of these have the wrong label, as of annotators who err where it is hard
to see. A tiny InternVL learns to judge from 1500 pairs with traces; the rest goes through the public commands.
"""

import json
import math
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlm_entropy.data.curation import curation_report
from vlm_entropy.data.curation_statistics import odds_ratio
from vlm_entropy.data.noise import select_noisy
from vlm_entropy.eval.statistics import seed_spread

SEEDS = (1, 2, 3, 4)
COLD, POOL, HELD_OUT = 1500, 1500, 384
WORDS = ["Question", "Response", "Which", "better", "What", "colour"]
CPU = (
    "--use_cpu true --bf16 false --gradient_checkpointing false --report_to none --save_strategy no --task_type plain"
)
SFT = (
    f"{CPU} --method sft --response_column trace --per_device_train_batch_size 64 --max_steps 500 --learning_rate 3e-3"
)
GRPO = (
    f"{CPU} --reward_funcs preference format --per_device_train_batch_size 64 --num_generations 8 "
    "--max_completion_length 40 --learning_rate 3e-4 --lr_scheduler_type linear --num_train_epochs 1"
)
RUNS = {
    "kept, low to high": ("kept", "egt"),
    "kept, random order": ("kept", "egt_random"),
    "kept, high to low": ("kept", "egt_high_to_low"),
    "random half, random order": ("random_half", "egt_random"),
    "all, random order": ("scored", "egt_random"),
}


def command(module, *arguments):
    words = [
        word for argument in arguments for word in (str(argument).split() if isinstance(argument, str) else [argument])
    ]
    done = subprocess.run(
        [sys.executable, "-m", f"vlm_entropy.{module}", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def lines(path):
    return path.read_text().splitlines(keepends=True)


def evidence(seed: int, folder: Path) -> dict:
    """One seed: entropies of the pool and the held-out rows, and accuracies after each training."""
    data, images = folder / "pairs", ["--images", folder / "pairs" / "images"]
    task = "make --task pairs --over colours --objects 2 --grain 0.5 --noise 0.25 --noise_on grained"
    command("data", task, "--rows", COLD + POOL, "--held_out", HELD_OUT, "--seed", seed, "--out", data)
    rows = lines(data / "train.jsonl")
    (folder / "cold.jsonl").write_text("".join(rows[:COLD]))
    (folder / "pool.jsonl").write_text("".join(rows[COLD:]))
    start, judge = folder / "start", folder / "judge"
    words = ["--words", *WORDS]
    command("data", "build --model_type internvl --largest_number 20", *words, "--seed", seed, "--out", start)
    training = ["--image_folders", data / "images", "--seed", seed]
    command(
        "trainers",
        SFT,
        "--model_name_or_path",
        start,
        "--data_file_paths",
        folder / "cold.jsonl",
        *training,
        "--lr_scheduler_type cosine --warmup_steps 20 --output_dir",
        judge,
    )
    sampling = "--task_type plain --max_new_tokens 40 --batch_size 256 --samples 4"
    for source, out in ((folder / "pool.jsonl", "scored"), (data / "heldout.jsonl", "heldout")):
        keep = "--keep_fraction 0.5" if out == "scored" else ""
        command(
            "data",
            "curate --model",
            judge,
            "--data",
            source,
            *images,
            sampling,
            keep,
            "--out",
            folder / f"{out}.jsonl",
        )
    (folder / "scored_kept.jsonl").rename(folder / "kept.jsonl")
    scored = lines(folder / "scored.jsonl")
    half = random.Random(seed).sample(scored, len(scored) // 2)
    (folder / "random_half.jsonl").write_text("".join(half))
    asked = "--bench pairs --protocol plain --temperature 1 --max_new_tokens 40 --batch_size 256"
    models = {"stage 1": judge}
    for number, (name, (part, method)) in enumerate(RUNS.items()):
        models[name] = folder / f"run{number}"
        command(
            "trainers",
            "--method",
            method,
            GRPO,
            "--model_name_or_path",
            judge,
            "--data_file_paths",
            folder / f"{part}.jsonl",
            *training,
            "--output_dir",
            models[name],
        )
    accuracy = {}
    for name, model in models.items():
        out = folder / "results" / model.name
        command("eval", "run --model", model, "--data", data / "heldout.jsonl", *images, asked, "--out", out)
        accuracy[name] = json.loads((out / "result.json").read_text())["metrics"]["accuracy"]["value"]
    return {
        "pool": json.loads((folder / "scored.report.json").read_text()),
        "heldout": json.loads((folder / "heldout.report.json").read_text()),
        "control": uniform_noise([json.loads(row)["response_entropy"] for row in scored], seed),
        "accuracy": accuracy,
    }


def uniform_noise(entropies, seed):
    """The odds of a dropped row to be wrong, had the same number of labels been wrong at random."""
    wrong = set(select_noisy(len(entropies), 0.25, seed))
    order = sorted(range(len(entropies)), key=lambda row: entropies[row])
    is_noisy, kept = [row in wrong for row in range(len(entropies))], order[: len(order) // 2]
    cost = {"prompt_tokens": 0, "response_tokens": 0, "seconds": 0.0}
    return curation_report(entropies, [None] * len(entropies), is_noisy, kept, samples=1, cost=cost).noise[
        "odds_ratio"
    ]


def interval(found):
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def pooled(found):
    """The odds of a dropped row to be wrong, over the rows of all seeds."""
    noise = [one["pool"]["noise"] for one in found]
    kept, wrong_kept, dropped, wrong_dropped = (
        sum(part[name] for part in noise) for name in ("kept", "kept_noisy", "dropped", "dropped_noisy")
    )
    return odds_ratio(wrong_dropped, dropped - wrong_dropped, wrong_kept, kept - wrong_kept)._asdict()


def tell(found):
    """Print every figure, the differences of two trainings over paired seeds with their t intervals."""
    for seed, one in zip(SEEDS, found, strict=True):
        noise = one["pool"]["noise"]
        bins = " ".join(f"{part['accuracy']:.2f}" for part in one["heldout"]["bins"])
        print(f"\nseed {seed}: held-out accuracy by entropy {bins}, Spearman {interval(one['heldout']['spearman'])};")
        print(f"  pool, against its labels: Spearman {interval(one['pool']['spearman'])};")
        print(f"  wrong labels: {noise['kept_noisy']} of {noise['kept']} kept, {noise['dropped_noisy']} dropped, odds")
        print(f"  {interval(noise['odds_ratio'])}; had they been wrong at random {interval(one['control'])}")
        print("  accuracy", {name: round(value, 3) for name, value in one["accuracy"].items()})
    logs = seed_spread([math.log(one["pool"]["noise"]["odds_ratio"]["value"]) for one in found])
    print(
        f"odds over all rows {interval(pooled(found))}, log odds over seeds {logs.mean:+.2f} "
        f"[{logs.low:+.2f}, {logs.high:+.2f}]"
    )
    names = list(found[0]["accuracy"])
    for name in names:
        spread = seed_spread([one["accuracy"][name] for one in found])
        print(f"{name}: {spread.mean:.3f} ± {spread.std:.3f}")
    for first, second in ((1, 2), (1, 3), (2, 3), (2, 4), (2, 5), (1, 5)):
        gain = seed_spread([one["accuracy"][names[first]] - one["accuracy"][names[second]] for one in found])
        print(f"{names[first]} - {names[second]}: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_entropy_tells_accuracy_and_hard_wrong_labels(tmp_path):
    folders = [tmp_path / str(seed) for seed in SEEDS]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = list(pool.map(evidence, SEEDS, folders))
    tell(found)
    assert all(one["heldout"]["spearman"]["high"] < 0 for one in found)
    assert pooled(found)["low"] > 1
