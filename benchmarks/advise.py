"""Random requests to `selfloop advise`, each confirmed by simulation at the printed share and two percentage points below it.

Per request 10,000 chains of a Gaussian in 8 dimensions (error, variance) or of symbol counts (symbols, class) run under the
printed policy table, and under the same policy with two points less real data. Run `python benchmarks/advise.py`; with fewer
`--chains` and `--requests` for a quick look.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from selfloop import Spec
from selfloop.engine.ensemble import SEEDS_PER_BLOCK, SeedBlock, ensemble_curves
from selfloop.theory.advice import FRESH_POLICIES, VARIED, AdviceRequest, AdvisedLoop, PolicyAdvice, advise

SEED, DIM, POINTS = 17, 8, 0.02
RESOLVABLE = 4.0  # standard errors between the bound and the theory two points below the share
BOUNDS = {"error": (1.05, 1.1, 1.2, 1.5, 2.0, 3.0), "variance": (1.005, 1.01, 1.02, 1.05), "other": (1.02, 1.05, 1.1, 1.2, 1.5)}


class Simulated(NamedTuple):
    """A multiplier of many chains."""

    multiplier: float
    error: float  # standard error of its logarithm

    def z(self, value: float) -> float:
        """Standard errors above a value."""
        return float(np.log(self.multiplier / value) / self.error)


def simulate(request: AdviceRequest, table: Mapping[str, Any], chains: int) -> Simulated:
    """The multiplier of a policy, by the chains of the laboratory."""
    if request.protect in ("error", "variance"):
        metric = "mean_error" if request.protect == "error" else "variance_ratio"
        parts: dict[str, Any] = {"source": {"name": "gaussian", "dim": DIM}, "family": "gaussian", "metrics": [metric]}
    else:
        source = {"name": "zipf", "n_symbols": request.symbols}
        if request.class_share:  # the rarer of two symbols
            source = {"name": "zipf", "n_symbols": 2, "exponent": float(np.log2(1 / request.class_share - 1))}
        metric, parts = "support_size", {"source": source, "family": "discrete", "metrics": ["support_size"]}
    spec = Spec(n=request.rows, generations=request.generations, holdout=0, policies=[dict(table)], **parts)
    (point,) = spec.points()
    blocks = []
    for seed in range(0, chains, SEEDS_PER_BLOCK):
        seeds = range(seed, min(seed + SEEDS_PER_BLOCK, chains))
        block = SeedBlock.of_point(point, seeds, draws_rows=point.worlds[0] == "rows")
        blocks.append(ensemble_curves(block, spec.policies[0], request.generations)[metric][:, [0, -1]])
    values = np.concatenate(blocks) - (request.class_share is not None)  # the other class is never lost
    first, last = values.mean(axis=0)
    error = float(np.std(values[:, 1] / last - values[:, 0] / first) / np.sqrt(chains))
    return Simulated(last / first if request.protect == "error" else first / last, max(error, 1e-12))


def random_requests(rng: np.random.Generator) -> Iterator[tuple[AdviceRequest, PolicyAdvice]]:
    """Requests whose answer is a share, at least two points above the smallest possible one."""
    quantities, policies = ("error", "variance", "symbols", "class"), [name for name, key in VARIED.items() if key]
    for i in range(100_000):
        protect, policy = quantities[i % 4], policies[int(rng.integers(len(policies)))]
        rows, generations = int(rng.integers(100, 401)), int(rng.integers(4, 16))
        settings: dict[str, Any] = {
            "rows": rows, "generations": generations, "protect": protect, "vary": policy,
            "bound": float(rng.choice(BOUNDS.get(protect, BOUNDS["other"]))),
            "synthetic_rows": int(rows * rng.uniform(0.5, 2)),
            "fresh_rows": int(rows * rng.uniform(0.2, 1)) if policy in FRESH_POLICIES else 0,
            "class_share": float(np.round(rng.uniform(2, 10) / rows, 4)) if protect == "class" else None,
            "symbols": int(rng.integers(50, 500)) if protect == "symbols" else None,
        }  # fmt: skip
        if rng.random() < 0.25:
            settings |= {"removes_synthetic": float(rng.choice([0.5, 0.8])), "removes_real": float(rng.choice([0.0, 0.05]))}
        (policy_advice,) = advise(**settings).policies
        if policy_advice.answer == "at least":
            yield AdviceRequest(**settings), policy_advice


def below(request: AdviceRequest, advice: PolicyAdvice) -> int | None:
    """The fewest synthetic rows with a real share two points below the printed one; None if that needs more than allowed."""
    plain = AdvisedLoop(AdviceRequest(**{**request.settings(), "removes_synthetic": 0.0, "removes_real": 0.0}), advice.policy)
    more = range(advice.synthetic_rows + 1, plain.limit + 1)
    return next((m for m in more if plain.real_share(m) <= advice.real_share - POINTS + 1e-12), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--chains", type=int, default=10_000)
    options = parser.parse_args()
    rng, rows = np.random.default_rng(SEED), list[tuple[str, float, float, float | None, float | None]]()
    print(f"{options.requests} requests, {options.chains} chains each; z: standard errors above the bound", flush=True)
    print("| request | share | theory | simulated | z | theory below | simulated below | z | 2 points below |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|---|")
    for request, advice in random_requests(rng):
        lower = below(request, advice)
        if lower is None:
            continue
        start, loop = time.perf_counter(), AdvisedLoop(request, advice.policy)
        at_share, beyond = simulate(request, advice.table, options.chains), simulate(request, loop.table(lower), options.chains)
        theory = loop.multiplier(lower)
        margin = float(np.log(theory / request.bound)) / beyond.error
        z, z_below = at_share.z(request.bound), beyond.z(request.bound)
        answer = "not resolvable" if margin < RESOLVABLE else "broken" if z_below > 2 else "NOT BROKEN"
        rows.append((answer, z, z_below, at_share.z(advice.multiplier), time.perf_counter() - start))
        title = f"{advice.policy}, {request.protect}, n = {request.rows}, T = {request.generations}, bound {request.bound:g}"
        title += ", detector" if request.removes_synthetic else ""
        print(
            f"| {title} | {advice.real_share:.3f} | {advice.multiplier:.4f} | {at_share.multiplier:.4f} | {z:+.1f} "
            f"| {theory:.4f} | {beyond.multiplier:.4f} | {z_below:+.1f} | {answer} |", flush=True,
        )  # fmt: skip
        if len(rows) == options.requests:
            break
    answers, z, _, z_theory, seconds = zip(*rows, strict=True)
    print(f"at the share: {sum(value < 3 for value in z)} of {len(rows)} within the bound (z < 3, largest {max(z):+.1f})")
    print(
        f"two points below: {answers.count('broken')} broken, {answers.count('NOT BROKEN')} not, "
        f"{answers.count('not resolvable')} not resolvable (theory less than {RESOLVABLE:g} standard errors above the bound)"
    )
    print(f"theory against simulation at the share: z from {min(z_theory):+.1f} to {max(z_theory):+.1f}; {sum(seconds):.0f} s")


if __name__ == "__main__":
    main()
