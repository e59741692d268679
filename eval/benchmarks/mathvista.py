r"""MathVista: answers extracted by rules where the published evaluation asks GPT, then its own normalise and compare.

What is extracted of a response, the first that there is; its thinking does not count:
1. as published: all of it if that is a choice, an integer or a float, each where the answer is to be one; or what
   stands in `The answer is "...".`
2. of the `<answer>`, or of the last `\boxed{}`: for a choice the letter if it has the form of one, for a number the
   only number in it, else all of it.
3. without these, for a choice the letter as `answers.find_letter` reads it, or the last one in round brackets, or the
   only choice that occurs; for a number the last one; for a list the last [...].
Numbers lose their thousands commas. An extraction of more than 300 characters is none.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from vlm_entropy.data.loaders.tables import column
from vlm_entropy.eval.protocols import Benchmark, Item, Protocol, Reference, Score, View
from vlm_entropy.rewards.maths import MAX_CHARACTERS, canonical
from vlm_entropy.rewards.parsing import find_choice, find_final_answer

from .answers import EASY_R1, ask, find_letter, without_text
from .places import after_thinking

METADATA = ("language", "source", "category", "task", "context", "grade")
NUMBERS = ("integer", "float")

_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_BRACKETED_CAPITAL = re.compile(r"\(([A-Z])\)")
_OPTION = re.compile(r"\(?([A-Z])\)?[.:]?")
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)"
_NUMBER = re.compile(rf"(?:(?<![0-9)])-)?(?:{_WHOLE}(?:\.[0-9]++)?|\.[0-9]++)")
_LIST = re.compile(r"\[[^\[\]]*+\]")


def edit_distance(a: str, b: str) -> int:
    """Return Levenshtein's distance: the fewest insertions, deletions and substitutions that make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def options(columns: Mapping[str, Any]) -> dict[str, str]:
    """Return the choices by their letters, A first."""
    return {chr(ord("A") + place): choice for place, choice in enumerate(column(columns, "choices"))}


def _number(extraction: str, columns: Mapping[str, Any]) -> str | None:
    try:
        number = float(extraction)
        is_integer = columns["answer_type"] == "integer"
        return str(int(number)) if is_integer else str(round(number, column(columns, "precision")))
    except (ValueError, OverflowError):
        return None


def normalised(extraction: str, columns: Mapping[str, Any]) -> str | None:
    """Return the prediction that the published evaluation makes of an extraction.

    Multiple choice: the first letter in round brackets, in upper case, or else all of it, is an option's letter or
    else stands for the choice at the least edit distance, the first of several; "" does so too. A choice that looks
    like a letter is a letter: in problems 168 and 849, whose choices are "(a)" to "(e)" in another order, "(b)" is the
    second choice. Otherwise an integer is `str(int(float(x)))`, so 14.9 is 14, a float is rounded to `precision`
    places, so 2.50 is 2.5, both are None for what `float` refuses ("1,234", "14 cm"), and a list stays as it is.
    """
    if column(columns, "question_type") == "multi_choice":
        found = _BRACKETED.search(extraction)
        text = found[1].upper() if found else extraction.strip()
        by_letter = options(columns)
        return (
            by_letter[text]
            if text in by_letter
            else min(by_letter.values(), key=functools.partial(edit_distance, text))
        )
    return _number(extraction, columns) if column(columns, "answer_type") in NUMBERS else extraction


def published_extraction(response: str, columns: Mapping[str, Any]) -> str | None:
    """Return what the published rules extract without GPT, or None."""
    if columns["question_type"] == "multi_choice" and response in column(columns, "choices"):
        return response
    try:
        if columns["answer_type"] in NUMBERS:
            return str(int(response) if columns["answer_type"] == "integer" else float(response))
    except ValueError:
        pass
    for line in response.split("\n"):
        text, end, _ = line.partition('The answer is "')[2].rpartition('".')
        if end:
            return text
    return None


def _chosen(text: str, columns: Mapping[str, Any]) -> str:
    """Return a letter of the options, or a choice, from a text without answer or box; "" without either."""
    by_letter = options(columns)
    bracketed = _BRACKETED_CAPITAL.findall(text)
    for letter in (find_letter(text), bracketed[-1] if bracketed else None):
        if letter in by_letter:
            return letter
    occurring = [it for it in by_letter.values() if re.search(rf"(?<!\w){re.escape(it)}(?!\w)", text, re.IGNORECASE)]
    return occurring[0] if len(occurring) == 1 else ""


def _extracted(text: str, columns: Mapping[str, Any], *, is_answer: bool) -> str:
    """Return the second step's extraction of an answer, or the third step's of a text without one."""
    if columns["question_type"] == "multi_choice":
        return find_choice(text) or text if is_answer else _chosen(text, columns)
    if columns["answer_type"] in NUMBERS:
        numbers = _NUMBER.findall((canonical(text) or "") if is_answer else text)
        if is_answer:
            return numbers[0].replace(",", "") if len(numbers) == 1 else text
        return numbers[-1].replace(",", "") if numbers else ""
    lists = _LIST.findall(text)
    return text if is_answer else lists[-1] if lists else ""


def extraction(response: str, columns: Mapping[str, Any]) -> str:
    """Return what the rules at the top of this file extract of a response, "" for nothing."""
    answer = find_final_answer(response)
    text = after_thinking(response) if answer is None else without_text(answer)
    found = published_extraction(text, columns)
    if found is None:
        found = _extracted(text, columns, is_answer=answer is not None)
    return found if len(found) <= MAX_CHARACTERS else ""


def is_strictly_right(response: str, item: Item) -> bool:
    """Tell whether the answer, or without one all that follows the thinking, is the gold and nothing else.

    Of a choice it is the choice's own text or its letter; a capital, also in brackets, is a letter, as in the
    question, and "(b)" is the choice "(b)" if there is one. A number or list is the gold character by character.
    """
    answer = find_final_answer(response)
    text = without_text(after_thinking(response) if answer is None else answer)
    if item.columns["question_type"] != "multi_choice":
        return text == item.answer
    by_letter = options(item.columns)
    capital = _OPTION.fullmatch(text)
    if not capital and text in by_letter.values():
        return text == item.answer
    return by_letter.get(capital[1] if capital else find_choice(text) or "") == item.answer


def score(item: Item, response: str, view: View) -> Score:
    """Score a response: `accuracy` as published but for the extraction, `strict`, and `no_answer`.

    As published, a choice is found even for nothing: the shortest one, right by luck; `strict` wants an answer. Where
    a choice looks like the letter of another one, `strict` can be 1.0 and `accuracy` 0.0.
    """
    found = extraction(response, item.columns)
    prediction = normalised(found, item.columns)
    parsed = prediction if found else None
    values = {
        "accuracy": float(prediction == item.answer),
        "strict": float(is_strictly_right(response, item)),
        "no_answer": float(parsed is None),
    }
    return Score(values, parsed)


def cells(item: Item) -> dict[str, str]:
    """Return the published groups; a skill is a cell of its own, since a question may need several."""
    metadata = item.columns.get("metadata") or {}
    types = {name: item.columns[name] for name in ("question_type", "answer_type")}
    groups = {name: metadata[name] for name in METADATA if name in metadata}
    return {**types, **groups, **{f"skill {name}": "needed" for name in metadata.get("skills") or ()}}


_BY_GPT = "{}; answers extracted by GPT, not by rules"
REFERENCES = tuple(
    Reference(model, "accuracy", value, _BY_GPT.format(source), "testmini")
    for model, value, source in (
        ("Qwen2.5-VL-3B-Instruct", 0.623, "Qwen2.5-VL's report"),
        ("Qwen2.5-VL-7B-Instruct", 0.682, "Qwen2.5-VL's report"),
        ("Qwen2.5-VL-72B-Instruct", 0.748, "Qwen2.5-VL's report"),
        ("InternVL3-2B", 0.57, "InternVL3's report, recalled, not checked"),
        ("InternVL3-8B", 0.716, "InternVL3's report, recalled, not checked"),
        ("MM-Eureka-Qwen-7B", 0.73, "MM-Eureka's README"),
    )
)
_RULES = (
    "MathVista's prompt ({}), and its normalise-and-compare. Departure: "
    "the extraction is ours, by rules, where GPT does it there (see eval/benchmarks/mathvista.py)"
)

MATHVISTA: dict[str, Benchmark] = {
    "mathvista": Benchmark(
        images=(".",),
        formats=("mathvista",),
        sizes={"testmini": 1_000, None: 1_000},
        protocols={
            "rules": Protocol(
                source=_RULES.format("the column query"),
                prompt=ask("{Question}"),
                score=score,
                cells=cells,
                max_new_tokens=1024,
                references=REFERENCES,
            ),
            "rules_boxed": Protocol(
                source=_RULES.format(
                    "the column query in EasyR1's words for thinking and a box, for models so trained"
                ),
                prompt=ask(EASY_R1),
                score=score,
                cells=cells,
                max_new_tokens=2048,
            ),
        },
    )
}
