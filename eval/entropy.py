"""`python -m vlm_entropy.eval entropy`: the entropy of every token of models' answers, and what it goes with."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlm_entropy.data.asking import Prompt, TransformersEngine, ask
from vlm_entropy.data.convert import write_whole
from vlm_entropy.data.examples import prompt_tokens, to_example
from vlm_entropy.data.families import get_family
from vlm_entropy.data.generation import Decoding
from vlm_entropy.data.models import IMAGE_LIMITS, image_limits, limit_images, load_description
from vlm_entropy.data.preflight.rewards import judging_reward, score
from vlm_entropy.data.processes import processes
from vlm_entropy.data.prompts import format_question
from vlm_entropy.data.resumable import claim
from vlm_entropy.data.rows import Row, read_rows
from vlm_entropy.rewards import find_final_answer, get_rewards
from vlm_entropy.rewards.geometry import Box, to_original
from vlm_entropy.rewards.parsing import find_box, find_point
from vlm_entropy.rewards.token_parts import token_parts

from .entropy_summary import advantages, difference, summarise
from .entropy_table import entropy_table
from .items import digest, row_items, take
from .provenance import model_hash, versions
from .result import jsonable, write_lines
from .token_kinds import KINDS, token_kinds

CORRECT_ABOVE = 0.5


@dataclass
class EntropyArguments:
    """Sample answers of one or several models to the same rows, and measure every token of them."""

    model: list[str] = field(
        metadata={
            "action": "extend",
            "help": "Checkpoints, adapters or names on the hub; the later ones are compared with the first, as in "
            "--model before --model after.",
        }
    )
    data: str = field(metadata={"help": "JSON Lines in VLM-R1's format."})
    out: str = field(
        metadata={"help": "Folder for tokens.jsonl, summary.json and summary.md; RUN/entropy is read by the report."}
    )
    images: str = field(default="", metadata={"help": "Folder that the image paths start from."})
    limit: int | None = field(
        default=None, metadata={"help": "Ask only this many rows, the first ones; fewer give wider intervals."}
    )
    limit_seed: int | None = field(default=None, metadata={"help": "Shuffle by this seed before taking --limit rows."})
    samples: int = field(
        default=8, metadata={"help": "Answers to each row, at least 2 for advantages; the paper trains with 8."}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["iou", "format"],
        metadata={"help": "Their sum makes the advantages; the first must judge, and says what is correct."},
    )
    task_type: str = field(default="default", metadata={"help": "Prompt template, the one of the training."})
    solution_space: Literal["absolute", "relative_1000", "relative_1"] = field(
        default="absolute", metadata={"help": "Coordinates of the boxes in the data, as in training."}
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Longest answer in tokens; longer ones are cut off."})
    batch_size: int = field(default=16, metadata={"help": "Answers drawn at a time; larger is faster, takes memory."})
    seed: int = field(default=0, metadata={"help": "Of the answers."})
    min_pixels: int | None = field(
        default=None, metadata={"help": "Qwen and GLM: smaller images are enlarged to this area."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Qwen and GLM: larger images are shrunk to this area."}
    )
    max_anyres_num: int | None = field(default=None, metadata={"help": "InternVL: most tiles of an image."})

    def __post_init__(self):
        judging_reward(self.rewards[0], flag="--rewards")
        get_rewards(self.rewards)
        if len(set(self.model)) < len(self.model):
            raise ValueError(f"--model names a model twice: {', '.join(self.model)}.")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, since advantages compare answers, got {self.samples}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")


def entropy(arguments: EntropyArguments) -> None:
    """Write `tokens.jsonl` (a line an answer), `summary.json` and `summary.md`, and print the last.

    A run that is started again goes on where it was. Source of what is measured: arXiv 2512.06726, section 3; each
    figure of `entropy_summary` names its place.

    Raises:
        ValueError: for rows or models that cannot be used, or a folder with answers that were drawn otherwise.
    """
    rows = take(read_rows(arguments.data, arguments.images)[0], arguments.limit, seed=arguments.limit_seed)
    described = [load_description(name, flag="--model") for name in arguments.model]
    of_models = [
        answers(arguments, name, rows, *parts, place=place)
        for place, (name, parts) in enumerate(zip(arguments.model, described, strict=True))
    ]
    if processes().is_main_process:
        write(arguments, of_models)
    processes().wait_for_everyone()


def answers(
    arguments: EntropyArguments, name: str, rows: Sequence[Row], config: Any, processor: Any, *, place: int
) -> list[dict[str, Any]]:
    """The lines of tokens.jsonl of one model, in the order of rows and samples.

    Args:
        arguments: of the command.
        name: of the model.
        rows: to ask about.
        config, processor: of the model.
        place: of the model among those of the command, the name of its folder.
    """
    limit_images(processor, **{limit: getattr(arguments, limit) for limit in IMAGE_LIMITS})
    seen = {"family": get_family(config.model_type), "processor": processor, "task_type": arguments.task_type}
    examples = [to_example(row, **seen, solution_space=arguments.solution_space) for row in rows]
    prompts = [
        Prompt(
            [{"role": "user", "content": format_question(row.question, arguments.task_type)}],
            row.images,
            prompt_tokens(row, **seen)[0],
        )
        for row in rows
    ]
    decoding = Decoding(arguments.max_new_tokens, temperature=1.0, samples=arguments.samples)
    folder = Path(arguments.out, f"answers-{place}")
    settings = {
        "model": name,
        "model_hash": model_hash(name, config),
        "prompts_hash": digest([prompt.messages, list(map(str, prompt.images))] for prompt in prompts),
        **{option: getattr(arguments, option) for option in ("data", "images", "samples", "max_new_tokens", "seed")},
        "batch_size": arguments.batch_size,
        **image_limits(processor),
    }
    claim(folder, settings)
    engine = partial(TransformersEngine, name, processor, with_measures=True)
    options: dict[str, Any] = {"batch_size": arguments.batch_size, "seed": arguments.seed, "upright": True}
    lines = ask(prompts, engine, folder=folder, decoding=decoding, **options).lines
    ordered = sorted(lines, key=lambda line: (line["row"], line["sample"]))
    ids = [item.id for item in row_items(rows)]
    judged = judge(arguments.rewards, [examples[line["row"]] for line in ordered], ordered)
    rewards = [reward for _, reward in judged]
    of_groups = advantages(rewards, arguments.samples)
    return [
        {
            "model": name,
            "id": ids[line["row"]],
            "sample": line["sample"],
            "images": list(rows[line["row"]].images),
            "question": rows[line["row"]].question,
            **places(examples[line["row"]], line["response"]),
            "correct": None if first is None else first > CORRECT_ABOVE,
            "reward": reward,
            "advantage": advantage,
            "tokens": described_tokens(line["measures"]),
        }
        for line, (first, reward), advantage in zip(ordered, judged, of_groups, strict=True)
    ]


def judge(
    names: list[str], examples: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]
) -> list[tuple[float | None, float | None]]:
    """The first reward of each answer, and the sum of all; None where the first cannot judge it."""
    texts = [line["response"] for line in lines]
    columns = [score(reward, examples, texts) for reward in get_rewards(names)]
    return [
        (values[0], None if values[0] is None else sum(value or 0.0 for value in values))
        for values in zip(*columns, strict=True)
    ]


def places(example: dict[str, Any], response: str) -> dict[str, Any]:
    """The gold answer as `solution`, the model's as `prediction`; boxes and points as numbers in pixels of the image.

    A solution without a box or point makes both of them text; None for an answer that is missing or cannot be read.
    """
    answer, solution = find_final_answer(response), str(example["solution"])
    gold = _numbers(solution, partial(_to_pixels, example, example["solution_space"]))
    if gold is None or example["image_size"] is None:
        return {"solution": example["solution"], "prediction": answer}
    own = partial(_to_pixels, example, example["coordinate_space"])
    return {"solution": gold, "prediction": None if answer is None else _numbers(answer, own)}


def _numbers(text: str, convert: Callable[[Box], Box]) -> list[float] | None:
    box, point = find_box(text), find_point(text)
    if box is not None:
        return list(convert(box))
    return None if point is None else list(convert((*point, *point))[:2])


def _to_pixels(example: dict[str, Any], space: str, box: Box) -> Box:
    if example["image_size"] is None:
        return box
    return to_original(box, space, image_size=example["image_size"], input_size=example["input_size"])


def described_tokens(measures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measures of an answer's tokens, each with its kind and the part of the answer that it stands in."""
    pieces = [token["text"] for token in measures]
    return [
        {
            "text": token["text"],
            "kind": kind,
            "part": part,
            **{name: token[name] for name in ("entropy", "prob", "top")},
        }
        for token, kind, part in zip(measures, token_kinds(pieces), token_parts(pieces), strict=True)
    ]


def write(arguments: EntropyArguments, of_models: Sequence[list[dict[str, Any]]]) -> None:
    """Write the lines and the figures of all models, and print the table."""
    out = Path(arguments.out)
    write_lines(out / "tokens.jsonl", (line for lines in of_models for line in lines))
    models = [{"model": name, **summarise(lines)} for name, lines in zip(arguments.model, of_models, strict=True)]
    differences = [
        {"model": name, "kind": kind or "all", **difference(of_models[0], lines, kind)}
        for name, lines in zip(arguments.model[1:], of_models[1:], strict=True)
        for kind in (None, *KINDS)
    ]
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    summary = {"settings": settings, "models": models, "differences": differences, "versions": versions()}
    write_whole(out / "summary.json", [json.dumps(jsonable(summary), indent=2, ensure_ascii=False).encode() + b"\n"])
    text = entropy_table(summary)
    write_whole(out / "summary.md", [text.encode()])
    print(text)
