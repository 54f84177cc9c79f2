"""The command `audit`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfloop.commands.options import QuietOption, SetOption, StoreOption, ThreadsOption, WorkersOption
from selfloop.commands.terminal import show, show_activity, show_progress
from selfloop.errors import SpecError
from selfloop.formats.replacing import check_outputs, write_text

if TYPE_CHECKING:
    from selfloop.audit.answer import Audit


def audit(
    spec: Annotated[
        str | None, typer.Argument(metavar="SPEC|TABLE", help="A TOML file, a preset, or a CSV, Parquet or JSONL.")
    ] = None,
    command: Annotated[str | None, typer.Option(metavar="SPEC", help="A TOML file with the family `command`.")] = None,
    model: Annotated[str | None, typer.Option(help="A Hugging Face causal LM: a folder, or name@commit.")] = None,
    data: Annotated[str | None, typer.Option(help="Of --model: JSON lines or text to fine-tune it on.")] = None,
    template: Annotated[str | None, typer.Option(help='Of --data: such as "user: {q}\\nassistant: {a}".')] = None,
    lora: Annotated[int | None, typer.Option(metavar="RANK", help="Of --model: train adapters of this rank.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of --model: temperature of its samples.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of --model: probability of the tokens that may be drawn.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help='A policy, such as "mix(real_share=0.3)"; repeatable.')] = None,
    bound: Annotated[str | None, typer.Option(help="Largest harmless excess: 2%, 0.05nats or 0.05abs. Default: 5%.")] = None,
    metric: Annotated[str | None, typer.Option(help="The risk to audit. Default: the first of which lower is better.")] = None,
    generations: Annotated[int | None, typer.Option(min=2, help="Generations. Default: those of the spec, else 4.")] = None,
    looks: Annotated[str, typer.Option(help="Numbers of seeds after which to look at the answer.")] = "5,8,12",
    budget: Annotated[str | None, typer.Option(help="Stop after this time, such as 2h.")] = None,
    max_generations: Annotated[int | None, typer.Option(min=1, help="Stop before more fits than these, in all.")] = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="If it degrades, measure the real rows to keep.")] = True,
    vary: Annotated[str | None, typer.Option(help="Of --keep: mix.real_share, augment.ratio or fresh.ratio.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the page of the audit to this file.")] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the answer as JSON; - is stdout.")] = None,
    spec_out: Annotated[Path | None, typer.Option(help="Write the spec that is run, for `selfloop run`.")] = None,
    allow_undecided: Annotated[bool, typer.Option("--allow-undecided", help="Exit with 0 in place of 4.")] = False,
    set_: SetOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Answer whether a loop gets worse on its own output than on real rows, by how much, in what, and how much real data helps.

    Exit code 0: within the bound; 3: degrades; 4: undecided or not auditable; 2: a mistake to correct. Running again, or with
    more seeds or policies, reuses stored steps.

    Example: selfloop audit table.csv --bound 2% --report audit.html
    """
    from selfloop.audit.design import design_audit, parse_looks, parse_seconds
    from selfloop.audit.entries import AuditEntry
    from selfloop.audit.run import AuditRunner, run_audit
    from selfloop.audit.share import VARIED_SETTINGS, add_share
    from selfloop.errors import unknown_name
    from selfloop.protocols import ControlsPolicy
    from selfloop.spec.components import make_component
    from selfloop.spec.write import spec_text
    from selfloop.store.inputs import inputs_of

    if vary is not None and vary not in VARIED_SETTINGS:
        raise SpecError(unknown_name("--vary", vary, VARIED_SETTINGS, "setting"))
    entry = AuditEntry(
        spec=spec, command=command, model=model, data=data, template=template, lora=lora, temperature=temperature, top_p=top_p
    )
    seconds = parse_seconds(budget) if budget else None
    policies = [make_component("policy", text, "--policy") for text in policy or ()]
    with show_activity(quiet, "reading the data"):
        opened = entry.open(generations, [each for each in policies if not isinstance(each, ControlsPolicy)], set_ or [])
        design = design_audit(opened, policies, bound=bound, looks=parse_looks(looks), metric=metric)
    inputs = [file for file in inputs_of(design.spec) if isinstance(file, Path)]
    check_outputs({"--report": report, "--json": json, "--spec-out": spec_out}, [Path(entry.name()), *inputs])
    if spec_out:
        write_text(spec_out, spec_text(design.spec))
    with show_progress(quiet) as progress:
        notify = None if progress is None else progress.note
        runner = AuditRunner(store, workers, threads, seconds, max_generations, progress, notify)
        answer = run_audit(design, runner)
        if keep:
            answer = add_share(answer, design, runner, vary)
    _write_answer(answer, report, json, quiet)
    if answer.exit_code and not (answer.exit_code == 4 and allow_undecided):
        raise typer.Exit(answer.exit_code)


def _write_answer(answer: Audit, report: Path | None, json: str | None, quiet: bool) -> None:
    from selfloop.audit.answer import audit_to_json, first_screen

    text = audit_to_json(answer) + "\n"
    if json == "-":
        sys.stdout.write(text)
    elif json:
        write_text(Path(json), text)
    with redirect_stdout(sys.stderr if json == "-" else sys.stdout):
        show(first_screen(answer))
        if report:
            with show_activity(quiet, "writing the page"):
                from selfloop.report.audit_page import render_audit_page

                write_text(report, render_audit_page(answer))
            show(f"report: {report.resolve()}")
