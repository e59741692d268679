#!/usr/bin/env bash
# ECVGPO on referring expressions with Qwen2.5-VL-3B: arXiv 2512.06726, section 5.1 and Table 4.
# Needs: 8 GPUs; the paper has 8 H100 of 80 GB.
# Memory: not stated; an estimate is 16 GB a GPU, activations aside.
# Hours: 3.3, as GRPO.
# Rows: 5600 from the training splits of RefCOCO, RefCOCO+ and RefCOCOg, `data convert --from refer`.
# Example: DATA=train.jsonl IMAGES=train2014 OUT=checkpoints/rec \
#     run_scripts/ecvgpo/rec_qwen2_5_vl_3b.sh --num_train_epochs 1
# The paper does not state the epochs. VLM-R1, which it builds on, has 2.
# Baselines: METHOD=grpo, entropy_reward or entropy_advantage.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
smoke_on qwen2_5_vl shapes
train_preset zero3 ecvgpo_qwen2_5_vl_3b
