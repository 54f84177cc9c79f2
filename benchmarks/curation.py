"""Curated normal chains against the plain loop that a researcher would write, and the ledger of every policy, in one run.

    python benchmarks/curation.py [--seeds 1000] [--generations 20]

The plain loop samples a round of n rows per seed until n of them have passed a verifier of x > 0, and fits mean and variance.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from selfloop.component import Context, Policy
from selfloop.curators.scores import ColumnValue
from selfloop.curators.selection import Verifier
from selfloop.engine.ensemble import SeedBlock, ensemble_curves
from selfloop.families.gaussian import Gaussian
from selfloop.metrics.true_parameters import VarianceRatio
from selfloop.policies.builtin import Accumulate, AccumulateReal, AccumulateSubsample, Fresh, Mix, Replace, Window
from selfloop.policies.combined import Curated
from selfloop.policies.cycles import Balanced, Expanding, Incremental
from selfloop.rng import RandomStream
from selfloop.sources.distributions import GaussianSource
from selfloop.spec.spec import Spec
from selfloop.theory.moments import noise_ledger

N, KEEP_BAD = 100, 0.5
POLICIES = (
    Replace(), Accumulate(), AccumulateSubsample(), AccumulateReal(), Window(length=5), Mix(), Fresh(), Balanced(),
    Incremental(), Expanding(),
)  # fmt: skip


def plain_loop(seed: int, generations: int) -> list[float]:
    """Fitted variance at every generation of one chain."""
    rng = np.random.default_rng(seed)
    rows, curve = np.asarray(GaussianSource().draw(0, N, Context(RandomStream(("seed", seed))))["x"])[:, 0], []
    for _ in range(generations):
        mean, sd = rows.mean(), rows.std()
        curve.append(sd**2)
        passed = np.zeros(0)
        while len(passed) < N:
            drawn = rng.normal(mean, sd, N)
            keep = rng.random(N) < np.where(drawn > 0, 1.0, KEEP_BAD)
            passed = np.concatenate([passed, drawn[keep]])
        rows = passed[:N]
    return curve


def run_blocks(policy: Policy, seeds: int, generations: int) -> np.ndarray:
    """Variance ratio (seeds, generations), on rows."""
    spec = Spec(
        source=GaussianSource(), family=Gaussian(), metrics=(VarianceRatio(),), policies=(policy,), n=N, holdout=0,
        generations=generations,
    )  # fmt: skip
    (point,) = spec.points()
    blocks = [range(first, min(first + 256, seeds)) for first in range(0, seeds, 256)]
    curves = [ensemble_curves(SeedBlock.of_point(point, b, draws_rows=True), policy, generations) for b in blocks]
    return np.concatenate([np.asarray(c["variance_ratio"]) for c in curves])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--generations", type=int, default=20)
    options = parser.parse_args()
    curated = Curated(curators=(Verifier(score=ColumnValue(column="x"), keep_bad=KEEP_BAD),))
    seconds, last = {}, {}
    for name, run in (
        ("curated", lambda: run_blocks(curated, options.seeds, options.generations)),
        ("uncurated", lambda: run_blocks(Replace(), options.seeds, options.generations)),
        ("plain", lambda: np.array([plain_loop(seed, options.generations) for seed in range(options.seeds)])),
    ):
        started = time.process_time()
        last[name] = run()[:, -1].mean()
        seconds[name] = time.process_time() - started
    print(", ".join(f"{name} {seconds[name]:.2f} s (last variance {last[name]:.4f})" for name in seconds))
    print(f"curated takes {seconds['curated'] / seconds['plain']:.1f} times the plain loop, which stores and checks nothing")
    for policy in POLICIES:
        started = time.process_time()
        noise_ledger(policy, 1000, 200)
        print(f"ledger of 200 generations of {policy.name}: {time.process_time() - started:.3f} s")


if __name__ == "__main__":
    main()
