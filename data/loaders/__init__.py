"""Loaders: published data sets, as they are on disk or on the hub, to VLM-R1 records.

A loader yields {"id": ..., "image": a path, the bytes of an image file, a list of these, or absent,
"conversations": [{"from": "human", "value": "<image>question"}, {"from": "gpt", "value": answer}], ...columns}.
Boxes are xyxy in pixels of the stored image, whatever the source has. Nothing is downloaded but a hub id "owner/name".
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from .coco_detection import read_coco_detection
from .geometry import read_geometry3k, read_geometry3k_hf, read_geoqa_r1v
from .gui import (
    read_mmbench_gui_l2,
    read_osworld_g,
    read_osworld_g_refined,
    read_rootsautomation_screenspot,
    read_screenspot,
    read_screenspot_pro,
    read_screenspot_v2,
    read_ui_r1,
)
from .maths import read_mathvista, read_mmk12, read_virl39k
from .preferences import (
    read_mm_rlhf_rewardbench,
    read_multimodal_rewardbench,
    read_preference_jsonl,
    read_vl_rewardbench,
)
from .records import Record
from .refer import read_refer
from .referring import read_lisa_grounding, read_lmms_refcoco, read_qwen_jsonl
from .text_maths import read_amc, read_gsm8k, read_math500
from .visual_rft import read_visual_rft_classes, read_visual_rft_detection
from .visual_rft_val import read_visual_rft_val
from .vlm_r1 import read_vlm_r1, read_vlm_r1_eval


class Reader(Protocol):
    """`path` is a file, a folder or, where the source is on the hub, its id; `images` the folder of image paths."""

    def __call__(self, path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]: ...


class Loader(NamedTuple):
    """How one source is read, and what it is, in one line."""

    read: Reader
    help: str


LOADERS: dict[str, Loader] = {
    "vlm_r1": Loader(read_vlm_r1, "VLM-R1's JSON Lines, JSON arrays and YAML lists"),
    "vlm_r1_eval": Loader(
        read_vlm_r1_eval, "VLM-R1's evaluation arrays: refcoco_val.json, refgta_subsample_resize.json"
    ),
    "refer": Loader(read_refer, "RefCOCO, RefCOCO+, RefCOCOg: refs(unc).p beside instances.json"),
    "refgta": Loader(read_refer, "RefGTA: refs(utokyo).p beside instances.json"),
    "qwen_jsonl": Loader(read_qwen_jsonl, "Qwen-VL's and InternVL's refcoco_val.jsonl"),
    "lmms_refcoco": Loader(read_lmms_refcoco, "lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg"),
    "lisa_grounding": Loader(read_lisa_grounding, "VLM-R1's lisa_test.json, or a folder of ReasonSeg"),
    "screenspot": Loader(read_screenspot, "ScreenSpot's screenspot_{mobile,desktop,web}.json"),
    "screenspot_v2": Loader(read_screenspot_v2, "ScreenSpot-v2's screenspot_{mobile,desktop,web}_v2.json"),
    "screenspot_pro": Loader(read_screenspot_pro, "ScreenSpot-Pro: the folder with annotations/, or a table"),
    "rootsautomation_screenspot": Loader(read_rootsautomation_screenspot, "rootsautomation/ScreenSpot"),
    "osworld_g": Loader(read_osworld_g, "OSWorld-G.json, or MMInstruction/OSWorld-G"),
    "osworld_g_refined": Loader(read_osworld_g_refined, "OSWorld-G_refined.json"),
    "mmbench_gui_l2": Loader(read_mmbench_gui_l2, "MMBench-GUI's L2_annotations.json"),
    "ui_r1": Loader(read_ui_r1, "UI-R1's JSON arrays of training rows"),
    "visual_rft_classes": Loader(read_visual_rft_classes, "Visual-RFT's few-shot classes, laolao77/ViRFT_CLS_*"),
    "visual_rft_val": Loader(
        read_visual_rft_val, "Visual-RFT's validation classes: a .pth beside its .txt, or image and label"
    ),
    "visual_rft_detection": Loader(read_visual_rft_detection, "Visual-RFT's detection, laolao77/ViRFT_COCO*, _LVIS*"),
    "coco_detection": Loader(
        read_coco_detection,
        "COCO's instances_val2017.json or LVIS's lvis_v1_val.json, beside Visual-RFT's exist_map_*.json",
    ),
    "geometry3k": Loader(read_geometry3k, "Geometry3K as published: its zip, or the unpacked folder"),
    "geometry3k_hf": Loader(read_geometry3k_hf, "hiyouga/geometry3k"),
    "geoqa_r1v": Loader(read_geoqa_r1v, "GeoQA as R1-V has it, leonardPKU/GEOQA_R1V_Train_8K"),
    "virl39k": Loader(read_virl39k, "ViRL39K, also CalibRL's table with the expert column `solution`"),
    "mmk12": Loader(read_mmk12, "MM-Eureka's MMK12"),
    "mathvista": Loader(read_mathvista, "AI4Math/MathVista"),
    "gsm8k": Loader(read_gsm8k, "openai/gsm8k"),
    "math500": Loader(read_math500, "HuggingFaceH4/MATH-500"),
    "amc": Loader(read_amc, "AI-MO/aimo-validation-amc"),
    "vl_rewardbench": Loader(read_vl_rewardbench, "MMInstruction/VL-RewardBench"),
    "multimodal_rewardbench": Loader(read_multimodal_rewardbench, "Multimodal RewardBench"),
    "mm_rlhf_rewardbench": Loader(read_mm_rlhf_rewardbench, "MM-RLHF-RewardBench"),
    "preference_jsonl": Loader(read_preference_jsonl, "pairs in JSON Lines: two responses and which is better"),
}
