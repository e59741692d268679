"""What a vision-language model gets where a micro-batch has no image."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel
from trl import prepare_multimodal_messages

from vlm_entropy.data.families import FAMILIES, QwenFamily


def without_empty_images(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The inputs of a forward without the empty image tensors of a micro-batch that holds only rows of text."""
    pixels = kwargs.get("pixel_values")
    if pixels is None or pixels.numel() > 0:
        return args, kwargs
    return args, {name: value for name, value in kwargs.items() if name not in ("pixel_values", "image_grid_thw")}


class VisionInStep:
    """Forwards of text alone that call the vision tower too, on a blank image that changes nothing.

    Processes that share out their weights (ZeRO-3, FSDP) gather those of a module together whenever one calls it, and
    DDP waits for a gradient of every weight: one with text alone would keep the others waiting. The features of the
    blank image are added to the embeddings with weight 0, in the place of the forward where images are encoded, so
    that outputs are those of the text, and so are gradients; the tower's are 0.

    Args:
        network: a model of one of the `FAMILIES`; others are left as they are.
    """

    def __init__(self, network: PreTrainedModel):
        self._network: Any = network
        self._is_text = False
        if network.config.model_type in FAMILIES:
            network.register_forward_pre_hook(self._look_at_inputs, with_kwargs=True)
            network.get_decoder().register_forward_pre_hook(self._add_nothing, with_kwargs=True)

    def _look_at_inputs(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        pixels, cache = kwargs.get("pixel_values"), kwargs.get("past_key_values")
        has_images = (pixels is not None and pixels.numel() > 0) or bool(kwargs.get("mm_encoder_outputs"))
        # After the first token of a generation no process encodes images.
        self._is_text = not has_images and (cache is None or cache.get_seq_length() == 0)

    def _add_nothing(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if not self._is_text:
            return None
        embeddings = kwargs["inputs_embeds"]
        encoded = self._network.base_model.get_image_features(
            **blank_image(self._network.config, embeddings.device), return_dict=True
        )
        features = [*encoded.pooler_output]
        for layer in getattr(encoded, "deepstack_features", None) or []:
            features += layer
        nothing = torch.stack([(0 * feature).sum() for feature in features]).sum()
        return args, {**kwargs, "inputs_embeds": embeddings + nothing.to(embeddings.dtype)}


def blank_image(config: Any, device: torch.device) -> dict[str, Tensor]:
    """The image tensors of the smallest image, all 0, as a processor of the family makes them.

    Args:
        config: of a model of one of the `FAMILIES`.
    """
    vision = config.vision_config
    if isinstance(FAMILIES[config.model_type], QwenFamily):
        side = vision.spatial_merge_size
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, side, side]], device=device)
        return {"pixel_values": torch.zeros(side**2, values, device=device), "image_grid_thw": grid}
    return {"pixel_values": torch.zeros(1, vision.num_channels, *vision.image_size, device=device)}


def check_images_alike(images: list | None, *, accelerator: Accelerator) -> None:
    """Refuse rows to sample of which only some processes have images; to be called by all together.

    With weights spread over processes the others would wait for one another: `generate` of transformers encodes images
    before it calls the model.

    Raises:
        ValueError: on all processes.
    """
    has_images = torch.tensor([any(images or [])], device=accelerator.device)
    count = int(accelerator.gather(has_images).sum())
    if 0 < count < accelerator.num_processes:
        raise ValueError(
            f"{accelerator.num_processes - count} of {accelerator.num_processes} processes sample text alone, which "
            "hangs while weights are spread over processes: leave ds3_gather_for_generation on, sample with vLLM, use "
            "DDP or ZeRO-2, or train on rows with images only."
        )


def images_of(example: dict[str, Any]) -> list:
    """The images of a data set row, from its column `images` or `image`."""
    if "images" in example:
        return example["images"] or []
    return [example["image"]] if example.get("image") is not None else []


def alike(prompts: Iterable[Any]) -> list[Any]:
    """Prompts to tabulate: where some have their contents in parts, text and images, those with plain text get them.

    TRL gives the prompts of a rollout without any image as they are in the data, and all others in parts.
    """
    prompts = list(prompts)
    messages = [message for prompt in prompts if isinstance(prompt, list) for message in prompt]
    if not any(isinstance(message.get("content"), list) for message in messages):
        return prompts
    return [prepare_multimodal_messages(prompt) for prompt in prompts]
