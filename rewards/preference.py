"""Preference: which of two responses is better, the task of a reasoning reward model."""

from collections.abc import Sequence
from typing import Any

from .choices import judge_by_parser
from .judging import LogMetric
from .parsing import find_verdict


def preference_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1.0 for each completion whose verdict is the gold one, else 0.0.

    The verdict is the digit 1 or 2 that is the whole answer (see `parsing.find_verdict`); a tie, both digits or a
    sentence is malformed. R1-Reward (https://github.com/yfzhang114/r1_reward) adds the format at half the weight, and
    the opinion of a judge model, which is left out here.

    Args:
        completions: strings or TRL's lists of messages, one per row; answer in `<answer>`, else in `\boxed{}`.
        solution: 1 or 2, number or text, one per row.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`).

    Returns:
        1.0 or 0.0 per row; None for a gold that is neither 1 nor 2.
    """
    return judge_by_parser(completions, solution, find_verdict, name="preference_reward", log_metric=log_metric)
