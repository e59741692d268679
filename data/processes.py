"""The processes of a run, as `torchrun` or `accelerate launch` started them; one without either."""

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before accelerate loads transformers)

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """This process among those of the run. On a machine without an accelerator, accelerate has to be told so."""
    return PartialState(cpu=not torch.accelerator.is_available())
