#!/usr/bin/env bash
# From nothing to a figure on a CPU in five minutes, by public commands only: pictures with a question each, a tiny
# InternVL with random weights, a supervised warm start, then GRPO and two-stage entropy GRPO for the same steps and
# seed, accuracy on held-out rows, one table. Everything it writes is under runs/demo/, which it replaces.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1  # tensors this small gain nothing from more threads

STEPS=100 SWITCH=65
OUT=runs/demo
rm -rf "$OUT"

say() { printf '\n== %s\n' "$1"; }

CPU=(--use_cpu true --bf16 false --gradient_checkpointing false --report_to none --save_strategy no)
TASK=(--image_folders "$OUT/data/images" --task_type plain)

say "1/5 pictures and questions"
python -m vlm_entropy.data make --task shapes --rows 768 --held_out 512 --objects 1 --seed 1 --out "$OUT/data"

say "2/5 a tiny InternVL"
python -m vlm_entropy.data build --model_type internvl --seed 1 --out "$OUT/random"

say "3/5 warm start: supervised, 240 steps"
python -m vlm_entropy.trainers --method sft --model_name_or_path "$OUT/random" \
    --data_file_paths "$OUT/data/train.jsonl" "${TASK[@]}" --response_column response \
    --per_device_train_batch_size 32 --max_steps 240 --learning_rate 3e-3 --lr_scheduler_type cosine \
    --warmup_steps 20 --logging_steps 50 "${CPU[@]}" --output_dir "$OUT/warm_start"

say "4/5 $STEPS steps of GRPO and of two-stage entropy GRPO"
for method in grpo two_stage; do
    extra=()
    [ "$method" = two_stage ] && extra=(--lambda_max 0.05 --lambda_min 0.05 --switch_step "$SWITCH")
    python -m vlm_entropy.trainers --method "$method" --model_name_or_path "$OUT/warm_start" \
        --data_file_paths "$OUT/data/train.jsonl" "${TASK[@]}" --reward_funcs iou format \
        --per_device_train_batch_size 64 --num_generations 8 --max_completion_length 20 --max_steps "$STEPS" \
        --learning_rate 3e-4 --lr_scheduler_type constant --logging_steps 1 --seed 0 \
        "${CPU[@]}" "${extra[@]}" --output_dir "$OUT/$method"
done

say "5/5 held-out rows, one answer each sampled at temperature 1"
for run in warm_start grpo two_stage; do
    python -m vlm_entropy.eval run --model "$OUT/$run" --bench shapes --data "$OUT/data/heldout.jsonl" \
        --images "$OUT/data/images" --task_type plain --temperature 1 --max_new_tokens 20 --batch_size 64 \
        --out "$OUT/$run"
done
python -m vlm_entropy.eval paired --runs "$OUT/grpo" "$OUT/two_stage"
python -m vlm_entropy.eval report --runs "$OUT/warm_start" "$OUT/grpo" "$OUT/two_stage" --out "$OUT/report"
