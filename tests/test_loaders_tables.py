"""One reader for every kind of table: files, folders of `save_to_disk`, folders as on the hub; nothing is decoded."""

import io
import json

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageFile

from vlm_entropy.data.loaders import LOADERS
from vlm_entropy.data.loaders.tables import column, map_rows, read_table


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")
ROWS = [
    {"question": "a", "image": RED, "images": [RED, BLUE]},
    {"question": "b", "image": None, "images": []},
]


@pytest.fixture(scope="module")
def table():
    features = Features({"question": Value("string"), "image": ImageFeature(), "images": List(ImageFeature())})
    columns = {"question": ["a", "b"], "image": [{"bytes": RED, "path": "r.png"}, None]}
    columns["images"] = [[{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "x.png"}], []]
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(autouse=True)
def no_decoding(monkeypatch):
    def load(self):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def test_a_parquet_file_gives_its_images_as_bytes(table, tmp_path):
    table.to_parquet(tmp_path / "t.parquet")
    assert list(read_table(str(tmp_path / "t.parquet"), split=None)) == ROWS


def test_a_saved_folder_of_one_split_and_of_several(table, tmp_path):
    table.save_to_disk(tmp_path / "one")
    DatasetDict({"train": table.select([1]), "test": table}).save_to_disk(tmp_path / "two")
    assert list(read_table(str(tmp_path / "one"), split=None)) == ROWS
    assert list(read_table(str(tmp_path / "two"), split="test")) == ROWS
    assert list(read_table(str(tmp_path / "two"), split="train")) == ROWS[1:]


def test_a_folder_as_on_the_hub_is_read_by_split(table, tmp_path):
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "val-00000-of-00001.parquet")
    table.select([1]).to_parquet(tmp_path / "data" / "testA-00000-of-00001.parquet")
    assert list(read_table(str(tmp_path), split="val")) == ROWS
    assert list(read_table(str(tmp_path), split="testA")) == ROWS[1:]


@pytest.mark.parametrize("split", [None, "nope"])
def test_a_split_that_is_missing_or_not_chosen_is_named_with_those_that_are_there(table, tmp_path, split):
    DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=f"has the splits train, test; split is {split!r}"):
        next(read_table(str(tmp_path / "two"), split=split))


def test_json_and_json_lines_hold_values_of_any_type_in_a_column(tmp_path):
    rows = [{"bbox": [1, 2]}, {"bbox": "[1, 2]"}, {"image": {"bytes": None, "path": "a.jpg"}}]
    (tmp_path / "t.json").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    (tmp_path / "t.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    expected = [*rows[:2], {"image": "a.jpg"}]
    assert list(read_table(str(tmp_path / "t.json"), split=None)) == expected
    assert list(read_table(str(tmp_path / "t.jsonl"), split=None)) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", "{}", "holds a JSON dict; an array"),
        ("t.json", "[", "t.json is not JSON"),
        ("t.jsonl", "{}\n\n{", "t.jsonl:3 is not JSON"),
        ("t.jsonl", "{}\n3", "row 2 of .*t.jsonl' is a int"),
        ("t.csv", "a,b", "t.csv' is no table; a .parquet, .json, .jsonl file, a folder or a hub id"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_table(str(tmp_path / name), split=None))


@pytest.mark.parametrize("path", ["a/b/c", "no-slash", "data/train.jsonl", "/abs/olute"])
def test_a_missing_path_is_not_taken_for_a_hub_id(path):
    with pytest.raises(ValueError, match="is no table"):
        next(read_table(path, split="train"))


def test_a_file_has_no_splits_and_no_configurations(tmp_path):
    (tmp_path / "t.jsonl").write_text("{}")
    for options in ({"split": "val"}, {"split": None, "config": "main"}):
        with pytest.raises(ValueError, match="is one file, without splits"):
            next(read_table(str(tmp_path / "t.jsonl"), **options))


def test_a_bad_row_is_named_by_its_place_after_those_before_it():
    records = map_rows([{"a": 1}, {"a": 2}, {"b": 3}], lambda row: [row, {"a": column(row, "a")}], path="x")
    assert [next(records) for _ in range(4)] == [{"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}]
    with pytest.raises(ValueError, match="row 3 of 'x': there is no column 'a'; the columns are b"):
        next(records)


def test_every_loader_has_a_name_a_reader_and_a_line_of_help():
    assert {
        *("vlm_r1", "vlm_r1_eval", "refer", "refgta", "qwen_jsonl", "lmms_refcoco", "lisa_grounding"),
        *("screenspot", "screenspot_v2", "screenspot_pro", "rootsautomation_screenspot", "osworld_g"),
        *("osworld_g_refined", "mmbench_gui_l2", "ui_r1", "visual_rft_classes", "visual_rft_detection"),
        "visual_rft_val",
        "coco_detection",
        *("geometry3k", "geometry3k_hf", "geoqa_r1v", "virl39k", "mmk12", "mathvista", "gsm8k", "math500", "amc"),
        *("vl_rewardbench", "multimodal_rewardbench", "mm_rlhf_rewardbench", "preference_jsonl"),
    } == set(LOADERS)
    special = {"refgta": "read_refer"}
    for name, loader in LOADERS.items():
        assert loader.read.__name__ == special.get(name, f"read_{name}")
        assert loader.help
        assert "\n" not in loader.help
