"""From results to a report: gathers what the page shows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from selfloop.component import Metric
from selfloop.engine.loop import ScheduleEntry
from selfloop.engine.run import runs_as_ensemble, runs_on_rows
from selfloop.families.nn.settings import Training
from selfloop.protocols import UsesEncoder
from selfloop.published.papers import load, published_curves, works
from selfloop.report.findings import findings
from selfloop.report.gallery_rows import galleries
from selfloop.report.page import write_figures, write_page
from selfloop.report.values import (
    Cost,
    CurveData,
    Differences,
    Ledger,
    Panel,
    PanelLaw,
    PanelPublished,
    Report,
    Shares,
    Worth,
    curve_of,
    ledger_of,
)
from selfloop.spec.spec import Spec
from selfloop.spec.write import changed_settings, spec_text
from selfloop.stats.data_value import fit_data_value
from selfloop.store.store import Usage
from selfloop.theory.laws import predictions
from selfloop.types import Floats

if TYPE_CHECKING:
    from selfloop.result import Result

_SHARE = re.compile("(?P<kind>class|attribute)_share_(?P<name>.+?)(?P<real>_real)?")


def write_report(results: Sequence[Result], path: Path, *, title: str = "", figures: Path | None = None) -> Path:
    """Write one page for one or more results, and every figure as SVG, PNG and PDF when a folder is given."""
    reports = [build_report(result) for result in results]
    if figures is not None:
        write_figures(reports, figures)
    return write_page(reports, path, title)


def build_report(result: Result) -> Report:
    """Everything the page shows of a result."""
    spec = result.spec
    point = next(iter(result.points.values()))
    chains = f"{len(spec.seeds):,} seed{'s' if len(spec.seeds) > 1 else ''}"
    title = f"{spec.family.name} on {spec.source.name}"
    return Report(
        title=title,
        summary=f"{title}: {_sizes(result)} real rows, {point.generations} generations, {chains}.",
        spec_text=spec_text(spec),
        versions=_versions(),
        generated=datetime.now(UTC),
        panels=list(_panels(result)),
        verdicts=result.verdicts(),
        definitions={c.name: (type(c).__doc__ or "").split("\n")[0] for c in spec.criteria},
        findings=list(dict.fromkeys(findings(result))),
        differences=list(_differences(result)),
        worths=list(_worths(result)),
        shares=list(_shares(result)),
        ledgers=list(_ledgers(result)),
        galleries=list(galleries(result)),
        costs=[_cost(result, label, used) for label, used in result.usage.items()],
        notes=list(dict.fromkeys(_notes(result))),
    )


def _sizes(result: Result) -> str:
    return ", ".join(f"{n:,}" for n in dict.fromkeys(point.n or 0 for point in result.points.values()))


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("selfloop", "numpy", "scipy", "torch")}}


def _panels(result: Result) -> Iterator[Panel]:
    owner: Metric | None = None
    for metric in filterfalse(_SHARE.fullmatch, result.metrics()):
        for coordinates, point in result.points.items():
            owner = next((m for m in point.metrics if m.name == metric), owner)  # a metric's parts come right after it
            curves = {label: c[metric] for label, c in result.curves(coordinates).items() if metric in c}
            if curves:
                laws, published = _overlays(point, metric, list(curves))
                yield Panel(
                    metric=metric,
                    title=_capital(_title(owner, metric)),
                    unit=point.family.units.get(metric) or _unit(owner, metric),
                    coordinates=coordinates,
                    curves=[_curve(label, values, owner) for label, values in curves.items()],
                    laws=laws,
                    published=published,
                )


def _title(owner: Metric | None, metric: str) -> str:
    """What the metric calls this number, else its name in words."""
    found = owner.secondary_titles.get(metric, owner.title if owner.name == metric else "") if owner else ""
    return found or metric.replace("_", " ")


def _unit(owner: Metric | None, metric: str) -> str:
    """The metric's unit; of a further number of another metric only when that says so."""
    return owner.units.get(metric, owner.unit if owner.name == metric else "") if owner else ""


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _curve(label: str, values: Floats, metric: Metric | None) -> CurveData:
    return curve_of(label, range(1, values.shape[1] + 1), values, metric.better if metric else "")


def _overlays(point: Spec, metric: str, labels: Sequence[str]) -> tuple[list[PanelLaw], list[PanelPublished]]:
    laws, published = [], []
    for label, policy in zip(point.policy_labels(), point.policies, strict=True):
        if label not in labels:
            continue
        setting = point.scenario(policy, cast(int, point.n))
        generations = range(1, point.generations + 1)
        laws += [
            PanelLaw(name=p.law, kind=p.kind, policy=label, generations=generations, values=p.values.tolist(), source=p.source)
            for p in predictions(setting)
            if p.metric == metric
        ]
        published += [
            PanelPublished(
                label=each.label, policy=label, generations=each.generations, values=each.values, scale=each.scale,
                source=each.source,
            )
            for each in published_curves(setting, another_scale=True)
            if each.metric == metric
        ]  # fmt: skip
    return laws, published


def save_curves(path: Path, title: str, curves: Mapping[str, Floats]) -> None:
    """Draw plain curves over generations to one file (SVG, PNG or PDF by its ending)."""
    from selfloop.errors import SpecError
    from selfloop.report.figures import panel_figure, save_svg
    from selfloop.report.theme import policy_styles

    if path.suffix not in (".svg", ".png", ".pdf"):
        raise SpecError(f"--figure {path}: expected a file that ends in .svg, .png or .pdf.")
    drawn = [curve_of(label, range(1, len(values) + 1), values[None, :]) for label, values in curves.items()]
    svg = panel_figure(Panel(metric=title, title=title, curves=drawn), policy_styles(list(curves))).svg()
    for written in save_svg(svg, path.with_suffix("")):
        if written.suffix != path.suffix:
            written.unlink()


def _differences(result: Result) -> Iterator[Differences]:
    for coordinates, point in result.points.items():
        found = result.compare(coordinates)
        if found:
            yield Differences(metric=point.risk_metric() or "", comparisons=found, coordinates=coordinates)


def _shares(result: Result) -> Iterator[Shares]:
    """Numbers named `class_share_3`, `attribute_share_Smiling` or, of real rows, `attribute_share_Smiling_real`, together."""
    found = [match for match in map(_SHARE.fullmatch, result.metrics()) if match]
    for kind in ("class", "attribute"):
        names = [match["name"] for match in found if match["kind"] == kind and not match["real"]]
        if all(name.isdecimal() for name in names):
            names.sort(key=int)  # a seed's classifier may not know every class
        for coordinates in result.points:
            measured = {
                p: c for p, c in result.curves(coordinates).items() if all(f"{kind}_share_{name}" in c for name in names)
            }
            if not (names and measured):
                continue
            first = next(iter(measured.values()))
            sampled, real = ([f"{kind}_share_{name}{end}" for name in names] for end in ("", "_real"))
            samples = {policy: _stacked(curves, sampled) for policy, curves in measured.items()}
            known = _stacked(first, real)[:, 0] if all(each in first for each in real) else None
            yield Shares(kind=kind, names=names, coordinates=coordinates, samples=samples, real=known)


def _stacked(curves: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    """Shares of each seed, generation and name; none of what a seed does not know, where it has others."""
    shares = np.stack([curves[name] for name in names], axis=-1)
    return np.where(np.isfinite(shares).any(axis=-1, keepdims=True), np.nan_to_num(shares), shares)


def _worths(result: Result) -> Iterator[Worth]:
    for coordinates, cells in result.cells().items():
        value = fit_data_value(cells)
        if value is not None:
            metric = next(m for m in result.spec.metrics if m.name == result.spec.risk_metric())
            unit = result.spec.family.units.get(metric.name, metric.unit)
            yield Worth(
                metric=metric.name, title=_capital(metric.title), unit=unit, cells=cells, value=value,
                published=list(_published_worths(metric.name)), coordinates=coordinates,
            )  # fmt: skip


def _published_worths(metric: str) -> Iterator[tuple[str, float, float]]:
    """R^2 of published grids of this metric: of the cells they print, and as they state it for their own runs."""
    for work in map(load, works()):
        for grid in work.grids:
            value = fit_data_value(grid.cells)
            if grid.metric == metric and value is not None:
                label = f"{work.title}, {grid.scale} (another scale)"
                r_squared = [each.r_squared.estimate or 0.0 for each in (value.log_count, value.share)]
                yield f"{label}, the {len(grid.cells)} cells it prints", r_squared[0], r_squared[1]
                yield f"{label}, as stated for all its runs", grid.stated["log_count"], grid.stated["share"]


def _ledgers(result: Result) -> Iterator[Ledger]:
    point = next(iter(result.points.values()))
    for label, policy in zip(point.policy_labels(), point.policies, strict=True):
        yield ledger_of(label, policy, cast(int, point.n), point.generations)


def _cost(result: Result, label: str, used: Usage) -> Cost:
    """What a policy took; generation 1, which all policies share, is counted with the first one."""
    first = label == next(iter(result.usage))
    once = 0.0 if first else result.shared.seconds + result.shared.saved
    steps, sampled = 0.0, 0
    for coordinates, point in result.points.items():
        policy = point.policies[point.policy_labels().index(label)]
        rows = not runs_as_ensemble(point) or runs_on_rows(point, policy)
        alive = np.any([~np.isnan(curves) for curves in result.curves(coordinates)[label].values()], axis=0).sum(axis=0)
        for stage, chains in list(zip(result.schedules(coordinates)[label], alive.tolist(), strict=True))[0 if first else 1 :]:
            steps += chains * _steps(point, stage)
            sampled += chains * stage.new_rows.synthetic if rows else 0
    stages = used.computed + used.reused
    return Cost(
        policy=label, seconds=max(used.seconds + used.saved - once, 0.0), steps=steps, rows=sampled,
        bytes=used.bytes + (result.shared.bytes if first else 0),
        stored_share=max(used.reused - result.shared.computed, 0) / stages if stages else 0.0,
    )  # fmt: skip


def _steps(point: Spec, stage: ScheduleEntry) -> float:
    """Optimiser steps of a generation; NaN where they follow from the lengths of its rows, which only the fit knows."""
    training = getattr(point.family.for_generation(stage.t), "training", None)
    if not isinstance(training, Training):
        return 0.0
    to_safetensors = isinstance(point.family, UsesEncoder) and training.steps is None
    return math.nan if to_safetensors else training.steps_for(stage.trained_rows)


def _notes(result: Result) -> Iterator[str]:
    if result.shared.computed or result.shared.reused:
        yield "Costs: generation 1, which all policies share, is counted with the first one."
    yield from result.shared.said
    yield from _departures(result.spec)
    sizes = [point.n for point in result.points.values()]
    if len(set(sizes)) > 1:
        yield f"The training data are shown for n = {sizes[0]:,}; rows grow with n, real mass and data age do not."
    for coordinates, point in result.points.items():
        where = "".join(f" at {key} = {value}" for key, value in coordinates)
        if runs_as_ensemble(point):
            modes = {label: runs_on_rows(point, p) for label, p in zip(point.policy_labels(), point.policies, strict=True)}
            rows, sums = [name for name, on in modes.items() if on], [name for name, on in modes.items() if not on]
            if rows and sums:
                yield (
                    f"Drawn row by row: {', '.join(rows)}; from sufficient statistics: {', '.join(sums)}. Only policies "
                    "of the same kind share random numbers and are compared paired by seed."
                )
            else:
                yield "All policies share random numbers: comparisons between them are paired by seed."
        else:
            yield "All policies of a seed share generation 1 and random numbers: comparisons are paired by seed."
        for label, measured in result.curves(coordinates).items():
            main = measured.get(point.metrics[0].name)
            left = 0 if main is None else int((~np.isnan(main[:, -1])).sum())
            if left < len(point.seeds):
                why = ", ".join(sorted(result.statuses(label, coordinates)))
                yield f"{label}{where}: {left} of {len(point.seeds)} chains are left at the end ({why})."


def _departures(spec: Spec) -> Iterator[str]:
    """Which settings of a published model a run changed."""
    family = spec.family
    changes = [*changed_settings(family), *changed_settings(spec.sampler, "sampler.")] if family.reference_model else []
    if changes:
        said = ", ".join(f"{name} {value} ({'not set' if default is None else default})" for name, value, default in changes)
        yield f"The defaults of {family.name} are {family.reference_model}. This run has others (defaults in brackets): {said}."
