"""The page: one self-contained HTML file whose figures are still pictures until they come into view."""

from __future__ import annotations

import base64
import gzip
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
from altair.utils.schemapi import debug_mode
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from selfloop.errors import SelfloopError, printable
from selfloop.formats.replacing import write_bytes
from selfloop.notebook import format_seconds
from selfloop.report import theme
from selfloop.report.answers import first_screen, undecided_verdict
from selfloop.report.charts import Figure, save_svg, to_file_name
from selfloop.report.figures import join_pictures, main_figure, report_figures, report_styles, side_by_side, sweep_figure
from selfloop.report.gallery import view_gallery
from selfloop.report.picture_grid import select_generations
from selfloop.report.values import DataValuePanel, Report
from selfloop.stats.intervals import mean_interval
from selfloop.store.bucket import cache_folder
from selfloop.types import Coordinates, Verdict

MAX_OPEN_POLICIES = 10  # with more policies, as in a grid, parts of the page that list all policies are folded
_ASPECT_TITLES = {
    "loss": "Loss", "quality": "Quality of samples", "diversity": "Diversity", "tails": "Rare values", "duplicates": "Copying",
    "classes": "Modes and classes", "length": "Length", "other": "Other values",
}  # fmt: skip


def write_figures(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Save every picture (curves, training data, galleries) as SVG, PNG and PDF; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    counts: Counter[str] = Counter()
    styles = report_styles(reports)
    if len(reports) > 1 and (panels := side_by_side(reports, styles)):
        written += save_svg(join_pictures([panel.svg() for panel in panels]), folder / "side-by-side")
    for report in reports:
        prefix = f"{to_file_name(report.title)}-" if len(reports) > 1 else ""
        views = [view_gallery(gallery, styles) for gallery in report.galleries]
        pictures = [(figure.name, figure.svg()) for figure in report_figures(report, styles)]
        pictures += [(f"samples-{i}", view.svg) for i, view in enumerate(views, 1) if view.svg]
        pictures += [(f"molecule-{i}", molecule.svg) for view in views for i, molecule in enumerate(view.molecules, 1)]
        for picture, svg in pictures:
            name = f"{prefix}{picture}"
            counts[name] += 1
            written += save_svg(svg, folder / (f"{name}-{counts[name]}" if counts[name] > 1 else name))
    return written


def render_page(reports: Sequence[Report], title: str = "") -> str:
    """The page as text. The template escapes everything that comes from specs, models or data."""
    environment = template_environment()
    styles, newest = report_styles(reports), max(report.generated for report in reports)
    with debug_mode(False):  # charts are not checked against their schema: that takes half of the time
        experiments = [_experiment(report, f"e{i}", styles) for i, report in enumerate(reports)]
    page = environment.get_template("page.html").render(
        title=title or " · ".join(report.title for report in reports), generated=f"{newest.day} {newest:%B %Y}",
        costs=[cost for report in reports for cost in report.costs],
        experiments=experiments,
        side_by_side=side_by_side(reports, styles) if len(reports) > 1 else [],
        bundle=vega_bundle(),
    )  # fmt: skip
    return printable(page)


def template_environment() -> Environment:
    """The environment of the templates, which escapes everything by itself, with their filters and globals."""
    loader = PackageLoader("selfloop.report", "")
    environment = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "code": _mark_code,
        "coordinates": theme.describe_coordinates,
        "counted": theme.format_count,
        "generations": select_generations,
        "interval": theme.format_interval,
        "interval_parts": theme.format_interval_parts,
        "number": theme.format_number,
        "seconds": format_seconds,
        "theme": theme.theme_svg,
        "undecided": undecided_verdict,
        "unmeasured": _unmeasured,
        "variable": theme.css_variable,
    }
    environment.globals |= {"dark_colors": theme.DARK, "markers": theme.MARKERS, "zip": zip}
    environment.policies["json.dumps_kwargs"] = {}  # unsorted: a tooltip has the order of its record
    return environment


def _experiment(report: Report, key: str, styles: Mapping[str, theme.Style]) -> dict[str, object]:
    """The values of one experiment for the template; all ids begin with `key`."""
    figures = [(f"{key}f{i}", figure) for i, figure in enumerate(report_figures(report, styles))]
    n_drawn = len(report.drawn_panels)  # their figures come first
    views = [view_gallery(gallery, styles) for gallery in report.galleries]
    nouns = {"mode" if shares.kind == "class" else shares.kind for shares in report.shares}
    nouns |= {order.noun for order in report.extinctions}
    share_titles = [f"{noun}s" for noun in ("mode", "attribute", "symbol", "token") if noun in nouns]
    points = _points(report, figures)
    is_sweep, has = len(points) > 1, {name for point in points for name in ("curves", "verdicts", "differences") if point[name]}
    sections = {
        "samples": ("Samples", views),
        "shares": (" and ".join(share_titles).capitalize(), nouns),
        "points": ("Points of the sweep", is_sweep),
        "curves": ("Curves", "curves" in has and not is_sweep),
        "verdicts": ("Definitions of collapse", "verdicts" in has and not is_sweep),
        "differences": ("Differences", "differences" in has and not is_sweep),
        "values": ("Value of real and synthetic rows", report.data_values),
        "data": ("Data and cost", report.schedules or report.ledgers or report.costs),
        "spec": ("Spec", True),
        "repeat": ("How to reproduce", report.commands),
        "provenance": ("Provenance", True),
    }
    return {
        "key": key,
        "report": report,
        "styles": {label: styles[label] for label in report.policies()},
        "sections": {name: title for name, (title, exists) in sections.items() if exists},
        "folded": len(report.policies()) > MAX_OPEN_POLICIES,
        "main": (f"{key}main", (sweep_figure if is_sweep else main_figure)(report, styles)),
        "screen": first_screen(report),
        "points": points,
        "shares": figures[n_drawn : n_drawn + len(report.shares) + len(report.extinctions)],
        "ledgers": [(name, figure) for name, figure in figures if figure.name == "noise-ledger"],
        "heat_maps": [(panel, _heat_map(panel)) for panel in report.data_values],
        "schedules": figures[-1] if report.schedules else None,
        "galleries": [(gallery.coordinates, view) for gallery, view in zip(report.galleries, views, strict=True)],
    }


def _points(report: Report, figures: Sequence[tuple[str, Figure]]) -> list[dict[str, Any]]:
    """Of each point of the sweep, one without a sweep: figures by what their metrics are about, verdicts, differences."""
    drawn = list(zip(report.drawn_panels, figures, strict=False))
    verdicts = dict[Coordinates, dict[str, dict[str, Verdict]]]()  # by criterion and policy
    for verdict in report.verdicts:
        verdicts.setdefault(verdict.coordinates, {}).setdefault(verdict.criterion, {})[verdict.policy] = verdict
    points = []
    for coordinates in dict.fromkeys([*(panel.coordinates for panel in report.panels), *verdicts, *report.differences]):
        pairs = [(panel.aspect, figure) for panel, figure in drawn if panel.coordinates == coordinates]
        curves = {
            _ASPECT_TITLES.get(aspect, aspect.capitalize()): [figure for other, figure in pairs if other == aspect]
            for aspect in sorted(dict(pairs), key=[*_ASPECT_TITLES, *dict(pairs)].index)
        }
        tables = {"verdicts": verdicts.get(coordinates, {}), "differences": report.differences.get(coordinates)}
        points.append({"coordinates": coordinates, "curves": curves, **tables})
    return points


def _unmeasured(table: Mapping[str, Mapping[str, Verdict]]) -> list[str]:
    """The criteria that no policy of a table has an answer to."""
    return [name for name, verdicts in table.items() if {verdict.answer for verdict in verdicts.values()} == {"not measured"}]


def _heat_map(panel: DataValuePanel) -> dict[tuple[float, float], dict[str, Any]]:
    """The cells of a grid by numbers of real and synthetic rows; `level` is from 0 for the lowest to 1 for the highest mean."""
    means = {(cell.real, cell.synthetic): float(cell.values.mean()) for cell in panel.cells}
    finite = [mean for mean in means.values() if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    cells = {}
    for cell in panel.cells:
        mean = means[cell.real, cell.synthetic]
        column = [other for (real, _), other in means.items() if real == cell.real]
        level = (mean - low) / ((high - low) or 1.0) if math.isfinite(mean) else 0.0
        interval, is_lowest = mean_interval(cell.values, positive=panel.positive), len(column) > 1 and mean == min(column)
        cells[cell.real, cell.synthetic] = {"mean": interval, "level": level, "is_lowest": is_lowest}
    return cells


def _mark_code(text: str) -> Markup:
    """The text, escaped, with words between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as compressed JavaScript in base64. Bundling takes 1.5 s, so that a file keeps it."""
    file = cache_folder() / f"vega-{version('vl-convert-python')}.js.gz"
    try:
        gzip.decompress(packed := file.read_bytes())  # to check it
    except (OSError, EOFError, zlib.error):  # absent or damaged
        packed = gzip.compress(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").encode(), mtime=0)
        with suppress(OSError, SelfloopError):  # a folder that cannot be written
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, packed)
    return base64.b64encode(packed).decode()
