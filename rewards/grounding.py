"""Visual grounding: the overlap of the box in the answer with the gold box, and what all rewards on places share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .geometry import Box, Size, giou, iou, is_box, to_original
from .judging import Judgement, LogMetric, judge_rows, scores
from .parsing import find_answer, find_box


class Places(NamedTuple):
    """The columns that rewards on places read, one entry per row; `iou_reward` says what each holds."""

    solution: Sequence[Any]
    image_size: Sequence[Size | None]
    input_size: Sequence[Size | None] | None = None
    coordinate_space: Sequence[str] | None = None
    solution_space: Sequence[str] | None = None

    def gold(self, row: int) -> Box | None:
        """Return the gold box in original pixels, None if there is no image or no box that encloses something."""
        box = find_box(str(self.solution[row]))
        if self.image_size[row] is None or box is None or not is_box(box):
            return None
        space = self.solution_space[row] if self.solution_space else "absolute"
        return to_original(box, space, image_size=self.image_size[row])

    def to_pixels(self, row: int, box: Box) -> Box:
        """Convert a box of the answer to original pixels."""
        space, resized = self.coordinate_space, self.input_size
        return to_original(
            box,
            space[row] if space else "absolute",
            image_size=self.image_size[row],
            input_size=resized[row] if resized else None,
        )

    def leaves_image(self, row: int, box: Box) -> bool:
        """Tell whether a side of the box, in original pixels, lies outside the image."""
        size = self.image_size[row]
        assert size is not None
        return min(box) < 0 or max(box[0], box[2]) > size[0] or max(box[1], box[3]) > size[1]

    def judge(self, row: int, found: Box | None, rule: Callable[[Box, Box], float], lowest: float) -> Judgement | None:
        """Judge the box found in an answer by `rule(box, gold)` in original pixels, `lowest` for none.

        Returns:
            The judgement, None if the row has no gold box or no image size.
        """
        gold = self.gold(row)
        if gold is None:
            return None
        if found is None:
            return Judgement("malformed", lowest)
        box = self.to_pixels(row, found)
        return Judgement("out_of_image" if self.leaves_image(row, box) else "parsed", rule(box, gold))


def judge_places(
    completions: Sequence[str | list[dict[str, Any]]],
    places: Places,
    *,
    find: Callable[[str], Box | None],
    rule: Callable[[Box, Box], float],
    lowest: float = 0.0,
    name: str,
    log_metric: LogMetric | None,
) -> list[Judgement | None]:
    """Judge the box or point in each completion's `<answer>` against the gold box.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        places: the columns.
        find: parser of the answer; a point x, y is the box (x, y, x, y).
        rule: score of `rule(box, gold)`, both in original pixels.
        lowest: score without an answer or with one that holds nothing of the right form.
        name, log_metric: as in `judge_rows`.

    Raises:
        ValueError: for an unknown space, or `absolute_resized` without an input size.
    """

    def judge(row: int, text: str) -> Judgement | None:
        answer = find_answer(text)
        judgement = places.judge(row, None if answer is None else find(answer), rule, lowest)
        return Judgement("no_answer", lowest) if judgement is not None and answer is None else judgement

    return judge_rows(completions, judge, name=name, log_metric=log_metric)


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
    places = Places(solution, image_size, input_size, coordinate_space, solution_space)
    judgements = judge_places(completions, places, find=find_box, rule=iou, name="iou_reward", log_metric=log_metric)
    judged = [judgement for judgement in judgements if judgement is not None]
    if log_metric is not None and judged:
        log_metric("iou_reward/accuracy@0.5", sum(judgement.score > 0.5 for judgement in judged) / len(judged))
    return scores(judgements)


def giou_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    image_size: Sequence[Size | None],
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    solution_space: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score each completion with the generalised IoU (`geometry.giou`) of its box and the gold box.

    Unlike the IoU it still grows while a box that misses the gold comes nearer. Columns as in `iou_reward`.

    Returns:
        One number in [-1, 1] per row: -1.0 without an answer, without a box in it, and for an empty or reversed box,
        which is what an honest box tends to as it moves away for good; None if the row cannot be judged.
    """
    places = Places(solution, image_size, input_size, coordinate_space, solution_space)
    judgements = judge_places(
        completions, places, find=find_box, rule=giou, lowest=-1.0, name="giou_reward", log_metric=log_metric
    )
    return scores(judgements)
