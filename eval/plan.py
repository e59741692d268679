"""A plan of `eval compare`: what is compared, read from YAML and checked before anything runs."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from vlm_entropy.data.noise_files import Kind

from .arguments import RunArguments
from .entropy import EntropyArguments
from .plan_flags import Flags, check_asking, check_training, command_flags, option_names

PLACE = "{out}"
SET_BY_US = ("model_name_or_path", "data_file_paths", "image_folders", "output_dir", "seed", "data_seed")
BUDGET = (
    "num_generations",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
    "max_steps",
    "num_train_epochs",
    "max_completion_length",
)
"""Options of training that decide how much is sampled; they are the same for all methods."""
ROOMS = ("data", "trainers", "eval")


class Cell(NamedTuple):
    """One training of a plan."""

    method: str
    """Its name in the plan."""
    noise: float
    """Share of wrong labels."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-noise{self.noise:g}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Methods × shares of wrong labels × seeds, from one model, on the same data and budget."""

    out: str
    """Folder of everything that is written; `{out}` in the other values stands for it."""
    model: str
    """Checkpoint that all trainings start from: folder, or name on the hub."""
    data: str
    """Clean training rows, one JSON Lines file in VLM-R1's format."""
    methods: dict[str, Flags]
    """Flags of each method alone, by a name; the name is its `method` unless they give one."""
    evaluate: dict[str, Flags]
    """Flags of `eval run` by a name; the first is the evaluation that a run's own folder holds."""
    train: Flags = field(default_factory=dict)
    """Flags of every training."""
    entropy: Flags = field(default_factory=dict)
    """Flags of `eval entropy` of every model, into the folder that the report reads; nothing: none."""
    images: str = ""
    """Folder that the image paths of `data` start from."""
    prepare: dict[str, str] = field(default_factory=dict)
    """Commands that make model and data, by a name, as in "data make --task shapes --out {out}/data"; run in order."""
    noise: Flags = field(default_factory=dict)
    """`ratios`, a list of shares of wrong labels, `kind` and other flags of `data noise`; nothing: right labels."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Of noise, training and order of the data."""
    baseline: str = "grpo"
    """Name of the method that the others are compared with."""
    metrics: list[str] = field(default_factory=list)
    """Metrics of the printed table; the leading one of each evaluation by default."""
    gpus_per_run: int = 1
    """GPUs of one training or evaluation, on a machine that has any."""
    accelerate_config: str | None = None
    """Config file of `accelerate launch`, for more than one GPU."""

    def cells(self) -> list[Cell]:
        """Every training, seed by seed, so that an early end leaves whole comparisons."""
        ratios = self.noise.get("ratios", [0.0])
        return [Cell(method, float(noise), seed) for seed, noise, method in product(self.seeds, ratios, self.methods)]

    def method_flags(self, name: str) -> Flags:
        """Flags of the trainings of a method, its own over those of all."""
        return {"method": name, **self.train, **self.methods[name]}


def read_plan(path: str, *, out: str | None = None) -> Plan:
    """Read and check a plan.

    Args:
        path: YAML file.
        out: folder in place of the plan's.

    Raises:
        ValueError: one sentence on the first thing that is wrong.
    """
    if not Path(path).is_file():
        raise ValueError(f"The plan {path!r} does not exist.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The plan {path!r} is not YAML: {' '.join(str(error).split())}.") from None
    plan = _plan({**content, **({} if out is None else {"out": out})}) if isinstance(content, dict) else None
    if plan is None:
        raise ValueError(f"The plan {path!r} must be a mapping of {', '.join(one.name for one in fields(Plan))}.")
    try:
        check_plan(plan)
    except OSError as error:
        raise ValueError(f"The plan {path!r} names a file that cannot be read: {error}.") from None
    return plan


def _plan(content: Mapping[Any, Any]) -> Plan:
    known = {one.name: one for one in fields(Plan)}
    for name in content:
        if name not in known:
            raise ValueError(f"A plan has no {name!r}{_meant(str(name), known)}; it has {', '.join(known)}.")
    for name, one in known.items():
        if name not in content and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"The plan does not say {name!r}.")
    mappings = ("train", "noise", "methods", "evaluate", "entropy", "prepare")
    shapes: dict[str, Any] = {**dict.fromkeys(mappings, dict), "seeds": list, "metrics": list}
    shapes |= dict.fromkeys(("out", "model", "data", "images", "baseline"), str)
    for name, shape in shapes.items():
        if not isinstance(content.get(name, shape()), shape):
            kind = {dict: "a mapping", list: "a list", str: "text"}[shape]
            raise ValueError(f"{name} of the plan must be {kind}, got {content[name]!r}.")
    filled = _fill({name: value for name, value in content.items() if name != "out"}, content["out"])
    plan = Plan(out=content["out"], **filled)
    for name, flags in {"train": plan.train, **plan.methods}.items():
        if not isinstance(flags, dict):
            raise ValueError(f"{name} must be a mapping of flags, {{}} for none, got {flags!r}.")
    return plan


def _fill(value: Any, out: str) -> Any:
    """The value with `{out}` replaced in every text."""
    if isinstance(value, dict):
        return {name: _fill(part, out) for name, part in value.items()}
    if isinstance(value, list):
        return [_fill(part, out) for part in value]
    return value.replace(PLACE, out) if isinstance(value, str) else value


def _meant(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    [*close] = get_close_matches(name, list(known), n=1)
    return f", is {close[0]!r} meant" if close else ""


def check_plan(plan: Plan) -> None:
    """Raise `ValueError` with a sentence on the first thing in a plan that cannot work."""
    _check_numbers(plan)
    _check_noise(plan.noise)
    for name, command in plan.prepare.items():
        _check_command(name, command)
    if plan.baseline not in plan.methods:
        raise ValueError(f"baseline is {plan.baseline!r}, which is none of the methods {', '.join(plan.methods)}.")
    _check_same_budget(plan)
    _check_files(plan)
    for name in plan.methods:
        _check_method(plan, name)
    if not plan.evaluate:
        raise ValueError("evaluate of the plan names no evaluation.")
    for name, flags in plan.evaluate.items():
        check_asking(f"evaluate: {name}", flags, RunArguments)
    if plan.entropy:
        check_asking("entropy", plan.entropy, EntropyArguments)


def _check_numbers(plan: Plan) -> None:
    if not plan.seeds or len(set(map(str, plan.seeds))) < len(plan.seeds):
        raise ValueError(f"seeds must be whole numbers, each once, got {plan.seeds!r}.")
    for seed in plan.seeds:
        if type(seed) is not int or seed < 0:
            raise ValueError(f"seeds must be whole numbers >= 0, got {seed!r}.")
    if type(plan.gpus_per_run) is not int or plan.gpus_per_run < 1:
        raise ValueError(f"gpus_per_run must be a whole number >= 1, got {plan.gpus_per_run!r}.")
    if plan.accelerate_config is not None and not Path(str(plan.accelerate_config)).is_file():
        raise ValueError(f"accelerate_config {str(plan.accelerate_config)!r} does not exist.")


def _check_noise(noise: Flags) -> None:
    if not noise:
        return
    allowed = ("ratios", "kind", "image_folder", "box_column")
    for name in noise:
        if name not in allowed:
            raise ValueError(f"noise has no {name!r}; it has {', '.join(allowed)}.")
    if noise.get("kind") not in get_args(Kind):
        raise ValueError(f"noise: kind is {noise.get('kind')!r}; allowed are {', '.join(get_args(Kind))}.")
    ratios = noise.get("ratios")
    if not isinstance(ratios, list) or not ratios:
        raise ValueError(f"noise: ratios must be a list of shares, got {ratios!r}.")
    for ratio in ratios:
        if type(ratio) not in (int, float) or not 0 <= ratio <= 1:
            raise ValueError(f"noise: ratios must lie in [0, 1], got {ratio!r}.")
    if len(set(ratios)) < len(ratios):
        raise ValueError(f"noise: a ratio stands there twice: {ratios!r}.")


def _check_command(name: str, command: Any) -> None:
    words = shlex.split(command) if isinstance(command, str) else []
    if not words or words[0] not in ROOMS:
        raise ValueError(f"prepare: {name} must start with one of {', '.join(ROOMS)}, got {command!r}.")


def _check_same_budget(plan: Plan) -> None:
    for name, flags in plan.methods.items():
        for option in flags:
            if option in BUDGET:
                raise ValueError(
                    f"methods: {name} sets {option}; what decides how much is sampled is the same for all methods and "
                    "belongs into train."
                )
    for name, flags in {"train": plan.train, **plan.methods}.items():
        for option in flags:
            if option in SET_BY_US:
                raise ValueError(f"{name} sets {option}, which a comparison sets itself.")


def _check_files(plan: Plan) -> None:
    wanted = {"data": plan.data, "images": plan.images, "config of train": plan.train.get("config", "")}
    for name, flags in {**plan.evaluate, "entropy": plan.entropy}.items():
        if isinstance(flags, dict):
            wanted |= {f"{option} of {name}": flags.get(option) or "" for option in ("data", "images")}
    for name, path in wanted.items():
        if path and not _will_be_there(plan, str(path)) and not (name.startswith("data of") and _on_hub(str(path))):
            raise ValueError(f"{name} is {path!r}, which does not exist.")
    if not _will_be_there(plan, plan.model) and not _on_hub(plan.model):
        raise ValueError(f"model is {plan.model!r}, which is neither a folder nor a name on the hub.")


def _will_be_there(plan: Plan, path: str) -> bool:
    made = bool(plan.prepare) and Path(path).is_relative_to(plan.out)
    return made or Path(path).exists()


def _on_hub(name: str) -> bool:
    """Whether it looks like "owner/name", and not like the path of a file."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and "." not in parts[0] and not parts[1].endswith((".json", ".jsonl"))


def _check_method(plan: Plan, name: str) -> None:
    flags = plan.method_flags(name)
    known = option_names(flags)
    for option in flags:
        if option not in known:
            place = "train" if option in plan.train else f"methods: {name}"
            what = f"the method {flags['method']!r} has no such option{_meant(option, sorted(known))}"
            raise ValueError(f"{place} sets {option}, and {what}.")
    check_training(name, [*command_flags(flags), *command_flags({**dict.fromkeys(SET_BY_US[:4], "x"), "seed": 0})])
