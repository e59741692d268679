"""MathVista: its own table in miniature, the published normalise-and-compare case by case, and our extraction."""

import time

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_files import embedded, png

from vlm_entropy.data.loaders import LOADERS
from vlm_entropy.eval.benchmarks.mathvista import MATHVISTA, edit_distance, extraction, normalised
from vlm_entropy.eval.items import to_item
from vlm_entropy.eval.protocols import Item, View

VIEW = View("qwen2_5_vl", "absolute_resized")
PROTOCOLS = MATHVISTA["mathvista"].protocols
TEXT = Value("string")


def columns(choices=None, answer_type="text", precision=None):
    question_type = "free_form" if choices is None else "multi_choice"
    return {"choices": choices, "question_type": question_type, "answer_type": answer_type, "precision": precision}


ELEVENTHS = columns(["3/11", "8/11", "6/11", "3/5"])
SHUFFLED = columns(["(e)", "(b)", "(a)", "(d)", "(c)"])
"""In the style of problems 168 and 849."""
INTEGER, LIST = columns(answer_type="integer"), columns(answer_type="list")
FLOAT1, FLOAT2 = columns(answer_type="float", precision=1), columns(answer_type="float", precision=2)


def score(gold, response, of):
    return PROTOCOLS["rules"].score(Item("1", "How long?", gold, columns=of), response, VIEW)


def test_from_its_parquet_to_a_score_with_the_published_cells(tmp_path):
    names = ("pid", "query", "question", "image", "unit", "answer", "question_type", "answer_type")
    metadata = {"split": TEXT, "task": TEXT, "category": TEXT, "context": TEXT, "grade": TEXT, "source": TEXT}
    features = {**dict.fromkeys(names, TEXT), "decoded_image": ImageFeature(), "choices": List(TEXT)}
    features |= {"precision": Value("float64"), "metadata": {**metadata, "language": TEXT, "skills": List(TEXT)}}
    row = {
        "pid": "1",
        "query": "Hint: a number.\nQuestion: How long?",
        "question": "How long?",
        "image": "images/1.jpg",
    }
    row |= {"decoded_image": embedded(png()), "precision": 1.0, "answer": "1.2", "question_type": "free_form"}
    row |= {"answer_type": "float", "unit": None, "choices": None}
    row["metadata"] = {"split": "testmini", "task": "geometry problem solving", "category": "math-targeted-vqa"}
    row["metadata"] |= {"context": "geometry diagram", "grade": "high school", "source": "Geometry3K"}
    row["metadata"] |= {"language": "english", "skills": ["geometry reasoning", "algebraic reasoning"]}
    choice = {**row, "pid": "2", "choices": ["yes", "no"], "answer": "no", "question_type": "multi_choice"}
    choice |= {"answer_type": "text", "precision": None}
    Dataset.from_list([row, choice], features=Features(features)).to_parquet(tmp_path / "testmini.parquet")
    records = LOADERS["mathvista"].read(str(tmp_path / "testmini.parquet"))
    number, closed = [to_item(record, "") for record in records]
    rules, boxed = PROTOCOLS["rules"], PROTOCOLS["rules_boxed"]
    asked = "Hint: a number.\nQuestion: How long?"
    assert rules.prompt(number, VIEW) == [{"role": "user", "content": asked}]
    (message,) = boxed.prompt(number, VIEW)
    assert message["content"].startswith(f"{asked} You FIRST think about")
    assert message["content"].endswith("MUST BE put in \\boxed{}.")
    assert rules.score(number, "The answer is 1.21.", VIEW) == (
        {"accuracy": 1, "strict": 0, "no_answer": 0},
        "1.2",
        None,
    )
    assert boxed.score(closed, r"<think>A</think>\boxed{B}", VIEW) == (
        {"accuracy": 1, "strict": 1, "no_answer": 0},
        "no",
        None,
    )
    assert rules.cells(number) == {
        "question_type": "free_form",
        "answer_type": "float",
        "language": "english",
        "source": "Geometry3K",
        "category": "math-targeted-vqa",
        "task": "geometry problem solving",
        "context": "geometry diagram",
        "grade": "high school",
        "skill geometry reasoning": "needed",
        "skill algebraic reasoning": "needed",
    }
    assert MATHVISTA["mathvista"].sizes["testmini"] == 1000


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),  # k to s, e to i, one g more
        ("flaw", "lawn", 2),  # f less, n more
        ("8/11", "6/11", 1),
        ("abc", "abc", 0),
        ("ab", "ba", 2),
    ],
)
def test_the_edit_distance_counts_single_steps(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("found", "of", "prediction"),
    [
        # a letter of an option is its choice
        ("B", ELEVENTHS, "8/11"),
        (" B ", ELEVENTHS, "8/11"),
        ("(B)", ELEVENTHS, "8/11"),
        ("(b) 8/11", ELEVENTHS, "8/11"),
        ("(A) or (B)", ELEVENTHS, "3/11"),  # the first in brackets
        # everything else the most similar choice, the first of several
        ("8/11", ELEVENTHS, "8/11"),
        ("b", ELEVENTHS, "3/5"),  # lower case without brackets is no letter; distances 4, 4, 4, 3
        ("E", ELEVENTHS, "3/5"),  # no such option; distances 4, 4, 4, 3
        ("7/11", ELEVENTHS, "3/11"),  # distances 1, 1, 1, 3
        ("", ELEVENTHS, "3/5"),  # distances 4, 4, 4, 3
        ("", columns(["yes", "no"]), "no"),
        ("", columns(["no", "up"]), "no"),
        # choices that look like letters
        ("(b)", SHUFFLED, "(b)"),  # B, the second, which here is "(b)" itself
        ("(a)", SHUFFLED, "(e)"),  # A, the first
        ("B", columns(["B", "A"]), "A"),
        ("f(x)", columns(["g(x)", "f(x)"]), "g(x)"),  # X is no option: distances from "X" 4, 4
        # integers are cut
        ("14", INTEGER, "14"),
        ("14.9", INTEGER, "14"),
        ("-14.9", INTEGER, "-14"),
        ("14.0", INTEGER, "14"),
        (" 14 ", INTEGER, "14"),
        ("1e2", INTEGER, "100"),
        ("1,234", INTEGER, None),
        ("14 cm", INTEGER, None),
        ("14%", INTEGER, None),
        ("14°", INTEGER, None),
        ("1/2", INTEGER, None),
        ("", INTEGER, None),
        ("inf", INTEGER, None),
        ("nan", INTEGER, None),
        ("9" * 400, INTEGER, None),
        # floats are rounded and written by Python
        ("1.25", FLOAT1, "1.2"),  # 1.25 is exact, and halves go to the even digit
        ("1.35", FLOAT1, "1.4"),  # the float is above 1.35
        ("1.2", FLOAT2, "1.2"),
        ("2.50", FLOAT2, "2.5"),  # a gold "2.50" could never match
        ("2", FLOAT1, "2.0"),
        ("1,234.5", FLOAT1, None),
        ("0.5 m", FLOAT1, None),
        # lists stay as they are
        ("[2007, 2008]", LIST, "[2007, 2008]"),
        ("[2007,2008]", LIST, "[2007,2008]"),
    ],
)
def test_an_extraction_is_normalised_as_published(found, of, prediction):
    assert normalised(found, of) == prediction


@pytest.mark.parametrize(
    ("response", "of", "found"),
    [
        # all of it
        ("8/11", ELEVENTHS, "8/11"),
        ("14", INTEGER, "14"),
        (" 14\n", INTEGER, "14"),
        ("1.50", FLOAT2, "1.5"),
        ('So. The answer is "8/11".', ELEVENTHS, "8/11"),
        ('<think>The answer is "3/11".</think> The answer is "8/11".', ELEVENTHS, "8/11"),
        # the answer or the box
        (r"\boxed{B}", ELEVENTHS, "B"),
        (r"\boxed{\text{(B)}}", ELEVENTHS, "B"),
        ("<answer>b</answer>", ELEVENTHS, "B"),
        ("<answer>(B) 8/11</answer>", ELEVENTHS, "B"),
        ("<answer>8/11 of it</answer>", ELEVENTHS, "8/11 of it"),
        ("<answer>(b)</answer>", SHUFFLED, "(b)"),
        (r"\boxed{14}", INTEGER, "14"),
        (r"\boxed{14.9}", INTEGER, "14.9"),
        (r"\boxed{14 cm}", INTEGER, "14"),
        (r"\boxed{14\text{ cm}^2}", INTEGER, "14"),
        (r"\boxed{1,234}", INTEGER, "1234"),
        (r"\boxed{50\%}", INTEGER, "50"),
        (r"\boxed{40^\circ}", INTEGER, "40"),
        (r"\boxed{-3}", INTEGER, "-3"),
        ("<answer>$1,450 in all</answer>", INTEGER, "1450"),
        (r"\boxed{\frac{1}{2}}", FLOAT1, r"\frac{1}{2}"),  # two numbers are none
        ("<answer>1 2 3</answer>", INTEGER, "1 2 3"),
        (r"\boxed{1} or \boxed{2}", INTEGER, "2"),
        (r"\boxed{[2007, 2008]}", LIST, "[2007, 2008]"),
        # neither
        ("The answer is (B).", ELEVENTHS, "B"),
        ("B", ELEVENTHS, "B"),
        ("It is (A) or rather (B), I think", ELEVENTHS, "B"),
        ("The fraction is 8/11 of the shape.", ELEVENTHS, "8/11"),
        ("It is 3/11 or 8/11.", ELEVENTHS, ""),
        ("It is 18/11.", ELEVENTHS, ""),
        ("The answer is (E).", ELEVENTHS, ""),
        ("<think>The answer is (B).", ELEVENTHS, ""),
        ("<think>(A)</think> (B)", ELEVENTHS, "B"),
        ("In 2007 there were 14.", INTEGER, "14"),
        ("There were 1,234.50 of them.", FLOAT1, "1234.50"),
        ("between 12-5", INTEGER, "5"),
        ("x = -5", INTEGER, "-5"),
        ("<think>14", INTEGER, ""),
        ("none", INTEGER, ""),
        ("Not [1, 2] but [2007, 2008].", LIST, "[2007, 2008]"),
        ("Between 2007 and 2008.", LIST, ""),
        ("", INTEGER, ""),
        ("<answer>" + "x" * 301 + "</answer>", ELEVENTHS, ""),
    ],
)
def test_an_answer_is_extracted_by_rules(response, of, found):
    assert extraction(response, of) == found


@pytest.mark.parametrize(
    ("gold", "response", "of", "accuracy", "strict", "parsed"),
    [
        ("8/11", "B", ELEVENTHS, 1, 1, "8/11"),
        ("8/11", "<answer>8/11</answer>", ELEVENTHS, 1, 1, "8/11"),
        ("8/11", "<answer>8/11 of it</answer>", ELEVENTHS, 1, 0, "8/11"),
        ("3/11", "<answer>7/11</answer>", ELEVENTHS, 1, 0, "3/11"),  # similar, and first
        ("3/5", "", ELEVENTHS, 1, 0, None),  # the shortest choice, found for nothing
        ("8/11", "", ELEVENTHS, 0, 0, None),
        ("3/5", "<think>The answer is (B)", ELEVENTHS, 1, 0, None),
        ("8/11", r"<think>A</think>\boxed{B}", ELEVENTHS, 1, 1, "8/11"),
        # "(a)" is read as the first option, "(e)"; the strict reading is the choice of that name
        ("(a)", "(a)", SHUFFLED, 0, 1, "(e)"),
        ("(e)", "(a)", SHUFFLED, 1, 0, "(e)"),
        ("(a)", "C", SHUFFLED, 1, 1, "(a)"),
        ("(a)", "(C)", SHUFFLED, 1, 1, "(a)"),
        ("A", "B", columns(["B", "A"]), 1, 1, "A"),
        ("14", "14", INTEGER, 1, 1, "14"),
        ("14", r"\boxed{14.9}", INTEGER, 1, 0, "14"),
        ("14", r"\boxed{14.0}", INTEGER, 1, 0, "14"),
        ("14", r"\boxed{14 cm}", INTEGER, 1, 0, "14"),
        ("14", "There are 14.", INTEGER, 1, 0, "14"),
        ("1234", r"\boxed{1,234}", INTEGER, 1, 0, "1234"),
        ("14", r"\boxed{fourteen}", INTEGER, 0, 0, None),
        ("1.2", r"\boxed{1.2}", FLOAT1, 1, 1, "1.2"),
        ("1.2", r"\boxed{1.24}", FLOAT1, 1, 0, "1.2"),
        ("1.2", r"\boxed{1.20}", FLOAT1, 1, 0, "1.2"),
        ("2.50", r"\boxed{2.50}", FLOAT2, 0, 1, "2.5"),  # no published reading reaches a trailing zero
        ("[2007, 2008]", "[2007, 2008]", LIST, 1, 1, "[2007, 2008]"),
        ("[2007, 2008]", "[2007,2008]", LIST, 0, 0, "[2007,2008]"),
    ],
)
def test_accuracy_is_as_published_and_strict_stands_beside_it(gold, response, of, accuracy, strict, parsed):
    found = score(gold, response, of)
    assert found.values == {"accuracy": accuracy, "strict": strict, "no_answer": float(parsed is None)}
    assert found.parsed == parsed


KINDS = [ELEVENTHS, SHUFFLED, INTEGER, FLOAT1, LIST]
PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    r"\boxed{",
    "}",
    " ",
    "14",
    "B",
    "(",
    ")",
    ".",
    ",",
    "[",
    "]",
]


@pytest.mark.parametrize("of", KINDS)
@pytest.mark.parametrize("name", PROTOCOLS)
@settings(max_examples=50, deadline=None)
@given(response=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_any_text_has_a_score_in_range_and_no_answer_is_never_strictly_right(of, name, response):
    gold = "[14]" if of is LIST else "14" if of["choices"] is None else of["choices"][1]
    item = Item("1", "How long?", gold, columns=of)
    found = PROTOCOLS[name].score(item, response, VIEW)
    assert list(found.values) == ["accuracy", "strict", "no_answer"]
    assert all(value in (0.0, 1.0) for value in found.values.values())
    assert found.values["no_answer"] == float(found.parsed is None)
    if found.parsed is None:
        assert found.values["strict"] == 0
        assert of["choices"] or found.values["accuracy"] == 0


@pytest.mark.parametrize("of", KINDS)
def test_a_hostile_text_of_100_kb_is_scored_in_a_moment(of):
    item = Item("1", "How long?", "14", columns=of)
    pieces = [
        "<answer>",
        r"\boxed{",
        "1,234,",
        "1",
        "(A)",
        "[",
        "A.",
        "answer is ",
        'The answer is "',
        "</think>",
        " ",
    ]
    texts = [piece * (100_000 // len(piece)) for piece in pieces]
    for response in [*texts, *(f"<answer>{text}</answer>" for text in texts)]:
        start = time.perf_counter()
        PROTOCOLS["rules"].score(item, response, VIEW)
        assert time.perf_counter() - start < 5


def test_the_published_numbers_say_that_gpt_extracted_the_answers():
    assert {reference.model: reference.value for reference in PROTOCOLS["rules"].references}[
        "Qwen2.5-VL-7B-Instruct"
    ] == 0.682
    for reference in PROTOCOLS["rules"].references:
        assert reference.split == "testmini"
        assert "extracted by GPT" in reference.source
    assert not PROTOCOLS["rules_boxed"].references
