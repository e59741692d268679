"""Requests of lmms-eval as prompts of ours, and our answers in the order of the requests. Needs no lmms-eval.

The `args` of a request are (context, doc_to_messages, generation arguments, doc id, task, split); its messages are
[{"role": "user", "content": [{"type": "image", "url": a PIL image}, {"type": "text", "text": "What is it?"}]}].
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from vlm_entropy.data.generation import Conversation, Decoding, plan_batches
from vlm_entropy.data.prompts import format_question

IGNORED = ("until", "image_aspect_ratio", "num_beams")
"""Stop strings, which lmms-eval's own chat models ignore too and whose default, an empty line, would cut off any
reasoning; a preprocessing of LLaVA; and beams, of which only one is allowed."""
USED = ("max_new_tokens", "do_sample", "temperature", "top_p")
MAX_NEW_TOKENS = 4096
"""Of a task that sets none, as in lmms-eval's chat models."""


class Request(Protocol):
    """`lmms_eval.api.instance.Instance`, as far as it is used."""

    @property
    def args(self) -> tuple[Any, ...]: ...


class Ask(Protocol):
    """Answers a batch of conversations with one text each."""

    def __call__(self, conversations: list[Conversation], *, decoding: Decoding, seed: int) -> list[str]: ...


def decoding_of(arguments: Mapping[str, Any]) -> Decoding:
    """Return what a task's `generation_kwargs` ask for; sampling needs a temperature and no `do_sample: false`.

    Raises:
        ValueError: for several beams, or an argument that is neither `USED` nor `IGNORED`.
    """
    unknown = sorted(arguments.keys() - {*USED, *IGNORED})
    if unknown:
        raise ValueError(f"The task sets {', '.join(unknown)}; only {', '.join(USED)} can be honoured.")
    if (arguments.get("num_beams") or 1) != 1:
        raise ValueError(f"The task wants num_beams {arguments['num_beams']}; only 1 can be honoured.")
    temperature = float(arguments.get("temperature") or 0) if arguments.get("do_sample") is not False else 0.0
    top_p = float(arguments.get("top_p") or 1) if temperature else 1.0
    return Decoding(int(arguments.get("max_new_tokens") or MAX_NEW_TOKENS), temperature, top_p)


def conversation_of(messages: Sequence[Mapping[str, Any]], task_type: str) -> Conversation:
    """Turn messages of lmms-eval into a conversation, with our prompt template around the text of the last user turn.

    [{"role": "user", "content": [{"type": "image", "url": IMAGE}, {"type": "text", "text": "Red?"}]}]
    becomes, for a template "{Question} Think first.",
    [{"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "Red? Think first."}]}]
    with the image as RGB. Of several texts between images the template's start precedes the first, its end follows
    the last.

    Raises:
        ValueError: for a video or sound, an unknown template, or a last user turn without text.
    """
    chat = [{"role": turn["role"], "content": [_part(part) for part in turn["content"]]} for turn in messages]
    last = [turn for turn in chat if turn["role"] == "user"][-1:]
    texts = [part for turn in last for part in turn["content"] if part["type"] == "text"]
    if not texts:
        raise ValueError("The task asks nothing: its last user turn has no text.")
    before, after = format_question("\0", task_type).split("\0")
    texts[0]["text"] = before + texts[0]["text"]
    texts[-1]["text"] += after
    return chat


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise ValueError(f"The task shows a {part['type']}; only images and text can be answered.")
    return {"type": "image", "image": part["url"].convert("RGB")}


def answer_requests(
    requests: Sequence[Request],
    documents: Mapping[str, Mapping[str, Any]],
    ask: Ask,
    *,
    batch_size: int,
    task_type: str,
    seed: int,
) -> list[str]:
    """Answer requests in batches of equal decoding, those with the longest texts first.

    Args:
        requests: of lmms-eval.
        documents: its `task_dict`, {task: {split: documents}}.
        ask: answers a batch.
        batch_size: requests of a batch.
        task_type: prompt template, a key of `data.TEMPLATES`.
        seed: of sampled answers; each batch gets one of its own.

    Returns:
        The answers in the order of the requests.
    """
    answers: dict[int, str] = {}
    for number, (decoding, places) in enumerate(_batches(requests, batch_size)):
        conversations = []
        for place in places:
            _, to_messages, _, document, task, split = requests[place].args
            conversations.append(conversation_of(to_messages(documents[task][split][document]), task_type))
        texts = ask(conversations, decoding=decoding, seed=seed + number)
        answers |= zip(places, texts, strict=True)
    return [answers[place] for place in range(len(requests))]


def _batches(requests: Sequence[Request], batch_size: int) -> Iterator[tuple[Decoding, list[int]]]:
    groups: dict[Decoding, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        groups[decoding_of(request.args[2])].append(place)
    for decoding, places in groups.items():
        for batch in plan_batches([len(requests[place].args[0]) for place in places], batch_size):
            yield decoding, [places[row] for row in batch]
