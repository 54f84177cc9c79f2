"""Rows of a run as its report shows them: texts decoded, beside the real ones that they were prompted from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from made_reports import ragged

import selfloop
from selfloop.component import Context, Curator, Encoder, Family, Metric, Sampler, Snapshot, Source
from selfloop.errors import ChainEndedError
from selfloop.report.build import build_report
from selfloop.report.gallery import show_gallery
from selfloop.report.page import render_page
from selfloop.report.theme import policy_styles
from selfloop.types import Columns, ColumnType, Ints, Params, Ragged, TrainingRows, count_rows

END = 256


@dataclass(frozen=True, kw_only=True)
class Tales(Source):
    """Twelve texts, each begun with a letter of its own."""

    name: ClassVar[str] = "tales"

    def schema(self) -> Mapping[str, ColumnType]:
        return {"text": ColumnType("utf8")}

    def n_rows(self) -> int:
        return 12

    def chunks(self) -> Iterator[Columns]:
        yield {"text": ragged([f"{chr(65 + i)} <i>tale</i> of {i}" for i in range(12)])}

    def order(self, ctx: Context) -> Ints:
        return ctx.stream.child("order").generator().permutation(12)


@dataclass(frozen=True, kw_only=True)
class Letters(Encoder):
    """Bytes moved up by what it learned, and an end token."""

    name: ClassVar[str] = "letters"

    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        return {"tokenizer/shift": np.array(sum(map(count_rows, chunks)), np.uint16)}

    def encode(self, rows: Columns, learned: Params) -> Columns:
        text = rows["text"]
        assert isinstance(text, Ragged)
        moved = np.insert(text.values.astype(np.uint16) + learned["tokenizer/shift"], text.offsets[1:], END + 100)
        return {"tokens": Ragged(moved, text.offsets + np.arange(len(text.offsets)))}

    def decode(self, rows: Columns, learned: Params) -> Columns:
        tokens = rows["tokens"]
        assert isinstance(tokens, Ragged)
        each = [tokens[np.array([i])].values for i in range(len(tokens))]
        plain = [bytes((row[row < END + 100] - learned["tokenizer/shift"]).astype(np.uint8)).decode() for row in each]
        return {"text": ragged(plain)}


@dataclass(frozen=True, kw_only=True)
class Begun(Sampler):
    """Rows begin with the first token of real ones, or with nothing."""

    name: ClassVar[str] = "begun"
    prompt: str = "first_token"

    def draw_prompts(self, n: int, initial: Columns, ctx: Context) -> Columns:
        tokens = initial["tokens"]
        assert isinstance(tokens, Ragged)
        if self.prompt == "start":
            return {}
        return {"prompt": Ragged(tokens.values[tokens.offsets[np.arange(n) % len(tokens)]], np.arange(n + 1))}


@dataclass(frozen=True, kw_only=True)
class Parrot(Family):
    """Says `again` after its prompt, one time more every generation."""

    name: ClassVar[str] = "parrot"
    required_columns: ClassVar[tuple[str, ...]] = ("text",)
    sampler_class: ClassVar[type[Sampler]] = Begun

    def encoder(self) -> Encoder:
        return Letters()

    def fit(self, data: TrainingRows, ctx: Context, start: Params | None) -> Params:
        said = Letters().decode(data.all(), data.learned)["text"]
        assert isinstance(said, Ragged)
        return {"times": np.array(said.values.tobytes().count(b"again") // len(said) + 1), **data.learned}

    def sample(self, params: Params, n: int, sampler: Sampler, given: Columns, ctx: Context) -> Columns:
        begin = Letters().decode({"tokens": given["prompt"]}, params)["text"] if given else ragged([""] * n)
        assert isinstance(begin, Ragged)
        said = [bytes(begin[np.array([i])].values).decode() + " again" * int(params["times"]) for i in range(n)]
        return Letters().encode({"text": ragged(said)}, params)


@dataclass(frozen=True, kw_only=True)
class Times(Metric):
    """How often the model says it."""

    name: ClassVar[str] = "times"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"times": float(snap.params["times"])}


@dataclass(frozen=True, kw_only=True)
class Everything(Curator):
    """Keeps every row."""

    name: ClassVar[str] = "everything"

    def curate(self, rows: Columns, real: Columns, ctx: Context) -> Columns:
        return rows


@dataclass(frozen=True, kw_only=True)
class Mute(Parrot):
    """Has nothing to say from generation 2 on."""

    name: ClassVar[str] = "mute"

    def sample(self, params: Params, n: int, sampler: Sampler, given: Columns, ctx: Context) -> Columns:
        if int(params["times"]) > 1:
            raise ChainEndedError("diverged")
        return Parrot().sample(params, n, sampler, given, ctx)


def spec(**changes: object) -> selfloop.Spec:
    settings = {
        "source": Tales(),
        "family": Parrot(),
        "metrics": (Times(),),
        "n": 6,
        "holdout": 2,
        "generations": 3,
        "seeds": 2,
    }
    return selfloop.Spec(**{**settings, "policies": ("replace", "accumulate"), "criteria": ("any_increase",), **changes})  # type: ignore[arg-type]


def test_a_chain_that_ended_while_it_was_sampled_still_has_a_report(tmp_path: Path) -> None:
    report = build_report(selfloop.run(spec(family=Mute()), tmp_path))
    assert [sorted(rows) for rows in report.galleries[0].samples.values()] == [[1], [1, 2, 3]]


def test_texts_of_a_corpus_are_decoded_and_stand_below_the_real_ones_that_begin_alike(tmp_path: Path) -> None:
    report = build_report(selfloop.run(spec(), tmp_path))
    shown = show_gallery(report.galleries[0], policy_styles(report.policies()))
    assert len(shown.stories) == 4
    for story in shown.stories:
        assert story.real
        given = story.real.given
        assert story.real.head == f" <i>tale</i> of {ord(given) - 65}"
        said = [[(text.given, text.head) for text in row if text] for row in story.rows.values()]
        assert said[0] == [(given, " again" * t) for t in (1, 2, 3)]
        assert [text for text, _ in said[1]] == [given] * 3
    page = render_page([report])
    assert "<i>tale</i>" not in page
    assert "&lt;i&gt;tale&lt;/i&gt;" in page


@pytest.mark.parametrize("changes", [{"sampler": {"prompt": "start"}}, {"curators": (Everything(),)}])
def test_without_prompts_rows_are_shown_as_they_come(tmp_path: Path, changes: dict[str, object]) -> None:
    report = build_report(selfloop.run(spec(**changes), tmp_path))
    (gallery,) = report.galleries
    assert "prompt" not in gallery.samples["replace"][1]
    assert all(text.given == "" for story in show_gallery(gallery, {}).stories for text in story.rows["replace"] if text)
