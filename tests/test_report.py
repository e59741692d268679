"""The report: what it reads, what it draws, and that the file needs nothing else and runs nothing of its contents."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_runs import HOSTILE, log_line, token, write_answers, write_lines, write_run

from vlm_entropy.eval.__main__ import main
from vlm_entropy.eval.report.answers import choose, entropy_scale, first_samples_first, place_of, predicted_answers
from vlm_entropy.eval.report.curves import Chart, band, charts_of, drawn, step_edges, thin
from vlm_entropy.eval.report.methods import curation, curation_files, expert_gaps, histogram, spread_out
from vlm_entropy.eval.report.pictures import Album
from vlm_entropy.eval.report.runs import Curve, Run, curves_of, read_runs, short_names, with_throughput
from vlm_entropy.eval.report.tables import cell, comparison_table, differences_table, markdown, runs_table, seeds_table


def run_of(name="run", metrics=(), *, options=None, result=None, folder=None):
    return Run(name, folder, list(metrics), result, options or {})


class Page(HTMLParser):
    """Elements, attributes and texts of an HTML file."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.scripts, self.styles, self.texts = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        {"script": self.scripts, "style": self.styles}.get(self.lasttag, self.texts).append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of a run with hostile texts wherever a run can have texts."""
    folder = tmp_path_factory.mktemp("hostile")
    run = write_run(folder / "<img src=x onerror=alert(1)>", method=HOSTILE[0], note=HOSTILE[1])
    other = write_run(folder / "other", note=HOSTILE[2])
    write_answers(run, folder / "images", [*HOSTILE, "x" * 100_000], missing=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [{**line, f"evil/{HOSTILE[0]}": 1.0} for line in lines])
    gap = {"step": 1, "tokens": HOSTILE, "gap": [0.5] * len(HOSTILE), "advantage": 1.0, "correct": True}
    write_lines(run / "expert_gaps.jsonl", [gap])
    rows = [
        {"conversations": [{"value": HOSTILE[3]}, {"value": HOSTILE[1]}], "response_entropy": value}
        for value in (0.1, 0.2)
    ]
    write_lines(run / "scored.jsonl", rows)
    write_lines(run / "scored_kept.jsonl", rows[:1])
    main(["report", str(run), str(other), "--out", str(folder / "report")])
    return (folder / "report" / "report.html").read_text(encoding="utf-8")


def test_the_file_holds_all_it_needs(page):
    parsed = Page(page)
    links = [value for _, name, value in parsed.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert links
    assert all(value.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,")) for value in links)
    assert not re.search(r"@import|url\(", "".join(parsed.styles))
    assert "link" not in parsed.elements


def test_no_text_of_a_run_becomes_markup(page):
    parsed = Page(page)
    assert not {"img", "iframe", "object", "embed", "form"} & set(parsed.elements)
    assert parsed.elements.count("script") == 3
    assert [name for _, name, _ in parsed.attributes if name.startswith("on")] == []
    text = "".join(parsed.texts)
    assert all(hostile in text for hostile in HOSTILE[:5])
    assert "\ud800" not in page
    [text] = re.findall(r'<script type="application/json" id="data">([^<]*)</script>', page)
    data = json.loads(text)
    assert [HOSTILE[0][:40] + " …", 0.5] in data["tips"][0][3]
    assert data["labels"][0] == "<img src=x onerror=alert(1)>"


def test_the_policy_names_the_scripts_of_the_page_and_no_other(page):
    [policy] = [value for _, name, value in Page(page).attributes if name == "content" and "default-src" in value]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    bodies = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    assert len(digests) == 2
    assert directives["script-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert directives["default-src"] == "'none'"


def test_long_texts_are_cut(page):
    # 100 000 characters stand in a question that begins with "Where is " (4000 are kept), a token (200), its tip (40).
    assert max(map(len, re.findall("x+", page))) == 4000 - len("Where is ")


def test_a_large_report_stays_below_fifteen_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    runs = []
    for place in range(4):
        run = write_run(tmp_path / f"run-{place}", steps=400, seed=place, learning_rate=place)
        lines = []
        for answer in range(12):
            path = tmp_path / f"{place}-{answer}.png"
            Image.fromarray(rng.integers(0, 255, (448, 448, 3), dtype=np.uint8)).save(path, compress_level=0)
            tokens = [token("word", top=[("alternative", 0.1)] * 5)] * 700
            line = {"model": f"m{place}", "id": str(answer), "images": [str(path)], "tokens": tokens}
            lines.append(line)
        write_lines(run / "entropy" / "tokens.jsonl", lines)
        runs.append(str(run))
    main(["report", *runs, "--out", str(tmp_path / "report")])
    file = tmp_path / "report" / "report.html"
    assert 5e6 < file.stat().st_size < 15e6
    assert "is left out to keep this file small" in file.read_text()


def test_a_thinned_curve_keeps_least_mean_and_greatest_of_each_bucket():
    lines = [
        {"step": step, "entropy": value} for step, value in enumerate([1.0, 3.0, math.nan, 5.0, 2.0, 8.0], start=1)
    ]
    edges = step_edges(range(1, 7), points=3)
    assert edges.tolist() == [1.0, 3.0, 5.0, 7.0]
    # Steps 1 and 2: 1, 3. Steps 3 and 4: the NaN is left out. Steps 5 and 6: 2, 8.
    assert thin(lines, "entropy", edges).tolist() == [[1.0, 5.0, 2.0], [2.0, 5.0, 5.0], [3.0, 5.0, 8.0]]
    assert np.isnan(thin(lines, "reward", edges)).all()


def test_a_short_run_has_a_point_for_each_step():
    assert step_edges([1, 10, 10, 20], points=3).tolist() == [1.0, 10.0, 20.0, 21.0]
    curves = [Curve("a", (run_of(metrics=[{"step": step, "reward": step / 10} for step in (1, 10, 20)]),))]
    result = drawn(curves)
    assert result["x"] == [1.0, 10.0, 20.0]
    assert result["sections"][0]["charts"][0]["lines"] == [{"mean": [0.1, 1.0, 2.0]}]


def test_seeds_become_a_mean_with_their_standard_deviation():
    values = {0: [1.0, 2.0], 1: [3.0, 6.0], 2: [5.0]}
    runs = tuple(
        run_of(metrics=[{"step": step, "reward": value} for step, value in enumerate(of_seed, start=1)])
        for of_seed in values.values()
    )
    low, mean, high = band(Curve("grpo", runs), "reward", step_edges([1, 2], points=10))
    # Step 1: 1, 3, 5 have mean 3 and deviation 2. Step 2: 2, 6 have mean 4 and deviation √8.
    assert mean.tolist() == [3.0, 4.0]
    np.testing.assert_allclose(low, [1.0, 4 - math.sqrt(8)], rtol=0, atol=1e-12)
    np.testing.assert_allclose(high, [5.0, 4 + math.sqrt(8)], rtol=0, atol=1e-12)


def test_only_what_was_logged_is_drawn_and_a_methods_own_figures_stand_apart():
    line = {"step": 1, "reward": 1.0, "kl": None, "calibrl/gap": 0.5, "rewards/iou": 0.1, "rewards/iou/mean": 0.1}
    sections = charts_of([Curve("a", (run_of(metrics=[line]),))])
    assert {title: [chart.key for chart in charts] for title, charts in sections.items()} == {
        "Learning": ["reward"],
        "The method's own figures": ["calibrl/gap"],
        "Everything else that was logged": ["rewards/iou/mean"],
    }
    assert sections["Learning"][0] == Chart(
        "reward", "Reward", note="weighted sum of all rewards, mean over completions"
    )


def test_runs_that_differ_in_their_seed_alone_are_one_curve(tmp_path):
    lines = [log_line(1, 1)]
    options = [
        {"method": "grpo", "seed": 0, "output_dir": "a", "beta": 0.0},
        {"method": "grpo", "seed": 1, "output_dir": "b", "beta": 0.0},
        {"method": "grpo", "seed": 1, "output_dir": "c", "beta": 0.1},
        {},
        {},
    ]
    runs = [run_of(f"r{n}", lines, options=of, folder=tmp_path / str(n)) for n, of in enumerate(options)]
    curves = curves_of([*runs, run_of("untrained", folder=tmp_path)])
    assert [[run.name for run in curve.runs] for curve in curves] == [["r0", "r1"], ["r2"], ["r3"], ["r4"]]
    assert [curve.label for curve in curves] == ["r0 (2 seeds)", "r2", "r3", "r4"]
    [one, *_] = curves_of(runs[:2])
    assert one.label == "grpo (2 seeds)"


def test_a_comparison_stands_for_its_runs_by_method_and_noise(tmp_path, capsys):
    cells = []
    for noise in (0.0, 0.5):
        for seed in (0, 1):
            run = write_run(tmp_path / f"grpo-{noise}-{seed}", seed=seed, data_file_paths=f"{noise}-{seed}.jsonl")
            cells.append({"method": "grpo", "noise": noise, "seed": seed, "run": str(run), "metrics": {}})
    line = {"method": "grpo", "noise": 0.5, "metric": "iou", "mean": 0.51234, "spread": 0.01, "low": None}
    (tmp_path / "comparison.json").write_text(json.dumps({"plan": {}, "cells": cells, "table": [line]}))
    curves = curves_of(read_runs([str(tmp_path)]))
    assert [curve.label for curve in curves] == [
        "grpo (0% wrong labels) (2 seeds)",
        "grpo (50% wrong labels) (2 seeds)",
    ]
    main(["report", str(tmp_path), "--out", str(tmp_path / "report")])
    assert "<td><bdi>0.512</bdi></td>" in (tmp_path / "report" / "report.html").read_text()
    assert comparison_table({"table": [line]})["rows"][0][:4] == ["grpo", "0.5", "iou", "0.512"]


def test_the_options_that_differ_are_listed_by_curve():
    curves = [
        Curve("a (2 seeds)", tuple(run_of(options={"seed": seed, "beta": 0.0, "lr": 1.0}) for seed in (0, 1))),
        Curve("b", (run_of(options={"seed": 0, "beta": 0.04, "lr": 1.0, "lambda_max": "x" * 300}),)),
        Curve("c", (run_of(),)),
    ]
    table = differences_table(curves)
    assert table["header"] == ["option", "a (2 seeds)", "b"]
    assert table["rows"] == [["seed", "0, 1", "0"], ["beta", "0.0", "0.04"], ["lambda_max", "", "x" * 160 + " ..."]]
    assert differences_table(curves[1:]) is None


def test_the_table_over_seeds_has_the_t_interval():
    def run(value):
        metrics = {"iou": {"value": value, "low": 0.0, "high": 1.0}}
        return run_of(result={"bench": "b", "metrics": metrics})

    curves = [Curve("grpo (3 seeds)", tuple(map(run, (0.4, 0.5, 0.6)))), Curve("one", (run(0.1),))]
    # 0.5 ± 4.3027 · 0.1 / √3
    assert seeds_table(curves)["rows"] == [["grpo (3 seeds)", "3", "0.500 [0.252, 0.748]"]]
    assert seeds_table(curves[1:]) is None


def test_a_run_without_an_evaluation_or_without_a_log_has_its_line():
    result = {"bench": "b", "metrics": {"iou": {"value": None, "low": None, "high": None}}}
    runs = [run_of("trained", [{"step": 1, "reward": 1.0, "entropy": 0.5}]), run_of("asked", result=result)]
    assert runs_table(runs) == {
        "header": ["run", "iou [95 %]", "entropy: start", "end"],
        "rows": [["trained", "", "0.500", "0.500"], ["asked", "", "", ""]],
    }


def test_markdown_and_cells_hold_any_text():
    assert markdown({"header": ["a"], "rows": [["x | y\nz"]]}) == "| a |\n|---|\n| x \\| y z |\n"
    assert [cell(value) for value in (None, True, 0.00001234, 2.0, 0.1 + 0.2, ["é"])] == [
        "", "true", "1.23e-05", "2.0", "0.3", '["é"]',
    ]  # fmt: skip


def test_throughput_is_new_tokens_over_the_seconds_of_the_new_steps():
    lines = [
        {"step": 2, "num_tokens": 100.0, "step_time": 5.0},  # 100 tokens in 2 · 5 s
        {"step": 4, "num_tokens": 300.0, "step_time": 10.0},  # 200 tokens in 2 · 10 s
        {"step": 5, "num_tokens": 400.0},
        {"step": 6, "num_tokens": 450.0, "step_time": 1.0},
    ]
    assert [line.get("tokens_per_second") for line in with_throughput(lines)] == [10.0, 10.0, None, 50.0]


def test_names_are_as_short_as_they_can_be(tmp_path):
    paths = [tmp_path / "a" / "x" / "run", tmp_path / "a" / "y" / "run", tmp_path / "a" / "y" / "other"]
    assert short_names(paths) == ["x/run", "y/run", "y/other"]
    assert short_names(paths[1:]) == ["run", "other"]


def test_places_are_read_from_numbers_and_texts_alike():
    box = {"kind": "box", "x": 1, "y": 2, "width": 9, "height": 6}
    assert place_of([1, 2, 10, 8]) == place_of("in [10, 8, 1, 2]") == box
    assert place_of((3, 4.5)) == {"kind": "point", "x": 3, "y": 4.5}
    assert [place_of(value) for value in (None, 7, "yes", [1, 2, 3], [1, math.nan], [True, False], ["1", "2"])] == [
        None
    ] * 7


def test_half_of_the_shown_answers_are_wrong_ones_where_there_are_so_many():
    assert choose([True] * 5 + [False] * 5, count=4) == [0, 1, 5, 6]
    assert choose([True] * 5 + [False], count=4) == [0, 1, 2, 5]
    assert choose([False] * 5 + [None], count=4) == [0, 1, 2, 5]
    assert choose([None, None], count=4) == [0, 1]
    lines = [{"id": name, "n": number} for number, name in enumerate("aabbc")]
    assert [line["n"] for line in first_samples_first(lines)] == [0, 2, 4, 1, 3]


def test_the_colour_scale_ends_at_the_95th_percentile():
    lines = [{"tokens": [{"entropy": value / 100} for value in range(101)]}]
    assert entropy_scale(lines) == 0.95
    assert entropy_scale([]) == 1.0


def test_an_answer_of_the_evaluation_is_drawn_in_pixels_of_its_image(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": "[20, 10, 60, 50]"}]
    write_lines(tmp_path / "rows.jsonl", [{"image": "a.png", "conversations": turns}])
    settings = {"bench": "shapes", "data": str(tmp_path / "rows.jsonl"), "images": str(tmp_path), "model": "m"}
    result = {**settings, "coordinate_space": "relative_1000", "metrics": {}}
    response = "<think>x</think><answer>[100, 100, 300, 500]</answer>"
    line = {"id": "rows.jsonl:1", "response": response, "input_size": None, "sample": 0}
    write_lines(tmp_path / "run" / "predictions.jsonl", [line])
    write_lines(tmp_path / "run" / "scores.jsonl", [{"id": "rows.jsonl:1", "values": {"iou": 0.75}}])
    run = run_of(folder=tmp_path / "run", result=result)
    [answer] = predicted_answers(run, Album())
    # x · 200 / 1000 and y · 100 / 1000
    assert answer.predicted == {"kind": "box", "x": 20.0, "y": 10.0, "width": 40.0, "height": 40.0}
    assert answer.gold == {"kind": "box", "x": 20.0, "y": 10.0, "width": 40.0, "height": 40.0}
    assert (answer.is_correct, answer.reward, answer.question, answer.text) == (True, 0.75, "Where?", response)
    assert (answer.picture.width, answer.picture.height) == (200, 100)
    (tmp_path / "a.png").unlink()
    [alone] = predicted_answers(run, Album())
    assert (alone.picture, alone.predicted, alone.text) == (None, None, response)


def test_a_picture_is_upright_small_and_read_once(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (1000, 500)).save(tmp_path / "a.jpg", exif=exif)
    album = Album()
    picture = album.add(tmp_path / "a.jpg")
    assert (picture.width, picture.height) == (500, 1000)
    assert album.size == len(picture.uri)
    assert album.add(tmp_path / "a.jpg") is picture
    (tmp_path / "b.png").write_text("no image")
    assert album.add(tmp_path / "b.png").problem == "The image b.png cannot be read."
    assert album.add(tmp_path / "c.png").problem == "The image c.png is missing."


def test_gaps_are_shares_of_the_largest_and_a_step_counts_once(tmp_path):
    lines = [
        {"step": 1, "tokens": ["a"], "gap": [9.0], "advantage": 1.0, "correct": True},
        {"step": 1, "tokens": ["a", "b"], "gap": [0.5, -2.0], "advantage": -1.0, "correct": False},
        {"step": 2, "tokens": ["a", "b"], "gap": [3.0], "advantage": 1.0, "correct": True},
    ]
    write_lines(tmp_path / "expert_gaps.jsonl", lines)
    first, second = expert_gaps(run_of(folder=tmp_path))
    assert [(it["text"], it["gap"], it["share"]) for it in first["tokens"]] == [
        ("a", "+0.500", 0.25),
        ("b", "-2.000", -1.0),
    ]
    assert [it["share"] for it in second["tokens"]] == [1.0, 1.0]
    assert (first["correct"], first["advantage"]) == (False, -1.0)


def test_a_curation_is_found_and_its_kept_rows_are_told_from_the_dropped(tmp_path):
    def row(number, noisy):
        turns = [{"from": "human", "value": f"q{number}"}, {"from": "gpt", "value": "1"}]
        scores = {"response_entropy": number / 10, "response_accuracy": 1 - number / 10, "is_noisy": noisy}
        return {"conversations": turns, **scores}

    rows = [row(number, number > 2) for number in (3, 1, 2, 4)]
    write_lines(tmp_path / "scored.jsonl", [*rows, {**row(9, True), "response_entropy": None}])
    write_lines(tmp_path / "scored_kept.jsonl", [rows[1], rows[2]])
    run = run_of(
        folder=tmp_path / "elsewhere", options={"data_file_paths": f"x.jsonl:{tmp_path / 'scored_kept.jsonl'}"}
    )
    [files] = curation_files(run)
    found = curation(*files)
    kept, dropped = found["summary"].values()
    assert (kept["rows"], dropped["rows"]) == (2, 2)
    assert kept["entropy"] == pytest.approx(0.15, abs=1e-12)
    assert (kept["wrong labels"], dropped["wrong labels"]) == (0.0, 1.0)
    assert [row["question"] for row in found["rows"]["dropped, highest entropy"]] == ["q4", "q3"]
    assert found["most"] == 1


def test_histogram_and_spread_by_hand():
    bins = histogram([0.0, 0.1, 1.0], [0.9, 2.0], bins=2)
    assert bins == [{"from": 0.0, "kept": 2, "dropped": 1}, {"from": 1.0, "kept": 1, "dropped": 1}]
    assert histogram([1.0], [], bins=2) == [
        {"from": 1.0, "kept": 1, "dropped": 0},
        {"from": 2.0, "kept": 0, "dropped": 0},
    ]
    assert spread_out(range(9), 3) == [0, 4, 8]
    assert spread_out(range(2), 3) == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\nno json\n', r"metrics.jsonl:2 is not JSON"),
        ("metrics.jsonl", "[1]\n", r"metrics.jsonl:1 must hold a JSON object, not list"),
        ("result.json", "[]", r"result.json must hold a JSON object, not list"),
        ("run_config.json", "{", r"run_config.json is not JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, text, message):
    run = write_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["report", str(run), "--out", str(tmp_path / "report")])


def test_a_folder_without_a_run_is_refused_and_a_cut_line_is_left_out(tmp_path):
    with pytest.raises(SystemExit, match=r"The run '.*nowhere' is no folder"):
        main(["report", str(tmp_path / "nowhere")])
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    [read] = read_runs([str(run)])
    assert [line["step"] for line in read.metrics] == [1, 2, 3]
