"""Merge an adapter into its base: `python -m vlm_entropy.trainers.merge --adapter DIR --out DIR`."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

from peft import PeftModel
from transformers import AutoModelForImageTextToText

from vlm_entropy.data.models import adapter_base, load_description

PROGRAM = "vlm-entropy-merge"


def merge(adapter: str, out: str) -> Path:
    """Write a plain checkpoint, with its processor, that computes what a base and its adapter compute.

    W' = W + (α / r) · B A   for LoRA, in the dtype of the base's weights, to which the sum is rounded. The adapter of
    a quantised base goes into the weights before quantisation.

    Args:
        adapter: folder of a PEFT adapter, such as the output folder of a run with --use_peft, or a checkpoint in it.
        out: folder to make. It appears only once it is complete.

    Returns:
        `out` as a path.

    Raises:
        ValueError: if `out` exists, or there is no adapter, no base, or no base of a family we know.
    """
    folder = Path(out)
    if folder.exists():
        raise ValueError(f"--out {out!r} exists already; name a new folder.")
    base = adapter_base(adapter)
    if base is None:
        raise ValueError(f"--adapter {adapter!r} is no folder of an adapter: it has no adapter_config.json.")
    _, processor = load_description(adapter, flag=f"The base {base!r} of --adapter")
    try:
        network: Any = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The base {base!r} of --adapter {adapter!r} cannot be loaded: {reason}") from None
    merged = PeftModel.from_pretrained(network, adapter).merge_and_unload()  # type: ignore[operator]
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    merged.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    return unfinished.rename(folder)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Merge an adapter into its base.")
    parser.add_argument("--adapter", required=True, help="Folder of the adapter; it names its base.")
    parser.add_argument("--out", required=True, help="Folder for the checkpoint; must not exist.")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    try:
        folder = merge(arguments.adapter, arguments.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{PROGRAM}: {error}") from None
    print(f"wrote {folder}: {arguments.adapter} merged into {adapter_base(arguments.adapter)}")


if __name__ == "__main__":
    main()
