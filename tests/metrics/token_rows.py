"""Rows of tokens, distributions that they are drawn from, and a family of independent tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from selfloop.columns import Columns, Floats, Params, Ragged
from selfloop.component import Context, Family, Sampler
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from selfloop.transforms import Encoder
from selfloop.types import TrainingRows

END = 0
PARAMS: Params = {"tokenizer/end": np.asarray(END)}
CTX = Context(RandomStream(("measure",)))
Rows = Sequence[Sequence[int]]

few_rows = st.lists(st.lists(st.integers(1, 4), max_size=12), min_size=2, max_size=8)


def ragged(rows: Rows) -> Ragged:
    values = np.array([token for row in rows for token in row], np.uint16)
    return Ragged(values, np.cumsum([0, *map(len, rows)], dtype=np.int64))


def columns(rows: Rows) -> Columns:
    return {"tokens": ragged(rows)}


@dataclass(frozen=True, kw_only=True)
class Unigram(Family):
    """Independent tokens."""

    name: ClassVar[str] = "unigram"

    def encoder(self) -> Encoder:
        raise NotImplementedError

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        raise NotImplementedError

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        raise NotImplementedError

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context) -> Ragged:
        tokens = rows["tokens"]
        assert isinstance(tokens, Ragged)
        return Ragged(np.log(params["p"])[tokens.values].astype(np.float32), tokens.offsets)


def measure(
    metric: Any, samples: Rows, initial: Rows = (), holdout: Rows = (), params: Params = PARAMS, prefix: int = 0
) -> Mapping[str, float]:
    """Values of a metric; with `prefix`, the samples begin with that number of tokens of real rows."""
    sampled = columns(samples) if len(samples) else {}
    sampler = TextSampler(prompt="prefix", prefix_tokens=prefix) if prefix else Sampler()
    return metric.measure(Snapshot(1, Unigram(), sampler, params, sampled, columns(holdout), columns(initial), {}), CTX)


def draw_rows(p: Floats, n: int, length: int, seed: int) -> list[list[int]]:
    """n rows of tokens 1, 2, ... with probabilities p, each with its end token."""
    tokens = np.random.default_rng(seed).choice(len(p), (n, length), p=p) + 1
    return [[*row, END] for row in tokens.tolist()]


def zipf_probabilities(size: int, s: float) -> Floats:
    p = np.arange(1, size + 1) ** -s
    return p / p.sum()
