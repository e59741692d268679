"""Average precision of boxes by pycocotools, on questions of one image and one category each."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlm_entropy.rewards.geometry import Box

Found = tuple[float, float, float, float, float]
"""x1, y1, x2, y2 in pixels, and the confidence."""


class Pair(NamedTuple):
    """What there is of one category in one image, and what was found."""

    image_id: int
    category: str
    gold: Sequence[Box]
    found: Sequence[Found]
    """In the order of listing, which decides between equal confidences."""
    crowd: Sequence[Box] = ()
    """Boxes around groups: what lies in one is neither right nor wrong."""
    is_judged: bool = True
    """Whether it is known if the image has the category; if not, nothing found counts."""
    is_exhaustive: bool = True
    """Whether every object of the category has its box; if not, only what is found right counts."""


def category_precisions(
    pairs: Sequence[Pair], *, unasked: Mapping[str, int], max_detections: int
) -> dict[str, np.ndarray]:
    """Average precision of each category at the ten IoU thresholds 0.50, 0.55, ..., 0.95.

    `COCOeval` for boxes of any area. Equal confidences rank by image id, then by the order of listing. LVIS's rules
    (Gupta et al. 2019, https://arxiv.org/abs/1908.03195, section 3) are added by `is_judged` and `is_exhaustive`, as
    `lvis` 0.5.3 has them; it differs in `max_detections`, which counts there per image, over all categories.

    Args:
        pairs: at most one per image and category; any order.
        unasked: gold boxes of each category in the images that have no pair for it; they count as missed.
        max_detections: the most confident ones that count in a pair.

    Returns:
        {category: (10,)}, in [0, 1], without the categories that have no gold box.

    Raises:
        ValueError: for two pairs of the same image and category.
    """
    if len({(pair.image_id, pair.category) for pair in pairs}) < len(pairs):
        raise ValueError("Two questions ask for the same category in the same image.")
    names = sorted({pair.category for pair in pairs} | unasked.keys())
    ids = {name: number for number, name in enumerate(names, start=1)}
    elsewhere = 1 + max((pair.image_id for pair in pairs), default=0)
    images = [*{pair.image_id for pair in pairs}, elsewhere]
    with redirect_stdout(StringIO()):
        gold = _data_set(images, ids, _gold(pairs, unasked, elsewhere))
        evaluation = COCOeval(gold, _data_set(images, ids, _found(pairs)), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        partial = {(pair.image_id, ids[pair.category]) for pair in pairs if not pair.is_exhaustive}
        _ignore_unmatched(evaluation, partial)
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0].mean(1)  # thresholds, categories; -1 without gold
    return {name: precision[:, ids[name] - 1] for name in names if precision[0, ids[name] - 1] >= 0}


Entry = tuple[int, str, Box, dict[str, Any]]


def _gold(pairs: Sequence[Pair], unasked: Mapping[str, int], elsewhere: int) -> Iterator[Entry]:
    for pair in pairs:
        yield from ((pair.image_id, pair.category, box, {"iscrowd": 0}) for box in pair.gold)
        yield from ((pair.image_id, pair.category, box, {"iscrowd": 1}) for box in pair.crowd)
    for name, count in unasked.items():
        yield from [(elsewhere, name, (0.0, 0.0, 1.0, 1.0), {"iscrowd": 0})] * count


def _found(pairs: Sequence[Pair]) -> Iterator[Entry]:
    for pair in pairs:
        if pair.is_judged:
            for x1, y1, x2, y2, confidence in pair.found:
                yield pair.image_id, pair.category, (x1, y1, x2, y2), {"score": confidence}


def _annotations(entries: Iterable[Entry], ids: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """COCO's form; numbered from 1, since the number 0 of a gold box would mean no match."""
    for number, (image_id, category, (x1, y1, x2, y2), more) in enumerate(entries, start=1):
        width, height = x2 - x1, y2 - y1
        place = {"id": number, "image_id": image_id, "category_id": ids[category]}
        yield {**place, "bbox": [x1, y1, width, height], "area": width * height, **more}


def _data_set(images: Iterable[int], ids: Mapping[str, int], entries: Iterable[Entry]) -> COCO:
    """Made in memory, since `COCO.loadRes` fails on an empty list."""
    data = COCO()
    data.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": list(_annotations(entries, ids)),
    }
    data.createIndex()
    return data


def _ignore_unmatched(evaluation: COCOeval, places: Collection[tuple[int, int]]) -> None:
    """Let no unmatched detection count in these (image, category) places."""
    for result in evaluation.evalImgs:
        if result is not None and (result["image_id"], result["category_id"]) in places:
            result["dtIgnore"] |= result["dtMatches"] == 0
