"""Shared by the training tests: data, a reward that needs no skill, and records of gradients, losses and forwards."""

import torch
from transformers import AutoProcessor, TrainerCallback

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import read_rows

FAST = {
    "share_prompts": "off",  # row by row, as TRL; `test_shared_training.py` compares the two
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


def uneven_lengths(prompt_ids, images, fields):
    """Completions of 1 to 8 ordinary tokens, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (len(prompt_ids),), generator=generator).tolist()
    return [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths], None


class Recording:
    """A trainer that samples `uneven_lengths` and keeps each micro-batch's loss and rollout, and all gradients."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts, self.losses, self.recorder = [], [], Recorder()
        self.add_callback(self.recorder)

    def sample(self, prompt_ids, images, fields, *, generate):
        return uneven_lengths(prompt_ids, images, fields)

    def compute_loss(self, model, inputs, **kwargs):
        self.rollouts.append(dict(inputs))
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(loss.item())
        return loss
