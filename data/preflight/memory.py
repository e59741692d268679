"""Preflight of memory: an estimate of what one device holds, from the model's config and no weights.

    bytes = weights + gradients + optimizer + reference + max(training, sampling)

With P parameters, T of them trained, N devices, w bytes per weight (4 for float32, 2 else; always 2 under DeepSpeed):

    weights     w P, under ZeRO-3 over N
    gradients   w T, over N under ZeRO-2 and 3; twice without ZeRO and N > 1, for the buckets of DDP
    optimizer   AdamW: 2 w T; under DeepSpeed 12 T over N (float32 copy and two moments)
    reference   w P if beta > 0, under ZeRO-3 over N; nothing with LoRA, which switches its adapters off instead
    training    activations + logits of one micro-batch of B rows, each as long as the longest prompt and completion
    sampling    keys and values of the B · gradient_accumulation_steps rows that are sampled at once, and under ZeRO-3
                the gathered weights

A transformer layer of width d and feed-forward width f keeps about (8 d + 4 f) numbers of 2 bytes per token for the
backward pass; with gradient checkpointing one layer does, and every other only its input, d. Logits of the completion
tokens: 2 bytes, and a float32 log-softmax and gradient, 10 bytes for each entry of the vocabulary.
Left out: the framework, buffers of attention kernels and communication, fragmentation, vLLM, rows shorter than the
longest, images shared inside a group. LoRA's adapters are counted in w bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_entropy.data.families import Family

from .report import Section

GIB = 2**30
ACTIVATION_BYTES = 2
LOGIT_BYTES = 10
DEEPSPEED_OPTIMIZER_BYTES = 12


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers: width d, feed-forward width f, number of layers."""

    width: int
    feed_forward: int
    layers: int

    def activation_bytes(self, tokens: int, *, checkpointing: bool) -> int:
        """Bytes kept for the backward pass of `tokens` tokens."""
        layer = 8 * self.width + 4 * self.feed_forward
        kept = layer + self.layers * self.width if checkpointing else self.layers * layer
        return ACTIVATION_BYTES * tokens * kept


@dataclass(frozen=True)
class ModelSize:
    """What the estimate needs to know of a model."""

    parameters: int
    trained: int
    """Parameters with a gradient: all, all but the vision tower's, or those of the LoRA adapters."""
    is_adapter: bool
    """The trained parameters are LoRA's, beside `parameters`."""
    text: Tower
    vision: Tower
    key_value_width: int
    """Key-value heads times their width, of one layer."""
    vocabulary: int
    patches_per_token: int
    """Patches of the vision tower that make one image token."""


@dataclass(frozen=True)
class Setup:
    """How the model is trained; the names are those of the training command."""

    weight_bytes: int
    zero_stage: int
    num_processes: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    beta: float
    prompt_tokens: int
    """Tokens of the longest prompt, image tokens included."""
    image_tokens: int
    """Image tokens of the row that has most."""
    completion_tokens: int


def lora_parameters(shapes: Sequence[tuple[str, int, int]], *, rank: int, targets: Sequence[str]) -> int:
    """Parameters of LoRA adapters: rank · (inputs + outputs) of each linear layer whose name ends in a target.

    Args:
        shapes: (name, inputs, outputs) of each linear layer.
        rank: r, rank of the adapters.
        targets: last parts of names, as in peft's `target_modules`.
    """
    chosen = [(inputs, outputs) for name, inputs, outputs in shapes if name.rpartition(".")[2] in targets]
    return sum(rank * (inputs + outputs) for inputs, outputs in chosen)


def _vision_tower(config: Any) -> Tower:
    vision = config.vision_config
    if config.model_type == "qwen2_vl":
        return Tower(vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), vision.depth)
    if config.model_type == "glm4v":  # its intermediate_size is the merger's
        return Tower(vision.hidden_size, vision.out_hidden_size, vision.depth)
    layers = vision.num_hidden_layers if config.model_type == "internvl" else vision.depth
    return Tower(vision.hidden_size, vision.intermediate_size, layers)


def model_size(
    config: Any, *, family: Family, freeze_vision: bool = False, lora: tuple[int, Sequence[str]] | None = None
) -> ModelSize:
    """Count the parameters of a model built from its config without memory for its weights.

    Args:
        config: of transformers.
        family: family of the model.
        freeze_vision: the vision tower is not trained.
        lora: rank and target modules, None to train the model itself.

    Raises:
        ValueError: for target modules that the model does not have.
    """
    import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(n for name, n in counts.items() if not (freeze_vision and family.vision_module in name))
    if lora is not None:
        linear = [
            (name, module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and not (freeze_vision and family.vision_module in name)
        ]
        trained = lora_parameters(linear, rank=lora[0], targets=lora[1])
        if not trained:
            raise ValueError(f"No linear layer is called {' or '.join(lora[1])}; name other lora_target_modules.")
    text = config.get_text_config()
    head = text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads
    merge = 1 / config.downsample_ratio if config.model_type == "internvl" else config.vision_config.spatial_merge_size
    return ModelSize(
        parameters=sum(counts.values()),
        trained=trained,
        is_adapter=lora is not None,
        text=Tower(text.hidden_size, text.intermediate_size, text.num_hidden_layers),
        vision=_vision_tower(config),
        key_value_width=text.num_key_value_heads * head,
        vocabulary=text.vocab_size,
        patches_per_token=round(merge**2),
    )


def state_bytes(model: ModelSize, setup: Setup) -> dict[str, float]:
    """Bytes on one device of weights, gradients, optimizer states and reference model; see the formulas above."""
    devices, deepspeed = setup.num_processes, setup.zero_stage > 0
    weight = 2 if deepspeed else setup.weight_bytes
    whole = weight * model.parameters / (devices if setup.zero_stage == 3 else 1)
    adapters = weight * model.trained if model.is_adapter else 0
    buckets = 2 if devices > 1 else 1
    optimizer = DEEPSPEED_OPTIMIZER_BYTES / devices if deepspeed else 2 * weight
    return {
        "weights": whole + adapters / (devices if setup.zero_stage == 3 else 1),
        "gradients": weight * model.trained * (1 / devices if deepspeed else buckets),
        "optimizer": optimizer * model.trained,
        "reference": whole if setup.beta > 0 and not model.is_adapter else 0.0,
    }


def training_bytes(model: ModelSize, setup: Setup) -> dict[str, float]:
    """Bytes of one micro-batch: activations of both towers, and logits of the completion tokens."""
    rows = setup.per_device_train_batch_size
    tokens = rows * (setup.prompt_tokens + setup.completion_tokens)
    patches = rows * setup.image_tokens * model.patches_per_token
    checkpointing = setup.gradient_checkpointing
    activations = model.text.activation_bytes(tokens, checkpointing=checkpointing)
    activations += model.vision.activation_bytes(patches, checkpointing=checkpointing)
    return {
        "activations": float(activations),
        "logits": float(LOGIT_BYTES * rows * setup.completion_tokens * model.vocabulary),
    }


def sampling_bytes(model: ModelSize, setup: Setup) -> dict[str, float]:
    """Bytes while completions are sampled: keys and values of all rows, and the gathered weights of ZeRO-3."""
    rows = setup.per_device_train_batch_size * setup.gradient_accumulation_steps
    tokens = rows * (setup.prompt_tokens + setup.completion_tokens)
    gathered = 2 * model.parameters if setup.zero_stage == 3 and setup.num_processes > 1 else 0
    return {
        "keys and values": float(2 * ACTIVATION_BYTES * tokens * model.text.layers * model.key_value_width),
        "gathered weights": float(gathered),
    }


def device_bytes(model: ModelSize, setup: Setup) -> float:
    """Bytes of one device: what stays, and the larger of training and sampling."""
    training, sampling = sum(training_bytes(model, setup).values()), sum(sampling_bytes(model, setup).values())
    return sum(state_bytes(model, setup).values()) + max(training, sampling)


def _gib(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)


def memory_section(model: ModelSize, setup: Setup) -> Section:
    """The estimate for one device, in GiB, with its parts and what it is an estimate of."""
    what = "LoRA adapters" if model.is_adapter else "parameters"
    return Section(
        "Batch, and memory of one device (an estimate, in GiB)",
        [
            f"{model.parameters:,} parameters in the model, {model.trained:,} {what} trained",
            f"stays: {_gib(state_bytes(model, setup))}",
            f"training, {setup.per_device_train_batch_size} rows of {setup.prompt_tokens} + "
            f"{setup.completion_tokens} tokens: {_gib(training_bytes(model, setup))}",
            f"sampling, {setup.per_device_train_batch_size * setup.gradient_accumulation_steps} rows: "
            f"{_gib(sampling_bytes(model, setup))}",
            f"in all about {device_bytes(model, setup) / GIB:.2f} = what stays + the larger of the two",
            "optimizer: AdamW; logits: 10 bytes x completion tokens x vocabulary",
            "activations: 2 bytes x tokens x (8 width + 4 feed-forward) of each layer; with checkpointing, of one "
            "layer, and the width of each",
            "left out: the framework, buffers of kernels and communication, fragmentation, vLLM",
        ],
    )
