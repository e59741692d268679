"""Referring expressions: each published layout is read and scored, and each published scorer is followed by hand."""

import json
import pickle

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from hostile_answers import HOSTILE, RESPONSES, judged
from hypothesis import given, settings
from loader_files import embedded, lines, png
from timing import quickest

from vlm_entropy.data.loaders import LOADERS
from vlm_entropy.eval.benchmarks.grounding import REC
from vlm_entropy.eval.items import read_items
from vlm_entropy.eval.protocols import Item, View

ASK = "Please provide the bounding box coordinate of the region this sentence describes: "
SIZE = (200, 100)
PIXELS = View("qwen2_5_vl", "absolute_resized", SIZE)
HALVED = View("qwen2_5_vl", "absolute_resized", (100, 50))
THOUSANDTHS = View("qwen3_vl", "relative_1000", SIZE)
INTERNVL = View("internvl", "relative_1000", SIZE)
PROTOCOLS = REC["refcoco"].protocols
R1, BASE, OFFICIAL = PROTOCOLS["vlm_r1"], PROTOCOLS["vlm_r1_base"], PROTOCOLS["internvl"]


def item(gold="[0, 0, 100, 100]", **columns):
    return Item("1", ASK + "the cat", gold, ("a.jpg",), SIZE, columns)


def json_answer(*boxes):
    return "<think>It is left.</think>\n<answer>{}</answer>".format(
        json.dumps([{"bbox_2d": box, "label": "cat"} for box in boxes])
    )


def written(name, box):
    """A box as the protocol of that name asks for it."""
    return f"cat[{box}]" if name == "internvl" else json_answer(box)


# Every layout on disk, with the cat at [10, 20, 40, 60] of a picture of 200 x 100


def write_refer(folder, name="refs(unc).p"):
    sentences = [{"sent_id": 11, "sent": "the cat", "raw": "The cat", "tokens": ["the", "cat"]}]
    ref = {"ref_id": 5, "ann_id": 7, "category_id": 17, "image_id": 9, "split": "val", "sent_ids": [11]}
    (folder / name).write_bytes(pickle.dumps([{**ref, "file_name": "a_7.png", "sentences": sentences}], protocol=2))
    instances = {
        "images": [{"id": 9, "file_name": "a.png"}],
        "annotations": [{"id": 7, "bbox": [10, 20, 30, 40]}],
        "categories": [{"id": 17, "name": "cat"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    return str(folder), {"split": "val"}


def write_qwen_jsonl(folder):
    row = {"image": "a.png", "sent": "the cat", "bbox": [10, 20, 40, 60], "width": 200, "height": 100}
    return lines(folder / "refcoco_val.jsonl", row), {}


def write_lmms(folder):
    row = {
        "question_id": "4", "image": embedded(png(*SIZE)), "question": "Please ...", "answer": ["the cat"],
        "segmentation": [1.0], "bbox": [10.0, 20.0, 30.0, 40.0], "iscrowd": 0, "file_name": "a_7.jpg",
    }  # fmt: skip
    text, floats = Value("string"), List(Value("float32"))
    features = {"question_id": text, "image": ImageFeature(), "question": text, "answer": List(text)}
    features |= {"segmentation": floats, "bbox": floats, "iscrowd": Value("int8"), "file_name": text}
    path = folder / "testA-00000-of-00001.parquet"
    Dataset.from_list([row], features=Features(features)).to_parquet(path)
    return str(path), {}


def write_vlm_r1_eval(folder):
    row = {"image": "a.png", "problem": ASK + "the cat", "solution": [10, 20, 40, 60]}
    (folder / "refcoco_val.json").write_text(json.dumps([row]))
    return str(folder / "refcoco_val.json"), {}


def write_reason_seg(folder):
    polygon = [[10, 20], [40, 20], [40, 60]]
    annotation = {"text": ["the cat"], "is_sentence": True, "shapes": [{"label": "target", "points": polygon}]}
    (folder / "a.json").write_text(json.dumps(annotation))
    (folder / "a.jpg").write_bytes(png(*SIZE))
    return str(folder), {}


WRITERS = {
    "refer": write_refer,
    "refgta": lambda folder: write_refer(folder, "refs(utokyo).p"),
    "qwen_jsonl": write_qwen_jsonl,
    "lmms_refcoco": write_lmms,
    "vlm_r1_eval": write_vlm_r1_eval,
    "lisa_grounding": write_reason_seg,
}


@pytest.mark.parametrize(
    ("name", "source"), [(name, source) for name, bench in REC.items() for source in bench.formats]
)
@pytest.mark.filterwarnings("ignore:.*no number on it compares")
def test_a_miniature_of_every_layout_is_read_asked_and_scored(name, source, tmp_path):
    (tmp_path / "a.png").write_bytes(png(*SIZE))
    path, options = WRITERS[source](tmp_path)
    (read,) = read_items(REC[name], path, source=source, images=str(tmp_path), **options)
    assert (read.question, read.image_size) == (ASK + "the cat", SIZE)
    assert json.loads(read.answer) == [10, 20, 40, 60]
    for asked, protocol in REC[name].protocols.items():
        (message,) = protocol.prompt(read, PIXELS)
        assert "the cat" in message["content"]
        assert "<image>" not in message["content"]
        right = protocol.score(read, written(asked, [10, 20, 40, 60]), PIXELS)
        assert list(right.values.values()) == [1.0, 1.0, 1.0, 1.0, 0.0]
        assert judged(protocol, read, written(asked, [60, 20, 90, 60]), PIXELS).values["accuracy@0.5"] == 0.0


def test_lisas_own_file_is_read_too(tmp_path):
    (tmp_path / "a.png").write_bytes(png(*SIZE))
    path, _ = write_vlm_r1_eval(tmp_path)
    (read,) = read_items(REC["lisa_grounding"], path, images=str(tmp_path))
    assert R1.score(read, json_answer([10, 20, 40, 60]), PIXELS).values["accuracy@0.5"] == 1.0


def test_the_names_sizes_and_formats_are_the_published_ones():
    assert list(REC) == ["refcoco", "refcoco_plus", "refcocog", "lisa_grounding", "refgta"]
    assert {source for bench in REC.values() for source in bench.formats} <= set(LOADERS)
    assert REC["refcoco"].sizes == {"val": 10834, "testA": 5657, "testB": 5095}
    assert REC["refcoco_plus"].sizes == {"val": 10758, "testA": 5726, "testB": 4889}
    assert REC["refcocog"].sizes == {"val": 4896, "test": 9602}


def test_a_published_number_says_where_it_is_from_and_names_a_split_of_its_set():
    for bench in REC.values():
        for protocol in bench.protocols.values():
            for reference in protocol.references:
                assert 0.5 < reference.value < 1.0
                assert reference.metric == "accuracy@0.5"
                assert reference.split in {None, *bench.sizes}
                assert "second-hand" in reference.source or "recalled, not checked" in reference.source
    assert [one.value for one in OFFICIAL.references if one.model == "InternVL3-8B"] == [0.925, 0.946, 0.88]
    assert R1.references == ()  # VLM-R1's figures after RL on RefCOCO are not at hand


# Prompts


def test_the_prompts_are_word_for_word_the_published_ones():
    think = (
        "First output the thinking process in <think> </think> tags and then output the final answer in "
        "<answer> </answer> tags."
    )
    cases = {
        (R1, PIXELS): f"{ASK}the cat {think} Output the final answer in JSON format.",
        (R1, THOUSANDTHS): f"{ASK}the cat {think} Output the final answer in JSON format.",
        (R1, INTERNVL): f"{ASK}the cat {think}",
        (BASE, PIXELS): f"{ASK}the cat Please provide the bounding box coordinate in JSON format.",
        (OFFICIAL, INTERNVL): f"{ASK}<ref>the cat</ref>",
    }
    for (protocol, view), text in cases.items():
        assert protocol.prompt(item(), view) == [{"role": "user", "content": text}]
    assert [protocol.max_new_tokens for protocol in (R1, BASE, OFFICIAL)] == [256, 256, 100]


def test_internvl_is_asked_with_the_bare_expression():
    other = Item("1", "Where is it?", "[0, 0, 1, 1]", (), SIZE, {"normal_caption": "a {dog}"})
    assert OFFICIAL.prompt(other, INTERNVL)[0]["content"] == ASK + "<ref>a {dog}</ref>"
    for columns in ({}, {"normal_caption": None}):
        with pytest.raises(ValueError, match="Item '1' has no normal_caption, and its question does not begin with"):
            OFFICIAL.prompt(Item("1", "Where is it?", "[0, 0, 1, 1]", (), SIZE, columns), INTERNVL)


def test_the_splits_are_told_apart_where_all_are_read():
    assert R1.cells(item(split="testA")) == {"split": "testA"}
    assert R1.cells(item()) == {}


# VLM-R1's scorer. Gold [0, 0, 100, 100] of 200 x 100 unless said otherwise; the columns are VLM-R1's hit, the strict
# hits > 0.5 and >= 0.5, the strict IoU, and whether VLM-R1 reads no box.

QWEN_CASES = {
    "the gold box": (json_answer([0, 0, 100, 100]), 1, 1, 1, 1.0, 0),
    "IoU 50 · 100 / 100² = 0.5 is no hit for > and one for >=": (json_answer([0, 0, 50, 100]), 0, 0, 1, 0.5, 0),
    "IoU 51 · 100 / 100² = 0.51": (json_answer([0, 0, 51, 100]), 1, 1, 1, 0.51, 0),
    "IoU 100² / (200 · 100) = 0.5": (json_answer([0, 0, 200, 100]), 0, 0, 1, 0.5, 0),
    "reversed corners": (json_answer([100, 100, 0, 0]), 0, 0, 0, 0.0, 0),
    "one side reversed": (json_answer([100, 0, 0, 100]), 0, 0, 0, 0.0, 0),
    "an empty box": (json_answer([0, 0, 0, 0]), 0, 0, 0, 0.0, 0),
    "the right box last: VLM-R1 takes the last, we the first": (
        json_answer([150, 0, 190, 40], [0, 0, 100, 100]), 1, 0, 0, 0.0, 0,
    ),
    "the right box first": (json_answer([0, 0, 100, 100], [150, 0, 190, 40]), 0, 1, 1, 1.0, 0),
    "no braces around it": ("<answer>[0, 0, 100, 100]</answer>", 0, 1, 1, 1.0, 1),
    "braces before it": ("<answer>{} [0, 0, 100, 100]</answer>", 0, 1, 1, 1.0, 1),
    "braces after it": ("<answer>[0, 0, 100, 100] {}</answer>", 0, 1, 1, 1.0, 1),
    "a brace that is not closed": ("<answer>{[0, 0, 100, 100]</answer>", 0, 1, 1, 1.0, 1),
    "lines inside the answer": ("<answer>```json\n{\n[0,\n0,\n100,\n100]\n}\n```</answer>", 1, 1, 1, 1.0, 0),
    "a blank after the bracket": ("<answer>{[ 0, 0, 100, 100]}</answer>", 0, 1, 1, 1.0, 1),
    "a blank before a comma": ("<answer>{[0 , 0, 100, 100]}</answer>", 0, 1, 1, 1.0, 1),
    "decimals": (json_answer([0.0, 0.0, 100.0, 100.0]), 0, 1, 1, 1.0, 1),
    # 100² / (105 · 100) = 0.952380952
    "a number below zero": (json_answer([-5, 0, 100, 100]), 0, 1, 1, 0.952380952, 1),
    "NaN": (json_answer([float("nan"), 0, 100, 100]), 0, 0, 0, 0.0, 1),
    "more than nine digits": (json_answer([0, 0, 10**10, 100]), 0, 0, 0, 0.0, 0),
    # the last box counts, however large: the gold box before it earns nothing
    "a huge box last": (json_answer([0, 0, 100, 100], [0, 0, 10**400, 100]), 0, 1, 1, 1.0, 0),
    "five numbers": (json_answer([0, 0, 100, 100, 100]), 0, 0, 0, 0.0, 1),
    "a point": (json_answer([50, 50]), 0, 0, 0, 0.0, 1),
    "no tags": ('{"bbox_2d": [0, 0, 100, 100]}', 0, 0, 0, 0.0, 1),
    "a tag that is not closed": ("<answer>{[0, 0, 100, 100]}", 0, 0, 0, 0.0, 1),
    "a box only while thinking": ("<think>{[0, 0, 100, 100]}</think><answer>left</answer>", 0, 0, 0, 0.0, 1),
    "two answers, the right one first": (
        "<answer>{[0, 0, 100, 100]}</answer><answer>{[9, 9, 10, 10]}</answer>", 1, 1, 1, 1.0, 0,
    ),
    "two answers, the right one second": (
        "<answer>{[9, 9, 10, 10]}</answer><answer>{[0, 0, 100, 100]}</answer>", 0, 0, 0, 0.0001, 0,
    ),
    # VLM-R1 takes the first block, the strict reading the first after the thinking
    "an answer quoted while thinking": (
        "<think><answer>{[9, 9, 10, 10]}</answer></think><answer>{[0, 0, 100, 100]}</answer>", 0, 1, 1, 1.0, 0,
    ),
    "a guess while thinking, and another answer": (
        "<think><answer>{[0, 0, 100, 100]}</answer></think><answer>{[9, 9, 10, 10]}</answer>", 1, 0, 0, 0.0001, 0,
    ),
    "nothing": ("", 0, 0, 0, 0.0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", QWEN_CASES)
def test_vlm_r1s_scorer(name):
    text, *expected = QWEN_CASES[name]
    score = judged(R1, item(), text, PIXELS)
    assert list(score.values) == [
        "accuracy@0.5", "strict_accuracy>0.5", "strict_accuracy>=0.5", "mean_iou", "wrong_format"
    ]  # fmt: skip
    assert list(score.values.values()) == expected


@pytest.mark.parametrize(
    ("gold", "box", "accuracy", "strict"),
    [
        # overlap of width min(1 - 1, 1 - 1) - 0 = 0: VLM-R1 counts none, even for the gold box itself
        ([0, 0, 1, 100], [0, 0, 1, 100], 0, 1),
        ([0, 0, 100, 1], [0, 0, 100, 1], 0, 1),
        # width min(2 - 1, 2 - 1) - 0 + 1 = 2, IoU 200 / (200 + 200 - 200) = 1
        ([0, 0, 2, 100], [0, 0, 2, 100], 1, 1),
        # 1.5 wide: min(0.5, 0.5) - 0 + 1 = 1.5, IoU 1
        ([0, 0, 1.5, 100], [0, 0, 2, 100], 1, 1),
        # a gold box without area is never hit; VLM-R1 divides by zero on the box [0, 0, 0, 0]
        ([5, 5, 5, 5], [5, 5, 5, 5], 0, 0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0, 0),
    ],
)
def test_an_overlap_of_one_pixel_is_none_for_vlm_r1(gold, box, accuracy, strict):
    values = R1.score(item(json.dumps(gold)), json_answer(box), PIXELS).values
    assert (values["accuracy@0.5"], values["strict_accuracy>0.5"]) == (accuracy, strict)


@pytest.mark.parametrize(
    ("view", "box"),
    [
        (PIXELS, [0, 0, 100, 100]),
        (HALVED, [0, 0, 50, 50]),  # of 100 x 50, so · 2
        (THOUSANDTHS, [0, 0, 500, 1000]),  # · 200 / 1000 and · 100 / 1000
        (INTERNVL, [0, 0, 500, 1000]),
        (View("qwen2_5_vl", "absolute"), [0, 0, 100, 100]),
    ],
)
def test_a_box_is_in_the_space_of_the_model_whatever_its_numbers(view, box):
    for name, protocol in PROTOCOLS.items():
        assert list(protocol.score(item(), written(name, box), view).values.values()) == [1.0, 1.0, 1.0, 1.0, 0.0]
        for other in ([0, 0, 100, 100], [0, 0, 50, 50], [0, 0, 500, 1000]):
            right = protocol.score(item(), written(name, other), view).values["accuracy@0.5"]
            assert right == float(other == box)


def test_float_rounding_in_a_conversion_does_not_decide_an_iou_of_one_half():
    # x · 700 / 1000 of a picture of 700 x 700: 0.1 · 0.7 and the like are no exact floats
    for width in range(2, 1000, 2):
        gold = json.dumps([0, 0, round(width * 0.7, 2), 700])
        of_700 = Item("1", ASK, gold, (), (700, 700))
        values = R1.score(of_700, json_answer([0, 0, width // 2, 1000]), View("qwen3_vl", "relative_1000")).values
        assert values["accuracy@0.5"] == values["strict_accuracy>0.5"] == 0.0
        assert values["strict_accuracy>=0.5"] == 1.0


def test_internvl_is_scored_in_thousandths_on_its_first_box():
    # a gold box of 1 pixel is 5 thousandths wide: an overlap for InternVL, none in pixels
    narrow = item("[0, 0, 1, 100]")
    assert R1.score(narrow, json_answer([0, 0, 5, 1000]), INTERNVL).values["accuracy@0.5"] == 1.0
    assert R1.score(narrow, json_answer([0, 0, 5, 1000]), THOUSANDTHS).values["accuracy@0.5"] == 0.0
    # one of 0.2 pixels is 1 thousandth wide: none for InternVL either
    assert R1.score(item("[0, 0, 0.2, 100]"), json_answer([0, 0, 1, 1000]), INTERNVL).values["accuracy@0.5"] == 0.0
    bare = "<answer>[[0, 0, 500, 1000]] or [[1, 1, 2, 2]]</answer>"
    assert R1.score(item(), bare, INTERNVL).values["accuracy@0.5"] == 1.0
    assert R1.score(item(), bare, THOUSANDTHS).values["wrong_format"] == 1.0  # no braces


# The other two readings, in the space of the first column

BASE_CASES = {
    "decimals without tags": ("[0.0, 0, 100.0, 100]", [1, 1, 1, 1.0, 0]),
    "blanks everywhere": ("[ 0 , 0 , 100 , 100 ]", [1, 1, 1, 1.0, 0]),
    "no digit before the point": ("[.5, .5, 99.5, 99.5]", [1, 1, 1, 0.9801, 0]),  # 99² / 100²
    "below zero": ("[-0.0, -5, 100, 100]", [1, 1, 1, 0.952380952, 0]),
    "no digit after the point": ("[0., 0., 100., 100.]", [0, 1, 1, 1.0, 1]),
    "an exponent": ("[0, 0, 1e2, 1e2]", [0, 0, 0, 0.0, 1]),
    # the first box anywhere counts, so one in the thinking does; the strict reading starts after it
    "a wrong box while thinking": ("<think>[1, 1, 2, 2]</think>[0, 0, 100, 100]", [0, 1, 1, 1.0, 0]),
    "the right box while thinking": ("<think>[0, 0, 100, 100]</think>left", [1, 0, 0, 0.0, 0]),
    "thinking that never ends": ("<think>[0, 0, 100, 100]", [1, 0, 0, 0.0, 0]),
    "two boxes": ("[0, 0, 100, 100] [1, 1, 2, 2]", [1, 1, 1, 1.0, 0]),
    "exactly one half": ("[0, 0, 50, 100]", [0, 0, 1, 0.5, 0]),
    "no box": ("left", [0, 0, 0, 0.0, 1]),
}
OFFICIAL_CASES = {
    "double brackets": ("[[0, 0, 500, 1000]]", [1, 1, 1, 1.0, 0]),
    "single brackets": ("cat[0, 0, 500, 1000]", [1, 1, 1, 1.0, 0]),
    "exactly one half is a hit": ("[[0, 0, 250, 1000]]", [1, 0, 1, 0.5, 0]),
    "just under one half": ("[[0, 0, 249, 1000]]", [0, 0, 0, 0.498, 0]),  # 249 / 500
    "a bracket in the text before": ("[see [0, 0, 500, 1000]]", [0, 1, 1, 1.0, 1]),
    "a bracket in the line before": ("[see\n[0, 0, 500, 1000]", [1, 1, 1, 1.0, 0]),
    "words in brackets, and commas": ("[a, b, c, d] [0, 0, 500, 1000]", [0, 1, 1, 1.0, 1]),
    "five numbers: the fourth field is no number": ("[0, 0, 500, 1000, 1]", [0, 0, 0, 0.0, 1]),
    "a box over two lines": ("[[0, 0,\n500, 1000]]", [0, 1, 1, 1.0, 1]),
    "an exponent": ("[0, 0, 5e2, 1000]", [0, 0, 0, 0.0, 1]),
    "NaN": ("[nan, 0, 500, 1000]", [0, 0, 0, 0.0, 1]),
    "infinity": ("[0, 0, inf, 1000]", [0, 0, 0, 0.0, 1]),
    # InternVL reads a sum < 4 as fractions, of which this is the left half
    "small numbers are thousandths": ("[0, 0, 0.5, 1]", [0, 0, 0, 0.0, 0]),
    "reversed corners": ("[[500, 1000, 0, 0]]", [0, 0, 0, 0.0, 0]),
    "no box": ("left", [0, 0, 0, 0.0, 1]),
}


@pytest.mark.parametrize("name", BASE_CASES)
def test_vlm_r1s_baseline_scorer(name):
    text, expected = BASE_CASES[name]
    assert list(judged(BASE, item(), text, PIXELS).values.values()) == expected


@pytest.mark.parametrize("name", OFFICIAL_CASES)
def test_internvls_scorer(name):
    text, expected = OFFICIAL_CASES[name]
    score = judged(OFFICIAL, item(), text, INTERNVL)
    assert list(score.values.values()) == pytest.approx(expected, rel=0, abs=1e-5)


def test_the_vote_is_the_box_that_the_protocol_read():
    assert R1.score(item(), json_answer([9, 9, 9, 9], [0, 0, 50, 100]), PIXELS).parsed == "[0.0, 0.0, 50.0, 100.0]"
    assert BASE.score(item(), "[0, 0, 50.0, 100.]", PIXELS).parsed is None
    assert BASE.score(item(), "[0,0,50.0,100]", PIXELS).parsed == "[0.0, 0.0, 50.0, 100.0]"


def test_a_gold_answer_without_a_box_is_an_error_in_the_data():
    with pytest.raises(ValueError, match=r"Item '1' has the answer 'left'; a box \[x1, y1, x2, y2\] is needed"):
        R1.score(item("left"), "", PIXELS)
    with pytest.raises(ValueError, match="needs input_size"):
        R1.score(item(), json_answer([0, 0, 1, 1]), View("qwen2_5_vl", "absolute_resized"))


@settings(max_examples=300, deadline=None)
@given(RESPONSES)
def test_any_response_gets_a_score(text):
    for protocol in PROTOCOLS.values():
        for view in (PIXELS, THOUSANDTHS, INTERNVL, View("qwen2_vl", "relative_1")):
            judged(protocol, item(), text, view)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_response_costs_little_time_and_is_no_hit(number):
    for protocol in PROTOCOLS.values():
        for view in (PIXELS, INTERNVL):
            assert quickest(lambda: protocol.score(item(), HOSTILE[number], view), limit=0.1) < 0.1  # noqa: B023
            assert judged(protocol, item("[150, 0, 190, 40]"), HOSTILE[number], view).values["accuracy@0.5"] == 0.0
