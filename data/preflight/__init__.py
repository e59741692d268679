"""Read everything once before training, and say whether training may start: `python -m vlm_entropy.data check`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from vlm_entropy.data.examples import prompt_tokens, to_example
from vlm_entropy.data.families import Family, get_family
from vlm_entropy.data.models import IMAGE_LIMITS, limit_images, load_description
from vlm_entropy.data.rows import BadRow, Row, read_rows
from vlm_entropy.rewards import REWARD_MODEL, get_reward

from .duplicates import duplicates_section
from .lengths import lengths_section, measure_experts
from .memory import ModelSize, Setup, memory_section, model_size
from .picture import write_picture
from .places import gold_boxes, places_section
from .report import ImageFile, Section, images_section, read_image_files, render, rows_of, rows_section
from .rewards import Reward, rewards_section

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass
class CheckArguments:
    """Read all data once and report what training would trip over; exit code 1 if training may not start."""

    data: str = field(metadata={"help": "Data files in VLM-R1's format, joined by ':'."})
    model: str = field(metadata={"help": "Checkpoint folder; its config and processor are read, its weights are not."})
    images: str | None = field(
        default=None, metadata={"help": "One folder per data file, joined by ':', that its image paths start from."}
    )
    held_out: str | None = field(
        default=None,
        metadata={
            "help": "Data files to evaluate on, joined by ':': rows and images shared with --data are reported."
        },
    )
    held_out_images: str | None = field(
        default=None, metadata={"help": "One folder per held-out file, joined by ':'. Default: that of --images."}
    )
    task_type: str = field(
        default="default", metadata={"help": "Prompt template: a key of vlm_entropy.data.prompts.TEMPLATES."}
    )
    solution_space: Literal["absolute", "relative_1000", "relative_1"] = field(
        default="absolute",
        metadata={"help": "Coordinates of the boxes in the data: pixels, or shares of the sides times 1000 or 1."},
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Qwen: smaller images are enlarged to this area in pixels (default: model's)."}
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Qwen: larger images are shrunk to this area in pixels; less is faster (default: model's)."},
    )
    max_anyres_num: int | None = field(
        default=None,
        metadata={"help": "InternVL: most tiles an image is cut into; less is faster (default: model's)."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["iou", "format"],
        metadata={"help": "Rewards to hold to the gold answers; 'module:function' of your own is not called."},
    )
    reward_method: str | None = field(
        default=None, metadata={"help": "VLM-R1's variant of the 'accuracy' reward for each data file, joined by ':'."}
    )
    expert_column: str | None = field(
        default=None, metadata={"help": "Column with expert responses, whose lengths are reported."}
    )
    max_completion_length: int = field(
        default=512, metadata={"help": "Tokens of a completion; larger leaves less of the context to the prompt."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32",
        metadata={"help": "Type of the weights, for the memory; DeepSpeed always trains in 2 bytes."},
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Completions of a micro-batch on one device; more need more memory."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Micro-batches of an optimizer step; their completions are sampled together."}
    )
    num_generations: int = field(default=8, metadata={"help": "Completions per prompt, at least 2."})
    num_processes: int = field(default=1, metadata={"help": "Devices; under ZeRO each holds a share."})
    zero_stage: Literal[0, 2, 3] = field(
        default=0, metadata={"help": "DeepSpeed's: 2 shares out gradients and optimizer states, 3 the weights too."}
    )
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Compute activations again in the backward pass; less memory, slower."}
    )
    beta: float = field(default=0.0, metadata={"help": "KL coefficient; above 0 a reference model is held."})
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of the model."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters; larger has more parameters."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"], metadata={"help": "Linear layers that get adapters."}
    )
    freeze_vision_modules: bool = field(default=False, metadata={"help": "The vision tower is not trained."})
    picture: str | None = field(
        default=None, metadata={"help": "Draw rows with their boxes into this new PNG file. Default: none."}
    )
    picture_rows: int = field(default=12, metadata={"help": "Rows in the picture, evenly spaced over the data."})

    def __post_init__(self) -> None:
        least = {
            "max_completion_length": 1,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_generations": 2,
            "num_processes": 1,
            "lora_r": 1,
            "picture_rows": 1,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}.")
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}.")


def load_rows(data: str, images: str | None, *, reward_method: str | None = None) -> tuple[list[Row], list[BadRow]]:
    """Usable and bad rows, every image decoded.

    Raises:
        ValueError: for files that cannot be read, and if no row can be used, with the reason of the first.
    """
    read = partial(read_rows, data, images, reward_methods=reward_method, decode_images=True)
    try:
        return read(skip_bad_rows=True)
    except ValueError:
        read(skip_bad_rows=False)  # says what is wrong with the first row, if that is why none is left
        raise


def named_rewards(names: Sequence[str]) -> Mapping[str, Reward | None]:
    """Rewards by name, None for a reward model and for one of the user's own; an unknown name is an error."""
    named = {name: get_reward(name) for name in names if not name.startswith(REWARD_MODEL)}
    return {name: None if ":" in name else named[name] for name in names}


def add_batch(section: Section, arguments: CheckArguments, *, rows: int) -> None:
    """Add how many completions of how many prompts are sampled at once, and whether the data has as many prompts."""
    completions = (
        arguments.per_device_train_batch_size * arguments.num_processes * arguments.gradient_accumulation_steps
    )
    each = arguments.num_generations
    prompts, rest = divmod(completions, each)
    section.lines.insert(0, f"sampled at once on all devices: {completions} completions, {each} of each prompt")
    if rest:
        section.failures.append(
            f"{completions} completions are sampled at once, no multiple of num_generations {each}"
        )
    elif prompts > rows:
        section.failures.append(f"a batch takes {prompts} different prompts, the data has {rows_of(rows)}")


def memory_setup(arguments: CheckArguments, tokens: Sequence[tuple[int, int]]) -> Setup:
    """What the estimate needs of the arguments and of `prompt_tokens` of all rows."""
    return Setup(
        weight_bytes=WEIGHT_BYTES[arguments.dtype],
        zero_stage=arguments.zero_stage,
        num_processes=arguments.num_processes,
        per_device_train_batch_size=arguments.per_device_train_batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        gradient_checkpointing=arguments.gradient_checkpointing,
        beta=arguments.beta,
        prompt_tokens=max(prompt for prompt, _ in tokens),
        image_tokens=max(images for _, images in tokens),
        completion_tokens=arguments.max_completion_length,
    )


def size_of(config: Any, arguments: CheckArguments, *, family: Family) -> ModelSize:
    """`model_size` as trained by the arguments."""
    lora = (arguments.lora_r, arguments.lora_target_modules) if arguments.use_peft else None
    return model_size(config, family=family, freeze_vision=arguments.freeze_vision_modules, lora=lora)


@dataclass(frozen=True)
class Material:
    """Everything that is read, once."""

    config: Any
    processor: Any
    family: Family
    rows: list[Row]
    bad_rows: list[BadRow]
    held_out: list[Row] | None
    bad_held_out: list[BadRow]
    files: dict[str, ImageFile]


def read_material(arguments: CheckArguments) -> Material:
    """Read the model's description, the data and the images.

    Raises:
        ValueError: one sentence on what cannot be read at all.
    """
    config, processor = load_description(arguments.model, flag="--model")
    limit_images(processor, **{name: getattr(arguments, name) for name in IMAGE_LIMITS})
    rows, bad_rows = load_rows(arguments.data, arguments.images, reward_method=arguments.reward_method)
    held_out: list[Row] | None = None
    bad_held_out: list[BadRow] = []
    if arguments.held_out is not None:
        folders = arguments.images if arguments.held_out_images is None else arguments.held_out_images
        held_out, bad_held_out = load_rows(arguments.held_out, folders)
    files = read_image_files([*rows, *(held_out or [])])
    return Material(config, processor, get_family(config.model_type), rows, bad_rows, held_out, bad_held_out, files)


def check_rows(arguments: CheckArguments, read: Material, rewards: Mapping[str, Reward | None]) -> list[Section]:
    """The sections of the report, in order, without the picture."""
    rows, family, space = read.rows, read.family, arguments.solution_space
    kind: dict[str, Any] = {"family": family, "processor": read.processor}
    examples = [to_example(row, task_type=arguments.task_type, solution_space=space, **kind) for row in rows]
    tokens = [prompt_tokens(row, task_type=arguments.task_type, **kind) for row in rows]
    column, tokenizer = arguments.expert_column, read.processor.tokenizer
    experts = None
    if column is not None:
        experts = measure_experts(rows, examples, column, tokenizer=tokenizer)
    lengths = lengths_section(
        rows,
        tokens,
        experts,
        context_length=read.config.get_text_config().max_position_embeddings,
        max_completion_length=arguments.max_completion_length,
    )
    memory = memory_section(size_of(read.config, arguments, family=family), memory_setup(arguments, tokens))
    add_batch(memory, arguments, rows=len(rows))
    return [
        rows_section(rows, read.bad_rows),
        images_section(rows, read.files, **kind),
        lengths,
        places_section(gold_boxes(rows, **kind), family=family, solution_space=space),
        duplicates_section(rows, read.files, held_out=read.held_out, bad_held_out=len(read.bad_held_out)),
        rewards_section(rewards, rows, examples),
        memory,
    ]


def check(arguments: CheckArguments) -> tuple[str, bool]:
    """Read everything once.

    Returns:
        The report, and whether training may start.

    Raises:
        ValueError: one sentence, if there is nothing to report on: files, model, reward or option that do not exist.
    """
    rewards = named_rewards(arguments.reward_funcs)
    read = read_material(arguments)
    sections = check_rows(arguments, read, rewards)
    if arguments.picture is not None:
        options: dict[str, Any] = {"count": arguments.picture_rows, "solution_space": arguments.solution_space}
        sections.append(Section("Picture", [write_picture(read.rows, arguments.picture, **options)]))
    return render(sections), not any(section.failures for section in sections)


def run(arguments: CheckArguments) -> str:
    """Return the report; if training may not start, print it and end the program with exit code 1."""
    report, may_start = check(arguments)
    if not may_start:
        print(report)
        raise SystemExit(1)
    return report
