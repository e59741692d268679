"""Every method and baseline in a real training of thirty steps, from the command line."""

import json
import math
from statistics import fmean

import pytest

from vlm_entropy.data.noise_files import add_noise
from vlm_entropy.data.shapes import make_shapes
from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers.__main__ import main
from vlm_entropy.trainers.methods import METHODS
from vlm_entropy.trainers.presets import PRESETS

pytestmark = pytest.mark.slow

COMMON = {
    "task_type": "plain",
    "bf16": "false",
    "use_cpu": "true",
    "gradient_checkpointing": "false",
    "save_strategy": "no",
    "disable_tqdm": "true",
    "logging_steps": 1,
}
OPTIONS = {
    "calibrl": {"expert_column": "response", "correct_reward": "iou", "correct_threshold": 0.5},
    "ecvgpo": {"r0": 10},
    "intuitor": {"learning_rate": 2e-4},  # at 1e-3 the format collapses, and certainty with it
    "kl_cov": {"num_iterations": 2, "kl_cov_per_10000": 1000},
    "luffy": {"expert_column": "response"},
    "rl_plus": {"expert_column": "response"},
    "noisy_rollout": {"noise": "sign"},
    "adaptive_entropy_bonus": {"entropy_target": 0.4},
    "grpo_12": {"per_device_train_batch_size": 60},
    "gspo": {"per_device_train_batch_size": 16},
}
NOT_LEARNING = {"entropy_minimisation", "intuitor", "random_reward", "format_only", "ttrl", "empo"}
"""Baselines without labels, of which no gain in the true reward is expected."""
RISES = {
    "intuitor": "intuitor/self_certainty",
    "ttrl": "rewards/majority_box_reward/mean",
    "empo": "rewards/empo_box_reward/mean",
}
NAMES = [name for name in [*METHODS, *PRESETS] if name != "sft"]


def command(**flags):
    return [part for name, value in {**COMMON, **flags}.items() for part in (f"--{name}", *str(value).split(" "))]


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory):
    """A tiny InternVL after 70 steps of supervised learning, and its data with a third of the labels wrong."""
    folder = tmp_path_factory.mktemp("baselines")
    make_shapes(folder / "data", rows=512, seed=1, held_out=0, objects=1)
    clean, images = folder / "data" / "train.jsonl", folder / "data" / "images"
    add_noise(clean, folder / "noisy.jsonl", kind="box", ratio=1 / 3, seed=0, image_folder=images)
    build_tiny_vlm("internvl", folder / "random")
    supervised = {"method": "sft", "response_column": "response", "per_device_train_batch_size": 32, "max_steps": 70}
    schedule = {"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_steps": 20}
    files = {"data_file_paths": clean, "image_folders": images}
    main(command(**files, **supervised, **schedule, model_name_or_path=folder / "random", output_dir=folder / "warm"))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_thirty_steps_of_every_method_train(warm_start, tmp_path, name):
    needs_noise = name in ("label_entropy", "lf_max_lt_min", "lf_min_lt_max")
    data = warm_start / ("noisy.jsonl" if needs_noise else "data/train.jsonl")
    files = {"data_file_paths": data, "image_folders": warm_start / "data" / "images"}
    sizes = {"per_device_train_batch_size": 64, "num_generations": 8, "max_completion_length": 20, "max_steps": 30}
    options = {**OPTIONS.get(PRESETS[name].method if name in PRESETS else name, {}), **OPTIONS.get(name, {})}
    given = {**sizes, **options}
    if name == "grpo_12":
        given.pop("num_generations")
    run = {"method": name, "model_name_or_path": warm_start / "warm", "output_dir": tmp_path, "learning_rate": 1e-3}
    main(command(**files, **{**run, **given}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in lines if "loss" in line]
    assert len(logs) == 30
    assert all(math.isfinite(log[metric]) for log in logs for metric in ("loss", "grad_norm", "entropy"))

    def change(metric):
        values = [log[metric] for log in logs if metric in log]  # some are logged once per rollout
        third = len(values) // 3
        return fmean(values[-third:]) - fmean(values[:third])

    print(f"{name}: reward {change('reward'):+.3f}, entropy {change('entropy'):+.3f}")
    if name in RISES:
        assert change(RISES[name]) > 0
    elif name == "entropy_minimisation":
        assert change("entropy") < 0
    elif name not in NOT_LEARNING:
        assert change("reward") > 0
