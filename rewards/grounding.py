"""Visual grounding: the overlap of the box in the answer with the gold box."""

from collections.abc import Sequence
from typing import Any

from .geometry import Box, Size, iou, is_box, to_original
from .judging import Judgement, LogMetric, judge_rows, scores
from .parsing import find_answer, find_box


def _gold_box(solution: Any, space: str, image_size: Size | None) -> Box | None:
    """Return the gold box in original pixels, None if there is no image or no box that encloses something."""
    box = find_box(str(solution))
    if image_size is None or box is None or not is_box(box):
        return None
    return to_original(box, space, image_size=image_size)


def _leaves_image(box: Box, image_size: Size) -> bool:
    """Tell whether a side of the box lies outside the image."""
    return min(box) < 0 or max(box[0], box[2]) > image_size[0] or max(box[1], box[3]) > image_size[1]


def _judge(text: str, gold: Box, space: str, image_size: Size, input_size: Size | None) -> Judgement:
    answer = find_answer(text)
    if answer is None:
        return Judgement("no_answer", 0.0)
    found = find_box(answer)
    if found is None:
        return Judgement("malformed", 0.0)
    box = to_original(found, space, image_size=image_size, input_size=input_size)
    return Judgement("out_of_image" if _leaves_image(box, image_size) else "parsed", iou(box, gold))


def iou_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    image_size: Sequence[Size | None],
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    solution_space: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score each completion with the IoU, in original pixels, of its box and the gold box.

    The box is the first in the first `<answer>` after the thinking; see `find_answer` and `find_box`.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        solution: text that holds the gold box, one per row.
        image_size: (width, height) of the original image in pixels, one per row, None for a row without image.
        input_size: (width, height) after the processor's resize; needed by rows in space `absolute_resized`.
        coordinate_space: space of the completion's box, one of `geometry.SPACES` per row; absent = `absolute`.
        solution_space: space of the gold box per row; absent = `absolute`, pixels of the original image.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`) and
            `iou_reward/accuracy@0.5` (IoU > 0.5, strict).

    Returns:
        One number in [0, 1] per row; 0.0 also without an answer or a box in it, None if the row cannot be judged:
        it has no image size, or its solution holds no box or an empty one.

    Raises:
        ValueError: for an unknown space, or `absolute_resized` without an input size.
    """

    def judge(row: int, text: str) -> Judgement | None:
        size, resized = image_size[row], input_size[row] if input_size else None
        gold = _gold_box(solution[row], solution_space[row] if solution_space else "absolute", size)
        if size is None or gold is None:
            return None
        return _judge(text, gold, coordinate_space[row] if coordinate_space else "absolute", size, resized)

    judgements = judge_rows(completions, judge, name="iou_reward", log_metric=log_metric)
    judged = [judgement for judgement in judgements if judgement is not None]
    if log_metric is not None and judged:
        log_metric("iou_reward/accuracy@0.5", sum(judgement.score > 0.5 for judgement in judged) / len(judged))
    return scores(judgements)
