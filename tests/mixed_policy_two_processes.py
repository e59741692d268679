"""One optimizer step of LUFFY on four groups of four; run by `test_mixed_policy_training.py` under torchrun.

With two processes the only prompt without an expert lies on the first, and the second samples a row for nobody.
Usage: torchrun ... MODEL SHAPES OUT PER_DEVICE_BATCH
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from processes import leave_together

from vlm_entropy.trainers import EntropyGRPOTrainer
from vlm_entropy.trainers.luffy import LuffyConfig, LuffyTrainer


class Scripted(EntropyGRPOTrainer):
    """Completions that depend on nothing but the prompt and how often it was asked for, of very different lengths."""

    def sample(self, prompt_ids, images, fields, *, generate):
        self.asked = getattr(self, "asked", Counter())
        return [self.script(tuple(ids)) for ids in prompt_ids], None

    def script(self, prompt: tuple[int, ...]) -> list[int]:
        self.asked[prompt] += 1
        generator = torch.Generator().manual_seed(sum(prompt) * 31 + self.asked[prompt])
        length = int(torch.randint(1, 9, (1,), generator=generator))
        return torch.randint(5, 200, (length,), generator=generator).tolist()


class ScriptedLuffy(LuffyTrainer, Scripted):
    pass


def main(model: str, shapes: str, out: str, per_device_batch: str) -> None:
    from support import FAST, dataset_of, uneven_reward

    options = {
        **FAST,
        "per_device_train_batch_size": int(per_device_batch),
        "max_steps": 1,
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "shuffle_dataset": False,
        "scale_rewards": "none",
    }
    data = dataset_of(Path(shapes), Path(model)).select([0, 1, 2, 4])  # four different questions
    experts = ["red", None, "top left square", "<answer>[4, 8]</answer>"]
    trainer = ScriptedLuffy(
        model=model,
        reward_funcs=[uneven_reward],
        args=LuffyConfig(output_dir=out, expert_column="expert", **options),
        train_dataset=data.add_column("expert", experts),
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        weights = {name: p.detach() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
        torch.save({"weights": weights, "logs": trainer.state.log_history[0]}, Path(out) / "step.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
