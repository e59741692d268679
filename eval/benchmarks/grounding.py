"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg, LISA-Grounding and RefGTA, by VLM-R1's and InternVL's rules.

The metric is the share of boxes that overlap the gold box enough. Each protocol has its own reading of an answer and
its own threshold, `accuracy@0.5`. Beside it stands one strict reading, the same as in `rewards.iou_reward`, with both
thresholds in use: `strict_accuracy>0.5`, `strict_accuracy>=0.5`, and `mean_iou`. `wrong_format` is the share of
answers in which the protocol found no box. The space of a box is that of the model, never guessed from the numbers.
"""

import json
import re
from collections.abc import Callable
from functools import partial

from vlm_entropy.data.loaders.refer import REC_QUESTION
from vlm_entropy.data.prompts import format_question
from vlm_entropy.eval.protocols import Benchmark, Item, Message, Protocol, Reference, Score, View
from vlm_entropy.rewards.geometry import Box, from_original, iou
from vlm_entropy.rewards.parsing import find_answer, find_box, read_number
from vlm_entropy.rewards.vlm_r1_rules import pixel_iou

from .places import after_thinking, first_answer, gold_box, to_pixels, user_message

INTERNVL = "internvl"
DECIMALS = 9  # of an IoU: float rounding in a conversion moves no answer over the threshold
_INTEGERS = re.compile(r"\[(\d++),\s*+(\d++),\s*+(\d++),\s*+(\d++)\]")
_DECIMAL = r"\s*+(-?+(?:\d++(?:\.\d++)?+|\.\d++))\s*+"
_DECIMALS = re.compile(rf"\[{','.join([_DECIMAL] * 4)}\]")
_FIELDS = re.compile(r"\[++([^,]*+),([^,]*+),([^,]*+),([^\]]*+)\]")


def _box(texts: tuple[str, ...]) -> Box:
    x1, y1, x2, y2 = map(float, texts)
    return x1, y1, x2, y2


def find_r1_box(text: str, view: View) -> Box | None:
    """Return the box that VLM-R1's evaluation of trained checkpoints reads in the first `<answer>`, or None.

    Four integers in brackets, without a sign and without blanks but after the commas: for InternVL the first of the
    answer, else the last between the first `{` and the last `}`.
    """
    answer = first_answer(text) or ""
    if view.model_type == INTERNVL:
        found = _INTEGERS.search(answer)
        return _box(found.groups()) if found else None
    boxes = _INTEGERS.findall(answer.partition("{")[2].rpartition("}")[0])
    return _box(boxes[-1]) if boxes else None


def find_base_box(text: str, view: View) -> Box | None:
    """Return the first four plain numbers in brackets anywhere, in the thinking too, or None."""
    found = _DECIMALS.search(text)
    return _box(found.groups()) if found else None


def find_internvl_box(text: str, view: View) -> Box | None:
    """Return the four numbers of the first line with three commas and a `]` after its first `[`, or None.

    None also if one of the four is no plain number, `[see [1, 2, 3, 4]` for one; later lines are not tried. InternVL
    takes what Python's `float` takes, `1e3` and `nan` too.
    """
    for line in text.split("\n"):
        found = _FIELDS.match(line, max(line.find("["), 0))
        if found:
            x1, y1, x2, y2 = map(read_number, found.groups())
            return None if x1 is None or y1 is None or x2 is None or y2 is None else (x1, y1, x2, y2)
    return None


def is_vlm_r1_hit(box: Box, gold: Box, item: Item, view: View) -> bool:
    """Tell whether IoU > 0.5, where an overlap of at most one unit in width or height counts as none.

    The unit is a pixel of the stored image, for InternVL a thousandth of its width or height.
    """
    if view.model_type == INTERNVL:
        box, gold = (from_original(one, "relative_1000", image_size=item.image_size) for one in (box, gold))
    return round(pixel_iou(box, gold), DECIMALS) > 0.5


def is_internvl_hit(box: Box, gold: Box, item: Item, view: View) -> bool:
    """Tell whether IoU >= 0.5."""
    return round(iou(box, gold), DECIMALS) >= 0.5


def score_box(
    item: Item,
    text: str,
    view: View,
    *,
    read: Callable[[str, View], Box | None],
    is_hit: Callable[[Box, Box, Item, View], bool],
    strict_span: Callable[[str], str | None],
) -> Score:
    """Score one response.

    Args:
        item: its answer is the gold box.
        text: the response.
        view: its space is that of both readings.
        read: the protocol's reading of a response, a box in the model's space.
        is_hit: the protocol's rule on that box and the gold box, both in pixels of the stored image.
        strict_span: where a response's answer stands; the strict reading is the first box there.

    Returns:
        The values of the module's docstring, each in [0, 1]; no box is no hit and IoU 0.
    """
    gold, found = gold_box(item), read(text, view)
    span = strict_span(text)
    strict = None if span is None else find_box(span)
    overlap = 0.0 if strict is None else round(iou(to_pixels(strict, item, view), gold), DECIMALS)
    values = {
        "accuracy@0.5": float(found is not None and is_hit(to_pixels(found, item, view), gold, item, view)),
        "strict_accuracy>0.5": float(overlap > 0.5),
        "strict_accuracy>=0.5": float(overlap >= 0.5),
        "mean_iou": overlap,
        "wrong_format": float(found is None),
    }
    return Score(values, None if found is None else json.dumps(found))


def r1_prompt(item: Item, view: View) -> list[Message]:
    """Ask as in VLM-R1's training: think, then answer in tags; all families but InternVL are asked for JSON."""
    return user_message(format_question(item.question, "default" if view.model_type == INTERNVL else "rec"))


def base_prompt(item: Item, view: View) -> list[Message]:
    return user_message(f"{item.question} Please provide the bounding box coordinate in JSON format.")


def internvl_prompt(item: Item, view: View) -> list[Message]:
    """Ask for the bare expression in `<ref>` tags: the column `normal_caption`, or what follows the usual question.

    Raises:
        ValueError: for an item with neither.
    """
    start = REC_QUESTION.format("")
    rest = item.question.removeprefix(start) if item.question.startswith(start) else None
    expression = item.columns.get("normal_caption") or rest
    if not expression:
        raise ValueError(f"Item {item.id!r} has no normal_caption, and its question does not begin with {start!r}.")
    return user_message(REC_QUESTION.format(f"<ref>{expression}</ref>"))


def split_cell(item: Item) -> dict[str, str]:
    """Group by the split, where the references of all splits are read at once."""
    return {"split": str(item.columns["split"])} if "split" in item.columns else {}


VLM_R1_SOURCE = (
    "VLM-R1, src/eval/test_rec_r1.py and test_rec_r1_internvl.py (github.com/om-ai-lab/VLM-R1). It scores the first "
    "2000 rows after random.seed(42) and a shuffle, and lets InternVL write 1024 tokens. Departures: boxes are in the "
    "model's own space (VLM-R1: pixels of the resized image for every Qwen); for InternVL the gold box is not rounded "
    "to thousandths; a gold box without area is missed where VLM-R1 divides by zero."
)
VLM_R1_BASE_SOURCE = (
    "VLM-R1, src/eval/test_rec_baseline.py: without thinking, for a base model or after SFT. Departures as in vlm_r1."
)
INTERNVL_SOURCE = (
    "InternVL, internvl_chat/eval/refcoco/evaluate_grounding.py (github.com/OpenGVLab/InternVL), with --dynamic at "
    "most 6 tiles. Departures: the box is in the model's own space, where InternVL reads four numbers with a sum >= 4 "
    "as thousandths and others as fractions; only plain numbers are read; beams are not searched."
)
RECALLED = "recalled, not checked"
_QWEN = f"the Qwen2.5-VL report, arXiv 2502.13923, {RECALLED}; its prompt and scorer are not published"
_QWEN_SECOND_HAND = "the Qwen2.5-VL report, second-hand; its prompt and scorer are not published"
_INTERNVL3 = "the InternVL3 report, arXiv 2504.10479, "
_VLM_R1_SUBSET = f"VLM-R1's report, arXiv 2504.07615, on its 2000 rows, {RECALLED}"
_VLM_R1_START = f"{_VLM_R1_SUBSET}; with which prompt the base model was asked is not known"


def _table(model: str, source: str, **values: float) -> tuple[Reference, ...]:
    """References of one model by split, from percentages."""
    return tuple(
        Reference(model, "accuracy@0.5", round(value / 100, 4), source, split) for split, value in values.items()
    )


def _rec(
    *formats: str,
    sizes: dict[str | None, int] | None = None,
    vlm_r1: tuple[Reference, ...] = (),
    base: tuple[Reference, ...] = (),
    internvl: tuple[Reference, ...] = (),
) -> Benchmark:
    """Return a benchmark with the three protocols; the references are those of each."""
    score_r1 = partial(score_box, read=find_r1_box, is_hit=is_vlm_r1_hit, strict_span=find_answer)
    score_base = partial(score_box, read=find_base_box, is_hit=is_vlm_r1_hit, strict_span=after_thinking)
    score_internvl = partial(score_box, read=find_internvl_box, is_hit=is_internvl_hit, strict_span=after_thinking)
    protocols = {
        "vlm_r1": Protocol(VLM_R1_SOURCE, r1_prompt, score_r1, split_cell, max_new_tokens=256, references=vlm_r1),
        "vlm_r1_base": Protocol(
            VLM_R1_BASE_SOURCE, base_prompt, score_base, split_cell, max_new_tokens=256, references=base
        ),
        "internvl": Protocol(
            INTERNVL_SOURCE, internvl_prompt, score_internvl, split_cell, max_new_tokens=100, references=internvl
        ),
    }
    return Benchmark(formats, protocols, sizes or {}, images=("train2014", "../train2014"))


_REFCOCO = ("refer", "qwen_jsonl", "lmms_refcoco", "vlm_r1_eval")
REC: dict[str, Benchmark] = {
    "refcoco": _rec(
        *_REFCOCO,
        sizes={"val": 10834, "testA": 5657, "testB": 5095},
        base=(
            *_table("Qwen2.5-VL-3B", _QWEN, val=89.1, testA=91.7, testB=84.0),
            *_table("Qwen2.5-VL-7B", _QWEN_SECOND_HAND, val=90.0, testA=92.5, testB=85.4),
            *_table("Qwen2.5-VL-3B", _VLM_R1_START, val=88.7),
        ),
        internvl=(
            *_table("InternVL3-2B", _INTERNVL3 + RECALLED, val=89.8, testA=92.6, testB=86.4),
            *_table("InternVL3-8B", _INTERNVL3 + "second-hand", val=92.5, testA=94.6, testB=88.0),
        ),
    ),
    "refcoco_plus": _rec(
        *_REFCOCO,
        sizes={"val": 10758, "testA": 5726, "testB": 4889},
        base=(
            *_table("Qwen2.5-VL-3B", _QWEN, val=82.4, testA=88.0, testB=74.1),
            *_table("Qwen2.5-VL-7B", _QWEN, val=84.2, testA=89.1, testB=76.9),
            *_table("Qwen2.5-VL-3B", _VLM_R1_START, val=81.9),
        ),
        internvl=(
            *_table("InternVL3-2B", _INTERNVL3 + RECALLED, val=84.0, testA=89.2, testB=76.5),
            *_table("InternVL3-8B", _INTERNVL3 + RECALLED, val=88.2, testA=92.5, testB=81.8),
        ),
    ),
    "refcocog": _rec(
        *_REFCOCO,
        sizes={"val": 4896, "test": 9602},
        base=(
            *_table("Qwen2.5-VL-3B", _QWEN, val=85.2, test=85.7),
            *_table("Qwen2.5-VL-7B", _QWEN_SECOND_HAND, val=87.2, test=87.2),
            *_table("Qwen2.5-VL-3B", _VLM_R1_START, val=86.0),
        ),
        internvl=(
            *_table("InternVL3-2B", _INTERNVL3 + RECALLED, val=87.6, test=87.2),
            *_table("InternVL3-8B", _INTERNVL3 + "second-hand", val=89.6, test=90.0),
        ),
    ),
    "lisa_grounding": _rec(
        "lisa_grounding",
        vlm_r1=(Reference("VLM-R1 (Qwen2.5-VL-3B after RL)", "accuracy@0.5", 0.632, _VLM_R1_SUBSET),),
        base=(Reference("Qwen2.5-VL-3B", "accuracy@0.5", 0.565, _VLM_R1_START),),
    ),
    "refgta": _rec("refgta", "vlm_r1_eval"),
}
