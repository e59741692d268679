"""Detection as Visual-RFT asks and scores it: the loader, both parsers, mean AP, and LVIS's federated rules."""

import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlm_entropy.data.loaders.coco_detection import read_coco_detection
from vlm_entropy.eval.benchmarks.detection import (
    COCO_8,
    COCO_15,
    DETECTION,
    LVIS_6,
    listed_objects,
    mean_precisions,
    published_boxes,
    strict_boxes,
)
from vlm_entropy.eval.coco_ap import Pair, category_precisions
from vlm_entropy.eval.protocols import Item, View

VIEW = View("qwen2_vl", "relative_1000")
SIZE = (1000, 1000)
PROTOCOL = DETECTION["coco_8"].protocols["visual_rft"]


def listing(*boxes):
    """An answer with boxes of 0..1000 and their confidences, as the prompt asks for it."""
    objects = [{"Position": list(box), "Confidence": confidence} for *box, confidence in boxes]
    return f"<think>Two.</think> <answer>{objects}</answer>"


def item(image_id=1, category="bus", boxes=(), **columns):
    defaults = {"width": 1000, "height": 1000, "crowd_boxes": [], "unasked_boxes": 0}
    rules = {"is_judged": True, "is_exhaustive": True}
    columns = {"image_id": image_id, "category": category, "boxes": boxes, **defaults, **rules, **columns}
    return Item(f"{image_id}/{category}", "Where?", "None", columns=columns)


def totals(items, responses, categories=("bus",), max_detections=100):
    scores = [[PROTOCOL.score(one, response, VIEW)] for one, response in zip(items, responses, strict=True)]
    return mean_precisions(items, scores, categories=categories, max_detections=max_detections)


def precisions(*pairs, unasked=None, max_detections=100):
    return category_precisions(pairs, unasked=unasked or {}, max_detections=max_detections)


# The loader


def annotation_file(folder, data, **maps):
    path = folder / "instances_val2017.json"
    path.write_text(json.dumps(data))
    for name, content in maps.items():
        (folder / f"exist_map_{name}.json").write_text(json.dumps(content))
    return str(path)


def test_a_folder_stands_for_the_annotation_file_in_it(tmp_path):
    data = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 10, "height": 10}],
        "categories": [{"id": 7, "name": "bus"}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5]}],
    }
    path = annotation_file(tmp_path, data, baseline={"1": ["bus"]})
    assert list(read_coco_detection(str(tmp_path))) == list(read_coco_detection(path))
    (tmp_path / "lvis_v1_val.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must hold one of instances_val2017.json, lvis_v1_val.json"):
        list(read_coco_detection(str(tmp_path)))


def coco(**changes):
    """In COCO's layout: image 9 with two buses and a crowd of them, image 3 with a bus and a cat, image 5 empty."""
    return {
        "images": [
            {"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480},
            {"id": 3, "file_name": "000000000003.jpg", "width": 200, "height": 100},
            {"id": 5, "file_name": "000000000005.jpg", "width": 200, "height": 100},
        ],
        "categories": [{"id": 6, "name": "bus"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 6, "bbox": [10, 20, 30.5, 40], "iscrowd": 0, "area": 1},
            {"id": 2, "image_id": 9, "category_id": 6, "bbox": [0, 0, 5, 5], "iscrowd": 0, "area": 1},
            {"id": 2, "image_id": 9, "category_id": 6, "bbox": [0, 0, 640, 480], "iscrowd": 1, "area": 1},
            {"id": 4, "image_id": 3, "category_id": 6, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 1},
            {"id": 5, "image_id": 3, "category_id": 17, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 1},
        ],
        **changes,
    }


def test_a_map_decides_what_is_asked_and_the_rest_counts_as_unasked(tmp_path):
    path = annotation_file(tmp_path, coco(), baseline={"9": ["bus", "cat", "bus"], "5": ["cat"]})
    first, second, third = read_coco_detection(path)
    answer = '```json\n[{"bbox_2d": [10, 20, 40.5, 60]}, {"bbox_2d": [0, 0, 5, 5]}]\n```'
    assert first["conversations"][1]["value"] == answer
    asked = first["conversations"][0]["value"]
    assert asked.startswith("<image>Detect all objects belonging to the category 'bus' in the image, and provide the")
    assert "'bus' in the image, return 'No Objects'.\nOutput the thinking" in asked
    assert asked.endswith("[{'Position': [x1, y1, x2, y2], 'Confidence': number}, ...]</answer>\nPlease strictly "
                          "follow the format.")  # fmt: skip
    del first["conversations"]
    assert first == {
        "id": "9/bus",
        "image": "000000000009.jpg",
        "image_id": 9,
        "category": "bus",
        "width": 640,
        "height": 480,
        "coordinate_space": "relative_1000",
        "boxes": [[10, 20, 40.5, 60], [0, 0, 5, 5]],
        "crowd_boxes": [[0, 0, 640, 480]],
        "unasked_boxes": 1,  # the bus of image 3, which the map leaves out
        "is_judged": True,
        "is_exhaustive": True,
    }
    assert (second["id"], second["boxes"], second["unasked_boxes"]) == ("9/cat", [], 1)
    assert (third["id"], third["conversations"][1]["value"]) == ("5/cat", "None")


def test_without_a_map_what_is_there_is_asked_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="asking for every category that is there"):
        records = list(read_coco_detection(annotation_file(tmp_path, coco())))
    assert [(record["id"], record["unasked_boxes"]) for record in records] == [
        ("9/bus", 0),
        ("3/bus", 0),
        ("3/cat", 0),
    ]


def test_one_of_several_maps_is_named_by_the_split(tmp_path):
    path = annotation_file(tmp_path, coco(), small={"9": ["bus"]}, large={"3": ["cat"]})
    assert [record["id"] for record in read_coco_detection(path, split="large")] == ["3/cat"]
    with pytest.raises(ValueError, match="name a split: large, small"):
        list(read_coco_detection(path))
    with pytest.raises(ValueError, match=r"no exist_map_huge\.json"):
        list(read_coco_detection(path, split="huge"))


def test_lvis_says_what_was_checked_and_what_is_complete(tmp_path):
    url = "http://images.example/train2017/000000000001.jpg"
    image = {"id": 1, "coco_url": url, "width": 10, "height": 10}
    rules = {"neg_category_ids": [2], "not_exhaustive_category_ids": [3]}
    data = {
        "images": [{**image, **rules}],
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(["die", "omelet", "papaya", "x"], 1)
        ],
        "annotations": [{"id": 1, "image_id": 1, "category_id": place, "bbox": [1, 1, 2, 2]} for place in (1, 3)],
    }
    path = annotation_file(tmp_path, data, lvis={"1": ["die", "omelet", "papaya", "x"]})
    records = list(read_coco_detection(path))
    assert {record["image"] for record in records} == {"train2017/000000000001.jpg"}
    assert [record["is_judged"] for record in records] == [True, True, True, False]
    assert [record["is_exhaustive"] for record in records] == [True, True, False, True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": None}, "lists images, annotations, categories are needed"),
        ({"images": [{"id": 9}]}, "broken entry: KeyError: 'coco_url'"),
        ({"images": [{"id": 9, "file_name": "a", "width": 1}]}, "broken entry: KeyError: 'height'"),
        ({"images": [{"id": 9, "file_name": "a", "width": 1, "height": 1}] * 2}, "two images of the same id"),
        (
            {"categories": [{"id": 6, "name": "bus"}, {"id": 6, "name": "cat"}]},
            "two categories of the same name or id",
        ),
        ({"categories": [{"id": 6, "name": "bus"}]}, "box of the unknown image 3 or category 17"),
        ({"annotations": [{"image_id": 9, "category_id": 6, "bbox": [1, 2, -3, 4]}]}, "a width and a height >= 0"),
        ({"annotations": ["box"]}, "broken entry: AttributeError"),
    ],
)
def test_a_broken_annotation_file_is_named(tmp_path, changes, reason):
    with pytest.raises(ValueError, match=reason):
        list(read_coco_detection(annotation_file(tmp_path, coco(**changes), baseline={})))


@pytest.mark.parametrize(
    ("found", "reason"),
    [({"9": ["horse"]}, "asks for 'horse'"), ({"9": "bus"}, "no existence map"), ({"9": [6]}, "no existence map")],
)
def test_a_map_must_name_known_categories(tmp_path, found, reason):
    with pytest.raises(ValueError, match=reason):
        list(read_coco_detection(annotation_file(tmp_path, coco(), baseline=found)))


# The published parser

BOX = "{'Position': [100, 200, 300, 400], 'Confidence': 0.95}"
FOUND = (64.0, 96.0, 192.0, 192.0, 0.95)  # on 640 x 480: 0.64 and 0.48 pixels to the thousandth
PATCHED = "{'Position': [500, 500, 1000, 1000], 'Confidence': 1}"
SECOND = (320.0, 240.0, 640.0, 480.0, 1.0)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (f"<think>a</think><answer>[{BOX}]</answer>", [FOUND]),
        (f"[{BOX}]", [FOUND]),
        (f"<answer>[{BOX}]</answer><answer>[]</answer>", [FOUND]),  # the first one
        (f"<answer>[[{BOX}]]</answer>", [FOUND]),
        (f"<answer>[\n{BOX}\n, ...]</answer>", [FOUND]),
        (f"<answer>[{PATCHED}, {BOX}]</answer>", [SECOND, FOUND]),
        (f"<answer>[{BOX}, {BOX.replace('0.95', '1')}]</answer>", [FOUND]),  # equal Positions: the first
        (f"[{BOX}, {{'Position': [1, 2", [FOUND]),  # cut off, without tags
        (f"[{BOX}, {PATCHED}, {{'Position': [1, 2", [SECOND, FOUND]),
        (f"<think>a</think><answer>[{BOX}, {{'Posi", []),  # cut off, thinking before it
        (f"<answer>[{BOX}, {{'Position': [1, 2, 3, 4]}}, {PATCHED}]</answer>", [FOUND]),  # no Confidence: the end
        (f"<answer>[{BOX}, {{'Position': [1, 2, 3], 'Confidence': 1}}, {PATCHED}]</answer>", [FOUND]),
        (f"<answer>[{BOX}, {{'Confidence': 1}}]</answer>", []),  # no Position: nothing at all
        (f"<answer>[{BOX}, {{'Position': 3, 'Confidence': 1}}]</answer>", []),
        (f"<answer>[{BOX}, {{'Position': [[1], 2, 3, 4], 'Confidence': 1}}]</answer>", []),
        (f"<answer>[{BOX}, 'none']</answer>", []),
        (f"<answer>```json\n[{BOX}]\n```</answer>", []),
        (f"<answer>{BOX}</answer>", []),  # no list
        ("<answer>[{'label': 'driver's cab', 'Position': [1, 2, 3, 4], 'Confidence': 1}]</answer>", []),  # apostrophe
        ("<answer>No Objects</answer>", []),
        ("<answer>[]</answer>", []),
        ("", []),
    ],
)
def test_visual_rft_reads_its_answers_with_its_repairs(response, expected):
    assert published_boxes(response, (640, 480)) == expected


def test_a_truncated_answer_with_closed_tags_loses_only_its_last_object():
    assert published_boxes(f"<answer>[{BOX}, {{'Position': [1,</answer>", (640, 480)) == [FOUND]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "9" * 400, "9" * 5000, "'x'", "null", "[]"])
def test_a_number_that_is_none_ends_the_list(value):
    for broken in (
        f"'Position': [1, 2, 3, {value}], 'Confidence': 1",
        f"'Position': [1, 2, 3, 4], 'Confidence': {value}",
    ):
        assert published_boxes(f"<answer>[{BOX}, {{{broken}}}, {PATCHED}]</answer>", (640, 480)) in ([FOUND], [])


@pytest.mark.parametrize(
    "response",
    [
        "<answer>" * 100_000,
        "[" * 200_000,
        "<answer>" + "[" * 100_000 + "]" * 100_000 + "</answer>",
        "}," * 300_000,
        "\x00\ud800</answer><answer>",
        "<answer>["
        + ", ".join(f"{{'Position': [0, 0, 9, {n}], 'Confidence': 0.{n}}}" for n in range(20_000))
        + "]</answer>",
    ],
)
def test_hostile_text_gets_a_score_soon(response):
    score = PROTOCOL.score(item(boxes=[[0, 0, 9, 9]]), response, VIEW)
    assert 0 <= score.values["pair_AP50"] <= 1
    assert len(score.detail["published"]) <= 300
    json.dumps(score.detail, allow_nan=False)


# Our own parser


def test_the_strict_reading_takes_the_final_answer_and_wants_it_closed_and_whole():
    assert strict_boxes(f"<think>a</think><answer>[{BOX}]</answer>", (640, 480)) == [FOUND]
    assert strict_boxes("<answer>No Objects</answer>", (640, 480)) == []
    assert strict_boxes(f"[{BOX}]", (640, 480)) is None
    assert strict_boxes(f"<answer>[{BOX}, {{'Posi</answer>", (640, 480)) is None
    apostrophe = '<answer>[{"label": "driver\'s cab", "Position": [100, 200, 300, 400], "Confidence": 0.95}]</answer>'
    assert strict_boxes(apostrophe, (640, 480)) == [FOUND]
    reversed_box = "<answer>[{'Position': [300, 200, 100, 400]}, " + BOX + "]</answer>"
    assert strict_boxes(reversed_box, (640, 480)) == [FOUND, (0.0, 0.0, 0.0, 0.0, 0.0)]


def test_a_reversed_box_costs_the_strict_reading_but_not_the_published_one():
    # One bus found at confidence 0.5 behind a reversed box at 0.9. COCOeval ignores what is unmatched and has a
    # negative area: precision 1 at every recall. As a false positive it leaves 1/2.
    result = totals([item(boxes=[(0, 0, 100, 100)])], [listing((300, 0, 200, 100, 0.9), (0, 0, 100, 100, 0.5))])
    assert result["AP"] == pytest.approx(1, rel=0, abs=1e-12)
    assert result["strict_AP"] == pytest.approx(0.5, rel=0, abs=1e-12)


def test_a_score_says_what_was_read_and_what_the_pair_is_worth():
    bus = item(boxes=[(0, 0, 100, 100)])
    right = PROTOCOL.score(bus, listing((0, 0, 100, 100, 0.9)), VIEW)
    assert set(right.values.values()) == {1.0}
    assert json.loads(right.parsed) == right.detail["published"] == right.detail["strict"] == [[0, 0, 100, 100, 0.9]]
    nothing = {"pair_AP50": 0.0, "parsed": 0.0, "strict_pair_AP50": 0.0, "strict_parsed": 0.0}
    assert PROTOCOL.score(bus, "I see a bus.", VIEW)[:2] == (nothing, None)
    # Where nothing is there, saying nothing readable finds nothing: right to Visual-RFT, not to the strict reading.
    assert PROTOCOL.score(item(), "I see no bus.", VIEW).values == {**nothing, "pair_AP50": 1.0}
    said = PROTOCOL.score(item(), "<answer>No Objects</answer>", VIEW)
    assert (set(said.values.values()), said.parsed) == ({1.0}, "[]")


# Mean AP


def test_the_mean_ap_of_three_images_is_what_it_is_by_hand():
    # Three buses in three images, by confidence: right with IoU 0.8 (80 of 100 rows), wrong, right with IoU exactly
    # 0.5; the third bus is missed. Recalls of 0.01 steps: 34 of 101 up to 1/3, 33 more up to 2/3.
    # IoU 0.50: precisions 1 and 2/3: (34 + 33 · 2/3) / 101 = 56/101. 0.55 .. 0.80: only the first, 34/101. Above: 0.
    items = [item(1, boxes=[(0, 0, 100, 100)]), item(2, boxes=[(0, 0, 100, 100)]), item(3, boxes=[(0, 0, 100, 100)])]
    responses = [listing((0, 0, 100, 80, 0.9), (500, 500, 600, 600, 0.8)), listing((0, 0, 50, 100, 0.7)), "No Objects"]
    result = totals(items, responses)
    assert result["AP50"] == pytest.approx(56 / 101, rel=0, abs=1e-12)
    assert result["AP75"] == pytest.approx(34 / 101, rel=0, abs=1e-12)
    assert result["AP"] == result["AP/bus"] == pytest.approx((56 + 6 * 34) / 1010, rel=0, abs=1e-12)
    assert result["strict_AP"] == result["AP"]


def test_an_overlap_of_exactly_the_threshold_is_a_match():
    # IoU 75/100 passes 0.50 .. 0.75, six of ten; 74/100 the five below.
    for rows, ap75, ap in ((75, 1, 0.6), (74, 0, 0.5)):
        result = totals([item(boxes=[(0, 0, 100, 100)])], [listing((0, 0, 100, rows, 0.9))])
        assert [result["AP50"], result["AP75"], result["AP"]] == pytest.approx([1, ap75, ap], rel=0, abs=1e-12)


def test_equal_confidences_rank_by_image_and_then_as_listed():
    # Right before wrong: precision 1 up to recall 1. Wrong before right: 1/2.
    gold, right, wrong = [(0, 0, 100, 100)], (0, 0, 100, 100, 0.9), (500, 500, 600, 600, 0.9)
    assert totals([item(boxes=gold)], [listing(right, wrong)])["AP"] == pytest.approx(1, rel=0, abs=1e-12)
    assert totals([item(boxes=gold)], [listing(wrong, right)])["AP"] == pytest.approx(0.5, rel=0, abs=1e-12)
    across = [item(2, boxes=gold), item(1)]  # by image id, not by item
    assert totals(across, [listing(right), listing(wrong)])["AP"] == pytest.approx(0.5, rel=0, abs=1e-12)


def test_objects_in_images_that_were_not_asked_are_missed():
    # One of two buses found with precision 1: recalls 0, 0.01 .. 0.50, 51 of 101.
    result = totals([item(boxes=[(0, 0, 9, 9)], unasked_boxes=1)], [listing((0, 0, 9, 9, 1))])
    assert result["AP"] == pytest.approx(51 / 101, rel=0, abs=1e-12)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong():
    bus = item(boxes=[(0, 0, 100, 100)], crowd_boxes=[(500, 500, 900, 900)])
    response = listing((600, 600, 700, 700, 0.9), (510, 510, 520, 520, 0.8), (0, 0, 100, 100, 0.7))
    assert totals([bus], [response])["AP"] == pytest.approx(1, rel=0, abs=1e-12)


def test_the_mean_is_over_the_chosen_categories():
    items = [item(1, "bus", [(0, 0, 9, 9)]), item(1, "cat", [(0, 0, 9, 9)]), item(2, "dog")]
    responses = [listing((0, 0, 9, 9, 1)), "No Objects", listing((0, 0, 9, 9, 1))]
    # bus 1, cat 0, dog has no gold and is left out, bed was never asked for and counts 0
    result = totals(items, responses, ("bus", "cat", "dog", "bed"))
    assert result["AP"] == pytest.approx(1 / 3, rel=0, abs=1e-12)
    assert [name for name in result if name.startswith("AP/")] == ["AP/bus", "AP/cat", "AP/bed"]


def test_without_any_prediction_the_mean_ap_is_zero():
    result = totals([item(boxes=[(0, 0, 9, 9)])], ["No Objects"])
    assert {result[name] for name in ("AP", "AP50", "AP75", "strict_AP")} == {0.0}
    assert totals([], []) == {}
    assert totals([item()], ["No Objects"]) == {}  # nothing to find


def test_samples_are_averaged():
    bus = item(boxes=[(0, 0, 9, 9)])
    scores = [PROTOCOL.score(bus, response, VIEW) for response in (listing((0, 0, 9, 9, 1)), "No Objects")]
    result = mean_precisions([bus], [scores], categories=["bus"], max_detections=100)
    assert result["AP"] == pytest.approx(0.5, rel=0, abs=1e-12)


def test_the_same_question_twice_is_an_error():
    with pytest.raises(ValueError, match="same category in the same image"):
        precisions(Pair(1, "bus", [], []), Pair(1, "bus", [], []))


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    area = max(width, 0) * max(height, 0)
    return area / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - area)


def plain_precision(pairs, threshold):
    """Average precision of one category, written from COCO's description with loops: the independent source."""
    marks = []
    for pair in sorted(pairs, key=lambda pair: pair.image_id):
        free = list(pair.gold)
        for *box, confidence in sorted(pair.found, key=lambda found: -found[4]):
            best = max(free, key=lambda gold: overlap(box, gold), default=None)
            is_hit = best is not None and overlap(box, best) >= threshold
            if is_hit:
                free.remove(best)
            if is_hit or (pair.is_exhaustive and pair.is_judged):
                marks.append((confidence, is_hit))
    hits = np.cumsum([is_hit for _, is_hit in sorted(marks, key=lambda mark: -mark[0])])
    precision = [count / rank for rank, count in enumerate(hits, start=1)]
    total = sum(len(pair.gold) for pair in pairs)
    reached = [
        max((p for p, count in zip(precision, hits) if 100 * count >= step * total), default=0.0)
        for step in range(101)
    ]
    return float(np.mean(reached))


def random_pairs(seed, federated):
    random = np.random.default_rng(seed)

    def boxes(count):
        corners = random.integers(0, 60, (count, 2))
        return np.hstack([corners, corners + random.integers(8, 40, (count, 2))]).tolist()

    pairs = []
    for image_id in range(1, 13):
        gold = boxes(random.integers(0, 4))
        noise = random.integers(-3, 4, (len(gold), 4)).tolist()
        near = [[a + b for a, b in zip(box, shift)] for box, shift in zip(gold, noise)]
        found = [(*box, round(float(random.random()), 3)) for box in [*near, *boxes(random.integers(0, 3))]]
        is_judged = bool(gold) or not federated or random.random() < 0.5
        pairs.append(Pair(image_id, "bus", gold, found, (), is_judged, not federated or random.random() < 0.5))
    return pairs


@pytest.mark.parametrize("federated", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_average_precision_agrees_with_plain_loops(seed, federated):
    pairs = random_pairs(seed, federated)
    found = precisions(*pairs)["bus"]
    levels = np.linspace(0.5, 0.95, 10)
    assert found == pytest.approx([plain_precision(pairs, level) for level in levels], rel=0, abs=1e-12)


def test_mean_ap_is_that_of_pycocotools_on_the_files_of_visual_rft(tmp_path):
    # pycocotools 2.0.11 as its evaluation calls it: COCO(file), loadRes(list of xywh), precision[:, :, k, 0, -1] > -1.
    data = coco()
    path = annotation_file(tmp_path, data, baseline={"9": ["bus"], "3": ["cat"]})
    response = listing((10, 40, 70, 130, 0.9), (500, 500, 600, 600, 0.85), (0, 0, 8, 11, 0.8))
    answers = {"9/bus": response, "3/cat": listing((5, 20, 20, 60, 0.5))}
    results = [
        {"image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for image, category, key, size in ((9, 6, "9/bus", (640, 480)), (3, 17, "3/cat", (200, 100)))
        for x1, y1, x2, y2, score in published_boxes(answers[key], size)
    ]
    for number, one in enumerate(data["annotations"], start=1):
        one["id"] = number
    whole = COCO()
    whole.dataset = data
    whole.createIndex()
    evaluation = COCOeval(whole, whole.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    expected = [float(precision[:, :, k][precision[:, :, k] > -1].mean()) for k in range(2)]
    assert 0 < expected[0] < 1

    records = list(read_coco_detection(path))
    items = [Item(record["id"], "", "", columns=record) for record in records]
    result = totals(items, [answers[one.id] for one in items], ("bus", "cat"))
    assert [result["AP/bus"], result["AP/cat"]] == pytest.approx(expected, rel=0, abs=1e-12)
    assert result["AP"] == pytest.approx(sum(expected) / 2, rel=0, abs=1e-12)


def test_lvis_punishes_only_what_it_knows_to_be_wrong():
    gold, right, wrong = [(0, 0, 10, 10)], (0, 0, 10, 10, 0.5), (50, 50, 60, 60, 0.9)
    seen = Pair(1, "die", gold, [wrong, right])
    assert precisions(seen)["die"][0] == pytest.approx(0.5, rel=0, abs=1e-12)  # 1 right of 2
    # not every die is annotated: the other may be one
    assert precisions(seen._replace(is_exhaustive=False))["die"][0] == pytest.approx(1, rel=0, abs=1e-12)
    only = Pair(1, "die", gold, [right])
    elsewhere = Pair(2, "die", [], [wrong])
    assert precisions(only, elsewhere)["die"][0] == pytest.approx(0.5, rel=0, abs=1e-12)  # known not to be there
    assert precisions(only, elsewhere._replace(is_judged=False))["die"][0] == pytest.approx(1, rel=0, abs=1e-12)


def test_only_the_most_confident_detections_count():
    found = [(50, 50, 60, 60, 0.9), (0, 0, 10, 10, 0.5)]
    assert precisions(Pair(1, "die", [(0, 0, 10, 10)], found), max_detections=1)["die"][0] == 0


# The benchmark


def test_the_benchmarks_ask_for_their_categories_in_visual_rfts_words(tmp_path):
    assert (len(COCO_8), len(set(COCO_15)), len(LVIS_6)) == (8, 15, 6)
    benchmark = DETECTION["coco_8"]
    path = annotation_file(tmp_path, coco(), baseline={"9": ["bus"]})
    (record,) = read_coco_detection(path)
    question = record["conversations"][0]["value"].removeprefix("<image>")
    bus = Item(record["id"], question, "", columns=record, image_size=(640, 480))
    assert benchmark.expand(bus) == [bus]
    assert DETECTION["coco_15"].expand(bus) == DETECTION["lvis_6"].expand(bus) == []
    assert PROTOCOL.prompt(bus, VIEW) == [{"role": "user", "content": f"<image>\n{question}"}]
    assert PROTOCOL.cells(bus) == {"category": "bus"}
    with pytest.raises(ValueError, match=r"is \(480, 640\), annotated as \(640, 480\)"):
        benchmark.expand(Item(record["id"], question, "", columns=record, image_size=(480, 640)))


def test_listed_objects_is_a_list_or_nothing():
    assert listed_objects("[1, 2]") == [1, 2]
    assert listed_objects("{}") == []
    assert published_boxes("[1, 2]", SIZE) == []
    assert math.isclose(published_boxes(f"[{BOX}]", SIZE)[0][0], 100)
