"""Mathematics: each benchmark's own files in miniature, read, asked and scored; tables of cases worked by hand."""

import json
import time

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_files import embedded, lines, png

from vlm_entropy.data.loaders import LOADERS
from vlm_entropy.eval.benchmarks.answers import answer_text, find_letter
from vlm_entropy.eval.benchmarks.math_scores import equals, find_easy_r1, lm_eval_texts, lmms_eval_letter, nearest
from vlm_entropy.eval.benchmarks.maths import MATHS
from vlm_entropy.eval.benchmarks.places import after_thinking
from vlm_entropy.eval.items import to_item
from vlm_entropy.eval.protocols import Item, View

VIEW = View("qwen2_5_vl", "absolute_resized")
TEXT = Value("string")
ROOT = r"5 \sqrt { 3 }"
COLUMNS = {"choice": "C", "choices": ["15", "16", ROOT, "17"], "precise_value": [15.0, 16.0, 8.66, 17.0]}


def items(path, source, split=None, images=""):
    return [to_item(record, images) for record in LOADERS[source].read(str(path), split=split, images=images)]


def protocol(bench, name=None):
    protocols = MATHS[bench].protocols
    return protocols[name or next(iter(protocols))]


def user(bench, item, name=None):
    (message,) = protocol(bench, name).prompt(item, VIEW)
    assert message["role"] == "user"
    return message["content"]


def values(bench, gold, response, name=None, columns=None):
    item = Item("0", "Find x.", gold, columns=columns or {})
    return protocol(bench, name).score(item, response, VIEW)


# The files of each benchmark, from disk to score


def test_gsm8k_from_its_parquet_to_a_score(tmp_path):
    Dataset.from_list([{"question": "How much?", "answer": "2*600=<<2*600=1200>>1200\n#### 1,200"}]).to_parquet(
        tmp_path / "test-00000-of-00001.parquet"
    )
    (item,) = items(tmp_path / "test-00000-of-00001.parquet", "gsm8k")
    assert user("gsm8k", item) == (
        "How much?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert user("gsm8k", item, "lm_eval_strict") == "Question: How much?\nAnswer:"
    assert user("gsm8k", item, "lm_eval_flexible") == "Question: How much?\nAnswer:"
    score = protocol("gsm8k").score(item, r"So \boxed{1{,}200.0}.", VIEW)
    assert score.values["no_answer"] == 0
    assert protocol("gsm8k").score(item, r"So \boxed{1,200}.", VIEW) == (
        {"accuracy": 1, "strict": 1, "no_answer": 0},
        "1200",
        None,
    )


def test_math500_from_its_json_lines_to_a_score_with_its_cells(tmp_path):
    row = {"problem": "Halve one.", "solution": r"$\boxed{\frac{1}{2}}$.", "answer": r"\frac{1}{2}"}
    path = lines(
        tmp_path / "test.jsonl", {**row, "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}
    )
    (item,) = items(path, "math500")
    math_verify = protocol("math500")
    assert math_verify.cells(item) == {"subject": "Algebra", "level": "2"}
    # the bare LaTeX gold is wrapped: without that it parses to nothing
    assert math_verify.score(item, r"\boxed{0.5}", VIEW).values == {"accuracy": 1, "strict": 0, "no_answer": 0}
    assert math_verify.score(item, r"\boxed{\frac{1}{2}}", VIEW).values["strict"] == 1
    assert MATHS["math500"].sizes == {"test": 500, None: 500}


def test_amc_from_its_saved_folder_with_a_float_gold_to_a_score_of_many_samples(tmp_path):
    row = {"id": 3, "problem": "How many?", "answer": 142.0, "url": "https://example.org"}
    DatasetDict({"train": Dataset.from_list([row])}).save_to_disk(tmp_path / "amc")
    (item,) = items(tmp_path / "amc", "amc", split="train")
    assert item.answer == "142"
    amc = protocol("amc")
    assert (amc.samples, amc.temperature, amc.top_p) == (32, 0.6, 0.95)
    for response in (r"\boxed{142}", r"\boxed{142.0}", r"\boxed{142.00}"):
        assert amc.score(item, response, VIEW) == ({"accuracy": 1, "strict": 1, "no_answer": 0}, "142", None)
    assert amc.score(item, r"\boxed{14}", VIEW).values["accuracy"] == 0


def test_geometry3k_of_the_hub_is_asked_in_free_form_and_with_its_choices(tmp_path):
    texts = {"problem": TEXT, "answer": TEXT, "id": Value("int64"), "choices": List(TEXT), "ground_truth": TEXT}
    row = {"images": [embedded(png())], "problem": "<image>Find $y$.", "answer": ROOT, "id": 7}
    row |= {"choices": COLUMNS["choices"], "ground_truth": "C"}
    table = Dataset.from_list([row], features=Features({"images": List(ImageFeature()), **texts}))
    DatasetDict({"test": table}).save_to_disk(tmp_path / "g")
    (item,) = items(tmp_path / "g", "geometry3k_hf", split="test")
    assert user("geometry3k", item) == (
        "Find $y$. You FIRST think about the reasoning process as an internal monologue and then provide the final "
        "answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in "
        "\\boxed{}."
    )
    assert user("geometry3k", item, "multiple_choice") == (
        "Find $y$.\nA. 15\nB. 16\nC. 5 \\sqrt { 3 }\nD. 17\n"
        "Answer with the option's letter from the given choices directly."
    )
    free = protocol("geometry3k").score(item, r"<think>So</think> \boxed{5\sqrt{3}}", VIEW)
    assert free == ({"accuracy": 1, "strict": 1, "no_answer": 0}, r"5\sqrt{3}", None)
    choice = protocol("geometry3k", "multiple_choice").score(item, "C", VIEW)
    assert choice == ({"accuracy": 1, "lmms_eval": 1, "no_answer": 0}, "C", None)
    with pytest.raises(ValueError, match="no column 'precise_value'"):
        user("geometry3k", item, "intergps")


def test_geometry3k_of_intergps_can_be_scored_by_the_nearest_value(tmp_path):
    folder = tmp_path / "geometry3k" / "test" / "2401"
    folder.mkdir(parents=True)
    data = {"annotat_text": "Find $y$.", "answer": "C", "choices": COLUMNS["choices"]}
    (folder / "data.json").write_text(json.dumps({**data, "precise_value": COLUMNS["precise_value"]}))
    (folder / "img_diagram.png").write_bytes(png())
    (item,) = items(tmp_path / "geometry3k", "geometry3k", split="test")
    assert user("geometry3k", item, "intergps") == user("geometry3k", item)
    assert protocol("geometry3k", "intergps").score(item, r"\boxed{9}", VIEW).parsed == "C"
    without = Item("0", "Find $y$.", "15")
    with pytest.raises(ValueError, match="no column 'choices'"):
        user("geometry3k", without, "multiple_choice")


def test_geoqa_from_r1_vs_json_lines_to_a_score(tmp_path):
    (tmp_path / "Geo170K/images/test").mkdir(parents=True)
    (tmp_path / "Geo170K/images/test/0.png").write_bytes(png())
    row = {"image_path": "./Geo170K/images/test/0.png", "question": "Find angle A.", "ground_truth": "140°"}
    path = lines(tmp_path / "geoqa_test_prompts.jsonl", row)
    (item,) = items(path, "geoqa_r1v", images=str(tmp_path))
    assert item.image_size == (4, 4)
    assert user("geoqa", item) == (
        "Find angle A. Output the thinking process in <think> </think> and final answer (number) in <answer> "
        "</answer> tags."
    )
    score = protocol("geoqa").score(item, "<think> x = 7 </think><answer>140</answer>", VIEW)
    assert score == ({"accuracy": 1, "strict": 1, "no_answer": 0}, "140", None)
    assert MATHS["geoqa"].sizes == {None: 754}


def test_mmk12_from_its_parquet_to_a_letter(tmp_path):
    row = {"id": "b", "question": "<image>Which gas?\nA. O2\nB. N2", "answer": "B", "subject": "chemistry"}
    texts = {"id": TEXT, "question": TEXT, "answer": TEXT, "subject": TEXT, "image": ImageFeature()}
    Dataset.from_list([{**row, "image": embedded(png())}], features=Features(texts)).to_parquet(tmp_path / "t.parquet")
    (item,) = items(tmp_path / "t.parquet", "mmk12")
    assert protocol("mmk12").cells(item) == {"subject": "chemistry"}
    assert user("mmk12", item).startswith("Which gas?\nA. O2\nB. N2\nPlease reason step by step")
    assert protocol("mmk12").score(item, r"\boxed{\text{B}}", VIEW) == (
        {"accuracy": 1, "strict": 1, "no_answer": 0},
        "B",
        None,
    )


# math-verify


@pytest.mark.parametrize(
    ("gold", "response", "accuracy", "strict", "parsed"),
    [
        ("18", r"\boxed{18}", 1, 1, "18"),
        ("18", r"\boxed{18.0}", 1, 1, "18"),  # lm-eval: wrong
        ("18", r"\boxed{\$18}", 1, 1, "18"),
        ("1200", r"\boxed{1,200}", 1, 1, "1200"),
        ("18", "The answer is 18.", 0, 0, None),  # no box, no answer
        ("18", "<answer>18</answer>", 1, 0, "18"),  # an answer, but not in the form that was asked for
        ("18", "<answer> 18 </answer>", 1, 0, "18"),
        ("14", r"\boxed{14 cm}", 1, 1, "14"),
        ("14", r"\boxed{14.9}", 0, 0, "14.9"),
        ("14.9", r"\boxed{14.90}", 1, 1, "14.9"),
        ("40", r"\boxed{40°}", 1, 1, "40"),
        ("40", r"\boxed{40^\circ}", 1, 1, "40"),
        (r"50\%", r"\boxed{0.5}", 1, 0, "0.5"),
        (r"\frac{1}{3}", r"\boxed{0.333333}", 1, 0, "0.333333"),
        (r"\frac{1}{3}", r"\boxed{0.333}", 0, 0, "0.333"),
        (r"5\sqrt{3}", r"\boxed{8.66}", 0, 0, "8.66"),
        ("(1,2)", r"\boxed{(1, 2)}", 1, 1, "(1,2)"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", 1, 0, r"\{2,1\}"),
        ("40", r"\boxed{41}. No wait, \boxed{40}", 1, 1, "40"),  # the last of two boxes, no set of both
        ("41", r"\boxed{41} no wait \boxed{40}", 0, 0, "40"),
        ("40", r"<think>\boxed{40}</think> I do not know.", 0, 0, None),
        ("40", r"<think>It is \boxed{40}, or", 0, 0, None),  # cut off while thinking
        ("40", r"\boxed{40", 0, 0, None),
        ("40", r"\boxed{}", 0, 0, None),
        ("40", r"\boxed{" + "1+" * 300 + "40}", 0, 0, None),  # longer than 300 characters
        ("40", "", 0, 0, None),
        ("B", r"\boxed{(B) " + "so " * 100 + "}", 0, 0, None),  # a letter, and longer than 300 characters
        (r"\text{Evelyn}", r"\boxed{Evelyn}", 1, 1, "Evelyn"),
        ("12", r"\boxed{1 2}", 0, 0, "1 2"),
    ],
)
def test_a_boxed_answer_is_compared_by_math_verify(gold, response, accuracy, strict, parsed):
    score = values("math500", gold, response)
    assert score.values == {"accuracy": accuracy, "strict": strict, "no_answer": float(parsed is None)}
    assert score.parsed == parsed


def test_a_gold_that_math_verify_cannot_read_is_compared_as_text():
    assert equals("∎", "∎")
    assert equals("∎", " ∎ ")
    assert not equals("∎", "1")


@pytest.mark.parametrize(
    ("response", "accuracy", "strict"),
    [
        ("<think>a</think><answer> 140° </answer>", 1, 1),
        ("<think>a</think><answer>140</answer>", 1, 1),
        (r"<think>a</think><answer>\boxed{140}</answer>", 1, 1),
        (r"<think>a</think>\boxed{140}", 1, 0),
        ("<think> 140 </think><answer>40</answer>", 0, 0),  # R1-V's parser reads 140 here
        ("<think><answer>140</answer></think><answer>40</answer>", 0, 0),
        ("<think> 140 </think>", 0, 0),
        ("140", 0, 0),
    ],
)
def test_geoqa_looks_at_the_answer_alone(response, accuracy, strict):
    score = values("geoqa", "140°", response)
    assert (score.values["accuracy"], score.values["strict"]) == (accuracy, strict)


@pytest.mark.parametrize(
    ("response", "box"),
    [
        (r"< think >a< / think >\boxed{1 / 2}", "1/2"),
        (r"<think>\boxed{1}< /think> \boxed{2}", "2"),
        (r"<think>\boxed{1}< /think>", None),
        (r"\boxed{3 < x}", "3<x"),
        ("a" * 5, None),
    ],
)
def test_easy_r1_drops_blanks_around_marks_before_it_reads_the_box(response, box):
    assert find_easy_r1(response) == box


def test_free_form_takes_no_answer_tag_for_a_box():
    score = values("geometry3k", "15", "<think>a</think><answer>15</answer>")
    assert score == ({"accuracy": 0, "strict": 0, "no_answer": 1}, None, None)


# lm-eval's filters of GSM8K


@pytest.mark.parametrize(
    ("response", "strict", "flexible"),
    [
        ("So\n#### 18", "18", "18"),
        ("So\n#### 18.0", "18.0", "18.0"),
        ("#### 17\n#### 18", "17", "18"),  # the first, the last
        ("#### 1,800.", "1800", "1800"),
        ("#### $18", None, "18"),  # no sign may stand before the number
        ("#### -18", "-18", "-18"),
        ("####18", None, "18"),
        ("It costs $18.", None, "18"),
        ("It costs $18.00.", None, "18.00"),
        ("It costs $18..", None, "18."),  # one point goes
        ("18 of 20", None, "20"),
        ("It is 5", None, "5"),
        ("It is 18. Well...", None, ".."),  # points alone are a run
        ("#### 18\nQuestion: 5", "18", "18"),  # the stop word ends the response
        ("18</s>5", None, "18"),
        ("no number", None, None),
        ("", None, None),
    ],
)
def test_lm_evals_filters_read(response, strict, flexible):
    assert lm_eval_texts(response) == {"strict": strict, "flexible": flexible}


@pytest.mark.parametrize(
    ("gold", "response", "strict", "flexible"),
    [
        ("18", "#### 18", 1, 1),
        ("18", "#### 18.0", 0, 0),
        ("1200", "#### 1,200", 1, 1),
        ("18", "It is 18.", 0, 1),
        ("18", "#### 18 and then 19", 1, 0),
        ("18", "<think>18", 0, 1),  # the published filter sees the thinking; strict shows it
        ("18", "", 0, 0),
    ],
)
def test_lm_evals_equality_is_that_of_texts(gold, response, strict, flexible):
    first = values("gsm8k", gold, response, "lm_eval_strict").values
    second = values("gsm8k", gold, response, "lm_eval_flexible").values
    assert (first["accuracy"], first["flexible"]) == (strict, flexible)
    assert (second["accuracy"], second["strict"]) == (flexible, strict)


def test_what_lm_eval_reads_is_no_vote_without_a_digit():
    score = values("gsm8k", "18", "It is 18. Well...", "lm_eval_flexible")
    assert score == ({"accuracy": 0, "strict": 0, "no_answer": 1}, None, None)
    assert values("gsm8k", "18", "It is 19", "lm_eval_strict").parsed is None
    assert values("gsm8k", "18", "It is 1,900.", "lm_eval_flexible").parsed == "1900"


# Letters


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("$B$", "B"),
        ("(B) 8/11", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\mathrm{(B)}}", "B"),
        ("<answer> B </answer>", "B"),
        ("<think>A</think> B", "B"),
        ("<think>The answer is A.</think>\n\nThe correct answer is (B).", "B"),
        ("The answer is B, not A.", "B"),
        ("Answer: **B**", "B"),
        ("So option C is out. The answer is D.", "D"),
        ("<think>The answer is A", None),
        ("<think>A</think>", None),
        ("A or B", None),
        ("The answer is Bold.", None),
        ("The answer is b", None),
        (r"\boxed{A, B}", None),
        (r"\boxed{16}. The answer is B.", None),  # the box is the answer
        ("", None),
    ],
)
def test_a_letter_is_read_after_the_thinking(response, letter):
    assert find_letter(response) == letter


def test_only_what_follows_the_thinking_counts():
    assert after_thinking("<think>a</think> b") == "b"
    assert after_thinking("a <think>b</think> c <think>d</think> e") == "e"
    assert after_thinking("a <think>b") == "a"
    assert after_thinking("<think>b") == ""


@pytest.mark.parametrize(
    ("response", "accuracy", "strict", "no_answer"),
    [
        (r"\boxed{B}", 1, 1, 0),
        ("<answer>B</answer>", 1, 0, 0),
        ("B", 1, 0, 0),
        ("A", 0, 0, 0),
        ("N2", 0, 0, 1),
        ("<think>B", 0, 0, 1),
    ],
)
def test_mmk12_counts_letters_and_those_in_a_box(response, accuracy, strict, no_answer):
    score = values("mmk12", "B", response)
    assert score.values == {"accuracy": accuracy, "strict": strict, "no_answer": no_answer}


@pytest.mark.parametrize(
    ("response", "ours", "theirs"),
    [
        ("C", "C", "C"),
        ("Answer: c", None, "C"),
        ("<think>Angle A is right.</think> <answer>C</answer>", "C", "C"),  # A and C are words, C is the last
        ("<answer>C</answer> of a triangle", "C", "A"),  # the article
        ("C. In triangle D) it", None, "D"),
        ("It is 17", None, "D"),  # by the text of the choice
        ("It is 99", None, None),
    ],
)
def test_lmms_eval_takes_points_and_articles_for_letters(response, ours, theirs):
    assert lmms_eval_letter(response, COLUMNS["choices"]) == theirs
    score = values("geometry3k", ROOT, response, "multiple_choice", COLUMNS)
    assert score.parsed == ours
    assert score.values["accuracy"] == (ours == "C")
    assert score.values["lmms_eval"] == (theirs == "C")


# InterGPS


def test_the_nearest_values_are_all_that_share_the_least_gap():
    assert nearest(12.5, [5.0, 12.0, 13.0, 26.0]) == [1, 2]
    assert nearest(12.4, [5.0, 12.0, 13.0, 26.0]) == [1]
    assert nearest(9.0, [15.0, None, 8.66, None]) == [2]
    assert nearest(9.0, [None] * 4) == []


@pytest.mark.parametrize(
    ("response", "accuracy", "strict", "parsed"),
    [
        (r"\boxed{8.66}", 1, 0, "C"),
        (r"\boxed{-100}", 1, 0, "C"),  # as published, the nearest of any number
        (r"\boxed{11.82}", 1, 0, "C"),  # 15 - 11.82 = 3.18 and 11.82 - 8.66 = 3.16
        (r"\boxed{11.84}", 0, 0, "A"),  # 15 - 11.84 = 3.16 and 11.84 - 8.66 = 3.18
        (r"\boxed{5\sqrt{3}}", 1, 1, "C"),
        (r"\boxed{8.66 cm}", 1, 0, "C"),
        (r"\boxed{6\sqrt{3}}", 0, 0, None),  # LaTeX that is no choice
        (r"\boxed{x}", 0, 0, None),
        ("8.66", 0, 0, None),
        (r"<think>\boxed{8.66}", 0, 0, None),
    ],
)
def test_intergps_takes_the_nearest_value(response, accuracy, strict, parsed):
    score = values("geometry3k", ROOT, response, "intergps", COLUMNS)
    assert score.values == {"accuracy": accuracy, "strict": strict, "no_answer": float(parsed is None)}
    assert score.parsed == parsed


def test_intergps_is_never_right_where_a_value_is_missing_and_always_in_a_tie():
    missing = {**COLUMNS, "precise_value": [15.0, None, 8.66, 17.0]}
    assert values("geometry3k", ROOT, r"\boxed{8.66}", "intergps", missing) == (
        {"accuracy": 0, "strict": 0, "no_answer": 0},
        "C",
        None,
    )
    tie = {**COLUMNS, "precise_value": [6.0, 99.0, 8.0, 99.0]}  # 7 is as far from 6 as from 8
    assert values("geometry3k", ROOT, r"\boxed{7}", "intergps", tie).values["accuracy"] == 1


# One writing


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("1,200.0", "1200"),
        ("0018", "18"),
        ("18.50", "18.5"),
        ("+18", "18"),
        ("-18.0", "-18"),
        ("-0", "0"),
        ("0.50", "0.5"),
        ("1,20", "1,20"),  # no thousands: a pair
        ("1 2", "1 2"),
        ("123456789012345678901234567890.0", "123456789012345678901234567890"),
        (r"5 \sqrt { 3 }", r"5\sqrt{3}"),
        (r"\text{Evelyn}", "Evelyn"),
        ("1/2", "1/2"),
        (r"50\%", r"50\%"),
        ("14 cm", "14"),
        ("$14$", "14"),
        (".5", "0.5"),
        (" ", None),
        (".", None),
        ("1" * 301, None),
    ],
)
def test_an_answer_has_one_writing(answer, text):
    assert answer_text(answer) == text


# Laws

ALL = [(bench, name) for bench, benchmark in MATHS.items() for name in benchmark.protocols]
PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    r"\boxed{",
    "}",
    "####",
    " ",
    "15",
    "C",
    "(",
    ")",
    "1,2",
    "$",
]
HOSTILE = ["<answer>" * 12_500, r"\boxed{" * 14_000, "a " * 50_000, " " * 100_000, "1,234," * 16_000, "1" * 100_000]
HOSTILE += ["<" + " " * 99_999, "Answer:" + " " * 99_990, "#### " * 20_000, "answer is " * 10_000, "\\text{" * 16_000]
HOSTILE += ["</think>" * 12_000, r"\boxed{" + "1+" * 49_000 + "1}", "<answer>" + "(" * 99_000 + "</answer>"]


@pytest.mark.parametrize(("bench", "name"), ALL)
@settings(max_examples=30, deadline=None)
@given(response=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_any_text_has_a_score_in_range_and_no_answer_earns_nothing(bench, name, response):
    score = values(bench, "15", response, name, {**COLUMNS, "choice": "A"})
    assert all(value in (0.0, 1.0) for value in score.values.values())
    assert list(score.values) == list(values(bench, "15", "", name, COLUMNS).values)
    assert next(iter(score.values)) == "accuracy"
    assert score.values["no_answer"] == float(score.parsed is None)
    if score.parsed is None:
        assert score.values["accuracy"] == 0
    if "strict" in score.values and name != "lm_eval_flexible":
        assert score.values["strict"] <= score.values["accuracy"]


@pytest.mark.parametrize(("bench", "name"), ALL)
def test_a_hostile_text_of_100_kb_is_scored_in_a_moment(bench, name):
    for response in HOSTILE:
        start = time.perf_counter()
        score = values(bench, "15", response, name, COLUMNS)
        assert time.perf_counter() - start < 5
        assert score.values["accuracy"] == 0


def test_every_protocol_says_what_it_is_and_compares_only_its_own_split():
    for bench, benchmark in MATHS.items():
        assert benchmark.formats[0] in LOADERS
        for name, each in benchmark.protocols.items():
            assert each.source
            assert each.samples == 1 or bench == "amc"
            for reference in each.references:
                assert (bench, name, reference.split) == ("geometry3k", "free_form", "test")
                assert "recalled, not checked" in reference.source
