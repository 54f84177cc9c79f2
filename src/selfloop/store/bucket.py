"""A store in a bucket of S3, Google Cloud or Azure: the few operations that it needs, and its folder on this machine.

The names in a bucket are those in a folder, and every file is put only if it is absent. The folder on this machine, in the
cache, holds received and put files, the progress of runs here, and the scratch folders; it may be deleted at any time.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from selfloop.errors import SpecError, StoreError, missing_extra, os_error_reason, shown
from selfloop.formats.replacing import write_bytes
from selfloop.store.identity import digest
from selfloop.store.records import MARKER, place_of

T = TypeVar("T")
VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}  # first letters of those with credentials, addresses and options
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")  # in answers of the three services
REFUSED = ("401 Unauthorized", "403 Forbidden", "169.254.169.254", "Missing", "must be specified")  # no, or wrong, credentials
ATTEMPTS, RETRY_SECONDS = 3, 1.0  # of an operation, besides the library's own; seconds before the second one
GIVE_UP_SECONDS = 60  # of an operation, after which no attempt begins
MAX_SINGLE_PUT = 16 << 20  # bytes; more are put in parts, for which obstore does not offer the condition that the name is free
STALLED_SECONDS = 30  # without a byte, or for sending all that is put at a time, after which a request is repeated
SECRETS = ("KEY", "TOKEN", "SECRET", "CREDENTIAL", "PASSWORD")  # in variables that may change while the store is the same
FIRST_SECONDS = 4  # for each of two tries of the first request to a bucket


@dataclass(frozen=True, slots=True)
class Bucket:
    """Files below a URL by name. StoreError if it cannot be reached, read or written after several attempts."""

    url: str

    def get(self, name: str, *, first: bool = False) -> bytes | None:
        """The content of a file; None if there is none. `first`: with an answer in ten seconds, as the first request."""
        return self._try("read", lambda obstore, client: bytes(obstore.get(client, name).bytes()), first=first)

    def download(self, name: str, path: str) -> bool:
        """Write a file's content to a new file, chunk by chunk; False if there is none."""

        def write(obstore: Any, client: Any) -> bool:
            chunks = obstore.get(client, name).stream(8 << 20)
            with open(path, "wb") as file:
                file.writelines(chunks)
            return True

        return bool(self._try("read", write))

    def put_new(self, name: str, content: bytes | Path) -> bool:
        """Put a whole file; False if there is one of that name, which is kept. Content of more than 16 MiB is a path."""
        if isinstance(content, Path) and content.stat().st_size > MAX_SINGLE_PUT:
            if self._try("read", lambda obstore, client: obstore.head(client, name)):
                return False
            how: dict[str, Any] = {"chunk_size": 8 << 20, "max_concurrency": 2}
        else:
            how, content = {"mode": "create"}, content.read_bytes() if isinstance(content, Path) else content
        return bool(self._try("write", lambda obstore, client: obstore.put(client, name, content, **how)))

    def create_marker(self) -> bytes:
        """The content of the file FORMAT, which is put with a number of this store's own if there is none.

        StoreError if nothing can be put.
        """
        self.put_new("FORMAT", MARKER + f"{secrets.token_hex(8)}\n".encode())
        return self.get("FORMAT") or self.fail("write", "a put file is not kept")

    def list(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """Name, bytes and time of the files in a folder and below it."""
        files = self._try("list", lambda obstore, client: obstore.list(client, folder, chunk_size=1000).collect())
        return ((file["path"], file["size"], file["last_modified"].timestamp()) for file in files or ())

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        self._try("delete", lambda obstore, client: obstore.delete(client, name))

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, if there is one of this name."""
        self._try("rename", lambda obstore, client: obstore.rename(client, name, new))

    def _try(self, action: str, operation: Callable[[Any, Any], T], *, first: bool = False) -> T | None:
        """The operation's result; None if its file is absent, or is to be written and exists. An interrupt ends it at once."""
        import obstore
        from obstore import exceptions

        problem, started = Exception(), time.monotonic()
        expected: Any = {"write": exceptions.AlreadyExistsError, "list": ()}.get(action, FileNotFoundError)
        for attempt in range(1 if first else ATTEMPTS):
            time.sleep(attempt * RETRY_SECONDS)
            try:
                return _in_thread(operation, obstore, _client(self.url, _variables(self.url), first=first))
            except (FileNotFoundError, exceptions.BaseError) as error:
                if any(words in str(error) for words in NO_BUCKET):
                    raise StoreError(f"store {self.url}: no such bucket. Create it, or correct the address.") from error
                if isinstance(error, expected):
                    return None
                problem = error
            if any(words in str(problem) for words in REFUSED) or time.monotonic() > started + GIVE_UP_SECONDS:
                break
        return self.fail(action, str(problem), problem)

    def fail(self, action: str, reason: str, cause: Exception | None = None) -> NoReturn:
        code, text = re.search(r"<Code>(\w+)</Code>", reason), reason.split("\n")[0].split(" - ")[-1]
        if system := re.search(r'(?:message|error): "(.*?)"', reason):  # below the library's own words
            host = re.search(r"://(?:[^/@\s]*@)?([^/\s]+)", reason)
            text = f"{host[1]}: {system[1].lower()}" if host else system[1]
        advice = "Check the address and the network, then run again: finished puts are kept."
        if any(words in reason for words in REFUSED):
            advice = f"Check the credentials in the variables {VARIABLES[self.url[:2]]}..., or the role of this machine."
        raise StoreError(f"store {self.url}: cannot {action} ({(code[1] if code else text)[:200]}). {advice}") from cause


def bucket_of(path: Path) -> Bucket | None:
    """The bucket whose store has this folder on this machine; None for another folder."""
    place = place_of(path)
    return Bucket(place) if place != str(path) else None


def connect(address: str) -> Path:
    """The folder on this machine of a store in a bucket, without records of another store that was there before.

    Raises SpecError for another address than that of a bucket, MissingExtraError, and StoreError within ten seconds if the
    bucket is absent or cannot be reached.
    """
    parts = re.fullmatch(r"(s3|gs|az)://?([^/%?#]+)/?([^%?#]*?)/?", address)
    if parts is None or (parts[3] and not {"", ".", ".."}.isdisjoint(parts[3].split("/"))):
        expected = (
            "expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, without empty parts, .., %, ? and #"
        )
        raise SpecError(f"store {shown(address)}: {expected}. Correct it.")
    for name, value in _variables(address):
        if name.endswith(("_ENDPOINT", "_ENDPOINT_URL", "_ENDPOINT_URL_S3")) and "_USE_" not in name and not _is_url(value):
            raise SpecError(f"{name}: got {shown(value)}; expected an address such as https://host:9000. Correct or unset it.")
    if find_spec("obstore") is None:
        raise missing_extra(f"store {address}", "obstore")
    bucket = Bucket(f"{parts[1]}://{parts[2]}" + f"/{parts[3]}" * bool(parts[3]))
    marker = bucket.get("FORMAT", first=True)
    service = [pair for pair in _variables(address) if not any(word in pair[0] for word in SECRETS)]
    folder = cache_folder() / "stores" / digest(repr((bucket.url, service)).encode())[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "BUCKET", bucket.url.encode())
        if (local := folder / "FORMAT").is_file() and local.read_bytes() != marker:  # another store was here
            for name in ("records", "runs"):
                shutil.rmtree(folder / name, ignore_errors=True)
            local.unlink()
        if marker is not None:
            write_bytes(local, marker)
            _forget_deleted(bucket, folder)
    except OSError as problem:
        reason, advice = os_error_reason(problem), "Set SELFLOOP_CACHE to another folder."
        raise StoreError(f"store {address}: cannot write {folder} ({reason}). {advice}") from problem
    return folder


def _forget_deleted(bucket: Bucket, folder: Path) -> None:
    """Delete received records that are no longer in the bucket."""
    received = {path.relative_to(folder).as_posix(): path for path in folder.glob("records/*/*.json")}
    for name in received.keys() - {name for name, *_ in bucket.list("records")} if received else ():
        received[name].unlink(missing_ok=True)


def cache_folder() -> Path:
    """The folder for files that can be received or computed again: $SELFLOOP_CACHE, else `selfloop` in the user's cache."""
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    own = os.path.join(os.environ.get("XDG_CACHE_HOME") or usual, "selfloop")
    return Path(os.path.expanduser(os.environ.get("SELFLOOP_CACHE") or own)).absolute()


def _variables(url: str) -> tuple[tuple[str, str], ...]:
    """The variables that the library reads."""
    return tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith(VARIABLES[url[:2]])))


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", text)
    except ValueError:  # of the port
        return False


def _in_thread(operation: Callable[..., T], *arguments: Any) -> T:
    """The operation's result, computed while this thread waits: an interrupt does not arrive inside the library."""
    future = Future[T]()

    def work() -> None:
        try:
            future.set_result(operation(*arguments))
        except BaseException as problem:  # of any kind: the thread that waits raises it
            future.set_exception(problem)

    threading.Thread(target=work, daemon=True).start()
    return future.result()


@cache
def _client(url: str, variables: tuple[tuple[str, str], ...], *, first: bool) -> Any:
    from obstore.store import from_url

    short, long = timedelta(seconds=FIRST_SECONDS), timedelta(seconds=STALLED_SECONDS)
    limits = {"timeout": short} if first else {"timeout": timedelta(days=1), "read_timeout": long}
    options: dict[str, Any] = {"allow_http": True, "connect_timeout": short, **limits}
    retries: dict[str, Any] = {"max_retries": 1 if first else 5, "retry_timeout": short if first else long}
    return from_url(url, client_options=options, retry_config=retries)
