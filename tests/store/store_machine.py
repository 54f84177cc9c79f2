"""A state machine of one store: runs, kills, damages, deletions and writers at the same time, in any order."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from selfloop.commands.gc import MIN_AGE, delete_garbage, find_garbage
from selfloop.commands.verify import verify
from selfloop.engine.run import iter_measurements
from selfloop.spec.spec import Spec
from selfloop.store.records import with_checksum

CHANGES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")  # audit events of a file system
MAX_CHANGES = 200  # after which a process is killed at the latest; a stored step makes about ten
GENERATIONS, POSITIONS = st.integers(0, 1 << 20), st.integers(0, 1 << 20)


def _flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data or b"\0")
    changed[at % len(changed)] ^= 1 << at % 8
    return bytes(changed)


def _truncate(data: bytes, at: int) -> bytes:
    return data[: at % (len(data) + 1)]


def _change_form(data: bytes, at: int) -> bytes:
    """A right checksum and another content."""
    return with_checksum((b"{}", b"[]", b'{"key": 1}', b'{"result": {"value": 7}}')[at % 4])


OBSTACLES: tuple[Callable[[Path], object], ...] = (
    Path.mkdir,
    os.mkfifo,
    lambda place: place.symlink_to(place),
    lambda place: None,
)


class StoreMachine(RuleBasedStateMachine):
    """Every run gives the rows of an undisturbed store. Subclasses set the spec."""

    spec: ClassVar[Spec]
    expected: ClassVar[dict[int, list[str]]]  # generations -> rows

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = self.folder / "store"

    def teardown(self) -> None:
        """Remove the store."""
        shutil.rmtree(self.folder)

    def _spec(self, generations: int) -> Spec:
        spec = replace(self.spec, generations=1 + generations % self.spec.generations)
        if spec.generations not in self.expected:
            self.expected[spec.generations] = _rows(spec, self.folder / f"undisturbed-{spec.generations}")
        return spec

    @rule(generations=GENERATIONS)
    def run(self, generations: int) -> None:
        """Run to a generation; a longer run extends a shorter one."""
        spec = self._spec(generations)
        assert _rows(spec, self.store) == self.expected[spec.generations]

    @rule(generations=GENERATIONS, after=st.integers(1, MAX_CHANGES))
    def kill(self, generations: int, after: int) -> None:
        """Kill a run before some change of a file."""
        with _process(self._spec(generations), self.store, after):
            pass

    @rule(generations=GENERATIONS, after=st.integers(1, MAX_CHANGES), deletes=st.booleans())
    def run_together(self, generations: int, after: int, deletes: bool) -> None:
        """Two runs at the same time, and one that is killed, while files are deleted or not."""
        spec = self._spec(generations)
        with (
            _process(spec, self.store) as first,
            _process(spec, self.store) as second,
            _process(spec, self.store, after),
        ):
            if deletes and (self.store / "FORMAT").exists():
                self.collect_garbage(old=False)
            assert first.recv() == second.recv() == self.expected[spec.generations]

    @rule(which=POSITIONS, at=POSITIONS, damage=st.sampled_from((_flip, _truncate, _change_form)))
    def damage(self, which: int, at: int, damage: Callable[[bytes, int], bytes]) -> None:
        """Change a third of the files."""
        for file in self._files(which):
            data = file.read_bytes()
            file.unlink()
            file.write_bytes(damage(data, at))

    @rule(which=POSITIONS, put=st.sampled_from(OBSTACLES))
    def replace(self, which: int, put: Callable[[Path], object]) -> None:
        """Delete a third of the files, or put something else in their place: a folder, a pipe, a link to itself."""
        for file in self._files(which):
            file.unlink()
            put(file)

    def _files(self, which: int) -> list[Path]:
        files = [file for file in sorted(self.store.rglob("*")) if file.is_file() and file.name != "FORMAT"]
        return files[which % 3 :: 3]

    @rule(old=st.booleans())
    def collect_garbage(self, old: bool) -> None:
        """Delete the garbage, now or after the age that gc waits for."""
        for path in self.store.rglob("*") if old else ():
            if not path.is_symlink():
                os.utime(path, (time.time() - 2 * MIN_AGE,) * 2)
        if self.store.exists():
            with warnings.catch_warnings(action="ignore"):
                delete_garbage(find_garbage(self.store), self.store)

    @rule(generations=GENERATIONS)
    def run_and_verify(self, generations: int) -> None:
        """After a run nothing that it used is damaged or wrong."""
        self.run(generations)
        verification = verify(self._spec(generations), self.store, records=2)
        assert (verification.wrong, verification.damaged) == ([], [])


def _rows(spec: Spec, store: Path) -> list[str]:
    """The rows of a run in the spec's order, as text: NaN is equal to itself."""
    with warnings.catch_warnings(action="ignore"):
        return [repr(row) for row in iter_measurements(spec, store)]


@contextmanager
def _process(spec: Spec, store: Path, after: int = 0) -> Iterator[Connection]:
    """A process that sends the rows of a run; with `after` it is killed before that change of a file in the store."""
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if hasattr(context, "set_forkserver_preload"):
        context.set_forkserver_preload([__name__])
    connection, child_end = context.Pipe()
    process = context.Process(target=_send_rows, args=(spec, store, after, child_end), daemon=True)
    process.start()
    child_end.close()
    try:
        yield connection
    finally:
        process.join()
        connection.close()


def _send_rows(spec: Spec, store: Path, after: int, connection: Connection) -> None:
    left = after

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left and event in CHANGES and str(arguments[0]).startswith(str(store)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    connection.send(_rows(spec, store))
