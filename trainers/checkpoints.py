"""Checkpoints of vision-language models that really come back, with everything that a run knows."""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from .checkpoint_files import RUN_STATE, remove_checkpoint, rotate_checkpoints, write_marker
from .diagnostics import Diagnostics

logger = logging.getLogger(__name__)


class VLMCheckpoints:
    """Mixin for TRL's trainers: a run that was killed goes on from a checkpoint as if it had never stopped.

    transformers saves Qwen-VL and others under the names of their first release ("visual...", "model.layers...") and
    translates them in `from_pretrained`; `Trainer` (5.23, huggingface/transformers#43701) loads them untranslated,
    matches no name, warns, and goes on from the model it started with. Adapters, DeepSpeed and FSDP have formats of
    their own and are left to `Trainer`.

    A checkpoint is declared whole once all processes have written their part, see `checkpoint_files`, and only then
    are older ones deleted. Beside the files of `Trainer`, each process writes its `run_state`.

    `Trainer` trains one step too many when it resumes a run of `max_steps` that was over; here it trains none.
    """

    args: Any
    state: Any
    model: Any
    accelerator: Any
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    _metrics: Any
    _tr_loss: torch.Tensor
    _globalstep_last_logged: int
    _get_output_dir: Any

    def run_state(self) -> dict[str, Any]:
        """What this process needs to go on exactly and `Trainer` does not save: tensors and plain values.

        Called by all processes together. A trainer with a memory of its own across optimizer steps adds it here, and
        takes it back in `load_run_state`.
        """
        values = {name: [float(value) for value in values] for name, values in self._metrics["train"].items()}
        loss = self._tr_loss.detach().clone()
        mean_loss = self.accelerator.reduce(loss.clone(), reduction="mean")
        logged = {"loss": loss, "mean_loss": mean_loss, "logged_step": self._globalstep_last_logged}
        return {"metrics": values, **logged}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Take back what `run_state` of this process gave, once the training loop stands where it stood then.

        The next log line covers the steps since the last one, as if nothing had happened. `train_loss`, at the end, is
        by `Trainer`'s definition that of the steps after the resume.
        """
        self._metrics["train"].update(state["metrics"])
        self._tr_loss += state["loss"]
        self._total_loss_scalar = -float(state["mean_loss"])
        self._globalstep_last_logged = state["logged_step"]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            remove_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        # `Trainer` would delete older checkpoints before the last files of this one are there.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_marker(folder)
            best = self.state.best_model_checkpoint
            rotate_checkpoints(folder, limit=limit, keep=[] if best is None else [Path(best)])

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        torch.save(self.run_state(), Path(output_dir) / RUN_STATE.format(self.args.process_index))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        own, first = (Path(checkpoint) / RUN_STATE.format(rank) for rank in (self.args.process_index, 0))
        path = own if own.is_file() else first  # of a run with fewer processes
        if path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.load_run_state(send_to_device(state, self.args.device))
        elif self.accelerator.is_main_process:
            logger.warning(
                f"{checkpoint} is not of this program: what it lacks beside weights, optimizer and random states "
                "starts afresh, and so does a rollout that it was taken inside of."
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if isinstance(model, PreTrainedModel) and not self.is_fsdp_enabled:
            load_weights(model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded or isinstance(self.model, PeftModel):
            super()._load_best_model()  # type: ignore[misc]
        else:
            load_weights(self.model, self.state.best_model_checkpoint)


class RolloutCheckpoints(VLMCheckpoints):
    """`VLMCheckpoints` for `GRPOTrainer`: a checkpoint inside a rollout keeps the rollout.

    A rollout spans several optimizer steps where `steps_per_generation * num_iterations` is more than
    `gradient_accumulation_steps`. TRL would sample that batch afresh, as a whole, and have every later one shifted by
    the steps already done.
    """

    ref_model: Any
    _step: int
    _buffered_inputs: Any
    _tokens_per_microbatch: torch.Tensor | None
    _diagnostics: Diagnostics

    def run_state(self) -> dict[str, Any]:
        args, step = self.args, self._step
        is_inside = step % (args.steps_per_generation * args.num_iterations) != 0
        return {
            **super().run_state(),
            "shape": self._rollout_shape(),
            "step": step,
            "microbatches": self._buffered_inputs if is_inside else None,
            "tokens_per_microbatch": self._tokens_per_microbatch,
            "diagnostics": self._diagnostics.sums,
        }

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        shape, microbatches = self._rollout_shape(), state["microbatches"]
        if shape != state["shape"]:
            if microbatches is None:
                return
            before = ", ".join(f"{name} {value}" for name, value in state["shape"].items() if value != shape[name])
            now = ", ".join(str(value) for name, value in shape.items() if value != state["shape"][name])
            raise ValueError(
                f"The checkpoint was taken inside a rollout with {before}: resume with the same, not {now}."
            )
        self._step = state["step"]
        self._buffered_inputs = microbatches
        self._tokens_per_microbatch = state["tokens_per_microbatch"]
        self._diagnostics.sums = state["diagnostics"]

    def _rollout_shape(self) -> dict[str, int]:
        names = ("world_size", "per_device_train_batch_size", "steps_per_generation", "num_iterations")
        return {name: getattr(self.args, name) for name in (*names, "gradient_accumulation_steps")}

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.sync_ref_model:
            weights = self.accelerator.get_state_dict(self.ref_model)
            if self.args.should_save:
                self.accelerator.unwrap_model(self.ref_model).save_pretrained(
                    Path(output_dir) / "reference", state_dict=weights
                )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None or not self.args.sync_ref_model:
            return
        folder = Path(checkpoint) / "reference"
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled() or not folder.is_dir():
            raise ValueError(
                f"sync_ref_model: the reference of {checkpoint} cannot be loaded, so it cannot be resumed."
            )
        load_weights(self.accelerator.unwrap_model(self.ref_model), str(folder))


def load_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """Put the weights of a saved checkpoint into a model, in place, every one of them.

    Raises:
        ValueError: if the checkpoint lacks a weight of the model.
    """
    model_class: Any = type(model)
    loaded, info = model_class.from_pretrained(checkpoint, dtype=model.dtype, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"Checkpoint {checkpoint!r} lacks {len(missing)} weights of the model, {missing[0]!r} first.")
    model.load_state_dict(loaded.state_dict())
