"""An S3 server in memory, of the requests that a store makes; moto takes 3 ms of the processor for each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape, unescape


class Stored(NamedTuple):
    """One object of a bucket."""

    content: bytes
    etag: str
    time: datetime


class S3Application:
    """Buckets by name, whose requests come one at a time."""

    def __init__(self) -> None:
        self.buckets = dict[str, dict[str, Stored]]()
        self.uploads = dict[str, dict[int, bytes]]()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes]:
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"], keep_blank_values=True).items()}
        content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if not key and environ["REQUEST_METHOD"] == "PUT":
            self.buckets.setdefault(bucket, {})
        objects = self.buckets.get(bucket)
        if objects and (source := environ.get("HTTP_X_AMZ_COPY_SOURCE")):
            content = objects[unquote(source).lstrip("/").partition("/")[2]].content
        if objects is None:
            status, headers, body = "404 Not Found", {}, b"<Error><Code>NoSuchBucket</Code></Error>"
        elif key:
            answer = getattr(self, environ["REQUEST_METHOD"].lower())
            status, headers, body = answer(objects, key, query, content, environ.get("HTTP_IF_NONE_MATCH"))
        elif "delete" in query:
            names = re.findall("<Key>(.*?)</Key>", content.decode())
            for name in names:
                objects.pop(unescape(name), None)
            deleted = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
            status, headers, body = "200 OK", {}, f"<DeleteResult>{deleted}</DeleteResult>".encode()
        else:
            status, headers, body = "200 OK", {}, listing(objects, query)
        start(status, [*{"Content-Length": str(len(body)), **headers}.items()])
        yield body if environ["REQUEST_METHOD"] != "HEAD" else b""

    def get(self, objects: dict[str, Stored], key: str, *_: object) -> tuple[str, dict[str, str], bytes]:
        if key not in objects:
            return "404 Not Found", {}, b"<Error><Code>NoSuchKey</Code></Error>"
        content, etag, time = objects[key]
        return "200 OK", {"ETag": etag, "Last-Modified": format_datetime(time, usegmt=True)}, content

    head = get

    def put(
        self, objects: dict[str, Stored], key: str, query: dict[str, str], content: bytes, only_if_new: str | None
    ) -> tuple[str, dict[str, str], bytes]:
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        if "uploadId" in query:
            self.uploads[query["uploadId"]][int(query["partNumber"])] = content
        elif only_if_new == "*" and key in objects:
            return "412 Precondition Failed", {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        else:
            objects[key] = Stored(content, etag, datetime.now(UTC))
        return "200 OK", {"ETag": etag}, b""

    def post(
        self, objects: dict[str, Stored], key: str, query: dict[str, str], *_: object
    ) -> tuple[str, dict[str, str], bytes]:
        """The start and the end of an upload in parts."""
        if "uploads" in query:
            self.uploads[number := str(len(self.uploads))] = {}
            name = f"<Bucket>b</Bucket><Key>{escape(key)}</Key><UploadId>{number}</UploadId>"
            return "200 OK", {}, f"<InitiateMultipartUploadResult>{name}</InitiateMultipartUploadResult>".encode()
        parts = self.uploads.pop(query["uploadId"])
        _, headers, _ = self.put(objects, key, {}, b"".join(parts[number] for number in sorted(parts)), None)
        result = f"<Bucket>b</Bucket><Key>{escape(key)}</Key><ETag>{headers['ETag']}</ETag>"
        return "200 OK", {}, f"<CompleteMultipartUploadResult>{result}</CompleteMultipartUploadResult>".encode()


def listing(objects: dict[str, Stored], query: dict[str, str]) -> bytes:
    """A page of the names with a prefix, in their order."""
    names = sorted(name for name in objects if name.startswith(query.get("prefix", "")))
    names = [name for name in names if name > query.get("continuation-token", "")]
    page = names[:PAGE]
    contents = "".join(
        f"<Contents><Key>{escape(name)}</Key><LastModified>{objects[name].time.isoformat()}</LastModified>"
        f"<ETag>{objects[name].etag}</ETag><Size>{len(objects[name].content)}</Size></Contents>"
        for name in page
    )
    more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(names) > PAGE else ""
    return f"<ListBucketResult>{contents}{more}</ListBucketResult>".encode()


PAGE = 50  # names, so that tests see several pages
