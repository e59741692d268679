"""Detection: the parser of lists of boxes, average precision by hand and by an independent loop, and exploits."""

import itertools
import json
import random
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing import quickest

from vlm_entropy.rewards.detection import (
    average_precision,
    detection_ap50_reward,
    detection_ap_reward,
    detection_confidence_reward,
    detection_iou_reward,
    detection_length_reward,
    detection_weighted_reward,
    match,
    pairwise_iou,
)
from vlm_entropy.rewards.geometry import iou
from vlm_entropy.rewards.labelled_boxes import (
    MAX_CHARACTERS,
    MAX_DETECTIONS,
    NO_BOX,
    Detection,
    find_detections,
    find_fence,
)

ALL = [
    detection_ap_reward,
    detection_ap50_reward,
    detection_length_reward,
    detection_weighted_reward,
    detection_iou_reward,
    detection_confidence_reward,
]
CAT, CAT2, DOG, FAR = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [70, 70, 80, 80]


def listed(*entries):
    return [
        {"bbox_2d": box, "label": label} | ({"Confidence": rest[0]} if rest else {}) for box, label, *rest in entries
    ]


def score(reward, found, gold, image_size=(100, 100), **columns):
    text = found if isinstance(found, str) else f"<answer>{json.dumps(found)}</answer>"
    gold = gold if isinstance(gold, str) else json.dumps(gold)
    columns = {name: [value] for name, value in columns.items()}
    return reward([text], [gold], [image_size], **columns)[0]


TWO_CATS = listed((CAT, "cat"), (CAT2, "cat"))


def test_average_precision_without_confidences_by_hand():
    # both found, one box too many: recall 1, precision 2/3
    found = [*TWO_CATS, *listed((FAR, "cat"))]
    assert score(detection_ap_reward, found, TWO_CATS) == pytest.approx(2 / 3, abs=1e-12)
    # one of two found: precision 1 at the 51 recalls 0, 0.01, ..., 0.50
    assert score(detection_ap_reward, TWO_CATS[:1], TWO_CATS) == pytest.approx(51 / 101, abs=1e-12)
    # and with one wrong: precision 1/2 there
    assert score(detection_ap_reward, [TWO_CATS[0], *listed((FAR, "cat"))], TWO_CATS) == pytest.approx(
        51 / 202, abs=1e-12
    )


def test_average_precision_with_confidences_by_hand():
    # right 0.9, wrong 0.8, right 0.7: (recall, precision) (1/2, 1), (1/2, 1/2), (1, 2/3)
    found = listed((CAT2, "cat", 0.7), (FAR, "cat", 0.8), (CAT, "cat", 0.9))
    assert score(detection_ap_reward, found, TWO_CATS) == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
    # one without confidence: none counts, one point (1, 2/3)
    del found[0]["Confidence"]
    assert score(detection_ap_reward, found, TWO_CATS) == pytest.approx(2 / 3, abs=1e-12)


def test_an_iou_of_four_fifths_passes_seven_of_ten_thresholds():
    found = listed(([0, 0, 10, 8], "cat"))
    assert score(detection_ap_reward, found, listed((CAT, "cat"))) == pytest.approx(0.7, abs=1e-12)
    assert score(detection_ap50_reward, found, listed((CAT, "cat"))) == 1.0
    assert score(detection_ap50_reward, listed(([0, 0, 10, 4], "cat")), listed((CAT, "cat"))) == 0.0


def test_labels_are_averaged_over_the_gold_and_compared_without_case():
    gold = listed((CAT, "cat"), (DOG, "dog"))
    assert score(detection_ap_reward, listed((CAT, " Cat")), gold) == 0.5
    assert score(detection_ap_reward, listed((CAT, "dog"), (DOG, "cat")), gold) == 0.0


def test_a_label_that_is_not_in_the_gold_is_a_false_positive_of_every_label():
    gold = listed((CAT, "cat"), (DOG, "dog"))
    assert score(detection_ap_reward, [*gold, *listed((FAR, "unicorn"))], gold) == 0.5
    assert score(detection_ap_reward, [*gold, *listed((CAT, "unicorn"))], gold) == 0.5


def test_a_second_box_on_the_same_object_is_a_false_positive():
    gold = listed((CAT, "cat"))
    assert score(detection_ap_reward, gold * 2, gold) == 0.5
    assert score(detection_length_reward, gold * 2, gold) == 0.25  # 0.5 · 1/2
    assert score(detection_iou_reward, gold * 4, gold) == 0.25


def test_the_order_of_listing_decides_nothing():
    gold = listed((CAT, "cat"), (CAT2, "cat"), ([4, 0, 14, 10], "cat"), (DOG, "dog"))
    found = listed(([2, 0, 12, 10], "cat"), (CAT, "cat"), (FAR, "cat"), ([41, 0, 51, 10], "dog"))
    for confidences in (None, [0.5, 0.5, 0.9, 0.5]):
        if confidences:
            found = [entry | {"Confidence": value} for entry, value in zip(found, confidences)]
        for reward in ALL:
            values = {round(score(reward, list(order), gold), 12) for order in itertools.permutations(found)}
            assert len(values) == 1


def _coco_ap(found, gold, threshold):
    """COCO's evaluation of one label written as plain loops: greedy by confidence, envelope, 101 recalls."""
    order = sorted(range(len(found)), key=lambda row: -found[row][1])
    taken, hits = set(), []
    for row in order:
        best, chosen = threshold, None
        for column, box in enumerate(gold):
            if column not in taken and iou(found[row][0], box) >= best:
                best, chosen = iou(found[row][0], box), column
        if chosen is not None:
            taken.add(chosen)
        hits.append(chosen is not None)
    curve = [(sum(hits[: n + 1]) / len(gold), sum(hits[: n + 1]) / (n + 1)) for n in range(len(hits))]
    total = 0.0
    for step in range(101):
        total += max([p for r, p in curve if r >= step / 100 - 1e-12], default=0.0)
    return total / 101


def test_average_precision_with_distinct_confidences_is_cocos():
    rng = random.Random(0)
    seen = set()
    for _ in range(200):
        gold = [(x, y, x + 10.0, y + 10.0) for x, y in [(rng.uniform(0, 30), rng.uniform(0, 30)) for _ in range(5)]]
        shifts = [(rng.choice(gold), rng.gauss(0, 2), rng.gauss(0, 2)) for _ in range(rng.randint(1, 9))]
        boxes = [(a + dx, b + dy, c + dx, d + dy) for (a, b, c, d), dx, dy in shifts]
        ranks = [rng.random() for _ in boxes]
        for threshold in (0.5, 0.75):
            ours = average_precision(pairwise_iou(boxes, gold), ranks, threshold)
            assert ours == pytest.approx(_coco_ap(list(zip(boxes, ranks)), gold, threshold), rel=0, abs=1e-12)
            seen.add(round(ours, 6))
    assert len(seen) > 20


def test_pairwise_iou_is_iou():
    rng = random.Random(1)
    boxes = [
        tuple(rng.choice([0.0, 1.0, 2.5, 7.0, -3.0, float("nan"), 1e300, -1e300]) for _ in range(4)) for _ in range(60)
    ]
    expected = [[iou(a, b) for b in boxes] for a in boxes]
    np.testing.assert_allclose(pairwise_iou(boxes, boxes), expected, rtol=0, atol=1e-12)


def test_the_weighted_sum_by_hand():
    gold = listed((CAT, "cat"), (DOG, "dog"))
    # one match of IoU 0.8: 0.7 · 0.8 / 2 + 0.3 · (1/2 + 1/2) / 2
    found = listed(([0, 0, 10, 8], "cat"), (FAR, "dog"))
    assert score(detection_weighted_reward, found, gold) == pytest.approx(0.28 + 0.15, abs=1e-12)
    assert score(detection_weighted_reward, gold, gold) == pytest.approx(1.0, abs=1e-12)
    assert score(detection_weighted_reward, "<answer>None</answer>", gold) == 0.0


def test_visual_rfts_rewards_by_hand():
    gold = "<answer>[{'Position': [0, 0, 10, 10], 'Confidence': 1}, {'Position': [20, 0, 30, 10]}]</answer>"
    entries = ["'Position': [0, 0, 10, 8], 'Confidence': 0.9", "'Position': [70, 70, 80, 80], 'Confidence': 0.2"]
    found = f"<answer>[{{{entries[0]}}}, {{{entries[1]}}}, {{'Position': [71, 70, 80, 80]}}]</answer>"
    # IoU 0.8 of one match over max(3, 2); c 0.9, 1 - 0.2, and 0 without confidence, over 3
    assert score(detection_iou_reward, found, gold) == pytest.approx(0.8 / 3, abs=1e-12)
    assert score(detection_confidence_reward, found, gold) == pytest.approx(1.7 / 3, abs=1e-12)
    # an IoU of exactly one half is no match
    half = "<answer>[{'Position': [0, 0, 10, 5], 'Confidence': 1}]</answer>"
    assert score(detection_iou_reward, half, gold) == 0.0


def test_boxes_anywhere_with_confidence_zero_earn_nothing():
    assert score(detection_confidence_reward, listed((FAR, "cat", 0.0)), listed((CAT, "cat"))) == 0.0


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.__name__)
class TestEvery:
    def test_an_empty_gold_wants_an_explicit_nothing(self, reward):
        for gold in ("None", "[]", "```json\n[]\n```", "No Objects"):
            for said in ("None", "[]", "no objects.", "```json\n[]\n```", '"None"'):
                assert score(reward, f"<answer>{said}</answer>", gold) == 1.0
            for said in ("nothing to see", "", "{}", "null", "[[]]"):
                assert score(reward, f"<answer>{said}</answer>", gold) == 0.0
            assert score(reward, "there are none", gold) == 0.0
            assert score(reward, listed((CAT, "cat", 0.0)), gold) == 0.0

    def test_the_right_answer_scores_one_and_nothing_scores_zero(self, reward):
        gold = listed((CAT, "cat", 1.0), (DOG, "dog", 1.0))
        assert score(reward, gold, gold) == pytest.approx(1.0, abs=1e-12)
        assert score(reward, f"<answer>```json\n{json.dumps(gold)}\n```</answer>", gold) == pytest.approx(
            1.0, abs=1e-12
        )
        assert score(reward, "<answer>None</answer>", gold) == 0.0
        assert score(reward, json.dumps(gold), gold) == 0.0

    def test_boxes_are_converted_from_the_space_of_their_row(self, reward):
        gold = listed(([0, 0, 100, 50], "cat", 1.0))
        found = listed(([0, 0, 500, 250], "cat", 1.0))
        size = {"image_size": (200, 200)}
        assert score(reward, found, gold, **size, coordinate_space="relative_1000") == pytest.approx(1.0, abs=1e-12)
        assert score(reward, found, gold, **size) == 0.0
        resized = listed(([0, 0, 50, 100], "cat", 1.0))
        columns = {"coordinate_space": "absolute_resized", "input_size": (100, 400)}
        assert score(reward, resized, gold, **size, **columns) == 1.0
        assert score(reward, gold, found, **size, solution_space="relative_1000") == pytest.approx(1.0, abs=1e-12)

    def test_four_nans_in_a_fence_earn_nothing(self, reward):
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "true", "null", '"1"', "[1]"):
            box = ", ".join([value] * 4)
            text = f'<answer>```json[{{"bbox_2d": [{box}], "label": "cat", "Confidence": 1}}]```</answer>'
            assert score(reward, text, listed((CAT, "cat"))) == 0.0

    def test_a_missing_or_wrong_label_earns_no_more_than_a_wrong_one(self, reward):
        gold = listed((CAT, "cat"), (DOG, "dog"))
        wrong = score(reward, listed((CAT, "cat"), (DOG, "cow")), gold)
        for label in (None, 5, ["dog"], {"a": 1}):
            assert score(reward, listed((CAT, "cat"), (DOG, label)), gold) <= wrong

    def test_a_gold_that_is_no_list_of_boxes_cannot_be_judged(self, reward):
        for gold in (
            "a cat",
            "",
            '[{"bbox_2d": [10, 10, 0, 0], "label": "cat"}]',
            "[1, 2, 3, 4]",
            "[{}]",
            [{**TWO_CATS[0]}, {}],
        ):
            assert score(reward, TWO_CATS, gold) is None
        assert score(reward, TWO_CATS, TWO_CATS, image_size=None) is None

    def test_a_list_that_is_too_long_is_malformed_and_takes_no_time(self, reward):
        assert score(reward, TWO_CATS * 2000, TWO_CATS) == 0.0
        assert quickest(lambda: score(reward, TWO_CATS * 2000, TWO_CATS), limit=0.05) < 0.05

    def test_the_longest_list_takes_less_than_fifty_milliseconds(self, reward):
        longest = [
            {"bbox_2d": [row, 0, row + 9.5, 10], "label": "cat", "Confidence": row / 200}
            for row in range(MAX_DETECTIONS)
        ]
        assert 0.0 <= score(reward, longest, longest) <= 1.0
        assert quickest(lambda: score(reward, longest, longest), limit=0.05) < 0.05

    @given(text=st.text(max_size=300) | st.text(alphabet="[]{}'\"\\:,0123456789.eNa bx_dPostin`", max_size=80))
    @settings(max_examples=60, deadline=None)
    def test_any_text_scores_in_range(self, reward, text):
        assert 0.0 <= score(reward, f"<answer>{text}</answer>", TWO_CATS) <= 1.0
        gold = score(reward, TWO_CATS, text)
        assert gold is None or 0.0 <= gold <= 1.0

    @given(
        found=st.lists(
            st.dictionaries(
                st.sampled_from(["bbox_2d", "Position", "label", "Confidence"]),
                st.recursive(
                    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, min_size=4, max_size=4),
                    max_leaves=5,
                ),
            ),
            max_size=8,
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_any_list_of_objects_scores_in_range(self, reward, found):
        assert 0.0 <= score(reward, found, TWO_CATS) <= 1.0

    @pytest.mark.parametrize(
        "bait",
        ["[", "{", "'", '"', "\\", "```json", "```", '{"bbox_2d":', "[{'a':'", "9", "<answer>", "'\\", "[[1,2,3,4],"],
    )
    def test_bait_takes_less_than_fifty_milliseconds(self, reward, bait):
        for size in (MAX_CHARACTERS - 100, 99_000):
            text = bait * (size // len(bait))
            for found in (text, f"<answer>{text}</answer>", f"<answer>{text}"):
                assert score(reward, found, TWO_CATS) == 0.0
                assert quickest(partial(score, reward, found, TWO_CATS), limit=0.05) < 0.05


def test_either_kind_of_quotes_and_apostrophes_are_read():
    assert find_detections("[{'bbox_2d': [0, 0, 1, 1], 'label': \"dog's bed\"}]")[0].label == "dog's bed"
    assert find_detections("[{'bbox_2d': [0, 0, 1, 1], 'label': 'dog\\'s \"bed\"'}]")[0].label == 'dog\'s "bed"'
    assert find_detections('{"bbox_2d": [0, 0, 1, 1]}') == [Detection((0.0, 0.0, 1.0, 1.0), None, None)]


def test_entries_without_a_box_count_as_detections():
    found = find_detections('[{"bbox_2d": [0, 0, 1, 1], "label": "a"}, {"label": "b"}, 5, null]')
    assert [one.box for one in found[1:]] == [NO_BOX] * 3


def test_the_last_closed_fence_counts():
    assert find_fence("```json a``` then ```json b``` end") == " b"
    assert find_fence("```json a") is None
    assert find_fence("```json a``` ```") is None


def test_kinds_are_logged():
    logged = {}
    texts = [
        "no",
        "<answer>no</answer>",
        f"<answer>{json.dumps(listed(([0, 0, 200, 9], 'cat')))}</answer>",
        "<answer>[]</answer>",
    ]
    detection_ap_reward(texts, [json.dumps(TWO_CATS)] * 4, [(100, 100)] * 4, log_metric=logged.__setitem__)
    kinds = ("no_answer", "malformed", "out_of_image", "parsed")
    assert logged == {f"detection_ap_reward/{kind}": 0.25 for kind in kinds}


def test_the_matching_has_most_pairs_even_where_fewer_overlap_more():
    # (0, 0) and (1, 1) sum to 2, the three others to 1.5
    overlap = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.5, 0.0, 0.0]])
    assert sorted(match(overlap, 0.5)) == [(0, 1), (1, 2), (2, 0)]
    assert sorted(match(overlap, 0.6)) == [(0, 0), (1, 1)]


def test_what_is_no_box_no_confidence_and_no_list():
    for number in ("true", "1e9", "-1e12", "1e999", "NaN"):
        found = find_detections(f'[{{"bbox_2d": [0, 0, 5, {number}]}}, {{"bbox_2d": [0, 0, 5, 5]}}]')
        assert [one.box is NO_BOX for one in found] == [True, False]
    for confidence, read in (("1", 1.0), ("0", 0.0), ("1.01", None), ("-0.1", None), ("true", None), ('"1"', None)):
        found = find_detections(f'[{{"Position": [0, 0, 5, 5], "Confidence": {confidence}}}]')
        assert found[0].confidence == read
    assert find_detections("[{}]") is None
    entry = '{"bbox_2d":[0,0,5,5]}'
    assert len(find_detections(f"[{','.join([entry] * MAX_DETECTIONS)}]")) == MAX_DETECTIONS
    assert find_detections(f"[{','.join([entry] * (MAX_DETECTIONS + 1))}]") is None
