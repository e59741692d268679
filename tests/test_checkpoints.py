"""Vision-language checkpoints come back with every weight, whatever names they are saved under."""

import inspect

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Trainer

from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers.checkpoints import load_weights


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "glm4v"])
def test_every_weight_of_a_saved_model_is_loaded(tmp_path, model_type):
    saved = AutoModelForImageTextToText.from_pretrained(build_tiny_vlm(model_type, tmp_path / "a", seed=1))
    fresh = AutoModelForImageTextToText.from_pretrained(build_tiny_vlm(model_type, tmp_path / "b", seed=2))
    assert not torch.equal(saved.get_input_embeddings().weight, fresh.get_input_embeddings().weight)
    load_weights(fresh, str(tmp_path / "a"))
    torch.testing.assert_close(fresh.state_dict(), saved.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_without_one_of_the_weights_is_refused(tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(build_tiny_vlm("qwen2_5_vl", tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual.merger.ln_q.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of the model"):
        load_weights(model, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("_load_from_checkpoint", "(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None"),
        ("_load_best_model", "(self) -> None"),
        (
            "_save_checkpoint",
            "(self, model: torch.nn.Module, trial: optuna.Trial | dict[str, Any] | None) -> None",
        ),
        ("_save_rng_state", "(self, output_dir: str) -> None"),
        ("_load_rng_state", "(self, checkpoint: str | None) -> None"),
        (
            "_run_epoch",
            "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
            "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, "
            "steps_trained_in_current_epoch)",
        ),
    ],
)
def test_transformers_still_has_the_private_method_that_the_mixin_overrides(name, signature):
    actual = str(inspect.signature(getattr(Trainer, name))).replace("'", "").replace("nn.modules.module.", "nn.")
    assert actual.replace(": nn.Module", ": torch.nn.Module") == signature


def test_trainer_still_has_what_a_log_line_is_made_of():
    source = inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert "tr_loss -= tr_loss" in source
    assert "(self.state.global_step - self._globalstep_last_logged)" in source
    assert "self._total_loss_scalar" in source
