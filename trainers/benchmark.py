"""What a training step costs beside TRL's: `python -m vlm_entropy.trainers.benchmark --table steps`.

Stock `trl.GRPOTrainer` and ours, or GRPO and a method, take turns in one process on the same data, and a figure is the
median of the paired ratios. Rewards, the image processor, the optimizer and logging are in the time; the first step
of a run is not. On a CPU with one thread it is the time of the processor, which other programs do not change, else
that of the clock. Pictures are noise and weights random: costs do not depend on what a model can do.
"""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from vlm_entropy.data import torchvision_compat  # noqa: F401  must come before transformers

import numpy as np  # isort: skip
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoConfig, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, TrlParser

from vlm_entropy.data.families import vision_token_ids
from vlm_entropy.data.tiny import MODEL_TYPES, build_tiny_vlm

from .base import EntropyGRPOConfig, EntropyGRPOTrainer
from .methods import get_method

PATCH, BLOCK = 8, 16
"""Side in pixels of a vision patch, and of the part of a picture that is one token."""
PROMPTS = 2
"""Different prompts of a step."""
METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "two_stage": {"lambda_max": 0.01},
    "ecvgpo": {"r0": 10.0},
    "calibrl": {"expert_column": "expert"},
    "saei": {},
    "noisy_rollout": {},
    "entropy_advantage": {},
    "label_entropy": {},
    "kl_cov": {"num_iterations": 2},
    "clip_cov": {},
    "intuitor": {},
    "entropy_reward": {},
}


@dataclass
class BenchmarkArguments:
    """Time training steps against stock TRL, or methods against GRPO, and print a Markdown table."""

    table: Literal["steps", "growth", "methods", "unshared"] = field(
        default="steps",
        metadata={
            "help": "steps: ours against stock TRL. growth: over completions per prompt, prompt and completion "
            "lengths. methods: each method against GRPO. unshared: where prompts cannot be shared."
        },
    )
    families: list[str] = field(
        default_factory=lambda: ["qwen2_5_vl", "internvl"], metadata={"help": f"Of {', '.join(MODEL_TYPES)}."}
    )
    hidden_size: int = field(default=256, metadata={"help": "Width of the model, a multiple of 16."})
    layers: int = field(default=4, metadata={"help": "Depth of both towers."})
    steps: int = field(default=3, metadata={"help": "Steps of a run that are timed, >= 1."})
    pairs: int = field(default=3, metadata={"help": "Paired runs, >= 1."})
    threads: int = field(default=1, metadata={"help": "Threads of torch on a CPU."})

    def __post_init__(self):
        if unknown := sorted(set(self.families) - set(MODEL_TYPES)):
            raise ValueError(f"Unknown family {unknown[0]!r}; the families are {', '.join(MODEL_TYPES)}.")
        for name in ("steps", "pairs", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")


class Sizes(NamedTuple):
    """What a step has to compute."""

    image_tokens: int
    """A square number."""
    completion: int
    generations: int = 8


class Setting(NamedTuple):
    """A model, its data, and the options of a run."""

    folder: Path
    family: str
    sizes: Sizes
    steps: int
    options: dict[str, Any]


class Cost(NamedTuple):
    """What the timed steps of a run cost, each."""

    seconds: float
    image_parts: float
    """Rows of `pixel_values` through the vision tower: patches of Qwen, tiles of InternVL."""
    tokens: float
    """Tokens through the language model, in sampling and in training."""
    prompt_tokens: int
    peak_bytes: int
    """On CUDA, else 0."""


class Meter(TrainerCallback):
    """Counts what goes through a model and notes when steps end, from the end of the first step on."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.image_parts = self.tokens = self.prompt_tokens = 0

    def watch(self, network: Any) -> None:
        inner = network.base_model
        tower = inner.visual if hasattr(inner, "visual") else inner.vision_tower
        tower.register_forward_pre_hook(self._count_images, with_kwargs=True)
        inner.language_model.register_forward_pre_hook(self._count_tokens, with_kwargs=True)

    def _count_images(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.image_parts += len(args[0] if args else kwargs["pixel_values"]) * bool(self.ends)

    def _count_tokens(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        rows, length = kwargs["inputs_embeds"].shape[:2]
        self.tokens += rows * length * bool(self.ends)
        self.prompt_tokens = self.prompt_tokens or length

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        alone = not torch.cuda.is_available() and torch.get_num_threads() == 1
        self.ends.append(time.process_time() if alone else time.perf_counter())


def reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Differs inside a group and needs no skill."""
    return [float(sum(ids) % 7) for ids in completion_ids]


@contextlib.contextmanager
def setting(arguments: BenchmarkArguments, family: str, sizes: Sizes, **options: Any) -> Iterator[Setting]:
    """A checkpoint and pictures in a folder that goes away again."""
    side = BLOCK * round(sizes.image_tokens**0.5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image_size = side if family == "internvl" else 2 * BLOCK
        widths: dict[str, Any] = {
            "hidden_size": arguments.hidden_size,
            "layers": arguments.layers,
            "patch_size": PATCH,
        }
        build_tiny_vlm(family, folder / "model", image_size=image_size, **widths)
        random = np.random.default_rng(0)
        for number in range(PROMPTS * 2):
            Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        yield Setting(folder, family, sizes, arguments.steps, options)


def dataset(folder: Path) -> Dataset:
    rows = [
        {
            "prompt": [{"role": "user", "content": "Find the red circle"}],
            "images": [str(path)],
            "expert": "<think>red</think><answer>1</answer>",
            "is_noisy": number % 2 == 0,
            "response_entropy": float(number),
        }
        for number, path in enumerate(sorted(folder.glob("*.png")))
    ]
    return Dataset.from_list(rows).cast_column("images", [ImageFeature()])


def run(trainer_class: Any, config_class: Any, case: Setting, **options: Any) -> Cost:
    """Train for one step more than are timed."""
    on_gpu = torch.cuda.is_available()
    processor: Any = AutoProcessor.from_pretrained(case.folder / "model", padding_side="left")
    if case.family != "internvl":
        processor.image_processor.size = {
            "shortest_edge": BLOCK**2,
            "longest_edge": case.sizes.image_tokens * BLOCK**2,
        }
    placeholders = sorted(vision_token_ids(AutoConfig.from_pretrained(case.folder / "model")))
    settings = {
        "output_dir": str(case.folder / "out"),
        "per_device_train_batch_size": PROMPTS * case.sizes.generations,
        "num_generations": case.sizes.generations,
        "max_completion_length": case.sizes.completion,
        "generation_kwargs": {"min_new_tokens": case.sizes.completion, "suppress_tokens": placeholders},
        "max_steps": case.steps + 1,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    meter = Meter()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = trainer_class(
            model=str(case.folder / "model"),
            reward_funcs=[reward],
            args=config_class(**{**settings, **case.options, **options}),
            train_dataset=dataset(case.folder),
            processing_class=processor,
            callbacks=[meter],
        )
        meter.watch(trainer.accelerator.unwrap_model(trainer.model))
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    durations = [end - start for start, end in zip(meter.ends, meter.ends[1:])]
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return Cost(
        median(durations), meter.image_parts / case.steps, meter.tokens / case.steps, meter.prompt_tokens, peak
    )


def paired(case: Setting, pairs: int, first: Sequence[Any], second: Sequence[Any]) -> tuple[Cost, Cost, float]:
    """The last costs of two trainers, with the median of their times, and the median of first / second in seconds.

    Args:
        case: what both run on.
        pairs: how often they take turns.
        first: trainer class, config class, and options of the first; likewise `second`.
    """
    runs = []
    for _ in range(pairs):
        runs.append([run(trainer, config, case, **options) for trainer, config, options in (first, second)])
    medians = [median(pair[side].seconds for pair in runs) for side in (0, 1)]
    one, two = (runs[-1][side]._replace(seconds=medians[side]) for side in (0, 1))
    return one, two, median(pair[0].seconds / pair[1].seconds for pair in runs)


STOCK: tuple[Any, Any, dict] = (GRPOTrainer, GRPOConfig, {})
OURS: tuple[Any, Any, dict] = (EntropyGRPOTrainer, EntropyGRPOConfig, {})


def against_trl(arguments: BenchmarkArguments, family: str, sizes: Sizes, label: str = "", **options: Any) -> str:
    """A table line: stock TRL against ours."""
    with setting(arguments, family, sizes, **options) as case:
        stock, ours, ratio = paired(case, arguments.pairs, STOCK, OURS)
    length = stock.prompt_tokens
    limit = sizes.generations * (length + sizes.completion) / (length + sizes.generations * sizes.completion)
    memory = f"{stock.peak_bytes / 2**30:.1f} / {ours.peak_bytes / 2**30:.1f}" if stock.peak_bytes else ""
    cells = [
        f"{family}{label}",
        f"{sizes.generations} / {length} / {sizes.completion}",
        f"{stock.seconds:.2f}",
        f"{ours.seconds:.2f}",
        f"**{ratio:.2f}**",
        f"{limit:.1f}",
        f"{stock.image_parts / ours.image_parts:.2f}",
        f"{stock.tokens / ours.tokens:.2f}",
        memory,
    ]
    return f"| {' | '.join(cells)} |"


AGAINST_TRL = (
    "| model | G / P / C | TRL s | ours s | TRL / ours | G(P+C)/(P+GC) | image parts | LM tokens | peak GiB |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def steps_table(arguments: BenchmarkArguments) -> Iterator[str]:
    yield AGAINST_TRL
    for family in arguments.families:
        for sizes in (Sizes(64, 16), Sizes(256, 32), Sizes(1024, 64)):
            yield against_trl(arguments, family, sizes)
    family = arguments.families[0]
    yield against_trl(arguments, family, Sizes(256, 32), ", beta .04", beta=0.04)
    yield against_trl(arguments, family, Sizes(256, 32), ", checkpointing", gradient_checkpointing=True)
    in_two = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    yield against_trl(arguments, family, Sizes(256, 32), ", 2 micro-batches", **in_two)


def growth_table(arguments: BenchmarkArguments) -> Iterator[str]:
    yield AGAINST_TRL
    family = arguments.families[0]
    for generations in (2, 4, 8, 16):
        yield against_trl(arguments, family, Sizes(256, 32, generations))
    for image_tokens in (36, 1024, 4096):
        yield against_trl(arguments, family, Sizes(image_tokens, 32))
    for completion in (16, 128, 512):
        yield against_trl(arguments, family, Sizes(256, completion))


def unshared_table(arguments: BenchmarkArguments) -> Iterator[str]:
    yield AGAINST_TRL
    eager = {"model_init_kwargs": {"attn_implementation": "eager"}}
    family = arguments.families[0]
    yield against_trl(arguments, family, Sizes(64, 16), ", eager attention: not shared", **eager)
    alone = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
    yield against_trl(arguments, family, Sizes(64, 16), ", micro-batches of one row", **alone)
    yield against_trl(arguments, family, Sizes(4, 256), ", long answers to short prompts")


def methods_table(arguments: BenchmarkArguments) -> Iterator[str]:
    """Each method against GRPO, both in our trainer with prompts shared."""
    yield "| method | GRPO s | method s | method / GRPO | image parts | LM tokens |\n|---|---|---|---|---|---|"
    for name, options in METHOD_OPTIONS.items():
        method = get_method(name)
        iterations = {key: value for key, value in options.items() if key == "num_iterations"}
        with setting(arguments, arguments.families[0], Sizes(256, 32), **iterations) as case:
            grpo, ours, ratio = paired(case, arguments.pairs, OURS, (method.trainer, method.config, options))
        parts, tokens = ours.image_parts / grpo.image_parts, ours.tokens / grpo.tokens
        yield f"| {name} | {grpo.seconds:.2f} | {ours.seconds:.2f} | {1 / ratio:.2f} | {parts:.2f} | {tokens:.2f} |"


TABLES = {"steps": steps_table, "growth": growth_table, "methods": methods_table, "unshared": unshared_table}


def main(argv: Sequence[str] | None = None) -> None:
    try:
        options: Any = BenchmarkArguments
        parser = TrlParser(options, prog="python -m vlm_entropy.trainers.benchmark")
        (arguments,) = parser.parse_args_and_config(argv)
    except ValueError as error:
        raise SystemExit(f"vlm-entropy benchmark: {error}") from None
    torch.set_num_threads(arguments.threads)
    for line in TABLES[arguments.table](arguments):
        print(line, flush=True)


if __name__ == "__main__":
    main()
