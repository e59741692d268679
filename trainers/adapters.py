"""Whether the adapters that a run asks for can be trained, before a model loads."""

import importlib.util
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.error import NoMatchingPeftModuleError
from transformers import AutoModelForImageTextToText
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig, get_peft_config

from vlm_entropy.data.models import adapter_base

from .freezing import freeze_vision


def default_targets(model: ModelConfig) -> None:
    """Have adapters on all linear layers but the output layer where no layers are named; changes `model`."""
    if model.use_peft and model.lora_target_modules is None and model.lora_target_parameters is None:
        all_linear: Any = "all-linear"  # TRL types it as a list, and makes a list of one name that name itself
        model.lora_target_modules = all_linear


def check_model_options(model: ModelConfig, model_config: Any, *, frozen_module: str | None) -> None:
    """Refuse options of `--use_peft` and `--load_in_4bit` with which training would stop after the model has loaded.

    Under ZeRO-3, where a model without weights would be shared out over the processes too, PEFT and TRL refuse targets
    of adapters themselves, once the model has loaded.

    Args:
        model: TRL's options of the model.
        model_config: the model's configuration, of transformers.
        frozen_module: part of the names of parameters that are not trained, as in `Family.vision_module`.

    Raises:
        ValueError: for an adapter in place of a model; quantised weights without adapters, bitsandbytes or a CUDA
            device; adapters that fit no layer, sit on the output layer, or are all frozen.
    """
    name = str(model.model_name_or_path)
    if adapter_base(name) is not None:
        raise ValueError(
            f"--model_name_or_path {name!r} is an adapter; put it into its base first: "
            f"python -m vlm_entropy.trainers.merge --adapter {name} --out DIR."
        )
    if model.load_in_4bit or model.load_in_8bit:
        check_quantisation(model)
    if model.use_peft and not is_deepspeed_zero3_enabled():
        check_adapter(model, model_config, frozen_module=frozen_module)


def check_quantisation(model: ModelConfig) -> None:
    """Raise `ValueError` where quantised weights cannot be loaded or would leave nothing to train."""
    flag = "--load_in_4bit" if model.load_in_4bit else "--load_in_8bit"
    if not model.use_peft:
        raise ValueError(f"{flag} leaves nothing to train: quantised weights stay as they are. Add --use_peft.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"{flag} needs the package bitsandbytes, which is not installed.")
    if not torch.cuda.is_available():
        raise ValueError(f"{flag} needs a CUDA device, and there is none.")


def check_adapter(model: ModelConfig, model_config: Any, *, frozen_module: str | None) -> None:
    """Put the adapters on a model without memory for its weights; raise `ValueError` for what stops there."""
    targets = model.lora_target_modules
    peft_config: Any = get_peft_config(model)
    with torch.device("meta"):
        network = AutoModelForImageTextToText.from_config(model_config)
        try:
            adapted: Any = get_peft_model(network, peft_config)
        except NoMatchingPeftModuleError:
            hint = "; a single one is a pattern for the whole name of a layer: '.*q_proj'" * isinstance(targets, str)
            raise ValueError(f"--lora_target_modules {targets!r} names no layer of the model{hint}.") from None
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise ValueError("--lora_target_modules names lm_head, where TRL trains no adapter; leave it out.")
    if frozen_module is not None:
        freeze_vision(adapted, frozen_module)
