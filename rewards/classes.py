"""Classification by name: the answer is the name of the class."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from .judging import Judgement, LogMetric, judge_rows, scores
from .parsing import find_final_answer

_WORD = re.compile(r"[^\W_]+")


def squeeze(name: str) -> str:
    """Return the name in lower case without blanks and underscores: `Maine_Coon ` -> `mainecoon`."""
    return "".join(name.lower().replace("_", " ").split())


def published_class_match(prediction: str, gold: str) -> bool:
    """Visual-RFT's rule, for comparison in evaluation only: either name contains the other after `squeeze`.

    An empty prediction is contained in every name, `e` in most, and a list of all classes contains every one.
    https://github.com/Liuziyu77/Visual-RFT
    """
    predicted, wanted = squeeze(prediction), squeeze(gold)
    return predicted in wanted or wanted in predicted


def class_match(prediction: str, gold: str) -> bool:
    """Tell whether the two names are equal after `squeeze`, and not empty."""
    return squeeze(prediction) == squeeze(gold) != ""


def class_containment_match(prediction: str, gold: str) -> bool:
    """Tell whether one name contains the other as consecutive whole words that are more than half of the longer one.

    Words are runs of letters and digits, in lower case. Departs from `published_class_match` so that an empty answer,
    a fragment (`e`), a word that classes share (`Sedan`) or a list of classes earns nothing: two names that share no
    word cannot both be more than half of one answer. What remains: leaving out the word that tells two long names
    apart (`Audi S4 Sedan` for both of `Audi S4 Sedan 2007` and `Audi S4 Sedan 2012`).
    """
    shorter, longer = sorted((_WORD.findall(prediction.lower()), _WORD.findall(gold.lower())), key=len)
    if 2 * len(shorter) <= len(longer):
        return False
    return any(longer[start : start + len(shorter)] == shorter for start in range(len(longer) - len(shorter) + 1))


def _judge_names(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    match: Callable[[str, str], bool],
    *,
    name: str,
    log_metric: LogMetric | None,
) -> list[float | None]:
    def judge(row: int, text: str) -> Judgement | None:
        gold = str(solution[row])
        if solution[row] is None or not _WORD.search(gold):
            return None
        answer = find_final_answer(text)
        if answer is None:
            return Judgement("no_answer", 0.0)
        return Judgement("parsed", float(match(answer, gold))) if answer.strip() else Judgement("malformed", 0.0)

    return scores(judge_rows(completions, judge, name=name, log_metric=log_metric))


def class_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for each completion whose answer is the name of the gold class, else 0.0.

    Case, blanks and underscores do not matter. Departs from `published_class_match`, which takes containment.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        solution: name of the gold class, one per row.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`).

    Returns:
        1.0 or 0.0 per row; None for a gold without a letter or digit.
    """
    return _judge_names(completions, solution, class_match, name="class_reward", log_metric=log_metric)


def class_containment_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1.0 for each completion whose answer matches the gold class by `class_containment_match`, else 0.0.

    That docstring says how it departs from Visual-RFT and which exploit remains. Columns and result as `class_reward`.
    """
    name = "class_containment_reward"
    return _judge_names(completions, solution, class_containment_match, name=name, log_metric=log_metric)
