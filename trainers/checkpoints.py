"""Checkpoints of vision-language models that really come back."""

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


class VLMCheckpoints:
    """Mixin for trainers: resume a vision-language model from the names that its checkpoints are saved under.

    transformers saves Qwen-VL and others under the names of their first release ("visual...", "model.layers...") and
    translates them in `from_pretrained`; `Trainer` (5.23, huggingface/transformers#43701) loads them untranslated,
    matches no name, warns, and goes on from the model it started with. Adapters, DeepSpeed and FSDP have formats of
    their own and are left to `Trainer`.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model  # type: ignore[attr-defined]
        if isinstance(model, PreTrainedModel) and not self.is_fsdp_enabled:  # type: ignore[attr-defined]
            load_weights(model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled  # type: ignore[attr-defined]
        if sharded or isinstance(self.model, PeftModel):  # type: ignore[attr-defined]
            super()._load_best_model()  # type: ignore[misc]
        else:
            load_weights(self.model, self.state.best_model_checkpoint)  # type: ignore[attr-defined]


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
