"""`python -m vlm_entropy.eval compare plan.yaml`: train and evaluate what a plan asks for, and tell it in a table."""

import json
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import torch

from vlm_entropy.data.convert import write_whole

from .comparison import BASE, Outcome, as_json, evaluation_folder, leading_metrics, markdown, read_outcome, table
from .plan import Cell, Plan, read_plan
from .plan_flags import command_flags
from .result import jsonable
from .steps import Runner, Step, StepFailed


@dataclass
class CompareArguments:
    """Methods × shares of wrong labels × seeds from one model, as a plan says; run again, it does what is missing."""

    plan: str = field(metadata={"help": "YAML file; run_scripts/plans has some, eval/README.md says what it holds."})
    out: str | None = field(default=None, metadata={"help": "Folder to write to, in place of the plan's."})
    jobs: int = field(
        default=1,
        metadata={"help": "Trainings at a time on a machine without a GPU; with GPUs it is as many as they allow."},
    )

    def __post_init__(self):
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}.")


def compare(arguments: CompareArguments) -> None:
    """Run what a plan asks for and is not there yet, write `comparison.json`, `comparison.md` and the report.

    Raises:
        ValueError: for a plan that cannot work, or a folder that holds another plan's runs; nothing has run then.
        SystemExit: after the table, if a training or evaluation has failed, naming each.
    """
    plan = read_plan(arguments.plan, out=arguments.out)
    slots = device_slots(plan.gpus_per_run, jobs=arguments.jobs)
    preparation, cells = preparation_steps(plan), all_cells(plan)
    for step in [*preparation, *(step for cell in cells for step in cell_steps(plan, cell))]:
        step.claim()
    runner = Runner()
    with _ended_by_signals(runner):
        for step in preparation:
            try:
                _run(runner, step, gpus=slots[0] and slots[0][:1])
            except StepFailed as failure:
                raise ValueError(f"The preparation failed. {failure}") from None
        failures = run_cells(plan, cells, runner, slots=slots)
    outcomes = [read_outcome(cell, run_folder(plan, cell), plan) for cell in cells if cell not in failures]
    ends = [*failures.values(), *write(plan, outcomes, runner)]
    if ends:
        raise SystemExit("\n".join(["", *map(str, ends)]))


def all_cells(plan: Plan) -> list[Cell]:
    """The model that all start from, which is only evaluated, and every training."""
    cells = plan.cells()
    return [cells[0]._replace(method=BASE), *cells]


def run_folder(plan: Plan, cell: Cell) -> Path:
    return Path(plan.out, "runs", BASE if cell.method == BASE else cell.name)


def step_folder(plan: Plan, name: str) -> Path:
    return Path(plan.out, "steps", name)


def preparation_steps(plan: Plan) -> list[Step]:
    """What comes before the trainings: the plan's own commands, and a file of labels for every noise and seed."""
    steps = []
    for name, command in plan.prepare.items():
        room, *words = shlex.split(command)
        flags = dict(pairwise(words))
        out = Path(flags.get("--out", ""))
        is_ours = words[:1] == ["make"] and out.is_relative_to(plan.out) and out != Path(plan.out)
        step = Step(step_folder(plan, f"prepare-{name}"), _module(room, *words), out if is_ours else None)
        steps.append(step)
    return [*steps, *noise_steps(plan)]


def noise_steps(plan: Plan) -> list[Step]:
    """A file of rows for each share and seed: the same wrong labels for all methods."""
    if not plan.noise:
        return []
    flags = {"image_folder": plan.images, **{name: value for name, value in plan.noise.items() if name != "ratios"}}
    cells = dict.fromkeys((cell.noise, cell.seed) for cell in plan.cells())
    return [
        Step(
            step_folder(plan, f"noise{noise:g}-seed{seed}"),
            _module(
                "data",
                "noise",
                *command_flags({"data": plan.data, "out": rows_file(plan, noise, seed), "ratio": noise, "seed": seed}),
                *command_flags(flags),
            ),
        )
        for noise, seed in cells
    ]


def rows_file(plan: Plan, noise: float, seed: int) -> str:
    """The rows that the trainings with this noise and seed read."""
    return str(Path(plan.out, f"rows-noise{noise:g}-seed{seed}.jsonl")) if plan.noise else plan.data


def cell_steps(plan: Plan, cell: Cell) -> list[Step]:
    """The training of a cell, its evaluations and its entropies, in order."""
    run, name = run_folder(plan, cell), run_folder(plan, cell).name
    steps = []
    if cell.method != BASE:
        paths = {
            "model_name_or_path": plan.model,
            "data_file_paths": rows_file(plan, cell.noise, cell.seed),
            "image_folders": plan.images or None,
            "output_dir": str(run),
            "seed": cell.seed,
        }
        command = _module("trainers", *command_flags({**plan.method_flags(cell.method), **paths}), plan=plan)
        steps.append(Step(step_folder(plan, f"{name}-train"), command))
    model = plan.model if cell.method == BASE else str(run)
    for evaluation, flags in plan.evaluate.items():
        out = str(evaluation_folder(run, plan, evaluation))
        command = _module("eval", "run", *command_flags({**flags, "model": model, "out": out}), plan=plan)
        steps.append(Step(step_folder(plan, f"{name}-{evaluation}"), command))
    if plan.entropy:
        flags = {**plan.entropy, "model": model, "out": str(run / "entropy")}
        command = _module("eval", "entropy", *command_flags(flags), plan=plan)
        steps.append(Step(step_folder(plan, f"{name}-entropy"), command))
    return steps


def _module(room: str, *words: str, plan: Plan | None = None) -> tuple[str, ...]:
    """A command of ours, on all the GPUs that the plan gives to one run."""
    module = ("-m", f"vlm_entropy.{room}", *words)
    if plan is None or plan.gpus_per_run == 1:
        return module
    is_training = room == "trainers" and plan.accelerate_config is not None
    config = ("--config_file", str(plan.accelerate_config)) if is_training else ()
    port = ("--main_process_port", "0")  # several runs on one machine
    launch = ("-m", "accelerate.commands.launch", *config, *port, "--num_processes", str(plan.gpus_per_run))
    return (*launch, *module)


def device_slots(gpus_per_run: int, *, jobs: int) -> list[list[str] | None]:
    """The GPUs of each run that fits on this machine at a time; without a GPU `jobs` times None.

    Raises:
        ValueError: if there are GPUs and not enough of them for one run.
    """
    count = torch.cuda.device_count()
    if count == 0:
        return [None] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    if len(names) < gpus_per_run:
        raise ValueError(f"gpus_per_run is {gpus_per_run}, and {len(names)} GPUs are there.")
    starts = range(0, len(names) - gpus_per_run + 1, gpus_per_run)
    return [names[start : start + gpus_per_run] for start in starts]


def run_cells(
    plan: Plan, cells: Sequence[Cell], runner: Runner, *, slots: Sequence[list[str] | None]
) -> dict[Cell, StepFailed]:
    """Run the steps of all cells, as many cells at a time as there are slots; return those that failed, and how."""
    free: SimpleQueue = SimpleQueue()
    for slot in slots:
        free.put(slot)

    def work(cell: Cell) -> StepFailed | None:
        gpus = free.get()
        try:
            for step in cell_steps(plan, cell):
                _run(runner, step, gpus=gpus)
        except StepFailed as failure:
            if not runner.is_stopped:
                print(failure, flush=True)
            return failure
        finally:
            free.put(gpus)
        return None

    with ThreadPoolExecutor(len(slots)) as pool:
        try:
            ended = dict(zip(cells, pool.map(work, cells), strict=True))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise
    return {cell: failure for cell, failure in ended.items() if failure is not None}


def _run(runner: Runner, step: Step, *, gpus: Sequence[str] | None) -> None:
    if step.seconds() is None:
        print(f"{step.folder.name} ...", flush=True)
        runner.run(step, gpus=gpus)
        print(f"{step.folder.name}: {step.seconds():.0f} s", flush=True)


@contextmanager
def _ended_by_signals(runner: Runner) -> Iterator[None]:
    """End the running commands when this process is told to end."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        runner.stop()
        raise SystemExit("vlm-entropy-eval: ended; the same command goes on from here.") from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def write(plan: Plan, outcomes: Sequence[Outcome], runner: Runner) -> list[StepFailed]:
    """Write comparison.json, comparison.md and the report; print the table and where they are.

    Returns:
        Why there is no report, if it failed.
    """
    rows = table(outcomes, plan)
    content = jsonable(as_json(plan, outcomes, rows))
    out = Path(plan.out)
    write_whole(out / "comparison.json", [json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"])
    text = markdown(plan, rows, leading_metrics(plan, outcomes))
    write_whole(out / "comparison.md", [text.encode()])
    print(f"\n{text}\n{out / 'comparison.json'} has every figure.", flush=True)
    page = out / "report" / "report.html"
    report = Step(
        step_folder(plan, "report"), _module("eval", "report", "--runs", plan.out, "--out", str(page.parent))
    )
    report.claim()
    (report.folder / "done.json").unlink(missing_ok=True)
    try:
        runner.run(report, gpus=None)
    except StepFailed as failure:
        return [failure]
    print(f"The curves and answers are in {page}.")
    return []
