"""Data sets of the Hugging Face hub, or local files in a format that its library reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from selfloop.errors import DataError, missing_extra, resolve_local_or_hub
from selfloop.sources.files import FileSource

HubRevision = Annotated[str | None, "commit of a data set on the hub, whose content may change; a folder has none"]


@dataclass(frozen=True, kw_only=True)
class HubSource(FileSource):
    """A source that reads one split of a data set through the library `datasets`."""

    path: Annotated[str | Path, "name of a data set on the hub, or a local folder"]
    config: Annotated[str | None, "configuration of a data set that has several"] = None
    split: Annotated[str, "split of the data set"] = "train"
    revision: HubRevision = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", resolve_local_or_hub("revision", self.path, self.revision))

    def load_split(self) -> Any:
        """The split, which the library caches in its own files.

        Raises MissingExtraError without the extra `hub`, and DataError if there is no such data set or split.
        """
        try:
            import datasets
        except ImportError as problem:
            raise missing_extra(f"source: {self.name}", "datasets") from problem
        try:
            return datasets.load_dataset(str(self.path), self.config, split=self.split, revision=self.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
            reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
            raise DataError(f"source: cannot read {self.split!r} of {self.path}: {reason}. Check path and split.") from problem
