"""The preference pairs: one response is true of the picture, the other is not, and the label says which."""

import random
from dataclasses import replace

import pytest
from task_files import answer, files, question, read

from vlm_entropy.data.geometry_task import Problem
from vlm_entropy.data.noise import select_noisy
from vlm_entropy.data.pairs_task import (
    DRAW,
    Pair,
    balanced,
    draw_colours_pair,
    draw_geometry_pair,
    draw_shapes_pair,
    make_pairs,
    miscalculate,
    misread,
    name_pair,
    pair_row,
    render,
)
from vlm_entropy.data.rows import read_rows
from vlm_entropy.data.shapes import Shape, region
from vlm_entropy.rewards.parsing import find_answer

PAIR = Pair((Shape("red", "square", (0, 0, 2, 2)),), "Where is it?", "Left.", "Right.")


def is_true(text, scene, asked):
    """Whether a response is true of a scene, read off its words."""
    words = text.rstrip(".").split()
    if asked.startswith("How many"):
        return {"two": 2, "three": 3}[words[-1]] == len(scene)
    if asked.startswith("Where"):
        colour, kind = words[1:3]
        (place,) = [region(shape.cells, 8) for shape in scene if (shape.colour, shape.kind) == (colour, kind)]
        return words[-2:] == place.split()
    place = asked.rstrip("?").split()[-2:]
    (shape,) = [shape for shape in scene if region(shape.cells, 8).split() == place]
    return words[-2:] == [shape.colour, shape.kind]


def test_a_row_holds_two_responses_and_the_number_of_the_better_one():
    assert pair_row(PAIR, "a.png", 7, right_first=False) == {
        "id": 7,
        "image": "a.png",
        "conversations": [
            {
                "from": "human",
                "value": "<image>Question: Where is it?\nResponse 1: Right.\nResponse 2: Left.\n"
                "Which response is better, 1 or 2?",
            },
            {"from": "gpt", "value": "2"},
        ],
        "question": "Where is it?",
        "responses": ["Right.", "Left."],
        "trace": "<think>Left. Response 1 says: Right. Response 2 says: Left.</think><answer>2</answer>",
    }


def test_a_noisy_row_has_the_other_label_and_a_trace_that_agrees_with_it():
    row = pair_row(PAIR, "a.png", 7, right_first=True, is_noisy=True)
    assert row["responses"] == ["Left.", "Right."]
    assert (answer(row), find_answer(row["trace"]), row["is_noisy"]) == ("2", "2", True)


def test_of_two_responses_about_shapes_exactly_one_is_true_and_the_question_has_one_answer():
    rng = random.Random(0)
    kinds = set()
    for _ in range(300):
        pair = draw_shapes_pair(rng)
        assert is_true(pair.right, pair.picture, pair.question)
        assert not is_true(pair.wrong, pair.picture, pair.question)
        right, wrong = pair.right.split(), pair.wrong.split()
        differing = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        assert len(differing) == 1  # subtle: a single word
        kinds.add(pair.question.split()[0])
    assert kinds == {"Where", "What", "How"}


def test_wrong_responses_about_shapes_are_as_likely_as_right_ones_for_colours_kinds_and_numbers():
    rng = random.Random(1)
    right, wrong = [], []
    for _ in range(2000):
        pair = draw_shapes_pair(rng)
        if not pair.question.startswith("Where"):
            right += pair.right.rstrip(".").split()
            wrong += pair.wrong.rstrip(".").split()
    for word in ("red", "green", "blue", "yellow", "square", "circle", "triangle", "two", "three"):
        # each about 250 to 500 times; a text-only judge could only live on a difference
        assert abs(right.count(word) - wrong.count(word)) < 0.3 * right.count(word), word


def test_of_two_solutions_exactly_one_has_the_answer():
    rng = random.Random(0)
    for _ in range(200):
        pair = draw_geometry_pair(rng)
        assert pair.right.endswith(f" = {pair.picture.answer}. The answer is {pair.picture.answer}.")
        assert not pair.wrong.endswith(f" {pair.picture.answer}.")
        assert pair.question == pair.picture.question


def test_a_misread_solution_is_right_for_another_picture_with_the_same_question():
    rng = random.Random(0)
    problem = DRAW["geometry"](rng).picture
    found = 0
    for _ in range(50):
        problem = draw_geometry_pair(rng).picture
        other = misread(problem, rng)
        if other is not None:
            found += 1
            assert (other.question, other.figure) == (problem.question, problem.figure)
            assert [place for place, _ in other.labels] == [place for place, _ in problem.labels]
            assert other.answer != problem.answer
    assert found > 20


def test_a_slip_changes_the_result_alone():
    problem = Problem("circle", (9,), (("OA", "9"),), "Q?", ("The radius OA is 9.", "2 * 9 = 18"), 18)
    for seed in range(20):
        wrong = miscalculate(problem, random.Random(seed))
        assert wrong.answer in {8, 16, 17, 19, 20, 28}
        assert wrong.steps == ("The radius OA is 9.", f"2 * 9 = {wrong.answer}")


@pytest.mark.parametrize(("count", "first"), [(10, 5), (11, 6), (1, 1), (0, 0)])
def test_the_right_response_comes_first_in_half_of_the_rows(count, first):
    assert sum(balanced(random.Random(0), count)) == first


@pytest.mark.parametrize("over", DRAW)
def test_labels_are_balanced_and_point_to_the_better_response(tmp_path, over):
    train, held_out = make_pairs(tmp_path / "task", rows=40, seed=0, over=over)
    for path, count in ((train, 40), (held_out, 10)):
        rows = read(path)
        assert [answer(row) for row in rows].count("1") == count / 2
        for row in rows:
            assert "is_noisy" not in row
            assert find_answer(row["trace"]) == answer(row)
            assert all(text in question(row) for text in (row["question"], *row["responses"]))
    assert len({(row["responses"][int(answer(row)) - 1], row["question"], row["id"]) for row in read(train)}) == 40


@pytest.mark.parametrize("over", DRAW)
def test_noise_flips_the_known_share_and_nothing_else(tmp_path, over):
    clean, _ = make_pairs(tmp_path / "clean", rows=20, seed=4, over=over)
    noisy, held_out = make_pairs(tmp_path / "noisy", rows=20, seed=4, over=over, noise=0.3)
    chosen = select_noisy(20, 0.3, 4)
    assert len(chosen) == 6
    for index, (old, new) in enumerate(zip(read(clean), read(noisy), strict=True)):
        assert new["is_noisy"] == (index in chosen) == (answer(old) != answer(new))
        assert find_answer(new["trace"]) == answer(new)
        assert (new["responses"], question(new)) == (old["responses"], question(old))
    assert not any(row["is_noisy"] for row in read(held_out))


def test_the_same_arguments_write_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_pairs(tmp_path / name, rows=12, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


@pytest.mark.parametrize("over", DRAW)
def test_no_picture_has_the_same_question_twice(tmp_path, over):
    train, held_out = make_pairs(tmp_path / "task", rows=150, held_out=50, seed=0, over=over)
    asked = [
        ((tmp_path / "task" / "images" / row["image"]).read_bytes(), row["question"])
        for path in (train, held_out)
        for row in read(path)
    ]
    assert len(asked) == len(set(asked)) == 200


def test_rows_can_be_read_for_training(tmp_path):
    train, _ = make_pairs(tmp_path / "task", rows=4, seed=0, noise=0.5)
    rows, _ = read_rows(str(train), str(tmp_path / "task" / "images"))
    assert [len(row.columns["responses"]) for row in rows] == [2] * 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"held_out": -1}, "held_out must be at least 0, got -1"),
        ({"over": "cats"}, "over is 'cats'; allowed are shapes, colours, geometry"),
        ({"noise_on": "all"}, "noise_on is 'all'; allowed are any, grained"),
        ({"over": "geometry", "objects": 2}, "only pictures of shapes have them; got 2 over geometry"),
        ({"objects": 0}, "objects must be at least 1"),
        ({"grain": 1.5}, "ratio must be between 0 and 1, got 1.5"),
        ({"noise": 0.5, "noise_on": "grained", "grain": 0.25}, "asks for 2 wrong labels among grained pictures"),
        ({"image_size": 30}, "image_size must be a multiple of 8, got 30"),
        ({"over": "geometry", "image_size": 32}, "image_size must be at least 80, got 32"),
        ({"noise": 1.5}, "ratio must be between 0 and 1, got 1.5"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_pairs(tmp_path / "task", **({"rows": 4, "seed": 0} | change))
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize("objects", [1, 3])
def test_a_pair_about_colours_asks_for_the_only_shape_of_its_kind(objects):
    rng = random.Random(0)
    for _ in range(50):
        pair = draw_colours_pair(rng, objects)
        target, *others = pair.picture
        assert len(others) == objects - 1
        assert pair.question == f"What colour is the {target.kind}?"
        assert all(other.kind != target.kind for other in others)
        assert pair.right == f"{target.colour}." != pair.wrong


def test_grain_covers_its_share_of_the_pictures_and_wrong_labels_can_be_there_alone(tmp_path):
    options = {"rows": 40, "held_out": 8, "seed": 3, "over": "colours"}
    clear, _ = make_pairs(tmp_path / "clear", **options)
    train, held_out = make_pairs(tmp_path / "grained", **options, grain=0.5, noise=0.25, noise_on="grained")
    rows = read(train)
    assert sum(row["is_grained"] for row in rows) == 20
    assert sum(row["is_grained"] for row in read(held_out)) == 4
    assert sum(row["is_noisy"] for row in rows) == 10
    assert all(row["is_grained"] for row in rows if row["is_noisy"])
    for before, after in zip(read(clear), rows, strict=True):
        pictures = [(tmp_path / name / "images" / before["image"]).read_bytes() for name in ("clear", "grained")]
        assert (pictures[0] != pictures[1]) == after["is_grained"]
        assert before["responses"] == after["responses"]
        assert (answer(before) != answer(after)) == after["is_noisy"]


def test_a_grained_picture_is_three_parts_picture_and_seven_parts_noise():
    grained = render(replace(PAIR, grain=1), image_size=32)
    noise = random.Random(1).randbytes(3 * 32 * 32)
    red, background = (220, 40, 40), (255, 255, 255)
    for (x, y), colour in (((2, 2), red), ((30, 30), background)):
        start = 3 * (32 * y + x)
        expected = [0.3 * c + 0.7 * n for c, n in zip(colour, noise[start : start + 3], strict=True)]
        assert grained.getpixel((x, y)) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("part", ["colour", "kind"])
def test_no_one_asks_what_is_at_a_place_that_holds_two_shapes(part):
    # the middles (1, 1) and (1, 2.5) both lie in the first third of 8 cells, that is below 2.67
    target, other = Shape("red", "square", (0, 0, 2, 2)), Shape("blue", "circle", (0, 2, 2, 3))
    assert name_pair((target, other), random.Random(0), part=part) is None
    assert name_pair((target,), random.Random(0), part=part)[0] == "What is at the top left?"
