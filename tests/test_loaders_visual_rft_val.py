"""Visual-RFT's validation classes: its .pth and .txt in miniature, files that must not run, and plain tables."""

import os
import pickle

import pytest
import torch
from loader_files import answers, lines, turns

from vlm_entropy.data.loaders.visual_rft_val import QUESTION, class_name, class_names, read_visual_rft_val

FOLDER = "/mnt/author/CLIP-Cls/data/oxford_flowers/jpg"
NAMES = "pink primrose\nhard-leaved pocket orchid \ncanterbury bells\n"


@pytest.fixture
def flowers(tmp_path):
    (tmp_path / "oxford_flowers.txt").write_text(NAMES)
    return tmp_path / "oxford_flowers.pth"


def entry(name, label):
    return {f"{FOLDER}/{name}": {"label": torch.tensor(label)}}


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pth_is_read_with_its_names_and_without_the_authors_folder(flowers, is_zip):
    entries = [entry("image_06734.jpg", 2), entry("image_06735.jpg", [0])]
    torch.save(entries, flowers, _use_new_zipfile_serialization=is_zip)
    first, second = read_visual_rft_val(str(flowers))
    assert first == {
        "id": 0,
        "image": "image_06734.jpg",
        "conversations": turns(f"<image>{QUESTION}", "canterbury bells"),
    }
    assert (second["id"], answers([second])) == (1, ["pink primrose"])


def test_a_line_is_a_label_even_an_empty_one(tmp_path):
    (tmp_path / "a.txt").write_text(" a b \n\nC\n")
    assert class_names(tmp_path / "a.txt") == ["a b", "", "C"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pth_that_is_a_program_is_refused_and_not_run(flowers, save, monkeypatch):
    monkeypatch.chdir(flowers.parent)
    save([{"a.jpg": {"label": Evil()}}], flowers)
    with pytest.raises(ValueError, match=r"oxford_flowers.pth' is refused, nothing was run"):
        list(read_visual_rft_val(str(flowers)))
    assert not (flowers.parent / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 broken", b"\x80\x04.", b"\x80\x02]q\x00("])
def test_a_pth_that_is_broken_is_refused(flowers, content):
    flowers.write_bytes(content)
    with pytest.raises(ValueError, match="is refused"):
        list(read_visual_rft_val(str(flowers)))


@pytest.mark.parametrize("value", [{}, torch.zeros(2), [1], [["a", 1]]])
def test_a_pth_of_anything_but_entries_is_refused(flowers, value):
    torch.save(value, flowers)
    with pytest.raises(ValueError, match=r"a list of \{path: \{'label': number\}\} is needed"):
        list(read_visual_rft_val(str(flowers)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"label": torch.tensor(3)}, "label is 3; the names are those of 0 to 2"),
        ({"label": torch.tensor(-1)}, "label is -1"),
        ({"label": torch.tensor([0, 1])}, "label is tensor"),
        ({"label": torch.tensor(1.0)}, "label is 1.0"),
        ({"label": True}, "label is True"),
        ({"target": torch.tensor(1)}, "label is None"),
        (torch.tensor(1), "label is None"),
    ],
)
def test_a_label_without_a_name_is_refused_by_its_row(flowers, content, reason):
    torch.save([entry("a.jpg", 0), {"b.jpg": content}], flowers)
    with pytest.raises(ValueError, match=f"row 2 of .*{reason}"):
        list(read_visual_rft_val(str(flowers)))


def test_a_pth_needs_the_names_beside_it_and_has_no_splits(flowers):
    torch.save([entry("a.jpg", 0)], flowers)
    with pytest.raises(ValueError, match=r"is one split, with its class names in oxford_flowers.txt; split is 'test'"):
        list(read_visual_rft_val(str(flowers), split="test"))
    flowers.with_suffix(".txt").unlink()
    with pytest.raises(ValueError, match=r"with its class names in oxford_flowers.txt"):
        list(read_visual_rft_val(str(flowers)))


def test_a_table_has_names_or_numbers_for_labels(tmp_path):
    path = lines(tmp_path / "pets.jsonl", {"image": "sub/a.jpg", "label": "pug"}, {"image": "b.jpg", "label": "Maine"})
    first, second = read_visual_rft_val(path)
    assert first == {"id": 0, "image": "sub/a.jpg", "conversations": turns(f"<image>{QUESTION}", "pug")}
    assert answers([second]) == ["Maine"]
    numbered = lines(tmp_path / "oxford_flowers.jsonl", {"image": "a.jpg", "label": 1})
    with pytest.raises(ValueError, match=r"row 1 of .*label is 1"):
        list(read_visual_rft_val(numbered))
    (tmp_path / "oxford_flowers.txt").write_text(NAMES)
    assert answers(read_visual_rft_val(numbered)) == ["hard-leaved pocket orchid"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": "pug"}, "no column 'image'"),
        ({"image": "a.jpg"}, "no column 'label'"),
        ({"image": "", "label": "pug"}, "image is ''"),
        ({"image": "a.jpg", "label": " "}, "label is ' '"),
    ],
)
def test_a_row_without_image_or_label_is_refused(tmp_path, row, reason):
    with pytest.raises(ValueError, match=f"row 1 of .*{reason}"):
        list(read_visual_rft_val(lines(tmp_path / "pets.jsonl", row)))


def test_a_name_stands_for_itself():
    assert class_name(" pug ", []) == "pug"
    assert class_name(0, ["pug"]) == "pug"
