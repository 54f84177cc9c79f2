"""Image metrics against hand-worked values and closed forms."""

import numpy as np
import pytest

import selfloop
from selfloop.component import Context, Family, Sampler, Snapshot
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.vae.family import Vae
from selfloop.metrics.image_distances import PixelFrechet
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.metrics.image_likelihood import LogLikelihood, NegativeElbo, PixelStd
from selfloop.metrics.vector_distances import frechet_distance
from selfloop.protocols import SupportsElbo
from selfloop.rng import RandomStream
from selfloop.sources.image_arrays import Digits
from selfloop.spec.spec import Spec
from selfloop.types import TrainingRows

CTX = Context(RandomStream(("measure",)))
ROWS = Digits().draw(0, 1797, Context(RandomStream()))
HELD, REAL = ({"image": ROWS["image"][part]} for part in (slice(800), slice(800, 1600)))


def snapshot(family=None, params=None, new=REAL, features=None):
    return Snapshot(1, family or Family(), Sampler(), params or {}, new, HELD, REAL, {}, {}, features or {})


def frechet(new):
    metric = PixelFrechet(features=ImageFeatureExtractor(kind="pixels", dimensions=16))
    learned = metric.features.prepare(REAL, CTX)
    described = {kind: metric.features.extract(rows, learned, CTX) for kind, rows in kinds(new).items()}
    return metric.measure(snapshot(features=described), CTX)["pixel_frechet"]


def kinds(new):
    return {"new": new, "holdout": HELD, "initial": REAL}


def test_frechet_distance_is_the_closed_form_for_diagonal_gaussians():
    """Exact moments: columns of +-s have variance s^2 n / (n - 1)."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    a, b = signs * [1.0, 2.0], signs * [3.0, 0.5] + [5.0, -1.0]
    expected = 26 + 4 / 3 * ((1 - 3) ** 2 + (2 - 0.5) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_the_closed_form_for_any_covariances():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5)) + rng.standard_normal(5) for _ in range(2))
    s, r = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + r - 2 * sqrtm(sqrtm(s) @ r @ sqrtm(s)).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, b) != pytest.approx(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + r - 2 * s), rel=0.01)


def test_frechet_distance_of_a_collapsed_model_is_all_the_variance_that_is_gone():
    a = np.random.default_rng(0).standard_normal((300, 4))
    collapsed = np.tile(a.mean(0), (50, 1))
    assert frechet_distance(collapsed, a) == pytest.approx(np.trace(np.cov(a.T)), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_is_near_zero_for_real_images_and_grows_with_damage():
    real = frechet(REAL)
    blurred = {"image": ((REAL["image"].astype(float) + REAL["image"].mean(0)) / 2).astype(np.uint8)}
    constant = {"image": np.tile(REAL["image"].mean(0).astype(np.uint8), (100, 1, 1))}
    assert 0 <= real < 0.1
    assert 5 * real < frechet(blurred) < frechet(constant)


def test_pixel_spread_is_the_mean_standard_deviation():
    assert PixelStd().measure(snapshot(), CTX)["pixel_std"] == pytest.approx(
        (REAL["image"] / 255).std(0).mean(), rel=1e-12
    )
    constant = {"image": np.full((9, 8, 8, 3), 77, np.uint8)}
    assert PixelStd().measure(snapshot(new=constant), CTX)["pixel_std"] == 0


def test_blocks_of_rows_change_no_number(monkeypatch):
    import selfloop.metrics.image_likelihood as module

    before = PixelStd().measure(snapshot(), CTX)["pixel_std"]
    monkeypatch.setattr(module, "BLOCK", 97)
    assert PixelStd().measure(snapshot(), CTX)["pixel_std"] == pytest.approx(before, rel=1e-9)


def test_negative_elbo_is_the_sum_of_its_parts_and_the_same_each_time():
    vae = Vae(training=TrainingSettings(steps=30))
    assert isinstance(vae, SupportsElbo)
    params = vae.fit(TrainingRows(((REAL, None, 1.0),)), Context(RandomStream(("fit",))), None)
    first, again = (NegativeElbo().measure(snapshot(vae, params), CTX) for _ in range(2))
    assert first == again
    assert first["negative_elbo"] == pytest.approx(first["reconstruction"] + first["kl"])
    assert first["kl"] > 0


def test_the_likelihood_of_more_samples_is_a_tighter_bound_and_the_same_each_time():
    """Burda et al. 2015, theorem 1; one sample is the evidence bound up to noise, with the likelihood's constant."""
    vae = Vae(training=TrainingSettings(steps=200))
    params = vae.fit(TrainingRows(((REAL, None, 1.0),)), Context(RandomStream(("fit",))), None)
    one, some, many = (LogLikelihood(samples=k).measure(snapshot(vae, params), CTX)["log_likelihood"] for k in (1, 10, 200))
    bound = -NegativeElbo().measure(snapshot(vae, params), CTX)["negative_elbo"] - 64 * np.log(vae.sigma * np.sqrt(2 * np.pi))
    assert one == pytest.approx(bound, abs=0.5)
    assert one < some < many < one + 20
    assert LogLikelihood(samples=10).measure(snapshot(vae, params), CTX)["log_likelihood"] == some


def test_without_sampled_rows_there_is_no_number():
    assert PixelStd().measure(snapshot(new={}), CTX) == {}


def test_one_held_out_row_is_too_few_for_a_distance_and_no_traceback(tmp_path):
    family = {"name": "vae", "latent": 2, "hidden": 8, "training": {"steps": 2, "batch_size": 8}}
    spec = Spec(source="digits", family=family, n=12, holdout=1, generations=1, policies=["replace"])
    rows = {row.metric: row for row in selfloop.run(spec, tmp_path).rows}
    assert (rows["pixel_frechet"].value, rows["pixel_frechet"].status) == (None, "not_finite")
    assert rows["pixel_std"].value is not None
