"""The report in a real browser: drawn whole, on a laptop and a phone, light and dark, fast, and never executed."""

import json

import pytest
from browser import CHROMIUM, Browser
from report_runs import HOSTILE, write_answers, write_run

from vlm_entropy.eval.report import ReportArguments, report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def short_page(tmp_path_factory):
    """One run of three steps, with answers that mean harm and an image that is missing."""
    folder = tmp_path_factory.mktemp("short")
    run = write_run(folder / "run", steps=3, method=HOSTILE[0], note=HOSTILE[1])
    other = write_run(folder / "<img src=x onerror=alert(1)>", steps=3, note=HOSTILE[2])
    write_answers(run, folder / "images", [*HOSTILE, "x" * 100_000], missing=True)
    report(ReportArguments([str(run), str(other)], str(folder / "report")))
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def long_page(tmp_path_factory):
    """Two methods with two seeds of 5 000 steps each."""
    folder = tmp_path_factory.mktemp("long")
    runs = [
        write_run(folder / f"{method}-{seed}", steps=5000, seed=seed, method=method)
        for method in ("grpo", "two_stage")
        for seed in range(2)
    ]
    report(ReportArguments(list(map(str, runs)), str(folder / "report")))
    return folder / "report" / "report.html"


SCREENS = [(1280, 800), (390, 844)]
PROBE = """(() => {
  const open = [...document.querySelectorAll('details[open] .chart')];
  const inked = (figure) => {
    const canvas = figure.querySelector('canvas');
    if (!canvas) return false;
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return new Uint32Array(data.buffer).some(it => it);
  };
  const right = (element) => element.getBoundingClientRect().right;
  return {
    title: document.title,
    width: document.documentElement.scrollWidth,
    charts: open.length,
    drawn: open.filter(inked).length,
    spilled: open.filter(it => right(it.querySelector('canvas')) > right(it)).length,
    ground: getComputedStyle(document.body).backgroundColor,
    elements: [...new Set([...document.body.querySelectorAll('*')].map(it => it.localName))],
  };
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SCREENS)
@pytest.mark.parametrize("name", ["short_page", "long_page"])
def test_every_chart_is_drawn_inside_the_page(request, browser, name, width, height, dark):
    browser.open(request.getfixturevalue(name), width=width, height=height, dark=dark)
    probe = browser.evaluate(PROBE)
    assert probe["charts"] == probe["drawn"] >= 20
    assert probe["width"] <= width
    assert probe["spilled"] == 0
    assert probe["ground"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert browser.problems == []


def test_text_that_means_harm_is_shown_and_never_executed(browser, short_page):
    browser.open(short_page, width=1280, height=800)
    browser.evaluate("document.querySelectorAll('details').forEach(it => { it.open = true; })")
    browser.wait_for_frames()
    probe = browser.evaluate(PROBE)
    assert "owned" not in probe["title"]
    assert not {"img", "iframe", "link", "object"} & set(probe["elements"])
    shown = browser.evaluate("document.body.innerText")
    for text in HOSTILE[:5]:
        assert text in shown
    assert browser.evaluate("document.querySelectorAll('script').length") == 3
    handlers = "[...document.querySelectorAll('*')].flatMap(it => it.getAttributeNames()).filter(it => /^on/.test(it))"
    assert browser.evaluate(handlers) == []
    assert "The image 0.png is missing." in shown
    assert browser.problems == []


def test_the_page_lets_no_foreign_script_run_even_if_one_got_into_it(browser, short_page, tmp_path):
    injected = short_page.read_text(encoding="utf-8").replace("<main>", f"<main>{HOSTILE[0]}{HOSTILE[1]}", 1)
    (tmp_path / "injected.html").write_text(injected, encoding="utf-8")
    browser.open(tmp_path / "injected.html", width=1280, height=800)
    assert "owned" not in browser.evaluate("document.title")
    assert any("Content Security Policy" in problem for problem in browser.problems)
    browser.problems.clear()


@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_a_token_shows_its_entropy_probability_and_alternatives(browser, short_page, width, height):
    browser.open(short_page, width=width, height=height)
    (browser.tap if width < 500 else browser.hover)("[data-tip='0']")
    assert browser.evaluate("document.getElementById('tip').hidden") is False
    shown = browser.evaluate("document.getElementById('tip').innerText").splitlines()
    # The first token of write_answers: entropy 0.0, probability 0.7, its own text with 0.5 (cut at 40) and b with 0.3.
    assert shown[0] == "entropy 0 nats, probability 0.7, think"
    assert shown[1].strip() == f"50.0 %  {json.dumps(HOSTILE[0][:40] + ' …', ensure_ascii=False)}"
    assert shown[2].strip() == '30.0 %  "b"'
    box = browser.evaluate(
        "(({left, right}) => [left, right])(document.getElementById('tip').getBoundingClientRect())"
    )
    assert box[0] >= 0
    assert box[1] <= width


def test_names_switch_curves_off_and_means_are_moved(browser, long_page):
    browser.open(long_page, width=1280, height=800)
    picture = "document.querySelector('.chart canvas').toDataURL()"
    before = browser.evaluate(picture)
    browser.evaluate("document.querySelector('#legend button').click()")
    without = browser.evaluate(picture)
    browser.evaluate("document.querySelector('#legend button').click()")
    assert before == browser.evaluate(picture) != without
    browser.evaluate("smooth = document.getElementById('smooth'); smooth.value = '40'; smooth.onchange()")
    assert browser.evaluate(picture) not in (before, without)


def test_five_thousand_steps_are_drawn_within_three_seconds(browser, long_page):
    browser.open(long_page, width=1280, height=800)
    # From the start of the navigation to the second frame after loading.
    assert browser.evaluate("performance.now()") < 3000
    assert browser.evaluate(PROBE)["drawn"] >= 20
