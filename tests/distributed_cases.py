"""One or two optimizer steps of every method on scripted completions, the same under any number of processes."""

from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from support import FAST, uneven_reward
from transformers import AutoConfig, AutoProcessor

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import get_family
from vlm_entropy.data.rows import read_rows
from vlm_entropy.trainers import EntropyGRPOTrainer, get_method


@dataclass(frozen=True)
class Case:
    """A method and its options, and how many rows a forward of all processes together has, in groups of four.

    With 12 rows the second of three groups straddles two processes, with 8 and 16 each process has whole groups.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    rows: int = 12
    accumulation: int = 1
    equal: frozenset[int] = frozenset()
    """Rows of the data whose groups earn equal rewards."""
    text: frozenset[int] = frozenset()
    """Rows of the data without an image."""
    ended: frozenset[int] = frozenset()
    """Rows of the data whose completions end with the token that ends a turn."""


TWO_STEPS = {"num_iterations": 2, "max_steps": 2, "learning_rate": 1e-2}
EXPERT = {"expert_column": "expert"}
TWO_STAGE = {"lambda_max": 0.5, "switch_step": 1}
BY_TOKEN = {**TWO_STAGE, "entropy_norm": "token"}
CALIBRL = {**EXPERT, "exploration_weight": 1.0, "correct_threshold": 3.0}
SAEI = {"alpha": 0.1}
KL_COV = {"kl_cov_coef": 0.5, "kl_cov_per_10000": 2000, **TWO_STEPS}
CLIP_COV = {"clip_cov_low": 0.0, "clip_cov_per_10000": 2000}
CUT = {"mask_truncated_completions": True}
LAST = frozenset({2, 3})
"""Rows of the data that the second process has where both have two whole groups."""

METHOD_CASES = {
    "grpo": Case("grpo", {"beta": 0.04, **TWO_STEPS}),
    "two_stage": Case("two_stage", TWO_STAGE),
    "ecvgpo": Case("ecvgpo", {"r0": 20.0, "std_threshold": 2.5}),
    # Row 0 has no expert: the first process has one prompt with an expert, the second two.
    "calibrl": Case("calibrl", CALIBRL),
    "saei": Case("saei", SAEI, rows=16),
    "egt": Case("egt", {"egt_stages": 3, "shuffle_dataset": True, "max_steps": 2, "learning_rate": 1e-2}),
    "noisy_rollout": Case("noisy_rollout", rows=16),
    "entropy_advantage": Case("entropy_advantage"),
    "entropy_reward": Case("entropy_reward", {"entropy_reward_coef": 2.0}),
    "kl_cov": Case("kl_cov", KL_COV),
    "clip_cov": Case("clip_cov", CLIP_COV),
    # Each process has one group to replace, and finds an informative one at once.
    "dapo": Case("dapo", {"overlong_cache": 4}, rows=16, equal=frozenset({1, 3})),
    # The first process samples a last response for row 0, the second one for nobody.
    "luffy": Case("luffy", {**EXPERT, "luffy_gamma": 1e-3}, rows=16),
    "rl_plus": Case("rl_plus", EXPERT, rows=16),
    "label_entropy": Case("label_entropy", {"label_entropy_coef": 0.5}),
    "intuitor": Case("intuitor"),
    "entropy_minimisation": Case("entropy_minimisation"),
    "sft": Case("sft", {"response_column": "response"}, rows=6, accumulation=2),
}
"""Every method by its name."""

CASES = METHOD_CASES | {
    "grpo, one mean per response": Case("grpo", {"loss_type": "grpo"}),
    "two_stage by token, in parts": Case("two_stage", BY_TOKEN, rows=8, accumulation=2),
    "two_stage by token, one process without tokens": Case(
        "two_stage", {**BY_TOKEN, **CUT}, rows=16, ended=frozenset({0, 1})
    ),
    "calibrl, in parts": Case("calibrl", CALIBRL, rows=8, accumulation=2),
    "saei, text on one process": Case("saei", SAEI, rows=16, text=LAST),
    "entropy_minimisation, in parts": Case("entropy_minimisation", rows=8, accumulation=2),
    "kl_cov, in parts": Case("kl_cov", KL_COV, rows=8, accumulation=2),
    "kl_cov, one process without tokens": Case("kl_cov", {**KL_COV, **CUT}, rows=16, ended=frozenset({0, 1})),
    "clip_cov, in parts": Case("clip_cov", CLIP_COV, rows=8, accumulation=2),
    "clip_cov, one process without tokens": Case("clip_cov", {**CLIP_COV, **CUT}, rows=16, ended=LAST),
    "four methods": Case("two_stage+ecvgpo+calibrl+saei", {**CALIBRL, **SAEI, "r0": 20.0}, rows=16),
    "three methods": Case("entropy_reward+entropy_advantage+label_entropy", {"entropy_reward_coef": 2.0}),
    # In the second step the processes change places: only the first has text.
    "text on one process": Case(
        "grpo", {"max_steps": 2, "learning_rate": 1e-2}, rows=16, text=LAST | frozenset({4, 5})
    ),
}
UNEQUAL = Case("dapo", rows=8, accumulation=2, equal=LAST)
"""Only the second process has groups to replace, and what it gets depends on how many the first has."""


class Scripted(EntropyGRPOTrainer):
    """Completions that depend on the prompt and on how often it was asked for, of 1 to 8 tokens."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked, self.sampled = Counter(), []

    def sample(self, prompt_ids, images, fields, *, generate):
        self.sampled.append([example["row"] for example in self.examples])
        prompts = list(map(tuple, prompt_ids))
        # The first group may have begun on the process before.
        begun = self.accelerator.process_index * len(self.examples) % self.num_generations
        if begun:
            self.asked[prompts[0]] = begun
        ended = {prompt for prompt, example in zip(prompts, self.examples) if example["ended"]}
        end = self.processing_class.tokenizer.eos_token_id
        return [self.script(prompt) + [end] * (prompt in ended) for prompt in prompts], None

    def script(self, prompt):
        place = self.asked[prompt] % self.num_generations
        self.asked[prompt] += 1
        generator = torch.Generator().manual_seed(hash((*prompt, place)) % 2**32)
        length = int(torch.randint(1, 8, (1,), generator=generator))
        # Ids below 200 are ordinary tokens of the tiny tokenizer.
        return torch.randint(5, 200, (length,), generator=generator).tolist()


class Recorded:
    """A trainer that keeps what its method decides: rows, tokens and pictures."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.selected, self.pictures = [], [], []

    def prepare_rollout(self, rollout, examples, rewards):
        self.seen.append([example["row"] for example in examples])
        return super().prepare_rollout(rollout, examples, rewards)

    def prepare_update(self, microbatches):
        extras = super().prepare_update(microbatches)
        for batch, extra in zip(microbatches, extras, strict=True):
            ids = [
                batch[f"{part}_ids"].masked_fill(batch[f"{part}_mask"] == 0, -1) for part in ("prompt", "completion")
            ]
            for row, place in [index for mask in extra.values() for index in mask.nonzero().tolist()]:
                tokens = [token for part in ids for token in part[row].tolist() if token >= 0]
                self.selected.append((tokens, place))
        return extras

    def change_pictures(self, prompts):
        changed = super().change_pictures(prompts)
        for prompt, pictures in zip(prompts, changed, strict=True):
            self.pictures.append((prompt.row.prompt_ids, [picture.double().sum().item() for picture in pictures]))
        return changed


def run_case(
    case: Case, model: Path, shapes: Path, out: Path, *, processes: int, order: list[int] | None = None, **changes: Any
) -> dict[str, Any]:
    """A case trained by all processes together: the weights after it, its log lines, and what was decided where.

    Args:
        order: rows of the data in place of all, from 0.
        changes: options in place of those of the case.
    """
    options = {**FAST, "max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 0.0, **case.options, **changes}
    options["per_device_train_batch_size"] = case.rows // processes
    options["gradient_accumulation_steps"] = case.accumulation
    if case.method == "sft":
        trainer = sft_trainer(options, model, shapes, out)
    else:
        data = rows_of(shapes, model, case)
        trainer = grpo_trainer(case, options, model, data if order is None else data.select(order), out)
    trainer.train()
    record = {"weights": weights_of(trainer), "logs": trainer.state.log_history[:-1]}
    record["sharding"] = getattr(trainer.accelerator.state.deepspeed_plugin, "zero_stage", 0)
    for what in ("seen", "selected", "sampled", "pictures"):
        record[what] = gather_object([getattr(trainer, what, [])])
    record["checksums"] = gather_object([sum(weight.double().sum().item() for weight in record["weights"].values())])
    return record


def grpo_trainer(case: Case, options: dict[str, Any], model: Path, data: Dataset, out: Path):
    method = get_method(case.method)
    bases = (Recorded, Scripted) if method.trainer is EntropyGRPOTrainer else (Recorded, method.trainer, Scripted)

    def reward(completion_ids, row, **kwargs):
        return [0.0 if number in case.equal else value for number, value in zip(row, uneven_reward(completion_ids))]

    config = method.config(output_dir=str(out), **{"shuffle_dataset": False, **options})
    return type("Step", bases, {})(model=str(model), reward_funcs=[reward], args=config, train_dataset=data)


def sft_trainer(options: dict[str, Any], model: Path, shapes: Path, out: Path):
    method = get_method("sft")
    known = {option.name for option in fields(method.config)}
    config = method.config(output_dir=str(out), **{name: options[name] for name in options if name in known})
    texts = ["red", "top left square", "blue circle", "a"]
    data = dataset_of(shapes, model).select_columns(["prompt", "images"])
    completions = [[{"role": "assistant", "content": texts[row % 4]}] for row in range(len(data))]
    return method.trainer(model=str(model), args=config, train_dataset=data.add_column("completion", completions))


def dataset_of(shapes: Path, model: Path) -> Dataset:
    rows, _ = read_rows(str(shapes / "train.jsonl"), str(shapes / "images"))
    processor = AutoProcessor.from_pretrained(model, padding_side="left")
    family = get_family(AutoConfig.from_pretrained(model).model_type)
    return build_dataset(rows, family=family, processor=processor, task_type="plain")


def rows_of(shapes: Path, model: Path, case: Case) -> Dataset:
    """Twelve rows with different questions, and the columns that methods read."""
    data = dataset_of(shapes, model)
    questions = [prompt[0]["content"] for prompt in data["prompt"]]
    data = data.select([questions.index(question) for question in dict.fromkeys(questions)])
    experts = ["red", "top left square", "<answer>[4, 8]</answer>"]
    columns = {
        "row": list(range(12)),
        "is_noisy": [row % 2 == 0 for row in range(12)],
        "response_entropy": [float(row * 7 % 12) for row in range(12)],
        "expert": [experts[row % 3] if row else None for row in range(12)],
        "ended": [row in case.ended for row in range(12)],
    }
    for name, values in columns.items():
        data = data.add_column(name, values)
    return data.map(lambda example: {**example, "images": []} if example["row"] in case.text else example)


def weights_of(trainer) -> dict[str, torch.Tensor]:
    parameters = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}
