"""One optimizer step of a method with scripted completions; run by `test_distributed.py` under torchrun.

Usage: torchrun --nproc_per_node P two_process_step.py MODEL SHAPES OUT METHOD OPTIONS_AS_JSON PER_DEVICE_BATCH
"""

import json
import sys
from pathlib import Path

import torch
from processes import leave_together

from vlm_entropy.trainers import get_method


class Scripted:
    """Completions that depend on nothing but the prompt and the place in the group, of very different lengths."""

    def sample(self, prompt_ids, images, fields, *, generate):
        generations = self.args.num_generations
        return [self.script(ids, place % generations) for place, ids in enumerate(prompt_ids)], None

    def script(self, prompt: list[int], place: int) -> list[int]:
        generator = torch.Generator().manual_seed(sum(prompt) * 31 + place)
        length = int(torch.randint(1, 9, (1,), generator=generator))
        # Ids below 200 are ordinary tokens of the tiny tokenizer.
        return torch.randint(5, 200, (length,), generator=generator).tolist()


def reward(completion_ids, **kwargs):
    return [float(sum(ids) % 5) for ids in completion_ids]


def main(model: str, shapes: str, out: str, name: str, options: str, per_device_batch: str) -> None:
    from transformers import AutoProcessor

    from vlm_entropy.data.examples import build_dataset
    from vlm_entropy.data.families import FAMILIES
    from vlm_entropy.data.rows import read_rows

    rows, _ = read_rows(f"{shapes}/train.jsonl", f"{shapes}/images")
    processor = AutoProcessor.from_pretrained(model, padding_side="left")
    method = get_method(name)
    config = method.config(
        output_dir=out,
        **json.loads(options),
        per_device_train_batch_size=int(per_device_batch),
        gradient_accumulation_steps=2,
        num_generations=4,
        max_completion_length=8,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        max_grad_norm=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        shuffle_dataset=False,
    )
    dataset = build_dataset(rows, family=FAMILIES["qwen2_5_vl"], processor=processor, task_type="plain")
    dataset = dataset.add_column("is_noisy", [row % 2 == 0 for row in range(len(dataset))])
    trainer_class = type("ScriptedTrainer", (Scripted, method.trainer), {})
    trainer = trainer_class(model=model, reward_funcs=[reward], args=config, train_dataset=dataset)
    trainer.train()
    if trainer.accelerator.is_main_process:
        weights = {name: p.detach() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
        torch.save({"weights": weights, "logs": trainer.state.log_history[0]}, Path(out) / "step.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
