"""The command line of a training run: what it says, and whether it can work, before any model loads."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from trl import ModelConfig, TrlParser

from .methods import METHODS, Method, get_method


@dataclass
class RunArguments:
    """What to train on and with which method; TRL's own options stand beside these."""

    data_file_paths: str = field(
        metadata={"help": "JSON Lines files in VLM-R1's format, joined by ':'. One question and answer per line."}
    )
    image_folders: str | None = field(
        default=None,
        metadata={"help": "One folder per data file, joined by ':', that its image paths start from; '' for none."},
    )
    method: str = field(
        default="grpo",
        metadata={"help": f"Training method: {', '.join(METHODS)}; 'a+b' combines GRPO methods."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["iou", "format"],
        metadata={"help": "Rewards, summed with --reward_weights: names of ours or 'module:function' of your own."},
    )
    task_type: str = field(
        default="default",
        metadata={"help": "Prompt template around the question: a key of vlm_entropy.data.prompts.TEMPLATES."},
    )
    solution_space: Literal["absolute", "relative_1000", "relative_1"] = field(
        default="absolute",
        metadata={
            "help": "Coordinates of the boxes in the data: pixels of the original image, or shares of its sides times "
            "1000 or 1. The model's own coordinates follow from its family."
        },
    )
    min_pixels: int | None = field(
        default=None,
        metadata={"help": "Qwen: smaller images are enlarged to this area, in pixels (default: model's)."},
    )
    max_pixels: int | None = field(
        default=None,
        metadata={
            "help": "Qwen: larger images are shrunk to this area, in pixels; less is faster (default: model's)."
        },
    )
    max_anyres_num: int | None = field(
        default=None,
        metadata={"help": "InternVL: most tiles an image is cut into; less is faster (default: model's)."},
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "Train without rows that cannot be used, listing them in bad_rows.jsonl, instead of stopping."
        },
    )


def parse_arguments(argv: Sequence[str]) -> tuple[Method, RunArguments, Any, ModelConfig]:
    """The method, and the three groups of options, from flags and `--config file.yaml`.

    Raises:
        ValueError: for an unknown method, a missing model, and whatever the option classes refuse.
    """
    method = get_method(_method_name(argv))
    options: tuple[Any, ...] = (RunArguments, method.config, ModelConfig)
    parser = TrlParser(options, prog="python -m vlm_entropy.trainers")
    run, config, model = parser.parse_args_and_config(list(argv))
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing: a folder with a checkpoint, or its name on the hub.")
    return method, run, config, model


def _method_name(argv: Sequence[str]) -> str:
    """The method decides which options exist, so it is read first."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method")
    parser.add_argument("--config")
    known, _ = parser.parse_known_args(list(argv))
    if known.method is None and known.config is not None:
        settings = _read_yaml(known.config)
        known.method = settings.get("method") if isinstance(settings, dict) else None
    return known.method or RunArguments.method


def _read_yaml(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        try:
            return yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"--config {path!r} is not YAML: {str(error).replace(chr(10), ' ')}") from None


def model_init_kwargs(config: Any, model: ModelConfig) -> dict[str, Any]:
    """How TRL is to load the model; `--model_init_kwargs` wins over the single flags."""
    flags = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return {**flags, **(config.model_init_kwargs or {})}
