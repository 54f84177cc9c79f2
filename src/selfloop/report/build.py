"""Builds reports: gathers from results everything that the page shows."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import filterfalse
from pathlib import Path

import numpy as np

from selfloop.audit.excess import aspect_of
from selfloop.columns import Floats
from selfloop.component import Better, Metric
from selfloop.criteria.judging import COLLAPSES
from selfloop.errors import SpecError
from selfloop.formats.replacing import write_text
from selfloop.published.papers import PublishedCurve, papers, published_curves
from selfloop.report.category_shares import ledger_figure
from selfloop.report.charts import Figure, save_svg
from selfloop.report.figures import panel_figure
from selfloop.report.findings import findings, leading_sentences, risk_forecasts, trivial_model
from selfloop.report.gallery import read_galleries
from selfloop.report.notes import missing_values, notes
from selfloop.report.page import render_page, write_figures
from selfloop.report.shares import CATEGORY_SHARE, category_shares, extinction_orders
from selfloop.report.theme import format_count, policy_styles
from selfloop.report.values import GROUPED, Cost, CurveData, DataValuePanel, Panel, Report
from selfloop.result import Result
from selfloop.spec.point import SECOND_HOLDOUT, Point
from selfloop.spec.write import spec_text
from selfloop.stats.data_value import fit_data_value
from selfloop.store.calls import Usage
from selfloop.store.records import place_of
from selfloop.theory.laws import LawCurve, law_ledger
from selfloop.theory.moments import NoiseLedger
from selfloop.types import Coordinates


def write_report(results: Sequence[Result], path: Path, *, title: str = "", figures: Path | None = None) -> Path:
    """Write one page for one or more results, and every figure as SVG, PNG and PDF if a folder is named."""
    reports = [build_report(result) for result in results]
    if figures is not None:
        write_figures(reports, figures)
    write_text(path, render_page(reports, title))
    return path


def save_curves(path: Path, title: str, curves: Mapping[str, Floats]) -> None:
    """Draw curves over generations, by label, to one SVG, PNG or PDF file."""
    lines = [CurveData(policy=label, values=values[None, :]) for label, values in curves.items()]
    save_figure(path, panel_figure(Panel(metric=title, title=title, curves=lines), policy_styles(list(curves))))


def save_ledgers(path: Path, ledgers: Mapping[str, NoiseLedger]) -> None:
    """Draw the noise ledgers of policies, by label, to one SVG, PNG or PDF file."""
    save_figure(path, ledger_figure(ledgers, policy_styles(list(ledgers))))


def save_figure(path: Path, figure: Figure) -> None:
    """Draw a figure to one SVG, PNG or PDF file."""
    save_svg(figure.svg(), path.with_suffix(""), [path.suffix[1:]])


def build_report(result: Result) -> Report:
    """Everything that the page shows of a result."""
    spec, first = result.spec, result.points[0]
    sizes = ", ".join(dict.fromkeys(f"{point.n:,}" for point in result.points))
    counts = format_count(first.spec.generations, "generation"), format_count(len(spec.seeds), "seed")
    versions, metrics = {name: version(name) for name in ("selfloop", "numpy", "scipy", "torch")}, {*result.metrics()}
    places = [point.coordinates for point in result.points]
    differences = {at: [pair for pair in result.compare(at) if not pair.declared] for at in places}  # a finding has that
    return Report(
        title=f"{spec.family.name} on {spec.source.name}",
        facts=[f"{sizes} real rows", *counts],
        unfinished=result.unfinished(),
        spec_text=spec_text(spec, brief=True),
        versions={"python": platform.python_version(), **versions},
        generated=datetime.now(UTC),
        panels=[panel for panel in _panels(result) if panel.metric.removesuffix("_real") not in metrics - {panel.metric}],
        verdicts=result.verdicts(),
        look=result.look,
        primary=(spec.primary.higher, spec.primary.lower) if spec.primary else (),
        controls=first.spec.controls(),
        real_shares=_real_shares(result),
        definitions={c.name: (type(c).__doc__ or "").split("\n")[0] for c in spec.criteria},
        questions={c.name: c.question for c in spec.criteria},
        commands=_commands(result),
        missing=list(missing_values(result)),
        leads=list(leading_sentences(result)),
        findings=list(dict.fromkeys(findings(result))),
        differences={at: pairs for at, pairs in differences.items() if pairs},
        data_values=list(_data_values(result)),
        shares=[shares for shares in category_shares(result) if shares.kind not in GROUPED],
        extinctions=list(extinction_orders(result)),
        schedules=result.schedules(first.coordinates),
        ledgers=point_ledgers(first),
        unit=spec.unit,
        training=_training(result),
        galleries=list(read_galleries(result.points, result.store)),
        costs=list(_costs(result)),
        notes=list(dict.fromkeys(notes(result))),
    )


def metric_figure(result: Result, metric: str, coordinates: Coordinates) -> Figure:
    named = (panel for panel in _panels(result) if panel.metric == metric and panel.coordinates == coordinates)
    if (panel := next(named, None)) is None:
        raise SpecError(f"metric: got {metric!r}, a share that the report draws beside others. Write the report.")
    return panel_figure(panel, policy_styles(result.spec.policy_labels()))


def _real_shares(result: Result) -> dict[tuple[Coordinates, str], float]:
    """The real share of the last training mass, by point and policy label."""
    schedules = {point.coordinates: result.schedules(point.coordinates) for point in result.points}
    return {(at, label): entries[-1].real_mass for at, each in schedules.items() for label, entries in each.items()}


def _training(result: Result) -> dict[str, dict[str, list[float]]]:
    """Mean tokens and steps of each fit at the first point, by policy label, where they were counted."""
    names = {"tokens": "training_tokens", "steps": "training_steps"}
    measured = result.curves(result.points[0].coordinates)
    return {
        label: {name: curves[metric].mean(axis=0).tolist() for name, metric in names.items() if metric in curves}
        for label, curves in measured.items()
    }


def point_ledgers(point: Point) -> dict[str, NoiseLedger]:
    """The noise ledger of each policy of a point whose laws follow from moments, by label."""
    policies = zip(point.spec.policy_labels(), point.spec.policies, strict=True)
    ledgers = {label: law_ledger(point.spec.scenario(policy, point.n)) for label, policy in policies}
    return {label: ledger for label, ledger in ledgers.items() if ledger is not None}


def _panels(result: Result) -> Iterator[Panel]:
    owner: Metric | None = None
    for metric in filterfalse(CATEGORY_SHARE.fullmatch, result.metrics()):
        for point in result.points:
            owner = next((m for m in point.spec.metrics if m.name == metric), owner)  # secondary values follow their metric
            better, measured = point.spec.directions().get(metric, ""), result.curves(point.coordinates)
            real = _real_value(measured.values(), metric, better)
            curves = [
                CurveData(
                    policy=label,
                    values=c[metric],
                    better=better,
                    positive=metric in point.spec.positive_metrics(),
                    real=real,
                    is_partial=bool(result.progress),
                    ends_are_worst=result.ends(label, metric, point.coordinates, began=False) <= COLLAPSES.keys(),
                )
                for label, c in measured.items()
                if metric in c
            ]
            if curves:
                title, unit = _title_and_unit(point, owner, metric)
                laws, published = _references(result, point, metric, {curve.policy for curve in curves})
                yield Panel(
                    metric=metric, title=title, unit=unit, coordinates=point.coordinates, curves=curves, laws=laws,
                    published=published,
                    trivial=trivial_model(result, point, metric),
                    forecasts=risk_forecasts(result, point) if metric == point.spec.risk_metric() else (),
                    aspect=_aspect(metric, owner), real=real,
                )  # fmt: skip


def _references(
    result: Result, point: Point, metric: str, labels: set[str]
) -> tuple[list[tuple[str, LawCurve]], list[tuple[str, PublishedCurve]]]:
    """The laws and the published curves of a metric, each with its policy's label."""
    policies = zip(point.spec.policy_labels(), point.spec.policies, strict=True)
    scenarios = [(label, point.spec.scenario(policy, point.n)) for label, policy in policies if label in labels]
    laws = [(label, law) for label, _ in scenarios for law in result.laws[point.coordinates, label] if law.metric == metric]
    pairs = [(label, curve) for label, scenario in scenarios for curve in published_curves(scenario)]
    return laws, [pair for pair in pairs if pair[1].metric == metric]


def _aspect(metric: str, owner: Metric | None) -> str:
    """What a value is about: as the metric that it belongs to declares, else by its name or that of the metric."""
    is_own = owner is not None and metric in {*owner.directions(), *owner.secondary_titles}
    declared = (owner.aspect, aspect_of(metric), aspect_of(owner.name)) if owner and is_own else (aspect_of(metric),)
    return next((aspect for aspect in declared if aspect not in ("", "other")), "other")


def _real_value(measured: Iterable[Mapping[str, Floats]], metric: str, better: Better) -> float | None:
    """The value of real rows that is measured with a metric, as the mean of all chains; None if there is none."""
    names = (f"{metric}_real", *([better] if isinstance(better, str) else []))
    values = [curves[name] for curves in measured for name in names if name in curves]
    return float(np.nanmean(values)) if values and not np.isnan(values).all() else None


def _commands(result: Result) -> list[str]:
    """The commands that repeat a run from its spec, saved as run.toml."""
    store = shlex.quote(place_of(result.store))
    commands = (f"selfloop {name} run.toml --store {store}" for name in ("run", "report", "verify"))
    return [f"# with selfloop {version('selfloop')} (see Provenance)", *commands]


def _title_and_unit(point: Point, owner: Metric | None, metric: str) -> tuple[str, str]:
    """The title of a value in its metric, else its name in words, and the unit that the family or the metric declares."""
    title = unit = ""
    if owner:
        titles = {**owner.secondary_titles, owner.name: owner.title}
        title, unit = titles.get(metric, ""), owner.secondary_units.get(metric, owner.unit if metric in titles else "")
        if metric.endswith(SECOND_HOLDOUT):
            title, unit = _title_and_unit(point, owner, metric.removesuffix(SECOND_HOLDOUT))
            return f"{title} (second holdout)", unit
    title = title or metric.replace("_", " ")
    return title[:1].upper() + title[1:], point.spec.family.metric_units.get(metric) or unit


def _data_values(result: Result) -> Iterator[DataValuePanel]:
    for coordinates, cells in result.grid_cells().items():
        value = fit_data_value(cells)
        if value is not None:
            metric = next(m for m in result.spec.metrics if m.name == result.spec.risk_metric())
            title, unit = _title_and_unit(result.points[0], metric, metric.name)
            yield DataValuePanel(
                title=title, unit=unit, cells=cells, value=value, positive=metric.has_zero,
                published=list(_published_data_values(metric.name)), coordinates=coordinates,
            )  # fmt: skip


def _published_data_values(metric: str) -> Iterator[tuple[str, float, float]]:
    """R^2 of published grids of this metric: of the printed cells, and as the paper states it for its own runs."""
    for paper in papers().values():
        for grid in paper.grids:
            value = fit_data_value(grid.cells)
            if grid.metric == metric and value is not None:
                label = f"{paper.title}, {grid.scale} (different scale)"
                r_squared = [regression.r_squared.estimate or 0.0 for regression in (value.log_count, value.share)]
                yield f"{label}, the {len(grid.cells)} printed cells", r_squared[0], r_squared[1]
                yield f"{label}, as stated for all its runs", grid.r_squared["log_count"], grid.r_squared["share"]


def _costs(result: Result) -> Iterator[Cost]:
    """The cost of the steps that all policies share, generation 1, if there are any, and of each policy without them."""
    shared, labels = result.shared, result.spec.policy_labels()
    n_shared = shared.computed + shared.reused
    parts: list[tuple[str, str, Usage, slice, Usage]] = [("", labels[0], shared, slice(1), Usage())] if n_shared else []
    parts += [(label, label, result.usage[label], slice(1 if n_shared else 0, None), shared) for label in labels]
    for policy, label, usage, generations, others in parts:
        steps, rows = _count_steps_and_rows(result, label, generations)
        seconds = usage.seconds + usage.seconds_saved - others.seconds - others.seconds_saved
        reused = max(usage.reused - others.computed - others.reused, 0)  # each policy reuses the shared steps
        yield Cost(
            policy=policy, seconds=max(seconds, 0.0), steps=steps, rows=rows, bytes=usage.bytes,
            stored_share=reused / max(usage.computed + reused, 1),
        )  # fmt: skip


def _count_steps_and_rows(result: Result, label: str, generations: slice) -> tuple[float, int]:
    """Training steps and sampled rows of one policy in some of its generations, at all points."""
    steps, sampled = 0.0, 0
    for point in result.points:
        curves = result.table[point.coordinates, label].values
        steps += float(np.nansum(curves.get("training_steps", np.zeros((1, 1)))[:, generations]))
        if point.worlds[point.spec.policy_labels().index(label)] != "statistics":
            n_chains = np.any([~np.isnan(values) for values in curves.values()], axis=0).sum(axis=0).tolist()
            entries = result.schedules(point.coordinates)[label]
            sampled += sum(n * e.new_rows.synthetic for e, n in list(zip(entries, n_chains, strict=True))[generations])
    return steps, sampled
