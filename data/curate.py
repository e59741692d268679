"""Score the rows of a file by the entropy of a model's responses, and keep the certain ones: `data curate`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from .convert import write_whole
from .curation import CurationReport, curation_report, keep_indices, response_entropy
from .examples import prompt_tokens, to_example
from .families import get_family
from .files import read_items
from .models import IMAGE_LIMITS, limit_images, load_description
from .preflight.rewards import judging_reward, score
from .prompts import format_question
from .rows import Row, read_rows

ENTROPY_COLUMN = "response_entropy"
ACCURACY_COLUMN = "response_accuracy"


@dataclass
class CurateArguments:
    """Sample a model's responses to every row, and write the rows with the entropy of these responses, in nats.

    The rows stay in order, with two more columns: `response_entropy`, null where every response is empty, and
    `response_accuracy`, the mean reward. With --keep_fraction or --max_entropy the rows of low entropy go to a second
    file, lowest first. A run that is started again after a kill goes on where it was, and when it has all responses
    only cuts anew.
    """

    model: str = field(metadata={"help": "Folder of a checkpoint or an adapter, or a name on the hub."})
    data: str = field(metadata={"help": "JSON Lines in VLM-R1's format."})
    out: str = field(
        metadata={
            "help": "File for the scored rows, .jsonl; beside it .report.json, and .jsonl.parts/ with the responses."
        }
    )
    images: str = field(default="", metadata={"help": "Folder that the image paths start from."})
    samples: int = field(
        default=1, metadata={"help": "Responses of each row; more make its entropy surer and cost as much more."}
    )
    keep_fraction: float | None = field(
        default=None, metadata={"help": "Keep this share of the rows, in (0, 1]; smaller keeps only surer ones."}
    )
    max_entropy: float | None = field(
        default=None, metadata={"help": "Keep the rows up to this entropy in nats, in place of --keep_fraction."}
    )
    kept: str | None = field(
        default=None, metadata={"help": "File for the kept rows. Default: the name of --out, ending in _kept.jsonl."}
    )
    reward: str = field(
        default="preference", metadata={"help": "Reward that judges the responses for the report: iou, math, ..."}
    )
    task_type: str = field(default="default", metadata={"help": "Prompt template, the one of the training."})
    solution_space: Literal["absolute", "relative_1000", "relative_1"] = field(
        default="absolute", metadata={"help": "Coordinates of the boxes in the data, as in training."}
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Longest response in tokens; longer ones are cut off."})
    batch_size: int = field(
        default=16, metadata={"help": "Responses drawn at a time; larger is faster, takes memory."}
    )
    seed: int = field(default=0, metadata={"help": "Of the responses."})
    min_pixels: int | None = field(
        default=None, metadata={"help": "Qwen and GLM: smaller images are enlarged to this area."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Qwen and GLM: larger images are shrunk to this area."}
    )
    max_anyres_num: int | None = field(default=None, metadata={"help": "InternVL: most tiles of an image."})

    def __post_init__(self):
        if self.keep_fraction is not None or self.max_entropy is not None:
            keep_indices([0.0], keep_fraction=self.keep_fraction, max_entropy=self.max_entropy)
        judging_reward(self.reward, flag="--reward")
        if not self.out.endswith(".jsonl"):
            raise ValueError(f"--out is {self.out!r}; a file ending in .jsonl is needed.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")

    def kept_path(self) -> Path:
        return Path(self.kept or self.out.removesuffix(".jsonl") + "_kept.jsonl")


def run(arguments: CurateArguments) -> str:
    """Score, cut and report as `arguments` say; return the lines to print, nothing on other than the first process.

    Raises:
        ValueError: for data that cannot be used, or a folder of responses that were drawn with other settings.
    """
    from .processes import processes

    config, processor = load_description(arguments.model, flag="--model")
    limit_images(processor, **{name: getattr(arguments, name) for name in IMAGE_LIMITS})
    seen = {"family": get_family(config.model_type), "processor": processor, "task_type": arguments.task_type}
    rows = unscored_rows(arguments)
    examples = [to_example(row, **seen, solution_space=arguments.solution_space) for row in rows]
    lengths = [prompt_tokens(row, **seen)[0] for row in rows]
    lines, seconds = sample_responses(arguments, rows, lengths, processor)
    if not processes().is_main_process:
        return ""
    responses = [[line["response"] for line in of_row] for of_row in lines]
    judged = accuracies(judging_reward(arguments.reward, flag="--reward"), examples, responses)
    entropies = [
        response_entropy([line["entropy"] if line["response"].strip() else None for line in of_row])
        for of_row in lines
    ]
    tokens = sum(line["tokens"] for of_row in lines for line in of_row)
    cost = {"prompt_tokens": sum(lengths), "response_tokens": tokens, "seconds": seconds}
    kept = keep(arguments, entropies)
    report = curation_report(entropies, judged, noisy_column(rows), kept, samples=arguments.samples, cost=cost)
    return write(arguments, entropies, judged, kept, report)


def unscored_rows(arguments: CurateArguments) -> list[Row]:
    """The rows of the data.

    Raises:
        ValueError: for rows that cannot be used, or that have been scored.
    """
    rows, _ = read_rows(arguments.data, arguments.images)
    columns = [name for row in rows for name in (ENTROPY_COLUMN, ACCURACY_COLUMN) if name in row.columns]
    if columns:
        raise ValueError(f"{arguments.data!r} has a column {columns[0]} already; start from the file without it.")
    return rows


def sample_responses(
    arguments: CurateArguments, rows: Sequence[Row], lengths: Sequence[int], processor: Any
) -> tuple[list[list[dict[str, Any]]], float]:
    """The sampled responses of each row (see `asking.ask`), and the seconds that it took.

    Args:
        arguments: of the command.
        rows: what to ask about.
        lengths: tokens of each row's prompt.
        processor: of the model.
    """
    from .asking import Prompt, TransformersEngine, ask
    from .generation import Decoding
    from .resumable import claim

    names = ("model", "data", "images", "samples", "task_type", "max_new_tokens", "batch_size", "seed")
    settings = {name: getattr(arguments, name) for name in (*names, *IMAGE_LIMITS)}
    folder = Path(f"{arguments.out}.parts")
    claim(folder, {**settings, "rows": len(rows)})
    prompts = [
        Prompt([{"role": "user", "content": format_question(row.question, arguments.task_type)}], row.images, length)
        for row, length in zip(rows, lengths, strict=True)
    ]
    finished = ask(
        prompts,
        partial(TransformersEngine, arguments.model, processor, with_entropy=True),
        folder=folder,
        decoding=Decoding(arguments.max_new_tokens, temperature=1.0, samples=arguments.samples),
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        upright=True,
    )
    lines: list[list[dict[str, Any]]] = [[] for _ in rows]
    for line in sorted(finished.lines, key=lambda line: (line["row"], line["sample"])):
        lines[line["row"]].append(line)
    return lines, finished.seconds


def accuracies(
    reward: Callable, examples: Sequence[dict[str, Any]], responses: Sequence[Sequence[str]]
) -> list[float | None]:
    """The mean reward of the responses to each example, None where the reward cannot judge it."""
    repeated = [example for example, texts in zip(examples, responses, strict=True) for _ in texts]
    scores = iter(score(reward, repeated, [text for texts in responses for text in texts]))
    of_rows = [[next(scores) for _ in texts] for texts in responses]
    judged = [[value for value in of_row if value is not None] for of_row in of_rows]
    return [fmean(of_row) if of_row else None for of_row in judged]


def keep(arguments: CurateArguments, entropies: Sequence[float | None]) -> list[int] | None:
    """The rows to keep, lowest entropy first; None if the arguments do not ask for it."""
    if arguments.keep_fraction is None and arguments.max_entropy is None:
        return None
    return keep_indices(entropies, keep_fraction=arguments.keep_fraction, max_entropy=arguments.max_entropy)


def noisy_column(rows: Sequence[Row]) -> list[bool] | None:
    """Whether each label is known to be wrong; None unless every row says so."""
    values = [row.columns.get("is_noisy") for row in rows]
    return [bool(value) for value in values] if all(isinstance(value, bool) for value in values) else None


def write(
    arguments: CurateArguments,
    entropies: Sequence[float | None],
    judged: Sequence[float | None],
    kept: Sequence[int] | None,
    report: CurationReport,
) -> str:
    """Write the scored rows, the kept ones and the report; return the lines to print."""
    scored = [
        {**record, ENTROPY_COLUMN: entropy, ACCURACY_COLUMN: accuracy}
        for (_, record), entropy, accuracy in zip(read_items(arguments.data), entropies, judged, strict=True)
    ]
    out, report_path = Path(arguments.out), Path(arguments.out.removesuffix(".jsonl") + ".report.json")
    write_whole(out, map(_json_line, scored))
    write_whole(report_path, [json.dumps(report.to_json(), indent=2).encode() + b"\n"])
    lines = [str(report), f"wrote {out}: {len(scored)} rows, and {report_path}"]
    if kept is not None:
        path = arguments.kept_path()
        write_whole(path, (_json_line(scored[row]) for row in kept))
        lines.append(f"wrote {path}: {len(kept)} rows, lowest entropy first")
    return "\n".join(lines)


def _json_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"
