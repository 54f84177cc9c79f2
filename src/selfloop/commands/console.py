"""What the command line prints: progress, tables, and curves drawn with characters."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from selfloop.errors import SpecError, unknown_name
from selfloop.plugins import BUILT_IN, presets
from selfloop.types import Answer, Floats

if TYPE_CHECKING:
    from selfloop.commands.reproduce import Line
    from selfloop.commands.verify import Planned
    from selfloop.engine.run import Progress
    from selfloop.result import Result
    from selfloop.spec.spec import Spec
    from selfloop.stats.intervals import Interval

BARS = "▁▂▃▄▅▆▇█"
MOST_COLUMNS = 8  # policies beside each other; of more, verdicts are counted


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)  # a file or pipe is no terminal: no wrapping


@contextmanager
def progress_line(quiet: bool) -> Iterator[Progress | None]:
    """A progress line with the time left on standard error; plain lines now and then where it is no terminal."""
    if quiet:
        yield None
    elif not sys.stderr.isatty():
        yield _plain_progress()
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("generations,"), TimeElapsedColumn(), TextColumn("gone,"),
                   TimeRemainingColumn(), TextColumn("left"))  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("run", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_progress() -> Progress:
    started = last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 5 or done == total:
            last = now
            left = f", {(now - started) / done * (total - done):.0f} s left" if done else ""
            sys.stderr.write(f"{done}/{total} generations, {now - started:.0f} s gone{left}\n")

    return say


def print_summary(result: Result) -> None:
    """First and last value of each metric per policy with intervals, what was found in words, and the verdicts."""
    from selfloop.report.findings import findings
    from selfloop.stats.intervals import mean_interval, ratio_interval

    for coordinates, point in result.points.items():
        where = ", ".join(f"{key} = {value}" for key, value in coordinates)
        title = f"{point.family.name} on {point.source.name}, n = {point.n}, {len(point.seeds)} seeds" + (
            f"; {where}" if where else ""
        )
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in ("policy", "metric", "t = 1", f"t = {point.generations}", "multiplier (95 %)", "curve"):
            table.add_column(column, justify="left" if column in ("policy", "metric", "curve") else "right")
        for policy, measured in result.curves(coordinates).items():
            for metric in [named.name for named in point.metrics if named.name in measured]:  # the report has their parts, too
                curves = measured[metric]
                first, last = mean_interval(curves[:, 0]), mean_interval(curves[:, -1])
                ratio = ratio_interval(curves[:, -1], curves[:, 0])
                left = int((curves[:, -1] == curves[:, -1]).sum())
                ended = f"{left} of {len(curves)} chains left" if left < len(curves) else _number(last.estimate)
                shown = _interval(ratio.estimate, ratio.low, ratio.high)
                table.add_row(policy, metric, _number(first.estimate), ended, shown, _sparkline(_means(curves)))
        _console().print(table)
    for sentence in dict.fromkeys(findings(result)):
        _console().print(f"- {sentence}", highlight=False, soft_wrap=True)
    _print_verdicts(result)


def _means(curves: Floats) -> Floats:
    return curves.mean(axis=0)  # type: ignore[no-any-return]  # NaN where a chain has ended


def _print_verdicts(result: Result) -> None:
    table = Table(title="verdicts: is it collapse?", title_justify="left", box=None, pad_edge=False)
    verdicts = result.verdicts()
    keys = list(dict.fromkeys((v.coordinates, v.policy) for v in verdicts))
    table.add_column("criterion")
    if len(keys) > MOST_COLUMNS:
        for answer in get_args(Answer):
            table.add_column(answer)
        for criterion in dict.fromkeys(v.criterion for v in verdicts):
            counts = Counter(v.answer for v in verdicts if v.criterion == criterion)
            table.add_row(criterion, *(str(counts[answer]) for answer in get_args(Answer)))
        _console().print(table)
        return
    for coordinates, policy in keys:
        table.add_column(policy + "".join(f" {key}={value}" for key, value in coordinates))
    for criterion in dict.fromkeys(v.criterion for v in verdicts):
        answers = {(v.coordinates, v.policy): v.answer for v in verdicts if v.criterion == criterion}
        table.add_row(criterion, *(answers.get(key, "") for key in keys))
    _console().print(table)


def print_plan(spec: Spec, planned: Sequence[Planned]) -> None:
    """What a run would do and what is stored already."""
    from selfloop.engine.loop import schedule
    from selfloop.engine.run import resolved_points

    table = Table(box=None, pad_edge=False)
    for column in ("point", "policy", "chains", "generations", "stored", "rest, about", "rows trained on, t = 1, 2, ..."):
        table.add_column(column, justify="left" if column in ("point", "policy") else "right")
    points = dict(resolved_points(spec))
    for each in planned:
        point = points[each.coordinates]
        policy = point.policies[point.policy_labels().index(each.policy)]
        rows = [stage.trained_rows for stage in schedule(policy, point.n or 0, point.generations)]
        where = ", ".join(f"{key} = {value}" for key, value in each.coordinates)
        cost = "unknown" if each.seconds is None else f"{each.seconds:.1f} s"
        shown = ", ".join(f"{count:,}" for count in rows[:4]) + (", ..." if len(rows) > 4 else "")
        table.add_row(where, each.policy, str(each.chains), str(each.generations), str(each.stored), cost, shown)
    point = next(iter(points.values()))
    console = _console()
    console.print(
        f"{point.family.name} on {point.source.name}: n = {point.n}, holdout = {point.holdout}, seeds {list(point.seeds)}"
    )
    console.print(table)


def print_predictions(names: Sequence[str], n: int, generations: int, settings: Sequence[str], figure: Path | None) -> None:
    """Expected error multiplier and variance ratio of policies, generation by generation, as a table and a plot."""
    import tomllib

    from selfloop.theory import predict

    changed: dict[str, Any] = {}
    for each in settings:
        key, _, value = each.partition("=")
        try:
            changed[key.strip().removeprefix("policy.")] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            changed[key.strip().removeprefix("policy.")] = value
    found = {name: predict({"name": name, **changed}, n, generations) for name in names}
    console = _console()
    console.print(f"Mean and variance of n = {n} rows by maximum likelihood; exact expectations (`MomentsWorld`).")
    curves = {}
    for name, course in found.items():
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        for column in ("generation", "rows", "real mass", "data age", "error multiplier", "variance ratio"):
            table.add_column(column, justify="right")
        for i in range(generations):
            table.add_row(
                str(i + 1), f"{course.trained_rows[i]:,}", f"{course.real_mass[i]:.3f}", f"{course.data_age[i]:.2f}",
                f"{course.mean_error_multiplier[i]:.4f}", f"{course.variance_ratio[i]:.4f}",
            )  # fmt: skip
        console.print(table)
        curves[name] = course.mean_error_multiplier
    _plot(console, "error multiplier", curves)
    _save(figure, "error multiplier (times 1 / n)", curves)


def print_laws(spec: Spec, figure: Path | None) -> None:
    """Every law that applies to a spec, with its conditions and values."""
    from selfloop.engine.run import resolved_points
    from selfloop.theory.laws import predictions

    console = _console()
    drawn: dict[str, dict[str, Floats]] = {}
    for coordinates, point in resolved_points(spec):
        where = "".join(f"; {key} = {value}" for key, value in coordinates)
        for label, policy in zip(point.policy_labels(), point.policies, strict=True):
            found = predictions(point.scenario(policy, point.n or 0))
            if not found:
                console.print(f"{label}{where}: no law applies to {point.family.name} on {point.source.name}.")
            for law in found:
                console.print(
                    f"[bold]{label}{where}[/bold]: {law.metric}, {law.kind}: {law.law} ({law.source}). {law.conditions}"
                )
                console.print("  " + "  ".join(f"{value:.5g}" for value in law.values))
                if law.kind != "bound":
                    drawn.setdefault(law.metric, {})[label + where] = law.values
    for metric, curves in drawn.items():
        _plot(console, metric, curves)
    for metric, curves in drawn.items():
        _save(figure and figure.with_stem(f"{figure.stem}-{metric}" if len(drawn) > 1 else figure.stem), metric, curves)


def _save(figure: Path | None, title: str, curves: Mapping[str, Floats]) -> None:
    if figure is not None:
        from selfloop.report.build import save_curves

        save_curves(figure, title, curves)
        sys.stderr.write(f"figure: {figure}\n")


def _plot(console: Console, title: str, curves: Mapping[str, Floats], height: int = 12, width: int = 60) -> None:
    """Curves over generations in characters, one letter per curve."""
    top = max(float(max(values)) for values in curves.values())
    low = min(0.0, *(float(min(values)) for values in curves.values()))
    grid = [[" "] * width for _ in range(height)]
    for i, values in enumerate(curves.values()):
        for x in range(width):
            t = round(x / (width - 1) * (len(values) - 1))
            y = round((values[t] - low) / ((top - low) or 1) * (height - 1))
            grid[height - 1 - y][x] = chr(ord("a") + i % 26)
    generations = len(next(iter(curves.values())))
    console.print(f"{title}: " + ", ".join(f"{chr(ord('a') + i % 26)} = {name}" for i, name in enumerate(curves)))
    for i, line in enumerate(grid):
        mark = f"{top:9.4g}" if i == 0 else f"{low:9.4g}" if i == height - 1 else " " * 9
        console.print(f"{mark} |{''.join(line)}", markup=False)
    console.print(f"{'':9} +{'-' * width}\n{'':10} t = 1{'':{width - 12}}t = {generations}")


def print_comparison(results: Mapping[str, Result], chosen: str) -> None:
    """Differences seed by seed: between the policies of one spec, or between specs policy by policy."""
    from selfloop.engine.run import runs_as_ensemble, runs_on_rows
    from selfloop.stats.intervals import paired_difference

    curves: dict[str, Floats] = {}
    draws: dict[str, object] = {}  # what two curves must have in common to share random numbers
    for name, result in results.items():
        for coordinates, point in result.points.items():
            for label, policy in zip(point.policy_labels(), point.policies, strict=True):
                if chosen not in (measured := result.curves(coordinates)[label]):
                    raise SpecError(unknown_name("--metric", chosen, measured))
                where = "".join(f" {key}={value}" for key, value in coordinates)
                full = (f"{name}: " if len(results) > 1 else "") + label + where
                curves[full] = measured[chosen]
                draws[full] = point.seeds, runs_as_ensemble(point), runs_as_ensemble(point) and runs_on_rows(point, policy)
    labels = list(curves)
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :] if curves[a].shape == curves[b].shape]
    if not pairs:
        raise SpecError("compare: nothing to compare. Give two policies, or two specs with the same seeds and generations.")
    table = Table(title=f"{chosen}: differences seed by seed, 95 %", title_justify="left", box=None, pad_edge=False)
    for column in ("first minus second", "generation", "difference", "interval", "first is"):
        table.add_column(column)
    for a, b in pairs:
        shared = "" if draws[a] == draws[b] else " (independent draws)"
        for t, each in enumerate(paired_difference(curves[a], curves[b]), 1):
            table.add_row(f"{a} - {b}{shared}" if t == 1 else "", str(t), *_difference(each))
    _console().print(table)


def _difference(each: Interval) -> tuple[str, str, str]:
    sure = each.low is not None and each.high is not None and (each.low > 0 or each.high < 0)
    word = ("higher" if (each.estimate or 0) > 0 else "lower") if sure else "undecided"
    limits = "undefined" if each.low is None else f"[{_number(each.low)}, {_number(each.high)}]"
    return _number(each.estimate), limits, word


def print_reproduction(lines: Sequence[Line]) -> None:
    """One line per published number."""
    table = Table(box=None, pad_edge=False)
    for column in ("group", "setting", "policy", "t", "published", "measured", "interval", "z", "note"):
        table.add_column(column, justify="right" if column in ("t", "published", "measured", "z") else "left")
    for line in lines:
        limits = "undefined" if line.low is None else f"[{_number(line.low)}, {_number(line.high)}]"
        z = "" if line.z is None else f"{line.z:+.1f}"
        table.add_row(
            line.group, line.setting, line.policy, str(line.generation), _number(line.published), _number(line.measured),
            limits, z, line.note,
        )  # fmt: skip
    console = _console()
    console.print(table)
    scored = [abs(line.z) for line in lines if line.z is not None]
    if scored:
        within = sum(z < 2 for z in scored)
        console.print(f"{within} of {len(scored)} published numbers within |z| < 2, {sum(z >= 4 for z in scored)} at |z| >= 4.")
        console.print("Numbers of one table share seeds, so they are right or wrong together: z is for each alone.")


def print_list(kind: str | None) -> None:
    """Every component with the first line of its documentation, and the presets."""
    from selfloop.spec.write import summaries

    kinds = [*BUILT_IN, "preset"]
    plural = {"policies": "policy", "families": "family", "criteria": "criterion"}
    wanted = plural.get(kind or "", (kind or "").removesuffix("s")) if kind else None
    if wanted and wanted not in kinds:
        raise SpecError(unknown_name("list", kind or "", kinds))
    table = Table(box=None, pad_edge=False, show_header=False)
    for each in kinds if wanted is None else [wanted]:
        found = {name: _first_comment(entry) for name, entry in presets().items()} if each == "preset" else summaries(each)
        for i, (name, line) in enumerate(sorted(found.items()) if each == "preset" else found.items()):
            table.add_row(each if i == 0 else "", name, line)
    _console().print(table)


def _first_comment(entry: Any) -> str:
    first = entry.read_text(encoding="utf-8").split("\n")[0]
    return str(first.lstrip("# "))


def print_component(kind: str, name: str) -> None:
    """A component's documentation and settings."""
    from selfloop.spec.write import describe_settings

    if kind == "preset" and name in presets():
        _console().print(presets()[name].read_text(encoding="utf-8"), markup=False)
        return
    if kind not in BUILT_IN:
        raise SpecError(unknown_name("list", kind, [*BUILT_IN, "preset"]))
    text, settings = describe_settings(kind, name)
    console = _console()
    console.print(f"{kind} {name}\n\n{text}\n", markup=False)
    if settings:
        table = Table("setting", "type", "default", "meaning", box=None, pad_edge=False)
        for row in settings:
            table.add_row(*row)
        console.print(table, markup=False)


def _sparkline(values: Floats, width: int = 40) -> str:
    shown = [float(values[round(i)]) for i in np.linspace(0, len(values) - 1, min(len(values), width))]
    finite = [v for v in shown if v == v]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(BARS[round((v - low) / ((high - low) or 1) * 7)] if v == v else "×" for v in shown)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(estimate: float | None, low: float | None, high: float | None) -> str:
    if estimate is None:
        return "-"
    return f"x {estimate:.3g}" + (f" [{low:.3g}, {high:.3g}]" if low is not None and high is not None else "")
