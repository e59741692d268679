"""The launch scripts: each runs as it stands with --smoke, says what it needs, and hands on what it is given."""

import json
import math
import os
import re
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
from vllm_server import Engine, VllmServer

from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers.arguments import parse_arguments

FOLDER = Path(__file__).parent.parent / "run_scripts"
SCRIPTS = sorted(FOLDER.glob("*/*.sh"))
CURATE = FOLDER / "egt" / "2_curate.sh"
MULTI_NODE = FOLDER / "vlm_r1" / "rec_multi_node.sh"
VLLM = [script for script in SCRIPTS if "vllm" in script.stem]
TRAINING = [script for script in SCRIPTS if script != CURATE]
SMOKES = [script for script in TRAINING if script not in (*VLLM, MULTI_NODE)]
TWO_PROCESSES = [FOLDER / "ecvgpo" / name for name in ("rec_internvl3_2b.sh", "rec_qwen2_5_vl_3b.sh")]
"""Of ZeRO-2 and of ZeRO-3."""
ROWS = 16
"""Of a smoke's data."""

GIVEN = {"MODEL": "m/o", "DATA": "d.jsonl", "IMAGES": "i i", "OUT": "o", "MACHINE_RANK": "1", "MAIN_IP": "10.0.0.1"}
GIVEN |= {"SERVER": "http://10.0.0.1:8000"}
LEFT_TO_USER = ["--num_train_epochs", "2", "--max_completion_length", "64"]
OWN_METRIC = {
    "two_stage": "two_stage/stage",
    "ecvgpo": "ecvgpo/reshaped",
    "calibrl": "calibrl/correct",
    "saei": "saei/clean_entropy",
    "3_train": "egt/stage",
}
"""What only the method of a folder, or of a script, logs."""
SMOKE_FLAGS = {
    *("use_cpu", "bf16", "attn_implementation", "max_steps", "num_train_epochs", "logging_steps", "save_strategy"),
    *("report_to", "gradient_accumulation_steps", "steps_per_generation", "max_completion_length"),
    *("min_pixels", "max_pixels", "per_device_train_batch_size"),
}
"""Flags of devices, steps and sizes: all that --smoke may set."""


def label(script):
    return f"{script.parent.name}/{script.stem}"


def named(scripts):
    return pytest.mark.parametrize("script", scripts, ids=label)


@pytest.fixture(scope="session")
def smoke_dir(tmp_path_factory):
    """One folder for all smokes and all workers of a test run: each model and data set is made once."""
    base = tmp_path_factory.getbasetemp()
    return str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke")


def start(script, *arguments, **environment):
    """A script with these variables, and none of its own from the environment of the tests."""
    own = {*GIVEN, "METHOD", "NUM_PROCESSES", "NUM_MACHINES", "MAIN_PORT", "SMOKE_DIR"}
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["bash", str(script), *arguments], env={**inherited, **environment}, **options)


def finish(process, *, code=0):
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output[-3000:]
    return output


def check_training(script, folder, *, processes=1):
    """Two steps with finite losses, one prompt per process in each, by the script's method and no other."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(math.isfinite(line[name]) for line in steps for name in ("loss", "grad_norm"))
    own = {OWN_METRIC[name] for name in (script.parent.name, script.stem) if name in OWN_METRIC}
    assert own == set(steps[0]) & set(OWN_METRIC.values())
    assert script.stem == "1_cold_start" or steps[-1]["epoch"] == 2 * processes / ROWS
    return steps


@pytest.mark.parametrize("script", SMOKES, ids=label)
def test_a_script_trains(smoke_dir, script):
    processes = 2 if script in TWO_PROCESSES else 1
    finish(start(script, "--smoke", SMOKE_DIR=smoke_dir, NUM_PROCESSES=str(processes)))
    check_training(script, f"{smoke_dir}/out/{label(script)}", processes=processes)


def test_the_processes_of_two_machines_train_together(smoke_dir):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MAIN_IP": "127.0.0.1", "MAIN_PORT": port, "SMOKE_DIR": smoke_dir}
    machines = [start(MULTI_NODE, "--smoke", MACHINE_RANK=rank, **place) for rank in ("0", "1")]
    for machine in machines:
        finish(machine)
    check_training(MULTI_NODE, f"{smoke_dir}/out/{label(MULTI_NODE)}", processes=2)


def test_curation_keeps_half_of_the_pairs_by_ascending_entropy(smoke_dir):
    finish(start(CURATE, "--smoke", SMOKE_DIR=smoke_dir))
    folder = Path(smoke_dir, "out", "egt", CURATE.stem)
    scored, kept = (
        [json.loads(line)["response_entropy"] for line in (folder / name).read_text().splitlines()]
        for name in ("scored.jsonl", "scored_kept.jsonl")
    )
    assert len(scored) == ROWS
    assert kept == sorted(scored)[: ROWS // 2]


@pytest.fixture
def vllm_stand_in(tmp_path):
    """A folder for PYTHONPATH with which the trainer finds the vLLM of `vllm_stand_in`."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        'if ["-m", "vlm_entropy.trainers"] == sys.orig_argv[2:4]:\n'
        f"    sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "    from vllm_stand_in import join_on_cpu, modules\n"
        "    sys.modules.update(modules())\n"
        "    from trl.generation.vllm_client import VLLMClient\n"
        "    join_on_cpu(VLLMClient)\n"
    )
    return str(tmp_path)


def test_the_script_of_a_colocated_vllm_samples_with_it(smoke_dir, vllm_stand_in):
    script = VLLM[0]
    finish(start(script, "--smoke", SMOKE_DIR=smoke_dir, PYTHONPATH=vllm_stand_in))
    steps = check_training(script, f"{smoke_dir}/out/{label(script)}")
    assert all("sampling/sampling_logp_difference/mean" in line for line in steps)


def test_the_script_of_a_vllm_server_samples_with_it(smoke_dir, vllm_stand_in, tmp_path):
    server = VllmServer(Engine(str(build_tiny_vlm("qwen2_5_vl", tmp_path / "model"))))
    Thread(target=server.serve_forever, daemon=True).start()
    script, place = VLLM[1], {"SERVER": server.url, "NUM_PROCESSES": "1", "PYTHONPATH": vllm_stand_in}
    try:
        finish(start(script, "--smoke", SMOKE_DIR=smoke_dir, **place))
    finally:
        server.shutdown()
        server.server_close()
    check_training(script, f"{smoke_dir}/out/{label(script)}")
    assert len(server.completions) == 2 * 8
    assert server.updates >= 1


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
@named(VLLM)
def test_a_script_of_vllm_says_that_it_is_missing(smoke_dir, script):
    for arguments in ([], ["--smoke"]):
        output = finish(start(script, *arguments, SMOKE_DIR=smoke_dir), code=1)
        assert f"{label(script)}: vLLM is not installed" in output.splitlines()[-1]


class Stub:
    """An `accelerate` that keeps its arguments and starts nothing."""

    def __init__(self, folder):
        self.folder = folder
        program = folder / "accelerate"
        program.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > '{folder}/argv'\n")
        program.chmod(0o755)
        (folder / "vllm").mkdir()
        (folder / "vllm" / "__init__.py").touch()

    def argv(self, script, *arguments, **environment):
        """What a script hands to accelerate, up to the module and from it."""
        path = {"PATH": f"{self.folder}:{os.environ['PATH']}", "PYTHONPATH": str(self.folder)}
        finish(start(script, *arguments, **path, **environment))
        argv = (self.folder / "argv").read_text().split("\0")[:-1]
        assert argv[0] == "launch"
        module = argv.index("-m")
        return argv[1:module], argv[module + 1 :]


@pytest.fixture
def stub(tmp_path):
    return Stub(tmp_path)


def pairs(argv):
    """Flags with their values, in order."""
    text = "\0".join(argv).split("\0--")
    return [tuple(part.removeprefix("--").split("\0")) for part in text]


@named(TRAINING)
def test_a_script_hands_on_what_it_is_given(stub, script):
    launcher, (module, *flags) = stub.argv(script, "--seed", "7", **GIVEN)
    assert module == "vlm_entropy.trainers"
    assert pairs(launcher)[0][0] == "config_file"
    assert Path(pairs(launcher)[0][1]).is_file()
    processes = {"rec_vllm_server": "4", "rec_multi_node": "16"}.get(script.stem, "8")
    assert ("num_processes", processes) in pairs(launcher)
    assert ("num_processes", "3") in pairs(stub.argv(script, NUM_PROCESSES="3", **GIVEN)[0])
    given = [
        ("model_name_or_path", "m/o"),
        ("data_file_paths", "d.jsonl"),
        ("image_folders", "i i"),
        ("output_dir", "o"),
    ]
    assert pairs(flags)[:4] == given
    assert pairs(flags)[-1] == ("seed", "7")


def test_each_machine_is_told_its_place(stub):
    launcher, _ = stub.argv(MULTI_NODE, NUM_MACHINES="3", **GIVEN)
    place = [("num_machines", "3"), ("machine_rank", "1"), ("main_process_ip", "10.0.0.1")]
    assert pairs(launcher)[1:] == [("num_processes", "24"), *place, ("main_process_port", "29500")]


@named(SMOKES)
def test_a_smoke_is_the_command_itself_but_for_devices_steps_and_sizes(stub, smoke_dir, script):
    real, smoke = stub.argv(script, **GIVEN)[1], stub.argv(script, "--smoke", SMOKE_DIR=smoke_dir)[1]
    real, smoke = pairs(real[1:])[4:], pairs(smoke[1:])[4:]
    assert smoke[: len(real)] == real
    added = {name for name, *_ in smoke[len(real) :]}
    assert added <= SMOKE_FLAGS | ({"alpha"} if script.parent.name == "saei" else set())


METHOD_NAMES = re.compile(r"METHOD=((?:\w+(?:, | or )?)+)(?: with((?: --\w+ \w+)+))?")
"""Names of methods in the head of a script, and the flags that they need besides."""


def baselines(script):
    """(method, flags) of each that the head of a script names."""
    head = script.read_text().partition("set -euo")[0].replace("\n# ", " ")
    return [
        (name, flags.split()) for names, flags in METHOD_NAMES.findall(head) for name in re.split(", | or ", names)
    ]


def parsed(stub, script, tmp_path, *, method=None, flags=()):
    """The method and options of the command of a script, and of METHOD."""
    environment = {**GIVEN, "OUT": str(tmp_path / "out"), **({"METHOD": method} if method else {})}
    left = [] if script.stem == "1_cold_start" else LEFT_TO_USER
    left = [*left, "--alpha", "0.01"] if script.parent.name == "saei" and method is None else left
    _, (_, *argv) = stub.argv(script, *left, *flags, "--bf16", "false", "--use_cpu", "true", **environment)
    _, run, config, _ = parse_arguments(argv)
    return run, config


@named(TRAINING)
@pytest.mark.usefixtures("eight_processes")
def test_a_script_trains_by_its_own_method_and_its_baselines_at_equal_rollouts(stub, tmp_path, script):
    run, config = parsed(stub, script, tmp_path)
    own = {"vlm_r1": "grpo", "1_cold_start": "sft", "3_train": "egt"}
    assert run.method == own.get(script.stem, own.get(script.parent.name, script.parent.name))
    named = baselines(script)
    assert named or run.method == "sft"
    for method, flags in named:
        other_run, other = parsed(stub, script, tmp_path, method=method, flags=flags)
        assert other_run.method == method
        assert (other_run.task_type, other_run.reward_funcs) == (run.task_type, run.reward_funcs)
        assert other.learning_rate == config.learning_rate
        if not flags:
            assert other.num_generations == config.num_generations
            assert other.generation_batch_size == config.generation_batch_size


@named(SCRIPTS)
def test_what_is_missing_is_one_sentence(stub, script):
    text = script.read_text()
    needed = [name for name in ("MODEL", "DATA", "IMAGES", "OUT") if f"{name}=${{{name}:-" not in text]
    needed += ["MACHINE_RANK", "MAIN_IP"] if script == MULTI_NODE else []
    path = {"PATH": f"{stub.folder}:{os.environ['PATH']}", "PYTHONPATH": str(stub.folder)}
    for name in needed:
        given = {key: value for key, value in GIVEN.items() if key != name}
        output = finish(start(script, **path, **given), code=1)
        assert output.startswith(f"{label(script)}: {name} is missing: ")
        assert output.count("\n") == 1


@named(SCRIPTS)
def test_a_script_says_what_it_needs(script):
    head, _, body = script.read_text().partition("set -euo pipefail\n")
    assert head.startswith("#!/usr/bin/env bash\n# ")
    for line in ("Needs: ", "Memory: ", "Hours: ", "Rows: ", "Example: "):
        assert f"\n# {line}" in head
    assert f"run_scripts/{script.parent.name}/{script.name}" in head
    assert body.startswith('source "$(dirname "$0")/../launch.sh"\n')
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


def test_no_two_scripts_are_the_same():
    bodies = ["\n".join(line for line in script.read_text().splitlines() if line[:1] != "#") for script in SCRIPTS]
    assert len(set(bodies)) == len(bodies)


def test_the_table_has_every_script_with_its_accelerate_file():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        [row] = [line for line in page.splitlines() if line.startswith(f"| [`{script.parent.name}/{script.name}`]")]
        [file] = re.findall(r"^(?:train|train_preset|curate) (\w+)", script.read_text(), flags=re.MULTILINE)
        assert f"`{file}`" in row
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page) if "://" not in link]
    assert all((FOLDER / link).exists() for link in links)
