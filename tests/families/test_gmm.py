import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

import selfloop
from law_checks import CONTEXT, curves, largest_z, training_rows
from selfloop.component import Sampler
from selfloop.families.gmm import Gmm
from selfloop.metrics.likelihood import Nll
from selfloop.policies.builtin import Accumulate, Replace
from selfloop.snapshots import EnsembleTake
from selfloop.sources.shapes import BLOB_CENTERS, Blobs
from selfloop.spec.spec import Spec
from selfloop.testing import check_family

SEEDS = 12
STREAMS = [CONTEXT.child("seed", s).stream for s in range(SEEDS)]
ROWS = np.stack([Blobs(noise=2.0).draw(0, 200, CONTEXT.child("seed", s))["x"] for s in range(SEEDS)])


def ordered(params):
    """Arrays of one model, its components in the order of their first coordinate."""
    order = np.argsort(params["means"][:, 0])
    return [params[name][order] for name in ("weights", "means", "covariances")]


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
def test_fits_are_those_of_scikit_learn(covariance):
    family = Gmm(covariance=covariance, tolerance=1e-13, iterations=1000, regularization=1e-15)
    fitted = family.fit_rows([EnsembleTake({"x": ROWS})], None).params
    for s in (0, 5):
        model = GaussianMixture(3, covariance_type=covariance, tol=1e-13, max_iter=1000, random_state=0, reg_covar=0).fit(
            ROWS[s]
        )
        shapes = {
            "full": lambda c: c,
            "diag": lambda c: np.array([np.diag(v) for v in c]),
            "spherical": lambda c: c[:, None, None] * np.eye(2),
        }
        expected = {"weights": model.weights_, "means": model.means_, "covariances": shapes[covariance](model.covariances_)}
        one = {name: array[s] for name, array in fitted.items()}
        for found, right in zip(ordered(one), ordered(expected), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(family.log_prob(one, {"x": ROWS[s]}), model.score_samples(ROWS[s]), atol=1e-5)


def test_a_seed_does_not_depend_on_the_others():
    family = Gmm(components=4)
    many, few = (family.fit_rows([EnsembleTake({"x": x})], None).params for x in (ROWS, ROWS[3:5]))
    for name in many:
        np.testing.assert_array_equal(many[name][3:5], few[name])
    rows, fewer = family.sample_rows(many, 50, Sampler(), {}, STREAMS), family.sample_rows(few, 50, Sampler(), {}, STREAMS[3:5])
    np.testing.assert_array_equal(rows["x"][3:5], fewer["x"])
    check_family(family, Blobs())


def test_weights_count_as_copies_of_rows():
    x, family = ROWS[0], Gmm(tolerance=1e-13)
    rows, other = {"x": x[:120]}, {"x": x[120:]}
    weighted = family.fit(training_rows((rows, None, 2.0), (other, np.arange(0, 80, 2), 1.0)), CONTEXT, None)
    copied = family.fit(training_rows(({"x": np.concatenate([x[:120], x[:120], x[120::2]])}, None, 1.0)), CONTEXT, None)
    unweighted = family.fit(training_rows((rows, None, 1.0), (other, np.arange(0, 80, 2), 1.0)), CONTEXT, None)
    for found, right in zip(ordered(weighted), ordered(copied), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-6)
    assert not np.allclose(weighted["weights"], unweighted["weights"], rtol=1e-3)


@pytest.mark.parametrize("shift", [1.0, 1.3])
def test_rows_are_sampled_from_the_components(shift):
    params = {
        "weights": np.array([0.5, 0.2, 0.3]),
        "means": BLOB_CENTERS,
        "covariances": np.array([[[4.0, 1.9], [1.9, 1.0]]] * 3),
    }
    x = Gmm().sample(params, 20_000, Sampler(), {}, CONTEXT)["x"]
    nearest = ((x[:, None] - BLOB_CENTERS) ** 2).sum(2).argmin(1)
    z = []
    for k in range(3):
        share = params["weights"][k] * shift
        z.append((np.sum(nearest == k) - 20_000 * share) / np.sqrt(20_000 * share * (1 - share)))
        offsets = x[nearest == k] - BLOB_CENTERS[k]
        products = offsets[:, 0] * offsets[:, 1]
        z.append((products.mean() - shift * 1.9) / (products.std() / np.sqrt(len(products))))
    assert bool(np.abs(z).max() < 4) is (shift == 1.0)


def test_one_component_loses_variance_as_a_normal_distribution_does():
    n, seeds, t = 10, 1000, np.arange(1, 6)
    family, rng = Gmm(components=1), np.random.default_rng(3)
    x, variances = rng.standard_normal((seeds, n, 1)), []
    for generation in t:
        params = family.fit_rows([EnsembleTake({"x": x})], None).params
        variances.append(params["covariances"][:, 0, 0, 0])
        x = family.sample_rows(params, n, Sampler(), {}, [CONTEXT.child(s, int(generation)).stream for s in range(seeds)])["x"]
    assert largest_z(np.stack(variances, axis=1), (1 - 1 / n) ** t) < 4
    assert largest_z(np.stack(variances, axis=1), (1 - 1 / n) ** (t - 1)) > 4


def test_constant_rows_and_rows_fewer_than_components_have_models():
    family = Gmm(components=5)
    for x in (np.full((1, 20, 2), 3.0), ROWS[:1, :2], np.ones((1, 1, 2))):
        params = family.fit_rows([EnsembleTake({"x": x})], None).params
        assert all(np.isfinite(array).all() for array in params.values())
        assert np.isfinite(family.log_prob({name: array[0] for name, array in params.items()}, {"x": x[0]})).all()
        np.testing.assert_allclose(family.sample_rows(params, 9, Sampler(), {}, STREAMS[:1])["x"].mean(1), x.mean(1), atol=30)


def test_mixtures_of_mixtures_get_worse_and_accumulated_rows_prevent_it(tmp_path):
    options = {"n": 60, "generations": 8, "seeds": 64, "holdout": 200}
    risk = {policy.name: curves(Blobs(), Gmm(), policy, [Nll()], **options)["nll"] for policy in (Replace(), Accumulate())}
    assert risk["replace"][:, 7].mean() > risk["accumulate"][:, 7].mean() + 0.3
    assert np.ptp(risk["replace"][:, 0] - risk["accumulate"][:, 0]) == 0
    spec = Spec(source=Blobs(), family=Gmm(), n=30, generations=2, seeds=2, policies=("replace",))
    assert np.isfinite(selfloop.run(spec, tmp_path).curves()["replace"]["nll_trivial"]).all()
