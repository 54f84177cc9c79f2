"""What a notebook shows: values as short tables, and the progress of a run. IPython is used only where it runs already."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

from selfloop.errors import printable

if TYPE_CHECKING:
    from selfloop.component import Policy
    from selfloop.engine.tasks import TaskOutput
    from selfloop.engine.time_left import TimeLeft
    from selfloop.spec.spec import Spec
    from selfloop.types import Verdict

MAX_SHOWN_ROWS = 40
SECONDS_BETWEEN_UPDATES = 0.25


def table_html(title: str, rows: Sequence[Mapping[str, object]], note: str = "") -> str:
    """A table of rows with equal keys as HTML without colors of its own, so that it follows a light or a dark notebook."""
    visible, n_hidden = rows[:MAX_SHOWN_ROWS], len(rows) - MAX_SHOWN_ROWS
    header = "".join(f"<th>{escape(str(name))}</th>" for name in (rows[0] if rows else ()))
    body = "".join(f"<tr>{''.join(f'<td>{_format_cell(value)}</td>' for value in row.values())}</tr>" for row in visible)
    notes = [note, f"{n_hidden:,} more rows are not shown." if n_hidden > 0 else ""]
    after = "".join(f"<p>{escape(text)}</p>" for text in filter(None, notes))
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f'<div class="selfloop"><p><b>{escape(title)}</b></p>{table}{after}</div>'


def _format_cell(value: object) -> str:
    """Four significant digits of a float; a dash for None and for a float without a finite value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return escape(f"{value:,.4g}" if isinstance(value, float) else str(value))


class Verdicts(list["Verdict"]):
    """Verdicts that a notebook shows as answers: definitions in rows, policies in columns, a block of rows per point."""

    def _repr_html_(self) -> str:
        rows = dict[object, dict[str, object]]()
        measured = {verdict.criterion for verdict in self if verdict.answer != "not measured"}
        policies = dict.fromkeys((verdict.policy for verdict in self), "–")
        for verdict in self:
            if verdict.criterion in measured:
                point = {"definition": verdict.criterion, **dict(verdict.coordinates)}
                rows.setdefault((verdict.coordinates, verdict.criterion), {**point, **policies})[verdict.policy] = (
                    verdict.answer
                )
        others = ", ".join(dict.fromkeys(verdict.criterion for verdict in self if verdict.criterion not in measured))
        note = f"Not measured: {others}. " * bool(others) + "Estimates and reasons: Result.verdict_frame()."
        return table_html("Definitions of collapse", [*rows.values()], note)


def verdict_html(verdict: Verdict) -> str:
    row = {"policy": verdict.policy, **dict(verdict.coordinates), "answer": verdict.answer, "metric": verdict.metric}
    values = {name: getattr(verdict, name) for name in ("estimate", "low", "high", "threshold")}
    return table_html(verdict.criterion, [{**row, **values}], verdict.reason)


def policy_html(policy: Policy, n: int = 100, generations: Iterable[int] = (2, 3, 4)) -> str:
    """The first generations that a policy plans for n initial rows."""
    rows = list[dict[str, object]]()
    for t in generations:
        plan, new_rows = policy.plan(t, n), policy.new_rows(t, n)
        takes = [
            f"{'all' if take.rows is None else take.rows} of {take.batch}{f' × {take.weight:.4g}' * (take.weight != 1)}"
            for take in plan.takes
            if take.rows != 0
        ]
        training_rows = f"{plan.budget} drawn from " * (plan.budget is not None) + ", ".join(takes)
        columns = {"fresh real rows": new_rows.real, "trains on rows": training_rows, "then samples": new_rows.synthetic}
        rows.append({"generation": t, **columns})
    return table_html(repr(policy), rows, f"With {n} initial real rows, on which generation 1 trains.")


def format_seconds(seconds: float) -> str:
    """A time in seconds (to a millisecond), or in minutes or hours with the next smaller unit."""
    if seconds < 60:
        return f"{round(seconds, 3):.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def in_kernel() -> bool:
    """True in the kernel of a notebook, which shows HTML; False in a terminal, in that of IPython too."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class ProgressLine:
    """The work done, the time, and the present step as one line. Called with the work done and all work."""

    def __init__(self, seconds: float, activity: str = "starting", unit: str = "generations") -> None:
        self.activity, self.unit, self.doing = activity, unit, ""
        self.done = self.total = 0
        self.left: TimeLeft | None = None
        self.seconds = seconds  # between two lines
        self.started = self.due = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.due = 0.0 if 0 < total == done else self.due  # the last line is always shown
        self.show()

    def note(self, doing: str) -> None:
        """Tell which chain computes which step now."""
        self.doing = printable(doing)
        self.show()

    def begin(self, spec: Spec, left: TimeLeft) -> None:
        """Tell which spec runs, and how long it still takes."""
        self.left = left

    def add_output(self, output: TaskOutput) -> None:
        """Receive what a task of a run has computed, with its usage."""

    def seconds_left(self, elapsed: float) -> float | None:
        """Seconds until the end of a run, or of other work at the speed so far; None if unknown."""
        pace = elapsed / self.done * (self.total - self.done) if self.done else None
        return self.left.seconds() if self.left else pace

    def text(self) -> str:
        """The work done or, while it is unknown, the activity; the times; and the present step."""
        elapsed, is_done = time.monotonic() - self.started, 0 < self.total == self.done
        counts = f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.activity} ..."
        left = None if is_done else self.seconds_left(elapsed)
        remaining = "" if left is None else f", about {format_seconds(round(left))} remaining"
        doing = f"; {self.doing}" if self.doing and not is_done else ""
        return f"{counts}, {format_seconds(round(elapsed))} elapsed{remaining}{doing}"

    def show(self) -> None:
        """Print the line, if it is time to."""
        if time.monotonic() >= self.due:
            self.print()

    def print(self) -> None:
        self.due = time.monotonic() + self.seconds
        sys.stderr.write(f"{self.text()}\n")


class KernelProgress(ProgressLine):
    """One line below the cell that runs, with a bar."""

    def __init__(self) -> None:
        super().__init__(SECONDS_BETWEEN_UPDATES)
        self.display = cast(Any, None)

    def print(self) -> None:
        from IPython.display import display

        self.due, text = time.monotonic() + self.seconds, self.text()
        bar = f'<progress max="{self.total}" value="{self.done}"></progress>'
        bundle = {"text/plain": text, "text/html": f"{bar} {escape(text)}"}
        if self.display is None:
            self.display = display(bundle, raw=True, display_id=True)
        else:
            self.display.update(bundle, raw=True)


def choose_callbacks(
    progress: Callable[[int, int], None] | None, notify: Callable[[str], None] | None
) -> tuple[Callable[[int, int], None], Callable[[str], None]]:
    """Both functions of a run; without any, they show a line in a kernel and do nothing elsewhere."""
    if progress is None and notify is None and in_kernel():
        line = KernelProgress()
        return line, line.note
    return progress or (lambda done, total: None), notify or (lambda note: None)
