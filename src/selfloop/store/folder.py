"""The folder of a store: places of its records and objects, which of them are intact, and the treatment of the others."""

from __future__ import annotations

import json
import mmap
import os
import time
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfloop.store import records
from selfloop.store.bucket import ATTEMPTS, Bucket, bucket_of
from selfloop.store.identity import digest_file

KEY_LENGTH = 40  # of a key, and of the digest of an object


@dataclass(slots=True)
class StoreFolder:
    """Files of a store by key and digest. StoreError for a folder of another format, and if it cannot be read or written.

    A folder that is a store already is only read until something is written. `read_only`: damaged files stay where they are.
    Of a store in a bucket, the folder holds received and put files: records at once, objects when they are opened.
    """

    path: Path
    read_only: bool = False
    damaged: list[str] = field(default_factory=list)  # files that were found damaged or missing
    _checked: dict[str, Hashable] = field(default_factory=dict)  # verified digests -> stamps of the files then
    _is_writable: bool = False
    bucket: Bucket | None = field(init=False)

    def __post_init__(self) -> None:
        self.bucket = bucket_of(self.path)
        with self._errors("read" if self.read_only else "write"):
            if not records.check_format(self.path) and not self.read_only:
                self._create()

    def _create(self) -> None:
        """Create the missing ones of the store's own folders and files; fails if nothing can be written."""
        records.create_folders(self.path, self.bucket.create_marker() if self.bucket else b"")
        self._is_writable = True

    def stems(self, folder: str) -> set[str]:
        """Keys of all `records`, or digests of all `objects`: of those in the bucket, if there is one."""
        names = [name for name, *_ in self.bucket.list(folder)] if self.bucket else (self.path / folder).glob("*/*.*")
        return {stem for name in names if len(stem := Path(name).stem) == KEY_LENGTH}

    def object_path(self, content: str) -> str:  # text, not Path: creating paths would be a third of the cost of a replay
        return f"{self.path}/objects/{content[:2]}/{content}.safetensors"

    def record_path(self, key: str) -> str:
        return f"{self.path}/records/{key[:2]}/{key}.json"

    def read_record(self, key: str) -> dict[str, Any] | None:
        """The body of a record; None if there is none, or if it is damaged."""
        path = self.record_path(key)
        exists = os.path.lexists(path)  # asked first: another process may write it now
        with self._errors("read"):
            body = records.read_record(path, key)
        if body is None and exists:
            self.set_aside(path)
        return self._receive_record(key) if body is None and self.bucket else body

    def write_record(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add a record: the key and the result of a call, and what they were made with. If there is one, that is returned."""
        key, result = body["key"], body["result"]
        file_stat = records.file_stat(self.object_path(result["object"])) if "object" in result else None
        content = records.with_checksum(json.dumps({**body, "file_stat": file_stat}).encode())
        attempt = 0
        while self.bucket and not self.bucket.put_new(name := self._name(self.record_path(key)), content):
            if stands := self._receive_record(key):  # else it was damaged or is deleted at this moment
                return stands
            if (attempt := attempt + 1) == ATTEMPTS:
                self.bucket.fail("write", f"{name} exists, but cannot be read")
        return body if self._write(self.record_path(key), content) else self.read_record(key) or body

    def drop_record(self, key: str, content: str) -> None:
        """Delete a record whose object is damaged or missing: an irreproducible step gives an object of another name.

        The record in the bucket stays if it names another object, as another machine has computed it again.
        """
        path = Path(self.record_path(key))
        path.unlink(missing_ok=True)
        if self.bucket and (body := self._receive_record(key)) and body["result"].get("object") == content:
            self.bucket.delete(self._name(str(path)))
            path.unlink(missing_ok=True)

    def _receive_record(self, key: str) -> dict[str, Any] | None:
        assert self.bucket
        name = self._name(path := self.record_path(key))
        for _ in range(2):
            if (content := self.bucket.get(name)) is None:
                return None
            if body := records.parse_record(content, key):
                self._write(path, content)
                return body
        self._set_aside_in_bucket(path)
        return None

    def has_object(self, body: Mapping[str, Any]) -> bool:
        """True if a record has no object, or an intact one. A damaged one is set aside and its record deleted.

        An object in a bucket is received when it is opened, and counts as intact until then.
        """
        content = body["result"].get("object")
        if content is None or self.bucket or (records.file_stat(self.object_path(content)) or ()) == body["file_stat"]:
            return True
        if self.is_intact(content):
            return True
        self.set_aside(self.object_path(content))
        if not self.read_only:
            self.drop_record(body["key"], content)
        return False

    def obtain(self, content: str) -> bool:
        """True if an object is intact here, if need be after it was received from the bucket."""
        if self.is_intact(content) or not self.bucket:
            return self.is_intact(content)
        path = self.object_path(content)
        received, name = f"{path}.{os.getpid()}-{time.monotonic_ns()}", self._name(path)
        with self._errors("write"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            for _ in range(2):
                try:
                    if not self.bucket.download(name, received):
                        return False
                    with open(received, "rb") as file:
                        is_whole = digest_file(file) == content
                    if is_whole:
                        os.chmod(received, 0o444)
                        os.replace(received, path)
                        self._checked[content] = records.stamp(path)
                        return True
                finally:
                    Path(received).unlink(missing_ok=True)
        self._set_aside_in_bucket(path)
        return False

    def is_intact(self, content: str) -> bool:
        """True if an object has its digest, which is computed again only if its file has changed."""
        path = self.object_path(content)
        stamp = records.stamp(path)
        if stamp and self._checked.get(content) != stamp:
            try:
                with open(path, "rb") as file:
                    if digest_file(file) == content:
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
        if self.bucket:
            self.bucket.put_new(self._name(path), Path(path))

    def is_sound(self, content: str) -> bool:
        """True if an object is intact, here or in the bucket; else it is noted as damaged."""
        if self.obtain(content):
            return True
        self.damaged.append(self.object_path(content))
        return False

    def copy_object(self, content: str, file: str) -> None:
        """Add an object from an intact file. In a bucket it is only put there."""
        if self.bucket:
            self.bucket.put_new(self._name(self.object_path(content)), Path(file))
            return
        with open(file, "rb") as source, memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)) as mapped:
            self.write_object(content, mapped)

    @contextmanager
    def own_scratch(self, key: str) -> Iterator[Path]:
        """The scratch folder of a step, for this process alone. StoreError if the store cannot be written, before any work."""
        scratch = self.path / "scratch" / key
        with ExitStack() as stack:
            with self._errors("write"):
                if not self._is_writable:
                    self._create()
                if obstacle := records.obstacle(self.path, scratch / "file"):
                    self.set_aside(str(obstacle))
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

    def _write(self, path: str, *chunks: bytes | memoryview, mode: int = 0o666) -> bool:
        with self._errors("write"):
            if records.obstacle(self.path, path):
                self.set_aside(path)
            return records.write_new(path, *chunks, mode=mode)

    def _name(self, path: str) -> str:
        """The name in the bucket of a file."""
        return os.path.relpath(path, self.path).replace(os.sep, "/")

    def _set_aside_in_bucket(self, path: str) -> None:
        """Warn of a file that arrived damaged twice, and rename it in the bucket."""
        assert self.bucket
        self.damaged.append(path)
        name, remedy = self._name(path), "" if self.read_only else ": set aside and computed again"
        warnings.warn(f"damaged file {self.bucket.url}/{name}{remedy}", stacklevel=2)
        if not self.read_only:
            self.bucket.rename(name, f"{name}.{time.time_ns()}.damaged")

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise records.store_error(self.path, action, problem) from problem
