"""How the answers of text benchmarks are asked for, read and written: templates, letters, one writing for a vote."""

import re
from collections.abc import Callable

from vlm_entropy.eval.protocols import Item, Message, View
from vlm_entropy.rewards.maths import canonical
from vlm_entropy.rewards.parsing import find_choice, find_final_answer

from .places import after_thinking, user_message

BOXED = "{Question}\nPlease reason step by step, and put your final answer within \\boxed{}."
EASY_R1 = (
    "{Question} You FIRST think about the reasoning process as an internal monologue and then provide the final "
    "answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in "
    "\\boxed{}."
)
"""EasyR1's and NoisyRollout's prompt for mathematics."""

_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*+\{([^{}]*+)\}")
_NUMERAL = re.compile(r"([+-]?)(?=\.?[0-9])([0-9]{1,3}(?:,[0-9]{3})++|[0-9]*+)(?:\.([0-9]*+))?")
_IDLE_BLANK = re.compile(r"(?<![0-9]) | (?![0-9])")
_NAMED_LETTER = re.compile(r"(?i:answer|option|choice)(?: is)?\s*+[:=]?\s*+[*$(\[]{0,4}([A-Z])(?![\w'])")


def ask(template: str) -> Callable[[Item, View], list[Message]]:
    """Return the prompt that puts an item's question in the place of `{Question}`, as one user message."""

    def prompt(item: Item, view: View) -> list[Message]:
        return user_message(template.replace("{Question}", item.question))

    return prompt


def without_text(answer: str) -> str:
    r"""Return the answer without `\text{}` and its like, and without `$`, `*` and blanks at the ends."""
    return _TEXT.sub(r"\1", answer).strip(" \n\t\r$*")


def find_letter(response: str) -> str | None:
    r"""Return the chosen letter, A to Z, of a response, or None.

    It is what `find_choice` reads in the `<answer>` or `\boxed{}`. Without these it is what `find_choice` reads after
    the thinking (`B`, `(B) 8/11`), and failing that the letter after the last "answer", "option" or "choice", with
    "is" or a colon: "The correct answer is (B)."
    """
    answer = find_final_answer(response)
    if answer is not None:
        return find_choice(without_text(answer))
    rest = after_thinking(response)
    named = _NAMED_LETTER.findall(rest)
    return find_choice(without_text(rest)) or (named[-1] if named else None)


def _numeral(sign: str, whole: str, fraction: str | None) -> str:
    whole, fraction = whole.replace(",", "").lstrip("0") or "0", (fraction or "").rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if sign == "-" and number != "0" else number


def answer_text(answer: str) -> str | None:
    r"""Return an answer in one writing, for votes and for strict equality; None if it is blank or malformed.

    The dress is off (see `rewards.maths.canonical`); a numeral stands for its value (`1,200.0` is `1200`), and LaTeX
    has no idle blanks (`5 \sqrt { 3 }` is `5\sqrt{3}`). Nothing is computed: `1/2`, `0.5` and `50\%` stay apart.
    """
    plain = canonical(without_text(answer).replace("\\$", ""))
    if not plain:
        return None
    numeral = _NUMERAL.fullmatch(plain)
    return _numeral(*numeral.groups()) if numeral else _IDLE_BLANK.sub("", plain)
