"""Error rates of `selfloop audit`: audits of simulated loops that do not degrade, and of loops that degrade by four bounds.

Each audit looks at 5, 8 and 12 seeds of its own, of five ensembles (families, metrics and scales). The true excess is the
mean over all seeds. The bound is set from it: equal to it (of the loops within the bound the hardest), and a quarter of it. A
third kind of loop trains on real rows only: the control beside controls of other seeds. "tested again": the same audits with
the one-sided 5 % limit of Student's t at every look, as one would without a plan.

Run `python benchmarks/audit.py`; `--audits` per kind of loop.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import stdtrit

from selfloop import run
from selfloop.audit.design import design_audit
from selfloop.audit.excess import read_excess
from selfloop.columns import Floats
from selfloop.spec.parse import parse_spec
from selfloop.stats.sequential import LookLimits, judge_look, limits_of_looks

LOOKS = (5, 8, 12)
LOOP = 'n = {n}\nholdout = 0\ngenerations = 5\npolicies = ["replace"]\nmetrics = ["{metric}"]\n{source}\n{family}\n'
RATIOS = ("kl_divergence", "excess_risk", "log_loss")  # risks whose excess is a ratio
LOOPS = {
    "gaussian, kl_divergence": ("kl_divergence", 80, 'source = {name = "gaussian", dim = 10}', 'family.name = "gaussian"'),
    "gaussian, nll": ("nll", 200, 'source = {name = "gaussian", dim = 8}', 'family.name = "gaussian"'),
    "linear, excess_risk": ("excess_risk", 80, 'source = {name = "linear", dim = 20}', 'family.name = "linear"'),
    "kernel density, nll": ("nll", 40, 'source.name = "moons"', 'family.name = "kde"'),
    "logistic, log_loss": ("log_loss", 200, 'source = {name = "logistic", dim = 8}', 'family.name = "glm"'),
}  # fmt: skip


def read_loop(name: str, seeds: int, store: str) -> tuple[Floats, Floats]:
    """The excess (seeds,) of a loop over its control at generation 5, and that of controls over those of other seeds."""
    metric, n, source, family = LOOPS[name]
    text = LOOP.format(n=n, metric=metric, source=source, family=family)
    if metric in ("nll", "log_loss"):
        text = text.replace("holdout = 0", "holdout = 200")
    design = design_audit(parse_spec(text, name), looks=(seeds,))
    result = run(design.spec, store)
    (pair,) = design.pairs
    risk = design.metric
    values = read_excess(result, pair.policy, pair.control, risk, design.bound)
    curve = result.curves()[pair.control][metric][:, -1]
    scale = np.log if values.scale == "ratio" else np.asarray
    real = scale(curve) - scale(np.roll(curve, 1))
    if values.scale == "share":
        result_distance = result.curves()[pair.control][metric + "_trivial"][:, -1] - curve
        real = real / np.maximum(result_distance, 1.0)
    return values.values[:, -1], np.asarray(real, np.float64)


def audits_of(values: Floats) -> Iterator[Floats]:
    """The seeds of one audit after another."""
    yield from np.split(values[: len(values) // LOOKS[-1] * LOOKS[-1]], len(values) // LOOKS[-1])


def answer(values: Floats, bound: float, limits: Sequence[LookLimits]) -> tuple[str, int]:
    """The first answer over the looks, and the number of seeds it took."""
    for limit in limits:
        found, _ = judge_look(values[: limit.seeds], bound, limit)
        if found != "undecided":
            return found, limit.seeds
    return "undecided", limits[-1].seeds


def tested_again() -> tuple[LookLimits, ...]:
    """Limits of one test at every look."""
    quantiles = [-float(stdtrit(n - 1, 0.05)) for n in LOOKS]
    return tuple(LookLimits(n, t, t, 0.05, 0.05) for n, t in zip(LOOKS, quantiles, strict=True))


def count_answers(values: Floats, bound: float, limits: Sequence[LookLimits]) -> tuple[Counter[str], float]:
    """Answers of all audits of a loop, and their mean number of seeds."""
    answers = [answer(seeds, bound, limits) for seeds in audits_of(values)]
    return Counter(name for name, _ in answers), float(np.mean([seeds for _, seeds in answers]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=500)
    parser.add_argument("--store", default=".selfloop")
    options = parser.parse_args()
    started, each = time.monotonic(), options.audits // len(LOOPS)
    limits, naive = limits_of_looks(LOOKS), tested_again()
    totals = {kind: Counter[str]() for kind in ("at the bound", "real rows only", "4 x the bound", "tested again")}
    for name in LOOPS:
        values, real = read_loop(name, each * LOOKS[-1], options.store)
        true = float(values.mean())
        quarter = np.log1p(np.expm1(true) / 4) if LOOPS[name][0] in RATIOS else true / 4
        print(f"{name}: mean excess {true:.4f}, standard deviation over seeds {values.std(ddof=1):.4f}")
        cases = {
            "at the bound": (values, true, limits), "real rows only": (real, quarter, limits),
            "4 x the bound": (values, quarter, limits), "tested again": (values, true, naive),
        }  # fmt: skip
        for kind, case in cases.items():
            counts, seeds = count_answers(*case)
            totals[kind] += counts
            print(f"  {kind:15} above {counts['above']:4} below {counts['below']:4} of {each}, {seeds:.1f} seeds")
    for kind, counts in totals.items():
        n = counts.total()
        shares = ", ".join(f"{word} {100 * counts[word] / n:.1f} %" for word in ("above", "below", "undecided"))
        print(f"{kind}: {shares} of {n} audits")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
