"""Geometry3K and GeoQA: each source's own files in miniature, and the traps in them."""

import json
import os
from zipfile import ZipFile

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from loader_files import answers, embedded, lines, png, turns

from vlm_entropy.data.loaders.geometry import (
    geometry3k_hf_record,
    geometry3k_record,
    geoqa_r1v_record,
    read_geometry3k,
    read_geometry3k_hf,
    read_geoqa_r1v,
)

TEXT = Value("string")


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
        ({"choices": "1234"}, "choices is '1234'; a list of four"),
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


@pytest.mark.parametrize("read", [read_geometry3k_hf, read_geoqa_r1v])
def test_a_file_has_no_splits_so_none_can_be_asked_for(tmp_path, read):
    with pytest.raises(ValueError, match="is one file, without splits; leave out split 'test'"):
        list(read(lines(tmp_path / "a.jsonl", {}), split="test"))
