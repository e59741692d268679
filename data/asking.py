"""Ask a model many prompts: batches by length, on all processes, written as they end, continued after a kill."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from tqdm import tqdm

from .generation import (
    Answer,
    Conversation,
    Decoding,
    answer,
    conversation,
    load_model,
    plan_batches,
    prefetch,
    tokenize,
)
from .image_files import open_image
from .processes import processes
from .resumable import Finished, Line, finish_batches


class Prompt(NamedTuple):
    """A question to a model."""

    messages: list[dict[str, str]]
    """Chat messages of plain text."""
    images: tuple[str | bytes, ...]
    """Paths, or encoded image files; they stand before the text of the first user message."""
    tokens: int
    """Length with its images, to sort by."""


class Engine(Protocol):
    """What answers batches of conversations."""

    def prepare(self, conversations: Sequence[Conversation]) -> Any:
        """The inputs of a batch; called in a thread while another batch is being answered."""

    def answer(self, inputs: Any, *, decoding: Decoding, seed: int) -> list[list[Answer]]:
        """For each prompt its `decoding.samples` answers, the same for the same batch and seed."""


class TransformersEngine:
    """`generate` of transformers, on this process's device."""

    def __init__(
        self,
        name: str,
        processor: Any,
        *,
        revision: str | None = None,
        with_entropy: bool = False,
        with_measures: bool = False,
    ):
        self.model = load_model(name, revision=revision)
        self.processor = processor
        self.measured = {"with_entropy": with_entropy, "with_measures": with_measures}

    def prepare(self, conversations: Sequence[Conversation]) -> Any:
        return tokenize(self.processor, conversations)

    def answer(self, inputs: Any, *, decoding: Decoding, seed: int) -> list[list[Answer]]:
        return answer(self.model, self.processor, inputs, decoding=decoding, seed=seed, **self.measured)


def ask(
    prompts: Sequence[Prompt],
    load: Callable[[], Engine],
    *,
    folder: Path,
    decoding: Decoding,
    batch_size: int,
    seed: int,
    upright: bool,
) -> Finished:
    """The answers to all prompts.

    To be called by all processes together. The batches do not depend on the number of processes, and each has a seed
    of its own, so a run that was killed or split over processes gives the lines of one that was not.

    Args:
        prompts: what to ask.
        load: makes the engine; not called where there is nothing left to ask.
        folder: what `resumable.claim` has checked.
        decoding: how to draw.
        batch_size: answers to draw at a time, on each process; a multiple of `decoding.samples` uses it fully.
        seed: of the draw.
        upright: as in `image_files.open_image`.

    Returns:
        A line for each answer, in no particular order: {"row": place of its prompt, "sample": its number from 0,
        "response", "tokens", "truncated", "entropy"}, and "measures" where the engine measures tokens.
    """
    plan = plan_batches([prompt.tokens for prompt in prompts], max(1, batch_size // decoding.samples))

    def conversations(number: int) -> list[Conversation]:
        return [conversation(prompts[row].messages, _images(prompts[row], upright)) for row in plan[number]]

    def work(numbers: Sequence[int]) -> Iterator[tuple[int, list[Line]]]:
        if not numbers:
            return
        engine = load()
        batches = prefetch(lambda number: engine.prepare(conversations(number)), numbers)
        tokens, start = 0, time.perf_counter()
        with _progress(sum(len(plan[number]) for number in numbers)) as progress:
            for number, inputs in batches:
                answers = engine.answer(inputs, decoding=decoding, seed=seed * len(plan) + number)
                yield number, list(_lines(plan[number], answers))
                tokens += sum(one.tokens for samples in answers for one in samples)
                rate = tokens / (time.perf_counter() - start)
                progress.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
                progress.update(len(plan[number]))

    return finish_batches(folder, len(plan), work)


def _images(prompt: Prompt, upright: bool) -> list[Image.Image]:
    return [open_image(image, upright=upright) for image in prompt.images]


def _lines(rows: Sequence[int], answers: Iterable[Sequence[Answer]]) -> Iterator[Line]:
    for row, samples in zip(rows, answers, strict=True):
        for number, one in enumerate(samples):
            yield {
                "row": row,
                "sample": number,
                "response": one.text,
                "tokens": one.tokens,
                "truncated": one.is_truncated,
                "entropy": one.entropy,
                **({} if one.measures is None else {"measures": [token._asdict() for token in one.measures]}),
            }


def _progress(total: int) -> Any:
    return tqdm(total=total, desc="prompts", unit="prompt", disable=not processes().is_local_main_process)
