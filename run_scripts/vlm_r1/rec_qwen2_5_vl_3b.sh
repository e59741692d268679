#!/usr/bin/env bash
# GRPO on referring expressions with Qwen2.5-VL-3B, as VLM-R1's run_grpo_rec.sh.
# Needs: 8 GPUs; VLM-R1 has 8.
# Memory: not stated; an estimate is 16 GB a GPU, activations aside.
# Hours: not stated.
# Rows: VLM-R1's own files, or `data convert --from refer`.
# Example: DATA=rec.jsonl IMAGES=train2014 OUT=checkpoints/rec run_scripts/vlm_r1/rec_qwen2_5_vl_3b.sh
# METHOD=two_stage: another method under the same settings, by any name of `--list_methods`.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct} METHOD=${METHOD:-grpo}
smoke_on qwen2_5_vl shapes
train_preset zero3 vlm_r1_rec
