"""The table of methods and baselines, made from the code: `python -m vlm_entropy.trainers --list_methods`."""

from dataclasses import MISSING, fields
from typing import Any

from trl import SFTConfig

from .base import EntropyGRPOConfig
from .methods import METHODS, Method
from .presets import PRESETS

HEADER = ("--method", "source", "what it changes in GRPO", "extra passes", "options and their defaults")


def methods_table() -> str:
    """The table in Markdown, a line per name of `--method`; presets show what they stand for among the options."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for name, method in METHODS.items():
        lines.append((f"`{name}`", method.source, method.changes, method.extra_passes, _method_options(method)))
    for name, preset in PRESETS.items():
        options = f"= `{' '.join([f'--method {preset.method}', *map(_flag, preset.options.items())])}`"
        passes = METHODS[preset.method].extra_passes
        lines.append((f"`{name}`", preset.source, preset.changes, passes, options))
    return "\n".join(_line(cells) for cells in lines)


def _line(cells: tuple[str, ...]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _method_options(method: Method) -> str:
    """Options that the method adds to TRL's, or whose defaults it changes."""
    base: Any = EntropyGRPOConfig if issubclass(method.config, EntropyGRPOConfig) else SFTConfig
    inherited = {field.name: field.default for field in fields(base)}
    own = [field for field in fields(method.config) if inherited.get(field.name, MISSING) != field.default]
    return ", ".join(f"`{_flag((field.name, field.default))}`" for field in own if field.default is not MISSING)


def _flag(option: tuple[str, Any]) -> str:
    name, value = option
    if isinstance(value, float):
        return f"--{name} {value:.4g}"
    values = value if isinstance(value, list) else [] if value is None else [value]
    return " ".join([f"--{name}", *map(str, values)])
