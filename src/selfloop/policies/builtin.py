"""Every built-in policy: which batches generation t trains on, and what comes into being.

Counts are rounded to whole rows and what remains goes to the newest batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from selfloop.component import Policy
from selfloop.errors import SpecError
from selfloop.policies.expressions import evaluate, expand_batches
from selfloop.types import Batch, NewRows, Plan, Take, real, synthetic

PROBE = 1_000_000  # rows at which a custom policy's expressions are tried: most that make sense at some n do here


def _require_share(where: str, value: float, low_open: bool = False) -> None:
    if not (0 < value <= 1 if low_open else 0 <= value <= 1):
        raise SpecError(f"policy.{where}: got {value}; expected a share {'above 0, ' if low_open else ''}from 0 to 1.")


def _whole(*batches: Batch) -> Plan:
    return Plan(tuple(Take(batch) for batch in batches))


def _synthetic_so_far(t: int) -> tuple[Batch, ...]:
    return tuple(synthetic(k) for k in range(1, t))


@dataclass(frozen=True, kw_only=True)
class Replace(Policy):
    """Only the newest model's rows; real data are never seen again (Shumailov et al. 2023, Gerstgrasser et al. 2024)."""

    name: ClassVar[str] = "replace"

    def plan(self, t: int, n: int) -> Plan:
        return _whole(synthetic(t - 1))


@dataclass(frozen=True, kw_only=True)
class Accumulate(Policy):
    """The real rows and every synthetic batch so far (Gerstgrasser et al. 2024)."""

    name: ClassVar[str] = "accumulate"

    def plan(self, t: int, n: int) -> Plan:
        return _whole(real(1), *_synthetic_so_far(t))


@dataclass(frozen=True, kw_only=True)
class AccumulateSubsample(Policy):
    """`accumulate`, but each generation trains on `budget` rows drawn afresh from the pool (Kazdan et al. 2025)."""

    name: ClassVar[str] = "accumulate_subsample"
    budget: int | None = None  # rows per generation; None = n

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise SpecError(f"policy.budget: got {self.budget}; expected 1 or more rows.")

    def plan(self, t: int, n: int) -> Plan:
        return Plan(_whole(real(1), *_synthetic_so_far(t)).takes, budget=self.budget or n)


@dataclass(frozen=True, kw_only=True)
class ReplaceMultiple(Policy):
    """Only the newest model's rows, but t n of them: `accumulate`'s size without its memory (Gerstgrasser, App. E)."""

    name: ClassVar[str] = "replace_multiple"

    def new_rows(self, t: int, n: int) -> NewRows:
        return NewRows(real=n if t == 1 else 0, synthetic=n * (t + 1))

    def plan(self, t: int, n: int) -> Plan:
        return _whole(synthetic(t - 1))


@dataclass(frozen=True, kw_only=True)
class Window(Policy):
    """Synthetic rows of the last `length` generations; real rows only while they are inside the window."""

    name: ClassVar[str] = "window"
    length: int = 1  # generations kept; 1 is `replace`

    def __post_init__(self) -> None:
        if self.length < 1:
            raise SpecError(f"policy.length: got {self.length}; expected 1 or more.")

    def plan(self, t: int, n: int) -> Plan:
        born = [real(1), *_synthetic_so_far(t)]
        return _whole(*born[-self.length :])


@dataclass(frozen=True, kw_only=True)
class Augment(Policy):
    """The fixed real rows and the newest model's `ratio` n rows (MAD's synthetic augmentation, Bertrand et al.)."""

    name: ClassVar[str] = "augment"
    ratio: float = 1.0  # synthetic rows per real row

    def __post_init__(self) -> None:
        _require_positive("ratio", self.ratio)

    def new_rows(self, t: int, n: int) -> NewRows:
        return NewRows(real=n if t == 1 else 0, synthetic=round(self.ratio * n))

    def plan(self, t: int, n: int) -> Plan:
        return _whole(real(1), synthetic(t - 1))


@dataclass(frozen=True, kw_only=True)
class Mix(Policy):
    """n rows: the first `real` n of the fixed real rows, the rest from the newest model."""

    name: ClassVar[str] = "mix"
    real: float = 0.5  # share of real rows

    def __post_init__(self) -> None:
        _require_share("real", self.real)

    def new_rows(self, t: int, n: int) -> NewRows:
        return NewRows(real=n if t == 1 else 0, synthetic=n - round(self.real * n))

    def plan(self, t: int, n: int) -> Plan:
        return Plan((Take(real(1), rows=round(self.real * n)), Take(synthetic(t - 1))))


@dataclass(frozen=True, kw_only=True)
class Fresh(Policy):
    """n real rows drawn anew each generation and the newest model's `ratio` n rows (MAD's fresh loop, He et al. 2025)."""

    name: ClassVar[str] = "fresh"
    ratio: float = 1.0  # synthetic rows per real row
    real_mass: float | str | None = None  # mass of the real rows; "golden" = the optimum; None = equal weight per row

    def __post_init__(self) -> None:
        _require_positive("ratio", self.ratio)
        if isinstance(self.real_mass, str) and self.real_mass != "golden":
            raise SpecError(f"policy.real_mass: got {self.real_mass!r}; expected a number from 0 to 1 or 'golden'.")
        if isinstance(self.real_mass, int | float):
            _require_share("real_mass", self.real_mass)

    def new_rows(self, t: int, n: int) -> NewRows:
        return NewRows(real=n, synthetic=round(self.ratio * n))

    def plan(self, t: int, n: int) -> Plan:
        m = round(self.ratio * n)
        if self.real_mass is None or m == 0:
            return _whole(real(t), synthetic(t - 1))
        k = n / m
        golden = (math.sqrt(k * k + 4 * k) - k) / 2  # He, Xu, Cheng 2025 (2502.18049): 0.618 at n = m
        mass = golden if self.real_mass == "golden" else float(self.real_mass)
        return Plan((Take(real(t), weight=mass * (n + m) / n), Take(synthetic(t - 1), weight=(1 - mass) * (n + m) / m)))


@dataclass(frozen=True, kw_only=True)
class AccumulateReal(Policy):
    """Everything so far, where `share` of every new batch is fresh real rows (the reviewers' wish; Taori, Hashimoto)."""

    name: ClassVar[str] = "accumulate_real"
    share: float = 0.5  # real share of every new batch

    def __post_init__(self) -> None:
        _require_share("share", self.share)

    def new_rows(self, t: int, n: int) -> NewRows:
        fresh = round(self.share * n)
        return NewRows(real=n if t == 1 else fresh, synthetic=n - fresh)

    def plan(self, t: int, n: int) -> Plan:
        fresh = range(2, t + 1) if round(self.share * n) else ()
        return _whole(real(1), *(real(b) for b in fresh), *_synthetic_so_far(t))


@dataclass(frozen=True, kw_only=True)
class Balanced(Policy):
    """n rows in equal shares of the real rows and of every synthetic batch (Briesch et al. 2023)."""

    name: ClassVar[str] = "balanced"

    def plan(self, t: int, n: int) -> Plan:
        older = [Take(batch, rows=n // t) for batch in (real(1), *_synthetic_so_far(t - 1))]
        return Plan((*older, Take(synthetic(t - 1), rows=n - (t - 1) * (n // t))))


@dataclass(frozen=True, kw_only=True)
class Incremental(Policy):
    """n rows, of which each generation swaps a `share` for new synthetic ones, from every batch alike (Briesch et al.)."""

    name: ClassVar[str] = "incremental"
    share: float = 0.1  # rows swapped per generation

    def __post_init__(self) -> None:
        _require_share("share", self.share)

    def new_rows(self, t: int, n: int) -> NewRows:
        return NewRows(real=n if t == 1 else 0, synthetic=round(self.share * n))

    def plan(self, t: int, n: int) -> Plan:
        swapped = round(self.share * n)
        takes, used = [Take(synthetic(t - 1), rows=swapped)], swapped
        for k in range(t - 2, 0, -1):  # cumulative rounding from the newest: the total stays n
            kept = round(n * (1 - (1 - self.share) ** (t - k)))
            rows = min(max(kept - used, 0), swapped)
            takes.append(Take(synthetic(k), rows=rows))
            used += rows
        return Plan((Take(real(1), rows=n - used), *reversed(takes)))


@dataclass(frozen=True, kw_only=True)
class Expanding(Policy):
    """The real rows and every synthetic batch, each a `share` of n (Briesch et al. 2023)."""

    name: ClassVar[str] = "expanding"
    share: float = 0.1  # size of a synthetic batch over n

    def __post_init__(self) -> None:
        _require_positive("share", self.share)

    def new_rows(self, t: int, n: int) -> NewRows:
        return NewRows(real=n if t == 1 else 0, synthetic=round(self.share * n))

    def plan(self, t: int, n: int) -> Plan:
        return _whole(real(1), *_synthetic_so_far(t))


@dataclass(frozen=True, kw_only=True)
class Growing(Policy):
    """Only the newest model's rows, n t^(1 + exponent) of them at generation t (Xu, He, Cheng 2025)."""

    name: ClassVar[str] = "growing"
    exponent: float = 0.0  # bounded error for any exponent above 0

    def __post_init__(self) -> None:
        if not -1 <= self.exponent <= 9:
            raise SpecError(f"policy.exponent: got {self.exponent}; expected a number from -1 (constant size) to 9.")

    def new_rows(self, t: int, n: int) -> NewRows:
        return NewRows(real=n if t == 1 else 0, synthetic=round(n * (t + 1) ** (1 + self.exponent)))

    def plan(self, t: int, n: int) -> Plan:
        return _whole(synthetic(t - 1))


@dataclass(frozen=True, kw_only=True)
class Counts(Policy):
    """Fixed numbers of the initial real rows and of the newest model's: a cell of real x synthetic (Kazdan et al. 2025, 4.5).

    Cells with the same `pool` share the rows that generation 1 sampled; the first `synthetic` of them are trained on.
    """

    name: ClassVar[str] = "counts"
    real: int  # at most n
    synthetic: int
    pool: int | None = None  # rows sampled from each model; None = `synthetic`

    def __post_init__(self) -> None:
        if self.real < 0 or self.synthetic < 0 or self.real + self.synthetic == 0:
            raise SpecError(f"policy.counts: got {self.real} real and {self.synthetic} synthetic rows; expected 1 row or more.")
        if self.pool is not None and self.pool < self.synthetic:
            raise SpecError(f"policy.pool: got {self.pool}; expected {self.synthetic} rows (policy.synthetic) or more.")

    def new_rows(self, t: int, n: int) -> NewRows:
        return NewRows(real=n if t == 1 else 0, synthetic=self.synthetic if self.pool is None else self.pool)

    def plan(self, t: int, n: int) -> Plan:
        takes = (Take(real(1), self.real), Take(synthetic(t - 1), self.synthetic))
        return Plan(tuple(take for take in takes if take.rows))


@dataclass(frozen=True, kw_only=True)
class Custom(Policy):
    """A table: takes and emissions as expressions of t and n, for all generations or one by one.

    A take is `{ batch = "synthetic(t-1)", rows = "n // 2", weight = 1 }`; `"synthetic(1..t-1)"` is a range of batches.
    """

    name: ClassVar[str] = "custom"
    takes: tuple[dict[str, object], ...] = ()
    generations: tuple[tuple[dict[str, object], ...], ...] = field(
        default=()
    )  # takes of generation 2, 3, ...; the last one stays
    real: str | int = 0  # fresh real rows at t >= 2
    synthetic: str | int = "n"  # rows sampled from model t
    budget: str | int | None = None

    def __post_init__(self) -> None:
        if bool(self.takes) == bool(self.generations):
            raise SpecError(
                "policy.custom: needs one of 'takes' (for every generation) and 'generations' (a list of takes), and not both."
            )
        for take in (*self.takes, *(take for generation in self.generations for take in generation)):
            if "batch" not in take or set(take) - {"batch", "rows", "weight"}:
                raise SpecError(f"policy.takes: got {take}; a take has batch, and optionally rows, weight.")
        self.new_rows(2, PROBE)
        self.plan(2, PROBE)  # a wrong expression is found now, not at generation 2

    def new_rows(self, t: int, n: int) -> NewRows:
        fresh = evaluate("policy.real", self.real, t=t, n=n)
        made = evaluate("policy.synthetic", self.synthetic, t=t, n=n)
        if fresh < 0 or made < 0:
            raise SpecError(f"policy.custom: emits {min(fresh, made):g} rows at generation {t}; expected 0 or more.")
        return NewRows(real=n if t == 1 else round(fresh), synthetic=round(made))

    def plan(self, t: int, n: int) -> Plan:
        table = self.takes or self.generations[min(t - 2, len(self.generations) - 1)]
        takes = []
        for take in table:
            rows = None if take.get("rows") is None else round(evaluate("policy.takes.rows", take["rows"], t=t, n=n))
            weight = float(evaluate("policy.takes.weight", take.get("weight", 1.0), t=t, n=n))
            takes += [Take(batch, rows, weight) for batch in expand_batches(str(take["batch"]), t=t, n=n)]
        budget = None if self.budget is None else round(evaluate("policy.budget", self.budget, t=t, n=n))
        return Plan(tuple(takes), budget)


def _require_positive(where: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise SpecError(f"policy.{where}: got {value}; expected a number above 0.")
