#!/usr/bin/env bash
# LoRA on referring expressions with Qwen2.5-VL-3B, as VLM-R1's run_grpo_rec_lora.sh, the vision tower left as it is.
# Needs: 8 GPUs; VLM-R1 has 8.
# Memory: not stated; an estimate is 8 GB a GPU, activations aside.
# Hours: not stated.
# Rows: VLM-R1's own files, or `data convert --from refer`.
# Example: DATA=rec.jsonl IMAGES=train2014 OUT=checkpoints/rec_lora run_scripts/vlm_r1/rec_lora_qwen2_5_vl_3b.sh
# METHOD=two_stage: another method under the same settings, by any name of `--list_methods`.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct} METHOD=${METHOD:-grpo}
smoke_on qwen2_5_vl shapes
train_preset zero2 vlm_r1_rec --learning_rate 1e-5 --freeze_vision_modules true \
    --use_peft true --lora_r 64 --lora_alpha 128 --lora_dropout 0.05
