"""lmms-eval's own command, wherever ours works: `python -m vlm_entropy.eval.lmms_eval --model vlm_entropy ...`."""

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

from lmms_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
