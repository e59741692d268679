"""Preflight of rewards: a right answer must earn full marks, and an empty one nothing, in every row.

A reward is called if it reads gold, that is, if its signature names one of `GOLD_COLUMNS`. The others (format, length,
repetition, agreement inside a group, random) do not depend on the row's answer, so there is nothing to hold them to.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as short
from typing import Any, NamedTuple

from vlm_entropy.data.rows import Row
from vlm_entropy.rewards import REWARDS
from vlm_entropy.rewards.geometry import Box, from_original, to_original
from vlm_entropy.rewards.labelled_boxes import find_detections
from vlm_entropy.rewards.parsing import find_box

from .places import convert_boxes
from .report import SHOWN_SOURCES, Section, rows_of

GOLD_COLUMNS = ("solution", "action")
FULL_MARK = 1.0
ROUNDING = 1e-6
"""What a right answer may lack of the full mark: boxes are written with nine decimals."""
EMPTY_ANSWERS = ("", "<think></think><answer></answer>")

Score = float | None
Reward = Callable[..., list[Score]]
Example = Mapping[str, Any]


def reads_gold(reward: Reward) -> bool:
    """Whether the signature of a reward names a column that holds what is right."""
    return any(name in inspect.signature(reward).parameters for name in GOLD_COLUMNS)


def judging_reward(name: str, *, flag: str) -> Reward:
    """The reward of ours that is called `name`, if it judges an answer by the gold one.

    Raises:
        ValueError: for any other name, saying which are allowed.
    """
    if name not in REWARDS or not reads_gold(REWARDS[name]):
        judges = ", ".join(sorted(known for known, reward in REWARDS.items() if reads_gold(reward)))
        raise ValueError(f"{flag} {name!r} judges no answer by itself; allowed are {judges}.")
    return REWARDS[name]


def whole_numbers(numbers: Sequence[float]) -> str:
    """The numbers as a list of whole ones: "[10, 21]"."""
    return str([round(number) for number in numbers])


def nine_decimals(numbers: Sequence[float]) -> str:
    """The numbers as a list with as many decimals as the parsers read, zeros at the end left out: "[10.25, 21]"."""
    return f"[{', '.join(f'{number:.9f}'.rstrip('0').rstrip('.') for number in numbers)}]"


def to_answer(box: Box, example: Example) -> Box:
    """A gold box of the example in the space that the model answers in."""
    sizes = {"image_size": example["image_size"], "input_size": example["input_size"]}
    return from_original(to_original(box, example["solution_space"], **sizes), example["coordinate_space"], **sizes)


def answer_text(text: str, example: Example, *, write: Callable[[Sequence[float]], str]) -> str:
    """The text with all its boxes in the space of the answer, written by `write`; without an image as it is."""
    if example["image_size"] is None:
        return text
    return convert_boxes(text, lambda box: write(to_answer(box, example)))


def _centre(example: Example) -> str | None:
    """The centre of the first gold box as a point of the answer's space, None without one."""
    box = find_box(example["solution"])
    if box is None or example["image_size"] is None:
        return None
    x1, y1, x2, y2 = to_answer(box, example)
    return nine_decimals([(x1 + x2) / 2, (y1 + y2) / 2])


def _action(example: Example, point: str | None) -> str:
    """The gold action in the form of `parsing.find_action`; a click unless the row says otherwise."""
    action = {"action": example.get("action") or "click", "input_text": example.get("input_text")}
    pairs = [f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in action.items() if value]
    if point is not None:
        pairs.append(f'"coordinate": {point}')
    return f"[{{{', '.join(pairs)}}}]"


def _certain_detections(answer: str) -> str | None:
    """The objects that an answer lists, each with confidence 1, None if it lists none."""
    found = find_detections(answer)
    if not found:
        return None
    return json.dumps([{"bbox_2d": one.box, "label": one.label, "Confidence": 1.0} for one in found])


def good_answers(example: Example) -> list[str]:
    """Ways to write the gold answer of an example as the model would, in the order in which they are tried.

    The gold text with its boxes in whole numbers of the answer's space, the same with nine decimals, and as it is; the
    centre of the first box as a point; the objects that the text lists, each with confidence 1; the row's GUI action.
    """
    gold, point = example["solution"], _centre(example)
    whole = answer_text(gold, example, write=whole_numbers)
    exact = answer_text(gold, example, write=nine_decimals)
    ways = [whole, exact, gold, point, _certain_detections(exact), _action(example, point)]
    return list(dict.fromkeys(way for way in ways if way))


def good_completions(example: Example) -> list[str]:
    r"""`good_answers` in the form `<think>...</think><answer>...</answer>`, and the gold text in `\boxed{}`."""
    think = "<think>Here is the answer.</think>"
    tagged = [f"{think}<answer>{answer}</answer>" for answer in good_answers(example)]
    return [*tagged, f"{think}\\boxed{{{example['solution']}}}"]


def score(reward: Reward, examples: Sequence[Example], texts: Sequence[str]) -> list[Score]:
    """Score one completion per example, as TRL calls a reward; a column that an example lacks is None there."""
    names = dict.fromkeys(name for example in examples for name in example if name not in ("prompt", "images"))
    return reward(
        prompts=[example["prompt"] for example in examples],
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[[]] * len(examples),
        **{name: [example.get(name) for example in examples] for name in names},
    )


def best_scores(reward: Reward, examples: Sequence[Example], completions: Sequence[Sequence[str]]) -> list[Score]:
    """The best score of each example's completions, tried in order until one earns the full mark.

    None for an example that the reward cannot judge.
    """
    best: list[Score] = [None] * len(examples)
    pending = list(range(len(examples)))
    for turn in range(max(map(len, completions), default=0)):
        pending = [i for i in pending if turn < len(completions[i])]
        if not pending:
            break
        earned = score(reward, [examples[i] for i in pending], [completions[i][turn] for i in pending])
        for i, value in zip(pending, earned, strict=True):
            if value is not None:
                best[i] = value if best[i] is None else max(best[i] or 0.0, value)
        pending = [i for i, value in zip(pending, earned) if value is not None and not is_full(best[i])]
    return best


def is_full(value: Score) -> bool:
    """Whether a score is the full mark, rounding aside."""
    return value is not None and value >= FULL_MARK - ROUNDING


def asks_judge_model(reward: Reward, example: Example) -> bool:
    """Whether the reward would send the example to a judge model: VLM-R1's accuracy by the method "llm"."""
    return "accu_reward_method" in inspect.signature(reward).parameters and example.get("accu_reward_method") == "llm"


class DryRun(NamedTuple):
    """What a reward does on the data: per row its best score on right answers and on empty ones, None = not judged."""

    gold: list[Score]
    empty: list[Score]


def dry_run(reward: Reward, examples: Sequence[Example], completions: Sequence[Sequence[str]]) -> DryRun:
    """Score the right completions of each example, and `EMPTY_ANSWERS`; nothing is sent to a judge model."""
    called = [i for i, example in enumerate(examples) if not asks_judge_model(reward, example)]
    result = DryRun([None] * len(examples), [None] * len(examples))
    chosen = [examples[i] for i in called]
    empty = [score(reward, chosen, [text] * len(chosen)) for text in EMPTY_ANSWERS]
    gold = best_scores(reward, chosen, [completions[i] for i in called])
    for i, best, *blank in zip(called, gold, *empty, strict=True):
        result.gold[i] = best
        result.empty[i] = max((value for value in blank if value is not None), default=None)
    return result


def _add_reward(section: Section, name: str, result: DryRun, rows: Sequence[Row]) -> None:
    judged = [i for i, value in enumerate(result.gold) if value is not None]
    low = [i for i in judged if not is_full(result.gold[i])]
    paid = [i for i, value in enumerate(result.empty) if value is not None and value > 0]
    section.lines.append(
        f"{name}: full mark for the gold answer in {len(judged) - len(low)} of {rows_of(len(judged))} that it judges; "
        f"cannot judge {len(rows) - len(judged)}; pays for an empty answer in {len(paid)}"
    )
    section.lines += [
        f"{name}: {rows[i].source}: {result.gold[i]:.3f} for the gold answer {short(rows[i].answer)}"
        for i in low[:SHOWN_SOURCES]
    ]
    section.lines += [
        f"{name}: {rows[i].source}: {result.empty[i]:.3f} for an empty answer" for i in paid[:SHOWN_SOURCES]
    ]
    if not judged:
        section.failures.append(f"{name} can judge no row")
    if low:
        section.failures.append(f"gold answers to which {name} gives less than full marks: {len(low)}")
    if paid:
        section.failures.append(f"empty answers that {name} pays for: {len(paid)}")


def rewards_section(rewards: Mapping[str, Reward | None], rows: Sequence[Row], examples: Sequence[Example]) -> Section:
    """Hold every reward that reads gold to the rows.

    Args:
        rewards: name -> reward, None for one of the user's own, which is not called.
        rows: the rows.
        examples: `to_example` of each.
    """
    section = Section("Rewards")
    completions = list(map(good_completions, examples))
    for name, reward in rewards.items():
        if reward is None:
            section.lines.append(f"{name}: your own, so it is not called")
        elif not reads_gold(reward):
            section.lines.append(f"{name}: reads no gold answer, so it is not called")
        else:
            _add_reward(section, name, dry_run(reward, examples, completions), rows)
    return section
