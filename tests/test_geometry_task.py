"""The geometry task: answers recomputed from what question and picture tell, and experts that arrive at them."""

import math
import random
import re
from collections import Counter

import pytest
from task_files import answer, files, pictures, question, read

from vlm_entropy.data.geometry_task import (
    DRAW,
    TRIPLES,
    Problem,
    distinct_problems,
    draw_problem,
    expert,
    key,
    make_geometry,
    problem_row,
    render,
    tell_one,
)
from vlm_entropy.data.rows import read_rows
from vlm_entropy.rewards.formats import is_well_formed
from vlm_entropy.rewards.parsing import find_answer


def problems(count=400):
    rng = random.Random(0)
    return [draw_problem(rng) for _ in range(count)]


def told(problem):
    """Every number that question and picture give, by its place."""
    words = re.findall(r"(?:Angle )?\b([A-Z]{1,2}) is (\d+)", problem.question)
    return {place: int(text) for place, text in [*problem.labels, *words] if text.isdigit()}


def solve(problem):
    """The answer from the given numbers alone, by other means than the task's own."""
    given = told(problem)
    match problem.figure:
        case "triangle":
            return round(math.degrees(math.pi - math.radians(given["A"]) - math.radians(given["B"])))
        case "rectangle":
            sides = given["AB"], given["BC"]
            return math.prod(sides) if "area" in problem.question else sum(sides) * 2
        case "right_triangle":
            asked = re.search(r"Find (\w+)\.", problem.question)[1]
            if asked == "BC":
                return round(math.hypot(given["AB"], given["AC"]))
            (leg,) = set(given) - {"BC"}
            return math.isqrt(given["BC"] ** 2 - given[leg] ** 2)
        case "parallel_lines":
            places = {place for place, _ in problem.labels}
            (angle,) = given.values()
            return 180 - angle if places == {"P-below", "Q-left"} else angle
        case "circle":
            if "diameter" in problem.question:
                return 2 * given["OA"]
            return given["AB"] // 2


def test_a_problem_by_hand_is_a_row_with_an_expert():
    # 180 - 50 - 60 = 70
    problem = Problem(
        "triangle",
        (50, 60, 70),
        (("B", "60"), ("C", "?")),
        "Angle A is 50 degrees. Find angle C in degrees.",
        ("The angles of a triangle add up to 180 degrees.", "180 - 50 - 60 = 70"),
        70,
    )
    assert problem_row(problem, "a.png", 7) == {
        "id": 7,
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>Angle A is 50 degrees. Find angle C in degrees."},
            {"from": "gpt", "value": "70"},
        ],
        "figure": "triangle",
        "expert": "<think> The angles of a triangle add up to 180 degrees. 180 - 50 - 60 = 70 </think> "
        "<answer> 70 </answer>",
    }


def test_every_answer_follows_from_the_numbers_that_are_given():
    seen = Counter()
    for problem in problems():
        assert solve(problem) == problem.answer, problem
        seen[problem.figure] += 1
    assert set(seen) == set(DRAW)
    assert min(seen.values()) > 40


def test_at_least_one_given_number_is_in_the_picture_only():
    in_words = 0
    for problem in problems():
        hidden = [text for place, text in problem.labels if text.isdigit()]
        assert hidden
        assert not any(f"{place} is " in problem.question for place, text in problem.labels if text.isdigit())
        in_words += "is " in problem.question.replace("is a right", "").replace("is the centre", "")
    assert in_words > 40


def test_telling_a_number_moves_it_from_the_picture_to_the_question():
    rng = random.Random(1)
    for _ in range(50):
        problem = DRAW["rectangle"](rng)
        other = tell_one(problem, rng)
        assert told(other) == told(problem)
        assert (len(problem.labels), len(other.labels)) == (2, 1)
    circle = DRAW["circle"](rng)
    assert tell_one(circle, rng) == circle


def test_the_expert_is_well_formed_reaches_the_answer_and_calculates_right():
    for problem in problems():
        text = expert(problem)
        assert is_well_formed(text)
        assert find_answer(text).strip() == str(problem.answer)
        left, equals, right = re.sub(r"^.* and the square root of (\d+)", r"\1 ** 0.5", problem.steps[-1]).partition(
            "="
        )
        assert equals
        assert right.strip() == str(problem.answer)
        numbers = [int(number) for number in re.findall(r"\d+", left)]
        value = {
            "triangle": lambda n: n[0] - n[1] - n[2],
            "rectangle": lambda n: n[0] * n[1] if len(n) == 2 else n[0] * (n[1] + n[2]),
            "right_triangle": lambda n: math.isqrt(n[0]),
            "parallel_lines": lambda n, own=problem: n[0] - n[1] if len(n) == 2 else own.answer,
            "circle": lambda n: n[0] * n[1] if "*" in left else n[0] // n[1],  # noqa: B023
        }[problem.figure](numbers)
        assert value == problem.answer


def test_the_triples_are_right_angled_and_of_either_order():
    assert all(a * a + b * b == c * c for a, b, c in TRIPLES)
    assert {(3, 4, 5), (4, 3, 5), (6, 8, 10), (65, 72, 97)} <= set(TRIPLES)
    assert max(map(max, TRIPLES)) <= 99


def test_the_picture_changes_with_the_hidden_number_alone():
    for problem in problems(60):
        if problem.figure == "circle":
            continue
        place, text = next((place, text) for place, text in problem.labels if text.isdigit())
        other = str(int(text) + 1 if int(text) % 10 != 9 else int(text) - 1)
        labels = tuple((p, other if p == place else t) for p, t in problem.labels)
        changed = Problem(problem.figure, problem.numbers, labels, problem.question, problem.steps, problem.answer)
        assert render(problem, image_size=96).tobytes() != render(changed, image_size=96).tobytes()


@pytest.mark.parametrize("image_size", [80, 96, 320])
def test_figures_stay_inside_the_image(image_size):
    from PIL import Image, ImageChops

    for problem in problems(60):
        picture = render(problem, image_size=image_size)
        white = Image.new("RGB", picture.size, (255, 255, 255))
        left, top, right, bottom = ImageChops.difference(picture, white).getbbox()
        assert top > 0
        assert bottom < image_size
        assert left >= 0
        assert right <= image_size


def test_train_and_held_out_problems_differ_in_numbers_not_only_in_words(tmp_path):
    rows = distinct_problems(random.Random(3), 600)
    assert len({key(problem) for problem in rows}) == 600
    make_geometry(tmp_path / "task", rows=300, held_out=100, seed=3)
    asked = [
        (row["figure"], row["expert"])
        for name in ("train", "heldout")
        for row in read(tmp_path / "task" / f"{name}.jsonl")
    ]
    assert len(asked) == len(set(asked)) == 400


def test_four_thousand_problems_can_be_had():
    assert len(distinct_problems(random.Random(0), 4000)) == 4000


def test_the_same_arguments_write_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_geometry(tmp_path / name, rows=12, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    assert len(pictures(tmp_path / "a")) == 12 + 3


def test_rows_can_be_read_for_training(tmp_path):
    train, _ = make_geometry(tmp_path / "task", rows=8, seed=0, image_size=80)
    rows, _ = read_rows(str(train), str(tmp_path / "task" / "images"))
    assert [(row.question, row.answer) for row in rows] == [(question(row), answer(row)) for row in read(train)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"held_out": -1}, "held_out must be at least 0, got -1"),
        ({"image_size": 79}, "image_size must be at least 80, got 79"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_geometry(tmp_path / "task", **({"rows": 4, "seed": 0} | change))
    assert not (tmp_path / "task").exists()
