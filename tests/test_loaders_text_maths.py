"""GSM8K, MATH-500 and AMC: each source's own files in miniature, and the traps in them."""

import pytest
from datasets import Dataset, DatasetDict
from loader_files import answers, lines, turns

from vlm_entropy.data.loaders.text_maths import gsm8k_record, number_text, read_amc, read_gsm8k, read_math500


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


@pytest.mark.parametrize("read", [read_gsm8k, read_math500, read_amc])
def test_a_file_has_no_splits_so_none_can_be_asked_for(tmp_path, read):
    with pytest.raises(ValueError, match="is one file, without splits; leave out split 'test'"):
        list(read(lines(tmp_path / "a.jsonl", {}), split="test"))
