#!/usr/bin/env bash
# VLM-R1's referring expressions on 4 GPUs, sampled by a vLLM server on 4 others. SERVER is its address where one is up
# already, as `trl vllm-serve --model MODEL` starts it on another machine too.
# Needs: 8 GPUs, 4 of them for the server, and vLLM: pip install 'trl[vllm]'.
# Memory: not stated; an estimate is 17 GB a training GPU, activations aside.
# Hours: not stated.
# Rows: VLM-R1's own files, or `data convert --from refer`.
# Example: DATA=rec.jsonl IMAGES=train2014 OUT=checkpoints/rec run_scripts/vlm_r1/rec_vllm_server.sh
# METHOD=two_stage: another method under the same settings, by any name of `--list_methods`.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct} METHOD=${METHOD:-grpo}
smoke_on qwen2_5_vl shapes
if [ -z "${SERVER:-}" ]; then
    needs_vllm
    SERVER=http://localhost:8000
    CUDA_VISIBLE_DEVICES=4,5,6,7 trl vllm-serve --model "$MODEL" --data_parallel_size 4 &
    trap 'kill $!' EXIT
fi
NUM_PROCESSES=${NUM_PROCESSES:-4}
# Twice the accumulation keeps the batch of 8 GPUs.
train_preset zero3 vlm_r1_rec --gradient_accumulation_steps 4 \
    --use_vllm true --vllm_mode server --vllm_server_base_url "$SERVER"
