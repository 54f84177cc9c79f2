"""Byte-level BPE with Hugging Face `tokenizers`: text in UTF-8 as tokens and back, exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from selfloop.component import Context, Encoder
from selfloop.errors import DataError, SpecError
from selfloop.types import Columns, Params, Ragged

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
PAIRS = ((END, END), ("<s>", "</s>"), ("<bos>", "<eos>"), ("<|begin_of_text|>", "<|end_of_text|>"))  # start and end tokens
LEARN_BYTES = 1 << 26  # of text that merges are learned from, the first of a corpus
BATCH_BYTES = 1 << 20  # of text encoded at once: lists of its words and tokens take some hundred times as much meanwhile
# GPT-2's words of ASCII text. Cutting here and merging each word once is several times as fast as the library is on text.
WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class BytePair(Encoder):
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909; on bytes as in GPT-2), learned or from a file.

    It is learned from the first 64 MiB of the corpus: 256 bytes, `<|endoftext|>` as token 0, and merges of pairs met at least
    twice; a small corpus gives fewer than `vocab` tokens, and the model never sees the rest. A file is tokenizer.json, or a
    folder with one, or with GPT-2's vocab.json and merges.txt; it is used as it is. SpecError when it has more than `vocab`
    tokens or no end token.
    """

    name: ClassVar[str] = "byte_pair"
    vocab: int = 8000  # tokens the model has room for
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.file is None and self.vocab < 257:
            raise SpecError(f"family.vocab: got {self.vocab}; expected 257 or more, for 256 bytes and the end token.")

    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        """The tokenizer as a tokenizer.json and its start and end token."""
        tokenizer = _trained(chunks, self.vocab) if self.file is None else _loaded(self.file)
        known = tokenizer.get_vocab(with_added_tokens=True)
        if max(known.values()) >= self.vocab:
            raise SpecError(
                f"family.tokenizer: {self.file} has {max(known.values()) + 1} tokens; the model has room for {self.vocab}. "
                "Raise vocab, or choose the tokenizer that belongs to the model."
            )
        pair = next(((start, end) for start, end in PAIRS if start in known and end in known), None)
        if pair is None:
            wanted = ", ".join(end for _, end in PAIRS)
            raise SpecError(f"family.tokenizer: {self.file} has no end token ({wanted}). Choose another tokenizer.")
        tokenizer.add_special_tokens(list(pair))  # a file may know them as plain text
        return {
            "tokenizer/json": np.frombuffer(tokenizer.to_str().encode(), np.uint8),
            "tokenizer/start": np.array(known[pair[0]], np.int64),
            "tokenizer/end": np.array(known[pair[1]], np.int64),
        }

    def encode(self, rows: Columns, prepared: Params) -> Columns:
        """The tokens of each text, the end token last. Special tokens spelled out in a text are plain text."""
        tokenizer, has_words = _parsed(prepared["tokenizer/json"].tobytes())
        end, known = [int(prepared["tokenizer/end"])], dict[str, list[int]]()
        values = [np.zeros(0, np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32)]
        for texts in _batches(cast(Ragged, rows["text"])):
            parts = [WORDS.findall(text) if has_words and text.isascii() else [text] for text in texts]
            new = list(set(chain.from_iterable(parts)).difference(known))
            known.update(zip(new, (e.ids for e in tokenizer.encode_batch_fast(new, add_special_tokens=False)), strict=True))
            for words in parts:
                ids = chain(chain.from_iterable(map(known.__getitem__, words)), end)
                values.append(np.fromiter(ids, values[0].dtype))
            for text in texts:
                known.pop(text, None)  # words come again, whole texts do not
        return {"tokens": Ragged(np.concatenate(values), np.cumsum([*map(len, values)], dtype=np.int64))}

    def decode(self, rows: Columns, prepared: Params) -> Columns:
        """The text of any tokens: without special ones and ones it does not know; bytes that are no UTF-8 replaced."""
        tokens, (tokenizer, _) = cast(Ragged, rows["tokens"]), _parsed(prepared["tokenizer/json"].tobytes())
        ids = [tokens.values[start:end].tolist() for start, end in pairwise(tokens.offsets.tolist())]
        return {"text": Ragged.of_bytes([text.encode() for text in tokenizer.decode_batch(ids, skip_special_tokens=True)])}


def _trained(chunks: Iterable[Columns], vocab: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(chunks), trainer)
    return tokenizer


def _first(chunks: Iterable[Columns]) -> Iterator[list[str]]:
    left = LEARN_BYTES
    for chunk in chunks:
        for texts in _batches(cast(Ragged, chunk["text"])):
            yield texts
            left -= sum(map(len, texts))
            if left <= 0:
                return


def _batches(text: Ragged) -> Iterator[list[str]]:
    """The texts, about a megabyte at a time."""
    cuts = np.searchsorted(text.offsets, np.arange(text.offsets[0], text.offsets[-1] + 1, BATCH_BYTES)).tolist()
    for first, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        if first < end:
            yield [row.decode() for row in Ragged(text.values, text.offsets[first : end + 1]).to_bytes()]


def _loaded(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder, file = path, path / "tokenizer.json" if path.is_dir() else path
    try:
        if file.is_file():
            return Tokenizer.from_file(str(file))
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as problem:  # the library raises nothing more specific
        raise DataError(
            f"family.tokenizer: {path} cannot be read ({problem}). Give a tokenizer.json, or a folder with one or with "
            "vocab.json and merges.txt."
        ) from problem
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@lru_cache(maxsize=4)
def _parsed(text: bytes) -> tuple[Tokenizer, bool]:
    """A tokenizer, and whether it cuts texts into GPT-2's words before anything else."""
    from tokenizers import Tokenizer

    tokenizer, settings = Tokenizer.from_str(text.decode()), json.loads(text)
    tokenizer.encode_special_tokens = True  # as plain text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    cuts = settings["normalizer"] is None and words.items() <= (settings["pre_tokenizer"] or {}).items()
    return tokenizer, cuts and all(added["special"] for added in settings["added_tokens"])
