"""TensorBoard: `tensorboard=FOLDER`, with a folder in it per run, whose event files of earlier runs are replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from selfloop.trackers.tracker import RunEnd, TrackedRun, Tracker

MAX_NAME = 255  # bytes of a folder's name, whose end has the id


class TensorboardTracker(Tracker):
    """One folder per run."""

    def start(self, run: TrackedRun) -> None:
        group, name = (text.replace("/", "_").encode()[-MAX_NAME:].decode(errors="ignore") for text in (run.group, run.name))
        folder = Path(self.target) / group / name
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
        self.runs[run.id] = SummaryWriter(folder)
        self.runs[run.id].add_text("config", _as_table(run.config))

    def log(self, run: TrackedRun, generation: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.runs[run.id].add_scalar(name, value, generation)

    def finish(self, run: TrackedRun, end: RunEnd | None) -> None:
        writer = self.runs.pop(run.id)
        if end is not None:
            writer.add_text("summary", _as_table(end.summary), end.generation)
            for name, picture in end.pictures.items():
                writer.add_image(name, np.asarray(picture.convert("RGB")), end.generation, dataformats="HWC")
            for name, text in end.texts.items():
                writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), end.generation)
        writer.close()


def _as_table(values: Mapping[str, object]) -> str:
    """The values as a table of Markdown."""
    cells = ((str(cell).replace("|", "\\|") for cell in pair) for pair in (("name", "value"), ("---", "---"), *values.items()))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
