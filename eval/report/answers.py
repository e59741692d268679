"""Answers to look at: their tokens by entropy, and predicted and gold places on the image."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_entropy.rewards.geometry import Box, Point, to_original
from vlm_entropy.rewards.parsing import find_box, find_final_answer, find_point

from ..arguments import DataArguments
from ..protocols import Item
from ..runner import resolve
from .pictures import Album, Picture
from .runs import Run, read_lines

SHOWN = 12
"""Answers of a run at most, half of them wrong ones where there are so many."""
SHOWN_TOKENS = 60
"""Answers with tokens in a whole report at most, shared among its models, with two of each at least."""
MOST_TOKENS = 600
MOST_CHARACTERS = 4000

Tip = list[Any]
"""[entropy in nats, probability, part, [[text, probability], ...]] of a token."""
Place = dict[str, Any]
"""{"kind": "box", "x", "y", "width", "height"} or {"kind": "point", "x", "y"}, in pixels of the image on disk."""


@dataclass(frozen=True)
class Token:
    """A token as it is drawn."""

    text: str
    heat: float
    """Entropy as a share of the highest of the report's scale, 0 to 1."""
    tip: int
    """Place of what hovering shows among the tips of the report."""
    part: str


@dataclass(frozen=True)
class Answer:
    """An answer as it is drawn."""

    id: str
    question: str
    solution: str
    picture: Picture | None
    predicted: Place | None
    gold: Place | None
    text: str | None
    """Where there are no tokens."""
    tokens: Sequence[Token]
    left_out: int
    """Tokens, or characters of the text, that are not shown."""
    is_correct: bool | None
    reward: float | None


def place_of(value: Any) -> Place | None:
    """A box or point from four or two numbers, a text that holds such, or None for anything else."""
    if isinstance(value, str):
        value = find_box(value) or find_point(value)
    if not isinstance(value, list | tuple) or not all(_is_finite(number) for number in value):
        return None
    if len(value) == 4:
        x1, y1, x2, y2 = value
        corner = {"x": min(x1, x2), "y": min(y1, y2)}
        return {"kind": "box", **corner, "width": abs(x2 - x1), "height": abs(y2 - y1)}
    return {"kind": "point", "x": value[0], "y": value[1]} if len(value) == 2 else None


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def choose(verdicts: Sequence[bool | None], *, count: int = SHOWN) -> list[int]:
    """The places of the answers to show, in order: the first ones, half of them wrong where there are so many."""
    wrong = [place for place, verdict in enumerate(verdicts) if verdict is False]
    others = [place for place, verdict in enumerate(verdicts) if verdict is not False]
    from_wrong = min(len(wrong), max(count // 2, count - len(others)))
    return sorted([*wrong[:from_wrong], *others[: count - from_wrong]])


def scored_lines(runs: Sequence[Run]) -> list[dict[str, list[dict[str, Any]]]]:
    """For each run, the lines of its `eval entropy` that are shown, by model."""
    found = []
    for run in runs:
        by_model: dict[str, list[dict[str, Any]]] = {}
        for line in read_lines(run.folder / "entropy" / "tokens.jsonl"):
            by_model.setdefault(str(line["model"]), []).append(line)
        found.append({model: first_samples_first(lines) for model, lines in by_model.items()})
    count = max(2, min(SHOWN, SHOWN_TOKENS // max(1, sum(map(len, found)))))
    return [
        {
            model: [lines[place] for place in choose([line.get("correct") for line in lines], count=count)]
            for model, lines in by_model.items()
        }
        for by_model in found
    ]


def first_samples_first(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first answer to each question, then the second ones, and so on."""
    seen: Counter[str] = Counter()
    ranks = []
    for line in lines:
        seen[str(line["id"])] += 1
        ranks.append(seen[str(line["id"])])
    return [line for _, line in sorted(zip(ranks, lines), key=lambda ranked: ranked[0])]


def entropy_scale(lines: Iterable[dict[str, Any]]) -> float:
    """The 95th percentile of the entropies of all tokens, in nats, at least 0.01."""
    entropies = sorted(token["entropy"] for line in lines for token in line["tokens"])
    return max(0.01, entropies[int(0.95 * (len(entropies) - 1))]) if entropies else 1.0


def scored_answer(line: dict[str, Any], album: Album, tips: list[Tip], *, scale: float) -> Answer:
    """An answer of `eval entropy` with its tokens.

    Args:
        line: of entropy/tokens.jsonl.
        album: for the images.
        tips: of the report, to which those of the tokens are added.
        scale: entropy in nats that is drawn in full colour.
    """
    tokens = [_token(token, tips, scale=scale) for token in line["tokens"][:MOST_TOKENS]]
    return Answer(
        id=str(line["id"]),
        question=shorten(str(line.get("question", ""))),
        solution=shorten(_as_text(line.get("solution"))),
        picture=album.add(line["images"][0]) if line.get("images") else None,
        predicted=place_of(line.get("prediction")),
        gold=place_of(line.get("solution")),
        text=None,
        tokens=tokens,
        left_out=len(line["tokens"]) - len(tokens),
        is_correct=line.get("correct"),
        reward=line.get("reward"),
    )


def _token(token: dict[str, Any], tips: list[Tip], *, scale: float) -> Token:
    part = str(token.get("part", "other"))
    top = [[shorten(str(text), 40), round(prob, 4)] for text, prob in token.get("top", [])[:5]]
    tips.append([round(token["entropy"], 4), round(token["prob"], 4), part, top])
    heat = min(1.0, max(0.0, token["entropy"] / scale))
    return Token(shorten(str(token["text"]), 200), round(heat, 3), len(tips) - 1, part)


def predicted_answers(run: Run, album: Album) -> list[Answer]:
    """Answers of `eval run`, with the places that can be read in them, converted to pixels of the stored image.

    Questions and images come from the data that `settings.json` names; if it has moved, the answers stand alone.
    """
    lines = read_lines(run.folder / "predictions.jsonl")
    settings = (run.result or {}) if lines else {}
    items = _items(settings)
    values = {line["id"]: line["values"] for line in read_lines(run.folder / "scores.jsonl")}
    leading = [next(iter(values.get(line["id"], {"": None}).values()), None) for line in lines]
    verdicts = [None if value is None else value > 0.5 for value in leading]
    return [
        _of_prediction(lines[place], items.get(lines[place]["id"]), settings, album, reward=leading[place])
        for place in choose(verdicts)
    ]


def _items(settings: dict[str, Any]) -> dict[str, Item]:
    try:
        names = DataArguments.__dataclass_fields__
        arguments = DataArguments(**{name: settings[name] for name in names if name in settings})
        return {item.id: item for item in resolve(arguments)[1]} if settings.get("data") else {}
    except (ValueError, OSError, KeyError):
        return {}


def _of_prediction(
    line: dict[str, Any], item: Item | None, settings: dict[str, Any], album: Album, *, reward: float | None
) -> Answer:
    response = str(line["response"])
    path = item.images[0] if item is not None and item.images else None
    return Answer(
        id=str(line["id"]),
        question="" if item is None else shorten(item.question),
        solution="" if item is None else shorten(item.answer),
        picture=album.add(path) if isinstance(path, str) else None,
        predicted=None if item is None else place_of(_in_pixels(response, line, item, settings)),
        gold=None if item is None else place_of(item.answer),
        text=shorten(response),
        tokens=(),
        left_out=max(0, len(response) - MOST_CHARACTERS),
        is_correct=None if reward is None else reward > 0.5,
        reward=reward,
    )


def _in_pixels(response: str, line: dict[str, Any], item: Item, settings: dict[str, Any]) -> Box | Point | None:
    """The first box of an answer, else its first point, in pixels of the stored image; None without either."""
    text = find_final_answer(response) or response
    box, (x, y) = find_box(text), find_point(text) or (math.nan, math.nan)
    if item.image_size is None:
        return None
    space = item.columns.get("coordinate_space", settings["coordinate_space"])
    sizes = {"image_size": item.image_size, "input_size": line["input_size"]}
    found = to_original(box or (x, y, x, y), space, **sizes)
    return found if box is not None else found[:2]


def completions(run: Run) -> list[dict[str, Any]]:
    """The last completions that `--log_completions` wrote while training, without tokens or images."""
    folder = run.folder / "completions"
    files = sorted(folder.glob("completions_*.parquet")) if folder.is_dir() else []
    if not files:
        return []
    import pandas as pd

    table = pd.read_parquet(files[-1]).head(SHOWN)
    return [{name: shorten(_as_text(value), 1000) for name, value in row.items()} for row in table.to_dict("records")]


def shorten(text: str, longest: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= longest else f"{text[:longest]} …"


def _as_text(value: Any) -> str:
    """A text as it is, messages by their contents, all else as JSON."""
    if isinstance(value, str) or value is None:
        return value or ""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list) and value and all(isinstance(it, dict) and "content" in it for it in value):
        return "\n".join(_as_text(message["content"]) for message in value)
    return json.dumps(value, ensure_ascii=False, default=str)
