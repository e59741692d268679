"""Two updates of KL-Cov and one of Clip-Cov, each on one rollout; run by `test_covariance_training.py` under torchrun.

Usage: torchrun --nproc_per_node P covariance_two_processes.py MODEL SHAPES OUT PER_DEVICE_BATCH
"""

import math
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from processes import leave_together

from vlm_entropy.trainers.clip_cov import ClipCovConfig, ClipCovTrainer
from vlm_entropy.trainers.covariance import update_covariances
from vlm_entropy.trainers.kl_cov import KlCovConfig, KlCovTrainer

OPTIONS = {
    "kl_cov": {"kl_cov_coef": 0.5, "kl_cov_per_10000": 2000, "num_iterations": 2, "max_steps": 2},
    "clip_cov": {"clip_cov_low": 0.0, "clip_cov_high": math.inf, "clip_cov_per_10000": 2000, "max_steps": 1},
}


class Scripted:
    """Completions that depend on nothing but the prompt and the place in the group, of very different lengths."""

    def sample(self, prompt_ids, images, fields, *, generate):
        return [self.script(ids, place % 4) for place, ids in enumerate(prompt_ids)], None

    def script(self, prompt: list[int], place: int) -> list[int]:
        generator = torch.Generator().manual_seed(sum(prompt) * 31 + place)
        length = int(torch.randint(1, 9, (1,), generator=generator))
        return torch.randint(5, 200, (length,), generator=generator).tolist()

    def prepare_update(self, microbatches):
        extras = super().prepare_update(microbatches)
        self.selected, self.tokens = [], 0
        for batch, extra in zip(microbatches, extras, strict=True):
            self.tokens += int(batch["completion_mask"].sum())
            (mask,) = extra.values()
            for row, place in mask.nonzero().tolist():
                prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
                completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
                self.selected.append((sum(prompt), completion, place))
        return extras


class ScriptedKlCov(Scripted, KlCovTrainer):
    pass


class ScriptedClipCov(Scripted, ClipCovTrainer):
    pass


TRAINERS = {"kl_cov": (ScriptedKlCov, KlCovConfig), "clip_cov": (ScriptedClipCov, ClipCovConfig)}


def covariances_of(lengths: list[int], accelerator: Accelerator) -> list[float]:
    """Covariances of four rows of the given lengths, spread over the processes in order, two in a micro-batch."""
    advantages, logps = torch.tensor([1.0, -1.0, 2.0, 0.5]), -torch.arange(12.0).view(4, 3)
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    share = 4 // accelerator.num_processes
    rows = range(accelerator.process_index * share, (accelerator.process_index + 1) * share, 2)
    batches = [
        {"advantages": advantages[row : row + 2], "completion_mask": mask[row : row + 2].long()} for row in rows
    ]
    update = update_covariances(batches, [logps[row : row + 2] for row in rows], accelerator=accelerator)
    counts = [int(part.sum()) for part in update.to_microbatches(update.values == update.values)]
    assert counts == [int(batch["completion_mask"].sum()) for batch in batches]
    return update.values.tolist()


def train(method: str, model: Path, shapes: Path, out: str, per_device_batch: int) -> dict:
    from support import FAST, Recorder, dataset_of, uneven_reward

    trainer_class, config_class = TRAINERS[method]
    options = {
        **FAST,
        "per_device_train_batch_size": per_device_batch,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.0,
        "shuffle_dataset": False,
    }
    trainer = trainer_class(
        model=str(model),
        reward_funcs=[uneven_reward],
        args=config_class(output_dir=out, **options, **OPTIONS[method]),
        train_dataset=dataset_of(shapes, model),
    )
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    return {
        "selected": sorted(gather_object(trainer.selected)),
        "tokens": sum(gather_object([trainer.tokens])),
        "gradients": recorder.gradients[-1],
        "logs": trainer.state.log_history[0],
    }


def main(model: str, shapes: str, out: str, per_device_batch: str) -> None:
    result = {name: train(name, Path(model), Path(shapes), out, int(per_device_batch)) for name in TRAINERS}
    accelerator = Accelerator(cpu=True)
    for name, lengths in {"uneven": [0, 0, 3, 1], "empty": [0, 0, 0, 0]}.items():
        result[name] = covariances_of(lengths, accelerator)
    if accelerator.is_main_process:
        torch.save(result, Path(out) / "step.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
