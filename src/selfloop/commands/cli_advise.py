"""The commands `advise` and `web`, exact theory of policies and of many models, and what they print."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfloop.commands.options import JsonOption, QuietOption, SetOption, StoreOption, WorkersOption
from selfloop.commands.terminal import give_answer, show, show_progress
from selfloop.errors import SettingError, SpecError, shown
from selfloop.formats.json_lines import json_line
from selfloop.formats.replacing import check_outputs

if TYPE_CHECKING:
    from selfloop.theory.advice import Advice, AdviceRequest, PolicyAdvice
    from selfloop.theory.web import WebPrediction

QUANTITIES = {
    "error": "expected squared error of a mean, over that of generation 1",
    "variance": "expected variance at generation 1, over the present one",
    "symbols": "expected number of symbols in the model of generation 1, over the present one (upper bound)",
    "class": "chance of the class to be in the model of generation 1, over the present one (upper bound)",
}


def advise(
    spec: Annotated[str | None, typer.Argument(metavar="SPEC", help="Measure the share for this spec, by runs.")] = None,
    bound: Annotated[
        str, typer.Option(help="Largest multiplier, 1.1 or 10%; of a SPEC: largest excess over real rows.")
    ] = "5%",
    rows: Annotated[int | None, typer.Option(help="Real rows at the start. Required without SPEC.")] = None,
    generations: Annotated[int | None, typer.Option(help="Generations, the first on real rows only. Required too.")] = None,
    fresh_rows: Annotated[int, typer.Option(help="Fresh real rows of each later generation.")] = 0,
    synthetic_rows: Annotated[int | None, typer.Option(help="Rows sampled from each model. Default: as --rows.")] = None,
    protect: Annotated[str, typer.Option(help="error, variance, symbols or class.")] = "error",
    class_share: Annotated[float | None, typer.Option(help="With --protect class: true share of the class.")] = None,
    symbols: Annotated[int | None, typer.Option(help="With --protect symbols: how many, with probabilities 1 / rank.")] = None,
    removes_synthetic: Annotated[float, typer.Option(help="Share of synthetic rows that a detector removes.")] = 0.0,
    removes_real: Annotated[float, typer.Option(help="Share of real rows that the detector removes wrongly.")] = 0.0,
    vary: Annotated[str | None, typer.Option(metavar="POLICY.KEY", help="One policy only, such as mix.real_share.")] = None,
    between: Annotated[str | None, typer.Option(metavar="LOW..HIGH", help="Of a SPEC: values of --vary to search.")] = None,
    seeds: Annotated[int, typer.Option(min=3, help="Of a SPEC: seeds per share.")] = 12,
    json: JsonOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Rank policies by exact theory: the smallest real share that keeps the error within a bound, and its cost. Trains nothing.

    The multiplier is the value at the last generation over that at generation 1. If the origin of rows is unknown,
    --removes-synthetic and --removes-real are the rates of a detector that all rows pass before training.
    With a SPEC, shares near that of theory are run beside their controls (see `selfloop audit`) and bisected.

    Example: selfloop advise --rows 1000 --generations 20 --bound 1.1 --fresh-rows 100
    """
    check_outputs({"--json": json}, [] if spec is None else [Path(spec)])
    request = {
        "rows": rows, "generations": generations, "fresh_rows": fresh_rows, "synthetic_rows": synthetic_rows,
        "protect": protect, "class_share": class_share, "symbols": symbols, "removes_synthetic": removes_synthetic,
        "removes_real": removes_real,
    }  # fmt: skip
    if spec is None:
        if between is not None or set_:
            raise SpecError("advise: --between and --set change runs of a spec. Name a spec, or leave them out.")
        advice = _rank_policies({**request, "bound": parse_bound(bound), "vary": vary})
        give_answer(lambda: print_advice(advice), (json, json_line(advice)))
        return
    if any(value not in (None, 0, "error") for value in request.values()):
        raise SpecError("advise SPEC: rows, generations and the quantity are those of the spec. Change them with --set.")
    with show_progress(quiet) as progress:
        from selfloop.audit.run import AuditRunner
        from selfloop.audit.share import ShareSearch, measure_share
        from selfloop.spec.parse import read_spec

        runner = AuditRunner(store, workers, progress=progress, notify=None if progress is None else progress.note)
        search = ShareSearch(read_spec(spec, set_ or ()), runner, vary or "mix.real_share", bound, seeds)
        keep = measure_share(search, None if between is None else parse_range(between))
    give_answer(lambda: show(f"KEEP: {keep.text}"), (json, json_line(keep)))


def _rank_policies(request: Mapping[str, Any]) -> Advice:
    from selfloop.theory.advice import advise as rank_policies

    for name in ("rows", "generations"):
        if request[name] is None:
            raise SpecError(f"--{name}: missing. Give it, or name a spec whose share is to be measured.")
    try:
        return rank_policies(**request)
    except SettingError as problem:
        raise SpecError(f"--{problem.setting.replace('_', '-')}: {problem.problem}") from None


def parse_range(text: str) -> tuple[float, float]:
    """The two values of a text such as "0.2..0.8"."""
    low, dots, high = text.partition("..")
    try:
        return float(low), float(high if dots else "")
    except ValueError:
        raise SpecError(f"--between: got {shown(text)}; expected two values, such as 0..1. Correct it.") from None


def parse_bound(text: str) -> float:
    """A multiplier above 1: "1.1", or "10%" above 1. Raises SpecError."""
    try:
        value = 1 + float(text.strip()[:-1]) / 100 if text.strip().endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 1 < value < math.inf:
        raise SpecError(f"--bound: got {shown(text)}; expected a multiplier above 1, such as 1.1, or 10%. Raise it.")
    return value


def print_advice(advice: Advice) -> None:
    """The answer in one sentence, one row per policy, and the limits of the answer."""
    from selfloop.commands.console import show_table

    request = advice.request
    show(answer_sentence(advice))
    right = ("real rows", "synthetic", "multiplier", "real only", "trained", "sampled", "+100 rows", "+1 fresh row")
    rows = []
    for policy in advice.policies:
        counts = (f"{number:,}" for number in (policy.trained_rows, policy.sampled_rows))
        multipliers = format_multiplier(policy.multiplier, request.bound), f"{policy.control:.3g}"
        prices = (f"{price:+.2g}" for price in (policy.per_100_rows, policy.per_fresh_row))
        share = format_share(policy.real_share)
        rows.append((policy.policy, policy.answer, share, f"{policy.synthetic_rows:,}", *multipliers, *counts, *prices))
    show_table(("policy", "answer", *right), rows, right=right)
    for sentence in explanations(request):
        show(sentence)


def format_share(share: float) -> str:
    """A share in percent, rounded up: more real rows are never too few."""
    return f"{math.ceil(share * 1000 - 1e-6) / 10:g} %"


def format_multiplier(value: float, bound: float) -> str:
    """A multiplier with three digits, or as many as it takes to be on its side of the bound."""
    texts = (f"{value:.{digits}g}" for digits in range(3, 12))
    return next((text for text in texts if (float(text) > bound) == (value > bound * (1 + 1e-9))), f"{value:.12g}")


def answer_sentence(advice: Advice) -> str:
    """The first line: the smallest real share within the bound, of all policies."""
    request, best = advice.request, advice.policies[0]
    effect = (
        f"x{format_multiplier(best.multiplier, request.bound)} at generation {request.generations}, bound {request.bound:g}"
    )
    cost = f"{best.trained_rows:,} rows trained, {best.sampled_rows:,} sampled, {best.real_rows:,} real"
    if not best.is_within:
        return f"NONE: no policy keeps the {request.protect} within the bound; the nearest is {best.policy} ({effect})."
    answers = {
        "at least": f"KEEP: at least {format_share(best.real_share)} real rows in every training set",
        "within": f"KEEP: {format_share(best.real_share)} real rows, beside all {best.synthetic_rows:,} synthetic rows",
        "none needed": "KEEP: no real rows after generation 1",
    }
    return f"{answers[best.answer]}, under {best.policy}: {request.protect} {effect}; {cost}.{describe_detector(best, request)}"


def describe_detector(policy: PolicyAdvice, request: AdviceRequest) -> str:
    """The effect of a detector on the smallest share; empty without one."""
    if not (request.removes_synthetic or request.removes_real):
        return ""
    before = policy.share_without_detector
    without = "no share is enough" if before is None else f"{format_share(before)} are needed"
    return f" After the detector {100 * policy.share_after_detector:.1f} % of the rows are real; without it {without}."


def explanations(request: AdviceRequest) -> list[str]:
    return [
        "Ranked by the real share if within the bound, then by rows trained; the others by multiplier.",
        f"multiplier: {QUANTITIES[request.protect]}. real only: the same with fresh real rows in place of synthetic ones.",
        "real rows: share of the last training rows. trained, sampled: rows of all generations. +100 rows, +1 fresh row: "
        "change of the multiplier with 100 more real rows at the start, or 1 more in every later generation.",
        "Exact for models of a mean, a variance or symbol counts, whatever the data. Measure other models with selfloop audit.",
    ]


def web(
    scenario: Annotated[Path, typer.Argument(metavar="FILE", help="A TOML file of sources, model families and their pool.")],
    bound: Annotated[str | None, typer.Option(help="Search the real rows for this largest multiplier, 1.1 or 10%.")] = None,
    set_: SetOption = None,
    figure: Annotated[Path | None, typer.Option(help="Draw errors over generations to a file (.svg, .png or .pdf).")] = None,
    json: JsonOption = None,
) -> None:
    """Simulate a web: families of models that publish rows into one pool and train on it. Exact moments, or simulated webs.

    Example: selfloop web flood.toml --bound 2 --set families.large.removes_synthetic=0.9
    """
    from selfloop.theory.web import needed_real_rows, predict_web, read_web

    check_outputs({"--figure": figure, "--json": json}, [scenario])
    limit, parsed = None if bound is None else parse_bound(bound), read_web(scenario, set_ or ())
    prediction, need, sentence = predict_web(parsed), None, ""
    if limit is not None:
        share, factor = needed_real_rows(parsed, limit)
        need = {"bound": limit, "real_share": share, "fresh_factor": factor}
        of_share, of_factor = "no share is enough", "no factor up to 100 is enough"
        if share is not None:
            least = f"about {100 * share:.0f} %" if prediction.seeds else f"at least {format_share(share)}"
            of_share = f"{least} of every training set"
        if factor is not None:
            of_factor = f"{f'about {factor:.2g}' if prediction.seeds else f'{factor:.3g}'} times those of later generations"
        sentence = f"REAL ROWS within {limit:g}: with known origin, {of_share}; as it is ({parsed.origin} origin), {of_factor}."
    give_answer(lambda: print_web(prediction, sentence, figure), (json, json_line({"prediction": prediction, "need": need})))


def print_web(prediction: WebPrediction, sentence: str, figure: Path | None) -> None:
    """One table per reader, the largest multiplier, and the real rows that are needed."""
    from selfloop.commands.console import draw, show_table
    from selfloop.report.picture_grid import select_generations

    seeds, webs, error = prediction.seeds, prediction.standard_error, prediction.error
    kind = f"means of {seeds} simulated webs ± their standard errors" if seeds else "exact expectations"
    show(f"Squared errors of a mean over the true variance, biases in true standard deviations; {kind}.")
    columns = ("generation", "real share", "bias", "error", "shared error", "variance")
    values = [prediction.real_share, prediction.bias, error, prediction.shared_error, prediction.variance]
    for g, name in enumerate(prediction.readers):
        rows = [[str(t + 1), *(f"{of_value[t, g]:.4g}" for of_value in values)] for t in select_generations(range(len(error)))]
        for row in rows if seeds else ():
            row[3] += f" ± {webs[int(row[0]) - 1, g]:.1g}"
        show_table(columns, rows, name, columns)
    t, g = divmod(int(prediction.multiplier.argmax()), prediction.multiplier.shape[1])
    largest = f"{prediction.multiplier[t, g]:.4g}"
    if seeds:  # the relative errors of both, as if they were independent
        spread = math.hypot(webs[t, g] / error[t, g], webs[0, g] / error[0, g])
        largest += f" ± {prediction.multiplier[t, g] * spread:.1g}"
    show(f"largest error: {largest} times that of generation 1 ({prediction.readers[g]}, {t + 1}).")
    if sentence:
        show(sentence)
    draw("error", dict(zip(prediction.readers, error.T, strict=True)), figure)
