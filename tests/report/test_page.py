"""The page: its content, the escaping of all text, and that it is self-contained."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from example_galleries import HOSTILE
from example_reports import (
    WHEN,
    digits_report,
    faces_report,
    gallery_report,
    hostile_report,
    language_report,
    linear_report,
)

from selfloop.errors import printable
from selfloop.report.figures import join_pictures, report_styles, side_by_side
from selfloop.report.gallery import read_texts
from selfloop.report.page import _mark_code, render_page, vega_bundle, write_figures
from selfloop.report.theme import describe_change
from selfloop.report.values import CurveData, Panel, Report


class Page(HTMLParser):
    """Tags, ids, addresses, scripts and text of a page, as a browser parses them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.text = ""
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " " * (tag != "wbr")
        attributes = {name: value or "" for name, value in attrs}
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.handlers += [name for name in attributes if name.startswith("on")]
        self.addresses += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]
        self._script = attributes.get("type", "") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts.append((self._script, data))


@pytest.fixture(scope="module")
def quickstart() -> str:
    return render_page([digits_report(), linear_report(200)], "selfloop quickstart")


@pytest.fixture(scope="module")
def language() -> str:
    return render_page([language_report()])


@pytest.fixture(scope="module")
def faces() -> str:
    return render_page([faces_report(generations=7)])


@pytest.fixture(scope="module")
def hostile() -> str:
    return render_page([hostile_report()])


def running_scripts(html: str) -> int:
    return sum(kind == "" for kind, _ in Page(html).scripts)


def test_text_from_specs_models_and_data_stays_text(hostile: str) -> None:
    page = Page(hostile)
    assert running_scripts(hostile) == 1  # the page's own
    assert not page.handlers
    assert page.text.count(printable(HOSTILE)) > 10


def test_the_check_would_notice_text_that_is_not_escaped(hostile: str) -> None:
    broken = hostile.replace("&lt;script&gt;alert(1)&lt;/script&gt;", "<script>alert(1)</script>", 1)
    assert running_scripts(broken) == 2


def test_descriptions_inside_scripts_cannot_close_them(hostile: str) -> None:
    scripts = Page(hostile).scripts
    packed = [text for kind, text in scripts if kind == "text/plain"][:-1]  # the last one is Vega
    described = [json.loads(gzip.decompress(base64.b64decode(text))) for text in packed]
    assert len(described) == 4
    assert described[2]["datasets"]["means"][0]["policy"] == printable(HOSTILE)
    assert [json.loads(text) for kind, text in scripts if kind == "application/json"] == [
        each["usermeta"] for each in described
    ]
    assert "\\u003cscript" in hostile


def test_every_picture_is_well_formed_and_has_a_name(quickstart: str, hostile: str) -> None:
    for html in (quickstart, hostile):
        pictures = re.findall(r"<svg role=.*?</svg>", html, flags=re.S)
        assert pictures
        for svg in pictures:
            assert ElementTree.fromstring(svg).get("aria-label")


def test_ids_are_unique_and_every_reference_exists(quickstart: str) -> None:
    page = Page(quickstart)
    assert len(page.ids) == len(set(page.ids))
    targets = {address[1:] for address in page.addresses if address.startswith("#")}
    assert targets <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", quickstart)) <= set(page.ids)


def test_texts_are_complete_without_scripts(language: str) -> None:
    page = Page(language)
    assert page.tags.count("details") >= 4  # one per text row, the first open
    assert len(re.findall(r'<details class="text-row" open>', language)) == 1
    assert len(re.findall(r'<b class="prompt">Once</b>', language)) == 1 + 4 * 7
    first = re.findall(r"<blockquote>.*?</blockquote>", language, flags=re.S)[0]
    plain = unescape(re.sub(r"<summary>.*?</summary>|<[^>]+>", "", first))
    assert plain == read_texts(language_report().galleries[0].real["text"])[0]
    assert "&lt;b&gt;Ben&lt;/b&gt; sat under a tree  and  ate" in language  # markup is text, spaces stay


def test_pictures_come_first_and_shares_before_the_curves(faces: str, language: str) -> None:
    parts = ("answer", "samples", "shares", "curves", "verdicts", "data", "spec", "provenance")
    positions = [faces.index(f'id="e0-{part}"') for part in parts]
    assert positions == sorted(positions)
    links = re.findall(r'<li><a href="#e0-([a-z]+)">', faces)
    assert links == list(parts)  # in the order of the page
    assert "<h3>Modes and attributes</h3>" in faces
    assert language.index('id="e0-samples"') < language.index('id="e0-differences"')  # of texts, too


def test_a_page_of_photographs_stays_small(faces: str) -> None:
    assert faces.count("data:image/jpeg") == 1 + 3 * 7
    assert len(faces.encode()) < 1_500_000


def test_pairs_of_policies_have_an_answer_and_intervals(language: str) -> None:
    table = re.search(r'id="e0-differences".*?</section>', language, flags=re.S)
    assert table
    assert "7 of the 10 generations are shown; the answers rest on all of them from t = 3 on." in table[0]
    rows = re.findall(r'<tr><th scope="row".*?</tr>', table[0], flags=re.S)
    assert len(rows) == 6
    text = Page(rows[0]).text
    assert re.search(r"^\s*replace >\s+accumulate \*\s+● holds\s+0\s", text)  # the answer is in the column that stays in view
    assert len(re.findall(r"\[[\d.−]+, [\d.−]+\]", text)) == 6  # all but generation 1, where the policies are equal


def test_a_grid_is_a_table_of_counts_with_its_regressions(language: str) -> None:
    section = re.search(r'id="e0-values".*?</section>', language, flags=re.S)
    assert section
    assert len(re.findall(r'<td class="number[^>]+--share', section[0])) == 16
    assert len(re.findall(r"number best", section[0])) == 4
    assert 'style="--share:1.000"' in section[0]
    text = Page(section[0]).text
    assert "this run, 16 cells" in text
    assert len(re.findall(r"0\.\d+ \[[\d.]+, [\d.]+\], slope −[\d.]+ \[", text)) == 2
    assert not re.search(r"\bp =|F test", text)  # cells share rows, so a p-value would be too small
    assert "Kazdan et al. 2025, as printed" in text


def test_lists_of_many_policies_are_folded() -> None:
    curves = [CurveData(policy=f"fixed_counts(real_rows={i})", values=np.array([[1.0, 2.0], [1.1, 2.0]])) for i in range(11)]
    many, few = (
        Report(
            title="grid", spec_text="", versions={}, generated=WHEN,
            panels=[Panel(metric="m", title="M", curves=curves[:k])],
        )
        for k in (11, 10)
    )  # fmt: skip
    page = render_page([many])
    assert '<details class="folded"><summary>Show all 11 policies' in page
    assert ".folded::details-content { content-visibility: visible" in page  # on paper nothing can be opened
    assert "Show all" not in render_page([few])


def test_the_page_is_self_contained(quickstart: str) -> None:
    page = Page(quickstart)
    assert "link" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert len(quickstart.encode()) < 1_000_000


def test_the_bundle_of_vega_is_kept_and_made_again_if_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFLOOP_CACHE", str(tmp_path))
    file, kept = tmp_path / f"vega-{version('vl-convert-python')}.js.gz", gzip.compress(b"kept")
    try:
        for content, expected in ((kept, b"kept"), (kept[:-5], b"vegaEmbed")):
            file.write_bytes(content)
            vega_bundle.cache_clear()
            bundle = base64.b64decode(vega_bundle())
            assert expected in gzip.decompress(bundle)
            assert file.read_bytes() == bundle
    finally:
        vega_bundle.cache_clear()


def test_the_change_of_a_metric_without_a_zero_is_a_difference() -> None:
    values = np.array([[-2.0, 1.0], [-1.0, 3.0], [-3.0, 2.0]])
    assert describe_change(values, positive=False) == ("+4.0", "[1.5, 6.5]")
    assert describe_change(-values, positive=False)[0] == "−4.0"
    assert describe_change(values, positive=True) == ("", "")  # a multiple needs positive means


def test_verdicts_have_estimate_interval_and_threshold(quickstart: str) -> None:
    text = " ".join(Page(quickstart).text.split())
    assert "catastrophic_increase The population risk at the last generation is at least twice that of the first." in text
    assert "Measured by negative_elbo; threshold 1." in text
    assert "● yes 1.110 [1.080, 1.150]" in text
    assert "○ no by a law; measured 2.07 [1.93, 2.21]" in text  # a value above the threshold beside a no
    assert "accumulate: the interval contains the threshold" in text
    assert "◐ undecided 1.010 [0.990, 1.030] no number of seeds is known to decide: the interval contains" in text
    assert "Not measured: variance_collapse" in text
    assert "needs the metric variance_ratio" in text


def test_words_between_backticks_are_code_and_escaped() -> None:
    assert _mark_code("more than `factor` <b>") == "more than <code>factor</code> &lt;b&gt;"


def test_cost_spec_versions_and_training_data_are_in_the_page(quickstart: str) -> None:
    text = " ".join(Page(quickstart).text.split())
    assert "all 2 min 6 s 54,000 94,275 145.2 MB" in text
    assert 'name = "digits"' in text
    assert "selfloop 0.1.0" in text
    assert "5 1,257 0.000 1.00 6,285 0.200 3.00 1,257 0.200 3.00" in text


def test_a_report_without_values_is_a_page() -> None:
    curve = CurveData(policy="replace", values=np.array([[np.nan]]))
    bare = Report(
        title="bare", spec_text="", versions={}, generated=WHEN, panels=[Panel(metric="m", title="m", curves=[curve])]
    )
    empty = Report(title="empty", spec_text="", versions={}, generated=WHEN, panels=[])
    assert "Under replace, no chain has a value of m." in render_page([bare, empty])


def test_several_reports_begin_side_by_side_with_one_color_per_policy() -> None:
    reports = [linear_report(200), language_report(), replace(gallery_report(), title="scatter_plots")]
    styles = report_styles(reports)
    panels = side_by_side(reports, styles)
    assert [panel.spec["title"]["text"] for panel in panels] == [
        reports[0].title,
        "transformer on tinystories",
        "scatter plots",
    ]
    domains = [next(iter_scales(panel.spec)) for panel in panels]
    assert [*domains[2].items()] == [("replace", styles["replace"].color)]
    for domain in domains:
        assert all(styles[label].color == color for label, color in domain.items())
    assert len({json.dumps(panel.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]) for panel in panels}) == 3  # own axes
    page = render_page(reports)
    assert page.index('id="side-by-side"') < page.index('<article id="e0"')
    assert page.count('<figure id="side') == 3
    assert 'id="side-by-side"' not in render_page(reports[:1])


def iter_scales(spec: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Label -> color of every color scale of a layered chart."""
    for layer in spec["layer"]:
        if scale := layer["encoding"].get("color", {}).get("scale"):
            yield dict(zip(scale["domain"], scale["range"], strict=True))


def test_joined_pictures_are_rows_of_equal_cells_with_ids_of_their_own() -> None:
    picture = '<svg width="{}" height="{}"><clipPath id="c"/><g clip-path="url(#c)"/></svg>'
    joined = ElementTree.fromstring(join_pictures([picture.format(*size) for size in ((30, 20), (40, 10), (20, 25), (10, 10))]))
    assert (joined.get("width"), joined.get("height")) == ("120", "50")
    assert [(cell.get("x"), cell.get("y")) for cell in joined] == [("0", "0"), ("40", "0"), ("80", "0"), ("0", "25")]
    assert [cell[0].get("id") for cell in joined] == ["p0-c", "p1-c", "p2-c", "p3-c"]
    assert joined[3][1].get("clip-path") == "url(#p3-c)"


def test_figures_are_saved_in_three_formats_under_different_names(tmp_path: Path) -> None:
    report = replace(digits_report(seeds=1, generations=2), schedules={})
    twice = [replace(report, panels=report.panels[:1])] * 2
    written = write_figures(twice, tmp_path / "figures")
    assert len(written) == len(set(written)) == (2 * 2 + 1) * 3  # and the one with both, side by side
    assert {path.suffix for path in written} == {".svg", ".png", ".pdf"}
    for path in written:
        start = {".svg": b"<svg", ".png": b"\x89PNG", ".pdf": b"%PDF"}[path.suffix]
        assert path.read_bytes().startswith(start)


def test_saved_figures_have_a_light_background_and_dark_lines(tmp_path: Path) -> None:
    from PIL import Image

    write_figures([gallery_report()], tmp_path)
    for path in tmp_path.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.max() > 240  # a light background
        assert (pixels < 150).mean() > 0.002  # and dark lines


def test_figures_of_hostile_names_are_saved_without_control_characters(tmp_path: Path) -> None:
    report = replace(hostile_report(), galleries=[], schedules={})
    written = [path for path in write_figures([report], tmp_path) if path.suffix == ".svg"]
    assert written
    for path in written:
        assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")
        assert path.read_text() == printable(path.read_text())


def test_report_values_do_not_import_the_plotting_library() -> None:
    heavy = ("altair", "pandas", "torch", "vl_convert")
    code = f"import sys, selfloop.report.values; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics_without_a_value_are_said_first_and_draw_no_empty_axes() -> None:
    curves = [CurveData(policy=policy, values=np.full((3, 4), np.nan)) for policy in ("replace", "accumulate")]
    panels = [Panel(metric="log_loss", title="Log loss", curves=curves), digits_report().panels[0]]
    sentence = "No result for log_loss: no chain has a value (separated)."
    page = render_page([replace(digits_report(), panels=panels, missing=[sentence])])
    assert page.index(sentence) < page.index('class="sentences') < page.index("<figure")
    section = re.search(r'id="e0-curves".*?</section>', page, flags=re.S)
    assert section
    assert section[0].count("<figure") == 1
    assert "<title>" in render_page([replace(digits_report(), panels=panels[:1], missing=[sentence])])


def test_shared_steps_have_their_own_row_of_costs() -> None:
    costs = [replace(digits_report().costs[0], policy=""), *digits_report().costs]
    text = " ".join(Page(render_page([replace(digits_report(), costs=costs)])).text.split())
    assert "generation 1, shared by all policies 41 s" in text


def test_every_wide_part_can_be_scrolled_with_the_keyboard_and_has_a_name(quickstart: str, language: str) -> None:
    for html in (quickstart, language, render_page([gallery_report()])):
        wide = re.findall(r'<div class="scroll-x[^>]*>', html)
        assert wide
        assert all('tabindex="0"' in tag and re.search('aria-label="[^"]+"', tag) for tag in wide)
