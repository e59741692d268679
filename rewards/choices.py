"""Closed questions: the letter of a multiple choice, and yes or no."""

from collections.abc import Callable, Sequence
from typing import Any

from .judging import Judgement, LogMetric, judge_rows, scores
from .parsing import find_choice, find_final_answer, find_yes_no


def judge_by_parser(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    parse: Callable[[str], str | int | None],
    *,
    name: str,
    log_metric: LogMetric | None,
) -> list[float | None]:
    """Score 1.0 where answer and gold parse to the same value, 0.0 otherwise, None where the gold does not parse."""

    def judge(row: int, text: str) -> Judgement | None:
        gold = parse(str(solution[row]))
        if gold is None:
            return None
        answer = find_final_answer(text)
        if answer is None:
            return Judgement("no_answer", 0.0)
        chosen = parse(answer)
        return Judgement("malformed" if chosen is None else "parsed", float(chosen == gold))

    return scores(judge_rows(completions, judge, name=name, log_metric=log_metric))


def choice_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1.0 for each completion whose answer is the gold letter, else 0.0.

    The letter is read by `parsing.find_choice` from the `<answer>` or, without one, from the last `\boxed{}` after the
    thinking. Departs from VLM-R1's `mcq`, which settles several letters by their place: here they are malformed.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        solution: the gold letter, one per row, in any form of `find_choice`.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`).

    Returns:
        1.0 or 0.0 per row; None for a gold that is no choice.
    """
    return judge_by_parser(completions, solution, find_choice, name="choice_reward", log_metric=log_metric)


def yes_no_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1.0 for each completion whose answer says yes or no as the gold does, else 0.0.

    Departs from VLM-R1's `yes_no`: only whole words count ("nothing" says neither), both words or neither are
    malformed, and an answer and a gold that both say neither do not match.

    Args:
        completions: strings or TRL's lists of messages, one per row; answer in `<answer>`, else in `\boxed{}`.
        solution: the gold, a text that says yes or no, one per row.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`).

    Returns:
        1.0 or 0.0 per row; None for a gold that says both or neither.
    """
    return judge_by_parser(completions, solution, find_yes_no, name="yes_no_reward", log_metric=log_metric)
