"""The training command: what it refuses before a model loads, what it writes, and that a killed run loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from vlm_entropy.trainers.__main__ import main, prepare

FLAGS = {
    "task_type": "plain",
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "bf16": "false",
    "use_cpu": "true",
    "gradient_checkpointing": "false",
    "logging_steps": 1,
    "disable_tqdm": "true",
}


SFT = {"method": "sft", "response_column": "response", "num_generations": None, "max_completion_length": None}


CALIBRL = {"method": "calibrl", "expert_column": "response", "correct_reward": "iou"}


@pytest.fixture
def command(tiny_model, shapes, tmp_path):
    """The flags of a run of three steps, with some replaced; None leaves a flag out."""

    def build(**changes):
        defaults = {
            **FLAGS,
            "model_name_or_path": tiny_model,
            "data_file_paths": shapes / "train.jsonl",
            "image_folders": shapes / "images",
            "output_dir": tmp_path / "out",
        }
        flags = {name: value for name, value in {**defaults, **changes}.items() if value is not None}
        return [part for name, value in flags.items() for part in (f"--{name}", *str(value).split(" "))]

    return build


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def row(image, answer="[4, 8, 12, 16]", **columns):
    turns = [{"from": "human", "value": "<image>Find it."}, {"from": "gpt", "value": answer}]
    return {**({"image": image} if image else {}), "conversations": turns, **columns}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "two_stages"},
            "Unknown method 'two_stages'; the methods are adaptive_entropy_bonus, calibrl,",
        ),
        ({"reward_funcs": "iou fomat"}, "Unknown reward 'fomat'"),
        ({"reward_funcs": "nowhere:reward"}, "Cannot import the reward 'nowhere:reward'"),
        ({"task_type": "reck"}, "Unknown task type 'reck'"),
        ({"data_file_paths": "a.jsonl:b.jsonl"}, "got 2 data files"),
        ({"data_file_paths": "nowhere.jsonl"}, "The data file 'nowhere.jsonl' does not exist."),
        ({"model_name_or_path": None}, "--model_name_or_path is missing"),
        (
            {"model_name_or_path": "/nowhere"},
            "--model_name_or_path '/nowhere' is no vision-language model that can be used",
        ),
        ({"num_generations": 3}, "generation_batch_size (8) must be divisible by num_generations (3)."),
        ({"per_device_train_batch_size": 256}, "takes 64 different prompts"),
        ({"method": "two_stage", "switch_step": 4}, "switch_step 4 lies outside the run, which has 3 steps."),
        ({"method": "two_stage", "lambda_max": "nan"}, "lambda_max must be a finite number >= 0, got nan."),
        ({"max_completion_length": 100000}, "train.jsonl:1: needs "),
        ({"config": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"max_anyres_num": 4}, "cuts no tiles"),
        ({"min_pixels": 100, "max_pixels": 10}, "min_pixels=100 and max_pixels=10"),
        ({"method": "ecvgpo"}, "r0 is missing"),
        ({"method": "ecvgpo", "r0": 0}, "r0 must be a finite number other than 0, got 0.0."),
        ({"method": "ecvgpo", "r0": 10, "l0": 1}, "l0 must be a finite number > 1, got 1.0."),
        ({"method": "saei", "alpha": 1.5}, "alpha must be a float in [0, 1]"),
        ({"method": "saei", "clean_generations": 3, "adversarial_generations": 2}, "add up to num_generations (4)"),
        ({"method": "saei+noisy_rollout"}, "both decide how a group is sampled"),
        ({"method": "calibrl"}, "calibrl needs expert_column"),
        ({**CALIBRL, "max_completion_length": "none"}, "calibrl cuts experts to max_completion_length"),
        ({**CALIBRL, "expert_column": "teacher"}, "expert_column 'teacher' is no column of the data"),
        ({**CALIBRL, "correct_reward": None}, "a wrong answer can score above correct_threshold 0.1"),
        ({**CALIBRL, "long_expert": "refuse"}, "The expert of row 1 has"),
        ({**SFT, "response_column": None}, "needs --response_column"),
        ({**SFT, "response_column": "reply"}, "train.jsonl:1: column 'reply' holds no response"),
        ({**SFT, "max_length": 64}, "--max_length 64 would cut images apart"),
    ],
)
def test_bad_input_is_one_sentence_before_a_model_loads(command, monkeypatch, changes, message):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", pytest.fail)
    with pytest.raises(SystemExit) as stop:
        main(command(**changes))
    assert str(stop.value).startswith("vlm-entropy-train: ")
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)


def test_a_text_model_is_refused(command, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SystemExit, match="is no vision-language model that can be used: Unknown model type 'llama'"):
        main(command(model_name_or_path=tmp_path))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("missing.png"), r"rows.jsonl:2: the image '.*missing.png' does not exist."),
        (row("broken.png"), r"rows.jsonl:2: the image '.*broken.png' cannot be read"),
        (row(None, answer=""), r"rows.jsonl:2: the answer is ''"),
        ('{"image": \n', r"rows.jsonl:2: not JSON"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(command, shapes, tmp_path, bad, message):
    image = (shapes / "images" / "train-000000.png").read_bytes()
    (tmp_path / "good.png").write_bytes(image)
    (tmp_path / "broken.png").write_bytes(image[:60])
    data = write_rows(tmp_path / "rows.jsonl", row("good.png"), bad, row("good.png"))
    with pytest.raises(SystemExit, match=message):
        main(command(data_file_paths=data, image_folders=tmp_path))


def test_skip_bad_rows_trains_without_them_and_lists_them(command, shapes, tmp_path):
    (tmp_path / "good.png").write_bytes((shapes / "images" / "train-000000.png").read_bytes())
    too_long = row("good.png")
    too_long["conversations"][0]["value"] = "Find it. " * 5000
    data = write_rows(tmp_path / "rows.jsonl", row("good.png"), row("missing.png"), too_long, row("good.png"))
    run = prepare(command(data_file_paths=data, image_folders=tmp_path, skip_bad_rows="true"))
    assert len(run.dataset) == 2
    bad_rows = lines(tmp_path / "out" / "bad_rows.jsonl")
    assert [bad["source"].rpartition(":")[2] for bad in bad_rows] == ["2", "3"]
    assert "does not exist" in bad_rows[0]["reason"]
    assert "the model's context is" in bad_rows[1]["reason"]


def test_a_reward_that_can_judge_no_row_is_refused(command, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", *[row(None, answer="4")] * 8)
    with pytest.raises(SystemExit, match="Reward iou_reward can judge none of the 8 rows; the first answer is '4'"):
        main(command(data_file_paths=data, image_folders=tmp_path))


def test_flags_of_a_config_file_are_overridden_by_those_of_the_command_line(command, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("method: two_stage\nlambda_max: 0.5\nswitch_step: 1\nlearning_rate: 0.25\n")
    run = prepare(command(config=config, switch_step=2, learning_rate=None))
    assert type(run.config).__name__ == "TwoStageConfig"
    assert (run.config.lambda_max, run.config.switch_step, run.config.learning_rate) == (0.5, 2, 0.25)


def test_the_response_column_is_trained_on_in_the_coordinates_of_the_model(command, shapes):
    dataset = prepare(command(**SFT)).dataset
    first = lines(shapes / "train.jsonl")[0]
    # The tiny Qwen2.5-VL sees the 32 x 32 images as they are, so its pixels are those of the file.
    expected = first["response"].replace("{box}", first["conversations"][1]["value"])
    assert dataset[0]["completion"] == [{"role": "assistant", "content": expected}]
    assert [image.size for image in dataset[0]["images"]] == [(32, 32)]
    halved = prepare(command(**SFT, max_pixels=16 * 16)).dataset
    sides = [side // 2 for side in json.loads(first["conversations"][1]["value"])]
    assert halved[0]["completion"][0]["content"].endswith(f"<answer>{sides}</answer>")


@pytest.mark.parametrize("mixture", ["text rows", "rows with and without images", "rows with two images"])
def test_rows_train_with_no_image_one_or_several(command, shapes, tmp_path, mixture):
    images = {"text rows": [None, None], "rows with and without images": [None, "train-000000.png"]}
    kinds = images.get(mixture, ["train-000001.png", ["train-000000.png", "train-000001.png"]])
    data = write_rows(tmp_path / "rows.jsonl", *[row(kinds[index % 2]) for index in range(8)])
    # Micro-batches of one row, so that some hold no image, and old log-probs in chunks of one row.
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "num_iterations": 2}
    main(command(data_file_paths=data, image_folders=shapes / "images", reward_funcs="format", **changes))
    logged = [line for line in lines(tmp_path / "out" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3]
    assert all(line["entropy"] > 0 for line in logged)


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({"method": "grpo", "beta": 0.1}, "kl"),
        ({"method": "ecvgpo", "preset": "internvl3_8b"}, "ecvgpo/reshaped"),
        (CALIBRL, "calibrl/gap"),
        ({"method": "saei", "save_adversarial_images": 1}, "saei/clean_entropy"),
        ({"method": "noisy_rollout"}, "noisy_rollout/noise_step"),
        ({"method": "two_stage+ecvgpo+saei", "r0": -50}, "two_stage/entropy"),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else value,
)
def test_every_method_trains_from_the_command_line(command, tmp_path, changes, metric):
    main(command(**changes))
    logged = [line for line in lines(tmp_path / "out" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3]
    assert all(isinstance(line[metric], float) for line in logged)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_adapter_is_trained_and_saved_alone(command, tmp_path):
    main(command(method="two_stage", use_peft="true", lora_target_modules="q_proj v_proj", beta=0.1))
    logged = [line for line in lines(tmp_path / "out" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def run_command(command, **changes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "vlm_entropy.trainers", *command(**changes)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_run_resumes_to_the_weights_of_the_uninterrupted_one(command, tmp_path):
    # 32 rows, 2 prompts a step: 16 steps an epoch. Killed in the second epoch, after the switch.
    changes = {"method": "two_stage", "max_steps": 24, "switch_step": 18, "lambda_max": 0.05, "save_steps": 5}
    whole = run_command(command, **changes, output_dir=tmp_path / "whole")
    assert whole.wait(timeout=300) == 0, whole.stdout.read()

    killed = run_command(command, **changes, output_dir=tmp_path / "killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while killed.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 21):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (tmp_path / "killed" / "checkpoint-20").is_dir()
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    resumed = run_command(command, **changes, output_dir=tmp_path / "killed")
    assert resumed.wait(timeout=300) == 0, resumed.stdout.read()
    expected, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    steps = [(line["step"], line["two_stage/stage"]) for line in lines(metrics) if "two_stage/stage" in line]
    assert steps == [(step, 1 if step <= 18 else 2) for step in range(1, 25)]
