"""Rewards without labels: agreement inside the group of completions of one prompt, and the random control.

TTRL (https://arxiv.org/abs/2504.16084) pays the answer of the majority, EMPO (https://arxiv.org/abs/2504.05812) each
answer by how many share it. Both need all G completions of a prompt in one call. No gold answer is read.

Equal answers: texts are equal up to case and blanks, plain numbers by value. Boxes and points are compared to the
first of each cluster: a box joins at IoU > 0.5, a point within 5 % of the image diagonal; both are our reading, the
papers have text answers only.
"""

import hashlib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .clusters import cluster_answers, cluster_shares, majority_scores, text_key
from .geometry import Box, Point, Size, iou, is_box, to_original
from .judging import Judgement, LogMetric, judge_rows, scores
from .parsing import completion_text, find_answer, find_box, find_final_answer, find_point

T = TypeVar("T")

SAME_BOX_IOU = 0.5
SAME_POINT_DISTANCE = 0.05
"""In units of the image diagonal."""
_UNITS: dict[str, Size] = {"relative_1000": (1000, 1000), "relative_1": (1, 1)}


def _box_key(answer: str) -> Box | None:
    """Return the box of the answer as written, None for one that encloses nothing.

    IoU is the same in every coordinate space, since x and y are only scaled.
    """
    box = find_box(answer)
    return box if box is not None and is_box(box) else None


def _same_box(a: Box, b: Box) -> bool:
    return iou(a, b) > SAME_BOX_IOU


def _same_point(a: Point, b: Point) -> bool:
    return math.dist(a, b) <= SAME_POINT_DISTANCE


def rows_of_groups(group: Sequence[int], group_size: Sequence[int], *, who: str) -> list[list[int]]:
    """Return the rows of each group.

    Args:
        group: number of each row's prompt.
        group_size: number of completions of that prompt.
        who: needs them together, in the plural, for the error.

    Raises:
        ValueError: if a group is not here as a whole.
    """
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(group):
        rows.setdefault(number, []).append(row)
    for number, members in rows.items():
        sizes = {group_size[row] for row in members}
        if sizes != {len(members)}:
            raise ValueError(
                f"Group {number} has {len(members)} of {', '.join(map(str, sorted(sizes)))} completions on this "
                f"process; {who} need all completions of a prompt on one process, so "
                "per_device_train_batch_size x steps_per_generation must be a multiple of num_generations."
            )
    return list(rows.values())


def _judge_groups(
    completions: Sequence[str | list[dict[str, Any]]],
    group: Sequence[int],
    group_size: Sequence[int],
    answer_type: tuple[Callable[[str], str | None], Callable[[int, str], T | None], Callable[[T, T], bool]],
    score: Callable[[Sequence[int | None]], list[float]],
    *,
    can_judge: Callable[[int], bool] = lambda row: True,
    name: str,
    log_metric: LogMetric | None,
) -> list[float | None]:
    """Cluster the parsed answers of each group, and give each row its share of `score(labels)`.

    Args:
        completions, name, log_metric: as in `judge_rows`.
        group, group_size: as in `majority_text_reward`.
        answer_type: where the answer of a completion stands, what `(row, answer)` parses to, when two are equal.
        score: scores of a group from its labels.
        can_judge: False for a row that gets None.
    """
    find, parse, equal = answer_type
    answers = [find(completion_text(completion)) for completion in completions]
    parsed = [
        None if answer is None or not can_judge(row) else parse(row, answer) for row, answer in enumerate(answers)
    ]
    earned = [0.0] * len(completions)
    for rows in rows_of_groups(group, group_size, who="majority and EMPO rewards"):
        for row, value in zip(rows, score(cluster_answers([parsed[row] for row in rows], equal)), strict=True):
            earned[row] = value

    def judge(row: int, text: str) -> Judgement | None:
        if not can_judge(row):
            return None
        if answers[row] is None:
            return Judgement("no_answer", 0.0)
        return Judgement("malformed" if parsed[row] is None else "parsed", earned[row])

    return scores(judge_rows(completions, judge, name=name, log_metric=log_metric))


_TEXT = (find_final_answer, lambda row, answer: text_key(answer), operator.eq)
_BOX = (find_answer, lambda row, answer: _box_key(answer), _same_box)


def _judge_points(
    completions: Sequence[str | list[dict[str, Any]]],
    group: Sequence[int],
    group_size: Sequence[int],
    image_size: Sequence[Size | None] | None,
    input_size: Sequence[Size | None] | None,
    coordinate_space: Sequence[str] | None,
    score: Callable[[Sequence[int | None]], list[float]],
    *,
    name: str,
    log_metric: LogMetric | None,
) -> list[float | None]:
    """Judge groups of points, measured in image diagonals; a row whose diagonal is unknown cannot be judged."""

    def scale(row: int) -> tuple[str, Size | None]:
        space = coordinate_space[row] if coordinate_space else "absolute"
        return space, (image_size[row] if image_size else None) or _UNITS.get(space)

    def parse(row: int, answer: str) -> Point | None:
        point = find_point(answer)
        if point is None:
            return None
        space, size = scale(row)
        resized = input_size[row] if input_size else None
        x, y, _, _ = to_original((*point, *point), space, image_size=size, input_size=resized)
        diagonal = math.hypot(*(size or ()))
        return x / diagonal, y / diagonal

    return _judge_groups(
        completions,
        group,
        group_size,
        (find_answer, parse, _same_point),
        score,
        can_judge=lambda row: scale(row)[1] is not None,
        name=name,
        log_metric=log_metric,
    )


def majority_text_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    group: Sequence[int],
    group_size: Sequence[int],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1.0 for each completion whose answer is the majority's in its group, else 0.0 (TTRL).

    Of several equally frequent answers the first seen is the majority; a completion without answer neither votes nor
    earns. Departs from TTRL, which votes with 64 samples and trains on 32 of them: here all G vote and train.

    Args:
        completions: strings or TRL's lists of messages, one per row; answer in `<answer>`, else in `\boxed{}`.
        group: number of the row's prompt; rows with the same number are one group.
        group_size: completions G of the row's prompt, to tell that none is missing.
        log_metric: TRL's logger; gets the shares of rows of each kind (see `judging`).

    Returns:
        1.0 or 0.0 per row.

    Raises:
        ValueError: if a group is not here as a whole.
    """
    name = "majority_text_reward"
    return _judge_groups(completions, group, group_size, _TEXT, majority_scores, name=name, log_metric=log_metric)


def majority_box_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    group: Sequence[int],
    group_size: Sequence[int],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for each completion whose box is in the largest cluster of its group, else 0.0 (TTRL for boxes).

    The box is that of `grounding.iou_reward`; one that encloses nothing neither votes nor earns. Otherwise as
    `majority_text_reward`.
    """
    name = "majority_box_reward"
    return _judge_groups(completions, group, group_size, _BOX, majority_scores, name=name, log_metric=log_metric)


def majority_point_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    group: Sequence[int],
    group_size: Sequence[int],
    image_size: Sequence[Size | None] | None = None,
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for each completion whose point is in the largest cluster of its group, else 0.0 (TTRL for points).

    Otherwise as `majority_text_reward`.

    Args:
        completions, group, group_size, log_metric: as in `majority_text_reward`.
        image_size, input_size, coordinate_space: as in `grounding.iou_reward`. Without an image size, points in a
            relative space are taken on a square image.

    Returns:
        1.0 or 0.0 per row; None without an image size in an absolute space.
    """
    columns = (completions, group, group_size, image_size, input_size, coordinate_space)
    return _judge_points(*columns, majority_scores, name="majority_point_reward", log_metric=log_metric)


def empo_text_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    group: Sequence[int],
    group_size: Sequence[int],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score each completion with the share of its group that gives the same answer (EMPO).

    A completion without answer forms no cluster and earns 0.0. Departs from EMPO in that prompts of very high or low
    semantic entropy are kept, and that equality is by text, not by an entailment model or a verifier.
    Columns as in `majority_text_reward`.

    Returns:
        One number in [0, 1] per row.
    """
    name = "empo_text_reward"
    return _judge_groups(completions, group, group_size, _TEXT, cluster_shares, name=name, log_metric=log_metric)


def empo_box_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    group: Sequence[int],
    group_size: Sequence[int],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score each completion with the share of its group in the cluster of its box (EMPO for boxes).

    The box is that of `majority_box_reward`. Columns and result as `empo_text_reward`.
    """
    name = "empo_box_reward"
    return _judge_groups(completions, group, group_size, _BOX, cluster_shares, name=name, log_metric=log_metric)


def empo_point_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    group: Sequence[int],
    group_size: Sequence[int],
    image_size: Sequence[Size | None] | None = None,
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score each completion with the share of its group in the cluster of its point (EMPO for points).

    Columns as in `majority_point_reward`.

    Returns:
        One number in [0, 1] per row; None without an image size in an absolute space.
    """
    columns = (completions, group, group_size, image_size, input_size, coordinate_space)
    return _judge_points(*columns, cluster_shares, name="empo_point_reward", log_metric=log_metric)


def _coin(step: int, row: int, text: str) -> float:
    """0.0 or 1.0 with equal odds: a bit of SHA-256 over the three."""
    digest = hashlib.sha256(f"{step} {row} {text}".encode("utf-8", "surrogatepass")).digest()
    return float(digest[0] & 1)


def random_reward(
    completions: Sequence[str | list[dict[str, Any]]], trainer_state: Any = None, **kwargs: Any
) -> list[float | None]:
    """Score each completion 1.0 or 0.0, Bernoulli(1/2) and blind to what it says: the control of Shao et al. 2025.

    The draw is a hash of the optimizer step, the row in the batch and the text, so a resumed run draws what the
    uninterrupted one would have, with no generator to save. The text is there because two processes, or two rollouts
    within one optimizer step, number their rows alike: there only an identical text draws alike.
    https://arxiv.org/abs/2506.10947

    Args:
        completions: strings or TRL's lists of messages, one per row.
        trainer_state: TRL's; its `global_step` counts, 0 without it.

    Returns:
        1.0 or 0.0 per row.
    """
    step = 0 if trainer_state is None else trainer_state.global_step
    return [_coin(step, row, completion_text(completion)) for row, completion in enumerate(completions)]
