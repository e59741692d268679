"""Answers that agree: clusters of equal answers in a group, the majority among them, and how many share each."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from .parsing import read_number

T = TypeVar("T")


def cluster_answers(answers: Sequence[T | None], equal: Callable[[T, T], bool]) -> list[int | None]:
    """Label each answer with its cluster: greedily, in order, it joins the first one whose first member it equals.

    Args:
        answers: one per completion, None for one that could not be parsed.
        equal: `equal(answer, first_member)`; need not be transitive.

    Returns:
        Labels 0, 1, ... in order of appearance, None for None.
    """
    firsts: list[T] = []
    labels: list[int | None] = []
    for answer in answers:
        if answer is None:
            labels.append(None)
            continue
        label = next((label for label, first in enumerate(firsts) if equal(answer, first)), len(firsts))
        if label == len(firsts):
            firsts.append(answer)
        labels.append(label)
    return labels


def majority(labels: Sequence[int | None]) -> int | None:
    """Return the most frequent label, of several the first seen, None if there is none; None does not vote."""
    counts = Counter(label for label in labels if label is not None)
    return max(counts, key=counts.__getitem__, default=None)


def majority_scores(labels: Sequence[int | None]) -> list[float]:
    """TTRL: 1.0 for each answer in the majority's cluster, else 0.0."""
    winner = majority(labels)
    return [float(label is not None and label == winner) for label in labels]


def cluster_shares(labels: Sequence[int | None]) -> list[float]:
    """EMPO: the share of all G completions that are in an answer's cluster, 0.0 for None; None counts in G."""
    counts = Counter(labels)
    return [0.0 if label is None else counts[label] / len(labels) for label in labels]


def text_key(answer: str) -> str | float | None:
    """Return what tells two texts apart: the value of a plain number, else the text, lower case, blanks collapsed.

    None for a blank text.
    """
    number = read_number(answer)
    return " ".join(answer.casefold().split()) or None if number is None else number
