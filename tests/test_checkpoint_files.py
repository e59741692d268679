"""A checkpoint that a crash cut off is told from a whole one, and no whole one is lost."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from vlm_entropy.trainers.checkpoint_files import (
    find_fault,
    last_whole_checkpoint,
    remove_checkpoint,
    rotate_checkpoints,
    write_marker,
)


def write_checkpoint(folder, *, weights="model.safetensors", optimizer="optimizer.pt", marker=True):
    """The files of a checkpoint; without `marker` those that another program writes."""
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text('{"global_step": 7}')
    (folder / "config.json").write_text("{}")
    if weights:
        save_file({"weight": torch.zeros(50)}, folder / weights)
    for name in [optimizer, "scheduler.pt", "rng_state.pth", *(["run_state_0.pt"] if marker else [])]:
        if name:
            (folder / name).parent.mkdir(exist_ok=True)
            torch.save({"state": torch.zeros(50)}, folder / name)
    if marker:
        write_marker(folder)
    return folder


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def write_deepspeed(folder):
    """ZeRO-3: weights and optimizer as one file a process each, in a folder that `latest` names."""
    write_checkpoint(folder, weights=None, optimizer=None, marker=False)
    (folder / "latest").write_text("global_step7")
    (folder / "global_step7").mkdir()
    for rank in (0, 1):
        for kind in ("model", "optim"):
            name = f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"
            torch.save({"shard": torch.zeros(50)}, folder / "global_step7" / name)
    return folder


def test_a_checkpoint_is_whole_from_its_marker_on(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint-7")
    assert find_fault(folder) is None
    sizes = json.loads((folder / "complete.json").read_text())
    assert sizes == {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "complete.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7"]
    (folder / "complete.json").unlink()
    assert find_fault(folder) == "complete.json, which is written last, is missing"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "rng_state.pth", "run_state_0.pt", "config.json", "trainer_state.json"],
)
def test_a_file_that_is_missing_or_cut_off_is_named(tmp_path, name):
    file = write_checkpoint(tmp_path / "checkpoint-7") / name
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    assert find_fault(file.parent) == f"{name} has {size // 2} bytes in place of {size}"
    file.unlink()
    assert find_fault(file.parent) == f"{name} is missing"


def test_files_of_deepspeed_are_listed_too(tmp_path):
    folder = write_deepspeed(tmp_path / "checkpoint-7")
    write_marker(folder)
    assert find_fault(folder) is None
    (folder / "global_step7" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    assert find_fault(folder) == "global_step7/zero_pp_rank_1_mp_rank_00_optim_states.pt is missing"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": "adapter_model.safetensors"},
        {"weights": "model-00001-of-00001.safetensors"},
        {"weights": None, "optimizer": "optimizer_0/__0_0.distcp"},
    ],
    ids=["plain", "adapter", "shards", "fsdp"],
)
def test_a_whole_checkpoint_of_another_program_is_used(tmp_path, options):
    folder = write_checkpoint(tmp_path / "checkpoint-7", **options, marker=False)
    if options.get("weights") is None and options:
        (folder / "pytorch_model_fsdp_0").mkdir()
    assert find_fault(folder) is None


def test_a_whole_checkpoint_of_deepspeed_is_used(tmp_path):
    assert find_fault(write_deepspeed(tmp_path / "checkpoint-7")) is None


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is cut off"),
        (lambda folder: cut(folder / "optimizer.pt"), "optimizer.pt is cut off"),
        (lambda folder: cut(folder / "rng_state.pth"), "rng_state.pth is cut off"),
        (lambda folder: (folder / "trainer_state.json").write_text('{"global_'), "trainer_state.json is cut off"),
        (lambda folder: (folder / "model.safetensors").unlink(), "the weights are missing"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "it holds no state of the optimizer"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "b.safetensors"}}'
            ),
            "b.safetensors is missing",
        ),
    ],
)
def test_a_checkpoint_of_another_program_that_was_cut_off_is_told(tmp_path, damage, fault):
    folder = write_checkpoint(tmp_path / "checkpoint-7", marker=False)
    damage(folder)
    assert find_fault(folder).startswith(fault)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: shutil.rmtree(folder / "global_step7"), "the weights are missing"),
        (lambda folder: (folder / "latest").write_text("global_step9"), "it holds no state of the optimizer"),
        (
            lambda folder: cut(folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
            "zero_pp_rank_0_mp_rank_00_optim_states.pt is cut off",
        ),
    ],
)
def test_a_checkpoint_of_deepspeed_that_was_cut_off_is_told(tmp_path, damage, fault):
    folder = write_deepspeed(tmp_path / "checkpoint-7")
    damage(folder)
    assert find_fault(folder).startswith(fault)


def test_weights_alone_are_nothing_to_resume_from(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint-7", optimizer=None)
    assert find_fault(folder).startswith("it holds no state of the optimizer")


def test_the_last_whole_checkpoint_is_found_and_later_ones_are_named(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") == (None, [])
    for step in (9, 10, 100):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-100" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-1000-copy").mkdir()
    found, passed_over = last_whole_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-10"
    expected = (
        f"{tmp_path}/checkpoint-100 cannot be resumed from: optimizer.pt is missing. It stays until its step comes"
    )
    assert passed_over == [f"{expected} again."]
    assert (tmp_path / "checkpoint-100").is_dir()


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, [], [2, 4, 6, 8, 30]),
        (0, [], [2, 4, 6, 8, 30]),
        (4, [], [2, 4, 6, 8, 30]),
        (2, [], [6, 8, 30]),
        (1, [], [8, 30]),
        (2, [2], [2, 8, 30]),  # the best one counts, and stays
        (1, [4], [4, 8, 30]),
    ],
)
def test_the_oldest_are_deleted_but_for_the_best_and_later_steps(tmp_path, limit, keep, left):
    # 30 was cut off by a crash, and touched last: it must not be taken for the newest.
    for step in (8, 6, 4, 2, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
    saved = tmp_path / "checkpoint-8"
    rotate_checkpoints(saved, limit=limit, keep=[tmp_path / f"checkpoint-{step}" for step in keep])
    assert sorted(int(path.name[11:]) for path in tmp_path.iterdir()) == left


def test_a_crash_while_a_checkpoint_is_deleted_leaves_none_of_its_name(tmp_path, monkeypatch):
    folders = [write_checkpoint(tmp_path / f"checkpoint-{step}", marker=False) for step in (2, 4)]
    rmtree = shutil.rmtree

    def crash(folder, **kwargs):
        if folder.exists():
            (folder / "rng_state.pth").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(folders[0])
    assert not folders[0].exists()
    assert last_whole_checkpoint(tmp_path) == (folders[1], [])
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    rotate_checkpoints(folders[1], limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
