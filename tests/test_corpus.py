"""Encoded corpora in the stored world: encoded once for all seeds, used by fits, decoded for curators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import selfloop
import tiny_components
from selfloop.columns import Columns, ColumnType, Params, Ragged, count_rows
from selfloop.component import Context, Family, Metric, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.engine.tasks import Task, replay_chain
from selfloop.errors import SpecError
from selfloop.result import Result
from selfloop.snapshots import Snapshot
from selfloop.sources.files import FileSource
from selfloop.spec.spec import Spec
from selfloop.transforms import Encoder
from selfloop.types import TrainingRows

pytestmark = pytest.mark.filterwarnings("ignore:source.*are exact copies")  # there are only 7 different words


@dataclass(frozen=True, kw_only=True)
class Words(FileSource):
    """Words of 1 to 7 letters, two per chunk."""

    name: ClassVar[str] = "words"
    rows: int = 30

    def schema(self) -> Mapping[str, ColumnType]:
        return {"text": ColumnType("utf8")}

    def n_rows(self) -> int:
        return self.rows

    def chunks(self) -> Iterator[Columns]:
        for first in range(0, self.rows, 2):
            lengths = np.arange(first, min(first + 2, self.rows)) % 7 + 1
            yield {"text": Ragged(np.full(lengths.sum(), ord("a"), np.uint8), np.concatenate([[0], np.cumsum(lengths)]))}


@dataclass(frozen=True, kw_only=True)
class Shift(Encoder):
    """Letters shifted by the number of rows that it was prepared on."""

    name: ClassVar[str] = "shift"

    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        return {"shift": np.array(sum(map(count_rows, chunks)), np.uint8)}

    def encode(self, rows: Columns, prepared: Params) -> Columns:
        return {"tokens": Ragged(rows["text"].values + prepared["shift"], rows["text"].offsets)}

    def decode(self, rows: Columns, prepared: Params) -> Columns:
        return {"text": Ragged(rows["tokens"].values - prepared["shift"], rows["tokens"].offsets)}


@dataclass(frozen=True, kw_only=True)
class Prompted(Sampler):
    """Rows begin with the first tokens of real rows."""

    name: ClassVar[str] = "prompted"

    def draw_prompts(self, n: int, initial: Columns, ctx: Context) -> Columns:
        return {"prompt": initial["tokens"].values[initial["tokens"].offsets[np.arange(n) % count_rows(initial)]]}


@dataclass(frozen=True, kw_only=True)
class Lengths(Family):
    """Rows that repeat one token, as long as training rows."""

    name: ClassVar[str] = "lengths"
    required_columns: ClassVar[tuple[str, ...]] = ("text",)
    sampler_class: ClassVar[type[Sampler]] = Prompted
    first: int = 0  # added to the lengths of generation 1

    def for_generation(self, t: int) -> Family:
        return self if t == 1 else Lengths()

    def encoder(self) -> Encoder:
        return Shift()

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        return {"lengths": np.diff(rows.all()["tokens"].offsets) + self.first, **rows.prepared}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        lengths = ctx.stream.generator().choice(params["lengths"], n)
        return {"tokens": Ragged(np.repeat(inputs["prompt"], lengths), np.concatenate([[0], np.cumsum(lengths)]))}


@dataclass(frozen=True, kw_only=True)
class Longest(Metric):
    """Length of the longest sample, and its letter."""

    name: ClassVar[str] = "longest"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        rows = snap.samples["tokens"]
        return {"longest": float(np.diff(rows.offsets).max()), "letter": float(rows.values.max())}


@dataclass(frozen=True, kw_only=True)
class Short(Curator):
    """Keeps texts of at most `letters` letters; fails for texts that are not decoded."""

    name: ClassVar[str] = "short"
    letters: int = 3

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        for columns in (rows, view.initial):
            assert set(columns["text"].values.tolist()) == {ord("a")}
        return Judged(rows, np.diff(rows["text"].offsets) <= self.letters)


@dataclass(frozen=True, kw_only=True)
class Double(Curator):
    """Doubles texts of one letter."""

    name: ClassVar[str] = "double"

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        texts = [text * 2 if len(text) == 1 else text for text in rows["text"].to_bytes()]
        return Judged({"text": Ragged.of_bytes(texts)}, np.ones(len(texts), bool))


def spec(**changes: object) -> Spec:
    settings = {"source": Words(), "family": Lengths(), "metrics": (Longest(),), "criteria": ("any_increase",)}
    return tiny_components.tiny_spec(**{**settings, "n": 20, "holdout": 5, "seeds": 3, "generations": 3, **changes})


def count_steps(result: Result) -> Counter[str]:
    return Counter({name: count for name, (count, _) in result.shared.by_step.items()})


def test_a_corpus_is_encoded_once_for_all_seeds(tmp_path: Path) -> None:
    result = selfloop.run(spec(), tmp_path)
    steps = count_steps(result)
    assert steps["prepare_encoder"] == steps["encode_corpus"] == 1
    assert steps["take_corpus_rows"] == 6  # real(1) and the holdout of three seeds
    assert steps["draw_real"] == 0
    assert {m.value for m in result.measurements if m.metric == "letter"} == {ord("a") + 30.0}


def test_a_family_can_have_other_settings_in_the_first_generation(tmp_path: Path) -> None:
    result = selfloop.run(spec(family=Lengths(first=100), policies=("replace",)), tmp_path)
    assert (result.curves()["replace"]["longest"][:, 0] > 100).all()
    plain = selfloop.run(spec(policies=("replace",)), tmp_path)
    assert (plain.curves()["replace"]["longest"] <= 7).all()


def test_curators_receive_texts_and_what_they_keep_is_trained_on(tmp_path: Path) -> None:
    result = selfloop.run(spec(curators=(Short(),), policies=("replace",)), tmp_path)
    longest = result.curves()["replace + short"]["longest"]
    assert (longest[:, 0] > 3).all()
    assert (longest[:, 1:] <= 3).all()
    assert {m.value for m in result.measurements if m.metric == "letter"} == {ord("a") + 30.0}
    answered = result.curves()["replace + short"]["answered_share"]
    assert (answered > 0.9).all()


def test_edited_texts_are_encoded_again_and_others_stay_as_they_are(tmp_path: Path) -> None:
    result = selfloop.run(spec(curators=(Double(),), policies=("replace",), n=15), tmp_path)
    world = replay_chain(Task(result.spec.points()[0], (0,), (0,), 3, tmp_path, 1))
    before = world.store.open(world.sample_round(1, world.models[1], 15, 0)[0])["tokens"]
    after = world.store.open(world.samples[1])["tokens"]
    lengths = np.diff(before.offsets)
    np.testing.assert_array_equal(np.diff(after.offsets), np.where(lengths == 1, 2, lengths))
    assert (lengths == 1).any()
    assert set(after.values.tolist()) == {ord("a") + 30}


def test_a_family_with_an_encoder_needs_a_source_of_files(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Drawn(Source):
        name: ClassVar[str] = "drawn"

        def schema(self) -> Mapping[str, ColumnType]:
            return {"text": ColumnType("utf8")}

        def draw(self, first: int, n: int, ctx: Context) -> Columns:
            return {}

    with pytest.raises(SpecError, match="reads a corpus from files; drawn draws its rows"):
        selfloop.run(spec(source=Drawn()), tmp_path)
