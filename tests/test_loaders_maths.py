"""Maths with and without figures: each source's own files in miniature, and the traps in them."""

import json
import os
from io import BytesIO
from zipfile import ZipFile

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from vlm_entropy.data.loaders.geometry import (
    geometry3k_hf_record,
    geometry3k_record,
    geoqa_r1v_record,
    read_geometry3k,
    read_geometry3k_hf,
    read_geoqa_r1v,
)
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
from vlm_entropy.data.loaders.records import make_record
from vlm_entropy.data.loaders.text_maths import (
    gsm8k_record,
    number_text,
    read_amc,
    read_gsm8k,
    read_math500,
)

TEXT = Value("string")


def turns(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def answers(records):
    return [record["conversations"][1]["value"] for record in records]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def png(side=4):
    file = BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


def embedded(image):
    return {"bytes": image, "path": None}


# The record itself


def test_an_image_marker_stands_in_front_for_each_image_whatever_the_question_had():
    record = make_record("Is <image> in <image>, or <image>?", "yes", image=["b.jpg", "a.jpg"], id=1)
    assert record["image"] == ["b.jpg", "a.jpg"]
    assert record["conversations"][0]["value"] == "<image><image>Is  in , or ?"
    assert "image" not in make_record("<image>Is it?", "yes")
    assert make_record("<image>Is it?", "yes", image=[])["conversations"] == turns("Is it?", "yes")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("<image> ", "yes", None), "the question is ' '"),
        ((None, "yes", None), "the question is None"),
        (("Is it?", "  ", None), "the answer is '  '"),
        (("Is it?", 3, None), "the answer is 3"),
        (("Is it?", "yes", ["a.jpg", None]), "the image is None"),
        (("Is it?", "yes", [b""]), "the image is b''"),
        (("Is it?", "yes", {"url": "x"}), "the image is {'url': 'x'}"),
    ],
)
def test_a_record_needs_a_question_an_answer_and_whole_images(arguments, reason):
    question, answer, image = arguments
    with pytest.raises(ValueError, match=reason):
        make_record(question, answer, image=image)


# Geometry3K


def problem(**changes):
    data = {"annotat_text": "Find $y$.", "problem_text": "Find y.", "choices": ["15", "16", r"5 \sqrt { 3 }", "17"]}
    return {**data, "answer": "C", "precise_value": [15.0, 16.0, 8.66, None], "img_width": 4, **changes}


@pytest.fixture
def geometry3k(tmp_path):
    """Problems 2401, 2402 (test) and 9, 10 (train), as folders."""
    for name in ("test/2402", "train/10", "train/9", "test/2401"):
        folder = tmp_path / "geometry3k" / name
        folder.mkdir(parents=True)
        (folder / "data.json").write_text(json.dumps(problem()))
        (folder / "logic_form.json").write_text("{}")
        (folder / "img_diagram.png").write_bytes(png())
        (folder / "img_diagram_point.png").write_bytes(b"not this one")
    return tmp_path / "geometry3k"


def zipped(folder, path, prefix=""):
    with ZipFile(path, "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, prefix + str(file.relative_to(folder)))
        archive.writestr("__MACOSX/test/2401/._data.json", b"\x00")
    return str(path)


def test_geometry3k_is_read_from_its_folders_in_the_order_of_its_numbers(geometry3k):
    records = list(read_geometry3k(str(geometry3k), images=str(geometry3k)))
    assert [record["image"] for record in records] == [
        f"{name}/img_diagram.png" for name in ("test/2401", "test/2402", "train/9", "train/10")
    ]
    assert records[0] == {
        "id": "2401",
        "image": "test/2401/img_diagram.png",
        "conversations": turns("<image>Find $y$.", r"5 \sqrt { 3 }"),
        "choice": "C",
        "choices": ["15", "16", r"5 \sqrt { 3 }", "17"],
        "precise_value": [15.0, 16.0, 8.66, None],
    }


def test_without_an_image_folder_the_paths_of_geometry3k_open_as_they_are(geometry3k):
    (first, _) = read_geometry3k(str(geometry3k), split="train")
    assert first["id"] == "9"
    assert os.path.isfile(first["image"])


@pytest.mark.parametrize("prefix", ["", "geometry3k/"])
def test_geometry3k_is_read_from_a_zip_file_without_unpacking(geometry3k, tmp_path, prefix):
    path = zipped(geometry3k, tmp_path / "all.zip", prefix)
    before = sorted(tmp_path.rglob("*"))
    records = list(read_geometry3k(path))
    assert sorted(tmp_path.rglob("*")) == before
    assert [record["id"] for record in records] == ["2401", "2402", "9", "10"]
    assert [record.pop("image") for record in records] == [png()] * 4
    from_folder = list(read_geometry3k(str(geometry3k)))
    assert [{**record, "image": None} for record in records] == [{**record, "image": None} for record in from_folder]
    assert [record["id"] for record in read_geometry3k(path, split="train")] == ["9", "10"]


def test_a_zip_file_of_one_split_may_name_the_split_by_its_own_name(geometry3k, tmp_path):
    path = zipped(geometry3k / "train", tmp_path / "train.zip")
    assert [record["id"] for record in read_geometry3k(path, split="train")] == ["9", "10"]
    with pytest.raises(ValueError, match=r"train.zip' holds no test/\{id\}/data.json"):
        list(read_geometry3k(path, split="test"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": "E"}, "answer is 'E'; a letter from A to D"),
        ({"answer": "AB"}, "answer is 'AB'"),
        ({"answer": "16"}, "answer is '16'"),
        ({"answer": ""}, "answer is ''"),
        ({"choices": ["1", "2", "3"]}, r"choices is \['1', '2', '3'\]; a list of four"),
        ({"choices": ["1", "2", " ", "4"]}, "the answer is ' '"),
    ],
)
def test_a_problem_without_a_gold_choice_is_refused_by_its_number(geometry3k, changes, reason):
    (geometry3k / "train" / "9" / "data.json").write_text(json.dumps(problem(**changes)))
    with pytest.raises(ValueError, match=f"problem 9 of .*{reason}"):
        list(read_geometry3k(str(geometry3k)))


def test_a_problem_without_its_figure_or_with_broken_json_is_refused(geometry3k, tmp_path):
    (geometry3k / "train" / "9" / "img_diagram.png").unlink()
    for path in (str(geometry3k), zipped(geometry3k, tmp_path / "a.zip")):
        with pytest.raises(ValueError, match=r"problem 9 of .*there is no img_diagram.png"):
            list(read_geometry3k(path))
    for text, reason in [("{", "Expecting property name"), ("[1]", r"data.json is \[1\]; an object")]:
        (geometry3k / "test" / "2401" / "data.json").write_text(text)
        with pytest.raises(ValueError, match=f"problem 2401 of .*{reason}"):
            list(read_geometry3k(str(geometry3k)))


def test_a_path_that_is_no_geometry3k_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for path in (tmp_path / "a.txt", tmp_path / "none"):
        with pytest.raises(ValueError, match="neither a folder nor a zip file"):
            list(read_geometry3k(str(path)))
    with pytest.raises(ValueError, match=r"holds no split/\{id\}/data.json"):
        list(read_geometry3k(str(tmp_path)))


def test_each_letter_is_its_own_choice():
    data = problem(choices=["1", "2", "3", "4"])
    records = [geometry3k_record({**data, "answer": letter}, problem_id="0", image="a.png") for letter in "ABCD"]
    assert answers(records) == ["1", "2", "3", "4"]


def test_geometry3k_of_the_hub_is_read_from_a_saved_dataset_dict(tmp_path):
    features = Features(
        {
            "images": List(ImageFeature()),
            "problem": TEXT,
            "answer": TEXT,
            "id": Value("int64"),
            "choices": List(TEXT),
            "ground_truth": TEXT,
        }
    )
    row = {"images": [embedded(png())], "problem": "<image>Find $y$.", "answer": "16", "id": 7}
    row |= {"choices": ["15", "16", "17", "18"], "ground_truth": "B"}
    test = Dataset.from_list([row], features=features)
    train = Dataset.from_list([{**row, "id": 1}, {**row, "id": 2}], features=features)
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "g")
    assert list(read_geometry3k_hf(str(tmp_path / "g"), split="test")) == [
        {
            "id": 7,
            "image": png(),
            "conversations": turns("<image>Find $y$.", "16"),
            "choices": ["15", "16", "17", "18"],
            "choice": "B",
        }
    ]
    assert [record["id"] for record in read_geometry3k_hf(str(tmp_path / "g"), split="train")] == [1, 2]
    with pytest.raises(ValueError, match="train, test"):
        list(read_geometry3k_hf(str(tmp_path / "g")))


def test_geometry3k_of_the_hub_needs_no_choices():
    record = geometry3k_hf_record({"images": ["a.png"], "problem": "Find $y$.", "answer": "16"})
    assert set(record) == {"image", "conversations"}


# GeoQA


def test_geoqa_for_training_is_read_from_parquet_and_keeps_the_degree_sign(tmp_path):
    features = Features({"image": ImageFeature(), "problem": TEXT, "solution": TEXT})
    row = {"image": embedded(png()), "problem": "Find angle A.", "solution": "<answer> 145° </answer>"}
    Dataset.from_list([row, row], features=features).to_parquet(tmp_path / "train.parquet")
    records = list(read_geoqa_r1v(str(tmp_path / "train.parquet")))
    assert records[1] == {"id": 1, "image": png(), "conversations": turns("<image>Find angle A.", "145°")}


def test_geoqa_for_testing_is_read_from_json_lines(tmp_path):
    row = {"image_path": "./Geo170K/images/test/0.png", "question": "Find angle A.", "ground_truth": "140°"}
    assert list(read_geoqa_r1v(lines(tmp_path / "geoqa_test_prompts.jsonl", row))) == [
        {"id": 0, "image": "Geo170K/images/test/0.png", "conversations": turns("<image>Find angle A.", "140°")}
    ]


def test_a_geoqa_row_of_neither_kind_is_refused():
    with pytest.raises(ValueError, match="no column 'solution'; the columns are question"):
        geoqa_r1v_record({"question": "Find angle A."})


# ViRL39K and CalibRL


def virl(**changes):
    row = {"question": "<image>Find x.", "answer": r"\boxed{60}", "PassRate_32BTrained": 0.5, "PassRate_7BBase": 0.25}
    return {**row, "category": "Geometric", "source": "MMMath", "qid": "m-1", "image": ["images/m-1-0.jpg"], **changes}


def test_virl39k_is_read_from_its_parquet_file_and_from_the_folder_around_it(tmp_path):
    several = virl(qid="m-2", image=["images/m-2-0.jpg", "images/m-2-1.jpg"], answer=r"\boxed{\frac{1}{2}}")
    Dataset.from_list([virl(), several]).to_parquet(tmp_path / "39Krelease.parquet")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "m-1-0.jpg").write_bytes(png())
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
        ({"prompt": []}, r"prompt is \[\]"),
        ({"prompt": [{"role": "user", "content": "a"}] * 2}, "a list with one user message is needed"),
        ({"reward_model": None}, "reward_model is None; an object with ground_truth"),
        ({"reward_model": {"style": "rule"}}, "no column 'ground_truth'; the columns are style"),
        ({"reward_model": {"ground_truth": None}}, "ground_truth is None"),
        ({"solution": 3}, "solution is 3; a text is needed"),
    ],
)
def test_a_calibrl_row_without_question_or_gold_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        calibrl_record(calibrl(**changes))


def test_a_calibrl_row_for_validation_needs_no_expert_and_no_image():
    row = calibrl()
    del row["solution"], row["images"]
    assert calibrl_record(row) == {"conversations": turns("Find x.", "60"), "data_source": "virl"}


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


# Text


def test_gsm8k_is_read_from_parquet_with_the_rationale_as_expert(tmp_path):
    rows = [
        {"question": "How much?", "answer": "2*600=<<2*600=1200>>1200\nSo.\n#### 1,200"},
        {"question": "How much?", "answer": "It #### falls.\n#### -3"},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    first, second = read_gsm8k(str(tmp_path / "test-00000-of-00001.parquet"))
    assert first == {
        "id": 0,
        "conversations": turns("How much?", "1200"),
        "expert": "2*600=<<2*600=1200>>1200\nSo.",
    }
    # the last mark is the one before the result
    assert (answers([second]), second["expert"]) == (["-3"], "It #### falls.")


def test_gsm8k_of_a_folder_takes_the_split_that_is_asked_for(tmp_path):
    train = Dataset.from_list([{"question": "How much?", "answer": "So.\n#### 1"}])
    test = Dataset.from_list([{"question": "How much?", "answer": "So.\n#### 2"}])
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "main")
    assert answers(read_gsm8k(str(tmp_path / "main"), split="train")) == ["1"]
    assert answers(read_gsm8k(str(tmp_path / "main"), split="test")) == ["2"]


def test_gsm8k_of_the_hub_is_its_main_configuration(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "vlm_entropy.data.loaders.text_maths.read_table", lambda path, **options: asked.append((path, options)) or []
    )
    assert list(read_gsm8k("openai/gsm8k", split="test")) == []
    assert asked == [("openai/gsm8k", {"split": "test", "config": "main"})]


@pytest.mark.parametrize("answer", ["1200", "So. #### ", None, 3])
def test_a_gsm8k_answer_without_a_result_is_refused(answer):
    with pytest.raises(ValueError, match=r"answer is .*"):
        gsm8k_record({"question": "How much?", "answer": answer})


def test_math500_keeps_its_latex_and_its_worked_solution(tmp_path):
    row = {"problem": "Halve one.", "solution": r"It is $\boxed{\frac{1}{2}}$.", "answer": r"\frac{1}{2}"}
    path = lines(
        tmp_path / "test.jsonl", {**row, "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}
    )
    assert list(read_math500(path)) == [
        {
            "id": "test/algebra/1.json",
            "conversations": turns("Halve one.", r"\frac{1}{2}"),
            "expert": r"It is $\boxed{\frac{1}{2}}$.",
            "subject": "Algebra",
            "level": 2,
        }
    ]


def test_amc_answers_that_are_floats_become_whole_numbers(tmp_path):
    row = {"id": 3, "problem": "How many?", "answer": 142.0, "url": "https://example.org"}
    train = Dataset.from_list([row, {**row, "id": 4, "answer": 0.0}])
    DatasetDict({"train": train}).save_to_disk(tmp_path / "amc")
    first, second = read_amc(str(tmp_path / "amc"))
    assert first == {"id": 3, "url": "https://example.org", "conversations": turns("How many?", "142")}
    assert answers([second]) == ["0"]
    with pytest.raises(ValueError, match=r"has the splits train; split is 'test'"):
        list(read_amc(str(tmp_path / "amc"), split="test"))


@pytest.mark.parametrize(
    ("number", "text"), [(142.0, "142"), (142, "142"), (-7.0, "-7"), (2.5, "2.5"), (1e15, "1" + "0" * 15)]
)
def test_a_number_is_written_without_an_idle_point(number, text):
    assert number_text(number) == text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "142", None, True])
def test_an_amc_answer_that_is_no_finite_number_is_refused(number):
    with pytest.raises(ValueError, match=r"answer is .*; a finite number is needed"):
        number_text(number)
