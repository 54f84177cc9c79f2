"""Errors that a user can correct (exit code 2), and the end of a chain. Imports nothing of selfloop."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_UNPRINTABLE = re.compile("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


MAX_MESSAGE, MAX_SHOWN_VALUE = 700, 80  # characters of a message, and of a rejected value in it


class SelfloopError(Exception):
    """A mistake that a user can correct, in one or two sentences: key, value, allowed values, what to do."""

    def __init__(self, message: str) -> None:
        cut = f"{message[:400]} ... {message[-250:]}" if len(message) > MAX_MESSAGE else message
        super().__init__(cut)  # a message may quote names of any length: where and what to do are at its ends


class SpecError(SelfloopError):
    """A setting that cannot be run."""


class SettingError(SpecError):
    """A value that a setting does not allow. `under(key)` gives the error the key that the user typed."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting, self.problem = setting, problem

    def __reduce__(self) -> tuple[type[SettingError], tuple[str, str]]:
        return SettingError, (self.setting, self.problem)  # by default the one message would be unpickled as two arguments

    def under(self, key: str) -> SettingError:
        """The same error for the setting of the component or table at `key`."""
        return SettingError(f"{key}.{self.setting}", self.problem)


class DataError(SelfloopError):
    """Input rows that cannot be used."""


class StoreError(SelfloopError):
    """A store that cannot be read or written."""


class MissingExtraError(SelfloopError):
    """A library that an optional extra brings is not installed."""


class ChainEndedError(Exception):
    """A fit or a sample without an honest result; `status` is the reason. It is a result: the chain ends here."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


# library -> the extra of selfloop that installs it
EXTRAS = {
    "datasets": "hub", "pyarrow": "hub", "peft": "lora", "diffusers": "images", "onnxruntime": "images", "rdkit": "molecules",
    "obstore": "cloud",
    **{name: name for name in ("wandb", "mlflow", "tensorboard", "trackio", "ray", "vllm")},
}  # fmt: skip


def missing_extra(key: str, library: str) -> MissingExtraError:
    """The error for a library that is not installed, with the command that installs it."""
    package = f"selfloop[{EXTRAS[library]}]" if library in EXTRAS else library
    return MissingExtraError(f"{key}: needs {library}, which is not installed. Run: pip install '{package}'")


def resolve_local_or_hub(key: str, name: str | Path, revision: str | None) -> str | Path:
    """A path if `name` exists on this machine (identified by its content), else a name on the hub, fixed by its commit.

    Raises SettingError for the setting `key` if a hub name has no commit, as its content may change, or if a path has one.
    """
    name = os.path.expanduser(name)
    if os.path.exists(name):  # False for a name that is too long for a path
        if revision is not None:
            raise SettingError(key, f"got {revision!r}; {name} is a local path, which has no revision. Remove the key.")
        return Path(name)
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise SettingError(
            key,
            f"got {revision!r}; there is no folder {str(name)!r}, and a name on the hub needs its commit. Correct the path, or "
            "give 40 hexadecimal digits (on the page of the model or data under Files).",
        )
    return str(name)


def shown(value: object) -> str:
    """A rejected value as an error quotes it, of any size and depth."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to write integers of more than 4,300 digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_VALUE else f"{text[:MAX_SHOWN_VALUE]} ..."


def unknown_name(key: str, name: str, allowed: Iterable[str], kind: str = "name", other_words: Mapping[str, str] = {}) -> str:
    """The sentence for a name that is not in `allowed`, with the nearest allowed name suggested, or that of `other_words`."""
    names = sorted(allowed)
    near = [other_words[name]] if name in other_words else get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{key}: unknown {kind} {name!r}.{hint} Allowed: {', '.join(names) or 'none'}."


def os_error_reason(problem: OSError) -> str:
    """The operating system's message in a few words."""
    return (problem.strerror or type(problem).__name__).lower()


def first_line(problem: BaseException) -> str:
    """The first line of a library's message, at most 200 characters, to be quoted in a sentence; Python's in plain words."""
    if isinstance(problem, RecursionError):
        return "it is nested too deeply"
    if isinstance(problem, UnicodeError):
        return "it has text that is not UTF-8"
    if "set_int_max_str_digits" in str(problem):
        return "it has a number of too many digits"
    return (str(problem).strip() or type(problem).__name__).split("\n")[0].rstrip(".")[:200]


def printable(text: str) -> str:
    """The text with control characters, which a terminal obeys and a page does not allow, as escapes such as \\x1b."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_selfloop_warning(category: type[Warning], filename: str) -> bool:
    """True for a warning that selfloop itself issued."""
    return category is UserWarning and "selfloop" in Path(filename).parts


def show_warnings_plainly() -> None:
    """From now on this process prints selfloop's warnings as one sentence, without the line of code that issued them."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if is_selfloop_warning(category, filename):
            sys.stderr.write(printable(f"selfloop: {message}\n"))
        else:
            usual(message, category, filename, lineno, *rest)

    warnings.showwarning = show  # type: ignore[assignment]  # the signature is that of showwarning, with its tail in `rest`
