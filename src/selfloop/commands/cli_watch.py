"""The command `watch`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from selfloop.commands.options import STORE_HELP, store_at
from selfloop.commands.terminal import show


def watch(
    store: Annotated[str | None, typer.Argument(metavar="[STORE]", help=STORE_HELP)] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port on this machine. Default: a free one.")] = 0,
) -> None:
    """Show the runs of a store in a browser while they run: progress, losses, the report so far; pause or cancel them.

    The address is for this machine alone and has a secret token. Ctrl-C ends the server, and no run.

    Example: selfloop watch results
    """
    from selfloop.store.runs import read_runs
    from selfloop.watch.server import WatchServer

    path = store_at(store)
    read_runs(path)  # SelfloopError if it is no store
    with WatchServer(path, port) as server:
        os.nice(5)  # drawing reports must not slow the runs down
        show(f"watching {path}: {server.url}\nOpen this address in a browser of this machine. Ctrl-C ends the server.")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            show("ended. Runs go on.")
