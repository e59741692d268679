"""Screenshots with an instruction and the place to click: ScreenSpot, v2 and Pro, OSWorld-G, MMBench-GUI L2, UI-R1.

The question is the instruction alone; the prompt template of the run puts it in words. `action` is the gold action:
"click", or blank where the instruction cannot be followed, so that no reward judges it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .boxes import around, from_fractions, from_xywh, from_xyxy, numbers
from .records import Record, kept_columns, make_record, stored_size, with_ids
from .tables import column, map_rows, read_table

SCREENSPOT_PLATFORMS = ("mobile", "desktop", "web")
_PLATFORMS = {"ios": "mobile", "android": "mobile", "macos": "desktop", "windows": "desktop"}
NOTHING_TO_CLICK = "None"
"""The answer where nothing on the screen fits the instruction."""
NO_ACTION = ""


def click_record(row: Mapping[str, Any], box: list[int | float], *, image: Any, **columns: Any) -> Record:
    """Return the record of an instruction whose gold action is a click into `box`."""
    return make_record(column(row, "instruction"), json.dumps(box), image=image, **columns, action="click")


def _platform(data_source: str) -> str:
    return _PLATFORMS.get(data_source, "web")


def screenspot_record(row: Mapping[str, Any]) -> Record:
    """Return the record of a row of the ScreenSpot files, first or second version.

    The row    {"img_filename": "pc_1.png", "bbox": [10, 20, 30, 40], "instruction": "close the window",
                "data_type": "icon", "data_source": "windows"}
    becomes    {"platform": "desktop", "data_type": "icon", "data_source": "windows", "action": "click",
                "image": "pc_1.png", "conversations": [{"from": "human", "value": "<image>close the window"},
                                                       {"from": "gpt", "value": "[10, 20, 40, 60]"}]}

    `platform` is mobile for ios and android, desktop for macos and windows, web for all else.

    Raises:
        ValueError: for a missing column or four numbers that are no xywh box.
    """
    source = column(row, "data_source")
    return click_record(
        row,
        from_xywh(column(row, "bbox")),
        image=column(row, "img_filename"),
        platform=_platform(source),
        data_type=column(row, "data_type"),
        data_source=source,
    )


def _screenspot_files(path: str, split: str | None, suffix: str) -> list[str]:
    """Return the file itself, or the files of a folder, of one platform or of all three."""
    if Path(path).is_file():
        if split is not None:
            raise ValueError(f"{path!r} is one file, without splits; leave out split {split!r}.")
        return [path]
    if split is not None and split not in SCREENSPOT_PLATFORMS:
        raise ValueError(f"split is {split!r}; allowed are {', '.join(SCREENSPOT_PLATFORMS)}, or none for all.")
    names = [f"screenspot_{name}{suffix}.json" for name in ([split] if split else SCREENSPOT_PLATFORMS)]
    missing = [name for name in names if not Path(path, name).is_file()]
    if missing:
        raise ValueError(f"{path!r} holds no {missing[0]}; a folder of the published files is needed, or one file.")
    return [str(Path(path, name)) for name in names]


def _screenspot(path: str, split: str | None, suffix: str) -> Iterator[Record]:
    for file in _screenspot_files(path, split, suffix):
        yield from map_rows(read_table(file, split=None), lambda row: [screenspot_record(row)], path=file)


def read_screenspot(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the rows of `screenspot_{mobile,desktop,web}.json`; see `screenspot_record`. `id` is the place, from 0.

    Args:
        path: one of the files, or their folder.
        split: mobile, desktop or web of a folder; None for all, in this order.
        images: not read; the folder `screenspot_imgs`.

    Raises:
        ValueError: for a missing file, an unknown split, or a bad row, with its place counted from 1.
    """
    return with_ids(_screenspot(path, split, ""))


def read_screenspot_v2(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the rows of `screenspot_{mobile,desktop,web}_v2.json`; else as `read_screenspot`."""
    return with_ids(_screenspot(path, split, "_v2"))


def screenspot_pro_record(row: Mapping[str, Any]) -> Record:
    """Return the record of a row of ScreenSpot-Pro, whose boxes are xyxy, unlike ScreenSpot's.

    The row    {"id": "vscode_windows_1", "img_filename": "vscode_windows/1.png", "bbox": [10, 20, 30, 40],
                "instruction": "save", "instruction_cn": "...", "application": "vscode", "platform": "windows",
                "img_size": [3840, 2160], "ui_type": "icon", "group": "Dev"}
    becomes    {"id": "vscode_windows_1", "platform": "windows", "application": "vscode", "group": "Dev",
                "ui_type": "icon", "instruction_cn": "...", "img_size": [3840, 2160], "data_type": "icon",
                "action": "click", "image": "vscode_windows/1.png",
                "conversations": [{"from": "human", "value": "<image>save"},
                                  {"from": "gpt", "value": "[10, 20, 30, 40]"}]}

    In tables, the screenshot is the column `image`, and `bbox` and `img_size` may be the JSON of the list.

    Raises:
        ValueError: for a missing column or four numbers that are no xyxy box.
    """
    columns = kept_columns(row, ("id", "platform", "application", "group", "ui_type", "instruction_cn"))
    if "img_size" in row:
        columns["img_size"] = numbers(row["img_size"], "img_size", 2)
    image = row["image"] if "image" in row else column(row, "img_filename")
    box = from_xyxy(column(row, "bbox"))
    return click_record(row, box, image=image, **columns, data_type=column(row, "ui_type"))


def read_screenspot_pro(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the rows of ScreenSpot-Pro; see `screenspot_pro_record`.

    Args:
        path: the published folder with `annotations/*.json`, one of these files, or a table.
        split: of a folder of tables or a hub id.
        images: not read; the folder `images`.

    Raises:
        ValueError: for a file that is missing, or a bad row, with its place counted from 1.
    """
    files = sorted(str(file) for file in Path(path, "annotations").glob("*.json"))
    if files and split is not None:
        raise ValueError(f"{path!r} has no splits; leave out split {split!r}.")
    for file in files or [path]:
        yield from map_rows(read_table(file, split=split), lambda row: [screenspot_pro_record(row)], path=file)


def rootsautomation_record(row: Mapping[str, Any], *, images: str) -> Record:
    """Return the record of a row of rootsautomation/ScreenSpot, whose boxes are fractions of the screenshot.

    The row    {"file_name": "pc_1.png", "bbox": [0.1, 0.2, 0.4, 0.6], "instruction": "close the window",
                "data_type": "icon", "data_source": "windows", "image": b"..."}     of 100 x 100 pixels
    becomes    {"platform": "desktop", "data_type": "icon", "data_source": "windows", "file_name": "pc_1.png",
                "action": "click", "image": b"...",
                "conversations": [{"from": "human", "value": "<image>close the window"},
                                  {"from": "gpt", "value": "[10, 20, 40, 60]"}]}

    Raises:
        ValueError: for a missing column, an image that cannot be read, or a box that is not in fractions.
    """
    image, source = column(row, "image"), column(row, "data_source")
    return click_record(
        row,
        from_fractions(column(row, "bbox"), stored_size(image, images)),
        image=image,
        platform=_platform(source),
        data_type=column(row, "data_type"),
        data_source=source,
        **kept_columns(row, ("file_name",)),
    )


def read_rootsautomation_screenspot(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the rows of rootsautomation/ScreenSpot; see `rootsautomation_record`. `id` is the place, from 0.

    Raises:
        ValueError: as `read_table` says, or for a bad row, with its place counted from 1.
    """
    rows = read_table(path, split=split)
    return with_ids(map_rows(rows, lambda row: [rootsautomation_record(row, images=images)], path=path))


def osworld_g_record(row: Mapping[str, Any]) -> Record:
    """Return the record of an item of OSWorld-G: a box, a polygon, or an instruction to refuse.

    The row    {"id": "x1", "image_path": "a.png", "instruction": "open the menu", "image_size": [1920, 1080],
                "box_type": "polygon", "box_coordinates": [10, 20, 40, 20, 40, 60], "GUI_types": ["icon"]}
    becomes    {"id": "x1", "box_type": "polygon", "GUI_types": ["icon"], "polygon": [10, 20, 40, 20, 40, 60],
                "action": "click", "image": "a.png",
                "conversations": [{"from": "human", "value": "<image>open the menu"},
                                  {"from": "gpt", "value": "[10, 20, 40, 60]"}]}

    The answer of a polygon is the box around it; `polygon` is None for the others. A `bbox` is xywh. A `refusal` has
    the answer "None" and a blank action.

    Raises:
        ValueError: for a missing column, an unknown box type, or numbers that are no box or polygon.
    """
    kind, coordinates = column(row, "box_type"), column(row, "box_coordinates")
    image = row["image"] if "image" in row else column(row, "image_path")
    columns = kept_columns(row, ("id", "box_type", "GUI_types"))
    if kind == "bbox":
        return click_record(row, from_xywh(coordinates, "box_coordinates"), image=image, **columns, polygon=None)
    if kind == "polygon":
        box, polygon = around(coordinates, "box_coordinates"), numbers(coordinates, "box_coordinates")
        return click_record(row, box, image=image, **columns, polygon=polygon)
    if kind != "refusal":
        raise ValueError(f"box_type is {kind!r}; allowed are bbox, polygon, refusal")
    question = column(row, "instruction")
    return make_record(question, NOTHING_TO_CLICK, image=image, **columns, polygon=None, action=NO_ACTION)


def _osworld_g(path: str, split: str | None, name: str) -> Iterator[Record]:
    inside = Path(path, name)
    file = str(inside) if inside.is_file() else path
    return map_rows(read_table(file, split=split), lambda row: [osworld_g_record(row)], path=file)


def read_osworld_g(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Return the 564 items of `OSWorld-G.json`, 54 of them refusals; see `osworld_g_record`.

    Args:
        path: the file, its folder, or a table of the same columns with the screenshot in `image`.
        split: of a folder of tables or a hub id.
        images: not read; the folder `images`.

    Raises:
        ValueError: as `read_table` says, or for a bad item, with its place counted from 1.
    """
    return _osworld_g(path, split, "OSWorld-G.json")


def read_osworld_g_refined(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Return the items of `OSWorld-G_refined.json`: the same gold, refined instructions; else as `read_osworld_g`."""
    return _osworld_g(path, split, "OSWorld-G_refined.json")


def mmbench_gui_l2_record(row: Mapping[str, Any], *, images: str) -> Record:
    """Return the record of a row of MMBench-GUI L2.

    The row    {"image_path": "1.png", "instruction": "play", "bbox": [0.1, 0.2, 0.4, 0.6], "data_type": "icon",
                "platform": "os_ios", "grounding_type": "basic", "app_name": "Music"}     of 100 x 100 pixels
    becomes    {"platform": "os_ios", "data_type": "icon", "grounding_type": "basic", "app_name": "Music",
                "action": "click", "image": "os_ios/1.png",
                "conversations": [{"from": "human", "value": "<image>play"},
                                  {"from": "gpt", "value": "[10, 20, 40, 60]"}]}

    As in the published scorer, -1 is read as 0, and a box is in fractions if all its numbers are in 0..1, else in
    pixels. Only fractions need the image.

    Raises:
        ValueError: for a missing column, numbers below 0 or that are no xyxy box, or an image that cannot be read.
    """
    box = [0 if item == -1 else item for item in numbers(column(row, "bbox"), "bbox", 4)]
    if min(box) < 0:
        raise ValueError(f"bbox is {box}; numbers >= 0 are needed")
    image = f"{column(row, 'platform')}/{column(row, 'image_path')}"
    pixels = from_fractions(box, stored_size(image, images)) if max(box) <= 1 else from_xyxy(box)
    names = ("id", "index", "platform", "data_type", "grounding_type", "app_name")
    return click_record(row, pixels, image=image, **kept_columns(row, names))


def read_mmbench_gui_l2(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the rows of `L2_annotations.json`; see `mmbench_gui_l2_record`. `id` is the place, from 0.

    Args:
        path: the file, or its folder.
        split: must be None.
        images: the folder `offline_images`; read for the boxes that are in fractions.

    Raises:
        ValueError: as `read_table` says, or for a bad row, with its place counted from 1.
    """
    inside = Path(path, "L2_annotations.json")
    file = str(inside) if inside.is_file() else path
    rows = read_table(file, split=split)
    return with_ids(map_rows(rows, lambda row: [mmbench_gui_l2_record(row, images=images)], path=file))


def ui_r1_record(row: Mapping[str, Any]) -> Record:
    """Return the record of a training row of UI-R1; all its further columns are kept.

    The row    {"img_filename": "a.png", "instruction": "open the menu", "bbox": [10, 20, 40, 60], "scales": [1, 1]}
    becomes    {"scales": [1, 1], "action": "click", "image": "a.png",
                "conversations": [{"from": "human", "value": "<image>open the menu"},
                                  {"from": "gpt", "value": "[10, 20, 40, 60]"}]}
    A row with `"action": "scroll"` in place of the box has the answer and the action "scroll".

    Raises:
        ValueError: for a row with neither box nor action, or four numbers that are no xyxy box.
    """
    used = ("img_filename", "instruction", "bbox", "action")
    others = {name: value for name, value in row.items() if name not in used}
    image = column(row, "img_filename")
    if "bbox" in row:
        return click_record(row, from_xyxy(row["bbox"]), image=image, **others)
    action = column(row, "action")
    return make_record(column(row, "instruction"), action, image=image, **others, action=action)


def read_ui_r1(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the rows of UI-R1's JSON arrays; see `ui_r1_record`. `id` is the place, from 0.

    Raises:
        ValueError: as `read_table` says, or for a bad row, with its place counted from 1.
    """
    return with_ids(map_rows(read_table(path, split=split), lambda row: [ui_r1_record(row)], path=path))
