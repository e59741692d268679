#!/usr/bin/env bash
# One task of lmms-eval 0.7.3 on a checkpoint and on a local copy of the task's data:
#     MODEL=runs/model TASK=scienceqa_img DATA=data/ScienceQA OUT=runs/scienceqa run_scripts/lmms_eval.sh
# Paths start from the folder of this repository.
# DATA is what `datasets.load_dataset(PATH, NAME).save_to_disk(DATA)` wrote, PATH and NAME as in the task's own YAML.
# The tasks are the files of eval/lmms_eval/tasks/; each says how it is scored.
# ARGS goes on to the model, "task_type=think_answer,final_answer=True,max_pixels=401408"; BATCH is its batch size.
# Further arguments go to lmms_eval: `--limit 8`, or `--gen_kwargs max_new_tokens=1024` for a model that thinks first.
# It has an environment of its own, .venv-lmms: lmms-eval's requirements contradict ours, so that only what its
# evaluator and these tasks need is installed. PYTHON chooses the interpreter it is made with.
set -euo pipefail
: "${MODEL:?is the folder of a checkpoint}" "${TASK:?is a name of eval/lmms_eval/tasks/}"
: "${DATA:?is a folder that save_to_disk wrote}" "${OUT:?is the folder to write into}"
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

install() {
    [ -x .venv-lmms/bin/python ] || "${PYTHON:-python3}" -m venv .venv-lmms
    echo "Installing into .venv-lmms: a few minutes and about 3 GB the first time."
    local pip=(.venv-lmms/bin/python -m pip install --quiet)
    "${pip[@]}" --editable . --constraint constraints.txt
    "${pip[@]}" --no-deps lmms-eval==0.7.3
    "${pip[@]}" --constraint constraints.txt aiohttp evaluate Levenshtein loguru openai pytablewriter python-dotenv \
        pytz requests sacrebleu tenacity
    # MATH-Vision's rule. With its antlr the math-verify of this environment is broken; nothing here uses that.
    "${pip[@]}" --no-deps latex2sympy2==1.9.1 antlr4-python3-runtime==4.7.2
    cat setup.py constraints.txt run_scripts/lmms_eval.sh > .venv-lmms/installed
}

cat setup.py constraints.txt run_scripts/lmms_eval.sh | cmp --silent - .venv-lmms/installed || install
source .venv-lmms/bin/activate

python -m vlm_entropy.eval.lmms_eval.local_tasks "$TASK" "$DATA" "$OUT/tasks"
python -m vlm_entropy.eval.lmms_eval --model vlm_entropy --model_args "pretrained=$MODEL${ARGS:+,$ARGS}" \
    --batch_size "${BATCH:-1}" --include_path "$OUT/tasks" --tasks "${TASK}_local" \
    --output_path "$OUT" --log_samples "$@"
