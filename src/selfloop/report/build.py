"""From results to a report: gathers what the page shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from selfloop.component import Metric
from selfloop.identity import Ref
from selfloop.loop import loop
from selfloop.published import overlays
from selfloop.report import Cost, CurveData, Gallery, LawCurve, Ledger, Panel, PublishedPoints, Report, curve_of, ledger_of
from selfloop.report.page import write_figures, write_page
from selfloop.runtime import block_of, is_ensemble, run_task, runs_on_rows, tasks_of
from selfloop.spec import Axes, Spec
from selfloop.stages import draw_real, sample, sample_curated
from selfloop.stats.growth import growth_law, inflection
from selfloop.store import NotStoredError, Store, Usage
from selfloop.template import spec_text
from selfloop.theory.laws import predictions
from selfloop.types import Columns, Floats, Row, count_rows, select_rows
from selfloop.ensembles import Block, EnsembleWorld, Held

if TYPE_CHECKING:
    from selfloop.result import Result

SHOWN = 300  # rows of each batch in the gallery, at most: scatter panels want many, image grids take the first few
Samples = dict[str, dict[int, Columns]]  # policy -> generation -> rows


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
        findings=list(dict.fromkeys(_findings(result))),
        ledgers=list(_ledgers(result)),
        galleries=list(_galleries(result)),
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
    for metric in result.metrics():
        for axes, point in result.points.items():
            owner = next((m for m in point.metrics if m.name == metric), owner)  # a metric's parts come right after it
            curves = {label: c[metric] for label, c in result.curves(axes).items() if metric in c}
            if curves:
                laws, published = _overlays(point, metric, list(curves))
                yield Panel(
                    metric=metric,
                    title=_capital((owner.title if owner and owner.name == metric else "") or metric.replace("_", " ")),
                    unit=owner.unit if owner else "",
                    axes=axes,
                    curves=[_curve(label, values, owner) for label, values in curves.items()],
                    laws=laws,
                    published=published,
                )


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _curve(label: str, values: Floats, metric: Metric | None) -> CurveData:
    return curve_of(label, range(1, values.shape[1] + 1), values, metric.better if metric else "")


def _overlays(point: Spec, metric: str, labels: Sequence[str]) -> tuple[list[LawCurve], list[PublishedPoints]]:
    laws, published = [], []
    for label, policy in zip(point.labels(), point.policies, strict=True):
        if label not in labels:
            continue
        setting = point.setting(policy, cast(int, point.n))
        generations = range(1, point.generations + 1)
        laws += [
            LawCurve(name=p.law, kind=p.kind, policy=label, generations=generations, values=p.values.tolist(), source=p.source)
            for p in predictions(setting)
            if p.metric == metric
        ]
        for overlay in overlays(setting):
            if overlay.metric == metric:
                shown = [(t, v) for t, v in zip(overlay.generations, overlay.values, strict=True) if t <= point.generations]
                if shown:
                    ts, values = zip(*shown, strict=True)
                    published.append(PublishedPoints(label=overlay.label, policy=label, generations=ts, values=values))
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


def _findings(result: Result) -> Iterator[str]:
    for axes, point in result.points.items():
        main = point.risk() or ""
        where = "".join(f", {key} = {value}" for key, value in axes)
        for label, measured in result.curves(axes).items():
            if main not in measured or point.generations < 3:
                continue
            growth = growth_law(measured[main])
            law = f"follows a {growth.law} law" if growth.law else f"growth law undecided ({growth.reason})"
            turn = inflection(measured[main])
            dip = ""
            if turn is not None and turn.estimate is not None:
                limits = f" [{turn.low:.0f}, {turn.high:.0f}]" if turn.low is not None and turn.high is not None else ""
                dip = f"; lowest at generation {turn.estimate:.0f}{limits}: more synthetic rows no longer help after it"
            yield f"{label}{where}: {main} {law}{dip}."


def _ledgers(result: Result) -> Iterator[Ledger]:
    point = next(iter(result.points.values()))
    for label, policy in zip(point.labels(), point.policies, strict=True):
        yield ledger_of(label, policy, cast(int, point.n), point.generations)


def _cost(result: Result, label: str, used: Usage) -> Cost:
    """What a policy took; generation 1, which all policies share, is counted with the first one."""
    first = label == next(iter(result.usage))
    once = 0.0 if first else result.shared.seconds + result.shared.saved
    steps = sampled = 0
    for axes, point in result.points.items():
        policy = point.policies[point.labels().index(label)]
        rows = not is_ensemble(point) or runs_on_rows(point, policy)
        training = getattr(point.family, "training", None)
        alive = np.any([~np.isnan(curves) for curves in result.curves(axes)[label].values()], axis=0).sum(axis=0)
        for stage, chains in list(zip(result.ledger(axes)[label], alive.tolist(), strict=True))[0 if first else 1 :]:
            steps += chains * training.steps_for(stage.trained_rows) if training is not None else 0
            sampled += chains * stage.emission.synthetic if rows else 0
    stages = used.computed + used.reused
    return Cost(
        policy=label, seconds=max(used.seconds + used.saved - once, 0.0), steps=steps, rows=sampled,
        bytes=used.bytes + (result.shared.bytes if first else 0),
        stored_share=max(used.reused - result.shared.computed, 0) / stages if stages else 0.0,
    )  # fmt: skip


def _notes(result: Result) -> Iterator[str]:
    if result.shared.computed or result.shared.reused:
        yield "Costs: generation 1, which all policies share, is counted with the first one."
    sizes = [point.n for point in result.points.values()]
    if len(set(sizes)) > 1:
        yield f"The training data are shown for n = {sizes[0]:,}; rows grow with n, real mass and data age do not."
    for axes, point in result.points.items():
        where = "".join(f" at {key} = {value}" for key, value in axes)
        if is_ensemble(point):
            modes = {label: runs_on_rows(point, p) for label, p in zip(point.labels(), point.policies, strict=True)}
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
        for label, measured in result.curves(axes).items():
            main = measured.get(point.metrics[0].name)
            left = 0 if main is None else int((~np.isnan(main[:, -1])).sum())
            if left < len(point.seeds):
                why = ", ".join(sorted(result.statuses(label, axes)))
                yield f"{label}{where}: {left} of {len(point.seeds)} chains are left at the end ({why})."


def _galleries(result: Result) -> Iterator[Gallery]:
    for axes, point in result.points.items():
        found = _ensemble_samples(point) if is_ensemble(point) else _stored_samples(result, axes, point)
        if found is None:
            continue
        real, samples = found
        if samples:
            yield Gallery(schema=point.source.schema(), real=real, samples=samples, axes=axes)


def _first(rows: Columns) -> Columns:
    return select_rows(rows, np.arange(min(SHOWN, count_rows(rows))))


def _stored_samples(result: Result, axes: Axes, point: Spec) -> tuple[Columns, Samples] | None:
    """The first seed's real and synthetic rows, from the store."""
    real: Columns = {}
    samples: Samples = {}
    for task in tasks_of(replace(result.spec, seeds=result.spec.seeds[:1]), result.store)[-1]:
        if task.axes != axes:
            continue
        store = Store(result.store, looking=True, remembering=True)
        try:
            list(run_task(task, store))
        except NotStoredError:
            continue
        made = [call for call in store.calls if call.function in (sample, sample_curated)]
        drawn = [call for call in store.calls if call.function is draw_real]
        label = point.labels()[task.policies[0]]
        samples[label] = {t: _first(_opened(store, call)) for t, call in enumerate(made, 1) if store.recorded(call)}
        real = real or _first(_opened(store, drawn[0]))
    return (real, samples) if real else None


def _opened(store: Store, call: Any) -> Columns:
    return store.open(cast(Ref, store.step(call.function, *call.arguments)))


@dataclass
class _Watched:
    """An ensemble's world that keeps the sampled rows and measures nothing."""

    world: EnsembleWorld
    seen: dict[int, Columns] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seeds, self.real, self.fit, self.sample = self.world.seeds, self.world.real, self.world.fit, self.world.sample
        self.ended = self.world.ended

    def measure(self, t: int, model: Any, new: Held) -> Iterator[Row]:
        self.seen[t] = {name: np.asarray(column)[0, :SHOWN] for name, column in new.rows.items()}
        return iter(())


def _ensemble_samples(point: Spec) -> tuple[Columns, Samples] | None:
    """The first seed's rows, drawn again: the chains whose curves are shown, where those ran on rows."""
    samples: Samples = {}
    real: Columns = {}
    block: Block = block_of(point, point.seeds[:1], on_rows=True)
    for label, policy in zip(point.labels(), point.policies, strict=True):
        if runs_on_rows(point, policy):
            watched = _Watched(EnsembleWorld(label, block))
            list(loop(watched, policy, block.n, point.generations))
            samples[label] = watched.seen
            real = {name: np.asarray(column)[0, :SHOWN] for name, column in watched.world.initial.rows.items()}
    return (real, samples) if real else None
