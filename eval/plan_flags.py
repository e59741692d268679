"""Whether the commands of a plan would take their flags, asked of the commands' own parsers."""

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import ModelConfig, TrlParser

from vlm_entropy.trainers.arguments import RunArguments as TrainingArguments
from vlm_entropy.trainers.methods import get_method, preset_options
from vlm_entropy.trainers.vlm_r1 import VlmR1Arguments

from .arguments import ROWS
from .benchmarks import BENCHMARKS

Flags = dict[str, Any]
"""Options of a command by name, as in a file for --config."""


class _Parser(TrlParser):
    """TRL's, which raises where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def command_flags(flags: Mapping[str, Any]) -> list[str]:
    """The command line of flags: True and False in small letters, lists as several words, mappings as JSON."""
    return [part for name, value in flags.items() for part in _words(name, value)]


def _words(name: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    yield f"--{name}"
    if isinstance(value, dict):
        yield json.dumps(value)
    elif isinstance(value, list):
        yield from map(str, value)
    else:
        yield str(value).lower() if isinstance(value, bool) else str(value)


def _groups(method: str) -> tuple[Any, ...]:
    return TrainingArguments, get_method(method).config, ModelConfig, VlmR1Arguments


def option_names(flags: Mapping[str, Any]) -> set[str]:
    """Every option of the training command with the method of these flags.

    Raises:
        ValueError: for an unknown method.
    """
    return {"config", *(option.name for group in _groups(str(flags["method"])) for option in fields(group))}


def check_training(name: str, flags: Sequence[str]) -> None:
    """Raise `ValueError`, naming the method of the plan, for a flag or value that the training command would refuse.

    What depends on the device, the number of processes or the data is left to the command, unless it is to use the
    CPU.
    """
    known, _ = _paths().parse_known_args(list(flags))
    settings = _settings(known.config) if known.config else {}
    parser = _Parser(_groups(known.method), allow_abbrev=False)
    parser.set_defaults_with_config(**preset_options(known.method))
    unknown = parser.set_defaults_with_config(**settings)
    try:
        if unknown:
            raise ValueError(f"{known.config} sets {unknown[0].lstrip('-')}, which {known.method} does not have")
        given = [part for part in flags if part != "--config"]
        if known.config:
            given.remove(known.config)
        parsed = argparse.ArgumentParser.parse_args(parser, given)
        missing = [option for option in parsed.left_to_user or () if f"--{option}" not in given]
        if missing:
            raise ValueError(f"the paper does not state {', '.join(missing)}: the plan has to")
        if parsed.use_cpu:
            with warnings.catch_warnings(action="ignore"):  # the training says them
                parser.parse_args_into_dataclasses(given)
    except ValueError as error:
        raise ValueError(f"methods: {name}: {str(error).rstrip('.')}.") from None


def _paths() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--method", "--config"):
        parser.add_argument(flag)
    return parser


def _settings(path: str) -> dict[str, Any]:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def check_asking(name: str, flags: Any, arguments: Any) -> None:
    """Raise `ValueError` for flags that `eval run` or `eval entropy` would refuse.

    Args:
        name: of the flags in the plan.
        flags: what stands there.
        arguments: class of the command's arguments, whose model and folder a comparison sets.
    """
    if not isinstance(flags, dict) or not flags:
        raise ValueError(f"{name} must be a mapping of flags, got {flags!r}.")
    known = {option.name for option in fields(arguments)} - {"model", "out"}
    for option in flags:
        if option not in known:
            raise ValueError(f"{name} sets {option}, which is no option that a plan may set there.")
    parser: Any = _Parser(arguments, allow_abbrev=False)
    try:
        parser.parse_args_into_dataclasses(command_flags({**flags, "model": "m", "out": "o"}))
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).rstrip('.')}.") from None
    bench = flags.get("bench", "rows")
    if bench not in (*ROWS, *BENCHMARKS):
        raise ValueError(f"{name}: bench is {bench!r}; allowed are {', '.join([*ROWS, *BENCHMARKS])}.")
