"""The reports in a real browser, offline: no errors, charts in sight, readable by everyone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from example_report import make_report
from playwright.sync_api import Browser, Error, Page, sync_playwright

from cmt.export.pipeline import Bundle
from cmt.report.comparison import merge, read_source
from cmt.report.comparison_pages import write_comparison
from cmt.report.document import write_report

WIDTHS = {"phone": 390, "desktop": 1280}
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"needs a browser: one of {', '.join(NAMES)}")
    with sync_playwright() as playwright:
        # In a container, root has no sandbox.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["report", "comparison"])
def page_file(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The HTML of a real bundle, and of its comparison with a stored report."""
    if request.param == "report":
        return bundle.path / "report.html"
    folder = tmp_path_factory.mktemp("comparison")
    write_report(make_report(), folder)
    sources = [read_source(str(path)) for path in (bundle.path, folder)]
    write_comparison(merge(sources, mix_images=True), folder)
    return folder / "comparison.html"


@pytest.fixture
def visit(browser: Browser, page_file: Path) -> Iterator[Callable[..., Page]]:
    """`visit(width, scheme)`: the page without a network; any complaint of it fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(width: int, scheme: Any) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_charts_are_in_sight_and_nothing_runs_off_the_page(
    visit: Callable[..., Page], width: int
) -> None:
    page = visit(width, "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator("figure svg")
    assert charts.count() == 3
    for chart in charts.all():
        box = chart.bounding_box()
        assert box is not None
        assert box["width"] > 0.75 * min(width, 480)
        assert 0 <= box["x"] <= width - box["width"]
        assert chart.locator("path, use").count() > 5
        # Texts are drawn as text, and large enough to read.
        texts = [text.bounding_box() for text in chart.locator("text").all()]
        assert min(text["height"] for text in texts if text) > 8
    colours = page.evaluate(
        "[...document.querySelectorAll('figure svg [style]')]"
        ".map(e => [getComputedStyle(e).fill, getComputedStyle(e).stroke]).flat()"
    )
    assert len(set(colours)) > 4, "the charts have the page's colours"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_axe_finds_no_serious_violation(
    visit: Callable[..., Page], width: int, scheme: str
) -> None:
    found = Axe().run(visit(width, scheme)).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in serious] == []


def test_a_page_with_a_violation_would_be_found(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content("<html lang='en'><title>t</title><main><img src='x'></main></html>")
    found = Axe().run(page).response["violations"]
    assert "image-alt" in [violation["id"] for violation in found]


def test_it_prints(visit: Callable[..., Page]) -> None:
    page = visit(WIDTHS["desktop"], "dark")
    try:
        document = page.pdf(format="A4")
    except Error as error:  # headless shells of some distributions cannot
        pytest.skip(str(error).splitlines()[0])
    assert document.startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    background = page.evaluate("getComputedStyle(document.body).color")
    assert background == "rgb(26, 31, 39)", "dark text on paper, whatever the screen's scheme"


def test_the_page_is_one_file_under_two_megabytes(page_file: Path) -> None:
    assert page_file.stat().st_size < 2_000_000
