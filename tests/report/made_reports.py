"""Reports filled with made-up but plausible results, as the tests and the timing of the page need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Replace
from selfloop.report.values import (
    Cost,
    Differences,
    Gallery,
    Panel,
    PanelLaw,
    PanelPublished,
    Report,
    Shares,
    Worth,
    curve_of,
    ledger_of,
)
from selfloop.stats.comparison import compare_all
from selfloop.stats.data_value import GridCell, fit_data_value
from selfloop.types import ColumnType, Ragged, Verdict

HOSTILE = "</script><script>alert(1)</script><!-- \" ' & \x00\x1b"
WHEN = datetime(2026, 3, 2, 14, 5, tzinfo=UTC)
POLICIES = ("replace", "accumulate", "accumulate_subsample")
PLANS = {"replace": Replace(), "accumulate": Accumulate(), "accumulate_subsample": AccumulateSubsample()}
DEFINITIONS = {
    "catastrophic_increase": "The population risk at the last generation is at least twice that of the first.",
    "diverging_error": "The error grows without bound: the growth law selected over the generations is not saturating.",
    "any_increase": "The error of the last generation is above that of the first.",
    "variance_collapse": "The variance of the model has fallen below a tenth of the true variance.",
}
VERSIONS = {"selfloop": "0.1.0", "python": "3.11.2", "numpy": "2.4.0", "torch": "2.13.0"}


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
            curve_of(p, t.tolist(), base + slope[p] * (t - 1) * base / 24 + noise + rng.normal(0, 0.1, (seeds, generations)))
            for p in POLICIES
        ]
        panels.append(Panel(metric=metric, title=title, unit=unit, curves=curves))
    return Report(
        title="A VAE on handwritten digits",
        summary=f"vae on digits, n = 1,257, {generations} generations, {seeds} seeds",
        spec_text='generations = 5\n\n[source]\nname = "digits"\n\n[family]\nname = "vae"\n',
        versions=VERSIONS,
        generated=WHEN,
        panels=panels,
        verdicts=_verdicts(),
        definitions=DEFINITIONS,
        findings=["replace: negative ELBO grows linearly (weight 0.93), 0.71 [0.64, 0.78] nats per generation."],
        ledgers=[ledger_of(p, PLANS[p], 1257, generations) for p in POLICIES],
        galleries=[_digits_gallery(generations)],
        costs=[
            Cost(policy=p, seconds=41.0 + i, steps=9000 * (i + 1), rows=31_425, bytes=48_400_000, stored_share=0.2 * i)
            for i, p in enumerate(POLICIES)
        ],
        notes=["All policies share generation 1 and are compared on the same random numbers."],
    )


def faces_report(seeds: int = 3, generations: int = 5) -> Report:
    """A VAE on made 64 x 64 colour pictures that become one under replace, with its modes and attributes."""
    blur = {"replace": 0.2, "accumulate": 0.02, "accumulate_subsample": 0.08}
    images = made_faces(200)
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
        title="A VAE on made faces",
        galleries=[gallery],
        shares=[mode_shares(seeds, generations), attribute_shares(seeds, generations)],
    )


def made_faces(n: int) -> np.ndarray:
    """Ovals of any place, size and colour on grounds that shade off: as hard to compress as small portraits are."""
    rng = np.random.default_rng(10)
    y, x = np.mgrid[:64, :64] / 64
    ground, skin = rng.uniform(0, 255, (2, n, 1, 1, 3))
    high, wide = rng.uniform(0.2, 0.4, (2, n, 1, 1))
    face = ((x - rng.uniform(0.4, 0.6, (n, 1, 1))) / wide) ** 2 + ((y - rng.uniform(0.4, 0.6, (n, 1, 1))) / high) ** 2 < 1
    images = np.where(face[..., None], skin, ground * (0.5 + 0.5 * x[..., None])) + rng.normal(0, 6, (n, 64, 64, 1))
    return np.clip(images, 0, 255).astype(np.uint8)


def mode_shares(seeds: int = 3, generations: int = 5) -> Shares:
    """Ten classes of which one is left under replace, another one in every seed."""
    real = np.random.default_rng(11).dirichlet(np.full(10, 40), seeds)
    left = (np.arange(generations) / max(generations - 1, 1))[None, :, None] * np.ones((seeds, 1, 1))
    one = np.eye(10)[np.arange(seeds)][:, None]
    samples = {p: real[:, None] * (1 - k * left) + one * k * left for p, k in (("replace", 1.0), ("accumulate", 0.1))}
    return Shares(kind="class", names=[str(i) for i in range(10)], samples=samples, real=real)


def attribute_shares(seeds: int = 3, generations: int = 5) -> Shares:
    """Attributes of which the rare ones are lost under replace."""
    real = np.array([0.48, 0.42, 0.06, 0.77, 0.02]) + np.random.default_rng(12).normal(0, 0.004, (seeds, 5))
    t = np.arange(generations)[:, None]
    samples = {
        p: real[:, None] * np.exp(-k * t * np.array([0.1, 0.3, 1, 0.2, 1])) for p, k in (("replace", 0.6), ("accumulate", 0.05))
    }
    names = ["Smiling", "Male", "Eyeglasses", "Young", "Wearing_Hat"]
    return Shares(kind="attribute", names=names, samples=samples, real=real)


def molecule_gallery(generations: int = 3) -> Gallery:
    """Ethanol and water, shaken more and more under replace, every sample turned another way."""
    rng = np.random.default_rng(13)
    ethanol = [
        [-0.89, 0.17, 0.0], [0.46, -0.51, 0.0], [1.44, 0.31, 0.3], [-1.0, 0.8, -0.9], [-1.0, 0.8, 0.9], [-1.7, -0.57, 0.0],
        [0.57, -1.14, -0.89], [0.6, -1.2, 0.85], [2.3, -0.1, 0.2],
    ]  # fmt: skip
    pairs = [[0, 1], [1, 2], [0, 3], [0, 4], [0, 5], [1, 6], [1, 7], [2, 8]]
    water = [[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]]
    real = [([6, 6, 8, 1, 1, 1, 1, 1, 1], ethanol, pairs), ([8, 1, 1], water, [[0, 1], [0, 2]])]

    def shaken(width: float) -> dict[str, Ragged | np.ndarray]:
        moved = []
        for z, places, bonds in real:
            turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
            turn[:, 0] *= np.sign(np.linalg.det(turn))
            moved.append((z, ((np.array(places) + rng.normal(0, width, (len(z), 3))) @ turn).tolist(), bonds))
        return molecule_columns(moved)

    samples = {p: {t: shaken(w * t) for t in range(1, generations + 1)} for p, w in (("replace", 0.2), ("accumulate", 0.0))}
    return Gallery(schema={}, real=molecule_columns(real), samples=samples)


def molecule_columns(rows: Sequence[tuple[list[int], list[list[float]], list[list[int]]]]) -> dict[str, Ragged | np.ndarray]:
    """Molecules (atomic numbers, places, bonds) as columns, two conformers of each: the second lies elsewhere.

    Edges also join atoms that are not bonded, by a type that says so.
    """

    def column(parts: Sequence[np.ndarray]) -> Ragged:
        return Ragged(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))

    twice = [(z, np.reshape(places, (-1, 3)) + moved, bonds) for z, places, bonds in rows for moved in (0, 1000)]
    return {
        "molecule": np.repeat(7 + np.arange(len(rows)), 2),
        "z": column([np.array(z, np.uint8) for z, _, _ in twice]),
        "position": column([places.astype(np.float32) for _, places, _ in twice]),
        "edges": column([np.array([*bonds, [0, len(z) - 1]], np.uint16).reshape(-1, 2) for z, _, bonds in twice]),
        "edge_type": column([np.array([*[1] * len(bonds), 24], np.uint8) for _, _, bonds in twice]),
    }


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
    curves = [curve_of(p, t.tolist(), laws[p] * rng.gamma(15, 1 / 15, (seeds, generations))) for p in POLICIES]
    exact = [
        PanelLaw(name=form, kind="exact", policy=p, generations=t.tolist(), values=laws[p], source="Gerstgrasser et al. 2024")
        for p, form in (("replace", "t d / (n - d - 1)"), ("accumulate", "sum 1/i² d / (n - d - 1)"))
    ]
    bound = PanelLaw(
        name="π²/6 · first error",
        kind="bound",
        policy="accumulate",
        generations=t.tolist(),
        values=[first * np.pi**2 / 6] * generations,
    )
    paper = PanelPublished(
        label="Gerstgrasser et al. 2024, Fig. 2",
        policy="replace",
        generations=[1, 5, 10],
        values=[first, 5.1 * first, 9.8 * first],
    )
    return Report(
        title="Linear regression, 2,000 chains",
        summary=f"linear on linear(dim=30, noise=1), n = 1,000, {generations} generations, 2,000 seeds",
        spec_text='n = 1000\nseeds = 2000\n[source]\nname = "linear"\ndim = 30\n',
        versions=VERSIONS,
        generated=WHEN,
        panels=[
            Panel(metric="excess_risk", title="excess risk", unit="y²", curves=curves, laws=[*exact, bound], published=[paper])
        ],
        ledgers=[ledger_of(p, PLANS[p], n, generations) for p in POLICIES],
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
        curves = [curve_of("replace", t.tolist(), growing), curve_of("accumulate", t.tolist(), flat)]
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
    galleries = [_moons_gallery(rng), _numbers_gallery(rng), _text_gallery(), _table_gallery(rng)]
    t = [1, 2, 3]
    curves = [curve_of("replace", t, rng.normal([1.0, 1.2, 1.5], 0.1, (3, 3)))]
    return Report(
        title="What samples look like",
        spec_text="# no spec",
        versions=VERSIONS,
        generated=WHEN,
        panels=[Panel(metric="nll", title="negative log-likelihood", unit="nats", curves=curves)],
        galleries=galleries,
    )


def language_report(seeds: int = 3, generations: int = 10, policies: int = 4) -> Report:
    """A small transformer on stories, with published curves of another scale, comparisons and a gallery with prompts."""
    from selfloop.published.claims import claimed_pairs
    from selfloop.published.papers import find_paper

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
        PanelPublished(
            label=work.title, policy=p, scale=table.scale, source=table.cite,
            generations=[q.generation for q in table.curves[p] if q.generation <= generations],
            values=[q.value for q in table.curves[p] if q.generation <= generations],
        )
        for work in map(find_paper, ("gerstgrasser2024", "kazdan2025"))
        for table in work.tables
        if table.scale == "GPT-2 9M, TinyStories" and table.sampler == {"temperature": 1.0}
        for p in labels
        if p in table.curves
    ]  # fmt: skip
    curves = [curve_of(p, t.tolist(), v) for p, v in values.items()]
    main = Panel(metric="cross_entropy", title="Cross-entropy", unit="nats per token", curves=curves, published=published)
    return Report(
        title="transformer on tinystories",
        spec_text="n = 4000\n",
        versions=VERSIONS,
        generated=WHEN,
        panels=[main],
        differences=[Differences(metric="cross_entropy", comparisons=compare_all(values, claimed_pairs(labels)))],
        worths=[worth_of(seeds)],
        galleries=[story_gallery(generations, labels)],
    )


def worth_of(seeds: int) -> Worth:
    """A grid in which the number of real rows decides, and a little synthetic data helps where they are few."""
    rng = np.random.default_rng(7)
    cells = [
        GridCell(r, s, 5 - 0.3 * np.log1p(r) + 0.01 * (np.log1p(s) - 5) ** 2 * (r < 1000) + rng.normal(0, 0.02, seeds))
        for r in (64, 256, 1024, 4096)
        for s in (0, 256, 1024, 4096)
    ]
    value = fit_data_value(cells)
    assert value
    return Worth(
        metric="cross_entropy", title="Cross-entropy", unit="nats per token", cells=cells, value=value,
        published=[("Kazdan et al. 2025, as printed", 0.85, 0.16)],
    )  # fmt: skip


def story_gallery(generations: int, policies: Sequence[str]) -> Gallery:
    """Four stories, each begun with the real one's first words, that fall apart under replace."""
    real = [
        "Once upon a time, there was a little girl named Lily. She loved to play in the park.\n\nOne day she saw a big dog. "
        + 'The dog was sad because it had lost its ball. Lily said, "I will help you find it." ' * 8,
        "Tom and his mom went to the shop. Tom wanted a red car, but mom said no.",
        "The sun was hot & bright. <b>Ben</b> sat under a tree  and  ate an apple.\n" * 3,
        "One night, Mia heard a noise. It was a little owl with one eye.",
    ]
    words = " ".join(real).split()
    rng = np.random.default_rng(8)

    def written(i: int, t: int, policy: str) -> str:
        begin, *rest = real[i].split(" ")
        lost = 0.09 * t if policy.startswith("replace") else 0.01 * t
        return " ".join([begin, *(str(rng.choice(words)) if rng.random() < lost else word for word in rest)])

    def columns(texts: list[str]) -> dict[str, Ragged]:
        return {"text": ragged(texts), "prompt": ragged([text.split(" ")[0] for text in real])}

    samples = {p: {t: columns([written(i, t, p) for i in range(4)]) for t in range(1, generations + 1)} for p in policies}
    return Gallery(schema={"text": ColumnType("utf8")}, real={"text": ragged(real)}, samples=samples)


def ragged(texts: Sequence[str]) -> Ragged:
    """Texts as a column of UTF-8 bytes."""
    data = [text.encode() for text in texts]
    return Ragged(np.frombuffer(b"".join(data), np.uint8), np.cumsum([0, *map(len, data)]))


def hostile_report() -> Report:
    """Every text that a user, a model or a data file can influence tries to break out of the page."""
    curves = [curve_of(HOSTILE, [1, 2], np.array([[1.0, 2.0], [1.1, 2.2]]))]
    law = PanelLaw(name=HOSTILE, kind="exact", policy=HOSTILE, generations=[1, 2], values=[1, 2], source=HOSTILE)
    paper = PanelPublished(label=HOSTILE, policy=HOSTILE, generations=[1], values=[1.0])
    beside = replace(paper, scale=HOSTILE, source=HOSTILE)
    text = {"text": np.array([HOSTILE * 50, "plain"]), "prompt": np.array([HOSTILE, "pl"])}
    values = np.array([[1.0, 2.0, 3.0], [1.1, 2.1, 3.2]])
    return Report(
        title=HOSTILE,
        summary=HOSTILE,
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
                laws=[law],
                published=[paper, beside],
            )
        ],
        verdicts=[Verdict(HOSTILE, HOSTILE, "yes", HOSTILE, 1.0, 2.0, 1.0, 3.0, HOSTILE)],
        definitions={HOSTILE: HOSTILE},
        findings=[HOSTILE],
        differences=[Differences(metric=HOSTILE, comparisons=compare_all({HOSTILE: values, HOSTILE + "2": 2 * values}))],
        shares=[
            Shares(kind=kind, names=[HOSTILE, "b"], samples={HOSTILE: np.full((2, 2, 2), 0.5)}, real=np.full((2, 2), 0.5))
            for kind in ("class", "attribute")
        ],
        worths=[replace(worth_of(2), title=HOSTILE, published=[(HOSTILE, 0.5, 0.5)])],
        ledgers=[ledger_of(HOSTILE, Replace(), 10, 2)],
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
        Verdict("catastrophic_increase", "accumulate_subsample", "no", metric, 2.0, 1.05, 1.02, 1.07),
        Verdict("any_increase", "replace", "yes", metric, 1.0, 1.11, 1.08, 1.15),
        Verdict(
            "any_increase", "accumulate", "undecided", metric, 1.0, 1.01, 0.99, 1.03, "the interval contains the threshold"
        ),
        Verdict("any_increase", "accumulate_subsample", "yes", metric, 1.0, 1.05, 1.02, 1.07),
        *[Verdict("variance_collapse", p, "not measured", reason="needs the metric variance_ratio") for p in POLICIES],
    ]


def _digits_gallery(generations: int) -> Gallery:
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(5)
    images = load_digits().images.astype(np.float32) / 16
    samples = {
        policy: {
            t: {
                "image": np.clip(
                    images[rng.integers(0, 1797, 16)] * (1 - blur * t)
                    + blur * t * images.mean(0)
                    + rng.normal(0, blur * t, (16, 8, 8)),
                    0,
                    1,
                )
            }
            for t in range(1, generations + 1)
        }
        for policy, blur in (("replace", 0.15), ("accumulate", 0.02), ("accumulate_subsample", 0.06))
    }
    return Gallery(schema={"image": ColumnType("float32", (8, 8))}, real={"image": images[:16]}, samples=samples)


def _moons_gallery(rng: np.random.Generator) -> Gallery:
    from sklearn.datasets import make_moons

    points, _ = make_moons(400, noise=0.05, random_state=0)
    samples = {
        policy: {t: {"x": points + rng.normal(0, spread * t, points.shape)} for t in range(1, 6)}
        for policy, spread in (("replace", 0.1), ("accumulate", 0.03))
    }
    return Gallery(schema={"x": ColumnType("float64", (2,), "m")}, real={"x": points}, samples=samples)


def _numbers_gallery(rng: np.random.Generator) -> Gallery:
    samples = {
        policy: {t: {"x": rng.normal(0, shrink**t, (500, 1))} for t in (1, 5, 10, 20)}
        for policy, shrink in (("replace", 0.93), ("accumulate", 0.995))
    }
    return Gallery(schema={"x": ColumnType("float64", (1,), "mm")}, real={"x": rng.normal(0, 1, (500, 1))}, samples=samples)


def _text_gallery() -> Gallery:
    real = np.array(
        ["Once upon a time there was a little fox who liked the rain.", "Tom had a red ball. " * 12, "Anna said: <b>no</b>."]
    )
    samples = {
        policy: {t: {"text": np.array([f"The fox {word * t}.", f"Tom {word * t} ball.", HOSTILE])} for t in (1, 2, 3)}
        for policy, word in (("replace", "the the "), ("accumulate", "likes rain "))
    }
    return Gallery(schema={"text": ColumnType("str")}, real={"text": real}, samples=samples)


def _table_gallery(rng: np.random.Generator) -> Gallery:
    def rows() -> dict[str, np.ndarray]:
        return {"inputs": rng.normal(0, 1, (8, 10)), "target": rng.integers(0, 2, 8)}

    schema = {"inputs": ColumnType("float64", (10,)), "target": ColumnType("int64", (), "mg/dl")}
    return Gallery(
        schema=schema, real=rows(), samples={"replace": {1: rows(), 2: rows()}, "accumulate": {1: rows(), 2: rows()}}
    )
