"""What a number was measured with: the weights, and the versions of the code."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlm_entropy.data.models import adapter_base

SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
NO_PART = ("settings.json", "result", "trainer_state.json", "training_args.bin")
"""Files that trainings and evaluations leave beside the weights, by the start of their names."""
PACKAGES = ("vlm-entropy", "torch", "transformers", "trl", "math-verify")


def model_hash(name: str, config: Any) -> str:
    """What makes two checkpoints the same: the commit on the hub, or the first 16 hex digits of a SHA-256.

    The latter is over the names and contents of the weights, configurations and tokenizer in the folder, and for an
    adapter also over the hash of its base. Checkpoints of a run in sub-folders do not count.

    Args:
        name: folder, or name on the hub.
        config: its configuration, as loaded.
    """
    if not Path(name).is_dir():
        return str(config._commit_hash)
    sha = hashlib.sha256()
    for path in sorted(Path(name).iterdir()):
        if path.suffix in SUFFIXES and not path.name.startswith(NO_PART):
            sha.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
    base = adapter_base(name)
    if base is not None:
        sha.update(model_hash(base, config).encode())
    return sha.hexdigest()[:16]


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}
