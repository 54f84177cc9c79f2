"""What trackers receive: one run per chain with every value once, ends, failures, and no change of the store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import selfloop
import tiny_components
from selfloop.errors import MissingExtraError, SelfloopError
from selfloop.stats.intervals import mean_interval
from selfloop.trackers import tracking
from selfloop.trackers.tracker import RunEnd, TrackedRun, Tracker
from selfloop.trackers.tracking import describe_run

SPEC = selfloop.Spec(source="moons", family="kde", n=10, holdout=5, generations=3, seeds=2)


class ListTracker(Tracker):
    """Keeps what it receives; fails from the generation on that its target names."""

    def __init__(self, target: str = "") -> None:
        super().__init__(target)
        self.runs: dict[str, TrackedRun] = {}
        self.values: dict[str, list[tuple[int, str, float]]] = {}
        self.ends: dict[str, RunEnd | None] = {}
        self.n_failures = 0

    def start(self, run: TrackedRun) -> None:
        assert run.id not in self.runs
        self.runs[run.id] = run
        self.values[run.label] = []

    def log(self, run: TrackedRun, generation: int, values: Mapping[str, float]) -> None:
        if self.target and generation >= int(self.target):
            self.n_failures += 1
            raise OSError("disk full")
        self.values[run.label] += [(generation, name, value) for name, value in values.items()]

    def finish(self, run: TrackedRun, end: RunEnd | None) -> None:
        self.ends[run.label] = end


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> ListTracker:
    instance = ListTracker()
    monkeypatch.setattr(tracking, "open_tracker", lambda text: ListTracker("2") if text == "failing" else instance)
    return instance


def test_every_chain_is_a_run_with_its_values_once_and_its_end(tmp_path: Path, tracker: ListTracker) -> None:
    result = selfloop.run(SPEC, tmp_path, track=["list"])
    assert [*tracker.values] == [f"{policy}, seed {seed}" for policy in ("replace", "accumulate") for seed in (0, 1)]
    for policy, curves in result.curves().items():
        for seed in (0, 1):
            expected = [(t + 1, "nll", curves["nll"][seed, t]) for t in range(3)]
            values = tracker.values[f"{policy}, seed {seed}"]
            assert [value for value in values if value[1] == "nll"] == expected
            assert len(values) == len({value[:2] for value in values})
    first, second = tracker.ends["replace, seed 0"], tracker.ends["replace, seed 1"]
    assert first is not None
    assert second is not None
    answers = {
        f"verdict/{v.criterion}": v.answer for v in result.verdicts() if v.policy == "replace" and v.answer != "not measured"
    }
    assert first.summary == second.summary == answers
    assert first.pictures["samples"].format == "PNG"
    assert second.pictures == {}, "galleries are of the first seed"


def test_above_twenty_seeds_a_policy_is_one_run_with_means_and_limits(tmp_path: Path, tracker: ListTracker) -> None:
    result = selfloop.run(replace(SPEC, seeds=tuple(range(21))), tmp_path, track=["list"])
    assert [*tracker.values] == ["replace, 21 seeds", "accumulate, 21 seeds"]
    last = mean_interval(result.curves()["replace"]["nll"][:, 2])
    values = {name: value for t, name, value in tracker.values["replace, 21 seeds"] if t == 3}
    assert (values["nll/mean"], values["nll/low"], values["nll/high"]) == (last.estimate, last.low, last.high)


def test_ids_depend_on_what_numbers_depend_on_and_on_nothing_else() -> None:
    def id_of(spec: selfloop.Spec, position: int = 0, seed: int | None = 0) -> str:
        return describe_run(spec.points()[0], position, seed).id

    equal = [
        replace(SPEC, seeds=(0, 1, 2)),
        replace(SPEC, policies=("replace", "fresh")),
        replace(SPEC, criteria=("any_increase",)),
    ]
    assert {id_of(spec) for spec in equal} == {id_of(SPEC)}
    others = [
        id_of(SPEC, 1), id_of(SPEC, 0, 1), id_of(SPEC, 0, None), id_of(replace(SPEC, n=11)),
        id_of(replace(SPEC, generations=4)),
        id_of(replace(SPEC, family={"name": "kde", "bandwidth": 0.2})),  # type: ignore[arg-type]
    ]  # fmt: skip
    assert len({id_of(SPEC), *others}) == 7


def test_settings_are_plain_values(tmp_path: Path) -> None:
    config = describe_run(selfloop.Spec(source="moons", family="kde", n=10, sweep={"n": (10, 20)}).points()[1], 1, 3).config
    assert config["policy"] == "accumulate"
    assert config["n"] == 20
    assert config["seed"] == 3
    assert config["source.name"] == "moons"
    assert {type(value) for value in config.values()} <= {bool, int, float, str}


def test_a_tracker_that_fails_warns_once_and_the_run_and_other_trackers_go_on(tmp_path: Path, tracker: ListTracker) -> None:
    with pytest.warns(UserWarning, match=r"failed \(OSError: disk full\); the run goes on without it") as caught:
        result = selfloop.run(SPEC, tmp_path, track=["failing", "list"])
    assert len(caught) == 1
    assert np.isfinite(result.curves()["replace"]["nll"]).all()
    assert len(tracker.ends) == 4


@pytest.mark.parametrize(("name", "end"), [("describe_run", 0), ("describe_ends", 4)])
def test_what_fails_in_describing_a_run_costs_no_result(
    tmp_path: Path, tracker: ListTracker, monkeypatch: pytest.MonkeyPatch, name: str, end: int
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no picture")

    monkeypatch.setattr(tracking, name, fail)
    with pytest.warns(UserWarning, match="describing the run failed .RuntimeError: no picture.; the run goes on") as caught:
        result = selfloop.run(SPEC, tmp_path, track=["list"])
    assert len(caught) == 1
    assert np.isfinite(result.curves()["replace"]["nll"]).all()
    assert [*tracker.ends.values()] == [None] * end


def test_an_interrupted_run_closes_its_runs(tmp_path: Path, tracker: ListTracker) -> None:
    def interrupt(measurements: list[selfloop.Measurement]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selfloop.run(SPEC, tmp_path, track=["list"], on_measured=interrupt)
    assert tracker.ends == {"replace, seed 0": None, "replace, seed 1": None}


def test_the_status_of_a_chain_is_in_its_end_only(tmp_path: Path, tracker: ListTracker) -> None:
    family = tiny_components.Mean(limit=0.0)
    spec = selfloop.Spec(
        source=tiny_components.Ticks(), family=family, metrics=(tiny_components.Level(),), n=5, holdout=0, generations=3,
        seeds=6, policies=("replace",), criteria=("any_increase",),
    )  # fmt: skip
    result = selfloop.run(spec, tmp_path, track=["list"])
    ended = {f"replace, seed {seed}" for seed in range(6) if np.isnan(result.curves()["replace"]["level"][seed]).any()}
    assert ended
    assert {label for label, end in tracker.ends.items() if end and end.summary.get("status") == "too_high"} == ended


def test_tracking_changes_nothing_in_the_store(tmp_path: Path, tracker: ListTracker) -> None:
    assert list(selfloop.run(SPEC, tmp_path / "a", track=["list"]).measurements) == list(
        selfloop.run(SPEC, tmp_path / "b").measurements
    )
    assert tiny_components.objects_of(tmp_path / "a") == tiny_components.objects_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wanbd", r"^track: unknown tracker 'wanbd'\. Did you mean 'wandb'\?"),
        ("tensorboard", r"^track: got 'tensorboard', whose target is empty; .* tensorboard=runs\.$"),
        ("tensorboard=", r"^track: got 'tensorboard=', whose target is empty; .* tensorboard=runs\.$"),
        ("wandb=", r"^track: got 'wandb=', whose target is empty; .* wandb alone\.$"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_work(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SelfloopError, match=said):
        selfloop.run(SPEC, tmp_path / "store", track=[text])
    assert not (tmp_path / "store").exists()


def test_a_missing_extra_is_one_sentence_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.delitem(sys.modules, "selfloop.trackers.trackio", raising=False)
    with pytest.raises(MissingExtraError, match=r"^track: 'trackio': needs trackio, .* pip install 'selfloop\[trackio\]'$"):
        selfloop.run(SPEC, tmp_path / "store", track=["trackio"])
    assert not (tmp_path / "store").exists()


def test_a_tool_of_which_only_the_folder_is_there_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "split_tracker", lambda text: (text, ""))  # it finds the folder
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.delitem(sys.modules, "selfloop.trackers.trackio", raising=False)
    with pytest.raises(MissingExtraError, match=r"^track: 'trackio': needs trackio, .* pip install 'selfloop\[trackio\]'$"):
        tracking.open_tracker("trackio")


def test_the_command_line_finds_a_missing_extra_before_it_loads_anything_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['tensorboard'] = None\n"
        "sys.argv[1:] = ['run', 'quickstart_linear', '--track', 'tensorboard=runs']\n"
        "from selfloop.commands.cli import main\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'pandas', 'sklearn'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "set()"), done.stderr
    assert "needs tensorboard, which is not installed. Run: pip install" in done.stderr


def test_the_command_line_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(tiny_components.KDE)
    done = tiny_components.selfloop("run", str(tmp_path / "spec.toml"), "--track", "mlflw", "--store", str(tmp_path / "store"))
    assert done.code == 2
    assert "track: unknown tracker 'mlflw'. Did you mean 'mlflow'?" in done.err
