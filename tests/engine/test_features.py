"""Features in the stored world, prepared once per seed and extracted once per batch; corpora of families without an encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import selfloop
from selfloop.columns import Columns, ColumnType, Ints, Params
from selfloop.component import Context, Metric, Source
from selfloop.errors import DataError
from selfloop.result import Result
from selfloop.snapshots import Snapshot
from selfloop.spec.spec import Spec
from selfloop.transforms import FeatureExtractor
from tiny_components import tiny_spec


@dataclass(frozen=True, kw_only=True)
class Centered(FeatureExtractor):
    """Distance of each row from the mean of the real rows that it is prepared on."""

    name: ClassVar[str] = "centered"
    scale: float = 1.0

    def prepare(self, real: Columns, ctx: Context) -> Params:
        return {"mean": np.asarray(real["x"]).mean(keepdims=True)}

    def extract(self, rows: Columns, prepared: Params, ctx: Context) -> Columns:
        return {"features": self.scale * (np.asarray(rows["x"]) - prepared["mean"])}


@dataclass(frozen=True, kw_only=True)
class Offset(Metric):
    """Mean feature of sampled, held-out, initial and every second initial rows, and the prepared mean."""

    name: ClassVar[str] = "offset"
    features: Centered = Centered()

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        means = {f"of_{kind}": float(np.mean(np.asarray(columns["features"]))) for kind, columns in snap.features.items()}
        initial = np.asarray(snap.features["initial"]["features"])
        means |= {"of_seen": float(initial[::2].mean()), "of_unseen": float(initial[1::2].mean())}
        return {"offset": means["of_samples"], "prepared": float(snap.prepared["mean"][0]), **means}


@dataclass(frozen=True, kw_only=True)
class FeatureStd(Metric):
    """Standard deviation of the features of sampled rows."""

    name: ClassVar[str] = "feature_std"
    features: Centered = Centered()

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"feature_std": float(np.std(np.asarray(snap.features["samples"]["features"])))}


@dataclass(frozen=True, kw_only=True)
class DamagedFiles(Source):
    """The numbers 0, 1, ... in files, of which every `step`-th cannot be read."""

    name: ClassVar[str] = "damaged_files"
    rows: int = 40
    step: int = 10

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64")}

    def n_rows(self) -> int:
        return self.rows

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        raise NotImplementedError

    def chunks(self) -> Iterator[Columns]:
        readable = [float(i) for i in range(self.rows) if i % self.step]
        for first in range(0, len(readable), 7):
            yield {"x": np.array(readable[first : first + 7])}

    def order(self, corpus: Columns, ctx: Context) -> Ints:
        return ctx.stream.child("order").generator().permutation(len(corpus["x"]))


def feature_spec(**changes: object) -> Spec:
    settings = {"metrics": (Offset(), FeatureStd()), "criteria": ("any_increase",), "policies": ("replace", "accumulate")}
    return tiny_spec(**{**settings, "n": 20, "holdout": 5, "seeds": 2, "generations": 3, **changes})


def computed_steps(result: Result) -> Counter[str]:
    """Number of computations of each stored step."""
    counts = Counter[str]()
    for usage in (result.shared, *result.usage.values()):
        counts.update({name: count for name, (count, _) in usage.by_step.items()})
    return counts


def test_features_are_prepared_once_and_each_batch_is_extracted_once(tmp_path: Path) -> None:
    counts = computed_steps(selfloop.run(feature_spec(), tmp_path))
    assert counts["prepare_features"] == 2  # once for each seed, not for each metric
    assert counts["extract_features"] == 2 * (2 + 1 + 2 * 2)  # holdout, real(1), model 1's rows, 2 generations of 2 policies


def test_metrics_with_different_extractors_do_not_share_features(tmp_path: Path) -> None:
    metrics = (Offset(), FeatureStd(features=Centered(scale=10.0)), FeatureStd())
    curves = selfloop.run(feature_spec(metrics=metrics[:2]), tmp_path).curves()["replace"]
    unscaled = selfloop.run(feature_spec(metrics=metrics[2:]), tmp_path).curves()["replace"]
    assert np.allclose(curves["feature_std"], 10 * unscaled["feature_std"])
    assert np.allclose(curves["of_seen"], 0)
    assert (np.abs(curves["of_unseen"]) > 0.01).all(), "the other initial rows stay unseen"
    assert np.ptp(curves["of_holdout"], axis=1).max() == 0  # the same rows every generation
    assert np.array_equal(curves["offset"], curves["of_samples"])


def test_a_corpus_of_a_family_without_encoder_is_read_once_and_without_damaged_rows(tmp_path: Path) -> None:
    result = selfloop.run(feature_spec(source=DamagedFiles()), tmp_path)
    counts = computed_steps(result)
    assert (counts["read_corpus"], counts["take_corpus_rows"], counts["draw_real"]) == (1, 4, 0)
    assert len(set(result.curves()["replace"]["prepared"][:, 0])) == 2  # each seed has its own permutation
    curves = selfloop.run(feature_spec(source=DamagedFiles(), n=31), tmp_path).curves()["replace"]
    means = (curves["of_initial"] + curves["prepared"])[:, 0]
    totals = [sum(i for i in range(40) if i % 10) - 31 * mean for mean in means]  # of the five held-out rows
    assert all(abs(total - round(total)) < 1e-6 and 0 < total < 5 * 39 for total in totals)  # no damaged row among the 36


def test_too_few_readable_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="36"):
        selfloop.run(feature_spec(source=DamagedFiles(), n=35), tmp_path)


def test_features_of_too_few_rows_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^n: got 3 initial rows, of which metrics learn features from every second one; exp"):
        selfloop.run(tiny_spec(n=3, metrics=(Offset(),)), tmp_path)
    assert selfloop.run(tiny_spec(n=4, metrics=(Offset(),)), tmp_path).curves()
