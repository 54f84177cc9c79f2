"""The result of a run: its measurements, and everything computed from them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selfloop.columns import Floats
from selfloop.component import Policy
from selfloop.criteria.judging import COLLAPSES, CurveCriterion, Reference
from selfloop.engine.curves import NO_MEASUREMENT, NOT_COMPUTED, TRIVIAL, VALUE, Curves
from selfloop.engine.executors import Notify
from selfloop.engine.run import OnMeasured, Progress, run_tasks, store_path
from selfloop.engine.tasks import TaskOutput
from selfloop.errors import SpecError, shown, unknown_name
from selfloop.formats.json_lines import measurement_to_json, verdict_to_json
from selfloop.notebook import Verdicts
from selfloop.policies.schedule import ScheduleEntry, schedule_metrics
from selfloop.protocols import ControlsPolicy, SupportsStepCount
from selfloop.published.papers import claimed_pairs, unmodified_policies
from selfloop.spec.components import policy_settings
from selfloop.spec.parse import fresh_spec
from selfloop.spec.point import Point
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.stats.comparison import (
    FIRST_COMPARED,
    MARGIN_SHARE,
    Comparison,
    as_risk,
    compare_all,
    compare_declared,
    right_values,
)
from selfloop.stats.data_value import GridCell
from selfloop.stats.intervals import at_look, mean_interval
from selfloop.store.calls import Usage
from selfloop.store.runs import count_looks
from selfloop.summary import result_html
from selfloop.theory.forecasts import forecast_policies
from selfloop.theory.laws import LawCurve, law_curves
from selfloop.theory.laws.design import point_laws
from selfloop.types import Coordinates, Measurement, Verdict, real, synthetic

if TYPE_CHECKING:
    import pandas as pd

    from selfloop.report.charts import Figure

At = Mapping[str, object] | Coordinates  # a point of the sweep, as `{"n": 100}`
PolicyCurves = dict[str, dict[str, Floats]]  # policy -> metric -> (seeds, generations), NaN without a value


@dataclass(frozen=True, repr=False)
class Result:
    """All measurements of a run, its spec and the usage of the store. `at` names a point of a sweep: `{"n": 100}`."""

    spec: Spec
    table: Mapping[tuple[Coordinates, str], Curves]  # by point and policy label
    store: Path
    usage: Mapping[str, Usage] = field(default_factory=dict)  # by policy label
    shared: Usage = field(default_factory=Usage)  # of steps that all policies share
    look: int = 1  # 1, or more if the store lists runs of this spec with fewer seeds
    progress: tuple[int, int] | None = None  # of a run that is not finished: generations so far, and in all

    def __repr__(self) -> str:
        spec, points = self.spec, len(self.points)
        policies, metrics = ", ".join(spec.policy_labels()), ", ".join(self.metrics())
        size = f"{len(spec.seeds)} seeds, {spec.generations} generations" + (f", {points} points" if points > 1 else "")
        return f"<Result: {spec.family.name} on {spec.source.name}; {policies}; {size}; metrics {metrics}>"

    @property
    def points(self) -> tuple[Point, ...]:
        """The points of the sweep; one without a sweep."""
        return self.spec.points()

    def point(self, at: At = ()) -> Point:
        """The point with these coordinates; SpecError if there is none."""
        wanted: dict[str, object] | None = None
        with suppress(TypeError, ValueError):  # no coordinates at all
            wanted = {key: tuple(value) if isinstance(value, list) else value for key, value in dict(at).items()}
        for point in self.points:
            if dict(point.coordinates) == wanted:
                return point
        allowed = "; ".join(str(dict(point.coordinates)) for point in self.points[:5])
        raise SpecError(f"at: got {shown(at)}; expected the coordinates of a point of the sweep, such as {allowed}.")

    @cached_property
    def laws(self) -> dict[tuple[Coordinates, str], list[LawCurve]]:
        """The curves of all laws, those given the rows of the run too, by point and policy label."""
        return {(point.coordinates, label): point_laws(point, policy) for point, label, policy in self._policies()}

    def schedules(self, at: At = ()) -> dict[str, list[ScheduleEntry]]:
        """Schedule of each policy: new rows and takes of every generation."""
        point = self.point(at)
        labels = point.spec.policy_labels()
        return {label: point.schedule(policy) for label, policy in zip(labels, point.spec.policies, strict=True)}

    @property
    def measurements(self) -> Iterator[Measurement]:
        """Every measurement in the spec's order: points, policies, seeds, generations, metrics; real mass and data age last."""
        for (coordinates, label), curves in self.table.items():
            yield from curves.measurements(label, coordinates, schedule_metrics(self.schedules(coordinates)[label]))

    def curves(self, at: At = ()) -> PolicyCurves:
        """Policy -> metric -> (seeds, generations), NaN where a chain has no value.

        The key "nll_trivial" is the risk "nll" of the family's trivial model of the initial rows, at every generation.
        """
        coordinates = self.point(at).coordinates
        return {label: _extend_trivial(curves.values) for (other, label), curves in self.table.items() if other == coordinates}

    def _check_metric(self, metric: str) -> None:
        if metric not in self.metrics():
            raise SpecError(unknown_name("metric", str(metric), self.metrics()))

    def statuses(self, label: str, at: At = ()) -> set[str]:
        """The reasons why chains of a policy ended or values are missing."""
        if label not in (labels := self.spec.policy_labels()):
            raise SpecError(unknown_name("policy", str(label), labels))
        curves = self.table[self.point(at).coordinates, label]
        return {curves.statuses[code] for codes in curves.codes.values() for code in np.unique(codes) if code > 1}

    def metrics(self) -> list[str]:
        """Names of the measured metrics, the risk first."""
        names = dict.fromkeys(metric for curves in self.table.values() for metric in curves.values)
        return [name for name in names if not name.endswith(TRIVIAL)]

    def to_pandas(self) -> pd.DataFrame:
        """One line per measurement: policy, seed, generation, metric, value, status, the point's coordinates, and settings.

        The settings of its policy are columns such as `policy.name` and `policy.real_share`.
        """
        import pandas as pd

        settings = self._policy_settings()
        lines = ((m, settings[m.coordinates, m.policy]) for m in self.measurements)
        return pd.DataFrame([{**measurement_to_json(measurement), **columns} for measurement, columns in lines])

    def verdict_frame(self) -> pd.DataFrame:
        """One line per verdict: the keys of its JSON object, and the settings of its policy as in `to_pandas`."""
        import pandas as pd

        settings = self._policy_settings()
        return pd.DataFrame([{**verdict_to_json(v), **settings[v.coordinates, v.policy]} for v in self.verdicts()])

    def _policy_settings(self) -> dict[tuple[Coordinates, str], dict[str, object]]:
        return {(point.coordinates, label): policy_settings(policy) for point, label, policy in self._policies()}

    def _policies(self) -> Iterator[tuple[Point, str, Policy]]:
        """Every policy with its label at every point: a sweep may change its settings under one label."""
        for point in self.points:
            for label, policy in zip(point.spec.policy_labels(), point.spec.policies, strict=True):
                yield point, label, policy

    def curve(self, metric: str, at: At = ()) -> pd.DataFrame:
        """Mean over seeds with its 95 % interval: policy, generation, mean, low, high, seeds, settings as in `to_pandas`."""
        import pandas as pd

        self._check_metric(metric)
        lines, positive = list[dict[str, object]](), metric in self.spec.positive_metrics()
        coordinates, settings = self.point(at).coordinates, self._policy_settings()
        for policy, measured in self.curves(at).items():
            for t, values in enumerate(measured[metric].T, 1):
                interval = mean_interval(values, positive=positive)
                survivors = int(np.sum(~np.isnan(values)))
                mean = {"mean": interval.estimate, "low": interval.low, "high": interval.high, "seeds": survivors}
                lines.append({"policy": policy, "generation": t, **mean, **settings[coordinates, policy]})
        return pd.DataFrame(lines)

    def forecast(self, generations: int, metric: str | None = None, at: At = ()) -> pd.DataFrame:
        """The next generations by extrapolation: policy, generation, mean over seeds, its 90 % limits, exact law, reason.

        NaN with a reason if the run supports no forecast. `metric`: the risk unless named. Raises SpecError.
        """
        import pandas as pd

        self._check_metric(name := metric or self.spec.risk_metric() or "")
        forecasts = forecast_policies(self.point(at), self.curves(at), name, generations)
        return pd.DataFrame([line for forecast in forecasts for line in forecast.lines(self.spec.generations)])

    def verdicts(self) -> Verdicts:
        """Every criterion on every policy of every point. "risk" is the spec's risk metric.

        In a sweep over n, a criterion also receives the risk at every n with the other coordinates equal, as "risk@n=100".
        """
        verdicts, curves_of = Verdicts(), {point.coordinates: self.curves(point.coordinates) for point in self.points}
        known_of = {(point.coordinates, label): _references(point, policy) for point, label, policy in self._policies()}
        for point, label, policy in self._policies():
            spec, measured = point.spec, curves_of[point.coordinates]
            curves = {**measured[label], **self._risks(label, point, curves_of)}
            references = {**known_of[point.coordinates, label]}
            control = next((name for name, of in spec.controls().items() if of == label), "")
            for name, curve in measured[control].items() if control else ():
                references[name] = replace(references.get(name, Reference()), control=curve, control_by=control)
            is_bare = isinstance(spec.family, SupportsStepCount) and not control and not isinstance(policy, ControlsPolicy)
            for other in self.points:
                if f"risk@n={other.n}" in curves and _without_n(other) == _without_n(point):
                    risk = other.spec.risk_metric() or ""
                    references[f"risk@n={other.n}"] = known_of[other.coordinates, label].get(risk, Reference())
            for criterion in spec.criteria:
                known = (references,) if isinstance(criterion, CurveCriterion) else ()
                with at_look(self.look):
                    verdict = criterion.judge(curves, spec.directions(), *known)
                if is_bare and isinstance(criterion, CurveCriterion) and criterion.uses_control and verdict.metric:
                    verdict = replace(verdict, reason=f"{verdict.reason}; without a control")
                if self.progress and verdict.answer != "not measured":
                    verdict = Verdict(verdict.criterion, label, "undecided", verdict.metric, reason=self.unfinished())
                verdict = replace(verdict, policy=label, coordinates=point.coordinates)
                verdicts.append(self._judge_ended(verdict, spec.risk_metric()) if verdict.metric else verdict)
        return verdicts

    def unfinished(self) -> str:
        """How far a run is that is not finished, in words; empty for a finished run."""
        return "not finished: {:,} of {:,} generations so far".format(*self.progress) if self.progress else ""

    def _judge_ended(self, verdict: Verdict, risk: str | None) -> Verdict:
        """The verdict with the reasons why values are missing; undecided if one of them, after generation 1, is no collapse."""
        curves = self.table[verdict.coordinates, verdict.policy]
        metric = verdict.metric if verdict.metric in curves.codes else risk or ""
        ends = self.ends(verdict.policy, metric, verdict.coordinates)
        if verdict.answer != "not measured" and not self.progress and not ends <= COLLAPSES.keys():
            reason = "cannot be judged, because chains ended for another reason than collapse"
            verdict = replace(verdict, answer="undecided", reason=reason)
        statuses = ", ".join(sorted((self.statuses(verdict.policy, verdict.coordinates) | ends) - {NOT_COMPUTED}))
        return replace(verdict, reason=f"{verdict.reason} ({statuses})") if statuses else verdict

    def ends(self, label: str, metric: str, at: At = (), *, began: bool = True) -> set[str]:
        """The reasons why chains of a policy lack values of a metric: those with a first value or, without `began`, all."""
        curves = self.table[self.point(at).coordinates, label]
        if metric not in curves.codes:
            return set()
        codes = curves.codes[metric]
        is_missing = (codes != VALUE).any(axis=1) & ((codes[:, 0] == VALUE) | (not began))
        reasons, plain = set[int](), {VALUE, NO_MEASUREMENT}
        for row in np.unique(np.hstack([codes, *curves.codes.values()])[is_missing], axis=0).tolist():
            # The status of a chain's end is noted at the main value of each metric.
            reasons |= {*row[: codes.shape[1]]} - plain or {*row} - plain or {NO_MEASUREMENT}
        return {curves.statuses[code] for code in reasons}

    def _risks(self, policy: str, point: Point, curves_of: Mapping[Coordinates, PolicyCurves]) -> dict[str, Floats]:
        risks = {}
        for other in self.points:
            risk = curves_of[other.coordinates].get(policy, {}).get(other.spec.risk_metric() or "")
            if risk is not None and _without_n(other) == _without_n(point):
                risks[f"risk@n={other.n}"] = risk
                if other is point:
                    risks["risk"] = risk
        return risks if len(risks) > 2 else {name: risk for name, risk in risks.items() if name == "risk"}

    def compare(self, at: At = (), metric: str | None = None, first_generation: int = FIRST_COMPARED) -> list[Comparison]:
        """Policies compared with each other, paired by seed: their risk or another metric, at one point of the sweep.

        First the spec's primary comparison, if it is about this metric or none is given; it may be about another than the
        risk. Of a metric whose best value is known and at neither end, the distances from it are compared.
        """
        spec = self.point(at).spec
        if metric is not None:
            self._check_metric(metric)
        risk, primary = spec.risk_metric(), spec.primary
        compared, declared = metric or risk or "", primary.metric or risk or "" if primary else ""
        claims = claimed_pairs(unmodified_policies(spec)) if metric in (None, risk) else ()
        with at_look(self.look):
            curves, margin = self._comparable(compared, at)
            comparisons = [replace(each, metric=compared) for each in compare_all(curves, claims, first_generation, margin)]
            if primary and metric in (None, declared):
                curves, margin = self._comparable(declared, at)
                if {primary.higher, primary.lower} <= curves.keys():
                    first = compare_declared(curves, primary.higher, primary.lower, primary.generation, margin)
                    comparisons.insert(0, replace(first, metric=declared))
        return [replace(each, answer="undecided", reason=self.unfinished()) if self.progress else each for each in comparisons]

    def _comparable(self, metric: str, at: At) -> tuple[dict[str, Floats], float]:
        """The curves of a metric as policies are compared on it, and the margin of equivalence, 0 if there is none.

        The margin is that of the primary comparison of this metric, else 5 % of the first risk, or of its distance from the
        trivial model if the metric has no natural zero.
        """
        spec, measured = self.point(at).spec, {label: c for label, c in self.curves(at).items() if metric in c}
        better, primary = spec.directions().get(metric, ""), spec.primary
        curves = {label: c[metric] if better == "higher" else as_risk(c, metric, better) for label, c in measured.items()}
        if primary and primary.margin and (primary.metric or spec.risk_metric()) == metric:
            return curves, primary.margin
        has_zero = metric in spec.positive_metrics() or any(right_values(c, better) is not None for c in measured.values())
        scales = [Reference(has_zero, c.get(metric + TRIVIAL)).scale(curves[label]) for label, c in measured.items()]
        return curves, MARGIN_SHARE * float(np.mean(scales or 0.0))

    def grid_cells(self) -> dict[Coordinates, list[GridCell]]:
        """The risk over numbers of real and synthetic training rows, by the coordinates other than n.

        Cells come from generation 1, and from last generations whose synthetic rows all come from first models, so that cells
        differ in numbers of rows only. Training sets of equal size are one cell with their mean; a training set of several
        policies, such as generation 1's, counts once.
        """
        grids: dict[Coordinates, dict[tuple[float, float], dict[Hashable, Floats]]] = {}
        for (coordinates, label), curves in self.table.items():
            point = self.point(coordinates)
            cells = grids.setdefault(_without_n(point), {})
            risk = curves.values.get(point.spec.risk_metric() or "")
            entries = self.schedules(coordinates)[label]
            for entry in {entry.t: entry for entry in (entries[0], entries[-1])}.values():
                batches = [take.batch for take in entry.plan.takes]
                if risk is not None and {*batches} <= {real(entry.t), real(1), synthetic(1)}:
                    trained_on = coordinates, entry.t, entry.plan, *(entry.available[batch] for batch in batches)
                    cells.setdefault(entry.rows_by_kind(), {})[trained_on] = risk[:, entry.t - 1]
        return {
            coordinates: [GridCell(*rows, np.mean([*risks.values()], axis=0)) for rows, risks in sorted(cells.items())]
            for coordinates, cells in grids.items()
        }

    def report(self, path: str | Path) -> Path:
        """Write the report, one self-contained HTML file."""
        from selfloop.report.build import write_report

        return write_report([self], Path(path))

    def plot(self, metric: str | None = None, at: At = ()) -> Figure:
        """The report's figure of a metric (None: the risk) at one point, which a notebook shows as SVG or PNG."""
        from selfloop.report.build import metric_figure

        self._check_metric(name := metric or self.spec.risk_metric() or self.metrics()[0])
        return metric_figure(self, name, self.point(at).coordinates)

    def _repr_html_(self) -> str:
        return result_html(self)


def _extend_trivial(curves: Mapping[str, Floats]) -> dict[str, Floats]:
    """The curves, with the value of a trivial model, which is measured once, at every generation."""
    return {name: np.repeat(c[:, :1], c.shape[1], axis=1) if name.endswith(TRIVIAL) else c for name, c in curves.items()}


def _references(point: Point, policy: Policy) -> dict[str, Reference]:
    """The natural zero of each metric of a policy, and the laws of its expectation."""
    references = {metric.name: Reference(has_zero=metric.has_zero) for metric in point.spec.metrics}
    for law in law_curves(point.spec.scenario(policy, point.n)):  # those given the rows of the run hold for its seeds only
        name = law.metric.removeprefix("log_")  # the log of a variance is that of typical chains, and no expectation of it
        known, cited = references.get(name, Reference()), f"{law.law!r} ({law.source})"
        if name == law.metric and law.kind == "exact":
            known = replace(known, expected=law.values, expected_by=cited)
        if law.limit and not known.limit:
            known = replace(known, limit=law.limit, limit_by=cited)
        references[name] = known
    return references


def _without_n(point: Point) -> Coordinates:
    return tuple(coordinate for coordinate in point.coordinates if coordinate[0] != "n")


def run(  # noqa: PLR0913  # three are callbacks
    spec: Spec | str | Path,
    store: str | Path | None = None,
    *,
    workers: int | None = 1,
    threads: int | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
    on_measured: OnMeasured | None = None,
    track: Sequence[str] = (),
    on: str | None = None,
) -> Result:
    """Run a spec, or the spec in a file or preset of that name, to the end; stored results are not computed again.

    `workers=None` starts as many processes as the cores allow (in a script with components of its own, guard the call with
    `if __name__ == "__main__":`). The numbers do not depend on it. `progress` is called with the generations done and all
    generations, `notify` with texts such as "replace, seed 0, generation 2: fit, step 40 of 300", many times a second, and
    `on_measured` with each list of measurements as it arrives. The kernel of a notebook shows a line of progress instead.
    `track`: trackers that receive them, too, such as "wandb" or "tensorboard=FOLDER". `on`: a Ray cluster, as `--on` has it.
    """
    spec, store = fresh_spec(spec), store_path(store)
    if track:
        from selfloop.trackers.tracking import run_tracked

        again = partial(run, store=store, workers=workers, threads=threads, progress=progress, notify=notify, on=on)
        return run_tracked(track, spec, on_measured, lambda spec, observe: again(spec, on_measured=observe))
    outputs = run_tasks(
        spec, store, workers=workers, threads=threads, progress=progress, notify=notify, on_measured=on_measured, on=on
    )
    return collect_result(spec, store, outputs)


def collect_result(spec: Spec, store: Path, outputs: Iterable[TaskOutput]) -> Result:
    """The result of a run, from the outputs of its tasks."""
    labels, shared = spec.policy_labels(), Usage()
    usage = {label: Usage() for label in labels}
    table = {(p.coordinates, label): Curves(spec.seeds, p.spec.generations) for p in spec.points() for label in labels}
    for output in outputs:
        label = labels[output.policy]
        (shared if output.shared else usage[label]).add(output.usage)
        if not output.shared:  # the chains replay what they share
            table[output.coordinates, label].merge(output.curves)
    return Result(spec, table, store, usage, shared, count_looks(store, spec_text(spec)))
