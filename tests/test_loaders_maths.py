"""ViRL39K, CalibRL's part of it, MMK12 and MathVista: their own files in miniature, and the traps in them."""

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from loader_files import answers, embedded, lines, png, turns

from vlm_entropy.data.loaders.maths import (
    calibrl_record,
    expert_text,
    mathvista_record,
    read_mathvista,
    read_mmk12,
    read_virl39k,
    unboxed,
    virl39k_record,
)

TEXT = Value("string")


# ViRL39K and CalibRL


def virl(**changes):
    row = {"question": "<image>Find x.", "answer": r"\boxed{60}", "PassRate_32BTrained": 0.5, "PassRate_7BBase": 0.25}
    return {**row, "category": "Geometric", "source": "MMMath", "qid": "m-1", "image": ["images/m-1-0.jpg"], **changes}


def test_virl39k_is_read_from_its_parquet_file_and_from_the_folder_around_it(tmp_path):
    several = virl(qid="m-2", image=["images/m-2-0.jpg", "images/m-2-1.jpg"], answer=r"\boxed{\frac{1}{2}}")
    Dataset.from_list([virl(), several]).to_parquet(tmp_path / "39Krelease.parquet")
    (tmp_path / "images").mkdir()
    for name in ("m-1-0.jpg", "m-2-0.jpg", "m-2-1.jpg"):
        (tmp_path / "images" / name).write_bytes(png())
    first, second = read_virl39k(str(tmp_path / "39Krelease.parquet"))
    assert first == {
        "id": "m-1",
        "image": "images/m-1-0.jpg",
        "conversations": turns("<image>Find x.", "60"),
        "PassRate_32BTrained": 0.5,
        "PassRate_7BBase": 0.25,
        "category": "Geometric",
        "source": "MMMath",
    }
    # the question has one marker, the row two images
    assert second["image"] == ["images/m-2-0.jpg", "images/m-2-1.jpg"]
    assert second["conversations"] == turns("<image><image>Find x.", r"\frac{1}{2}")
    assert list(read_virl39k(str(tmp_path))) == [first, second]


def test_an_expert_solution_beside_virl39k_columns_becomes_the_column_expert():
    record = virl39k_record(virl(solution="<think>So</think> \\boxed{60}"))
    assert record["expert"] == "<think>So</think> \\boxed{60}"
    assert "solution" not in record


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{60}", "60"),
        (r" \boxed{\frac{1}{2}} ", r"\frac{1}{2}"),
        (r"\boxed{\text{A}}", r"\text{A}"),
        ("B", "B"),
        (r"\boxed{1} or \boxed{2}", r"\boxed{1} or \boxed{2}"),
        (r"x = \boxed{1}", r"x = \boxed{1}"),
        (r"\boxed{1} cm", r"\boxed{1} cm"),
        (r"\boxed{60", r"\boxed{60"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_a_box_is_taken_off_only_where_it_is_the_whole_answer(text, inside):
    assert unboxed(text) == inside


def test_an_empty_box_is_no_answer():
    with pytest.raises(ValueError, match="the answer is ''"):
        virl39k_record(virl(answer=r"\boxed{}"))


def calibrl(**changes):
    prompt = [{"role": "system", "content": "Think."}, {"role": "user", "content": "<image>Find x."}]
    row = {"prompt": prompt, "images": [png()], "reward_model": {"ground_truth": "60", "style": "rule"}}
    return {**row, "solution": "<think>So</think> 60", "data_source": "virl", **changes}


def test_calibrl_is_read_from_parquet_with_the_expert_solution(tmp_path):
    features = Features(
        {
            "prompt": List({"role": TEXT, "content": TEXT}),
            "images": List(ImageFeature()),
            "reward_model": {"ground_truth": TEXT, "style": TEXT},
            "solution": TEXT,
            "data_source": TEXT,
        }
    )
    Dataset.from_list([calibrl(images=[embedded(png())])], features=features).to_parquet(tmp_path / "train_9k.parquet")
    assert list(read_virl39k(str(tmp_path / "train_9k.parquet"))) == [
        {
            "id": 0,
            "image": png(),
            "conversations": turns("<image>Find x.", "60"),
            "data_source": "virl",
            "expert": "<think>So</think> 60",
        }
    ]


@pytest.mark.parametrize(
    ("solution", "text"),
    [
        ("So.", "So."),
        ([{"role": "assistant", "content": "So."}], "So."),
        ({"role": "assistant", "content": "So."}, "So."),
        (["So."], "So."),
        ([{"content": "So."}, {"content": "Or so."}], "So."),
        (None, None),
        ([], None),
    ],
)
def test_an_expert_solution_may_be_a_text_a_message_or_a_list_of_either(solution, text):
    assert expert_text(solution) == text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "Find x."}, "prompt is 'Find x.'; a list with one user message"),
        ({"prompt": None}, "prompt is None"),
        ({"prompt": []}, r"prompt is \[\]"),
        ({"prompt": ["Find x."]}, r"prompt is \['Find x.'\]"),
        ({"prompt": [{"role": "user", "content": "a"}] * 2}, "a list with one user message is needed"),
        ({"reward_model": None}, "reward_model is None; an object with ground_truth"),
        ({"reward_model": "60"}, "reward_model is '60'; an object with ground_truth"),
        ({"reward_model": {"style": "rule"}}, "no column 'ground_truth'; the columns are style"),
        ({"reward_model": {"ground_truth": None}}, "ground_truth is None"),
        ({"solution": 3}, "solution is 3; a text is needed"),
    ],
)
def test_a_calibrl_row_without_question_or_gold_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        calibrl_record(calibrl(**changes))


def test_a_calibrl_row_for_validation_needs_no_expert_and_no_image(tmp_path):
    row = calibrl(pass_ratio=0.5)
    del row["solution"], row["images"]
    assert list(read_virl39k(lines(tmp_path / "val.jsonl", row))) == [
        {"id": 0, "conversations": turns("Find x.", "60"), "data_source": "virl", "pass_ratio": 0.5}
    ]


def test_of_a_calibrl_row_only_the_user_message_is_asked_and_the_gold_loses_its_box():
    prompt = [*calibrl()["prompt"], {"role": "assistant", "content": "<think>"}]
    record = calibrl_record(calibrl(prompt=prompt, reward_model={"ground_truth": r"\boxed{60}"}))
    assert record["conversations"] == turns("<image>Find x.", "60")


# MMK12 and MathVista


def test_mmk12_is_free_form_in_training_and_letters_with_a_subject_in_the_test(tmp_path):
    train = {"id": "a", "question": "<image>Find x.", "answer": "60", "image": embedded(png())}
    test = {"id": "b", "question": "<image>Which gas?\nA. O2\nB. N2", "answer": "B", "subject": "chemistry"}
    texts = {"id": TEXT, "question": TEXT, "answer": TEXT, "image": ImageFeature()}
    Dataset.from_list([train], features=Features(texts)).to_parquet(tmp_path / "train.parquet")
    Dataset.from_list([{**test, "image": embedded(png())}], features=Features({**texts, "subject": TEXT})).to_parquet(
        tmp_path / "test.parquet"
    )
    assert list(read_mmk12(str(tmp_path / "train.parquet"))) == [
        {"id": "a", "image": png(), "conversations": turns("<image>Find x.", "60")}
    ]
    assert list(read_mmk12(str(tmp_path / "test.parquet"))) == [
        {
            "id": "b",
            "image": png(),
            "subject": "chemistry",
            "conversations": turns("<image>Which gas?\nA. O2\nB. N2", "B"),
        }
    ]


def vista(**changes):
    row = {"pid": "1", "query": "Hint: a number.\nQuestion: How long?", "question": "How long?"}
    row |= {"image": "images/1.jpg", "choices": None, "unit": None, "precision": 1.0, "answer": "1.2"}
    row |= {"question_type": "free_form", "answer_type": "float", "metadata": {"split": "testmini"}}
    return {**row, **changes}


def test_mathvista_is_read_from_parquet_with_a_whole_precision_and_the_decoded_image(tmp_path):
    features = Features(
        {
            **dict.fromkeys(
                ("pid", "query", "question", "image", "unit", "answer", "question_type", "answer_type"), TEXT
            ),
            "decoded_image": ImageFeature(),
            "choices": List(TEXT),
            "precision": Value("float64"),
            "metadata": {"split": TEXT},
        }
    )
    image = embedded(png())
    mcq = vista(pid="168", choices=["(b)", "(a)", "(a)"], precision=None, answer="(a)", question_type="multi_choice")
    rows = [{**vista(), "decoded_image": image}, {**mcq, "decoded_image": image}]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "testmini.parquet")
    first, second = read_mathvista(str(tmp_path / "testmini.parquet"))
    assert first == {
        "id": "1",
        "image": png(),
        "conversations": turns("<image>Hint: a number.\nQuestion: How long?", "1.2"),
        "question": "How long?",
        "choices": None,
        "unit": None,
        "precision": 1,
        "question_type": "free_form",
        "answer_type": "float",
        "metadata": {"split": "testmini"},
    }
    assert type(first["precision"]) is int
    # choices keep their order and their doubles, and the gold stays the text, not a letter
    assert (second["choices"], second["precision"]) == (["(b)", "(a)", "(a)"], None)
    assert answers([second]) == ["(a)"]


def test_mathvista_in_json_has_the_path_of_its_image():
    assert mathvista_record(vista())["image"] == "images/1.jpg"
    assert mathvista_record(vista(decoded_image=None))["image"] == "images/1.jpg"


@pytest.mark.parametrize("precision", [1.5, float("nan"), float("inf"), "1", True])
def test_a_precision_that_is_no_whole_number_is_refused(precision):
    with pytest.raises(ValueError, match=r"precision is .*; a whole number or nothing"):
        mathvista_record(vista(precision=precision))


def test_the_test_split_of_mathvista_is_refused_for_its_missing_answers(tmp_path):
    with pytest.raises(ValueError, match=r"row 2 of .*the answer is ''"):
        list(read_mathvista(lines(tmp_path / "test.jsonl", vista(), vista(answer=""))))


@pytest.mark.parametrize("read", [read_virl39k, read_mmk12, read_mathvista])
def test_a_file_has_no_splits_so_none_can_be_asked_for(tmp_path, read):
    with pytest.raises(ValueError, match="is one file, without splits; leave out split 'test'"):
        list(read(lines(tmp_path / "a.jsonl", {}), split="test"))
