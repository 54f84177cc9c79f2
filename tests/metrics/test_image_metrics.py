"""Image metrics against hand-worked values and closed forms."""

import numpy as np
import pytest

from selfloop.component import Context, Family, Sampler, Snapshot
from selfloop.errors import SpecError
from selfloop.families.nn.training import Training
from selfloop.families.vae import Vae
from selfloop.metrics.images import Frechet, HasElbo, LogLikelihood, NegativeElbo, PixelSpread, frechet_distance
from selfloop.rng import Stream
from selfloop.sources.images import Digits
from selfloop.types import Samples

CTX = Context(Stream(("measure",)))
ROWS = Digits().draw(0, 1797, Context(Stream()))
HELD, REAL = ({"image": ROWS["image"][part]} for part in (slice(800), slice(800, 1600)))


def snapshot(family=None, params=None, new=REAL, holdout=HELD, prepared=None):
    return Snapshot(1, family or Family(), Sampler(), params or {}, new, holdout, REAL, {}, prepared or {})


def frechet(new, holdout=HELD, features=16):
    metric = Frechet(components=features)
    return metric.measure(snapshot(new=new, holdout=holdout, prepared=metric.prepare(REAL, CTX)), CTX)["frechet"]


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


def test_principal_components_are_those_of_the_real_rows():
    prepared = Frechet(components=3).prepare(REAL, CTX)
    pixels = REAL["image"].reshape(-1, 64) / 255
    values = np.linalg.eigvalsh(np.cov(pixels.T))[::-1][:3]
    assert np.allclose(np.cov(((pixels - prepared["mean"]) @ prepared["components"].T).T), np.diag(values), atol=1e-9)


def test_pixel_spread_is_the_mean_standard_deviation():
    assert PixelSpread().measure(snapshot(), CTX)["pixel_spread"] == pytest.approx(
        (REAL["image"] / 255).std(0).mean(), rel=1e-12
    )
    constant = {"image": np.full((9, 8, 8, 3), 77, np.uint8)}
    assert PixelSpread().measure(snapshot(new=constant), CTX)["pixel_spread"] == 0


def test_blocks_of_rows_change_no_number(monkeypatch):
    import selfloop.metrics.images as module

    before = (
        PixelSpread().measure(snapshot(), CTX)["pixel_spread"],
        frechet_distance(*(module._features(rows, Frechet().prepare(REAL, CTX)) for rows in (REAL, HELD))),
    )
    prepared = Frechet().prepare(REAL, CTX)
    monkeypatch.setattr(module, "BLOCK", 97)
    after = (
        PixelSpread().measure(snapshot(), CTX)["pixel_spread"],
        frechet_distance(*(module._features(rows, prepared) for rows in (REAL, HELD))),
    )
    assert after == pytest.approx(before, rel=1e-9)


def test_negative_elbo_is_the_sum_of_its_parts_and_the_same_each_time():
    vae = Vae(training=Training(steps=30))
    assert isinstance(vae, HasElbo)
    params = vae.fit(Samples(((REAL, None, 1.0),)), Context(Stream(("fit",))), None)
    first, again = (NegativeElbo().measure(snapshot(vae, params), CTX) for _ in range(2))
    assert first == again
    assert first["negative_elbo"] == pytest.approx(first["reconstruction"] + first["kl"])
    assert first["kl"] > 0


def test_the_likelihood_of_more_samples_is_a_tighter_bound_and_the_same_each_time():
    """Burda et al. 2015, theorem 1; one sample is the evidence bound up to noise, with the likelihood's constant."""
    vae = Vae(training=Training(steps=200))
    params = vae.fit(Samples(((REAL, None, 1.0),)), Context(Stream(("fit",))), None)
    one, some, many = (LogLikelihood(samples=k).measure(snapshot(vae, params), CTX)["log_likelihood"] for k in (1, 10, 200))
    bound = -NegativeElbo().measure(snapshot(vae, params), CTX)["negative_elbo"] - 64 * np.log(vae.sigma * np.sqrt(2 * np.pi))
    assert one == pytest.approx(bound, abs=0.5)
    assert one < some < many < one + 20
    assert LogLikelihood(samples=10).measure(snapshot(vae, params), CTX)["log_likelihood"] == some


def test_without_sampled_rows_there_is_no_number_and_without_held_out_ones_an_error():
    assert PixelSpread().measure(snapshot(new={}), CTX) == {}
    assert Frechet().measure(snapshot(new={}), CTX) == {}
    with pytest.raises(SpecError, match="'negative_elbo' is measured on held-out real rows"):
        NegativeElbo().measure(snapshot(holdout={}), CTX)


def test_zero_components_are_refused():
    with pytest.raises(SpecError, match=r"metrics\.frechet\.components: got 0"):
        Frechet(components=0)
