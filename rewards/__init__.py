"""Rewards: functions from text to numbers, in the form TRL calls them. No model, no image, no file.

A reward is `f(completions, <columns>, **kwargs) -> list[float | None]`, one number per completion in order; None means
that the row cannot be judged, 0.0 that it was judged wrong. Its `__name__` is part of the metric key.
To add one, put it in `REWARDS`, or name your own as `module:function` wherever a reward name is accepted.
"""

import importlib
from collections.abc import Callable

from .formats import format_reward, is_well_formed
from .geometry import SPACES, Box, Point, Size, area, from_original, giou, iou, is_box, point_in_box, to_original
from .grounding import iou_reward
from .parsing import completion_text, find_answer, find_box, find_point
from .shaping import SoftOverlong

REWARDS: dict[str, Callable] = {"iou": iou_reward, "format": format_reward}


def get_reward(name: str) -> Callable:
    """Return the reward called `name`: a key of `REWARDS`, or `module:function` to import.

    Raises:
        ValueError: if there is no such reward, module or function; says what is allowed.
    """
    if name in REWARDS:
        return REWARDS[name]
    allowed = f"allowed are {', '.join(sorted(REWARDS))}, or module:function"
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"Unknown reward {name!r}; {allowed}.")
    try:
        reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"Cannot import the reward {name!r} ({error}); {allowed}.") from error
    if not callable(reward):
        raise ValueError(f"The reward {name!r} is a {type(reward).__name__}, not a function; {allowed}.")
    return reward


def get_rewards(names: list[str]) -> list[Callable]:
    """Return the rewards called `names`, in order; see `get_reward`."""
    return [get_reward(name) for name in names]


__all__ = [
    "REWARDS",
    "SPACES",
    "Box",
    "Point",
    "Size",
    "SoftOverlong",
    "area",
    "completion_text",
    "find_answer",
    "find_box",
    "find_point",
    "format_reward",
    "from_original",
    "get_reward",
    "get_rewards",
    "giou",
    "iou",
    "iou_reward",
    "is_box",
    "is_well_formed",
    "point_in_box",
    "to_original",
]
