"""Answer every row of a data file with a model, and score the boxes in the answers."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import prepare_multimodal_messages

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import get_family
from vlm_entropy.data.rows import read_rows
from vlm_entropy.rewards import find_answer, find_box, iou_reward

from .statistics import wilson_interval


@dataclass
class RunArguments:
    """One answer of a model to each held-out row, scored by IoU with the gold box."""

    model: str = field(metadata={"help": "Folder with the checkpoint, or its name on the hub."})
    data_file_paths: str = field(metadata={"help": "JSON Lines files in VLM-R1's format, joined by ':'."})
    out: str = field(metadata={"help": "Folder for predictions.jsonl and result.json."})
    image_folders: str | None = field(
        default=None, metadata={"help": "One folder per data file, joined by ':', that its image paths start from."}
    )
    task_type: str = field(default="default", metadata={"help": "Prompt template, the one of the training run."})
    solution_space: Literal["absolute", "relative_1000", "relative_1"] = field(
        default="absolute", metadata={"help": "Coordinates of the boxes in the data, as in training."}
    )
    batch_size: int = field(default=16, metadata={"help": "Rows answered at a time; larger is faster, takes memory."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer, in tokens; longer ones are cut off."})

    temperature: float = field(
        default=0.0, metadata={"help": "0: the greedy answer. Above: one sampled answer; 1 is the policy as trained."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampled answers."})

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number >= 0, got {self.temperature}.")
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


def evaluate(arguments: RunArguments) -> None:
    """Write `predictions.jsonl`, a line per row, and `result.json`, the summary with all that can move it."""
    rows, _ = read_rows(arguments.data_file_paths, arguments.image_folders)
    processor = AutoProcessor.from_pretrained(arguments.model, padding_side="left")
    model: Any = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="auto").eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    dataset = build_dataset(
        rows,
        family=get_family(model.config.model_type),
        processor=processor,
        task_type=arguments.task_type,
        solution_space=arguments.solution_space,
    )
    decoding: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    if arguments.temperature > 0:
        decoding |= {"temperature": arguments.temperature, "top_k": 0}
        torch.manual_seed(arguments.seed)
    responses = list(answer(model, processor, dataset, batch_size=arguments.batch_size, decoding=decoding))
    columns = dataset.select_columns(["solution", "image_size", "input_size", "coordinate_space", "solution_space"])
    scores = iou_reward(responses, **columns.to_dict())
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for row, response, score in zip(rows, responses, scores, strict=True):
            line = {"source": row.source, "question": row.question, "solution": row.answer}
            file.write(json.dumps({**line, "response": response, "iou": score}) + "\n")
    result = {**summarise(responses, scores), **describe(arguments)}
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    low, high = result["accuracy@0.5_interval"]
    print(
        f"{arguments.model}: accuracy@0.5 {result['accuracy@0.5']:.3f} [{low:.3f}, {high:.3f}], "
        f"mean IoU {result['mean_iou']:.3f}, {result['rows']} rows"
    )


@torch.inference_mode()
def answer(
    model: Any, processor: Any, dataset: Dataset, *, batch_size: int, decoding: dict[str, Any]
) -> Iterator[str]:
    """The completion of each row's prompt, its images first; `decoding` goes to `generate`."""
    pad_token_id = processor.tokenizer.pad_token_id
    for start in tqdm(range(0, len(dataset), batch_size), desc="answers", unit="batch"):
        batch = dataset[start : start + batch_size]
        conversations = [
            prepare_multimodal_messages(prompt, images=images)
            for images, prompt in zip(batch["images"], batch["prompt"], strict=True)
        ]
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device)
        ids = model.generate(**inputs, **decoding, pad_token_id=pad_token_id)
        yield from processor.batch_decode(ids[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)


def summarise(responses: Sequence[str], scores: Sequence[float | None]) -> dict[str, Any]:
    """Accuracy at IoU > 0.5 with its 95 % Wilson interval, mean IoU, and why answers failed.

    Rows whose gold is no box (score None) are counted, and left out of every mean.
    """
    judged = [(response, score) for response, score in zip(responses, scores, strict=True) if score is not None]
    if not judged:
        raise ValueError("No row can be judged: none of the answers in the data is a box on an image.")
    answers = [find_answer(response) for response, _ in judged]
    correct = sum(score > 0.5 for _, score in judged)
    return {
        "rows": len(judged),
        "unjudged_rows": len(scores) - len(judged),
        "accuracy@0.5": correct / len(judged),
        "accuracy@0.5_interval": wilson_interval(correct, len(judged)),
        "mean_iou": sum(score for _, score in judged) / len(judged),
        "no_answer": sum(text is None for text in answers) / len(judged),
        "malformed": sum(text is not None and find_box(text) is None for text in answers) / len(judged),
    }


def describe(arguments: RunArguments) -> dict[str, Any]:
    packages = ("vlm-entropy", "torch", "transformers")
    return {**vars(arguments), "versions": {name: version(name) for name in packages}}
