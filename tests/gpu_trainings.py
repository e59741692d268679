"""A few steps of each method and of stock TRL on the same model and data: seconds, memory, finite losses."""

import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from trl import GRPOConfig, GRPOTrainer

from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers.base import EntropyGRPOConfig, EntropyGRPOTrainer
from vlm_entropy.trainers.benchmark import BLOCK, METHOD_OPTIONS, PATCH, PROMPTS, Cost, Setting, Sizes, run
from vlm_entropy.trainers.methods import METHODS, get_method

OPTIONS: dict[str, dict[str, Any]] = {
    **METHOD_OPTIONS,
    "luffy": {"expert_column": "expert"},
    "rl_plus": {"expert_column": "expert"},
    "dapo": {"max_resamples": 1},
}
"""What a method has to be told."""
HEAD_DIM = 64


def build_case(folder: Path, scale: Any, *, on_cpu: bool) -> Setting:
    """The checkpoint and the pictures, in a folder."""
    random = np.random.default_rng(0)
    side = BLOCK * round(scale.image_tokens**0.5)
    for number in range(2 * PROMPTS):
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    build_tiny_vlm("qwen2_5_vl", folder / "model", patch_size=PATCH, image_size=2 * BLOCK)
    if not on_cpu:
        widen(folder / "model", hidden=scale.hidden, layers=scale.layers)
    sharpen(folder / "model")
    sizes = Sizes(scale.image_tokens, scale.completion, scale.generations)
    return Setting(folder, "qwen2_5_vl", sizes, scale.steps, {"use_cpu": on_cpu, "bf16": not on_cpu})


def widen(folder: Path, *, hidden: int, layers: int) -> None:
    """Replace a tiny checkpoint's weights by those of a model of usual proportions; its processor stays."""
    config: Any = AutoConfig.from_pretrained(folder)
    heads = hidden // HEAD_DIM
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = hidden, 4 * hidden, layers
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = heads, max(1, heads // 4), HEAD_DIM
    text.layer_types = ["full_attention"] * layers
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
    vision.hidden_size, vision.out_hidden_size, vision.intermediate_size = hidden, hidden, 3 * hidden
    vision.depth, vision.num_heads, vision.window_size = layers // 2, heads, 7 * BLOCK
    vision.fullatt_block_indexes = [layers // 4 - 1, layers // 2 - 1]
    text.initializer_range = vision.initializer_range = 0.02
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)


def sharpen(folder: Path) -> None:
    """Make a checkpoint sure of its tokens: equal log-probs hide errors."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 8
    model.save_pretrained(folder)


def parameters(case: Setting) -> int:
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(case.folder / "model"))
    return model.num_parameters()


class Watched:
    """A trainer of which the losses, and whether it still shares prompts at its end, are kept."""

    losses: list[float]
    shares: bool

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        type(self).losses.append(float(loss.detach()))
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)  # type: ignore[misc]
        type(self).shares = isinstance(self, EntropyGRPOTrainer) and self._sharing.is_on
        return result


def train(
    case: Setting, trainer: Any, config: Any, faults: list[str], *, name: str, **options: Any
) -> tuple[Cost, Any]:
    """What a run costs, and the class that watched it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    watched = type(trainer.__name__, (Watched, trainer), {"losses": [], "shares": False})
    cost = run(watched, config, case, **options)
    if not watched.losses or not all(map(math.isfinite, watched.losses)):
        faults.append(f"{name}: losses {watched.losses}.")
    return cost, watched


def sizes_sentence(case: Setting) -> str:
    sizes = case.sizes
    return (
        f"{PROMPTS} prompts of {sizes.generations} completions a step, {sizes.image_tokens} image tokens, "
        f"{sizes.completion} tokens a completion; median of {case.steps} steps after the first. `kl_cov` makes two "
        "steps of each rollout."
    )


def cells(cost: Cost, stock: Cost) -> str:
    """Seconds and memory, each beside stock TRL's; no memory without a GPU."""
    seconds = f"{cost.seconds:.2f} | {cost.seconds / stock.seconds:.2f}"
    if not stock.peak_bytes:
        return f"{seconds} | - | -"
    return f"{seconds} | {cost.peak_bytes / 2**30:.1f} | {cost.peak_bytes / stock.peak_bytes:.2f}"


HEADER = "| {} | s / step | / TRL | peak GiB | / TRL |{}\n|---|---|---|---|---|{}"


def methods_table(case: Setting, faults: list[str]) -> Iterator[str]:
    yield HEADER.format("method", "", "")
    stock, _ = train(case, GRPOTrainer, GRPOConfig, faults, name="trl.GRPOTrainer")
    yield f"| `trl.GRPOTrainer` | {cells(stock, stock)} |"
    for name in METHODS:
        if name == "sft":
            continue
        method = get_method(name)
        cost, _ = train(case, method.trainer, method.config, faults, name=name, **OPTIONS.get(name, {}))
        yield f"| `{name}` | {cells(cost, stock)} |"


def sharing_table(case: Setting, faults: list[str]) -> Iterator[str]:
    """GRPO with prompts shared or not; "on" must still share after the check of its first forward."""
    yield HEADER.format("prompts", " image parts a step | LM tokens a step |", "---|---|")
    stock, _ = train(case, GRPOTrainer, GRPOConfig, faults, name="trl.GRPOTrainer")
    yield f"| `trl.GRPOTrainer` | {cells(stock, stock)} | {stock.image_parts:.0f} | {stock.tokens:.0f} |"
    for mode in ("off", "on"):
        name = f"--share_prompts {mode}"
        cost, watched = train(case, EntropyGRPOTrainer, EntropyGRPOConfig, faults, name=name, share_prompts=mode)
        yield f"| `{name}` | {cells(cost, stock)} | {cost.image_parts:.0f} | {cost.tokens:.0f} |"
        if watched.shares != (mode == "on"):
            faults.append(f"{name}: sharing was {'on' if watched.shares else 'off'} at the end.")
