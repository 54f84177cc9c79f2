"""Records checked and computed again, for `verify` and `gc`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from selfloop.errors import ChainEndedError
from selfloop.formats.safetensors import is_columns, to_safetensors
from selfloop.store import records
from selfloop.store.calls import StepCall
from selfloop.store.identity import digest
from selfloop.store.store import Store


def recompute(store: Store, call: StepCall, threads: int) -> tuple[Mapping[str, Any], Any, Mapping[str, str]]:
    """Compute a call again without recording it.

    Returns its result as a record holds it, its value (None if the chain ended), and its backends.
    """
    from threadpoolctl import threadpool_limits

    scratch = store.path / "scratch" / f"verify-{call.key}"
    backends: dict[str, str] = {}
    try:
        with threadpool_limits(threads):
            value = call.step(*(store.open_argument(a, scratch, backends, threads) for a in call.arguments))
    except ChainEndedError as end:
        return {"ended": end.status}, None, backends
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if is_columns(value):
        return {"object": digest(*to_safetensors(value))}, value, backends
    return {"value": json.loads(json.dumps(value, allow_nan=False))}, value, backends


def provenance_of(store: Store, call: StepCall) -> Mapping[str, Any]:
    """Provenance in a call's record; empty without one."""
    body = store.read_record(store.record_path(call.key), call.key)
    return cast(Mapping[str, Any], body["provenance"]) if body else {}


def object_of(record: Path) -> str | None:
    """Digest of the object that a record file names; None if the file is damaged or holds a value."""
    body = records.verify_checksum(record.read_bytes())
    return None if body is None else cast("str | None", body["result"].get("object"))
