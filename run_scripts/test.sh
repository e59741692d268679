#!/usr/bin/env bash
# Lint, types and tests, on a machine with nothing but Python. Arguments go to pytest: `run_scripts/test.sh -m slow`.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

ruff check .
ruff format --check .
python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile "$@"
