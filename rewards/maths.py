r"""Mathematics: is the answer equal to the gold, as math-verify decides it in a process of its own.

Both sides are first made comparable: the content of a `\boxed{}`, no `$`, no degree sign, no unit at the end. A gold
that is a letter A to K is a choice and compared as one, a gold of words is compared as words (to math-verify they are
products of letters, and anagrams equal); all else goes to math-verify's LaTeX reader, gold first, with its own rules
for numbers: 14.9 = 14.90, 1/3 = 0.333333 but not 0.333, 50\% = 0.5 and also = 50, sets without order, x = 5 is 5.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from .judging import Judgement, LogMetric, judge_rows, scores
from .math_worker import SECONDS, MathWorker
from .parsing import find_boxed, find_choice, find_final_answer

MAX_CHARACTERS = 300
"""Longer answers are malformed."""
MAX_DEPTH = 6
"""Answers with deeper nested brackets are malformed: the reader's time doubles with each."""

_NAMES = (
    r"(?:[mcdk]m|(?:centi|kilo|milli)?met(?:er|re)s?|in(?:ch(?:es)?)?|f(?:ee|oo)?t|y(?:ar)?ds?|mi(?:les?)?|kg|grams?"
)
_NAMES += r"|degrees?|deg|units?|sec(?:onds?)?|min(?:utes?)?|h(?:ou)?rs?)"
_SHORT = rf"(?:{_NAMES}|[mgshL])"
_PLAIN_UNIT = rf"(?:(?:sq(?:uare)?|cubic|cu)\.?\s++)?{_NAMES}(?:/{_SHORT})?\.?"
_TEXT_UNIT = (
    rf"\\(?:text|textrm|mathrm|mbox)\s*+\{{\s*+(?:(?:square|sq\.|cubic)\s++)?{_SHORT}(?:/{_SHORT})?\.?\^?[23]?\s*+\}}"
)
_UNIT = re.compile(rf"(?<=[0-9)}}\]πi\s])(?<!\\)(?:{_PLAIN_UNIT}|{_TEXT_UNIT})(?:\^\{{?[23]\}}?|[²³])?$")
_DELIMITERS = re.compile(r"\$|\\[()\[\],;!]|\\(?:left|right|displaystyle)(?![A-Za-z])")
_DEGREES = re.compile(r"°|\^\s*+(?:\\circ(?![A-Za-z])|\{\s*+\\circ\s*+\})|\\degrees?(?![A-Za-z])")
_ROOT = re.compile(r"√\s*+(\d++|[a-z])")
_MIXED = re.compile(r"(?<![\d./])(\d++) +(\d++)/(\d++)")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})++(?![\d])")
_TEXT = re.compile(r"\\(?:text|textrm|textbf|mathrm|mbox)\s*+\{([^{}]*+)\}")
_LETTER_GOLD = re.compile(r"[(\[]?([A-K])[)\]]?[.:]?")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*+")
_WORD = re.compile(r"(?<![A-Za-z\\])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|lim|max|min)(?![A-Za-z]))[A-Za-z]{3,}")
_NUMERAL = re.compile(r"-?(?:\d++(?:,\d{3})*+(?:\.\d++)?|\.\d++)")

_PARTED = re.compile(r"[0-9] [0-9]")

_WORKER = MathWorker()


def canonical(answer: str) -> str | None:
    r"""Return the answer without the dress that does not change its value, or None if it is too long or too deep.

    Taken off: `\boxed{}` (the content of the last), `$ \( \[ \left \,`, degree signs, a unit of length, time, weight
    or angle at the end, a leading `=` or `≈`, blanks and punctuation at the ends. `5 1/2` is read as a mixed number.
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    while (boxed := find_boxed(answer)) is not None:
        answer = boxed
    answer = _trimmed(" ".join(_DEGREES.sub("", _DELIMITERS.sub(" ", answer)).split()), " .,;:*`=≈")
    answer = _trimmed(_UNIT.sub("", answer), " .,;")
    answer = _MIXED.sub(r"\1\\frac{\2}{\3}", _ROOT.sub(r"\\sqrt{\1}", answer))
    return _THOUSANDS.sub(lambda found: found[0].replace(" ", ""), answer) if _depth(answer) <= MAX_DEPTH else None


def _trimmed(text: str, idle: str) -> str:
    """Return the text without `idle` characters at its ends; the point of ".5" stays."""
    bare = text.strip(idle)
    return f".{bare}" if bare[:1].isdecimal() and text.rstrip(idle).endswith(f".{bare}") else bare


def _depth(text: str) -> int:
    """Return how deep brackets are nested."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _words(answer: str) -> str | None:
    """Return an answer of words in one writing, None if it is not one."""
    plain = _TEXT.sub(r"\1", answer).strip(" .")
    return " ".join(plain.casefold().split()) if _WORDS.fullmatch(plain) and _WORD.search(plain) else None


def _only_numeral(answer: str) -> str:
    """Return the numeral of an answer in words around exactly one numeral, any other answer as it is."""
    numerals = _NUMERAL.findall(answer)
    return numerals[0] if len(numerals) == 1 and _WORD.search(_TEXT.sub("", answer)) and "\\" not in answer else answer


def _is_readable(text: str) -> bool:
    r"""Tell whether math-verify reads it as meant: ASCII digits, and none parted by a blank (`1 2` would be 3)."""
    return (
        bool(text)
        and not _PARTED.search(text)
        and all(character.isascii() or not character.isdigit() for character in text)
    )


def comparison(gold: str, *, seconds: float = SECONDS) -> Callable[[str], bool | None] | None:
    """Return the test `prediction -> is it equal to the gold`, or None if the gold cannot be read.

    Args:
        gold: the right answer.
        seconds: wall-clock limit of each comparison, and of reading the gold.

    Returns:
        A function of one answer, without `<answer>` tags, that gives True or False, and None for a malformed answer:
        blank, too long, too deep, nothing that can be parsed, or too slow.
    """
    right = canonical(gold)
    if right is None:
        return None
    letter = _LETTER_GOLD.fullmatch(_TEXT.sub(r"\1", right))
    if letter:
        return lambda prediction: _same(find_choice(_TEXT.sub(r"\1", prediction).strip(" $*")), letter[1])
    words = _words(right)
    if words is not None:
        return lambda prediction: _same(_words(canonical(prediction) or ""), words)
    right = _only_numeral(right)
    if not _is_readable(right) or not _WORKER.ask(right, seconds=seconds):
        return None

    def equal(prediction: str) -> bool | None:
        answer = canonical(prediction)
        answer = answer if answer is None else _only_numeral(answer)
        if answer is None or not _is_readable(answer):
            return None
        return True if answer == right else _WORKER.ask(right, answer, seconds=seconds)

    return functools.cache(equal)


def _same(found: str | None, right: str) -> bool | None:
    return None if found is None else found == right


def math_equal(gold: str, prediction: str, *, seconds: float = SECONDS) -> bool | None:
    """Tell whether a prediction is equal to the gold; both are answers, without tags or reasoning.

    Returns:
        None if the gold cannot be read within `seconds`; False also for a prediction that cannot.
    """
    equal = comparison(gold, seconds=seconds)
    return None if equal is None else equal(prediction) is True


def _judge_all(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    find: Callable[[str], str | None],
    *,
    name: str,
    log_metric: LogMetric | None,
    seconds: float,
) -> list[float | None]:
    compare = functools.cache(functools.partial(comparison, seconds=seconds))  # a group shares its gold

    def judge(row: int, text: str) -> Judgement | None:
        equal = compare(gold_answer(str(solution[row])))
        if equal is None:
            return None
        answer = find(text)
        if answer is None:
            return Judgement("no_answer", 0.0)
        verdict = equal(answer)
        return Judgement("malformed" if verdict is None else "parsed", float(verdict is True))

    return scores(judge_rows(completions, judge, name=name, log_metric=log_metric))


def gold_answer(solution: str) -> str:
    r"""Return the answer of a gold: what its `<answer>` or `\boxed{}` holds, else all of it."""
    found = find_final_answer(solution)
    return solution if found is None else found


def math_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    *,
    seconds: float = SECONDS,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1.0 for each completion whose answer is equal to the gold, else 0.0.

    The answer is in the `<answer>` or, without one, in the last `\boxed{}` after the thinking. CalibRL's rule
    (normalise, equality, then math-verify, letters A to K as choices), with these departures: a letter is compared
    as a choice and not as a prefix ("Because" is not B), and words as words.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        solution: the gold, one per row: LaTeX, a number, a choice letter or a word; in tags, `\boxed{}` or bare.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`).
        seconds: wall-clock limit of one comparison; an answer that takes longer is malformed.

    Returns:
        1.0 or 0.0 per row; None for a gold that cannot be read.
    """
    return _judge_all(
        completions, solution, find_final_answer, name="math_reward", log_metric=log_metric, seconds=seconds
    )


def boxed_math_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    *,
    seconds: float = SECONDS,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1.0 for each completion whose last `\boxed{}` after the thinking is equal to the gold, else 0.0.

    For prompts that ask for `\boxed{}` (SaEI, NoisyRollout, EasyR1): an `<answer>` without a box does not count. With
    `boxed_format_reward` and the trainer's `reward_weights` 0.9 and 0.1 it makes their reward. Departs from mathruler
    by math-verify's more lenient equality. Arguments and result as in `math_reward`.
    """
    return _judge_all(
        completions, solution, find_boxed, name="boxed_math_reward", log_metric=log_metric, seconds=seconds
    )
