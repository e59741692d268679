"""Ask a model all items of a benchmark, keep every answer, and score them: `eval run`, and `eval score` without it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from vlm_entropy.data.asking import Engine, Prompt, TransformersEngine, ask
from vlm_entropy.data.examples import chat_tokens
from vlm_entropy.data.families import Family, get_family
from vlm_entropy.data.generation import Decoding
from vlm_entropy.data.models import IMAGE_LIMITS, image_limits, limit_images, load_description
from vlm_entropy.data.processes import processes
from vlm_entropy.data.resumable import claim
from vlm_entropy.data.rows import read_rows
from vlm_entropy.data.vllm_engine import VllmEngine

from .arguments import ROWS, DataArguments, RunArguments, ScoreArguments
from .benchmarks import BENCHMARKS
from .benchmarks.rows import SYNTHETIC, rows_protocol
from .items import check_ids, digest, items_hash, picture_sizes, read_items, row_items, take
from .protocols import Item, Protocol, View
from .provenance import model_hash
from .result import DECODING, write_lines, write_result


def run(arguments: RunArguments) -> None:
    """Write `predictions.jsonl` (every answer), `scores.jsonl` (every item) and `result.json`; print the figures.

    Run again after a kill, it asks what is left; run again when done, it only scores. Under `torchrun` or
    `accelerate launch` the items are shared among the processes.
    """
    folder = Path(arguments.out)
    protocol, items, published = resolve(arguments)
    config, processor = load_description(arguments.model, flag="--model", revision=arguments.revision)
    family = get_family(config.model_type)
    limit_images(processor, **{name: getattr(arguments, name) for name in IMAGE_LIMITS})
    space = arguments.coordinate_space or family.space
    views = [item_view(item, family=family, processor=processor, space=space) for item in items]
    prompts = [
        item_prompt(item, view, protocol=protocol, family=family, processor=processor)
        for item, view in zip(items, views, strict=True)
    ]
    decoding = chosen_decoding(arguments, protocol)
    settings = {
        **settings_of(arguments, decoding, items, prompts),
        **image_limits(processor),
        "coordinate_space": space,
        "model_type": family.model_type,
        "model_hash": model_hash(arguments.model, config),
    }
    claim(folder, settings)
    finished = ask(
        prompts,
        partial(load_engine, arguments, processor, config=config, max_images=max(len(item.images) for item in items)),
        folder=folder,
        decoding=decoding,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        upright=arguments.bench in ROWS,
    )
    if processes().is_main_process:
        lines = predictions(finished.lines, items, views)
        write_lines(folder / "predictions.jsonl", lines)
        write_result(folder, settings, protocol, items, lines, published=published, seconds=finished.seconds)
    processes().wait_for_everyone()


def settings_of(
    arguments: RunArguments, decoding: Decoding, items: Sequence[Item], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """What answers depend on besides the model and the limits of its images; `prompt` is the first one asked."""
    settings = {
        **asdict(arguments),
        **asdict(decoding),
        **dict.fromkeys(IMAGE_LIMITS),
        "protocol": arguments.protocol or next(iter(protocols(arguments))),
        "items_hash": items_hash(items),
        "prompts_hash": digest(prompt.messages for prompt in prompts),
        "prompt": prompts[0].messages,
    }
    return {name: value for name, value in settings.items() if name != "out"}


def predictions(lines: Sequence[dict[str, Any]], items: Sequence[Item], views: Sequence[View]) -> list[dict[str, Any]]:
    """The lines of `ask` in the order of items and samples, by the item's id, with the size of the image it saw."""
    ordered = sorted(lines, key=lambda line: (line["row"], line["sample"]))
    return [
        {
            "id": items[line["row"]].id,
            "input_size": views[line["row"]].input_size,
            **{name: value for name, value in line.items() if name != "row"},
        }
        for line in ordered
    ]


def item_view(item: Item, *, family: Family, processor: Any, space: str) -> View:
    """How the model sees an item."""
    size = item.image_size and family.input_size(item.image_size, processor.image_processor)
    return View(family.model_type, space, size)


def item_prompt(item: Item, view: View, *, protocol: Protocol, family: Family, processor: Any) -> Prompt:
    """The question about an item, with its length."""
    messages = protocol.prompt(item, view)
    sizes = [item.image_size, *picture_sizes(item.images[1:])] if item.image_size else []
    tokens, _ = chat_tokens(messages, sizes, family=family, processor=processor)
    return Prompt(messages, item.images, tokens)


def load_engine(arguments: RunArguments, processor: Any, *, config: Any, max_images: int) -> Engine:
    """What `--engine` names, with the model loaded."""
    if arguments.engine == "transformers":
        return TransformersEngine(arguments.model, processor, revision=arguments.revision)
    limits = {"config": config, "max_images": max_images}
    return VllmEngine(arguments.model, processor, revision=arguments.revision, **limits)


def score(arguments: ScoreArguments) -> None:
    """Write `scores.jsonl` and `result.json` of a run anew."""
    folder = Path(arguments.run)
    if not (folder / "predictions.jsonl").is_file():
        raise ValueError(f"{str(folder / 'predictions.jsonl')!r} is missing: `eval run` writes it when it is done.")
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    changed = {name: value for name, value in vars(arguments).items() if name != "run" and value is not None}
    data = DataArguments(**{option.name: {**settings, **changed}[option.name] for option in fields(DataArguments)})
    protocol, items, published = resolve(data)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    if items_hash(items) != settings["items_hash"]:
        raise ValueError(f"{data.data!r} is not the data that {str(folder)!r} has answers to: its items differ.")
    write_result(
        folder, settings, protocol, items, lines, published=published, seconds=None, scored_by=arguments.protocol
    )


def protocols(arguments: DataArguments) -> dict[str, Protocol]:
    """The protocols of `--bench`.

    Raises:
        ValueError: for an unknown benchmark, or rewards that judge nothing.
    """
    if arguments.bench in ROWS:
        names = arguments.rewards or SYNTHETIC.get(arguments.bench, ["iou"])
        rules = {"task_type": arguments.task_type, "solution_space": arguments.solution_space}
        return {"rewards": rows_protocol(names, **rules)}
    if arguments.bench not in BENCHMARKS:
        raise ValueError(f"--bench is {arguments.bench!r}; allowed are {', '.join([*ROWS, *BENCHMARKS])}.")
    return BENCHMARKS[arguments.bench].protocols


def resolve(arguments: DataArguments) -> tuple[Protocol, list[Item], int | None]:
    """The protocol and the items that the arguments name, checked, and how many items the published data asks.

    Raises:
        ValueError: for a name that is unknown, or data that cannot be used.
    """
    known = protocols(arguments)
    name = arguments.protocol or next(iter(known))
    if name not in known:
        raise ValueError(f"--protocol is {name!r}; {arguments.bench} has {', '.join(known)}.")
    if arguments.bench in ROWS:
        rows, _ = read_rows(arguments.data, arguments.images)
        return known[name], take(row_items(rows), arguments.limit, seed=arguments.limit_seed), None
    benchmark, split = BENCHMARKS[arguments.bench], arguments.split
    items = read_items(benchmark, arguments.data, source=arguments.format, split=split, images=arguments.images)
    asked = [questions for questions in map(benchmark.expand, items) if questions]
    if not asked:
        raise ValueError(f"None of the {len(items)} items of {arguments.data!r} belongs to {arguments.bench}.")
    questions = [one for part in take(asked, arguments.limit, seed=arguments.limit_seed) for one in part]
    check_ids(questions, arguments.data)
    published = benchmark.sizes.get(None, benchmark.sizes.get(split))
    return known[name], questions, published and published * len(asked[0])


def chosen_decoding(arguments: RunArguments, protocol: Protocol) -> Decoding:
    """The protocol's decoding, with what the arguments say otherwise."""
    given = {name: getattr(arguments, name) for name in DECODING}
    return Decoding(**{name: getattr(protocol, name) if given[name] is None else given[name] for name in DECODING})
