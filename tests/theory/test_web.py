"""Simulated webs against drawn rows, against closed forms, and against answers that leave something out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_components
from selfloop.columns import Floats
from selfloop.errors import SpecError
from selfloop.theory.laws.curation import best_of_moments
from selfloop.theory.moments import predict
from selfloop.theory.web import (
    Web,
    WebFamily,
    WebPrediction,
    WebSource,
    needed_real_rows,
    predict_web,
    read_web,
)

ROOT = Path(__file__).parents[2]
SCENARIOS, PAGE = sorted((ROOT / "examples" / "web").glob("*.toml")), (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
WEB = Web(
    generations=5, origin="known", decay=0.8, window=4,
    sources=(
        WebSource(name="books", rows=60, growth=0.9),
        WebSource(name="blogs", rows=90, bias=0.2, variance=1.5, until=3),
    ),
    families=(
        WebFamily(
            name="large", models=25, rows_read=60, rows_published=4, bias=0.05, removes_synthetic=0.6, removes_real=0.2
        ),
        WebFamily(
            name="small", models=15, rows_read=20, rows_published=10, growth=1.2, variance_factor=0.8, spread=0.1,
            max_synthetic_share=0.4,
        ),
        WebFamily(
            name="own", models=10, rows_published=12, reads=("own", "books"), removes_real=0.5, synthetic_weight=2.0
        ),
    ),
)  # fmt: skip
# A closed club: 50 models of one family train on 1,000 rows of each other, and on real rows at the start only.
CLUB = Web(
    generations=6, window=1, sources=(WebSource(name="people", rows=1000, until=1),),
    families=(WebFamily(name="all", models=50, rows_read=50, rows_published=20),),
)  # fmt: skip


class DrawnWeb:
    """A web whose rows are all drawn, with a leading seeds axis, straight from the words of the settings."""

    def __init__(self, web: Web, seeds: int, stream: int) -> None:
        self.web, self.seeds, self.rng = web, seeds, np.random.default_rng(stream)
        self.batches: list[tuple[int, str, bool, Floats, dict[str, Floats]]] = []

    def add(self, arrival: int, name: str, is_real: bool, rows: Floats) -> None:
        passed = {}
        for family in self.web.families:
            share = 1 - (family.removes_real if is_real else family.removes_synthetic)
            passed[family.name] = self.rng.permuted(rows, axis=1)[:, : round(rows.shape[1] * share)]
        self.batches.append((arrival, name, is_real, rows, passed))

    def weight(self, t: int, arrival: int) -> float:
        age = t - arrival
        return self.web.decay**age * (self.web.window is None or age < self.web.window)

    def fit(self, t: int, family: WebFamily) -> tuple[Floats, Floats, Floats]:
        """Means and variances of all models, (seeds, models), and the published rows."""
        n = round(family.models * family.growth ** (t - 1))
        rows, weights, is_synthetic = [], [], []
        for arrival, name, is_real, _, passed in self.batches:
            of_batch = passed[family.name]
            readable = not family.reads or name in family.reads
            one = readable * self.weight(t, arrival) * (1 if is_real else family.synthetic_weight)
            rows.append(of_batch)
            weights += [one] * of_batch.shape[1]
            is_synthetic += [not is_real] * of_batch.shape[1]
        p, synthetic, pool = np.array(weights) / np.sum(weights), np.array(is_synthetic), np.concatenate(rows, axis=1)
        share, cap = p[synthetic].sum(), family.max_synthetic_share
        if share > cap:
            p = np.where(synthetic, p * cap / share, p * (1 - cap) / (1 - share))
        if family.rows_read:
            drawn = self.rng.choice(len(p), p=p, size=(self.seeds, n * family.rows_read))
            read = np.take_along_axis(pool, drawn, 1).reshape(self.seeds, n, family.rows_read)
            means, variances = read.mean(axis=2), read.var(axis=2)
        else:
            mean = pool @ p
            means, variances = (np.repeat(v[:, None], n, axis=1) for v in (mean, pool**2 @ p - mean**2))
        means = means + family.bias + family.spread * self.rng.standard_normal(means.shape)
        normal = self.rng.standard_normal((self.seeds, n, family.rows_published, family.candidates)).max(axis=3)
        published = means[..., None] + np.sqrt(family.variance_factor * variances)[..., None] * normal
        return means, variances, published.reshape(self.seeds, -1)

    def follow(self) -> Floats:
        """Bias, squared error, product of two models' errors and variance: (seeds, generations, families and pool, 4)."""
        values = np.zeros((self.seeds, self.web.generations, len(self.web.families) + 1, 4))
        for t in range(1, self.web.generations + 1):
            for source in self.web.sources:
                n = round(source.rows * source.growth ** (t - 1)) * (t <= (source.until or t))
                noise = self.rng.standard_normal((self.seeds, n))
                self.add(t, source.name, True, source.bias + np.sqrt(source.variance) * noise)
            pool = np.concatenate([rows for *_, rows, _ in self.batches], axis=1)
            weights = np.concatenate([np.full(rows.shape[1], self.weight(t, born)) for born, *_, rows, _ in self.batches])
            mean = pool @ weights / weights.sum()
            values[:, t - 1, -1] = np.transpose([mean, mean**2, mean**2, pool**2 @ weights / weights.sum() - mean**2])
            fits = [self.fit(t, family) for family in self.web.families]
            for g, (family, (means, variances, rows)) in enumerate(zip(self.web.families, fits, strict=True)):
                n, squares, average = means.shape[1], (means**2).mean(axis=1), means.mean(axis=1)
                product = (n * average**2 - squares) / (n - 1)
                values[:, t - 1, g] = np.transpose([average, squares, product, variances.mean(axis=1)])
                self.add(t + 1, family.name, False, rows)
        return values


def drawn(web: Web, seeds: int, at_once: int = 250) -> Floats:
    return np.concatenate([DrawnWeb(web, at_once, i).follow() for i in range(seeds // at_once)])


def largest_z(values: Floats, prediction: WebPrediction) -> float:
    """The largest standardized difference of drawn webs from a prediction, of all quantities."""
    exact = np.stack([prediction.bias, prediction.error, prediction.shared_error, prediction.variance], axis=-1)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return float(np.abs((values.mean(axis=0) - exact) / error).max())


@pytest.fixture(scope="module")
def drawn_webs() -> Floats:
    return drawn(WEB, 2000)


def changed(web: Web, name: str, **settings: Any) -> Web:
    """A web with other settings of one family."""
    families = [replace(f, **settings) if f.name == name else f for f in web.families]
    return replace(web, families=tuple(families))


def test_expectations_are_those_of_drawn_rows(drawn_webs: Floats) -> None:
    assert largest_z(drawn_webs, predict_web(WEB)) < 4


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("large", {"removes_synthetic": 1.0}),  # false negatives ignored
        ("large", {"removes_synthetic": 0.0}),
        ("large", {"removes_real": 0.0}),  # false positives ignored
        ("own", {"removes_real": 0.0}),
        ("own", {"synthetic_weight": 1.0}),
        ("own", {"reads": ()}),
        ("small", {"max_synthetic_share": 1.0}),
        ("small", {"spread": 0.0}),
        ("small", {"growth": 1.0}),
        ("small", {"variance_factor": 1.0}),
        ("large", {"bias": 0.0}),
        ("large", {"models": 1}),
    ],
)
def test_the_comparison_notices_a_setting_that_is_ignored(drawn_webs: Floats, name: str, settings: dict[str, Any]) -> None:
    assert largest_z(drawn_webs, predict_web(changed(WEB, name, **settings))) > 4


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"window": None}, {"window": 3}, {"fresh_factor": 0.8}])
def test_the_comparison_notices_another_pool(drawn_webs: Floats, settings: dict[str, Any]) -> None:
    assert largest_z(drawn_webs, predict_web(replace(WEB, **settings))) > 4


def independent_errors(web: Web) -> Floats:
    """The error of a model of the club if errors of the models that it reads were independent: the wrong answer."""
    (family,) = web.families
    errors = [1 / 1000 + 1 / 50]
    for _ in range(web.generations - 1):
        errors.append((errors[-1] + 1 / family.rows_published) / family.models + 1 / 50)
    return np.array(errors)


def test_models_that_share_a_pool_have_errors_in_common_and_counting_them_as_independent_is_wrong() -> None:
    exact, values = predict_web(CLUB), drawn(CLUB, 500)
    assert largest_z(values, exact) < 4
    last = values[:, -1, 0, 1]
    z = (last.mean() - independent_errors(CLUB)[-1]) / (last.std(ddof=1) / np.sqrt(len(last)))
    assert z > 10
    longer = replace(CLUB, generations=100)
    assert independent_errors(longer)[-1] / independent_errors(longer)[0] == pytest.approx(1.02, abs=0.02)  # it stays
    assert predict_web(longer).multiplier[-1, 0] > 6  # and it grows with every generation


def test_the_error_of_a_club_grows_by_the_noise_of_its_pool_at_every_generation() -> None:
    exact = predict_web(replace(CLUB, generations=2))
    assert exact.shared_error[:, 0] == pytest.approx([1e-3, 2e-3 + 1 / (50 * 50)], rel=2e-2)  # 1/rows, 1/(models x rows read)
    assert exact.error[0, 0] == pytest.approx(1e-3 + (1 - 1e-3) / 50)


@pytest.mark.parametrize(
    ("policy", "pool"),
    [
        ("replace", {"window": 1}),
        ({"name": "window", "length": 3}, {"window": 3}),
        ("accumulate", {}),
        ({"name": "expanding", "ratio": 1.0}, {}),
    ],
)
@pytest.mark.parametrize("n", [10, 1000])
def test_one_model_that_reads_everything_follows_the_laws_of_policies(
    policy: str | Mapping[str, Any], pool: dict[str, Any], n: int
) -> None:
    web = Web(
        generations=30, sources=(WebSource(name="people", rows=n, until=1),),
        families=(WebFamily(name="one", models=1, rows_published=n),), **pool,
    )  # fmt: skip
    exact, law = predict_web(web), predict(policy, n, 30)
    np.testing.assert_allclose(n * exact.error[:, 0], law.mean_error_multiplier, rtol=1e-10)
    np.testing.assert_allclose(exact.variance[:, 0], law.variance_ratio, rtol=1e-10)
    np.testing.assert_allclose(exact.real_share[:, 0], law.real_mass, rtol=1e-10)
    assert exact.multiplier.max() < np.pi**2 / 6 or policy != "accumulate"


def test_real_rows_that_keep_arriving_follow_their_law() -> None:
    people, one = WebSource(name="people", rows=50), WebFamily(name="one", models=1, rows_published=50)
    law = predict({"name": "fresh", "ratio": 1.0}, 50, 20)
    exact = predict_web(Web(generations=20, window=1, sources=(people,), families=(one,)))
    np.testing.assert_allclose(50 * exact.error[:, 0], law.mean_error_multiplier, rtol=1e-10)


def test_a_cap_on_synthetic_rows_has_the_error_of_a_fixed_share() -> None:
    n, m, w = 50, 80, 0.7
    one = WebFamily(name="one", models=1, rows_published=m, max_synthetic_share=1 - w)
    web = Web(generations=80, window=1, origin="known", sources=(WebSource(name="people", rows=n),), families=(one,))
    law = (w**2 / n + (1 - w) ** 2 / m) / (1 - (1 - w) ** 2 * (1 - 1 / m))  # He, Xu, Cheng 2025, variance pooled
    assert predict_web(web).error[-1, 0] == pytest.approx(law, rel=1e-10)
    assert predict_web(changed(web, "one", max_synthetic_share=0.5)).error[-1, 0] != pytest.approx(law, rel=0.02)


def test_a_detector_without_errors_leaves_real_rows_and_one_that_drops_some_leaves_fewer() -> None:
    one = WebFamily(name="one", models=3, rows_published=500, removes_synthetic=1.0)
    web = Web(generations=4, sources=(WebSource(name="people", rows=100),), families=(one,))
    assert predict_web(web).error[:, 0] == pytest.approx([1 / 100, 1 / 200, 1 / 300, 1 / 400])
    assert predict_web(changed(web, "one", removes_real=0.5)).error[:, 0] == pytest.approx([1 / 50, 1 / 100, 1 / 150, 1 / 200])
    assert predict_web(changed(web, "one", removes_synthetic=0.9)).error[-1, 0] > 1 / 400


def test_without_bias_error_and_variance_add_up_to_the_true_variance() -> None:
    sources = tuple(replace(source, bias=0.0, variance=1.0) for source in WEB.sources)
    families = tuple(replace(family, bias=0.0, spread=0.0, variance_factor=1.0) for family in WEB.families)
    exact = predict_web(replace(WEB, sources=sources, families=families))
    np.testing.assert_allclose(exact.error + exact.variance, 1.0, rtol=1e-12)
    assert np.abs(predict_web(WEB).error + predict_web(WEB).variance - 1).max() > 0.01


def test_simulated_models_have_the_exact_moments_without_a_choice_and_others_with_one() -> None:
    exact, simulated = predict_web(WEB), predict_web(WEB, range(200))
    assert (np.abs(simulated.error - exact.error) < 4 * simulated.standard_error)[:, :-1].all()
    np.testing.assert_allclose(simulated.variance, exact.variance, rtol=0.03)
    np.testing.assert_allclose(simulated.shared_error[-1], exact.shared_error[-1], rtol=0.25)
    chosen = predict_web(changed(WEB, "large", candidates=2), range(200))
    assert (np.abs(chosen.error - exact.error) > 4 * chosen.standard_error)[2:, 0].all()


def test_simulated_models_with_a_choice_agree_with_drawn_rows() -> None:
    web = changed(replace(CLUB, generations=4, window=None), "all", candidates=3)
    values, simulated = drawn(web, 250), predict_web(web, range(250))
    error = np.hypot(values[..., 1].std(axis=0, ddof=1) / np.sqrt(250), simulated.standard_error)
    assert (np.abs(values[..., 1].mean(axis=0) - simulated.error) < 4 * error).all()
    assert simulated.bias[1, 0] == pytest.approx(
        best_of_moments(3)[0] / 2 * (1 - 0.75 / 50), rel=0.01
    )  # mean deviation of 50 rows
    other = predict_web(changed(web, "all", candidates=2), range(250))
    assert (np.abs(values[..., 1].mean(axis=0) - other.error) > 4 * error)[1:].all()


def biased(**settings: Any) -> Web:
    """Endless rows, so that errors are those of the bias: b at generation 1, b / (1 - s) with a synthetic share of s."""
    people = WebSource(name="people", rows=10**9)
    large = WebFamily(name="large", models=1000, rows_published=3 * 10**6, rows_read=10**9, bias=0.1)
    return Web(generations=40, window=1, sources=(people,), families=(large,), **settings)


def test_the_needed_real_rows_are_those_of_the_closed_form_and_fewer_break_the_bound() -> None:
    bound, web = 2.0, biased()
    synthetic = 1 - bound**-0.5
    share, factor = needed_real_rows(web, bound)
    assert share == pytest.approx(1 - synthetic, abs=0.0011)
    assert factor == pytest.approx(3 * (1 - synthetic) / synthetic, rel=0.01)
    assert share is not None
    assert factor is not None
    for cap, scale, within in ((1 - share, factor, True), (1 - share + 0.002, factor / 1.02, False)):
        capped = changed(replace(web, origin="known"), "large", max_synthetic_share=cap)
        assert (predict_web(capped).multiplier.max() <= bound) == within
        assert (predict_web(replace(web, fresh_factor=scale)).multiplier.max() <= bound) == within


def test_no_real_rows_are_enough_where_the_bound_is_out_of_reach_and_none_are_needed_where_it_is_wide() -> None:
    share, factor = needed_real_rows(biased(), 1e9)
    assert (share, round(factor or 0, 9)) == (0.0, 0.01)
    share, factor = needed_real_rows(changed(replace(biased(seeds=2), generations=4), "large", candidates=2, models=20), 1.001)
    assert share == 1.0
    assert factor is None


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_table_of_the_page_has_the_numbers_of_the_scenarios(path: Path) -> None:
    web = read_web(path)
    prediction = predict_web(web)
    shares = [f"{100 * prediction.real_share[-1, i]:.1f} %" for i in (-1, 0)]
    row = [*shares, f"{prediction.bias[-1, -1]:.3g}", f"{prediction.multiplier.max():.3g}"]
    if prediction.seeds == 0:
        share, factor = needed_real_rows(web, 2.0)
        row += [f"{100 * (share or 0):.1f} %", "more than 100 times" if factor is None else f"{factor:.3g} times"]
    assert any(line.startswith(f"| `{path.stem}` | {' | '.join(row)} |") for line in PAGE.splitlines())


def test_the_page_has_every_setting() -> None:
    settings = {field.name for cls in (Web, WebSource, WebFamily) for field in fields(cls)} - {"name", "sources", "families"}
    assert settings == set(re.findall("`(\\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.M)))) & settings


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenarios_that_ship_run(path: Path) -> None:
    prediction = predict_web(read_web(path, ["generations=3", "seeds=2"]))
    assert prediction.multiplier.max() > 1.05
    assert (prediction.real_share[0] == 1).all()


def test_the_command_prints_tables_and_writes_the_same_as_json(tmp_path: Path) -> None:
    options = ("web", SCENARIOS[0].parent / "steady.toml", "--set", "generations=4", "--bound", "50%")
    done = tiny_components.selfloop(*options, "--json", tmp_path / "a.json", "--figure", tmp_path / "a.svg")
    assert done.code == 0, done.err
    answer = json.loads((tmp_path / "a.json").read_text())
    assert "times those of later generations" in done.out
    assert f"{answer['prediction']['error'][3][0]:.4g}" in done.out
    assert 0 < answer["need"]["real_share"] < 1
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert answer["prediction"]["readers"] == ["large", "small", "pool"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("families.large.model=3", "families.large.model: unknown key 'model'. Did you mean 'models'?"),
        ("families=3", "families: got 3; expected tables"),
        ("origin=hiden", "web.origin: got 'hiden'"),
        ("families.large.max_synthetic_share=0.5", "Set origin = 'known', or a detector"),
        ("families.nope.bias=1", "--set families: unknown name 'nope'. Allowed: large, small."),
        ("families.nope={ models = 1 }", "families.nope.rows_published: missing. Set rows_published."),
        ('families.large.reads=["peple"]', "families.large.reads: unknown name 'peple'. Did you mean 'people'?"),
        ("sources.people.growth=8", "growth: got 1.44e+25 rows of one batch; expected at most 1e15. Lower growth."),
        ("sources.large.rows=3", "expected each once. Rename one."),
        ('families.large.reads=["large"]', "families.large: no row is left to read at generation 1."),
        ("sources.people.rows=0", "sources.people.rows: got 0; expected a whole number from 1"),
        ("families.large.bias=1e300", "families.large.bias: got 1e+300; expected a number from -1000 to 1000."),
        ("generations=301", "web.generations: got 301; expected a whole number from 1 to 300"),
    ],
)
def test_a_wrong_scenario_is_one_sentence(change: str, message: str) -> None:
    done = tiny_components.selfloop("web", SCENARIOS[0].parent / "steady.toml", "--set", change)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_the_largest_settings_give_finite_numbers() -> None:
    one = WebFamily(name="one", models=2, rows_read=1, rows_published=2, bias=1000.0, spread=1000.0, variance_factor=2.0)
    web = Web(generations=300, window=1, sources=(WebSource(name="people", rows=1, until=1, variance=1000.0),), families=(one,))
    assert np.isfinite(predict_web(web).error).all()
    assert np.isfinite(predict_web(changed(replace(web, seeds=2), "one", candidates=1000)).error).all()


def test_simulated_webs_print_their_errors_and_no_digits_that_they_do_not_have() -> None:
    options = ("web", SCENARIOS[0].parent / "chosen.toml", "--set", "generations=3", "--set", "seeds=3")
    simulated = tiny_components.selfloop(*options, "--bound", "5", "--json", "-")
    answer = json.loads(simulated.out[simulated.out.index("{") :])["prediction"]
    done = tiny_components.selfloop(*options, "--bound", "5")
    assert f"{answer['error'][2][0]:.4g} ± {answer['standard_error'][2][0]:.1g}" in done.out
    assert re.search(r"largest error: [\d.]+ ± [\d.]+ times", done.out)
    assert re.search(r"known origin, about \d+ % of every training set", done.out)
    exact = tiny_components.selfloop("web", SCENARIOS[0].parent / "steady.toml", "--set", "generations=3", "--bound", "2")
    assert "±" not in exact.out
    assert "at least" in exact.out


@pytest.mark.parametrize("settings", [{"rows_read": 5}, {"spread": 0.1}])
def test_more_models_than_can_be_simulated_are_refused_and_equal_ones_are_not_drawn(settings: dict[str, Any]) -> None:
    one = WebFamily(name="one", models=10**13, rows_published=9, candidates=2)
    web = Web(generations=2, sources=(WebSource(name="people", rows=9),), families=(one,))
    with pytest.raises(SpecError, match="families: 1e\\+13 models of one family are too many to simulate"):
        predict_web(changed(web, "one", **settings))
    assert np.isfinite(predict_web(web).error).all()


def test_a_cap_without_real_rows_and_too_large_a_web_are_refused() -> None:
    one = WebFamily(name="one", models=1, rows_published=9, max_synthetic_share=0.5)
    people = WebSource(name="people", rows=9, until=1)
    with pytest.raises(SpecError, match=r"families\.one: no real row is left to read at generation 2"):
        predict_web(Web(generations=2, window=1, origin="known", sources=(people,), families=(one,)))
    many = tuple(WebFamily(name=f"f{i}", models=1, rows_published=9, removes_real=0.1) for i in range(20))
    with pytest.raises(SpecError, match="generations: too many for exact moments"):
        predict_web(Web(generations=300, sources=(WebSource(name="people", rows=9),), families=many))
