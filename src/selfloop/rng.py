"""Derived random streams: a stream is a path of names, its numbers a function of that path alone."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import cast

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

SPLITMIX_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: distance of successive SplitMix64 states


def splitmix64(states: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Output function of SplitMix64 for every state, a bijection of 64-bit integers (Steele, Lea and Flood 2014).

    The n-th number of the generator with seed s is `splitmix64(s + n * SPLITMIX_STEP)` modulo 2^64.
    """
    z = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class RandomStream:
    """A source of randomness with a stable identity: equal paths give equal numbers, on any machine and in any order."""

    path: tuple[str | int, ...] = ()

    def child(self, *names: str | int) -> RandomStream:
        """The sub-stream of that name; siblings are independent."""
        return RandomStream(self.path + names)

    def generator(self) -> np.random.Generator:
        """A fresh numpy generator at the start of this stream (SFC64, its 192-bit key a digest of the path)."""
        return np.random.Generator(np.random.SFC64(_Key(self._bytes(24))))  # type: ignore[arg-type]  # numpy's stubs forget its own interface

    def integer(self) -> int:
        """A number in [0, 2^63) for libraries that want a seed (torch generators, scikit-learn)."""
        return int.from_bytes(self._bytes(8), "little") >> 1

    def _bytes(self, size: int) -> bytes:
        text = "/".join(f"str:{part.replace('/', '//')}" if isinstance(part, str) else f"int:{int(part)}" for part in self.path)
        return blake2b(text.encode(), digest_size=size).digest()


class _Key(ISeedSequence):
    """A digest as numpy takes a seed: it is well mixed already, and numpy's own mixing costs more than the digest."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[np.uint32 | np.uint64]:
        return cast("npt.NDArray[np.uint32 | np.uint64]", np.frombuffer(self.digest, dtype)[:n_words])
