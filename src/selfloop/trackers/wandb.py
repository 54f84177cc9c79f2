"""Weights & Biases: `wandb` or `wandb=PROJECT`; mode, entity and folder are those of its own environment variables."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path

import wandb

from selfloop.trackers.tracker import PROJECT, RunEnd, TrackedRun, Tracker


class WandbTracker(Tracker):
    """One run each. Offline, the folders of earlier runs with this id are deleted at the end; online, the run is resumed."""

    def start(self, run: TrackedRun) -> None:
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
        self.runs[run.id] = wandb.init(
            project=self.target or PROJECT, id=run.id, name=run.name, group=run.group, config=dict(run.config),
            settings=settings, reinit="create_new", resume="allow",
        )  # fmt: skip

    def log(self, run: TrackedRun, generation: int, values: Mapping[str, float]) -> None:
        if generation >= self.runs[run.id].step:  # a resumed run continues after its last step
            self.runs[run.id].log(dict(values), step=generation)

    def finish(self, run: TrackedRun, end: RunEnd | None) -> None:
        opened = self.runs.pop(run.id)
        if end is not None:
            pictures = {name: wandb.Image(picture) for name, picture in end.pictures.items()}
            texts = {name: wandb.Html(f"<pre>{escape(text)}</pre>") for name, text in end.texts.items()}
            if (media := {**pictures, **texts}) and end.generation >= opened.step - 1:
                opened.log(media, step=end.generation)
            opened.summary.update(dict(end.summary))
        opened.finish(exit_code=int(end is None))
        own = Path(opened.dir).parent  # it has now what an earlier one had
        for earlier in own.parent.glob(f"offline-run-*-{run.id}") if end is not None else ():
            if earlier != own:
                shutil.rmtree(earlier)
