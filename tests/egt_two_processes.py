"""Two optimizer steps of low-to-high training with scripted completions; run by `test_egt.py` under torchrun.

Usage: torchrun --nproc_per_node P egt_two_processes.py MODEL SHAPES OUT OPTIONS_AS_JSON
"""

import json
import sys
from pathlib import Path

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import torch
from processes import leave_together
from support import FAST, dataset_of
from two_process_step import Scripted, reward

from vlm_entropy.trainers import EgtConfig, EgtTrainer


class Recorded(Scripted, EgtTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def prepare_rollout(self, rollout, examples, rewards):
        self.seen.append([example["row"] for example in examples])
        return super().prepare_rollout(rollout, examples, rewards)


def main(model: str, shapes: str, out: str, options: str) -> None:
    data = dataset_of(Path(shapes), Path(model))
    data = data.add_column("row", list(range(len(data))))
    data = data.add_column("response_entropy", [float(row * 7 % 32) for row in range(len(data))])
    settings = {**FAST, "gradient_accumulation_steps": 2, "max_steps": 2, "max_grad_norm": 0.0, **json.loads(options)}
    config = EgtConfig(output_dir=out, **settings)
    trainer = Recorded(model=model, reward_funcs=[reward], args=config, train_dataset=data)
    trainer.train()
    network = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    record = {"seen": trainer.seen, "logs": trainer.state.log_history[:2], "weights": weights}
    torch.save(record, Path(out) / f"{trainer.accelerator.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
