"""Two processes compute what one does: every method under DDP, ZeRO-2, ZeRO-3, and on two nodes.

Each launch trains many cases in turn in one group of processes. All forwards take the same rows, so that all metrics
are compared, but for those that TRL and CalibRL average over micro-batches, where there are several.
"""

import functools
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed_cases import CASES, LAST, METHOD_CASES, UNEQUAL, Case, run_case
from support import FAST
from transformers import AutoModelForImageTextToText, TrainingArguments

from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers import get_method
from vlm_entropy.trainers.dapo import draw_rows
from vlm_entropy.trainers.methods import METHODS

SCRIPT = Path(__file__).with_name("distributed_steps.py")
FLOAT32 = {"model_init_kwargs": {"dtype": "float32"}}
OPTIONS = {"ddp": {}, "nodes": {}, "zero2": FLOAT32, "zero3": FLOAT32}
"""DDP trains in float64, as the one process does; DeepSpeed takes float32."""
TOLERANCE = 3e-7
"""Of the gradients, the largest of which is 0.05 to 3: they are what SGD moves the weights by, divided by the learning
rate. TRL's head computes in float32 everywhere."""
ROUNDING = {"ddp": 0.0, "nodes": 0.0, "zero2": 1e-6, "zero3": 1e-6}
"""Of the weights: those of 2 to 4 in float32 have steps of 2.4e-7, and a gradient of 3 one of its own."""
DEFAULT = {
    "ddp": [*CASES, "unequal"],
    "zero3": ["calibrl", "kl_cov", "saei, text on one process", "text on one process"],
    "zero2": [],
    "nodes": [],
}
"""Cases that run by default; the others are slow."""
OF_THE_MACHINE = ("step_time", "memory/")
PER_MICROBATCH = ("entropy", "entropy/", "advantage/", "calibrl/gap")
"""Metrics that are means over micro-batches of a mean over the tokens of each; a name, or the beginning of some."""
REFUSED = {("zero3", "saei, text on one process"): "Under ZeRO-3 and FSDP every process must attack equally many"}
ZERO = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: STAGE
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: true
mixed_precision: "no"
num_machines: 1
num_processes: 2
use_cpu: true
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Qwen2.5-VL with random weights, sharp enough that entropies differ, and unsure of any token."""
    folder = build_tiny_vlm("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny", hidden_size=32)
    network = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        network.get_input_embeddings().weight *= 2.5
    network.save_pretrained(folder)
    return folder


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def launchers(kind, folder):
    """The command of each launcher, without the script."""
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    if kind == "ddp":
        return [[*torchrun, "--standalone", "--nproc_per_node=2"]]
    if kind == "nodes":
        address = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
        return [[*torchrun, *address, f"--node_rank={rank}"] for rank in range(2)]
    config = folder / "accelerate.yaml"
    config.write_text(ZERO.replace("STAGE", kind.removeprefix("zero")))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    return [[*accelerate, "--config_file", str(config), "--main_process_port", free_port()]]


@pytest.fixture(scope="module")
def one(model, shapes, tmp_path_factory):
    """The record of a case trained by this process."""
    out = tmp_path_factory.mktemp("one")
    return functools.cache(lambda name: run_case(CASES[name], model, shapes, out, processes=1))


@pytest.fixture(scope="module")
def two(model, shapes, tmp_path_factory):
    """The record of a case trained by two processes; one launch trains the default cases of its kind, one the rest."""

    @functools.cache
    def launch(kind, is_default):
        folder = tmp_path_factory.mktemp(kind)
        names = DEFAULT[kind] if is_default else [name for name in CASES if name not in DEFAULT[kind]]
        arguments = [str(SCRIPT), str(model), str(shapes), str(folder), json.dumps(OPTIONS[kind]), *names]
        return folder, run_together([[*launcher, *arguments] for launcher in launchers(kind, folder)], folder)

    def record(kind, name):
        folder, error = launch(kind, name in DEFAULT[kind])
        assert (folder / f"{name}.pt").exists(), error
        return torch.load(folder / f"{name}.pt", weights_only=True)

    return record


def run_together(commands, folder):
    """Run commands at the same time; the ends of what they wrote if one failed or took more than 400 seconds."""
    logs = [folder / f"{number}.log" for number in range(len(commands))]
    started = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("w") as file:
            started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    end = time.monotonic() + 400
    try:
        codes = [process.wait(timeout=max(1, end - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        codes = [None]
    finally:
        for process in started:
            process.terminate()
    return "\n".join(log.read_text()[-5000:] for log in logs) if codes != [0] * len(started) else ""


def cases():
    for kind, default in DEFAULT.items():
        for name in CASES:
            yield pytest.param(kind, name, marks=() if name in default else pytest.mark.slow)


def test_every_method_has_a_case():
    assert {case.method for case in METHOD_CASES.values()} == set(METHOD_CASES) == set(METHODS)


@pytest.mark.parametrize(("kind", "name"), cases())
def test_two_processes_make_the_step_of_one(one, two, model, kind, name):
    record = two(kind, name)
    if (kind, name) in REFUSED:
        assert REFUSED[kind, name] in record["refused"]
        return
    expected = one(name)
    assert record["sharding"] == {"zero2": 2, "zero3": 3}.get(kind, 0)
    check_weights(record, expected, start=model, rate=CASES[name].options.get("learning_rate", 1.0), kind=kind)
    in_parts = CASES[name].accumulation > 1
    check_logs(record["logs"], expected["logs"], ignored=OF_THE_MACHINE + PER_MICROBATCH * in_parts)
    # Rows lie on the processes in the order in which one has them.
    assert by_rollout(record["seen"]) == by_rollout(expected["seen"])
    assert by_rollout(record["sampled"]) == by_rollout(expected["sampled"])
    assert together(record["selected"]) == together(expected["selected"])
    if CASES[name].method != "noisy_rollout":  # each process draws noise of its own
        assert together(record["pictures"]) == together(expected["pictures"])


def check_weights(record, expected, *, start, rate, kind):
    assert record["checksums"][0] == record["checksums"][1]
    before = AutoModelForImageTextToText.from_pretrained(start).state_dict()
    before = {name: before[name] for name in expected["weights"]}
    change = {name: (weight - before[name]) / rate for name, weight in expected["weights"].items()}
    assert max(part.abs().max() for part in change.values()) > 0.05
    actual = {name: (weight.double() - before[name]) / rate for name, weight in record["weights"].items()}
    torch.testing.assert_close(actual, change, rtol=0, atol=TOLERANCE + ROUNDING[kind] / rate)


def check_logs(actual, expected, *, ignored):
    for ours, theirs in zip(actual, expected, strict=True):
        assert set(ours) == set(theirs)
        for name in ours:
            if name in ignored or name.startswith(tuple(part for part in ignored if part.endswith("/"))):
                continue
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


def by_rollout(records):
    """The rows of each rollout, over the processes."""
    return [[row for part in parts for row in part] for parts in zip(*records, strict=True)]


def together(records):
    """What all processes have, in an order that does not tell whose it was."""
    return sorted(entry for record in records for entry in record)


def test_processes_with_unequal_needs_both_train_on_informative_groups(two, model, shapes, tmp_path):
    record = two("ddp", "unequal")
    first, second = record["seen"][0][0], record["seen"][1][0]
    assert first == [row for row in (0, 1) for _ in range(4)]
    assert not set(second) & LAST
    # Both sample equally many prompts each time: the next ones of a common order, which starts with no row twice.
    sizes = [[len(rows) for rows in sampled] for sampled in record["sampled"]]
    assert sizes[0] == sizes[1]
    order = iter(draw_rows(12, range(60), seed=42, step=0, rollout=0))
    for rows in zip(*(sampled[1:] for sampled in record["sampled"]), strict=True):
        assert [row for part in rows for row in part[::4]] == [next(order) for part in rows for _ in part[::4]]
    log = record["logs"][0]
    assert log["dapo/extra_rollouts"] == 2 * sum(sizes[0][1:]) > 0
    assert log["dapo/informative_groups"] == 1.0
    # One process that samples the rows they ended with makes the same step.
    rows = (first + second)[::4]
    plain = run_case(UNEQUAL, model, shapes, tmp_path, processes=1, order=rows, dynamic_sampling=False)
    assert log["loss"] == pytest.approx(plain["logs"][0]["loss"], rel=1e-5)
    check_weights(record, plain, start=model, rate=1.0, kind="ddp")


@pytest.mark.parametrize("method", ["saei", "noisy_rollout", "dapo", "luffy", "rl_plus"])
def test_methods_that_need_whole_groups_refuse_one_that_straddles_processes(tmp_path, monkeypatch, method):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    options = {**FAST, **METHOD_CASES[method].options, "per_device_train_batch_size": 6}
    with pytest.raises(ValueError, match=r"must hold whole groups: .*\(6\) must be a multiple .* \(4\)"):
        get_method(method).config(output_dir=str(tmp_path), **options)


def test_two_micro_batches_make_the_supervised_step_of_one(one, model, shapes, tmp_path):
    """TRL alone takes the mean of each micro-batch and then the mean of those for Qwen-VL."""
    whole = run_case(Case("sft", {"response_column": "response"}, rows=12), model, shapes, tmp_path, processes=1)
    assert whole["logs"][0]["loss"] == pytest.approx(one("sft")["logs"][0]["loss"], rel=1e-5)
    check_weights({**whole, "checksums": [0, 0]}, one("sft"), start=model, rate=1.0, kind="ddp")
