"""Clicks on screens: each published layout is read and scored, and each published scorer is followed by hand."""

import json

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from hostile_answers import HOSTILE, RESPONSES, judged
from hypothesis import given, settings
from loader_files import embedded, png
from timing import quickest

from vlm_entropy.data.loaders import LOADERS
from vlm_entropy.data.prompts import TEMPLATES
from vlm_entropy.eval.benchmarks.clicks import in_polygon, on_border
from vlm_entropy.eval.benchmarks.gui import GUI
from vlm_entropy.eval.items import read_items
from vlm_entropy.eval.protocols import Item, Score, View

SIZE = (200, 100)
PIXELS = View("qwen2_5_vl", "absolute_resized", SIZE)
HALVED = View("qwen2_5_vl", "absolute_resized", (100, 50))
THOUSANDTHS = View("qwen3_vl", "relative_1000", SIZE)
FRACTIONS = View("qwen2_vl", "relative_1", SIZE)
SEECLICK, UI_R1, OURS = GUI["screenspot"].protocols.values()
PRO = GUI["screenspot_pro"].protocols["official"]
OSWORLD, OURS_REFUSING = GUI["osworld_g"].protocols.values()
MMBENCH = GUI["mmbench_gui_l2"].protocols["official"]


def item(gold="[20, 20, 60, 40]", name="1", **columns):
    return Item(name, "open the menu", gold, ("a.png",), SIZE, columns)


def seeclick(x, y):
    return f"({x / 200},{y / 100})"


def tool_call(*numbers):
    call = {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": numbers}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def action(x, y):
    return f"<think>It is left.</think>\n<answer>[{{'action': 'click', 'coordinate': [{x}, {y}]}}]</answer>"


def mmbench(x, y):
    return f"({x},{y})"


# Every layout on disk, with the target [20, 20, 60, 40] on a screen of 200 x 100

SCREENSPOT = {
    "img_filename": "a.png", "bbox": [20, 20, 40, 20], "instruction": "open the menu", "data_type": "icon",
    "data_source": "ios",
}  # fmt: skip
PRO_ROW = {
    "id": "x1", "img_filename": "a.png", "bbox": [20, 20, 60, 40], "instruction": "open the menu",
    "instruction_cn": "\u4fdd\u5b58", "application": "vscode", "platform": "windows", "img_size": [200, 100],
    "ui_type": "icon", "group": "Dev",
}  # fmt: skip
OSWORLD_ROW = {
    "id": "x1", "image_path": "a.png", "instruction": "open the menu", "image_size": [200, 100], "box_type": "bbox",
    "box_coordinates": [20.0, 20.0, 40.0, 20.0], "GUI_types": ["Icon"],
}  # fmt: skip
L2_ROW = {
    "image_path": "a.png", "instruction": "open the menu", "bbox": [0.1, 0.2, 0.3, 0.4], "data_type": "icon",
    "platform": "os_ios", "grounding_type": "basic", "app_name": "Music",
}  # fmt: skip


def rows_in(name, row):
    def write(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps([row]))
        return str(folder / name)

    return write


def write_rootsautomation(folder):
    row = {**SCREENSPOT, "file_name": "a.png", "bbox": [0.1, 0.2, 0.3, 0.4], "image": embedded(png(*SIZE))}
    del row["img_filename"]
    features = {name: Value("string") for name in row} | {"bbox": List(Value("float64")), "image": ImageFeature()}
    Dataset.from_list([row], features=Features(features)).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder / "test-00000-of-00001.parquet")


def write_l2(folder):
    (folder / "os_ios").mkdir()
    (folder / "os_ios" / "a.png").write_bytes(png(*SIZE))
    return rows_in("L2_annotations.json", L2_ROW)(folder)


WRITERS = {
    "screenspot": rows_in("screenspot_mobile.json", SCREENSPOT),
    "screenspot_v2": rows_in("screenspot_mobile_v2.json", SCREENSPOT),
    "rootsautomation_screenspot": write_rootsautomation,
    "screenspot_pro": rows_in("annotations/vscode_windows.json", PRO_ROW),
    "osworld_g": rows_in("OSWorld-G.json", OSWORLD_ROW),
    "osworld_g_refined": rows_in("OSWorld-G_refined.json", OSWORLD_ROW),
    "mmbench_gui_l2": write_l2,
}
WRITTEN = {"seeclick": seeclick, "ui_r1": action, "vlm_entropy": action, "official": tool_call}


@pytest.mark.parametrize(("name", "source"), [(name, one) for name, bench in GUI.items() for one in bench.formats])
@pytest.mark.filterwarnings("ignore:.*no number on it compares")
def test_a_miniature_of_every_layout_is_read_asked_and_scored(name, source, tmp_path):
    (tmp_path / "a.png").write_bytes(png(*SIZE))
    (read,) = read_items(GUI[name], WRITERS[source](tmp_path), source=source, images=str(tmp_path))
    assert (read.question, read.answer, read.image_size) == ("open the menu", "[20, 20, 60, 40]", SIZE)
    for asked, protocol in GUI[name].protocols.items():
        write = mmbench if protocol.source == MMBENCH.source else WRITTEN[asked]
        (message,) = protocol.prompt(read, PIXELS)
        assert "open the menu" in message["content"]
        assert "<image>" not in message["content"]
        right, wrong = (judged(protocol, read, write(x, 30), PIXELS).values for x in (40, 80))
        assert (right["accuracy"], right["strict_borders"], right["wrong_format"]) == (1.0, 1.0, 0.0)
        assert (wrong["accuracy"], wrong["strict_borders"], wrong["wrong_format"]) == (0.0, 0.0, 0.0)


@pytest.mark.filterwarnings("ignore:.*no number on it compares")
def test_polygons_and_refusals_of_osworld_g_are_read_and_scored(tmp_path):
    (tmp_path / "a.png").write_bytes(png(*SIZE))
    triangle = {**OSWORLD_ROW, "id": "x2", "box_type": "polygon", "box_coordinates": [20, 20, 60, 20, 60, 40]}
    refusal = {**OSWORLD_ROW, "id": "x3", "box_type": "refusal", "box_coordinates": [-1, -1, -1, -1]}
    (tmp_path / "OSWorld-G.json").write_text(json.dumps([OSWORLD_ROW, triangle, refusal]))
    items = read_items(GUI["osworld_g"], str(tmp_path), images=str(tmp_path))
    # (30, 35) is in the box, and left below the edge from (20, 20) to (60, 40), so not in the triangle
    for answer, hits in {(30, 35): [1, 0, 0], (50, 25): [1, 1, 0], (-1, -1): [0, 0, 1], (90, 90): [0, 0, 0]}.items():
        for protocol, write in ((OSWORLD, tool_call), (OURS_REFUSING, action)):
            scores = [judged(protocol, one, write(*answer), PIXELS) for one in items]
            assert [score.values["accuracy"] for score in scores] == hits
    assert [OSWORLD.cells(one) for one in items] == [{"box_type": one} for one in ("bbox", "polygon", "refusal")]


def test_the_names_sizes_and_formats_are_the_published_ones():
    sizes = {name: bench.sizes[None] for name, bench in GUI.items()}
    assert sizes == {
        "screenspot": 1272, "screenspot_v2": 1272, "screenspot_pro": 1581, "osworld_g": 564, "osworld_g_refined": 564,
        "mmbench_gui_l2": 3594,
    }  # fmt: skip
    platforms = GUI["screenspot"].sizes
    assert platforms["mobile"] + platforms["desktop"] + platforms["web"] == 1272
    assert {source for bench in GUI.values() for source in bench.formats} <= set(LOADERS)


def test_a_published_number_stands_where_it_compares():
    numbers = {
        (bench, name): {one.model: (one.metric, one.value) for one in protocol.references}
        for bench in GUI
        for name, protocol in GUI[bench].protocols.items()
        if protocol.references
    }
    assert numbers == {
        # (78.0 + 52.0 + 72.2 + 30.0 + 55.7 + 32.5) / 6 = 53.4
        ("screenspot", "seeclick"): {"SeeClick": ("cell_mean", 0.534)},
        ("screenspot", "ui_r1"): {"UI-R1-3B": ("accuracy", 0.833), "UI-R1-E-3B": ("accuracy", 0.892)},
        ("screenspot", "vlm_entropy"): {
            "Qwen2.5-VL-3B": ("accuracy", 0.555),
            "Qwen2.5-VL-7B": ("accuracy", 0.847),
            "Qwen2.5-VL-72B": ("accuracy", 0.871),
        },
        ("screenspot_v2", "ui_r1"): {
            "UI-R1-3B": ("accuracy", 0.854),
            "GUI-R1-3B": ("accuracy", 0.85),
            "UI-R1-E-3B": ("accuracy", 0.895),
        },
        ("screenspot_pro", "official"): {
            "Qwen2.5-VL-3B": ("accuracy", 0.239),
            "Qwen2.5-VL-7B": ("accuracy", 0.29),
            "Qwen2.5-VL-72B": ("accuracy", 0.436),
        },
        ("screenspot_pro", "ui_r1"): {
            "UI-R1-3B": ("accuracy", 0.178),
            "GUI-R1-3B": ("accuracy", 0.266),
            "UI-R1-E-3B": ("accuracy", 0.335),
        },
    }


# Prompts


def test_the_prompts_are_word_for_word_the_published_ones():
    assert SEECLICK.prompt(item(), PIXELS) == [
        {
            "role": "user",
            "content": "In this UI screenshot, what is the position of the element corresponding to the command "
            '"open the menu" (with point)?',
        }
    ]
    assert MMBENCH.prompt(item(), PIXELS) == [
        {
            "role": "user",
            "content": "Output only the coordinate (x,y) of one point in your response. What element matches the "
            "following task: open the menu",
        }
    ]
    braces = Item("1", "open {x} {}", "[1, 2, 3, 4]", ("a.png",), SIZE)
    for bench in GUI.values():
        for protocol in bench.protocols.values():
            assert "open {x} {}" in protocol.prompt(braces, PIXELS)[0]["content"]


def test_our_prompts_ask_for_an_action_and_where_needed_tell_how_to_refuse():
    ask = TEMPLATES["gui_action"].replace("{Question}", "open the menu")
    assert OURS.prompt(item(), PIXELS) == UI_R1.prompt(item(), PIXELS) == [{"role": "user", "content": ask}]
    for protocol in (OSWORLD, OURS_REFUSING):
        (message,) = protocol.prompt(item(), PIXELS)
        assert message["content"].startswith(
            "open the menu\nIf nothing on the screen fits, give the coordinate [-1, -1]."
        )


@pytest.mark.parametrize(
    ("view", "corner"),
    [(PIXELS, "[200, 100]"), (HALVED, "[100, 50]"), (THOUSANDTHS, "[1000, 1000]"), (FRACTIONS, "[1, 1]")],
)
def test_the_tool_call_prompt_tells_the_far_corner_in_the_models_space(view, corner):
    text = PRO.prompt(item(), view)[0]["content"]
    assert f"The lower right corner of the screen is at {corner}." in text
    assert '{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [x, y]}}' in text


# Borders of a box. SeeClick: 0.1 · 200 = 20 and so on.


@pytest.mark.parametrize(
    ("x", "y", "hit", "strict"),
    [
        (40, 30, 1, 1),
        (20, 30, 1, 0), (60, 30, 1, 0), (40, 20, 1, 0), (40, 40, 1, 0),  # each border
        (20, 20, 1, 0), (60, 40, 1, 0),  # corners
        (21, 21, 1, 1), (59, 39, 1, 1),
        (19, 30, 0, 0), (61, 30, 0, 0), (40, 19, 0, 0), (40, 41, 0, 0),
        (30, 40.5, 0, 0), (0, 0, 0, 0),
    ],
)  # fmt: skip
def test_a_box_holds_its_borders(x, y, hit, strict):
    protocols = [(SEECLICK, seeclick), (PRO, tool_call), (OSWORLD, tool_call), (OURS, action)]
    protocols += [(UI_R1, action)] if y == int(y) else []
    protocols += [(MMBENCH, mmbench)] if x > 1 else []
    for protocol, write in protocols:
        values = judged(protocol, item(), write(x, y), PIXELS).values
        assert (values["accuracy"], values["strict_borders"], values["wrong_format"]) == (hit, strict, 0)


def test_float_rounding_in_a_conversion_moves_no_click_off_a_border():
    # x / 1000 of a screen of 700 pixels, and a target that begins and ends there: 0.1 · 0.7 is no exact float
    for x in range(1000):
        border = round(x * 0.7, 2)
        narrow = Item("1", "open", json.dumps([border, 0, border, 700]), ("a.png",), (700, 700))
        assert OURS.score(narrow, action(x, 500), View("qwen3_vl", "relative_1000")).values["accuracy"] == 1.0


# SeeClick's reading: hit, hit with its numbers in pixels of the screen, wrong format

SEECLICK_CASES = {
    "a point in fractions": ("(0.2,0.3)", 1, 0, 0),
    "a point in text": ("Click at 0.2 and 0.3.", 1, 0, 0),
    "pixels are no fractions": ("(40, 30)", 0, 1, 0),
    "thousandths are no fractions": ("(200, 300)", 0, 0, 0),
    # ((0.1 + 0.3) / 2, (0.2 + 0.4) / 2) = (0.2, 0.3)
    "four numbers are a box": ("(0.1, 0.2, 0.3, 0.4)", 1, 0, 0),
    "reversed corners have the same centre": ("[0.3, 0.4, 0.1, 0.2]", 1, 0, 0),
    "three numbers": ("(0.2, 0.3, 0.4)", 0, 0, 1),
    "one number": ("0.2", 0, 0, 1),
    "five numbers": ("0.1 0.2 0.3 0.4 0.5", 0, 0, 1),
    "a number while thinking": ("<think>Option 1</think>(0.2, 0.3)", 0, 0, 1),
    "two numbers while thinking make a box": ("<think>0.2, 0.3</think>(0.2, 0.3)", 1, 0, 0),
    # findall reads 1 and -2
    "a range": ("1-2", 0, 0, 0),
    "no digit before the point: 2 and 3": ("(.2, .3)", 0, 0, 0),
    "below zero": ("(-0.2, 0.3)", 0, 0, 0),
    # ((100 + 300) / 2, (200 + 400) / 2) / 1000 = (0.2, 0.3); in pixels (200, 300)
    "Qwen-VL's box": ("<ref>menu</ref><box>(100,200),(300,400)</box>", 1, 0, 0),
    "the first of two boxes": ("<box>(100,200),(300,400)</box><box>(0,0),(1,1)</box>", 1, 0, 0),
    "a blank in the box": ("<box>(100, 200),(300,400)</box>", 0, 0, 1),
    "decimals in the box": ("<box>(0.1,0.2),(0.3,0.4)</box>", 0, 0, 1),
    "the word box": ("the box at (0.2, 0.3)", 0, 0, 1),
    "a checkbox": ("checkbox (0.2, 0.3)", 0, 0, 1),
    "a Box is no box": ("Box (0.2, 0.3)", 1, 0, 0),
    "NaN": ("(nan, 0.3)", 0, 0, 1),
    "huge": ("(" + "9" * 400 + ", 0.3)", 0, 0, 0),
    # inf and -inf have no mean
    "huge and minus huge": ("9" * 400 + " 0.3 -" + "9" * 400 + " 0.3", 0, 0, 0),
    "nothing": ("", 0, 0, 1),
}


@pytest.mark.parametrize("name", SEECLICK_CASES)
def test_seeclicks_scorer(name):
    text, hit, explicit, wrong_format = SEECLICK_CASES[name]
    values = judged(SEECLICK, item(), text, PIXELS).values
    assert list(values) == ["accuracy", "strict_borders", "wrong_format", "explicit_space"]
    assert (values["accuracy"], values["explicit_space"], values["wrong_format"]) == (hit, explicit, wrong_format)


# MMBench-GUI's reading: hit, hit with its numbers in thousandths, wrong format

MMBENCH_CASES = {
    "a point in fractions": ("(0.2, 0.3)", 1, 0, 0),
    "a point in pixels": ("(40,30)", 1, 0, 0),
    # either above 1 makes both pixels: (40, 0.3)
    "a fraction beside pixels": ("(40, 0.3)", 0, 0, 0),
    "thousandths are read as pixels": ("(200, 300)", 0, 1, 0),
    "the far corner is a fraction": ("(1, 1)", 0, 0, 0),
    "by a blank": ("40 30", 1, 0, 0),
    "by a semicolon": ("40;30", 1, 0, 0),
    "by many of these": ("40 , ;\n30", 1, 0, 0),
    "named": ("x=40, y=30", 1, 0, 0),
    "named with colons": ("X: 40 Y: 30", 1, 0, 0),
    "named in quotes": ('{"x": 40, "y": 30}', 0, 0, 1),
    "in brackets": ("[40, 30]", 1, 0, 0),
    "a box gives its first corner": ("[40, 30, 199, 99]", 1, 0, 0),
    "two points: the first": ("(40, 30) (0, 0)", 1, 0, 0),
    "thinking poisons it": ("Step 1, 2: (40, 30)", 0, 0, 0),
    "brackets between": ("(40) (30)", 0, 0, 1),
    "no digit before the point": ("(.2, .3)", 1, 0, 0),
    # 1.2.3 is no number, 2.3 with 4 after it is a pair
    "a version": ("1.2.3, 4", 0, 0, 0),
    "a sign after a digit": ("9-40, 30", 0, 0, 0),  # (-40, 30)
    "plus": ("(+40, +30)", 1, 0, 0),
    "below zero": ("(-40, 30)", 0, 0, 0),
    "one number": ("40", 0, 0, 1),
    "an exponent": ("(4e1, 30)", 0, 0, 0),  # (1, 30)
    "NaN": ("(nan, nan)", 0, 0, 1),
    "huge": ("(" + "9" * 400 + ", 30)", 0, 0, 0),
    "nothing": ("", 0, 0, 1),
}


@pytest.mark.parametrize("name", MMBENCH_CASES)
def test_mmbench_guis_scorer(name):
    text, hit, explicit, wrong_format = MMBENCH_CASES[name]
    values = judged(MMBENCH, item(), text, THOUSANDTHS).values
    assert list(values) == ["accuracy", "strict_borders", "wrong_format", "explicit_space"]
    assert (values["accuracy"], values["explicit_space"], values["wrong_format"]) == (hit, explicit, wrong_format)


def test_one_is_a_fraction_for_mmbench_gui_and_more_than_one_are_pixels():
    for text, target in {"(1, 1)": "[199, 99, 200, 100]", "(1, 1.01)": "[0, 0, 2, 2]"}.items():
        assert judged(MMBENCH, item(target), text, PIXELS).values["accuracy"] == 1.0


def test_a_pair_begins_where_the_published_expression_finds_it():
    # inside "a1..5" it is .5, inside "1.5.2" it is 5.2; all are pixels, one number being above 1
    cases = {"12 34": "[12.0, 34.0]", "a1..5, 30": "[0.5, 30.0]", "1.5.2 30": "[5.2, 30.0]", "7;-3": "[7.0, -3.0]"}
    assert {text: MMBENCH.score(item(), text, PIXELS).parsed for text in cases} == cases


# UI-R1's reading: hit, wrong format; and ours

UI_R1_CASES = {
    "as asked": (action(40, 30), (1, 0), (1, 0)),
    "JSON": ('<answer>[{"action": "click", "coordinate": [40, 30]}]</answer>', (1, 0), (1, 0)),
    "no thinking": ("<answer>{'action': 'click', 'coordinate': [40,30]}</answer>", (1, 0), (1, 0)),
    "another action": ("<answer>[{'action': 'scroll', 'coordinate': [40, 30]}]</answer>", (1, 0), (0, 1)),
    "no action": ("<answer>[{'coordinate': [40, 30]}]</answer>", (1, 0), (0, 1)),
    "no coordinate": ("<answer>[{'action': 'click'}]</answer>", (0, 1), (0, 1)),
    "decimals": ("<answer>[{'action': 'click', 'coordinate': [40.0, 30.0]}]</answer>", (0, 1), (1, 0)),
    "below zero": ("<answer>[{'action': 'click', 'coordinate': [-40, 30]}]</answer>", (0, 1), (0, 0)),
    "round brackets": ("<answer>[{'action': 'click', 'coordinate': (40, 30)}]</answer>", (0, 1), (1, 0)),
    "a box": ("<answer>[{'action': 'click', 'coordinate': [20, 20, 60, 40]}]</answer>", (0, 1), (0, 1)),
    "no braces": ("<answer>[40, 30]</answer>", (0, 1), (0, 1)),
    "no tags": ("[{'action': 'click', 'coordinate': [40, 30]}]", (0, 1), (0, 1)),
    "two actions: UI-R1 takes the last, we the first": (
        "<answer>[{'action': 'click', 'coordinate': [0, 0]}, {'action': 'click', 'coordinate': [40, 30]}]</answer>",
        (1, 0), (0, 0),
    ),
    "two answers": (action(40, 30) + action(0, 0), (1, 0), (0, 0)),
    "an answer quoted while thinking": (
        f"<think>{action(40, 30)}</think><answer>[{{'action': 'click', 'coordinate': [0, 0]}}]</answer>",
        (1, 0), (0, 0),
    ),
    "the action over several lines": (
        "<answer>[{\n'action': 'click',\n'coordinate': [40, 30]\n}]</answer>", (0, 1), (1, 0),
    ),
    "the first line with a point": ("<answer>\n{[40, 30]}\n{[0, 0]}\n</answer>", (1, 0), (0, 1)),
    "huge": (f"<answer>{{'action': 'click', 'coordinate': [{'9' * 400}, 30]}}</answer>", (0, 0), (0, 1)),
    "NaN": ("<answer>[{'action': 'click', 'coordinate': [NaN, 30]}]</answer>", (0, 1), (0, 1)),
    "nothing": ("", (0, 1), (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", UI_R1_CASES)
def test_ui_r1s_scorer_and_ours(name):
    text, *expected = UI_R1_CASES[name]
    for protocol, (hit, wrong_format) in zip((UI_R1, OURS), expected, strict=True):
        values = judged(protocol, item(), text, PIXELS).values
        assert list(values) == ["accuracy", "strict_borders", "wrong_format"]
        assert (values["accuracy"], values["wrong_format"]) == (hit, wrong_format)


def test_a_response_without_a_point_misses_a_target_at_the_origin():
    # UI-R1 scores the point (0, 0), which lies in this target
    corner = item("[0, 0, 10, 10]")
    for protocol in (SEECLICK, UI_R1, OURS, PRO, OSWORLD, MMBENCH):
        for text in ("", "<answer></answer>", "no idea", "<answer>[{'action': 'click'}]</answer>", "<tool_call>{}"):
            assert judged(protocol, corner, text, PIXELS).values["accuracy"] == 0.0


# The tool call: hit, wrong format

TOOL_CALL_CASES = {
    "as asked": (tool_call(40, 30), 1, 0),
    "a box: its centre": (tool_call(20, 20, 60, 40), 1, 0),
    "three numbers": (tool_call(40, 30, 1), 0, 1),
    "a word beside two numbers": (tool_call(40, 30, "left"), 0, 1),
    "a comma at the end": ('<tool_call>{"coordinate": [40, 30,]}</tool_call>', 0, 1),
    "no number": (tool_call(), 0, 1),
    "decimals": (tool_call(40.5, 30.5), 1, 0),
    "NaN": (tool_call(float("nan"), 30), 0, 1),
    "numbers in quotes": (tool_call("40", "30"), 0, 1),
    "an exponent": ('<tool_call>{"coordinate": [4e1, 30]}</tool_call>', 0, 1),
    "no end": ('<tool_call>{"arguments": {"coordinate": [40, 30]}', 1, 0),
    "no tag": ('{"arguments": {"coordinate": [40, 30]}}', 0, 1),
    "Python's quotes": ("<tool_call>{'coordinate': [40, 30]}</tool_call>", 0, 1),
    "two calls: the first": (tool_call(40, 30) + tool_call(0, 0), 1, 0),
    "two coordinates in a call": ('<tool_call>{"coordinate": [0, 0], "coordinate": [40, 30]}</tool_call>', 0, 1),
    "a call while thinking": (f"<think>{tool_call(0, 0)}</think>{tool_call(40, 30)}", 1, 0),
    "only while thinking": (f"<think>{tool_call(40, 30)}", 0, 1),
    "a point": ("[40, 30]", 0, 1),
}


@pytest.mark.parametrize("name", TOOL_CALL_CASES)
def test_the_scorer_of_tool_calls(name):
    text, hit, wrong_format = TOOL_CALL_CASES[name]
    for protocol in (PRO, OSWORLD):
        values = judged(protocol, item(), text, PIXELS).values
        assert (values["accuracy"], values["wrong_format"]) == (hit, wrong_format)


# Spaces


@pytest.mark.parametrize(
    ("view", "x", "y"),
    [
        (PIXELS, 40, 30),
        (HALVED, 20, 15),  # of 100 x 50, so · 2
        (THOUSANDTHS, 200, 300),  # · 200 / 1000 and · 100 / 1000
        (View("qwen2_5_vl", "absolute"), 40, 30),
    ],
)
def test_a_click_is_in_the_space_of_the_model_whatever_its_numbers(view, x, y):
    small = item("[38, 28, 42, 32]")
    for protocol, write in ((UI_R1, action), (OURS, action), (PRO, tool_call), (OSWORLD, tool_call)):
        for other in ((40, 30), (20, 15), (200, 300)):
            assert judged(protocol, small, write(*other), view).values["accuracy"] == float(other == (x, y))
    for protocol in (SEECLICK, MMBENCH):
        values = judged(protocol, small, f"({x}, {y})", view).values
        assert values["explicit_space"] == 1.0
        assert values["accuracy"] == float(protocol is MMBENCH and (x, y) == (40, 30))
        assert judged(protocol, small, "(0.2, 0.3)", view).values["accuracy"] == 1.0


def test_the_vote_is_the_point_in_pixels_of_the_screen():
    assert SEECLICK.score(item(), "(0.25, 0.5)", PIXELS).parsed == "[50.0, 50.0]"
    assert OURS.score(item(), action(500, 500), THOUSANDTHS).parsed == "[100.0, 50.0]"
    assert PRO.score(item(), tool_call(0, 0, 100, 100), PIXELS).parsed == "[50.0, 50.0]"


# Polygons and refusals


@pytest.mark.parametrize(
    ("x", "y", "inside", "border"),
    [
        (5, 5, True, False),
        (0, 5, True, True),  # left edge: the ray to the right crosses the right edge alone
        (10, 5, False, True),  # right edge: x < 10 is false for both
        (5, 0, True, True),  # top edge: both sides have 0 > 0 false and 10 > 0 true, and the right one lies right
        (5, 10, False, True),  # bottom edge: 10 > 10 is false for both ends of both sides
        (0, 0, True, True),
        (10, 10, False, True),
        (-1, 5, False, False),  # crosses both sides
        (11, 5, False, False),
        (float("nan"), 5, False, False),
        (float("inf"), 5, False, False),
    ],
)
def test_ray_casting_takes_the_left_and_top_edges_in_and_the_others_out(x, y, inside, border):
    square = [0, 0, 10, 0, 10, 10, 0, 10]
    assert in_polygon((x, y), square) is inside
    assert on_border((x, y), square) is border
    # the law: neither the direction nor the first corner matters
    for again in ([0, 10, 10, 10, 10, 0, 0, 0], [10, 10, 0, 10, 0, 0, 10, 0]):
        assert in_polygon((x, y), again) is inside


def test_a_polygon_is_not_the_box_around_it():
    # an L of 20 x 20 without its upper right quarter
    corner = [0, 0, 10, 0, 10, 10, 20, 10, 20, 20, 0, 20]
    shape = item("[0, 0, 20, 20]", box_type="polygon", polygon=corner)
    for (x, y), (hit, strict) in {
        (5, 5): (1, 1), (5, 10): (1, 1), (15, 15): (1, 1), (15, 5): (0, 0),
        (0, 5): (1, 0), (15, 10): (1, 0), (10, 5): (0, 0),
    }.items():  # fmt: skip
        values = judged(OSWORLD, shape, tool_call(x, y), PIXELS).values
        assert (values["accuracy"], values["strict_borders"]) == (hit, strict)


@pytest.mark.parametrize(
    ("text", "hit", "wrong_format"),
    [
        (tool_call(-1, -1), 1, 0),
        (tool_call(-0.5, -200), 1, 0),
        (tool_call(-1, -1, -1, -1), 1, 0),
        (tool_call(-1, 5), 0, 0),
        (tool_call(0, 0), 0, 0),
        (tool_call(40, 30), 0, 0),
        (tool_call(), 0, 1),
        ("There is no such thing on the screen.", 0, 1),
        ("None", 0, 1),
        ("[-1, -1]", 0, 1),
        ("", 0, 1),
    ],
)
def test_a_refusal_is_two_negative_coordinates_and_nothing_else(text, hit, wrong_format):
    for view in (PIXELS, THOUSANDTHS):
        values = judged(OSWORLD, item("None", box_type="refusal", polygon=None), text, view).values
        assert (values["accuracy"], values["strict_borders"], values["wrong_format"]) == (hit, hit, wrong_format)


def test_refusing_earns_nothing_where_there_is_something_to_click():
    for target in (item(), item("[0, 0, 5, 5]"), item(polygon=[0, 0, 9, 0, 9, 9], box_type="polygon")):
        for protocol, write in ((OSWORLD, tool_call), (OURS_REFUSING, action), (PRO, tool_call)):
            assert judged(protocol, target, write(-1, -1), PIXELS).values["accuracy"] == 0.0


# Cells and totals


def scored(*values):
    return [Score({"accuracy": float(value)}, None) for value in values]


def test_the_six_cells_of_screenspot_and_their_unweighted_mean():
    web_text = [item(name=str(number), platform="web", data_type="text") for number in range(3)]
    mobile_icon = item(name="3", platform="mobile", data_type="icon")
    assert SEECLICK.cells(mobile_icon) == {"platform": "mobile", "type": "icon", "cell": "mobile/icon"}
    # web text 1 of 3, mobile icon 1 of 1: (1/3 + 1) / 2, where the mean over items is 2/4
    scores = [scored(1), scored(0), scored(0), scored(1)]
    for protocol in (SEECLICK, UI_R1, OURS):
        totals = protocol.totals([*web_text, mobile_icon], scores)
        assert totals == {"cell_mean": pytest.approx(2 / 3, rel=0, abs=1e-15)}
    assert SEECLICK.totals([], []) == {}


def test_an_item_counts_once_however_many_samples_it_has():
    items = [item(name="1", platform="web", data_type="text"), item(name="2", platform="web", data_type="icon")]
    # text (1 + 0 + 0 + 0) / 4, icon (1 + 1 + 1 + 1) / 4
    assert SEECLICK.totals(items, [scored(1, 0, 0, 0), scored(1, 1, 1, 1)]) == {"cell_mean": 0.625}


def test_screenspot_pro_is_told_apart_by_group_and_type():
    for protocol in GUI["screenspot_pro"].protocols.values():
        assert protocol.cells(item(group="CAD", ui_type="text")) == {
            "group": "CAD",
            "type": "text",
            "cell": "CAD/text",
        }
        assert protocol.totals([item()], [scored(1)]) == {}


def test_osworld_g_counts_with_and_without_refusals():
    kinds = ["bbox", "polygon", "refusal", "refusal"]
    items = [item(name=str(number), box_type=kind) for number, kind in enumerate(kinds)]
    scores = [scored(1), scored(0), scored(0), scored(0)]
    assert OSWORLD.totals(items, scores) == {"accuracy_without_refusals": 0.5}
    assert OSWORLD.totals(items[2:], scores[2:]) == {}


def test_the_levels_of_mmbench_gui_are_weighted_by_item_and_averaged_without_weights():
    rows = [("basic", "os_ios", 1), ("basic", "os_web", 0), ("basic", "os_web", 0), ("advanced", "os_web", 1)]
    items = [
        item(name=str(number), grounding_type=level, platform=platform, data_type="icon")
        for number, (level, platform, _) in enumerate(rows)
    ]
    scores = [scored(hit) for *_, hit in rows]
    # basic: os_ios 1/1 with weight 1/3, os_web 0/2 with weight 2/3: 1/3; advanced 1; (1/3 + 1) / 2
    assert MMBENCH.totals(items, scores) == pytest.approx(
        {"accuracy_basic": 1 / 3, "accuracy_advanced": 1.0, "level_mean": 2 / 3}, rel=0, abs=1e-15
    )
    assert MMBENCH.totals(items[:3], scores[:3]) == pytest.approx({"accuracy_basic": 1 / 3}, rel=0, abs=1e-15)
    assert MMBENCH.totals([], []) == {}
    assert MMBENCH.cells(items[0]) == {
        "level": "basic", "platform": "os_ios", "type": "icon", "level/platform": "basic/os_ios",
    }  # fmt: skip


# Any response


@settings(max_examples=300, deadline=None)
@given(RESPONSES)
def test_any_response_gets_a_score(text):
    targets = [item(), item("[0, 0, 9, 9]", box_type="polygon", polygon=[0, 0, 9, 0, 9, 9])]
    for bench in GUI.values():
        for protocol in bench.protocols.values():
            for view in (PIXELS, THOUSANDTHS, FRACTIONS):
                for target in [*targets, item("None", box_type="refusal", polygon=None)]:
                    judged(protocol, target, text, view)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_response_costs_little_time_and_is_no_hit(number):
    target = item("[160.25, 60.25, 160.5, 60.5]")
    for protocol in (SEECLICK, UI_R1, OURS, PRO, MMBENCH):
        assert quickest(lambda: protocol.score(target, HOSTILE[number], PIXELS), limit=0.1) < 0.1  # noqa: B023
        assert judged(protocol, target, HOSTILE[number], PIXELS).values["accuracy"] == 0.0
