"""Likelihood of images and standard deviation of pixels, against hand-worked values and bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import selfloop
from selfloop.columns import Columns, Params
from selfloop.component import Context, Family, Sampler
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.vae.family import Vae
from selfloop.metrics import image_distances
from selfloop.metrics.image_distances import PixelStd
from selfloop.metrics.likelihood import LogLikelihood, NegativeElbo
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from selfloop.sources.image_arrays import Digits
from selfloop.spec.spec import Spec
from selfloop.types import RowTake, TrainingRows
from tiny_components import Mean

CTX = Context(RandomStream(("measure",)))
IMAGES = np.asarray(Digits().draw(0, 1200, Context(RandomStream()))["image"])
HOLDOUT, REAL = {"image": IMAGES[:200]}, {"image": IMAGES[200:]}


@pytest.fixture(scope="module")
def trained() -> tuple[Vae, Params]:
    vae = Vae(training=TrainingSettings(steps=200))
    return vae, vae.fit(TrainingRows((RowTake(REAL),)), Context(RandomStream(("fit",))), None)


def snapshot(family: Family, params: Params, samples: Columns = REAL) -> Snapshot:
    return Snapshot(1, family, Sampler(), params, samples, HOLDOUT, REAL, {})


def pixel_std(samples: Columns) -> float:
    return PixelStd().measure(snapshot(Mean(), {}, samples), CTX)["pixel_std"]


def test_pixel_std_is_the_mean_standard_deviation_of_a_pixel() -> None:
    assert pixel_std(REAL) == pytest.approx((REAL["image"] / 255).std(0).mean(), rel=1e-12)
    assert pixel_std({"image": np.full((9, 8, 8, 3), 77, np.uint8)}) == 0
    assert PixelStd().measure(snapshot(Mean(), {}, {}), CTX) == {}


def test_chunks_of_rows_do_not_change_the_pixel_std(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pixel_std(REAL)
    monkeypatch.setattr(image_distances, "CHUNK_ROWS", 97)
    assert pixel_std(REAL) == pytest.approx(before, rel=1e-9)


def test_the_negative_elbo_is_the_sum_of_its_terms_and_reproducible(trained: tuple[Vae, Params]) -> None:
    first, again = (NegativeElbo().measure(snapshot(*trained), CTX) for _ in range(2))
    assert first == again
    assert first["negative_elbo"] == pytest.approx(first["elbo_reconstruction"] + first["kl"])
    assert first["kl"] > 0


def test_more_importance_samples_give_a_tighter_bound_that_is_reproducible(trained: tuple[Vae, Params]) -> None:
    """Burda et al. 2015, theorem 1; one sample is the evidence bound up to noise, with the likelihood's constant."""
    snap = snapshot(*trained)
    one, some, many = (LogLikelihood(importance_samples=k).measure(snap, CTX)["log_likelihood"] for k in (1, 10, 100))
    constant = 64 * np.log(trained[0].sigma * np.sqrt(2 * np.pi))
    bound = -NegativeElbo().measure(snap, CTX)["negative_elbo"] - constant
    assert one == pytest.approx(bound, abs=1.0)
    assert one < some < many < one + 20
    assert LogLikelihood(importance_samples=10).measure(snap, CTX)["log_likelihood"] == some


def test_a_single_held_out_row_is_recorded_as_not_finite(tmp_path: Path) -> None:
    family = {"name": "vae", "latent": 2, "hidden": 8, "training": {"steps": 2, "batch_size": 8}}
    spec = Spec(source="digits", family=family, n=12, holdout=1, generations=1, policies=["replace"])
    measurements = {m.metric: m for m in selfloop.run(spec, tmp_path).measurements}
    assert (measurements["pixel_frechet"].value, measurements["pixel_frechet"].status) == (None, "not_finite")
    assert measurements["pixel_std"].value is not None
