"""Pages in a browser: what a reader sees and uses, at every width, in both color schemes, on paper and without scripts."""

from __future__ import annotations

import csv
import io
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from example_galleries import molecule_gallery, story_gallery
from example_reports import digits_report, ending_report, gallery_report, hostile_report, language_report, linear_report
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from selfloop.report.page import render_page
from selfloop.report.values import CurveData, Panel, Report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium")

REPORTS: dict[str, Callable[[], list[Report]]] = {
    "digits": lambda: [digits_report(generations=10)],
    "language": lambda: [language_report()],
    "galleries": lambda: [gallery_report()],
    "molecules": lambda: [replace(gallery_report(), galleries=[molecule_gallery()])],
    "several": lambda: [digits_report(generations=10), language_report()],
    "lengths": lambda: [digits_report(generations=10), replace(language_report(), galleries=[story_gallery(4, ["replace"])])],
    "hostile": lambda: [hostile_report(), linear_report(50)],
    "many": lambda: [many_policies()],
    "sweep": lambda: [ending_report()],
}
FIGURES = "figure[data-name]:visible"
REDRAWN = ".redrawn svg >> visible=true"


def many_policies() -> Report:
    """Twelve policies, of which the first is the best and the last the worst; and a metric with negative values."""
    values = np.linspace(1, 2, 6) * np.linspace(1, 1.02, 3)[:, None]
    names = [f"fresh(ratio={i})" for i in range(12)]
    curves = [CurveData(policy=name, values=values**i, positive=True) for i, name in enumerate(names, 1)]
    changes = [CurveData(policy=name, values=values - i) for i, name in enumerate(names)]
    panels = [Panel(metric="risk", title="Risk", curves=curves), Panel(metric="bias", title="Bias", curves=changes)]
    return replace(digits_report(), panels=panels, galleries=[], schedules={}, verdicts=[], findings=[])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("pages")

    @cache
    def write(name: str) -> Path:
        path = folder / f"{name}.html"
        path.write_text(render_page(REPORTS[name]()))
        return path

    return write


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1280, *, is_redrawn: bool = True, **options: object) -> Iterator[Page]:
    """The page, without a network; fails for any message in the console and any request."""
    context = browser.new_context(viewport={"width": width, "height": 800}, offline=True, **options)  # type: ignore[arg-type]
    page, troubles = context.new_page(), list[str]()
    page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else troubles.append(request.url)
    )
    page.goto(path.as_uri())
    if is_redrawn:
        redraw_all(page)
    yield page
    context.close()
    assert not troubles


def redraw_all(page: Page) -> None:
    """Brings every visible figure into view, which makes it interactive."""
    for figure in page.locator(FIGURES).all():
        figure.scroll_into_view_if_needed()
        figure.locator(".is-redrawn").wait_for()
    page.evaluate("scrollTo(0, 0)")


def show_on(page: Page, media: Literal["print", "screen"]) -> None:
    """The page on that medium; a page learns of it when it draws its next frame."""
    page.emulate_media(media=media)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def open_details(page: Page) -> None:
    page.evaluate("for (const details of document.querySelectorAll('main details')) details.open = true")
    redraw_all(page)


def figure_of(page: Page, name: str) -> Locator:
    return page.locator(f"figure[data-name={name}]").first


def severe_findings(page: Page) -> list[tuple[str, str]]:
    """Rule and element of every serious or critical finding about accessibility."""
    found = Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")]


def shown_times(page: Page) -> set[int]:
    """The generations of the cells of galleries that are visible."""
    cells = page.locator("figure.gallery [data-t]")
    script = "parts => parts.filter(e => e.checkVisibility() && !e.closest('[display=none]')).map(e => +e.dataset.t)"
    return set(cells.evaluate_all(script)) - {0}


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_a_page_fits_every_screen_and_serves_readers_with_disabilities(
    browser: Browser, file_of: Callable[[str], Path], width: int
) -> None:
    with opened(browser, file_of("several"), width) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert shown_times(page) == {10}
        for view in page.locator("figure.gallery .scroll-x").all():
            assert view.evaluate("e => e.scrollWidth <= e.clientWidth + 1")  # one generation needs no scrolling
        pictures = page.locator(".picture:not([tabindex]):visible")
        assert pictures.evaluate_all("parts => parts.every(e => e.scrollWidth <= e.clientWidth)")  # no name is cut
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert not severe_findings(page)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["galleries", "molecules", "many", "sweep", "hostile"])
def test_every_kind_of_page_is_free_of_errors_and_severe_barriers(
    browser: Browser, file_of: Callable[[str], Path], name: str
) -> None:
    with opened(browser, file_of(name), 390) as page:
        for summary in page.locator("main summary:visible").all():
            was_open = summary.evaluate("e => e.parentNode.open")
            summary.click()
            assert summary.evaluate("e => e.parentNode.open") is not was_open
            if was_open:
                summary.click()
        redraw_all(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not severe_findings(page)


def test_figures_become_interactive_in_place_and_show_values_to_a_pointer(
    browser: Browser, file_of: Callable[[str], Path]
) -> None:
    with browser.new_context(viewport={"width": 390, "height": 800}) as context:
        page = context.new_page()
        page.add_init_script(
            "window.IntersectionObserver = class { constructor(f) { window.fire = f; } observe() {} unobserve() {} }"
        )
        page.goto(file_of("digits").as_uri())
        boxes = "[...document.querySelectorAll('figure[data-name]')].map(e => e.getBoundingClientRect().toJSON())"
        before = page.evaluate(boxes)
        page.evaluate(
            "fire([...document.querySelectorAll('figure[data-name]')].map(target => ({ target, isIntersecting: true })))"
        )
        page.wait_for_function(
            "document.querySelectorAll('.is-redrawn').length === document.querySelectorAll('figure[data-name]').length"
        )
        assert page.evaluate(boxes) == before  # nothing jumps
        redrawn = figure_of(page, "negative-elbo").locator("svg >> visible=true")
        redrawn.scroll_into_view_if_needed()
        box = redrawn.bounding_box()
        assert box
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
        tip = page.locator("#vg-tooltip-element")
        tip.wait_for()
        assert re.match(r"generation\s+10\s+replace\s+30\.\d+ \[30\.\d+, 31\.\d+\]\s+accumulate\s", tip.inner_text())


def test_the_slider_moves_all_samples_and_marks_all_curves(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("several")) as page:
        slider = page.get_by_role("slider", name="Generation of all samples")
        assert slider.get_attribute("aria-valuetext") == "generation 10 of 10"

        def mark() -> tuple[float, float]:
            paths = (
                figure_of(page, "negative-elbo")
                .locator("path.now")
                .evaluate_all("parts => parts.map(e => e.getAttribute('d'))")
            )
            return tuple(float(d[1:].split()[0]) for d in paths)  # type: ignore[return-value]

        assert mark() == ()  # before the reader asks for one
        slider.press("ArrowLeft")
        last = mark()
        assert len(last) == 2  # in the still picture, too
        assert set(figure_of(page, "negative-elbo").locator("text.now").all_text_contents()) == {
            page.locator(".controls output").inner_text()
        }
        assert page.locator(".role-legend").count() > 0
        assert page.locator(".role-legend .now").count() == 0
        for _ in range(4):
            page.keyboard.press("ArrowLeft")
        assert shown_times(page) == {1} or len(shown_times(page)) == 1
        now = int(re.findall(r"\d+", slider.get_attribute("aria-valuetext") or "")[0])
        assert shown_times(page) == {now}
        assert all(a < b for a, b in zip(mark(), last, strict=True))
        page.get_by_role("checkbox", name="all").check()
        assert {1, 10} < shown_times(page)


def test_texts_have_the_label_of_their_generation_at_every_position_of_the_slider_and_on_paper(
    browser: Browser, file_of: Callable[[str], Path]
) -> None:
    with opened(browser, file_of("lengths"), is_redrawn=False) as page:
        labels = "all => all.map(e => [+e.dataset.t, getComputedStyle(e, '::before').content])"
        slider = page.get_by_role("slider", name="Generation of all samples")
        for at, expected in (("End", {4}), ("Home", {1})):  # the texts end before the images of the other run
            slider.press(at)
            seen = page.locator(".texts td:visible").evaluate_all(labels)
            assert {t for t, _ in seen} == expected
            assert all(label == f'"t = {t}"' for t, label in seen)
        show_on(page, "print")
        seen = page.locator(".texts td:visible").evaluate_all(labels)
        assert dict(seen) == {t: f'"t = {t}"' for t in (1, 2, 4)}


def test_policies_are_highlighted_by_buttons_and_by_their_names(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("many")) as page:
        figure = figure_of(page, "main")

        def full() -> list[str]:
            texts = figure.locator(".redrawn text[cursor=pointer], .redrawn .role-mark text").evaluate_all(
                "parts => parts.filter(e => e.getAttribute('opacity') == 1).map(e => e.textContent)"
            )
            return [text for text in texts if text.startswith("fresh")]

        assert sorted(name.split("×")[0] for name in full()) == ["fresh(ratio=0)", "fresh(ratio=11)"]  # the best and the worst
        page.get_by_text("Policies", exact=True).click()
        button = page.locator("[data-highlight='fresh(ratio=3)']")
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        page.wait_for_timeout(100)
        assert full() == ["fresh(ratio=3)"]
        page.get_by_text("Policies", exact=True).click()
        figure.locator(".redrawn").get_by_text("fresh(ratio=3)").click()
        assert button.get_attribute("aria-pressed") == "false"


def test_the_scale_changes_only_where_all_values_are_above_zero(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("many")) as page:
        open_details(page)
        assert figure_of(page, "bias").get_by_role("button", name="Change the scale").count() == 0
        risk = figure_of(page, "risk")
        button = risk.get_by_role("button", name="Change the scale")
        title = risk.locator(".redrawn").get_by_text("log scale")
        assert title.count() == 1  # the values span a factor of 4,096
        button.click()
        title.wait_for(state="detached")
        assert button.get_attribute("aria-pressed") == "true"
        assert "NaN" not in risk.locator(".redrawn").inner_html()
        button.click()
        title.wait_for()


def download(page: Page, button: Locator) -> bytes:
    with page.expect_download() as event:
        button.click()
    return Path(event.value.path()).read_bytes()


def test_figures_are_saved_as_svg_png_and_pdf(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("digits"), color_scheme="dark") as page:
        for part in (figure_of(page, "main"), page.locator("figure.gallery").first):
            files = {name: download(page, part.get_by_role("button", name=f"Save as {name}")) for name in ("SVG", "PNG", "PDF")}
            svg = ElementTree.fromstring(files["SVG"])
            assert b"var(" not in files["SVG"]
            assert b"#d55e00" in files["SVG"]  # the light colors
            assert b'class="now"' not in files["SVG"]
            assert "replace" in "".join(svg.itertext())
            assert files["PNG"].startswith(b"\x89PNG")
            assert int.from_bytes(files["PNG"][16:20]) == pytest.approx(3 * float(svg.get("width", "0")), abs=3)
            content = pdf_content(files["PDF"])
            assert b"replace".hex().encode() in content
            assert content.count(b" c\n") + content.count(b" l\n") + content.count(b" Do Q") > 3


def pdf_content(file: bytes) -> bytes:
    """The operators of the page. Checks that every object stands at the position in the table of the file."""
    table = int(re.findall(rb"startxref\n(\d+)", file)[0])
    starts = [int(start) for start in re.findall(rb"(\d{10}) 00000 n", file[table:])]
    assert all(file[start:].startswith(f"{i} 0 obj".encode()) for i, start in enumerate(starts, 1))
    begin = file.index(b"stream\n", starts[3]) + 7
    return zlib.decompress(file[begin : file.index(b"\nendstream", begin)])


def test_tables_are_saved_as_csv_with_full_precision(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("digits")) as page:
        buttons = page.locator("button.csv")
        assert buttons.count() == page.locator("table[data-csv]").count() > 0
        text = download(page, buttons.first).decode("utf-8-sig")
        head, *rows = list(csv.reader(io.StringIO(text)))
        curve = next(each for each in digits_report(generations=10).panels[0].curves if each.policy == rows[0][0])
        assert all(len(row) == len(head) for row in rows)
        assert float(rows[0][head.index("t = 10")]) == pytest.approx(curve.summary.mean[-1], rel=1e-12)
        change = head.index(next(name for name in head if name.endswith(" low")))
        assert float(rows[0][change]) < float(rows[0][change - 1]) < float(rows[0][change + 1])


@pytest.mark.parametrize("width", [390, 1280])
def test_answers_on_differences_stay_in_view_and_names_break_only_at_underscores(
    browser: Browser, file_of: Callable[[str], Path], width: int
) -> None:
    with opened(browser, file_of("language"), width, is_redrawn=False) as page:
        answers = page.locator(".differences .answer")
        assert answers.count() == 6
        scrollers = page.locator(".scroll-x:has(table)")
        shades = scrollers.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundAttachment)")
        assert set(shades) == {"local, local, scroll, scroll"}  # each end is shaded until it is reached
        fades = page.locator(".differences th[scope=row]").evaluate_all(
            "all => all.map(e => getComputedStyle(e, '::after').width)"
        )
        assert set(fades) == {"20px"}  # over numbers that go under the names
        assert answers.evaluate_all(
            "all => all.every(e => (b => b.left >= 0 && b.right <= innerWidth)(e.getBoundingClientRect()))"
        )
        lines = """names => names.flatMap(e => [...e.childNodes].filter(part => part.nodeType === 3).map(part => {
            const range = document.createRange();
            range.selectNodeContents(part);
            return range.getClientRects().length;
        }))"""
        assert set(page.locator(":is(.answers, .differences) tbody .name").evaluate_all(lines)) == {1}


@pytest.mark.parametrize("name", ["digits", "language"])
def test_without_scripts_all_generations_are_pictures_and_texts(
    browser: Browser, file_of: Callable[[str], Path], name: str
) -> None:
    with opened(browser, file_of(name), 390, is_redrawn=False, java_script_enabled=False) as page:
        assert page.locator(".picture > svg >> visible=true").count() > 0
        assert page.locator("button:visible").count() == 0
        assert {1, 10} < shown_times(page)
        cells = page.locator("figure.gallery [data-t='10']:visible")
        frame = page.locator("figure.gallery .scroll-x").first.bounding_box()
        box = cells.first.bounding_box()
        assert frame
        assert box
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1  # the last generation is what a reader sees first


def test_paper_shows_still_pictures_in_light_colors_and_three_generations(
    browser: Browser, file_of: Callable[[str], Path]
) -> None:
    with opened(browser, file_of("several"), color_scheme="dark") as page:
        show_on(page, "print")
        assert page.locator(REDRAWN).count() == 0
        assert page.locator(".picture > svg >> visible=true").count() > 3
        assert page.locator(".controls:visible, .tools:visible, .csv:visible").count() == 0
        for spec in page.locator("section[id$=-spec] pre").all():
            assert spec.is_visible()  # though its details are closed on the screen
        assert len(shown_times(page)) == 3
        assert {1, 10} < shown_times(page)
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(29, 34, 40)"
        show_on(page, "screen")
        assert shown_times(page) == {10}


def test_an_arrow_key_rotates_every_picture_of_one_molecule(browser: Browser, file_of: Callable[[str], Path]) -> None:
    positions = "parts => parts.map(e => e.dataset.positions.split(' ').map(Number))"
    drawn = (
        "parts => parts.map(e => [...e.querySelectorAll('circle')].map(c => [+c.getAttribute('cx'), +c.getAttribute('cy')]))"
    )
    with opened(browser, file_of("molecules"), is_redrawn=False) as page:
        groups = page.locator("[data-positions]")
        at = groups.evaluate_all(positions)
        page.locator(".rotatable").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.wait_for_timeout(100)
        seen = groups.evaluate_all(drawn)
    c, s = np.cos(0.2), np.sin(0.2)
    rotation = np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    assert len(at) == 2 * (1 + 2 * 3)
    for i, numbers in enumerate(at):
        expected = np.array(numbers).reshape(-1, 3) @ (rotation.T if i < 7 else np.eye(3))
        np.testing.assert_allclose(seen[i], expected[np.argsort(expected[:, 2], kind="stable"), :2], atol=0.06)
