"""trackio: `trackio` or `trackio=PROJECT`, in its local database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage

from selfloop.trackers.tracker import PROJECT, RunEnd, TrackedRun, Tracker


class TrackioTracker(Tracker):
    """One run at a time is open, as trackio has it. It would store equal steps again, so equal ones are left out."""

    def __init__(self, target: str) -> None:
        super().__init__(target or PROJECT)
        self.open_id = ""
        self.opened: Any = None
        self.logged: dict[str, dict[tuple[int, str], Any]] = {}  # by run: (step, key) -> value

    def start(self, run: TrackedRun) -> None:
        rows = SQLiteStorage.get_logs(self.target, run=run.name)
        self.logged[run.id] = {(row["step"], key): value for row in rows for key, value in row.items()}

    def log(self, run: TrackedRun, generation: int, values: Mapping[str, Any]) -> None:
        logged = {key: value for (t, key), value in self.logged[run.id].items() if t == generation}
        new = {
            key: value
            for key, value in values.items()
            if key not in logged or (isinstance(value, str | float) and value != logged[key])
        }
        if not new:
            return
        if self.open_id != run.id:  # `init` finishes the run before
            config, self.open_id = dict(run.config), run.id
            self.opened = trackio.init(
                self.target, run.name, group=run.group, config=config, resume="allow", embed=False, auto_log_gpu=False,
                auto_log_cpu=False,
            )  # fmt: skip
        self.opened.log(new, step=generation)
        self.logged[run.id] |= {(generation, key): value for key, value in new.items()}

    def finish(self, run: TrackedRun, end: RunEnd | None) -> None:
        if end is not None:
            pictures = {name: trackio.Image(picture) for name, picture in end.pictures.items()}
            texts = {name: trackio.Markdown(f"```\n{text}\n```") for name, text in end.texts.items()}
            self.log(run, end.generation, {**end.summary, **pictures, **texts})
        if self.open_id == run.id:
            trackio.finish()
            self.open_id = ""
