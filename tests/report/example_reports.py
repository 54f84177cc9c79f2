"""Reports with invented but plausible results, for the tests of the page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from example_galleries import (
    HOSTILE,
    digits_gallery,
    example_faces,
    moons_gallery,
    numbers_gallery,
    story_gallery,
    table_gallery,
    text_gallery,
)

from selfloop.columns import ColumnType, Floats
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Replace
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.published.papers import PublishedCurve
from selfloop.report.values import (
    CategoryShares,
    Cost,
    CurveData,
    DataValuePanel,
    Gallery,
    Panel,
    Report,
)
from selfloop.stats.comparison import Comparison, compare_all
from selfloop.stats.data_value import GridCell, fit_data_value
from selfloop.theory.laws import LawCurve
from selfloop.types import BY_LAW, Coordinates, Verdict

WHEN = datetime(2026, 3, 2, 14, 5, tzinfo=UTC)
POLICIES = ("replace", "accumulate", "accumulate_subsample")
DEFINITIONS = {
    "catastrophic_increase": "The population risk at the last generation is at least twice that of the first.",
    "diverging_error": "The error grows without bound: the trend selected over the generations is not saturating.",
    "any_increase": "The error of the last generation is above that of the first.",
    "variance_collapse": "The variance of the model has fallen below a tenth of the true variance.",
}
VERSIONS = {"selfloop": "0.1.0", "python": "3.11.2", "numpy": "2.4.0", "torch": "2.13.0"}


def example_schedules(n: int, generations: int) -> dict[str, list[ScheduleEntry]]:
    """The schedules of the three policies."""
    policies = (Replace(), Accumulate(), AccumulateSubsample())
    return {policy.name: list(schedule(policy, n, generations)) for policy in policies}


def digits_report(seeds: int = 5, generations: int = 5) -> Report:
    """A VAE on 8 x 8 digits that degrades under replace."""
    rng = np.random.default_rng(1)
    t = np.arange(1, generations + 1)
    slope = {"replace": 0.7, "accumulate": 0.06, "accumulate_subsample": 0.28}
    panels = []
    for metric, title, unit, base in (
        ("negative_elbo", "negative ELBO", "nats", 24.4),
        ("pixel_frechet", "Fréchet distance", "", 3.1),
    ):
        noise = rng.normal(0, 0.15, (seeds, 1))
        curves = [
            CurveData(policy=p, values=base + slope[p] * (t - 1) * base / 24 + noise + rng.normal(0, 0.1, (seeds, generations)))
            for p in POLICIES
        ]
        panels.append(Panel(metric=metric, title=title, unit=unit, curves=curves))
    return Report(
        title="A VAE on handwritten digits",
        facts=["n = 1,257", f"{generations} generations", f"{seeds} seeds"],
        spec_text='generations = 5\n\n[source]\nname = "digits"\n\n[family]\nname = "vae"\n',
        versions=VERSIONS,
        generated=WHEN,
        panels=panels,
        verdicts=_verdicts(),
        definitions=DEFINITIONS,
        findings=["replace: negative_elbo still rises at generation 20: change over the last half 3.1 [2.2, 4.0], margin 0.2."],
        schedules=example_schedules(1257, generations),
        galleries=[digits_gallery(generations)],
        costs=[
            Cost(policy=p, seconds=41.0 + i, steps=9000 * (i + 1), rows=31_425, bytes=48_400_000, stored_share=0.2 * i)
            for i, p in enumerate(POLICIES)
        ],
        notes=["All policies share generation 1 and are compared on the same random numbers."],
    )


def faces_report(seeds: int = 3, generations: int = 5) -> Report:
    """A VAE on example 64 x 64 color images that converge to their mean under replace, with its modes and attributes."""
    blur = {"replace": 0.2, "accumulate": 0.02, "accumulate_subsample": 0.08}
    images = example_faces(200)
    rng = np.random.default_rng(9)
    samples = {
        policy: {
            t: {
                "image": np.rint(
                    images[rng.integers(0, 200, 16)] * (1 - each * (t - 1)) + images.mean(0) * each * (t - 1)
                ).astype(np.uint8)
            }
            for t in range(1, generations + 1)
        }
        for policy, each in blur.items()
    }
    gallery = Gallery(schema={"image": ColumnType("uint8", (64, 64, 3))}, real={"image": images[:16]}, samples=samples)
    return replace(
        digits_report(seeds, generations),
        title="A VAE on example faces",
        galleries=[gallery],
        shares=[mode_shares(seeds, generations), attribute_shares(seeds, generations)],
    )


def mode_shares(seeds: int = 3, generations: int = 5) -> CategoryShares:
    """Ten classes. Under replace one class remains, a different one in every seed."""
    real = np.random.default_rng(11).dirichlet(np.full(10, 40), seeds)
    left = (np.arange(generations) / max(generations - 1, 1))[None, :, None] * np.ones((seeds, 1, 1))
    last = np.eye(10)[np.arange(seeds)][:, None]
    samples = {p: real[:, None] * (1 - k * left) + last * k * left for p, k in (("replace", 1.0), ("accumulate", 0.1))}
    return CategoryShares(kind="class", names=[str(i) for i in range(10)], samples=samples, real=real)


def attribute_shares(seeds: int = 3, generations: int = 5) -> CategoryShares:
    """Attributes. Under replace the rare attributes disappear."""
    real = np.array([0.48, 0.42, 0.06, 0.77, 0.02]) + np.random.default_rng(12).normal(0, 0.004, (seeds, 5))
    t = np.arange(generations)[:, None]
    samples = {
        p: real[:, None] * np.exp(-k * t * np.array([0.1, 0.3, 1, 0.2, 1])) for p, k in (("replace", 0.6), ("accumulate", 0.05))
    }
    names = ["Smiling", "Male", "Eyeglasses", "Young", "Wearing_Hat"]
    return CategoryShares(kind="attribute", names=names, samples=samples, real=real)


def linear_report(seeds: int = 2000, generations: int = 10) -> Report:
    """Linear regression on its exact laws, with published values and a bound."""
    rng = np.random.default_rng(2)
    t = np.arange(1, generations + 1)
    n, d = 1000, 30
    first = d / (n - d - 1)
    laws = {
        "replace": first * t,
        "accumulate": first * np.cumsum(1 / t**2),
        "accumulate_subsample": first * (1 + 0.55 * np.log(t)),
    }
    curves = [
        CurveData(policy=p, values=laws[p] * rng.gamma(15, 1 / 15, (seeds, generations)), positive=True) for p in POLICIES
    ]
    exact = [
        (p, LawCurve(form, "excess_risk", "exact", "Gerstgrasser et al. 2024", "", laws[p]))
        for p, form in (("replace", "t d / (n - d - 1)"), ("accumulate", "sum 1/i² d / (n - d - 1)"))
    ]
    bound = LawCurve("π²/6 · first error", "excess_risk", "bound", "", "", np.full(generations, first * np.pi**2 / 6))
    paper = PublishedCurve(
        "gerstgrasser2024", "Gerstgrasser et al. 2024, Fig. 2", "excess_risk", (1, 5, 10), (first, 5.1 * first, 9.8 * first), ""
    )
    return Report(
        title="Linear regression, 2,000 chains",
        facts=["n = 1,000", f"{generations} generations", "2,000 seeds"],
        spec_text='n = 1000\nseeds = 2000\n[source]\nname = "linear"\ndim = 30\n',
        versions=VERSIONS,
        generated=WHEN,
        panels=[
            Panel(
                metric="excess_risk",
                title="excess risk",
                unit="y²",
                curves=curves,
                laws=[*exact, ("accumulate", bound)],
                published=[("replace", paper)],
            )
        ],
        schedules=example_schedules(n, generations),
        verdicts=_verdicts("excess_risk")[:4],
        definitions=DEFINITIONS,
        costs=[Cost(policy=p, seconds=0.31, steps=0, rows=0, bytes=320_000, stored_share=0.0) for p in POLICIES],
        notes=["accumulate_subsample needs rows, the others statistics: their comparison is not paired."],
    )


def ending_report(seeds: int = 10, generations: int = 50) -> Report:
    """Logistic regression whose chains end one after another, over two sweep points, on a log scale."""
    rng = np.random.default_rng(3)
    t = np.arange(1, generations + 1)
    panels = []
    for n in (200, 400):
        growing = np.exp(np.cumsum(rng.normal(0.12, 0.1, (seeds, generations)), axis=1))
        ends = rng.integers(generations // 4, generations * 2, seeds)
        growing[t[None, :] > ends[:, None]] = np.nan
        flat = 1 + 0.1 * np.log(t) + rng.normal(0, 0.05, (seeds, generations))
        curves = [CurveData(policy="replace", values=growing), CurveData(policy="accumulate", values=flat)]
        panels.append(Panel(metric="log_loss", title="log loss", unit="nats", coordinates=(("n", n),), curves=curves))
    return Report(
        title="Logistic regression on diabetes",
        spec_text="[sweep]\nn = [200, 400]\n",
        versions=VERSIONS,
        generated=WHEN,
        panels=panels,
        notes=["4 of 10 chains of replace end with status separated."],
    )


def gallery_report() -> Report:
    """Points, numbers, texts and tables, one gallery each."""
    rng = np.random.default_rng(4)
    galleries = [moons_gallery(rng), numbers_gallery(rng), text_gallery(), table_gallery(rng)]
    curves = [CurveData(policy="replace", values=rng.normal([1.0, 1.2, 1.5], 0.1, (3, 3)))]
    return Report(
        title="What samples look like",
        spec_text="# no spec",
        versions=VERSIONS,
        generated=WHEN,
        panels=[Panel(metric="nll", title="negative log-likelihood", unit="nats", curves=curves)],
        galleries=galleries,
    )


def language_report(seeds: int = 3, generations: int = 10, policies: int = 4) -> Report:
    """A small transformer on stories, with published curves, comparisons and a gallery with prompts."""
    from selfloop.published.papers import claimed_pairs, find_paper

    rng = np.random.default_rng(6)
    t = np.arange(1, generations + 1)
    labels = [*POLICIES, "replace_multiple"][:policies]
    rise = {
        "replace": 0.22 * (t - 1),
        "accumulate": 0.03 * (t - 3) ** 2 / 6 - 0.02,
        "accumulate_subsample": 0.15 * np.log(t),
        "replace_multiple": 0.17 * (t - 1),
    }
    level = rng.normal(3.1, 0.03, (seeds, 1))
    noise = rng.normal(0, 0.012, (len(labels), seeds, generations))
    values = {p: level + rise[p] - rise[p][0] + noise[i] * (t > 1) for i, p in enumerate(labels)}
    published = [
        (p, PublishedCurve(
            paper.name, paper.title, table.metric, tuple(q.generation for q in values), tuple(q.value for q in values),
            table.cite,
        ))
        for paper in map(find_paper, ("gerstgrasser2024", "kazdan2025"))
        for table in paper.tables
        if table.scale == "GPT-2 9M, TinyStories" and table.sampler == {"temperature": 1.0}
        for p in labels
        if p in table.curves
        for values in [[value for value in table.curves[p] if value.generation <= generations]]
    ]  # fmt: skip
    curves = [CurveData(policy=p, values=v) for p, v in values.items()]
    main = Panel(metric="cross_entropy", title="Cross-entropy", unit="nats per token", curves=curves, published=published)
    return Report(
        title="transformer on tinystories",
        spec_text="n = 4000\n",
        versions=VERSIONS,
        generated=WHEN,
        panels=[main],
        differences=example_differences("cross_entropy", values, claimed_pairs(labels)),
        data_values=[example_data_value(seeds)],
        galleries=[story_gallery(generations, labels)],
    )


def example_differences(
    metric: str, curves: Mapping[str, Floats], claims: Collection[tuple[str, str]] = ()
) -> dict[Coordinates, list[Comparison]]:
    """All pairs of policies at the only point."""
    return {(): [replace(pair, metric=metric) for pair in compare_all(curves, claims)]}


def example_data_value(seeds: int) -> DataValuePanel:
    """A grid in which the number of real rows decides, and synthetic rows help if there are few real rows."""
    rng = np.random.default_rng(7)
    cells = [
        GridCell(r, s, 5 - 0.3 * np.log1p(r) + 0.01 * (np.log1p(s) - 5) ** 2 * (r < 1000) + rng.normal(0, 0.02, seeds))
        for r in (64, 256, 1024, 4096)
        for s in (0, 256, 1024, 4096)
    ]
    value = fit_data_value(cells)
    assert value
    return DataValuePanel(
        title="Cross-entropy", unit="nats per token", cells=cells, value=value,
        published=[("Kazdan et al. 2025, as printed", 0.85, 0.16)],
    )  # fmt: skip


def hostile_report() -> Report:
    """Every text that a user, a model or a data file can influence tries to break out of the page."""
    curves = [CurveData(policy=HOSTILE, values=np.array([[1.0, 2.0], [1.1, 2.2]]))]
    law = LawCurve(HOSTILE, HOSTILE, "exact", HOSTILE, HOSTILE, np.array([1.0, 2.0]))
    paper = PublishedCurve(HOSTILE, HOSTILE, HOSTILE, (1,), (1.0,), HOSTILE)
    text = {"text": np.array([HOSTILE * 50, "plain"]), "prompt": np.array([HOSTILE, "pl"])}
    values = np.array([[1.0, 2.0, 3.0], [1.1, 2.1, 3.2]])
    return Report(
        title=HOSTILE,
        facts=[HOSTILE],
        spec_text=HOSTILE,
        versions={HOSTILE: HOSTILE},
        generated=WHEN,
        panels=[
            Panel(
                metric=HOSTILE,
                title=HOSTILE,
                unit=HOSTILE,
                coordinates=((HOSTILE, HOSTILE),),
                curves=curves,
                laws=[(HOSTILE, law)],
                published=[(HOSTILE, paper)],
            )
        ],
        verdicts=[Verdict(HOSTILE, HOSTILE, "yes", HOSTILE, 1.0, 2.0, 1.0, 3.0, HOSTILE)],
        definitions={HOSTILE: HOSTILE},
        findings=[HOSTILE],
        differences=example_differences(HOSTILE, {HOSTILE: values, HOSTILE + "2": 2 * values}),
        shares=[
            CategoryShares(
                kind=kind, names=[HOSTILE, "b"], samples={HOSTILE: np.full((2, 2, 2), 0.5)}, real=np.full((2, 2), 0.5)
            )
            for kind in ("class", "attribute")
        ],
        data_values=[replace(example_data_value(2), title=HOSTILE, published=[(HOSTILE, 0.5, 0.5)])],
        schedules={label: list(schedule(Replace(), 10, 2)) for label in (HOSTILE, HOSTILE + "2")},
        galleries=[
            Gallery(schema={"text": ColumnType("str")}, real=text, samples={HOSTILE: {1: text}}),
            Gallery(
                schema={HOSTILE: ColumnType("float64", (), HOSTILE)},
                real={HOSTILE: np.arange(5.0)},
                samples={HOSTILE: {1: {HOSTILE: np.arange(5.0)}}},
            ),
        ],
        costs=[Cost(policy=HOSTILE, seconds=1, steps=1, rows=1, bytes=1, stored_share=0.5)],
        notes=[HOSTILE],
    )


def _verdicts(metric: str = "negative_elbo") -> list[Verdict]:
    return [
        Verdict("catastrophic_increase", "replace", "no", metric, 2.0, 1.11, 1.08, 1.15),
        Verdict("catastrophic_increase", "accumulate", "no", metric, 2.0, 1.01, 0.99, 1.03),
        Verdict("catastrophic_increase", "accumulate_subsample", "no", metric, 2.0, 2.07, 1.93, 2.21, f"{BY_LAW}a paper"),
        Verdict("any_increase", "replace", "yes", metric, 1.0, 1.11, 1.08, 1.15),
        Verdict(
            "any_increase", "accumulate", "undecided", metric, 1.0, 1.01, 0.99, 1.03, "the interval contains the threshold"
        ),
        Verdict("any_increase", "accumulate_subsample", "yes", metric, 1.0, 1.05, 1.02, 1.07),
        *[Verdict("variance_collapse", p, "not measured", reason="needs the metric variance_ratio") for p in POLICIES],
    ]
