"""Advice without training: how much real data each policy needs so that exact theory stays within a bound.

Everything here is an expectation over seeds, from `moments.py` and `survival.py`. The *multiplier* is the loss at the last
generation over the loss at generation 1. A quantity that shrinks (variance, surviving symbols) has the loss 1 / value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Interval

from selfloop.columns import Floats
from selfloop.component import Policy
from selfloop.errors import SettingError, unknown_name
from selfloop.notebook import table_html
from selfloop.policies.schedule import schedule
from selfloop.settings import Settings
from selfloop.spec.components import make_component
from selfloop.theory.moments import moment_curves
from selfloop.theory.survival import chance_alive

Protected = Literal["error", "variance", "symbols", "class"]
Answer = Literal["at least", "none needed", "not enough", "within", "beyond"]
MAX_ADVICE_ROWS, MAX_ADVICE_GENERATIONS = 10**9, 300  # the time of moments is quadratic in batches
FRESH_POLICIES = ("fresh", "accumulate_real")  # need fresh real rows
WINDOW = 5  # generations of the policy `window`
MAX_RATIO = 20  # synthetic rows per real row that are searched
STEP = 100  # initial rows of one step of the price of real data
# Settings that change how much of the training rows is real, by policy. Without one, all synthetic rows are used.
VARIED = {
    "mix": "real_share", "augment": "ratio", "accumulate": "ratio", "fresh": "ratio", "accumulate_real": "real_share",
    "replace": "", "accumulate_subsample": "", "window": "",
}  # fmt: skip
GRID_POINTS = 9  # of a curve over the number of synthetic rows; it is taken for monotone between two of them
ROUNDING = 1e-9  # relative, of a multiplier


@dataclass(frozen=True, kw_only=True)
class AdviceRequest(Settings):
    """The data of a loop, and the quantity to protect. Row counts are per generation where they are not initial rows."""

    rows: Annotated[int, Interval(ge=2, le=MAX_ADVICE_ROWS), "real rows at the start"]
    generations: Annotated[int, Interval(ge=2, le=MAX_ADVICE_GENERATIONS), "generations, with the first, on real rows only"]
    bound: Annotated[float, Gt(1), "largest allowed multiplier"]
    fresh_rows: Annotated[int, Interval(ge=0, le=MAX_ADVICE_ROWS), "fresh real rows of each later generation"] = 0
    synthetic_rows: Annotated[int | None, Interval(ge=1, le=MAX_ADVICE_ROWS), "rows sampled from each model; default rows"] = (
        None
    )
    protect: Annotated[Protected, "quantity to protect"] = "error"
    class_share: Annotated[float | None, Interval(gt=0, lt=1), "true share of the class that must not be lost"] = None
    symbols: Annotated[int | None, Interval(ge=2, le=10**6), "number of symbols, with probabilities 1 / rank"] = None
    vary: Annotated[str | None, "one policy, or one setting of a policy, such as mix.real_share"] = None
    removes_synthetic: Annotated[float, Interval(ge=0, lt=1), "share of synthetic rows that a detector removes"] = 0.0
    removes_real: Annotated[float, Interval(ge=0, lt=1), "share of real rows that the detector removes wrongly"] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting, quantity, wanted in (
            ("class_share", "class", "the true share of the class, above 0 and below 1"),
            ("symbols", "symbols", "their number, 2 to 1,000,000"),
        ):
            value = getattr(self, setting)
            if value is None and self.protect == quantity:
                raise SettingError(setting, f"missing; protect = {quantity!r} needs it. Set {wanted}.")
            if value is not None and self.protect != quantity:
                problem = f"got {value!r} with protect = {self.protect!r}, which has none"
                raise SettingError(setting, f"{problem}. Remove it, or set protect = {quantity!r}.")
        policy, _, setting = (self.vary or "").partition(".")
        names = [f"{name}.{key}" for name, key in VARIED.items() if key]
        if self.vary and (not VARIED.get(policy) or setting not in ("", VARIED[policy])):
            raise SettingError("vary", unknown_name("vary", self.vary, names, "setting").partition(": ")[2])
        if policy in FRESH_POLICIES and not self.fresh_rows:
            raise SettingError("vary", f"got {self.vary!r} without fresh real rows. Set fresh_rows, or vary another policy.")

    @property
    def shares(self) -> Floats | None:
        """True probabilities of the protected symbols; None for error and variance."""
        if self.class_share is not None:
            return np.array([self.class_share])
        ranks = np.arange(1, self.symbols + 1, dtype=np.float64) if self.symbols else None
        return None if ranks is None else 1 / ranks / (1 / ranks).sum()


@dataclass(frozen=True, kw_only=True)
class PolicyAdvice:
    """One policy with the most synthetic rows, up to those requested, that keep the multiplier within the bound.

    `answer`: with all requested synthetic rows it is "within" the bound ("none needed" without real rows); with fewer, it needs
    "at least" that real share; even with real rows only it is "not enough"; without a share that varies, "beyond" the bound.
    Shares are of the last training rows, before a detector.
    """

    policy: str
    table: Mapping[str, Any]  # the policy as a spec has it, with n = rows
    answer: Answer
    real_share: float
    largest_share: float  # shares up to it are within the bound; 1 unless too few synthetic rows are harmful too
    share_after_detector: float
    share_without_detector: float | None  # the smallest one if rows came without a detector; None if it does not exist
    synthetic_rows: int  # used per generation, before a detector
    multiplier: float
    control: float  # multiplier with fresh real rows in place of synthetic ones
    trained_rows: int  # of all generations, as the next two
    sampled_rows: int
    real_rows: int  # initial and fresh ones
    per_100_rows: float  # change of the multiplier with 100 more initial rows, over the present loss at generation 1
    per_fresh_row: float  # the same with one more fresh real row in every later generation

    @property
    def is_within(self) -> bool:
        """True if the bound is kept."""
        return self.answer not in ("not enough", "beyond")


@dataclass(frozen=True)
class Advice:
    """The policies that the data allow: those within the bound first, by real share, then rows; the others by multiplier."""

    request: AdviceRequest
    policies: tuple[PolicyAdvice, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values: the request, and one table per policy."""
        return {"request": asdict(self.request), "policies": [asdict(policy) for policy in self.policies]}

    def _repr_html_(self) -> str:
        names = ("policy", "answer", "real_share", "synthetic_rows", "multiplier", "control", "trained_rows")
        rows = [{name: getattr(policy, name) for name in names} for policy in self.policies]
        asked = self.request
        title = (
            f"{asked.rows:,} real rows, {asked.generations} generations, multiplier of {asked.protect} at most {asked.bound:g}"
        )
        return table_html(title, rows)


def advise(  # noqa: PLR0913  # the settings of the request
    *,
    rows: int,
    generations: int,
    bound: float,
    fresh_rows: int = 0,
    synthetic_rows: int | None = None,
    protect: Protected = "error",
    class_share: float | None = None,
    symbols: int | None = None,
    vary: str | None = None,
    removes_synthetic: float = 0.0,
    removes_real: float = 0.0,
) -> Advice:
    """The policies that the data allow, ranked by exact theory, with the real share that keeps the multiplier within the bound.

    Arguments are the settings of `AdviceRequest`. Raises SettingError for a value that is not allowed.
    """
    request = AdviceRequest(
        rows=rows, generations=generations, bound=bound, fresh_rows=fresh_rows, synthetic_rows=synthetic_rows, protect=protect,
        class_share=class_share, symbols=symbols, vary=vary, removes_synthetic=removes_synthetic, removes_real=removes_real,
    )  # fmt: skip
    names = [request.vary.partition(".")[0]] if request.vary else VARIED
    policies = [_advise_policy(request, name) for name in names if request.fresh_rows or name not in FRESH_POLICIES]
    if not (ranked := sorted((policy for policy in policies if policy), key=_rank)):
        raise SettingError("removes_synthetic", "this detector leaves no rows to train on. Lower its rates, or raise rows.")
    return Advice(request, tuple(ranked))


def _rank(policy: PolicyAdvice) -> tuple[bool, float, float]:
    return not policy.is_within, policy.real_share if policy.is_within else policy.multiplier, policy.trained_rows


@dataclass(frozen=True)
class AdvisedLoop:
    """A policy of a request as a function of the rows that it gets."""

    request: AdviceRequest
    policy: str

    def table(self, synthetic: int, rows: int | None = None, fresh: int | None = None) -> dict[str, Any]:
        """The policy with these rows per generation, initial rows and fresh rows; by default those requested.

        A detector leaves the first rows of every batch: which rows it removes is taken for independent of their values.
        """
        request, policy = self.request, self.policy
        rows = request.rows if rows is None else rows
        fresh = (request.fresh_rows if policy in FRESH_POLICIES else 0) if fresh is None else fresh
        if (built_in := self._built_in(synthetic, rows, fresh)) is not None:
            return built_in
        passed = round(synthetic * (1 - request.removes_synthetic))
        real = [round(count * (1 - request.removes_real)) for count in (rows - synthetic * (policy == "mix"), fresh)]
        is_growing = policy in ("accumulate", "accumulate_subsample", "accumulate_real")
        initial, newest = {"batch": "real(1)", "rows": real[0]}, {"batch": "synthetic(t-1)", "rows": passed}
        arrived = [{"batch": "real(2..t)" if is_growing else "real(t)", "rows": real[1]}] if real[1] else []
        table: dict[str, Any] = {"name": "custom", "real_rows": fresh, "synthetic_rows": synthetic}
        if policy == "window":
            first = [[initial, {**newest, "batch": "synthetic(1..t-1)"}, *arrived]] * (WINDOW - 1)
            return {**table, "generations": [*first, [{**newest, "batch": f"synthetic(t-{WINDOW}..t-1)"}, *arrived]]}
        batches = [] if policy in ("replace", "fresh") else [initial]
        used = {**newest, "batch": "synthetic(1..t-1)"} if is_growing else newest
        budget = {"budget": request.rows} if policy == "accumulate_subsample" else {}
        return {**table, "takes": [*batches, *arrived, used], **budget}

    def _built_in(self, synthetic: int, rows: int, fresh: int) -> dict[str, Any] | None:
        """The built-in policy with the same takes; None if there is none."""
        if self.request.removes_real or self.request.removes_synthetic:
            return None
        used = {"fresh": rows, "accumulate_real": rows - synthetic}.get(self.policy, 0)
        is_whole = synthetic == rows or self.policy in ("mix", "augment", "accumulate", "fresh", "accumulate_real")
        if fresh != used or not is_whole or (self.policy == "accumulate_subsample" and rows != self.request.rows):
            return None
        if self.policy in ("mix", "accumulate_real"):
            return {"name": self.policy, "real_share": (rows - synthetic) / rows}
        if self.policy == "accumulate" and synthetic != rows:
            return {"name": "expanding", "ratio": synthetic / rows} if synthetic else None
        if self.policy in ("augment", "fresh"):
            return {"name": self.policy, "ratio": synthetic / rows} if synthetic else None
        return {"name": self.policy, **({"length": WINDOW} if self.policy == "window" else {})}

    def losses(self, table: Mapping[str, Any], rows: int | None = None) -> tuple[float, float]:
        """The loss at generation 1 and at the last one."""
        request = self.request
        return losses(table, rows or request.rows, request.generations, request.protect, request.shares)

    def multiplier(self, synthetic: int) -> float:
        """The multiplier with these synthetic rows; infinite if a detector removes all rows."""
        table = self.table(synthetic)
        takes = [*table.get("takes", ()), *(table["generations"][-1] if "generations" in table else ())]
        if takes and not any(take["rows"] for take in takes):
            return np.inf
        first, last = self.losses(table)
        return last / first

    @property
    def limit(self) -> int:
        """The most synthetic rows that the policy can use: those sampled from each model."""
        sampled = self.request.synthetic_rows or self.request.rows
        return min(sampled, self.request.rows) if self.policy == "mix" else sampled

    def stretch(self) -> tuple[int, int] | None:
        """The numbers of synthetic rows that keep the bound: from, to; None if there are none."""
        if VARIED[self.policy]:
            return find_stretch(self.multiplier, self.limit, self.request.bound)
        return (self.limit,) * 2 if self.multiplier(self.limit) <= self.request.bound * (1 + ROUNDING) else None

    def real_share(self, synthetic: int) -> float:
        """Share of real rows among the rows of the last fit (with a budget, among those that it is drawn from)."""
        policy: Policy = make_component("policy", self.table(synthetic), "policy")
        *_, last = schedule(policy, self.request.rows, self.request.generations)
        return last.real_mass


def _advise_policy(request: AdviceRequest, name: str) -> PolicyAdvice | None:
    """The advice for one policy; None if a detector leaves no row to train on."""
    loop = AdvisedLoop(request, name)
    plain = AdvisedLoop(replace(request, removes_synthetic=0.0, removes_real=0.0), name)
    stretch = loop.stretch()
    stretch_without = plain.stretch() if loop.request != plain.request else stretch
    low, high = stretch or (0 if VARIED[name] else loop.limit,) * 2
    if loop.multiplier(high) == np.inf:
        return None
    answer: Answer = "within" if plain.real_share(high) else "none needed"
    if stretch is None:
        answer = "not enough" if VARIED[name] else "beyond"
    elif high < loop.limit:
        answer = "at least"
    table, own = loop.table(high), request.fresh_rows if name in FRESH_POLICIES else 0
    first, last = loop.losses(table)
    first_of_control, last_of_control = loop.losses({"name": "control", "of": table})
    n = request.rows + STEP
    policy: Policy = make_component("policy", table, "policy")
    entries = list(schedule(policy, request.rows, request.generations))
    return PolicyAdvice(
        policy=name, table=table, answer=answer, real_share=plain.real_share(high),
        largest_share=plain.real_share(low), share_after_detector=entries[-1].real_mass,
        share_without_detector=None if stretch_without is None else plain.real_share(stretch_without[1]),
        synthetic_rows=high, multiplier=last / first, control=last_of_control / first_of_control,
        trained_rows=sum(entry.trained_rows for entry in entries),
        sampled_rows=sum(entry.new_rows.synthetic for entry in entries[:-1]),
        real_rows=sum(entry.new_rows.real for entry in entries),
        per_100_rows=(loop.losses(loop.table(high, n), n)[1] - last) / first,
        per_fresh_row=(loop.losses(loop.table(high, None, own + 1))[1] - last) / first,
    )  # fmt: skip


def losses(
    policy: Mapping[str, Any] | str, n: int, generations: int, protect: Protected = "error", shares: Floats | None = None
) -> tuple[float, float]:
    """The loss at generation 1 and at the last one. `shares`: true probabilities of the protected symbols or of the class."""
    component = make_component("policy", policy, "policy")
    if shares is None:
        curve = moment_curves(component, n, generations)["mean_error" if protect == "error" else "variance_ratio"]
    else:
        curve = np.array([-np.expm1(n * np.log1p(-shares)).sum(), chance_alive(component, n, generations, shares).sum()])
    first, last = float(curve[0]), float(curve[-1])
    if protect == "error":
        return first, last
    return 1 / first if first else np.inf, 1 / last if last else np.inf


def smallest_share(policy: str, setting: str, rows: int, generations: int, bound: float) -> float | None:
    """Smallest real share with which the error is at most `bound` times that of the control; None if even the largest is not.

    Under mix and accumulate_real the control has the error of generation 1, under the others more rows, and a lower error.

    `setting`: `real_share` (of mix, accumulate_real), in steps of one row of `rows`, or `ratio` (of augment, fresh, expanding),
    whose real share at generation 2 is 1 / (1 + ratio), with up to 20 synthetic rows per real row.
    """

    def multiplier(synthetic: int) -> float:
        table: dict[str, Any] = {"name": "mix", "real_share": 1.0}  # n real rows in every fit, as n fresh ones
        if setting == "real_share" or synthetic:
            table = {"name": policy, setting: (rows - synthetic if setting == "real_share" else synthetic) / rows}
        return losses(table, rows, generations)[1] / losses({"name": "control", "of": table}, rows, generations)[1]

    stretch = find_stretch(multiplier, rows * (1 if setting == "real_share" else MAX_RATIO), bound)
    if stretch is None:
        return None
    return (rows - stretch[1]) / rows if setting == "real_share" else rows / (rows + stretch[1])


def find_stretch(multiplier: Callable[[int], float], limit: int, bound: float) -> tuple[int, int] | None:
    """The ends of the last stretch of synthetic row counts, within 0 .. `limit`, with a multiplier within the bound; or None.

    The multiplier need not be monotone: it is evaluated on a grid, the ends of the stretch are bisected, and if no point of the
    grid is within the bound, the neighborhood of the lowest point is searched.
    """
    values: dict[int, float] = {}

    def value(m: int) -> float:
        if m not in values:
            values[m] = multiplier(m)
        return values[m]

    grid = sorted({round(limit * i / (GRID_POINTS - 1)) for i in range(GRID_POINTS)})
    lowest = min(grid, key=value)
    threshold = bound * (1 + ROUNDING)
    if value(lowest) > threshold:
        lowest = _find_minimum(value, grid, lowest)
        if value(lowest) > threshold:
            return None
        grid = sorted({*grid, lowest})
    within = [value(m) <= threshold for m in grid]
    last = max(i for i, inside in enumerate(within) if inside)
    first = max((i for i in range(last) if not within[i]), default=-1) + 1
    low = grid[0] if first == 0 else _bisect(lambda m: value(m) <= threshold, grid[first], grid[first - 1])
    high = grid[last] if last + 1 == len(grid) else _bisect(lambda m: value(m) <= threshold, grid[last], grid[last + 1])
    return low, high


def _find_minimum(value: Callable[[int], float], grid: list[int], lowest: int) -> int:
    """The integer with the lowest value between the neighbors of the lowest point of a grid: ternary search."""
    i = grid.index(lowest)
    low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    while high - low > 2:
        left, right = low + (high - low) // 3, high - (high - low) // 3
        low, high = (low, right) if value(left) <= value(right) else (left, high)
    return min(range(low, high + 1), key=value)


def _bisect(is_within: Callable[[int], bool], inside: int, outside: int) -> int:
    """The last integer within the bound, on the way from one within it to one beyond it."""
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if is_within(middle) else (inside, middle)
    return inside
