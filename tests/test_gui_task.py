"""The GUI task: the gold box holds the named widget, no other has that name, and ScreenSpot's files say the same."""

import json
import random
from collections import Counter

import pytest
from PIL import ImageChops
from task_files import answer, files, pictures, question, read

from vlm_entropy.data.drawing import Canvas
from vlm_entropy.data.gui_icons import ICONS, draw_icon
from vlm_entropy.data.gui_screens import HEIGHT, LOOKS, Element, content_box, width_of
from vlm_entropy.data.gui_task import (
    TEXT_KINDS,
    Screen,
    draw_screen,
    flow,
    instruction,
    make_gui,
    pixel_box,
    render,
    screen_row,
    zoom_of,
)
from vlm_entropy.data.rows import read_rows
from vlm_entropy.data.shapes import overlaps

SIZES = [(64, 2), (96, 4), (112, 5), (480, 14)]


def screens(image_size, elements, count=24):
    rng = random.Random(0)
    return [draw_screen(rng, place=i, elements=elements, image_size=image_size) for i in range(count)]


def test_a_row_has_the_fields_of_vlm_r1_and_the_box_in_pixels():
    # 480 pixels are 160 units of 3: x 20..34 and y 100..114 become 60..102 and 300..342; the middle (27, 107) of 160
    # lies in the left third and, as 107 > 2/3 * 160 = 106.7, in the bottom one
    screen = Screen("ios", 160, (Element("icon", "gear", (20, 100, 34, 114)),), frozenset())
    assert screen_row(screen, "a.png", 7, image_size=480) == {
        "id": 7,
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>Click the gear icon."},
            {"from": "gpt", "value": "[60, 300, 102, 342]"},
        ],
        "platform": "mobile",
        "data_source": "ios",
        "data_type": "icon",
        "action": "click",
        "response": "<think>bottom left</think><answer>{box}</answer>",
        "click_response": "<think>bottom left</think><answer>[{'action': 'click', 'coordinate': {point}}]</answer>",
    }


@pytest.mark.parametrize(("image_size", "elements"), SIZES)
def test_every_instruction_names_exactly_one_widget(image_size, elements):
    for screen in screens(image_size, elements):
        target, *others = screen.elements
        assert len(others) == elements - 1
        assert all(instruction(other) != instruction(target) for other in others)
        assert len({element.name for element in screen.elements}) == elements


def test_no_name_is_both_a_label_and_an_icon():
    assert not {name.lower() for name in TEXT_KINDS} & set(ICONS)


@pytest.mark.parametrize(("image_size", "elements"), SIZES)
def test_widgets_lie_inside_the_frame_and_apart_from_each_other(image_size, elements):
    for screen in screens(image_size, elements):
        left, top, right, bottom = content_box(LOOKS[screen.source], screen.units)
        for index, element in enumerate(screen.elements):
            x1, y1, x2, y2 = element.box
            assert left <= x1 < x2 <= right
            assert top <= y1 < y2 <= bottom
            assert (x2 - x1, y2 - y1) == (width_of(element.kind, element.name), HEIGHT)
            assert not any(overlaps(element.box, other.box) for other in screen.elements[:index])


@pytest.mark.parametrize(("image_size", "elements"), SIZES)
def test_the_gold_box_is_exactly_what_changes_when_the_target_is_not_painted(image_size, elements):
    for screen in screens(image_size, elements, count=12):
        without = Screen(screen.source, screen.units, screen.elements[1:], screen.quiet)
        change = ImageChops.difference(render(screen, image_size=image_size), render(without, image_size=image_size))
        assert list(change.getbbox()) == pixel_box(screen, image_size)


def test_every_icon_is_drawn_inside_its_frame_and_looks_like_no_other():
    looks = {}
    for name in ICONS:
        canvas = Canvas((14, 14))
        draw_icon(canvas, name, (2, 2, 12, 12), ink=(0, 0, 0), background=(255, 255, 255))
        picture = canvas.picture().convert("L")
        left, top, right, bottom = picture.point(lambda value: 255 - value).getbbox()
        assert left >= 2
        assert top >= 2
        assert right <= 12
        assert bottom <= 12
        looks[name] = picture
    for name, picture in looks.items():
        for other, second in looks.items():
            # of 100 pixels of the frame, some must differ strongly: a mean difference of 8 grey levels of 255
            difference = sum(ImageChops.difference(picture, second).tobytes()) / 100
            assert name == other or difference > 8, (name, other)


def test_widgets_flow_from_left_to_right_and_wrap():
    # a room 40 wide holds one widget of 30 a line: the second goes below the first, 18 units (14 + a gap of 4) or more
    for seed in range(20):
        first, second = flow(random.Random(seed), [30, 30], (0, 0, 40, 40))
        assert second[1] - first[1] >= 18
        assert second[3] <= 40
    assert flow(random.Random(0), [30, 30], (0, 0, 40, 31)) is None
    assert flow(random.Random(0), [41], (0, 0, 40, 40)) is None


def test_six_rows_fill_the_six_cells_of_screenspot(tmp_path):
    train, held_out = make_gui(tmp_path / "task", rows=12, held_out=6, seed=0)
    cells = Counter((row["platform"], row["data_type"]) for row in read(train))
    assert len(cells) == 6
    assert set(cells.values()) == {2}
    assert len({(row["platform"], row["data_type"]) for row in read(held_out)}) == 6


def test_every_source_turns_up_with_its_platform():
    sources = {screen.source for screen in screens(96, 4, count=120)}
    assert sources == set(LOOKS) == {"ios", "android", "windows", "macos", "gitlab", "shop", "forum", "tool"}


def test_screenspot_holds_the_held_out_rows_with_xywh_boxes(tmp_path):
    _, held_out = make_gui(tmp_path / "task", rows=4, held_out=7, seed=2)
    folder = tmp_path / "task" / "screenspot"
    found = {}
    for platform in ("mobile", "desktop", "web"):
        for record in json.loads((folder / f"screenspot_{platform}.json").read_text()):
            assert set(record) == {"img_filename", "instruction", "bbox", "data_type", "data_source"}
            x, y, width, height = record["bbox"]
            found[record["img_filename"]] = (
                platform, record["instruction"], [x, y, x + width, y + height], record["data_type"],
                record["data_source"],
            )  # fmt: skip
            image = (folder / "screenspot_imgs" / record["img_filename"]).read_bytes()
            assert image == (tmp_path / "task" / "images" / record["img_filename"]).read_bytes()
    assert found == {
        row["image"]: (
            row["platform"], question(row), json.loads(answer(row)), row["data_type"], row["data_source"]
        )
        for row in read(held_out)
    }  # fmt: skip


def test_the_same_arguments_write_the_same_bytes_and_the_global_generator_is_left_alone(tmp_path):
    state = random.getstate()
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_gui(tmp_path / name, rows=8, seed=seed)
    assert random.getstate() == state
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


def test_no_screen_is_drawn_twice_within_or_across_the_two_files(tmp_path):
    make_gui(tmp_path / "task", rows=200, held_out=100, seed=0, image_size=64, elements=1)
    # the strong and the quiet fill of one widget count as the same screen
    shown = pictures(tmp_path / "task")
    assert len(shown) == len(set(shown)) == 300


def test_rows_can_be_read_for_training(tmp_path):
    train, _ = make_gui(tmp_path / "task", rows=4, seed=0)
    rows, _ = read_rows(str(train), str(tmp_path / "task" / "images"))
    assert [row.image_sizes for row in rows] == [((96, 96),)] * 4


@pytest.mark.parametrize(("size", "zoom"), [(64, 1), (319, 1), (320, 2), (480, 3)])
def test_a_unit_is_a_pixel_more_for_each_160_pixels(size, zoom):
    assert zoom_of(size) == zoom


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"held_out": -1}, "held_out must be at least 0, got -1"),
        ({"image_size": 63}, "image_size must be at least 64 and a multiple of 1"),
        ({"image_size": 481}, r"a multiple of 3 \(pixels per unit\), got 481"),
        ({"elements": 0}, "elements must be between 1 and 17, got 0"),
        ({"elements": 18}, "elements must be between 1 and 17, got 18"),
        ({"elements": 12, "image_size": 64}, "found no room for 12 elements on a screen of 64 pixels"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_gui(tmp_path / "task", **({"rows": 4, "seed": 0} | change))
    assert not (tmp_path / "task").exists()
