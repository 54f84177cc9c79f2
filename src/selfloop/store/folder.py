"""The folder of a store: places of its records and objects, which of them are intact, and the treatment of the others."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from selfloop.store import records


@dataclass(slots=True)
class StoreFolder:
    """Files of a store by key and digest. StoreError for a folder of another format, and if it cannot be read or written.

    A folder that is a store already is only read until something is written. `read_only`: damaged files stay where they are.
    """

    path: Path
    read_only: bool = False
    damaged: list[str] = field(default_factory=list)  # files that were found damaged or missing
    _checked: dict[str, Hashable] = field(default_factory=dict)  # verified digests -> stamps of the files then
    _is_writable: bool = False

    def __post_init__(self) -> None:
        with self._errors("read" if self.read_only else "write"):
            if not records.check_format(self.path) and not self.read_only:
                records.create_folders(self.path)

    def object_path(self, content: str) -> str:  # text, not Path: creating paths would be a third of the cost of a replay
        """The file of an object."""
        return f"{self.path}/objects/{content[:2]}/{content}.safetensors"

    def record_path(self, key: str) -> str:
        """The file of a record."""
        return f"{self.path}/records/{key[:2]}/{key}.json"

    def read_record(self, key: str) -> dict[str, Any] | None:
        """The body of a record; None if there is none, or if it is damaged."""
        path = self.record_path(key)
        exists = os.path.lexists(path)  # asked first: another process may write it now
        with self._errors("read"):
            body = records.read_record(path, key)
        if body is None and exists:
            self.set_aside(path)
        return body

    def write_record(self, body: Mapping[str, Any]) -> None:
        """Add a record. It has the key and the result of a call, and what they were made with."""
        file_stat = records.file_stat(self.object_path(body["result"]["object"])) if "object" in body["result"] else None
        self._write(self.record_path(body["key"]), records.with_checksum(json.dumps({**body, "file_stat": file_stat}).encode()))

    def has_object(self, body: Mapping[str, Any]) -> bool:
        """True if a record has no object, or an intact one; a damaged or missing object is set aside, as is the record."""
        content = body["result"].get("object")
        if content is None or (records.file_stat(self.object_path(content)) or ()) == body["file_stat"]:
            return True
        if self.is_intact(content):
            return True
        self.set_aside(self.object_path(content))
        if not self.read_only:  # a step that is not reproducible gives an object of another name
            Path(self.record_path(body["key"])).unlink(missing_ok=True)
        return False

    def is_intact(self, content: str) -> bool:
        """True if an object has its digest, which is computed again only if its file has changed."""
        path = self.object_path(content)
        stamp = records.stamp(path)
        if stamp and self._checked.get(content) != stamp:
            try:
                with open(path, "rb") as file:
                    if file_digest(file, lambda: blake2b(digest_size=20)).hexdigest() == content:
                        self._checked[content] = stamp
            except OSError as problem:
                if problem.errno not in records.UNREADABLE:
                    raise
        return bool(stamp) and self._checked.get(content) == stamp

    def write_object(self, content: str, *chunks: bytes | memoryview) -> None:
        """Add an object, read-only: its pages are mapped by the steps that read it."""
        path = self.object_path(content)
        if os.path.lexists(path) and not self.is_intact(content):
            self.set_aside(path)
        self._write(path, *chunks, mode=0o444)
        self._checked[content] = records.stamp(path)

    @contextmanager
    def own_scratch(self, key: str) -> Iterator[Path]:
        """The scratch folder of a step, for this process alone. StoreError if the store cannot be written, before any work."""
        scratch = self.path / "scratch" / key
        with ExitStack() as stack:
            with self._errors("write"):
                if not self._is_writable:
                    records.create_folders(self.path)
                    self._is_writable = True
                if records.obstacle(self.path, scratch / "file"):
                    self.set_aside(str(scratch))
                own = stack.enter_context(records.own_scratch(scratch))
            yield own

    def set_aside(self, path: str) -> None:
        """Warn of a damaged or missing file, and rename it, or the obstacle on the way to it: it can be computed again."""
        self.damaged.append(path)
        damaged = records.obstacle(self.path, path) or path
        exists = os.path.lexists(damaged)
        remedy = "" if self.read_only else ": set aside and computed again" if exists else ": computed again"
        warnings.warn(f"{'damaged' if exists else 'missing'} file {path}{remedy}", stacklevel=2)
        if not self.read_only:
            with self._errors("write"), suppress(FileNotFoundError):  # another process was faster
                os.rename(damaged, f"{damaged}.{time.time_ns()}.damaged")

    def _write(self, path: str, *chunks: bytes | memoryview, mode: int = 0o666) -> None:
        with self._errors("write"):
            if records.obstacle(self.path, path):
                self.set_aside(path)
            records.write_new(path, *chunks, mode=mode)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise records.store_error(self.path, action, problem) from problem
