"""The command `web` and what it prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfloop.commands.cli_advise import format_share, parse_bound
from selfloop.commands.options import FigureOption, JsonOption, SetOption
from selfloop.commands.terminal import give_answer, show
from selfloop.formats.json_lines import json_line
from selfloop.formats.replacing import check_outputs

if TYPE_CHECKING:
    from selfloop.theory.web import WebPrediction


def web(
    scenario: Annotated[Path, typer.Argument(metavar="FILE", help="A TOML file of sources, model families and their pool.")],
    bound: Annotated[str | None, typer.Option(help="Search the real rows for this largest multiplier, 1.1 or 10%.")] = None,
    set_: SetOption = None,
    figure: FigureOption = None,
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
