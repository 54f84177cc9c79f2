"""Figures: a Vega-Lite description with a name and words, drawn as SVG, PNG and PDF, or live in a browser."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vl_convert

from selfloop.report.category_shares import caption_of, describe_shares, shares_chart
from selfloop.report.charts import Scale, draws_chains, elsewhere, ledger_chart, panel_chart, value_scale
from selfloop.report.theme import PAPER, Style, policy_styles, show
from selfloop.report.values import Coordinates, Ledger, Panel, Report, Shares


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with a file name, words for who cannot see it, what its lines are, and its Vega-Lite description."""

    name: str
    alt: str
    caption: str
    spec: Mapping[str, Any]

    def svg(self) -> str:
        """The figure, on a transparent ground."""
        return vl_convert.vegalite_to_svg(dict(self.spec))


def describe_coordinates(coordinates: Coordinates) -> str:
    """One point of a sweep in words; empty without a sweep."""
    return ", ".join(f"{name} = {value}" for name, value in coordinates)


def panel_figure(panel: Panel, styles: Mapping[str, Style]) -> Figure:
    """The curves of one metric at one point of the sweep."""
    scale, where = value_scale(panel), describe_coordinates(panel.coordinates)
    return Figure(
        name=slug(f"{panel.metric} {where}"),
        alt=_describe(panel, where),
        caption=_caption(panel, scale),
        spec=panel_chart(panel, styles, scale, where or panel.title),
    )


def ledger_figure(ledgers: Sequence[Ledger], styles: Mapping[str, Style]) -> Figure:
    """Rows trained on, real mass and mean data age of every policy."""
    last = "; ".join(f"{each.policy}: {show(each.real_mass[-1])} real, age {show(each.data_age[-1])}" for each in ledgers)
    return Figure(
        name="training-data",
        alt=f"Rows trained on, real mass and mean data age by generation. At the last generation, {last}.",
        caption="Rows of one epoch of each generation's fit. Real mass: share of rows × weight that is real. Age: generations "
        "since a batch came into being, counted from 1.",
        spec=ledger_chart(ledgers, styles, "What each generation trains on"),
    )


def shares_figure(shares: Shares, styles: Mapping[str, Style]) -> Figure:
    """How samples spread over classes, or how many have each attribute."""
    where = describe_coordinates(shares.coordinates)
    title = {"class": "Samples by mode", "attribute": "Samples with each attribute"}[shares.kind]
    return Figure(
        name=slug(f"{shares.kind}-shares {where}"),
        alt=f"{where}: {describe_shares(shares)}" if where else describe_shares(shares),
        caption=caption_of(shares),
        spec=shares_chart(shares, styles, where or title),
    )


def report_figures(report: Report) -> list[Figure]:
    """Every figure that is a Vega-Lite description: the panels in their order, shares of samples, then the ledger."""
    styles = policy_styles(report.policies())
    figures = [panel_figure(panel, styles) for panel in report.panels]
    figures += [shares_figure(shares, styles) for shares in report.shares]
    return [*figures, ledger_figure(report.ledgers, styles)] if report.ledgers else figures


def save_svg(svg: str, stem: Path) -> list[Path]:
    """The picture as SVG, PNG (twice the size) and PDF on a light ground; returns the files."""
    ground = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    svg = re.sub(r"<svg [^>]*>", lambda found: found.group() + ground, svg, count=1)
    contents = {"svg": svg.encode(), "png": vl_convert.svg_to_png(svg, scale=2), "pdf": vl_convert.svg_to_pdf(svg)}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return paths


def slug(text: str) -> str:
    """The text as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "figure"


def _describe(panel: Panel, where: str) -> str:
    ends = []
    for curve in panel.curves:
        means = [(t, x) for t, x in zip(curve.generations, curve.mean, strict=True) if np.isfinite(x)]
        if means:
            (first, a), (last, b) = means[0], means[-1]
            ends.append(f"{curve.policy} from {show(a)} at generation {first} to {show(b)} at {last}")
    return f"{panel.title}{f' at {where}' if where else ''} by generation: {'; '.join(ends) or 'no values'}."


def _caption(panel: Panel, scale: Scale) -> str:
    seeds = sorted({curve.seeds for curve in panel.curves})
    counts = " to ".join(dict.fromkeys(f"{n:,}" for n in (seeds[0], seeds[-1]))) if seeds else "0"
    parts = [f"Lines and markers: mean over {counts} {'seed' if counts == '1' else 'seeds'}; bands: its 95 % interval"]
    parts += ["thin lines: single chains"] * any(map(draws_chains, panel.curves))
    parts += ["dotted: median, ended chains counted as worst"] * any(len(curve.median) > 0 for curve in panel.curves)
    sources = dict.fromkeys(f"{law.name} ({law.source})" for law in panel.laws if law.source)
    laws = f" Laws: {'; '.join(sources)}." if sources else ""
    return "; ".join(parts) + "." + laws + _other_scales(panel) + _cut(panel) * scale.cut


def _other_scales(panel: Panel) -> str:
    cites = dict.fromkeys(f"{each.label}, {each.source}" for each in elsewhere(panel))
    if not cites:
        return ""
    return (
        f" Pale and dashed: published curves of another scale ({'; '.join(cites)}), each moved up or down as a whole to begin "
        "where the measured one does. Compare how they rise and fall; levels depend on model, data and vocabulary."
    )


def _cut(panel: Panel) -> str:
    return f" Intervals{' and curves of another scale' * bool(elsewhere(panel))} are cut at the edge of the figure."
