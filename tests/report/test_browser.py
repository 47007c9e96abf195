"""The pages in a real browser: what is drawn, what is loaded, what fits."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from run_directories import evaluation, path, write_evaluation, write_training_run

from lerobot_smoothvla.provenance import provenance
from lerobot_smoothvla.report.build import ReportConfig, write_report
from lerobot_smoothvla.report.page import write_page
from lerobot_smoothvla.report.score import TERMS, Recording, Score, worst_moments
from lerobot_smoothvla.report.score_page import score_page
from lerobot_smoothvla.report.signal import Signal
from lerobot_smoothvla.smoothness import measure

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ITERATIONS, TASKS, POLICIES = 8, 3, 2
CONTRAST = """
(elements) => elements.map((element) => {
  const rgb = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = (colour) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb(colour).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const style = getComputedStyle(element);
  const colour = element.closest("svg") ? (style.fill === "none" ? style.stroke : style.fill) : style.color;
  const [low, high] = [colour, getComputedStyle(behind).backgroundColor].map(luminance).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("There is no browser; `apt-get install chromium` brings one.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of two seeds, and two policies on three tasks, with videos."""
    root = tmp_path_factory.mktemp("report")
    runs = [
        write_training_run(
            root / f"w{weight}_s{seed}", [0.5 + 0.01 * seed * i for i in range(ITERATIONS)], seed, weight
        )
        for weight in (0.0, 0.5)
        for seed in (1, 2)
    ]
    solved = [True] * 12 + [False] * 18
    results = {"compare": evaluation(solved, roughness=0.002), "policy": evaluation(solved[::-1])}
    runs.append(write_evaluation(root / "evaluation", videos=True, **results))
    return write_report(ReportConfig(runs))


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of twelve episodes."""
    recordings = []
    for index in range(12):
        positions = path(index).double()
        terms = measure(positions, 0.05, torch.tensor([len(positions) - 1]))
        recordings.append(
            Recording(index, f"task {index % 2}", positions, {name: terms[name] for name in TERMS})
        )
    signal = Signal("observation.state", (0, 1, 2), ("x", "y", "z"), "m")
    made = Score("made", signal, 20, tuple(recordings), worst_moments(recordings, 0.05, 10), ())
    page = tmp_path_factory.mktemp("score") / "score.html"
    write_page(page, score_page(made, provenance()))
    return page


@pytest.fixture(params=["report", "score"])
def file(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def opened(browser: Browser, file: Path, width: int = 1280, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(file.as_uri())
    return page


def test_nothing_is_loaded_and_nothing_complained_about(browser, file):
    page = browser.new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri(), wait_until="networkidle")
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert complaints == []


def test_what_files_say_is_shown_and_not_run(browser, tmp_path):
    evil = '"><script>ran = 1</script><img src=x onerror="ran = 1"><svg onload="ran = 1">'
    positions = path(0).double()
    terms = measure(positions, 0.05, torch.tensor([len(positions) - 1]))
    recordings = [Recording(0, evil, positions, {name: terms[name] for name in TERMS})]
    moments = worst_moments(recordings, 0.05, 3)
    made = Score(
        evil, Signal(evil, (0, 1, 2), (evil, "y", "z"), "m"), 20, tuple(recordings), moments, (evil,)
    )
    shown = score_page(made, {"command": evil})
    pages = {}
    # The page's own policy would stop a script, too; here only the escaping does.
    for name, text in {"escaped": shown.replace("Content-Security-Policy", "none"), "raw": evil}.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        pages[name] = opened(browser, tmp_path / f"{name}.html")
        pages[name].wait_for_load_state("networkidle")
    assert pages["raw"].evaluate("window.ran") == 1
    assert pages["escaped"].evaluate("window.ran") is None
    assert pages["escaped"].inner_text("main").count(evil) >= 5


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen(browser, file, width):
    page = opened(browser, file, width)
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 1280])
def test_every_figure_is_drawn_and_its_text_can_be_read(browser, file, width):
    page = opened(browser, file, width)
    figures = page.locator("svg.chart").all()
    assert figures
    for figure in figures:
        box = figure.bounding_box()
        assert box and box["width"] > 250 and box["height"] > 60
        assert figure.locator(".line, .marker, .bar").count() > 0
        assert figure.get_attribute("role") == "img" and figure.get_attribute("aria-label")
    sizes = page.locator("svg.chart text").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().height)"
    )
    assert min(size for size in sizes if size > 0) >= 9


def test_figures_have_as_many_marks_as_there_are_values(browser, report):
    page = opened(browser, report)

    def marks(title: str, kind: str) -> int:
        return page.locator(f'svg[aria-label^="{title}"] {kind}').count()

    assert marks("Success of the rollouts", ".marker") == 2 * ITERATIONS
    assert marks("Success of the rollouts", ".band") == 2
    assert marks("Success against jerk", ".marker") == POLICIES
    assert marks("Success by task", ".bar") == TASKS * POLICIES
    assert page.locator('svg[aria-label^="Speed, m/s"]').first.locator(".line").count() == POLICIES


def test_the_worst_moments_are_pointed_to(browser, score):
    page = opened(browser, score)
    pointers = page.locator('svg[aria-label^="Jerk, m/s³"] .pointer').count()
    assert 3 <= pointers <= 10
    assert page.locator("table", has_text="Where the jerk is largest").locator("tbody tr").count() == 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_both_colour_schemes(browser, file, scheme):
    page = opened(browser, file, scheme=scheme)
    text = page.locator("h1, li, td, th, .note, figcaption, summary, dt, svg.chart text")
    assert min(text.evaluate_all(CONTRAST)) >= 4.5
    marks = page.locator("svg.chart .line, svg.chart .marker, svg.chart .bar")
    assert min(marks.evaluate_all(CONTRAST)) >= 3.0


def test_colour_schemes_differ(browser, report):
    grounds = {
        scheme: opened(browser, report, scheme=scheme).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    }
    assert grounds["light"] != grounds["dark"]


def test_videos_of_the_same_start_play_together(browser, report):
    page = opened(browser, report)
    videos = page.locator("video")
    assert videos.count() == POLICIES
    assert all(video.get_attribute("aria-label") for video in videos.all())
    page.get_by_role("button", name="Play together").click()
    # The page forbids the code that Playwright's own waiting would run in it.
    until = time.monotonic() + 20
    while min(videos.evaluate_all("all => all.map(video => video.currentTime)")) < 0.1:
        assert time.monotonic() < until
        page.wait_for_timeout(50)


def test_it_can_be_printed(browser, file):
    page = opened(browser, file, scheme="dark")
    assert len(page.pdf()) > 10_000
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not any(video.is_visible() for video in page.locator("video").all())


def test_structure_is_there_for_those_who_do_not_see_it(browser, file):
    page = opened(browser, file)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").count() == 1
    tables = page.locator("table").all()
    assert tables
    for table in tables:
        assert table.locator("caption").count() == 1
        assert table.locator("thead th[scope=col]").count() > 1
