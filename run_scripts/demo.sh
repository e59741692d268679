#!/usr/bin/env bash
# From nothing to a comparison on a CPU in ten minutes, by public commands only: pictures of flowers to name, half of
# the training labels wrong, a tiny InternVL with random weights, a supervised warm start, then GRPO and the five methods
# for the same steps and seed, accuracy on held-out rows, one table, one report. `--quick` takes three minutes: a quarter
# of the steps. Everything it writes is under runs/demo/ or runs/demo_quick/, which it replaces; it is a plan that
# `python -m vlm_entropy.eval compare` runs, as it runs yours.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1  # tensors this small gain nothing from more threads

case "${1:-}" in
    "") NAME=demo ;;
    --quick) NAME=demo_quick ;;
    *) echo "demo.sh takes --quick or nothing, and got $1." >&2; exit 1 ;;
esac

rm -rf "runs/$NAME"
python -m vlm_entropy.eval compare "run_scripts/plans/$NAME.yaml" --jobs 2
