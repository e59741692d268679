"""Visual grounding: the overlap of the box in the answer with the gold box."""

from collections.abc import Callable, Sequence
from typing import Any

from .geometry import Box, Size, iou, is_box, to_original
from .parsing import completion_text, find_answer, find_box


def _gold_box(solution: Any, space: str, image_size: Size | None) -> Box | None:
    """Return the gold box in original pixels, None if there is no image or no box that encloses something."""
    box = find_box(str(solution))
    if image_size is None or box is None or not is_box(box):
        return None
    return to_original(box, space, image_size=image_size)


def _log_shares(outcomes: list[tuple[str, float]], log_metric: Callable[[str, float], None]) -> None:
    """Log the share of the judged completions without an answer, with a malformed one, and with IoU > 0.5."""
    shares = {
        "no_answer": [kind == "no_answer" for kind, _ in outcomes],
        "malformed": [kind == "malformed" for kind, _ in outcomes],
        "accuracy@0.5": [score > 0.5 for _, score in outcomes],
    }
    for name, flags in shares.items():
        log_metric(f"iou_reward/{name}", sum(flags) / len(flags))


def _judge(text: str, gold: Box, space: str, image_size: Size, input_size: Size | None) -> tuple[str, float]:
    """Return what was found ("no_answer", "malformed" or "box") and the IoU, 0 unless it is a box."""
    answer = find_answer(text)
    if answer is None:
        return "no_answer", 0.0
    box = find_box(answer)
    if box is None:
        return "malformed", 0.0
    return "box", iou(to_original(box, space, image_size=image_size, input_size=input_size), gold)


def iou_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    image_size: Sequence[Size | None],
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    solution_space: Sequence[str] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
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
        log_metric: TRL's logger; gets the shares of judged rows named `iou_reward/no_answer`, `iou_reward/malformed`
            and `iou_reward/accuracy@0.5` (IoU > 0.5, strict).

    Returns:
        One number in [0, 1] per row; 0.0 also without an answer or a box in it, None if the row cannot be judged:
        it has no image size, or its solution holds no box or an empty one.

    Raises:
        ValueError: for an unknown space, or `absolute_resized` without an input size.
    """
    outcomes: list[tuple[str, float] | None] = []
    for i, completion in enumerate(completions):
        size, resized = image_size[i], input_size[i] if input_size else None
        gold = _gold_box(solution[i], solution_space[i] if solution_space else "absolute", size)
        space = coordinate_space[i] if coordinate_space else "absolute"
        if size is None or gold is None:
            outcomes.append(None)
        else:
            outcomes.append(_judge(completion_text(completion), gold, space, size, resized))
    judged_outcomes = [outcome for outcome in outcomes if outcome is not None]
    if log_metric is not None and judged_outcomes:
        _log_shares(judged_outcomes, log_metric)
    return [None if outcome is None else outcome[1] for outcome in outcomes]
