"""GUI grounding: ScreenSpot, v2 and Pro, OSWorld-G and MMBench-GUI L2, by the rules of their authors and of UI-R1.

The metric is `accuracy`, the share of clicks in their target. Beside it stand `strict_borders`, the same without the
borders of the target, `wrong_format`, the share of responses without a click, and where a protocol reads a space of
its own, `explicit_space`: the same clicks read in the space of the model.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

from vlm_entropy.data.prompts import format_question
from vlm_entropy.eval.protocols import Benchmark, Item, Message, Protocol, Reference, Score, View, no_totals
from vlm_entropy.rewards.geometry import Point, from_original

from .clicks import REFUSAL, Click, is_hit, read_action, read_mmbench, read_seeclick, read_tool_call, read_ui_r1
from .places import to_pixels, user_message

ACCURACY = "accuracy"
_SEECLICK = (
    'In this UI screenshot, what is the position of the element corresponding to the command "{}" (with point)?'
)
_MMBENCH = (
    "Output only the coordinate (x,y) of one point in your response. What element matches the following task: {}"
)
_TOOL_CALL = """{}
The lower right corner of the screen is at [{:g}, {:g}]. Answer with one click on the screen, in this form:
<tool_call>
{{"name": "computer_use", "arguments": {{"action": "left_click", "coordinate": [x, y]}}}}
</tool_call>"""
_REFUSE = "\nIf nothing on the screen fits, give the coordinate [-1, -1]."


def _pixels(point: Point, space: str, item: Item, view: View) -> Point:
    x, y, *_ = to_pixels((*point, *point), item, view, space=space)
    return x, y


def score_click(
    item: Item, text: str, view: View, *, read: Callable[[str, View], Click | None], own_space: bool = False
) -> Score:
    """Score one response.

    Args:
        item: what `clicks.is_hit` needs.
        text: the response.
        view: its space is that of the model's numbers.
        read: the protocol's reading of a response.
        own_space: whether that reading has a space of its own; adds `explicit_space`.

    Returns:
        The values of the module's docstring, each 0 or 1; a response without a click is no hit.
    """
    found = read(text, view)
    if found is None:
        values = {ACCURACY: 0.0, "strict_borders": 0.0, "wrong_format": 1.0}
        return Score(values | ({"explicit_space": 0.0} if own_space else {}), None)
    point = _pixels(found.point, found.space, item, view)
    values = {
        ACCURACY: float(is_hit(point, item, borders=True)),
        "strict_borders": float(is_hit(point, item, borders=False)),
        "wrong_format": 0.0,
    }
    if own_space:
        values["explicit_space"] = float(is_hit(_pixels(found.point, view.space, item, view), item, borders=True))
    return Score(values, json.dumps(point))


def fill(template: str) -> Callable[[Item, View], list[Message]]:
    """Return the prompt that puts the instruction in the place of `{}`."""
    return lambda item, view: user_message(template.format(item.question))


def tool_call_prompt(item: Item, view: View, *, more: str = "") -> list[Message]:
    """Ask for a click as a tool call, `more` after the instruction; the far corner tells the model's space."""
    assert item.image_size is not None
    width, height = item.image_size
    corner = from_original((0, 0, width, height), view.space, image_size=item.image_size, input_size=view.input_size)
    return user_message(_TOOL_CALL.format(item.question + more, *corner[2:]))


def action_prompt(item: Item, view: View, *, more: str = "") -> list[Message]:
    return user_message(format_question(item.question + more, "gui_action"))


def _columns(item: Item, **names: str) -> dict[str, str]:
    """Return the columns that the item has, under the names they get in the report."""
    return {shown: str(item.columns[name]) for shown, name in names.items() if name in item.columns}


def screenspot_cells(item: Item) -> dict[str, str]:
    """Group by platform, by type, and by both: the six cells of SeeClick's table."""
    groups = _columns(item, platform="platform", type="data_type")
    return {**groups, "cell": "/".join(groups.values())}


def screenspot_pro_cells(item: Item) -> dict[str, str]:
    """Group by the six groups of applications, by type, and by both."""
    groups = _columns(item, group="group", type="ui_type")
    return {**groups, "cell": "/".join(groups.values())}


def osworld_g_cells(item: Item) -> dict[str, str]:
    """Group by bbox, polygon and refusal; the classes of the paper are in none of the data's columns."""
    return _columns(item, box_type="box_type")


def mmbench_cells(item: Item) -> dict[str, str]:
    """Group by level, platform and type, and by level and platform, the rows of the published table."""
    groups = _columns(item, level="grounding_type", platform="platform", type="data_type")
    both = [groups[name] for name in ("level", "platform") if name in groups]
    return {**groups, "level/platform": "/".join(both)}


def group_means(
    items: Sequence[Item], scores: Sequence[Sequence[Score]], group: Callable[[Item], str]
) -> dict[str, float]:
    """Return the mean accuracy of the items of each group that has any, an item being the mean of its samples."""
    values = defaultdict(list)
    for item, samples in zip(items, scores, strict=True):
        values[group(item)].append(fmean(score.values[ACCURACY] for score in samples))
    return {name: fmean(of_items) for name, of_items in values.items()}


def screenspot_totals(items: Sequence[Item], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """The unweighted mean over the cells that have items, SeeClick's "Average"; `accuracy` weights by item."""
    means = group_means(items, scores, lambda item: screenspot_cells(item)["cell"])
    return {"cell_mean": fmean(means.values())} if means else {}


def osworld_g_totals(items: Sequence[Item], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """The accuracy over what can be clicked, as most papers have it; `accuracy` counts the refusals too."""
    means = group_means(items, scores, lambda item: str(item.columns.get("box_type") == REFUSAL))
    return {"accuracy_without_refusals": means["False"]} if "False" in means else {}


def mmbench_totals(items: Sequence[Item], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """The accuracy of each level, and their unweighted mean if both have items.

    MMBench weights the platforms of a level by their numbers of items, which is the mean over the level's items.
    """
    means = group_means(items, scores, lambda item: str(item.columns.get("grounding_type")))
    levels = {f"accuracy_{level}": means[level] for level in ("basic", "advanced") if level in means}
    return {**levels, "level_mean": fmean(levels.values())} if len(levels) == 2 else levels


SEECLICK_SOURCE = (
    "SeeClick, pretrain/screenspot_test.py (github.com/njucckevin/SeeClick): numbers are fractions, or thousandths in "
    "<box>. Its published average is the total cell_mean. Departure: three numbers and the like are a wrong format "
    "where SeeClick catches an exception."
)
UI_R1_SOURCE = (
    "UI-R1, evaluation/test_screenspot.py and test_ss_pro.py (github.com/lll6gg/UI-R1). Departures: the prompt is "
    "ours; points are in the model's space and are not truncated to whole pixels (UI-R1 takes them as pixels of the "
    "stored image, on ScreenSpot-Pro of the resized one); the braces stand on the line of the point; a response "
    "without a point misses, where UI-R1 scores the point (0, 0)."
)
SCREENSPOT_PRO_SOURCE = (
    "ScreenSpot-Pro, eval_screenspot_pro.py and models/qwen2_5vl.py (github.com/likaixin2000/"
    "ScreenSpot-Pro-GUI-Grounding), which resizes to at most 99999999 pixels. Departures: the prompt is short and "
    "ours, and the response is not forced to begin with the tool call; two coordinates in it are a wrong format."
)
OSWORLD_G_SOURCE = (
    "OSWorld-G (github.com/xlang-ai/OSWorld-G), after independent accounts of its scorer: boxes with their borders, "
    "polygons by ray casting, a refusal is a point with two negative coordinates. Departure: the prompt and the form "
    "of the click are those of our ScreenSpot-Pro protocol, with a sentence on how to refuse."
)
MMBENCH_SOURCE = (
    "MMBench-GUI, benchmarks/l2_element_grounding.py (github.com/open-compass/MMBench-GUI): a point with a number "
    "above 1 is in pixels of the stored image, any other in fractions. Departures: no system prompt; the average is "
    "left out if a level has no items."
)
OURS_SOURCE = (
    "Our own: the prompt gui_action, the action read as in rewards.gui_coordinate_reward, the model's space. An "
    "action other than a click is a wrong format."
)
OURS_REFUSING_SOURCE = f"{OURS_SOURCE} A sentence of the prompt tells to refuse with [-1, -1]."

SEECLICK = Protocol(
    SEECLICK_SOURCE,
    fill(_SEECLICK),
    partial(score_click, read=read_seeclick, own_space=True),
    screenspot_cells,
    screenspot_totals,
)
UI_R1 = Protocol(
    UI_R1_SOURCE,
    action_prompt,
    partial(score_click, read=read_ui_r1),
    screenspot_cells,
    screenspot_totals,
    max_new_tokens=1024,
)
SCREENSPOT_PRO = Protocol(
    SCREENSPOT_PRO_SOURCE,
    tool_call_prompt,
    partial(score_click, read=read_tool_call),
    screenspot_pro_cells,
    max_new_tokens=256,
)
OSWORLD_G = replace(
    SCREENSPOT_PRO,
    source=OSWORLD_G_SOURCE,
    prompt=partial(tool_call_prompt, more=_REFUSE),
    cells=osworld_g_cells,
    totals=osworld_g_totals,
)
MMBENCH = Protocol(
    MMBENCH_SOURCE,
    fill(_MMBENCH),
    partial(score_click, read=read_mmbench, own_space=True),
    mmbench_cells,
    mmbench_totals,
)
OURS = Protocol(
    OURS_SOURCE, action_prompt, partial(score_click, read=read_action), screenspot_cells, screenspot_totals
)
OURS_REFUSING = replace(
    OURS,
    source=OURS_REFUSING_SOURCE,
    prompt=partial(action_prompt, more=_REFUSE),
    cells=osworld_g_cells,
    totals=osworld_g_totals,
)

_UI_R1_README = "UI-R1's README; whether its average weights by item is not said"
_QWEN_CARD = "the Qwen2.5-VL model cards; Qwen's prompt for ScreenSpot is not published"
_QWEN_CARD_PRO = "the Qwen2.5-VL model cards; the prompt is taken to be that of ScreenSpot-Pro's repository"


def _table(source: str, percentages: dict[str, float], *, metric: str = ACCURACY) -> tuple[Reference, ...]:
    return tuple(Reference(model, metric, round(value / 100, 4), source) for model, value in percentages.items())


SCREENSPOT_REFERENCES = {
    "seeclick": _table("SeeClick's README, its six cells averaged", {"SeeClick": 53.4}, metric="cell_mean"),
    "ui_r1": _table(_UI_R1_README, {"UI-R1-3B": 83.3, "UI-R1-E-3B": 89.2}),
    "vlm_entropy": _table(_QWEN_CARD, {"Qwen2.5-VL-3B": 55.5, "Qwen2.5-VL-7B": 84.7, "Qwen2.5-VL-72B": 87.1}),
}
SCREENSPOT_V2_REFERENCES = {
    "ui_r1": _table(_UI_R1_README, {"UI-R1-3B": 85.4, "GUI-R1-3B": 85.0, "UI-R1-E-3B": 89.5}),
}
SCREENSPOT_PRO_REFERENCES = {
    "official": _table(_QWEN_CARD_PRO, {"Qwen2.5-VL-3B": 23.9, "Qwen2.5-VL-7B": 29.0, "Qwen2.5-VL-72B": 43.6}),
    "ui_r1": _table(_UI_R1_README, {"UI-R1-3B": 17.8, "GUI-R1-3B": 26.6, "UI-R1-E-3B": 33.5}),
}


def _with_references(
    protocols: dict[str, Protocol], references: dict[str, tuple[Reference, ...]]
) -> dict[str, Protocol]:
    return {name: replace(one, references=references.get(name, ())) for name, one in protocols.items()}


_SCREENSPOT = {"seeclick": SEECLICK, "ui_r1": UI_R1, "vlm_entropy": OURS}
_PRO = {"official": SCREENSPOT_PRO} | {
    name: replace(one, cells=screenspot_pro_cells, totals=no_totals)
    for name, one in {"ui_r1": UI_R1, "vlm_entropy": OURS}.items()
}
_OSWORLD_G = {"official": OSWORLD_G, "vlm_entropy": OURS_REFUSING}
_MMBENCH_GUI = {"official": MMBENCH, "vlm_entropy": replace(OURS, cells=mmbench_cells, totals=mmbench_totals)}
GUI: dict[str, Benchmark] = {
    "screenspot": Benchmark(
        ("screenspot", "rootsautomation_screenspot"),
        _with_references(_SCREENSPOT, SCREENSPOT_REFERENCES),
        {None: 1272, "mobile": 502, "desktop": 334, "web": 436},
        images=("screenspot_imgs",),
    ),
    "screenspot_v2": Benchmark(
        ("screenspot_v2",),
        _with_references(_SCREENSPOT, SCREENSPOT_V2_REFERENCES),
        {None: 1272},
        images=("screenspotv2_image",),
    ),
    "screenspot_pro": Benchmark(
        ("screenspot_pro",), _with_references(_PRO, SCREENSPOT_PRO_REFERENCES), {None: 1581}, images=("images",)
    ),
    "osworld_g": Benchmark(("osworld_g",), _OSWORLD_G, {None: 564}, images=("images",)),
    "osworld_g_refined": Benchmark(("osworld_g_refined",), _OSWORLD_G, {None: 564}, images=("images",)),
    "mmbench_gui_l2": Benchmark(("mmbench_gui_l2",), _MMBENCH_GUI, {None: 3594}, images=("offline_images",)),
}
