"""Runs of the training command whose trainer a test can look into: its flags, its trainer, its rollouts and losses."""

import json
import math

import torch
from support import Recorder

from vlm_entropy.trainers.__main__ import make_trainer, prepare
from vlm_entropy.trainers.presets import PRESETS

FLAGS = {
    "task_type": "plain",
    "reward_funcs": "support:uneven_reward",
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "bf16": "false",
    "use_cpu": "true",
    "gradient_checkpointing": "false",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": "true",
}
NEEDED = {
    "calibrl": {"expert_column": "expert", "correct_threshold": 3.0},
    "ecvgpo": {"r0": 2.0},
    "kl_cov": {"num_iterations": 2},
    "luffy": {"expert_column": "expert"},
    "rl_plus": {"expert_column": "expert"},
    "label_entropy": {"raise_on": "true"},
    "sft": {"response_column": "expert", "num_generations": None, "max_completion_length": None, "reward_funcs": None},
}
"""What a method cannot run without, or has no use for (None), on the rows of `write_task`."""


def argv(model, data, images, out, **changes):
    """The command line of a run of two steps, with some flags replaced; None leaves a flag out."""
    method = changes.get("method", "grpo")
    method = PRESETS[method].method if method in PRESETS else method
    paths = {"model_name_or_path": model, "data_file_paths": data, "image_folders": images, "output_dir": out}
    flags = {**FLAGS, **paths, **NEEDED.get(method, {}), **changes}
    return [
        part
        for name, value in flags.items()
        if value is not None
        for part in (f"--{name}", *(value if isinstance(value, list) else str(value).split(" ")))
    ]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task_row(image, index=0):
    """A row with the columns of every method; `image` is a file name, several, or None."""
    words = ["red square", "blue circle", "green square"]
    turns = [
        {"from": "human", "value": f"<image>Find the {words[index % 3]}." if image else f"Find {index}."},
        {"from": "gpt", "value": "[4, 8, 12, 16]"},
    ]
    columns = {"expert": words[index % 3], "is_noisy": index % 2 == 0, "response_entropy": float(index)}
    return {**({"image": image} if image else {}), "conversations": turns, **columns}


class Kept:
    """Keeps each micro-batch's rollout and loss, and the gradients of each optimizer step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts, self.losses, self.recorder = [], [], Recorder()
        self.add_callback(self.recorder)

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.rollouts.append(dict(inputs))
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss


def trainer_of(argv, *, dtype=torch.float64, mixins=()):
    """The trainer that the command makes, which keeps what it computes."""
    run = prepare(argv)
    trainer_class = type("KeptTrainer", (*mixins, Kept, run.method.trainer), {})
    if dtype is not None:
        run.config.model_init_kwargs["dtype"] = dtype
    run.method = run.method._replace(trainer=trainer_class)
    return make_trainer(run)


def weights_of(trainer):
    """Copies of all weights, by name."""
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def changed(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def all_finite(trainer):
    """Whether every loss, logged number and weight is a number."""
    logged = [value for log in trainer.state.log_history for value in log.values() if isinstance(value, float)]
    numbers = all(math.isfinite(value) for value in [*trainer.losses, *logged])
    return numbers and all(bool(value.isfinite().all()) for value in trainer.model.parameters())
