#!/usr/bin/env bash
# Two-stage entropy GRPO on GUI grounding with Qwen2.5-VL-3B: arXiv 2511.07738, Table B.1.
# Needs: 8 GPUs; the paper has 8 L20 of 48 GB.
# Memory: not stated; an estimate is 22 GB a GPU, activations aside.
# Hours: about 8.
# Rows: `data convert --from screenspot`, `ui_r1` or `mmbench_gui_l2`; `data noise --kind box` makes labels wrong.
# Example: DATA=train.jsonl IMAGES=images OUT=runs/gui run_scripts/two_stage/gui_qwen2_5_vl_3b.sh
# Baselines: METHOD=grpo, entropy_max or entropy_min.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
smoke_on qwen2_5_vl gui
# The paper does not state the length; 256 is that of UI-R1's trainer.
train_preset zero2 two_stage_gui --max_completion_length 256
