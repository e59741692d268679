"""What single methods leave to look at: SaEI's images, CalibRL's gaps to the expert, EGT's kept and dropped rows."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .answers import shorten
from .pictures import Album
from .runs import Run, read_lines

IMAGE_KINDS = ("clean", "adversarial", "difference")
MOST_IMAGES = 6
MOST_GAPS = 8
MOST_TOKENS = 400
ROWS = 5
BINS = 16


def spread_out(things: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly spaced, the first and the last included."""
    if len(things) <= count:
        return list(things)
    return [things[round(place * (len(things) - 1) / (count - 1))] for place in range(count)]


def changed_images(run: Run, album: Album) -> list[dict[str, Any]]:
    """Pictures of `--save_adversarial_images`: by file name, the clean one, the changed one, their difference."""
    folder = run.folder / "adversarial_images"
    stems = sorted(path.name.removesuffix("-clean.png") for path in folder.glob("*-clean.png"))
    return [
        {"name": stem, "pictures": [(kind, album.add(folder / f"{stem}-{kind}.png")) for kind in IMAGE_KINDS]}
        for stem in spread_out(stems, MOST_IMAGES)
    ]


def expert_gaps(run: Run) -> list[dict[str, Any]]:
    """Responses of `--save_expert_gaps`, each token with its gap as a share of the response's largest, -1 to 1."""
    lines = {line["step"]: line for line in read_lines(run.folder / "expert_gaps.jsonl")}
    return [_gaps(lines[step]) for step in spread_out(sorted(lines), MOST_GAPS)]


def _gaps(line: dict[str, Any]) -> dict[str, Any]:
    gaps = line["gap"] if len(line["gap"]) > 1 else line["gap"] * len(line["tokens"])
    largest = max((abs(gap) for gap in gaps), default=0.0) or 1.0
    tokens = [
        {"text": shorten(text, 200), "gap": f"{gap:+.3f}", "share": round(gap / largest, 3)}
        for text, gap in list(zip(line["tokens"], gaps))[:MOST_TOKENS]
    ]
    names = ("step", "advantage", "correct")
    return {**{name: line[name] for name in names}, "tokens": tokens, "left_out": len(line["tokens"]) - len(tokens)}


def curation_files(run: Run) -> list[tuple[Path, Path]]:
    """Scored file and kept file of each `data curate` that lies in the run's folder, or that it trained on."""
    paths = str(run.options.get("data_file_paths") or "").split(":")
    kept = [Path(path) for path in paths if path.endswith("_kept.jsonl")]
    kept += sorted(run.folder.glob("*_kept.jsonl"))
    pairs = [(path.with_name(path.name.removesuffix("_kept.jsonl") + ".jsonl"), path) for path in kept]
    return [pair for pair in pairs if all(path.is_file() for path in pair)]


def curation(scored: Path, kept: Path) -> dict[str, Any]:
    """Kept and dropped rows of a curation: their counts and means, a histogram of entropy, some rows of each."""
    rows, kept_lines = read_lines(scored), {_key(row) for row in read_lines(kept)}
    rows = [row for row in rows if row.get("response_entropy") is not None]
    parts: dict[str, list[dict[str, Any]]] = {"kept": [], "dropped": []}
    for row in sorted(rows, key=lambda row: row["response_entropy"]):
        parts["kept" if _key(row) in kept_lines else "dropped"].append(row)
    bins = histogram(*([row["response_entropy"] for row in part] for part in parts.values()))
    return {
        "name": scored.name,
        "summary": {name: _summary(part) for name, part in parts.items()},
        "bins": bins,
        "most": max((it["kept"] + it["dropped"] for it in bins), default=1),
        "rows": {
            "kept, lowest entropy": list(map(_row, parts["kept"][:ROWS])),
            "dropped, highest entropy": list(map(_row, parts["dropped"][-ROWS:][::-1])),
        },
    }


def _key(row: dict[str, Any]) -> str:
    return repr(sorted(row.items(), key=lambda item: item[0]))


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return fmean(values) if values else None

    return {
        "rows": len(rows),
        "entropy": mean("response_entropy"),
        "accuracy": mean("response_accuracy"),
        "wrong labels": mean("is_noisy"),
    }


def histogram(kept: Sequence[float], dropped: Sequence[float], *, bins: int = BINS) -> list[dict[str, float]]:
    """Counts of both in equally wide bins from the lowest to the highest value, with each bin's lower end."""
    values = [*kept, *dropped]
    if not values:
        return []
    low, width = min(values), (max(values) - min(values)) / bins or 1.0
    counts = [{"from": low + place * width, "kept": 0, "dropped": 0} for place in range(bins)]
    for name, part in (("kept", kept), ("dropped", dropped)):
        for value in part:
            counts[min(bins - 1, math.floor((value - low) / width))][name] += 1
    return counts


def _row(row: dict[str, Any]) -> dict[str, Any]:
    question, answer = [str(turn["value"]) for turn in row["conversations"]][:2]
    question = question.replace("<image>", "").strip()
    return {
        "entropy": row["response_entropy"],
        "accuracy": row.get("response_accuracy"),
        "wrong": row.get("is_noisy"),
        "question": shorten(question, 200),
        "answer": shorten(answer, 120),
    }
