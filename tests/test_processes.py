"""How the processes of a run end."""

import time

import torch

from vlm_entropy.data.processes import leave_together, processes


def test_a_group_ends_once_all_are_there_and_gloo_has_let_go(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(type(processes()), "wait_for_everyone", lambda state: events.append("all are there"))
    monkeypatch.setattr(time, "sleep", lambda seconds: events.append(torch.distributed.is_initialized()))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    leave_together()
    assert events == ["all are there", True]
    assert not torch.distributed.is_initialized()


def test_a_process_on_its_own_has_no_group_to_end(monkeypatch):
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: 1 / 0)
    leave_together()
