"""The processes of a run, as `torchrun` or `accelerate launch` started them; one without either."""

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before accelerate loads transformers)

import time

import torch
from accelerate import PartialState

GLOO_PAUSE = 0.2
"""Seconds in which gloo's threads let go of their last tensors."""


def processes() -> PartialState:
    """This process among those of the run. On a machine without an accelerator, accelerate has to be told so."""
    return PartialState(cpu=not torch.accelerator.is_available())


def leave_together() -> None:
    """End the process group once every process is there; one that leaves early can crash in the threads of another.

    A thread of gloo lets go of the tensors of a collective a moment after the collective has returned, and needs the
    interpreter's lock for it. If the interpreter is shutting down by then, the thread aborts the process:
    https://github.com/pytorch/pytorch/pull/179291.
    """
    if not torch.distributed.is_initialized():
        return
    processes().wait_for_everyone()
    time.sleep(GLOO_PAUSE)
    torch.distributed.destroy_process_group()
