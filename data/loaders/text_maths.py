"""Maths without images: GSM8K, MATH-500 and AMC. The worked solution, where there is one, is the column `expert`."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .records import Record, as_text, kept_columns, make_record, with_ids
from .tables import column, map_rows, read_table


def gsm8k_record(row: Mapping[str, Any]) -> Record:
    r"""Turn a row of openai/gsm8k into a record.

    The row    {"question": "How much?", "answer": "He has 2*600=<<2*600=1200>>1200.\n#### 1,200"}
    becomes    {"conversations": [{"from": "human", "value": "How much?"}, {"from": "gpt", "value": "1200"}],
                "expert": "He has 2*600=<<2*600=1200>>1200."}
    """
    solution = as_text(column(row, "answer"), "answer")
    rationale, mark, answer = solution.rpartition("####")
    if not mark:
        raise ValueError(f"answer is {short(solution)}; the result must stand after ####")
    return make_record(column(row, "question"), answer.replace(",", ""), expert=rationale.strip())


def math500_record(row: Mapping[str, Any]) -> Record:
    r"""Turn a row of HuggingFaceH4/MATH-500 into a record; the LaTeX of the answer stays as it is.

    The row    {"problem": "Halve one.", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}",
                "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}
    becomes    {"id": "test/algebra/1.json", "subject": "Algebra", "level": 2,
                "expert": "It is $\\boxed{\\frac{1}{2}}$.",
                "conversations": [{"from": "human", "value": "Halve one."},
                                  {"from": "gpt", "value": "\\frac{1}{2}"}]}
    """
    columns = kept_columns(row, ("subject", "level"))
    expert = column(row, "solution")
    row_id = column(row, "unique_id")
    return make_record(column(row, "problem"), column(row, "answer"), id=row_id, expert=expert, **columns)


def number_text(value: Any) -> str:
    """Return a number as one writes it: 142.0 is "142", 2.5 is "2.5".

    Raises:
        ValueError: for anything that is no finite number.
    """
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"answer is {short(value)}; a finite number is needed")
    return str(int(value)) if value == int(value) else str(value)


def amc_record(row: Mapping[str, Any]) -> Record:
    """Turn a row of AI-MO/aimo-validation-amc into a record.

    The row    {"id": 0, "problem": "How many?", "answer": 142.0, "url": "https://..."}
    becomes    {"id": 0, "url": "https://...",
                "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "142"}]}
    """
    columns = kept_columns(row, ("id", "url"))
    return make_record(column(row, "problem"), number_text(column(row, "answer")), **columns)


def read_gsm8k(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of GSM8K; see `gsm8k_record`.

    Args:
        path: as in `read_table`; of the hub data set its configuration `main`, of a copy of it the folder `main`.
        split: train (7 473 rows) or test (1 319); None for a file.
        images: not used; there are none.
    """
    rows = read_table(path, split=split, config=None if Path(path).exists() else "main")
    return with_ids(map_rows(rows, lambda row: [gsm8k_record(row)], path=path))


def read_math500(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of MATH-500 (one split, `test`, 500 rows); see `math500_record`.

    Args:
        path, split: as in `read_table`.
        images: not used; there are none.
    """
    return map_rows(read_table(path, split=split), lambda row: [math500_record(row)], path=path)


def read_amc(path: str, *, split: str | None = None, images: str = "") -> Iterator[Record]:
    """Yield the records of AMC (one split, called `train` though it is for validation, 83 rows); see `amc_record`.

    Args:
        path, split: as in `read_table`.
        images: not used; there are none.
    """
    return with_ids(map_rows(read_table(path, split=split), lambda row: [amc_record(row)], path=path))
