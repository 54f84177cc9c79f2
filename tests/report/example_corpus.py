"""A tiny corpus of texts and a family that models it, for tests of galleries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from example_galleries import ragged

import selfloop
from selfloop.columns import Columns, ColumnType, Ints, Params, Ragged, count_rows, select_rows
from selfloop.component import Context, Family, Metric, Sampler, Source
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.errors import ChainEndedError
from selfloop.snapshots import Snapshot
from selfloop.transforms import Encoder
from selfloop.types import TrainingRows

END = 256


@dataclass(frozen=True, kw_only=True)
class Tales(Source):
    """Twelve texts that begin with different letters."""

    name: ClassVar[str] = "tales"

    def schema(self) -> Mapping[str, ColumnType]:
        return {"text": ColumnType("utf8")}

    def n_rows(self) -> int:
        return 12

    def chunks(self) -> Iterator[Columns]:
        yield {"text": ragged([f"{chr(65 + i)} <i>tale</i> of {i}" for i in range(12)])}

    def order(self, corpus: Columns, ctx: Context) -> Ints:
        return ctx.stream.child("order").generator().permutation(12)

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        (rows,) = self.chunks()
        return select_rows(rows, self.order(rows, ctx)[first : first + n])


@dataclass(frozen=True, kw_only=True)
class Letters(Encoder):
    """Bytes, shifted by the number of rows, and an end token."""

    name: ClassVar[str] = "letters"

    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        return {"tokenizer/shift": np.array(sum(map(count_rows, chunks)), np.uint16)}

    def encode(self, rows: Columns, prepared: Params) -> Columns:
        text = rows["text"]
        assert isinstance(text, Ragged)
        values = np.insert(text.values.astype(np.uint16) + prepared["tokenizer/shift"], text.offsets[1:], END + 100)
        return {"tokens": Ragged(values, text.offsets + np.arange(len(text.offsets)))}

    def decode(self, rows: Columns, prepared: Params) -> Columns:
        tokens = rows["tokens"]
        assert isinstance(tokens, Ragged)
        token_rows = [tokens[np.array([i])].values for i in range(len(tokens))]
        texts = [bytes((row[row < END + 100] - prepared["tokenizer/shift"]).astype(np.uint8)).decode() for row in token_rows]
        return {"text": ragged(texts)}


@dataclass(frozen=True, kw_only=True)
class FirstToken(Sampler):
    """Rows begin with the first token of real rows, or without a prompt."""

    name: ClassVar[str] = "first_token"
    prompt: str = "first_token"

    def draw_prompts(self, n: int, initial: Columns, ctx: Context) -> Columns:
        tokens = initial["tokens"]
        assert isinstance(tokens, Ragged)
        if self.prompt == "start":
            return {}
        return {"prompt": Ragged(tokens.values[tokens.offsets[np.arange(n) % len(tokens)]], np.arange(n + 1))}


@dataclass(frozen=True, kw_only=True)
class Parrot(Family):
    """Writes `again` after the prompt, t times at generation t of `replace`, and ends above `max_times`."""

    name: ClassVar[str] = "parrot"
    max_times: int = 99
    required_columns: ClassVar[tuple[str, ...]] = ("text",)
    sampler_class: ClassVar[type[Sampler]] = FirstToken

    def encoder(self) -> Encoder:
        return Letters()

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        texts = Letters().decode(rows.all(), rows.prepared)["text"]
        assert isinstance(texts, Ragged)
        return {"times": np.array(texts.values.tobytes().count(b"again") // len(texts) + 1), **rows.prepared}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        if int(params["times"]) > self.max_times:
            raise ChainEndedError("diverged")
        prompts = Letters().decode({"tokens": inputs["prompt"]}, params)["text"] if inputs else ragged([""] * n)
        assert isinstance(prompts, Ragged)
        texts = [bytes(prompts[np.array([i])].values).decode() + " again" * int(params["times"]) for i in range(n)]
        return Letters().encode({"text": ragged(texts)}, params)


@dataclass(frozen=True, kw_only=True)
class Times(Metric):
    """Repetitions of `again`."""

    name: ClassVar[str] = "times"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"times": float(snap.params["times"])}


@dataclass(frozen=True, kw_only=True)
class KeepAll(Curator):
    """Keeps every row."""

    name: ClassVar[str] = "keep_all"

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        return Judged(rows, np.ones(count_rows(rows), bool))


def corpus_spec(**changes: object) -> selfloop.Spec:
    """Three generations of two seeds and policies."""
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
