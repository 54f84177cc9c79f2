"""How long it takes until the first output: modules and seconds of `import selfloop` and of commands.

    python benchmarks/startup.py [--repeat 9]

Seconds are the least of several starts: of the processor (which other work disturbs little) and of the clock. Without bytecode
files the first start takes longer. The goals are those of an idle machine: 0.05 s, 0.2 s and 1 s.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

IMPORT = ["-c", "import selfloop"]
COMMANDS = {
    "python -c pass": (["-c", "pass"], None),
    "import selfloop": (IMPORT, 0.05),
    "selfloop --help": (["-m", "selfloop", "--help"], 0.2),
    "selfloop run --help": (["-m", "selfloop", "run", "--help"], 1.0),
    "selfloop list": (["-m", "selfloop", "list"], 1.0),
    "selfloop list policy mix": (["-m", "selfloop", "list", "policy", "mix"], 1.0),
    "selfloop predict replace": (["-m", "selfloop", "predict", "replace"], 1.0),
    "selfloop plan quickstart_linear": (["-m", "selfloop", "plan", "quickstart_linear"], 1.0),
    "selfloop run missing.toml": (["-m", "selfloop", "run", "missing.toml"], 1.0),
}


def children_seconds() -> float:
    """Processor seconds of all processes that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(arguments: list[str], repeat: int) -> tuple[float, float]:
    """Least seconds of the processor and of the clock."""
    times = []
    for _ in range(repeat):
        before, started = children_seconds(), time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        times.append((children_seconds() - before, time.perf_counter() - started))
    return min(each[0] for each in times), min(each[1] for each in times)


def count_modules(arguments: list[str]) -> int:
    """Modules that are loaded until a command ends."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False)
    return done.stderr.count("import time:") - 1  # without the head


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_args().repeat
    print(f"{'command':34} modules  processor s  clock s  goal")
    for name, (arguments, goal) in COMMANDS.items():
        processor, clock = measure(arguments, repeat)
        print(f"{name:34} {count_modules(arguments):7} {processor:12.3f} {clock:8.3f}  {goal or ''}", flush=True)


if __name__ == "__main__":
    main()
