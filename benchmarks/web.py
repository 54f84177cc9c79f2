"""A simulated web of 1,000,000 models over 100 generations: seconds and numbers drawn, exact and with every model simulated.

Exact moments take the same time for any number of models. Run it with:
    python benchmarks/web.py
"""

from __future__ import annotations

import time
from dataclasses import replace

from selfloop.theory.web import Web, WebFamily, WebSource, predict_web

WEB = Web(
    generations=100,
    sources=(
        WebSource(name="archive", rows=10**9, until=1),
        WebSource(name="people", rows=10**8),
        WebSource(name="agencies", rows=10**7, bias=0.01, growth=1.02),
    ),
    families=(
        WebFamily(name="large", models=1_000, rows_read=10**8, rows_published=50_000, bias=0.01, removes_synthetic=0.9),
        WebFamily(name="middle", models=99_000, rows_read=10**7, rows_published=500, bias=0.02, removes_synthetic=0.5),
        WebFamily(name="small", models=900_000, rows_read=10**5, rows_published=50, bias=0.03),
    ),
)
TARGET = 60  # seconds


def main() -> None:
    models = sum(family.models for family in WEB.families)
    chosen = replace(WEB, families=(*WEB.families[:2], replace(WEB.families[2], candidates=2)))
    for name, web, seeds in (("exact", WEB, [None]), ("simulated, two seeds", chosen, [0, 1])):
        start = time.perf_counter()
        prediction = predict_web(web, seeds)
        seconds = time.perf_counter() - start
        numbers = 2 * models * web.generations * (len(seeds) - (seeds == [None]))  # a mean and a variance of every fit
        size = f"{models:,} models, {web.generations} generations, {numbers:,} numbers drawn"
        print(f"{name}: {size}: {seconds:.2f} s (target {TARGET}); largest error x {prediction.multiplier.max():.3g}")


if __name__ == "__main__":
    main()
