"""The exporter to VLMEvalKit: its tables in, its prediction files out."""

import csv
import json

import pandas
import pytest

from vlm_entropy.eval.vlmevalkit import ExportArguments, export


def predictions(folder, *rows):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
    (folder / "predictions.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(folder)


def line(name, response, **more):
    return {"id": name, "sample": 0, "response": response, "truncated": False, "tokens": 3, "input_size": None, **more}


def table(folder, **columns):
    """Written as VLMEvalKit writes its tables."""
    path = folder / "MMStar.tsv"
    pandas.DataFrame(columns).to_csv(path, sep="\t", index=False, encoding="utf-8", quoting=csv.QUOTE_ALL)
    return str(path)


def run(tmp_path, rows, data, **options):
    arguments = ExportArguments(predictions(tmp_path / "run", *rows), data, "tiny", str(tmp_path / "out"), **options)
    export(arguments)
    return tmp_path / "out" / f"tiny_{arguments.dataset}.tsv"


def read(path):
    """As VLMEvalKit's `load` reads it."""
    return pandas.read_csv(path, sep="\t")


def test_the_file_has_every_column_but_the_image_and_the_prediction_in_the_order_of_the_table(tmp_path, capsys):
    image = "A" * 200_000  # longer than a field may be by csv's own limit
    data = table(
        tmp_path, index=[3, 1, 2], image=[image] * 3, question=["a\tb", 'say "x"', "é\r\nü"], answer=list("ABC")
    )
    limit = csv.field_size_limit()
    path = run(tmp_path, [line("1", "B\nsure"), line("2", 'C "quoted"\t'), line("3", "A\r\n, <|im_end|> é")], data)
    found = read(path)
    assert path.name == "tiny_MMStar.tsv"
    assert list(found.columns) == ["index", "question", "answer", "prediction"]
    assert found["index"].tolist() == [3, 1, 2]
    assert found["question"].tolist() == ["a\tb", 'say "x"', "é\r\nü"]
    assert found["prediction"].tolist() == ["A\r\n, <|im_end|> é", "B\nsure", 'C "quoted"\t']
    assert path.read_bytes().startswith(b'"index"\t"question"\t"answer"\t"prediction"\n"3"\t')
    assert csv.field_size_limit() == limit
    assert capsys.readouterr().out == f"wrote {path}: 3 rows; score it with `vlmutil eval MMStar {path}`\n"


def test_texts_as_index_and_another_name_of_the_data_set(tmp_path):
    data = table(tmp_path, index=["val_1", "007"], answer=["A", "B"])
    path = run(tmp_path, [line("val_1", "A"), line("007", "B")], data, dataset="MMMU_DEV_VAL")
    assert path.name == "tiny_MMMU_DEV_VAL.tsv"
    assert read(path)["prediction"].tolist() == ["A", "B"]


def test_the_final_answer_is_written_where_there_is_one(tmp_path):
    data = table(tmp_path, index=[1, 2, 3])
    rows = [line(1, "<think>A or B</think><answer>B</answer>"), line(2, "so \\boxed{C}"), line(3, "It is D.")]
    assert read(run(tmp_path, rows, data, final_answer=True))["prediction"].tolist() == ["B", "C", "It is D."]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([line("1", "A"), line("1", "B", sample=1)], r"predictions\.jsonl:2 is sample 1; VLMEvalKit takes one answer"),
        ([line("1", "A"), line("1", "B")], r"predictions\.jsonl:2 has the id '1', which stands there before"),
        ([line("1", "A")], r"MMStar\.tsv:3 has the index '2', to which the run has no answer"),
        (
            [line("1", "A"), line("2", "B"), line("3", "C"), line("4", "C")],
            "2 answers have no row in .*, the first to '3'",
        ),
        ([line("1", "A"), "{"], r"predictions\.jsonl:2 is not JSON"),
        ([line("1", None)], "an object with id and response is needed"),
        ([{"response": "A"}], "an object with id and response is needed"),
        (["[1]"], "an object with id and response is needed"),
    ],
)
def test_answers_that_do_not_fit_the_table_are_refused_and_nothing_is_written(tmp_path, rows, reason):
    with pytest.raises(ValueError, match=reason):
        run(tmp_path, rows, table(tmp_path, index=[1, 2]))
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"id": [1], "answer": ["A"]}, "has no column index; it has id, answer"),
        ({"index": [1], "prediction": ["A"]}, "has a column prediction already"),
        ({"index": [1, 1]}, r"MMStar\.tsv:3 has the index '1', which stands there before"),
    ],
)
def test_a_table_that_is_none_of_vlmevalkit_is_refused(tmp_path, columns, reason):
    with pytest.raises(ValueError, match=reason):
        run(tmp_path, [line("1", "A")], table(tmp_path, **columns))


@pytest.mark.parametrize("text", ["index\tanswer\n1\n", "index\n1\tA\n"])
def test_a_row_of_another_length_is_refused(tmp_path, text):
    path = tmp_path / "MMStar.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"MMStar\.tsv:2 has not the . fields of its header"):
        run(tmp_path, [line("1", "A")], str(path))


def test_a_quote_that_is_never_closed_is_refused(tmp_path):
    path = tmp_path / "MMStar.tsv"
    path.write_text('index\tanswer\n1\t"A\n')
    with pytest.raises(ValueError, match=r"MMStar\.tsv:\d is no row of a table: unexpected end of data"):
        run(tmp_path, [line("1", "A")], str(path))


def test_nothing_is_overwritten_and_names_make_no_folders(tmp_path):
    data = table(tmp_path, index=[1])
    run(tmp_path, [line("1", "A")], data)
    with pytest.raises(ValueError, match=r"tiny_MMStar\.tsv' exists"):
        run(tmp_path, [line("1", "B")], data)
    with pytest.raises(ValueError, match="--model is 'a/b'; a name without slashes"):
        ExportArguments("run", data, "a/b", "out")
    with pytest.raises(ValueError, match="is missing; --run is the folder of a finished"):
        export(ExportArguments(str(tmp_path / "absent"), data, "other", str(tmp_path / "out")))
