"""Converting: one file that is whole or not there, each image once, and what reads back as rows."""

import io
import json
import subprocess
import sys
import tracemalloc

import pytest
from PIL import Image

from vlm_entropy.data import __main__ as command
from vlm_entropy.data import convert as convert_module
from vlm_entropy.data.convert import Converted, convert, image_name
from vlm_entropy.data.loaders import LOADERS, Loader
from vlm_entropy.data.rows import read_rows


def encoded(colour, kind="PNG", size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def record(number, **columns):
    turns = [{"from": "human", "value": f"q{number}"}, {"from": "gpt", "value": f"a{number}"}]
    return {"id": number, **columns, "conversations": turns}


@pytest.fixture
def from_records(monkeypatch, tmp_path):
    """Convert the given records through a loader made for the test."""

    def run(*records, out="out", **options):
        def read(path, *, split=None, images=""):
            yield from records

        monkeypatch.setitem(LOADERS, "test", Loader(read, "for a test"))
        return convert("SOURCE", loader="test", out=str(tmp_path / out), **options)

    return run


def test_embedded_images_are_written_once_and_read_back_whole(from_records, tmp_path):
    red, blue = encoded("red"), encoded("blue", "JPEG", (9, 9))
    records = [record(0, image=red), record(1, image=[blue, red]), record(2), record(3, image=red)]
    done = from_records(*records)
    assert done == Converted(tmp_path / "out" / "data.jsonl", 4, 2, str(tmp_path / "out"))
    rows, _ = read_rows(str(done.path), done.image_folder, decode_images=True)
    assert [row.image_sizes for row in rows] == [((6, 4),), ((9, 9), (6, 4)), (), ((6, 4),)]
    assert [(row.question, row.answer, row.columns) for row in rows] == [
        (f"q{i}", f"a{i}", {"id": i}) for i in range(4)
    ]
    files = {path.name: path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    assert files == {image_name(red): red, image_name(blue): blue}
    assert image_name(red).endswith(".png")
    assert image_name(blue).endswith(".jpeg")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.jsonl", "images"]


def test_paths_stay_as_they_are_and_the_image_folder_is_theirs(from_records, tmp_path):
    done = from_records(record(0, image="a/b.jpg"), record(1, image=["c.png"]), images="IMAGES", split="val")
    assert done == Converted(tmp_path / "out" / "val.jsonl", 2, 0, "IMAGES")
    lines = [json.loads(line) for line in done.path.read_text(encoding="utf-8").splitlines()]
    assert lines == [record(0, image="a/b.jpg"), record(1, image=["c.png"])]


def test_a_file_may_be_named_and_texts_stay_readable(from_records, tmp_path):
    done = from_records(record(0, caption="caf\xe9"), out="sub/x.jsonl", split="val")
    assert done.path == tmp_path / "sub" / "x.jsonl"
    assert "caf\xe9" in done.path.read_text(encoding="utf-8")


def test_the_limit_stops_early(from_records):
    assert from_records(record(0), record(1), record(2), limit=2).rows == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(1, image=b"text"), "record 2 of 'SOURCE': the embedded image cannot be read: "),
        (record(1, image="a.jpg"), "record 2 of 'SOURCE': some images are paths and some are embedded"),
        (record(1, score=float("nan")), "record 2 of 'SOURCE': Out of range float values"),
        (record(1, other=b"x"), "record 2 of 'SOURCE': Object of type bytes is not JSON serializable"),
    ],
)
def test_a_bad_record_leaves_no_file_behind(from_records, tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        from_records(record(0, image=encoded("red")), bad)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]


def test_a_run_that_is_stopped_leaves_no_file_behind(from_records, tmp_path, monkeypatch):
    def stop(content):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "image_name", stop)
    with pytest.raises(KeyboardInterrupt):
        from_records(record(0, image=encoded("red")))
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_started_is_named(from_records, tmp_path):
    with pytest.raises(ValueError, match="Unknown source format 'nope'; allowed are vlm_r1, "):
        convert("x", loader="nope", out=str(tmp_path / "o"))
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        from_records(record(0), limit=0)
    with pytest.raises(ValueError, match="There is no row in 'SOURCE'"):
        from_records()
    from_records(record(0))
    with pytest.raises(ValueError, match=r"data.jsonl' exists; remove it or name another"):
        from_records(record(1))
    rows, _ = read_rows(f"{tmp_path}/out/data.jsonl", None)
    assert [row.question for row in rows] == ["q0"]


def test_memory_does_not_grow_with_the_rows(monkeypatch, tmp_path):
    def read(path, *, split=None, images=""):
        for number in range(300):
            # 100 000 bytes each after the end of the picture: 30 MB in all
            yield record(number, image=encoded((number % 256, number // 256, 0)) + bytes(100_000))

    monkeypatch.setitem(LOADERS, "test", Loader(read, "for a test"))
    tracemalloc.start()
    done = convert("SOURCE", loader="test", out=str(tmp_path / "out"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (done.rows, done.images) == (300, 300)
    assert peak < 3_000_000


def test_the_command_converts_and_says_how_to_train(tmp_path, capsys):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    row = {"image": "a.jpg", "problem": "Where?", "solution": [1, 2, 3, 4]}
    (tmp_path / "old.json").write_text(json.dumps([row, row]))
    flags = f"--from vlm_r1 --to vlm_r1 --data {tmp_path}/old.json --images {tmp_path} --out {tmp_path}/new.jsonl"
    command.main(["convert", *flags.split()])
    assert capsys.readouterr().out == (
        f"wrote {tmp_path}/new.jsonl: 2 rows, 0 images\n"
        f"train with --data_file_paths {tmp_path}/new.jsonl --image_folders '{tmp_path}'\n"
    )
    rows, _ = read_rows(f"{tmp_path}/new.jsonl", str(tmp_path))
    assert [(row.question, row.answer) for row in rows] == [("Where?", "[1, 2, 3, 4]")] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--from nope --data x --out OUT", "Unknown source format 'nope'"),
        ("--from vlm_r1 --data none.jsonl --out OUT", "The data file 'none.jsonl' does not exist"),
        ("--from screenspot --data none --out OUT", "'none' holds no screenspot_mobile.json"),
        ("--from gsm8k --data none.parquet --split test --out OUT", "'none.parquet' is no table"),
    ],
)
def test_the_command_ends_with_one_sentence(tmp_path, flags, message):
    with pytest.raises(SystemExit, match=f"^vlm-entropy-data: .*{message}"):
        command.main(["convert", *flags.replace("OUT", str(tmp_path / "out")).split()])


def test_importing_the_loaders_imports_no_framework():
    code = (
        "import sys, vlm_entropy.data.convert; "
        "print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
