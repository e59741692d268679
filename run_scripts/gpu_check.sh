#!/usr/bin/env bash
# Numbers, methods and prompt sharing on one CUDA GPU, without a network: tests/gpu_check.py, as a Markdown report.
# About ten minutes at most; --cpu runs it at tiny sizes. Exits with 1 if something is wrong, with 2 without a GPU.
#
# Where trl or others are missing: WHEELS=DIR bash run_scripts/gpu_check.sh installs all wheels of a folder, beside the
# packages that python3 (or PYTHON) has, torch among them. Filled elsewhere, for the same Python and platform:
#   pip download --no-deps --dest DIR 'trl>=1.16,<1.17' 'transformers>=5.20,<6' 'datasets>=5.2,<6' dill multiprocess
# and accelerate, peft and what else is missing there.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -n "${PYTHON:-}${WHEELS:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
scratch=$(mktemp --directory)
trap 'rm -rf "$scratch"' EXIT

if [ -n "${WHEELS:-}" ]; then
    "$python" -m venv --system-site-packages "$scratch/venv"
    # That of a virtual environment sees the packages of its base, not its own.
    site=$("$scratch/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/parent.pth"
    "$scratch/venv/bin/python" -m pip install --quiet --no-index --no-deps "$WHEELS"/*.whl
    python="$scratch/venv/bin/python"
fi
"$python" -c 'import torch' || { echo "gpu_check needs torch, which $python does not have." >&2; exit 1; }
"$python" -c 'import importlib.util as u, sys; sys.exit(any(u.find_spec(p) is None for p in ("trl", "datasets", "peft")))' ||
    { echo "gpu_check needs trl, datasets and peft; WHEELS=DIR installs them from a folder of wheels." >&2; exit 1; }

ln -s "$PWD" "$scratch/vlm_entropy"
PYTHONPATH=$scratch "$python" tests/gpu_check.py "$@"
