"""Cases of `distributed_cases.py`, one after the other in one group of processes; run by the tests under a launcher.

Usage: LAUNCHER distributed_steps.py MODEL SHAPES OUT OPTIONS_AS_JSON CASE [CASE ...]
"""

import json
import os
import sys
from pathlib import Path

import torch
from distributed_cases import CASES, UNEQUAL, run_case

from vlm_entropy.data.processes import leave_together


def main(model: str, shapes: str, out: str, options: str, *names: str) -> None:
    torch.set_num_threads(1)
    processes, changes = int(os.environ["WORLD_SIZE"]), json.loads(options)
    for name in names:
        case = {**CASES, "unequal": UNEQUAL}[name]
        try:
            record = run_case(case, Path(model), Path(shapes), Path(out) / name, processes=processes, **changes)
        except ValueError as error:  # by all processes alike, or those that go on would hang
            record = {"refused": str(error)}
        if torch.distributed.get_rank() == 0:
            torch.save(record, Path(out) / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
