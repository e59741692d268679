"""VLM-R1's launch lines: every flag of its scripts parses, and what means something else here is said once."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any


def _retired(reason: str) -> Any:
    return field(default=None, metadata={"help": f"VLM-R1's; does nothing: {reason}."})


@dataclass
class VlmR1Arguments:
    """Flags of VLM-R1's scripts that TRL no longer has."""

    arrow_cache_dir: str | None = _retired("VLM-R1 never read it either")
    dataset_name: str | None = _retired("data comes from --data_file_paths")
    dataset_config: str | None = _retired("data comes from --data_file_paths")
    dataset_train_split: str | None = _retired("data comes from --data_file_paths")
    dataset_test_split: str | None = _retired("data comes from --data_file_paths")
    image_root: str | None = _retired("folders come from --image_folders")
    overwrite_output_dir: str | None = _retired("a run continues from the last checkpoint in its folder")
    max_prompt_length: str | None = _retired("prompts are never cut, and one that does not fit stops the start")
    vllm_device: str | None = _retired("vLLM shares the devices (colocate) or is a server, see --vllm_mode")
    vllm_dtype: str | None = _retired("vLLM takes the model's")
    vllm_max_model_len: str | None = _retired("it is --vllm_max_model_length now")
    vllm_enable_prefix_caching: str | None = _retired("vLLM decides")
    vllm_guided_decoding_regex: str | None = _retired("it is --vllm_structured_outputs_regex now")
    torch_dtype: str | None = field(default=None, metadata={"help": "VLM-R1's name of --dtype."})


RETIRED = [option.name for option in fields(VlmR1Arguments) if "does nothing" in option.metadata["help"]]

IGNORED_BY_VLM_R1 = (
    "cache_implementation",
    "ds3_gather_for_generation",
    "load_in_4bit",
    "load_in_8bit",
    "log_completions",
    "lora_target_modules",
    "min_p",
    "model_revision",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "repetition_penalty",
    "reward_weights",
    "sync_ref_model",
    "temperature",
    "top_k",
    "top_p",
    "torch_dtype",
    "use_vllm",
)
"""Flags that VLM-R1 accepts and does nothing with, and that act here."""


def notices(given: Collection[str], defaults: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """What to tell somebody who starts a run with a launch line of VLM-R1.

    Args:
        given: names of the options on the command line.
        defaults: of all options.
        values: of all options.

    Returns:
        A sentence for each retired flag, and, if the line is one of VLM-R1's by such a flag or by
        `is_reward_customized_from_vlm_module`, for each flag that VLM-R1 ignored and that changes something here.
    """
    helps = {option.name: option.metadata["help"].removeprefix("VLM-R1's; ") for option in fields(VlmR1Arguments)}
    retired = [f"--{name} {helps[name]}" for name in RETIRED if name in given]
    if not retired and "is_reward_customized_from_vlm_module" not in given:
        return []
    acting = [name for name in IGNORED_BY_VLM_R1 if name in given and values[name] != defaults[name]]
    return [*retired, *(f"--{name} {values[name]} acts here; VLM-R1 ignored it." for name in acting)]


def vlm_r1_metric(name: str) -> str | None:
    """What VLM-R1 calls a metric of TRL's, where its name is another one."""
    if name.startswith("rewards/") and name.endswith("/mean"):
        return name.removesuffix("/mean")
    return {"completions/mean_length": "completion_length", "clip_ratio/region_mean": "clip_ratio"}.get(name)
