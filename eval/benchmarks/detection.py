"""Object detection as Visual-RFT measures it: one question for an image and a category, then COCO's mean AP."""

import json
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

import numpy as np

from vlm_entropy.eval.coco_ap import Found, Pair, category_precisions
from vlm_entropy.eval.protocols import Benchmark, Item, Message, Protocol, Score, View
from vlm_entropy.rewards.detection import average_precision_50
from vlm_entropy.rewards.geometry import Box, Size, is_box
from vlm_entropy.rewards.labelled_boxes import Detection, find_detections
from vlm_entropy.rewards.parsing import find_answer

from .places import user_message

COCO_8 = ("bus", "train", "fire hydrant", "stop sign", "cat", "dog", "bed", "toilet")
"""The categories of Visual-RFT's few-shot runs."""
COCO_15 = (
    *("mouse", "fork", "hot dog", "cat", "airplane", "suitcase", "parking meter", "sandwich", "train"),
    *("hair drier", "toilet", "toaster", "snowboard", "frisbee", "bear"),
)
"""The new categories of its open-vocabulary runs."""
LVIS_6 = ("horse_buggy", "die", "kitchen_table", "omelet", "papaya", "stepladder")

LEVELS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""The IoU thresholds of each figure, among 0.50, 0.55, ..., 0.95."""
MAX_KEPT = 300
"""LVIS's limit per image, above COCO's 100; the most confident ones are kept."""
_NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
_PATCHES = (("[[", "["), ("]]", "]"), ("\n", ""), (", ...", ""))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


def _to_pixels(box: Sequence[float], size: Size) -> Box:
    """Scale from 0..1000 in the published order of operations."""
    x1, y1, x2, y2 = (edge / 1000 * side for edge, side in zip(box, (*size, *size), strict=True))
    return x1, y1, x2, y2


def _top(found: Sequence[Found]) -> list[Found]:
    return sorted(found, key=lambda one: -one[4])[:MAX_KEPT]


def listed_objects(response: str) -> list[Any]:
    """Return what Visual-RFT takes for the list of objects, [] if it finds none.

    Its repairs, in its order: `[[` and `]]` become single, line ends and ", ..." go; the first `<answer>` counts, or
    the whole text if it is not closed; an end that is not `]` is cut after the last "},"; all quotes become double, so
    that an apostrophe spoils the answer.
    """
    for found, better in _PATCHES:
        response = response.replace(found, better)
    inside, closed, _ = response.partition("<answer>")[2].partition("</answer>")
    content = (inside if closed else response).strip().partition("</answer>")[0]
    if not content.endswith("]"):
        content = content.rsplit("},", 1)[0] + "}]"
    try:
        return json.loads(content.replace("'", '"'))
    except (ValueError, RecursionError):
        return []


def published_boxes(response: str, size: Size) -> list[Found]:
    """Read a response as Visual-RFT does: of equal Positions the first counts, in pixels, ranked by Confidence.

    An entry without Position, or with one that is no list, spoils the whole answer. One whose Position is not four
    numbers, or that has no Confidence, ends the list. So does, departing from it, a number that is not finite and a
    Confidence that is no number, which would stop its evaluation.

    Args:
        response: of the model.
        size: (width, height) of the image as annotated, in pixels.
    """
    unique: dict[tuple[Any, ...], Any] = {}
    try:
        for one in listed_objects(response):
            unique.setdefault(tuple(one["Position"]), one)
    except (KeyError, TypeError):
        return []
    found: list[Found] = []
    for position, one in unique.items():
        numbers = (*position, one.get("Confidence"))
        if len(numbers) != 5 or not all(map(_is_number, numbers)):
            break
        found.append((*_to_pixels(position, size), float(numbers[4])))
    return _top(found)


def strict_boxes(response: str, size: Size) -> list[Found] | None:
    """Read a response by our own parser, None if it neither lists objects nor says that there are none.

    What encloses nothing counts as found and matches nothing; without a confidence in [0, 1] it is 0.
    """
    answer = find_answer(response)
    listed = None if answer is None else find_detections(answer)
    if listed is None:
        return None
    boxes = [_to_pixels(one.box, size) if is_box(one.box) else _NO_BOX for one in listed]
    return _top([(*box, one.confidence or 0.0) for box, one in zip(boxes, listed, strict=True)])


def pair_precision(found: Sequence[Found] | None, gold: Sequence[Box]) -> float:
    """`rewards.detection_ap50_reward` of one image and category; 0 for None, 1 where nothing is found nor there."""
    if found is None:
        return 0.0
    listed = [Detection((x1, y1, x2, y2), None, confidence) for x1, y1, x2, y2, confidence in found]
    return average_precision_50(listed, [Detection(box, None, None) for box in gold])


def _gold(item: Item) -> list[Box]:
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in item.columns["boxes"]]


def _size(item: Item) -> Size:
    return item.columns["width"], item.columns["height"]


def _prompt(item: Item, view: View) -> list[Message]:
    return user_message(f"<image>\n{item.question}")


def _score(item: Item, response: str, view: View) -> Score:
    size, gold = _size(item), _gold(item)
    published, strict = published_boxes(response, size), strict_boxes(response, size)
    is_read = bool(published) or strict == []
    values = {
        "pair_AP50": pair_precision(published, gold),
        "parsed": float(is_read),
        "strict_pair_AP50": pair_precision(strict, gold),
        "strict_parsed": float(strict is not None),
    }
    detail = {"published": [list(one) for one in published], "strict": [list(one) for one in strict or []]}
    return Score(values, json.dumps(detail["published"]) if is_read else None, detail)


def _pair(item: Item, found: Sequence[Sequence[float]]) -> Pair:
    columns = item.columns
    return Pair(
        columns["image_id"],
        columns["category"],
        _gold(item),
        [(x1, y1, x2, y2, confidence) for x1, y1, x2, y2, confidence in found],
        [(x1, y1, x2, y2) for x1, y1, x2, y2 in columns["crowd_boxes"]],
        columns["is_judged"],
        columns["is_exhaustive"],
    )


def mean_precisions(
    items: Sequence[Item],
    scores: Sequence[Sequence[Score]],
    *,
    categories: Sequence[str],
    max_detections: int,
) -> dict[str, float]:
    """AP, AP50 and AP75: means over the categories; AP/NAME of each; and the same with `strict_`.

    A category that no question asked for counts 0, as it does in Visual-RFT's sum over all of them, so that a run over
    a part of the items is not comparable. One without gold boxes is left out, where Visual-RFT gets NaN. With several
    samples, the mean over them.

    Args:
        items: at most one per image and category.
        scores: with the boxes in `detail`; of each item equally many.
        categories: to take the mean over.
        max_detections: as in `category_precisions`.
    """
    totals: dict[str, float] = {}
    for prefix, reading in (("", "published"), ("strict_", "strict")):
        runs = [
            _figures(items, [score.detail[reading] for score in sample], categories, max_detections)
            for sample in zip(*scores, strict=True)
        ]
        totals |= {prefix + name: mean(run[name] for run in runs) for name in (runs[0] if runs else ())}
    return totals


def _figures(
    items: Sequence[Item], found: Sequence[Any], categories: Sequence[str], max_detections: int
) -> dict[str, float]:
    """The figures of one response to each item."""
    unasked = {item.columns["category"]: item.columns["unasked_boxes"] for item in items}
    pairs = [_pair(item, boxes) for item, boxes in zip(items, found, strict=True)]
    precisions = category_precisions(pairs, unasked=unasked, max_detections=max_detections)
    without_gold = unasked.keys() - precisions.keys()
    counted = {name: precisions.get(name, np.zeros(10)) for name in categories if name not in without_gold}
    if not counted:
        return {}
    means = {name: mean(float(one[levels].mean()) for one in counted.values()) for name, levels in LEVELS.items()}
    return {**means, **{f"AP/{name}": float(one.mean()) for name, one in counted.items()}}


def _chosen(item: Item, *, categories: Sequence[str]) -> list[Item]:
    """The item itself, if it asks for one of the categories.

    Raises:
        ValueError: if the image has not the size that the annotations give it.
    """
    if item.columns["category"] not in categories:
        return []
    if item.image_size is not None and item.image_size != _size(item):
        raise ValueError(f"The image of {item.id!r} is {item.image_size}, annotated as {_size(item)}.")
    return [item]


def _benchmark(categories: Sequence[str], source: str, *, max_detections: int) -> Benchmark:
    protocol = Protocol(
        source=f"Visual-RFT, {source}; departs from it where it would stop or return NaN: see `published_boxes`, "
        "`mean_precisions`, and the loader for images without a map.",
        prompt=_prompt,
        score=_score,
        cells=lambda item: {"category": item.columns["category"]},
        totals=partial(mean_precisions, categories=categories, max_detections=max_detections),
        max_new_tokens=1024,
    )
    return Benchmark(
        formats=("coco_detection",),
        protocols={"visual_rft": protocol},
        expand=partial(_chosen, categories=categories),
        images=("val2017", "../val2017"),
    )


DETECTION: dict[str, Benchmark] = {
    "coco_8": _benchmark(COCO_8, "coco_evaluation/, the eight categories of its few-shot runs", max_detections=100),
    "coco_15": _benchmark(COCO_15, "coco_evaluation/, the fifteen new categories", max_detections=100),
    "lvis_6": _benchmark(LVIS_6, "lvis_evaluation/, six rare categories", max_detections=300),
}
"""COCO val2017 and LVIS v1 val; the number of questions depends on the existence map that is used."""
