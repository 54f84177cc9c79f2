"""A fit is merged with the model of the generation before: (1 - merge) * older + merge * fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
from law_checks import CONTEXT, largest_z, z_of_difference, z_scores
from law_checks import curves as ensemble_values
from selfloop.columns import Floats, Params
from selfloop.engine.curves import Curves
from selfloop.engine.merging import merge_models
from selfloop.engine.tasks import Task, replay_chain, run_task
from selfloop.errors import DataError, SpecError
from selfloop.families.finetune.family import Finetune, Lora
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.family import Transformer
from selfloop.metrics.true_parameters import VarianceRatio
from selfloop.policies.builtin import Accumulate, Replace
from selfloop.published.papers import published_curves
from selfloop.snapshots import Scenario
from selfloop.sources.distributions import GaussianSource
from selfloop.spec.parse import parse_spec
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store.store import Store
from selfloop.theory.laws import law_curves
from selfloop.types import RowTake, TrainingRows
from tiny_language_models import ragged

FAMILIES: dict[str, dict[str, Any]] = {
    "gaussian": {"source": {"name": "gaussian", "dim": 2}, "family": "gaussian"},
    "linear": {"source": {"name": "linear", "dim": 3}, "family": "linear", "metrics": ["excess_risk", "nll"]},
    "glm": {"source": {"name": "logistic", "dim": 2}, "family": "glm"},
}
NORMAL = Scenario(
    Replace(), GaussianSource(dim=2, variance=3.0), Gaussian(), GaussianSampler(variance_factor=0.8), 150, 5, merge=-0.5
)


def make_spec(case: str = "gaussian", **changes: Any) -> Spec:
    return Spec(**{**FAMILIES[case], "n": 60, "holdout": 20, "generations": 4, "seeds": 3, "policies": ["replace"], **changes})


def curves_of(spec: Spec, world: str, store: Path) -> Curves:
    """The curves of the one policy of a spec in the stored world, or of the ensemble of its rows."""
    point, curves = replace(spec.points()[0], worlds=(world,)), Curves(spec.seeds, spec.generations)  # type: ignore[arg-type]
    for seeds in [spec.seeds] if world == "rows" else [(seed,) for seed in spec.seeds]:
        for output in run_task(Task(point, (0,), seeds, spec.generations, store, 1), Store(store)):
            curves.merge(output.curves)
    return curves


@pytest.mark.parametrize("policy", ["replace", "accumulate"])
@pytest.mark.parametrize("case", FAMILIES)
def test_both_worlds_have_the_same_values(case: str, policy: str, tmp_path: Path) -> None:
    spec = make_spec(case, policies=[policy], merge=-0.4)
    ensemble, stored = (curves_of(spec, world, tmp_path) for world in ("rows", "stored"))
    plain = curves_of(replace(spec, merge=None), "rows", tmp_path)
    for metric in spec.metrics:
        values = ensemble.values[metric.name]
        np.testing.assert_allclose(values, stored.values[metric.name], rtol=1e-12)
        np.testing.assert_array_equal(values[:, 0], plain.values[metric.name][:, 0])
        assert (values[:, 1:] != plain.values[metric.name][:, 1:]).any(axis=0).all()


@pytest.mark.parametrize("world", ["rows", "stored"])
def test_a_merge_of_one_shares_every_step_with_no_merge(world: str, tmp_path: Path) -> None:
    spec = make_spec()
    values = curves_of(spec, world, tmp_path).values["variance_ratio"]
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    same = curves_of(replace(spec, merge=1), world, tmp_path)
    np.testing.assert_array_equal(same.values["variance_ratio"], values)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == files
    curves_of(replace(spec, merge=0.9), world, tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} > files


def test_a_chain_ends_in_both_worlds_if_the_merge_is_no_covariance(tmp_path: Path) -> None:
    spec = make_spec(merge=-4.0, seeds=6)
    ensemble, stored = (curves_of(spec, world, tmp_path) for world in ("rows", "stored"))
    rows, others = ([[c.statuses[code] for code in row] for row in c.codes["variance_ratio"]] for c in (ensemble, stored))
    assert rows == others
    ends = [row.index("diverged") for row in rows if "diverged" in row]
    assert min(ends) == 1  # of generation 2
    assert max(ends) > 1
    assert all(set(row[row.index("diverged") + 1 :]) <= {"no measurement"} for row in rows if "diverged" in row)


def test_a_singular_covariance_is_one_and_a_negative_variance_is_none() -> None:
    family, flat = Gaussian(), np.diag([1.0, 0.0])
    models: list[Params] = [{"mean": np.zeros(2), "covariance": c} for c in (flat, 2 * flat, np.diag([1.0, 0.1]))]
    merged = merge_models(family, models[0], models[1], 0.25)
    np.testing.assert_array_equal(merged["covariance"], 1.25 * flat)
    with pytest.raises(selfloop.errors.ChainEndedError, match="diverged"):
        merge_models(family, models[0], models[2], -0.5)
    with pytest.raises(DataError, match="merge: array 'mean' of gaussian has shape"):
        merge_models(family, {**models[0], "mean": np.zeros(3)}, models[1], 0.5)


def test_weights_of_a_transformer_are_merged_and_its_other_arrays_are_those_of_the_fit() -> None:
    family = Transformer(vocab=40, hidden=8, layers=1, heads=2, context=16, training=TrainingSettings(steps=2, batch_size=8))
    prepared = {f"tokenizer/{name}": np.array(0) for name in ("start", "end", "json")}
    models = []
    for seed in (0, 1):
        rows = ragged([[*np.random.default_rng([seed, i]).integers(1, 40, 9), 0] for i in range(12 + seed)])
        training_rows = TrainingRows((RowTake({"tokens": rows}),), prepared)
        models.append(family.fit(training_rows, CONTEXT.child(seed), models[0] if seed else None))
    (older, newer), merged = models, merge_models(family, models[0], models[1], -0.3)
    assert merged.keys() == newer.keys()
    assert newer["training/tokens"] != older["training/tokens"]
    n_weights = 0
    for name, array in merged.items():
        assert array.dtype == newer[name].dtype
        if name.startswith(("training/", "tokenizer/")):
            np.testing.assert_array_equal(array, newer[name])
            continue
        n_weights += array.size
        expected = 1.3 * older[name].astype(np.float64) - 0.3 * newer[name].astype(np.float64)
        np.testing.assert_array_equal(array, expected.astype(np.float32))
    assert n_weights > 40 * 8


def test_a_chain_of_networks_continues_from_its_merges(tmp_path: Path) -> None:
    training = {"steps": 2, "batch_size": 8, "learning_rate": 1e-2}
    plain = Spec(
        source="digits", family={"name": "vae", "hidden": 4, "latent": 2, "training": training}, n=20, holdout=4,  # type: ignore[arg-type]
        generations=3, seeds=1, policies=("replace",), metrics=("pixel_std",), init_from="previous",  # type: ignore[arg-type]
    )  # fmt: skip
    models = []
    for spec in (plain, replace(plain, merge=-0.5)):
        curves_of(spec, "stored", tmp_path)
        world = replay_chain(Task(spec.points()[0], (0,), (0,), 3, tmp_path, 1))
        models.append([world.store.open(world.models[t]) for t in (1, 2, 3)])
    (first, fit, last), (shared, merged, merged_last) = models
    weights = [name for name in first if "." in name]
    assert weights
    assert first.keys() - {*weights} == {"image_shape", "training/steps", "training/rows", "training/loss"}
    for name in weights:
        np.testing.assert_array_equal(shared[name], first[name])
        expected = 1.5 * first[name].astype(np.float64) - 0.5 * fit[name].astype(np.float64)
        np.testing.assert_array_equal(merged[name], expected.astype(np.float32))
    np.testing.assert_array_equal(merged["training/loss"], fit["training/loss"])
    step, other = (np.concatenate([(merged_last[w] - m[w]).ravel() for w in weights]) for m in (merged, last))
    assert (
        0 < np.abs(step).mean() < np.abs(other).mean()
    )  # Adam's two steps from the merge, halved, and none from the plain fit


@pytest.mark.parametrize("family", ["kde", "gmm"])
def test_families_of_other_arrays_are_refused(family: str) -> None:
    with pytest.raises(SpecError, match=rf"^merge: got -0\.5, but the arrays of two models of {family} with these settings"):
        make_spec(family=family, metrics=["nll"], merge=-0.5).points()


def test_adapters_are_refused_and_whole_networks_are_not() -> None:
    base = Path(__file__).parent
    whole = object.__new__(Finetune)
    object.__setattr__(whole, "base_model", base)
    object.__setattr__(whole, "lora", None)
    assert whole.mergeable
    object.__setattr__(whole, "lora", Lora())
    assert not whole.mergeable


@pytest.mark.parametrize(
    ("merge", "error"), [(True, "merge: got True"), ("half", "merge: got 'half'"), (float("nan"), "merge: got nan")]
)
def test_other_values_than_numbers_are_refused(merge: Any, error: str) -> None:
    with pytest.raises(SpecError, match=error):
        make_spec(merge=merge)


def test_one_generation_has_no_merge_and_a_spec_keeps_its_merge_as_text() -> None:
    with pytest.raises(SpecError, match=r"^merge: got 0\.5, but generation 1 has no earlier model"):
        make_spec(generations=1, merge=0.5).points()
    spec = make_spec(merge=-0.25, sweep={"merge": [1, -0.5]})
    assert parse_spec(spec_text(spec), "copy").merge == -0.25
    assert "merge =" not in spec_text(make_spec())
    assert [point.spec.merge for point in spec.points()] == [None, -0.5]


def variance(scenario: Scenario, seeds: int = 512) -> Floats:
    """Measured variance ratios, (seeds, generations)."""
    return ensemble_values(
        scenario.source, scenario.family, scenario.policy, [VarianceRatio()], n=scenario.n, seeds=seeds,
        generations=scenario.generations, sampler=scenario.sampler, merge=scenario.merge,
    )["variance_ratio"]  # fmt: skip


def law(scenario: Scenario) -> Floats:
    (curve,) = law_curves(scenario)
    assert (curve.metric, curve.kind) == ("variance_ratio", "exact")
    return curve.values


@pytest.mark.parametrize(("merge", "factor", "ddof"), [(-0.5, 0.8, 0), (-0.5, 1.2, 1), (0.4, 0.8, 0), (1.1, 0.8, 1)])
def test_variances_of_merged_models_follow_their_law(merge: float, factor: float, ddof: Any) -> None:
    scenario = replace(NORMAL, merge=merge, family=Gaussian(ddof=ddof), sampler=GaussianSampler(variance_factor=factor))
    values = variance(scenario)
    assert largest_z(values, law(scenario)) < 4
    assert largest_z(values[:, 1:], law(replace(scenario, merge=-merge if merge < 1 else 0.9))[1:]) > 4
    assert largest_z(values[:, 1:], law(replace(scenario, sampler=GaussianSampler()))[1:]) > 4


def test_neon_changes_the_variance_against_the_samplers_factor() -> None:
    """v (1 + w (1 - factor)) at generation 2, of unbiased fits: the sign changes at factor 1."""
    for factor, sign in ((0.8, 1), (1.0, 0), (1.2, -1)):
        scenario = replace(NORMAL, family=Gaussian(ddof=1), sampler=GaussianSampler(variance_factor=factor), generations=2)
        np.testing.assert_allclose(law(scenario), [1, 1 + 0.5 * (1 - factor)])
        values = variance(scenario, seeds=1024)
        z = z_scores(values[:, 1:] - values[:, :1], 0.0)
        assert np.abs(z).max() < 4 if sign == 0 else sign * z.min() > 4
        plain = variance(replace(scenario, merge=None), seeds=1024)
        if sign < 0:  # a factor above 1 widens, so that Neon takes a fit below the truth further down
            assert z_of_difference(values[:, 1], plain[:, 1]) < -4


def test_neon_recovers_a_variance_that_maximum_likelihood_underestimates() -> None:
    """E v = s^2 at generation 2 if w = (s^2/v - 1)/(1 - factor), with the factor of fits of n rows."""
    n, factor = 20, 0.5
    weight = (1 / (n - 1)) / (1 - factor * (n - 1) / n)
    scenario = replace(NORMAL, n=n, generations=2, source=GaussianSource(), sampler=GaussianSampler(variance_factor=factor))
    right, wrong = (replace(scenario, merge=merge) for merge in (-weight, weight))
    np.testing.assert_allclose(law(right), [1 - 1 / n, 1])
    assert np.abs(z_scores(variance(right, seeds=4096), 1.0))[1] < 4
    assert np.abs(z_scores(variance(wrong, seeds=4096), 1.0))[1] > 4


def test_no_law_applies_to_merges_that_may_be_no_covariance_or_of_other_rows() -> None:
    assert law_curves(NORMAL)
    for change in ({"merge": -5.0}, {"n": 12}, {"policy": Accumulate()}):
        assert law_curves(replace(NORMAL, **change)) == []  # type: ignore[arg-type]
    assert published_curves(NORMAL) == []
    assert [c.law for c in law_curves(NORMAL)] != [c.law for c in law_curves(replace(NORMAL, merge=None))]
