"""Visual-RFT's sets: classes and detection, from `save_to_disk` folders and parquet files."""

import json

import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from loader_files import embedded, lines, png
from PIL import Image

from vlm_entropy.data.loaders.visual_rft import (
    detection_record,
    find_positions,
    read_visual_rft_classes,
    read_visual_rft_detection,
    to_pixels,
)
from vlm_entropy.rewards import detection_confidence_reward, detection_iou_reward

DETECT = (
    "Detect all objects belonging to the category '{0}' in the image, and provide the bounding boxes.\n"
    "If no object belonging to the category '{0}' in the image, return 'No Objects'."
)
FEATURES = Features({"image": ImageFeature(), "problem": Value("string"), "solution": Value("string")})


def dataset(*rows):
    return Dataset.from_list(
        [{"image": embedded(image), "problem": problem, "solution": solution} for image, problem, solution in rows],
        features=FEATURES,
    )


def value(record, turn):
    return record["conversations"][turn]["value"]


def fence(*objects):
    return f"```json\n{json.dumps(list(objects))}\n```"


def test_classes_are_read_from_a_saved_dataset_dict_with_their_image_bytes_untouched(tmp_path):
    image = png()
    rows = dataset(
        (image, "<image>\nWhich aircraft?", "<answer>707-320</answer>"), (image, "Which pet?", "basset_hound")
    )
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "set")
    records = list(read_visual_rft_classes(str(tmp_path / "set")))
    assert records == [
        {
            "id": number,
            "image": image,
            "conversations": [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}],
        }
        for number, (question, answer) in enumerate([("Which aircraft?", "707-320"), ("Which pet?", "basset_hound")])
    ]


@pytest.mark.parametrize("solution", ["<answer>cat", "cat</answer>", "<answer> </answer>", ""])
def test_a_class_without_a_whole_answer_is_refused_with_its_row(tmp_path, solution):
    rows = dataset((png(), "Which?", "<answer>dog</answer>"), (png(), "Which?", solution))
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"row 2 of .*solution is '{solution}'|row 2 of .*solution is ' '"):
        list(read_visual_rft_classes(str(tmp_path / "set"), split="train"))


def test_detection_is_read_from_parquet_with_boxes_in_pixels_of_each_image(tmp_path):
    path = tmp_path / "train.parquet"
    wide, tall = png(640, 480), png(100, 300)
    two = "[{'Position': [100, 250, 500, 750], 'Confidence': 1}, {'Position': [0, 0, 1000, 1000], 'Confidence': 1}]"
    one = '<answer>[{"Position": [333, 1, 334, 2], "Confidence": 1.0}]</answer>'
    dataset((wide, DETECT.format("hot dog"), two), (tall, DETECT.format("horse_buggy"), one)).to_parquet(path)
    first, second = read_visual_rft_detection(str(path))
    # 0.1*640 = 64, 0.25*480 = 120, 0.5*640 = 320, 0.75*480 = 360
    assert value(first, 1) == fence(
        {"bbox_2d": [64, 120, 320, 360]},
        {"bbox_2d": [0, 0, 640, 480]},
    )
    # 0.333*100 = 33.3, 0.001*300 = 0.3, 0.334*100 = 33.4, 0.002*300 = 0.6
    assert value(second, 1) == fence({"bbox_2d": [33.3, 0.3, 33.4, 0.6]})
    assert value(first, 0) == "<image>" + DETECT.format("hot dog")
    assert [record["category"] for record in (first, second)] == ["hot dog", "horse_buggy"]
    assert [record["id"] for record in (first, second)] == [0, 1]
    assert first["coordinate_space"] == "relative_1000"
    assert first["image"] == wide


@pytest.mark.parametrize("solution", ["No Objects", "<answer>No Objects</answer>", "[]", "None"])
def test_no_object_is_the_answer_none(solution):
    row = {"image": "a.jpg", "problem": DETECT.format("dog"), "solution": solution}
    assert value(detection_record(row, (10, 10)), 1) == "None"


def test_an_image_that_is_a_path_is_measured_below_the_image_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(200, 100))
    row = {"image": "a.png", "problem": DETECT.format("dog"), "solution": "[{'Position': [500, 500, 1000, 1000]}]"}
    path = lines(tmp_path / "rows.jsonl", row)
    (record,) = read_visual_rft_detection(path, images=str(tmp_path / "images"))
    assert record["image"] == "a.png"
    assert value(record, 1) == fence({"bbox_2d": [100, 50, 200, 100]})
    with pytest.raises(ValueError, match=r"row 1 of .*the image 'a.png' cannot be read"):
        list(read_visual_rft_detection(path))


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_that_exif_turns_is_refused_because_its_boxes_are_ambiguous(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.parquet"
    dataset((png(exif=exif), DETECT.format("dog"), "[]")).to_parquet(path)
    with pytest.raises(ValueError, match=f"row 1 of .*the embedded image has the EXIF orientation {orientation}"):
        list(read_visual_rft_detection(str(path)))


@pytest.mark.parametrize("images", [[], ["a.png", "b.png"]])
def test_a_row_needs_exactly_one_image(tmp_path, images):
    row = {"image": images, "problem": DETECT.format("dog"), "solution": "[]"}
    with pytest.raises(ValueError, match=rf"row 1 of .*the row has {len(images)} images; one is needed"):
        list(read_visual_rft_detection(lines(tmp_path / "rows.jsonl", row)))


def test_a_box_that_rounding_made_empty_stays_in_its_place():
    assert to_pixels([500, 500, 500, 501], (200, 1000)) == [100, 500, 100, 501]


@pytest.mark.parametrize(
    ("position", "reason"),
    [
        ([1, 2, 3], "4 numbers are needed"),
        ([0, 0, 1, 1001], "numbers from 0 to 1000"),
        ([-1, 0, 1, 1], "numbers from 0 to 1000"),
        ([0, 0, 1, float("nan")], "4 numbers"),
        ([0, 0, 1, True], "4 numbers"),
        (["0", "0", "1", "1"], "4 numbers"),
        ("0 0 1 1", "4 numbers"),
        ([2, 0, 1, 1], "x1 <= x2 and y1 <= y2"),
        ([0, 2, 1, 1], "x1 <= x2 and y1 <= y2"),
    ],
)
def test_a_position_that_is_no_box_on_the_scale_is_refused(position, reason):
    with pytest.raises(ValueError, match=f"Position is .*{reason}"):
        to_pixels(position, (10, 10))


@pytest.mark.parametrize(
    "solution",
    [
        "[{'Position': [0, 0, 1, 1]",
        "[" * 99_999,
        "dog",
        "{'Position': [0, 0, 1, 1]}",
        "{}",
        "3",
        "[{'Box': []}]",
        "[1]",
    ],
)
def test_a_solution_that_is_no_list_of_positions_is_refused(solution):
    with pytest.raises(ValueError, match=r"solution is .*a list of objects"):
        find_positions(solution)


@pytest.mark.parametrize("problem", ["Detect all dogs.", None])
def test_a_problem_that_names_no_category_is_refused(problem):
    with pytest.raises(ValueError, match=r"problem is .*must name the category"):
        detection_record({"image": "a.jpg", "problem": problem, "solution": "[]"}, (10, 10))


def test_a_category_may_hold_an_apostrophe():
    row = {"image": "a.jpg", "problem": DETECT.format("bull's eye"), "solution": "[]"}
    assert detection_record(row, (10, 10))["category"] == "bull's eye"


def test_the_first_category_that_is_named_counts_though_the_line_names_it_again():
    problem = "Detect the category 'cat' in the image; without the category 'cat' in the image, say so."
    assert detection_record({"image": "a.jpg", "problem": problem, "solution": "[]"}, (10, 10))["category"] == "cat"


def test_a_category_keeps_its_own_letters():
    row = {"image": "a.jpg", "problem": DETECT.format("piñata"), "solution": "[{'Position': [0, 0, 1000, 1000]}]"}
    assert detection_record(row, (10, 10))["category"] == "piñata"


def test_an_answer_in_the_form_that_the_question_asks_for_earns_full_marks():
    row = {"image": "a.jpg", "problem": DETECT.format("dog"), "solution": "[{'Position': [100, 250, 500, 750]}]"}
    record = detection_record(row, (640, 480))
    columns = {"image_size": [(640, 480)], "coordinate_space": [record["coordinate_space"]]}
    answer = "<answer>[{'Position': [100, 250, 500, 750], 'Confidence': 0.9}]</answer>"
    assert detection_iou_reward([answer], [value(record, 1)], **columns) == [1.0]
    assert detection_confidence_reward([answer], [value(record, 1)], **columns) == [0.9]


@pytest.mark.parametrize("read", [read_visual_rft_classes, read_visual_rft_detection])
def test_a_file_has_no_splits_so_none_can_be_asked_for(tmp_path, read):
    with pytest.raises(ValueError, match="is one file, without splits; leave out split 'test'"):
        list(read(lines(tmp_path / "a.jsonl", {}), split="test"))


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="no column 'solution'; the columns are image, problem"):
        detection_record({"image": "a.jpg", "problem": DETECT.format("dog")}, (10, 10))
