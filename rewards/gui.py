"""GUI actions: UI-R1's rewards for the name of the action and its place, and one for the text that it types.

The answer is `[{'action': 'click', 'coordinate': [x, y], 'input_text': '...'}]` in JSON or Python quotes, read by
`parsing.find_action`; of several actions the first counts. UI-R1 (https://github.com/lll6gg/UI-R1) adds the first two
and the format with equal weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .geometry import Size
from .grounding import Places
from .judging import Judgement, LogMetric, judge_rows, scores
from .parsing import Action, find_action, find_answer
from .pointing import centre_inside

CLICK = "click"


def _gold_action(action: Sequence[str | None] | None, row: int) -> str | None:
    """Return the gold action, `click` where the column or its value is absent, None if it is blank or no text."""
    gold = CLICK if action is None or action[row] is None else action[row]
    return gold.strip() or None if isinstance(gold, str) else None


def _judge_actions(
    completions: Sequence[str | list[dict[str, Any]]],
    action: Sequence[str | None] | None,
    judge_match: Callable[[int, str, Action], Judgement | None],
    can_judge: Callable[[int, str], bool],
    *,
    name: str,
    log_metric: LogMetric | None,
) -> list[float | None]:
    """Score 0.0 each answer whose action is not the gold one, the others by `judge_match(row, gold, found)`."""

    def judge(row: int, text: str) -> Judgement | None:
        gold = _gold_action(action, row)
        if gold is None or not can_judge(row, gold):
            return None
        answer = find_answer(text)
        found = None if answer is None else find_action(answer)
        if found is None:
            return Judgement("no_answer" if answer is None else "malformed", 0.0)
        return judge_match(row, gold, found) if found.action.strip() == gold else Judgement("parsed", 0.0)

    return scores(judge_rows(completions, judge, name=name, log_metric=log_metric))


def gui_action_name_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    action: Sequence[str | None] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for each completion that names the gold action, blanks around it aside, else 0.0.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        action: name of the gold action per row; absent or None = `click`.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`).

    Returns:
        1.0 or 0.0 per row; None for a gold action that is blank or no text.
    """
    return _judge_actions(
        completions,
        action,
        lambda row, gold, found: Judgement("parsed", 1.0),
        lambda row, gold: True,
        name="gui_action_name_reward",
        log_metric=log_metric,
    )


def gui_coordinate_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    image_size: Sequence[Size | None],
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    solution_space: Sequence[str] | None = None,
    action: Sequence[str | None] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for the gold action at the right place, else 0.0.

    A click must have its `coordinate` in the gold box, borders included; any other action need only match, as in
    UI-R1. Departs from UI-R1, which takes the first two integers in brackets anywhere in the answer and truncates
    them to whole pixels after the conversion.

    Args:
        solution: text that holds the gold box, one per row; anything for an action other than `click`.
        action: name of the gold action per row; absent or None = `click`.
        completions, image_size, input_size, coordinate_space, solution_space: as in `grounding.iou_reward`.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`).

    Returns:
        1.0 or 0.0 per row; None for a gold click without a box or an image size, or a gold action that is blank.

    Raises:
        ValueError: for an unknown space, or `absolute_resized` without an input size.
    """
    places = Places(solution, image_size, input_size, coordinate_space, solution_space)

    def judge_match(row: int, gold: str, found: Action) -> Judgement | None:
        if gold != CLICK:
            return Judgement("parsed", 1.0)
        point = found.coordinate
        return places.judge(row, None if point is None else (*point, *point), centre_inside, 0.0)

    return _judge_actions(
        completions,
        action,
        judge_match,
        lambda row, gold: gold != CLICK or places.gold(row) is not None,
        name="gui_coordinate_reward",
        log_metric=log_metric,
    )


def gui_text_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    input_text: Sequence[str | None] | None = None,
    action: Sequence[str | None] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for the gold action with exactly the gold text, blanks at both ends aside, else 0.0.

    Exact and with case, because that is what ends up in the field; GUI-R1's token F1 also pays for a permuted text.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        input_text: the text to type per row; None or blank for an action that types nothing.
        action: name of the gold action per row; absent or None = `click`.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`).

    Returns:
        1.0 or 0.0 per row; None where there is no text to type, or the gold action is blank.
    """

    def gold_text(row: int) -> str:
        text = input_text[row] if input_text else None
        return text.strip() if isinstance(text, str) else ""

    def judge_match(row: int, gold: str, found: Action) -> Judgement | None:
        if found.input_text is None:
            return Judgement("malformed", 0.0)
        return Judgement("parsed", float(found.input_text.strip() == gold_text(row)))

    return _judge_actions(
        completions,
        action,
        judge_match,
        lambda row, gold: bool(gold_text(row)),
        name="gui_text_reward",
        log_metric=log_metric,
    )
