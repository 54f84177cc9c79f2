"""What can go wrong by a user's doing (exit code 2), and how a chain ends. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SelfloopError(Exception):
    """A user's mistake, in one or two sentences: where, what was found, what is allowed, what to do."""


class SpecError(SelfloopError):
    """A setting that cannot be run."""


class DataError(SelfloopError):
    """Input rows that cannot be used."""


class StoreError(SelfloopError):
    """A store that cannot be read or written."""


class MissingExtraError(SelfloopError):
    """A library that an optional extra brings is not installed."""


class ChainEndedError(Exception):
    """A fit or a sample without an honest result; `status` says why. A result, not a mistake: the chain ends here."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


EXTRAS = {"datasets": "hub", "pyarrow": "hub", "peft": "lora"}  # library -> the extra of ours that brings it


def missing_extra(where: str, library: str) -> MissingExtraError:
    """The error for a library that is not installed, with the command that brings it."""
    brings = f"selfloop[{EXTRAS[library]}]" if library in EXTRAS else library
    return MissingExtraError(f"{where}: needs {library}, which is not installed. Run: pip install '{brings}'")


def unknown_name(where: str, found: str, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not among `allowed`, with the nearest one suggested."""
    names = sorted(allowed)
    near = get_close_matches(found, names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{where}: unknown name {found!r}.{hint} Allowed: {', '.join(names) or 'none'}."
