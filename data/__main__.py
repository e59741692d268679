"""`python -m vlm_entropy.data COMMAND --flag value ...`: make, convert, check or spoil data, or build a tiny model.

A command is a dataclass of arguments and a function from it to the text to print (none on other processes than the
first), in `COMMANDS`.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from . import convert, curate, make, noise_files, pairs, preflight, traces

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

PROGRAM = "vlm-entropy-data"


@dataclass
class BuildArguments:
    """Build a tiny vision-language model with random weights and save it like any checkpoint."""

    model_type: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "glm4v"] = field(
        metadata={"help": "Architecture; it also decides the coordinate space of the boxes."}
    )
    out: str = field(metadata={"help": "Checkpoint folder; files of the same names are replaced."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights."})
    hidden_size: int = field(
        default=64, metadata={"help": "Width of both towers, a multiple of 16; larger learns more and runs slower."}
    )
    layers: int = field(default=2, metadata={"help": "Layers of each tower; more learn more and run slower."})
    image_size: int = field(
        default=32, metadata={"help": "Side in pixels of the images it is meant for, a multiple of two patches."}
    )
    patch_size: int = field(
        default=8, metadata={"help": "Side of a vision patch in pixels; smaller sees more detail and runs slower."}
    )
    largest_number: int = field(
        default=1000,
        metadata={
            "help": "Whole numbers up to this one are a single token each; smaller makes the output layer faster. "
            "Relative coordinates need 1000, pixel coordinates the image size."
        },
    )
    words: list[str] = field(
        default_factory=list,
        metadata={"help": "Further words that are one token each; those of a task make its texts shorter."},
    )


def build(arguments: BuildArguments) -> str:
    """Build the model that `arguments` describe; return the line to print."""
    from .tiny import build_tiny_vlm

    options = dict(vars(arguments))
    folder = build_tiny_vlm(options.pop("model_type"), options.pop("out"), **options)
    return f"wrote {folder}: {arguments.model_type} with random weights, and its processor"


COMMANDS: dict[str, tuple[Any, Callable[[Any], str]]] = {
    "make": (make.MakeArguments, make.run),
    "build": (BuildArguments, build),
    "convert": (convert.ConvertArguments, convert.run),
    "check": (preflight.CheckArguments, preflight.run),
    "noise": (noise_files.NoiseArguments, noise_files.run),
    "pairs": (pairs.PairsArguments, pairs.run),
    "traces": (traces.TracesArguments, traces.run),
    "curate": (curate.CurateArguments, curate.run),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command; a bad value ends the program with one sentence and no traceback."""
    from trl import TrlParser

    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv else "no command"
    if command not in COMMANDS:
        raise SystemExit(f"{PROGRAM}: unknown command {command!r}; the commands are {', '.join(COMMANDS)}")
    arguments_class, run = COMMANDS[command]
    try:
        parser = TrlParser(arguments_class, prog=f"{PROGRAM} {command}")
        (arguments,) = parser.parse_args_and_config(argv[1:])
        if text := run(arguments):
            print(text)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{PROGRAM}: {error}") from None


if __name__ == "__main__":
    main()
