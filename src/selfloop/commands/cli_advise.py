"""The command `advise` and what it prints."""

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

QUANTITIES = {
    "error": "expected squared error of a mean, over that of generation 1",
    "variance": "expected variance at generation 1, over the present one",
    "symbols": "expected number of symbols in the model of generation 1, over the present one (upper bound)",
    "class": "chance of the class to be in the model of generation 1, over the present one (upper bound)",
}


def advise(
    spec: Annotated[str | None, typer.Argument(metavar="SPEC", help="Measure the share for this spec, by runs.")] = None,
    bound: Annotated[str, typer.Option(help="Largest multiplier, 1.1 or 10%; of a SPEC: largest excess.")] = "5%",
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
    value = format_multiplier(best.multiplier, request.bound)
    effect = f"x{value} at generation {request.generations}, bound {request.bound:g}"
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
