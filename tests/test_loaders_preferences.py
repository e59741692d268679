"""Preference pairs: the question, two responses in the source's order, and which one is better."""

import json
import re

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from loader_files import lines, turns

from vlm_entropy.data import read_rows
from vlm_entropy.data.loaders.preferences import (
    RESERVED_COLUMNS,
    mm_rlhf_category,
    mm_rlhf_rewardbench_records,
    multimodal_rewardbench_category,
    multimodal_rewardbench_record,
    preference_jsonl_record,
    read_mm_rlhf_rewardbench,
    read_multimodal_rewardbench,
    read_preference_jsonl,
    read_vl_rewardbench,
    vl_rewardbench_group,
    vl_rewardbench_record,
)


def answer(record):
    return record["conversations"][1]["value"]


def vl(**changes):
    row = {"id": "RLAIF-V-12", "query": "Describe <image> it.", "response": ["A cat.", "A dog."], "image": b"png"}
    return {**row, "human_ranking": [1, 0], **changes}


def multimodal(**changes):
    row = {"ID": "nocaps_1", "Text": "Describe it.", "Image": "images/nocaps/1.jpg", "Output1": "A", "Output2": "B"}
    return {**row, "Better": "Output2", "Category": "open_generation/correctness_task", **changes}


def mm_rlhf(**changes):
    row = {"id": "7", "image": "mcq/7.jpg", "prompt": "Which?", "chosen": "B", "rejected": "A"}
    return {**row, "chosen_reason": "right", "rejected_reason": "wrong", **changes}


def plain(**changes):
    row = {"image": "a.jpg", "question": "Which?", "response_1": "Tom", "response_2": "Tim", "label": 1}
    return {name: value for name, value in {**row, **changes}.items() if value is not ...}


def test_vl_rewardbench_is_read_from_parquet(tmp_path):
    text = Value("string")
    features = Features(
        {
            "id": text,
            "query": text,
            "response": List(text),
            "image": ImageFeature(),
            "human_ranking": List(Value("int64")),
            "models": List(text),
            "judge": List(text),
            "rationale": List(text),
            "query_source": text,
            "ground_truth": text,
        }
    )
    extra = {"models": ["m", "n"], "judge": ["j"], "rationale": ["r"], "query_source": "COCO", "ground_truth": ""}
    image = {"bytes": b"png", "path": "1.png"}
    rows = [vl(image=image, **extra), vl(image=image, id="mathverse_3", human_ranking=[0, 1], **extra)]
    path = str(tmp_path / "test-00000-of-00001.parquet")
    Dataset.from_list(rows, features=features).to_parquet(path)
    first, second = read_vl_rewardbench(path)
    assert first == {
        "id": "RLAIF-V-12",
        "image": b"png",
        "conversations": turns("<image>Describe  it.", "2"),
        "responses": ["A cat.", "A dog."],
        "category": "hallucination",
        **extra,
    }
    assert (second["id"], answer(second), second["category"]) == ("mathverse_3", "1", "reasoning")
    assert second["responses"] == first["responses"]


def test_pairs_of_vl_rewardbench_with_the_same_id_get_different_ones(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [vl(image="1.png"), vl(image="1.png", response=["A", "B"]), vl(image="1.png", id="x"), vl(image="1.png")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [record["id"] for record in read_vl_rewardbench(str(path))] == [
        "RLAIF-V-12",
        "RLAIF-V-12-2",
        "x",
        "RLAIF-V-12-3",
    ]


@pytest.mark.parametrize(
    ("row_id", "group"),
    [
        ("RLAIF-V-12", "hallucination"),
        ("RLHF-V-3", "hallucination"),
        ("rlhf_v_3", "hallucination"),
        ("hallucination_pair-8", "hallucination"),
        ("mathverse_12", "reasoning"),
        ("MMMU-Pro_1", "reasoning"),
        ("wildvision-battle_1", "general"),
        ("4711", "general"),
        ("my-rlaif-1", "general"),
    ],
)
def test_the_group_is_that_of_the_id_prefix_in_any_case(row_id, group):
    assert vl_rewardbench_group(row_id) == group


@pytest.mark.parametrize("ranking", [[0, 0], [1, 2], [0], [0, 1, 2], None, "01"])
def test_a_ranking_that_does_not_order_two_responses_is_refused(ranking):
    with pytest.raises(ValueError, match=re.escape(f"human_ranking is {ranking!r}; [0, 1] or [1, 0]")):
        vl_rewardbench_record(vl(human_ranking=ranking))


@pytest.mark.parametrize("responses", [["one"], ["a", "b", "c"], ["a", None], "ab", None])
def test_anything_but_two_texts_is_no_pair(responses):
    with pytest.raises(ValueError, match=r"the responses are .*two texts are needed"):
        vl_rewardbench_record(vl(response=responses))


def test_multimodal_rewardbench_is_read_from_the_json_array(tmp_path):
    path = tmp_path / "all_data.json"
    path.write_text(json.dumps([multimodal(), multimodal(ID="PAIRS_2", Category="safety", Better="Output1")]))
    first, second = read_multimodal_rewardbench(str(path))
    assert first == {
        "id": "nocaps_1",
        "image": "images/nocaps/1.jpg",
        "conversations": turns("<image>Describe it.", "2"),
        "responses": ["A", "B"],
        "category": "open_generation/correctness_task",
    }
    assert (second["id"], answer(second), second["category"]) == ("PAIRS_2", "1", "safety/bias")


@pytest.mark.parametrize(
    ("category", "row_id", "part"),
    [
        ("safety", "pairs_1", "safety/bias"),
        ("safety", "PAIRS_1", "safety/bias"),
        ("safety", "hateful_pairs_1", "safety/toxicity"),
        ("reasoning", "mathvista_1", "reasoning/math"),
        ("reasoning", "Math_1", "reasoning/math"),
        ("reasoning", "EMMA-math-coding_1", "reasoning/coding"),
        ("vqa", "math_1", "vqa"),
    ],
)
def test_safety_and_reasoning_are_parted_by_the_id(category, row_id, part):
    assert multimodal_rewardbench_category(category, row_id) == part


@pytest.mark.parametrize("better", ["A", "output1", "Output3", None, 1])
def test_a_better_output_that_is_neither_of_the_two_is_refused(better):
    with pytest.raises(ValueError, match=f"Better is {better!r}; Output1 or Output2 is needed"):
        multimodal_rewardbench_record(multimodal(Better=better))


def test_a_bench_about_images_refuses_a_row_without_one():
    with pytest.raises(ValueError, match="the image is None; this bench has one in every row"):
        vl_rewardbench_record(vl(image=None))
    with pytest.raises(ValueError, match="the image is ''; this bench has one in every row"):
        multimodal_rewardbench_record(multimodal(Image=""))


def test_mm_rlhf_rewardbench_numbers_the_pairs_of_an_id_and_says_how_many_videos_it_leaves_out(tmp_path):
    video = mm_rlhf(id="9", video="video/9.mp4")
    del video["image"]
    rows = [mm_rlhf(), video, mm_rlhf(id="8", image="long/8.jpg"), mm_rlhf(rejected="C")]
    path = lines(tmp_path / "mm_reward_bench.jsonl", *rows)
    with pytest.warns(UserWarning, match="1 of 4 pairs of .*mm_reward_bench.jsonl' are about a video"):
        records = list(read_mm_rlhf_rewardbench(path))
    assert records[0] == {
        "id": "7-0",
        "question_id": "7",
        "image": "mcq/7.jpg",
        "conversations": turns("<image>Which?", "1"),
        "responses": ["B", "A"],
        "category": "mcq",
        "chosen_reason": "right",
        "rejected_reason": "wrong",
    }
    assert [record["id"] for record in records] == ["7-0", "8-0", "7-1"]
    assert [record["question_id"] for record in records] == ["7", "8", "7"]
    assert [record["responses"] for record in records] == [["B", "A"], ["B", "A"], ["B", "C"]]


def test_mm_rlhf_rewardbench_without_videos_does_not_warn(tmp_path, recwarn):
    path = lines(tmp_path / "a.jsonl", mm_rlhf(video=None))
    assert [answer(record) for record in read_mm_rlhf_rewardbench(path)] == ["1"]
    assert not recwarn


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("mcq/1.jpg", "mcq"),
        ("data/image/Long_vqa/mcq_1.jpg", "long"),
        ("safety/long/1.jpg", "safety"),
        ("short/1.jpg", "short"),
        ("video/frames/1.jpg", "video"),
    ],
)
def test_the_category_is_named_by_the_outermost_folder_and_never_by_the_file(path, category):
    assert mm_rlhf_category(path) == category


def test_a_path_without_a_category_is_refused():
    with pytest.raises(ValueError, match=r"the path is 'images/mcq.jpg'; one of its folders must name mcq, long"):
        mm_rlhf_rewardbench_records(mm_rlhf(image="images/mcq.jpg"))
    with pytest.raises(ValueError, match="the image is 3; a text is needed"):
        mm_rlhf_rewardbench_records(mm_rlhf(image=3))


def test_plain_pairs_are_read_from_json_lines_in_all_their_forms(tmp_path):
    path = lines(
        tmp_path / "pairs.jsonl",
        plain(),
        plain(id="x", image=["a.jpg", "b.jpg"], label=..., better="2", answer="kept"),
        plain(image=..., response_1=..., response_2=..., responses=["Tim", "Tom"], label=2, better=2, topic="names"),
    )
    first, second, third = read_preference_jsonl(path)
    assert first == {
        "id": 0,
        "image": "a.jpg",
        "conversations": turns("<image>Which?", "1"),
        "responses": ["Tom", "Tim"],
    }
    assert second == {
        "id": "x",
        "image": ["a.jpg", "b.jpg"],
        "conversations": turns("<image><image>Which?", "2"),
        "answer": "kept",
        "responses": ["Tom", "Tim"],
    }
    assert third == {
        "id": 2,
        "conversations": turns("Which?", "2"),
        "responses": ["Tim", "Tom"],
        "topic": "names",
    }


@pytest.mark.parametrize("label", [0, 3, "A", 1.0, True, None, [1]])
def test_a_label_that_is_neither_1_nor_2_is_refused_with_its_row(tmp_path, label):
    path = lines(tmp_path / "pairs.jsonl", plain(), plain(label=label))
    with pytest.raises(ValueError, match=r"row 2 of .*label or better is .*; 1 or 2 is needed"):
        list(read_preference_jsonl(path))


def test_an_empty_label_beside_better_does_not_count():
    assert answer(preference_jsonl_record(plain(label=None, better=2))) == "2"


def test_empty_responses_are_refused_though_two_columns_hold_others():
    with pytest.raises(ValueError, match=r"the responses are \[\]; two texts are needed"):
        preference_jsonl_record(plain(responses=[]))


def test_a_label_that_contradicts_better_is_refused():
    with pytest.raises(ValueError, match=r"label or better is \[1, 2\]"):
        preference_jsonl_record(plain(better=2))


def test_missing_responses_are_named():
    with pytest.raises(ValueError, match="no column 'response_2'"):
        preference_jsonl_record(plain(response_2=...))


@pytest.mark.parametrize("name", sorted(RESERVED_COLUMNS))
def test_a_column_with_a_name_of_the_trainer_is_renamed(name):
    record = preference_jsonl_record(plain(**{name: "kept"}))
    assert record[f"source_{name}"] == "kept"
    assert set(record) == {"image", "conversations", "responses", f"source_{name}"}


def test_the_reserved_names_are_all_those_of_examples_and_trl():
    names = (
        "prompt images solution problem image_path image_size input_size coordinate_space solution_space prompts "
        "completions completion_ids trainer_state log_extra log_metric environments group group_size conversations"
    )
    assert set(names.split()) <= RESERVED_COLUMNS


@pytest.mark.parametrize(
    "read", [read_vl_rewardbench, read_multimodal_rewardbench, read_mm_rlhf_rewardbench, read_preference_jsonl]
)
def test_a_file_has_no_splits_so_none_can_be_asked_for(tmp_path, read):
    with pytest.raises(ValueError, match="is one file, without splits; leave out split 'test'"):
        list(read(lines(tmp_path / "a.jsonl", {}), split="test"))


def test_the_row_reader_reads_what_was_yielded(tmp_path):
    records = read_preference_jsonl(lines(tmp_path / "pairs.jsonl", plain(image=..., label=2, note="n")))
    rows, _ = read_rows(lines(tmp_path / "out.jsonl", *records), "")
    assert (rows[0].question, rows[0].answer) == ("Which?", "2")
    assert rows[0].columns == {"id": 0, "responses": ["Tom", "Tim"], "note": "n"}
