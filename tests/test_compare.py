"""Comparisons: plans are checked before anything runs, steps run once, and what fails is named."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from vlm_entropy.data.__main__ import main as data_main
from vlm_entropy.eval import compare as compare_module
from vlm_entropy.eval import plan as plan_module
from vlm_entropy.eval.__main__ import main
from vlm_entropy.eval.compare import CompareArguments, cell_steps, compare, device_slots, preparation_steps, run_cells
from vlm_entropy.eval.comparison import Cell
from vlm_entropy.eval.plan import read_plan
from vlm_entropy.eval.plan_flags import command_flags
from vlm_entropy.eval.steps import Runner, Step, StepFailed, last_lines
from vlm_entropy.trainers.__main__ import main as train_main
from vlm_entropy.trainers.metrics import read_lines

ROOT = Path(__file__).parent.parent
PLANS = sorted((ROOT / "run_scripts" / "plans").glob("*.yaml"))
FAKE = """
import json, os, sys, pathlib
room, *words = sys.argv[1:]
flags = dict(zip(words, words[1:]))
with open(os.environ["FAKE_CALLS"], "a") as calls:
    calls.write(json.dumps([room, words]) + "\\n")
if words[:1] == ["report"]:
    sys.exit()
if words[:1] == ["noise"]:
    pathlib.Path(flags["--out"]).write_text("{}")
elif room == "trainers":
    if flags["--method"] == os.environ.get("FAKE_BROKEN"):
        print("the sky is falling\\nCUDA out of memory")
        sys.exit(3)
    run = pathlib.Path(flags["--output_dir"])
    run.mkdir(parents=True)
    tokens = {"grpo": 1000, "two_stage": 1000, "saei": 1600}[flags["--method"]]
    lines = [{"step": step, "entropy": 0.5, "step_time": 2.0, "num_tokens": tokens * step} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
else:
    run, model = pathlib.Path(flags["--out"]), pathlib.Path(flags["--model"]).name
    right = 2 if model.startswith("grpo") else 3 if model.startswith("two_stage") else 1
    run.mkdir(parents=True, exist_ok=True)
    values = [float(item < right) for item in range(4)]
    lines = [{"id": str(item), "values": {"accuracy": value}} for item, value in enumerate(values)]
    (run / "scores.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    figure = {"value": right / 4, "low": 0, "high": 1}
    (run / "result.json").write_text(json.dumps({"bench": "rows", "metrics": {"accuracy": figure}, "totals": {}}))
"""


def is_for_gpus(path):
    return "tiny" not in path.stem and "demo" not in path.stem


@pytest.fixture
def content(shapes, tiny_model, tmp_path):
    """A plan that is right."""
    return {
        "out": str(tmp_path / "out"),
        "model": str(tiny_model),
        "data": str(shapes / "train.jsonl"),
        "images": str(shapes / "images"),
        "noise": {"kind": "box", "ratios": [0, 0.5]},
        "seeds": [3, 4],
        "train": {"use_cpu": True, "bf16": False, "max_steps": 2, "num_generations": 4},
        "methods": {"grpo": {}, "two_stage": {"switch_step": 1}},
        "evaluate": {"heldout": {"data": str(shapes / "heldout.jsonl"), "images": str(shapes / "images")}},
    }


def written(content, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def changed(content, place, value):
    """The content with one value replaced; `place` is a path of keys."""
    *parents, last = place.split("/")
    at = content
    for key in parents:
        at = at[key]
    at[last] = value
    return content


MISTAKES = [
    ("methods/gpro", {}, r"Unknown method 'gpro'; the methods are"),
    (
        "methods/two_stage",
        {"switch_stepp": 1},
        "methods: two_stage sets switch_stepp, and .* 'two_stage' has no such ",
    ),
    ("methods/grpo", {"switch_step": 1}, "methods: grpo sets switch_step, and .* 'grpo' has no such option"),
    ("train/learning_rat", 1, "train sets learning_rat, .* is 'learning_rate' meant"),
    ("methods/grpo", {"max_steps": 3}, "methods: grpo sets max_steps; what decides how much is sampled is the same"),
    ("train/seed", 3, "train sets seed, which a comparison sets itself"),
    ("methods/two_stage", {"lambda_max": "much"}, "methods: two_stage: argument --lambda_max.*: invalid float value"),
    ("methods/ecvgpo", {}, "methods: ecvgpo: .*r0"),
    ("methods/grpo", [1], r"grpo must be a mapping of flags, \{\} for none, got \[1\]"),
    ("seeds", [0, "one"], "seeds must be whole numbers >= 0, got 'one'"),
    ("seeds", [0, True], "seeds must be whole numbers >= 0, got True"),
    ("seeds", [1, 1], r"seeds must be whole numbers, each once, got \[1, 1\]"),
    ("seeds", 3, "seeds of the plan must be a list, got 3"),
    ("noise/ratios", [0.5, 1.5], r"ratios must lie in \[0, 1\], got 1.5"),
    ("noise/ratios", ["half"], r"ratios must lie in \[0, 1\], got 'half'"),
    ("noise/ratios", [0.5, 0.5], "a ratio stands there twice"),
    ("noise/kind", "boxes", "noise: kind is 'boxes'; allowed are box, point"),
    ("noise/share", 1, "noise has no 'share'"),
    ("data", "no/such.jsonl", "data is 'no/such.jsonl', which does not exist"),
    ("images", "no/such", "images is 'no/such', which does not exist"),
    ("evaluate/heldout/data", "/no/such.jsonl", "data of heldout is '/no/such.jsonl', which does not exist"),
    ("model", "./no/such", "model is './no/such', which is neither a folder nor a name on the hub"),
    ("evaluate/heldout/bench", "refcocoo", "bench is 'refcocoo'; allowed are rows, "),
    ("evaluate/heldout/temperatur", 1, "evaluate: heldout sets temperatur, which is no option"),
    ("evaluate/heldout/batch_size", 0, "evaluate: heldout: batch_size must be at least 1, got 0"),
    ("evaluate", {}, "evaluate of the plan names no evaluation"),
    ("entropy", {"data": "no/such.jsonl"}, "data of entropy is 'no/such.jsonl', which does not exist"),
    ("entropy", {"images": "", "samples": 4}, "entropy: the following arguments are required: --data"),
    ("baseline", "dapo", "baseline is 'dapo', which is none of the methods grpo, two_stage"),
    ("method", "grpo", "A plan has no 'method', is 'methods' meant"),
    ("gpus_per_run", 0, "gpus_per_run must be a whole number >= 1, got 0"),
    ("accelerate_config", "zero9.yaml", "accelerate_config 'zero9.yaml' does not exist"),
    ("prepare", {"data": "rm -rf /"}, "prepare: data must start with one of data, trainers, eval, got 'rm -rf /'"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), MISTAKES, ids=[f"{m[0]}={m[1]}"[:40] for m in MISTAKES])
def test_a_mistake_in_a_plan_is_one_sentence_before_anything_runs(
    content, tmp_path, monkeypatch, place, value, sentence
):
    monkeypatch.setattr(Runner, "run", lambda *args, **kwargs: pytest.fail("something ran"))
    with pytest.raises(ValueError, match=sentence) as raised:
        compare(CompareArguments(written(changed(content, place, value), tmp_path)))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_plan_that_is_no_plan_is_one_sentence(tmp_path):
    for text, sentence in (("- 1", "must be a mapping"), ("a: [", "is not YAML"), ("{}", "does not say 'out'")):
        (tmp_path / "plan.yaml").write_text(text)
        with pytest.raises(SystemExit, match=sentence):
            main(["compare", str(tmp_path / "plan.yaml")])
    with pytest.raises(SystemExit, match=r"The plan 'nothing.yaml' does not exist"):
        main(["compare", "nothing.yaml"])


@pytest.mark.parametrize("path", [path for path in PLANS if not is_for_gpus(path)], ids=lambda path: path.stem)
def test_the_plans_for_a_cpu_can_work(path, tmp_path):
    plan = read_plan(str(path), out=str(tmp_path))
    assert plan.train["use_cpu"] is True
    assert plan.baseline == "grpo"


@pytest.fixture
def on_cpu(monkeypatch):
    """A plan for GPUs is checked as far as one can without any: its trainings are told to use the CPU."""
    change = {"use_cpu": "true", "bf16": "false", "max_steps": "40"}
    flags = [part for name, value in change.items() for part in (f"--{name}", value)]
    taken = plan_module.check_training
    monkeypatch.setattr(plan_module, "check_training", lambda name, given: taken(name, [*given, *flags]))


@pytest.mark.parametrize("path", [path for path in PLANS if is_for_gpus(path)], ids=lambda path: path.stem)
@pytest.mark.usefixtures("eight_processes", "on_cpu")
def test_the_plans_for_gpus_can_work_where_their_data_is(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run_scripts").symlink_to(ROOT / "run_scripts")
    content = yaml.safe_load(path.read_text())
    paths = [content["data"], *(of_bench["data"] for of_bench in content["evaluate"].values())]
    folders = [content["images"], *(of_bench.get("images", "data") for of_bench in content["evaluate"].values())]
    for name in [*paths, *folders]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        (Path(name).touch if name.endswith(".jsonl") else Path(name).mkdir)(exist_ok=True)
    plan = read_plan(str(path))
    assert plan.gpus_per_run == 8
    assert "use_cpu" not in plan.train


@pytest.mark.parametrize("path", [path for path in PLANS if is_for_gpus(path)], ids=lambda path: path.stem)
def test_a_plan_for_gpus_has_a_small_one_beside_it_with_the_same_methods(path):
    large, small = (yaml.safe_load(plan.read_text()) for plan in (path, path.with_stem(f"{path.stem}_tiny")))
    assert list(large["methods"]) == list(small["methods"])
    assert large.get("noise", {}).get("ratios") == small.get("noise", {}).get("ratios")


def test_values_become_a_command_line():
    flags = {"a": True, "b": False, "c": [1, "x y"], "d": None, "e": {"k": 1}, "f": 1e-6}
    assert command_flags(flags) == [
        "--a",
        "true",
        "--b",
        "false",
        "--c",
        "1",
        "x y",
        "--e",
        '{"k": 1}',
        "--f",
        "1e-06",
    ]


def test_all_methods_of_a_seed_read_the_same_wrong_labels_and_nothing_else_differs(content, tmp_path):
    plan = read_plan(written(content, tmp_path))
    cells = plan.cells()
    assert [cell.name for cell in cells[:3]] == ["grpo-noise0-seed3", "two_stage-noise0-seed3", "grpo-noise0.5-seed3"]
    assert len(cells) == 8
    commands = {
        cell: dict(zip(step.command, step.command[1:])) for cell in cells for step in cell_steps(plan, cell)[:1]
    }
    grpo, two_stage = (commands[Cell(method, 0.5, 4)] for method in plan.methods)
    differing = {
        flag for flag in {**grpo, **two_stage} if flag.startswith("--") and grpo.get(flag) != two_stage.get(flag)
    }
    assert differing == {"--method", "--output_dir", "--switch_step"}
    assert (grpo["--seed"], grpo["--data_file_paths"]) == ("4", f"{plan.out}/rows-noise0.5-seed4.jsonl")
    noise = preparation_steps(plan)
    assert len(noise) == 4, "a file for each share and seed, whatever the number of methods"
    flags = dict(zip(noise[-1].command, noise[-1].command[1:]))
    assert (flags["--seed"], flags["--ratio"], flags["--out"]) == ("4", "0.5", f"{plan.out}/rows-noise0.5-seed4.jsonl")


def test_a_methods_own_flags_win_over_those_of_all(content, tmp_path):
    content = changed(content, "train/learning_rate", 0.5)
    content = changed(content, "methods/slow", {"method": "two_stage", "switch_step": 1, "learning_rate": 0.25})
    plan = read_plan(written(content, tmp_path))
    rates = []
    for method in plan.methods:
        command = cell_steps(plan, Cell(method, 0.5, 3))[0].command
        assert command.count("--learning_rate") == command.count("--method") == 1
        flags = dict(pairwise(command))
        rates.append((flags["--method"], flags["--learning_rate"]))
    assert rates == [("grpo", "0.5"), ("two_stage", "0.5"), ("two_stage", "0.25")]


def test_several_gpus_train_and_evaluate_one_run_through_accelerate(content, tmp_path):
    config = tmp_path / "zero3.yaml"
    config.write_text("{}")
    plan = read_plan(written({**content, "gpus_per_run": 4, "accelerate_config": str(config)}, tmp_path))
    train, evaluate = cell_steps(plan, Cell("grpo", 0.5, 3))
    assert train.command[2:4] == ("--config_file", str(config))
    assert "--config_file" not in evaluate.command, "DeepSpeed is for training"
    for step in (train, evaluate):
        assert step.command[:2] == ("-m", "accelerate.commands.launch")
        assert step.command[step.command.index("--num_processes") + 1] == "4"
        assert step.command[step.command.index("-m", 2) + 1].startswith("vlm_entropy.")


def test_runs_share_out_the_gpus_of_the_machine(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    assert device_slots(2, jobs=1) == [["0", "1"], ["2", "3"]]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,3")
    assert device_slots(1, jobs=1) == [["6"], ["3"]]
    with pytest.raises(ValueError, match="gpus_per_run is 4, and 2 GPUs are there"):
        device_slots(4, jobs=1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert device_slots(4, jobs=2) == [None, None]


def python(folder, code):
    folder.mkdir(parents=True, exist_ok=True)
    return Step(folder, ("-c", code))


def test_a_step_runs_once_and_keeps_its_log(tmp_path):
    step, runner = (
        python(tmp_path / "step", "import os; print('hello'); open('%s', 'a').write('x')" % (tmp_path / "ran")),
        Runner(),
    )
    runner.run(step, gpus=None)
    runner.run(step, gpus=None)
    assert (tmp_path / "ran").read_text() == "x"
    assert "hello" in (step.folder / "log.txt").read_text()
    assert step.seconds() is not None


def test_a_step_sees_only_its_gpus(tmp_path):
    step = python(tmp_path / "step", "import os; print('sees', os.environ['CUDA_VISIBLE_DEVICES'])")
    Runner().run(step, gpus=["6", "3"])
    assert "sees 6,3" in (step.folder / "log.txt").read_text()


def test_a_failed_step_says_so_with_the_end_of_its_log_and_runs_again(tmp_path):
    step = python(tmp_path / "step", "print('x' * 9, end='\\r'); print('last words'); raise SystemExit(7)")
    for _ in range(2):
        with pytest.raises(StepFailed, match=r"step ended with exit code 7:\n(.*\n)*    last words"):
            Runner().run(step, gpus=None)
    assert step.seconds() is None
    assert "xxx" not in last_lines(step.folder), "of a progress bar only what it showed last"


def test_a_folder_of_another_command_is_refused(tmp_path):
    python(tmp_path / "step", "1").claim()
    with pytest.raises(ValueError, match="holds work with command"):
        python(tmp_path / "step", "2").claim()


def test_a_step_waits_for_a_process_that_outlived_its_comparison(tmp_path):
    """Two trainings in one folder would destroy each other's checkpoints."""
    folder = tmp_path / "step"
    folder.mkdir()
    order = tmp_path / "order"
    child = Step(folder, ("-c", f"import time; time.sleep(1); open({str(order)!r}, 'a').write('first ')"))
    parent = os.fork()
    if parent == 0:  # starts the step, and is killed while it runs
        threading.Thread(target=Runner().run, args=(child,), kwargs={"gpus": None}).start()
        while not (folder / "log.txt").is_file() or not (folder / "log.txt").stat().st_size:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), 9)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == -9
    step = python(folder, f"open({str(order)!r}, 'a').write('second')")
    Runner().run(step, gpus=None)
    assert order.read_text() == "first second"


def test_told_to_end_all_steps_end_and_no_other_starts(tmp_path):
    runner, failures = Runner(), []

    def run(name):
        try:
            runner.run(python(tmp_path / name, "import time; time.sleep(60)"), gpus=None)
        except StepFailed as failure:
            failures.append(str(failure))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    while len(runner._running) < 2:
        time.sleep(0.01)
    runner.stop()
    for thread in threads:
        thread.join(20)
    assert len(failures) == 2
    with pytest.raises(StepFailed, match="was not started"):
        runner.run(python(tmp_path / "c", "print(1)"), gpus=None)


def test_a_task_that_was_drawn_halfway_is_drawn_anew(tmp_path):
    task = tmp_path / "task"
    code = f"import os, pathlib; os.mkdir({str(task)!r}); pathlib.Path({str(task / 'rows')!r}).touch()"
    step = Step(tmp_path / "step", ("-c", code), replaces=task)
    step.folder.mkdir()
    task.mkdir()
    with pytest.raises(StepFailed, match="File exists"):
        Runner().run(step, gpus=None)  # the folder was there before: not ours to remove
    (task / "half").touch()
    Runner().run(step, gpus=None)
    assert [path.name for path in task.iterdir()] == ["rows"]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Commands that write in no time what the real ones write; calls() are those that ran."""
    script, calls = tmp_path / "fake.py", tmp_path / "calls.jsonl"
    script.write_text(FAKE)
    monkeypatch.setattr(compare_module, "_module", lambda room, *words, plan=None: (str(script), room, *words))
    monkeypatch.setenv("FAKE_CALLS", str(calls))

    def taken():
        lines = [json.loads(line) for line in calls.read_text().splitlines()]
        calls.write_text("")
        return [f"{words[0] if words[0][:2] != '--' else room}" for room, words in lines]

    return taken


def test_a_comparison_runs_what_is_missing_and_nothing_twice(content, tmp_path, fake, capsys):
    path = written({**content, "seeds": [0], "noise": {"kind": "box", "ratios": [0.5]}}, tmp_path)
    main(["compare", path])
    assert fake() == ["noise", "run", "trainers", "run", "trainers", "run", "report"]
    printed = capsys.readouterr().out
    # Of four items GRPO has 2 right and two_stage 3: one more, which the bootstrap over four cannot tell from none.
    assert "| grpo | 0.500 | 0.500 |  |  |  |" in printed
    assert "| two_stage | 0.750 (+0.250 [+0.000, +0.750], not shown) | 0.500 (+0.000) | +0 | +0.0 |  |" in printed
    out = tmp_path / "out"
    first = (out / "comparison.json").read_bytes()
    main(["compare", path])
    assert fake() == ["report"]
    assert (out / "comparison.json").read_bytes() == first
    # A training that was killed left no done.json: it runs again, and so does what it was to be asked.
    for step in ("two_stage-noise0.5-seed0-train", "two_stage-noise0.5-seed0-heldout"):
        (out / "steps" / step / "done.json").unlink()
    shutil.rmtree(out / "runs" / "two_stage-noise0.5-seed0")
    main(["compare", path])
    assert fake() == ["trainers", "run", "report"]
    assert (out / "comparison.json").read_bytes() == first
    # Another seed is added to what is there.
    path = written({**content, "seeds": [0, 1], "noise": {"kind": "box", "ratios": [0.5]}}, tmp_path)
    main(["compare", path])
    assert fake() == ["noise", "trainers", "run", "trainers", "run", "report"]


def test_other_flags_for_the_same_runs_are_refused_before_anything_runs(content, tmp_path, fake):
    main(["compare", written(content, tmp_path)])
    fake()
    path = written(changed(content, "train/max_steps", 5), tmp_path)
    with pytest.raises(SystemExit, match=r"holds work with command .* name another folder, or remove that one"):
        main(["compare", path])
    assert fake() == []


def test_a_failed_training_is_named_with_its_log_and_the_others_go_on(content, tmp_path, fake, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_BROKEN", "two_stage")
    content = {**content, "methods": {**content["methods"], "saei": {}}, "seeds": [0], "noise": {}}
    with pytest.raises(
        SystemExit, match=r"two_stage-noise0-seed0-train ended with exit code 3:\n(.*\n)*.*CUDA out of"
    ):
        main(["compare", written(content, tmp_path)])
    printed = capsys.readouterr().out
    assert "| saei | 0.250 (-0.250" in printed
    assert "+1,200 | +0.0 |" in printed  # 1600 · 2 tokens against 1000 · 2
    assert "| two_stage |" not in printed
    table = json.loads((tmp_path / "out" / "comparison.json").read_text())["table"]
    assert {row["method"] for row in table} == {"base", "grpo", "saei"}


def test_cells_run_at_the_same_time_each_on_its_own_gpu(content, tmp_path, monkeypatch):
    code = (
        "import os, pathlib, sys, time; here = pathlib.Path(sys.argv[1]); "
        "mine = os.environ['CUDA_VISIBLE_DEVICES']; (here / mine).touch(); start = time.time()\n"
        "while len(list(here.iterdir())) < 2 and time.time() < start + 20: time.sleep(0.01)\n"
        "print('met' if len(list(here.iterdir())) == 2 else 'alone')"
    )
    meeting = tmp_path / "meeting"
    meeting.mkdir()

    def steps(plan, cell):
        folder = tmp_path / cell.name
        folder.mkdir()
        return [Step(folder, ("-c", code, str(meeting)))]

    monkeypatch.setattr(compare_module, "cell_steps", steps)
    cells = [Cell("grpo", 0.0, seed) for seed in (0, 1)]
    assert run_cells(read_plan(written(content, tmp_path)), cells, Runner(), slots=[["0"], ["1"]]) == {}
    assert [(tmp_path / cell.name / "log.txt").read_text().splitlines()[-1] for cell in cells] == ["met", "met"]
    assert {path.name for path in meeting.iterdir()} == {"0", "1"}


@pytest.mark.slow
def test_a_killed_comparison_goes_on_from_its_checkpoint(content, shapes, tmp_path):
    """Killed with everything it started in the middle of a real training: the run ends as one that was not."""
    train = {"save_steps": 5, "max_steps": 12, "per_device_train_batch_size": 4, "max_completion_length": 6}
    content["train"] |= train | {"task_type": "plain", "gradient_checkpointing": False, "logging_steps": 1}
    content |= {"seeds": [0], "noise": {"kind": "box", "ratios": [0.5]}, "methods": {"grpo": {}}}
    content["evaluate"]["heldout"] |= {"task_type": "plain", "max_new_tokens": 6, "temperature": 1}
    command = [sys.executable, "-m", "vlm_entropy.eval", "compare", written(content, tmp_path), "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=500)
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], start_new_session=True)
    checkpoint = tmp_path / "killed" / "runs" / "grpo-noise0.5-seed0" / "checkpoint-5" / "trainer_state.json"
    while not checkpoint.is_file():
        assert killed.poll() is None
        time.sleep(0.1)
    os.killpg(killed.pid, 9)
    killed.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, timeout=500)
    logs = (tmp_path / "killed" / "steps" / "grpo-noise0.5-seed0-train" / "log.txt").read_text()
    assert logs.count("$ python") == 2
    for name in ("predictions.jsonl", "scores.jsonl"):
        of_runs = [
            (tmp_path / out / "runs" / "grpo-noise0.5-seed0" / name).read_bytes() for out in ("whole", "killed")
        ]
        assert of_runs[0] == of_runs[1]


def test_the_plan_in_the_readme_can_work(tiny_model, tmp_path, monkeypatch):
    page = (ROOT / "eval" / "README.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "heldout.jsonl"):
        Path(name).touch()
    Path("images").mkdir()
    Path("checkpoints").mkdir()
    Path("checkpoints/base").symlink_to(tiny_model)
    plan = read_plan(written(yaml.safe_load(text), tmp_path))
    assert len(plan.cells()) == 18


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PLANS if not is_for_gpus(path)], ids=lambda path: path.stem)
def test_every_method_of_a_plan_for_a_cpu_trains_two_steps(path, tmp_path):
    """From random weights, in this process: the trainers take the flags, which their parsers alone do not tell."""
    plan = read_plan(str(path), out=str(tmp_path))
    for name, command in plan.prepare.items():
        if name in ("data", "model"):
            data_main(shlex.split(command)[1:])
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    scored = [{**row, "response_entropy": float(place % 7)} for place, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    for name in plan.methods:
        paths = {"model_name_or_path": tmp_path / "random", "data_file_paths": tmp_path / "rows.jsonl"}
        paths |= {"image_folders": plan.images, "output_dir": tmp_path / "runs" / name}
        flags = {**plan.method_flags(name), "max_steps": 2, "per_device_train_batch_size": 8}
        train_main(command_flags({**flags, **paths}))
        logs = read_lines(tmp_path / "runs" / name / "metrics.jsonl")
        assert [log["step"] for log in logs if "loss" in log] == [1, 2], name
        assert all(math.isfinite(log["loss"]) for log in logs if "loss" in log), name
