"""TinyStories: short stories for small language models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Columns, Ints
from selfloop.component import Context
from selfloop.errors import DataError, SettingError, resolve_local_or_hub
from selfloop.formats.folders import is_hidden
from selfloop.sources.hub import HubRevision, HubText
from selfloop.sources.text_files import DocumentSource, TextSource

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class TinyStories(DocumentSource):
    """Stories of Eldan & Li (2023, arXiv 2305.07759), from text files or from the hub.

    If there are validation stories, the holdout of each seed is `holdout_rows` of them, and all real rows are training
    stories. Otherwise the spec's holdout is taken from the stories.
    """

    name: ClassVar[str] = "tinystories"
    path: Annotated[Path | None, "file with `<|endoftext|>` between stories, or folder with *train.txt and *valid.txt"] = None
    holdout_path: Annotated[Path | None, "file of validation stories; unset: *valid.txt if `path` is a folder"] = None
    hub: Annotated[str | Path | None, "instead of `path`: `roneneldan/TinyStories`, or a folder of the same form"] = None
    revision: HubRevision = None
    holdout_rows: Annotated[int, Ge(1), "maximum number of validation stories in the holdout"] = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.path is None) == (self.hub is None):
            problem = f"got path = {self.path}, hub = {self.hub}; expected one of them. Set path, or hub and revision."
            raise SettingError("path", problem)
        if self.hub is not None:
            object.__setattr__(self, "hub", resolve_local_or_hub("revision", self.hub, self.revision))
        elif self.revision is not None:
            raise SettingError("revision", f"got {self.revision!r}; a local path has no revision. Remove the key.")

    def unused_settings(self) -> Mapping[str, str]:
        return {"holdout_path": "`hub` is set, which has a split of its own"} if self.hub is not None else {}

    def _splits(self) -> tuple[DocumentSource, DocumentSource | None]:
        """Training stories, validation stories."""
        if self.hub is not None:
            train = HubText(path=self.hub, revision=self.revision)
            return train, replace(train, split="validation")
        path, holdout_path = cast(Path, self.path), self.holdout_path
        if path.is_dir():
            path, holdout_path = _find_file(path, "*train.txt*"), holdout_path or _find_file(path, "*valid.txt*")
        holdout = TextSource(path=holdout_path, separator=SEPARATOR) if holdout_path else None
        return TextSource(path=path, separator=SEPARATOR), holdout

    def documents(self) -> Iterator[str]:
        for split in self._splits():
            if split:
                yield from split.documents()

    def n_holdout(self) -> int | None:
        holdout = self._splits()[1]
        return min(self.holdout_rows, holdout.n_rows()) if holdout else None

    def n_rows(self) -> int:
        return self._splits()[0].n_rows() + (self.n_holdout() or 0)

    def order(self, corpus: Columns, ctx: Context) -> Ints:
        train, holdout = self._splits()
        order = train.order(corpus, ctx)
        if holdout is None:
            return order
        return np.concatenate([len(order) + holdout.order(corpus, ctx.child("validation"))[: self.holdout_rows], order])


def _find_file(folder: Path, pattern: str) -> Path:
    """The only file of a folder that matches."""
    files = sorted(file for file in folder.glob(pattern) if not is_hidden(file.name))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"source.path: {folder} has {len(files)} files {pattern} ({names}). Give the file itself.")
    return files[0]
