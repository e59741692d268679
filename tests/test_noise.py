"""Label noise: the chosen rows are surely wrong, the others untouched, and smaller ratios are parts of larger ones."""

import json
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from PIL import Image

from vlm_entropy.data.noise import (
    noisy_box,
    noisy_class,
    noisy_number,
    noisy_point,
    noisy_preference,
    number_value,
    select_noisy,
)
from vlm_entropy.data.noise_files import add_noise
from vlm_entropy.data.rows import read_rows
from vlm_entropy.rewards.geometry import iou, point_in_box

RATIOS = (0.0, 0.2, 0.5, 0.8, 1.0)


def write(path, answers, **columns):
    lines = [
        {"id": i, "conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": answer}], **columns}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers_of(path):
    return [row["conversations"][1]["value"] for row in read(path)]


# selection


@pytest.mark.parametrize(("n", "ratio", "count"), [(10, 0.2, 2), (10, 0.25, 2), (10, 0.35, 4), (7, 0.5, 4), (3, 1, 3)])
def test_the_number_of_noisy_rows_is_rounded_half_to_even(n, ratio, count):
    # 2.5 -> 2 and 3.5 -> 4: half to even; 7 * 0.5 = 3.5 -> 4
    chosen = select_noisy(n, ratio, seed=0)
    assert len(chosen) == len(set(chosen)) == count
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(range(n))


def test_smaller_ratios_select_subsets_and_seeds_differ():
    chosen = [set(select_noisy(101, ratio, seed=3)) for ratio in RATIOS]
    assert all(small < large for small, large in pairwise(chosen))
    assert select_noisy(101, 0.5, seed=3) != select_noisy(101, 0.5, seed=4)


def test_every_row_is_as_likely_to_be_chosen():
    counts = Counter(row for seed in range(2000) for row in select_noisy(5, 0.4, seed))
    # 2000 draws of probability 0.4: mean 800, standard deviation 22; 110 is five of them
    assert all(abs(counts[row] - 800) < 110 for row in range(5))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio must be between 0 and 1, got"):
        select_noisy(10, ratio, seed=0)


# boxes


def test_the_only_free_place_is_found():
    # 10 x 4 pixels, box 0..6: a box 6 wide fits nowhere else, so it is cut to the 4 columns on the right
    assert noisy_box((0, 0, 6, 4), (10, 4), Random(0)) == (6, 0, 10, 4)


def test_a_box_that_fits_beside_the_truth_keeps_its_size():
    # 8 x 2 image, truth 0..4: x must be 4, the only position without overlap
    assert noisy_box((0, 0, 4, 2), (8, 2), Random(1)) == (4, 0, 8, 2)


@pytest.mark.parametrize("seed", range(100))
def test_a_wrong_box_lies_in_the_image_and_has_an_iou_of_exactly_0(seed):
    rng = Random(seed)
    width, height = rng.randint(2, 40), rng.randint(2, 40)
    x1, y1 = rng.randint(0, width - 1), rng.randint(0, height - 1)
    truth = (x1, y1, rng.randint(x1 + 1, width), rng.randint(y1 + 1, height))
    if truth == (0, 0, width, height):
        return
    wrong = noisy_box(truth, (width, height), rng)
    assert iou(truth, wrong) == 0.0
    assert 0 <= wrong[0] < wrong[2] <= width
    assert 0 <= wrong[1] < wrong[3] <= height
    assert all(float(edge).is_integer() for edge in wrong)
    if truth[2] - x1 <= width // 4 and truth[3] - y1 <= height // 4:
        assert (wrong[2] - wrong[0], wrong[3] - wrong[1]) == (truth[2] - x1, truth[3] - y1)


@pytest.mark.parametrize("seed", range(30))
def test_fractions_of_pixels_are_no_exception(seed):
    rng = Random(seed)
    truth = (rng.uniform(0, 40), rng.uniform(0, 40), rng.uniform(50, 100), rng.uniform(50, 99))
    wrong = noisy_box(truth, (100, 100), rng)
    assert iou(truth, wrong) == 0.0
    assert min(wrong) >= 0
    assert max(wrong) <= 100


def test_positions_are_uniform_over_the_free_ones():
    # 6 x 1 image, truth 0..1: a box one wide can start at 1, 2, 3, 4 or 5
    counts = Counter(noisy_box((0, 0, 1, 1), (6, 1), Random(seed))[0] for seed in range(2000))
    # mean 400, standard deviation 18; 90 is five of them
    assert set(counts) == {1, 2, 3, 4, 5}
    assert all(abs(count - 400) < 90 for count in counts.values())


def test_the_margins_are_drawn_by_their_area():
    # truth 5..85 of 100 columns: 5 columns are free on the left, 15 on the right, so a quarter of the boxes go left
    counts = Counter(noisy_box((5, 0, 85, 20), (100, 20), Random(seed))[0] for seed in range(200))
    # mean 50, standard deviation sqrt(200 * 0.25 * 0.75) = 6; 25 is four of them
    assert set(counts) == {0, 85}
    assert abs(counts[0] - 50) < 25


def test_all_boxes_of_an_image_are_avoided():
    for seed in range(50):
        wrong = noisy_box((0, 0, 4, 4), (12, 4), Random(seed), others=[(4, 0, 8, 4)])
        assert wrong == (8, 0, 12, 4)


@pytest.mark.parametrize("box", [(0, 0, 101, 10), (-1, 0, 4, 4), (5, 5, 5, 9), (9, 0, 3, 4)])
def test_a_box_that_is_none_inside_the_image_asks_for_absolute_pixels(box):
    with pytest.raises(ValueError, match=r"no box inside an image of 100x50 pixels; .* absolute pixels"):
        noisy_box(box, (100, 50), Random(0))


def test_a_box_around_the_whole_image_cannot_be_made_wrong():
    with pytest.raises(ValueError, match="leaves no room beside it in 10x10 pixels"):
        noisy_box((0, 0, 10, 10), (10, 10), Random(0))


# points


def test_a_wrong_point_lies_outside_the_gold_box_borders_included():
    box = (2, 2, 7, 7)
    for seed in range(200):
        x, y = noisy_point((4, 4), (10, 10), Random(seed), box=box)
        assert not point_in_box((x, y), box)
        assert 0 <= x <= 9
        assert 0 <= y <= 9


def test_without_a_box_a_wrong_point_only_differs():
    # 2 x 1 pixels: (1, 0) is the only other point
    assert {noisy_point((0, 0), (2, 1), Random(seed)) for seed in range(20)} == {(1, 0)}


def test_a_point_that_cannot_be_wrong_or_is_outside_is_refused():
    with pytest.raises(ValueError, match=r"found no wrong point for \[4, 4\] in 10x10"):
        noisy_point((4, 4), (10, 10), Random(0), box=(0, 0, 10, 10))
    with pytest.raises(ValueError, match=r"the point \[40, 4\] lies outside an image of 10x10"):
        noisy_point((40, 4), (10, 10), Random(0))


# classes, numbers, preferences


def test_a_wrong_class_is_uniform_over_the_others():
    counts = Counter(noisy_class("b", ["a", "b", "c", "d", "a", "a"], Random(seed)) for seed in range(3000))
    # a counts once although it is listed three times: mean 1000, standard deviation 26; 130 is five of them
    assert set(counts) == {"a", "c", "d"}
    assert all(abs(count - 1000) < 130 for count in counts.values())


def test_a_lone_class_cannot_be_made_wrong():
    with pytest.raises(ValueError, match="the class 'a' is the only one"):
        noisy_class("a", ["a", "a"], Random(0))


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12), ("-3.50", -3.5), ("1,234", 1234), ("3/4", 0.75), (" +.5 ", 0.5), ("6/4", 1.5)]
)
def test_numbers_are_read_exactly(text, value):
    assert number_value(text) == value


@pytest.mark.parametrize("text", ["", "twelve", "1e5", "12 cm", "1/0", "x = 3", "٣"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="the answer"):
        number_value(text)


def test_a_wrong_number_differs_in_value_not_only_in_writing():
    answers = ["12", "12.0", "24/2", "7", "7", "9"]
    counts = Counter(noisy_number("12", answers, Random(seed)) for seed in range(3000))
    # uniform over rows: 7 stands in two of the three that differ, so 2000 and 1000, standard deviation 26
    assert set(counts) == {"7", "9"}
    assert abs(counts["7"] - 2000) < 130


def test_a_rare_other_number_is_still_found():
    assert noisy_number("1", ["1"] * 100_000 + ["2"], Random(0)) == "2"


def test_equal_numbers_cannot_be_made_wrong():
    with pytest.raises(ValueError, match="every row has the answer '1'"):
        noisy_number("1", ["1", "1.0"], Random(0))


def test_a_preference_is_flipped():
    assert (noisy_preference("1"), noisy_preference("2")) == ("2", "1")
    with pytest.raises(ValueError, match="the preference is 'tie'; allowed are 1 and 2"):
        noisy_preference("tie")


# files


def test_ratios_are_nested_with_the_same_wrong_answers_and_is_noisy_tells_the_truth(tmp_path):
    clean = [f"class {i % 7}" for i in range(50)]
    data = write(tmp_path / "train.jsonl", clean)
    wrong_at: dict[float, dict[int, str]] = {}
    for ratio in RATIOS:
        out = tmp_path / f"{ratio}.jsonl"
        summary = add_noise(data, out, kind="class", ratio=ratio, seed=1)
        rows = read(out)
        changed = {i: new for i, (old, new) in enumerate(zip(clean, answers_of(out), strict=True)) if old != new}
        assert [row["is_noisy"] for row in rows] == [i in changed for i in range(50)]
        assert (summary.rows, summary.noisy, len(changed)) == (50, 50 * ratio, 50 * ratio)
        wrong_at[ratio] = changed
    for small, large in pairwise(RATIOS):
        assert wrong_at[small].items() <= wrong_at[large].items()


def test_the_same_arguments_write_the_same_bytes_and_another_seed_does_not(tmp_path):
    data = write(tmp_path / "train.jsonl", [str(i) for i in range(40)])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        add_noise(data, tmp_path / name, kind="number", ratio=0.5, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_only_the_answer_and_is_noisy_change(tmp_path):
    data = write(tmp_path / "train.jsonl", ["1", "2"], note="größer", response="<answer>1</answer>")
    add_noise(data, tmp_path / "out.jsonl", kind="preference", ratio=1, seed=0)
    for old, new in zip(read(data), read(tmp_path / "out.jsonl"), strict=True):
        old["conversations"][1]["value"] = {"1": "2", "2": "1"}[old["conversations"][1]["value"]]
        assert new == old | {"is_noisy": True}


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 32)).save(tmp_path / "images" / "a.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("[4, 8, 12, 16]", str),
        ("<answer>[4, 8, 12, 16]</answer>", str),
        ([4, 8, 12, 16], list),
        ({"bbox_2d": [4, 8, 12, 16], "label": "cat"}, dict),
    ],
)
def test_boxes_in_every_form_move_and_the_rest_of_the_answer_stays(tmp_path, picture, answer, kind):
    data = write(tmp_path / "train.jsonl", [answer], image="a.png")
    summary = add_noise(data, tmp_path / "o.jsonl", kind="box", ratio=1, seed=0, image_folder=picture)
    (new,) = answers_of(tmp_path / "o.jsonl")
    text = new if isinstance(new, str) else json.dumps(new)
    box = json.loads(text[text.index("[") : text.index("]") + 1])
    assert isinstance(new, kind)
    assert text.replace(str(box), "[4, 8, 12, 16]") == (answer if isinstance(answer, str) else json.dumps(answer))
    assert (box[2] - box[0], box[3] - box[1]) == (8, 8)
    assert iou((4, 8, 12, 16), tuple(box)) == 0.0
    assert summary.overlaps == [0.0]
    assert str(summary).splitlines()[:2] == [
        "1 of 1 labels (100.0%) of kind box are wrong now",
        "mean IoU of wrong and true boxes: 0.000",
    ]
    rows, _ = read_rows(str(tmp_path / "o.jsonl"), str(picture))
    assert rows[0].columns["is_noisy"] is True


def test_every_box_of_a_detection_answer_avoids_all_true_ones(tmp_path, picture):
    truth = [[0, 0, 16, 32], [16, 0, 32, 32]]
    answer = json.dumps([{"bbox_2d": box, "label": "cat"} for box in truth])
    data = write(tmp_path / "train.jsonl", [answer], image="a.png")
    add_noise(data, tmp_path / "o.jsonl", kind="box", ratio=1, seed=0, image_folder=picture)
    found = json.loads(answers_of(tmp_path / "o.jsonl")[0])
    assert [item["label"] for item in found] == ["cat", "cat"]
    assert all(item["bbox_2d"][0] >= 32 for item in found)


def test_a_photo_on_its_side_is_measured_upright(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(picture / "side.jpg", exif=exif)  # shown as 32 x 64
    data = write(tmp_path / "train.jsonl", ["[0, 0, 32, 60]"], image="side.jpg")
    add_noise(data, tmp_path / "o.jsonl", kind="box", ratio=1, seed=0, image_folder=picture)
    assert json.loads(answers_of(tmp_path / "o.jsonl")[0]) == [0, 60, 32, 64]


@pytest.mark.parametrize(("answer", "form"), [("[4, 5]", "[]"), ("(4, 5)", "()"), ("{'coordinate': [4, 5]}", "[]")])
def test_points_keep_their_form_and_leave_the_gold_box(tmp_path, picture, answer, form):
    data = write(tmp_path / "train.jsonl", [answer], image="a.png", target=[0, 0, 60, 32])
    add_noise(data, tmp_path / "o.jsonl", kind="point", ratio=1, seed=0, image_folder=picture, box_column="target")
    (new,) = answers_of(tmp_path / "o.jsonl")
    inside = new[new.index(form[0]) + 1 : new.index(form[1])]
    x, y = map(int, inside.split(", "))
    assert new == answer.replace("4, 5", inside)
    assert 60 < x <= 63
    assert 0 <= y <= 31


@pytest.mark.parametrize(
    ("kind", "answers", "columns", "sentence"),
    [
        ("box", ["[0, 0, 64, 32]"], {"image": "a.png"}, "train.jsonl:1: the box .* leaves no room"),
        ("box", ["[0, 0, 900, 900]"], {"image": "a.png"}, "train.jsonl:1: .* absolute pixels of the file"),
        ("box", ["nowhere"], {"image": "a.png"}, "train.jsonl:1: the answer 'nowhere' holds no box"),
        (
            "box",
            ["[0, 0, 4, 4]"],
            {"image": "b.png"},
            r"train.jsonl:1: .* does not exist\. The image folder",
        ),
        ("box", ["[0, 0, 4, 4]"], {}, "train.jsonl:1: image is None; boxes and points need one image"),
        ("point", ["none"], {"image": "a.png"}, "train.jsonl:1: the answer 'none' holds no point"),
        ("class", ["cat", "cat"], {}, "train.jsonl:1: the class 'cat' is the only one"),
        ("number", ["4", "four"], {}, "train.jsonl:[12]: the answer 'four' is no number"),
        ("preference", ["A"], {}, "train.jsonl:1: the preference is 'A'; allowed are 1 and 2"),
        ("preference", [""], {}, "train.jsonl:1: conversations is .*; a question and an answer are needed"),
        ("class", ["a", "b"], {"is_noisy": False}, "train.jsonl:1: the row has a column is_noisy already"),
        ("colour", ["a"], {}, "kind is 'colour'; allowed are box, point, class, number, preference"),
    ],
)
def test_a_label_that_cannot_be_made_wrong_is_named_and_nothing_is_written(
    tmp_path, picture, kind, answers, columns, sentence
):
    data = write(tmp_path / "train.jsonl", answers, **columns)
    with pytest.raises(ValueError, match=sentence):
        add_noise(data, tmp_path / "o.jsonl", kind=kind, ratio=1, seed=0, image_folder=picture)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "train.jsonl"]


def test_lines_that_are_no_rows_and_files_that_exist_are_refused(tmp_path):
    data = tmp_path / "train.jsonl"
    for text, sentence in (("{", "train.jsonl:1: not JSON"), ("\n[1]", "train.jsonl:2: the row is"), ("", "no row")):
        data.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            add_noise(data, tmp_path / "o.jsonl", kind="class", ratio=0.5, seed=0)
    with pytest.raises(ValueError, match="out must be a new file"):
        add_noise(data, data, kind="class", ratio=0.5, seed=0)
    with pytest.raises(ValueError, match="does not exist"):
        add_noise(tmp_path / "none", tmp_path / "o.jsonl", kind="class", ratio=0.5, seed=0)
    with pytest.raises(ValueError, match="box_column is 'b', but only the kind point"):
        add_noise(data, tmp_path / "o.jsonl", kind="class", ratio=0.5, seed=0, box_column="b")


def test_shapes_with_noise_are_still_rows_for_the_trainer(tmp_path, shapes):
    summary = add_noise(
        shapes / "train.jsonl", tmp_path / "o.jsonl", kind="box", ratio=0.5, seed=0, image_folder=shapes / "images"
    )
    rows, _ = read_rows(str(tmp_path / "o.jsonl"), str(shapes / "images"))
    assert sum(row.columns["is_noisy"] for row in rows) == summary.noisy == 16
    assert set(summary.overlaps) == {0.0}
    assert len(summary.examples) == 3
