"""Reading what `python -m vlm_entropy.eval run` wrote, and what two such results should agree in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

Values = dict[str, float | None]
"""Of one item, by metric; None where the item cannot be judged."""
SAME = (
    "protocol",
    "scored_by",
    "split",
    "items_hash",
    "prompts_hash",
    "samples",
    "max_new_tokens",
    "temperature",
    "top_p",
    "min_pixels",
    "max_pixels",
    "max_anyres_num",
    "engine",
)
"""Settings in which two results should agree, or their difference is not that of the models alone."""


def _existing(folder: str, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: `python -m vlm_entropy.eval run --out {folder} ...` makes it.")
    return path


def read_result(folder: str) -> dict[str, Any]:
    """Return the object of result.json.

    Raises:
        ValueError: for a file that is missing, or one without the name of a benchmark and metrics.
    """
    path = _existing(folder, "result.json")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(result, dict) or "bench" not in result or not isinstance(result.get("metrics"), dict):
        raise ValueError(f"{path} has no bench and metrics; `python -m vlm_entropy.eval run` writes both.")
    return result


def figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the value of every metric and then of every total of a result; None where nothing could be judged."""
    metrics = {name: figure["value"] for name, figure in result["metrics"].items()}
    return {**metrics, **result.get("totals", {})}


def _score(line: str) -> tuple[str, Values]:
    score = json.loads(line)
    values = score.get("values") if isinstance(score, dict) else None
    if not isinstance(values, dict) or not values or {*map(type, values.values())} - {int, float, type(None)}:
        raise ValueError(f"the line is {short(score)}; an object with an `id` and the numbers of `values` is needed")
    return str(score.get("id")), values


def read_scores(folder: str) -> dict[str, Values]:
    """Return the values of each item of scores.jsonl, by its id, in file order.

    Raises:
        ValueError: for a file that is missing or empty, a line that is something else, or an id that comes twice.
    """
    path = _existing(folder, "scores.jsonl")
    scores: dict[str, Values] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            item, values = _score(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}.") from error
        if item in scores:
            raise ValueError(f"{path}:{number}: the id {item!r} comes twice.")
        scores[item] = values
    if not scores:
        raise ValueError(f"{path} holds no item.")
    return scores


def check_same_benchmark(runs: Sequence[str], results: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a result is of another benchmark than the first."""
    for run, result in zip(runs, results):
        if result["bench"] != results[0]["bench"]:
            raise ValueError(
                f"{run} is a result of {result['bench']!r} and {runs[0]} one of {results[0]['bench']!r}; only results "
                "of the same benchmark can be compared."
            )


def disagreements(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each setting of `SAME` in which the results differ."""
    sentences = []
    for name in SAME:
        settings = list(dict.fromkeys(json.dumps(result.get(name)) for result in results))
        if len(settings) > 1:
            sentences.append(f"{name} differs: {', '.join(settings)}")
    return sentences
