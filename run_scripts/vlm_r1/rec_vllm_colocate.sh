#!/usr/bin/env bash
# VLM-R1's referring expressions, sampled by vLLM on the GPUs that train.
# Needs: 8 GPUs, and vLLM: pip install 'trl[vllm]'.
# Memory: not stated; an estimate is 22 GB a GPU, activations aside, and 0.3 of the GPU for vLLM.
# Hours: not stated.
# Rows: VLM-R1's own files, or `data convert --from refer`.
# Example: DATA=rec.jsonl IMAGES=train2014 OUT=checkpoints/rec run_scripts/vlm_r1/rec_vllm_colocate.sh
# METHOD=two_stage: another method under the same settings, by any name of `--list_methods`.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct} METHOD=${METHOD:-grpo}
needs_vllm
smoke_on qwen2_5_vl shapes
train_preset zero2 vlm_r1_rec --use_vllm true --vllm_mode colocate --vllm_gpu_memory_utilization 0.3
