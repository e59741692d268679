"""The mathematics rewards: what counts as equal, what cannot be judged, and answers made to stop the run."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing import quickest

from vlm_entropy.rewards.math_worker import MathWorker
from vlm_entropy.rewards.maths import MAX_CHARACTERS, boxed_math_reward, canonical, math_equal, math_reward

BOMBS = [
    "9**9**9**9",
    "9^{9^{9^9}}",
    "999999999!",
    "(9!)!!",
    "{" * 100_000,
    "{" * 50_000 + "5" + "}" * 50_000,
    "\\boxed{" * 10_000 + "5" + "}" * 10_000,
    "\\frac{1}{0}",
    "1+" * 149 + "1",
    "x^" * 149 + "1",
    "\\frac{" * 6 + "5" + "}{2}" * 6,
    "\udc80",
    "\x00",
]


def score(text, solution="40", **options):
    return math_reward([text], [solution], **options)[0]


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        ("40", "40."),
        ("40", "= 40"),
        ("140°", "140"),
        ("40", "40^\\circ"),
        ("40^{\\circ}", "40 degrees"),
        ("5 cm", "5"),
        ("5", "5\\text{ cm}^2"),
        ("12", "The area is 12 cm^2."),
        ("5 \\sqrt { 3 }", "5√3"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("5 1/2", "5.5"),
        ("2\\pi", "2π"),
        ("1 000", "1,000"),
        ("14.9", "14.90"),
        ("1/3", "0.333333"),
        ("50\\%", "0.5"),
        ("2:3", "2/3"),
        ("5", "x = 5"),
        ("\\{1,2\\}", "2, 1"),
        ("3<x", "x>3"),
        ("x+1", "1+x"),
        ("B", "(B)"),
        ("B", "B. 40"),
        ("(B)", "\\text{B}"),
        ("isosceles", "Isosceles."),
        ("\\text{east}", "east"),
    ],
)
def test_equal_answers_in_another_dress_are_equal(gold, prediction):
    assert math_equal(gold, prediction) is True


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        ("40", "41"),
        ("14.9", "14"),
        ("1/3", "0.333"),
        ("5\\sqrt{3}", "8.66"),
        ("4", "1, 2, 3 or 4"),
        ("3:30", "3:45"),
        ("9", "9**9**9**9"),
        ("3", "1 2"),
        ("4", "٤"),
        ("B", "Because"),
        ("B", "A or B"),
        ("B", "A"),
        ("isosceles", "isoscelse"),
        ("5", ""),
        ("5", "2 or 5"),
        ("5", "\\boxed{5}\\boxed{4}"),
    ],
)
def test_other_answers_hedges_and_anagrams_are_not_equal(gold, prediction):
    assert math_equal(gold, prediction) is False


@pytest.mark.parametrize("gold", ["", " ", "\\frac{1}{0}", "1 2", "٤", "{" * 1000, "9" * (MAX_CHARACTERS + 1), "?"])
def test_a_gold_that_cannot_be_read_cannot_be_judged(gold):
    assert math_equal(gold, "5") is None
    assert score("<answer>5</answer>", gold) is None


def test_a_gold_that_takes_too_long_cannot_be_judged():
    assert math_equal("1+" * 149 + "1", "150", seconds=0.01) is None


def test_the_answer_is_in_the_tags_or_else_in_the_last_box_after_the_thinking():
    assert score("<think>41</think><answer>40</answer>") == 1.0
    assert score("<think>\\boxed{41}</think> \\boxed{3} so \\boxed{40}") == 1.0
    assert score("<think>\\boxed{40}</think> it is 40") == 0.0
    assert score("40") == 0.0
    assert score("<answer>40") == 0.0
    assert score("<answer>\\boxed{40}</answer>", "<answer> 40 </answer>") == 1.0


def test_the_boxed_reward_takes_the_box_only():
    texts = ["<answer>40</answer>", "<think></think>\\boxed{\\frac{80}{2}}", "\\boxed{40} \\boxed{41}"]
    assert boxed_math_reward(texts, ["40"] * 3) == [0.0, 1.0, 0.0]


def test_rows_keep_their_order_and_kinds_are_logged():
    logged = {}
    texts = [
        [{"role": "assistant", "content": "<answer>40</answer>"}],
        "no",
        "<answer>1 2</answer>",
        "<answer>4</answer>",
    ]
    golds = ["40", "40", "40", "?"]
    assert math_reward(texts, golds, log_metric=logged.__setitem__) == [1.0, 0.0, 0.0, None]
    third = pytest.approx(1 / 3, abs=1e-12)
    assert logged == {
        "math_reward/parsed": third,
        "math_reward/no_answer": third,
        "math_reward/malformed": third,
        "math_reward/out_of_image": 0.0,
    }


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_an_answer_made_to_take_for_ever_scores_zero_within_its_limit_and_the_next_is_judged(bomb):
    score("<answer>1</answer>")
    start = time.monotonic()
    assert score(f"<answer>{bomb}</answer>", seconds=0.5) == 0.0
    assert time.monotonic() - start < 2.0
    assert score("<answer>40</answer>") == 1.0


def test_equal_answers_of_a_group_are_compared_once():
    start = time.monotonic()
    math_reward(["<answer>9^{9^{9^9}}</answer>"] * 20, ["40"] * 20, seconds=0.3)
    assert time.monotonic() - start < 3.0


def test_an_answer_out_of_time_is_malformed():
    logged = {}
    score("<answer>9^{9^{9^9}}</answer>", seconds=0.2, log_metric=logged.__setitem__)
    assert logged["math_reward/malformed"] == 1.0


def test_it_works_in_threads():
    found = []
    golds = [str(number) for number in range(8)]
    threads = [
        threading.Thread(target=lambda gold=gold: found.append(math_equal(gold, gold + ".0"))) for gold in golds
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [True] * 8


def _in_child(queue):
    queue.put([math_equal("40", "40.0"), math_equal("40", "41")])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_a_daemonic_process_and_the_parent_keeps_its_own_worker(method):
    assert math_equal("40", "40.0") is True
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=100) == [True, False]
    child.join()
    assert math_equal("41", "41.0") is True


def test_importing_starts_no_process_and_neither_side_imports_torch():
    code = """
import os, sys
from vlm_entropy.rewards import maths
print(maths._WORKER._process, "torch" in sys.modules)
maths.math_equal("1", "1.0")
print("torch" in open(f"/proc/{maths._WORKER._process.pid}/maps").read())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["None", "False", "False"]


@pytest.mark.parametrize("request_", ["5", "9^{9^{9^9}}"], ids=["idle", "busy"])
def test_the_worker_ends_with_its_parent(request_):
    code = f"""
import os, signal, threading
from vlm_entropy.rewards.math_worker import MathWorker
worker = MathWorker()
worker.ask("5")
print(worker._process.pid, flush=True)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
while True:
    worker.ask("5", {request_!r})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    group = int(run.stdout)
    deadline = time.monotonic() + 10
    while _is_alive(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(group)


def _is_alive(group):
    """Whether a process of the group still runs; one that ended and that nobody has waited for does not."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_a_killed_worker_is_started_again():
    worker = MathWorker()
    assert worker.ask("5", "5.0") is True
    os.killpg(worker._process.pid, 9)
    worker._process.wait()
    assert worker.ask("5", "5.0") is True
    worker.close()


def test_memory_of_the_worker_is_bounded():
    worker = MathWorker()
    worker.ask("5")
    limits = Path(f"/proc/{worker._process.pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert line.split()[3:5] == ["1073741824", "1073741824"]
    worker.close()


@given(st.text(max_size=400) | st.text(alphabet="\\{}()[]$^_frac boxed12.,°√%", max_size=120))
@settings(max_examples=200, deadline=None)
def test_canonical_takes_any_text(text):
    plain = canonical(text)
    assert plain is None or len(plain) <= 2 * MAX_CHARACTERS


@given(st.text(max_size=60) | st.text(alphabet="\\{}()[]$^_ frac sqrt12.,°√%+-=<x", max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_completion_scores_one_or_zero(text):
    assert score(f"<answer>{text}</answer>", "123456.5", seconds=0.3) in (0.0, 1.0)
    assert math_equal(text, "5", seconds=0.3) in (True, False, None)


@pytest.mark.parametrize("unit", ["<answer>", "\\boxed{", "</think>", "(", "\\text{", " cm", "1 ", "1 2/", "a "])
def test_hundred_kilobytes_of_bait_take_milliseconds(unit):
    texts = [unit * (100_000 // len(unit)), f"<answer>{unit * (290 // len(unit))}</answer>"]
    assert [score(text, seconds=0.3) for text in texts] == [0.0, 0.0]
    assert quickest(lambda: [score(text, seconds=0.3) for text in texts], limit=0.05) < 0.05
