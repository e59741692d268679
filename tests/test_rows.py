"""Reading VLM-R1's data files: what a row becomes, and the sentence for each way a row can be bad."""

import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import pytest
from PIL import Image, ImageFile, PngImagePlugin

from vlm_entropy.data import rows as rows_module
from vlm_entropy.data.files import sample_indices
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


def test_an_image_shared_by_many_rows_is_checked_once(read, monkeypatch):
    opened = []
    monkeypatch.setattr(rows_module, "image_size", lambda path, decode: opened.append(path) or (1, 1))
    read(*[{"image": ["a.jpg", "b.png"], "conversations": turns()}] * 5)
    assert len(opened) == 2


def watch_decoding(monkeypatch):
    """Return a list that gets the path of every image file whose pixels are read from now on."""
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.filename) or load(self))
    return decoded


def late_exif(png, orientation):
    """Return a PNG with an eXIf chunk behind its picture data, where ImageMagick writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    return png[:-12] + chunk + png[-12:]  # IEND is 12 bytes


def test_jpeg_and_png_are_not_decoded_unless_asked_and_other_formats_are(folder, monkeypatch):
    Image.new("RGB", (7, 5)).save(folder / "c.gif")
    record = {"image": ["a.jpg", "b.png", "c.gif"], "conversations": turns()}
    (folder / "data.jsonl").write_text(json.dumps(record))
    decoded = watch_decoding(monkeypatch)
    lazy, _ = read_rows(f"{folder}/data.jsonl", str(folder))
    assert decoded == [f"{folder}/c.gif"]
    full, _ = read_rows(f"{folder}/data.jsonl", str(folder), decode_images=True)
    assert sorted(decoded[1:]) == [f"{folder}/{name}" for name in ("a.jpg", "b.png", "c.gif")]
    assert lazy == full
    assert lazy[0].image_sizes == ((30, 20), (8, 16), (7, 5))


def test_damage_in_the_middle_of_an_image_is_found_only_by_decoding(folder):
    Image.effect_noise((300, 300), 90).save(folder / "hole.png")
    content = bytearray((folder / "hole.png").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    (folder / "hole.png").write_bytes(content)
    (folder / "data.jsonl").write_text(json.dumps({"image": "hole.png", "conversations": turns()}))
    assert read_rows(f"{folder}/data.jsonl", str(folder))[0][0].image_sizes == ((300, 300),)
    with pytest.raises(ValueError, match=r"data.jsonl:1: the image '.*hole.png' cannot be read"):
        read_rows(f"{folder}/data.jsonl", str(folder), decode_images=True)


def test_a_png_that_is_turned_by_exif_after_its_picture_is_measured_upright(read, folder):
    png = (folder / "b.png").read_bytes()
    (folder / "late.png").write_bytes(late_exif(png, 6))
    assert read({"image": "late.png", "conversations": turns()})[0][0].image_sizes == ((16, 8),)


def test_a_png_with_exif_and_text_before_its_picture_is_not_decoded(read, folder, monkeypatch):
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    text.add_text("Software", "a screenshot tool")
    Image.new("RGB", (30, 20)).save(folder / "early.png", exif=exif, pnginfo=text)
    decoded = watch_decoding(monkeypatch)
    assert read({"image": "early.png", "conversations": turns()})[0][0].image_sizes == ((20, 30),)
    assert decoded == []


def test_a_png_without_a_picture_is_refused(read, folder):
    png = (folder / "b.png").read_bytes()
    start, end = png.index(b"IDAT") - 4, png.index(b"IEND") - 4
    (folder / "hollow.png").write_bytes(png[:start] + png[end:])
    with pytest.raises(ValueError, match=r"hollow.png' cannot be read"):
        read({"image": "hollow.png", "conversations": turns()})


def test_a_jpeg_with_bytes_after_its_end_is_decoded_and_usable(read, folder, monkeypatch):
    (folder / "padded.jpg").write_bytes((folder / "a.jpg").read_bytes() + bytes(9))
    decoded = watch_decoding(monkeypatch)
    assert read({"image": "padded.jpg", "conversations": turns()})[0][0].image_sizes == ((30, 20),)
    assert decoded == [f"{folder}/padded.jpg"]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_image_cut_off_anywhere_is_refused_as_by_decoding(read, folder, suffix, share):
    Image.effect_noise((300, 300), 90).save(folder / f"whole.{suffix}")
    content = (folder / f"whole.{suffix}").read_bytes()
    (folder / f"part.{suffix}").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"data.jsonl:1: the image '.*part.{suffix}' cannot be read"):
        read({"image": f"part.{suffix}", "conversations": turns()})


def test_ten_thousand_rows_over_a_hundred_images_load_without_decoding(folder, monkeypatch):
    for index in range(100):
        Image.new("RGB", (40 + index, 30)).save(folder / f"{index}.jpg")
    lines = (json.dumps({"image": f"{index % 100}.jpg", "conversations": turns()}) for index in range(10_000))
    (folder / "many.jsonl").write_text("\n".join(lines))
    decoded = watch_decoding(monkeypatch)
    rows, _ = read_rows(f"{folder}/many.jsonl", str(folder))
    assert [row.image_sizes for row in rows] == [((40 + index % 100, 30),) for index in range(10_000)]
    assert decoded == []


def test_an_array_gives_the_rows_of_the_same_records_as_lines(folder):
    records = [{"image": "a.jpg", "conversations": turns()}, 3, {"conversations": turns(answer=7), "id": "x"}]
    (folder / "x.json").write_text("\ufeff\n " + json.dumps(records, indent=1), encoding="utf-8")
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    array = read_rows(f"{folder}/x.json", str(folder), skip_bad_rows=True)
    lines = read_rows(f"{folder}/x.jsonl", str(folder), skip_bad_rows=True)
    assert [row.source for row in array[0]] == [f"{folder}/x.json:1", f"{folder}/x.json:3"]
    assert array[1] == [BadRow(f"{folder}/x.json:2", "the row is 3; a JSON object is needed.")]
    assert [replace(row, source="") for row in array[0]] == [replace(row, source="") for row in lines[0]]


def test_a_legacy_record_with_problem_and_solution_is_the_same_row(read):
    legacy = {"image": "a.jpg", "problem": "<image>Where?", "solution": [1, 2, 3, 4], "normal_caption": "cat"}
    rows, _ = read(legacy, {"image": "a.jpg", "conversations": turns(), "normal_caption": "cat"})
    assert replace(rows[0], source="") == replace(rows[1], source="")
    assert rows[0].columns == {"normal_caption": "cat"}


def test_conversations_win_over_problem_and_solution_which_stay_columns(read):
    rows, _ = read({"conversations": turns(), "problem": "p", "solution": "s"})
    assert (rows[0].question, rows[0].answer) == ("Where?", "[1, 2, 3, 4]")
    assert rows[0].columns == {"problem": "p", "solution": "s"}


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("first:2", [0, 1]),
        ("end:2", [3, 4]),
        ("end:0", []),
        ("first:9", [0, 1, 2, 3, 4]),
        ("end:9", [0, 1, 2, 3, 4]),
        # 12% of 5 is 0.6, 41% is 2.05: VLM-R1 rounds up
        ("first:12%", [0]),
        ("end:41%", [2, 3, 4]),
        ("random:100%", [0, 1, 2, 3, 4]),
    ],
)
def test_a_sampling_strategy_keeps_rows_in_file_order(strategy, kept):
    assert sample_indices(strategy, 5) == kept


def test_a_random_sample_is_equal_in_every_process_and_has_no_row_twice():
    code = "from vlm_entropy.data.files import sample_indices; print(sample_indices('random:30', 100))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2)]
    here = sample_indices("random:30", 100)
    assert [run.stdout.strip() for run in runs] == [str(here)] * 2
    assert here == sorted(set(here))
    assert len(here) == 30
    assert here != list(range(30))
    assert sample_indices("random:30", 100, seed=1) != here


@pytest.mark.parametrize("strategy", ["", "some:3", "first", "first:-1", "first:1.5", "random:101%", "first:3 "])
def test_an_unknown_sampling_strategy_is_named(strategy):
    with pytest.raises(ValueError, match=f"sampling_strategy is '{strategy}'; allowed are all, first:N, end:N"):
        sample_indices(strategy, 5)


def test_a_yaml_file_takes_parts_of_several_data_files(folder):
    legacy = [{"problem": f"q{index}", "solution": index} for index in range(4)]
    (folder / "one.json").write_text(json.dumps(legacy))
    (folder / "two.jsonl").write_text("\n".join(json.dumps({"conversations": turns(f"r{i}", i)}) for i in range(3)))
    (folder / "all.yaml").write_text(
        f"datasets:\n  - json_path: {folder}/one.json\n    sampling_strategy: end:25%\n"
        f"  - json_path: {folder}/two.jsonl\n    sampling_strategy: first:2\n  - json_path: {folder}/one.json\n"
    )
    rows, _ = read_rows(f"{folder}/all.yaml", None)
    assert [row.question for row in rows] == ["q3", "r0", "r1", "q0", "q1", "q2", "q3"]
    assert [row.source for row in rows[:2]] == [f"{folder}/one.json:4", f"{folder}/two.jsonl:1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [", "is not YAML"),
        ("a: 1", "needs a list `datasets:`"),
        ("datasets: []", "needs a list `datasets:`"),
        ("datasets: [{json_path: 3}]", "is no json_path"),
        ("datasets: [{json_path: a.json, sampling_stategy: all}]", "is no json_path"),
        ("datasets: [{json_path: none.json}]", "The data file 'none.json' does not exist"),
        ("datasets: [{json_path: FOLDER/y.yaml}]", "YAML inside YAML"),
        ("datasets: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_yaml_file_that_is_not_understood_is_refused(folder, text, message):
    (folder / "y.yaml").write_text(text.replace("FOLDER", str(folder)))
    with pytest.raises(ValueError, match=message):
        read_rows(f"{folder}/y.yaml", None)


def test_the_reward_method_of_a_file_fills_the_rows_that_have_none(folder):
    lines = [{"conversations": turns()}, {"conversations": turns(), "accu_reward_method": "mcq"}]
    lines.append({"conversations": turns(), "accu_reward_method": None})
    for name in ("1.jsonl", "2.jsonl", "3.jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    files = ":".join(f"{folder}/{name}" for name in ("1.jsonl", "2.jsonl", "3.jsonl"))
    rows, _ = read_rows(files, None, reward_methods="od_ap:default:")
    methods = [row.columns.get("accu_reward_method") for row in rows]
    assert methods == ["od_ap", "mcq", "od_ap", "default", "mcq", "default", None, "mcq", None]
    assert "accu_reward_method" not in rows[6].columns
    with pytest.raises(ValueError, match=r"3 data files .* and 2 reward methods \('a:b'\)"):
        read_rows(files, None, reward_methods="a:b")


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
    (folder / "array.json").write_text(" [\n{}")
    (folder / "empty.jsonl").write_text("\n")
    (folder / "latin.jsonl").write_bytes(b'{"a": "\xe9"}')
    for name, message in [
        ("missing.jsonl", "The data file '.*missing.jsonl' does not exist"),
        ("array.json", "array.json' is not a JSON array: "),
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
