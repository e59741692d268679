"""Rewards: functions from text to numbers, in the form TRL calls them. No model, no image, no file.

A reward is `f(completions, <columns>, **kwargs) -> list[float | None]`, one number per completion in order; None means
that the row cannot be judged, 0.0 that it was judged wrong. Its `__name__` is part of the metric key.
To add one, put it in `REWARDS`, or name your own as `module:function` wherever a reward name is accepted.
"""

import importlib
from collections.abc import Callable

from .agreement import (
    empo_box_reward,
    empo_point_reward,
    empo_text_reward,
    majority_box_reward,
    majority_point_reward,
    majority_text_reward,
    random_reward,
)
from .choices import choice_reward, yes_no_reward
from .classes import class_containment_reward, class_reward, published_class_match
from .detection import (
    detection_ap50_reward,
    detection_ap_reward,
    detection_confidence_reward,
    detection_iou_reward,
    detection_length_reward,
    detection_weighted_reward,
)
from .formats import box_format_reward, boxed_format_reward, format_reward, is_well_formed
from .geometry import SPACES, Box, Point, Size, area, from_original, giou, iou, is_box, point_in_box, to_original
from .grounding import giou_reward, iou_reward
from .gui import gui_action_name_reward, gui_coordinate_reward, gui_text_reward
from .labelled_boxes import Detection, find_detections
from .maths import boxed_math_reward, math_equal, math_reward
from .parsing import (
    completion_text,
    find_answer,
    find_box,
    find_boxed,
    find_choice,
    find_final_answer,
    find_point,
    find_verdict,
    find_yes_no,
)
from .pointing import box_centre_reward, point_in_box_reward
from .preference import preference_reward
from .shaping import SoftOverlong
from .vlm_r1 import Compat, format_reward_rec, vlm_r1_rewards

REWARDS: dict[str, Callable] = {
    "iou": iou_reward,
    "giou": giou_reward,
    "point_in_box": point_in_box_reward,
    "box_centre": box_centre_reward,
    "gui_action_name": gui_action_name_reward,
    "gui_coordinate": gui_coordinate_reward,
    "gui_text": gui_text_reward,
    "class": class_reward,
    "class_containment": class_containment_reward,
    "math": math_reward,
    "boxed_math": boxed_math_reward,
    "choice": choice_reward,
    "yes_no": yes_no_reward,
    "detection_ap": detection_ap_reward,
    "detection_ap50": detection_ap50_reward,
    "detection_length": detection_length_reward,
    "detection_weighted": detection_weighted_reward,
    "detection_iou": detection_iou_reward,
    "detection_confidence": detection_confidence_reward,
    "preference": preference_reward,
    "box_format": box_format_reward,
    "boxed_format": boxed_format_reward,
    "format_rec": format_reward_rec,
    "majority_text": majority_text_reward,
    "majority_box": majority_box_reward,
    "majority_point": majority_point_reward,
    "empo_text": empo_text_reward,
    "empo_box": empo_box_reward,
    "empo_point": empo_point_reward,
    "random": random_reward,
    **{name: reward for name, reward in vlm_r1_rewards("fixed").items() if "/" not in name},
}
"""By the names of --reward_funcs. VLM-R1's names are accuracy, format, length and repetition."""

REWARD_MODEL = "reward_model:"
"""Before the folder of a judge, a reward that the trainers load: it is no function of text alone."""


def get_reward(name: str, *, compat: Compat = "fixed", task_type: str | None = None) -> Callable:
    """Return the reward called `name`: a key of `REWARDS`, or `module:function` to import.

    Args:
        name: of the reward.
        compat: rules of the rewards that VLM-R1 has too, right ones ("fixed") or its own where they do no harm.
        task_type: with "rec", `accuracy` and `format` are the IoU and the format of a box, as VLM-R1 has it with
            `--is_reward_customized_from_vlm_module`.

    Raises:
        ValueError: if there is no such reward, module or function; says what is allowed.
    """
    if task_type not in (None, "rec"):
        raise ValueError(
            f"Rewards customised by the task exist for task type 'rec', not {task_type!r}: leave "
            "is_reward_customized_from_vlm_module off."
        )
    vlm_r1 = vlm_r1_rewards(compat)
    by_name = {**REWARDS, **vlm_r1, "iou": vlm_r1["rec/accuracy"], "format_rec": vlm_r1["rec/format"]}
    if f"{task_type}/{name}" in by_name:
        return by_name[f"{task_type}/{name}"]
    if name in REWARDS:
        return by_name[name]
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


def get_rewards(names: list[str], *, compat: Compat = "fixed", task_type: str | None = None) -> list[Callable]:
    """Return the rewards called `names`, in order; see `get_reward`."""
    return [get_reward(name, compat=compat, task_type=task_type) for name in names]


def is_ours(reward: Callable) -> bool:
    """Whether a reward is one of this package, and may be called before training."""
    return str(getattr(reward, "__module__", "")).startswith(__name__)


__all__ = [
    "REWARDS",
    "REWARD_MODEL",
    "SPACES",
    "Box",
    "Compat",
    "Detection",
    "Point",
    "Size",
    "SoftOverlong",
    "area",
    "completion_text",
    "find_answer",
    "find_box",
    "find_boxed",
    "find_choice",
    "find_detections",
    "find_final_answer",
    "find_point",
    "find_verdict",
    "find_yes_no",
    "format_reward",
    "from_original",
    "get_reward",
    "get_rewards",
    "giou",
    "iou",
    "iou_reward",
    "is_box",
    "is_ours",
    "is_well_formed",
    "math_equal",
    "point_in_box",
    "published_class_match",
    "to_original",
]
