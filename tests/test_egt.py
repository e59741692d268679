"""Low-to-high training: the order in which rows are trained on, alone, combined, resumed and on two processes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import chain

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from support import FAST, Recording, dataset_of, uneven_reward

from vlm_entropy.trainers import EgtConfig, EgtTrainer, EntropyGRPOConfig, EntropyGRPOTrainer, get_method
from vlm_entropy.trainers.__main__ import main, prepare
from vlm_entropy.trainers.egt import STAGE_COLUMN, read_entropies, select_stages, training_order

#            row 0    1    2    3     4    5
ENTROPIES = [0.30, 0.10, 0.20, 0.10, None, 0.40]


def test_each_order_of_six_rows_is_the_one_worked_out_by_hand():
    assert training_order(ENTROPIES) == [[1, 3, 2, 0, 5, 4]]
    # Equal entropies keep their order and a row without one stays last.
    assert training_order(ENTROPIES, order="high_to_low") == [[5, 0, 2, 1, 3, 4]]
    assert training_order(ENTROPIES, stages=3) == [[1, 3], [2, 0], [5, 4]]
    assert training_order(ENTROPIES, stages=3, cumulative=True) == [[1, 3], [1, 3, 2, 0], [1, 3, 2, 0, 5, 4]]


def test_shuffled_rows_stay_in_their_stage():
    entropies = [float(row) for row in range(60)]
    stages = training_order(entropies, stages=3, cumulative=True, shuffle=True, seed=1)
    assert [sorted(stage) for stage in stages] == [list(range(20)), list(range(40)), list(range(60))]
    assert all(stage != sorted(stage) for stage in stages)
    # Each stage is drawn anew: the rows of the first do not come back in their order.
    assert [row for row in stages[1] if row < 20] != stages[0]


def test_random_order_and_shuffles_follow_from_the_seed():
    def order(seed, **options):
        return training_order([0.0] * 30, seed=seed, **options)

    for options in ({"order": "random"}, {"shuffle": True, "stages": 2}):
        assert order(0, **options) == order(0, **options) != order(1, **options)
    assert sorted(order(0, order="random")[0]) == list(range(30))


def test_every_random_order_is_equally_likely():
    counts = {}
    for seed in range(1200):
        key = tuple(training_order([0.0] * 3, order="random", seed=seed)[0])
        counts[key] = counts.get(key, 0) + 1
    # 6 orders, 200 each, standard deviation 13.
    assert len(counts) == 6
    assert all(abs(count - 200) < 60 for count in counts.values())


def test_stages_of_a_selection_hold_its_rows_with_their_numbers():
    dataset = Dataset.from_dict({"row": list(range(6))}).select([5, 4, 2, 0])
    selected = select_stages(dataset, [[1, 0], [1, 0, 3, 2]])
    assert list(selected["row"]) == [4, 5, 4, 5, 0, 2]
    assert list(selected[STAGE_COLUMN]) == [1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"egt_order": "up"}, "egt_order must be one of low_to_high, high_to_low, random, got 'up'"),
        ({"egt_stages": 0}, "egt_stages must be >= 1, got 0"),
        ({"egt_cumulative": True}, "egt_cumulative acts on the stages of the curriculum: set egt_stages to 2 or more"),
        ({"shuffle_dataset": True}, "shuffle_dataset acts on the stages of the curriculum"),
        ({"remove_unused_columns": True}, "leave remove_unused_columns off"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        EgtConfig(output_dir=str(tmp_path), **FAST, **options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"other": [1.0]}, r"egt_column 'response_entropy' is no column of the data, which has \['other'\]"),
        ({"response_entropy": ["low"]}, "egt_column 'response_entropy' of row 1 is 'low', not a number"),
        ({"response_entropy": [True]}, "of row 1 is True, not a number"),
        ({"response_entropy": [None, math.nan]}, "has a finite number in none of the 2 rows"),
        ({"response_entropy": [1.0], STAGE_COLUMN: [1]}, "The data has a column 'egt_stage', which egt writes itself"),
    ],
)
def test_data_without_entropies_are_refused(tmp_path, columns, message):
    dataset = Dataset.from_dict(columns)
    with pytest.raises(ValueError, match=message):
        read_entropies(dataset, "response_entropy")
    config = EgtConfig(output_dir=str(tmp_path), **FAST)
    with pytest.raises(ValueError, match=message):
        EgtTrainer(model="no model is read", reward_funcs=[uneven_reward], args=config, train_dataset=dataset)


def test_a_stream_is_refused(tmp_path):
    stream = Dataset.from_dict({"response_entropy": [1.0]}).to_iterable_dataset()
    config = EgtConfig(output_dir=str(tmp_path), **FAST)
    with pytest.raises(ValueError, match="train_dataset must be a Dataset, got IterableDataset"):
        EgtTrainer(model="no model is read", reward_funcs=[uneven_reward], args=config, train_dataset=stream)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        # 5 rows, 1 prompt a step.
        ({}, 5),
        ({"egt_stages": 2}, 5),
        # Stages of 3 and 5 rows.
        ({"egt_stages": 2, "egt_cumulative": True}, 8),
        # Of 8 rows the first 6 fill generation batches of 2 prompts: 4 batches.
        ({"egt_stages": 2, "egt_cumulative": True, "gradient_accumulation_steps": 2}, 4),
    ],
)
def test_the_length_of_the_run_counts_the_rows_of_all_stages(tmp_path, options, steps):
    assert EgtConfig(output_dir=str(tmp_path), **FAST, **options).total_steps(5) == steps


class Ordered(EntropyGRPOTrainer):
    """Keeps the row and the stage of every prompt of every rollout, and samples nothing."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def sample(self, prompt_ids, images, fields, *, generate):
        return [[5 + place] for place in range(len(prompt_ids))], None

    def prepare_rollout(self, rollout, examples, rewards):
        self.seen.append([(example["row"], example[STAGE_COLUMN]) for example in examples])
        return super().prepare_rollout(rollout, examples, rewards)


class OrderedEgt(EgtTrainer, Ordered):
    pass


def with_columns(shapes, tiny_model, entropies):
    dataset = dataset_of(shapes, tiny_model).select(range(len(entropies)))
    return dataset.add_column("row", list(range(len(entropies)))).add_column("response_entropy", entropies)


def run(tiny_model, dataset, tmp_path, *, trainer_class=OrderedEgt, config_class=EgtConfig, **options):
    config = config_class(output_dir=str(tmp_path), **{**FAST, "num_generations": 2, **options})
    trainer = trainer_class(model=str(tiny_model), reward_funcs=[uneven_reward], args=config, train_dataset=dataset)
    trainer.train()
    return trainer


def pairs(*rollouts):
    """Each rollout's (row, stage) prompts, every one twice."""
    return [[prompt for prompt in rollout for _ in range(2)] for rollout in rollouts]


NINE = [0.8, 0.0, 0.5, 0.3, 0.7, 0.1, 0.6, 0.2, 0.4]
"""Ascending: rows 1 5 7 3 8 2 6 4 0."""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 2 prompts a rollout, the ninth row is dropped.
        ({}, [[1, 5], [7, 3], [8, 2], [6, 4]]),
        ({"gradient_accumulation_steps": 2}, [[1, 5, 7, 3], [8, 2, 6, 4]]),
        ({"steps_per_generation": 4}, [[1, 5, 7, 3, 8, 2, 6, 4]]),
        ({"gradient_accumulation_steps": 2, "num_iterations": 2}, [[1, 5, 7, 3], [8, 2, 6, 4]]),
        ({"num_train_epochs": 2}, [[1, 5], [7, 3], [8, 2], [6, 4]] * 2),
        ({"egt_order": "high_to_low"}, [[0, 4], [6, 2], [8, 3], [7, 5]]),
    ],
    ids=str,
)
def test_training_sees_the_rows_in_order(tiny_model, shapes, tmp_path, capsys, options, expected):
    trainer = run(tiny_model, with_columns(shapes, tiny_model, NINE), tmp_path, **options)
    assert trainer.seen == pairs(*[[(row, 1) for row in rows] for rows in expected])
    assert "The last 1 of 9 rows fill no generation batch: they are not used." in capsys.readouterr().out
    steps = [line for line in trainer.state.log_history if "egt/entropy" in line]
    assert {line["egt/stage"] for line in steps} == {1.0}


def test_stages_and_entropies_are_logged_and_missing_ones_left_out(tiny_model, shapes, tmp_path, capsys):
    dataset = with_columns(shapes, tiny_model, [0.4, None, 0.2, math.inf, 0.1, 0.3, None, math.nan])
    # Ascending: rows 4 2 5 0 1 3 6 7, in stages of 3, 3 and 2 rows.
    trainer = run(tiny_model, dataset, tmp_path, egt_stages=3)
    assert trainer.seen == pairs([(4, 1), (2, 1)], [(5, 1), (0, 2)], [(1, 2), (3, 2)], [(6, 3), (7, 3)])
    steps = [line for line in trainer.state.log_history if "egt/stage" in line]
    assert [line["egt/stage"] for line in steps] == [1.0, 1.5, 2.0, 3.0]
    assert [line["egt/entropy"] for line in steps[:2]] == pytest.approx([0.15, 0.35], abs=1e-6)  # float32
    assert all("egt/entropy" not in line for line in steps[2:])
    assert "generation batch" not in capsys.readouterr().out


def test_cumulative_stages_repeat_rows(tiny_model, shapes, tmp_path):
    dataset = with_columns(shapes, tiny_model, [0.3, 0.0, 0.2, 0.1])
    trainer = run(tiny_model, dataset, tmp_path, egt_stages=2, egt_cumulative=True)
    assert trainer.seen == pairs([(1, 1), (3, 1)], [(1, 2), (3, 2)], [(2, 2), (0, 2)])
    assert trainer.state.global_step == trainer.args.total_steps(4) == 3


def test_shuffling_keeps_rows_in_their_stage_and_trl_from_shuffling(tiny_model, shapes, tmp_path):
    dataset = with_columns(shapes, tiny_model, [row / 32 for row in range(32)])
    trainer = run(tiny_model, dataset, tmp_path, egt_stages=2, shuffle_dataset=True, num_train_epochs=2)
    rows = [row for row, _ in chain(*trainer.seen)][::2]
    assert (
        rows[:32]
        == rows[32:]
        == list(
            chain(*training_order([row / 32 for row in range(32)], stages=2, shuffle=True, seed=trainer.args.seed))
        )
    )
    assert sorted(rows[:16]) == list(range(16)) != rows[:16]


def test_equal_entropies_give_plain_grpo_on_the_unshuffled_data_to_the_digit(tiny_model, shapes, tmp_path):
    dataset = with_columns(shapes, tiny_model, [0.5] * 8)
    options = {"gradient_accumulation_steps": 2, "num_iterations": 2, "num_train_epochs": 1, "shuffle_dataset": False}
    plain_class = type("Plain", (Recording, EntropyGRPOTrainer), {})
    egt_class = type("Egt", (Recording, EgtTrainer), {})
    torch.manual_seed(0)
    plain = run(tiny_model, dataset, tmp_path, trainer_class=plain_class, config_class=EntropyGRPOConfig, **options)
    torch.manual_seed(0)
    egt = run(tiny_model, dataset, tmp_path, trainer_class=egt_class, **options)
    assert egt.losses == plain.losses
    assert len(egt.losses) == 8
    assert any(loss != 0 for loss in egt.losses)
    for ours, theirs in zip(egt.recorder.gradients, plain.recorder.gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


COMBINED = {
    "two_stage": ({}, "two_stage/entropy"),
    "ecvgpo": ({"r0": 2.0}, "ecvgpo/reshaped"),
    "saei": ({"alpha": 0.1}, "saei/clean_entropy"),
    "calibrl": ({"expert_column": "expert", "correct_threshold": 3.0}, "calibrl/gap"),
}


@pytest.mark.parametrize("name", ["egt+two_stage", "ecvgpo+egt", "egt+saei", "calibrl+egt"])
def test_the_order_is_the_same_in_a_combination(tiny_model, shapes, tmp_path, name):
    method = get_method(name)
    ((options, metric),) = [COMBINED[part] for part in name.split("+") if part in COMBINED]
    dataset = with_columns(shapes, tiny_model, NINE).add_column("expert", ["red square"] * 9)
    trainer_class = type("Trained", (method.trainer, Ordered), {})
    trainer = run(tiny_model, dataset, tmp_path, trainer_class=trainer_class, config_class=method.config, **options)
    assert (trainer.args.num_train_epochs, trainer.args.shuffle_dataset) == (1.0, False)
    assert trainer.seen == pairs(*[[(row, 1) for row in rows] for rows in [[1, 5], [7, 3], [8, 2], [6, 4]]])
    assert metric in trainer.state.log_history[0]
    assert "egt/entropy" in trainer.state.log_history[0]


def test_dapo_and_supervised_learning_do_not_combine_with_an_order():
    with pytest.raises(ValueError, match="egt puts the data in order, and dapo draws further prompts at random"):
        get_method("dapo+egt")
    with pytest.raises(ValueError, match="combines trainers of different kinds"):
        get_method("egt+sft")


@pytest.fixture
def command(tiny_model, shapes, tmp_path):
    """The flags of a run over 32 rows, whose entropies are 0 to 31 in mixed order."""
    lines = (shapes / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"response_entropy": number * 7 % 32} for number, line in enumerate(lines)]
    data = tmp_path / "curated.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(**changes):
        defaults = {
            "method": "egt",
            "model_name_or_path": tiny_model,
            "data_file_paths": data,
            "image_folders": shapes / "images",
            "output_dir": tmp_path / "out",
            "task_type": "plain",
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 8,
            "learning_rate": 1e-3,
            "bf16": "false",
            "use_cpu": "true",
            "gradient_checkpointing": "false",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": "true",
        }
        return [part for name, value in {**defaults, **changes}.items() for part in (f"--{name}", str(value))]

    return build


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"egt_column": "entropie"}, "egt_column 'entropie' is no column of the data, which has"),
        ({"egt_column": "problem"}, "egt_column 'problem' of row 1 is "),
        ({"egt_stages": 33}, "stages must be 1 to the number of rows (32), got 33"),
        ({"method": "egt+dapo"}, "egt puts the data in order, and dapo draws further prompts at random; choose one."),
    ],
)
def test_bad_input_is_one_sentence_before_a_model_loads(command, monkeypatch, changes, message):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", pytest.fail)
    with pytest.raises(SystemExit) as stop:
        main(command(**changes))
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)


def test_the_switch_of_two_stage_may_lie_in_the_steps_that_repeated_rows_add(command):
    # 16 prompt pairs; cumulative stages of 16 and 32 rows make 24 steps.
    stages = {"method": "two_stage+egt", "egt_stages": 2, "egt_cumulative": "true"}
    run = prepare(command(**stages, switch_step=24))
    assert run.config.total_steps(32) == 24
    with pytest.raises(ValueError, match="switch_step 25 lies outside the run, which has 24 steps"):
        prepare(command(**stages, switch_step=25))


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "egt/entropy" in line]


def test_held_out_rows_leave_the_others_in_order(command, tmp_path):
    main(command(val_split_ratio=0.25))
    entropies = [line["egt/entropy"] for line in metrics(tmp_path / "out")]
    assert len(entropies) == 12
    assert entropies == sorted(entropies)
    held_out = set(np.arange(32.0)) - set(prepare(command(val_split_ratio=0.25)).dataset["response_entropy"])
    assert len(held_out) == 8
    assert sum(entropies) * 2 == sum(range(32)) - sum(held_out)


@pytest.mark.parametrize(("order", "first"), [("egt", 0.5), ("egt_high_to_low", 30.5)], ids=lambda value: str(value))
def test_presets_train_from_the_command_line(command, tmp_path, order, first):
    main(command(method=order, max_steps=2))
    step = 2 if order == "egt" else -2
    assert [line["egt/entropy"] for line in metrics(tmp_path / "out")] == [first, first + step]


def start(flags):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "vlm_entropy.trainers", *flags]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_run_sees_the_order_of_the_uninterrupted_one(command, tmp_path):
    # 24 steps over cumulative, shuffled stages of 16 and 32 rows.
    changes = {"egt_stages": 2, "egt_cumulative": "true", "shuffle_dataset": "true"}
    changes |= {"save_strategy": "steps", "save_steps": 5}
    whole = start(command(**changes, output_dir=tmp_path / "whole"))
    assert whole.wait(timeout=300) == 0, whole.stdout.read()

    killed = start(command(**changes, output_dir=tmp_path / "killed"))
    file = tmp_path / "killed" / "metrics.jsonl"
    while killed.poll() is None and not (file.exists() and len(file.read_text().splitlines()) >= 12):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (tmp_path / "killed" / "checkpoint-10").is_dir()
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    resumed = start(command(**changes, output_dir=tmp_path / "killed"))
    assert resumed.wait(timeout=300) == 0, resumed.stdout.read()
    names = ("step", "egt/stage", "egt/entropy", "reward")
    seen, expected = (
        [[line[name] for name in names] for line in metrics(tmp_path / folder)] for folder in ("killed", "whole")
    )
    assert seen == expected
    assert [line[1] for line in seen] == [1.0] * 8 + [2.0] * 16
    torch.testing.assert_close(
        *(load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")), rtol=0, atol=0
    )
