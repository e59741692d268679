"""What every reward does around its rule: rows it cannot judge, a score per row, and statistics of what was parsed."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from .parsing import completion_text

Kind = Literal["parsed", "no_answer", "malformed", "out_of_image"]
KINDS: tuple[Kind, ...] = ("parsed", "no_answer", "malformed", "out_of_image")
"""no_answer: the place of the answer is missing. malformed: it is there, and holds nothing of the right form.
out_of_image: a box or point of the right form lies outside the image, wholly or in part. parsed: all others."""

LogMetric = Callable[[str, float], None]


class Judgement(NamedTuple):
    """What a rule found in one completion, and the score it earns."""

    kind: Kind
    score: float


def judge_rows(
    completions: Sequence[str | list[dict[str, Any]]],
    judge: Callable[[int, str], Judgement | None],
    *,
    name: str,
    log_metric: LogMetric | None,
) -> list[Judgement | None]:
    """Judge each completion, and log the share of each kind among the judged ones as `<name>/<kind>`.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        judge: `judge(row, text)`, None for a row that cannot be judged.
        name: of the reward, as in the metric's key.
        log_metric: TRL's logger, None to log nothing.

    Returns:
        One judgement per completion, in order.
    """
    judgements = [judge(row, completion_text(completion)) for row, completion in enumerate(completions)]
    judged = [judgement for judgement in judgements if judgement is not None]
    if log_metric is not None and judged:
        for kind in KINDS:
            log_metric(f"{name}/{kind}", sum(judgement.kind == kind for judgement in judged) / len(judged))
    return judgements


def scores(judgements: Sequence[Judgement | None]) -> list[float | None]:
    """The scores of judged rows, None for the others: what a reward returns."""
    return [None if judgement is None else judgement.score for judgement in judgements]
