"""The page in a headless Chromium: it asks for nothing, complains of nothing, and can be used with a keyboard alone.

Playwright's library drives the browser that Debian packages; `make test-page` installs it where it may.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.report import figures
from pipeline.report import page as report
from tests.analysis.synthetic import make_run
from tests.report.made import NASTY, Made, explored, scored

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; `make setup` does that")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; `make test-page` installs it where it may"),
]
SIZES = pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (400, "dark"), (1280, "dark"), (400, "light")]
)  # fmt: skip

CHECKS = (Path(__file__).parent / "checks.js").read_text("utf-8")
PART = "document.querySelector('#explorer [data-part="
READY = "#explorer [data-part=plots] svg[role=img]"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Root may not run Chromium's sandbox; as anyone else it stays on.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(made: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(made.page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; at its end nothing has been asked for, and nothing complained of."""
    asked: list[str] = []
    wrong: list[str] = []
    pages: list[Any] = []

    def refuse(route: Any) -> None:
        if route.request.url.split("#")[0] == address:
            route.continue_()
        else:
            asked.append(route.request.url)
            route.abort()

    def open_page(fragment: str = "", *, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Any:
        view = {"width": width, "height": 900}
        context = chromium.new_context(viewport=view, color_scheme=scheme, java_script_enabled=scripts)
        page = context.new_page()
        page.route("**/*", refuse)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        pages.append(page)
        page.goto(address + fragment)
        if scripts:
            page.wait_for_selector(READY)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert asked == []
    assert wrong == []


def check(page: Any, name: str) -> Any:
    """What a function of checks.js finds."""
    return page.evaluate(f"() => ({CHECKS.strip()}).{name}()")


def until(page: Any, true: str) -> None:
    """Wait until an expression is true; the page's policy keeps Playwright from doing so itself."""
    for _ in range(100):
        if page.evaluate(true):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {true}")


def plots(page: Any) -> list[str]:
    return [svg.evaluate("svg => svg.outerHTML") for svg in page.locator(READY).all()]


def pick(page: Any, name: str, value: str) -> None:
    before = page.evaluate("location.hash")
    page.locator(f"#explorer [name={name}]").select_option(value)
    until(page, f"location.hash !== {before!r}")


@SIZES
def test_nothing_overlaps(opened: Callable[..., Any], width: int, scheme: str) -> None:
    page = opened(width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert check(page, "overlaps") == []


@SIZES
def test_figures_can_be_read_at_this_width_and_have_the_pages_ground(
    opened: Callable[..., Any], width: int, scheme: str
) -> None:
    page = opened(width=width, scheme=scheme)
    shown = check(page, "figures")
    assert len(shown) == 5
    assert all(one["narrow"] == (width == 400) for one in shown)
    # Letters are of 10 points, axes' small ones of 8: nothing below 8 pixels.
    assert min(one["letters"] for one in shown) >= 10
    assert all(one["right"] <= width for one in shown)
    image = page.locator("#tracing figure img").first
    image.scroll_into_view_if_needed()
    pixels = np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("L"), dtype=float)
    ground, ink = pixels[3, 3], pixels.min() if scheme == "light" else pixels.max()
    assert ground > 250 if scheme == "light" else ground < 40
    assert abs(ground - ink) > 150


def test_dark_figures_are_printed_on_white(opened: Callable[..., Any]) -> None:
    page = opened(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert {one["filter"] for one in check(page, "figures")} == {"none"}


def test_it_paints_before_the_explorer_is_built(opened: Callable[..., Any]) -> None:
    page = opened()
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert first < 2000


def test_a_page_of_a_hundred_facts_is_light_and_paints_soon(chromium: Any, made: Made, tmp_path: Path) -> None:
    run = make_run(100, 30)
    scores = scored(run)
    # Of the figures only this one grows with the facts; tables of a row a fact are small beside the explorer's records.
    grown = report.picture(figures.score_against_trace(scores, "rewrite", "fraction"), tmp_path, 60)
    assert grown.svg.stat().st_size < 350_000
    pictures = [grown, *(one for one in made.pictures if one.svg.stem != grown.svg.stem)]
    path = tmp_path / "report.html"
    path.write_text(report.render(made.document, pictures, explored(run, scores), tmp_path), encoding="utf-8")
    assert path.stat().st_size < 10_000_000  # 15 with the figures and tables of stages beside the main path
    page = chromium.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(READY)
    assert page.locator("#explorer [data-part=count]").text_content() == "100 of 100 facts"
    assert page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 2000
    page.close()


def test_picking_a_fact_changes_the_plots_and_the_address(opened: Callable[..., Any]) -> None:
    page = opened()
    before = plots(page)
    assert len(before) == 3
    assert "Map of tracing effects, mlp, window of 5 layers" in before[0]
    pick(page, "fact", "5")
    after = plots(page)
    assert len(after) == 3
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert after[2] != before[2]
    assert "Cheaper localizers by layer: attribution patching w5 is largest at layer" in after[1]
    assert "fact=capital.005" in page.evaluate("location.hash")
    assert (
        page.locator("#explorer [data-part=title]").text_content() == f"The capital of {NASTY}5 is the city of → Paris"
    )
    assert page.locator("#explorer [data-part=prompts] tbody tr").count() == 9


def test_problem_score_and_layer_change_what_they_should(opened: Callable[..., Any], made: Made) -> None:
    page = opened("#fact=capital.002")
    pick(page, "problem", "2")
    pick(page, "score", "overall")
    page.locator("#explorer [name=layer]").fill("7")
    until(page, "location.hash.includes('layer=7')")
    heading = page.locator("#explorer [data-part=prompts] h4").text_content()
    assert heading == "Prompts before and after the edit: ROME, fact erasure, layer 7"
    rows = made.run.edits.query("fact_id == 'capital.002' and problem == 'fact_erasure' and layer == 7")
    cells = page.locator("#explorer [data-part=prompts] tbody tr").first.locator("td").all_text_contents()
    assert cells[1:3] == [f"{rows['p_pre'].iloc[0]:.3f}", f"{rows['p_post'].iloc[0]:.3f}"]
    of = made.scores.query("fact_id == 'capital.002' and problem == 'fact_erasure'").sort_values("layer")
    told = page.locator(READY).nth(2).get_attribute("aria-label")
    assert told == (
        f"Edit success of ROME by layer: the best overall score for fact erasure is {of['overall'].max():.3f}, "
        f"at layer {of['layer'].iloc[int(of['overall'].round(3).argmax())]}"
    )


def test_an_address_opens_its_fact_and_view(opened: Callable[..., Any]) -> None:
    page = opened("#fact=capital.007&problem=fact_forcing&method=rome&layer=11&score=paraphrase")
    until(page, f"{PART}title]').textContent.includes('7 is the city')")
    values = {
        name: page.locator(f"#explorer [name={name}]").input_value()
        for name in ("fact", "problem", "method", "layer", "score")
    }
    assert values == {"fact": "7", "problem": "4", "method": "0", "layer": "11", "score": "paraphrase"}
    assert page.locator("#explorer").evaluate("one => Math.abs(one.getBoundingClientRect().top)") < 2
    link = page.locator("#explorer [data-part=link]").get_attribute("href")
    assert link == "#fact=capital.007&problem=fact_forcing&method=rome&layer=11&score=paraphrase"
    page.evaluate("location.hash = '#fact=capital.003&layer=2'")
    until(page, f"{PART}title]').textContent.includes('3 is the city')")
    page.evaluate("location.hash = '#fact=nobody'")
    until(page, f"{PART}missing]').textContent.includes('no fact nobody')")


def test_facts_are_searched_filtered_and_sorted(opened: Callable[..., Any], made: Made) -> None:
    page = opened()
    options, count = page.locator("#explorer [name=fact] option"), page.locator("#explorer [data-part=count]")
    page.locator("#explorer [name=search]").fill("y')</script>1 PARIS")
    assert count.text_content() == "3 of 12 facts"  # 1, 10 and 11
    page.locator("#explorer [name=relation]").select_option("continent")
    assert count.text_content() == "2 of 12 facts"
    page.locator("#explorer [name=search]").fill("")
    page.locator("#explorer [name=relation]").select_option("")
    page.locator("#explorer [name=order]").select_option("effect")
    largest = made.run.trace.groupby("fact_id")["effect"].max().sort_values(ascending=False)
    assert [f"capital.{int(one):03d}" for one in options.evaluate_all("all => all.map((one) => one.value)")][
        :3
    ] == list(largest.index[:3])
    page.locator("#explorer [name=success]").select_option("900-1001")
    best = made.scores.query("problem == 'error_injection'").groupby("fact_id")["rewrite"].max()
    assert count.text_content() == f"{(best.round(3) >= 0.9).sum()} of 12 facts"


@SIZES
def test_the_keyboard_alone_reaches_and_works_everything(opened: Callable[..., Any], width: int, scheme: str) -> None:
    page = opened(width=width, scheme=scheme)
    wanted = check(page, "reachable")
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        number, mark = check(page, "focused")
        if number is not None:
            reached.add(int(number))
            assert mark != "none", "what has the focus is not marked"
    assert reached == set(range(wanted))
    page.locator("#explorer [name=fact]").focus()
    page.keyboard.press("ArrowDown")
    until(page, "location.hash.includes('fact=capital.001')")
    page.locator("#explorer [name=layer]").focus()
    at = int(page.locator("#explorer [name=layer]").input_value())
    page.keyboard.press("ArrowRight")
    until(page, f"location.hash.includes('layer={at + 1}')")
    page.locator("#explorer summary").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#explorer details[open] tbody tr")
    assert page.locator("#explorer details[open] tbody tr").count() == 6


def test_a_click_on_a_plot_picks_the_layer(opened: Callable[..., Any]) -> None:
    page = opened()
    box = page.locator(READY).first.bounding_box()
    page.locator(READY).first.click(position={"x": box["width"] - 20, "y": 40})
    until(page, "location.hash.includes('layer=29')")


def test_controls_and_pictures_have_names(opened: Callable[..., Any]) -> None:
    page = opened()
    assert check(page, "nameless") == []
    assert page.locator("html").get_attribute("lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4, h5')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_light_and_dark_differ_and_can_be_read(opened: Callable[..., Any]) -> None:
    page = opened(scheme="light")
    light = check(page, "contrasts")
    page.emulate_media(color_scheme="dark")
    line = "#explorer g[aria-label=line] path"
    until(page, f"getComputedStyle(document.querySelector('{line}')).stroke !== '{light['colors'][0]}'")
    dark = check(page, "contrasts")
    assert light["back"] > 0.9
    assert dark["back"] < 0.05
    assert len(set(light["colors"]) | set(dark["colors"])) == 10
    for found in (light, dark):
        assert found["words"] >= 4.5  # WCAG 2.2, 1.4.3
        assert min(found["lines"]) >= 3  # WCAG 2.2, 1.4.11
        assert len(found["lines"]) == 5 + 2


def test_without_scripts_the_rest_works_and_says_so(opened: Callable[..., Any]) -> None:
    page = opened(scripts=False)
    assert (
        page.locator("#explorer noscript").text_content().startswith("This part needs JavaScript, which is off here.")
    )
    assert not page.locator("#explorer-app").is_visible()
    assert page.locator("main img").count() == 5
    assert page.locator("main table").count() > 3


def test_no_other_script_runs(chromium: Any, address: str) -> None:
    page = chromium.new_context().new_page()
    page.goto(address)
    page.wait_for_selector(READY)
    assert not check(page, "smuggle")
    with pytest.raises(sync_api.Error):
        page.add_script_tag(content="window.foreign = true")
    page.context.close()


def test_tables_sort_and_filter(opened: Callable[..., Any], made: Made) -> None:
    page = opened()
    table = page.locator("#regressions table")
    cells = "rows => rows.filter((row) => !row.hidden).map((row) => row.cells[{}].textContent.trim())"
    head = table.locator("thead tr").last.locator("th").nth(4)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    up = [float(text) for text in table.locator("tbody tr").evaluate_all(cells.format(4))]
    assert up == sorted(up)
    assert len(up) == len(made.regressions)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in table.locator("tbody tr").evaluate_all(cells.format(4))] == up[::-1]
    page.locator("#regressions select").nth(1).select_option("overall")
    assert set(table.locator("tbody tr").evaluate_all(cells.format(1))) == {"overall"}
    page.locator("#regressions input").fill("erasure")
    assert table.locator("tbody tr").evaluate_all(cells.format(0)) == ["fact erasure"]
    assert page.locator("#regressions .count").text_content() == "1 of 10 rows"


def test_data_is_downloaded_from_beside_its_figure(opened: Callable[..., Any], made: Made) -> None:
    page = opened()
    with page.expect_download() as got:
        page.locator("figure", has_text="Edit success by layer").locator("a.data").click()
    assert got.value.suggested_filename == "figure-rewrite_by_layer.csv.gz"
    assert gzip.decompress(Path(got.value.path()).read_bytes()).decode() == made.pictures[-1].data
