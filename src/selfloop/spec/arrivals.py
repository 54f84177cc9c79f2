"""Checks of a source whose rows arrive over time: are there enough files and rows, with the columns of the first?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfloop import protocols
from selfloop.columns import ColumnType
from selfloop.component import Source
from selfloop.errors import SpecError
from selfloop.policies.schedule import schedule
from selfloop.types import MASK

if TYPE_CHECKING:
    from selfloop.spec.spec import Spec


def list_arrivals(spec: Spec) -> tuple[Source, ...]:
    """The sources of generation 1, 2, ... of a source whose rows arrive over time; empty for another one."""
    for key, other in (("external", spec.external), ("second_holdout", spec.second_holdout)):
        if isinstance(other, protocols.SupportsArrivals):
            raise SpecError(f"{key}: got {other.name}, whose rows arrive over time. Choose the source of one file.")
    if not isinstance(spec.source, protocols.SupportsArrivals):
        return ()
    if spec.subsets == "disjoint":
        raise SpecError(f"subsets: got 'disjoint'; rows of {spec.source.title()} arrive over time. Remove the key.")
    return tuple(spec.source.arrivals())


def check_arrivals(spec: Spec, arrivals: Sequence[Source], n: int) -> None:
    """Raise SpecError if an arrival is missing, has too few rows, or has other columns than the first one."""
    if not arrivals:
        return
    checked, first = set[int](), arrivals[0]
    for policy in spec.policies:
        for t, needed in ((entry.t, entry.new_rows.real) for entry in schedule(policy, n, spec.generations)):
            if t == 1 or not needed:
                continue
            if t > len(arrivals):
                raise SpecError(
                    f"generations: policy {policy.name} needs fresh real rows at generation {t}; only {len(arrivals)} files or "
                    f"folders have arrived ({first.title()} to {arrivals[-1].title()}). Lower generations, or add one."
                )
            if t not in checked:
                checked.add(t)
                _check_columns(first, arrivals[t - 1])
            size = arrivals[t - 1].n_usable_rows()
            if spec.unit == "rows" and size is not None and needed > size:
                raise SpecError(
                    f"n: policy {policy.name} with n = {n} needs {needed} fresh real rows at generation {t}; "
                    f"{arrivals[t - 1].title()} has {size}. Lower n, or the real rows of the policy."
                )


def _check_columns(first: Source, other: Source) -> None:
    """Raise SpecError if an arrival has columns that the first one lacks, or other ones of that name."""
    columns, expected = ({name: _describe(column) for name, column in s.schema().items()} for s in (other, first))
    for name in sorted(columns.keys() | expected.keys()):
        got, wanted = columns.get(name), expected.get(name)
        if got == wanted or (got is None and name.endswith(MASK)):  # nothing is missing: see `add_masks`
            continue
        if wanted is None and name.endswith(MASK):
            problem = f"{name.removesuffix(MASK)!r} lacks values, which are all there in {first.title()}. Fill them"
        else:
            problem = f"{name!r} is {got or 'missing'}; expected {wanted or 'none'}, as in {first.title()}. Correct it"
        raise SpecError(f"source: {other.title()}: column {problem}, or leave the file out.")


def _describe(column: ColumnType) -> str:
    labels = f" with {', '.join(column.labels)}" if column.labels else ""
    return f"{column.dtype}{list(column.shape) if column.shape else ''}{labels}"
