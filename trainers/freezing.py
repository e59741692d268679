"""Training without the vision tower."""

from torch import nn


def freeze_vision(model: nn.Module, vision_module: str) -> int:
    """Turn off the gradients of the parameters whose name has `vision_module` in it.

    Args:
        model: with or without adapters.
        vision_module: as in `Family.vision_module`.

    Returns:
        How many parameter tensors that were trained are no longer.

    Raises:
        ValueError: if no parameter has such a name, or if nothing else is left to train.
    """
    parameters = list(model.named_parameters())
    if not any(vision_module in name for name, _ in parameters):
        raise ValueError(f"No parameter of {type(model).__name__} belongs to {vision_module!r}: nothing to freeze.")
    frozen = [parameter for name, parameter in parameters if vision_module in name and parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for _, parameter in parameters):
        raise ValueError("Without the vision tower nothing is left to train; name other lora_target_modules.")
    return len(frozen)
