"""Chains of kernel density estimates against the plain scikit-learn loop, side by side in one run.

    python benchmarks/kde.py [--seeds 10] [--generations 100]

The plain loop does per seed, policy and generation one `KernelDensity` fit, computes its log-likelihood at the 500 held-out
points, and samples n rows.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time

import numpy as np
from sklearn.neighbors import KernelDensity

from selfloop.component import Context
from selfloop.engine.ensemble import SeedBlock, ensemble_curves
from selfloop.families.kde import Kde
from selfloop.metrics.likelihood import Nll
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Replace
from selfloop.rng import RandomStream
from selfloop.sources.shapes import Moons
from selfloop.spec.spec import Spec

POLICIES = (Replace(), Accumulate(), AccumulateSubsample())
N, HOLDOUT, BANDWIDTH = 100, 500, 0.1


def plain_loop(policy: str, seed: int, generations: int) -> list[float]:
    """NLL at every generation of one chain, with scikit-learn."""
    stream, rng = Context(RandomStream(("seed", seed, "source"))), np.random.default_rng(seed)
    holdout = np.asarray(Moons().draw(0, HOLDOUT, stream)["x"])
    pool = np.asarray(Moons().draw(HOLDOUT, N, stream)["x"])
    curve = []
    for _ in range(generations):
        rows = pool[rng.choice(len(pool), N, replace=False)] if policy == "accumulate_subsample" else pool
        model = KernelDensity(bandwidth=BANDWIDTH).fit(rows)
        curve.append(-model.score(holdout) / HOLDOUT)
        samples = model.sample(N, random_state=int(rng.integers(1 << 31)))
        pool = samples if policy == "replace" else np.concatenate([pool, samples])
    return curve


def selfloop_curves(seeds: int, generations: int) -> dict[str, np.ndarray]:
    """NLL (seeds, generations) per policy, all seeds together."""
    spec = Spec(
        source=Moons(), family=Kde(bandwidth=BANDWIDTH), metrics=(Nll(),), policies=POLICIES, n=N, holdout=HOLDOUT,
        generations=generations,
    )  # fmt: skip
    (point,) = spec.points()
    block = SeedBlock.of_point(point, range(seeds), draws_rows=True)
    return {policy.name: np.asarray(ensemble_curves(block, policy, generations)["nll"]) for policy in POLICIES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--generations", type=int, default=100)
    options = parser.parse_args()
    selfloop_curves(2, 3)  # warm up
    plain_loop("replace", 0, 3)
    profile = cProfile.Profile()
    profile.enable()
    selfloop_curves(options.seeds, options.generations)
    profile.disable()
    started = time.perf_counter()
    curves = selfloop_curves(options.seeds, options.generations)
    fast = time.perf_counter() - started
    total, plain = 0.0, {}
    for policy in POLICIES:
        started = time.perf_counter()
        plain[policy.name] = np.array([plain_loop(policy.name, seed, options.generations) for seed in range(options.seeds)])
        took = time.perf_counter() - started
        total += took
        last = curves[policy.name][:, -1].mean(), plain[policy.name][:, -1].mean()
        print(f"{policy.name:22} plain {took:7.2f} s   last NLL: selfloop {last[0]:.2f}, plain {last[1]:.2f}")
    print(f"plain {total:.2f} s, selfloop {fast:.2f} s: {total / fast:.1f} times (target: 30)")
    evaluations = options.seeds * options.generations * len(POLICIES) * N * HOLDOUT
    print(f"{fast / evaluations * 1e9:.2f} ns per kernel evaluation; time by function (profiled, so slower):")
    pstats.Stats(profile).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
