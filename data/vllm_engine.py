"""Answers by vLLM, where it is installed: the same prompts and decoding as `generation.answer`, other kernels."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .families import vision_token_ids
from .generation import Answer, Conversation, Decoding
from .models import adapter_base

NEVER = -100.0
"""What is added to the logit of a token that must not be sampled."""


def to_prompt(processor: Any, chat: Conversation) -> dict[str, Any]:
    """A conversation as vLLM takes it: the text of the chat template, one placeholder an image, and the images."""
    images: list[Image.Image] = [part["image"] for message in chat for part in message["content"] if "image" in part]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return {"prompt": text, **({"multi_modal_data": {"image": images}} if images else {})}


class VllmEngine:
    """vLLM in this process, on its GPU. Not run on a real vLLM by the tests: they hold it to its documented calls.

    Args:
        name: folder of a checkpoint, or a name on the hub.
        processor: its processor, for the chat template; vLLM loads the one that prepares images itself.
        config: its configuration.
        revision: on the hub.
        max_images: most images of a prompt.

    Raises:
        ValueError: if vLLM is not installed, or for an adapter.
    """

    def __init__(self, name: str, processor: Any, *, config: Any, revision: str | None = None, max_images: int = 1):
        try:
            import vllm
        except ImportError as error:
            raise ValueError(f"--engine vllm needs the package vllm, which cannot be imported: {error}.") from None
        if adapter_base(name) is not None:
            raise ValueError(f"--engine vllm takes whole checkpoints, and {name!r} is an adapter: merge it first.")
        self.sampling_params = vllm.SamplingParams
        self.processor = processor
        self.never = dict.fromkeys(sorted(vision_token_ids(config)), NEVER)
        self.llm = vllm.LLM(
            model=name,
            revision=revision,
            limit_mm_per_prompt={"image": max_images},
            # Otherwise vLLM samples by the checkpoint's own generation settings where a request leaves something open.
            generation_config="vllm",
        )

    def prepare(self, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
        return [to_prompt(self.processor, chat) for chat in conversations]

    def answer(self, inputs: list[dict[str, Any]], *, decoding: Decoding, seed: int) -> list[list[Answer]]:
        parameters = [
            self.sampling_params(
                n=decoding.samples,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                top_k=0,
                max_tokens=decoding.max_new_tokens,
                logit_bias=self.never or None,
                seed=seed * len(inputs) + place,
            )
            for place in range(len(inputs))
        ]
        return [
            [Answer(one.text, len(one.token_ids), one.finish_reason == "length", None) for one in request.outputs]
            for request in self.llm.generate(inputs, parameters, use_tqdm=False)
        ]
