"""Features in the stored world: learned once per seed, each batch described once; and corpora of families without encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import selfloop
import tiny_components
from selfloop.component import Context, FeatureExtractor, Metric, Snapshot, Source
from selfloop.errors import DataError
from selfloop.result import Result
from selfloop.spec.spec import Spec
from selfloop.types import Columns, ColumnType, Params


@dataclass(frozen=True, kw_only=True)
class Centred(FeatureExtractor):
    """How far each row is from the initial real rows' mean."""

    name: ClassVar[str] = "centred"
    scale: float = 1.0

    def prepare(self, real: Columns, ctx: Context) -> Params:
        return {"mean": np.asarray(real["x"]).mean(keepdims=True)}

    def extract(self, rows: Columns, prepared: Params, ctx: Context) -> Columns:
        return {"features": self.scale * (np.asarray(rows["x"]) - learned["mean"])}


@dataclass(frozen=True, kw_only=True)
class Offset(Metric):
    """Mean feature of the new rows, of the held-out and of the initial ones."""

    name: ClassVar[str] = "offset"
    features: Centred = Centred()

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        means = {name: float(np.mean(np.asarray(columns["features"]))) for name, columns in snap.features.items()}
        return {"offset": means["new"], "learned": float(snap.prepared["mean"][0])} | {f"of_{k}": v for k, v in means.items()}


@dataclass(frozen=True, kw_only=True)
class Spread(Metric):
    """Spread of the features of the new rows."""

    name: ClassVar[str] = "spread"
    features: Centred = Centred()

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"spread": float(np.std(np.asarray(snap.features["new"]["features"])))}


@dataclass(frozen=True, kw_only=True)
class Kept(Source):
    """The numbers 0, 1, ... in files, of which every `skips`-th turns out to be damaged when it is read."""

    name: ClassVar[str] = "kept"
    rows: int = 40
    skips: int = 10

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64")}

    def n_rows(self) -> int:
        return self.rows

    def chunks(self) -> Iterator[Columns]:
        good = [float(i) for i in range(self.rows) if i % self.skips]
        for first in range(0, len(good), 7):
            yield {"x": np.array(good[first : first + 7])}

    def order(self, ctx: Context) -> np.ndarray:
        return ctx.stream.child("order").generator().permutation(self.rows)


def spec(**changes: object) -> Spec:
    settings = {"metrics": (Offset(), Spread()), "criteria": ("any_increase",), "policies": ("replace", "accumulate")}
    return tiny_components.tiny_spec(**{**settings, "n": 20, "holdout": 5, "seeds": 2, "generations": 3, **changes})


def computed(result: Result) -> Counter[str]:
    """How often each stage was computed."""
    made = Counter[str]()
    for usage in (result.shared, *result.usage.values()):
        made.update({name: count for name, (count, _) in usage.by_step.items()})
    return made


def test_features_are_learned_once_and_each_batch_is_described_once(tmp_path: Path) -> None:
    result = selfloop.run(spec(), tmp_path)
    made = computed(result)
    assert made["learn_features"] == 2  # one for each seed, not one for each metric
    assert made["describe"] == 2 * (2 + 1 + 2 * 2)  # holdout, real(1), model 1's rows, and two generations of two policies


def test_metrics_with_other_features_have_their_own(tmp_path: Path) -> None:
    metrics = (Offset(), Spread(features=Centred(scale=10.0)), Spread())
    curves = selfloop.run(spec(metrics=metrics[:2]), tmp_path).curves()["replace"]
    plain = selfloop.run(spec(metrics=metrics[2:]), tmp_path).curves()["replace"]
    assert np.allclose(curves["spread"], 10 * plain["spread"])
    assert np.allclose(curves["of_initial"], 0)  # centred on them
    assert np.ptp(curves["of_holdout"], axis=1).max() == 0  # the same rows every generation
    assert np.array_equal(curves["offset"], curves["of_new"])


def test_a_corpus_of_a_family_without_encoder_is_read_once_and_without_its_damaged_rows(tmp_path: Path) -> None:
    result = selfloop.run(spec(source=Kept()), tmp_path)
    made = computed(result)
    assert (made["read_rows"], made["choose"], made["draw_real"]) == (1, 4, 0)
    assert len(set(result.curves()["replace"]["learned"][:, 0])) == 2  # another permutation for each seed
    whole = selfloop.run(spec(source=Kept(), n=31), tmp_path).curves()["replace"]["learned"][:, 0]
    held = [sum(i for i in range(40) if i % 10) - 31 * mean for mean in whole]
    assert all(abs(total - round(total)) < 1e-6 and 0 < total < 5 * 39 for total in held)  # no damaged row among the 36


def test_too_few_whole_rows_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows 5 to 39 were asked for; there are 36"):
        selfloop.run(spec(source=Kept(), n=35), tmp_path)
