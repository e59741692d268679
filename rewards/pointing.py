"""Pointing: does the point in the answer, or the centre of its box, lie in the gold box."""

from collections.abc import Sequence
from typing import Any

from .geometry import Box, Size, is_box, point_in_box
from .grounding import Places, judge_places
from .judging import LogMetric, scores
from .parsing import find_box, find_point


def find_point_as_box(answer: str) -> Box | None:
    """Return the first point x, y of the answer as the box (x, y, x, y), or None."""
    point = find_point(answer)
    return None if point is None else (*point, *point)


def centre_inside(box: Box, gold: Box) -> float:
    """1.0 if the centre of `box` lies in `gold`, borders included, else 0.0.

    Both are rounded to a millionth of a pixel, so that float rounding in a conversion moves no point over a border.
    """
    x, y = round((box[0] + box[2]) / 2, 6), round((box[1] + box[3]) / 2, 6)
    x1, y1, x2, y2 = (round(side, 6) for side in gold)
    return float(point_in_box((x, y), (x1, y1, x2, y2)))


def _centre_of_box_inside(box: Box, gold: Box) -> float:
    return centre_inside(box, gold) if is_box(box) else 0.0


def point_in_box_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    image_size: Sequence[Size | None],
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    solution_space: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for each completion whose point lies in the gold box, borders included, else 0.0.

    The point is the first `[x, y]` or `(x, y)` in the first `<answer>` after the thinking. Columns as in `iou_reward`.

    Returns:
        1.0 or 0.0 per row, 0.0 also without a point; None if the row cannot be judged.
    """
    places = Places(solution, image_size, input_size, coordinate_space, solution_space)
    name = "point_in_box_reward"
    return scores(
        judge_places(completions, places, find=find_point_as_box, rule=centre_inside, name=name, log_metric=log_metric)
    )


def box_centre_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    image_size: Sequence[Size | None],
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    solution_space: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for each completion whose box has its centre in the gold box, borders included, else 0.0.

    The box is that of `iou_reward`, and so are the columns. Its size does not matter, except that an empty or reversed
    box earns nothing.

    Returns:
        1.0 or 0.0 per row, 0.0 also without a box; None if the row cannot be judged.
    """
    places = Places(solution, image_size, input_size, coordinate_space, solution_space)
    name, rule = "box_centre_reward", _centre_of_box_inside
    return scores(judge_places(completions, places, find=find_box, rule=rule, name=name, log_metric=log_metric))
