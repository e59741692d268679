#!/usr/bin/env bash
# GRPO on two screenshots a question with Qwen2.5-VL-3B, as VLM-R1's run_grpo_gui.sh.
# Needs: 8 GPUs; VLM-R1 has 8.
# Memory: not stated; an estimate is 16 GB a GPU, activations aside.
# Hours: not stated.
# Rows: VLM-R1's gui_multi-image.jsonl; any whose `image` is a list of paths.
# Example: DATA=gui_multi-image.jsonl IMAGES=images OUT=checkpoints/gui run_scripts/vlm_r1/multi_image_qwen2_5_vl_3b.sh
# METHOD=two_stage: another method under the same settings, by any name of `--list_methods`.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct} METHOD=${METHOD:-grpo}
smoke_on qwen2_5_vl two_images
train_preset zero3 vlm_r1_gui
