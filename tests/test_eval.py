"""Evaluation: every answer kept and scored, again without a model, after a kill, on two processes; and the report."""

import json
import math
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText

from vlm_entropy.data.generation import Decoding
from vlm_entropy.data.vllm_engine import VllmEngine
from vlm_entropy.eval.__main__ import main
from vlm_entropy.eval.arguments import DataArguments
from vlm_entropy.eval.benchmarks import BENCHMARKS
from vlm_entropy.eval.benchmarks.rows import rows_protocol
from vlm_entropy.eval.items import check_ids, image_folder, picture_sizes, read_items, take, to_item
from vlm_entropy.eval.protocols import Benchmark, Item, Protocol, Reference, Score, View
from vlm_entropy.eval.report import entropy_at, switch_step
from vlm_entropy.eval.result import describe, obstacles
from vlm_entropy.eval.runner import resolve
from vlm_entropy.eval.summary import compare_with, figure, several_samples, summarise

VIEW = View("qwen2_5_vl", "absolute_resized", (28, 28))


def flags(tiny_model, shapes, out, *more):
    data = ["--model", tiny_model, "--bench", "shapes", "--data", shapes / "heldout.jsonl", "--out", out]
    decoding = ["--images", shapes / "images", "--task_type", "plain", "--max_new_tokens", 6, "--batch_size", 3]
    return ["run", *map(str, [*data, *decoding, *more])]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def responses(folder):
    return [line["response"] for line in lines(folder / "predictions.jsonl")]


def no_model(*args, **kwargs):
    pytest.fail("a model was loaded")


def test_a_checkpoint_is_evaluated_and_every_answer_kept(tiny_model, shapes, tmp_path, capsys):
    main(flags(tiny_model, shapes, tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert [line["id"] for line in lines(tmp_path / "predictions.jsonl")] == [
        f"heldout.jsonl:{n}" for n in range(1, 9)
    ]
    assert [line["values"]["iou"] for line in lines(tmp_path / "scores.jsonl")] == [0.0] * 8
    assert list(result["metrics"]) == ["accuracy@0.5", "iou", "well_formed", "no_answer"]
    assert result["metrics"]["accuracy@0.5"] == {
        "value": 0.0,
        "low": 0.0,
        "high": pytest.approx(0.3244, abs=1e-4),
        "items": 8,
    }
    assert result["metrics"]["no_answer"]["value"] == 1.0
    assert (result["items"], result["truncated"], result["tokens"]) == (8, 1.0, 48)
    assert (result["temperature"], result["max_new_tokens"], result["samples"]) == (0.0, 6, 1)
    assert (result["min_pixels"], result["max_pixels"], result["max_anyres_num"]) == (256, 16384, None)
    assert (result["model_type"], result["coordinate_space"]) == ("qwen2_5_vl", "absolute_resized")
    assert all(len(result[name]) == 16 for name in ("model_hash", "items_hash", "prompts_hash"))
    assert result["prompt"][0]["content"].startswith("Find the ")
    assert "accuracy@0.5 0.000 [0.000, 0.324]" in capsys.readouterr().out


def test_a_right_answer_scores_and_scoring_again_needs_no_model(tiny_model, shapes, tmp_path, monkeypatch):
    main(flags(tiny_model, shapes, tmp_path))
    gold = [json.loads(row["conversations"][1]["value"]) for row in lines(shapes / "heldout.jsonl")]
    answered = lines(tmp_path / "predictions.jsonl")
    for line, (x1, y1, x2, y2) in zip(answered, gold, strict=True):
        # The model answers in pixels of the image it sees, `input_size`; the picture is 32 pixels wide.
        wide, high = line["input_size"][0] / 32, line["input_size"][1] / 32
        line["response"] = f"<think></think><answer>[{x1 * wide}, {y1 * high}, {x2 * wide}, {y2 * high}]</answer>"
    answered[0]["response"] = "<think></think><answer>[0, 0]</answer>"
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answered))
    monkeypatch.setattr(
        "vlm_entropy.eval.runner.TransformersEngine", lambda *a, **k: pytest.fail("a model was loaded")
    )
    main(["score", "--run", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["accuracy@0.5"]["value"] == 7 / 8
    assert result["metrics"]["iou"]["value"] == pytest.approx(7 / 8, abs=1e-9)
    assert result["metrics"]["no_answer"]["value"] == 0.0
    main(["score", "--run", str(tmp_path), "--rewards", "giou"])
    assert next(iter(json.loads((tmp_path / "result.json").read_text())["metrics"])) == "giou"


def test_answers_to_other_data_are_refused(tiny_model, shapes, tmp_path):
    main(flags(tiny_model, shapes, tmp_path / "run"))
    with pytest.raises(SystemExit, match=r"is not the data that .* has answers to: its items differ"):
        main(["score", "--run", str(tmp_path / "run"), "--data", str(shapes / "train.jsonl")])
    predictions = tmp_path / "run" / "predictions.jsonl"
    whole = predictions.read_text()
    predictions.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(SystemExit, match=r"Item 'heldout.jsonl:8' has 0 answers of 1"):
        main(["score", "--run", str(tmp_path / "run")])
    predictions.write_text(whole.replace("heldout.jsonl:8", "heldout.jsonl:9"))
    with pytest.raises(SystemExit, match=r"answer to 'heldout.jsonl:9', which is no item"):
        main(["score", "--run", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"predictions.jsonl' is missing: `eval run` writes it"):
        main(["score", "--run", str(tmp_path)])


def test_sampled_answers_follow_the_seed(tiny_model, shapes, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(flags(tiny_model, shapes, tmp_path / out, "--temperature", 1, "--seed", seed))
    assert responses(tmp_path / "a") == responses(tmp_path / "b") != responses(tmp_path / "c")


def test_batching_and_padding_do_not_change_greedy_answers(tiny_model, shapes, tmp_path):
    for size in (1, 8):
        main(flags(tiny_model, shapes, tmp_path / str(size), "--batch_size", size))
    assert responses(tmp_path / "1") == responses(tmp_path / "8")


def test_a_killed_run_goes_on_and_a_finished_one_asks_nothing(tiny_model, shapes, tmp_path, monkeypatch):
    sampling = ["--temperature", 1, "--samples", 2, "--batch_size", 4]
    main(flags(tiny_model, shapes, tmp_path / "whole", *sampling))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    part = tmp_path / "killed" / "part-0.jsonl"
    finished = part.read_text().splitlines(keepends=True)
    assert len(finished) == 4
    part.write_text(finished[0] + finished[1][:30])
    for name in ("predictions.jsonl", "scores.jsonl", "result.json"):
        (tmp_path / "killed" / name).unlink()
    main(flags(tiny_model, shapes, tmp_path / "killed", *sampling))
    for name in ("predictions.jsonl", "scores.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    monkeypatch.setattr(
        "vlm_entropy.eval.runner.TransformersEngine", lambda *a, **k: pytest.fail("a model was loaded")
    )
    main(flags(tiny_model, shapes, tmp_path / "killed", *sampling))
    with pytest.raises(SystemExit, match="holds work with seed 0, and this run has 5: name another folder"):
        main(flags(tiny_model, shapes, tmp_path / "killed", *sampling, "--seed", 5))


def test_an_adapter_is_evaluated_on_its_base(tiny_model, shapes, tmp_path):
    adapted = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(tiny_model),
        LoraConfig(target_modules=["q_proj"], init_lora_weights=True),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    main(flags(tmp_path / "adapter", shapes, tmp_path / "adapted"))
    main(flags(tiny_model, shapes, tmp_path / "base"))
    assert responses(tmp_path / "adapted") == responses(tmp_path / "base")  # a fresh adapter changes nothing
    hashes = [json.loads((tmp_path / run / "result.json").read_text())["model_hash"] for run in ("adapted", "base")]
    assert hashes[0] != hashes[1]


def test_two_processes_write_what_one_does(tiny_model, shapes, tmp_path):
    main(flags(tiny_model, shapes, tmp_path / "one", "--temperature", 1))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "vlm_entropy.eval", *flags(tiny_model, shapes, tmp_path / "two", "--temperature", 1)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "two" / "predictions.jsonl").read_bytes() == (
        tmp_path / "one" / "predictions.jsonl"
    ).read_bytes()
    assert done.stdout.count("accuracy@0.5") == 1


def test_a_benchmark_is_run_by_its_name_with_the_protocols_prompt(tiny_model, tmp_path):
    data = [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}, {"question": "2 + 3?", "answer": "#### 5"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    command = ["run", "--model", tiny_model, "--bench", "gsm8k", "--data", tmp_path / "test.jsonl"]
    main([*map(str, [*command, "--out", tmp_path / "out", "--max_new_tokens", 4])])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["bench"], result["items"], result["metrics"]["accuracy"]["value"]) == ("gsm8k", 2, 0.0)


def test_a_mean_over_items_and_how_sure_it_is():
    # Shares of 0 and 1 have Wilson's interval: p = 0.5, n = 4 gives 0.150 to 0.850 (see test_statistics).
    assert figure([1.0, 0.0, 1.0, 0.0]) == {
        "value": 0.5,
        "low": pytest.approx(0.150039, abs=1e-6),
        "high": pytest.approx(0.849961, abs=1e-6),
        "items": 4,
    }
    soft = figure([0.25, 0.75, 0.5, 0.5])
    assert soft["value"] == 0.5
    assert 0.25 < soft["low"] < 0.5 < soft["high"] < 0.75
    assert figure([math.nan, 1.0])["items"] == 1
    assert figure([math.nan]) == {"value": None, "low": None, "high": None, "items": 0}


def test_samples_of_an_item_make_pass_at_k_and_majority_at_k():
    votes = [
        [Score({"accuracy": 1.0}, "4"), Score({"accuracy": 0.0}, "5"), Score({"accuracy": 1.0}, "4")],
        [Score({"accuracy": 0.0}, "7"), Score({"accuracy": 1.0}, "8"), Score({"accuracy": 0.0}, "7")],
        [Score({"accuracy": 0.0}, None), Score({"accuracy": 0.0}, None), Score({"accuracy": 0.0}, None)],
    ]
    assert several_samples(votes) == [
        {"majority@3": 1.0, "pass@3": 1.0},
        {"majority@3": 0.0, "pass@3": 1.0},
        {"majority@3": 0.0, "pass@3": 0.0},
    ]
    assert several_samples([samples[:1] for samples in votes]) == [{}, {}, {}]
    soft = [[Score({"iou": 0.5}, "a"), Score({"iou": 0.25}, "b")]]
    assert several_samples(soft) == [{"majority@2": 0.5}]
    metrics = summarise([Item(str(number), "q", "a") for number in range(3)], votes, protocol())["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(1 / 3)
    assert (metrics["majority@3"]["value"], metrics["pass@3"]["value"]) == pytest.approx((1 / 3, 2 / 3))


def protocol(**options):
    return Protocol("ours", lambda item, view: [], lambda item, text, view: Score({}, None), **options)


def test_the_summary_groups_items_by_cell():
    items = [Item(str(n), "q", "a", columns={"platform": name}) for n, name in enumerate(["web", "web", "ios"])]
    scores = [[Score({"accuracy": value}, None)] for value in (1.0, 0.0, 1.0)]
    summary = summarise(items, scores, protocol(cells=lambda item: {"platform": item.columns["platform"]}))
    assert {cell: found["value"] for cell, found in summary["cells"]["platform"].items()} == {"web": 0.5, "ios": 1.0}
    assert summary["metrics"]["no_answer"]["value"] == 1.0


def test_items_of_one_unit_count_as_one():
    items = [Item(f"{pair}/{order}", "q", "1", unit=str(pair)) for pair in (1, 2) for order in ("12", "21")]
    scores = [[Score({"accuracy": value}, "1")] for value in (1.0, 0.0, 1.0, 1.0)]
    metrics = summarise(items, scores, protocol())["metrics"]
    assert (metrics["accuracy"]["value"], metrics["accuracy"]["items"]) == (0.75, 2)


def test_published_numbers_stand_beside_ours_with_what_keeps_them_apart():
    published = (Reference("M", "accuracy", 0.9, "paper", "val"), Reference("M", "accuracy", 0.8, "paper", "test"))
    rules = protocol(references=published, max_new_tokens=64)
    settings = {"max_new_tokens": 32, "temperature": 0.0, "top_p": 1.0, "samples": 1}
    why = obstacles(settings, rules, items=10, published=1272)
    assert why == ["--max_new_tokens 32", "10 items of 1272"]
    assert obstacles({**settings, "max_new_tokens": 64}, rules, items=10, published=None) == []
    summary = {"metrics": {"accuracy": {"value": 0.5}}, "totals": {}}
    [beside] = compare_with(published, summary, split="val", obstacles=why)
    assert (beside["value"], beside["ours"], beside["split"]) == (0.9, 0.5, "val")
    assert beside["does_not_compare"] == why


def test_rows_are_judged_by_the_rewards_of_training():
    rules = rows_protocol(["iou"], task_type="rec", solution_space="absolute")
    item = Item("1", "Where is the cat?", "[0, 0, 14, 14]", image_size=(28, 28))
    assert rules.prompt(item, VIEW)[0]["content"].startswith("Where is the cat? First output the thinking process")
    half = rules.score(item, "<think>a</think><answer>[0, 0, 14, 7]</answer>", VIEW)
    assert half.values == {"accuracy@0.5": 0.0, "iou": 0.5, "well_formed": 1.0}
    assert half.parsed == "[0, 0, 14, 7]"
    relative = View("internvl", "relative_1000")
    full = rules.score(item, "<answer>[0, 0, 500, 500]</answer>", relative)
    assert full.values == {"accuracy@0.5": 1.0, "iou": 1.0, "well_formed": 0.0}
    unjudged = rules.score(Item("2", "q", "no box", image_size=(28, 28)), "<answer>[0, 0, 1, 1]</answer>", VIEW)
    assert math.isnan(unjudged.values["iou"])
    with pytest.raises(ValueError, match="--rewards 'format' judges no answer by itself"):
        rows_protocol(["format"], task_type="rec", solution_space="absolute")
    with pytest.raises(ValueError, match="Unknown task type 'recs'"):
        rows_protocol(["iou"], task_type="recs", solution_space="absolute")


def test_an_item_is_what_its_record_says(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    record = {
        "id": 7,
        "image": "a.png",
        "platform": "web",
        "conversations": [
            {"from": "human", "value": "<image>close the window"},
            {"from": "gpt", "value": [10, 20, 40, 60]},
        ],
    }
    item = to_item(record, str(tmp_path))
    assert item == Item(
        "7", "close the window", "[10, 20, 40, 60]", (str(tmp_path / "a.png"),), (40, 20), {"platform": "web"}
    )
    text = {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]}
    assert to_item(text, "", place=3) == Item("3", "1 + 1?", "2")
    encoded = (tmp_path / "a.png").read_bytes()
    assert picture_sizes([encoded]) == [(40, 20)]
    with pytest.raises(ValueError, match="the embedded image cannot be read"):
        picture_sizes([encoded[:20]])
    with pytest.raises(ValueError, match=r"gone\.png' does not exist"):
        to_item({**record, "image": "gone.png"}, str(tmp_path))


def test_data_that_is_not_what_it_should_be_is_one_sentence(tmp_path):
    rules = Benchmark(("vlm_r1",), {"p": protocol()}, sizes={None: 2})
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": n, "conversations": turns}) + "\n" for n in (1, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [item.id for item in read_items(rules, str(path))] == ["1", "2"]
    with pytest.warns(UserWarning, match="has 2 items, the published data 3: no number on it compares"):
        read_items(Benchmark(("vlm_r1",), {}, sizes={None: 3}), str(path))
    with pytest.raises(ValueError, match="--format 'refer' is none of this benchmark's: vlm_r1"):
        read_items(rules, str(path), source="refer")
    path.write_text(path.read_text() + json.dumps({"id": 2, "conversations": turns}) + "\n")
    with pytest.raises(ValueError, match="has 1 ids more than once, '2' first"):
        read_items(rules, str(path))
    path.write_text("")
    with pytest.raises(ValueError, match="There is no item in"):
        read_items(rules, str(path))
    path.write_text(json.dumps({"id": 1, "image": "gone.png", "conversations": turns}) + "\n")
    with pytest.raises(ValueError, match=r"item 1 of .*the image '.*gone.png' does not exist"):
        read_items(rules, str(path), images=str(tmp_path))


def test_images_are_found_where_the_publisher_puts_them(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "screenspot_imgs").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "screenspot_imgs" / "a.png")
    row = {"img_filename": "a.png", "bbox": [0, 0, 10, 10], "instruction": "close", "data_type": "icon"}
    for name in ("mobile", "desktop", "web"):
        rows = json.dumps([{**row, "data_source": name}])
        (tmp_path / f"screenspot_{name}.json").write_text(rows)
    with pytest.warns(UserWarning, match="has 3 items, the published data 1272"):
        items = read_items(BENCHMARKS["screenspot"], str(tmp_path))
    assert items[0].images == (str(tmp_path / "screenspot_imgs" / "a.png"),)
    assert image_folder(BENCHMARKS["screenspot"], str(tmp_path / "screenspot_web.json")).endswith("screenspot_imgs")
    assert image_folder(BENCHMARKS["gsm8k"], str(tmp_path)) == ""


def test_a_limit_counts_what_the_benchmark_asks(tmp_path):
    pairs = [{"question": f"{n}?", "response_1": "a", "response_2": "b", "label": 1} for n in range(3)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    _, items, published = resolve(DataArguments("pairs", str(path), format="preference_jsonl", limit=2))
    assert [item.id for item in items] == ["0/12", "0/21", "1/12", "1/21"]
    assert published is None


def test_a_sample_of_the_items_is_the_one_that_vlm_r1_draws():
    items = [Item(str(n), "q", "a") for n in range(5)]
    assert [item.id for item in take(items, 3)] == ["0", "1", "2"]
    # random.seed(42); random.shuffle([0, 1, 2, 3, 4]) gives 3, 1, 2, 4, 0 in Python 3.11 and before.
    assert [item.id for item in take(items, 3, seed=42)] == ["3", "1", "2"]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        take(items, 0)
    check_ids(items, "x")


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--temperature", -1], "temperature must be a finite number >= 0, got -1.0"),
        (["--samples", 2], "samples is 2, all alike at temperature 0"),
        (["--batch_size", 0], "batch_size must be at least 1, got 0"),
        (["--bench", "chess"], "--bench is 'chess'; allowed are rows, shapes, "),
        (["--protocol", "theirs"], "--protocol is 'theirs'; shapes has rewards"),
        (["--coordinate_space", "miles"], "coordinate_space is 'miles'; allowed are"),
        (["--model", "no/where"], "--model 'no/where' is no vision-language model"),
        (["--model", ""], "--model is missing"),
        (["--engine", "vllm", "--max_pixels", 4], "--engine vllm prepares images by the checkpoint's own limits"),
        (["--data", "gone.jsonl"], "The data file 'gone.jsonl' does not exist"),
        (["--limit", 0], "limit must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(tiny_model, shapes, tmp_path, more, complaint):
    with pytest.raises(SystemExit, match=complaint):
        main(flags(tiny_model, shapes, tmp_path, *more))


def test_an_unknown_command_is_one_sentence():
    with pytest.raises(SystemExit, match="unknown command 'judge'; the commands are run, score"):
        main(["judge"])


def test_vllm_gets_the_prompts_and_the_decoding_of_generate(monkeypatch, tmp_path):
    calls = {}

    class LLM:
        def __init__(self, **options):
            calls["options"] = options

        def generate(self, prompts, parameters, use_tqdm):
            calls.update(prompts=prompts, parameters=parameters)
            one = types.SimpleNamespace(text="red", token_ids=[5, 6], finish_reason="stop")
            cut = types.SimpleNamespace(text="blue", token_ids=[5, 6, 7], finish_reason="length")
            return [types.SimpleNamespace(outputs=[one, cut]) for _ in prompts]

    fake = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: options)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    processor = types.SimpleNamespace(apply_chat_template=lambda chat, **options: f"{len(chat)} {sorted(options)}")
    config = types.SimpleNamespace(image_token_id=9)
    engine = VllmEngine("model", processor, config=config, max_images=2)
    assert calls["options"]["limit_mm_per_prompt"] == {"image": 2}
    picture = Image.new("RGB", (4, 4))
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Where?"}]}]
    text = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    decoding = Decoding(7, temperature=0.5, top_p=0.9, samples=2)
    answers = engine.answer(engine.prepare([chat, text]), decoding=decoding, seed=3)
    assert [[(one.text, one.tokens, one.is_truncated) for one in samples] for samples in answers] == [
        [("red", 2, False), ("blue", 3, True)]
    ] * 2
    assert [prompt.get("multi_modal_data") for prompt in calls["prompts"]] == [{"image": [picture]}, None]
    first, second = calls["parameters"]
    assert first == {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "max_tokens": 7,
        "logit_bias": {9: -100.0},
        "seed": 6,
    }
    assert second["seed"] == 7
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    with pytest.raises(ValueError, match="is an adapter: merge it first"):
        VllmEngine(str(tmp_path), processor, config=config)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="--engine vllm needs the package vllm"):
        VllmEngine("model", processor, config=config)


def test_a_result_in_words_names_what_does_not_compare():
    reference = {
        "model": "M",
        "metric": "accuracy",
        "value": 0.9,
        "source": "paper",
        "does_not_compare": ["--samples 3"],
    }
    result = {
        "model": "m",
        "bench": "refcoco",
        "split": "val",
        "items": 3,
        "scored_by": "vlm_r1",
        "metrics": {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}},
        "totals": {"cell_mean": 0.25},
        "truncated": 0.125,
        "tokens": 100,
        "seconds": 2.0,
        "references": [reference],
    }
    assert describe(result).splitlines() == [
        "m on refcoco val, 3 items, rules of vlm_r1:",
        "  accuracy 0.500 [0.100, 0.900]",
        "  cell_mean 0.250",
        "  answers cut off: 12.5%",
        "  100 tokens in 2.0 s of generation, 50 tokens/s",
        "  published: M accuracy 0.900, paper",
        "  which does not compare: --samples 3",
    ]


def write_run(folder, entropies, *, stages=None, bench="shapes"):
    folder.mkdir()
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "items": 100}
    result = {"bench": bench, "metrics": {"accuracy@0.5": share, "iou": {**share, "value": 0.45}}}
    (folder / "result.json").write_text(json.dumps(result))
    with (folder / "metrics.jsonl").open("w") as file:
        for step, entropy in enumerate(entropies, start=1):
            stage = {"two_stage/stage": stages[step - 1], "two_stage/coefficient": 0.1} if stages else {}
            file.write(json.dumps({"step": step, "reward": 0.1 * step, "entropy": entropy, **stage}) + "\n")
        file.write(json.dumps({"step": len(entropies), "train_runtime": 1.0}) + "\n")


def test_the_report_has_a_row_per_run_and_reads_entropy_where_the_stage_switches(tmp_path, capsys):
    write_run(tmp_path / "grpo", [1.0] * 5 + [0.5] * 5)
    write_run(tmp_path / "two_stage", [1.0] * 5 + [2.0] * 5 + [0.25] * 5, stages=[1] * 10 + [2] * 5)
    main(["report", "--runs", str(tmp_path / "grpo"), str(tmp_path / "two_stage"), "--out", str(tmp_path / "report")])
    table = (tmp_path / "report" / "report.md").read_text()
    assert table.splitlines()[0] == "| run | accuracy@0.5 [95 %] | iou | entropy: start | at step 10 | end |"
    assert table.splitlines()[2:] == [
        "| grpo | 0.500 [0.400, 0.600] | 0.450 | 1.000 | 0.500 | 0.500 |",
        "| two_stage | 0.500 [0.400, 0.600] | 0.450 | 1.000 | 2.000 | 0.250 |",
    ]
    assert table in capsys.readouterr().out
    assert (tmp_path / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")
    write_run(tmp_path / "gui", [1.0], bench="gui")
    with pytest.raises(SystemExit, match="evaluated on different benchmarks: gui, shapes"):
        main(["report", "--runs", str(tmp_path / "grpo"), str(tmp_path / "gui"), "--out", str(tmp_path / "report")])
    with pytest.raises(SystemExit, match=r"result.json is missing: evaluate the run first"):
        main(["report", "--runs", str(tmp_path), "--out", str(tmp_path / "report")])


def test_entropy_is_averaged_over_the_five_lines_that_end_at_a_step():
    lines = [{"step": step, "entropy": float(step), "reward": 0.0} for step in range(1, 21)]
    assert entropy_at(lines, 0) == 3.0  # steps 1 to 5
    assert entropy_at(lines, 10) == 8.0  # steps 6 to 10
    assert entropy_at(lines, 20) == 18.0
    assert entropy_at(lines, None) is None
    assert switch_step({"grpo": lines}) is None
