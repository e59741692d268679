"""Screenshots with a place to click: every published layout in miniature, and what of a source row is refused."""

import io
import json

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from vlm_entropy.data.convert import convert
from vlm_entropy.data.loaders import gui
from vlm_entropy.data.rows import read_rows
from vlm_entropy.rewards.gui import gui_action_name_reward


def turns(question, answer):
    return [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return str(path)


def png(size):
    file = io.BytesIO()
    Image.new("RGB", size, "white").save(file, "PNG")
    return file.getvalue()


# ScreenSpot

CLOSE = {
    "img_filename": "pc_1.png", "bbox": [10, 20, 30, 40], "instruction": "close the window", "data_type": "icon",
    "data_source": "windows",
}  # fmt: skip
CLOSED = {
    "platform": "desktop", "data_type": "icon", "data_source": "windows", "action": "click", "image": "pc_1.png",
    "conversations": turns("close the window", "[10, 20, 40, 60]"),
}  # fmt: skip


def test_screenspot_boxes_are_width_and_height(tmp_path):
    path = write(tmp_path / "screenspot_desktop.json", [CLOSE])
    assert list(gui.read_screenspot(path)) == [{"id": 0, **CLOSED}]


@pytest.mark.parametrize(
    ("source", "platform"),
    [
        *[("ios", "mobile"), ("android", "mobile"), ("macos", "desktop"), ("windows", "desktop")],
        *[("gitlab", "web"), ("shop", "web"), ("forum", "web"), ("tool", "web")],
    ],
)
def test_the_platform_follows_from_the_data_source(source, platform):
    assert gui.screenspot_record({**CLOSE, "data_source": source})["platform"] == platform


@pytest.mark.parametrize(("suffix", "read"), [("", gui.read_screenspot), ("_v2", gui.read_screenspot_v2)])
def test_a_folder_of_screenspot_gives_all_platforms_or_one(tmp_path, suffix, read):
    for name in ("web", "mobile", "desktop"):
        write(tmp_path / f"screenspot_{name}{suffix}.json", [{**CLOSE, "instruction": name}] * 2)
    records = list(read(str(tmp_path)))
    names = ["mobile", "mobile", "desktop", "desktop", "web", "web"]
    assert [record["conversations"][0]["value"].removeprefix("<image>") for record in records] == names
    assert [record["id"] for record in records] == [0, 1, 2, 3, 4, 5]
    assert [record["id"] for record in read(str(tmp_path), split="web")] == [0, 1]
    with pytest.raises(ValueError, match="split is 'tablet'; allowed are mobile, desktop, web"):
        list(read(str(tmp_path), split="tablet"))
    (tmp_path / f"screenspot_desktop{suffix}.json").unlink()
    with pytest.raises(ValueError, match=f"holds no screenspot_desktop{suffix}.json"):
        list(read(str(tmp_path)))
    with pytest.raises(ValueError, match="one file, without splits"):
        list(read(f"{tmp_path}/screenspot_web{suffix}.json", split="web"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, -3, 4]}, r"bbox is \[1, 2, -3, 4\]; a width and a height >= 0"),
        ({"instruction": None}, "the question is None"),
        ({"instruction": " "}, "the question is ' '"),
        ({"data_source": ["ios"]}, "unhashable"),
        ({"img_filename": 3}, "the image is 3"),
    ],
)
def test_a_bad_screenspot_row_is_named_by_its_place(tmp_path, change, message):
    path = write(tmp_path / "screenspot_web.json", [CLOSE, {**CLOSE, **change}])
    with pytest.raises(ValueError, match=rf"row 2 of '{path}': .*{message}"):
        list(gui.read_screenspot(path))


@pytest.mark.parametrize("name", list(CLOSE))
def test_a_missing_screenspot_column_is_named(name):
    row = {key: value for key, value in CLOSE.items() if key != name}
    with pytest.raises(ValueError, match=f"there is no column '{name}'; the columns are "):
        gui.screenspot_record(row)


def test_screenspot_converts_to_rows_of_its_screenshots(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "pc_1.png")
    path = write(tmp_path / "screenspot_desktop.json", [CLOSE])
    done = convert(path, loader="screenspot", out=f"{tmp_path}/out.jsonl", images=str(tmp_path))
    ((row,), _) = read_rows(str(done.path), done.image_folder)
    assert (row.question, row.answer, row.image_sizes) == ("close the window", "[10, 20, 40, 60]", ((200, 100),))
    assert row.columns == {
        "id": 0, "platform": "desktop", "data_type": "icon", "data_source": "windows", "action": "click",
    }  # fmt: skip


# ScreenSpot-Pro

PRO = {
    "id": "vscode_windows_1", "img_filename": "vscode_windows/1.png", "bbox": [10, 20, 30, 40], "instruction": "save",
    "instruction_cn": "\u4fdd\u5b58", "application": "vscode", "platform": "windows", "img_size": [3840, 2160],
    "ui_type": "icon", "group": "Dev",
}  # fmt: skip
PRO_RECORD = {
    "id": "vscode_windows_1", "platform": "windows", "application": "vscode", "group": "Dev", "ui_type": "icon",
    "instruction_cn": "\u4fdd\u5b58", "img_size": [3840, 2160], "data_type": "icon", "action": "click",
    "image": "vscode_windows/1.png", "conversations": turns("save", "[10, 20, 30, 40]"),
}  # fmt: skip


def test_screenspot_pro_boxes_are_corners(tmp_path):
    write(tmp_path / "annotations" / "b.json", [{**PRO, "id": "b"}])
    path = write(tmp_path / "annotations" / "a.json", [PRO])
    assert list(gui.read_screenspot_pro(path)) == [PRO_RECORD]
    assert list(gui.read_screenspot_pro(str(tmp_path))) == [PRO_RECORD, {**PRO_RECORD, "id": "b"}]
    with pytest.raises(ValueError, match="has no splits; leave out split 'test'"):
        list(gui.read_screenspot_pro(str(tmp_path), split="test"))


def test_a_screenspot_pro_table_has_its_image_and_json_texts(tmp_path):
    row = {name: value for name, value in PRO.items() if name != "img_filename"}
    row |= {"bbox": "[10, 20, 30, 40]", "img_size": "[3840, 2160]", "image": {"bytes": png((8, 4)), "path": None}}
    features = Features({name: Value("string") for name in row} | {"image": ImageFeature()})
    Dataset.from_list([row], features=features).to_parquet(tmp_path / "test.parquet")
    assert list(gui.read_screenspot_pro(f"{tmp_path}/test.parquet")) == [{**PRO_RECORD, "image": png((8, 4))}]


# rootsautomation/ScreenSpot


@pytest.fixture
def roots(tmp_path):
    row = {
        "file_name": "pc_1.png", "bbox": [0.1, 0.25, 0.5, 1.0], "instruction": "close the window", "data_type": "icon",
        "data_source": "macos", "image": {"bytes": png((200, 100)), "path": "pc_1.png"},
    }  # fmt: skip
    features = Features(
        {name: Value("string") for name in row} | {"bbox": List(Value("float64")), "image": ImageFeature()}
    )
    Dataset.from_list([row], features=features).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    return tmp_path / "test-00000-of-00001.parquet"


def test_fractions_of_the_screenshot_become_pixels(roots):
    # of 200 x 100: 0.1 * 200 = 20, 0.25 * 100 = 25, 0.5 * 200 = 100, 1 * 100 = 100
    assert list(gui.read_rootsautomation_screenspot(str(roots))) == [
        {
            "id": 0, "platform": "desktop", "data_type": "icon", "data_source": "macos", "file_name": "pc_1.png",
            "action": "click", "image": png((200, 100)),
            "conversations": turns("close the window", "[20, 25, 100, 100]"),
        }
    ]  # fmt: skip


def test_pixels_where_fractions_are_expected_are_refused():
    row = {**CLOSE, "bbox": [10, 20, 30, 40], "image": png((200, 100))}
    with pytest.raises(ValueError, match="fractions of the image, 0 to 1, are needed"):
        gui.rootsautomation_record(row, images="")


def test_embedded_screenshots_become_files_beside_the_rows(roots, tmp_path):
    done = convert(str(roots), loader="rootsautomation_screenspot", out=f"{tmp_path}/out")
    ((row,), _) = read_rows(str(done.path), done.image_folder)
    assert row.image_sizes == ((200, 100),)
    assert row.images[0].startswith(f"{tmp_path}/out/images/")
    assert row.images[0].endswith(".png")


# OSWorld-G

ITEM = {
    "id": "x1", "image_path": "a.png", "instruction": "open the menu", "image_size": [1920, 1080], "box_type": "bbox",
    "box_coordinates": [10.5, 20.0, 30.25, 40.0], "GUI_types": ["Icon", "Menu"],
}  # fmt: skip
ITEM_RECORD = {
    "id": "x1", "box_type": "bbox", "GUI_types": ["Icon", "Menu"], "polygon": None, "action": "click",
    "image": "a.png", "conversations": turns("open the menu", "[10.5, 20, 40.75, 60]"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "record"),
    [
        ({}, ITEM_RECORD),
        (
            {"box_type": "polygon", "box_coordinates": [10, 20.5, 40, 20.5, 40, 60]},
            {
                **ITEM_RECORD, "box_type": "polygon", "polygon": [10, 20.5, 40, 20.5, 40, 60],
                "conversations": turns("open the menu", "[10, 20.5, 40, 60]"),
            },
        ),
        (
            {"box_type": "refusal", "box_coordinates": [-1, -1, -1, -1]},
            {**ITEM_RECORD, "box_type": "refusal", "action": "", "conversations": turns("open the menu", "None")},
        ),
    ],
)  # fmt: skip
def test_an_osworld_g_item_is_a_box_a_polygon_or_a_refusal(change, record):
    assert gui.osworld_g_record({**ITEM, **change}) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box_type": "circle"}, "box_type is 'circle'; allowed are bbox, polygon, refusal"),
        ({"box_coordinates": [1, 2, 3]}, r"box_coordinates is \[1, 2, 3\]; 4 numbers"),
        ({"box_type": "polygon", "box_coordinates": [1, 2, 3, 4]}, "three points or more"),
    ],
)
def test_a_bad_osworld_g_item_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gui.osworld_g_record({**ITEM, **change})


def test_no_gui_reward_judges_a_refusal():
    refusal = gui.osworld_g_record({**ITEM, "box_type": "refusal", "box_coordinates": [-1] * 4})
    answers = ["<answer>[{'action': 'click', 'coordinate': [1, 1]}]</answer>", "None"]
    assert gui_action_name_reward(answers, action=[refusal["action"]] * 2) == [None, None]


def test_the_refined_instructions_are_another_file_of_the_same_folder(tmp_path):
    write(tmp_path / "OSWorld-G.json", [ITEM])
    path = write(tmp_path / "OSWorld-G_refined.json", [{**ITEM, "instruction": "click the three bars"}])
    assert list(gui.read_osworld_g(str(tmp_path))) == [ITEM_RECORD]
    (refined,) = gui.read_osworld_g_refined(str(tmp_path))
    assert refined["conversations"][0]["value"] == "<image>click the three bars"
    assert list(gui.read_osworld_g_refined(path)) == [refined]


def test_an_osworld_g_table_has_its_image_embedded(tmp_path):
    row = {**ITEM, "image": {"bytes": png((8, 4)), "path": "a.png"}}
    text = Value("string")
    features = {"id": text, "image_path": text, "instruction": text, "image_size": List(Value("int64"))}
    features |= {"box_type": text, "box_coordinates": List(Value("float64")), "GUI_types": List(text)}
    table = Dataset.from_list([row], features=Features(features | {"image": ImageFeature()}))
    table.to_parquet(tmp_path / "t.parquet")
    assert list(gui.read_osworld_g(f"{tmp_path}/t.parquet")) == [{**ITEM_RECORD, "image": png((8, 4))}]


def test_osworld_g_converts_with_its_refusals(tmp_path):
    Image.new("RGB", (90, 80)).save(tmp_path / "a.png")
    write(tmp_path / "OSWorld-G.json", [ITEM, {**ITEM, "box_type": "refusal", "box_coordinates": [-1] * 4}])
    done = convert(str(tmp_path), loader="osworld_g", out=f"{tmp_path}/out", images=str(tmp_path))
    rows, _ = read_rows(str(done.path), done.image_folder)
    assert [(row.answer, row.columns["action"]) for row in rows] == [
        ("[10.5, 20, 40.75, 60]", "click"),
        ("None", ""),
    ]


# MMBench-GUI L2

L2 = {
    "image_path": "1.png", "instruction": "play", "bbox": [0.1, 0.25, 0.5, 1.0], "data_type": "icon",
    "platform": "os_ios", "grounding_type": "basic", "app_name": "Music",
}  # fmt: skip
L2_RECORD = {
    "platform": "os_ios", "data_type": "icon", "grounding_type": "basic", "app_name": "Music", "action": "click",
    "image": "os_ios/1.png", "conversations": turns("play", "[20, 25, 100, 100]"),
}  # fmt: skip


@pytest.fixture
def offline_images(tmp_path):
    (tmp_path / "os_ios").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "os_ios" / "1.png")
    return str(tmp_path)


def test_an_l2_box_is_in_fractions_or_in_pixels(offline_images, tmp_path):
    pixels = {**L2, "bbox": [20, 25, 100, 100]}
    path = write(tmp_path / "L2_annotations.json", [L2, pixels])
    records = list(gui.read_mmbench_gui_l2(path, images=offline_images))
    assert records == [{"id": 0, **L2_RECORD}, {"id": 1, **L2_RECORD}]
    assert list(gui.read_mmbench_gui_l2(str(tmp_path), images=offline_images)) == records
    # pixels need no image
    assert gui.mmbench_gui_l2_record(pixels, images="nowhere") == L2_RECORD


@pytest.mark.parametrize(
    ("box", "answer"),
    [([-1, 0.25, 0.5, 1], "[0, 25, 100, 100]"), ([-1, 25, 100, 100], "[0, 25, 100, 100]")],
)
def test_minus_one_is_read_as_zero_in_l2(offline_images, box, answer):
    record = gui.mmbench_gui_l2_record({**L2, "bbox": box}, images=offline_images)
    assert record["conversations"][1]["value"] == answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [-0.5, 0, 1, 1]}, r"bbox is \[-0.5, 0, 1, 1\]; numbers >= 0"),
        ({"bbox": [0.5, 0, 0.1, 1]}, "x1 <= x2"),
        ({"image_path": "2.png"}, "2.png' cannot be read"),
    ],
)
def test_a_bad_l2_row_is_named_by_its_place(offline_images, tmp_path, change, message):
    path = write(tmp_path / "L2_annotations.json", [L2, {**L2, **change}])
    with pytest.raises(ValueError, match=rf"row 2 of '.*L2_annotations.json': .*{message}"):
        list(gui.read_mmbench_gui_l2(path, images=offline_images))


# UI-R1


def test_ui_r1_rows_are_a_click_into_a_box_or_another_action(tmp_path):
    click = {"img_filename": "a.png", "instruction": "open the menu", "bbox": [10, 20, 40, 60], "scales": [1.5, 1]}
    scroll = {"img_filename": "b.png", "instruction": "see more", "action": "scroll"}
    path = write(tmp_path / "ui_r1.json", [click, scroll, {"img_filename": "c.png", "instruction": "x"}])
    records = gui.read_ui_r1(path)
    assert next(records) == {
        "id": 0, "scales": [1.5, 1], "action": "click", "image": "a.png",
        "conversations": turns("open the menu", "[10, 20, 40, 60]"),
    }  # fmt: skip
    assert next(records) == {
        "id": 1, "action": "scroll", "image": "b.png", "conversations": turns("see more", "scroll"),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"row 3 of .*ui_r1.json': there is no column 'action'"):
        next(records)
