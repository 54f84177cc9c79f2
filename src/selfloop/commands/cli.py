"""The command line. Results go to standard output, progress and errors to standard error; a mistake exits with 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfloop.errors import SelfloopError, SpecError, show_warnings_plainly, unknown_name

if TYPE_CHECKING:
    from selfloop.result import Result
    from selfloop.spec.spec import Spec

app = typer.Typer(
    name="selfloop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A laboratory for generative models that train on their own output.\n\nStart with: selfloop quickstart",
)
SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A TOML file or a preset (see `selfloop list`).")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; repeatable.")]
StoreOption = Annotated[Path | None, typer.Option(help="The store's folder. [default: $SELFLOOP_STORE, else .selfloop]")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Worker processes. [default: as many as the cores allow]")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads per chain. [default: cores / chains, at least 1]")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def main() -> None:
    """Entry point of the `selfloop` command."""
    show_warnings_plainly()
    try:
        app()
    except SelfloopError as problem:
        sentence = " ".join(str(problem).split())
        sys.stderr.write(f"selfloop: {sentence if len(sentence) < 690 else sentence[:680] + ' ...'}\n")
        sys.exit(2)
    except (MemoryError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and "allocate" not in str(problem):  # torch's way of saying it
            raise
        sys.stderr.write("selfloop: out of memory. Lower n, the seeds or the model's size.\n")
        sys.exit(2)
    except BrokenPipeError:  # the reader of standard output has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as problem:  # a file that could be written at the start, and cannot any more
        sys.stderr.write(f"selfloop: {problem.filename or 'output'}: {(problem.strerror or str(problem)).lower()}.\n")
        sys.exit(2)


def _spec(name: str, overrides: list[str] | None) -> Spec:
    from selfloop.spec.spec import read_spec

    return read_spec(name, overrides or ())


def _run(spec: Spec, store: Path | None, workers: int | None, threads: int | None, quiet: bool) -> Result:
    from selfloop.commands.console import progress_line
    from selfloop.result import run as run_spec

    try:
        with progress_line(quiet) as progress:
            return run_spec(spec, store, workers=workers, threads=threads, progress=progress)
    except KeyboardInterrupt:
        sys.stderr.write("selfloop: interrupted. What is finished is kept: the same command continues.\n")
        raise typer.Exit(130) from None


@app.command()
def quickstart(
    report: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("report.html"),
    store: StoreOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """2,000 linear chains, real digits and real text: see what replace and accumulate do, in about two minutes.

    Example: selfloop quickstart
    """
    from selfloop.commands.console import print_summary
    from selfloop.report.build import write_report

    _writable("--report", report)
    results = []
    for preset in ("quickstart_linear", "quickstart_digits", "quickstart_text"):
        results.append(_run(_spec(preset, None), store, workers, None, quiet))
        print_summary(results[-1])
    path = write_report(results, report, title="selfloop quickstart")
    typer.echo(f"report: {path.resolve()}")


@app.command()
def run(
    spec: SpecArgument,
    set_: SetOption = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write rows as JSON lines; - is stdout.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the report there.")] = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a spec; what is stored already is not computed again.

    Example: selfloop run digits.toml --set generations=3 --json rows.jsonl
    """
    from selfloop.commands.console import print_summary

    _writable("--json", json)
    _writable("--report", report)
    result = _run(_spec(spec, set_), store, workers, threads, quiet)
    if json:
        _write_json(result, json)
    if json != "-":
        print_summary(result)
    if report:
        typer.echo(f"report: {result.report(report).resolve()}")


def _writable(option: str, target: Path | str | None) -> None:
    """Refuse a file that cannot be written now, not after the run."""
    if target in (None, "-"):
        return
    path = Path(str(target)).absolute()
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        why = (
            "is a folder" if path.is_dir() else "cannot be written there" if path.parent.is_dir() else "has no folder to be in"
        )
        raise SpecError(f"{option} {target}: {why}. Choose another file.")


def _write_json(result: Result, target: str) -> None:
    from selfloop.result import write_measurements

    if target == "-":
        write_measurements(result.rows, sys.stdout.write)
        return
    with Path(target).open("w", encoding="utf-8") as file:
        write_measurements(result.rows, file.write)


@app.command()
def plan(spec: SpecArgument, set_: SetOption = None, store: StoreOption = None) -> None:
    """What a run would do: rows per generation, what is stored already, what the rest will cost. Computes nothing.

    Example: selfloop plan digits.toml
    """
    from selfloop.commands.console import print_plan
    from selfloop.commands.verify import plan as plan_spec
    from selfloop.engine.run import store_path

    read = _spec(spec, set_)
    print_plan(read, plan_spec(read, store_path(store)))


@app.command()
def predict(
    policy: Annotated[list[str], typer.Argument(metavar="POLICY...|SPEC", help="Names of policies, or one spec or preset.")],
    n: Annotated[int, typer.Option(min=1, help="Rows of real(1).")] = 1000,
    generations: Annotated[int, typer.Option(min=1, max=1000, help="Generations.")] = 10,
    set_: SetOption = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the curves there (SVG, PNG or PDF by the ending).")] = None,
) -> None:
    """Exact theory in milliseconds: expected error and variance of any count-based policy, and every law that applies.

    Example: selfloop predict replace accumulate accumulate_subsample --n 100 --generations 20
    """
    from selfloop.commands.console import print_laws, print_predictions

    _writable("--figure", figure)
    if len(policy) == 1 and (policy[0].endswith(".toml") or policy[0] in _presets()):
        print_laws(_spec(policy[0], set_), figure)
    else:
        print_predictions(policy, n, generations, set_ or [], figure)


def _presets() -> list[str]:
    from selfloop.plugins import presets

    return list(presets())


@app.command()
def report(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the report.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="Also save every figure there as SVG, PNG and PDF.")] = None,
    set_: SetOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write the report of a spec: one HTML file that works offline. Runs what is not stored yet.

    Example: selfloop report digits.toml --output digits.html --figures figures/
    """
    from selfloop.report.build import write_report

    _writable("--output", output)
    if figures is not None and figures.exists() and not figures.is_dir():
        raise SpecError(f"--figures {figures}: is a file. Name a folder.")
    result = _run(_spec(spec, set_), store, workers, None, quiet)
    typer.echo(f"report: {write_report([result], output, figures=figures).resolve()}")


@app.command()
def compare(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="One spec (its policies), or several.")],
    metric: Annotated[str | None, typer.Option(help="Which metric. [default: the main one]")] = None,
    set_: SetOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Differences between policies or specs, paired by seed, with intervals.

    Example: selfloop compare digits.toml --metric pixel_spread
    """
    from selfloop.commands.console import print_comparison
    from selfloop.plugins import names

    read = {name: _spec(name, set_) for name in specs}
    shared = set.intersection(*({m.name for m in each.metrics} for each in read.values()))
    chosen = metric or next((m.name for m in next(iter(read.values())).metrics if m.name in shared), None)
    if chosen is None:
        raise SpecError("compare: the specs share no metric. Give them one, for example metrics = ['nll'].")
    if chosen in names("metric") and chosen not in shared:
        raise SpecError(f"--metric {chosen}: not every spec measures it. They share: {', '.join(sorted(shared)) or 'none'}.")
    print_comparison({name: _run(each, store, workers, None, quiet) for name, each in read.items()}, chosen)


@app.command()
def reproduce(
    work: Annotated[str, typer.Argument(help="A published work, such as kazdan2025.")],
    only: Annotated[str | None, typer.Option(help="Groups of numbers, comma-separated, such as gaussian,linear,kde.")] = None,
    scale: Annotated[str, typer.Option(help="paper (its number of seeds), small (20), or a number of seeds.")] = "paper",
    store: StoreOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure a paper's numbers again: one line per published number with value, interval and z.

    Example: selfloop reproduce kazdan2025 --only gaussian,linear,kde
    """
    from selfloop.commands.console import print_reproduction, progress_line
    from selfloop.commands.reproduce import reproduce as reproduce_work
    from selfloop.engine.run import store_path

    with progress_line(quiet) as progress:
        lines = reproduce_work(work, only.split(",") if only else None, scale=scale, store=store_path(store), progress=progress)
    print_reproduction(lines)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="policy, family, source, metric, criterion, curator or preset.")] = None,
    name: Annotated[str | None, typer.Argument(help="One component: shows its settings.")] = None,
) -> None:
    """Components and presets; with a kind and a name, its settings.

    Example: selfloop list family vae
    """
    from selfloop.commands.console import print_component, print_list

    if kind and name:
        print_component(kind, name)
    else:
        print_list(kind)


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to create.")],
    family: Annotated[str, typer.Option(help="Its family.")] = "vae",
    source: Annotated[str, typer.Option(help="Its source.")] = "digits",
) -> None:
    """Write a commented spec to start from.

    Example: selfloop new mine.toml --family gaussian --source gaussian
    """
    from selfloop.spec.write import template

    if path.exists():
        raise SpecError(f"{path}: exists already. Choose another name; nothing was written.")
    text = template(family, source)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise SpecError(f"{path}: cannot be written ({problem.strerror}). Choose another place.") from problem
    typer.echo(f"written: {path}. Next: selfloop plan {path}")


@app.command()
def verify(
    spec: SpecArgument,
    sample: Annotated[int, typer.Option(min=1, help="How many records to recompute.")] = 20,
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Recompute a random sample of a spec's stored records and compare. Exit code 1 when one is wrong.

    Example: selfloop verify digits.toml --sample 50
    """
    from selfloop.commands.verify import verify as verify_spec
    from selfloop.engine.run import store_path

    audit = verify_spec(_spec(spec, set_), store_path(store), sample)
    for sentence in audit.wrong:
        typer.echo(f"wrong: {sentence}")
    typer.echo(f"{audit.checked - len(audit.wrong)} of {audit.checked} recomputed records agree ({audit.records} stored).")
    if audit.wrong:
        raise typer.Exit(1)


@app.command()
def export(
    spec: SpecArgument,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to create.")],
    policy: Annotated[str | None, typer.Option(help="Which policy. [default: the only one]")] = None,
    seed: Annotated[int | None, typer.Option(help="Which seed. [default: the first]")] = None,
    generation: Annotated[int | None, typer.Option(help="Which generation. [default: the last]")] = None,
    what: Annotated[str, typer.Option(help="model, or samples: the rows sampled from it.")] = "model",
    format_: Annotated[
        str | None, typer.Option("--format", help="Of samples: csv, jsonl, parquet, png, sdf, safetensors. [default: by rows]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of a transformer's weights: float32 or bfloat16.")] = "float32",
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Write a stored model (a transformer as a Hugging Face folder) or the rows sampled from it. Computes nothing.

    Example: selfloop export stories.toml --policy replace --generation 3 --to story-model
    """
    from selfloop.commands.export import export_model, export_samples, find
    from selfloop.engine.run import store_path

    if what not in ("model", "samples"):
        raise SpecError(unknown_name("--what", what, ("model", "samples")))
    if what == "model" and format_ is not None:
        raise SpecError(f"--format {format_}: is for samples. Add --what samples.")
    found = find(_spec(spec, set_), store_path(store), policy, seed, generation)
    if what == "model":
        export_model(found, to, dtype)
    else:
        export_samples(found, to, format_)
    typer.echo(f"written: {to} ({what} of {found.title()})")


@app.command()
def gc(
    keep: Annotated[list[str] | None, typer.Argument(metavar="[SPEC]...", help="Keep only what these specs use.")] = None,
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Delete unfinished files and orphans from the store; given specs, everything that they do not use.

    Example: selfloop gc digits.toml faces.toml
    """
    from selfloop.commands.verify import collect_garbage
    from selfloop.engine.run import store_path

    path = store_path(store)
    if not (path / ".selfloop").is_file():
        raise SelfloopError(f"store {path}: there is none. Name the folder with --store.")
    files, size = collect_garbage(path, [_spec(name, set_) for name in keep or ()])
    typer.echo(f"deleted {files} files, {size / 1e6:.1f} MB.")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from selfloop import __version__

        typer.echo(__version__)
        raise typer.Exit
