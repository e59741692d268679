#!/usr/bin/env bash
# EGT, stage 1: a judge of pairs learns the reasoning of a teacher that agrees with the labels. arXiv 2602.01884.
# Needs: 8 GPUs; not stated.
# Memory: not stated; an estimate is 14 GB a GPU for 3 billion parameters, activations aside.
# Hours: not stated.
# Rows: `data pairs`, then `data traces`, which keeps the pairs whose teacher is right, its text in `trace`.
# Example: MODEL=Qwen/Qwen2.5-VL-3B-Instruct DATA=cold_start.jsonl IMAGES=images OUT=checkpoints/judge_sft \
#     run_scripts/egt/1_cold_start.sh --num_train_epochs 1 --learning_rate 1e-5
# Model, epochs and rate of the paper were not found; those of the example are ours.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

smoke_on qwen2_5_vl pairs
train zero2 --method sft --response_column trace --per_device_train_batch_size 8
