"""Records checked and computed again, for `verify`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from selfloop.errors import ChainEndedError
from selfloop.formats.safetensors import is_columns, to_safetensors
from selfloop.store.calls import StepCall
from selfloop.store.identity import digest
from selfloop.store.store import Store


def recompute(store: Store, call: StepCall, threads: int) -> tuple[Mapping[str, Any], Any, Mapping[str, str]]:
    """Compute a call again without recording it.

    Returns its result as a record holds it, its value (None if the chain ended), and its backends.
    """
    from threadpoolctl import threadpool_limits

    scratch = store.path / "scratch"
    backends: dict[str, str] = {}
    with TemporaryDirectory(prefix="verify-", dir=scratch if os.access(scratch, os.W_OK) else None) as folder:
        try:
            with threadpool_limits(threads):
                value = call.step(*(store.open_argument(a, Path(folder), backends, threads) for a in call.arguments))
        except ChainEndedError as end:
            return {"ended": end.status}, None, backends
        if is_columns(value):
            return {"object": digest(*to_safetensors(value))}, value, backends
        return {"value": json.loads(json.dumps(value, allow_nan=False))}, value, backends


def provenance_of(store: Store, call: StepCall) -> Mapping[str, Any]:
    """Provenance in a call's record; empty without one."""
    body = store.files.read_record(call.key)
    return cast(Mapping[str, Any], body["provenance"]) if body else {}
