"""Each tracker with its real tool, offline: values, settings, verdicts and a picture arrive, and a rerun doubles nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import selfloop
from selfloop.trackers.tracker import RunEnd, TrackedRun
from selfloop.trackers.tracking import describe_run, open_tracker

SPEC = selfloop.Spec(source="moons", family="kde", n=10, holdout=5, generations=3, seeds=2, policies=("replace",))
pytestmark = pytest.mark.slow  # importing a tool takes seconds


@dataclass
class LoggedRun:
    """What a tool has of one run."""

    values: list[tuple[int, str, float]] = field(default_factory=list)
    config: str = ""
    summary: str = ""
    n_pictures: int = 0


def interrupt(measurements: list[selfloop.Measurement]) -> None:
    raise KeyboardInterrupt


def check_runs(track: str, folder: Path, read: Callable[[], dict[str, LoggedRun]]) -> None:
    """Run a spec twice, the first time interrupted, and compare what the tool has with the result."""
    store = folder / "store"

    with pytest.raises(KeyboardInterrupt):
        selfloop.run(SPEC, store, track=[track], on_measured=interrupt)
    result = selfloop.run(SPEC, store, track=[track])
    once = read()
    selfloop.run(SPEC, store, track=[track])
    again = read()
    ids = [describe_run(SPEC.points()[0], 0, seed).id for seed in (0, 1)]
    assert len(once) == len(again) == 2
    for seed, run_id in enumerate(ids):
        for runs in (once, again):
            run = next(run for name, run in runs.items() if run_id[:8] in name)
            assert len(run.values) == len({(t, name) for t, name, _ in run.values}), "a value is there twice"
            measured = {t: value for t, name, value in run.values if name == "nll"}
            assert measured == pytest.approx(dict(enumerate(result.curves()["replace"]["nll"][seed], 1)), rel=1e-6)
            assert "moons" in run.config
            assert "any_increase" in run.summary
            assert run.n_pictures == (1 if seed == 0 else 0)


def finish_twice(track: str, *answers: str) -> TrackedRun:
    """Track a run once per answer to a criterion, as seeds that are added later may change it."""
    run = TrackedRun(id="0123456789abcdef", label="replace " * 40, group="kde on " + "moons/" * 50, config={"policy": "a|b"})
    for answer in answers:
        tracker = open_tracker(track)
        tracker.start(run)
        tracker.log(run, 1, {"nll": 0.1})
        tracker.finish(run, RunEnd(generation=1, summary={"verdict/any_increase": answer}))
    return run


def test_tensorboard_shortens_names_and_keeps_tables(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = finish_twice(f"tensorboard={tmp_path}", "yes")
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    assert folder.name.endswith(run.id[:8])
    events = EventAccumulator(str(folder))
    events.Reload()
    (config,) = events.Tensors("config/text_summary")[-1].tensor_proto.string_val
    assert config.decode().splitlines() == ["| name | value |", "| --- | --- |", "| policy | a\\|b |"]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read() -> dict[str, LoggedRun]:
        runs = {}
        for folder in {path.parent for path in (tmp_path / "tb").rglob("events.out.tfevents.*")}:
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
            events.Reload()
            tags = events.Tags()
            texts = {tag: str(events.Tensors(tag)[-1].tensor_proto.string_val) for tag in tags["tensors"]}
            values = [(event.step, tag, event.value) for tag in tags["scalars"] for event in events.Scalars(tag)]
            n_pictures = sum(len(events.Images(tag)) for tag in tags["images"])
            runs[folder.name] = LoggedRun(values, texts["config/text_summary"], texts["summary/text_summary"], n_pictures)
        return runs

    check_runs(f"tensorboard={tmp_path / 'tb'}", tmp_path, read)


def read_wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline file: 7 bytes, then blocks of 32 KiB with records of crc, length and kind, as in LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, pending = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            record = Record()
            record.ParseFromString(pending)
            yield record
            pending = b""


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))

    def read() -> dict[str, LoggedRun]:
        runs = dict[str, LoggedRun]()
        for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"):
            assert path.stem not in runs, "two folders of one run"
            run = runs[path.stem.removeprefix("run-")] = LoggedRun()
            for record in read_wandb_records(path):
                items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                run.values += [(items["_step"], key, x) for key, x in items.items() if isinstance(x, float) and key[0] != "_"]
                run.n_pictures += "samples/_type" in items
                run.config += "".join(item.value_json for item in record.run.config.update)
                run.summary += "".join(item.key or "/".join(item.nested_key) for item in record.summary.update)
        return runs

    check_runs("wandb", tmp_path, read)
    before = set(tmp_path.rglob("run-*.wandb"))
    with pytest.raises(KeyboardInterrupt):
        selfloop.run(SPEC, tmp_path / "store", track=["wandb"], on_measured=interrupt)
    assert before <= set(tmp_path.rglob("run-*.wandb")), "an interrupted run has less than the one before"


def test_mlflow_with_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    address = f"sqlite:///{tmp_path / 'runs.db'}"
    client = mlflow.MlflowClient(tracking_uri=address)

    def read() -> dict[str, LoggedRun]:
        experiment = client.get_experiment_by_name("selfloop")
        runs = {}
        for run in client.search_runs([experiment.experiment_id]):
            assert run.info.status == "FINISHED"
            histories = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
            values = [(metric.step, metric.key, metric.value) for history in histories for metric in history]
            n_pictures = sum(file.path.endswith(".png") for file in client.list_artifacts(run.info.run_id))
            runs[run.info.run_name] = LoggedRun(values, str(run.data.params), str(run.data.tags), n_pictures)
        return runs

    check_runs(f"mlflow={address}", tmp_path, read)


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before its import
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    def read() -> dict[str, LoggedRun]:
        runs = {}
        for name in SQLiteStorage.get_runs("selfloop"):
            rows = SQLiteStorage.get_logs("selfloop", run=name)
            values = [(row["step"], key, x) for row in rows for key, x in row.items() if isinstance(x, float)]
            summary = " ".join(key for row in rows for key in row if key.startswith("verdict/"))
            config = str(SQLiteStorage.get_run_config("selfloop", run=name))
            runs[name] = LoggedRun(values, config, summary, sum("samples" in row for row in rows))
        return runs

    check_runs("trackio", tmp_path, read)
    run = finish_twice("trackio", "undecided", "yes", "yes")
    rows = SQLiteStorage.get_logs("selfloop", run=run.name)
    assert [row[key] for row in rows for key in row if key.startswith("verdict/")] == ["undecided", "yes"]
    assert [row["nll"] for row in rows if "nll" in row] == [0.1]
