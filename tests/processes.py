"""The end of the scripts that run under torchrun."""

import torch


def leave_together() -> None:
    """End the process group once every process is there; one that leaves early can crash in the threads of another."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
