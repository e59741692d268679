"""The add-on for lmms-eval: its tasks, its entry point, and the adapter against requests as lmms-eval makes them."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from PIL import Image

from vlm_entropy.data.generation import Decoding, load_model, tokenize
from vlm_entropy.data.generation import answer as generate
from vlm_entropy.data.models import load_description
from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.eval.lmms_eval.adapter import answer_requests, conversation_of, decoding_of
from vlm_entropy.eval.lmms_eval.local_tasks import JUDGED, TEMPLATES, fill, main, names, write_task

IS_INSTALLED = find_spec("lmms_eval") is not None
PICTURE = Image.new("RGBA", (56, 56), "red")


class Request(NamedTuple):
    """`lmms_eval.api.instance.Instance`, as far as the adapter looks."""

    args: tuple


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def to_messages(document):
    return user({"type": "image", "url": document["image"]}, text(document["question"]))


def request(place, arguments, context=None):
    return Request((context or "x" * place, to_messages, arguments, place, "colours", "test"))


# The tasks


class Loader(yaml.SafeLoader):
    """Reads `!function` as its text."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_every_task_is_a_yaml_that_changes_name_and_place_of_a_stock_task():
    assert set(JUDGED) < set(names())
    for name in names():
        content = (TEMPLATES / f"{name}.yaml").read_text()
        assert content.startswith("# ")
        filled = fill(content, stock=Path("/stock"), data=Path('/a "b"/c\\d'))
        task = yaml.load(filled, Loader=Loader)  # noqa: S506
        assert task["task"] == f"{name}_local"
        assert task["include"].startswith("/stock/")
        assert task["include"].endswith(f"/{name}.yaml")
        assert task["dataset_path"] == '/a "b"/c\\d'
        assert task["dataset_kwargs"] == {"load_from_disk": True}


def saved(folder):
    folder.mkdir()
    (folder / "dataset_dict.json").write_text('{"splits": ["test"]}')
    return str(folder)


def test_what_cannot_be_repointed_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="Unknown task 'mme'; allowed are hallusion_bench_image, mathverse_testmini"):
        write_task("mme", str(tmp_path), str(tmp_path))
    with pytest.raises(ValueError, match="scored by a judge: set OPENAI_API_KEY"):
        write_task("vl_rewardbench", saved(tmp_path / "a"), str(tmp_path))
    with pytest.raises(ValueError, match="no folder of splits that `save_to_disk` wrote"):
        write_task("mmmu_val", str(tmp_path / "absent"), str(tmp_path))
    with pytest.raises(SystemExit, match="local_tasks: needed are TASK, DATA and OUT"):
        main(["mmmu_val"])
    if not IS_INSTALLED:
        with pytest.raises(ValueError, match="lmms-eval is not installed here"):
            write_task("mmmu_val", saved(tmp_path / "b"), str(tmp_path))


def test_the_entry_point_names_a_module_of_ours_that_nothing_of_ours_imports():
    (entry,) = entry_points(group="lmms_eval.models", name="vlm_entropy")
    assert entry.value == "vlm_entropy.eval.lmms_eval.manifest:MANIFEST"
    assert find_spec(entry.module) is not None
    code = "import sys, vlm_entropy.eval.__main__; print([n for n in sys.modules if 'lmms_eval' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.splitlines()[-1] == "[]"


# The adapter


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, Decoding(4096)),
        ({"max_new_tokens": 16, "temperature": 0, "do_sample": False, "until": ["\n\n"]}, Decoding(16)),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 0, "num_beams": 1}, Decoding(16)),  # MathVerse
        ({"max_new_tokens": 16, "temperature": 1.0, "do_sample": True, "top_p": 0.5}, Decoding(16, 1.0, 0.5)),
        ({"max_new_tokens": 16, "temperature": 1.0}, Decoding(16, 1.0, 1.0)),
        ({"max_new_tokens": 16, "temperature": 1.0, "do_sample": False}, Decoding(16)),
        ({"max_new_tokens": 16, "temperature": None, "top_p": None, "do_sample": True}, Decoding(16)),
    ],
)
def test_the_arguments_of_a_task_become_a_decoding(arguments, expected):
    assert decoding_of(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"), [({"num_beams": 4}, "num_beams 4; only 1"), ({"top_k": 5, "seed": 1}, "sets seed, top_k")]
)
def test_arguments_that_cannot_be_honoured_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        decoding_of(arguments)


def test_the_template_stands_around_the_texts_of_the_last_user_turn():
    system = {"role": "system", "content": [text("Be brief.")]}
    asked = user(
        {"type": "image", "url": PICTURE}, text("Is <image> {red}?"), {"type": "image", "url": PICTURE}, text("Say.")
    )
    earlier = [*user(text("Blue?")), {"role": "assistant", "content": [text("No.")]}]
    chat = conversation_of([system, *earlier, *asked], "think_boxed")
    assert chat[:3] == [system, *earlier]
    image, first, _, last = chat[3]["content"]
    assert (image["type"], image["image"].mode) == ("image", "RGB")
    assert first == text("Is <image> {red}?")
    assert (
        last["text"] == "Say. Think first, inside <think> </think> tags, and then give the final answer in \\boxed{}."
    )
    before = conversation_of(user(text("Red?"), text("Say.")), "odLength")[0]["content"]
    assert before[0]["text"].endswith("</answer>\nRed?")
    assert before[1] == text("Say.")
    assert asked[0]["content"][1] == text("Is <image> {red}?")  # the task's own messages stay as they are


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (user({"type": "video", "url": "a.mp4"}, text("What?")), "shows a video"),
        (user({"type": "image", "url": PICTURE}), "asks nothing"),
        ([], "asks nothing"),
    ],
)
def test_what_cannot_be_asked_is_refused(messages, reason):
    with pytest.raises(ValueError, match=reason):
        conversation_of(messages, "plain")


def test_answers_come_in_the_order_of_the_requests_in_batches_of_one_decoding():
    documents = {"colours": {"test": [{"image": PICTURE, "question": f"Question {place}"} for place in range(5)]}}
    greedy, sampled = {"max_new_tokens": 8}, {"max_new_tokens": 8, "temperature": 1.0}
    batches = []

    def ask(conversations, *, decoding, seed):
        asked = [chat[0]["content"][1]["text"] for chat in conversations]
        batches.append((asked, decoding.temperature, seed))
        return [question.replace("Question", "Answer") for question in asked]

    requests = [request(place, sampled if place == 1 else greedy) for place in range(5)]
    answers = answer_requests(requests, documents, ask, batch_size=2, task_type="plain", seed=7)
    assert answers == [f"Answer {place}" for place in range(5)]
    # by the length of the text, longest first, and each batch with a seed of its own
    assert batches == [
        (["Question 4", "Question 3"], 0.0, 7),
        (["Question 2", "Question 0"], 0.0, 8),
        (["Question 1"], 1.0, 9),
    ]


def test_a_real_model_answers_requests_alone_as_in_a_batch(tmp_path):
    folder = str(tmp_path / "model")
    build_tiny_vlm("qwen2_5_vl", folder, hidden_size=32)
    model, (_, processor) = load_model(folder), load_description(folder, flag="pretrained")
    documents = {
        "colours": {"test": [{"image": PICTURE, "question": "Red? " * (9 * place + 1)} for place in range(3)]}
    }
    requests = [request(place, {"max_new_tokens": 6}) for place in range(3)]

    def ask(conversations, *, decoding, seed):
        samples = generate(model, processor, tokenize(processor, conversations), decoding=decoding, seed=seed)
        return [only.text for (only,) in samples]

    def answers(batch_size):
        return answer_requests(requests, documents, ask, batch_size=batch_size, task_type="plain", seed=0)

    assert answers(3) == answers(1)
    assert all(answers(3))


# With lmms-eval: run by the python of .venv-lmms


@pytest.mark.skipif(not IS_INSTALLED, reason="lmms-eval is not installed; run_scripts/lmms_eval.sh makes .venv-lmms")
def test_lmms_eval_scores_our_model_on_a_local_copy_of_a_stock_task(tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from vlm_entropy.eval.lmms_eval.model import VlmEntropy

    plain, texts = VlmEntropy.ask, []

    def ask(self, conversations, **settings):
        texts.extend(plain(self, conversations, **settings))
        return ["A"] * len(conversations)

    monkeypatch.setattr(VlmEntropy, "ask", ask)

    question = {"image": PICTURE.convert("RGB"), "question": "Which?", "choices": ["red", "blue"], "hint": ""}
    rows = Dataset.from_list([{**question, "answer": int(place == 3)} for place in range(4)])
    DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "data"))
    build_tiny_vlm("qwen2_5_vl", str(tmp_path / "model"), hidden_size=32)
    write_task("scienceqa_img", str(tmp_path / "data"), str(tmp_path / "tasks"))
    result = simple_evaluate(
        model="vlm_entropy",
        model_args=f"pretrained={tmp_path / 'model'}",
        tasks=["scienceqa_img_local"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks")),
        batch_size=2,
    )
    assert result["results"]["scienceqa_img_local"]["exact_match,none"] == 0.75  # A, A, A, B
    assert len(texts) == 4
    assert all(texts)
