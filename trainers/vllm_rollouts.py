"""What sampling with vLLM needs beside TRL: prompts, images and tokens as vLLM itself expects them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from PIL.Image import Image
from transformers import AutoProcessor
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available

from vlm_entropy.data.families import Family, get_family, vision_token_ids
from vlm_entropy.data.models import image_limits

NEVER = -100.0
"""Bias on a logit, the lowest that vLLM takes."""


class VllmRollouts:
    """The vLLM of a run, in its process or on a server, made to sample as transformers would.

    Args:
        generation: TRL's, whose sampling parameters are changed.
        processor: of the run.
        config: of the model.

    Raises:
        ValueError: for a vLLM of this process that would see images at another size than the run.
    """

    def __init__(self, generation: VLLMGeneration, *, processor: Any, config: Any):
        self._generation, self._config = generation, config
        self._is_checked = False
        generation.generation_kwargs = suppress_tokens(generation.generation_kwargs, vision_token_ids(config))
        if generation.mode == "colocate":
            check_own_limits(processor, AutoProcessor.from_pretrained(generation.model.name_or_path))

    def generate(self, generate: Callable, prompt_ids: list[list[int]], images: list | None, fields: dict) -> Any:
        """What `generate` samples for these rows.

        Args:
            generate: TRL's sampler on vLLM.
            prompt_ids: token ids of each row.
            images: PIL images of each row, or None.
            fields: the processor's tensors.

        Raises:
            ValueError: if a server would see the images of the first rollout at another size than the run.
            requests.ConnectionError: if a server stopped answering.
        """
        images = images and [row or None for row in images]
        if self._generation.mode == "colocate":
            if images:
                family = get_family(self._config.model_type)
                prompt_ids = [unexpanded(ids, self._config.image_token_id, family) for ids in prompt_ids]
            return generate(prompt_ids, images, fields)
        with lost_server():
            if images and not self._is_checked and self._generation.accelerator.is_main_process:
                self._check_server(prompt_ids, images)
            return generate(prompt_ids, images, fields)

    def _check_server(self, prompt_ids: list[list[int]], images: list) -> None:
        self._is_checked = True
        rows = {tuple(ids): row for ids, row in zip(prompt_ids, images, strict=True) if row}
        family, token = get_family(self._config.model_type), self._config.image_token_id
        prompts = list(map(list, rows))
        check_server_limits(
            self._generation.vllm_client, [*rows.values()], prompts, image_token_id=token, family=family
        )


def check_vllm() -> None:
    """Raise `ValueError` unless vLLM can be imported."""
    if not is_vllm_available():
        raise ValueError("use_vllm needs the package vllm, which is not installed: see TRL's extra trl[vllm].")


def suppress_tokens(generation_kwargs: dict[str, Any], token_ids: Iterable[int]) -> dict[str, Any]:
    """Sampling parameters of vLLM with which some tokens are never sampled; a bias of the user's own stays.

    Args:
        generation_kwargs: further parameters.
        token_ids: of the placeholders of images and videos; one in a completion would stop the next forward.
    """
    bias = {**dict.fromkeys(sorted(token_ids), NEVER), **(generation_kwargs.get("logit_bias") or {})}
    return {**generation_kwargs, "logit_bias": bias} if bias else generation_kwargs


def image_runs(prompt_ids: list[int], image_token_id: int) -> list[tuple[int, int]]:
    """(start, end) of each run of image tokens in a prompt, one run an image."""
    is_image = [False, *(token == image_token_id for token in prompt_ids), False]
    edges = [place for place in range(len(prompt_ids) + 1) if is_image[place] != is_image[place + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def unexpanded(prompt_ids: list[int], image_token_id: int, family: Family) -> list[int]:
    """A prompt as the chat template makes it, with one placeholder an image: what vLLM takes beside images.

    vLLM puts an image's tokens in the place of its placeholder. TRL 1.16 gives a vLLM of its own process the prompts
    in which the processor has done so already; there an image of n tokens becomes a run of 2n - 1, of which the last
    n - 1 hold nothing (TRL issue 6294). A vLLM server takes the images' places from TRL instead.

    Args:
        prompt_ids: with a run of image tokens for each image.
        image_token_id: that token.
        family: of the model, which says what else the processor puts around the run.
    """
    frame = family.image_frame_tokens // 2
    parts, done = [], 0
    for start, end in image_runs(prompt_ids, image_token_id):
        parts += [*prompt_ids[done : start - frame], image_token_id]
        done = end + frame
    return parts + prompt_ids[done:]


def check_own_limits(processor: Any, theirs: Any) -> None:
    """Refuse a vLLM of this process that would see images at another size than the run.

    Args:
        processor: of the run.
        theirs: the checkpoint's own, which vLLM loads.

    Raises:
        ValueError: if their limits differ.
    """
    if image_limits(processor) != image_limits(theirs):
        raise ValueError(
            f"vLLM in this process sees images at the checkpoint's own limits {image_limits(theirs)}, the run at "
            f"{image_limits(processor)}: save the run's limits with the checkpoint's processor, or give them to a "
            "server (vllm_mode='server')."
        )


def check_server_limits(
    client: Any, images: list[list[Image] | None], prompts: list[list[int]], *, image_token_id: int, family: Family
) -> None:
    """Refuse a server that would see some images at another size than the run.

    Args:
        client: TRL's client of the server.
        images: of some prompts.
        prompts: token ids of these, with a run of image tokens for each image.
        image_token_id: that token.
        family: of the model.

    Raises:
        ValueError: for the first image that differs.
    """
    for features, row, prompt in zip(client.image_features(images), images, prompts, strict=True):
        runs = image_runs(prompt, image_token_id)
        found = features["mm_placeholders"]["image"] if features else []
        for (start, end), place, image in zip(runs, found, row or [], strict=True):
            count = place["length"] - family.image_frame_tokens
            if count != end - start:
                raise ValueError(
                    f"The vLLM server makes {count} tokens of an image of {image.width} x {image.height} pixels, the "
                    f"run {end - start}: start the server with the run's limits on images (--mm-processor-kwargs)."
                )


@contextmanager
def lost_server() -> Iterator[None]:
    """Turn what the network says of a lost server into one sentence.

    Raises:
        requests.ConnectionError: as TRL does, if a request fails.
    """
    try:
        yield
    except requests.RequestException as error:
        raise requests.ConnectionError(
            "The vLLM server stopped answering. Start it again, then the same command: it continues from the last "
            f"checkpoint. ({error})"
        ) from error
