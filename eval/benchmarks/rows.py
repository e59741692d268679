"""Data of one's own, and the synthetic tasks: rows in VLM-R1's format, judged by the rewards of training."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from vlm_entropy.data.preflight.rewards import judging_reward
from vlm_entropy.data.prompts import format_question
from vlm_entropy.eval.protocols import Item, Message, Protocol, Score, View
from vlm_entropy.rewards import find_final_answer, iou_reward, is_well_formed

from .places import user_message

SYNTHETIC = {"shapes": ["iou"], "gui": ["gui_coordinate"], "classes": ["class"], "geometry": ["math"]}
"""Rewards that judge the tasks of `data make`; pairs of responses are in `preferences`."""
HIT = 0.5


def row_prompt(item: Item, view: View, *, task_type: str) -> list[Message]:
    """The prompt of training: the question in the template of the task type."""
    return user_message(format_question(item.question, task_type))


def reward_values(
    item: Item, response: str, view: View, *, rewards: dict[str, Callable], solution_space: str
) -> dict[str, float]:
    """What each reward gives a response, NaN if it cannot judge the item; `iou` brings `accuracy@0.5`, IoU > 0.5."""
    example = {
        "solution": item.answer,
        "problem": item.question,
        "image_size": item.image_size and list(item.image_size),
        "input_size": view.input_size and list(view.input_size),
        "coordinate_space": item.columns.get("coordinate_space", view.space),
        "solution_space": solution_space,
    }
    columns = {name: [value] for name, value in {**item.columns, **example}.items()}
    values: dict[str, float] = {}
    for name, reward in rewards.items():
        [score] = reward(completions=[response], completion_ids=[[]], **columns)
        value = math.nan if score is None else float(score)
        if reward is iou_reward:
            values["accuracy@0.5"] = value if math.isnan(value) else float(value > HIT)
        values[name] = value
    return values


def row_score(item: Item, response: str, view: View, *, rewards: dict[str, Callable], solution_space: str) -> Score:
    """The rewards of a response, and whether it has the format of training as `well_formed`."""
    values = reward_values(item, response, view, rewards=rewards, solution_space=solution_space)
    return Score({**values, "well_formed": float(is_well_formed(response))}, find_final_answer(response))


def rows_protocol(names: Sequence[str], *, task_type: str, solution_space: str) -> Protocol:
    """How rows are asked and judged: prompt and rewards of the training run.

    Args:
        names: rewards of `REWARDS` that read gold; the first one's value leads.
        task_type: prompt template.
        solution_space: coordinates of the boxes in the data.

    Raises:
        ValueError: for an unknown task type, or a reward that judges no answer by itself.
    """
    format_question("", task_type)
    rewards = {name: judging_reward(name, flag="--rewards") for name in names}
    return Protocol(
        source="the rewards of training",
        prompt=partial(row_prompt, task_type=task_type),
        score=partial(row_score, rewards=rewards, solution_space=solution_space),
    )
