"""Nine cells of linear regression against the plain loops a researcher would write, side by side in one run.

100 seeds x 10 generations, n = 1000 rows, d in {10, 30, 100}, one fixed design per seed; `replace`, `accumulate`,
`accumulate_subsample`. Run `python benchmarks/linear.py`; `--seeds` measures fewer plain chains and scales them up.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small solves are slower on several threads: the plain loops' best case

import numpy as np

from selfloop.component import Policy
from selfloop.engine.ensemble import Block, needs_rows
from selfloop.engine.executors import cores
from selfloop.engine.run import ensemble_curves
from selfloop.families.linear import Linear
from selfloop.metrics.true_parameters import ExcessRisk
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Replace
from selfloop.sources import toy

SEEDS, GENERATIONS, N = 100, 10, 1000
POLICIES: tuple[Policy, ...] = (Replace(), Accumulate(), AccumulateSubsample())
Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]


def fit_lstsq(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(x, y)[0]


def fit_normal_equations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x, x.T @ y)


def plain_chain(policy: str, d: int, rng: np.random.Generator, fit: Fit) -> list[float]:
    """One chain as one writes it in an afternoon: rows are drawn, joined and handed to numpy."""
    truth = rng.standard_normal(d)
    x = rng.standard_normal((N, d))
    inputs, labels = [x], [x @ truth + rng.standard_normal(N)]
    risks = []
    for _ in range(GENERATIONS):
        pool_x, pool_y = (inputs[-1], labels[-1]) if policy == "replace" else (np.concatenate(inputs), np.concatenate(labels))
        if policy == "accumulate_subsample":
            chosen = rng.choice(len(pool_y), N, replace=False)
            pool_x, pool_y = pool_x[chosen], pool_y[chosen]
        w = fit(pool_x, pool_y)
        risks.append(float(np.sum((w - truth) ** 2)))
        inputs.append(x)
        labels.append(x @ w + rng.standard_normal(N))
    return risks


def time_plain(policy: str, d: int, fit: Fit, chains: int) -> tuple[float, float]:
    """Seconds for all seeds (measured on `chains` of them) and the mean risk of the last generation."""
    start = time.perf_counter()
    last = [plain_chain(policy, d, np.random.default_rng((d, seed)), fit)[-1] for seed in range(chains)]
    return (time.perf_counter() - start) * SEEDS / chains, float(np.mean(last))


def time_ours(policy: Policy, d: int, n: int = N) -> tuple[float, float]:
    """Seconds and the mean risk of the last generation; nothing is shared with other cells."""
    start = time.perf_counter()
    source, family, metrics = toy.Linear(dim=d), Linear(), (ExcessRisk(),)
    on_rows = needs_rows(source, family, metrics, policy, n, GENERATIONS)
    seeds = tuple(range(SEEDS))
    shared = {"n": n, "holdout": 0, "on_rows": on_rows, "threads": cores()}
    block = Block(source=source, family=family, sampler=family.sampler_class(), metrics=metrics, seeds=seeds, **shared)
    curves = ensemble_curves(block, policy, GENERATIONS)
    seconds = time.perf_counter() - start
    return seconds, float(np.mean(curves["excess_risk"][:, -1]))


def multiply_limit(d: int) -> float:
    """Seconds that only the Gram matrices of the rows a subsample really takes would need, at the measured peak.

    A symmetric product costs half a general one; a row taken several times is counted once.
    """
    a = np.random.default_rng(0).standard_normal((1500, 1500))
    best = min(_seconds(lambda: a @ a) for _ in range(3))
    peak = 2 * 1500**3 / best
    rng = np.random.default_rng(1)
    distinct = [len(np.unique(rng.choice(t * N, N, replace=False) % N)) for t in range(1, GENERATIONS + 1)]
    return SEEDS * sum(distinct) * d * d / peak


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="plain chains that are really run per cell")
    chains = parser.parse_args().seeds
    time_ours(Replace(), 10)  # first use of every library
    time_ours(AccumulateSubsample(), 10)
    print(f"{SEEDS} seeds x {GENERATIONS} generations, n = {N}; plain loops run on {chains} seeds")
    print(f"{'d':>4} {'policy':<22}{'lstsq s':>9}{'normal s':>10}{'ours s':>9}{'x lstsq':>9}{'x normal':>9}   last risk")
    totals = np.zeros(3)
    for d in (10, 30, 100):
        for policy in POLICIES:
            plain, risk = time_plain(policy.name, d, fit_lstsq, chains)
            normal, _ = time_plain(policy.name, d, fit_normal_equations, chains)
            ours, our_risk = sorted(time_ours(policy, d) for _ in range(3))[1]  # the median
            totals += plain, normal, ours
            print(
                f"{d:>4} {policy.name:<22}{plain:>9.2f}{normal:>10.2f}{ours:>9.4f}{plain / ours:>9.1f}{normal / ours:>9.1f}"
                f"   {risk:.4f} / {our_risk:.4f}"
            )
            if isinstance(policy, AccumulateSubsample):
                limit = multiply_limit(d)
                print(f"{'':>27}matrix-multiply limit {limit:.4f} s: {ours / limit:.1f} times that")
    print(f"nine cells: lstsq {totals[0]:.1f} s, normal equations {totals[1]:.1f} s, ours {totals[2]:.2f} s")
    print("whole-batch cost against n, d = 30, accumulate:", end="")
    for n in (1000, 10_000, 100_000, 1_000_000):
        print(f"  n = {n}: {min(time_ours(Accumulate(), 30, n)[0] for _ in range(3)):.4f} s", end="")
    print()


if __name__ == "__main__":
    main()
