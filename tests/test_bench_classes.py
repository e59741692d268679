"""Fine-grained classes: Visual-RFT's validation files in miniature, its rule and quirks, and the strict number."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_files import png

from vlm_entropy.data.loaders import LOADERS
from vlm_entropy.eval.benchmarks.classes import CLASSES, published_answer
from vlm_entropy.eval.items import to_item
from vlm_entropy.eval.protocols import Item, View

VIEW = View("qwen2_vl", "relative_1000")
GOLD = "pink primrose"


def score(gold, response, protocol="visual_rft", bench="flowers"):
    return CLASSES[bench].protocols[protocol].score(Item("0", "?", gold), response, VIEW)


def answered(answer):
    return f"<think>A flower.</think> <answer>{answer}</answer>"


def test_from_the_validation_files_to_a_score(tmp_path):
    (tmp_path / "jpg").mkdir()
    (tmp_path / "jpg" / "image_06734.jpg").write_bytes(png(6, 4))
    (tmp_path / "oxford_flowers.txt").write_text("pink primrose\nking protea\n")
    torch.save([{"/author/jpg/image_06734.jpg": {"label": torch.tensor(1)}}], tmp_path / "oxford_flowers.pth")
    (record,) = LOADERS[CLASSES["flowers"].formats[0]].read(str(tmp_path / "oxford_flowers.pth"))
    item = to_item(record, str(tmp_path / "jpg"))
    assert (item.answer, item.image_size) == ("king protea", (6, 4))
    visual_rft, ours = CLASSES["flowers"].protocols.values()
    question = (
        "This is an image containing a plant. Please identify the species of the plant based on the image.\n"
        "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
        "The output answer format should be as follows:\n"
        "<think> ... </think> <answer>species name</answer>\n"
        "Please strictly follow the format."
    )
    assert visual_rft.prompt(item, VIEW) == [{"role": "user", "content": "<image>\n" + question}]
    assert ours.prompt(item, VIEW) == [{"role": "user", "content": question}]
    for protocol in (visual_rft, ours):
        found = protocol.score(item, answered("King Protea"), VIEW)
        assert (found.values["accuracy"], found.parsed) == (1, "kingprotea")


def test_each_set_asks_for_its_own_things_and_has_its_own_size():
    item = Item("0", "?", GOLD)
    sentences = {
        name: benchmark.protocols["vlm_entropy"].prompt(item, VIEW)[0]["content"].partition("\n")[0]
        for name, benchmark in CLASSES.items()
    }
    start = "This is an image containing "
    assert sentences == {
        "flowers": f"{start}a plant. Please identify the species of the plant based on the image.",
        "aircraft": f"{start}an aircraft. Please identify the model of the aircraft based on the image.",
        "cars": f"{start}a car. Please identify the model of the car based on the image.",
        "pets": f"{start}a pet. Please identify the species of the pet based on the image.",
    }
    assert {name: benchmark.sizes[None] for name, benchmark in CLASSES.items()} == {
        "flowers": 2463,
        "aircraft": 3333,
        "cars": 8041,
        "pets": 3669,
    }


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>rose</answer>", "rose"),
        ("<answer> rose </answer>", " rose "),
        ("<answer>a</answer><answer>b</answer>", "a"),  # the first
        ("<think><answer>a</answer></think><answer>b</answer>", "a"),  # also while thinking
        ("<answer></answer>", ""),
        ("<answer>\nrose</answer>", None),  # `.` takes no line end
        ("<answer>\na\n</answer>\n<answer>b</answer>", "b"),
        ("<answer>a<answer>b</answer>", "a<answer>b"),
        ("</answer><answer>rose", None),
        ("rose", None),
        ("", None),
    ],
)
def test_the_published_answer_is_on_one_line(response, answer):
    assert published_answer(response) == answer


@pytest.mark.parametrize(
    ("gold", "response", "accuracy", "strict"),
    [
        (GOLD, answered("pink primrose"), 1, 1),
        (GOLD, answered(" Pink_Primrose "), 1, 1),
        # containment, either way
        (GOLD, answered("rose"), 1, 0),
        (GOLD, answered("e"), 1, 0),
        (GOLD, answered(""), 1, 0),
        (GOLD, answered("_"), 1, 0),
        (GOLD, answered("rose, pink primrose, king protea"), 1, 0),
        ("2012 Acura TL Sedan", answered("Sedan"), 1, 0),
        ("2012 Acura TL Sedan", answered("2012 Acura TSX Sedan"), 0, 0),
        ("707-320", answered("Boeing 707-320"), 1, 0),
        ("707-320", answered("707 320"), 0, 0),  # only blanks and underscores go
        (GOLD, answered("king protea"), 0, 0),
        # no answer
        (GOLD, answered("\npink primrose\n"), 0, 0),
        (GOLD, "pink primrose", 0, 0),
        (GOLD, "<think>It is <answer>pink primrose", 0, 0),
        (GOLD, "", 0, 0),
    ],
)
def test_visual_rfts_number_is_containment_and_the_strict_one_the_name(gold, response, accuracy, strict):
    values = score(gold, response).values
    assert (values["accuracy"], values["strict"]) == (accuracy, strict)
    assert values["no_answer"] == float(published_answer(response) is None)


@pytest.mark.parametrize(
    ("response", "accuracy", "visual_rft", "parsed"),
    [
        (answered("pink primrose"), 1, 1, "pinkprimrose"),
        (answered("\nPink primrose\n"), 1, 0, "pinkprimrose"),
        (r"<think>a</think>\boxed{\text{pink primrose}}", 1, 0, "pinkprimrose"),
        ("<think><answer>rose</answer></think><answer>pink primrose</answer>", 1, 1, "pinkprimrose"),
        ("<think><answer>pink primrose</answer></think><answer>protea</answer>", 0, 1, "protea"),
        (answered("rose"), 0, 1, "rose"),
        (answered(""), 0, 1, None),
        (answered(" _ "), 0, 1, None),
        ("pink primrose", 0, 0, None),
    ],
)
def test_our_number_is_the_name_with_the_published_one_beside_it(response, accuracy, visual_rft, parsed):
    found = score(GOLD, response, "vlm_entropy")
    assert found.values == {"accuracy": accuracy, "visual_rft": visual_rft, "no_answer": float(parsed is None)}
    assert found.parsed == parsed


def test_an_empty_answer_is_right_as_published_and_yet_no_vote():
    found = score(GOLD, answered(""))
    assert found == ({"accuracy": 1, "strict": 0, "no_answer": 0}, None, None)


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "\n", " ", "pink", "primrose", r"\boxed{", "}", "e"]


@pytest.mark.parametrize("protocol", ["visual_rft", "vlm_entropy"])
@settings(max_examples=100, deadline=None)
@given(response=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_any_text_has_a_score_in_range(protocol, response):
    found = score(GOLD, response, protocol)
    assert all(value in (0.0, 1.0) for value in found.values.values())
    assert next(iter(found.values)) == "accuracy"
    if protocol == "visual_rft":
        assert found.values["strict"] <= found.values["accuracy"]
    else:
        assert found.values["accuracy"] + found.values["no_answer"] <= 1
    if "answer" not in response and "boxed" not in response:
        assert found.values["accuracy"] == 0
        assert found.parsed is None


def test_a_hostile_text_of_100_kb_is_scored_in_a_moment():
    texts = [
        "<answer>" * 12_500,
        "<answer>x" * 11_000 + "</answer>",
        "</answer>" * 11_000,
        "\n" * 100_000,
        "<" * 100_000,
    ]
    for response in [*texts, answered("pink" * 25_000), answered(" " * 100_000)]:
        for protocol in ("visual_rft", "vlm_entropy"):
            start = time.perf_counter()
            score(GOLD, response, protocol)
            assert time.perf_counter() - start < 5


def test_the_published_numbers_are_those_of_the_published_rule():
    for name, benchmark in CLASSES.items():
        assert not benchmark.protocols["vlm_entropy"].references
        values = {it.model: it.value for it in benchmark.protocols["visual_rft"].references}
        assert len(values) == 3
        assert (
            values["Qwen2-VL-2B-Instruct + Visual-RFT, 4-shot"]
            == {
                "flowers": 0.714,
                "aircraft": 0.748,
                "cars": 0.953,
                "pets": 0.861,
            }[name]
        )
