"""What SaEI's attack does to the entropy of a model that sees: warm-started checkpoints, held-out rows (minutes)."""

import os
import statistics
import subprocess
import sys

import pytest
import torch
from support import FAST, uneven_reward
from transformers import AutoProcessor

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import read_rows
from vlm_entropy.trainers.changed_images import Prompt
from vlm_entropy.trainers.noisy_rollout import NoisyRolloutTrainer
from vlm_entropy.trainers.pixels import row_pictures
from vlm_entropy.trainers.saei import SaeiTrainer, attacked_entropy, select_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROMPTS, ANSWERS = 128, 6
LARGEST_NUMBER = {"qwen2_5_vl": 32, "internvl": 1000}
STEPS = {"qwen2_5_vl": 700, "internvl": 400}


def run(module, *flags, **options):
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *flags, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl"])
def warm(request, tmp_path_factory):
    """Model type, checkpoint and data of a model that a short supervised run has taught to look."""
    folder, model_type = tmp_path_factory.mktemp("warm"), request.param
    run("vlm_entropy.data", "make", task="shapes", rows=4096, held_out=256, out=folder / "data")
    run(
        "vlm_entropy.data",
        "build",
        model_type=model_type,
        largest_number=LARGEST_NUMBER[model_type],
        out=folder / "model",
    )
    run(
        "vlm_entropy.trainers",
        method="sft",
        response_column="response",
        task_type="plain",
        model_name_or_path=folder / "model",
        data_file_paths=folder / "data" / "train.jsonl",
        image_folders=folder / "data" / "images",
        output_dir=folder / "warm",
        max_steps=STEPS[model_type],
        learning_rate=3e-3,
        warmup_steps=20,
        per_device_train_batch_size=32,
        bf16="false",
        use_cpu="true",
        gradient_checkpointing="false",
        save_strategy="no",
        report_to="none",
        disable_tqdm="true",
    )
    return model_type, folder / "warm", folder / "data"


class Keep:
    """Remembers the prompts that were attacked and the rows with their new images."""

    def _changed_rows(self, prompts):
        self.before, self.after = prompts, super()._changed_rows(prompts)
        return self.after


class Attack(Keep, SaeiTrainer):
    pass


class Noise(Keep, NoisyRolloutTrainer):
    pass


def make(trainer_class, warm, tmp_path, **options):
    model_type, folder, data = warm
    rows, _ = read_rows(str(data / "heldout.jsonl"), str(data / "images"))
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    sizes = {"per_device_train_batch_size": 96, "num_generations": 2 * ANSWERS, "max_completion_length": 24}
    options = {**FAST, **sizes, "model_init_kwargs": {"dtype": torch.float32}, "max_steps": 1, **options}
    return trainer_class(
        model=str(folder),
        reward_funcs=[uneven_reward],
        args=trainer_class.config_class(output_dir=str(tmp_path), **options),
        train_dataset=build_dataset(rows, family=FAMILIES[model_type], processor=processor, task_type="plain"),
    )


def held_out_batch(trainer):
    prompts = [row for row in trainer.train_dataset.select(range(PROMPTS)) for _ in range(2 * ANSWERS)]
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": row["images"][0]},
                    {"type": "text", "text": row["prompt"][0]["content"]},
                ],
            }
        ]
        for row in prompts
    ]
    fields = dict(
        trainer.processing_class.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True
        )
    )
    del fields["attention_mask"]
    return fields.pop("input_ids"), [row["images"] for row in prompts], fields


class Sampler:
    """Samples the clean answers once, by transformers, and gives every trainer the same ones."""

    def __init__(self, trainer):
        self.trainer, self.answers = trainer, None

    def __call__(self, prompt_ids, images, fields, *, num_generations):
        if self.answers is None:
            torch.manual_seed(0)
            width = max(map(len, prompt_ids))
            pad = self.trainer.processing_class.tokenizer.pad_token_id
            eos = self.trainer.processing_class.tokenizer.eos_token_id
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompt_ids])
            pixels = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}
            if "mm_token_type_ids" in fields:
                types = [[0] * (width - len(row)) + list(row) for row in fields["mm_token_type_ids"]]
                pixels["mm_token_type_ids"] = torch.tensor(types)
            with torch.no_grad():
                out = self.trainer.model.generate(
                    input_ids=ids,
                    attention_mask=(ids != pad).long(),
                    **pixels,
                    generation_config=self.trainer.generation_config,
                )
            rows = [row[width:].tolist() for row in out]
            self.answers = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
        return self.answers, None


def entropies_before_and_after(trainer, judge, scope):
    """Per prompt, the mean entropy of the tokens selected on the clean image, on either image."""
    pairs = []
    for prompt, row in zip(trainer.before, trainer.after, strict=True):
        changed = Prompt(row, row_pictures(row, judge._layout), prompt.completions)
        with torch.no_grad():
            clean, masks = judge._entropies([prompt], [prompt.pictures], as_processed=True)
            new, _ = judge._entropies([changed], [changed.pictures], as_processed=True)
        keep_mask = select_tokens(clean[0], masks[0], scope=scope)
        pairs.append((attacked_entropy(clean[0], keep_mask).item(), attacked_entropy(new[0], keep_mask).item()))
    return pairs


def summary(pairs):
    """Relative rise of the batch mean, its standard error over prompts, and the share of prompts that rise."""
    mean = statistics.fmean(before for before, _ in pairs)
    rises = [(after - before) / mean for before, after in pairs]
    error = statistics.stdev(rises) / len(rises) ** 0.5
    return statistics.fmean(rises), error, statistics.fmean(rise > 0 for rise in rises), mean


def test_the_attack_raises_entropy_and_random_signs_of_the_same_size_do_not(warm, tmp_path):
    judge = make(Attack, warm, tmp_path)
    sampler = Sampler(judge)
    batch = held_out_batch(judge)
    results = {}
    for alpha in (2 / 255, 3 / 255):
        for scope in ("all", "response", "pooled"):
            trainer = make(Attack, warm, tmp_path, token_scope=scope, alpha=alpha)
            trainer.sample(*batch, generate=sampler)
            results["attack", scope, alpha] = summary(entropies_before_and_after(trainer, judge, scope))
        trainer = make(Noise, warm, tmp_path, noise="sign", alpha=alpha)
        trainer.sample(*batch, generate=sampler)
        for scope in ("all", "response"):
            results["noise", scope, alpha] = summary(entropies_before_and_after(trainer, judge, scope))
    for (kind, scope, alpha), (rise, error, share, mean) in results.items():
        print(
            f"{warm[0]:11} {kind:6} {scope:8} alpha {255 * alpha:.0f}/255: entropy {mean:.3f} nats, "
            f"rise {100 * rise:+.2f} % +- {100 * error:.2f}, prompts that rise {100 * share:.0f} %"
        )
    for alpha in (2 / 255, 3 / 255):
        rise, error, share, _ = results["attack", "all", alpha]
        assert share >= 0.9
        assert rise > 5 * error
        rise, error, _, _ = results["attack", "response", alpha]
        assert rise > 3 * error
        for scope in ("all", "response"):
            noise, error, share, _ = results["noise", scope, alpha]
            assert abs(noise) < max(3 * error, 0.2 * results["attack", scope, alpha][0])
            assert share < 0.75
