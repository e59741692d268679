#!/usr/bin/env bash
# What the launch scripts share. A script sources it, says what --smoke runs on, and trains:
#
#     source "$(dirname "$0")/../launch.sh"
#     smoke_on qwen2_5_vl gui
#     train_preset zero2 two_stage_gui --max_completion_length 256
#
# The user gives, in the environment:
#     MODEL          folder of a checkpoint or its name on the hub; a script of one model has its name as default
#     DATA, IMAGES   JSON Lines files, and a folder for each that its image paths start from; several joined by ':'
#     OUT            folder to write to; the same command again continues there
#     NUM_PROCESSES  GPUs on all machines together; 8, which the batch sizes of the papers are made for
#     METHOD         another method under the same settings; `grpo` is the paper's baseline at equal rollouts
# Arguments go on to the trainer, after the script's own, and win over them.
#
# With --smoke as first argument the same command runs on a CPU: same method, preset, flags and launcher, with a tiny
# model of the family and drawn data. What it changes stands in the `smoke_...` lines below, and nowhere else:
#     device    CPU, no bf16, PyTorch's attention, in the trainer and in a copy of the accelerate file; one process, or
#               NUM_PROCESSES
#     steps     2, logged one by one, no checkpoints, no report
#     sizes     one group of completions per process and step, 16 tokens each; images of Qwen of 256 to 16 384 pixels
# SMOKE_DIR is where it keeps models and data, for the next smoke too; each run there starts anew.
set -euo pipefail

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$(basename "$(realpath "$(dirname "$0")")")/$(basename "$0" .sh)
export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

is_smoke=""
[ "${1:-}" = --smoke ] && is_smoke=1 && shift
arguments=("$@")
machines=()

smoke_yaml='s/^mixed_precision: .*/mixed_precision: "no"\nuse_cpu: true/'
smoke_device=(--use_cpu true --bf16 false --attn_implementation sdpa)
smoke_steps=(--max_steps 2 --num_train_epochs 1 --logging_steps 1 --save_strategy no --report_to none)
smoke_group=(--gradient_accumulation_steps 1 --steps_per_generation 1 --max_completion_length 16)
smoke_pixels=(--min_pixels 256 --max_pixels 16384)
smoke_curate=(--samples 2 --max_new_tokens 16)
smoke_given=()

# The environment that is active, if this package is in it; else .venv, which setup.sh makes.
has() {
    python -c 'import importlib.util as u, sys; sys.exit(None in map(u.find_spec, sys.argv[1:]))' "$@" 2> /dev/null
}
if ! has vlm_entropy accelerate; then
    cwd=$PWD
    source "$folder/setup.sh"
    cd "$cwd"
fi

stop() {
    echo "$name: $1" >&2
    exit 1
}

# needs VARIABLE WHAT: stop unless the environment has it.
needs() { [ -n "${!1+given}" ] || stop "$1 is missing: $2."; }

needs_vllm() { has vllm || stop "vLLM is not installed, and this script samples with it: pip install 'trl[vllm]'."; }

# make_once FOLDER COMMAND FLAG...: what `python -m vlm_entropy.data COMMAND` writes, unless it is there.
make_once() {
    [ ! -e "$1" ] || return 0
    python -m vlm_entropy.data "${@:2}" --out "$1.$$"
    mv --no-target-directory "$1.$$" "$1" 2> /dev/null || rm -r "$1.$$" # another smoke was faster
}

# smoke_on FAMILY TASK FLAG...: with --smoke, a tiny model and drawn rows take the place of what the user gives, and
# the flags that of what a paper leaves to the user. Two tasks are made from others: `two_images` shows each picture of
# `classes` twice, `scored_pairs` gives each row of `pairs` an entropy.
smoke_on() {
    [ -n "$is_smoke" ] || return 0
    export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
    local task=$2 edit=""
    [ "$2" = two_images ] && task=classes edit='s/"image": ("[^"]*")/"image": [\1, \1]/'
    [ "$2" = scored_pairs ] && task=pairs edit='s/"id": ([0-9]*)/&, "response_entropy": \1/'
    SMOKE_DIR=${SMOKE_DIR:-$folder/../runs/smoke}
    mkdir -p "$SMOKE_DIR/out/${name%/*}"
    make_once "$SMOKE_DIR/$1" build --model_type "$1"
    make_once "$SMOKE_DIR/$task" make --task "$task" --rows 16 --seed 0
    MODEL=$SMOKE_DIR/$1 IMAGES=$SMOKE_DIR/$task/images OUT=$SMOKE_DIR/out/$name
    DATA=$OUT${MACHINE_RANK:-}.jsonl
    sed -E "$edit" "$SMOKE_DIR/$task/train.jsonl" > "$DATA"
    [ "${MACHINE_RANK:-0}" != 0 ] || rm -rf "$OUT"
    NUM_PROCESSES=${NUM_PROCESSES:-${NUM_MACHINES:-1}}
    [ "$1" != internvl ] || smoke_pixels=()
    smoke_given=("${@:3}")
}

check_paths() {
    needs MODEL "the folder of a checkpoint, or its name on the hub"
    needs DATA "a JSON Lines file"
    needs IMAGES "the folder that the image paths of DATA start from"
    needs OUT "the folder to write to"
}

# launch FILE MODULE FLAG...: `accelerate launch` of a module by accelerate/FILE.yaml.
launch() {
    local settings=$folder/accelerate/$1.yaml
    if [ -n "$is_smoke" ]; then
        sed "$smoke_yaml" "$settings" > "$OUT${MACHINE_RANK:-}.yaml"
        settings=$OUT${MACHINE_RANK:-}.yaml machines=(--main_process_port 0 "${machines[@]}")
    fi
    accelerate launch --config_file "$settings" --num_processes "${NUM_PROCESSES:-8}" "${machines[@]}" -m "${@:2}"
}

# train FILE FLAG...: the training command by accelerate/FILE.yaml.
train() {
    check_paths
    local flags=(--model_name_or_path "$MODEL" --data_file_paths "$DATA" --image_folders "$IMAGES" --output_dir "$OUT")
    flags+=("${@:2}")
    if [ -n "$is_smoke" ]; then
        flags+=("${smoke_device[@]}" "${smoke_steps[@]}" "${smoke_pixels[@]}")
        flags+=(--per_device_train_batch_size "${group:-8}")
    fi
    launch "$1" vlm_entropy.trainers "${flags[@]}" "${arguments[@]}"
}

# train_preset FILE PRESET FLAG...: `train` with presets/PRESET.yaml, or METHOD with the preset's GRPO baseline.
train_preset() {
    local preset=$folder/presets/$2${METHOD:+_grpo}.yaml
    local flags=(--config "$preset" ${METHOD:+--method "$METHOD"} "${@:3}")
    group=$(sed -nE 's/^num_generations: *([0-9]+).*/\1/p' "$preset")
    if [ -n "$is_smoke" ]; then
        flags+=("${smoke_group[@]}")
        [ -n "${METHOD:-}" ] || flags+=("${smoke_given[@]}")
    fi
    train "$1" "${flags[@]}"
}

# curate FILE FLAG...: the curation command on as many processes; writes OUT/scored.jsonl and OUT/scored_kept.jsonl.
curate() {
    check_paths
    local flags=(--model "$MODEL" --data "$DATA" --images "$IMAGES" --out "$OUT/scored.jsonl" "${@:2}")
    [ -z "$is_smoke" ] || flags+=("${smoke_curate[@]}")
    launch "$1" vlm_entropy.data curate "${flags[@]}" "${arguments[@]}"
}
