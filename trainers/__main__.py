"""Train: `python -m vlm_entropy.trainers --method two_stage --model_name_or_path DIR --data_file_paths a.jsonl`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PretrainedConfig, ProcessorMixin, Trainer
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.utils import get_callable_name

from vlm_entropy.data.examples import build_dataset, check_prompt_fits
from vlm_entropy.data.families import Family, get_family
from vlm_entropy.data.models import IMAGE_LIMITS, limit_images, load_description
from vlm_entropy.data.preflight.rewards import reads_gold
from vlm_entropy.data.processes import leave_together
from vlm_entropy.data.rows import BadRow, Row, read_rows, write_bad_rows
from vlm_entropy.rewards import REWARD_MODEL, get_reward, is_ours

from .adapters import check_model_options, default_targets
from .arguments import RunArguments, model_init_kwargs, parse_arguments
from .base import EntropyGRPOConfig
from .checkpoint_files import find_fault, last_whole_checkpoint
from .freezing import freeze_vision
from .methods import Method
from .metrics import MetricsWriter, write_options
from .reward_model import RewardModelReward
from .sft import SupervisedConfig
from .table import methods_table
from .vllm_rollouts import check_vllm


@dataclass
class Run:
    """Everything a run needs, checked, with no model loaded yet."""

    method: Method
    config: Any
    model: ModelConfig
    processor: ProcessorMixin
    dataset: Dataset
    eval_dataset: Dataset | None
    rewards: list[Callable]
    frozen_module: str | None
    """Part of the names of parameters that are not trained."""
    checkpoint: str | None = None
    """The checkpoint to go on from."""
    options: dict[str, Any] = field(default_factory=dict)
    """Every option by name, for `run_config.json`."""


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if "--list_methods" in argv:
        print(methods_table())
        return
    try:
        run = prepare(argv)
    except (ValueError, OSError) as error:
        raise SystemExit(f"vlm-entropy-train: {error}") from None
    try:
        train(run)
    except requests.ConnectionError as error:  # of a vLLM server
        raise SystemExit(f"vlm-entropy-train: {error}") from None


def prepare(argv: Sequence[str]) -> Run:
    """Read and check the arguments, the data and the model's description.

    Raises:
        ValueError: one sentence on the first thing that is wrong.
    """
    method, arguments, config, model = parse_arguments(argv)
    if isinstance(config, EntropyGRPOConfig) and config.use_vllm:
        check_vllm()
    config.model_init_kwargs = model_init_kwargs(config, model)
    default_targets(model)
    rewards = [] if isinstance(config, SupervisedConfig) else named_rewards(arguments)
    model_config, processor = load_description(
        str(model.model_name_or_path), flag="--model_name_or_path", revision=model.model_revision
    )
    family = get_family(model_config.model_type)
    frozen = family.vision_module if arguments.freeze_vision_modules else None
    check_model_options(model, model_config, frozen_module=frozen)
    limit_images(processor, **{name: getattr(arguments, name) for name in IMAGE_LIMITS})
    rows = load_rows(arguments, config, family=family, processor=processor, model_config=model_config)
    template = {"task_type": arguments.task_type, "solution_space": arguments.solution_space}
    dataset = build_dataset(rows, family=family, processor=processor, **template)
    check_rewards(rewards, dataset)
    for reward in rewards:
        if isinstance(reward, RewardModelReward):
            reward.check_run(config, dataset)
    names = [get_callable_name(reward) for reward in rewards]
    dataset = config.prepare_dataset(rows, dataset, family=family, processor=processor, reward_names=names)
    dataset, eval_dataset = split_dataset(dataset, config, share=arguments.val_split_ratio)
    checkpoint = checkpoint_to_resume(config)
    options = {**config.to_dict(), **vars(model), **vars(arguments)}
    return Run(method, config, model, processor, dataset, eval_dataset, rewards, frozen, checkpoint, options)


def named_rewards(arguments: RunArguments) -> list[Callable]:
    """The rewards of --reward_funcs, as VLM-R1's flags would have them."""
    task_type = arguments.task_type if arguments.is_reward_customized_from_vlm_module else None
    return [
        reward_model(name.removeprefix(REWARD_MODEL), arguments)
        if name.startswith(REWARD_MODEL)
        else get_reward(name, compat=arguments.reward_compat, task_type=task_type)
        for name in arguments.reward_funcs
    ]


def reward_model(folder: str, arguments: RunArguments) -> RewardModelReward:
    return RewardModelReward(
        folder,
        mode=arguments.reward_model_mode,
        opponents=arguments.reward_model_opponents,
        max_new_tokens=arguments.reward_model_max_new_tokens,
        batch_size=arguments.reward_model_batch_size,
        task_type=arguments.reward_model_task_type,
        reference_column=arguments.reward_model_reference,
    )


def split_dataset(dataset: Dataset, config: Any, *, share: float) -> tuple[Dataset, Dataset | None]:
    """The rows to train on, and those held out; the same on every process.

    Raises:
        ValueError: for a share outside [0, 1), or evaluation during training without held-out rows.
    """
    if not 0 <= share < 1:
        raise ValueError(f"val_split_ratio must lie in [0, 1), got {share}.")
    count = round(share * len(dataset))
    if config.eval_strategy != "no" and count == 0:
        raise ValueError(
            f"--eval_strategy {config.eval_strategy.value} needs rows to evaluate on: --val_split_ratio {share} of "
            f"{len(dataset)} rows is none."
        )
    if count == 0:
        return dataset, None
    parts = dataset.train_test_split(
        test_size=count, seed=config.seed if config.data_seed is None else config.data_seed
    )
    return parts["train"], parts["test"]


def load_rows(
    arguments: RunArguments,
    config: Any,
    *,
    family: Family,
    processor: ProcessorMixin,
    model_config: PretrainedConfig,
) -> list[Row]:
    """The usable rows of the data files; the others stop the run, or are listed with --skip_bad_rows."""
    rows, bad_rows = read_rows(
        arguments.data_file_paths,
        arguments.image_folders,
        reward_methods=arguments.reward_method,
        skip_bad_rows=arguments.skip_bad_rows,
    )
    too_long = check_prompt_fits(
        rows,
        family=family,
        processor=processor,
        task_type=arguments.task_type,
        max_completion_length=getattr(config, "max_completion_length", None) or 0,
        context_length=model_config.get_text_config().max_position_embeddings,
    )
    if too_long and not arguments.skip_bad_rows:
        raise ValueError(f"{too_long[0].source}: {too_long[0].reason}")
    return keep_rows(rows, bad_rows, too_long, output_dir=Path(config.output_dir))


def keep_rows(rows: list[Row], bad_rows: list[BadRow], too_long: list[BadRow], *, output_dir: Path) -> list[Row]:
    """The rows that fit, after listing all others in `bad_rows.jsonl`."""
    dropped = {bad.source for bad in too_long}
    kept = [row for row in rows if row.source not in dropped]
    if (bad_rows or too_long) and PartialState().is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_bad_rows([*bad_rows, *too_long], output_dir / "bad_rows.jsonl")
        print(f"Skipped {len(bad_rows) + len(too_long)} bad rows, listed in {output_dir / 'bad_rows.jsonl'}.")
    if not kept:
        raise ValueError("No row of the data files can be used.")
    return kept


def check_rewards(rewards: list[Callable], dataset: Dataset) -> None:
    """Refuse a reward of ours that can judge no row, and say how many rows one leaves to the others.

    A reward that returns None for an empty completion cannot judge the row, whatever the model writes. Rewards of the
    user's own are not called before training.
    """
    columns = dataset.remove_columns(["images"]).to_dict()
    prompts = columns.pop("prompt")
    blank = [[{"role": "assistant", "content": ""}]] * len(dataset)
    for reward in [reward for reward in rewards if is_ours(reward) and reads_gold(reward)]:
        scores = reward(prompts=prompts, completions=blank, completion_ids=[[]] * len(dataset), **columns)
        unjudged = [index for index, score in enumerate(scores) if score is None]
        if len(unjudged) == len(dataset):
            raise ValueError(
                f"Reward {reward.__name__} can judge none of the {len(dataset)} rows; the first answer is "
                f"{columns['solution'][0]!r}."
            )
        if unjudged:
            count = f"{len(unjudged)} of {len(dataset)} rows"
            PartialState().print(f"{reward.__name__} cannot judge {count}; the other rewards train on them.")


def train(run: Run) -> None:
    """Train from the start or from the last checkpoint in the output directory, and save the model there."""
    trainer = make_trainer(run)
    if trainer.is_world_process_zero():
        write_options(run.options, Path(run.config.output_dir))
    trainer.add_callback(MetricsWriter())
    [checkpoint] = broadcast_object_list([run.checkpoint])
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(run.config.output_dir)
    trainer.accelerator.print(f"Model, checkpoints and metrics.jsonl are in {run.config.output_dir}.")
    leave_together()
    trainer.accelerator.end_training()


def make_trainer(run: Run) -> Trainer:
    kwargs = {"reward_funcs": run.rewards} if run.rewards else {}
    trainer = run.method.trainer(
        model=run.model.model_name_or_path,
        args=run.config,
        train_dataset=run.dataset,
        eval_dataset=run.eval_dataset,
        processing_class=run.processor,
        peft_config=get_peft_config(run.model),
        quantization_config=get_quantization_config(run.model),
        **kwargs,
    )
    if run.frozen_module is not None:
        freeze_vision(trainer.model, run.frozen_module)
    return trainer


def checkpoint_to_resume(config: Any) -> str | None:
    """The checkpoint asked for, else the last one in the output directory, else None to start afresh.

    "true", as VLM-R1's scripts say, means the last one that is whole; each later one is named with what it lacks.

    Raises:
        ValueError: for a path to a checkpoint that is not whole.
    """
    asked = config.resume_from_checkpoint
    if asked is not None and str(asked).lower() != "true":
        if fault := find_fault(Path(asked)):
            raise ValueError(f"--resume_from_checkpoint {str(asked)!r} cannot be resumed from: {fault}.")
        return str(asked)
    found, passed_over = last_whole_checkpoint(Path(config.output_dir))
    for sentence in passed_over:
        PartialState().print(sentence)
    return None if found is None else str(found)


if __name__ == "__main__":
    main()
