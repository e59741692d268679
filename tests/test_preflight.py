"""The preflight: each defect is found and named, good data passes, and the numbers are those worked by hand."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)
from transformers import AutoConfig, AutoProcessor
from trl import TrlParser

from vlm_entropy import rewards
from vlm_entropy.data import check_prompt_fits, get_family, prompt_tokens, read_rows, set_pixel_limits, to_example
from vlm_entropy.data.preflight import CheckArguments, check, run
from vlm_entropy.data.preflight.lengths import expert_text
from vlm_entropy.data.preflight.memory import (
    ModelSize,
    Setup,
    Tower,
    device_bytes,
    lora_parameters,
    model_size,
    sampling_bytes,
    state_bytes,
    training_bytes,
)
from vlm_entropy.data.preflight.picture import contact_sheet, picture_of, places_of, spaced
from vlm_entropy.data.preflight.places import (
    GoldBox,
    boxes_in,
    convert_boxes,
    other_space,
    pixels_outside,
    rounding_iou,
)
from vlm_entropy.data.preflight.report import change_of_scale, listed, percentile, read_image_file
from vlm_entropy.data.preflight.rewards import good_completions, reads_gold, rewards_section
from vlm_entropy.rewards.choices import choice_reward
from vlm_entropy.rewards.detection import detection_confidence_reward
from vlm_entropy.rewards.formats import boxed_format_reward
from vlm_entropy.rewards.gui import gui_action_name_reward, gui_coordinate_reward, gui_text_reward
from vlm_entropy.rewards.maths import boxed_math_reward
from vlm_entropy.rewards.pointing import box_centre_reward, point_in_box_reward
from vlm_entropy.rewards.vlm_r1 import accuracy_reward

QWEN, INTERNVL = get_family("qwen2_5_vl"), get_family("internvl")


def record(image, answer, *, question="Find it.", **columns):
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    return {**({"image": image} if image else {}), "conversations": turns, **columns}


def write_rows(path, *records):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in records))
    return str(path)


def paint(path, size, *, colour="white", **options):
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def pictures(tmp_path):
    """A folder with images of 64x32 pixels: a.png, its copy b.png, c.png, and one turned by EXIF, turned.jpg."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paint(folder / "a.png", (64, 32), colour="red")
    shutil.copy(folder / "a.png", folder / "b.png")
    paint(folder / "c.png", (64, 32), colour="blue")
    exif = Image.Exif()
    exif[0x0112] = 6
    paint(folder / "turned.jpg", (32, 64), exif=exif)
    return folder


@pytest.fixture
def arguments(tmp_path, pictures, tiny_model):
    """The arguments for some rows; `held_out` may be rows too."""

    def build(*records, held_out=None, **changes):
        options = {
            "data": write_rows(tmp_path / "train.jsonl", *records),
            "model": str(tiny_model),
            "images": str(pictures),
            "task_type": "plain",
            "max_completion_length": 16,
            **changes,
        }
        if held_out is not None:
            options["held_out"] = write_rows(tmp_path / "heldout.jsonl", *held_out)
        return CheckArguments(**options)

    return build


GOOD = [record("a.png", "[8, 8, 24, 24]"), record("c.png", "[0, 0, 64, 32]", question="Find all.")]


def section(report, title):
    """The lines of one section, stripped."""
    lines = report.splitlines()
    start = next(i for i, line in enumerate(lines) if line[:1].isdigit() and title in line)
    rest = lines[start + 1 :]
    end = next((i for i, line in enumerate(rest) if not line.startswith("   ")), len(rest))
    return [line.strip() for line in rest[:end]]


def last_line(report):
    return report.splitlines()[-1]


def test_good_data_may_train(arguments):
    report, may_start = check(arguments(*GOOD))
    assert may_start
    assert last_line(report) == "Training may start."
    assert "Warning" not in report
    assert [line for line in report.splitlines() if line[0].isdigit()] == [
        "1. Rows",
        "2. Images",
        "3. Tokens",
        "4. Coordinates",
        "5. Duplicates",
        "6. Rewards",
        "7. Batch, and memory of one device (an estimate, in GiB)",
    ]


def test_the_synthetic_task_may_train(shapes, tiny_model):
    folder = str(shapes / "images")
    options = {"images": folder, "model": str(tiny_model), "expert_column": "response", "task_type": "plain"}
    report, may_start = check(
        CheckArguments(data=str(shapes / "train.jsonl"), held_out=str(shapes / "heldout.jsonl"), **options)
    )
    assert may_start
    assert section(report, "Coordinates")[1] == "inside the image: 32, outside by up to 1 pixel: 0, further: 0"
    assert section(report, "Coordinates")[-1] == "IoU after rounding to whole numbers there: min 1.000, mean 1.000"
    assert section(report, "Duplicates")[2:] == [
        "held out: 8 rows",
        "held-out rows with an image of a training row: 0",
        "held-out rows with the images and the question of a training row: 0",
    ]


def test_each_kind_of_row_is_counted(arguments):
    rows = [record("a.png", "[8, 8, 24, 24]"), record(["a.png", "c.png"], "two"), record(None, "4", question="2+2?")]
    report, may_start = check(arguments(*rows))
    assert section(report, "Rows") == [
        "rows: 3, bad ones: 0",
        "text only: 1 row",
        "1 image: 1 row",
        "2 images: 1 row",
    ]
    assert "cannot judge 2;" in section(report, "Rewards")[0]
    assert may_start


def test_bad_rows_are_listed_and_stop_training(arguments, pictures, tmp_path):
    whole = (pictures / "c.png").read_bytes()
    noise = Image.effect_noise((64, 64), 50)
    noise.save(pictures / "damaged.png")
    damaged = bytearray((pictures / "damaged.png").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF  # in the middle, so that only decoding finds it
    (pictures / "damaged.png").write_bytes(damaged)
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad = [record("gone.png", "[1, 2, 3, 4]"), record("damaged.png", "x"), record("cut.png", "x"), "not json\n"]
    report, may_start = check(arguments(GOOD[0], *bad))
    lines = section(report, "Rows")
    assert not may_start
    assert last_line(report) == "Training may not start: rows that cannot be used: 4."
    assert lines[0] == "rows: 5, bad ones: 4"
    path = tmp_path / "train.jsonl"
    assert lines[1] == f"bad: {path}:2: the image '{pictures / 'gone.png'}' does not exist."
    for number, line in enumerate(lines[2:5], start=3):
        assert line.startswith(f"bad: {path}:{number}: ")
    assert "damaged.png" in lines[2]


def test_at_most_twenty_bad_rows_are_listed(arguments):
    report, _ = check(arguments(GOOD[0], *["not json\n"] * 23))
    lines = section(report, "Rows")
    assert sum(line.startswith("bad: ") for line in lines) == 21
    assert "bad: 3 more" in lines
    assert last_line(report) == "Training may not start: rows that cannot be used: 23."


def test_without_a_usable_row_the_first_reason_is_the_error(arguments):
    with pytest.raises(ValueError, match=r"train\.jsonl:1: the image '.*gone\.png' does not exist\."):
        check(arguments(record("gone.png", "[1, 2, 3, 4]")))


def test_images_are_measured_upright_and_turned_ones_are_counted(arguments):
    report, may_start = check(arguments(record("a.png", "[0, 0, 8, 8]"), record("turned.jpg", "[0, 0, 64, 32]")))
    assert section(report, "Images") == [
        "image files, all decoded: 2, different ones: 2",
        "width: min 64, median 64, max 64 pixels",
        "height: min 32, median 32, max 32 pixels",
        "different sizes: 1",
        "the processor shrinks 0 and enlarges 0 of them",
        "turned by EXIF: 1",
    ]
    assert "Warning: images turned upright by EXIF, on which boxes must be measured upright too: 1." in report
    assert may_start


def test_equal_files_count_as_one_image(arguments):
    report, _ = check(arguments(record("a.png", "[0, 0, 8, 8]"), record("b.png", "[0, 0, 8, 8]", question="Other.")))
    assert section(report, "Images")[0] == "image files, all decoded: 2, different ones: 1"


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_file_is_turned_if_its_exif_says_so(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    paint(tmp_path / f"x.{suffix}", (8, 4), exif=exif)
    assert read_image_file(str(tmp_path / f"x.{suffix}")).is_turned == (orientation != 1)


def test_exif_after_the_picture_of_a_png_counts(tmp_path):
    paint(tmp_path / "x.png", (8, 4))
    content = (tmp_path / "x.png").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    paint(tmp_path / "y.png", (8, 4), exif=exif)
    turned = (tmp_path / "y.png").read_bytes()
    start = turned.index(b"eXIf") - 4
    chunk = turned[start : start + 12 + int.from_bytes(turned[start : start + 4], "big")]
    end = content.index(b"IEND") - 4
    (tmp_path / "late.png").write_bytes(content[:end] + chunk + content[end:])
    assert read_image_file(str(tmp_path / "late.png")).is_turned


@pytest.mark.parametrize(
    ("size", "limits", "change"),
    [
        ((64, 32), (256, 16384), 0),
        # 40 / 16 = 2.5 rounds to 2: rounding alone is no change of scale
        ((40, 40), (256, 16384), 0),
        ((320, 160), (256, 16384), -1),
        ((32, 16), (4096, 16384), 1),
    ],
)
def test_qwen_changes_the_scale_at_its_limits_only(tiny_model, size, limits, change):
    processor = AutoProcessor.from_pretrained(tiny_model)
    set_pixel_limits(processor, min_pixels=limits[0], max_pixels=limits[1])
    assert change_of_scale(size, family=QWEN, processor=processor) == change


class Tiles:
    """An InternVL processor that cuts a given number of tiles of 32x32, with the thumbnail, of 16 tokens each."""

    image_seq_length = 16

    def __init__(self, tiles):
        self.image_processor = self
        self.size = {"height": 32, "width": 32}
        self.tiles = tiles

    def get_number_of_image_patches(self, height, width, options):
        return self.tiles


# 2 tiles and a thumbnail hold 2 · 32 · 32 = 2048 pixels
@pytest.mark.parametrize(("size", "change"), [((64, 32), 0), ((65, 32), -1), ((63, 32), 1)])
def test_internvl_changes_the_scale_by_its_tiles(size, change):
    assert change_of_scale(size, family=INTERNVL, processor=Tiles(3)) == change
    assert change_of_scale((32, 32), family=INTERNVL, processor=Tiles(1)) == 0


def test_percentiles_are_nearest_ranks():
    # of 1..20, 95 % are at most 19 and half are at most 10
    assert [percentile(range(20, 0, -1), share) for share in (0.01, 0.5, 0.95, 1.0)] == [1, 10, 19, 20]
    assert percentile([7], 0.5) == 7


def test_a_long_list_of_sources_is_cut():
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_rows_that_do_not_fit_are_the_ones_that_training_refuses(arguments, tiny_model):
    context = AutoConfig.from_pretrained(tiny_model).get_text_config().max_position_embeddings
    processor = AutoProcessor.from_pretrained(tiny_model)
    long = record("a.png", "[8, 8, 24, 24]", question="Find it. " * 20)
    built = arguments(GOOD[0], long)
    rows, _ = read_rows(built.data, built.images)
    (short_length, _), (long_length, images) = (
        prompt_tokens(row, family=QWEN, processor=processor, task_type="plain") for row in rows
    )
    assert images == 8  # 64x32 pixels in cells of 16x16
    for room, fits in ((long_length, True), (long_length - 1, False)):
        report, may_start = check(arguments(GOOD[0], long, max_completion_length=context - room))
        refused = check_prompt_fits(
            rows,
            family=QWEN,
            processor=processor,
            task_type="plain",
            max_completion_length=context - room,
            context_length=context,
        )
        assert may_start == fits == (not refused)
        lines = section(report, "Tokens")
        assert lines[0] == (
            f"prompt with image tokens: min {short_length}, median {short_length}, 95 % {long_length}, "
            f"max {long_length}"
        )
        assert lines[1] == "image tokens: min 8, median 8, 95 % 8, max 8"
        if not fits:
            assert lines[-1] == f"do not fit: {refused[0].source}"
            assert last_line(report) == "Training may not start: rows that do not fit into the context: 1."


def test_experts_are_measured_with_their_box_and_the_end_of_the_turn(arguments, tiny_model):
    tokenizer = AutoProcessor.from_pretrained(tiny_model).tokenizer
    text = "<think>top</think><answer>{box}</answer>"
    length = len(tokenizer("<think>top</think><answer>[8, 8, 24, 24]</answer>")["input_ids"]) + 1
    rows = [record("a.png", "[8, 8, 24, 24]", expert=text), record("c.png", "[0, 0, 8, 8]", question="Or?")]
    for limit, cut in ((length, False), (length - 1, True)):
        report, may_start = check(arguments(*rows, expert_column="expert", max_completion_length=limit))
        assert may_start
        line = f"expert, in 1 row: min {length}, median {length}, 95 % {length}, max {length}"
        assert line in section(report, "Tokens")
        assert ("experts longer than max_completion_length, which would be cut: 1" in report) == cut


@pytest.mark.parametrize(
    ("expert", "reason"),
    [
        (None, "no row has an expert"),
        (" ", "no row has an expert"),
        ({"text": "hm"}, "rows with an expert that is no response: 1"),
        ("at {box}", "rows with an expert that is no response: 1"),
    ],
)
def test_experts_that_training_refuses_stop_it(arguments, expert, reason):
    row = record("a.png", "red", expert=expert)
    report, may_start = check(arguments(row, expert_column="expert", reward_funcs=["format"]))
    assert not may_start
    assert reason in last_line(report)


def test_an_expert_is_text_or_a_chat_of_one_message():
    assert expert_text("at {box}", "[1, 2, 3, 4]") == "at [1, 2, 3, 4]"
    assert expert_text([{"role": "assistant", "content": "yes"}], None) == "yes"
    assert expert_text([{"role": "assistant", "content": [{"type": "text", "text": "yes"}]}], None) == "yes"
    assert expert_text([], None) == expert_text(None, None) == ""
    assert expert_text([{"role": "user", "content": "yes"}], None) is None


@pytest.mark.parametrize(
    ("box", "distance"),
    [
        ((0, 0, 640, 480), 0),
        ((-2, 0, 643, 480), 3),
        ((0, -5, 10, 10), 5),
        ((-5, 0, 10, 10), 5),
        ((0, 0, 10, 481.5), 1.5),
        ((641, 5, 0, 2), 1),
    ],
)
def test_distance_outside_the_image(box, distance):
    assert pixels_outside(box, (640, 480)) == distance


def test_boxes_up_to_one_pixel_outside_pass_and_others_stop_training(arguments):
    rows = [record("a.png", f"[0, 0, {x}, 32]", question=f"Find {x}.") for x in (64, 65, 66)]
    report, may_start = check(arguments(*rows))
    lines = section(report, "Coordinates")
    assert lines[0] == "3 boxes in 3 rows, read as absolute"
    assert lines[1] == "inside the image: 1, outside by up to 1 pixel: 1, further: 1"
    assert lines[2].endswith("train.jsonl:3")
    assert not may_start
    assert last_line(report) == "Training may not start: gold boxes more than 1 pixel outside the image: 1."


def test_another_space_is_a_hint_and_no_choice(arguments):
    rows = [record("a.png", "[500, 500, 1000, 1000]"), record("c.png", "[0, 0, 900, 900]")]
    report, may_start = check(arguments(*rows))
    hint = "2 of 2 if they were in relative_1000 and 0 of 2 if they were in relative_1"
    assert f"hint: inside the image would be {hint}; --solution_space is yours to say" in report
    assert not may_start
    report, may_start = check(arguments(*rows, solution_space="relative_1000"))
    assert "hint" not in report
    assert may_start


def gold(box, size=(100, 100)):
    return GoldBox("a.jsonl:1", box, size, size)


def test_boxes_within_one_pixel_look_like_shares():
    assert other_space([gold((0, 0, 1, 0.5))], "absolute") == "all numbers lie in 0..1, as in relative_1"
    assert other_space([gold((0, 0, 1, 0.5)), gold((0, 0, 2, 2))], "absolute") is None
    assert other_space([gold((0, 0, 1, 0.5))], "relative_1") is None


def test_one_box_of_twenty_outside_is_no_reason_for_a_hint():
    inside, outside = gold((0, 0, 50, 50)), gold((0, 0, 200, 200))
    assert other_space([outside, *[inside] * 19], "absolute") is None
    assert other_space([outside, *[inside] * 18], "absolute") is not None


def test_reversed_and_empty_boxes_are_a_warning(arguments):
    rows = [GOOD[0], record("c.png", "[20, 8, 10, 24]"), record("c.png", "[8, 8, 8, 24]", question="Or?")]
    report, may_start = check(arguments(*rows))
    assert "of zero or reversed size: " in report
    assert "Warning: gold boxes of zero or reversed size, which no reward can judge: 2." in report
    assert "1 of 1 row that it judges; cannot judge 2;" in section(report, "Rewards")[0]
    assert may_start


def test_rounding_loses_what_the_whole_numbers_cannot_say():
    # Image 2000x2000, thousandths: [3, 0, 9, 2000] -> [1.5, 0, 4.5, 1000] -> [2, 0, 4, 1000] (to even) -> x 4..8;
    # the overlap is 4 of the 6 pixels from 3 to 9
    box = GoldBox("a.jsonl:1", (3, 0, 9, 2000), (2000, 2000), (2000, 2000))
    assert rounding_iou(box, family=INTERNVL, solution_space="absolute") == pytest.approx(4 / 6, rel=1e-12)
    # Qwen2.5-VL sees 1000x1000 of it, so it rounds alike; at full size nothing is lost
    half = box._replace(input_size=(1000, 1000))
    assert rounding_iou(half, family=QWEN, solution_space="absolute") == pytest.approx(4 / 6, rel=1e-12)
    assert rounding_iou(box, family=QWEN, solution_space="absolute") == 1.0


def test_boxes_too_small_for_whole_numbers_are_a_warning(arguments, pictures):
    paint(pictures / "wide.png", (2048, 1024))
    report, may_start = check(arguments(record("wide.png", "[3, 3, 5, 5]")))
    assert section(report, "Coordinates")[-1].startswith("IoU after rounding to whole numbers there: min 0.000")
    assert "Warning: gold boxes too small for whole numbers, which leave them an IoU below 0.5: 1." in report
    assert section(report, "Images")[4] == "the processor shrinks 1 and enlarges 0 of them"
    assert may_start


def test_all_boxes_of_a_text_are_found_and_replaced():
    text = 'a [1, 2, 3, 4] [5] {"b": [[5, 6, 7, 8]]} [1, 2, 3]'
    assert boxes_in(text) == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert convert_boxes(text, lambda box: f"<{box[0]:.0f}>") == 'a <1> [5] {"b": [<5>]} [1, 2, 3]'


def test_repetition_contradiction_and_overlap_are_warnings(arguments):
    rows = [
        record("a.png", "[0, 0, 8, 8]"),
        record("b.png", "[0, 0, 8, 8]"),
        record("b.png", "[8, 8, 16, 16]"),
        record("a.png", "[0, 0, 8, 8]", question="Another question."),
    ]
    held_out = [
        record("b.png", "[0, 0, 8, 8]"),
        record("a.png", "[0, 0, 8, 8]", question="Unseen."),
        record("c.png", "[0, 0, 8, 8]"),
        "not json\n",
    ]
    report, may_start = check(arguments(*rows, held_out=held_out))
    lines = section(report, "Duplicates")
    assert lines[:2] == [
        "rows with the images and the question of an earlier row: 2",
        "questions with different answers: 1",
    ]
    assert lines[3:6] == [
        "held out: 3 rows",
        "held-out rows with an image of a training row: 2",
        "held-out rows with the images and the question of a training row: 1",
    ]
    assert [line.rpartition("/")[2] for line in lines[6].split(", ")] == ["heldout.jsonl:1", "heldout.jsonl:2"]
    assert "Warning: held-out rows that cannot be used: 1." in report
    assert "Warning: questions on equal images with different answers: 1." in report
    assert "Warning: rows that repeat the images and the question of an earlier one: 2." in report
    assert "Warning: held-out rows that share images or questions with the training rows: 2." in report
    assert may_start


def test_the_order_of_images_tells_rows_apart(arguments):
    rows = [record(["a.png", "c.png"], "one"), record(["c.png", "a.png"], "two")]
    report, _ = check(arguments(*rows, reward_funcs=["format"]))
    assert section(report, "Duplicates")[0].endswith(": 0")


@pytest.fixture
def example(pictures, tiny_model):
    """The example of a row on a.png, 64x32."""
    processor = AutoProcessor.from_pretrained(tiny_model)

    def build(answer, *, family=QWEN, image="a.png", **columns):
        path = write_rows(pictures / "row.jsonl", record(image, answer, **columns))
        (row,), _ = read_rows(path, str(pictures))
        return row, to_example(row, family=family, processor=processor, task_type="plain")

    return build


def outcome(reward, *built, family=QWEN):
    rows, examples = zip(*built, strict=True)
    return rewards_section({"reward": reward}, rows, examples)


@pytest.mark.parametrize("family", [QWEN, INTERNVL])
@pytest.mark.parametrize(
    ("reward", "answer", "columns"),
    [
        (rewards.iou_reward, "[8, 8, 24, 24]", {}),
        (rewards.iou_reward, "[8.3, 8.1, 24.7, 24.9]", {}),
        (rewards.iou_reward, "[1, 1, 2, 2]", {}),
        (point_in_box_reward, "[1, 1, 2, 2]", {}),
        (box_centre_reward, "[1, 1, 2, 2]", {}),
        (choice_reward, "B", {}),
        (boxed_math_reward, "\\frac{1}{2}", {}),
        (gui_action_name_reward, "[1, 1, 2, 2]", {}),
        (gui_action_name_reward, "home", {"action": "navigate_back"}),
        (gui_coordinate_reward, "[1, 1, 2, 2]", {"action": "click"}),
        (gui_coordinate_reward, "up", {"action": "scroll"}),
        (gui_text_reward, "hello", {"action": "input_text", "input_text": 'say "hé"'}),
        (accuracy_reward, "[8, 8, 24, 24]", {"accu_reward_method": "all_match"}),
        (detection_confidence_reward, '```json\n[{"bbox_2d": [8, 8, 24, 24], "label": "Cat"}]\n```', {}),
        (detection_confidence_reward, "None", {}),
    ],
)
def test_a_right_answer_earns_full_marks_in_some_writing(example, family, reward, answer, columns):
    result = outcome(reward, example(answer, family=family, **columns), family=family)
    assert result.lines == [
        "reward: full mark for the gold answer in 1 of 1 row that it judges; cannot judge 0; "
        "pays for an empty answer in 0"
    ]
    assert not result.failures


def test_an_answer_is_written_in_each_way(example):
    _, built = example("[8, 8, 24.1, 24]", family=INTERNVL)
    # 8/64 and 24.1/64 of 1000 are 125 and 376.5625, 8/32 and 24/32 are 250 and 750; the centre of the first two is
    # 250.78125, of the others 500
    action = '[{"action": "click", "coordinate": [250.78125, 500]}]'
    answers = ["[125, 250, 377, 750]", "[125, 250, 376.5625, 750]", "[8, 8, 24.1, 24]", "[250.78125, 500]", action]
    think = "<think>Here is the answer.</think>"
    expected = [*(f"{think}<answer>{answer}</answer>" for answer in answers), f"{think}\\boxed{{[8, 8, 24.1, 24]}}"]
    assert [text for text in good_completions(built) if "Confidence" not in text] == expected


def half_marks(completions, solution, **kwargs):
    return [0.5 if "[" in completion[-1]["content"] else 0.0 for completion in completions]


def generous(completions, solution, **kwargs):
    return [1.0] * len(completions)


def generous_to_tags(completions, solution, **kwargs):
    return [float("<answer>" in completion[-1]["content"]) for completion in completions]


def never(completions, solution, **kwargs):
    return [None] * len(completions)


@pytest.mark.parametrize(
    ("reward", "failures"),
    [
        (half_marks, ["gold answers to which reward gives less than full marks: 2"]),
        (generous, ["empty answers that reward pays for: 2"]),
        (generous_to_tags, ["empty answers that reward pays for: 2"]),
        (never, ["reward can judge no row"]),
    ],
)
def test_a_reward_that_pays_wrongly_stops_training(example, reward, failures):
    result = outcome(reward, example("[8, 8, 24, 24]"), example("[0, 0, 8, 8]"))
    assert result.failures == failures


def test_a_low_score_is_shown_with_its_row(example):
    lines = outcome(half_marks, example("[8, 8, 24, 24]")).lines
    assert lines[1].endswith("row.jsonl:1: 0.500 for the gold answer '[8, 8, 24, 24]'")
    assert outcome(generous, example("x")).lines[1].endswith("row.jsonl:1: 1.000 for an empty answer")


def test_a_wrong_reward_ends_the_program_with_code_one(arguments, monkeypatch, capsys):
    monkeypatch.setitem(rewards.REWARDS, "half", half_marks)
    with pytest.raises(SystemExit) as stop:
        run(arguments(*GOOD, reward_funcs=["half"]))
    assert stop.value.code == 1
    assert last_line(capsys.readouterr().out.rstrip()) == (
        "Training may not start: gold answers to which half gives less than full marks: 2."
    )


def test_good_data_end_the_program_as_usual(arguments):
    assert last_line(run(arguments(*GOOD))) == "Training may start."


def own_reward(completions, solution, **kwargs):
    raise AssertionError("must not be called")


def test_rewards_of_the_user_and_rewards_without_gold_are_not_called(arguments, monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "blind", boxed_format_reward)
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    report, may_start = check(arguments(*GOOD, reward_funcs=["blind", "mine:own_reward"]))
    assert section(report, "Rewards") == [
        "blind: reads no gold answer, so it is not called",
        "mine:own_reward: your own, so it is not called",
    ]
    assert may_start


def test_rewards_that_read_gold_are_known_by_their_columns():
    from vlm_entropy.rewards.agreement import empo_point_reward, majority_text_reward, random_reward
    from vlm_entropy.rewards.shaping import SoftOverlong, length_reward, repetition_reward

    blind = [empo_point_reward, majority_text_reward, random_reward, length_reward, repetition_reward]
    blind += [SoftOverlong(max_length=8, cache=2), rewards.format_reward]
    assert not any(map(reads_gold, blind))
    assert all(map(reads_gold, [rewards.iou_reward, gui_text_reward, accuracy_reward, detection_confidence_reward]))


def test_nothing_is_sent_to_a_judge_model(example, monkeypatch):
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:1")
    monkeypatch.setattr("vlm_entropy.rewards.vlm_r1.judge_with_llm", lambda *texts: pytest.fail("asked"))
    result = outcome(accuracy_reward, example("red", accu_reward_method="llm"), example("red"))
    assert "1 of 1 row that it judges; cannot judge 1;" in result.lines[0]
    assert not result.failures


# A tower of width 100 and feed-forward 200 keeps 8 · 100 + 4 · 200 = 1600 numbers per token and layer.
MODEL = ModelSize(
    parameters=1000,
    trained=1000,
    is_adapter=False,
    text=Tower(100, 200, 10),
    vision=Tower(50, 100, 4),
    key_value_width=20,
    vocabulary=500,
    patches_per_token=4,
)
ADAPTED = ModelSize(**{**vars(MODEL), "trained": 100, "is_adapter": True})
SETUP = Setup(
    weight_bytes=4,
    zero_stage=0,
    num_processes=1,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=3,
    gradient_checkpointing=False,
    beta=0.0,
    prompt_tokens=30,
    image_tokens=10,
    completion_tokens=20,
)


def setup(**changes):
    return Setup(**{**vars(SETUP), **changes})


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        # float32: 4 bytes a weight and a gradient, two moments of 4
        (MODEL, {}, (4000, 4000, 8000, 0)),
        (MODEL, {"weight_bytes": 2, "beta": 0.1}, (2000, 2000, 4000, 2000)),
        # DDP: the buckets are a second copy of the gradients
        (MODEL, {"num_processes": 4}, (4000, 8000, 8000, 0)),
        # ZeRO-2 over 4: 2 bytes a weight, 2 / 4 a gradient, 12 / 4 of states; the reference is whole
        (MODEL, {"num_processes": 4, "zero_stage": 2, "beta": 0.1}, (2000, 500, 3000, 2000)),
        (MODEL, {"num_processes": 4, "zero_stage": 3, "beta": 0.1}, (500, 500, 3000, 500)),
        # LoRA: 1000 + 100 weights, 100 gradients; the reference is the model without its adapters
        (ADAPTED, {"beta": 0.1}, (4400, 400, 800, 0)),
        (ADAPTED, {"num_processes": 4, "zero_stage": 3}, (550, 50, 300, 0)),
    ],
)
def test_states_by_hand(model, changes, expected):
    assert tuple(state_bytes(model, setup(**changes)).values()) == expected


def test_activations_and_logits_by_hand():
    # 2 rows of 50 tokens: 100 tokens · 10 layers · 1600 numbers · 2 bytes = 3 200 000
    # 2 rows of 10 · 4 patches: 80 · 4 layers · (8 · 50 + 4 · 100) · 2 bytes = 512 000
    # 2 rows of 20 completion tokens · 500 words · 10 bytes = 200 000
    assert training_bytes(MODEL, SETUP) == {"activations": 3_712_000, "logits": 200_000}
    # 100 · (1600 + 10 · 100) · 2 = 520 000 and 80 · (800 + 4 · 50) · 2 = 160 000
    assert training_bytes(MODEL, setup(gradient_checkpointing=True))["activations"] == 680_000


def test_keys_and_values_by_hand():
    # keys and values: 2 · 2 bytes · 2 · 3 rows · 50 tokens · 10 layers · 20 = 240 000
    assert sampling_bytes(MODEL, SETUP) == {"keys and values": 240_000, "gathered weights": 0}
    shared = setup(zero_stage=3, num_processes=4)
    assert sampling_bytes(MODEL, shared)["gathered weights"] == 2000  # 1000 weights of 2 bytes
    assert sampling_bytes(MODEL, setup(zero_stage=3))["gathered weights"] == 0  # one device has them anyway


def test_a_device_holds_the_states_and_the_larger_of_training_and_sampling():
    assert device_bytes(MODEL, SETUP) == 16_000 + 3_912_000
    many = setup(gradient_accumulation_steps=300)  # 100 times the rows: 24 000 000 bytes of keys and values
    assert device_bytes(MODEL, many) == 16_000 + 24_000_000


def test_lora_parameters_by_hand():
    shapes = [("a.q_proj", 8, 16), ("a.k_proj", 8, 4), ("b.q_proj", 8, 16), ("b.not_q_proj", 8, 16)]
    assert lora_parameters(shapes, rank=2, targets=["q_proj"]) == 2 * (2 * 24)
    assert lora_parameters(shapes, rank=2, targets=["q_proj", "k_proj"]) == 2 * (2 * 24 + 12)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "glm4v"])
def test_parameters_and_sizes_are_those_of_the_saved_model(model_type, tmp_path):
    from safetensors import safe_open

    from vlm_entropy.data.tiny import build_tiny_vlm

    folder = build_tiny_vlm(model_type, tmp_path / "model", hidden_size=32)
    with safe_open(folder / "model.safetensors", "pt") as file:
        counts = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    config, family = AutoConfig.from_pretrained(folder), get_family(model_type)
    size = model_size(config, family=family)
    assert size.parameters == size.trained == sum(counts.values())
    # GLM's tower has its output's width, the text's, as its feed-forward width.
    assert (size.text, size.vision) == (Tower(32, 64, 2), Tower(32, 32 if model_type == "glm4v" else 64, 2))
    assert (size.key_value_width, size.patches_per_token) == (32, 4)  # two heads of 16; 2x2 patches
    frozen = sum(count for name, count in counts.items() if family.vision_module in name)
    assert 0 < frozen < size.parameters
    assert model_size(config, family=family, freeze_vision=True).trained == size.parameters - frozen
    # the language model's q and v projections, 32 -> 32 in each of two layers: 2 · 2 · 4 · (32 + 32)
    adapted = model_size(config, family=family, freeze_vision=True, lora=(4, ["q_proj", "v_proj"]))
    assert (adapted.trained, adapted.is_adapter) == (1024, True)
    with pytest.raises(ValueError, match="No linear layer is called w_q"):
        model_size(config, family=family, lora=(4, ["w_q"]))


def test_a_reference_model_shows_in_the_report(arguments):
    assert "reference" not in check(arguments(*GOOD))[0]
    assert "reference" in check(arguments(*GOOD, beta=0.04))[0]
    report = check(arguments(*GOOD, beta=0.04, use_peft=True))[0]
    assert "reference" not in report
    assert "LoRA adapters trained" in report


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_generations": 3}, "8 completions are sampled at once, no multiple of num_generations 3"),
        ({"num_generations": 2}, "a batch takes 4 different prompts, the data has 2 rows"),
        (
            {"num_processes": 2, "gradient_accumulation_steps": 3, "num_generations": 2},
            "a batch takes 24 different prompts, the data has 2 rows",
        ),
    ],
)
def test_a_batch_that_training_refuses_stops_it(arguments, changes, reason):
    report, may_start = check(arguments(*GOOD, **changes))
    assert not may_start
    assert last_line(report) == f"Training may not start: {reason}."


def test_reasons_are_listed_together(arguments):
    rows = [GOOD[0], "not json\n", record("c.png", "[0, 0, 90, 32]")]
    assert last_line(check(arguments(*rows))[0]) == (
        "Training may not start: rows that cannot be used: 1; gold boxes more than 1 pixel outside the image: 1."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere"}, "--model '/nowhere' is no vision-language model that can be used"),
        ({"data": "nowhere.jsonl"}, "The data file 'nowhere.jsonl' does not exist."),
        ({"reward_funcs": ["fomat"]}, "Unknown reward 'fomat'"),
        ({"task_type": "reck"}, "Unknown task type 'reck'"),
        ({"max_anyres_num": 4}, "cuts no tiles"),
        ({"num_generations": 1}, "num_generations must be at least 2, got 1."),
        ({"num_processes": 0}, "num_processes must be at least 1, got 0."),
        ({"beta": -1.0}, r"beta must be at least 0, got -1\.0\."),
    ],
)
def test_bad_options_are_one_sentence(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        check(arguments(*GOOD, **changes))


def test_pixel_limits_count(arguments):
    report, _ = check(arguments(*GOOD, max_pixels=512))
    assert section(report, "Images")[4] == "the processor shrinks 2 and enlarges 0 of them"
    assert section(report, "Tokens")[1] == "image tokens: min 2, median 2, 95 % 2, max 2"  # 32x16 in cells of 16


def test_flags_are_read_by_the_parser_of_the_other_commands():
    flags = "--data a.jsonl --model m --zero_stage 3 --gradient_checkpointing false --reward_funcs iou format"
    (parsed,) = TrlParser(CheckArguments).parse_args_and_config(flags.split())
    assert (parsed.zero_stage, parsed.gradient_checkpointing, parsed.reward_funcs) == (3, False, ["iou", "format"])


def test_the_module_imports_without_the_heavy_libraries():
    code = (
        "import sys, vlm_entropy.data.preflight as p; "
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_of_the_picture_are_spread_over_the_data():
    assert spaced(100, 4) == [0, 25, 50, 75]
    assert spaced(3, 12) == [0, 1, 2]


def test_places_are_drawn_where_the_answer_says(example):
    row, _ = example("[500, 250]")
    assert places_of(row, "relative_1000") == [(32.0, 8.0, 32.0, 8.0)]  # half of 64, a quarter of 32
    row, _ = example('[{"bbox_2d": [0, 0, 8, 8]}, {"bbox_2d": [8, 8, 16, 16]}]')
    assert places_of(row, "absolute") == [(0, 0, 8, 8), (8, 8, 16, 16)]


def test_the_frame_stands_around_the_thing(pictures, example):
    image = Image.new("RGB", (64, 32), "white")
    ImageDraw.Draw(image).rectangle((16, 8, 31, 23), fill=(0, 0, 255))
    image.save(pictures / "thing.png")
    row, _ = example("[16, 8, 32, 24]", image="thing.png")
    sheet = contact_sheet([row], solution_space="absolute")
    # 64 pixels become 320 - 2 · 8 = 304, so 4.75 for one; the sheet's margin is 12, and the image, 152 high, is in the
    # middle: left edge at 12 + 8 + 16 · 4.75 = 96, top edge at 12 + 84 + 8 · 4.75 = 134, 76 pixels wide and high
    blue = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == (0, 0, 255)]
    assert (min(blue), max(blue)) == ((96, 134), (171, 209))
    marks = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == (230, 0, 90)]
    assert {min(x for x, _ in marks), max(x for x, _ in marks)} == {93, 174}
    assert {min(y for _, y in marks), max(y for _, y in marks)} == {131, 212}


def test_a_picture_is_written_on_request(arguments, tmp_path):
    rows = [*GOOD, record("turned.jpg", "[8, 8]"), record(["a.png", "c.png"], "two"), record(None, "4")]
    report, _ = check(arguments(*rows, picture=str(tmp_path / "sheet.png"), picture_rows=5))
    assert section(report, "Picture") == [f"5 rows are drawn in {tmp_path / 'sheet.png'}"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 4 * 332 + 12


def test_held_out_rows_may_have_images_of_their_own(arguments, tmp_path):
    folder = tmp_path / "others"
    folder.mkdir()
    paint(folder / "a.png", (64, 32), colour="green")
    report, _ = check(arguments(*GOOD, held_out=[GOOD[0]], held_out_images=str(folder)))
    assert section(report, "Duplicates")[-1].endswith(": 0")
    report, _ = check(arguments(*GOOD, held_out=[GOOD[0]]))
    assert section(report, "Duplicates")[-1].endswith("heldout.jsonl:1")


def test_the_picture_shows_the_upright_image(example):
    row, _ = example("[8, 8]", image="turned.jpg")
    tile = picture_of(row, "absolute")
    # 64x32 upright: 304 wide from x = 8 on and 152 high from y = 84 on
    assert [tile.getpixel(spot) for spot in ((200, 40), (20, 160))] == [(215, 215, 215), (255, 255, 255)]
