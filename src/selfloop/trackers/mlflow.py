"""MLflow: `mlflow=URI`, such as `mlflow=sqlite:///runs.db`, or `mlflow` for the address in MLFLOW_TRACKING_URI."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric as LoggedMetric
from mlflow.entities import Param

from selfloop.trackers.tracker import PROJECT, RunEnd, TrackedRun, Tracker

MAX_PARAM_LENGTH = 6000  # of a value, in characters


class MlflowTracker(Tracker):
    """One run each, found again by its tag. A value with an equal step and time is one row, so times count steps."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.client = MlflowClient(tracking_uri=target or None)
        experiment = self.client.get_experiment_by_name(PROJECT)
        self.experiment = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)

    def start(self, run: TrackedRun) -> None:
        earlier = self.client.search_runs([self.experiment], f"tags.`selfloop.id` = '{run.id}'", max_results=1)
        tags = {"selfloop.id": run.id, "selfloop.group": run.group}
        self.runs[run.id] = earlier[0] if earlier else self.client.create_run(self.experiment, run_name=run.name, tags=tags)
        params = [Param(_name(key), str(value)[:MAX_PARAM_LENGTH]) for key, value in run.config.items()]
        self.client.log_batch(self.runs[run.id].info.run_id, params=params)

    def log(self, run: TrackedRun, generation: int, values: Mapping[str, float]) -> None:
        info = self.runs[run.id].info
        metrics = [LoggedMetric(_name(key), value, info.start_time + generation, generation) for key, value in values.items()]
        self.client.log_batch(info.run_id, metrics=metrics)

    def finish(self, run: TrackedRun, end: RunEnd | None) -> None:
        run_id = self.runs.pop(run.id).info.run_id
        if end is not None:
            for key, value in end.summary.items():
                self.client.set_tag(run_id, key, value)
            for name, picture in end.pictures.items():
                self.client.log_image(run_id, picture, artifact_file=f"{name}.png")
            for name, text in end.texts.items():
                self.client.log_text(run_id, text, f"{name}.txt")
        self.client.set_terminated(run_id, "KILLED" if end is None else "FINISHED")


def _name(key: str) -> str:
    """The key with the characters that MLflow allows."""
    return re.sub(r"[^\w\-./ :]", "_", key)
