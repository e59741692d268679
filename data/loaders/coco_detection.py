"""Detection in COCO and LVIS as Visual-RFT asks for it: one question for an image and a category.

https://github.com/Liuziyu77/Visual-RFT, coco_evaluation/ and lvis_evaluation/
"""

import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

from .boxes import Number, from_xywh
from .records import Record, make_record

QUESTION = (
    "Detect all objects belonging to the category '{0}' in the image, and provide the bounding boxes (between 0 and"
    " 1000, integer) and confidence (between 0 and 1, with two decimal places).\n"
    "If no object belonging to the category '{0}' in the image, return 'No Objects'.\n"
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "The output answer format should be as follows:\n"
    "<think> ... </think> <answer>[{{'Position': [x1, y1, x2, y2], 'Confidence': number}}, ...]</answer>\n"
    "Please strictly follow the format."
)
"""Visual-RFT's own words."""
FILES = ("instances_val2017.json", "lvis_v1_val.json")
_MAPS = "exist_map_*.json"
_LISTS = ("images", "annotations", "categories")


class _Image(NamedTuple):
    file: str
    width: int
    height: int
    absent: list[int] | None
    """Categories that were looked for and are not there; None: all that have no box."""
    partial: list[int]
    """Categories of which not every object has its box."""


class _Annotations(NamedTuple):
    """The annotations of COCO or LVIS by what a question needs."""

    images: dict[int, _Image]
    categories: dict[str, int]
    boxes: Mapping[tuple[int, int], list[list[Number]]]
    """Of single objects, by image and category."""
    crowds: Mapping[tuple[int, int], list[list[Number]]]


def read_coco_detection(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield a record for each (image, category) that an existence map asks for, images in the order of the file.

    A pair of instances_val2017.json whose map beside it is {"397133": ["bus"], ...} becomes
        {"id": "397133/bus", "image": "000000397133.jpg", "image_id": 397133, "category": "bus",
         "width": 640, "height": 427, "coordinate_space": "relative_1000",
         "boxes": [[217.62, 240.54, 256.61, 298.29]], "crowd_boxes": [], "unasked_boxes": 3,
         "is_judged": true, "is_exhaustive": true,
         "conversations": [{"from": "human", "value": "<image>Detect all objects belonging to the category 'bus' ..."},
                           {"from": "gpt", "value": "```json\n[{\"bbox_2d\": [217.62, ...]}]\n```"}]}
    with the answer "None" for no object. Boxes are pixels; the question asks for 0 to 1000. `unasked_boxes` counts the
    category's objects in all images where the map does not ask for it. The last two columns are LVIS's rules: whether
    the category's presence was checked in this image, and whether every object of it has its box.

    Visual-RFT's maps list what a baseline model said to be there, so they decide what a score means. Departs from it:
    an image that the map leaves out is not asked about, and a category that it lists twice is asked once.

    Args:
        path: instances_val2017.json, lvis_v1_val.json or any file like it, or the folder of one of these two; maps
            exist_map_*.json may lie beside it.
        split: name of the map, "NAME" of exist_map_NAME.json, needed if there are several. Without any map, the pairs
            that have an annotation are asked, with a warning.
        images: not used; image paths start from the folder of the split, for LVIS from the one with train2017/.

    Raises:
        ValueError: for a file that is no such annotation file, two images or categories of one id or name, a broken
            annotation, or a map that is missing, one of several, no map, or asks for an unknown category.
    """
    file = _annotation_file(Path(path))
    annotations = _index(_load(file), str(file))
    asked = _asked(file, split, annotations)
    unasked = _count_unasked(annotations, asked)
    for image_id, names in asked.items():
        for name in names:
            yield _record(annotations, image_id, name, unasked[annotations.categories[name]])


def _annotation_file(path: Path) -> Path:
    """The file itself, or the one of a folder."""
    if not path.is_dir():
        return path
    files = [path / name for name in FILES if (path / name).is_file()]
    if len(files) != 1:
        raise ValueError(f"{str(path)!r} must hold one of {', '.join(FILES)}, or name the annotation file itself.")
    return files[0]


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}.") from error


def _index(data: Any, path: str) -> _Annotations:
    if not isinstance(data, dict) or not all(isinstance(data.get(name), list) for name in _LISTS):
        raise ValueError(f"{path!r} is no annotation file; the lists {', '.join(_LISTS)} are needed.")
    try:
        images = {image["id"]: _image(image) for image in data["images"]}
        categories = {category["name"]: category["id"] for category in data["categories"]}
        boxes, crowds = _group(data["annotations"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path!r} has a broken entry: {type(error).__name__}: {error}.") from error
    if len(images) < len(data["images"]):
        raise ValueError(f"{path!r} has two images of the same id.")
    if min(len(categories), len({*categories.values()})) < len(data["categories"]):
        raise ValueError(f"{path!r} has two categories of the same name or id.")
    for image, category in (*boxes, *crowds):
        if image not in images or category not in categories.values():
            raise ValueError(f"{path!r} has a box of the unknown image {image!r} or category {category!r}.")
    return _Annotations(images, categories, boxes, crowds)


def _image(entry: Mapping[str, Any]) -> _Image:
    """LVIS has images of both splits, and no file names but addresses like http://HOST/train2017/000000000009.jpg."""
    file = entry["file_name"] if "file_name" in entry else "/".join(entry["coco_url"].split("/")[-2:])
    absent, partial = entry.get("neg_category_ids"), entry.get("not_exhaustive_category_ids", [])
    return _Image(file, entry["width"], entry["height"], absent, partial)


_Boxes = dict[tuple[int, int], list[list[Number]]]


def _group(annotations: list[Any]) -> tuple[_Boxes, _Boxes]:
    boxes: _Boxes = defaultdict(list)
    crowds: _Boxes = defaultdict(list)
    for one in annotations:
        group = crowds if one.get("iscrowd") else boxes
        group[one["image_id"], one["category_id"]].append(from_xywh(one["bbox"]))
    return boxes, crowds


def _asked(path: Path, split: str | None, annotations: _Annotations) -> dict[int, list[str]]:
    """Return the categories to ask for by image."""
    maps = {file.name[len("exist_map_") : -len(".json")]: file for file in sorted(path.parent.glob(_MAPS))}
    if split is not None and split not in maps:
        raise ValueError(f"There is no exist_map_{split}.json beside {str(path)!r}; there are: {', '.join(maps)}.")
    if split is None and len(maps) > 1:
        raise ValueError(f"Several existence maps lie beside {str(path)!r}; name a split: {', '.join(maps)}.")
    if not maps:
        warnings.warn(f"No {_MAPS} lies beside {str(path)!r}: asking for every category that is there.", stacklevel=3)
        return _present(annotations)
    file = maps[split or next(iter(maps))]
    found = _load(file)
    if not isinstance(found, dict) or not all(map(_is_texts, found.values())):
        raise ValueError(f"{str(file)!r} is no existence map; an object of image id: list of categories is needed.")
    unknown = [name for names in found.values() for name in names if name not in annotations.categories]
    if unknown:
        raise ValueError(f"{str(file)!r} asks for {short(unknown[0])}, which {str(path)!r} does not have.")
    return {image: list(dict.fromkeys(found.get(str(image), []))) for image in annotations.images}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _present(annotations: _Annotations) -> dict[int, list[str]]:
    names = {number: name for name, number in annotations.categories.items()}
    present: dict[int, list[str]] = {image: [] for image in annotations.images}
    for image, category in sorted({*annotations.boxes, *annotations.crowds}):
        present[image].append(names[category])
    return present


def _count_unasked(annotations: _Annotations, asked: Mapping[int, list[str]]) -> Counter[int]:
    pairs = {(image, annotations.categories[name]) for image, names in asked.items() for name in names}
    counts: Counter[int] = Counter()
    for place, boxes in annotations.boxes.items():
        counts[place[1]] += 0 if place in pairs else len(boxes)
    return counts


def _record(annotations: _Annotations, image_id: int, name: str, unasked: int) -> Record:
    image, place = annotations.images[image_id], (image_id, annotations.categories[name])
    boxes, crowds = annotations.boxes.get(place, []), annotations.crowds.get(place, [])
    answer = f"```json\n{json.dumps([{'bbox_2d': box} for box in boxes])}\n```" if boxes else "None"
    return make_record(
        QUESTION.format(name),
        answer,
        image=image.file,
        id=f"{image_id}/{name}",
        image_id=image_id,
        category=name,
        width=image.width,
        height=image.height,
        coordinate_space="relative_1000",
        boxes=boxes,
        crowd_boxes=crowds,
        unasked_boxes=unasked,
        is_judged=bool(boxes) or image.absent is None or place[1] in image.absent,
        is_exhaustive=place[1] not in image.partial,
    )
