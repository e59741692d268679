"""From the answers of a run to its files: `scores.jsonl`, a line per item, and `result.json`, every figure."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlm_entropy.data.convert import write_whole

from .protocols import Item, Protocol, Score, View
from .provenance import versions
from .summary import compare_with, item_values, summarise

DECODING = ("max_new_tokens", "temperature", "top_p", "samples")


def obstacles(settings: dict[str, Any], protocol: Protocol, *, items: int, published: int | None) -> list[str]:
    """Why a run is not the published procedure of its protocol.

    Args:
        settings: of the run.
        protocol: by which it is scored.
        items: how many were asked.
        published: how many the published data asks, None if that is not known.
    """
    differ = [f"--{name} {settings[name]}" for name in DECODING if settings[name] != getattr(protocol, name)]
    return [*differ, *([] if published in (None, items) else [f"{items} items of {published}"])]


def write_result(
    folder: Path,
    settings: dict[str, Any],
    protocol: Protocol,
    items: Sequence[Item],
    lines: Sequence[dict[str, Any]],
    *,
    published: int | None,
    seconds: float | None,
    scored_by: str | None = None,
) -> None:
    """Score the answers, write `scores.jsonl` and `result.json`, and print the figures."""
    scores = score_lines(settings, protocol, items, lines)
    summary = summarise(items, scores, protocol)
    values = [item_values(of_item) for of_item in scores]
    write_lines(
        folder / "scores.jsonl",
        ({"id": item.id, "values": jsonable(of_item)} for item, of_item in zip(items, values, strict=True)),
    )
    against = compare_with(
        protocol.references,
        summary,
        split=settings["split"],
        obstacles=obstacles(settings, protocol, items=len(items), published=published),
    )
    truncated = sum(line["truncated"] for line in lines) / len(lines)
    tokens = sum(line["tokens"] for line in lines)
    result = {
        **settings,
        "scored_by": scored_by or settings["protocol"],
        "source": protocol.source,
        "items": len(items),
        **summary,
        "truncated": truncated,
        "tokens": tokens,
        "seconds": seconds,
        "references": against,
        "versions": versions(),
    }
    write_whole(folder / "result.json", [json.dumps(jsonable(result), indent=2, ensure_ascii=False).encode() + b"\n"])
    print(describe(result))


def score_lines(
    settings: dict[str, Any], protocol: Protocol, items: Sequence[Item], lines: Iterable[dict[str, Any]]
) -> list[list[Score]]:
    """The scores of each item's answers, in the order of items and samples.

    Raises:
        ValueError: for an answer to no item, or an item without all its answers.
    """
    by_id = {item.id: item for item in items}
    scores: defaultdict[str, list[Score]] = defaultdict(list)
    for line in lines:
        if line["id"] not in by_id:
            raise ValueError(f"There is an answer to {line['id']!r}, which is no item of {settings['data']!r}.")
        size = line["input_size"]
        view = View(settings["model_type"], settings["coordinate_space"], size and (size[0], size[1]))
        scores[line["id"]].append(protocol.score(by_id[line["id"]], line["response"], view))
    for item in items:
        if len(scores[item.id]) != settings["samples"]:
            raise ValueError(f"Item {item.id!r} has {len(scores[item.id])} answers of {settings['samples']}.")
    return [scores[item.id] for item in items]


def describe(result: dict[str, Any]) -> str:
    """The figures of a result in lines of text."""
    name = result["bench"] + (f" {result['split']}" if result["split"] else "")
    lines = [f"{result['model']} on {name}, {result['items']} items, rules of {result['scored_by']}:"]
    for metric, figure in result["metrics"].items():
        if figure["value"] is not None:
            lines.append(f"  {metric} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]")
    lines += [f"  {total} {value:.3f}" for total, value in result["totals"].items()]
    lines.append(f"  answers cut off: {result['truncated']:.1%}")
    if result["seconds"]:
        rate = result["tokens"] / result["seconds"]
        lines.append(f"  {result['tokens']} tokens in {result['seconds']:.1f} s of generation, {rate:.0f} tokens/s")
    for reference in result["references"]:
        value, why = f"{reference['metric']} {reference['value']:.3f}", ", ".join(reference["does_not_compare"])
        lines.append(f"  published: {reference['model']} {value}, {reference['source']}")
        lines += [f"  which does not compare: {why}"] if why else []
    return "\n".join(lines)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines; the file is whole, or not there."""
    write_whole(path, (json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n" for line in lines))


def jsonable(value: Any) -> Any:
    """The value with None in place of every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: jsonable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
