"""Byte-level BPE with Hugging Face `tokenizers`: text in UTF-8 as tokens and back, exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

import numpy as np

from selfloop.columns import Bools, Columns, Ints, Params, Ragged, take_spans
from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.families.nn.hf_folder import library_errors, open_tokenizer
from selfloop.families.nn.settings import Count
from selfloop.transforms import Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
START_END_PAIRS = ((END, END), ("<s>", "</s>"), ("<bos>", "<eos>"), ("<|begin_of_text|>", "<|end_of_text|>"))
LEARN_BYTES = 1 << 26  # at the beginning of a corpus, from which merges are learned
CHUNK_BYTES = 1 << 20  # of text encoded at a time; lists of its words and tokens need about 100 times as much memory
# GPT-2's words of ASCII text. Splitting text here and merging each word once is several times as fast as the library.
WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class BytePair(Encoder):
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909; on bytes as in GPT-2), learned or from a file.

    It is learned from the first 64 MiB of the corpus: 256 bytes, `<|endoftext|>` as token 0, and merges of pairs that occur
    at least twice. A small corpus gives fewer than `vocab` tokens; the other embeddings are not used. `file` is a
    tokenizer.json, a folder with one, or a folder with GPT-2's vocab.json and merges.txt. It is used unchanged. `prepare`
    raises SpecError if it has more than `vocab` tokens or no end token.
    """

    name: ClassVar[str] = "byte_pair"
    vocab: Annotated[Count, "number of tokens that the model has embeddings for"] = 8000
    file: Annotated[Path | None, "a tokenizer.json or its folder; unset: learned from the source"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file is None and self.vocab < 257:
            raise SpecError(f"family.vocab: got {self.vocab}; expected 257 or more, for 256 bytes and the end token. Raise it.")

    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        """The tokenizer as a tokenizer.json and its start and end token."""
        tokenizer = _learn(chunks, self.vocab) if self.file is None else open_tokenizer(self.file)
        ids = tokenizer.get_vocab(with_added_tokens=True)
        if max(ids.values()) >= self.vocab:
            raise SpecError(
                f"family.tokenizer: {self.file} has {max(ids.values()) + 1} tokens; the model has {self.vocab}. Raise "
                "family.vocab, or choose the tokenizer that belongs to the model."
            )
        pair = next(((start, end) for start, end in START_END_PAIRS if start in ids and end in ids), None)
        if pair is None:
            wanted = ", ".join(end for _, end in START_END_PAIRS)
            raise SpecError(f"family.tokenizer: {self.file} has no end token ({wanted}). Choose another tokenizer.")
        tokenizer.add_special_tokens(list(pair))  # in a file they may be plain text
        return tokenizer_arrays(tokenizer, ids[pair[0]], ids[pair[1]])

    def encode(self, rows: Columns, prepared: Params) -> Columns:
        """The tokens of each text, the end token last. The name of a special token in a text is plain text."""
        return encode_texts(rows, prepared)

    def decode(self, rows: Columns, prepared: Params) -> Columns:
        """The text of any tokens. Special and unknown tokens are dropped, bytes that are not UTF-8 are replaced."""
        return decode_tokens(rows, prepared)


def encode_texts(rows: Columns, prepared: Params, *, special_tokens: bool = False) -> Columns:
    """The tokens of each text, the end token last. Names of special tokens are plain text, unless `special_tokens`."""
    tokenizer, splits_words = _parse(prepared["tokenizer/json"].tobytes(), special_tokens)
    end, cached = [int(prepared["tokenizer/end"])], dict[str, list[int]]()
    values = [np.zeros(0, np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32)]
    for texts in _chunks(cast(Ragged, rows["text"])):
        parts = [WORDS.findall(text) if splits_words and text.isascii() else [text] for text in texts]
        new = list(set(chain.from_iterable(parts)).difference(cached))
        with library_errors("family.tokenizer: cannot split the texts"):
            encoded = tokenizer.encode_batch_fast(new, add_special_tokens=False)
        cached.update(zip(new, (e.ids for e in encoded), strict=True))
        for words in parts:
            ids = chain(chain.from_iterable(map(cached.__getitem__, words)), end)
            values.append(np.fromiter(ids, values[0].dtype))
        for text in texts:
            cached.pop(text, None)  # words occur again, whole texts rarely
    return {"tokens": Ragged(np.concatenate(values), np.cumsum([*map(len, values)], dtype=np.int64))}


def decode_tokens(rows: Columns, prepared: Params, *, special_tokens: bool = False) -> Columns:
    """The text of any tokens. Special tokens are dropped, or with `special_tokens` only the end token at a row's end."""
    tokens, (tokenizer, _) = cast(Ragged, rows["tokens"]), _parse(prepared["tokenizer/json"].tobytes(), special_tokens)
    ids = [tokens.values[start:end].tolist() for start, end in pairwise(tokens.offsets.tolist())]
    if special_tokens:
        ids = [row[:-1] if row[-1:] == [int(prepared["tokenizer/end"])] else row for row in ids]
    with library_errors("family.tokenizer: cannot join the tokens"):
        texts = tokenizer.decode_batch(ids, skip_special_tokens=not special_tokens)
    return {"text": Ragged.of_bytes([text.encode() for text in texts])}


def find_text(rows: Ragged, prepared: Params, text: str) -> Ints:
    """Number of tokens until the first occurrence of a text in each row ends; the largest int64 without one."""
    starts = rows.offsets[:-1]

    def contains(lengths: Ints) -> Bools:
        beginnings = take_spans(rows.values, starts, starts + lengths)
        decoded = cast(Ragged, decode_tokens({"tokens": beginnings}, prepared, special_tokens=True)["text"])
        return np.array([text.encode() in document for document in decoded.to_bytes()])

    low, high = np.zeros(len(rows), np.int64), np.diff(rows.offsets)
    in_row = contains(high)
    while (unfinished := high - low > 1).any():  # bisect the smallest number of tokens whose text contains it
        middle = (low + high) // 2
        in_middle = contains(middle)
        low, high = np.where(unfinished & ~in_middle, middle, low), np.where(unfinished & in_middle, middle, high)
    return np.where(in_row, high, np.iinfo(np.int64).max)


def tokenizer_arrays(tokenizer: Tokenizer, start: int, end: int) -> Params:
    """The content of a tokenizer.json, and the ids of the tokens before and after a text."""
    return {
        "tokenizer/json": np.frombuffer(tokenizer.to_str().encode(), np.uint8),
        "tokenizer/start": np.array(start, np.int64),
        "tokenizer/end": np.array(end, np.int64),
    }


def count_tokens(prepared: Params) -> int:
    """Number of tokens of a tokenizer: its largest token plus 1."""
    return 1 + max(_parse(prepared["tokenizer/json"].tobytes(), False)[0].get_vocab(with_added_tokens=True).values())


def _learn(chunks: Iterable[Columns], vocab: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=2, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_first_texts(chunks), trainer)
    return tokenizer


def _first_texts(chunks: Iterable[Columns]) -> Iterator[list[str]]:
    remaining = LEARN_BYTES
    for chunk in chunks:
        for texts in _chunks(cast(Ragged, chunk["text"])):
            yield texts
            remaining -= sum(map(len, texts))
            if remaining <= 0:
                return


def _chunks(text: Ragged) -> Iterator[list[str]]:
    """The texts in chunks of about a megabyte."""
    cuts = np.searchsorted(text.offsets, np.arange(text.offsets[0], text.offsets[-1] + 1, CHUNK_BYTES)).tolist()
    for first, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        if first < end:
            yield [row.decode() for row in Ragged(text.values, text.offsets[first : end + 1]).to_bytes()]


@lru_cache(maxsize=4)
def _parse(text: bytes, special_tokens: bool) -> tuple[Tokenizer, bool]:
    """A tokenizer, and True if its first operation splits texts into GPT-2's words."""
    from tokenizers import Tokenizer

    tokenizer, settings = Tokenizer.from_str(text.decode()), json.loads(text)
    tokenizer.encode_special_tokens = not special_tokens  # as plain text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    splits_words = (
        not special_tokens and settings["normalizer"] is None and words.items() <= (settings["pre_tokenizer"] or {}).items()
    )
    return tokenizer, splits_words and all(added["special"] for added in settings["added_tokens"])
