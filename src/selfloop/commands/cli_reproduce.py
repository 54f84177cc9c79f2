"""The command `reproduce` and what it prints."""

from __future__ import annotations

import json as json_lines
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfloop.commands.options import QuietOption, StoreOption, store_at
from selfloop.commands.progress import show_progress
from selfloop.commands.terminal import show
from selfloop.errors import SpecError
from selfloop.formats.replacing import check_outputs, write_text

if TYPE_CHECKING:
    from selfloop.commands.published_values import ReproducedValue
    from selfloop.commands.reproduce import JudgedClaim


def reproduce(
    paper: Annotated[str | None, typer.Argument(help="A paper, such as kazdan2025, or a TOML file of claims.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show papers, claims and recorded answers.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Judge the claims of all papers.")] = False,
    budget: Annotated[str | None, typer.Option(help="Run the shortest claims that fit into this time, such as 15m.")] = None,
    only: Annotated[str | None, typer.Option(help="Claims (with --values: groups of values), comma-separated.")] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write one JSON object per claim; - is stdout.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim recorded as holding does not.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="Run the planted wrong runs, in which no claim may hold.")] = False,
    data: Annotated[Path, typer.Option(help="Folder of data sets that some claims need.")] = Path(),
    values: Annotated[bool, typer.Option("--values", help="Measure the values that a paper printed.")] = False,
    scale: Annotated[str, typer.Option(help="Of values: paper (its number of seeds), small (20), or a number.")] = "paper",
    store: StoreOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the claims of a paper and answer each: holds, does not hold, or undecided. Exit code 0 whatever the answers.

    Example: selfloop reproduce gerstgrasser2024
    """
    from selfloop.commands.published_values import reproduce_values
    from selfloop.commands.reproduce import judge_claims, lost_claims, select_claims

    names = [name.strip() for name in only.split(",")] if only else ()
    if list_:
        print_papers()
        return
    if (paper is None) == (not all_):
        raise SpecError("reproduce: name a paper of `selfloop reproduce --list`, or give --all.")
    if values:
        if paper is None or json or budget or strict or wrong:
            raise SpecError("reproduce --values: is of one paper, without --json, --budget, --strict and --wrong.")
        with show_progress(quiet) as progress:
            measured = reproduce_values(paper, names or None, scale=scale, store=store_at(store), progress=progress)
        print_values(measured)
        return
    claims = select_claims(paper, names, budget)
    if not claims:
        raise SpecError("reproduce: no claim fits. Raise --budget, or name a paper with claims (selfloop reproduce --list).")
    check_outputs({"--json": json}, [])
    with show_progress(quiet, "claims") as progress:
        notify = None if progress is None else progress.note
        judged = [*judge_claims(claims, store=store_at(store), data=data, wrong=wrong, progress=progress, notify=notify)]
    lines = "".join(json_lines.dumps(each.to_json()) + "\n" for each in judged)
    if json == "-":
        sys.stdout.write(lines)
    else:
        print_claims(judged)
        if json:
            write_text(Path(json), lines)
    if strict and (lost := lost_claims(judged)):
        sys.stderr.write(f"selfloop: recorded as holding, and does not hold now: {', '.join(lost)}.\n")
        raise typer.Exit(1)


def print_claims(judged: Sequence[JudgedClaim]) -> None:
    """One line per claim, and how many have which answer."""
    from selfloop.commands.console import format_limits, format_number, format_table

    columns = ("claim", "answer", "measured", "99 % interval", "expected", "t", "s", "the paper claims")
    table = format_table(*columns, right=("measured", "t", "s"))
    for item in judged:
        numbers, sentence = [""] * 5, item.reason
        if item.judgment:
            measured, t = item.judgment.measured, str(item.judgment.generation)
            numbers = [format_number(measured.estimate), format_limits(measured), item.expected, t, f"{item.seconds:.1f}"]
            sentence = item.claim.sentence + (f" ({item.reason})" if item.reason else "")
        table.add_row(item.claim.key(), item.answer, *numbers, sentence)
    show(table)
    counts = Counter(item.answer for item in judged)
    show(f"{len(judged)} claims: {', '.join(f'{count} {answer}' for answer, count in counts.most_common())}.")


def print_values(values: Sequence[ReproducedValue]) -> None:
    """One line per published value, and the number of values within 2 and beyond 4 standard errors."""
    from selfloop.commands.console import format_limits, format_number, format_table
    from selfloop.commands.published_values import MIN_SEEDS

    columns = ("group", "scenario", "policy", "t", "published", "measured", "interval", "z", "note")
    table = format_table(*columns, right=("t", "published", "measured", "z"))
    for value in values:
        z = "" if value.z is None else f"{value.z:+.1f}"
        numbers = format_number(value.published), format_number(value.measured.estimate), format_limits(value.measured), z
        table.add_row(value.group, value.scenario, value.policy, str(value.generation), *numbers, value.note)
    show(table)
    scores = [abs(value.z) for value in values if value.z is not None]
    if scores:
        within = sum(z < 2 for z in scores)
        show(f"{within} of {len(scores)} published values within |z| < 2, {sum(z >= 4 for z in scores)} at |z| >= 4.")
        if any(value.measured.n < MIN_SEEDS for value in values):
            show(f"Standard errors from fewer than {MIN_SEEDS} seeds are uncertain: every |z| is rough.")
        show("Values of one table come from the same seeds, so their errors are correlated. Each z refers to one value.")


def print_papers() -> None:
    """Every paper with its claims, their recorded answers and minutes, and the groups of values that `--values` can run."""
    from selfloop.commands.console import format_table
    from selfloop.commands.published_values import reproducible_groups
    from selfloop.commands.reproduce import recorded_answers
    from selfloop.published.papers import papers

    table = format_table("paper", "claim", "recorded", "minutes", "the paper claims", right=("minutes",))
    for name, paper in papers().items():
        title = f"{paper.title}, arXiv {paper.arxiv}" if paper.arxiv else paper.title
        groups = f"; values: {', '.join(groups)}" if (groups := reproducible_groups(paper)) else ""
        table.add_row(name, "", "", "", title + groups)
        for claim in paper.claims:
            answer = recorded_answers().get(claim.key(), {}).get("answer", "not run")
            table.add_row("", claim.name, str(answer), f"{claim.minutes:g}", claim.sentence)
    show(table)
    claims = [claim for paper in papers().values() for claim in paper.claims]
    show(f"{len(papers())} papers, {len(claims)} claims, {sum(claim.minutes for claim in claims):.0f} minutes on two cores.")
