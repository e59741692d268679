"""What `eval run` and `eval score` are told."""

from dataclasses import dataclass, field
from typing import Literal

from vlm_entropy.data.models import IMAGE_LIMITS
from vlm_entropy.rewards.geometry import SPACES

from .benchmarks.rows import SYNTHETIC

ROWS = ("rows", *SYNTHETIC)
"""Names of `--bench` whose data are rows in VLM-R1's format, scored by the rewards of training."""


@dataclass
class DataArguments:
    """What to ask and how to score."""

    bench: str = field(
        default="rows",
        metadata={"help": "Benchmark: rows (data of your own in VLM-R1's format), or a name of eval/README.md."},
    )
    data: str = field(default="", metadata={"help": "The data set: file, folder or hub id. Required."})
    images: str = field(
        default="",
        metadata={"help": "Folder that its image paths start from. Default: the publisher's, beside the data."},
    )
    split: str | None = field(default=None, metadata={"help": "Split of data that has several."})
    format: str | None = field(
        default=None, metadata={"help": "Loader of the data where the benchmark comes in several formats."}
    )
    protocol: str | None = field(
        default=None, metadata={"help": "Whose prompt and scoring rules; the benchmark's first by default."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Ask only this many items, the first ones; fewer give wider intervals."}
    )
    limit_seed: int | None = field(
        default=None, metadata={"help": "Shuffle by this seed before taking --limit items; VLM-R1 has 2000 and 42."}
    )
    task_type: str = field(default="default", metadata={"help": "rows: prompt template, the one of the training."})
    solution_space: Literal["absolute", "relative_1000", "relative_1"] = field(
        default="absolute", metadata={"help": "rows: coordinates of the boxes in the data, as in training."}
    )
    rewards: list[str] | None = field(
        default=None, metadata={"help": "rows: rewards that judge an answer, the leading one first. Default: iou."}
    )


@dataclass
class RunArguments(DataArguments):
    """Ask a model every item of a benchmark, and score its answers."""

    model: str = field(
        default="", metadata={"help": "Folder of a checkpoint or an adapter, or a name on the hub. Required."}
    )
    out: str = field(default="", metadata={"help": "Folder for answers, scores and result.json. Required."})
    revision: str | None = field(default=None, metadata={"help": "Of a model on the hub."})
    coordinate_space: str | None = field(
        default=None, metadata={"help": f"Space the model answers in, its family's by default: {', '.join(SPACES)}."}
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest answer in tokens; longer ones are cut off. Default: the protocol's."}
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "0: greedy. Above: sampled; 1 is the policy as trained. Default: the protocol's."},
    )
    top_p: float | None = field(default=None, metadata={"help": "Nucleus of sampling, default the protocol's."})
    samples: int | None = field(
        default=None, metadata={"help": "Answers to each item; more than one adds pass@k and majority@k."}
    )
    seed: int = field(default=0, metadata={"help": "Of sampled answers."})
    batch_size: int = field(default=16, metadata={"help": "Answers drawn at a time; larger is faster, takes memory."})
    min_pixels: int | None = field(
        default=None, metadata={"help": "Qwen and GLM: smaller images are enlarged to this area."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Qwen and GLM: larger images are shrunk to this area."}
    )
    max_anyres_num: int | None = field(default=None, metadata={"help": "InternVL: most tiles of an image."})
    engine: Literal["transformers", "vllm"] = field(
        default="transformers", metadata={"help": "What generates: transformers, or vllm where it is installed."}
    )

    def __post_init__(self):
        for name in ("model", "data", "out"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.coordinate_space is not None and self.coordinate_space not in SPACES:
            raise ValueError(f"coordinate_space is {self.coordinate_space!r}; allowed are {', '.join(SPACES)}.")
        if self.engine == "vllm" and any(getattr(self, name) is not None for name in IMAGE_LIMITS):
            raise ValueError(
                "--engine vllm prepares images by the checkpoint's own limits: leave out min_pixels, "
                "max_pixels and max_anyres_num, or save them with its processor."
            )


@dataclass
class ScoreArguments:
    """Score the answers of an earlier `eval run` again, without a model."""

    run: str = field(metadata={"help": "Its folder."})
    protocol: str | None = field(default=None, metadata={"help": "Scoring rules, those of the run by default."})
    rewards: list[str] | None = field(default=None, metadata={"help": "rows: rewards, those of the run by default."})
    data: str | None = field(default=None, metadata={"help": "The data set, if it has moved."})
    images: str | None = field(default=None, metadata={"help": "Its images, if they have moved."})
