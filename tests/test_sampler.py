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
    """Keeps the log-probs that `generate` sampled from, by completion, and compares them in the loss."""

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
        self.sampled = {tuple(ids): row for ids, row in zip(completions, self.logits, strict=True)}
        return completions, logps

    def extra_loss(self, policy, rollout):
        self.differences = []
        for ids, logps, mask in zip(rollout["completion_ids"], policy.logps, policy.mask, strict=True):
            tokens = ids[mask]
            sampler = self.sampled[tuple(tokens.tolist())].log_softmax(dim=-1)[: len(tokens)]
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
