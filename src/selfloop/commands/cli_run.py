"""The command `run`, its answer for continuous integration, and the parts that other commands share with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfloop.commands.options import (
    OnOption,
    QuietOption,
    SetOption,
    SpecArgument,
    StoreOption,
    ThreadsOption,
    WorkersOption,
    complete_criterion,
)
from selfloop.commands.terminal import show, show_activity, show_progress
from selfloop.errors import SpecError
from selfloop.formats.replacing import check_outputs, replace_file
from selfloop.trackers.tracker import split_tracker

if TYPE_CHECKING:
    from selfloop.result import Result
    from selfloop.spec.spec import Spec


def open_spec(name: str, overrides: list[str] | None) -> Spec:
    """The spec in a file, or the preset of that name, with the values of `--set`."""
    from selfloop.spec.parse import read_spec

    return read_spec(name, overrides or ())


def run_with_progress(
    name: str,
    set_: list[str] | None,
    store: str | None,
    workers: int | None,
    quiet: bool,
    threads: int | None = None,
    outputs: Mapping[str, Path | str | None] | None = None,
    fail_on: tuple[str, ...] = (),
    track: Sequence[str] = (),
    on: str | None = None,
    *,
    announce: bool = False,
) -> Result:
    """The result of a named spec. Outputs that replace a file it reads, and unknown criteria, are refused before any work.

    `announce`: print first how much is not stored, unless `quiet`.
    """
    with show_progress(quiet) as progress:
        from selfloop.commands.fail_on import select_verdicts
        from selfloop.partial import count_missing
        from selfloop.result import run as run_spec  # inside, as imports can take seconds
        from selfloop.store.inputs import inputs_of

        spec = open_spec(name, set_)
        files = inputs_of([spec, *(point.arrivals for point in spec.points())])
        check_outputs(outputs or {}, [Path(name), *(file for file in files if isinstance(file, Path))])
        select_verdicts(spec, fail_on)
        notify = None if progress is None else progress.note
        if progress and announce and (missing := count_missing(spec, store)):
            say = f"{missing:,} generations are not in the store: computing them (Ctrl-C ends it"
            sys.stderr.write(f"{name}: {say}; `selfloop report --partial {name}` shows those that are).\n")
        with redirect_stdout(sys.stderr) if on else nullcontext():  # Ray prints what dies
            return run_spec(spec, store, workers=workers, threads=threads, progress=progress, notify=notify, track=track, on=on)


def write_report_file(results: list[Result], path: Path, quiet: bool, title: str = "", figures: Path | None = None) -> None:
    with show_activity(quiet, "writing the report"):
        from selfloop.report.build import write_report

        file = write_report(results, path, title=title, figures=figures)
    show(f"report: {file.resolve()}")


def run(
    spec: SpecArgument,
    set_: SetOption = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write measurements, then verdicts, as JSON lines; - is stdout.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="CRITERION[:POLICY]",
            help="Exit with 3 if its verdict is yes, 4 if undecided; repeatable.",
            autocompletion=complete_criterion,
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER", help="Log to wandb[=PROJECT], mlflow[=URI], tensorboard=FOLDER, trackio[=PROJECT]; repeatable."
        ),
    ] = None,
    allow_undecided: Annotated[bool, typer.Option("--allow-undecided", help="With --fail-on: 0 in place of 4.")] = False,
    store: StoreOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    on: OnOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a spec. Stored results are reused.

    With --fail-on, the exit code answers for continuous integration: 0 for no, 3 for yes, 4 for undecided or not measured.
    CRITERION is a criterion of the spec, or `any` of those it measures. Without a POLICY, all that train on synthetic rows
    count, and so no control.

    Example: selfloop run digits.toml --set generations=3 --json measurements.jsonl
    """
    from selfloop.commands.console import print_summary
    from selfloop.commands.fail_on import EXIT_CODES, describe_answers, joint_answer, selected_verdicts
    from selfloop.formats.json_lines import write_measurements

    if allow_undecided and not fail_on:
        raise SpecError("--allow-undecided: changes nothing without --fail-on. Add --fail-on CRITERION, or leave it out.")
    for tracker in track or ():
        split_tracker(tracker)
    outputs, criteria = {"--json": json, "--report": report}, tuple(fail_on or ())
    try:
        result = run_with_progress(spec, set_, store, workers, quiet, threads, outputs, criteria, track or (), on)
    except KeyboardInterrupt:
        if files := [str(file) for file in (json, report) if file and file != "-"]:
            sys.stderr.write(f"selfloop: {' and '.join(files)} {'are' if len(files) > 1 else 'is'} not written.\n")
        raise
    if json == "-":
        write_measurements(result.measurements, sys.stdout.write, result.verdicts())
    elif json:
        with replace_file(json) as beside, beside.open("w", encoding="utf-8") as file:
            write_measurements(result.measurements, file.write, result.verdicts())
    with redirect_stdout(sys.stderr if json == "-" else sys.stdout):
        if json != "-":
            print_summary(result)
        if report:
            write_report_file([result], report, quiet)
        if criteria:
            verdicts = selected_verdicts(result, criteria)
            code = EXIT_CODES[joint_answer(verdicts)]
            code = 0 if allow_undecided and code != EXIT_CODES["yes"] else code
            show(describe_answers(verdicts, code))
            raise typer.Exit(code)
