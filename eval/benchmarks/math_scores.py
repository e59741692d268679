r"""Scorers of mathematics: math-verify, lm-eval's filters of GSM8K, letters, and InterGPS' nearest value.

All are total. `no_answer` is 1.0 where no answer could be read. `strict`, where there is one, is never above
`accuracy`: it also wants the answer in the form that the prompt asks for and in the gold's own writing
(`answers.answer_text`). Equality is math-verify's with the gold first (`rewards.maths`), in a process with limits;
only a gold that it cannot read is compared as text.
"""

import functools
import re
from collections.abc import Callable, Sequence

from vlm_entropy.data.loaders.tables import column
from vlm_entropy.eval.protocols import Item, Score, View
from vlm_entropy.rewards.maths import comparison
from vlm_entropy.rewards.parsing import find_boxed, find_choice, find_final_answer, read_number

from .answers import answer_text, find_letter, without_text

Scorer = Callable[[Item, str, View], Score]
Finder = Callable[[str], str | None]
LETTERS = "ABCD"

_STOPS = ("Question:", "</s>", "<|im_end|>")
_HASHES = re.compile(r"#### (-?[0-9.,]+)")
_NUMBERS = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_BLANKS_AT_MARKS = re.compile(r"(?<!\s)\s++(?=[<>/])|(?<=[<>/])\s++")
_LMMS_EVAL = (
    re.compile(r"[Aa]nswer\s*+[:=]\s*+\(?([A-Da-d])"),
    re.compile(r"\b([A-Da-d])\s*+[.)\]]"),
    re.compile(r"\A\s*+\(?([A-Da-d])\)?\Z"),
    re.compile(r"\b([A-Da-d])\b"),
)

_comparison = functools.lru_cache(maxsize=256)(comparison)


def equals(gold: str, answer: str) -> bool:
    """Tell whether math-verify takes the answer for equal to the gold; a gold that it cannot read, as text."""
    equal = _comparison(gold)
    return answer.strip() == gold.strip() if equal is None else equal(answer) is True


def math_score(find: Finder = find_final_answer, *, asked: Finder = find_boxed) -> Scorer:
    """Return the scorer by math-verify of the answers that `find` reads; `asked` reads the form asked for."""

    def score(item: Item, response: str, view: View) -> Score:
        answer = find(response)
        text = None if answer is None else answer_text(answer)
        right = answer is not None and text is not None and equals(item.answer, answer)
        strict = right and asked(response) is not None and text == answer_text(item.answer)
        return Score({"accuracy": float(right), "strict": float(strict), "no_answer": float(text is None)}, text)

    return score


def find_easy_r1(response: str) -> str | None:
    r"""Return the last `\boxed{}` after the thinking, read without blanks around `<`, `>` and `/` as EasyR1 does."""
    return find_boxed(_BLANKS_AT_MARKS.sub("", response))


def _bare(number: str) -> str:
    return number.replace(",", "").replace("$", "").removesuffix(".")


def lm_eval_texts(response: str) -> dict[str, str | None]:
    """Return what the two filters of lm-eval's GSM8K read, without `,`, `$` and one final point; None is "[invalid]".

    The response ends at the first of lm-eval's stop words. `strict` is the number after the first "#### "; `flexible`
    the last run of two or more digits, points, commas and dollar signs, or the last digits.
    """
    for stop in _STOPS:
        response = response.partition(stop)[0]
    found = {"strict": _HASHES.findall(response)[:1], "flexible": _NUMBERS.findall(response)[-1:]}
    return {name: _bare(numbers[0]) if numbers else None for name, numbers in found.items()}


def lm_eval_score(headline: str, beside: str) -> Scorer:
    """Return the scorer by equality of texts, so that 18.0 is not 18, for two names of `lm_eval_texts`."""

    def score(item: Item, response: str, view: View) -> Score:
        texts, gold = lm_eval_texts(response), _bare(item.answer)
        text = texts[headline] or ""
        parsed = text if re.search("[0-9]", text) else None
        values = {"accuracy": float(text == gold), beside: float(texts[beside] == gold)}
        return Score({**values, "no_answer": float(parsed is None)}, parsed)

    return score


def _boxed_letter(response: str) -> str | None:
    boxed = find_boxed(response)
    return None if boxed is None else find_choice(without_text(boxed))


def letter_score(item: Item, response: str, view: View) -> Score:
    r"""Score the letter of a response, by `answers.find_letter`, against the gold's; `strict` wants a `\boxed{}`."""
    letter, gold = find_letter(response), find_choice(item.answer)
    right = letter is not None and letter == gold
    strict = right and _boxed_letter(response) == gold
    return Score({"accuracy": float(right), "strict": float(strict), "no_answer": float(letter is None)}, letter)


def lmms_eval_letter(response: str, choices: Sequence[str]) -> str | None:
    """Return the letter that lmms-eval's Geometry3K reads anywhere in a response, thinking included, or None.

    The last A to D, of either case, of the first of these kinds that occurs: after "answer:" or "answer=", before a
    point or closing bracket, alone, as a word ("a" is one). Without any, the first choice whose text occurs.
    """
    for kind in _LMMS_EVAL:
        if letters := kind.findall(response.strip()):
            return letters[-1].upper()
    lower = response.lower()
    return next((letter for letter, choice in zip(LETTERS, choices) if choice.lower() in lower), None)


def choice_score(item: Item, response: str, view: View) -> Score:
    """Score the letter of a response against the column `choice`; `lmms_eval` is that harness' own reading."""
    letter, gold = find_letter(response), column(item.columns, "choice")
    published = lmms_eval_letter(response, column(item.columns, "choices"))
    values = {"accuracy": float(letter == gold), "lmms_eval": float(published == gold)}
    return Score({**values, "no_answer": float(letter is None)}, letter)


def nearest(number: float, values: Sequence[float | None]) -> list[int]:
    """Return the places of the values nearest to a number, all of them; a value that is None is passed over."""
    gaps = {place: abs(value - number) for place, value in enumerate(values) if value is not None}
    return [place for place, gap in gaps.items() if gap == min(gaps.values())]


def intergps_score(item: Item, response: str, view: View) -> Score:
    """Score the choice that an answer stands for against the column `choice`; `strict` wants the choice itself.

    A plain number stands for the nearest `precise_value`, a tie for all of them, and LaTeX for the first choice that
    it equals. As published, a problem with a value that is None is never right.
    """
    answer = find_easy_r1(response)
    text = None if answer is None else answer_text(answer)
    choices, values = column(item.columns, "choices"), column(item.columns, "precise_value")
    number = None if text is None else read_number(text)
    if number is not None:
        places = nearest(number, values)
    elif answer is not None and text is not None:
        places = [place for place, choice in enumerate(choices) if equals(choice, answer)][:1]
    else:
        places = []
    right = None not in values and LETTERS.index(column(item.columns, "choice")) in places
    strict = right and answer is not None and equals(item.answer, answer)
    values = {"accuracy": float(right), "strict": float(strict), "no_answer": float(not places)}
    return Score(values, LETTERS[places[0]] if places else None)
