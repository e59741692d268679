"""What has to hold and what it costs on one CUDA GPU: `bash run_scripts/gpu_check.sh`.

Three parts: numbers against float64 on the CPU, a training of each method beside stock `trl.GRPOTrainer`, and the
sharing of prompts. Models are random, drawn from a config; nothing is downloaded. `--cpu` runs the same at tiny sizes.
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import torch


class Scale(NamedTuple):
    """How large everything is."""

    hidden: int
    layers: int
    image_tokens: int
    completion: int
    generations: int
    steps: int
    rows: int
    tokens: int
    positions: int
    vocabulary: int


GPU = Scale(1024, 16, 1024, 64, 8, 3, 64, 512, 512, 151936)
"""A model of some 300 M parameters; the head of the numbers is Qwen's."""
CPU = Scale(64, 2, 16, 4, 2, 1, 16, 16, 32, 1000)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="Run at tiny sizes on the CPU.")
    arguments = parser.parse_args(argv)
    if not arguments.cpu and not torch.cuda.is_available():
        print("gpu_check needs a CUDA GPU, and torch sees none; --cpu runs it at tiny sizes.", file=sys.stderr)
        raise SystemExit(2)
    if arguments.cpu:
        torch.set_num_threads(1)
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for line in report(CPU if arguments.cpu else GPU, on_cpu=arguments.cpu, folder=Path(folder), faults=faults):
            print(line, flush=True)
    if faults:
        print("\n".join(["", *faults]))
        raise SystemExit(1)


def report(scale: Scale, *, on_cpu: bool, folder: Path, faults: list[str]) -> Iterator[str]:
    """The lines of the report; what must not be is added to `faults`."""
    import gpu_numerics
    import gpu_trainings

    device = torch.device("cpu" if on_cpu else "cuda")
    yield f"## {machine(device)}"
    yield ""
    with redirect_stdout(sys.stderr):
        case = gpu_trainings.build_case(folder, scale, on_cpu=on_cpu)
    yield f"A Qwen2.5-VL of {gpu_trainings.parameters(case) / 1e6:.1f} M parameters, random weights."
    yield "\n### Numbers against float64 on the CPU\n"
    yield "| what | dtype | error | tolerance | |\n|---|---|---|---|---|"
    for check in numbers(gpu_numerics, case, scale, device):
        dtype = str(check.dtype).removeprefix("torch.")
        verdict = "passed" if check.is_passed else "**failed**"
        yield f"| {check.name} | {dtype} | {check.error:.1e} | {check.tolerance:.0e} | {verdict} |"
        if not check.is_passed:
            faults.append(f"{check.name} in {dtype}: error {check.error:.1e} > {check.tolerance:.0e}.")
    yield "\n### Methods beside `trl.GRPOTrainer`\n"
    yield gpu_trainings.sizes_sentence(case)
    yield ""
    yield from gpu_trainings.methods_table(case, faults)
    yield "\n### Sharing of prompts\n"
    yield from gpu_trainings.sharing_table(case, faults)


def numbers(module: Any, case: Any, scale: Scale, device: torch.device) -> Iterator[Any]:
    from PIL import Image

    yield from module.check_formulas(device, rows=scale.rows, tokens=scale.tokens)
    yield from module.check_head(device, positions=scale.positions, hidden=scale.hidden, vocabulary=scale.vocabulary)
    image = Image.open(case.folder / "0.png")
    yield from module.check_model(device, case.folder / "model", image)
    yield from module.check_pixels(device, case.folder / "model", image)
    gc.collect()


def machine(device: torch.device) -> str:
    """The GPU, its driver and the versions that matter."""
    import transformers
    import trl

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
    if device.type == "cpu":
        return f"CPU ({platform.machine()}), {versions}"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB), driver {driver}, {versions}"


if __name__ == "__main__":
    main()
