"""The tables of the READMEs name everything there is, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from vlm_entropy.data.__main__ import COMMANDS
from vlm_entropy.data.loaders import LOADERS
from vlm_entropy.data.make import TASKS
from vlm_entropy.eval.__main__ import COMMANDS as EVAL_COMMANDS
from vlm_entropy.eval.arguments import ROWS
from vlm_entropy.eval.benchmarks import BENCHMARKS
from vlm_entropy.rewards import REWARDS
from vlm_entropy.rewards.vlm_r1 import METHODS

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "BENCHMARKS.md", *(f"{room}/README.md" for room in ("data", "eval", "rewards", "trainers"))]
PAGES += ["run_scripts/vlm_r1.md", "run_scripts/README.md"]


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def first_cells(text):
    """Names in the first column of all tables."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return {name for cell in cells for name in re.findall("`(.+?)`", cell)}


def test_every_reward_and_every_method_of_vlm_r1_has_a_line():
    assert set(REWARDS) <= first_cells(read("rewards/README.md"))
    assert {method for method in METHODS if method not in ("default", "llm")} <= first_cells(read("rewards/README.md"))


def test_every_data_set_command_and_task_is_named():
    page = read("data/README.md")
    assert set(LOADERS) <= first_cells(page)
    assert all(f"python -m vlm_entropy.data {command} " in page for command in COMMANDS)
    assert all(f"`{task}`" in page for task in TASKS)


def cells_beside(text, name):
    """Names in the cells of the row whose first cell names `name`."""
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    [row] = [row for row in rows if f"`{name}`" in row[0]]
    return [set(re.findall("`(.+?)`", cell)) for cell in row[1:]]


def test_every_benchmark_is_named_with_its_formats_and_protocols():
    page = read("eval/README.md")
    assert {*BENCHMARKS, *ROWS} <= first_cells(page)
    assert f"{len(BENCHMARKS)} benchmarks" in read("README.md")
    assert all(f"python -m vlm_entropy.eval {command} " in page for command in EVAL_COMMANDS)
    for name, benchmark in BENCHMARKS.items():
        formats, protocols = cells_beside(page, name)
        assert set(benchmark.formats) <= {*formats, name}, name
        assert set(benchmark.protocols) == protocols, name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", read(page)) if "://" not in link]
    assert all((ROOT / page).parent.joinpath(link).exists() for link in links), links
