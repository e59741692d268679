#!/usr/bin/env bash
# EGT, stage 2: the entropy of the judge's responses to every pair, and the surer half of the pairs. arXiv 2602.01884.
# Needs: 1 to 8 GPUs, which share the rows; not stated.
# Memory: not stated; 2 bytes a parameter, and keys and values of 16 responses.
# Hours: not stated.
# Rows: `data pairs`.
# Example: MODEL=checkpoints/judge_sft DATA=pairs.jsonl IMAGES=images OUT=curated run_scripts/egt/2_curate.sh
# The paper states neither the number of responses nor the share to keep: 4 and 0.5 are ours.
set -euo pipefail
source "$(dirname "$0")/../launch.sh"

smoke_on qwen2_5_vl pairs
curate ddp --samples 4 --keep_fraction 0.5
