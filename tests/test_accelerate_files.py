"""The files of run_scripts/accelerate: accelerate takes each, and FSDP2's gathers the layers of our families."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.tiny import build_tiny_vlm

FOLDER = Path(__file__).parent.parent / "run_scripts" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_takes_a_file(path):
    """`load_config_from_file` refuses keys it does not know."""
    settings = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}
    assert settings.distributed_type == kinds.get(path.stem, "DEEPSPEED")
    assert settings.mixed_precision == "bf16"
    assert settings.num_processes == 8 * settings.num_machines
    stage, device = settings.deepspeed_config.get("zero_stage"), settings.deepspeed_config.get("offload_param_device")
    assert stage == {"zero2": 2, "zero3": 3, "zero3_offload": 3, "multi_node": 3}.get(path.stem)
    assert device == {"zero3_offload": "cpu"}.get(path.stem, "none" if stage else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_fsdp2_gathers_the_layers_of_both_towers_one_by_one(monkeypatch, tmp_path, family):
    arguments = launch_command_parser().parse_args(["--config_file", str(FOLDER / "fsdp2.yaml"), "script.py"])
    environment = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    for name in [name for name in environment if name.startswith("FSDP_")]:
        monkeypatch.setenv(name, environment[name])
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    config = AutoConfig.from_pretrained(build_tiny_vlm(family, tmp_path, layers=3))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    plugin.set_auto_wrap_policy(model)
    is_gathered = fsdp2_prepare_auto_wrap_policy(plugin, model)
    layers = [module for module in model.modules() if is_gathered(module)]
    text, vision = model.base_model.language_model.layers, 3
    assert {id(layer) for layer in text} <= {id(layer) for layer in layers}
    assert len(layers) == len(text) + vision
