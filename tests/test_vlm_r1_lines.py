"""VLM-R1's launch lines: all parse, retired flags say so once, and what VLM-R1 ignored is announced."""

import json

import pytest
import torch
from datasets import Dataset
from support import FAST, dataset_of, uneven_reward
from torch import nn
from transformers import AutoModelForImageTextToText

from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.tiny import MODEL_TYPES, build_tiny_vlm
from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer
from vlm_entropy.trainers.__main__ import main, split_dataset
from vlm_entropy.trainers.arguments import parse_arguments
from vlm_entropy.trainers.freezing import freeze_vision

COMMON = (
    "--use_vllm False --resume_from_checkpoint True --gradient_accumulation_steps 2 --gradient_checkpointing true "
    "--logging_steps 1 --num_train_epochs 2 --bf16 false --use_cpu true --attn_implementation flash_attention_2 "
    "--run_name run --num_generations 8 --max_completion_length 2048 --reward_funcs accuracy format --beta 0.04 "
    "--report_to wandb --dataset-name not_used --data_file_paths a.jsonl:b.jsonl --image_folders a:b"
)
REC = "--task_type rec --is_reward_customized_from_vlm_module True --per_device_train_batch_size 8"
QWEN = "--model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct"
SCRIPTS = {
    "run_grpo_rec": f"{QWEN} {REC} --save_steps 100 --data_seed 42",
    "run_grpo_rec_lora": f"{QWEN} {REC} --learning_rate 1.0e-5 --use_peft true --lora_r 64 --lora_alpha 128 "
    "--lora_dropout 0.05 --lora_task_type CAUSAL_LM --freeze_vision_modules true",
    "run_grpo_rec_internvl": f"--model_name_or_path OpenGVLab/InternVL2_5-4B-MPO {REC} --max_anyres_num 6",
    "run_grpo_rec_more_params": f"{QWEN} {REC} --epsilon_high 0.28",
    "run_grpo_gui": f"{QWEN} --task_type gui --reward_method all_match:all_match --per_device_train_batch_size 2 "
    "--max_steps 1200 --save_steps 400",
    "run_grpo_gui_defect_detection": f"{QWEN} --task_type gui_defect --reward_method default:default "
    "--per_device_train_batch_size 8",
    "multinode_training_demo": f"{QWEN} {REC} --max_prompt_length 1024 --torch_dtype bfloat16 --save_only_model true "
    "--arrow_cache_dir cache --val_split_ratio 0.1 --max_pixels 1000000 --min_pixels 3136",
}


def parse(line, tmp_path):
    return parse_arguments([*line.split(), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.usefixtures("eight_processes")
def test_the_flags_of_every_script_parse_and_those_that_do_nothing_say_so_once(tmp_path, capsys, script):
    _, run, config, _ = parse(f"{COMMON} {SCRIPTS[script]}", tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("--dataset_name does nothing: data comes from --data_file_paths.") == 1
    assert "--use_vllm" not in printed  # False is TRL's default too
    assert config.beta == 0.04
    assert run.task_type in ("rec", "gui", "gui_defect")


def test_what_vlm_r1_ignored_is_announced_where_it_acts(tmp_path, capsys):
    line = f"{COMMON} {SCRIPTS['run_grpo_rec']} --temperature 0.9 --reward_weights 1.0 0.5 --top_p 1.0"
    parse(line, tmp_path)
    printed = capsys.readouterr().out
    assert "--temperature 0.9 acts here; VLM-R1 ignored it." in printed
    assert "--reward_weights [1.0, 0.5] acts here" in printed
    assert "--top_p" not in printed  # as by default


def test_a_line_of_ours_is_told_nothing(tmp_path, capsys):
    line = f"{QWEN} --data_file_paths a.jsonl --temperature 0.9 --bf16 false --use_cpu true"
    parse(line, tmp_path)
    assert capsys.readouterr().out == ""


def test_torch_dtype_is_the_models_dtype(tmp_path):
    line = f"{COMMON} {SCRIPTS['run_grpo_rec']} --torch_dtype float16"
    assert parse(line, tmp_path)[3].dtype == "float16"


def test_rows_are_held_out_by_the_seed(tmp_path):
    dataset = Dataset.from_dict({"id": list(range(100))})

    def held_out(share=0.1, **options):
        config = EntropyGRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **options)
        train, held_out = split_dataset(dataset, config, share=share)
        return train["id"], held_out and held_out["id"]

    train, first = held_out()
    assert len(first) == 10
    assert sorted([*train, *first]) == list(range(100))
    assert held_out()[1] == first
    assert held_out(data_seed=1)[1] != first
    assert held_out(share=0.0) == (list(range(100)), None)
    with pytest.raises(ValueError, match=r"val_split_ratio must lie in \[0, 1\), got 1.0"):
        held_out(share=1.0)
    with pytest.raises(ValueError, match="--eval_strategy steps needs rows"):
        held_out(share=0.0, eval_strategy="steps")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_vision_tower_of_every_family_can_be_frozen(tmp_path, model_type):
    model = AutoModelForImageTextToText.from_pretrained(build_tiny_vlm(model_type, tmp_path / "m", hidden_size=32))
    tower = {name for name, _ in model.named_parameters() if FAMILIES[model_type].vision_module in name}
    assert freeze_vision(model, FAMILIES[model_type].vision_module) == len(tower)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters()} - tower
    assert any("language_model" in name for name in trained)
    assert any("patch" in name for name in tower)


def test_a_model_without_a_tower_or_with_nothing_else_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"No parameter of Linear belongs to 'visual\."):
        freeze_vision(nn.Linear(1, 1), "visual.")
    with pytest.raises(ValueError, match="nothing is left to train"):
        freeze_vision(nn.ModuleDict({"visual": nn.Linear(1, 1)}), "visual.")


def test_a_line_of_vlm_r1_trains_evaluates_and_leaves_the_vision_tower_alone(tiny_model, shapes, tmp_path):
    line = (
        f"--model_name_or_path {tiny_model} --data_file_paths {shapes}/train.jsonl --image_folders {shapes}/images "
        f"--output_dir {tmp_path} --dataset-name not_used --use_vllm False --reward_funcs accuracy format "
        "--task_type rec --is_reward_customized_from_vlm_module True --val_split_ratio 0.25 --eval_strategy steps "
        "--eval_steps 1 --per_device_eval_batch_size 4 --freeze_vision_modules true --num_generations 4 "
        "--per_device_train_batch_size 4 --max_completion_length 8 --max_steps 2 --learning_rate 1e-2 --bf16 false "
        "--use_cpu true --logging_steps 1 --save_only_model true --reward_compat vlm_r1 --reward_method default"
    )
    main(["--method", "vlm_r1+entropy_bonus", *line.split()])
    logs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"rewards/iou_reward", "rewards/format_reward_rec", "completion_length", "kl"} <= logs[0].keys()
    assert any("eval_reward" in log for log in logs)
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (tiny_model, tmp_path)
    )
    changed = {name for name, weights in before.items() if not weights.equal(after[name])}
    assert changed
    assert not any("visual" in name for name in changed)


def test_both_names_of_a_metric_are_logged(tiny_model, shapes, tmp_path):
    args = EntropyGRPOConfig(**FAST, output_dir=str(tmp_path), max_steps=1)
    trainer = EntropyGRPOTrainer(str(tiny_model), uneven_reward, args, train_dataset=dataset_of(shapes, tiny_model))
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["completion_length"] == log["completions/mean_length"] > 0
    assert log["rewards/uneven_reward"] == log["rewards/uneven_reward/mean"] > 0
    assert log["clip_ratio"] == log["clip_ratio/region_mean"]
    assert torch.tensor(log["reward"]).isfinite()
