"""One optimizer step of DAPO where only the second process needs other prompts; run by `test_dapo.py` under torchrun.

Usage: torchrun --nproc_per_node 2 dapo_two_processes.py MODEL SHAPES OUT
"""

import sys
from pathlib import Path

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import torch
from processes import leave_together
from support import FAST, dataset_of

from vlm_entropy.trainers.dapo import DapoConfig, DapoTrainer

CONSTANT = {4, 5, 6, 7}
"""Rows of the second process, and a third of the others: their rewards are equal within a group."""


def reward(completion_ids, row, **kwargs):
    return [0.0 if is_constant(number) else float(place % 2) for place, number in enumerate(row)]


def is_constant(row: int) -> bool:
    return row in CONSTANT or (row >= 8 and row % 3 == 0)


class Recorded(DapoTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sampled, self.record = [], {}

    def sample(self, prompt_ids, images, fields, *, generate):
        self.sampled.append([example["row"] for example in self.examples])
        return super().sample(prompt_ids, images, fields, generate=generate)

    def prepare_rollout(self, rollout, examples, rewards):
        self.record = {
            "rows": [example["row"] for example in examples],
            "rewards": self.local_rows(rewards).flatten().tolist(),
            "tokens": int(rollout["completion_mask"].sum()),
            "num_items_in_batch": int(rollout["num_items_in_batch"]),
        }
        return super().prepare_rollout(rollout, examples, rewards)


def main(model: str, shapes: str, out: str) -> None:
    data = dataset_of(Path(shapes), Path(model))
    data = data.add_column("row", list(range(len(data))))
    options = {**FAST, "num_generations": 2, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = Recorded(
        model=model,
        reward_funcs=[reward],
        args=DapoConfig(output_dir=out, **options, shuffle_dataset=False),
        train_dataset=data,
    )
    trainer.train()
    network = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    logs = trainer.state.log_history[0]
    record = {**trainer.record, "sampled": trainer.sampled, "logs": logs, "weights": weights}
    torch.save(record, Path(out) / f"{trainer.accelerator.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
