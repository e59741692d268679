#!/usr/bin/env bash
# SaEI on MM-Eureka (K12) with Qwen2.5-VL-7B: arXiv 2512.10414, and NoisyRollout's values where it states none.
# Needs: 8 GPUs, as for the other papers; not stated.
# Memory: not stated; an estimate is 33 GB a GPU, activations aside.
# Hours: not stated.
# Rows: `data convert --from mmk12`.
# Example: DATA=train.jsonl IMAGES=images OUT=checkpoints/saei \
#     run_scripts/saei/mm_eureka_qwen2_5_vl_7b.sh --alpha 0.007843 --num_train_epochs 15
# alpha is 2/255 (0.007843) on one of the two data sets and 3/255 (0.011765) on the other; the paper does not state on
# which. Nor does it state the epochs, of which NoisyRollout has 15 at most.
# Baselines, without --alpha: METHOD=grpo or kl_cov; METHOD=noisy_rollout with --clean_generations 6
# --adversarial_generations 6.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}
smoke_on qwen2_5_vl geometry --alpha 0.007843
train_preset zero3 saei_mm_eureka
