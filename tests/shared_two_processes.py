"""Shared prompts under data parallelism; run by `test_shared_distributed.py` under torchrun.

Usage: torchrun --nproc_per_node P shared_two_processes.py MODEL SHAPES OUT
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from distributed_cases import CASES, run_case
from sharing import Counted, batch_of, load, relative_difference, trl_rows

from vlm_entropy.data.processes import leave_together
from vlm_entropy.trainers import shared_prompt

FIRST_FORWARDS = {
    "something on both": ([0, 0, 1, 1], [2, 2, 0, 3]),
    "nothing on the second": ([0, 0, 1, 1], [0, 1, 2, 3]),
    "nothing on the first": ([0, 1, 2, 3], [0, 0, 1, 1]),
    "nothing on either": ([0, 1, 2, 3], [3, 2, 1, 0]),
}
"""The prompts of the rows of each process."""
# A group lies on both processes; only one process attacks images, before anything else that both do.
TRAININGS = ("grpo", "saei, text on one process")


def first_forward(model: Path, prompts: tuple[list[int], ...], *, wrong: bool = False) -> list:
    """What each process finds: whether it shares and has checked, how far its values are, tokens of its forwards."""
    accelerator = Accelerator(cpu=True)
    network = load(model, share=False)
    sharing = shared_prompt.PromptSharing("auto", [network], accelerator=accelerator, obstacle=None)
    rows = batch_of(model, prompts=prompts[accelerator.process_index]).rows
    counted = Counted(network)
    if wrong and accelerator.process_index == 1:
        sharing._shared = lambda plain, model, rows: tuple(values + 1 for values in plain(rows))
    with torch.no_grad():
        actual, _ = sharing.per_token(lambda some: trl_rows(network, some), network, rows, batch_size=None)
        expected, _ = trl_rows(network, rows)
    found = (sharing.is_on, sharing._is_checked, relative_difference(actual, expected), len(counted.tokens))
    return gather_object([found])


def main(model: str, shapes: str, out: str) -> None:
    torch.set_num_threads(1)
    record = {name: first_forward(Path(model), prompts) for name, prompts in FIRST_FORWARDS.items()}
    record["an error on the second"] = first_forward(Path(model), FIRST_FORWARDS["something on both"], wrong=True)
    for name in TRAININGS:
        case = run_case(CASES[name], Path(model), Path(shapes), Path(out) / name, processes=2, share_prompts="auto")
        record[name] = {what: case[what] for what in ("weights", "pictures", "checksums")}
    if Accelerator().is_main_process:
        torch.save(record, Path(out) / "record.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
