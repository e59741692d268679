#!/usr/bin/env bash
# CalibRL on geometry with Qwen2.5-VL-3B: arXiv 2602.20197, section 4.1 and Appendix B.
# Needs: 8 GPUs; the paper has 8 A800 of 80 GB.
# Memory: not stated; an estimate is 15 GB a GPU, activations aside.
# Hours: not stated.
# Rows: the authors' parquet with GPT-4o's solutions, `data convert --from virl39k`, which puts them into `expert`.
# Example: DATA=train.jsonl IMAGES=images OUT=checkpoints/calibrl run_scripts/calibrl/geometry_qwen2_5_vl_3b.sh
# Baselines: METHOD=grpo, dapo or entropy_bonus; METHOD=kl_cov with --epsilon inf --delta none; METHOD=clip_cov with
# --epsilon 1 --delta none; METHOD=luffy or rl_plus with --expert_column expert --num_generations 11
# --per_device_train_batch_size 11, the expert among them.
# The values are those of the authors' script for Qwen2.5-VL-7B; others were not found.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
smoke_on qwen2_5_vl geometry
train_preset zero3 calibrl
