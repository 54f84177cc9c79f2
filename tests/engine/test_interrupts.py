"""No step during which an interrupt arrived is recorded, whatever library catches, resets or delays it."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tiny_components
from selfloop.columns import Columns, Params, Ragged
from selfloop.commands.verify import verify
from selfloop.component import Context, Family, Metric, Sampler
from selfloop.engine.run import iter_measurements
from selfloop.errors import ChainEndedError, SelfloopError
from selfloop.snapshots import Snapshot
from selfloop.spec.spec import Spec
from selfloop.store.identity import stored_step
from selfloop.store.store import Store
from selfloop.types import TrainingRows


@dataclass(frozen=True, kw_only=True)
class Size(Family):
    """The mean size of molecules."""

    name: ClassVar[str] = "size"

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        positions = rows.all()["position"]
        assert isinstance(positions, Ragged)
        return {"size": np.asarray(np.abs(positions.values).mean())}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"x": np.full(n, params["size"])}


@dataclass(frozen=True, kw_only=True)
class SizeItself(Metric):
    """The mean size."""

    name: ClassVar[str] = "size"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"size": float(snap.params["size"])}


def molecules_spec() -> Spec:
    return Spec(
        source={"name": "smiles", "molecules": 25}, family=Size(), metrics=(SizeItself(),), n=10, generations=1, seeds=1,
        policies=("replace",), criteria=("any_increase",),
    )  # fmt: skip


def run_molecules(store: Path, *, ignores: bool) -> subprocess.Popen[str]:
    """A process in a group of its own that embeds molecules with one worker; it waits for no library after `ready`."""
    environment = tiny_components.environment(PYTHONPATH=os.pathsep.join(sys.path))
    child = subprocess.Popen(
        [sys.executable, __file__, str(store), str(int(ignores))], stdout=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


def undisturbed(folder: Path) -> Path:
    child = run_molecules(folder, ignores=False)
    assert child.wait() == 0
    return folder


def check_equal(store: Path, other: Path) -> None:
    assert tiny_components.objects_of(store) == tiny_components.objects_of(other)
    assert tiny_components.results_of(store) == tiny_components.results_of(other)


@pytest.mark.slow
def test_interrupts_change_nothing_that_rdkit_computes(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    whole = undisturbed(tmp_path / "whole")
    child = run_molecules(tmp_path / "rain", ignores=True)  # the run goes on through all of them
    while child.poll() is None:
        os.killpg(child.pid, signal.SIGINT)
        time.sleep(0.01)
    assert child.communicate()[0] == "done\n"  # its exit code may be that of an interrupt while Python ended
    check_equal(tmp_path / "rain", whole)


@pytest.mark.slow
def test_a_run_of_rdkit_that_was_interrupted_at_many_moments_ends_with_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    rng, store = random.Random(0), tmp_path / "store"
    for _ in range(5):
        child = run_molecules(store, ignores=False)
        time.sleep(rng.uniform(0, 3))
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)
        assert child.wait() in (0, 130, -signal.SIGINT)  # the last one while Python ended
    assert run_molecules(store, ignores=False).wait() == 0
    check_equal(store, undisturbed(tmp_path / "whole"))


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@stored_step("catching", version=1)
def catching() -> int:
    """A library that catches the exception and goes on with less."""
    with suppress(KeyboardInterrupt):
        interrupt()
        return 2
    return 1


@stored_step("replacing", version=1)
def replacing() -> int:
    """A library that ignores interrupts from now on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 1


@stored_step("replacing_in_c", version=1)
def replacing_in_c() -> int:
    """The same in C, which Python does not notice."""
    ctypes.CDLL(None).signal(signal.SIGINT, 1)
    return 1


@stored_step("ending", version=1)
def ending() -> int:
    """A step that ends its chain because of an interrupt."""
    with suppress(KeyboardInterrupt):
        interrupt()
    raise ChainEndedError("diverged")


@stored_step("undisturbed", version=1)
def calm() -> int:
    return 1


@pytest.fixture
def handler() -> Any:
    """The handler of a process that pytest did not start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (catching, KeyboardInterrupt),
        (ending, KeyboardInterrupt),
        (replacing, SelfloopError),
        (replacing_in_c, SelfloopError),
    ],
)
def test_a_step_that_hides_an_interrupt_is_not_recorded(
    tmp_path: Path, step: Callable[[], int], error: type[BaseException], handler: Any
) -> None:
    store = Store(tmp_path)
    with pytest.raises(error):
        store.call(step)
    assert tiny_components.results_of(tmp_path) == {}
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert store.call(calm) == 1
    assert signal.getsignal(signal.SIGINT) is handler


@dataclass(frozen=True, kw_only=True)
class Isolated(Metric):
    """1 in a process that no interrupt reaches."""

    name: ClassVar[str] = "isolated"
    takes_over_interrupts: ClassVar[bool] = True

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"isolated": float(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))}


def test_verify_recomputes_where_a_run_computes(tmp_path: Path, handler: Any) -> None:
    spec = tiny_components.tiny_spec(metrics=(Isolated(),), generations=1, seeds=1, policies=("replace",))
    assert {row.value for row in iter_measurements(spec, tmp_path) if row.metric == "isolated"} == {1.0}
    assert verify(spec, tmp_path, 1000).wrong == []


def main() -> None:
    """Run the molecules: `STORE 1` goes on through interrupts."""
    if sys.argv[2] == "1":
        signal.signal(signal.SIGINT, lambda number, frame: None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        list(iter_measurements(molecules_spec(), sys.argv[1], workers=1, threads=1))
        sys.stdout.write("done\n")
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
