"""The synthetic referring expressions: what is on disk must be exactly what the pixels show."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vlm_entropy.data.shapes import BACKGROUND, COLOURS, Shape, make_shapes, overlaps, region, render, scene_row


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gold(row: dict) -> list[int]:
    return json.loads(row["conversations"][1]["value"])


def pixel_box(image: Image.Image, colour: tuple[int, int, int]) -> list[int]:
    """Tight box, end excluded, of the pixels of one colour, found by looking at every pixel."""
    width, height = image.size
    spots = [(x, y) for y in range(height) for x in range(width) if image.getpixel((x, y)) == colour]
    columns, rows = zip(*spots, strict=True)
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def test_a_row_has_the_fields_of_vlm_r1_and_the_box_once():
    # cells 1..3 of 8 on 32 pixels: 1 * 4 = 4 and 3 * 4 = 12; the middle cell 2 of 8 is in the first third
    scene = (Shape("red", "square", (1, 1, 3, 3)),)
    assert scene_row(scene, image="a.png", row_id=7, image_size=32, grid=8) == {
        "id": 7,
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>Find the red square."},
            {"from": "gpt", "value": "[4, 4, 12, 12]"},
        ],
        "response": "<think>top left</think><answer>{box}</answer>",
    }


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ((0, 0, 2, 2), "top left"),
        ((3, 3, 5, 5), "middle centre"),
        ((5, 0, 8, 3), "top right"),
        ((0, 5, 3, 8), "bottom left"),
        # the middle 2.5 of 8 is below 8/3 = 2.67, the middle 3 is above it
        ((1, 2, 4, 4), "middle left"),
    ],
)
def test_the_region_is_the_third_that_holds_the_middle(cells, words):
    assert region(cells, 8) == words


def test_boxes_that_only_touch_do_not_overlap():
    assert not overlaps((0, 0, 2, 2), (2, 0, 4, 2))
    assert not overlaps((0, 0, 2, 2), (0, 2, 2, 4))
    assert overlaps((0, 0, 2, 2), (1, 1, 3, 3))


@pytest.mark.parametrize("kind", ["square", "circle", "triangle"])
@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_every_shape_touches_all_four_sides_of_its_box(kind, side):
    cells = (2, 1, 2 + side, 1 + side)
    image = render((Shape("blue", kind, cells),), image_size=32, grid=8)
    assert pixel_box(image, COLOURS["blue"]) == [4 * edge for edge in cells]


def test_the_three_kinds_look_different():
    pictures = {
        render((Shape("red", kind, (0, 0, 2, 2)),), image_size=32, grid=8).tobytes()
        for kind in ("square", "circle", "triangle")
    }
    assert len(pictures) == 3


def test_the_gold_box_is_the_tight_box_of_the_named_colour_in_the_file(tmp_path):
    train, _ = make_shapes(tmp_path / "task", rows=40, seed=3, objects=1)
    for row in read(train):
        image = Image.open(tmp_path / "task" / "images" / row["image"])
        colour = row["conversations"][0]["value"].split()[2]
        assert pixel_box(image, COLOURS[colour]) == gold(row)
        assert len(image.getcolors()) == 2
        assert image.getpixel((0, 0)) == BACKGROUND or gold(row)[:2] == [0, 0]


def test_the_same_arguments_write_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_shapes(tmp_path / name, rows=12, seed=seed)
    files = {
        name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    }
    assert len(files["a"]) == 12 + 3 + 2
    assert files["a"] == files["b"]
    assert files["a"] != files["c"]


def test_no_image_is_drawn_twice_within_or_across_the_two_files(tmp_path):
    # grid 4 with one object has few scenes, so repeats would be common if they were allowed
    make_shapes(tmp_path / "task", rows=100, held_out=50, seed=0, grid=4, objects=1)
    pictures = [path.read_bytes() for path in (tmp_path / "task" / "images").iterdir()]
    assert len(pictures) == len(set(pictures)) == 150


def test_held_out_rows_default_to_a_quarter(tmp_path):
    train, held_out = make_shapes(tmp_path / "task", rows=9, seed=0)
    assert (len(read(train)), len(read(held_out))) == (9, 2)


def test_every_default_box_is_whole_on_the_scale_of_0_to_1000(tmp_path):
    train, _ = make_shapes(tmp_path / "task", rows=50, seed=0)
    edges = [edge for row in read(train) for edge in gold(row)]
    assert all(edge * 1000 % 32 == 0 for edge in edges)
    assert {edge * 1000 // 32 % 125 for edge in edges} == {0}


def test_other_objects_share_neither_place_nor_name_with_the_target(tmp_path):
    from random import Random

    from vlm_entropy.data.shapes import draw_scene

    rng = Random(0)
    for _ in range(50):
        scene = draw_scene(rng, grid=8, objects=3)
        assert len({(shape.colour, shape.kind) for shape in scene}) == 3
        assert not any(overlaps(a.cells, b.cells) for i, a in enumerate(scene) for b in scene[:i])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"held_out": -1}, "held_out must be at least 0, got -1"),
        ({"grid": 1}, "grid must be at least 2, got 1"),
        ({"image_size": 30}, "image_size must be a multiple of grid 8, got 30"),
        ({"objects": 13}, "objects must be between 1 and 12, got 13"),
        ({"objects": 0}, "objects must be between 1 and 12, got 0"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_shapes(tmp_path / "task", **({"rows": 4, "seed": 0} | change))
    assert not (tmp_path / "task").exists()


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"new or an empty folder, got .*" + tmp_path.name):
        make_shapes(tmp_path, rows=4, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_more_rows_than_scenes_is_refused_instead_of_repeating(tmp_path):
    # grid 2, one object of one cell: 4 places x 4 colours x 3 kinds = 48 scenes
    with pytest.raises(ValueError, match="found only 48 different scenes of 60"):
        make_shapes(tmp_path / "task", rows=60, held_out=0, seed=0, image_size=32, grid=2, objects=1)


def test_too_many_objects_for_the_grid_is_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match="found no free place for object 5 on a grid of 2"):
        make_shapes(tmp_path / "task", rows=1, held_out=0, seed=0, grid=2, objects=12)
