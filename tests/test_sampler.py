"""What the policy samples is what it is trained on: the log-probs of generation are those of the policy forward."""

from dataclasses import replace

import pytest
import torch
from support import FAST, uneven_reward
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import read_rows
from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer


class Compared(EntropyGRPOTrainer):
    """Keeps the logits that `generate` sampled from, and compares their log-probs with those of the loss."""

    differences: list

    def sample(self, prompt_ids, images, fields, *, generate):
        model = self.accelerator.unwrap_model(self.model)
        plain_generate = model.generate

        def logging_generate(*args, **kwargs):
            output = plain_generate(*args, **kwargs, return_dict_in_generate=True, output_logits=True)
            self.logits = torch.stack(output.logits, dim=1).float()
            return output.sequences

        model.generate = logging_generate
        completions, logps = generate(prompt_ids, images, fields)
        model.generate = plain_generate
        return completions, logps

    def prepare_rollout(self, rollout, examples, rewards):
        return {"row": torch.arange(len(examples))}

    def extra_loss(self, policy, rollout):
        self.differences = []
        columns = zip(rollout["row"], rollout["completion_ids"], policy.logps, policy.mask, strict=True)
        for row, ids, logps, mask in columns:
            tokens = ids[mask]
            sampler = self.logits[row, : len(tokens)].log_softmax(dim=-1)
            self.differences += (logps[mask] - sampler.gather(1, tokens[:, None])[:, 0]).abs().tolist()
        return 0.0


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_generation_and_policy_forward_agree_with_images_and_left_padding(shapes, tmp_path, model_type):
    folder = build_tiny_vlm(model_type, tmp_path / "model", hidden_size=32)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 8
    model.save_pretrained(folder)
    rows, _ = read_rows(str(shapes / "train.jsonl"), str(shapes / "images"))
    rows = [
        replace(row, question=row.question + " Find the red square." * (index % 3)) for index, row in enumerate(rows)
    ]
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    options = {**FAST, "per_device_train_batch_size": 12, "max_steps": 1, "model_init_kwargs": None}
    trainer = Compared(
        model=str(folder),
        reward_funcs=[uneven_reward],
        args=EntropyGRPOConfig(output_dir=str(tmp_path / "out"), **options),
        train_dataset=build_dataset(rows, family=FAMILIES[model_type], processor=processor, task_type="plain"),
    )
    trainer.train()
    # float32 log-probs of -7; a wrong position or a leaking mask moves them by 0.3 and more.
    assert len(trainer.differences) > 12
    assert max(trainer.differences) < 1e-4
