"""The table that a notebook shows of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from selfloop.notebook import table_html
from selfloop.stats.intervals import at_look, level_of_look, mean_interval

if TYPE_CHECKING:
    from selfloop.result import Result


def result_html(result: Result) -> str:
    """Per point and policy: the risk at the first and the last generation, its change, and how many definitions are met."""
    risk, verdicts, rows = result.spec.risk_metric() or "", result.verdicts(), []
    for (coordinates, label), curves in result.table.items():
        own = [verdict for verdict in verdicts if (verdict.coordinates, verdict.policy) == (coordinates, label)]
        answers = [verdict.answer for verdict in own if verdict.answer != "not measured"]
        values = curves.values.get(risk, np.full((1, 1), np.nan))
        first, last = (mean_interval(values[:, t]).estimate for t in (0, -1))
        with at_look(result.look):
            change = mean_interval(values[:, -1] - values[:, 0])
        row = {**dict(coordinates), "policy": label, f"{risk} at 1": first, f"{risk} at {values.shape[1]}": last}
        row |= {"change": change.estimate, "low": change.low, "high": change.high}
        open_answers = f", {n} undecided" if (n := answers.count("undecided")) else ""
        rows.append({**row, "definitions of collapse met": f"{answers.count('yes')} of {len(answers)}{open_answers}"})
    note = f"Change: mean over seeds, with its {100 * level_of_look(result.look):.4g} % interval from low to high."
    return table_html(repr(result).strip("<>"), rows, f"{result.unfinished().capitalize()}. " * bool(result.progress) + note)
