"""The entropy of every token: against a forward over the whole answer, by kinds worked by hand, and as a command."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoProcessor

from vlm_entropy.data import token_measures
from vlm_entropy.data.generation import Decoding, answer, conversation, load_model, tokenize
from vlm_entropy.data.image_files import open_image
from vlm_entropy.data.token_measures import TOP
from vlm_entropy.eval import entropy as entropy_module
from vlm_entropy.eval.__main__ import main
from vlm_entropy.eval.entropy import places
from vlm_entropy.eval.entropy_summary import (
    advantages,
    covariances,
    difference,
    entropy_by,
    highest_entropy,
    probability_in_positives,
)
from vlm_entropy.eval.token_kinds import KINDS, token_kinds


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_token_is_measured_as_one_forward_over_the_answer_measures_it(tiny_model, shapes, monkeypatch):
    """The reference: softmax of the logits at each place, the whole answer given at once, without a cache.

    The measures are taken in float32 and written with six digits, the reference is in float64.
    """
    model, processor = (
        load_model(str(tiny_model)).double(),
        AutoProcessor.from_pretrained(tiny_model, padding_side="left"),
    )
    pictures = [open_image(str(shapes / "images" / f"heldout-{n:06d}.png"), upright=True) for n in (0, 1)]
    questions = ("Find the red square.", "Find it.")
    talks = [conversation([{"role": "user", "content": text}], [it]) for text, it in zip(questions, pictures)]
    kept = {}
    finish = token_measures.LogitsRecorder.finish

    def keep(self, ids, lengths, tokenizer):
        kept["ids"] = ids
        return finish(self, ids, lengths, tokenizer)

    monkeypatch.setattr(token_measures.LogitsRecorder, "finish", keep)
    inputs = tokenize(processor, talks)
    decoding = Decoding(7, temperature=0.7, samples=2)
    found = answer(model, processor, inputs, decoding=decoding, seed=3, with_entropy=True, with_measures=True)
    answers, ids = [one for of_prompt in found for one in of_prompt], kept["ids"]
    assert len(answers) == 4
    assert len({one.text for one in answers}) > 1
    prompts = inputs["input_ids"].repeat_interleave(2, dim=0)
    masks = inputs["attention_mask"].repeat_interleave(2, dim=0)
    patches = inputs["pixel_values"].view(2, -1, inputs["pixel_values"].size(-1)).repeat_interleave(2, dim=0)
    whole = {
        "input_ids": torch.cat([prompts, ids], dim=1),
        "attention_mask": torch.cat([masks, torch.ones_like(ids)], dim=1),
        "pixel_values": patches.flatten(0, 1).double(),
        "image_grid_thw": inputs["image_grid_thw"].repeat_interleave(2, dim=0),
        "mm_token_type_ids": torch.cat(
            [inputs["mm_token_type_ids"].repeat_interleave(2, dim=0), torch.zeros_like(ids)], dim=1
        ),
    }
    with torch.no_grad():
        logits = model(**whole).logits[:, prompts.size(1) - 1 : -1]
    probs = logits.softmax(dim=-1)
    for row, one in enumerate(answers):
        assert len(one.measures) == one.tokens
        for step, token in enumerate(one.measures):
            expected = probs[row, step]
            assert token.text == processor.tokenizer.decode(ids[row, step])
            assert token.entropy == pytest.approx(-float((expected * expected.log()).sum()), rel=1e-4, abs=1e-6)
            assert token.prob == pytest.approx(float(expected[ids[row, step]]), rel=1e-4)
            assert [prob for _, prob in token.top] == pytest.approx(
                expected.topk(TOP).values.tolist(), rel=1e-4, abs=1e-9
            )
            best = processor.tokenizer.decode(expected.argmax())
            assert token.top[0][0] == best
        assert one.entropy == pytest.approx(sum(token.entropy for token in one.measures) / one.tokens, rel=1e-4)


def test_kinds_of_tokens():
    pieces = ["<", "think>", "The", " red", " umb", "rella", " is", " left", " of", " 2", " men", ".", "</think>"]
    kinds = ["tag", "tag", "other", "noun", "noun", "noun", "other", "noun", "other", "number", "noun", "other", "tag"]
    assert token_kinds(pieces) == kinds
    answer_pieces = ["<answer>", "{", '"', "bbox", '":', " [", "12", "3", ",", " 4", "]}", "</", "answer", ">"]
    # Words of the answer are no nouns of the thinking.
    assert token_kinds([*pieces, *answer_pieces])[len(pieces) :] == [
        *("tag", "other", "other", "other", "other", "other", "number", "number", "other", "number", "other"),
        *("tag", "tag", "tag"),
    ]
    assert set(kinds) == set(KINDS)
    assert token_kinds([]) == []
    assert token_kinds(["<think>", "un", "likely", " dog's", " tail"]) == ["tag", "other", "other", "noun", "noun"]
    # A tag that a token shares with a word; a digit beside a word is a number.
    assert token_kinds(["a<", "think>", "x2"]) == ["tag", "tag", "number"]


def line(prompt, advantage, *tokens, correct=None):
    """An answer whose tokens are (text, kind, entropy, prob)."""
    described = [
        {"text": text, "kind": kind, "part": "other", "entropy": entropy, "prob": prob}
        for text, kind, entropy, prob in tokens
    ]
    return {"id": prompt, "advantage": advantage, "correct": correct, "tokens": described}


LINES = [
    line("p", 1.0, ("a", "noun", 1.0, 0.5), ("7", "number", 3.0, 0.25), correct=True),
    line("p", -1.0, ("8", "number", 2.0, 0.5), ("b", "other", 0.0, 1.0), correct=False),
    line("q", 0.0, ("9", "number", 1.0, 0.125), correct=None),
]


def test_entropies_are_means_over_tokens():
    found = entropy_by(LINES)
    assert found["all"] == {"mean": pytest.approx(7 / 5), "tokens": 5}
    assert found["kind"]["number"] == {"mean": 2.0, "tokens": 3}
    assert found["kind"]["tag"] == {"mean": None, "tokens": 0}
    assert (found["correct"]["mean"], found["wrong"]["mean"]) == (2.0, 1.0)
    assert found["part"]["other"]["tokens"] == 5


def test_probabilities_in_positive_samples():
    found = probability_in_positives(LINES)
    assert found["positive"] == {"answers": 1, "all": 0.375, "number": 0.25}  # (0.5 + 0.25) / 2
    assert found["every"]["number"] == pytest.approx((0.25 + 0.5 + 0.125) / 3)
    assert probability_in_positives([])["positive"] == {"answers": 0, "all": None, "number": None}


def test_the_most_uncertain_tokens():
    found = highest_entropy(LINES)  # one token of five, the one of 3 nats
    assert found["from"] == 3.0
    assert found["share_of_highest"] == {"number": 1.0, "noun": 0.0, "tag": 0.0, "other": 0.0}
    assert found["share_of_all"] == {"number": 0.6, "noun": 0.2, "tag": 0.0, "other": 0.2}
    assert found["tokens"] == [{"text": "(number)", "entropy": 2.0, "count": 3}]  # the others come once
    assert highest_entropy([])["from"] is None


def test_covariances_of_log_prob_and_advantage():
    lines = [
        line("p", 1.0, ("a", "other", 0.0, math.exp(-1.0))),
        line("p", -1.0, ("b", "other", 0.0, math.exp(-3.0))),
    ]
    # Means -2 and 0: (1 · 1 + (-1) · (-1)) / 2 = 1.
    assert covariances(lines)["logp_advantage"] == pytest.approx(1.0)
    # π · A is e^-1 and -e^-3, mean m: ((e^-1 - m) - (-e^-3 - m)) / 2 = (e^-1 + e^-3) / 2.
    assert covariances(lines)["logp_prob_advantage"] == pytest.approx((math.exp(-1) + math.exp(-3)) / 2)
    assert covariances([]) == {"logp_advantage": None, "logp_prob_advantage": None}


def test_advantages_compare_the_answers_to_a_prompt():
    # Group 1: mean 1, std sqrt((1 + 1) / 1) = 1.41421. Group 2: equal rewards. Group 3: one answer cannot be judged.
    found = advantages([2.0, 0.0, 1.0, 1.0, 5.0, None], 2)
    assert found[:2] == pytest.approx([1 / (math.sqrt(2) + 1e-4), -1 / (math.sqrt(2) + 1e-4)])
    assert found[2:] == [0.0] * 4


def test_models_are_compared_prompt_by_prompt():
    before = [line(prompt, 0.0, ("7", "number", 1.0, 0.5), ("a", "noun", 4.0, 0.5)) for prompt in "pqr"]
    after = [line(prompt, 0.0, ("7", "number", 0.5, 0.5)) for prompt in "pqr"]
    assert difference(before, after, "number") == {"prompts": 3, "difference": -0.5, "low": -0.5, "high": -0.5}
    assert difference(before, after)["difference"] == -2.0  # 0.5 - (1 + 4) / 2
    assert difference(before, after, "noun") == {"prompts": 0, "difference": None, "low": None, "high": None}


def test_boxes_are_given_in_pixels_of_the_image():
    example = {"solution": "[0, 0, 10, 20]", "image_size": [100, 200], "input_size": [50, 50]}
    example |= {"coordinate_space": "relative_1000", "solution_space": "absolute"}
    assert places(example, "<answer>[100, 100, 500, 500]</answer>") == {
        "solution": [0.0, 0.0, 10.0, 20.0],
        "prediction": [10.0, 20.0, 50.0, 100.0],
    }
    assert places({**example, "coordinate_space": "absolute_resized"}, "<answer>[25, 50]</answer>")["prediction"] == [
        50,
        200,
    ]
    assert places(example, "no answer")["prediction"] is None
    assert places(example, "<answer>there</answer>")["prediction"] is None
    assert places({**example, "solution": "12", "image_size": None}, "<answer>[3, 4]</answer>") == {
        "solution": "12",
        "prediction": "[3, 4]",
    }


def flags(shapes, out, *models, **more):
    options = {"data": shapes / "heldout.jsonl", "images": shapes / "images", "task_type": "plain", "out": out}
    options |= {"max_new_tokens": 5, "samples": 2, "batch_size": 4, "limit": 4, **more}
    return [
        "entropy",
        *(str(part) for model in models for part in ("--model", model)),
        *(str(part) for name, value in options.items() for part in (f"--{name}", value)),
    ]


def no_model(*args, **kwargs):
    pytest.fail("a model was loaded")


def test_two_models_answer_the_same_prompts(tiny_model, shapes, tmp_path, monkeypatch, capsys):
    other = shutil.copytree(tiny_model, tmp_path / "after")
    main(flags(shapes, tmp_path / "out", tiny_model, other))
    lines = read(tmp_path / "out" / "tokens.jsonl")
    assert len(lines) == 2 * 4 * 2
    assert [one["model"] for one in lines] == [str(tiny_model)] * 8 + [str(other)] * 8
    assert [one["id"] for one in lines[:3]] == ["heldout.jsonl:1", "heldout.jsonl:1", "heldout.jsonl:2"]
    gold = json.loads(read(shapes / "heldout.jsonl")[0]["conversations"][1]["value"])
    assert lines[0]["solution"] == gold
    assert lines[0]["images"] == [str(shapes / "images" / "heldout-000000.png")]
    assert set(lines[0]) == {
        *("model", "id", "sample", "images", "question", "solution", "prediction", "correct", "reward", "advantage"),
        "tokens",
    }
    token = lines[0]["tokens"][0]
    assert set(token) == {"text", "kind", "part", "entropy", "prob", "top"}
    assert len(token["top"]) == 5
    # The same weights, prompts and seed: the same answers, and no difference.
    assert lines[0]["tokens"] == lines[8]["tokens"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["model"] for one in summary["models"]] == [str(tiny_model), str(other)]
    assert summary["models"][0]["answers"] == 8
    assert summary["models"][0]["entropy"]["all"]["tokens"] == sum(len(one["tokens"]) for one in lines[:8])
    whole = next(one for one in summary["differences"] if one["kind"] == "all")
    assert (whole["difference"], whole["prompts"]) == (0.0, 4)
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "summary.md").read_text() in printed
    assert "+0.000 [+0.000, +0.000] | not shown |" in printed
    # Run again it asks nothing; half of the answers gone, it asks for them alone and ends the same.
    before = (tmp_path / "out" / "tokens.jsonl").read_bytes()
    monkeypatch.setattr(entropy_module, "TransformersEngine", no_model)
    main(flags(shapes, tmp_path / "out", tiny_model, other))
    monkeypatch.undo()
    part = tmp_path / "out" / "answers-1" / "part-0.jsonl"
    part.write_bytes(part.read_bytes().splitlines(keepends=True)[0] + b'{"batch": 1, "li')
    main(flags(shapes, tmp_path / "out", tiny_model, other))
    assert (tmp_path / "out" / "tokens.jsonl").read_bytes() == before
    with pytest.raises(SystemExit, match="holds work with seed 0, and this run has 1"):
        main(flags(shapes, tmp_path / "out", tiny_model, other, seed=1))


def test_bad_input_is_one_sentence(tiny_model, shapes, tmp_path):
    for more, sentence in (
        ({"samples": 1}, "samples must be at least 2, since advantages compare answers, got 1"),
        ({"rewards": "format"}, "--rewards 'format' judges no answer by itself"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(flags(shapes, tmp_path / "out", tiny_model, **more))
    with pytest.raises(SystemExit, match="--model names a model twice"):
        main(flags(shapes, tmp_path / "out", tiny_model, tiny_model))
    with pytest.raises(SystemExit, match=r"--model .*images.* is no vision-language model"):
        main(flags(shapes, tmp_path / "out", shapes / "images"))
