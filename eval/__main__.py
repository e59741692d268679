"""Evaluate and compare: `python -m vlm_entropy.eval run --model DIR --bench screenspot --data DIR --out DIR`."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from vlm_entropy.data import torchvision_compat  # noqa: F401  must come before transformers

from trl import TrlParser  # isort: skip

from .arguments import RunArguments, ScoreArguments
from .compare import CompareArguments, compare
from .entropy import EntropyArguments, entropy
from .paired import PairedArguments, SpreadArguments, paired, spread
from .report import ReportArguments, report
from .runner import run, score
from .vlmevalkit import ExportArguments, export

COMMANDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "run": (RunArguments, run),
    "score": (ScoreArguments, score),
    "paired": (PairedArguments, paired),
    "spread": (SpreadArguments, spread),
    "compare": (CompareArguments, compare),
    "entropy": (EntropyArguments, entropy),
    "report": (ReportArguments, report),
    "export": (ExportArguments, export),
}
POSITIONAL = {"compare": "--plan", "report": "--runs"}
"""Flags that may be left out before the first values of a command."""


def main(argv: Sequence[str] | None = None) -> None:
    name, *flags = list(sys.argv[1:] if argv is None else argv) or [""]
    try:
        if name not in COMMANDS:
            raise ValueError(f"unknown command {name!r}; the commands are {', '.join(COMMANDS)}.")
        if name in POSITIONAL and flags and not flags[0].startswith("-"):
            flags.insert(0, POSITIONAL[name])
        arguments_class, command = COMMANDS[name]
        (arguments,) = TrlParser(arguments_class, prog=f"python -m vlm_entropy.eval {name}").parse_args_and_config(
            flags
        )
        command(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"vlm-entropy-eval: {error}") from None


if __name__ == "__main__":
    main()
