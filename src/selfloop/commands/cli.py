"""The command line. Results go to standard output, progress and errors to standard error; a user's mistake exits with 2."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfloop.commands.cli_advise import advise
from selfloop.commands.cli_audit import audit
from selfloop.commands.cli_check import check
from selfloop.commands.cli_reproduce import reproduce
from selfloop.commands.cli_run import open_spec, run, run_with_progress, write_report_file
from selfloop.commands.cli_store import store as store_command
from selfloop.commands.cli_watch import watch
from selfloop.commands.cli_web import web
from selfloop.commands.options import (
    FigureOption,
    JsonOption,
    QuietOption,
    SetOption,
    SpecArgument,
    SpecsArgument,
    StoreOption,
    WorkersOption,
    complete_component,
    complete_kind,
    own_settings,
    store_at,
)
from selfloop.commands.terminal import give_answer, plain_problems, show, show_progress
from selfloop.errors import SpecError, unknown_name
from selfloop.formats.json_lines import json_line
from selfloop.formats.replacing import check_outputs, write_text

if TYPE_CHECKING:
    from selfloop.result import Result

app = typer.Typer(
    name="selfloop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help takes twice as long to appear
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="A laboratory for generative models that train on their own output.\n\nStart with: selfloop quickstart",
)


def main() -> None:
    """Entry point of the `selfloop` command, also of every process that torchrun starts."""
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        from selfloop.commands.launch import main_of_rank

        main_of_rank(app)
        return
    try:
        with plain_problems():
            app()
    finally:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # all is said; Ray takes a second to close


@app.command()
def quickstart(
    report: Annotated[Path, typer.Option(help="File of the report.")] = Path("report.html"),
    store: StoreOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run 2,000 linear chains, a VAE on digits and a language model under replace and accumulate. Takes two to three minutes.

    Example: selfloop quickstart
    """
    from selfloop.commands.console import print_summary

    results: list[Result] = []
    presets = "quickstart_linear", "quickstart_digits", "quickstart_text"
    if not quiet:
        sys.stderr.write(f"Three parts, two to three minutes on two cores in all. {report} grows with each part.\n")
    for preset in presets:
        results.append(run_with_progress(preset, None, store, workers, quiet, outputs={"--report": report}))
        print_summary(results[-1])
        missing = f", {len(results)} of {len(presets)} parts so far" * (len(results) < len(presets))
        write_report_file(results, report, quiet, title=f"selfloop quickstart{missing}")  # with each part once it has run


app.command()(run)


@app.command()
def plan(
    spec: SpecArgument,
    measure: Annotated[bool, typer.Option("--measure", help="Time ten training steps; store nothing.")] = False,
    json: JsonOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Show rows per generation, stored generations and the estimated time of a run. Computes nothing without --measure.

    Example: selfloop plan digits.toml --measure
    """
    from selfloop.commands.console import print_plan
    from selfloop.commands.plan import plan as plan_spec
    from selfloop.commands.plan import plan_to_json

    check_outputs({"--json": json}, [Path(spec)])
    parsed = open_spec(spec, set_)
    costs = plan_spec(parsed, store_at(store), measure=measure)
    give_answer(lambda: print_plan(parsed, costs), (json, json_line(plan_to_json(parsed, costs))))


@app.command()
def predict(
    policy: Annotated[list[str], typer.Argument(metavar="POLICY...|SPEC", help='Such as "mix(real_share=0.3)"; or one spec.')],
    n: Annotated[int, typer.Option(min=1, help="Initial real rows.")] = 1000,
    generations: Annotated[int, typer.Option(min=1, max=1000, help="Generations.")] = 10,
    set_: SetOption = None,
    figure: FigureOption = None,
    ledger: Annotated[bool, typer.Option("--ledger", help="Show which rows' noise the error comes from.")] = False,
    json: JsonOption = None,
) -> None:
    """Compute exact theory in milliseconds: expected error and variance of policies, or every law that applies to a spec.

    Example: selfloop predict replace accumulate accumulate_subsample --n 100 --generations 20
    """
    from selfloop.commands.console import print_laws, print_ledgers, print_predictions, spec_laws, spec_ledgers
    from selfloop.plugins import presets
    from selfloop.spec.components import make_component
    from selfloop.spec.parse import parse_override
    from selfloop.theory.moments import noise_ledger
    from selfloop.theory.moments import predict as predict_policy

    check_outputs({"--figure": figure, "--json": json}, map(Path, policy))
    settings = {key.removeprefix("policy."): value for key, value in map(parse_override, set_ or ())}
    if len(policy) == 1 and (policy[0].endswith(".toml") or policy[0] in presets()):
        spec = open_spec(policy[0], set_)
        if not ledger:
            laws = spec_laws(spec)
            give_answer(lambda: print_laws(spec, laws, figure), (json, json_line({"laws": laws})))
            return
        ledgers = spec_ledgers(spec)
    else:
        named = {text: make_component("policy", {"name": text, **settings} if settings else text, "policy") for text in policy}
        if not ledger:
            predictions = {text: predict_policy(parsed, n, generations) for text, parsed in named.items()}
            give_answer(lambda: print_predictions(predictions, n, figure), (json, json_line({"policies": predictions})))
            return
        ledgers = {text: noise_ledger(parsed, n, generations) for text, parsed in named.items()}
    give_answer(lambda: print_ledgers(ledgers, figure), (json, json_line({"ledgers": ledgers})))


@app.command()
def report(
    specs: SpecsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", "--report", help="File of the report.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(file_okay=False, help="Save every figure here as SVG, PNG and PDF.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Show what the runs have so far; compute nothing.")] = False,
    set_: SetOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write the report of one or more specs: one HTML file that works offline. Computes results that are not stored.

    Several specs begin with one figure: the main metric of each, side by side. Of several, --set KEY=VALUE is for all and
    --set SPEC:KEY=VALUE for one of them.

    Example: selfloop report quickstart_digits quickstart_text --output both.html --figures figures/
    """
    settings = own_settings(specs, set_ or [])
    for name, changes in settings.items():
        open_spec(name, changes)  # raises for a wrong spec before any is run
    if partial:
        from selfloop.partial import partial_result

        check_outputs({"--output": output})
        results = [partial_result(open_spec(name, changes), store) for name, changes in settings.items()]
    else:
        outputs = {"--output": output}
        results = [run_with_progress(*pair, store, workers, quiet, outputs=outputs, announce=True) for pair in settings.items()]
    write_report_file(results, output, quiet, figures=figures)


@app.command()
def compare(
    specs: SpecsArgument,
    metric: Annotated[str | None, typer.Option(help="The metric. Default: the first that all specs measure.")] = None,
    json: JsonOption = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write the differences in full; - is stdout.")] = None,
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write them as a table; - is stdout.")] = None,
    set_: SetOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Show differences between policies or specs, with intervals: paired by the seeds that both have, else unpaired (Welch).

    Specs may differ in seeds and generations: common ones are compared.

    Example: selfloop compare digits.toml longer.toml --metric pixel_std --csv differences.csv
    """
    from selfloop.commands.compare import choose_metric, compare_curves, rows_to_csv, rows_to_markdown
    from selfloop.commands.console import print_comparison
    from selfloop.report.findings import first_sentences

    check_outputs({"--json": json, "--csv": csv, "--markdown": markdown}, map(Path, specs))
    settings = own_settings(specs, set_ or [])
    compared = choose_metric({name: open_spec(name, changes) for name, changes in settings.items()}, metric)
    results = {name: run_with_progress(name, own, store, workers, quiet, announce=True) for name, own in settings.items()}
    better = next(iter(results.values())).spec.directions().get(compared, "")
    rows, left_out = compare_curves(results, compared)
    notes = [*(sentence for result in results.values() for sentence in first_sentences(result)), *left_out]
    answer = json_line({"metric": compared, "better": better, "notes": notes, "differences": rows})
    outputs = (json, answer), (csv, rows_to_csv(rows)), (markdown, rows_to_markdown(rows))
    give_answer(lambda: print_comparison(compared, better, rows, notes), *outputs)


for command in (audit, check, reproduce, advise, watch, web, store_command):
    app.command()(command)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="A kind, such as policy or preset.", autocompletion=complete_kind)] = None,
    name: Annotated[str | None, typer.Argument(help="A name of that kind.", autocompletion=complete_component)] = None,
    json: JsonOption = None,
) -> None:
    """List components and presets; with a kind and a name, show the settings of one.

    Example: selfloop list family vae
    """
    from selfloop.commands.console import print_component, print_list
    from selfloop.commands.list import component_settings, summaries
    from selfloop.plugins import presets

    check_outputs({"--json": json})
    if not kind or not name:
        lines = summaries(kind)
        give_answer(lambda: print_list(lines), (json, json_line(lines)))
    elif kind == "preset":
        if name not in presets():
            raise SpecError(unknown_name("preset", name, presets()))
        text = presets()[name].read_text(encoding="utf-8")
        give_answer(lambda: show(text), (json, json_line({"kind": kind, "name": name, "spec": text})))
    else:
        description, settings = component_settings(kind, name)
        answer = {"kind": kind, "name": name, "description": description, "settings": [s._asdict() for s in settings]}
        give_answer(lambda: print_component(f"{kind} {name}", description, settings), (json, json_line(answer)))


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to create.")],
    family: Annotated[str, typer.Option(help="The family.")] = "vae",
    source: Annotated[str, typer.Option(help="The source.")] = "digits",
) -> None:
    """Write a commented spec to start from.

    Example: selfloop new mine.toml --family gaussian --source gaussian
    """
    from selfloop.commands.new import spec_template

    if path.exists():
        raise SpecError(f"{path}: already exists. Choose another name; nothing was written.")
    write_text(path, spec_template(family, source))
    show(f"written: {path}. Next: selfloop plan {path}")


@app.command()
def verify(
    spec: SpecArgument,
    records: Annotated[int, typer.Option(min=1, help="Number of records to recompute.")] = 20,
    json: JsonOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    quiet: QuietOption = False,
) -> None:
    """Check all files of a spec in the store and recompute random records. Exits with 1 if a file is damaged or a record wrong.

    A record that another backend made (a GPU, the C decoder) is compared within a relative tolerance of 0.001.

    Example: selfloop verify digits.toml --records 50
    """
    from selfloop.commands.console import print_verification
    from selfloop.commands.verify import verification_to_json
    from selfloop.commands.verify import verify as verify_spec

    check_outputs({"--json": json}, [Path(spec)])
    with show_progress(quiet, "records") as progress:
        verification = verify_spec(open_spec(spec, set_), store_at(store), records, progress)
    give_answer(lambda: print_verification(verification), (json, json_line(verification_to_json(verification))))
    if verification.wrong or verification.damaged:
        raise typer.Exit(1)


@app.command()
def export(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to create.")],
    policy: Annotated[str | None, typer.Option(help="The policy. Default: the only one.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed. Default: the first.")] = None,
    generation: Annotated[int | None, typer.Option(help="The generation. Default: the last.")] = None,
    what: Annotated[str, typer.Option(help="model, or samples: the rows sampled from the model.")] = "model",
    format_: Annotated[
        str | None, typer.Option("--format", help="Of samples: csv, jsonl, parquet, png, sdf, safetensors. Default: by rows.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of a transformer's weights: float32 (default) or bfloat16.")] = None,
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Write a stored model (a transformer as a Hugging Face folder) or the rows sampled from it. Computes nothing.

    Example: selfloop export stories.toml --policy replace --generation 3 --output story-model
    """
    from selfloop.commands.export import DTYPES, FORMATS, export_model, export_samples, find_generation

    if what not in ("model", "samples"):
        raise SpecError(unknown_name("--what", what, ("model", "samples")))
    for option, value, use, names in (("--format", format_, "samples", FORMATS), ("--dtype", dtype, "model", DTYPES)):
        if value is not None and what != use:
            raise SpecError(f"{option} {value}: is for --what {use}. Leave it out, or add --what {use}.")
        if value is not None and value not in names:
            raise SpecError(unknown_name(option, value, names))
    stored = find_generation(open_spec(spec, set_), store_at(store), policy, seed, generation)
    if what == "model":
        export_model(stored, output, dtype or DTYPES[0])
    else:
        export_samples(stored, output, format_)
    show(f"written: {output} ({what} of {stored.title()})")


@app.command()
def runs(json: JsonOption = None, store: StoreOption = None) -> None:
    """List the runs of the store: name, date, stored steps, size. Runs share steps.

    Example: selfloop runs --store results
    """
    from selfloop.commands.console import print_runs
    from selfloop.commands.list import list_runs

    check_outputs({"--json": json})
    listed = list_runs(store_at(store))
    give_answer(lambda: print_runs(listed), (json, json_line({"runs": listed})))


@app.command()
def gc(
    delete: Annotated[
        list[str] | None, typer.Option("--delete", metavar="RUN|SPEC", help="Delete what no other run uses; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Delete unfinished files and unused objects from the store, and on request the records of runs (see `selfloop runs`).

    Example: selfloop gc --delete digits.toml --dry-run
    """
    from selfloop.commands.console import print_garbage
    from selfloop.commands.gc import delete_garbage, find_garbage
    from selfloop.spec.write import spec_text
    from selfloop.store.runs import read_runs, run_name

    path = store_at(store)
    listed = {run.name for run in read_runs(path)}
    runs = [name if name in listed else run_name(spec_text(open_spec(name, set_))) for name in delete or ()]
    garbage = find_garbage(path, runs)
    print_garbage(garbage)
    if dry_run or not garbage:
        return
    if not yes and not sys.stdin.isatty():
        raise SpecError("gc: nothing was deleted, as nobody can be asked here. Add --yes to delete these files.")
    if yes or typer.confirm("Delete them?"):
        delete_garbage(garbage, path)
        show("deleted.")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed_version

        show(installed_version("selfloop"))
        raise typer.Exit
