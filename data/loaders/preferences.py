"""Pairs of responses of which one is better: three reward-model benches, and plain JSON Lines.

Every record has the source's question, the two texts of `responses` in the source's order, and the answer "1" or "2",
the better one. The pairwise prompt and the random order belong to whoever asks a model.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from reprlib import repr as short
from typing import Any

from vlm_entropy.data.examples import OUR_COLUMNS, TRL_ARGUMENTS

from .records import Record, as_pictures, as_text, kept_columns, make_record, with_ids
from .tables import column, map_rows, read_table

VL_REWARDBENCH_GROUPS = {
    "rlaif": "hallucination",
    "rlhf": "hallucination",
    "hallucination": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
}
"""Id prefix, lower-cased, to group; every other prefix, such as `wildvision`, is "general"."""
MM_RLHF_CATEGORIES = ("mcq", "long", "short", "safety", "video")
RESERVED_COLUMNS = {*OUR_COLUMNS, *TRL_ARGUMENTS, "group", "group_size", "conversations"}


def preference_record(question: Any, responses: Any, better: str, /, *, image: Any, **columns: Any) -> Record:
    """Build the record of one pair.

    Raises:
        ValueError: for responses that are not two texts, and what `make_record` refuses.
    """
    if not isinstance(responses, list) or [type(response) for response in responses] != [str, str]:
        raise ValueError(f"the responses are {short(responses)}; two texts are needed")
    return make_record(question, better, image=image, responses=responses, **columns)


def _shown(value: Any) -> Any:
    """Return the pictures of a bench in which every pair is about an image."""
    if not as_pictures(value):
        raise ValueError(f"the image is {short(value)}; this bench has one in every row")
    return value


def vl_rewardbench_group(row_id: str) -> str:
    """Return "general", "hallucination" or "reasoning": the id up to its first "-" or "_", in any case.

    R1-Reward's grouping heeds case, so its "general" takes in the 301 rows of RLAIF-V and RLHF-V.
    """
    prefix = re.split("[-_]", row_id, maxsplit=1)[0].lower()
    return VL_REWARDBENCH_GROUPS.get(prefix, "general")


def vl_rewardbench_record(row: Mapping[str, Any]) -> Record:
    """Turn a row of MMInstruction/VL-RewardBench into a record.

    The row    {"id": "RLAIF-V-12", "query": "Describe it.", "response": ["A cat.", "A dog."], "image": b"...",
                "human_ranking": [1, 0], "models": ["a", "b"], "judge": [...], "rationale": [...],
                "query_source": "COCO", "ground_truth": "..."}
    becomes    {"id": "RLAIF-V-12", "image": b"...", "responses": ["A cat.", "A dog."], "category": "hallucination",
                "models": ["a", "b"], "judge": [...], "rationale": [...], "query_source": "COCO",
                "ground_truth": "...",
                "conversations": [{"from": "human", "value": "<image>Describe it."}, {"from": "gpt", "value": "2"}]}
    `human_ranking` is the rank of each response, 0 the better.

    Raises:
        ValueError: for a human_ranking that is neither [0, 1] nor [1, 0].
    """
    ranking = column(row, "human_ranking")
    if ranking not in ([0, 1], [1, 0]):
        raise ValueError(f"human_ranking is {short(ranking)}; [0, 1] or [1, 0] is needed")
    row_id = as_text(column(row, "id"), "id")
    return preference_record(
        column(row, "query"),
        column(row, "response"),
        "1" if ranking == [0, 1] else "2",
        image=_shown(column(row, "image")),
        id=row_id,
        category=vl_rewardbench_group(row_id),
        **kept_columns(row, ("models", "judge", "rationale", "query_source", "ground_truth")),
    )


def multimodal_rewardbench_category(category: str, row_id: str) -> str:
    """Return the category with its part: safety/bias or safety/toxicity, reasoning/math or reasoning/coding.

    As the official script does: by whether the id begins with "pairs", or with "math", in any case.
    """
    if category == "safety":
        return "safety/bias" if row_id.lower().startswith("pairs") else "safety/toxicity"
    if category == "reasoning":
        return "reasoning/math" if row_id.lower().startswith("math") else "reasoning/coding"
    return category


def multimodal_rewardbench_record(row: Mapping[str, Any]) -> Record:
    """Turn an item of Multimodal RewardBench's all_data.json into a record.

    The item   {"ID": "math_3", "Text": "Find x.", "Image": "images/math/3.png", "Output1": "x = 1",
                "Output2": "x = 2", "Better": "Output2", "Category": "reasoning"}
    becomes    {"id": "math_3", "image": "images/math/3.png", "responses": ["x = 1", "x = 2"],
                "category": "reasoning/math",
                "conversations": [{"from": "human", "value": "<image>Find x."}, {"from": "gpt", "value": "2"}]}

    Raises:
        ValueError: for a Better that is neither Output1 nor Output2. (The official script takes any other for 1.)
    """
    better = column(row, "Better")
    if better not in ("Output1", "Output2"):
        raise ValueError(f"Better is {short(better)}; Output1 or Output2 is needed")
    row_id = as_text(column(row, "ID"), "ID")
    return preference_record(
        column(row, "Text"),
        [column(row, "Output1"), column(row, "Output2")],
        better.removeprefix("Output"),
        image=_shown(column(row, "Image")),
        id=row_id,
        category=multimodal_rewardbench_category(as_text(column(row, "Category"), "Category"), row_id),
    )


def mm_rlhf_category(path: str) -> str:
    """Return mcq, long, short, safety or video: what the outermost folder that names one of them names.

    Raises:
        ValueError: if no folder of the path does.
    """
    folders = PurePosixPath(path).parent.parts
    found = [name for folder in folders for name in MM_RLHF_CATEGORIES if name in folder.lower()]
    if not found:
        raise ValueError(f"the path is {path!r}; one of its folders must name {', '.join(MM_RLHF_CATEGORIES)}")
    return found[0]


def mm_rlhf_rewardbench_records(row: Mapping[str, Any]) -> list[Record]:
    """Turn a line of MM-RLHF-RewardBench into a record, or into none if it is about a video.

    The row    {"id": "7", "image": "mcq/7.jpg", "prompt": "Which?", "chosen": "B", "rejected": "A",
                "chosen_reason": "...", "rejected_reason": "..."}
    becomes    {"question_id": "7", "image": "mcq/7.jpg", "responses": ["B", "A"], "category": "mcq",
                "chosen_reason": "...", "rejected_reason": "...",
                "conversations": [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "1"}]}
    The better response always comes first. Several pairs share a `question_id`; Acc+ asks for all of them.
    """
    if row.get("video"):
        return []
    path = as_text(column(row, "image"), "the image")
    return [
        preference_record(
            column(row, "prompt"),
            [column(row, "chosen"), column(row, "rejected")],
            "1",
            image=path,
            question_id=column(row, "id"),
            category=mm_rlhf_category(path),
            **kept_columns(row, ("chosen_reason", "rejected_reason")),
        )
    ]


def _label(row: Mapping[str, Any]) -> str:
    """Return "1" or "2" from the column `label`, or `better`."""
    values = [row[name] for name in ("label", "better") if row.get(name) is not None]
    texts = {str(value) for value in values}
    if len(texts) != 1 or not texts <= {"1", "2"}:
        raise ValueError(f"label or better is {short(values)}; 1 or 2 is needed, and the same if both are there")
    return texts.pop()


def preference_jsonl_record(row: Mapping[str, Any]) -> Record:
    """Turn a line of plain JSON Lines into a record.

    The row    {"image": "a.jpg", "question": "Which cat?", "response_1": "Tom", "response_2": "Tim", "label": 2,
                "split": "dev", "problem": "..."}
    becomes    {"image": "a.jpg", "responses": ["Tom", "Tim"], "split": "dev", "source_problem": "...",
                "conversations": [{"from": "human", "value": "<image>Which cat?"}, {"from": "gpt", "value": "2"}]}
    `responses` may stand for response_1 and response_2, `better` for label; `image` may be a list, or absent. All
    other columns are kept, one whose name the trainer uses as `source_` and that name.

    Raises:
        ValueError: for responses that are not two texts, or a label that is neither 1 nor 2.
    """
    used = {"image", "question", "response_1", "response_2", "responses", "label", "better"}
    columns = {
        f"source_{name}" if name in RESERVED_COLUMNS else name: value
        for name, value in row.items()
        if name not in used
    }
    responses = row["responses"] if "responses" in row else [column(row, "response_1"), column(row, "response_2")]
    return preference_record(column(row, "question"), responses, _label(row), image=row.get("image"), **columns)


def read_vl_rewardbench(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of VL-RewardBench (one split, `test`, 1 250 pairs); see `vl_rewardbench_record`.

    A pair is known there by id, query and responses together: the second pair of an id is "{id}-2", and so on.

    Args:
        path, split: as in `read_table`.
        images: not used; the images are in the table.
    """
    seen: Counter[str] = Counter()
    for record in map_rows(read_table(path, split=split), lambda row: [vl_rewardbench_record(row)], path=path):
        row_id = record["id"]
        seen[row_id] += 1
        yield record if seen[row_id] == 1 else {**record, "id": f"{row_id}-{seen[row_id]}"}


def read_multimodal_rewardbench(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of Multimodal RewardBench's data/all_data.json; see `multimodal_rewardbench_record`.

    Args:
        path, split: as in `read_table`.
        images: not used; the image paths, relative to `data`, stay as they are.
    """
    return map_rows(read_table(path, split=split), lambda row: [multimodal_rewardbench_record(row)], path=path)


def read_mm_rlhf_rewardbench(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of mm_reward_bench.jsonl that have an image, and warn of those left out for their video.

    The 170 pairs have 46 ids; the record's id is "{id}-0", "{id}-1", ... of the pairs with that id. See
    `mm_rlhf_rewardbench_records`.

    Args:
        path, split: as in `read_table`.
        images: not used; the image paths stay as they are.
    """
    rows = list(read_table(path, split=split))
    pairs: Counter[Any] = Counter()
    for record in map_rows(rows, mm_rlhf_rewardbench_records, path=path):
        question_id = record["question_id"]
        yield {"id": f"{question_id}-{pairs[question_id]}", **record}
        pairs[question_id] += 1
    videos = len(rows) - pairs.total()
    if videos:
        warnings.warn(f"{videos} of {len(rows)} pairs of {path!r} are about a video and are left out.", stacklevel=2)


def read_preference_jsonl(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of pairs in JSON Lines; see `preference_jsonl_record`. Without an `id` it is the position.

    Args:
        path, split: as in `read_table`.
        images: not used; image paths stay as they are.
    """
    return with_ids(map_rows(read_table(path, split=split), lambda row: [preference_jsonl_record(row)], path=path))
