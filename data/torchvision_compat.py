"""Make `import torchvision` work where its compiled operators do not match torch. Importing this module applies it.

With the CPU build of torch and a CUDA build of torchvision, `import torchvision` raises "operator torchvision::nms
does not exist", and no vision-language model of transformers can be imported. The processors need only torchvision's
Python code, so naming the two missing operators is enough; calling one (detection models do) still fails.

    from vlm_entropy.data import torchvision_compat  # before the first import of a transformers model or processor
"""

import importlib
import sys

SYMPTOM = "operator torchvision::nms does not exist"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []  # an operator is forgotten when the Library that defined it is garbage-collected


def define_missing_operators() -> None:
    """Register the schemas of torchvision's `nms` and `qnms` with torch, without an implementation."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def forget_torchvision() -> None:
    """Remove torchvision's half-imported modules, so that the next import starts afresh."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def apply() -> bool:
    """Import torchvision, defining its missing operators if, and only if, that is what it fails on.

    Returns:
        True if the operators had to be defined; False for a healthy torchvision, which is left as it is.

    Raises:
        RuntimeError, ImportError: whatever else torchvision fails with, unchanged.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if str(error) != SYMPTOM:
            raise
    else:
        return False
    define_missing_operators()
    forget_torchvision()
    importlib.import_module("torchvision")
    return True


apply()
