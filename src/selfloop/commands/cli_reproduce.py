"""The command `reproduce` and what it prints."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfloop.commands.options import QuietOption, StoreOption, store_at
from selfloop.commands.terminal import give_answer, show, show_progress
from selfloop.errors import SpecError
from selfloop.formats.json_lines import json_line
from selfloop.formats.replacing import check_outputs

if TYPE_CHECKING:
    from selfloop.commands.reproduce import JudgedClaim, ReproducedValue


def reproduce(
    paper: Annotated[str | None, typer.Argument(help="A paper, such as kazdan2025, or a TOML file of claims.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show papers, claims and recorded answers.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Judge the claims of all papers.")] = False,
    budget: Annotated[str | None, typer.Option(help="Run the shortest claims that fit into this time, such as 15m.")] = None,
    only: Annotated[str | None, typer.Option(help="Claims (with --values: groups of values), comma-separated.")] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write one JSON object per claim; - is stdout.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim that is recorded as holding fails.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="Run the planted wrong runs, in which no claim may hold.")] = False,
    data: Annotated[Path, typer.Option(help="Folder of the data sets that a claim may name.")] = Path(),
    values: Annotated[bool, typer.Option("--values", help="Measure the values that a paper printed.")] = False,
    scale: Annotated[str, typer.Option(help="Of values: paper (its number of seeds), small (20), or a number.")] = "paper",
    store: StoreOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the claims of a paper and answer each: holds, does not hold, or undecided. Exit code 0 whatever the answers.

    Example: selfloop reproduce gerstgrasser2024
    """
    from selfloop.commands.reproduce import judge_claims, lost_claims, select_claims

    if list_:
        print_papers(paper)
        return
    if bool(paper) == all_:
        raise SpecError("reproduce: name a paper of `selfloop reproduce --list`, or give --all, and not both.")
    names = [part.strip() for part in only.split(",")] if only is not None else []
    if values:
        if not paper or json or budget or strict or wrong:
            raise SpecError("reproduce --values: is of one paper, without --json, --budget, --strict and --wrong.")
        _reproduce_values(paper, names, scale, store, quiet)
        return
    claims = select_claims(paper, names, budget)
    check_outputs({"--json": json}, [])
    judged: list[JudgedClaim] = []
    try:
        with show_progress(quiet, "claims") as progress:
            notify = None if progress is None else progress.note
            for item in judge_claims(claims, store=store_at(store), data=data, wrong=wrong, progress=progress, notify=notify):
                judged.append(item)
    except BaseException:  # an interrupted run shows the answers that it has, and replaces no file of all of them
        if judged and json != "-":
            print_claims(judged)
        raise
    give_answer(lambda: print_claims(judged), (json, "".join(json_line(item.to_json()) for item in judged)))
    if strict and (lost := lost_claims(judged, wrong=wrong)):
        reason = "the planted wrong run does not fail" if wrong else "recorded as holding, and does not hold now"
        sys.stderr.write(f"selfloop: {reason}: {', '.join(lost)}.\n")
        raise typer.Exit(1)


def _reproduce_values(paper: str, groups: list[str], scale: str, store: str | None, quiet: bool) -> None:
    from selfloop.commands.reproduce import reproduce_values

    with show_progress(quiet) as progress:
        measured = reproduce_values(paper, groups or None, scale=scale, store=store_at(store), progress=progress)
    if not measured:
        raise SpecError(f"reproduce {paper} --values: this paper has no values that can be measured here. Leave --values out.")
    print_values(measured)


def print_claims(judged: Sequence[JudgedClaim]) -> None:
    from selfloop.commands.console import format_limits, format_number
    from selfloop.report.theme import format_count

    for item in judged:
        numbers, note = "", item.reason or item.claim.explanation
        if item.judgment:
            measured, t = item.judgment.measured, item.judgment.generation
            limits = format_limits(measured.low, measured.high)
            numbers = f" {format_number(measured.estimate)} {limits}, expected {item.expected}"
            numbers += f" ({item.claim.describe_statistic()}, t = {t}; {item.seconds:.1f} s)"
        show(f"{item.answer}: {item.claim.key()}{numbers}. {item.claim.sentence}{f' ({note})' if note else ''}")
    counts = Counter(item.answer for item in judged).most_common()
    answers = ", ".join(f"{answer} {count}" for answer, count in counts)
    show(
        f"{format_count(len(judged), 'claim')}: {answers}. Intervals have 99 %; t is the generation nearest to another answer."
    )


def print_values(values: Sequence[ReproducedValue]) -> None:
    from selfloop.commands.console import format_limits, format_number, show_table
    from selfloop.commands.reproduce import MIN_SEEDS

    columns = ("group", "scenario", "policy", "t", "published", "measured", "interval", "z", "note")
    rows = []
    for value in values:
        z = "" if value.z is None else f"{value.z:+.1f}"
        limits = format_limits(value.measured.low, value.measured.high)
        numbers = format_number(value.published), format_number(value.measured.estimate), limits, z
        rows.append((value.group, value.scenario, value.policy, str(value.generation), *numbers, value.note))
    show_table(columns, rows, right=("t", "published", "measured", "z"))
    scores = [abs(value.z) for value in values if value.z is not None]
    if scores:
        within = sum(z < 2 for z in scores)
        show(f"{within} of {len(scores)} published values within |z| < 2, {sum(z >= 4 for z in scores)} at |z| >= 4.")
        if any(value.measured.n < MIN_SEEDS for value in values):
            show(f"Standard errors from fewer than {MIN_SEEDS} seeds are uncertain: every |z| is rough.")
        show("Values of one table come from the same seeds, so their errors are correlated. Each z refers to one value.")


def print_papers(name: str | None = None) -> None:
    """A paper, or every one: its claims with recorded answer and minutes, and the groups that `--values` can run."""
    from selfloop.commands.reproduce import recorded_answers, reproducible_groups
    from selfloop.published.papers import find_paper, papers
    from selfloop.report.theme import format_count

    listed = [find_paper(name)] if name else list(papers().values())
    for paper in listed:
        title = f"{paper.title}, arXiv {paper.arxiv}" if paper.arxiv else paper.title
        groups = f"; values: {', '.join(groups)}" if (groups := reproducible_groups(paper)) else ""
        show(f"{paper.name}: {title}{groups}")
        for claim in paper.claims:
            answer = recorded_answers().get(claim.key(), {}).get("answer", "not run")
            show(f"  {claim.name} ({answer}, {claim.minutes:g} min): {claim.sentence}")
    claims = [claim for paper in listed for claim in paper.claims]
    papers_and_claims = f"{format_count(len(listed), 'paper')}, {format_count(len(claims), 'claim')}"
    show(f"{papers_and_claims}, at most {sum(claim.minutes for claim in claims):.0f} minutes on two cores.")
