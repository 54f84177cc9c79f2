"""The page: one HTML file with everything in it, still pictures at once and live ones on demand."""

from __future__ import annotations

import base64
import gzip
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from selfloop.report.figures import Figure, describe_coordinates, report_figures, save_svg, slug
from selfloop.report.gallery import show_gallery
from selfloop.report.tables import cost_rows, difference_tables, headlines, ledger_rows, verdict_tables, worth_table
from selfloop.report.theme import DARK, policy_styles, readable, show, show_interval, themed, variable
from selfloop.report.values import Report

UNFOLDED = 10  # policies; with more, as in a grid, what is told of each of them is folded away
_KINDS = {"class": "modes", "attribute": "attributes"}  # of shares, as a heading
_GLYPHS = {"yes": "●", "no": "○", "undecided": "◐", "not measured": "–", "holds": "●", "violated": "○"}


def write_page(reports: Sequence[Report], path: Path, title: str = "") -> Path:
    """Write the page of one or more experiments; returns its path."""
    path.write_text(render_page(reports, title), encoding="utf-8")
    return path


def write_figures(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Save every picture (curves, training data, galleries) as SVG, PNG and PDF; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    names: Counter[str] = Counter()
    for report in reports:
        prefix = f"{slug(report.title)}-" if len(reports) > 1 else ""
        shown = [show_gallery(gallery, policy_styles(report.policies())) for gallery in report.galleries]
        pictures = [(figure.name, figure.svg()) for figure in report_figures(report)]
        pictures += [(f"samples-{i}", each.svg) for i, each in enumerate(shown, 1) if each.svg]
        pictures += [(f"molecule-{i}", scene.svg) for each in shown for i, scene in enumerate(each.scenes, 1)]
        for name, svg in pictures:
            names[f"{prefix}{name}"] += 1
            again = f"-{names[f'{prefix}{name}']}" if names[f"{prefix}{name}"] > 1 else ""
            written += save_svg(svg, folder / f"{prefix}{name}{again}")
    return written


def render_page(reports: Sequence[Report], title: str = "") -> str:
    """The page as text. Everything that comes from specs, models or data is escaped by the template."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")  # Vega, Vega-Lite and Vega-Embed
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "interval": show_interval, "where": describe_coordinates, "coded": _coded}
    newest = max(report.generated for report in reports)
    page = environment.from_string(_part("page.html")).render(
        title=title or " · ".join(report.title for report in reports),
        generated=f"{newest.day} {newest:%B %Y, %H:%M %Z}",
        experiments=[_experiment(report, f"e{i}") for i, report in enumerate(reports)],
        glyphs=_GLYPHS,
        style=Markup(_color_rules() + _part("page.css")),
        script=Markup(_part("page.js")),
        bundle=base64.b64encode(gzip.compress(bundle.encode(), mtime=0)).decode(),
    )
    return readable(page)


def _experiment(report: Report, key: str) -> dict[str, object]:
    """What the template needs of one experiment; `key` tells its ids from those of the others."""
    styles = policy_styles(report.policies())
    figures = [_placed(figure, f"{key}f{i}") for i, figure in enumerate(report_figures(report))]
    shown = [show_gallery(gallery, styles) for gallery in report.galleries]
    by_metric: dict[str, list[dict[str, object]]] = {}
    for panel, figure in zip(report.panels, figures, strict=False):  # other figures come after the panels'
        by_metric.setdefault(panel.metric, []).append(figure)
    return {
        "key": key,
        "report": report,
        "styles": styles,
        "headlines": headlines(report),
        "metrics": [(next(p for p in report.panels if p.metric == metric), found) for metric, found in by_metric.items()],
        "verdicts": verdict_tables(report),
        "differences": difference_tables(report),
        "lost": " and ".join(
            name for kind, name in _KINDS.items() if kind in {each.kind for each in report.shares}
        ).capitalize(),
        "shares": figures[len(report.panels) : len(report.panels) + len(report.shares)],
        "worths": [worth_table(each) for each in report.worths],
        "many": len(styles) > UNFOLDED,
        "ledger": figures[-1] if report.ledgers else None,
        "ledger_rows": ledger_rows(report),
        "pictured": any(each.pictured or each.scenes for each in shown),
        "galleries": [
            (
                each,
                Markup(themed(each.svg, f"{key}g{i}", each.alt)),
                [Markup(themed(scene.svg, f"{key}g{i}m{k}", scene.alt)) for k, scene in enumerate(each.scenes)],
            )
            for i, each in enumerate(shown)
        ],
        "costs": cost_rows(report.costs),
    }


def _placed(figure: Figure, ids: str) -> dict[str, object]:
    return {"figure": figure, "id": ids, "svg": Markup(themed(figure.svg(), ids, figure.alt))}


def _coded(text: str) -> Markup:
    """The text, escaped, with what stands between backticks set as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _part(name: str) -> str:
    return resources.files("selfloop.report.values").joinpath(name).read_text(encoding="utf-8")


def _color_rules() -> str:
    light = "".join(f"{variable(color)}:{color};" for color in DARK)
    dark = "".join(f"{variable(color)}:{other};" for color, other in DARK.items())
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
