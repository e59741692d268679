"""One optimizer step of CalibRL on three groups of four; run by `test_calibrl_training.py` under torchrun.

With two processes of six rows the second group straddles them. Usage: torchrun ... MODEL SHAPES OUT PER_DEVICE_BATCH
"""

import sys
from pathlib import Path

import torch
from processes import leave_together

from vlm_entropy.trainers.calibrl import CalibrlConfig, CalibrlTrainer


class Scripted(CalibrlTrainer):
    """Completions that depend on nothing but the prompt and the place in the group, of very different lengths."""

    def sample(self, prompt_ids, images, fields, *, generate):
        offset = self.accelerator.process_index * len(prompt_ids)
        return [self.script(ids, (offset + row) % 4) for row, ids in enumerate(prompt_ids)], None

    def script(self, prompt: list[int], place: int) -> list[int]:
        generator = torch.Generator().manual_seed(sum(prompt) * 31 + place)
        length = int(torch.randint(1, 9, (1,), generator=generator))
        return torch.randint(5, 200, (length,), generator=generator).tolist()


def main(model: str, shapes: str, out: str, per_device_batch: str) -> None:
    from support import FAST, dataset_of, uneven_reward

    options = {
        **FAST,
        "per_device_train_batch_size": int(per_device_batch),
        "max_steps": 1,
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "shuffle_dataset": False,
    }
    calibrl = {"expert_column": "expert", "exploration_weight": 1.0, "correct_threshold": 3.0}
    data = dataset_of(Path(shapes), Path(model))
    experts = [["red", "top left square", "blue"][row % 3] for row in range(len(data))]
    trainer = Scripted(
        model=model,
        reward_funcs=[uneven_reward],
        args=CalibrlConfig(output_dir=out, **options, **calibrl),
        train_dataset=data.add_column("expert", experts),
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        weights = {name: p.detach() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
        torch.save({"weights": weights, "logs": trainer.state.log_history[0]}, Path(out) / "step.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
