"""The hash of a checkpoint follows its weights and configuration, and nothing else."""

import json
import shutil
from types import SimpleNamespace

from vlm_entropy.eval.provenance import model_hash, versions


def test_the_hash_of_a_folder_follows_weights_and_configuration_alone(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "copy")
    assert model_hash(str(tmp_path / "copy"), None) == model_hash(str(tiny_model), None)
    for name in ("result.json", "settings.json", "trainer_state.json", "training_args.bin", "metrics.jsonl"):
        (tmp_path / "copy" / name).write_text("{}")
    (tmp_path / "copy" / "checkpoint-1").mkdir()
    assert model_hash(str(tmp_path / "copy"), None) == model_hash(str(tiny_model), None)
    for name in ("config.json", "model.safetensors"):
        whole = (tmp_path / "copy" / name).read_bytes()
        (tmp_path / "copy" / name).write_bytes(whole + b" ")
        assert model_hash(str(tmp_path / "copy"), None) != model_hash(str(tiny_model), None)
        (tmp_path / "copy" / name).write_bytes(whole)


def test_an_adapter_is_known_with_its_base(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    before = model_hash(str(tmp_path / "adapter"), None)
    (tmp_path / "base" / "config.json").write_text("{}")
    assert model_hash(str(tmp_path / "adapter"), None) != before


def test_a_model_of_the_hub_is_known_by_its_commit():
    assert model_hash("owner/name", SimpleNamespace(_commit_hash="abc")) == "abc"


def test_the_versions_are_those_installed():
    assert {"vlm-entropy", "torch", "transformers"} <= set(versions())
