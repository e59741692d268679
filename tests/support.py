"""Shared by the training tests: data, a reward that needs no skill, and a recorder of gradients and forwards."""

import torch
from transformers import AutoProcessor, TrainerCallback

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import read_rows

FAST = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "model_init_kwargs": {"dtype": torch.float64},
}
"""Options of a training run of a second on CPU."""


def dataset_of(shapes, tiny_model):
    rows, _ = read_rows(str(shapes / "train.jsonl"), str(shapes / "images"))
    processor = AutoProcessor.from_pretrained(tiny_model, padding_side="left")
    return build_dataset(rows, family=FAMILIES["qwen2_5_vl"], processor=processor, task_type="plain")


def uneven_reward(completion_ids, **kwargs):
    """A reward that differs inside a group and needs no skill."""
    return [float(sum(ids) % 7) for ids in completion_ids]


class Recorder(TrainerCallback):
    """Gradients of every optimizer step, and rows and tokens of every forward pass of the model."""

    def __init__(self):
        self.gradients, self.forwards = [], []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.hook = model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"][..., 0]
        self.forwards.append(tuple(ids.shape))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
