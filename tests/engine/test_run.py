"""The same spec gives the same bits, in any number of processes and with any results stored before."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
import tiny_components
from selfloop.engine import executors, tasks
from selfloop.engine.run import iter_measurements, run_tasks
from selfloop.engine.tasks import plan_tasks
from selfloop.formats.json_lines import write_measurements
from selfloop.result import Result, run
from selfloop.spec.spec import Spec
from selfloop.types import Measurement

Key = tuple[object, ...]


def text_of(result: Result) -> str:
    lines: list[str] = []
    write_measurements(result.measurements, lines.append)
    return "".join(lines)


def numbers(spec: Spec, store: Path) -> dict[Key, tuple[float | None, str | None]]:
    """Value and status of every measurement; fails for a measurement that comes twice."""
    rows = list(iter_measurements(spec, store))
    found = {(row.coordinates, row.policy, row.seed, row.generation, row.metric): (row.value, row.status) for row in rows}
    assert len(found) == len(rows)
    return found


def ensemble(**changes: Any) -> Spec:
    """Chains of a family that runs all seeds at once."""
    settings = {"source": "gaussian", "family": "gaussian", "n": 10, "holdout": 5, "generations": 3, "seeds": 3,
                "policies": ("replace", "accumulate"), "criteria": ("any_increase",)}  # fmt: skip
    return Spec(**{**settings, **changes})


SPECS = {
    "stored": lambda **changes: tiny_components.tiny_spec(**changes),
    "stored, some of which end": lambda **changes: tiny_components.tiny_spec(family=tiny_components.Mean(limit=0.2), **changes),
    "statistics": lambda **changes: ensemble(source={"name": "gaussian", "dim": 3}, **changes),
    "statistics of regressions": lambda **changes: ensemble(
        source={"name": "linear", "dim": 3}, family="linear", **{"n": 20, **changes}
    ),
    "statistics of counts": lambda **changes: ensemble(source="zipf", family="discrete", **changes),
    "rows": lambda **changes: ensemble(**{"policies": ("accumulate_subsample", "balanced"), **changes}),
    "rows of counts": lambda **changes: ensemble(
        source="zipf", family="discrete", **{"policies": ("accumulate_subsample", "balanced"), **changes}
    ),
    "rows of regressions": lambda **changes: ensemble(
        source={"name": "linear", "dim": 3}, family="linear", **{"n": 20, "policies": ("mix", "balanced"), **changes}
    ),
    "rows of densities": lambda **changes: ensemble(source="moons", family="kde", **changes),
}
every_world = pytest.mark.parametrize("make", SPECS.values(), ids=SPECS.keys())


@pytest.mark.parametrize(
    "make",
    [
        make if name in ("stored", "statistics", "rows") else pytest.param(make, marks=pytest.mark.slow)
        for name, make in SPECS.items()
    ],
    ids=SPECS.keys(),
)
def test_two_worker_processes_give_the_rows_and_objects_of_one(make: Any, tmp_path: Path) -> None:
    spec = make(seeds=(0, 300))  # two blocks
    texts = [text_of(selfloop.run(spec, tmp_path / str(w), workers=w, threads=1)) for w in (1, 2)]
    assert texts[0] == texts[1]
    assert tiny_components.objects_of(tmp_path / "1") == tiny_components.objects_of(tmp_path / "2")
    assert tiny_components.results_of(tmp_path / "1") == tiny_components.results_of(tmp_path / "2")


@pytest.mark.parametrize("make", SPECS.values(), ids=SPECS.keys())
def test_a_seed_s_numbers_do_not_depend_on_the_other_seeds(make: Any, tmp_path: Path) -> None:
    many = numbers(make(seeds=(0, 3, 7, 255, 256, 301)), tmp_path / "many")
    for seeds in ((3,), (7, 3), (256, 255), (301,), (0, 1, 2, 3)):
        few = numbers(make(seeds=seeds), tmp_path / "few")
        shared = {key: value for key, value in many.items() if key[2] in seeds}
        assert shared
        assert {key: few[key] for key in shared} == shared


@every_world
def test_a_policy_s_numbers_do_not_depend_on_the_other_policies(make: Any, tmp_path: Path) -> None:
    both = numbers(make(policies=("accumulate", "mix", "balanced")), tmp_path / "both")
    alone = numbers(make(policies=("mix",)), tmp_path / "alone")
    assert alone == {key: value for key, value in both.items() if key[1] == "mix"}


@every_world
def test_the_first_generations_of_a_longer_run_are_the_shorter_run(make: Any, tmp_path: Path) -> None:
    short = numbers(make(generations=2), tmp_path / "short")
    long = numbers(make(generations=4), tmp_path / "long")
    assert short == {key: value for key, value in long.items() if int(str(key[3])) <= 2}


@every_world
def test_a_second_run_computes_nothing_and_returns_the_same(make: Any, tmp_path: Path) -> None:
    first, second = (selfloop.run(make(), tmp_path) for _ in range(2))
    assert text_of(first) == text_of(second)
    assert sum(used.computed for used in second.usage.values()) == 0
    assert sum(used.reused for used in second.usage.values()) > 0


def steps_computed(result: Result) -> Counter[str]:
    counts: Counter[str] = Counter()
    for used in (result.shared, *result.usage.values()):
        counts.update({name: count for name, (count, _) in used.by_step.items()})
    return counts


def with_control(**changes: Any) -> Spec:
    return tiny_components.tiny_spec(**{"policies": ("accumulate", {"name": "control", "of": "accumulate"}), **changes})


@pytest.mark.parametrize("make", [with_control, SPECS["stored, some of which end"], SPECS["statistics"]])
def test_a_stored_run_starts_no_worker_process(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, seen = make(seeds=(0, 300)), {1: set[tuple[int, int]](), 2: set[tuple[int, int]]()}
    first = selfloop.run(spec, tmp_path, workers=2, threads=1)
    monkeypatch.setattr(executors, "_Pool", None)  # nothing can start a process
    alone, second = (
        selfloop.run(spec, tmp_path, workers=w, threads=1, progress=lambda *at, w=w: seen[w].add(at)) for w in (1, 2)
    )
    assert text_of(first) == text_of(second)
    assert (second.usage, second.shared) == (alone.usage, alone.shared)
    assert seen[1] == seen[2]


def test_workers_compute_what_is_damaged_or_missing_of_a_stored_run(tmp_path: Path) -> None:
    spec = with_control(seeds=3, generations=2)
    first = selfloop.run(spec, tmp_path, workers=1)
    intact, results = tiny_components.objects_of(tmp_path), tiny_components.results_of(tmp_path)
    damaged = sorted((tmp_path / "objects").glob("*/*.safetensors"))[0]
    damaged.chmod(0o644)
    damaged.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=f"damaged file .*{damaged.name}: set aside and computed again") as warned:
        second = selfloop.run(spec, tmp_path, workers=2, threads=1)
    assert len(warned) == 1
    assert text_of(second) == text_of(first)
    assert (tiny_components.objects_of(tmp_path), tiny_components.results_of(tmp_path)) == (intact, results)
    longer = with_control(seeds=3, generations=3)
    runs = [selfloop.run(longer, place, workers=2, threads=1) for place in (tmp_path, tmp_path / "anew")]
    assert text_of(runs[0]) == text_of(runs[1])
    assert steps_computed(runs[0])["fit"] == 6  # 2 policies x 3 seeds x 1 generation


def test_policies_of_a_seed_share_their_first_generation(tmp_path: Path) -> None:
    done = steps_computed(selfloop.run(tiny_components.tiny_spec(seeds=1, generations=3), tmp_path))
    # generation 1 once, generation 2 of accumulate and its subsample differ, so 1 + 3 policies x 2 generations
    assert done == {"draw_real": 2, "fit": 7, "sample": 7, "measure": 7}


def test_a_longer_run_computes_only_what_is_new(tmp_path: Path) -> None:
    selfloop.run(tiny_components.tiny_spec(seeds=2, generations=3), tmp_path)
    longer = selfloop.run(tiny_components.tiny_spec(seeds=2, generations=5), tmp_path)
    assert steps_computed(longer) == {"fit": 12, "sample": 12, "measure": 12}  # 3 policies x 2 seeds x 2 generations
    more = selfloop.run(tiny_components.tiny_spec(seeds=3, generations=5), tmp_path)
    assert steps_computed(more) == {"draw_real": 2, "fit": 13, "sample": 13, "measure": 13}


def test_another_metric_never_fits_or_samples_again(tmp_path: Path) -> None:
    selfloop.run(tiny_components.tiny_spec(), tmp_path)
    wider = selfloop.run(tiny_components.tiny_spec(metrics=(tiny_components.Level(), tiny_components.Energy())), tmp_path)
    assert steps_computed(wider) == {"measure": 20}  # 2 seeds x (1 + 3 policies x 3 generations)


def test_a_chain_that_ended_is_replayed_with_its_status(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(family=tiny_components.Mean(limit=0.2), seeds=6)
    first, second = numbers(spec, tmp_path), numbers(spec, tmp_path)
    assert first == second
    ended = {key[1:4] for key, (_, status) in first.items() if status == "too_high"}
    assert ended
    for policy, seed, generation in ended:
        measured = {key: value for key, (value, _) in first.items() if key[4] not in ("real_mass", "data_age")}
        rows = {int(str(key[3])): value for key, value in measured.items() if key[1:3] == (policy, seed)}
        assert max(rows) == generation
        assert all((value is None) == (t == generation) for t, value in rows.items())


def test_rows_of_a_generation_come_before_the_next_is_fitted(tmp_path: Path) -> None:
    rows = iter_measurements(tiny_components.tiny_spec(seeds=1, policies=("replace",)), tmp_path)
    fits = []
    for row in rows:
        done = [body for body in tiny_components.results_of(tmp_path).values() if "value" in body]
        fits.append((row.generation, len(done)))
    assert [generation for generation, _ in fits] == [
        t for t in (1, 2, 3, 4) for _ in range(4)
    ]  # two metrics, real mass, data age
    assert all(measured == generation for generation, measured in fits)


def test_a_sweep_gives_the_rows_of_its_points(tmp_path: Path) -> None:
    swept = numbers(tiny_components.tiny_spec(sweep={"n": (10, 20), "family.limit": (0.4, 9.0)}), tmp_path)
    for n in (10, 20):
        for limit in (0.4, 9.0):
            coordinates = (("n", n), ("family.limit", limit))
            point = numbers(tiny_components.tiny_spec(n=n, family=tiny_components.Mean(limit=limit)), tmp_path)
            assert {key[1:]: value for key, value in swept.items() if key[0] == coordinates} == {
                k[1:]: v for k, v in point.items()
            }


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    list(iter_measurements(tiny_components.tiny_spec(), tmp_path, progress=lambda done, total: reported.append((done, total))))
    assert reported == [(0, 24)] * 3 + [
        (i + 1, 2 * 3 * 4) for i in range(24)
    ]  # the start, two shared tasks, and then each generation


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_notes_say_which_chain_computes_which_step(tmp_path: Path, workers: int) -> None:
    notes: list[str] = []
    selfloop.run(tiny_components.tiny_spec(), tmp_path, workers=workers, notify=notes.append)
    assert notes[0].endswith("generation 1: draw real")
    if workers == 1:  # notes of workers come at most twice a second
        assert [note for note in notes if note.startswith("accumulate, seed 1, generation 3: ")] == [
            f"accumulate, seed 1, generation 3: {step}" for step in ("fit", "sample", "measure")
        ]
        notes.clear()
        selfloop.run(tiny_components.tiny_spec(), tmp_path, notify=notes.append)
        assert notes == []


def measure_threads(task: int, notify: Any) -> Any:
    """The thread variables of a worker; task 13 fails."""
    if task == 13:
        raise ZeroDivisionError("thirteen")
    yield task, os.getpid(), {name: os.environ.get(name) for name in executors.THREAD_VARIABLES}


def test_workers_have_their_threads_set_before_they_start() -> None:
    before = dict(os.environ)
    found = list(executors.execute(measure_threads, range(6), workers=2, threads=3))
    assert sorted(task for task, _, _ in found) == list(range(6))
    assert os.getpid() not in {pid for _, pid, _ in found}
    assert all(set(variables.values()) == {"3"} for _, _, variables in found)
    assert dict(os.environ) == before


def test_an_error_in_a_worker_is_raised_in_the_parent_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="thirteen") as raised:
        list(executors.execute(measure_threads, [13, 13], workers=2, threads=1))
    assert "in measure_threads" in "".join(raised.value.__notes__)


def threads_of(tmp_path: Path, **changes: Any) -> list[set[int]]:
    """Threads of the tasks of each phase."""
    return [{task.threads for task in phase} for phase in plan_tasks(tiny_components.tiny_spec(**changes), tmp_path)]


def test_threads_per_chain_are_decided_by_the_spec_and_the_option_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tasks, "count_cores", lambda: 2)
    before = threads_of(tmp_path, seeds=1, generations=5, policies=("replace", "accumulate"))
    assert before == [{2}, {2}]
    selfloop.run(tiny_components.tiny_spec(seeds=1, generations=5, policies=("accumulate",)), tmp_path)
    assert (
        threads_of(tmp_path, seeds=1, generations=5, policies=("replace", "accumulate")) == before
    )  # independent of the store
    assert {task.threads for phase in plan_tasks(tiny_components.tiny_spec(), tmp_path, 5) for task in phase} == {5}


@pytest.mark.parametrize(
    ("cores", "changes", "expected"),
    [
        (1, {"seeds": 1, "policies": ("replace",)}, [1, 1]),
        (2, {"seeds": 1, "policies": ("replace",)}, [2, 2]),
        (2, {"seeds": 1, "policies": ("replace", "accumulate_subsample")}, [2, 1]),  # two equal chains, one first generation
        (2, {"seeds": 3}, [2, 1]),  # nine chains keep both cores busy; of three first generations one would run alone
        (8, {"seeds": 2, "policies": ("replace", "accumulate_subsample")}, [4, 2]),
        (8, {"seeds": 1, "policies": ("replace", "accumulate")}, [8, 8]),
    ],
)
def test_threads_minimize_the_end_of_the_last_chain(
    cores: int, changes: dict[str, Any], expected: list[int], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tasks, "count_cores", lambda: cores)
    assert threads_of(tmp_path, **changes) == [{threads} for threads in expected]


def test_the_longest_chains_are_the_first_to_run(tmp_path: Path) -> None:
    done = [
        part.policy
        for part in run_tasks(tiny_components.tiny_spec(seeds=1), tmp_path, workers=1, threads=1, progress=None)
        if not part.shared
    ]
    assert done == [1] * 4 + [0] * 4 + [2] * 4


DRAWN: list[tuple[int, int]] = []  # a list in the function around a class would be a part of the identity of the class


class Watched(tiny_components.Ticks):
    def draw(self, first: int, n: int, ctx: Any) -> Any:
        DRAWN.append((first, n))
        return super().draw(first, n, ctx)


def test_real_rows_of_holdout_and_batches_never_overlap(tmp_path: Path) -> None:
    DRAWN.clear()
    list(iter_measurements(tiny_components.tiny_spec(source=Watched(), seeds=1, policies=("fresh",)), tmp_path))
    rows = [row for first, n in DRAWN for row in range(first, first + n)]
    assert len(rows) == len(set(rows)) == 5 + 4 * 20
    assert (0, 5) in DRAWN  # the holdout comes first


def test_values_equal_those_of_a_plain_loop(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(seeds=(7,), policies=("accumulate",), generations=3)
    found = numbers(spec, tmp_path)
    from selfloop.rng import RandomStream

    seed = RandomStream(("seed", 7))
    pool = [seed.child("source", "rows").generator().standard_normal(25)[5:]]
    for t in (1, 2, 3):
        mean = np.average(np.concatenate(pool), weights=np.ones(20 * t))
        new = mean + seed.child("sample", t).generator().standard_normal(20)
        pool.append(new)
        assert found[((), "accumulate", 7, t, "level")] == (mean, None)
        assert found[((), "accumulate", 7, t, "last")] == (new[-1], None)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_measurement_is_passed_on_once_as_it_arrives(tmp_path: Path, workers: int) -> None:
    arrived = list[Measurement]()
    spec = tiny_components.tiny_spec(generations=2)
    for _ in range(2):  # computed, then stored
        arrived.clear()
        result = run(spec, tmp_path, workers=workers, on_measured=arrived.extend)
        measured = [m for m in result.measurements if m.metric not in ("real_mass", "data_age")]
        assert sorted(arrived) == sorted(measured)


def test_measurements_arrive_generation_by_generation(tmp_path: Path) -> None:
    counts = list[int]()
    run(tiny_components.tiny_spec(generations=3), tmp_path, on_measured=lambda new: counts.append(len(new)))
    assert counts == [2] * 18  # a metric and its secondary value, of 3 policies, 2 seeds and 3 generations
