"""Feeds trackers from a run in this process. They change no key and no number, and a tracker that fails ends no run."""

from __future__ import annotations

import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, replace
from importlib import import_module
from operator import methodcaller
from pathlib import Path

from PIL import Image

from selfloop.engine.run import OnMeasured
from selfloop.errors import SettingError, first_line, missing_extra
from selfloop.report.charts import on_paper, to_png
from selfloop.report.gallery import GalleryView, read_galleries, view_gallery
from selfloop.report.theme import policy_styles
from selfloop.result import Result
from selfloop.spec.components import policy_settings
from selfloop.spec.parse import fresh_spec
from selfloop.spec.point import Point
from selfloop.spec.spec import Spec
from selfloop.stats.intervals import Interval, mean_interval
from selfloop.store.identity import digest, identity
from selfloop.trackers.tracker import RunEnd, TrackedRun, Tracker, split_tracker
from selfloop.types import Coordinates, Measurement

MAX_SINGLE_SEEDS = 20  # with more seeds, a policy is one run with means and intervals
RunKey = tuple[Coordinates, str, int | None]  # point, policy, and seed or None for all seeds


def open_tracker(text: str) -> Tracker:
    """The tracker of a text such as `mlflow=sqlite:///runs.db`. Raises SelfloopError if it cannot be opened."""
    name, target = split_tracker(text)
    try:
        tracker: Tracker = getattr(import_module(f"selfloop.trackers.{name}"), f"{name.title()}Tracker")(target)
    except ModuleNotFoundError as problem:  # although there is a folder of its name
        raise missing_extra(f"track: {name!r}", name) from problem
    except Exception as problem:  # of any kind: the tool's own
        raise SettingError("track", f"{text} cannot be opened ({first_line(problem)}). Correct its target.") from problem
    return tracker


def run_tracked(
    track: Sequence[str], spec: Spec | str | Path, on_measured: OnMeasured | None, run: Callable[[Spec, OnMeasured], Result]
) -> Result:
    """The result of `run`, which receives the spec and a function for measurements, with its runs tracked."""
    spec = fresh_spec(spec)
    with redirect_stdout(sys.stderr):  # some print: stdout may be JSON
        tracking = Tracking([open_tracker(text) for text in ([track] if isinstance(track, str) else track)], spec)

    def observe(measurements: list[Measurement]) -> None:
        with tracking.guard():
            tracking.log(measurements)
        if on_measured:
            on_measured(measurements)

    try:
        result = run(spec, observe)
        with tracking.guard():
            tracking.finish(result)
    finally:
        tracking.stop()
    return result


class Tracking:
    """The trackers of one run of a spec, and their open runs."""

    def __init__(self, trackers: list[Tracker], spec: Spec) -> None:
        self.trackers, self.spec = trackers, spec
        self.by_seed = len(spec.seeds) <= MAX_SINGLE_SEEDS
        self.policies = dict(zip(spec.policy_labels(), range(len(spec.policies)), strict=True))
        self.points = {point.coordinates: point for point in spec.points()}
        self.runs: dict[RunKey, TrackedRun] = {}  # those that are open
        self.statuses: dict[RunKey, str] = {}

    @contextmanager
    def guard(self, tracker: Tracker | None = None) -> Iterator[None]:
        """What fails inside ends no run: the tracker, or without one all of them, gets nothing more, with one warning."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as problem:  # of any kind: the tool's own
            failed = [tracker] if tracker else [*self.trackers]
            if tracker is None:
                self.stop()
            self.trackers = [each for each in self.trackers if each not in failed]
            name = type(tracker).__module__.rpartition(".")[2] if tracker else "describing the run"
            text = f"track: {name} failed ({type(problem).__name__}: {first_line(problem)}); the run goes on without it."
            warnings.warn(text, stacklevel=2)

    def apply(self, action: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            with self.guard(tracker):
                action(tracker)

    def open(self, key: RunKey) -> TrackedRun:
        """The run of a key, started at its first use."""
        if key not in self.runs:
            run = self.runs[key] = describe_run(self.points[key[0]], self.policies[key[1]], key[2])
            self.apply(methodcaller("start", run))
        return self.runs[key]

    def log(self, measurements: list[Measurement]) -> None:
        """Write new measurements, unless seeds are tracked together."""
        if not (self.by_seed and self.trackers):
            return
        values: dict[tuple[RunKey, int], dict[str, float]] = {}
        for m in measurements:
            key = (m.coordinates, m.policy, m.seed)
            values.setdefault((key, m.generation), {})
            if m.value is not None and math.isfinite(m.value):
                values[key, m.generation][m.metric] = m.value
            elif m.status:
                self.statuses[key] = m.status
        for (run_key, t), numbers in values.items():
            self.write(run_key, t, numbers)

    def write(self, key: RunKey, t: int, values: Mapping[str, float]) -> None:
        run = self.open(key)
        if values:
            self.apply(methodcaller("log", run, t, values))

    def finish(self, result: Result) -> None:
        """Write means and intervals of seeds that are tracked together, then the ends of all runs."""
        if not self.by_seed:
            for (coordinates, label), curves in result.table.items():
                for t in range(curves.generations):
                    means = {name: mean_interval(values[:, t]) for name, values in curves.values.items()}
                    self.write((coordinates, label, None), t + 1, _mean_values(means))
        ends = describe_ends(result) if self.trackers else {}
        for key, run in list(self.runs.items()) if ends else ():
            coordinates, label, seed = key
            ended = self.statuses.get(key, "") if self.by_seed else ", ".join(sorted(result.statuses(label, coordinates)))
            end = ends[coordinates, label]
            end = replace(end, summary={**end.summary, **({"status": ended} if ended else {})})
            if seed not in (None, self.spec.seeds[0]):  # galleries are of the first seed
                end = replace(end, pictures={}, texts={})
            self.apply(methodcaller("finish", run, end))
            del self.runs[key]

    def stop(self) -> None:
        """Close the runs that are open because the run was interrupted."""
        for run in self.runs.values():
            self.apply(methodcaller("finish", run, None))
        self.runs.clear()


def _mean_values(means: Mapping[str, Interval]) -> dict[str, float]:
    """Means and limits by name, such as `nll/low`, as far as they exist."""
    values = {f"{name}/mean": mean.estimate for name, mean in means.items()}
    values |= {f"{name}/{limit}": getattr(mean, limit) for name, mean in means.items() for limit in ("low", "high")}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def describe_run(point: Point, position: int, seed: int | None) -> TrackedRun:
    """The run of one policy of a point, of one seed or of all. Its id counts what its numbers depend on, and its length."""
    spec, policy, label = point.spec, point.spec.policies[position], point.spec.policy_labels()[position]
    components = (spec.source, spec.family, spec.sampler, policy, spec.metrics, spec.external, spec.second_holdout)
    sizes = (point.n, point.holdout, spec.generations, spec.init_from, spec.merge, spec.unit, point.arrivals)
    others = (spec.policies, spec.seeds) if spec.subsets == "disjoint" else ()  # they decide which rows a seed has
    parts = (components, sizes, others, spec.seeds if seed is None else seed)
    config = {"policy": label, "n": point.n, "generations": spec.generations, **dict(point.coordinates)}
    config |= {"seed": seed} if seed is not None else {"seeds": len(spec.seeds)}
    for key, component in (("source", spec.source), ("family", spec.family), ("policy", policy)):
        config |= policy_settings(component, key)
    config |= {f"family.sampler.{f.name}": getattr(spec.sampler, f.name) for f in fields(spec.sampler)}
    at = "".join(f", {key} = {value}" for key, value in point.coordinates)
    return TrackedRun(
        id=digest(json.dumps(identity(parts)).encode()),
        label=f"{label}{at}" + (f", seed {seed}" if seed is not None else f", {len(spec.seeds)} seeds"),
        group=f"{spec.family.name} on {spec.source.name}",
        config={key: x if isinstance(x, bool | int | float) else str(x) for key, x in config.items() if x is not None},
    )


def describe_ends(result: Result) -> dict[tuple[Coordinates, str], RunEnd]:
    """By point and policy: the answers of the criteria that are measured, and the gallery of the first seed."""
    views, ends = dict(_policy_views(result)), {}
    answers = {key: dict[str, str]() for key in result.table}
    for verdict in result.verdicts():
        if verdict.answer != "not measured":
            answers[verdict.coordinates, verdict.policy][f"verdict/{verdict.criterion}"] = verdict.answer
    for key in result.table:
        view = views.get(key)
        svgs = {"samples": view.svg} if view and view.svg else {}
        svgs |= {f"molecule {i}": molecule.svg for i, molecule in enumerate(view.molecules, 1)} if view else {}
        text = "\n".join(_text_lines(view, key[1])) if view else ""
        ends[key] = RunEnd(
            generation=result.spec.generations,
            summary=answers[key],
            pictures={name: Image.open(io.BytesIO(to_png(on_paper(svg)))) for name, svg in svgs.items()},
            texts={"samples": text} if text else {},
        )
    return ends


def _policy_views(result: Result) -> Iterator[tuple[tuple[Coordinates, str], GalleryView]]:
    styles = policy_styles(result.spec.policy_labels())
    for gallery in read_galleries(result.points, result.store):
        for label, samples in gallery.samples.items():
            yield (gallery.coordinates, label), view_gallery(replace(gallery, samples={label: samples}), styles)


def _text_lines(view: GalleryView, label: str) -> Iterator[str]:
    """Texts and tables of one policy, generation by generation."""
    for row in view.text_rows:
        texts = {"real": row.real, **{f"t = {t}": text for t, text in zip(view.generations, row.rows[label], strict=True)}}
        yield row.title
        yield from (f"{name}: {text.prompt}{text.head}{'…' * bool(text.rest)}" for name, text in texts.items() if text)
    for title, cells in view.tables.get(label, {}).items():
        yield from (title, " | ".join(view.header), *(" | ".join(row) for row in cells))
