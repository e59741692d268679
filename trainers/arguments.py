"""The command line of a training run: what it says, and whether it can work, before any model loads."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import yaml
from accelerate import PartialState
from trl import ModelConfig, TrlParser

from .methods import METHODS, Method, get_method, preset_options
from .presets import PRESETS
from .vlm_r1 import VlmR1Arguments, notices


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
        metadata={
            "help": f"Training method: {', '.join([*METHODS, *PRESETS])}; 'a+b' combines GRPO methods. --list_methods "
            "says what each one does."
        },
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["iou", "format"],
        metadata={
            "help": "Rewards, summed with --reward_weights: names of ours, 'module:function' of your own, or "
            "'reward_model:DIR', the opinion of a trained judge of pairs."
        },
    )
    reward_compat: Literal["fixed", "vlm_r1"] = field(
        default="fixed",
        metadata={
            "help": "Rules of the rewards that VLM-R1 has too: right ones ('fixed'), or VLM-R1's where they do no "
            "harm; rewards/README.md lists each difference."
        },
    )
    reward_method: str | None = field(
        default=None,
        metadata={
            "help": "VLM-R1's variant of the 'accuracy' reward for each data file, joined by ':'. A row's own "
            "accu_reward_method wins."
        },
    )
    is_reward_customized_from_vlm_module: bool = field(
        default=False,
        metadata={"help": "VLM-R1's: with --task_type rec, 'accuracy' means the IoU and 'format' that of a box."},
    )
    reward_model_mode: Literal["pairwise", "reference"] = field(
        default="pairwise",
        metadata={
            "help": "What reward_model compares a completion with: others of its group, or the row's "
            "--reward_model_reference."
        },
    )
    reward_model_opponents: int = field(
        default=2,
        metadata={
            "help": "pairwise: how many others, 1 to num_generations - 1, each costing one reply of the judge per "
            "completion; more is finer and slower."
        },
    )
    reward_model_reference: str = field(
        default="reference",
        metadata={"help": "reference: column with the response to compare with, a text."},
    )
    reward_model_task_type: str = field(
        default="default", metadata={"help": "The --task_type that the judge was trained with."}
    )
    reward_model_max_new_tokens: int = field(
        default=512, metadata={"help": "Longest reply of the judge, in tokens; one that is cut off decides nothing."}
    )
    reward_model_batch_size: int = field(
        default=16, metadata={"help": "Comparisons judged at a time; larger is faster and takes memory."}
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
        metadata={"help": "Qwen and GLM: smaller images are enlarged to this area, in pixels (default: model's)."},
    )
    max_pixels: int | None = field(
        default=None,
        metadata={
            "help": "Qwen and GLM: larger images are shrunk to this area in pixels; less is faster (default: model's)."
        },
    )
    max_anyres_num: int | None = field(
        default=None,
        metadata={"help": "InternVL: most tiles an image is cut into; less is faster (default: model's)."},
    )
    freeze_vision_modules: bool = field(
        default=False,
        metadata={
            "help": "Train without the vision tower, adapters in it included; less memory. Qwen's tower ends in its "
            "projector, InternVL's projector is trained on."
        },
    )
    val_split_ratio: float = field(
        default=0.0,
        metadata={
            "help": "Share of the rows held out for evaluation during training, 0 to 1, drawn by --data_seed (or "
            "--seed), the same on every process. Evaluation itself is --eval_strategy."
        },
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "Train without rows that cannot be used, listing them in bad_rows.jsonl, instead of stopping."
        },
    )
    left_to_user: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Options that have to be given as flags: a preset names those that its paper does not state."
        },
    )


def parse_arguments(argv: Sequence[str]) -> tuple[Method, RunArguments, Any, ModelConfig]:
    """The method, and the three groups of options, from flags and `--config file.yaml`.

    Raises:
        ValueError: for an unknown method, a missing model, and whatever the option classes refuse.
    """
    name = _method_name(argv)
    method = get_method(name)
    options: tuple[Any, ...] = (RunArguments, method.config, ModelConfig, VlmR1Arguments)
    parser = TrlParser(options, prog="python -m vlm_entropy.trainers")
    parser.set_defaults_with_config(**preset_options(name))
    run, config, model, vlm_r1 = parser.parse_args_and_config(list(argv))
    flags = {part.partition("=")[0].lstrip("-").replace("-", "_") for part in argv if part.startswith("--")}
    missing = [option for option in run.left_to_user if option not in flags]
    if missing:
        raise ValueError(f"The paper does not state {', '.join(missing)}: give --{' ... --'.join(missing)} ....")
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing: a folder with a checkpoint, or its name on the hub.")
    model.dtype = vlm_r1.torch_dtype or model.dtype
    groups = (run, config, model, vlm_r1)
    defaults = {option.name: option.default for group in groups for option in fields(group)}
    values = {name: value for group in groups for name, value in vars(group).items()}
    for sentence in notices(flags, defaults, values):
        PartialState().print(sentence)
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
