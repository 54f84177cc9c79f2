"""Notes on what the values of a report are of: for which rows intervals hold, what prompts add, and windows of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from selfloop.spec.point import Point

if TYPE_CHECKING:
    from selfloop.result import Result

PROMPT_SHARE = "text_length_prompt_share"


def data_notes(result: Result) -> Iterator[str]:
    """One sentence or two per note."""
    points = result.points
    yield from dict.fromkeys(map(_population, points))
    if any(point.spec.sampler.settings().get("prompt", "start") != "start" for point in points):
        tables = [measured for point in points for measured in result.curves(point.coordinates).values()]
        shares = [share for table in tables if PROMPT_SHARE in table for share in table[PROMPT_SHARE].flat if share == share]
        limits = f" {min(shares):.1%} to {max(shares):.1%} of the sampled tokens of a generation are prompts." if shares else ""
        yield f"Sampled rows begin with prompts from real rows, real tokens that real mass does not count.{limits}"
    windows = any(metric.name == "cross_entropy" and metric.settings().get("stride") is None for metric in result.spec.metrics)
    if windows and "family.context" in result.spec.sweep and result.spec.family.name == "transformer":
        yield (
            "Cross-entropy is measured in the windows of training: the shorter the context, the less text precedes a token on "
            'average, which costs nats. To compare contexts, measure { name = "cross_entropy", stride = "half" }.'
        )


def _population(point: Point) -> str:
    """What the intervals of a point hold for."""
    source = point.spec.source
    title, size = source.title(), source.n_rows()
    if size is None:
        return f"Intervals over seeds are for the population: {title} draws new rows for every seed."
    if point.rows_per_seed:
        return (
            f"Intervals over seeds are for the population that {title} is a sample of: seeds share none of its {size:,} rows."
        )
    how = "all seeds share them and their holdout"
    if source.n_holdout() is None:
        how = 'every seed divides them anew. With subsets = "disjoint", intervals are for the population'
    return (
        f"Intervals over seeds are for this data set, the {size:,} rows of {title}, and not for the population that it is a "
        f"sample of: {how}."
    )
