"""A simulated web: people and model families publish rows into one pool that later models are trained on.

At every generation the sources publish real rows, then every model of every family is fitted on rows of the pool and publishes
its own. As in `moments.py`, one coordinate with true mean 0 and variance 1 stands for all, and the error of a mean is a sum of
uncorrelated noises: one for the mean of the rows of a batch (one source or family at one generation), one for the choice of
its rows that pass a detector. Coefficient 0 is a constant, the bias. Models of a family share the coefficients of what they
read and differ by their own draws from it: two second moments per family, whatever the number of its models. Where published
rows are chosen by their values, every model is simulated: batches by mean and scatter, the rows of a pool taken as normal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval, MinLen

from selfloop.columns import Floats
from selfloop.errors import SettingError, SpecError, shown, unknown_name
from selfloop.rng import RandomStream
from selfloop.settings import Settings, Share
from selfloop.spec.components import make_settings
from selfloop.spec.parse import parse_override, parse_toml, read_spec_text, set_key
from selfloop.theory.advice import find_stretch

MAX_WEB_ROWS, MAX_COEFFICIENTS = 10**15, 50_000_000
SEARCH_STEPS, MAX_FRESH_FACTOR = 1000, 100.0  # of the search for a share or a factor; the smallest factor is 1 / the largest
Count = Annotated[int, Interval(ge=1, le=MAX_WEB_ROWS)]
Growth = Annotated[float, Interval(gt=0, le=8)]


@dataclass(frozen=True, kw_only=True)
class WebSource(Settings):
    """Real rows that people publish."""

    name: str
    rows: Annotated[Count, "rows at generation 1"]
    growth: Annotated[Growth, "factor of the rows per generation"] = 1.0
    until: Annotated[int | None, Ge(1), "last generation with rows; default: no last one"] = None
    bias: Annotated[float, Interval(ge=-1000, le=1000), "mean of the rows, in true standard deviations"] = 0.0
    variance: Annotated[float, Interval(ge=0, le=1000), "variance of the rows over the true one"] = 1.0


@dataclass(frozen=True, kw_only=True)
class WebFamily(Settings):
    """Models that are fitted anew at every generation. Without `rows_read`, all of them read the whole pool and are equal."""

    name: str
    models: Annotated[Count, "models at generation 1"]
    rows_published: Annotated[Count, "rows that each model publishes per generation"]
    rows_read: Annotated[Count | None, "rows that each model draws from the pool, with replacement; default: all"] = None
    growth: Annotated[Growth, "factor of the number of models per generation"] = 1.0
    bias: Annotated[float, Interval(ge=-1000, le=1000), "added to the mean by every fit, in true standard deviations"] = 0.0
    spread: Annotated[float, Interval(ge=0, le=1000), "standard deviation of such a bias between models"] = 0.0
    variance_factor: Annotated[float, Interval(gt=0, le=2), "variance of a sampled row over that of its model"] = 1.0
    candidates: Annotated[int, Interval(ge=1, le=1000), "rows sampled per published row, which is the largest of them"] = 1
    reads: Annotated[tuple[str, ...], "sources and families whose rows it reads; default: all"] = ()
    removes_synthetic: Annotated[Share, "share of synthetic rows that its detector removes"] = 0.0
    removes_real: Annotated[Share, "share of real rows that its detector removes wrongly"] = 0.0
    synthetic_weight: Annotated[float, Ge(0), "weight of a synthetic row, if its origin is known"] = 1.0
    max_synthetic_share: Annotated[Share, "largest share of synthetic rows, if their origin is known"] = 1.0


POOL = WebFamily(name="pool", models=1, rows_published=1)  # who reads all of it without a detector


@dataclass(frozen=True, kw_only=True)
class Web(Settings):
    """A scenario: sources and families around one pool. Raises SettingError for settings that contradict each other."""

    generations: Annotated[int, Interval(ge=1, le=300), "generations, the first on real rows only"]
    sources: Annotated[tuple[WebSource, ...], MinLen(1), "real rows"]
    families: Annotated[tuple[WebFamily, ...], MinLen(1), "models"]
    origin: Annotated[Literal["hidden", "known"], "whether readers know which rows are real"] = "hidden"
    window: Annotated[int | None, Ge(1), "generations whose rows the pool keeps; default: all"] = None
    decay: Annotated[float, Interval(gt=0, le=1), "factor per generation of the weight of a row of the pool"] = 1.0
    fresh_factor: Annotated[float, Ge(0), "factor of the real rows of all generations but the first"] = 1.0
    seeds: Annotated[int, Ge(2), "simulated webs, if a family has several candidates"] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [*(member.name for member in self.members), POOL.name]
        if len(set(names)) < len(names):
            raise SettingError("families", f"got the names {', '.join(names)}; expected each once. Rename one.")
        for family in self.families:
            for name in set(family.reads) - set(names):
                raise SettingError("families", unknown_name(f"families.{family.name}.reads", name, names[:-1], "name"))
            if self.origin == "hidden" and (family.synthetic_weight, family.max_synthetic_share) != (1.0, 1.0):
                problem = f"{family.name} weights or caps synthetic rows, whose origin is hidden"
                raise SettingError("families", f"{problem}. Set origin = 'known', or a detector (removes_synthetic).")

    @property
    def members(self) -> tuple[WebSource | WebFamily, ...]:
        """All sources, then all families."""
        return *self.sources, *self.families


def read_web(path: str | Path, overrides: Iterable[str] = ()) -> Web:
    """The scenario in a TOML file, with `key=value` overrides. Raises SpecError."""
    table = parse_toml(read_spec_text(path), str(path))
    in_file = {key: [*value] for key, value in table.items() if isinstance(value, Mapping)}
    for override in overrides:
        set_key(table, *parse_override(override), f"--set {shown(override)}")
    for key, cls, needed in (("sources", WebSource, "rows"), ("families", WebFamily, "models")):
        members = table.get(key)
        if not isinstance(members, Mapping) or not all(isinstance(member, Mapping) for member in members.values()):
            raise SpecError(f"{key}: got {shown(members)}; expected tables. Add one per member, such as [{key}.NAME].")
        for name in members.keys() - in_file.get(key, ()):
            if needed not in members[name]:
                raise SpecError(unknown_name(f"--set {key}", name, in_file.get(key, ())))
        table[key] = tuple(make_settings(cls, {"name": name, **member}, f"{key}.{name}") for name, member in members.items())
    return make_settings(Web, table, "web")


class WebBatches:
    """The rows of every batch of a scenario. Batches are in order of birth: at each generation first sources, then families."""

    def __init__(self, web: Web) -> None:
        self.web, n, t = web, len(web.members), np.arange(1, web.generations + 1)
        self.readers = dict(enumerate((*web.families, POOL), len(web.sources)))
        self.models = {m: np.maximum(np.rint(r.models * r.growth ** (t - 1.0)), 1) for m, r in self.readers.items()}
        real = [s.rows * s.growth ** (t - 1.0) * (t <= (s.until or t[-1])) for s in web.sources]
        real = [np.rint(rows * np.where(t > 1, web.fresh_factor, 1.0)) for rows in real]
        published = [self.models[m] * reader.rows_published for m, reader in self.readers.items() if reader is not POOL]
        self.rows, self.member = np.transpose([*real, *published]).ravel(), np.tile(np.arange(n), web.generations)
        if self.rows.max() > MAX_WEB_ROWS:
            raise SpecError(f"growth: got {self.rows.max():.3g} rows of one batch; expected at most 1e15. Lower growth.")
        self.is_synthetic = self.member >= len(web.sources)
        self.arrival = np.repeat(t, n) + self.is_synthetic
        self.passed = {  # rows of every batch that pass the detector of a reader
            m: np.rint(self.rows * (1 - np.where(self.is_synthetic, reader.removes_synthetic, reader.removes_real)))
            for m, reader in self.readers.items()
        }
        readers = (m for m, reader in self.readers.items() if reader.removes_synthetic or reader.removes_real)
        self.views = {m: i for i, m in enumerate(readers, 1)}  # of batches: 0 is all of their rows, others what detectors pass

    def masses(self, t: int, m: int) -> Floats:
        """The share of every batch in the rows that a reader reads at generation t. Raises SpecError if there are none."""
        reader, web, cap = self.readers[m], self.web, self.readers[m].max_synthetic_share
        end = (t - 1) * len(web.members) + len(web.sources)
        synthetic, age = self.is_synthetic[:end], t - self.arrival[:end]
        weighted = self.passed[m][:end] * web.decay**age * (age < (web.window or np.inf))
        weighted *= np.array([not reader.reads or m.name in reader.reads for m in web.members])[self.member[:end]]
        weighted[synthetic] *= reader.synthetic_weight
        n_real, n_synthetic = (float(weighted[kind].sum()) for kind in (~synthetic, synthetic))
        if not (n_real or (n_synthetic and cap == 1)):
            row = "row" if cap == 1 else "real row"
            raise SpecError(f"families.{reader.name}: no {row} is left to read at generation {t}. Raise rows, or window.")
        if n_synthetic > cap * (n_real + n_synthetic):
            return np.asarray(weighted * np.where(synthetic, cap / n_synthetic, (1 - cap) / n_real))
        return np.asarray(weighted / (n_real + n_synthetic))


class WebWorld:
    """One simulated web, or (seed None) the expectations of all: a mean is a vector of its value, or of its coefficients."""

    def __init__(self, batches: WebBatches, seed: int | None) -> None:
        self.batches, n, views = batches, len(batches.rows), 1 + len(batches.views)
        self.rng = None if seed is None else RandomStream(("web", seed)).generator()
        length = 1 + n * views if self.rng is None else 1
        if n * views * length > MAX_COEFFICIENTS:
            raise SpecError("generations: too many for exact moments of so large a web. Lower them, or use fewer detectors.")
        drawn = [batches.models[m].max() for m, reader in batches.readers.items() if reader.rows_read or reader.spread]
        if self.rng is not None and max(drawn, default=0) > MAX_COEFFICIENTS:
            raise SpecError(f"families: {max(drawn):.3g} models of one family are too many to simulate. Set candidates = 1.")
        self.n_noises, self.means, self.scatters = 1, np.zeros((views, n, length)), np.zeros((views, n))
        # By member, its newest rows: the center of their means, and variances: of its noise, of means, of rows around them.
        self.published: dict[int, tuple[Floats, float, float, float]] = {
            m: (source.bias * np.eye(1, length)[0], 0.0, 0.0, source.variance) for m, source in enumerate(batches.web.sources)
        }

    def _add_noise(self, mean: Floats, variance: float) -> None:
        """Add an uncorrelated noise to a mean: as a further coefficient, or its value."""
        i, factor = (self.n_noises, 1.0) if self.rng is None else (0, self.rng.standard_normal())
        mean[i] += factor * variance**0.5
        self.n_noises += 1

    def publish(self, batch: int, m: int) -> None:
        """The rows of a batch, and those that pass each detector."""
        center, noise_variance, between, within = self.published[m]
        if not (rows := self.batches.rows[batch]):
            return
        self.means[:, batch] = center
        self._add_noise(self.means[0, batch], noise_variance + within / rows)
        squares = rows - 1 if self.rng is None else 2 * self.rng.standard_gamma((rows - 1) / 2)
        self.scatters[:, batch] = between + within * squares / rows
        per_row = self.scatters[0, batch] / max(rows - 1, 1)
        for reader, i in self.batches.views.items():
            if passed := self.batches.passed[reader][batch]:
                self.means[i, batch] = self.means[0, batch]
                self._add_noise(self.means[i, batch], per_row * (rows / passed - 1))
                self.scatters[i, batch] = per_row * rows * (passed - 1) / passed

    def fit(self, t: int, m: int, masses: Floats) -> tuple[float, float, float, float]:
        """Bias, squared error, product of the errors of two models and variance, if they read batches with these masses."""
        reader, view, n = self.batches.readers[m], self.batches.views.get(m, 0), len(masses)
        means, models = self.means[view, :n], self.batches.models[m][t - 1]
        center = masses @ means
        scatter = max(float(masses @ (self.scatters[view, :n] + (means**2).sum(axis=1)) - center @ center), 0.0)
        drawn = 1 / reader.rows_read if reader.rows_read else 0.0
        center[0] += reader.bias
        own, shared, variance = scatter * drawn + reader.spread**2, float(center @ center), scatter * (1 - drawn)
        if self.rng is None:
            rows = center, own / models, own * (1 - 1 / models), variance * reader.variance_factor
            error = shared + own
        else:
            from selfloop.theory.laws.curation import best_of_moments  # inside, as the laws take long to load

            lift, factor = best_of_moments(reader.candidates)
            count = int(models) if reader.rows_read or reader.spread else 1
            of_models = center + own**0.5 * self.rng.standard_normal(count)
            error = float(of_models @ of_models) / count
            half = (reader.rows_read - 1) / 2 if reader.rows_read else 0.0  # of the degrees of freedom
            variances = self.rng.standard_gamma(half, count) * (2 * scatter * drawn) if half else np.full(count, variance)
            variance = float(variances.mean())
            of_models += lift * np.sqrt(variances * reader.variance_factor)
            rows = of_models.mean(keepdims=True), 0.0, float(of_models.var()), factor * variance * reader.variance_factor
        self.published[m] = rows
        return float(center[0]), error, shared, variance


@dataclass(frozen=True)
class WebPrediction:
    """A scenario as arrays (generations, readers). Errors are squared, of a mean, over the true variance as variances are."""

    readers: tuple[str, ...]  # the families, and last the pool itself
    seeds: int  # simulated webs; 0: exact expectations
    real_share: Floats  # of the rows read
    bias: Floats  # in true standard deviations
    error: Floats  # of one model
    shared_error: Floats  # of the average of endless models of the family: what they have in common
    variance: Floats
    standard_error: Floats  # of `error`, over seeds; 0 if exact

    @property
    def multiplier(self) -> Floats:
        """The error of every family over that of its generation 1, (generations, families)."""
        return np.asarray(self.error / np.maximum(self.error[0], 1e-300))[:, :-1]


def predict_web(web: Web, seeds: Sequence[int | None] = ()) -> WebPrediction:
    """The mean over simulated webs; exact expectations for the seed None, by default if all families have one candidate."""
    seeds = seeds or ([None] if all(family.candidates == 1 for family in web.families) else range(web.seeds))
    batches = WebBatches(web)
    plans = [[batches.masses(t, m) for m in batches.readers] for t in range(1, web.generations + 1)]
    values = np.zeros((len(seeds), web.generations, len(batches.readers), 4))
    for seed, of_seed in zip(seeds, values, strict=True):
        world, published = WebWorld(batches, seed), 0
        for t, masses in enumerate(plans, 1):
            for batch in range(published, published := len(masses[0])):  # of the last models, then real rows
                world.publish(batch, int(batches.member[batch]))
            of_seed[t - 1] = [world.fit(t, m, read) for m, read in zip(batches.readers, masses, strict=True)]
    bias, error, shared, variance = np.moveaxis(values.mean(0), -1, 0)
    is_exact = seeds[0] is None
    return WebPrediction(
        readers=(*(reader.name for reader in batches.readers.values()),), seeds=0 if is_exact else len(seeds),
        real_share=np.array([[m[~batches.is_synthetic[: len(m)]].sum() for m in masses] for masses in plans]),
        bias=bias, error=error, shared_error=shared, variance=variance,
        standard_error=np.zeros(error.shape) if is_exact else values[..., 1].std(0, ddof=1) / len(seeds) ** 0.5,
    )  # fmt: skip


def needed_real_rows(web: Web, bound: float) -> tuple[float | None, float | None]:
    """The real rows that keep all errors within `bound` times those of generation 1, bisected as in `advise`; None: none do.

    First the smallest real share of all training sets, with known origin. Then the smallest factor on the real rows of later
    generations, with the origin as it is: from 0.01, which may be more than enough, to 100.
    """

    def multiplier(**changes: Any) -> float:
        try:
            return float(predict_web(replace(web, **changes)).multiplier.max())
        except SpecError:
            return np.inf  # a family has nothing to read

    def cap(m: int) -> float:
        capped = [replace(f, max_synthetic_share=min(m / SEARCH_STEPS, f.max_synthetic_share)) for f in web.families]
        return multiplier(origin="known", families=tuple(capped))

    factors = MAX_FRESH_FACTOR ** np.linspace(1, -1, SEARCH_STEPS + 1)
    share = find_stretch(cap, SEARCH_STEPS, bound)
    fresh = find_stretch(lambda m: multiplier(fresh_factor=float(web.fresh_factor * factors[m])), SEARCH_STEPS, bound)
    return None if share is None else 1 - share[1] / SEARCH_STEPS, None if fresh is None else float(factors[fresh[1]])
