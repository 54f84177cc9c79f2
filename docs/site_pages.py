"""Pages of the site that are made when it is built, from the code itself: components, commands, presets, changes, the gallery.

A hook of mkdocs (`mkdocs.yml`). Nothing that it makes is committed, so nothing that it makes can be out of date: each page is
a stub in the checkout, so that links there lead somewhere, and is replaced here.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File
from typer.main import get_command

import selfloop
from selfloop.commands.cli import app
from selfloop.commands.list import component_settings, summaries
from selfloop.plugins import BUILT_IN, component_class
from selfloop.report.build import build_report
from selfloop.report.figures import main_figure, report_figures, report_styles, sweep_figure
from selfloop.report.page import render_page
from selfloop.spec.parse import read_spec

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks.site_pages")
TITLES = {
    "policy": ("policies", "Policies", "Which rows each generation trains on. [Choose a policy](../how-to/policies.md)."),
    "source": ("sources", "Sources", "Where real rows come from: the table `[source]` of a [spec](../how-to/spec.md)."),
    "family": (
        "families",
        "Families and samplers",
        "How rows are modeled: the table `[family]`. Settings that begin with `sampler.` belong to `[family.sampler]`: they "
        "change sampling and never a fit. [Choose a family](../how-to/families.md).",
    ),
    "metric": ("metrics", "Metrics", "Measured for every model: the list `metrics`. [Read results](../how-to/results.md)."),
    "curator": ("curators", "Curators", "Keep, edit or weight rows. [Curate synthetic data](../how-to/curators.md)."),
    "score": ("scores", "Scores", "How curators rank rows: their `score`. [Curate synthetic data](../how-to/curators.md)."),
    "criterion": (
        "criteria",
        "Criteria",
        "Published definitions of collapse: the list `criteria`. [How answers are reached](../inference.md).",
    ),
}  # fmt: skip

# Reports of the gallery: a name, what to look at, a preset, and changes that make it quick.
GALLERY = (
    ("linear", "2,000 chains on exact laws, with a noise ledger and forecasts", "quickstart_linear", ()),
    (
        "digits",
        "A VAE on handwritten digits beside its control, with images of every generation",
        "quickstart_digits",
        ("n=400", "seeds=3", "generations=5", "family.training.steps=80"),
    ),
    (
        "text",
        "An n-gram model of Python's documentation, with texts side by side",
        "quickstart_text",
        ('family={name="ngram", order=4, vocab=600, sampler={prompt="first_token", max_tokens=64}}', "n=150"),
    ),
    (
        "sweep",
        "A sweep: the share of real rows in a mixture, for a kernel density of two moons",
        "quickstart_linear",
        (
            'source={name="moons"}',
            'family={name="kde", bandwidth=0.1}',
            'policies=["mix"]',
            "sweep={'policies.mix.real_share'=[0.0, 0.1, 0.3, 0.6, 1.0]}",
            "seeds=10",
        ),
    ),
    ("extinction", "Symbols that die out, rare ones first, beside their exact laws", "extinction_symbols", ()),
)


def on_files(files: Any, config: Any) -> Any:
    """Hook of mkdocs: the site's files with those made here, in place of their stubs."""
    for path, content in made_files().items():
        if stub := files.get_file_from_path(path):
            files.remove(stub)
        files.append(File.generated(config, path, content=content))
    return files


@cache
def made_files() -> dict[str, str]:
    """Path below docs/ -> text, of every page and file that is made from the code. Once per process."""
    pages = {f"reference/{TITLES[kind][0]}.md": component_page(kind) for kind in BUILT_IN}
    pages["reference/command_line.md"] = command_page()
    pages["reference/presets.md"] = preset_page()
    pages["reference/changes.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](../")
    return {**pages, **gallery_files()}


def component_page(kind: str) -> str:
    """Every component of a kind with its documentation and its settings."""
    _, title, introduction = TITLES[kind]
    lines = [f"# {title}", "", introduction, "", f"`selfloop list {kind} NAME` prints one.", ""]
    for name in BUILT_IN[kind]:
        text, settings = component_settings(kind, name)
        lines += [f"## `{name}` {{: #{name} }}", "", prose(text), "", *facts(kind, name)]
        if settings:
            rows = (
                (f"`{s.name}`", s.type, "" if s.default == "required" else f"`{s.default}`", s.description) for s in settings
            )
            lines += [*table(("setting", "type", "default", "meaning"), rows), ""]
    return "\n".join(lines)


def facts(kind: str, name: str) -> Iterator[str]:
    """Facts about a component that are not among its settings."""
    cls: Any = component_class(kind, name, kind)
    if kind == "metric":
        values = dict.fromkeys((name, *cls.secondary_titles, *cls.secondary_better, *cls.secondary_units))
        titles = {**cls.secondary_titles, name: cls.title}
        units = {**dict.fromkeys(titles, cls.unit), **cls.secondary_units}
        best = {**cls.secondary_better, name: cls.better}
        shown = [value for value in values if not re.search(r"_share_[1-9]", value)]  # one row for all classes
        rows = (
            (f"`{value}`", titles.get(value, ""), units.get(value, ""), describe_best(best.get(value, ""))) for value in shown
        )
        yield from (*table(("value", "title", "unit", "best"), rows), "")
    elif kind == "family" and cls.default_metrics:
        yield f"Metrics of a spec that names none: {', '.join(f'`{metric}`' for metric in cls.default_metrics)}.\n"
    elif kind == "criterion":
        yield f"{prose(cls.question)} Needs {', '.join(f'`{metric}`' for metric in cls.metrics) or 'no certain metric'}.\n"


def describe_best(better: str | float) -> str:
    """Which value of a metric is best: a direction, a number, or that of another value."""
    is_value = isinstance(better, str) and better not in ("", "lower", "higher")
    return f"that of `{better}`" if is_value else str(better) or "unknown"


def command_page() -> str:
    """Every command with its help, arguments and options."""
    lines = [
        "# Command line",
        "",
        "`selfloop COMMAND --help` prints the same. Exit codes: 0 done, 1 a fault of selfloop or a failed check, 2 a mistake",
        "to correct, 130 interrupted; others are named at their commands.",
    ]
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        ctx = typer.Context(command, info_name=f"selfloop {name}")
        text, _, example = command.help.partition("Example: ")
        lines += ["", f"## `{name}` {{: #{name} }}", "", prose(text)]
        lines += ["```sh", example.strip().replace("\n", " "), "```", ""] if example else []
        records = [record for parameter in command.params if (record := parameter.get_help_record(ctx))]
        lines += table(("argument or option", "meaning"), ((f"`{usage}`", meaning) for usage, meaning in records))
    return "\n".join(lines)


def preset_page() -> str:
    """Every preset with the first line of its spec."""
    introduction = "Specs that ship with selfloop: `selfloop run NAME`. `selfloop list preset NAME` prints one."
    rows = ((f"`{name}`", text) for name, text in summaries("preset")["preset"].items())
    return "\n".join(["# Presets", "", introduction, "", *table(("preset", "shows"), rows)])


def gallery_files() -> dict[str, str]:
    """The page of the gallery, its reports and one figure of each, from small runs now."""
    lines = [
        "# Gallery",
        "",
        "Reports of small runs, made when this site was built. Each is one file that works offline.",
        "",
    ]
    files = dict[str, str]()
    for name, sentence, preset, changes in GALLERY:
        start = time.perf_counter()
        report = build_report(selfloop.run(read_spec(preset, changes)))  # in the usual store: the next build computes nothing
        styles = report_styles([report])
        figure = sweep_figure(report, styles) or main_figure(report, styles) or report_figures(report)[0]
        page, picture = render_page([report]), figure.svg()
        files |= {f"gallery/{name}.html": page, f"gallery/{name}.svg": picture}
        command = " ".join(["selfloop run", preset, *(f"--set '{change}'" for change in changes)])
        size = f"{len(page.encode()) / 1e6:.1f} MB"
        lines += [f"## [{sentence}](gallery/{name}.html)", ""]
        lines += [f"[![{sentence}](gallery/{name}.svg)](gallery/{name}.html){{: .gallery }}", ""]
        lines += ["```sh", f"{command} --report {name}.html   # {size}", "```", ""]
        LOG.info("report %s: %.0f s, %s", name, time.perf_counter() - start, size)
    return {"gallery.md": "\n".join(lines), **files}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown. Cells are plain text with code in backticks."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(prose(cell).replace(chr(10), ' ') for cell in row)} |"


def prose(text: str) -> str:
    """Plain text as Markdown: what would be markup is escaped, except for code in backticks."""
    pieces = re.split(r"(`[^`\n]*`)", text)
    return "".join(piece if i % 2 else re.sub(r"([*_<>\[\]|#~^])", r"\\\1", piece) for i, piece in enumerate(pieces))
