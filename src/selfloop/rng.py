"""Derived random streams: a stream is a path of names, its numbers a function of that path alone."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np


@dataclass(frozen=True, slots=True)
class Stream:
    """A source of randomness with a stable identity: equal paths give equal numbers, on any machine and in any order."""

    path: tuple[str | int, ...] = ()

    def child(self, *names: str | int) -> Stream:
        """The sub-stream of that name; siblings are independent."""
        return Stream(self.path + names)

    def generator(self) -> np.random.Generator:
        """A fresh numpy generator at the start of this stream (SFC64, keyed by 128 bits of the path's digest)."""
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(self._digest(16))))

    def integer(self) -> int:
        """A number in [0, 2^63) for libraries that want a seed (torch generators, scikit-learn)."""
        return self._digest(8) >> 1

    def _digest(self, size: int) -> int:
        text = "/".join(f"str:{part.replace('/', '//')}" if isinstance(part, str) else f"int:{int(part)}" for part in self.path)
        return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "little")
