"""What can go wrong by a user's doing (exit code 2), and how a chain ends. Imports nothing of ours."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any


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


# library -> the extra of ours that brings it
EXTRAS = {"datasets": "hub", "pyarrow": "hub", "peft": "lora", "diffusers": "images", "rdkit": "molecules"}


def missing_extra(where: str, library: str) -> MissingExtraError:
    """The error for a library that is not installed, with the command that brings it."""
    brings = f"selfloop[{EXTRAS[library]}]" if library in EXTRAS else library
    return MissingExtraError(f"{where}: needs {library}, which is not installed. Run: pip install '{brings}'")


def here_or_pinned(where: str, name: str | Path, revision: str | None) -> str | Path:
    """What is on this machine as a path, which is identified by its content; else a name on the hub, fixed by its commit.

    SpecError when a name comes without a commit, as what it stands for may change, or a path with one.
    """
    if Path(name).exists():
        if revision is not None:
            raise SpecError(f"{where}: got {revision!r}; {name} is a folder, which has none. Leave it out.")
        return Path(name)
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise SpecError(
            f"{where}: got {revision!r}; {str(name)!r} is no folder here, and a name on the hub needs the commit it stands for "
            "(40 hexadecimal digits, on its page under Files)."
        )
    return str(name)


def unknown_name(where: str, found: str, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not among `allowed`, with the nearest one suggested."""
    names = sorted(allowed)
    near = get_close_matches(found, names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{where}: unknown name {found!r}.{hint} Allowed: {', '.join(names) or 'none'}."


def is_ours(category: type[Warning], filename: str) -> bool:
    """Is a warning one of this package's own?"""
    return category is UserWarning and "selfloop" in Path(filename).parts


def show_warnings_plainly() -> None:
    """From here on this process shows our own warnings as a sentence, without the line of code they come from."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if is_ours(category, filename):
            sys.stderr.write(f"selfloop: {message}\n")
        else:
            usual(message, category, filename, lineno, *rest)

    warnings.showwarning = show  # type: ignore[assignment]  # it passes on whatever it gets
