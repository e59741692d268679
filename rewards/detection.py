"""Object detection: listed boxes against the gold boxes, by average precision and by the rules of two RL projects.

One rule of matching for all: a detection and a gold box of the same label may be matched if their IoU reaches the
threshold, each at most once, and of all such matchings the one with most pairs counts, then with the largest sum of
IoUs. It does not depend on the order in which boxes are listed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from .geometry import Box, Size, is_box, to_original
from .grounding import Places
from .judging import Judgement, LogMetric, judge_rows, scores
from .labelled_boxes import Detection, find_detections
from .parsing import find_answer

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.50, 0.55, ..., 0.95: COCO's."""
_RECALLS = 101

Rule = Callable[[Sequence[Detection], Sequence[Detection]], float]


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes `(..., 4)`, NaN for a box that encloses nothing."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return np.where((sides > 0).all(-1), sides.prod(-1), np.nan)


def pairwise_iou(a: Sequence[Box], b: Sequence[Box]) -> np.ndarray:
    """IoU of each box of `a` with each of `b`, `(len(a), len(b))`; as `geometry.iou`, 0 for what is no box."""
    first, second = np.array(a, float).reshape(-1, 1, 4), np.array(b, float).reshape(1, -1, 4)
    with np.errstate(invalid="ignore", over="ignore"):
        corners = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
        overlap = np.clip(corners[1] - corners[0], 0.0, None).prod(-1)
        return np.nan_to_num(overlap / (_areas(first) + _areas(second) - overlap), nan=0.0)


def overlaps(found: Sequence[Detection], gold: Sequence[Detection]) -> np.ndarray:
    """IoU of each detection with each gold box, 0 where the labels differ; a gold without label takes any."""
    values = pairwise_iou([one.box for one in found], [one.box for one in gold])
    same = [[two.label is None or one.label == two.label for two in gold] for one in found]
    return np.where(np.array(same, bool).reshape(values.shape), values, 0.0)


def match(overlap: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Return the pairs (row, column) of the matching with IoU >= threshold: most pairs, then the largest sum of IoUs.

    Args:
        overlap: IoUs, detections x gold boxes.
        threshold: above 0; 0.5 admits an IoU of exactly one half, as COCO does.
    """
    allowed = overlap >= threshold
    if not allowed.any():
        return []
    if len(overlap) == 1:
        return [(0, int(overlap.argmax()))]
    weights = np.where(allowed, 1.0 + min(overlap.shape) + overlap, 0.0)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns) if allowed[row, column]]


def average_precision(overlap: np.ndarray, confidences: Sequence[float], threshold: float) -> float:
    """Average precision of one label: the mean over recalls r = 0, 0.01, ..., 1 of max {precision : recall >= r}.

    COCO's 101 points (Lin et al. 2014, https://cocodataset.org/#detection-eval). Departs from its code in one point:
    detections of equal confidence enter together, and are matched best to the gold boxes still free, so that the order
    of listing decides nothing. Without confidences there is one point (tp / gold, tp / found) of the curve, and a
    false positive costs precision wherever it stands.

    Args:
        overlap: IoUs, detections x gold boxes; at least one gold box.
        confidences: one per detection.
        threshold: least IoU of a match.

    Returns:
        A number in [0, 1]; 0 without detections.
    """
    order = sorted(range(len(confidences)), key=confidences.__getitem__, reverse=True)
    free, best = np.ones(overlap.shape[1], bool), np.zeros(_RECALLS)
    hits = entered = 0
    for _, block in groupby(order, key=confidences.__getitem__):
        rows = list(block)
        entered += len(rows)
        pairs = match(overlap[rows] * free, threshold)
        if pairs:  # precision only falls where nothing is matched
            hits += len(pairs)
            free[[column for _, column in pairs]] = False
            reached = 100 * hits // overlap.shape[1] + 1
            best[:reached] = np.maximum(best[:reached], hits / entered)
    return float(best.mean())


def mean_average_precision(
    found: Sequence[Detection], gold: Sequence[Detection], *, thresholds: Sequence[float] = IOU_THRESHOLDS
) -> float:
    """Mean of `average_precision` over thresholds and the labels of the gold; 1 if both are empty, 0 if one is.

    A detection whose label no gold box has is a false positive of every label. If not every detection gives a
    confidence, none counts.
    """
    if not found or not gold:
        return float(not found and not gold)
    labels = {one.label for one in gold}
    given = [one.confidence for one in found]
    ranks = [1.0] * len(found) if None in given else [value or 0.0 for value in given]
    values = []
    for label in labels:
        rows = [row for row, one in enumerate(found) if label in (None, one.label) or one.label not in labels]
        overlap = overlaps([found[row] for row in rows], [one for one in gold if one.label == label])
        values += [average_precision(overlap, [ranks[row] for row in rows], level) for level in thresholds]
    return float(np.mean(values))


def length_penalised_precision(found: Sequence[Detection], gold: Sequence[Detection]) -> float:
    """`mean_average_precision` · min(1, n_gold / n_found): VLM-R1's odLength."""
    return mean_average_precision(found, gold) * (min(1.0, len(gold) / len(found)) if found else 1.0)


def weighted_sum(found: Sequence[Detection], gold: Sequence[Detection]) -> float:
    """0.7 · (sum of matched IoUs / n_gold) + 0.3 · (recall + precision) / 2, matched at IoU >= 0.5 and equal label.

    VLM-R1's weighted_sum, whose 1 - (miss rate + false alarm rate) / 2 is the second term. Departs from it: matches
    one to one and best instead of first come, an unequal label is no match at all, and predicting nothing has
    precision 0 and not 1. Both empty: 1.
    """
    if not found or not gold:
        return float(not found and not gold)
    overlap = overlaps(found, gold)
    pairs = match(overlap, 0.5)
    shares = len(pairs) / len(gold) + len(pairs) / len(found)
    return 0.7 * sum(float(overlap[pair]) for pair in pairs) / len(gold) + 0.15 * shares


def matched_iou(found: Sequence[Detection], gold: Sequence[Detection]) -> float:
    """Sum of the IoUs matched at IoU > 0.5 / max(n_found, n_gold): Visual-RFT's IoU reward; both empty: 1."""
    if not found or not gold:
        return float(not found and not gold)
    overlap = overlaps(found, gold)
    pairs = match(overlap, np.nextafter(0.5, 1.0))
    return sum(float(overlap[pair]) for pair in pairs) / max(len(found), len(gold))


def calibration(found: Sequence[Detection], gold: Sequence[Detection]) -> float:
    """Mean over detections of c if matched (IoU > 0.5), of 1 - c if not: Visual-RFT's confidence reward; empty: 1.

    Departs from it: 0 if nothing is matched, or boxes drawn anywhere with confidence 0 would earn 1; a detection
    without a confidence in [0, 1] counts 0.
    """
    pairs = match(overlaps(found, gold), np.nextafter(0.5, 1.0)) if found and gold else []
    if not pairs:
        return float(not found and not gold)
    matched = {row for row, _ in pairs}
    given = [(row in matched, one.confidence) for row, one in enumerate(found)]
    return sum(0.0 if value is None else value if hit else 1.0 - value for hit, value in given) / len(found)


def gold_detections(solution: Any, space: str, size: Size | None) -> list[Detection] | None:
    """Return the gold in original pixels, None if there is no image, no list, or a box that encloses nothing."""
    text = str(solution)
    inside = find_answer(text)
    gold = find_detections(text if inside is None else inside)
    if size is None or gold is None or not all(is_box(one.box) for one in gold):
        return None
    return [one._replace(box=to_original(one.box, space, image_size=size)) for one in gold]


def judge_detections(answer: str | None, row: int, places: Places, rule: Rule) -> Judgement | None:
    """Judge one answer by `rule(detections, gold)`, in original pixels; None if the row has no gold or image size."""
    spaces, size = places.solution_space, places.image_size[row]
    gold = gold_detections(places.solution[row], spaces[row] if spaces else "absolute", size)
    if gold is None:
        return None
    listed = None if answer is None else find_detections(answer)
    if listed is None:
        return Judgement("no_answer" if answer is None else "malformed", 0.0)
    found = [one._replace(box=places.to_pixels(row, one.box)) for one in listed]
    outside = any(is_box(one.box) and places.leaves_image(row, one.box) for one in found)
    return Judgement("out_of_image" if outside else "parsed", rule(found, gold))


class DetectionReward:
    """A reward on the objects listed in the `<answer>`, by one rule; called as TRL calls a function.

    Args of a call: completions and the columns of `iou_reward`; `solution` lists the gold boxes in a form of
    `labelled_boxes`, bare or in `<answer>`; labels are compared without regard to case and blanks.

    Returns of a call: one number in [0, 1] per row. Nothing detected where the gold is empty earns 1, but has to be
    said ("None", "[]", "No Objects"); no answer, or one that is neither a list nor that, earns 0. None for a row
    without image size, or whose gold is no list or holds a box that encloses nothing.
    """

    def __init__(self, name: str, rule: Rule) -> None:
        self.__name__ = name
        self.rule = rule

    def __call__(
        self,
        completions: Sequence[str | list[dict[str, Any]]],
        solution: Sequence[Any],
        image_size: Sequence[Size | None],
        input_size: Sequence[Size | None] | None = None,
        coordinate_space: Sequence[str] | None = None,
        solution_space: Sequence[str] | None = None,
        log_metric: LogMetric | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Score each completion; see the class."""
        places = Places(solution, image_size, input_size, coordinate_space, solution_space)

        def judge(row: int, text: str) -> Judgement | None:
            return judge_detections(find_answer(text), row, places, self.rule)

        return scores(judge_rows(completions, judge, name=self.__name__, log_metric=log_metric))


average_precision_50 = partial(mean_average_precision, thresholds=(0.5,))

detection_ap_reward = DetectionReward("detection_ap_reward", mean_average_precision)
detection_ap50_reward = DetectionReward("detection_ap50_reward", average_precision_50)
detection_length_reward = DetectionReward("detection_length_reward", length_penalised_precision)
detection_weighted_reward = DetectionReward("detection_weighted_reward", weighted_sum)
detection_iou_reward = DetectionReward("detection_iou_reward", matched_iou)
detection_confidence_reward = DetectionReward("detection_confidence_reward", calibration)
