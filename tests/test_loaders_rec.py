"""Referring expressions: every published layout in miniature, and pickles that must not run."""

import io
import json
import os
import pickle
import struct

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from vlm_entropy.data.convert import convert
from vlm_entropy.data.loaders.boxes import around, from_fractions, from_xywh, from_xyxy, numbers
from vlm_entropy.data.loaders.refer import read_plain_pickle, read_refer
from vlm_entropy.data.loaders.referring import (
    is_mixed_split,
    read_lisa_grounding,
    read_lmms_refcoco,
    read_qwen_jsonl,
)
from vlm_entropy.data.loaders.vlm_r1 import read_vlm_r1, read_vlm_r1_eval
from vlm_entropy.data.rows import read_rows

ASK = "<image>Please provide the bounding box coordinate of the region this sentence describes: "


def turns(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


# Boxes


def test_boxes_become_xyxy_in_hundredths_of_a_pixel():
    assert from_xywh([10, 20.5, 30, 40]) == [10, 20.5, 40, 60.5]
    # 0.1 + 0.2 is 0.30000000000000004, and 1.005 + 2 is 3.005
    assert from_xywh([0.1, 1.0, 0.2, 2.0]) == [0.1, 1, 0.3, 3]
    assert from_xyxy("[1, 2.0, 3, 4.25]") == [1, 2, 3, 4.25]
    assert [type(item) for item in from_xyxy([1.0, 2, 3, 4])] == [int] * 4
    # of 200 x 100: 0.1 * 200 = 20, 0.2 * 100 = 20, 0.25 * 200 = 50, 1 * 100 = 100
    assert from_fractions([0.1, 0.2, 0.25, 1], (200, 100)) == [20, 20, 50, 100]
    assert around([10, 60, 40, 20, 30, 70]) == [10, 20, 40, 70]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_xyxy([3, 2, 1, 4]), "x1 <= x2"),
        (lambda: from_xyxy([1, 4, 3, 2]), "y1 <= y2"),
        (lambda: from_xyxy([1, 2, 3]), "4 numbers are needed"),
        (lambda: from_xyxy("1, 2, 3, 4"), "4 numbers are needed"),
        (lambda: from_xyxy([1, 2, 3, float("nan")]), "4 numbers are needed"),
        (lambda: from_xyxy([1, 2, 3, float("inf")]), "4 numbers are needed"),
        (lambda: from_xyxy([1, 2, 3, True]), "4 numbers are needed"),
        (lambda: from_xyxy(None, "solution"), "solution is None; 4 numbers"),
        (lambda: from_xywh([1, 2, -1, 4]), "a width and a height >= 0"),
        (lambda: from_xywh([1, 2, 1, -4]), "a width and a height >= 0"),
        (lambda: from_fractions([0, 0, 1.01, 1], (9, 9)), "fractions of the image"),
        (lambda: from_fractions([-0.1, 0, 1, 1], (9, 9)), "fractions of the image"),
        (lambda: around([1, 2, 3, 4]), "three points or more"),
        (lambda: around([1, 2, 3, 4, 5, 6, 7]), "three points or more"),
        (lambda: numbers("x", "a"), "a list of numbers are needed"),
    ],
)
def test_what_is_no_box_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# VLM-R1


def test_vlm_r1_files_pass_unchanged_but_for_legacy_rows(tmp_path):
    live = {"id": 1, "image": ["a.jpg", "b.jpg"], "conversations": turns("Which?", 3), "accu_reward_method": "mcq"}
    legacy = {"image": "a.jpg", "problem": "Where?", "solution": [1, 2, 3, 4], "normal_caption": "cat"}
    text = {"problem": "2 + 2?", "solution": "4"}
    (tmp_path / "a.json").write_text(json.dumps([live, legacy, text]))
    (tmp_path / "a.yaml").write_text(f"datasets:\n  - {{json_path: {tmp_path}/a.json, sampling_strategy: 'end:2'}}\n")
    expected = [
        live,
        {"image": "a.jpg", "normal_caption": "cat", "conversations": turns("<image>Where?", [1, 2, 3, 4])},
        {"conversations": turns("2 + 2?", "4")},
    ]
    assert list(read_vlm_r1(f"{tmp_path}/a.json")) == expected
    assert list(read_vlm_r1(f"{tmp_path}/a.yaml")) == expected[1:]


EVAL_ROW = {
    "id": 3, "original_id": 9, "dataset_name": "refcoco", "image": "train2014/a.jpg", "problem": "Where is the cat?",
    "normal_caption": "cat", "solution": [64, 48, 320, 240], "normalized_solution": [100, 100, 500, 500],
    "bbox_list": [[64, 48, 256, 192]], "text_type": "caption", "height": 480, "width": 640,
}  # fmt: skip


def test_an_evaluation_row_keeps_its_columns(tmp_path):
    (tmp_path / "refcoco_val.json").write_text(json.dumps([EVAL_ROW]))
    (record,) = read_vlm_r1_eval(f"{tmp_path}/refcoco_val.json")
    kept = {name: value for name, value in EVAL_ROW.items() if name not in ("problem", "solution")}
    assert record == {**kept, "conversations": turns("<image>Where is the cat?", [64, 48, 320, 240])}
    (lisa,) = read_lisa_grounding(f"{tmp_path}/refcoco_val.json")
    assert lisa == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solution": [100, 100, 500, 500]}, "equals normalized_solution; pixels are needed, not the files for"),
        ({"solution": [1, 2, 3]}, r"solution is \[1, 2, 3\]; 4 numbers"),
        ({"solution": [9, 2, 3, 4]}, "x1 <= x2"),
        ({"problem": None}, "problem is None; a text is needed"),
    ],
)
def test_a_bad_evaluation_row_is_named_by_its_place(tmp_path, change, message):
    (tmp_path / "e.json").write_text(json.dumps([EVAL_ROW, {**EVAL_ROW, **change}]))
    with pytest.raises(ValueError, match=f"e.json:2: .*{message}"):
        list(read_vlm_r1_eval(f"{tmp_path}/e.json"))


def test_thousandths_of_a_picture_that_is_a_thousand_pixels_wide_and_high_are_pixels(tmp_path):
    row = {**EVAL_ROW, "solution": [100, 100, 500, 500], "width": 1000, "height": 1000}
    (tmp_path / "e.json").write_text(json.dumps([row]))
    assert next(read_vlm_r1_eval(f"{tmp_path}/e.json"))["conversations"][1]["value"] == [100, 100, 500, 500]


@pytest.mark.parametrize(
    ("text", "message"), [("{", ":1: not JSON"), ("3", ":1: the row is 3"), ('{"image": "a"}', ":1: there is neither")]
)
def test_a_bad_vlm_r1_row_is_named_by_its_line(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"a.jsonl{message}"):
        list(read_vlm_r1(f"{tmp_path}/a.jsonl"))
    with pytest.raises(ValueError, match="has no splits; leave out split 'val'"):
        list(read_vlm_r1(f"{tmp_path}/a.jsonl", split="val"))


# REFER

REFS = [
    {
        "ref_id": 5, "ann_id": 7, "category_id": 17, "image_id": 9, "split": "train", "sent_ids": [11, 12],
        "file_name": "COCO_train2014_000000000009_7.jpg",
        "sentences": [
            {"tokens": ["the", "cat"], "raw": "The cat", "sent_id": 11, "sent": "the cat"},
            {"tokens": ["left", "cat"], "raw": "Left cat", "sent_id": 12, "sent": "left cat"},
        ],
    },
    {
        "ref_id": 6, "ann_id": 8, "category_id": 18, "image_id": 9, "split": "testA", "sent_ids": [13],
        "file_name": "COCO_train2014_000000000009_8.jpg",
        "sentences": [{"tokens": ["caf\xe9"], "raw": "caf\xe9", "sent_id": 13, "sent": "caf\xe9"}],
    },
]  # fmt: skip
INSTANCES = {
    "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 640, "height": 480}],
    "annotations": [{"id": 7, "bbox": [10.5, 20, 30, 40]}, {"id": 8, "bbox": [0, 0, 5.25, 6.5]}],
    "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
}


def python_2_pickle(value):
    """Pickle plain data by hand as Python 2 did: protocol 0 with texts as byte strings (S) and longs (L)."""
    if isinstance(value, dict):
        items = b"".join(python_2_pickle(key) + python_2_pickle(item) + b"s" for key, item in value.items())
        return b"(dp1\n" + items
    if isinstance(value, list):
        return b"(lp2\n" + b"".join(python_2_pickle(item) + b"a" for item in value)
    if isinstance(value, str):
        escaped = value.encode("latin1").decode("latin1").encode("unicode_escape").decode()
        return f"S'{escaped}'\np3\n".encode()
    return f"L{value}L\n".encode()


def python_2_binary_pickle(value):
    """The same in protocol 2: byte strings as SHORT_BINSTRING (U), numbers as BININT (J)."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python_2_binary_pickle(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python_2_binary_pickle, value)) + b"e"
    if isinstance(value, str):
        text = value.encode("latin1")
        return b"U" + bytes([len(text)]) + text
    return b"J" + struct.pack("<i", value)


PICKLES = {
    "python 2, protocol 0": python_2_pickle(REFS) + b".",
    "python 2, protocol 2": b"\x80\x02" + python_2_binary_pickle(REFS) + b".",
    **{f"python 3, protocol {protocol}": pickle.dumps(REFS, protocol=protocol) for protocol in range(6)},
}


@pytest.fixture
def refcoco(tmp_path):
    folder = tmp_path / "refcoco"
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(PICKLES["python 2, protocol 0"])
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    return folder


FIRST = {
    "id": 11, "ref_id": 5, "ann_id": 7, "category": "cat", "split": "train", "normal_caption": "the cat",
    "image": "COCO_train2014_000000000009.jpg", "conversations": turns(ASK + "the cat", "[10.5, 20, 40.5, 60]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PICKLES)
def test_each_sentence_of_a_reference_becomes_a_record(refcoco, kind):
    (refcoco / "refs(unc).p").write_bytes(PICKLES[kind])
    first, second, third = read_refer(str(refcoco))
    assert first == FIRST
    assert second == {
        **FIRST, "id": 12, "normal_caption": "left cat",
        "conversations": turns(ASK + "left cat", "[10.5, 20, 40.5, 60]"),
    }  # fmt: skip
    assert third == {
        **FIRST, "id": 13, "ref_id": 6, "ann_id": 8, "category": "dog", "split": "testA", "normal_caption": "caf\xe9",
        "conversations": turns(ASK + "caf\xe9", "[0, 0, 5.25, 6.5]"),
    }  # fmt: skip


def test_a_split_takes_its_references_and_an_unknown_one_is_named(refcoco):
    assert [record["id"] for record in read_refer(f"{refcoco}/refs(unc).p", split="testA")] == [13]
    with pytest.raises(ValueError, match="has the splits testA, train; split is 'val'"):
        list(read_refer(str(refcoco), split="val"))


class Malice:
    """Unpickled by `pickle.load`, it makes the folder "ran" in the working folder."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


MALICIOUS = {
    **{f"protocol {protocol}": pickle.dumps([Malice()], protocol=protocol) for protocol in range(6)},
    "os.system": b"cos\nsystem\n(S'mkdir ran'\ntR.",
    "INST": b"(S'mkdir ran'\nios\nsystem\n.",
    "harmless class": pickle.dumps([complex(1, 2)]),
    "persistent id": b"Pfoo\n.",
    "extension": b"\x82\x01.",
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_pickle_that_calls_anything_is_refused_and_nothing_runs(refcoco, kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (refcoco / "refs(unc).p").write_bytes(MALICIOUS[kind])
    with pytest.raises(ValueError, match=r"The pickle '.*refs\(unc\).p' is refused: "):
        list(read_refer(str(refcoco)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["protocol 0", "protocol 2", "protocol 5", "os.system", "INST"])
def test_the_malicious_pickles_do_run_where_nothing_is_refused(kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pickle.loads(MALICIOUS[kind])  # noqa: S301
    assert (tmp_path / "ran").is_dir()


def test_the_refusal_names_what_the_pickle_asked_for():
    with pytest.raises(ValueError, match=r"it asks for os\.system; only lists, tuples, dicts, texts and numbers are"):
        read_plain_pickle(io.BytesIO(MALICIOUS["os.system"]), "x")


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x02}", b"(lp0\nS'a", pickle.dumps(REFS)[:-9], b"0."])
def test_a_broken_pickle_is_refused(content):
    with pytest.raises(ValueError, match="The pickle 'x' is refused: "):
        read_plain_pickle(io.BytesIO(content), "x")


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ({"a": 1}, "a list of references is needed"),
        ([3], "a list of references is needed"),
        ([{**REFS[0], "ann_id": 99}], "reference 1 of .* annotation 99 or image 9 is not in instances.json"),
        ([REFS[0], {**REFS[0], "image_id": 98}], "reference 2 of .* annotation 7 or image 98"),
        ([{**REFS[0], "sentences": [{"raw": "x"}]}], "reference 1 of .* no column 'sent'; the columns are raw"),
        ([{**REFS[0], "ann_id": [1]}], "reference 1 of .* unhashable"),
    ],
)
def test_a_bad_reference_is_named_by_its_place(refcoco, refs, message):
    (refcoco / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(ValueError, match=message):
        list(read_refer(str(refcoco)))


def test_files_that_are_missing_or_ambiguous_are_named(refcoco):
    (refcoco / "refs(google).p").write_bytes(b"")
    with pytest.raises(ValueError, match=r"there: refs\(google\).p, refs\(unc\).p"):
        list(read_refer(str(refcoco)))
    assert len(list(read_refer(f"{refcoco}/refs(unc).p"))) == 3
    (refcoco / "instances.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="is no COCO instances file: KeyError"):
        list(read_refer(f"{refcoco}/refs(unc).p"))
    (refcoco / "instances.json").unlink()
    with pytest.raises(ValueError, match=r"instances.json' does not exist; it must stand beside the references"):
        list(read_refer(f"{refcoco}/refs(unc).p"))
    with pytest.raises(ValueError, match="a folder with one; there: none"):
        list(read_refer("nowhere"))


def test_refcoco_converts_to_rows_of_its_images(refcoco, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "COCO_train2014_000000000009.jpg")
    done = convert(str(refcoco), loader="refer", out=f"{tmp_path}/out", images=str(tmp_path), split="train")
    assert (done.path, done.rows, done.images) == (tmp_path / "out" / "train.jsonl", 2, 0)
    rows, _ = read_rows(str(done.path), done.image_folder)
    assert [row.answer for row in rows] == ["[10.5, 20, 40.5, 60]"] * 2
    assert rows[0].question == ASK.removeprefix("<image>") + "the cat"
    assert rows[0].image_sizes == ((64, 48),)
    assert rows[0].columns["id"] == 11


# Later formats


def test_qwen_lines_become_records(tmp_path):
    row = {"image": "coco/a.jpg", "sent": "the cat", "bbox": [1.5, 2, 3, 4], "width": 640, "height": 480}
    (tmp_path / "refcoco_val.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "bbox": [5, 2, 3, 4]}))
    records = read_qwen_jsonl(f"{tmp_path}/refcoco_val.jsonl")
    assert next(records) == {
        "id": 0, "width": 640, "height": 480, "normal_caption": "the cat", "image": "coco/a.jpg",
        "conversations": turns(ASK + "the cat", "[1.5, 2, 3, 4]"),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"row 2 of '.*refcoco_val.jsonl': bbox is \[5, 2, 3, 4\]; x1 <= x2"):
        next(records)


@pytest.fixture
def lmms(tmp_path):
    """A folder of lmms-lab's table with one row in testA and in val."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "JPEG")
    row = {
        "question_id": "4", "image": {"bytes": file.getvalue(), "path": "a.jpg"}, "question": "Please carefully ...",
        "answer": ["the cat", "left cat"], "segmentation": [1.0, 2.0], "bbox": [10.0, 20.5, 30.0, 4.0], "iscrowd": 0,
        "file_name": "COCO_train2014_000000000009_7.jpg",
    }  # fmt: skip
    text, floats = Value("string"), List(Value("float32"))
    features = {"question_id": text, "image": ImageFeature(), "question": text, "answer": List(text)}
    features |= {"segmentation": floats, "bbox": floats, "iscrowd": Value("int8"), "file_name": text}
    table = Dataset.from_list([row], features=Features(features))
    (tmp_path / "RefCOCO" / "data").mkdir(parents=True)
    for split in ("testA", "val"):
        table.to_parquet(tmp_path / "RefCOCO" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "RefCOCO", file.getvalue()


def test_each_expression_of_an_lmms_row_becomes_a_record(lmms, recwarn):
    folder, jpeg = lmms
    first, second = read_lmms_refcoco(str(folder), split="testA")
    assert first == {
        "id": "4-0", "question_id": "4", "iscrowd": 0, "file_name": "COCO_train2014_000000000009_7.jpg",
        "normal_caption": "the cat", "image": jpeg, "conversations": turns(ASK + "the cat", "[10, 20.5, 40, 24.5]"),
    }  # fmt: skip
    assert (second["id"], second["conversations"][0]["value"]) == ("4-1", ASK + "left cat")
    assert list(read_lmms_refcoco(f"{folder}/data/testA-00000-of-00001.parquet")) == [first, second]
    assert not [warning for warning in recwarn if "google" in str(warning.message)]


def test_the_split_with_the_google_references_is_warned_of(lmms):
    folder, _ = lmms
    with pytest.warns(UserWarning, match="google split, whose images overlap the unc training split"):
        read_lmms_refcoco(str(folder), split="val")
    with pytest.warns(UserWarning, match="google split"):
        read_lmms_refcoco(f"{folder}/data/val-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("path", "split", "mixed"),
    [
        ("lmms-lab/RefCOCO", "val", True),
        ("lmms-lab/RefCOCO", "validation", True),
        ("lmms-lab/RefCOCO", "test", True),
        ("lmms-lab/RefCOCO", "testA", False),
        ("lmms-lab/RefCOCO", "testB", False),
        ("lmms-lab/RefCOCOg", "val", True),
        ("lmms-lab/RefCOCOg", "test", False),
        ("x/test-0-of-1.parquet", None, True),
        ("x/testB-0-of-1.parquet", None, False),
    ],
)
def test_which_lmms_splits_are_mixed(path, split, mixed):
    assert is_mixed_split(path, split) is mixed


def test_an_lmms_table_converts_to_rows_with_one_file_for_its_image(lmms, tmp_path):
    folder, jpeg = lmms
    done = convert(str(folder), loader="lmms_refcoco", out=f"{tmp_path}/out", split="testA")
    assert (done.rows, done.images, done.image_folder) == (2, 1, f"{tmp_path}/out")
    rows, _ = read_rows(str(done.path), done.image_folder, decode_images=True)
    assert [row.images for row in rows] == [rows[0].images] * 2
    with open(rows[0].images[0], "rb") as file:
        assert file.read() == jpeg


REASON_SEG = {
    "text": ["the thing that purrs", "the pet\u2019s face"],
    "is_sentence": True,
    "shapes": [
        {"label": "target", "points": [[10.5, 20], [40, 20], [40, 60]]},
        {"label": "ignore", "points": [[0, 0], [300, 0], [300, 300]]},
        {"label": "target", "points": [[50, 30], [55, 30], [55, 35]]},
    ],
}


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_reason_seg_targets_become_one_box_around_all(tmp_path, encoding):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "7.json").write_bytes(json.dumps(REASON_SEG, ensure_ascii=False).encode(encoding))
    first, second = read_lisa_grounding(str(tmp_path), split="test")
    # x from 10.5 to 55, y from 20 to 60, over both targets
    assert first == {
        "id": "7-0", "is_sentence": True, "normal_caption": "the thing that purrs", "image": "7.jpg",
        "conversations": turns(ASK + "the thing that purrs", "[10.5, 20, 55, 60]"),
    }  # fmt: skip
    assert second["normal_caption"] == "the pet\u2019s face"
    assert list(read_lisa_grounding(f"{tmp_path}/test")) == [first, second]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({**REASON_SEG, "shapes": []}, r"7.json': the target is \[\]; three points"),
        ({"text": ["x"]}, "7.json': there is no column 'shapes'"),
        ({**REASON_SEG, "shapes": [{"label": "target"}]}, "7.json': there is no column 'points'"),
        ({**REASON_SEG, "shapes": [{"label": "target", "points": [1, 2]}]}, "7.json': 'int' object is not iterable"),
    ],
)
def test_a_bad_reason_seg_annotation_is_named_by_its_file(tmp_path, annotation, message):
    (tmp_path / "7.json").write_text(json.dumps(annotation))
    with pytest.raises(ValueError, match=message):
        list(read_lisa_grounding(str(tmp_path)))
    with pytest.raises(ValueError, match="train' holds no annotation"):
        list(read_lisa_grounding(str(tmp_path), split="train"))
