#!/usr/bin/env bash
# ECVGPO on referring expressions with InternVL3-8B: arXiv 2512.06726, section 5.1 and Table 4.
# Needs: 8 GPUs; the paper has 8 H100 of 80 GB.
# Memory: not stated; an estimate is 46 GB a GPU, activations aside.
# Hours: not stated; within 3 minutes of GRPO's.
# Rows: 5600 from the training splits of RefCOCO, RefCOCO+ and RefCOCOg, `data convert --from refer`.
# Example: DATA=train.jsonl IMAGES=train2014 OUT=checkpoints/rec \
#     run_scripts/ecvgpo/rec_internvl3_8b.sh --num_train_epochs 1
# The paper does not state the epochs. VLM-R1, which it builds on, has 2.
# Baselines: METHOD=grpo, entropy_reward or entropy_advantage.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

MODEL=${MODEL:-OpenGVLab/InternVL3-8B-hf}
smoke_on internvl shapes
train_preset zero2 ecvgpo_internvl3_8b
