"""The published benchmarks by the names of `--bench`; each file holds those of one kind."""

from vlm_entropy.eval.protocols import Benchmark

from .classes import CLASSES
from .detection import DETECTION
from .grounding import REC
from .gui import GUI
from .maths import MATHS
from .mathvista import MATHVISTA
from .preferences import PREFERENCES

BENCHMARKS: dict[str, Benchmark] = {
    **REC,
    **GUI,
    **CLASSES,
    **DETECTION,
    **MATHS,
    **MATHVISTA,
    **PREFERENCES,
}
