"""Data: files -> rows -> examples, and what a model family needs to know about its images.

    rows, bad_rows = read_rows("train.jsonl", "images", skip_bad_rows=True)
    dataset = build_dataset(rows, family=get_family(config.model_type), processor=processor, task_type="rec")

Importing this package imports neither torch nor transformers nor datasets; the functions that need one import it.
"""

from .examples import build_dataset, check_prompt_fits, prompt_tokens, to_example
from .families import FAMILIES, Family, get_family, set_max_tiles, set_pixel_limits
from .prompts import TEMPLATES, format_question
from .rows import BadRow, Row, read_rows, write_bad_rows

__all__ = [
    "FAMILIES",
    "TEMPLATES",
    "BadRow",
    "Family",
    "Row",
    "build_dataset",
    "check_prompt_fits",
    "format_question",
    "get_family",
    "prompt_tokens",
    "read_rows",
    "set_max_tiles",
    "set_pixel_limits",
    "to_example",
    "write_bad_rows",
]
