#!/usr/bin/env bash
# VLM-R1's referring expressions on several machines with 8 GPUs each, by torch elastic: the same command on each, with
# its own MACHINE_RANK, from 0 to NUM_MACHINES - 1. MAIN_IP and MAIN_PORT are where machine 0 listens. OUT, DATA and
# IMAGES are on a file system that all of them see.
# Needs: NUM_MACHINES machines (2) with 8 GPUs each.
# Memory: not stated; an estimate is 12 GB a GPU on two machines, activations aside.
# Hours: not stated.
# Rows: VLM-R1's own files, or `data convert --from refer`.
# Example: MACHINE_RANK=0 MAIN_IP=10.0.0.1 DATA=rec.jsonl IMAGES=train2014 OUT=checkpoints/rec \
#     run_scripts/vlm_r1/rec_multi_node.sh
# METHOD=two_stage: another method under the same settings, by any name of `--list_methods`.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

needs MACHINE_RANK "the number of this machine, 0 for the first"
needs MAIN_IP "the address of machine 0"
MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct} METHOD=${METHOD:-grpo}
NUM_MACHINES=${NUM_MACHINES:-2}
smoke_on qwen2_5_vl shapes
NUM_PROCESSES=${NUM_PROCESSES:-$((8 * NUM_MACHINES))}
machines=(--num_machines "$NUM_MACHINES" --machine_rank "$MACHINE_RANK")
machines+=(--main_process_ip "$MAIN_IP" --main_process_port "${MAIN_PORT:-29500}")
train_preset multi_node vlm_r1_rec
