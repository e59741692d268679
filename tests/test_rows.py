"""Reading VLM-R1's JSON Lines: what a row becomes, and the sentence for each way a row can be bad."""

import json

import pytest
from PIL import Image

from vlm_entropy.data import rows as rows_module
from vlm_entropy.data.rows import BadRow, Row, read_rows, write_bad_rows


def turns(question="Where?", answer="[1, 2, 3, 4]"):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg")
    Image.new("RGBA", (8, 16)).save(tmp_path / "b.png")
    return tmp_path


@pytest.fixture
def read(folder):
    """Write records (or raw lines) to a file and read it back."""

    def write_and_read(*records, skip_bad_rows=False):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path = folder / "data.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        rows, bad_rows = read_rows(str(path), str(folder), skip_bad_rows=skip_bad_rows)
        return rows, [BadRow(bad.source.removeprefix(f"{folder}/"), bad.reason) for bad in bad_rows]

    return write_and_read


def test_a_line_becomes_a_row_with_its_other_columns(read, folder):
    record = {
        "id": 7,
        "image": "a.jpg",
        "conversations": turns("<image> Where is\nthe cat?<image>", "<answer> [1, 2, 3, 4] </answer>"),
        "accu_reward_method": "iou",
    }
    rows, bad_rows = read(record)
    assert rows == [
        Row(
            source=f"{folder}/data.jsonl:1",
            images=(f"{folder}/a.jpg",),
            image_sizes=((30, 20),),
            question="Where is\nthe cat?",
            answer="[1, 2, 3, 4]",
            columns={"id": 7, "accu_reward_method": "iou"},
        )
    ]
    assert bad_rows == []


@pytest.mark.parametrize("image", ["", [], None])
def test_an_empty_image_is_a_row_of_text(read, image):
    rows, _ = read({"image": image, "conversations": turns()}, {"conversations": turns()})
    assert [(row.images, row.image_sizes) for row in rows] == [((), ())] * 2


def test_several_images_keep_their_order_and_their_own_sizes(read):
    rows, _ = read({"image": ["b.png", "a.jpg", "b.png"], "conversations": turns()})
    assert rows[0].image_sizes == ((8, 16), (30, 20), (8, 16))


@pytest.mark.parametrize(
    ("answer", "text"),
    [(3, "3"), (0, "0"), (2.5, "2.5"), ([1, 2, 3, 4], "[1, 2, 3, 4]"), ({"a": "é"}, '{"a": "é"}'), (False, "false")],
)
def test_an_answer_that_is_no_text_is_written_as_json(read, answer, text):
    assert read({"conversations": turns(answer=answer)})[0][0].answer == text


def test_system_turns_are_passed_over_and_later_turns_dropped(read):
    system, more = {"from": "system", "value": "Be brief."}, turns("Sure?", "yes")
    rows, _ = read({"conversations": [system, *turns(), *more]}, {"conversations": [{"value": "q"}, {"value": "a"}]})
    assert [(row.question, row.answer) for row in rows] == [("Where?", "[1, 2, 3, 4]"), ("q", "a")]


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_tolerated(folder):
    line = json.dumps({"conversations": turns()}).encode()
    (folder / "w.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \r\n" + line + b"\r\n")
    rows, _ = read_rows(str(folder / "w.jsonl"), None)
    assert [row.source for row in rows] == [f"{folder}/w.jsonl:1", f"{folder}/w.jsonl:4"]


def test_each_data_file_has_its_own_folder_and_an_empty_folder_takes_paths_as_they_are(folder):
    (folder / "sub").mkdir()
    Image.new("RGB", (5, 6)).save(folder / "sub" / "a.jpg")
    for name, image in [("1.jsonl", "a.jpg"), ("2.jsonl", "a.jpg"), ("3.jsonl", f"{folder}/b.png")]:
        (folder / name).write_text(json.dumps({"image": image, "conversations": turns()}))
    files = ":".join(str(folder / name) for name in ("1.jsonl", "2.jsonl", "3.jsonl"))
    rows, _ = read_rows(files, f"{folder}:{folder}/sub:")
    assert [row.image_sizes[0] for row in rows] == [(30, 20), (5, 6), (8, 16)]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_those_of_the_upright_image(read, folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(folder / "turned.png", exif=exif)
    rows, _ = read({"image": ["turned.jpg", "turned.png"], "conversations": turns()})
    # 3 is upside down; 6 and 8 are quarter turns
    assert rows[0].image_sizes == (((20, 30) if orientation in {6, 8} else (30, 20)),) * 2


def test_an_image_shared_by_many_rows_is_decoded_once(read, monkeypatch):
    opened = []
    monkeypatch.setattr(rows_module, "_image_size", lambda path: opened.append(path) or (1, 1))
    read(*[{"image": ["a.jpg", "b.png"], "conversations": turns()}] * 5)
    assert len(opened) == 2


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture
def bad_images(folder):
    Image.effect_noise((300, 300), 90).save(folder / "cut.jpg")
    Image.effect_noise((300, 300), 90).save(folder / "cut.png")
    cut(folder / "cut.jpg")
    cut(folder / "cut.png")
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (201, 1)).save(folder / "thin.png")
    Image.new("RGB", (1, 200)).save(folder / "just.png")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{'a': 1}", "not JSON"),
        ("[" * 99_999, "not JSON"),
        ("3", "the row is 3; a JSON object"),
        ({"image": "a.jpg"}, "conversations is None"),
        ({"conversations": []}, r"conversations is \[\]"),
        ({"conversations": "hi"}, "conversations is 'hi'"),
        ({"conversations": ["hi", "ho"]}, r"conversations is \['hi', 'ho'\]"),
        ({"conversations": turns()[:1]}, "the answer is None"),
        ({"conversations": [{"from": "system", "value": "x"}]}, "the question is None"),
        ({"conversations": turns(answer=None)}, "the answer is None"),
        ({"conversations": turns(answer="<answer> </answer>")}, "the answer is '<answer> </answer>'"),
        ({"conversations": turns(question=" <image>\n")}, r"the question is ' <image>\\n'"),
        ({"conversations": turns(question=5)}, "the question is 5"),
        ({"image": 5, "conversations": turns()}, "image is 5"),
        ({"image": {"bytes": "x"}, "conversations": turns()}, r"image is \{'bytes': 'x'\}"),
        ({"image": ["a.jpg", None], "conversations": turns()}, r"image is \['a.jpg', None\]"),
        ({"image": "none.jpg", "conversations": turns()}, "the image .*none.jpg' does not exist"),
        ({"image": "\x00", "conversations": turns()}, "the image .* cannot be read: embedded null byte"),
        ({"image": ["a.jpg", "cut.jpg"], "conversations": turns()}, "cut.jpg' cannot be read: .*truncated"),
        ({"image": "cut.png", "conversations": turns()}, "cut.png' cannot be read: .*"),
        ({"image": "text.jpg", "conversations": turns()}, "text.jpg' cannot be read: cannot identify"),
        ({"image": "empty.png", "conversations": turns()}, "empty.png' cannot be read: cannot identify"),
        ({"image": ".", "conversations": turns()}, "cannot be read: .*directory"),
        ({"image": "thin.png", "conversations": turns()}, "thin.png' is 201x1; a side may be at most 200 times"),
    ],
)
def test_a_bad_row_is_reported_with_its_line_and_value(read, folder, bad_images, record, reason):
    good = {"image": "just.png", "conversations": turns()}
    with pytest.raises(ValueError, match=rf"data\.jsonl:2: .*{reason}"):
        read(good, record, "{")
    rows, bad_rows = read(good, record, "", good, "{", skip_bad_rows=True)
    assert [row.source for row in rows] == [f"{folder}/data.jsonl:1", f"{folder}/data.jsonl:4"]
    assert [bad.source for bad in bad_rows] == ["data.jsonl:2", "data.jsonl:5"]
    assert len(bad_rows[0].reason) < 400


def test_a_decompression_bomb_is_a_bad_row(read, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(ValueError, match=r"data.jsonl:1: the image .*b.png' cannot be read: .*decompression bomb"):
        read({"image": "b.png", "conversations": turns()})


def test_a_bad_image_in_an_early_row_is_reported_before_bad_json_in_a_late_one(read):
    with pytest.raises(ValueError, match=r"data.jsonl:1: .*none.jpg"):
        read({"image": "none.jpg", "conversations": turns()}, "{")


@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_faults_of_the_whole_file_are_raised_and_never_skipped(folder, skip_bad_rows):
    (folder / "array.jsonl").write_text(" [\n{}]")
    (folder / "empty.jsonl").write_text("\n")
    (folder / "latin.jsonl").write_bytes(b'{"a": "\xe9"}')
    for name, message in [
        ("missing.jsonl", "The data file '.*missing.jsonl' does not exist"),
        ("array.jsonl", "JSON Lines is expected"),
        ("empty.jsonl", "No usable row in"),
        ("latin.jsonl", "latin.jsonl' is not UTF-8"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_rows(str(folder / name), "", skip_bad_rows=skip_bad_rows)


def test_nothing_left_after_skipping_is_an_error(read):
    with pytest.raises(ValueError, match=r"No usable row in .*; 2 bad rows were skipped"):
        read("{", "3", skip_bad_rows=True)


def test_unequal_counts_of_files_and_folders_are_named():
    with pytest.raises(ValueError, match=r"got 3 data files \('a:b:c'\) and 2 image folders \('x:y'\)"):
        read_rows("a:b:c", "x:y")


def test_bad_rows_are_written_as_json_lines(tmp_path):
    write_bad_rows([BadRow("a.jsonl:1", "é"), BadRow("a.jsonl:2", "two\nlines")], tmp_path / "bad.jsonl")
    lines = (tmp_path / "bad.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"source": "a.jsonl:1", "reason": "é"},
        {"source": "a.jsonl:2", "reason": "two\nlines"},
    ]
    assert lines[-1] == ""
