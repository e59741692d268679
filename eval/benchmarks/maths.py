r"""Mathematics: GSM8K, MATH-500 and AMC in text; Geometry3K, GeoQA and MMK12 with figures. Scorers: `math_scores`.

Answers are greedy and of one sample unless a protocol says otherwise.
"""

from collections.abc import Callable
from typing import Any

from vlm_entropy.data.loaders.tables import column
from vlm_entropy.eval.protocols import Benchmark, Item, Message, Protocol, Reference, View
from vlm_entropy.rewards.parsing import find_answer

from .answers import BOXED, EASY_R1, ask
from .math_scores import (
    LETTERS,
    choice_score,
    find_easy_r1,
    intergps_score,
    letter_score,
    lm_eval_score,
    math_score,
)
from .places import user_message

LM_EVAL = "Question: {Question}\nAnswer:"
R1_V = (
    "{Question} Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
)
DIRECT = "Answer with the option's letter from the given choices directly."

_ANY_FORM = r"the answer is the last \boxed{} after the thinking, or an <answer>, compared by math-verify, gold first"
_EASY_R1 = "EasyR1's and NoisyRollout's prompt"
_LM_EVAL: dict[str, Any] = {"prompt": ask(LM_EVAL), "max_new_tokens": 256}
_LM_EVAL_SOURCE = (
    "lm-evaluation-harness gsm8k version 3, filter {}. Departure: no worked examples stand before the question, so a "
    "model that was not trained to write #### seldom does"
)


def choices_prompt(item: Item, view: View) -> list[Message]:
    r"""lmms-eval's prompt: the question, a line "A. choice" for each of the column `choices`, and a request.

    Raises:
        ValueError: for an item without `choices`.
    """
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, column(item.columns, "choices"))]
    return user_message("\n".join([item.question, *lines, DIRECT]))


def values_prompt(item: Item, view: View) -> list[Message]:
    """EasyR1's prompt, for an item that can be scored by its `precise_value`.

    Raises:
        ValueError: for an item without it, as hiyouga/geometry3k has them.
    """
    column(item.columns, "precise_value")
    return ask(EASY_R1)(item, view)


def column_cells(*names: str) -> Callable[[Item], dict[str, str]]:
    """Return the cells by those of the named columns that an item has."""
    return lambda item: {name: str(item.columns[name]) for name in names if name in item.columns}


GSM8K = Benchmark(
    formats=("gsm8k",),
    sizes={"train": 7_473, "test": 1_319},
    protocols={
        "math_verify": Protocol(
            source=f"Qwen2.5-Math's instruction after the question; {_ANY_FORM}",
            prompt=ask(BOXED),
            score=math_score(),
            max_new_tokens=2048,
        ),
        "lm_eval_strict": Protocol(
            source=_LM_EVAL_SOURCE.format("strict-match"), score=lm_eval_score("strict", "flexible"), **_LM_EVAL
        ),
        "lm_eval_flexible": Protocol(
            source=_LM_EVAL_SOURCE.format("flexible-extract"), score=lm_eval_score("flexible", "strict"), **_LM_EVAL
        ),
    },
)

MATH500 = Benchmark(
    formats=("math500",),
    sizes={"test": 500, None: 500},
    protocols={
        "math_verify": Protocol(
            source=f"Qwen2.5-Math's instruction after the question; {_ANY_FORM}",
            prompt=ask(BOXED),
            score=math_score(),
            cells=column_cells("subject", "level"),
            max_new_tokens=2048,
        )
    },
)

AMC = Benchmark(
    formats=("amc",),
    sizes={"train": 83, None: 83},
    protocols={
        "mean_at_32": Protocol(
            source=(
                "mean accuracy of 32 samples at temperature 0.6 and top-p 0.95, common in reports on small "
                f"competition sets (recalled, not checked); all 83 problems, not the 40 of AMC23; {_ANY_FORM}"
            ),
            prompt=ask(BOXED),
            score=math_score(),
            max_new_tokens=4096,
            temperature=0.6,
            top_p=0.95,
            samples=32,
        )
    },
)

GEOMETRY3K = Benchmark(
    formats=("geometry3k_hf", "geometry3k"),
    sizes={"train": 2_101, "val": 300, "validation": 300, "test": 601},
    protocols={
        "free_form": Protocol(
            source=(
                f"{_EASY_R1}; the last \\boxed{{}} against the text of the right choice. Departures: math-verify "
                "takes more forms for equal than their mathruler, a box in the thinking does not count, and answers "
                "are greedy where EasyR1's validation samples at temperature 0.5"
            ),
            prompt=ask(EASY_R1),
            score=math_score(find_easy_r1, asked=find_easy_r1),
            max_new_tokens=2048,
            references=(
                Reference(
                    "Qwen2.5-VL-7B-Instruct", "accuracy", 0.37, "EasyR1's logs, about; recalled, not checked", "test"
                ),
                Reference(
                    "Qwen2.5-VL-7B-Instruct + GRPO",
                    "accuracy",
                    0.5,
                    "EasyR1's logs, about; recalled, not checked",
                    "test",
                ),
            ),
        ),
        "multiple_choice": Protocol(
            source=(
                "lmms-eval's prompt. Departure: the letter is read by our rule (answer, box, or the form of a letter "
                "after the thinking); lmms_eval is its own, which takes the article a or the name of a point for one"
            ),
            prompt=choices_prompt,
            score=choice_score,
            max_new_tokens=1024,
        ),
        "intergps": Protocol(
            source=(
                f"InterGPS: right if no precise_value is nearer to the answer than the gold's; {_EASY_R1} and box. "
                "Departures: LaTeX is matched with the choices, and the 25 % for problems without an answer is left "
                "out. Needs the columns of the format geometry3k"
            ),
            prompt=values_prompt,
            score=intergps_score,
            max_new_tokens=2048,
        ),
    },
)

GEOQA = Benchmark(
    formats=("geoqa_r1v",),
    images=(".",),
    sizes={None: 754},
    protocols={
        "r1_v": Protocol(
            source=(
                "R1-V's prompt for geoqa_test_prompts.jsonl. Departure: math-verify sees the answer alone, gold first "
                "and degree signs off, where R1-V parses the whole output and gives the prediction first: it takes a "
                "number of the thinking if <answer>40</answer> has no blanks inside"
            ),
            prompt=ask(R1_V),
            score=math_score(asked=find_answer),
            max_new_tokens=1024,
        )
    },
)

MMK12 = Benchmark(
    formats=("mmk12",),
    sizes={"train": 15_616, "test": 2_000},
    protocols={
        "rules": Protocol(
            source=(
                "ours, for the letters of the test split: MM-Eureka lets GPT-4o judge the whole response; here the "
                "letter is read by rules, from the answer, the box, or the form of a letter after the thinking"
            ),
            prompt=ask(BOXED),
            score=letter_score,
            cells=column_cells("subject"),
            max_new_tokens=2048,
        )
    },
)

MATHS: dict[str, Benchmark] = {
    "gsm8k": GSM8K,
    "math500": MATH500,
    "amc": AMC,
    "geometry3k": GEOMETRY3K,
    "geoqa": GEOQA,
    "mmk12": MMK12,
}
