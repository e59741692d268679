"""The flowers: names that cannot be mixed up, near classes, k shots of each, and pictures that show the class."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from task_files import answer, files, pictures, read

from vlm_entropy.data.classes_task import (
    CENTRES,
    NUMBERS,
    PETALS,
    Flower,
    Kind,
    draw_flower,
    flower_kinds,
    flower_row,
    make_classes,
    render,
)
from vlm_entropy.data.rows import read_rows
from vlm_entropy.data.tasks import distinct
from vlm_entropy.rewards.parsing import find_answer

FLOWER = Flower(Kind("red", "five", "yellow"), x=50, y=45, radius=36, turn=0, background=0)


def test_a_row_has_the_class_as_answer_and_a_response_that_ends_with_it():
    assert flower_row(FLOWER, "a.png", 7) == {
        "id": 7,
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>Which flower is this?"},
            {"from": "gpt", "value": "red five petal yellow centre"},
        ],
        "response": "<think>five petals, red, the centre is yellow</think>"
        "<answer>red five petal yellow centre</answer>",
    }


def test_eight_classes_are_the_cube_of_two_attributes_each():
    assert {(kind.colour, kind.number, kind.centre) for kind in flower_kinds(8)} == {
        (colour, number, centre)
        for colour in ("red", "purple")
        for number in ("three", "four")
        for centre in ("yellow", "black")
    }


def test_every_class_differs_from_an_earlier_one_in_one_attribute():
    kinds = [(kind.colour, kind.number, kind.centre) for kind in flower_kinds(100)]
    for index, kind in enumerate(kinds[1:], start=1):
        shared = max(sum(a == b for a, b in zip(kind, other, strict=True)) for other in kinds[:index])
        assert shared == 2


def test_no_name_is_part_of_another_even_without_blanks():
    names = [kind.name.replace(" ", "") for kind in flower_kinds(100)]
    assert len(set(names)) == 100
    assert not any(a in b for a in names for b in names if a != b)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("turn", [0, 7, 31])
def test_a_circle_through_the_petals_meets_as_many_of_them_as_the_name_says(number, turn):
    flower = replace(FLOWER, kind=Kind("blue", number, "white"), turn=turn)
    picture = render(flower, image_size=400)
    # at 80 % of the radius the petals are apart; 1440 steps are a quarter of a degree
    ring = [
        picture.getpixel(
            (
                round(4 * (50 + 0.8 * 36 * math.cos(2 * math.pi * step / 1440))),
                round(4 * (45 + 0.8 * 36 * math.sin(2 * math.pi * step / 1440))),
            )
        )
        == PETALS["blue"]
        for step in range(1440)
    ]
    # the edge of a petal may flicker within a degree, four steps
    begins = [ring[step] and not any(ring[step - back] for back in (1, 2, 3, 4)) for step in range(1440)]
    assert sum(begins) == NUMBERS[number]


@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize("colour", PETALS)
def test_the_centre_and_the_petals_have_the_named_colours(centre, colour):
    picture = render(replace(FLOWER, kind=Kind(colour, "six", centre)), image_size=100)
    assert picture.getpixel((50, 45)) == CENTRES[centre]
    assert picture.getpixel((50 + 22, 45)) == PETALS[colour]


def test_k_shots_are_k_rows_of_each_class_and_the_held_out_file_has_every_class(tmp_path):
    train, held_out = make_classes(tmp_path / "task", shots=4, classes=12, seed=0)
    counts = Counter(answer(row) for row in read(train))
    assert len(counts) == 12
    assert set(counts.values()) == {4}
    assert Counter(map(answer, read(held_out))) == dict.fromkeys(counts, 1)  # max(48 // 4, 12) = 12 rows


def test_classes_take_turns_in_both_files(tmp_path):
    train, held_out = make_classes(tmp_path / "task", rows=7, held_out=4, classes=3, seed=0)
    names = [kind.name for kind in flower_kinds(3)]
    assert [answer(row) for row in read(train)] == [names[i % 3] for i in range(7)]
    assert [answer(row) for row in read(held_out)] == [names[i % 3] for i in range(4)]


def test_the_response_holds_the_answer_and_rows_can_be_read(tmp_path):
    train, _ = make_classes(tmp_path / "task", rows=8, seed=0)
    rows, _ = read_rows(str(train), str(tmp_path / "task" / "images"))
    assert [find_answer(row.columns["response"]) for row in rows] == [row.answer for row in rows]


def test_the_same_arguments_write_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_classes(tmp_path / name, rows=8, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


def test_no_flower_is_drawn_twice_within_or_across_the_two_files(tmp_path):
    make_classes(tmp_path / "task", rows=300, held_out=100, seed=0, classes=2)
    shown = pictures(tmp_path / "task")
    assert len(shown) == len(set(shown)) == 400


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"rows": None}, "exactly one of rows and shots is needed, got rows=None and shots=None"),
        ({"shots": 2}, "exactly one of rows and shots is needed, got rows=4 and shots=2"),
        ({"rows": None, "shots": 0}, "shots must be at least 1, got 0"),
        ({"held_out": -1}, "held_out must be at least 0, got -1"),
        ({"classes": 1}, "classes must be between 2 and 100, got 1"),
        ({"classes": 101}, "classes must be between 2 and 100, got 101"),
        ({"image_size": 31}, "image_size must be at least 32, got 31"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_classes(tmp_path / "task", **({"rows": 4, "seed": 0} | change))
    assert not (tmp_path / "task").exists()


def test_a_turn_stays_below_the_angle_between_two_petals_beyond_which_pictures_repeat():
    kinds = flower_kinds(100)
    flowers = [draw_flower(random.Random(i), place=i, kinds=kinds) for i in range(300)]
    assert all(flower.turn < 360 / NUMBERS[flower.kind.number] for flower in flowers)


def test_a_scene_that_is_drawn_again_is_drawn_anew():
    draws = iter([1, 1, 2, 1, 2, 3])
    assert distinct(lambda _: next(draws), 3, key=lambda scene: scene, advice="") == [1, 2, 3]
