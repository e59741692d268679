"""VLM-R1's rewards under its names: `accuracy` by the method of each row, and the others of its registry.

Two modes: "fixed" (default) means this package's rules, "vlm_r1" those of VLM-R1 that do no harm (`vlm_r1_rules`).
In neither can a completion raise, score NaN, or earn something with an empty answer.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial, update_wrapper
from typing import Any, Literal

from .choices import find_choice, find_yes_no
from .detection import (
    Rule,
    average_precision_50,
    judge_detections,
    length_penalised_precision,
    mean_average_precision,
    weighted_sum,
)
from .formats import box_format_reward, format_reward
from .geometry import Size
from .grounding import Places, iou_reward, judge_places
from .judging import Judgement, LogMetric, judge_rows, scores
from .labelled_boxes import find_fence
from .llm_judge import JudgeError, judge_with_llm
from .maths import comparison
from .parsing import completion_text, find_answer, find_final_answer, read_number
from .shaping import length_reward, repetition_reward
from .vlm_r1_rules import (
    clean_text,
    find_first_yes_no,
    find_integer_box,
    find_marked_choice,
    first_come_weighted_sum,
    has_answer_shape,
    has_box_shape,
    last_answer,
    pixel_iou,
    similarity,
)

Compat = Literal["fixed", "vlm_r1"]
METHODS = (
    "default",
    "mcq",
    "yes_no",
    "llm",
    "map",
    "math",
    "weighted_sum",
    "od_ap",
    "od_ap50",
    "odLength",
    "all_match",
)
"""VLM-R1's variants of the accuracy reward."""
_DETECTION: dict[str, Rule] = {
    "map": mean_average_precision,
    "od_ap": mean_average_precision,
    "od_ap50": average_precision_50,
    "odLength": length_penalised_precision,
    "weighted_sum": weighted_sum,
}
Compare = Callable[[str], Callable[[str], bool | None] | None]


def _verdict(answer: str | None, parse: Callable[[str], Any], gold: Any) -> Judgement | None:
    """Judge an answer that must parse to the value of the gold."""
    if gold is None:
        return None
    found = None if answer is None else parse(answer)
    if found is None:
        return Judgement("no_answer" if answer is None else "malformed", 0.0)
    return Judgement("parsed", float(found == gold))


def _score(answer: str | None, score: Callable[[str], float]) -> Judgement:
    """Judge an answer by a score, 0 for none or a blank one."""
    if answer is None or not answer.strip():
        return Judgement("no_answer" if answer is None else "malformed", 0.0)
    return Judgement("parsed", score(answer))


def _equal(answer: str, gold: str, compare: Compare) -> bool:
    """Tell whether two answers are the same text in another writing, or mathematically equal."""
    equal = compare(gold)
    return clean_text(answer) == clean_text(gold) or (equal is not None and equal(answer) is True)


def _default(answer: str, gold: str, compare: Compare) -> float:
    """VLM-R1's default: 1 if equal, else by kind of gold: numbers, a choice, or the similarity of the texts."""
    if _equal(answer, gold, compare):
        return 1.0
    numbers = [read_number(clean_text(text)) for text in (answer, gold)]
    letter = find_marked_choice(gold)
    if None not in numbers:
        return float(numbers[0] == numbers[1])
    if letter is not None and not any(character.isdigit() for character in gold):
        return float(find_marked_choice(answer) == letter)
    return similarity(clean_text(answer), clean_text(gold))


def _judge_fixed(method: str, text: str, gold: str, compare: Compare) -> Judgement | None:
    answer = find_final_answer(text)
    if method == "mcq":
        return _verdict(answer, find_choice, find_choice(gold))
    if method == "yes_no":
        return _verdict(answer, find_yes_no, find_yes_no(gold))
    if method == "math":
        equal = compare(gold)
        return None if equal is None else _verdict(answer, equal, True)
    if method == "all_match":
        return _score(answer, lambda found: float(clean_text(found) == clean_text(gold)))
    return _score(answer, lambda found: float(_equal(found, gold, compare)))


def _judge_vlm_r1(method: str, text: str, gold: str, compare: Compare) -> Judgement | None:
    found = find_answer(text) if method in ("mcq", "yes_no") else last_answer(text)
    answer = text if found is None else found
    if method == "mcq":
        return _verdict(answer, find_marked_choice, find_marked_choice(gold))
    if method == "yes_no":
        return _verdict(answer, find_first_yes_no, find_first_yes_no(gold))
    if method == "math":
        return _score(answer, lambda found: float(_equal(clean_text(found), clean_text(gold), compare)))
    if method == "all_match":
        return _score(answer, lambda found: float(clean_text(found) == clean_text(gold)))
    if found is None:
        return _score(answer, lambda whole: float(_equal(whole, gold, compare)))
    return _score(answer, lambda found: _default(found, gold, compare))


def _judge_detection(method: str, text: str, row: int, places: Places, compat: Compat) -> Judgement | None:
    if compat == "fixed":
        return judge_detections(find_answer(text), row, places, _DETECTION[method])
    rule = first_come_weighted_sum if method == "weighted_sum" else _DETECTION[method]
    return judge_detections(find_fence(text) if method == "map" else last_answer(text), row, places, rule)


def accuracy_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[Any],
    accu_reward_method: Sequence[str | None] | None = None,
    image_size: Sequence[Size | None] | None = None,
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    solution_space: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    *,
    compat: Compat = "fixed",
    **kwargs: Any,
) -> list[float | None]:
    """Score each completion by VLM-R1's accuracy method of its row.

    Args:
        completions: strings or TRL's lists of messages, one per row.
        solution: the gold, one per row, in `<answer>` or bare.
        accu_reward_method: one of `METHODS` per row; absent or None = default.
        image_size, input_size, coordinate_space, solution_space: as in `iou_reward`; for methods on boxes only.
        log_metric: TRL's logger; gets the shares of judged rows of each kind (see `judging`), and as
            `accuracy_reward/llm_unjudged` the number of rows for which the judge model gave no verdict.
        compat: "fixed" or "vlm_r1".

    Returns:
        One number in [0, 1] per row; None for a gold that the method cannot read, for boxes without image size, and
        for `llm` without endpoint or verdict.

    Raises:
        ValueError: for an unknown method or mode.
    """
    if compat not in ("fixed", "vlm_r1"):
        raise ValueError(f"Unknown reward compatibility {compat!r}; allowed are fixed, vlm_r1.")
    methods = [method or "default" for method in accu_reward_method or [None] * len(completions)]
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"Unknown accu_reward_method {method!r}; allowed are {', '.join(METHODS)}.")
    sizes = image_size or [None] * len(completions)
    places = Places(solution, sizes, input_size, coordinate_space, solution_space)
    judge_text = _judge_fixed if compat == "fixed" else _judge_vlm_r1
    compare = cache(comparison)  # a group shares its gold
    unjudged = 0

    def judge_llm(text: str, gold: str) -> Judgement | None:
        nonlocal unjudged
        try:
            return _score(find_final_answer(text), lambda answer: judge_with_llm(answer, gold))
        except JudgeError:
            unjudged += 1
            return None

    def judge(row: int, text: str) -> Judgement | None:
        method = methods[row]
        if method in _DETECTION:
            return _judge_detection(method, text, row, places, compat)
        inside = find_answer(str(solution[row]))
        gold = (str(solution[row]) if inside is None else inside).strip()
        if not gold:
            return None
        if method == "llm":
            return judge_llm(text, gold)
        return judge_text(method, text, gold, compare)

    judgements = judge_rows(completions, judge, name="accuracy_reward", log_metric=log_metric)
    if log_metric is not None and "llm" in methods:
        log_metric("accuracy_reward/llm_unjudged", float(unjudged))
    return scores(judgements)


def cosine_rewards(completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
    """`length_reward` under VLM-R1's name, in both modes: VLM-R1's own rises again beyond 1024 tokens."""
    return length_reward(completions, **kwargs)


def repetition_rewards(completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
    """`repetition_reward` under VLM-R1's name, in both modes."""
    return repetition_reward(completions, **kwargs)


def format_reward_rec(completions: Sequence[Any], *, compat: Compat = "fixed", **kwargs: Any) -> list[float | None]:
    """Score 1.0 for a completion that thinks and answers with a box: `box_format_reward`, or VLM-R1's search."""
    if compat == "fixed":
        return box_format_reward(completions, **kwargs)
    return [float(has_box_shape(completion_text(completion))) for completion in completions]


def _vlm_r1_format(completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
    """Score 1.0 for a completion of VLM-R1's shape, see `has_answer_shape`, else 0.0."""
    return [float(has_answer_shape(completion_text(completion))) for completion in completions]


def _vlm_r1_iou(
    completions: Sequence[Any],
    solution: Sequence[Any],
    image_size: Sequence[Size | None],
    input_size: Sequence[Size | None] | None = None,
    coordinate_space: Sequence[str] | None = None,
    solution_space: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score each completion with the `pixel_iou` of its first box of unsigned integers; columns as in `iou_reward`."""
    places = Places(solution, image_size, input_size, coordinate_space, solution_space)
    judgements = judge_places(
        completions, places, find=find_integer_box, rule=pixel_iou, name="iou_reward", log_metric=log_metric
    )
    return scores(judgements)


# The metric's key is VLM-R1's; pickle goes by the qualified name, which stays.
_vlm_r1_format.__name__ = format_reward.__name__
_vlm_r1_iou.__name__ = iou_reward.__name__


def vlm_r1_rewards(compat: Compat) -> dict[str, Callable[..., list[float | None]]]:
    """Return VLM-R1's rewards by the names of its registry, each with VLM-R1's function name as its `__name__`.

    `rec/accuracy` and `rec/format` are what `accuracy` and `format` mean with
    `--is_reward_customized_from_vlm_module` and `--task_type rec`.

    Raises:
        ValueError: for an unknown mode.
    """
    if compat not in ("fixed", "vlm_r1"):
        raise ValueError(f"Unknown reward compatibility {compat!r}; allowed are fixed, vlm_r1.")
    fixed = compat == "fixed"
    return {
        "accuracy": update_wrapper(partial(accuracy_reward, compat=compat), accuracy_reward),
        "format": format_reward if fixed else _vlm_r1_format,
        "length": cosine_rewards,
        "repetition": repetition_rewards,
        "rec/accuracy": iou_reward if fixed else _vlm_r1_iou,
        "rec/format": update_wrapper(partial(format_reward_rec, compat=compat), format_reward_rec),
    }
