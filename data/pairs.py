"""The question of which response is better, and the order the two stand in: `python -m vlm_entropy.data pairs`.

Training, evaluation and the synthetic task ask with `pairwise_question`. A file in which the better response tends to
come first teaches to say "1"; `ordered_rows` gives each place half of them.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .convert import write_whole
from .files import RowError, read_items
from .noise import noisy_preference
from .noise_files import answer_text, answer_turn, with_answer

Record = dict[str, Any]
ORDERS = ("12", "21")
"""The places of the source's responses, "21" if they have changed places."""


@dataclass
class PairsArguments:
    """Write preference pairs as pairwise questions, the better response first in half of the rows, at random."""

    data: str = field(metadata={"help": "JSON Lines with `responses` and the label 1 or 2, as `convert` writes them."})
    out: str = field(metadata={"help": "New file .jsonl to write."})
    seed: int = field(
        default=0, metadata={"help": "Of the order; the same one gives the same rows, another another order."}
    )


def pairwise_question(question: str, responses: Sequence[str]) -> str:
    """The judge's question about two responses."""
    return (
        f"Question: {question}\nResponse 1: {responses[0]}\nResponse 2: {responses[1]}\n"
        "Which response is better, 1 or 2?"
    )


def flip(label: str) -> str:
    """The label of a pair whose responses change places: "1" for "2" and "2" for "1".

    Raises:
        ValueError: for any other label.
    """
    return noisy_preference(label)


def balanced(rng: random.Random, count: int) -> list[bool]:
    """`count` truth values in random order, as many True as False (one more True if `count` is odd)."""
    values = [place % 2 == 0 for place in range(count)]
    rng.shuffle(values)
    return values


def two_responses(columns: Mapping[str, Any]) -> list[str]:
    """Return the column `responses`.

    Raises:
        ValueError: if it is missing or not two texts.
    """
    responses = columns.get("responses")
    if not isinstance(responses, list) or [type(response) for response in responses] != [str, str]:
        raise ValueError(f"responses is {short(responses)}; two texts are needed")
    return responses


def ordered_row(record: Record, *, right_first: bool) -> Record:
    r"""Return a row that asks which of its two responses is better, the better one in the place that is given.

    With right_first the row
               {"image": "a.jpg", "responses": ["A cat.", "A dog."],
                "conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "2"}]}
    becomes    {"image": "a.jpg", "question": "What is it?", "responses": ["A dog.", "A cat."], "order": "21",
                "conversations": [{"from": "human", "value": "<image>Question: What is it?\n..."},
                                  {"from": "gpt", "value": "1"}]}
    A column `question`, as the synthetic pairs have it, is the question itself; otherwise the human turn is. Other
    columns that speak of the responses, such as `models`, stay in the source's order.

    Raises:
        ValueError: for responses that are not two texts, a label that is neither 1 nor 2, no question, or a row that
            has a trace (which speaks of the responses as they stand) or an order already.
    """
    for column, advice in (
        ("trace", "order the pairs first, then ask the teacher"),
        ("order", "start from the file that convert wrote"),
    ):
        if column in record:
            raise ValueError(f"there is a column {column} already; {advice}")
    row = deepcopy(record)
    responses, turn = two_responses(row), answer_turn(row)
    swapped = flip(answer_text(turn["value"])) == ("1" if right_first else "2")
    human = next(spoken for spoken in row["conversations"] if spoken.get("from") != "system")
    text = human["value"] if isinstance(human.get("value"), str) else ""
    question = row.get("question", text.replace("<image>", "").strip())
    if not isinstance(question, str) or not question:
        raise ValueError(f"the question is {short(question)}; a text is needed")
    responses = responses[::-1] if swapped else responses
    human["value"] = "<image>" * text.count("<image>") + pairwise_question(question, responses)
    turn["value"] = with_answer(turn["value"], "1" if right_first else "2")
    return {**row, "question": question, "responses": responses, "order": ORDERS[swapped]}


def ordered_rows(records: Iterable[Record], seed: int) -> list[Record]:
    """Return the rows of `ordered_row`, the better response first in half of them, in the order of the records.

    Whoever always says "1" is right in half of the rows, in one row more than that if their number is odd.

    Args:
        records: with `responses` and the answer 1 or 2.
        seed: of the order, independent of Python's global generator.

    Raises:
        ValueError: for the first record that `ordered_row` refuses, with its number from 1.
    """
    records = list(records)
    rows = []
    for number, (record, right_first) in enumerate(zip(records, balanced(random.Random(seed), len(records))), start=1):
        try:
            rows.append(ordered_row(record, right_first=right_first))
        except ValueError as error:
            raise ValueError(f"pair {number}: {error}.") from error
    return rows


def read_records(path: str) -> list[tuple[str, Record]]:
    """Return (source, record) of each row of a data file of VLM-R1, see `files.read_items`.

    Raises:
        ValueError: for a file without rows, or a row that is no JSON object.
    """
    items = list(read_items(path))
    for source, record in items:
        if not isinstance(record, dict):
            reason = record if isinstance(record, RowError) else f"the row is {short(record)}; an object is needed."
            raise ValueError(f"{source}: {reason}")
    if not items:
        raise ValueError(f"There is no row in {path!r}.")
    return items


def write_rows(out: str, rows: Iterable[Record]) -> Path:
    """Write rows as JSON Lines, whole or not at all.

    Raises:
        ValueError: for a file that exists.
    """
    path = Path(out)
    if path.exists():
        raise ValueError(f"{out!r} exists; remove it or name another.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows))
    return path


def run(arguments: PairsArguments) -> str:
    """Write the file that `arguments` describe; return the lines to print."""
    records = [record for _, record in read_records(arguments.data)]
    try:
        rows = ordered_rows(records, arguments.seed)
    except ValueError as error:
        raise ValueError(f"{arguments.data}: {error}") from error
    out = write_rows(arguments.out, rows)
    swapped = sum(row["order"] == "21" for row in rows)
    return (
        f"wrote {out}: {len(rows)} pairs, the better response first in {(len(rows) + 1) // 2}, "
        f"{swapped} pairs have changed places"
    )
