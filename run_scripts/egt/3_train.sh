#!/usr/bin/env bash
# EGT, stage 3: GRPO on the kept pairs in ascending order of entropy. arXiv 2602.01884.
# Needs: 8 GPUs; not stated.
# Memory: not stated; an estimate is 16 GB a GPU for 3 billion parameters, activations aside.
# Hours: not stated.
# Rows: scored_kept.jsonl of 2_curate.sh.
# Example: MODEL=checkpoints/judge_sft DATA=curated/scored_kept.jsonl IMAGES=images OUT=checkpoints/judge \
#     run_scripts/egt/3_train.sh --max_completion_length 1024
# The values are UnifiedReward-Think's; the paper's, and the length, were not found.
# Baselines: METHOD=grpo, egt_random or egt_high_to_low.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

smoke_on qwen2_5_vl scored_pairs
train_preset zero3 egt
