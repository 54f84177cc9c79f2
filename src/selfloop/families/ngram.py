"""N-gram models of text: the next token depends on the last few tokens of its row, with smoothed shares of counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Array, Columns, Floats, Ints, Params, Ragged, concat_rows, take_spans
from selfloop.component import Context, Family, Sampler, Source
from selfloop.errors import SettingError
from selfloop.families.discrete import DiscreteSampler
from selfloop.families.nn.settings import Count
from selfloop.families.transformer.decoder import token_uniforms
from selfloop.families.transformer.packing import MAX_ROW_TOKENS, describe_lengths
from selfloop.families.transformer.text_sampler import TextSampler, read_prompts
from selfloop.families.transformer.tokenizer import BytePair, count_tokens
from selfloop.families.trivial import unigram_cross_entropy
from selfloop.protocols import TopTokens
from selfloop.settings import has_default_settings
from selfloop.types import TrainingRows

CHUNK_ROWS = 8192  # rows that are sampled at the same time
TOP_CONTEXTS = 512  # contexts whose probabilities of all tokens are in memory
Draw = Callable[[list[Ints], Floats], Ints]  # a token per row, from the states of the rows and uniform numbers


@dataclass(frozen=True, kw_only=True)
class Ngram(Family):
    """A token has p = (count + smoothing q) / (count of the context + smoothing) after the `order` - 1 tokens before it.

    q is the model of an order less, down to equal probabilities of all tokens (MacKay and Peto 1995, A hierarchical Dirichlet
    language model), or with `backoff = false` equal probabilities at once: add-alpha smoothing with alpha = smoothing / number
    of tokens. A context without counts has q. Before a row stand start tokens. `vocab = 257` models single bytes.
    """

    name: ClassVar[str] = "ngram"
    required_columns: ClassVar[tuple[str, ...]] = ("text",)
    default_metrics: ClassVar[tuple[str, ...]] = (
        "cross_entropy", "self_cross_entropy", "distinct", "tail_mass", "vocabulary", "text_length", "memorization",
    )  # fmt: skip
    sampler_class: ClassVar[type[Sampler]] = TextSampler
    uses_init: ClassVar[bool] = False
    trivial_model: ClassVar[str] = "the unigram distribution"

    order: Annotated[int, Interval(ge=1, le=8), "tokens of an n-gram; 1 = tokens are independent"] = 3
    smoothing: Annotated[float, Ge(0), "rows added to the count of every context, spread over all tokens"] = 10.0
    backoff: Annotated[bool, "spread them as the model of an order less; false: equally"] = True
    vocab: Annotated[Count, "largest number of tokens"] = 2000
    tokenizer: Annotated[Path | None, "a tokenizer.json; unset: byte-pair encoding learned from the source"] = None

    def check(self, source: Source, sampler: Sampler) -> None:
        text_sampler = cast(TextSampler, sampler)
        if (beams := text_sampler.num_beams) > 1:
            raise SettingError("family.sampler.num_beams", f"got {beams}; n-gram models are sampled without beams. Remove it.")
        if (decoder := text_sampler.decoder) != "auto":
            raise SettingError("family.sampler.decoder", f"got {decoder!r}; n-gram models draw their own rows. Remove it.")

    def encoder(self) -> BytePair:
        return BytePair(vocab=self.vocab, file=self.tokenizer)

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        """The n-grams of every length and their weighted counts; contexts are numbered as the n-grams of a token less."""
        tokens, n_tokens = cast(Ragged, rows.all()["tokens"]), count_tokens(rows.prepared)
        padded, positions, targets = _pad(tokens, int(rows.prepared["tokenizer/start"]), self.order)
        weights, contexts = np.zeros(len(padded)), np.zeros(len(padded), np.int64)
        weights[targets] = np.repeat(rows.weights(), np.diff(tokens.offsets))
        params = dict[str, Array]()
        for length in range(1, self.order + 1):
            inside = np.flatnonzero(contexts >= 0)
            keys, indices = np.unique(contexts[inside] * n_tokens + padded[inside], return_inverse=True)
            params |= {f"keys/{length}": keys, f"counts/{length}": np.bincount(indices, weights[inside], len(keys))}
            contexts[inside] = indices
            contexts = _shift(contexts, positions)
        return {**params, **describe_lengths(np.diff(tokens.offsets)), **rows.prepared}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        settings, prompts = cast(TextSampler, sampler), read_prompts(inputs, n)
        limit = settings.max_tokens or max(int(params[MAX_ROW_TOKENS]), 1)
        if (longest := int(np.diff(prompts.offsets).max(initial=0))) >= limit:
            raise settings.too_long(longest, limit)
        model, key = self._counts(params), ctx.stream.integer()
        symbols = DiscreteSampler(
            temperature=settings.temperature or 1.0,
            top_k=settings.top_k if settings.temperature else 1,
            top_p=settings.top_p or 1.0,
        )
        is_plain = has_default_settings(symbols)
        size = CHUNK_ROWS if is_plain else settings.batch_size  # probabilities of all tokens need memory
        draw = model.draw if is_plain else lambda state, u: model.draw_adjusted(state, u, symbols)
        chunks = (np.arange(first, min(first + size, n)) for first in range(0, n, size))
        pieces = [{"tokens": model.sample(draw, rows, prompts, limit, key)} for rows in chunks]
        return concat_rows(pieces) if pieces else {"tokens": prompts}

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context, *, half_stride: bool = False) -> Ragged:
        """Log p of each token of each row, in nats; -inf for a token without probability. Rows have no windows."""
        return self._log_prob(params, rows)

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log p of each row, its end token included, in nats."""
        values = self._log_prob(params, rows)
        row_of = np.repeat(np.arange(len(values)), np.diff(values.offsets))
        return np.asarray(np.bincount(row_of, cast(Floats, values.values), len(values)), np.float64)

    def top_tokens(self, params: Params, rows: Columns, k: int, ctx: Context) -> TopTokens:
        """The k most probable tokens at every position, computed once per context."""
        own, model, column = self._log_prob(params, rows), self._counts(params), cast(Ragged, rows["tokens"])
        padded, positions, targets = _pad(column[np.arange(len(column))], model.start, self.order)
        states, contexts = list[Ints](), np.zeros(len(padded), np.int64)
        for length in range(1, self.order + 1):
            states.append(contexts[targets])
            contexts = _shift(model.find(length, contexts, padded), positions)
        different, index = np.unique(np.stack(states), axis=1, return_inverse=True)
        tops, log_probs = list[Ints](), list[Floats]()
        for first in range(0, different.shape[1], TOP_CONTEXTS):
            p = model.probabilities(list(different[:, first : first + TOP_CONTEXTS]))
            tops.append(np.argsort(-p, axis=1, kind="stable")[:, :k])
            with np.errstate(divide="ignore"):
                log_probs.append(np.log(np.take_along_axis(p, tops[-1], 1)))
        return TopTokens(cast(Floats, own.values), np.concatenate(tops)[index], np.concatenate(log_probs)[index])

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        return unigram_cross_entropy(initial, holdout, self.vocab) if metric == "cross_entropy" else None

    def _log_prob(self, params: Params, rows: Columns) -> Ragged:
        column, model = cast(Ragged, rows["tokens"]), self._counts(params)
        tokens = take_spans(column.values, column.offsets[:-1], column.offsets[1:])
        padded, positions, targets = _pad(tokens, int(params["tokenizer/start"]), self.order)
        p, contexts = np.full(len(targets), 1 / model.n_tokens), np.zeros(len(padded), np.int64)
        for length in range(1, self.order + 1):
            indices = model.find(length, contexts, padded)
            if length in model.mixed:
                of_count, of_shorter = model.shares(model.spans(length, contexts[targets])[2])
                p = of_count * model.count(length, indices[targets]) + of_shorter * p
            contexts = _shift(indices, positions)
        with np.errstate(divide="ignore"):
            return Ragged(np.log(p), tokens.offsets)

    def _counts(self, params: Params) -> _Counts:
        lengths = range(1, self.order + 1)
        keys = [cast(Ints, params[f"keys/{length}"]) for length in lengths]
        totals = [np.concatenate([[0.0], np.cumsum(params[f"counts/{length}"])]) for length in lengths]
        n_tokens, n_contexts = count_tokens(params), [1, *map(len, keys)]
        starts = [np.searchsorted(keys[i], np.arange(n_contexts[i] + 1) * n_tokens) for i in range(self.order)]
        mixed, tokens = lengths if self.backoff else lengths[-1:], (params[f"tokenizer/{name}"] for name in ("start", "end"))
        return _Counts(keys, totals, starts, n_tokens, self.smoothing, mixed, *map(int, tokens))


@dataclass(frozen=True)
class _Counts:
    """Sorted n-grams of lengths 1, 2, ... A key is (number of the context) x tokens + last token; -1 is an unknown context.

    A state of rows are the numbers of their last 0, 1, ..., order - 1 tokens as contexts.
    """

    keys: list[Ints]
    totals: list[Floats]  # cumulative counts, from 0
    starts: list[Ints]  # first n-gram of each context, and at the end the number of n-grams
    n_tokens: int
    smoothing: float
    mixed: Sequence[int]  # lengths whose counts are part of a probability, the shortest first
    start: int
    end: int

    def find(self, length: int, contexts: Ints, tokens: Ints) -> Ints:
        """Index of each n-gram; -1 if it does not occur."""
        keys, wanted = self.keys[length - 1], contexts * self.n_tokens + tokens
        indices = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((contexts >= 0) & (keys[indices] == wanted), indices, -1)

    def count(self, length: int, indices: Ints) -> Floats:
        """Count of each n-gram; 0 for the index -1."""
        totals = self.totals[length - 1]
        return np.where(indices >= 0, totals[indices + 1] - totals[indices], 0.0)

    def spans(self, length: int, contexts: Ints) -> tuple[Ints, Ints, Floats]:
        """First and end index of the n-grams of each context, and the sum of their counts; nothing for unknown contexts."""
        starts, totals = self.starts[length - 1], self.totals[length - 1]
        first, end = (np.where(contexts >= 0, starts[contexts + shift], 0) for shift in (0, 1))
        return first, end, totals[end] - totals[first]

    def shares(self, mass: Floats) -> tuple[Floats, Floats]:
        """Probability of one count, and that of the model of an order less, in contexts with these sums of counts."""
        total = mass + self.smoothing
        of_count = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        return of_count, np.where(total > 0, self.smoothing * of_count, 1.0)

    def advance(self, state: list[Ints], tokens: Ints) -> list[Ints]:
        return [np.zeros_like(tokens), *(self.find(length, state[length - 1], tokens) for length in range(1, len(state)))]

    def draw(self, state: list[Ints], u: Floats) -> Ints:
        """A token per row: u selects the length whose counts are used, and then one of its tokens."""
        tokens, pending = np.full(len(u), -1), np.arange(len(u))
        for length in reversed(self.mixed):
            first, end, mass = self.spans(length, state[length - 1][pending])
            share = mass * self.shares(mass)[0]
            hit, keys, totals = u < share, self.keys[length - 1], self.totals[length - 1]
            goal = (totals[first] + u / np.where(hit, share, 1.0) * mass)[hit]
            indices = np.clip(np.searchsorted(totals, goal, side="right") - 1, first[hit], end[hit] - 1)
            tokens[pending[hit]] = keys[indices] % self.n_tokens
            pending, u = pending[~hit], ((u - share) / np.where(hit, 1.0, 1 - share))[~hit]
        tokens[pending] = np.minimum(u * self.n_tokens, self.n_tokens - 1).astype(np.int64)
        return tokens

    def probabilities(self, state: list[Ints]) -> Floats:
        """Probability of every token, (rows, tokens)."""
        p = np.full((len(state[0]), self.n_tokens), 1 / self.n_tokens)
        for length in self.mixed:
            first, end, mass = self.spans(length, state[length - 1])
            of_count, of_shorter = self.shares(mass)
            indices = cast(Ints, take_spans(np.arange(len(self.keys[length - 1])), first, end).values)
            row_of = np.repeat(np.arange(len(first)), end - first)
            p *= of_shorter[:, None]
            p[row_of, self.keys[length - 1][indices] % self.n_tokens] += of_count[row_of] * self.count(length, indices)
        return p

    def draw_adjusted(self, state: list[Ints], u: Floats, sampler: DiscreteSampler) -> Ints:
        cumulative = np.cumsum(sampler.adjust(self.probabilities(state)), axis=1)
        return np.asarray((cumulative <= u[:, None] * cumulative[:, -1:]).sum(1), np.int64)

    def sample(self, draw: Draw, rows: Ints, prompts: Ragged, limit: int, key: int) -> Ragged:
        """The rows of these numbers, to their end tokens or to `limit` tokens. A row does not depend on the other rows."""
        tokens = np.zeros((len(rows), limit), np.min_scalar_type(self.n_tokens))
        lengths, active, n_prompt = np.zeros(len(rows), np.int64), np.arange(len(rows)), np.diff(prompts.offsets)[rows]
        state = [np.zeros(len(rows), np.int64), *(np.full(len(rows), -1) for _ in self.keys[1:])]
        for _ in self.keys[1:]:
            state = self.advance(state, np.full(len(rows), self.start))
        for t in range(limit):
            is_prompt, drawn = t < n_prompt[active], np.zeros(len(active), np.int64)
            drawn[is_prompt] = prompts.values[prompts.offsets[rows[active[is_prompt]]] + t]
            u = token_uniforms(key, rows[active[~is_prompt]], np.full(1, t))
            drawn[~is_prompt] = draw([contexts[~is_prompt] for contexts in state], u)
            tokens[active, t], lengths[active] = drawn, t + 1
            goes_on = is_prompt | (drawn != self.end)
            active, drawn = active[goes_on], drawn[goes_on]
            if not len(active):
                break
            state = self.advance([contexts[goes_on] for contexts in state], drawn)
        return Ragged(tokens[np.arange(limit) < lengths[:, None]], np.concatenate([[0], np.cumsum(lengths)]))


def _pad(tokens: Ragged, start: int, order: int) -> tuple[Ints, Ints, Ints]:
    """All rows, each after order - 1 start tokens; the position of each token in its row; the indices of the rows' tokens."""
    lengths, pad = np.diff(tokens.offsets), order - 1
    positions = np.arange(len(tokens.values) + pad * len(tokens)) - np.repeat(
        tokens.offsets[:-1] + pad * np.arange(len(tokens)), lengths + pad
    )
    padded, targets = np.full(len(positions), start), np.flatnonzero(positions >= pad)
    padded[targets] = tokens.values
    return padded, positions, targets


def _shift(indices: Ints, positions: Ints) -> Ints:
    """The n-gram that ends before each token of its row; -1 for the first one."""
    return np.where(positions > 0, np.roll(indices, 1), -1)
