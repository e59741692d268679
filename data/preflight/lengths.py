"""Preflight of lengths: tokens of prompts, images and experts, against the model's context."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vlm_entropy.data.rows import Row
from vlm_entropy.rewards.parsing import find_box

from .report import Section, listed, rows_of, spread
from .rewards import Example, to_answer, whole_numbers

BOX = "{box}"


class Experts(NamedTuple):
    """Tokens of each expert response that is not blank, and the sources of the rows whose response is unusable."""

    lengths: list[int]
    unusable: list[str]


def expert_text(expert: Any, gold: str | None) -> str | None:
    """Text of an expert response; "" for none, None for what is no response.

    Args:
        expert: text, or a chat of one assistant message.
        gold: what `{box}` in a plain text stands for; without it such a text is no response.
    """
    match expert:
        case None | []:
            return ""
        case str():
            return expert if BOX not in expert else None if gold is None else expert.replace(BOX, gold)
        case [{"role": "assistant", "content": str() as text}]:
            return text
        case [{"role": "assistant", "content": [{"type": "text", "text": str() as text}]}]:
            return text
    return None


def measure_experts(rows: Sequence[Row], examples: Sequence[Example], column: str, *, tokenizer: Any) -> Experts:
    """Count the tokens of each expert, the end of its turn included, as a sampled completion has them.

    `{box}` in a text counts as the row's gold box in whole numbers of the answer's space.
    """
    experts = Experts([], [])
    for row, example in zip(rows, examples, strict=True):
        box = None if example["image_size"] is None else find_box(row.answer)
        gold = None if box is None else whole_numbers(to_answer(box, example))
        text = expert_text(row.columns.get(column), gold)
        if text is None:
            experts.unusable.append(row.source)
        elif text.strip():
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            experts.lengths.append(len(ids) + (ids[-1] != tokenizer.eos_token_id))
    return experts


def lengths_section(
    rows: Sequence[Row],
    tokens: Sequence[tuple[int, int]],
    experts: Experts | None,
    *,
    context_length: int,
    max_completion_length: int,
) -> Section:
    """Lengths in tokens, and the rows whose prompt leaves less than `max_completion_length` of the context.

    Args:
        rows: the rows.
        tokens: `prompt_tokens` of each: (prompt with image tokens, image tokens).
        experts: of the rows, None without an expert column.
        context_length: tokens the model can attend to.
        max_completion_length: tokens kept free for the completion.
    """
    room = context_length - max_completion_length
    too_long = [row.source for row, (prompt, _) in zip(rows, tokens, strict=True) if prompt > room]
    section = Section("Tokens")
    section.lines += [
        f"prompt with image tokens: {spread([prompt for prompt, _ in tokens])}",
        f"image tokens: {spread([images for _, images in tokens])}",
        f"room for the prompt: {room} = context {context_length} - max_completion_length {max_completion_length}",
    ]
    if too_long:
        section.lines.append(f"do not fit: {listed(too_long)}")
        section.failures.append(f"rows that do not fit into the context: {len(too_long)}")
    if experts is not None:
        _add_experts(section, experts, max_completion_length)
    return section


def _add_experts(section: Section, experts: Experts, max_completion_length: int) -> None:
    if experts.unusable:
        section.lines.append(f"unusable experts: {listed(experts.unusable)}")
        section.failures.append(f"rows with an expert that is no response: {len(experts.unusable)}")
    if not experts.lengths:
        section.failures.append("no row has an expert")
        return
    section.lines.append(f"expert, in {rows_of(len(experts.lengths))}: {spread(experts.lengths)}")
    cut = sum(length > max_completion_length for length in experts.lengths)
    if cut:
        section.warnings.append(f"experts longer than max_completion_length, which would be cut: {cut}")
