"""The one way to run a program of the user: without a shell, in a folder of its own, for a limited time, with its children.

A program gets a short, known environment, and its output goes to a log of limited size. Whatever ends the call (the program
itself, the time limit, Ctrl-C, or the end of this process, however it ends), no process of the program is left, but for one
that leaves both its process group and its environment (`env -i setsid`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from tempfile import gettempdir
from typing import IO, Any, cast

from selfloop.errors import SettingError, os_error_reason, printable
from selfloop.formats.folders import HIDDEN

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")  # by every program
MAX_LOG_BYTES = 8 << 20  # from the begin of a program's output
TAIL_BYTES = 1 << 16  # from its end, if it is longer
MAX_ANSWER_BYTES = 1 << 30  # that a program writes to its standard output, where that is its answer
READ_BYTES = 1 << 16
POLL_SECONDS = 0.05  # between looks at a program that writes nothing
DRAIN_SECONDS = 1.0  # for the rest of a pipe when all processes have ended
MARK = "SELFLOOP_PROGRAM"  # variable by which Linux finds processes of a program that left its process group
# It reads the process group of the program, waits until its input or this process ends, and then ends the group and, on Linux,
# all processes with the mark, again and again, as one that is found may just have started another.
WATCH = (
    'read group; read _; [ "$group" ] && kill -s KILL -- "-$group"; cd /proc && for _ in 1 2 3 4 5 6 7 8 9; do '
    'found=$(grep -ls -- "$1" [0-9]*/environ); [ "$found" ] || break; for file in $found; do kill -9 "${file%/*}"; done; done'
)


class ProgramError(Exception):
    """What a program did wrong, as the end of a sentence that begins with its name, and what the user can do."""

    def __init__(self, problem: str, advice: str = "Correct the program") -> None:
        super().__init__(problem)
        self.problem, self.advice = problem, advice


def sorted_files(files: Sequence[Path], reserved: Sequence[str] = ()) -> tuple[Path, ...]:
    """The files in the order of their names, which are then part of their identity; SettingError for two of one name."""
    names = sorted(path.name for path in files)
    if len(set(names)) < len(names):
        raise SettingError("files", f"got two files of the same name ({', '.join(names)}). Rename one.")
    if clashes := set(names) & set(reserved):
        raise SettingError("files", f"got the name {min(clashes)!r}, which selfloop itself uses. Rename it.")
    return tuple(sorted(files, key=lambda path: path.name))


def copy_files(files: Sequence[Path], folder: Path) -> None:
    """Copy files and folders, without hidden ones, into the folder in which a program runs."""
    ignored = shutil.ignore_patterns(*(f"{begin}*" for begin in HIDDEN))
    for path in files:
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=ignored)
        else:
            shutil.copy(path, folder / path.name)


def log_path(scratch: Path | None, name: str) -> Path:
    """The log of a program: in the folder `logs` of the store, beside the folder of scratch folders."""
    if scratch is not None and scratch.parent.name == "scratch":
        return scratch.parent.absolute().with_name("logs") / f"{scratch.name[:16]}-{name}.log"
    return Path(gettempdir()) / f"selfloop-logs-{os.getpid()}" / f"{name}.log"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program with its arguments, the files that it finds by their names, variables, seconds and threads."""

    arguments: tuple[str, ...]
    files: tuple[Path, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    time_limit: float = 3600.0
    threads: int = 1

    def environment(self) -> dict[str, str]:
        """All that it finds in its environment: `INHERITED`, a fixed hash seed of Python, threads, and the user's variables."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        threads = dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        return {**inherited, "PYTHONHASHSEED": "0", **threads, **self.variables}

    def find_problem(self) -> tuple[str, str] | None:
        """Why it cannot be run: "files" or "command", and a sentence; None if it can be."""
        if missing := [path for path in self.files if not path.exists()]:
            return "files", f"got {missing[0]}, which does not exist. Correct the path."
        program = Path(self.arguments[0])
        is_name = program.is_absolute() or len(program.parts) == 1
        if self._is_in_files() or (is_name and shutil.which(program, path=self.environment().get("PATH"))):
            return None
        return "command", f"there is no program {str(program)!r}. Install it, or add its file to `files`."

    def _is_in_files(self) -> bool:
        return Path(self.arguments[0]).parts[:1] in [(path.name,) for path in self.files]

    def run(self, folder: Path, log: Path, *, input_file: IO[bytes] | None = None, answers: bool = False) -> bytes:
        """Run it in a folder with copies of its files. Its output goes to a log; if it `answers`, only its errors do.

        Returns the answer, which is empty without `answers`. Raises ProgramError for a program that cannot be started, does
        not end in time or ends with another exit code than 0.
        """
        copy_files(self.files, folder)
        first = str(folder / self.arguments[0]) if self._is_in_files() else self.arguments[0]
        mark, answer, deadline = os.urandom(8).hex(), bytearray(), time.monotonic() + self.time_limit
        with _Log(log) as output, _watcher(mark) as watcher:
            try:
                process = _start_unblocked(
                    [first, *self.arguments[1:]], cwd=folder, env={**self.environment(), MARK: mark}, start_new_session=True,
                    stdin=input_file or subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE if answers else subprocess.STDOUT,
                )  # fmt: skip
            except OSError as problem:
                raise ProgramError(f"cannot be started ({os_error_reason(problem)})") from problem
            sinks = {process.stdout: answer.extend, process.stderr: output.write} if answers else {process.stdout: output.write}
            with process:
                try:
                    cast(IO[bytes], watcher.stdin).write(f"{process.pid}\n".encode())
                    in_time = _pump(process, sinks, lambda: time.monotonic() < deadline and len(answer) <= MAX_ANSWER_BYTES)
                finally:
                    with suppress(ProcessLookupError, PermissionError):  # even if the watcher was killed
                        os.killpg(process.pid, signal.SIGKILL)
                    watcher.communicate()
                end = time.monotonic() + DRAIN_SECONDS
                _pump(None, sinks, lambda: time.monotonic() < end)
        if len(answer) > MAX_ANSWER_BYTES:
            raise ProgramError(f"wrote more than {MAX_ANSWER_BYTES:,} bytes and was ended")
        if not in_time:
            raise ProgramError(f"took more than {self.time_limit:g} s and was ended", "Raise time_limit")
        if code := process.returncode:
            reason = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
            raise ProgramError(f"{reason} ({output.last_line() or 'it wrote no error'})")
        return bytes(answer)


def _pump(
    process: subprocess.Popen[bytes] | None,
    sinks: Mapping[IO[bytes] | None, Callable[[bytes], object]],
    may_go_on: Callable[[], bool],
) -> bool:
    """Read the pipes until the process has ended (None: until the pipes have); False if it may not go on until then."""
    with DefaultSelector() as selector:
        for pipe, sink in sinks.items():
            if pipe is not None:
                selector.register(pipe, EVENT_READ, sink)
        pause = POLL_SECONDS
        while may_go_on():
            for key, _ in selector.select(pause):
                if chunk := os.read(key.fd, READ_BYTES):
                    key.data(chunk)
                else:
                    selector.unregister(key.fileobj)
                    pause = 0.001  # a process ends soon after its pipes
            if process is None and not selector.get_map():
                return True
            # it is not reaped here: until its group is ended, no other process gets its number
            if process and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return True
            pause = min(2 * pause, POLL_SECONDS)
    return False


@contextmanager
def _watcher(mark: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends a program's processes when its input ends, at the end of the block or with this process."""
    arguments, silent = ("/bin/sh", "-c", WATCH, "sh", f"{MARK}={mark}"), subprocess.DEVNULL
    watcher = subprocess.Popen(
        arguments, cwd="/", stdin=subprocess.PIPE, stdout=silent, stderr=silent, start_new_session=True, bufsize=0
    )  # fmt: skip
    try:
        yield watcher
    finally:
        watcher.communicate()


def _start_unblocked(arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """A new process in which no signal is blocked. Worker processes block interrupts, and children inherit that of a thread.

    A function that runs in the new process could do the same (`preexec_fn`), and hang if another thread held a lock.
    """

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(arguments, text=False, **options)

    if not signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return start()
    unblock = partial(signal.pthread_sigmask, signal.SIG_SETMASK, ())
    with ThreadPoolExecutor(1, initializer=unblock) as threads:
        return threads.submit(start).result()


class _Log:
    """The output of a program in a file: its begin and, if it is long, its end."""

    def __init__(self, path: Path) -> None:
        self.size, self.tail = 0, b""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("wb")

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *error: object) -> None:
        beyond = max(0, self.size - MAX_LOG_BYTES)
        if left_out := beyond - min(beyond, TAIL_BYTES):
            self.file.write(f"\n[selfloop left out {left_out:,} bytes here]\n".encode())
        self.file.write(self.tail[len(self.tail) - min(beyond, TAIL_BYTES) :])
        self.file.close()

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk[: max(0, MAX_LOG_BYTES - self.size)])
        self.file.flush()  # who waits for a long run reads it
        self.size += len(chunk)
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]

    def last_line(self) -> str:
        """The last line that is not blank, as an error quotes it."""
        return printable(self.tail.decode(errors="replace").strip().rpartition("\n")[2][:200])
