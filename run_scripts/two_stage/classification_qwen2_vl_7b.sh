#!/usr/bin/env bash
# Two-stage entropy GRPO on fine-grained classification with Qwen2-VL-7B: arXiv 2511.07738, Table B.1.
# Needs: 8 GPUs; the paper has 8 L20 of 48 GB.
# Memory: not stated; an estimate is 33 GB a GPU, activations aside.
# Hours: about 1.
# Rows: `data convert --from visual_rft_classes`; `data noise --kind class` makes labels wrong.
# Example: DATA=train.jsonl IMAGES=images OUT=runs/classes run_scripts/two_stage/classification_qwen2_vl_7b.sh
# Baselines: METHOD=grpo, entropy_max or entropy_min.
# With which models the paper classified is not known to us.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2-VL-7B-Instruct}
smoke_on qwen2_vl classes
# The paper does not state the length; 256 is that of UI-R1's trainer.
train_preset zero3 two_stage_classification --max_completion_length 256
