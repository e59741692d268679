"""Methods and presets by name: what they combine to, what they set, and the table that lists them."""

from pathlib import Path

import pytest

from vlm_entropy.trainers import EntropyGRPOTrainer, get_method
from vlm_entropy.trainers.arguments import parse_arguments
from vlm_entropy.trainers.methods import METHODS, preset_options
from vlm_entropy.trainers.presets import PRESETS
from vlm_entropy.trainers.table import methods_table

README = Path(__file__).parent.parent / "trainers" / "README.md"
NEEDED = {
    "calibrl": ["--expert_column", "expert"],
    "ecvgpo": ["--r0", "10"],
    "kl_cov": ["--num_iterations", "2"],
    "grpo_12": ["--per_device_train_batch_size", "12"],
    "luffy": ["--expert_column", "expert"],
    "rl_plus": ["--expert_column", "expert"],
    "sft": ["--response_column", "response"],
}


def parse(name, tmp_path, *flags):
    model = ["--model_name_or_path", "m", "--data_file_paths", "d.jsonl", "--output_dir", str(tmp_path)]
    needed = NEEDED.get(name, NEEDED.get(PRESETS[name].method, []) if name in PRESETS else [])
    cpu = ["--bf16", "false", "--use_cpu", "true"]
    return parse_arguments(["--method", name, *model, *cpu, *needed, *flags])


@pytest.mark.parametrize("name", [*METHODS, *PRESETS])
def test_every_name_parses_and_a_preset_sets_what_it_says(tmp_path, name):
    method, run, config, _ = parse(name, tmp_path)
    expected = METHODS[PRESETS[name].method if name in PRESETS else name]
    assert method.trainer is expected.trainer
    assert type(config) is method.config
    for option, value in preset_options(name).items():
        assert getattr(run if hasattr(run, option) else config, option) == value


def test_a_flag_and_a_config_file_win_over_a_preset(tmp_path):
    assert parse("entropy_bonus", tmp_path, "--entropy_coef", "0.5")[2].entropy_coef == 0.5
    file = tmp_path / "run.yaml"
    file.write_text("method: entropy_bonus\nentropy_coef: 0.25\n")
    model = ["--model_name_or_path", "m", "--data_file_paths", "d.jsonl", "--output_dir", str(tmp_path)]
    config = parse_arguments(["--config", str(file), *model, "--bf16", "false", "--use_cpu", "true"])[2]
    assert config.entropy_coef == 0.25


def test_presets_combine_with_methods_and_with_each_other(tmp_path):
    method, run, config, _ = parse("ttrl+ecvgpo+dr_grpo", tmp_path, "--r0", "10")
    assert method.trainer is METHODS["ecvgpo"].trainer
    assert (run.reward_funcs, config.loss_type, config.r0) == (["majority_box"], "dr_grpo", 10.0)
    assert get_method("dr_grpo+ttrl").trainer is EntropyGRPOTrainer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gspo+dr_grpo", "Method 'gspo\\+dr_grpo' sets loss_type both to 'grpo' and to 'dr_grpo'"),
        ("ttrl+empo", "sets reward_funcs both to .'majority_box'. and to .'empo_box'."),
        ("entropy_max+entropy_min", "sets switch_fraction both to 1.0 and to 0.0"),
        ("entropy_reward+intuitor", "entropy_reward and intuitor both decide what the advantages of a group are"),
        ("kl_cov+clip_cov", "sets epsilon both to inf and to 1.0"),
        ("luffy+calibrl", "calibrl would take the expert's response of luffy for a sampled one"),
        ("dapo+intuitor", "intuitor does not train on the rewards by which dapo chooses groups"),
        ("luffy+rl_plus", "luffy and rl_plus both decide how a group is sampled"),
        ("two_stage+sft", "combines trainers of different kinds"),
        ("grpo+two_stage+grpo", "names a method twice"),
        ("two_stage+", "Unknown method ''"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        parse(name, tmp_path)


@pytest.mark.parametrize("name", ["two_stage+clip_cov", "clip_cov+two_stage"])
def test_a_combination_keeps_the_defaults_that_its_parts_change(tmp_path, name):
    config = parse(name, tmp_path)[2]
    assert (config.epsilon, config.lambda_max) == (1.0, 0.01)


def test_no_preset_has_the_name_of_a_method():
    assert not set(METHODS) & set(PRESETS)
    assert {preset.method for preset in PRESETS.values()} <= set(METHODS)


def test_the_table_has_a_line_for_every_name_and_is_the_one_in_the_readme():
    lines = methods_table().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == [*METHODS, *PRESETS]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert methods_table() in README.read_text(encoding="utf-8"), "update it with --list_methods"
