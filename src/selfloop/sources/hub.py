"""Data sets of the Hugging Face hub, or local files in a format that its library reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from selfloop.errors import DataError, missing_extra

HubPath = Annotated[str | Path, "name of a data set on the hub, or a local folder"]
HubConfig = Annotated[str | None, "configuration of a data set that has several"]
HubSplit = Annotated[str, "split of the data set"]
HubRevision = Annotated[str | None, "commit of a data set on the hub, whose content may change; a folder has none"]


def load_dataset(source: str, path: str | Path, config: str | None, split: str, revision: str | None) -> Any:
    """One split of a data set, which the library caches in its own files. `source` is the name of the source.

    Raises MissingExtraError without the extra `hub`, and DataError if there is no such data set or split.
    """
    try:
        import datasets
    except ImportError as problem:
        raise missing_extra(f"source: {source}", "datasets") from problem
    try:
        return datasets.load_dataset(str(path), config, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise DataError(f"source: cannot read {split!r} of {path}: {reason}. Check path and split.") from problem
