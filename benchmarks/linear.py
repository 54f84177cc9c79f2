"""Nine cells of linear regression against the plain loops that a researcher would write, side by side in one run.

100 seeds x 10 generations, n = 1000 rows, d in {10, 30, 100}, one fixed design per seed; `replace`, `accumulate`,
`accumulate_subsample`. Run `python benchmarks/linear.py`. With `--seeds` fewer plain chains run, and their time is scaled.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the best case of the plain loops: small solves are slower on several threads

import numpy as np

from selfloop.component import Policy
from selfloop.engine.ensemble import SeedBlock, ensemble_curves
from selfloop.engine.executors import count_cores
from selfloop.families.linear import Linear
from selfloop.metrics.true_parameters import ExcessRisk
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Replace
from selfloop.sources.distributions import LinearSource
from selfloop.spec.spec import Spec

SEEDS, GENERATIONS, N = 100, 10, 1000
POLICIES: tuple[Policy, ...] = (Replace(), Accumulate(), AccumulateSubsample())
Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]


def fit_lstsq(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(x, y)[0]


def fit_normal_equations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x, x.T @ y)


def plain_chain(policy: str, d: int, rng: np.random.Generator, fit: Fit) -> list[float]:
    """Excess risks of one chain in plain numpy: rows are drawn, joined and fitted."""
    truth = rng.standard_normal(d)
    x = rng.standard_normal((N, d))
    inputs, outcomes = [x], [x @ truth + rng.standard_normal(N)]
    risks = []
    for _ in range(GENERATIONS):
        if policy == "replace":
            pool_x, pool_y = inputs[-1], outcomes[-1]
        else:
            pool_x, pool_y = np.concatenate(inputs), np.concatenate(outcomes)
        if policy == "accumulate_subsample":
            indices = rng.choice(len(pool_y), N, replace=False)
            pool_x, pool_y = pool_x[indices], pool_y[indices]
        w = fit(pool_x, pool_y)
        risks.append(float(np.sum((w - truth) ** 2)))
        inputs.append(x)
        outcomes.append(x @ w + rng.standard_normal(N))
    return risks


def time_plain(policy: str, d: int, fit: Fit, chains: int) -> tuple[float, float]:
    """Seconds for all seeds (measured on `chains` of them) and the mean risk of the last generation."""
    start = time.perf_counter()
    last = [plain_chain(policy, d, np.random.default_rng((d, seed)), fit)[-1] for seed in range(chains)]
    return (time.perf_counter() - start) * SEEDS / chains, float(np.mean(last))


def time_selfloop(policy: Policy, d: int, n: int = N) -> tuple[float, float]:
    """Seconds and the mean risk of the last generation; cells share nothing."""
    start = time.perf_counter()
    spec = Spec(
        source=LinearSource(dim=d), family=Linear(), metrics=(ExcessRisk(),), policies=(policy,), n=n, holdout=0,
        generations=GENERATIONS,
    )  # fmt: skip
    (point,) = spec.points()
    block = SeedBlock.of_point(point, range(SEEDS), draws_rows=point.worlds[0] == "rows", threads=count_cores())
    curves = ensemble_curves(block, policy, GENERATIONS)
    seconds = time.perf_counter() - start
    return seconds, float(np.mean(curves["excess_risk"][:, -1]))


def multiply_limit(d: int) -> float:
    """Seconds for the Gram matrices of the rows of a subsample at the measured peak speed.

    A symmetric product costs half a general product; a row that is taken several times counts once.
    """
    a = np.random.default_rng(0).standard_normal((1500, 1500))
    best = min(_seconds(lambda: a @ a) for _ in range(3))
    peak = 2 * 1500**3 / best
    rng = np.random.default_rng(1)
    distinct = [len(np.unique(rng.choice(t * N, N, replace=False) % N)) for t in range(1, GENERATIONS + 1)]
    return SEEDS * sum(distinct) * d * d / peak


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of plain chains to run per cell")
    chains = parser.parse_args().seeds
    time_selfloop(Replace(), 10)  # warm up: first use of every library
    time_selfloop(AccumulateSubsample(), 10)
    print(f"{SEEDS} seeds x {GENERATIONS} generations, n = {N}; plain loops run on {chains} seeds")
    print(f"{'d':>4} {'policy':<22}{'lstsq s':>9}{'normal s':>10}{'selfloop':>9}{'x lstsq':>9}{'x normal':>9}   last risk")
    totals = np.zeros(3)
    for d in (10, 30, 100):
        for policy in POLICIES:
            plain, risk = time_plain(policy.name, d, fit_lstsq, chains)
            normal, _ = time_plain(policy.name, d, fit_normal_equations, chains)
            selfloop, selfloop_risk = sorted(time_selfloop(policy, d) for _ in range(3))[1]  # the median
            totals += plain, normal, selfloop
            print(
                f"{d:>4} {policy.name:<22}{plain:>9.2f}{normal:>10.2f}{selfloop:>9.4f}"
                f"{plain / selfloop:>9.1f}{normal / selfloop:>9.1f}   {risk:.4f} / {selfloop_risk:.4f}"
            )
            if isinstance(policy, AccumulateSubsample):
                limit = multiply_limit(d)
                print(f"{'':>27}matrix-multiply limit {limit:.4f} s: {selfloop / limit:.1f} times that")
    print(f"nine cells: lstsq {totals[0]:.1f} s, normal equations {totals[1]:.1f} s, selfloop {totals[2]:.2f} s")
    print("whole-batch cost against n, d = 30, accumulate:", end="")
    for n in (1000, 10_000, 100_000, 1_000_000):
        print(f"  n = {n}: {min(time_selfloop(Accumulate(), 30, n)[0] for _ in range(3)):.4f} s", end="")
    print()


if __name__ == "__main__":
    main()
