"""What benchmarks share: the message, the span of a response that is read, pixels of the stored image."""

from vlm_entropy.eval.protocols import Item, Message, View
from vlm_entropy.rewards.geometry import Box, to_original
from vlm_entropy.rewards.parsing import find_box


def user_message(text: str) -> list[Message]:
    """Return a conversation of one user message."""
    return [{"role": "user", "content": text}]


def first_answer(text: str) -> str | None:
    """Return what stands between the first `<answer>`, in the thinking too, and the `</answer>` after it, or None.

    As VLM-R1 and UI-R1 read it; `rewards.find_answer` passes over the thinking.
    """
    answer, closed, _ = text.partition("<answer>")[2].partition("</answer>")
    return answer if closed else None


def after_thinking(text: str) -> str:
    """Return what follows the last `</think>`, up to a `<think>` that is never closed; all of a text without tags.

    Without blanks at the ends.
    """
    return text.rpartition("</think>")[2].partition("<think>")[0].strip()


def gold_box(item: Item) -> Box:
    """Return the gold box in pixels of the stored image.

    Raises:
        ValueError: if the item's answer holds no box.
    """
    box = find_box(item.answer)
    if box is None:
        raise ValueError(f"Item {item.id!r} has the answer {item.answer!r}; a box [x1, y1, x2, y2] is needed.")
    return box


def to_pixels(box: Box, item: Item, view: View, *, space: str | None = None) -> Box:
    """Convert a box of an answer to pixels of the stored image, from `space`, or from the space of the model."""
    return to_original(box, space or view.space, image_size=item.image_size, input_size=view.input_size)
