"""The tables and sentences that the command line prints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from rich.table import Table

from selfloop.columns import Floats
from selfloop.commands.terminal import show
from selfloop.component import Better
from selfloop.notebook import format_seconds
from selfloop.protocols import SupportsStepCount
from selfloop.report.theme import describe_better, describe_change, describe_coordinates, format_count, sparkline
from selfloop.types import Answer

if TYPE_CHECKING:
    from selfloop.commands.gc import Garbage
    from selfloop.commands.plan import PolicyCost
    from selfloop.commands.verify import Verification
    from selfloop.result import Result
    from selfloop.settings import SettingInfo
    from selfloop.spec.spec import Spec
    from selfloop.theory.moments import NoiseLedger, PolicyPrediction

MAX_VERDICT_COLUMNS = 8  # policies side by side; for more policies, verdicts are counted
MAX_SEEDS_SHOWN = 20  # of a plan, by their numbers
MAX_LEDGER_ROWS, MAX_LEDGER_COLUMNS = 12, 8  # of one kind of noise; older and newer sources are added up
MAX_SCHEDULE_COLUMNS = 4  # generations whose training rows `plan` prints


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, right: Sequence[str] = ()
) -> None:
    """Print a table that cuts nothing off; columns named in `right` hold numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        is_right = column in right
        table.add_column(column, justify="right" if is_right else "left", no_wrap=is_right, overflow="fold")  # cuts nothing off
    for row in rows:
        table.add_row(*row)
    show(table)


def print_summary(result: Result) -> None:
    """First and last value of each metric per policy with intervals, the findings in words, and the verdicts."""
    from selfloop.report.findings import findings
    from selfloop.report.notes import data_notes, missing_values

    for sentence in missing_values(result):
        show(sentence)
    for point in result.points:
        spec, last = point.spec, f"t = {point.spec.generations}"
        title = f"{spec.family.name} on {spec.source.name}, n = {point.n}, {format_count(len(spec.seeds), 'seed')}"
        title += f"; {describe_coordinates(point.coordinates)}" if point.coordinates else ""
        columns = ("policy", "metric", "t = 1", last, "change (95 %)", "curve")
        rows = [
            (policy, metric, *_summary_cells(measured[metric], positive=metric in spec.positive_metrics()))
            for policy, measured in result.curves(point.coordinates).items()
            for metric in (metric.name for metric in spec.metrics if metric.name in measured)  # without secondary values
        ]
        show_table(columns, rows, title, columns[2:5])
    for sentence in dict.fromkeys(findings(result)):
        show(f"- {sentence}")
    _print_verdicts(result)
    for sentence in data_notes(result):
        show(sentence)
    usages = [("generation 1, shared by all policies,", result.shared)]
    usages += [(label, result.usage[label]) for label in result.spec.policy_labels()]
    times = [f"{name} {format_seconds(usage.seconds)}" for name, usage in usages if usage.computed]
    show(f"Computing time: {'; '.join(times)}." if times else "Everything was stored already; nothing was computed.")


def _summary_cells(curves: Floats, *, positive: bool) -> tuple[str, str, str, str]:
    from selfloop.stats.intervals import mean_interval

    survivors = int((curves[:, -1] == curves[:, -1]).sum())  # NaN is not equal to itself
    last = format_number(mean_interval(curves[:, -1]).estimate)
    if survivors < len(curves):
        last = f"{survivors} of {len(curves)} chains left"
    change = " ".join(describe_change(curves, positive=positive)).strip() or "-"
    return format_number(mean_interval(curves[:, 0]).estimate), last, change, sparkline(curves.mean(axis=0))


def _print_verdicts(result: Result) -> None:
    verdicts = result.verdicts()
    keys = list(dict.fromkeys((v.coordinates, v.policy) for v in verdicts))
    criteria = list(dict.fromkeys(v.criterion for v in verdicts))
    if len(keys) > MAX_VERDICT_COLUMNS:
        labels, counts = list(get_args(Answer)), Counter((v.criterion, v.answer) for v in verdicts)
        rows = [[criterion, *(str(counts[criterion, answer]) for answer in labels)] for criterion in criteria]
    else:
        labels = [policy + "".join(f" {key}={value}" for key, value in coordinates) for coordinates, policy in keys]
        answers = {(v.criterion, v.coordinates, v.policy): v.answer for v in verdicts}
        rows = [[criterion, *(answers.get((criterion, *key), "") for key in keys)] for criterion in criteria]
    show_table(["criterion", *labels], rows, "verdicts: is it collapse?")


def print_plan(spec: Spec, costs: Sequence[PolicyCost]) -> None:
    from selfloop.commands.plan import describe_total
    from selfloop.report.notes import describe_mixed_backends

    columns = ["point", "policy", "chains", "generations", "stored", "estimated time left"]
    columns += [f"training {spec.unit}, t = 1, 2, ...", *["training steps"] * isinstance(spec.family, SupportsStepCount)]
    rows = []
    for cost in costs:
        visible = [_first_numbers(numbers) for numbers in (cost.trained_rows, cost.training_steps) if numbers]
        seconds = "unknown" if cost.seconds is None else f"{cost.seconds:.1f} s"
        counts = str(cost.chains), str(cost.generations), str(cost.stored)
        rows.append((describe_coordinates(cost.coordinates), cost.policy, *counts, seconds, *visible))
    first = spec.points()[0]
    seeds = f"seeds {list(spec.seeds)}" if len(spec.seeds) <= MAX_SEEDS_SHOWN else f"{len(spec.seeds)} seeds"
    sizes = f"n = {first.n}, holdout = {first.holdout}, {seeds}"
    show(f"{first.spec.family.name} on {first.spec.source.name}: {sizes}")
    show_table(columns, rows, right=columns[2:])
    lengths = [cost.tokens_per_row for cost in costs if math.isfinite(cost.tokens_per_row)]
    if lengths and spec.unit == "rows":
        show(f"Training steps hold if sampled rows have as many tokens as real ones, {lengths[0]:.0f} on average.")
    show(describe_total(costs))
    for sentence in describe_mixed_backends(dict.fromkeys(backend for cost in costs for backend in sorted(cost.backends))):
        show(sentence)


def _first_numbers(numbers: Sequence[float]) -> str:
    if any(map(math.isnan, numbers)):
        return "by tokens (--measure)"
    visible = [f"{number:,.0f}" for number in numbers[:MAX_SCHEDULE_COLUMNS]]
    return ", ".join([*visible, *(["..."] if len(numbers) > MAX_SCHEDULE_COLUMNS else [])])


def print_verification(verification: Verification) -> None:
    from selfloop.report.notes import describe_mixed_backends

    for file in verification.damaged:
        show(f"damaged: {file}")
    for sentence in verification.wrong:
        show(f"wrong: {sentence}")
    for sentence in (*verification.not_compared, *describe_mixed_backends(verification.backends)):
        show(sentence)
    if verification.skipped:
        show(f"{verification.skipped} records of programs that are not reproducible are not recomputed.")
    compared = verification.checked - len(verification.not_compared)
    close = f"; {verification.close} of them within the tolerance between backends" if verification.close else ""
    agreeing = compared - len(verification.wrong)
    show(f"{agreeing} of {compared} recomputed records agree ({verification.records} stored){close}.")


def print_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (r["name"], r["last"][:16].replace("T", " "), f"{r['records']:,}", f"{r['bytes'] / 1e6:,.1f}", r["title"]) for r in runs
    ]
    if rows:
        show_table(("run", "last", "records", "MB", ""), rows, right=("records", "MB"))
    else:
        show("no run is listed.")


def print_garbage(garbage: Garbage) -> None:
    for reason, files in garbage.items():
        counted = format_count(len(files), "file") if reason.startswith("run ") else f"{len(files):,}"
        show(f"{reason}: {counted} ({sum(files.values()) / 1e6:,.1f} MB)")
    if not garbage:
        show("nothing to delete.")


def print_predictions(predictions: Mapping[str, PolicyPrediction], n: int, figure: Path | None) -> None:
    show(f"Mean and variance of n = {n} rows by maximum likelihood; exact expectations.")
    columns = ("generation", "rows", "real mass", "data age", "error multiplier", "variance ratio")
    forms = {"generation": "", "trained_rows": ",", "real_mass": ".3f", "data_age": ".2f", "mean_error_multiplier": ".4f"}
    forms["variance_ratio"] = ".4f"
    for name, prediction in predictions.items():
        values = zip(*(getattr(prediction, field) for field in forms), strict=True)
        show_table(columns, ([*map(format, row, forms.values())] for row in values), name, columns)
    curves = {name: prediction.mean_error_multiplier for name, prediction in predictions.items()}
    draw("error multiplier (times 1 / n)", curves, figure)


def print_ledgers(ledgers: Mapping[str, NoiseLedger], figure: Path | None) -> None:
    """What each source of noise adds to the error multiplier of models, as tables: a row per source, a column per model."""
    from selfloop.report.picture_grid import select_generations

    if not ledgers:
        show("no law follows from moments: there is no noise ledger.")
        return
    show("n x expected squared error of the mean over the true variance, by the noise that it comes from; exact expectations.")
    for name, ledger in ledgers.items():
        values = ledger.n * ledger.squared_error
        models = select_generations(range(1, len(values) + 1), MAX_LEDGER_COLUMNS)
        columns, rows = [f"t = {t}" for t in models], []
        for kind in dict.fromkeys(source.kind for source in ledger.sources):
            own = [i for i, source in enumerate(ledger.sources) if source.kind == kind]
            for group in filter(len, np.array_split(own, min(len(own), MAX_LEDGER_ROWS))):
                first, last = (ledger.sources[i].born for i in (group[0], group[-1]))
                label = f"{kind}({first})" if first == last else f"{kind}({first}..{last})"
                used_from = first + (kind == "synthetic")
                rows.append([label, *(f"{values[t - 1, group].sum():.4f}" if t >= used_from else "" for t in models)])
        rows.append(["all", *(f"{values[t - 1].sum():.4f}" for t in models)])
        show_table(["noise of", *columns], rows, name, columns)
    if figure is not None:
        from selfloop.report.build import save_ledgers

        save_ledgers(figure, ledgers)
        show(f"figure: {figure}")


def spec_laws(spec: Spec) -> list[dict[str, Any]]:
    """Policy, coordinates and laws that apply of every policy at every point, given the rows of the run if they need them."""
    from selfloop.theory.laws.design import point_laws

    return [
        {"policy": label, "coordinates": point.coordinates, "laws": point_laws(point, policy)}
        for point in spec.points()
        for label, policy in zip(point.spec.policy_labels(), point.spec.policies, strict=True)
    ]


def spec_ledgers(spec: Spec) -> Mapping[str, NoiseLedger]:
    """The noise ledgers of all policies whose laws follow from moments, by policy and point."""
    from selfloop.report.build import point_ledgers

    return {
        f"{label}; {describe_coordinates(point.coordinates)}" if point.coordinates else label: ledger
        for point in spec.points()
        for label, ledger in point_ledgers(point).items()
    }


def print_laws(spec: Spec, point_laws: Sequence[Mapping[str, Any]], figure: Path | None) -> None:
    plotted: dict[str, dict[str, Floats]] = {}
    for of_policy in point_laws:
        title = "; ".join(filter(None, (of_policy["policy"], describe_coordinates(of_policy["coordinates"]))))
        if not of_policy["laws"]:
            show(f"{title}: no law applies to {spec.family.name} on {spec.source.name}.")
        for law in of_policy["laws"]:
            show(f"{title}: {law.metric}, {law.kind}: {law.law} ({law.source}). {law.conditions}")
            show("  " + "  ".join(f"{value:.5g}" for value in law.values))
            if law.kind != "bound":
                plotted.setdefault(law.metric, {})[title] = law.values
    for metric, curves in plotted.items():
        draw(metric, curves, figure and (figure.with_stem(f"{figure.stem}-{metric}") if len(plotted) > 1 else figure))


def draw(title: str, curves: Mapping[str, Floats], figure: Path | None) -> None:
    if figure is not None:
        from selfloop.report.build import save_curves

        save_curves(figure, title, curves)
        show(f"figure: {figure}")


def print_comparison(metric: str, better: Better, differences: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    columns = ("first minus second", "generation", "difference", "interval", "first is")
    title = "; ".join(filter(None, (f"{metric}: differences seed by seed, 95 %", describe_better(better))))
    rows = []
    for difference in differences:
        seeds = f" (unpaired, {difference['first_seeds']} and {difference['second_seeds']} seeds)" * (not difference["paired"])
        pair = f"{difference['first']} - {difference['second']}{seeds}"
        t, first_is = difference["generation"], difference["first_is"]
        limits = "-" if first_is == "equal" else format_limits(difference["low"], difference["high"])
        rows.append((pair * (t == 1), str(t), format_number(difference["difference"]), limits, first_is))
    for sentence in notes:
        show(sentence)
    show_table(columns, rows, title)
    show("Directions are corrected: over all differences and generations, any of them is false with at most 5 %.")
    show("Each interval is of its row alone, so that it may exclude 0 where the direction is undecided.")
    show("An order in `selfloop run` is one claim on all its generations, not corrected over them: it may hold all the same.")


def format_number(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def format_limits(low: float | None, high: float | None) -> str:
    return "undefined" if low is None else f"[{format_number(low)}, {format_number(high)}]"


def print_list(summaries: Mapping[str, Mapping[str, str]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for kind, lines in summaries.items():
        for i, (name, line) in enumerate(lines.items()):
            table.add_row(kind if i == 0 else "", name, line)
    show(table)


def print_component(title: str, text: str, settings: Sequence[SettingInfo]) -> None:
    show(f"{title}\n\n{text}\n")
    if settings:
        show_table(("setting", "type", "default", "description"), settings)
