"""A teacher's comparisons that agree with the label, for a warm start: `python -m vlm_entropy.data traces`."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

from vlm_entropy.rewards.parsing import find_answer, find_verdict

from .convert import write_whole
from .noise_files import answer_text, answer_turn
from .pairs import Record, read_records, write_rows

Reason = Literal["no trace", "no verdict", "wrong verdict"]
REASONS: tuple[Reason, ...] = ("no trace", "no verdict", "wrong verdict")


@dataclass
class TracesArguments:
    """Keep the rows whose teacher ended in the verdict of the label, and drop the others."""

    data: str = field(metadata={"help": "JSON Lines of pairs whose teacher has been asked."})
    column: str = field(metadata={"help": "Column of the teacher's text, or of the list of its attempts."})
    out: str = field(metadata={"help": "New file .jsonl to write; the counts go beside it, into .report.json."})


def as_attempts(value: Any) -> list[str]:
    """Return the texts of a cell that holds one, several or none; None and blank texts are none.

    Raises:
        ValueError: for anything but texts.
    """
    attempts = value if isinstance(value, list) else [value]
    for attempt in attempts:
        if attempt is not None and not isinstance(attempt, str):
            raise ValueError(f"the trace is {short(attempt)}; a text, or a list of texts, is needed")
    return [attempt for attempt in attempts if attempt and attempt.strip()]


def faithful_trace(attempts: list[str], label: str) -> tuple[str | None, Reason | None]:
    """Return the first attempt whose verdict is the label; if there is none, None and why.

    The fidelity filter of EGT's first stage (arXiv 2602.01884): a pair is tried a few times, and dropped if the
    teacher never says what the label says. The verdict is the digit in `<answer>` (see `parsing.find_verdict`).

    faithful_trace(["Hm.", "<think>...</think><answer>2</answer>"], "1") is (None, "wrong verdict"), as one of the
    attempts has a verdict.
    """
    verdicts = [find_verdict(find_answer(attempt) or "") for attempt in attempts]
    for attempt, verdict in zip(attempts, verdicts):
        if str(verdict) == label:
            return attempt, None
    if not attempts:
        return None, "no trace"
    return None, "wrong verdict" if any(verdicts) else "no verdict"


def keep_faithful(record: Record, column: str) -> tuple[Record | None, Reason | None]:
    """Return the row with its faithful trace as text in `trace`, in place of the column of attempts; or None and why.

    The row    {"responses": ["A", "B"], "attempts": ["Hm.", "<answer>2</answer>"], "conversations": [..., "2"]}
    becomes    {"responses": ["A", "B"], "trace": "<answer>2</answer>", "conversations": [..., "2"]}

    Raises:
        ValueError: for a trace that is no text, a label that is neither 1 nor 2, or a column `trace` beside `column`.
    """
    if column != "trace" and "trace" in record:
        raise ValueError(f"there is a column trace beside {column!r}; which one is the teacher's?")
    label = answer_text(answer_turn(record)["value"])
    if label not in ("1", "2"):
        raise ValueError(f"the label is {short(label)}; 1 or 2 is needed")
    trace, reason = faithful_trace(as_attempts(record.get(column)), label)
    if trace is None:
        return None, reason
    return {**{name: value for name, value in record.items() if name != column}, "trace": trace}, None


def run(arguments: TracesArguments) -> str:
    """Write the file that `arguments` describe, and the counts beside it; return the lines to print.

    Raises:
        ValueError: for a bad row, with its place, no row that could be kept, or an `out` that exists.
    """
    records = read_records(arguments.data)
    kept: list[Record] = []
    dropped: Counter[Reason | None] = Counter()
    for source, record in records:
        try:
            row, reason = keep_faithful(record, arguments.column)
        except ValueError as error:
            raise ValueError(f"{source}: {error}.") from error
        if row is None:
            dropped[reason] += 1
        else:
            kept.append(row)
    counts = {reason: dropped[reason] for reason in REASONS}
    told = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    if not kept:
        raise ValueError(
            f"No trace in column {arguments.column!r} of {arguments.data!r} agrees with its label: {told}."
        )
    out = write_rows(arguments.out, kept)
    report = Path(arguments.out).with_suffix(".report.json")
    summary = {"data": arguments.data, "column": arguments.column, "rows": len(records), "kept": len(kept)}
    write_whole(report, [json.dumps({**summary, "dropped": counts}, indent=2).encode() + b"\n"])
    return f"wrote {out}: kept {len(kept)} of {len(records)} rows; dropped: {told}\nwrote {report}"
