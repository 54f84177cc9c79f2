"""The server of `selfloop watch`: pages for this machine alone, and three actions on runs.

It listens on the loopback interface. Every address begins with a secret token, and requests for another host are refused, so
that no web page can reach it through a name of its own (DNS rebinding). Actions are POST requests from its own pages.
"""

from __future__ import annotations

import hmac
import re
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

from selfloop.errors import SelfloopError, os_error_reason
from selfloop.store.live import Action, control_run, read_progress
from selfloop.watch.pages import WatchPages

HOST, HTTP_PORT = "127.0.0.1", 80
ACTIONS: dict[str, Action | None] = {"pause": "pause", "continue": None, "cancel": "cancel"}
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # with less, browsers send actions without their origin
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
POLICY = "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"  # pages have another one, for their contents


class WatchServer(ThreadingHTTPServer):
    """Serves the runs of a store until it is closed. SelfloopError if the port is taken."""

    daemon_threads = True

    def __init__(self, store: Path, port: int = 0) -> None:
        try:
            super().__init__((HOST, port), WatchRequest)
        except OSError as problem:
            reason = os_error_reason(problem)
            raise SelfloopError(f"--port {port}: cannot be used ({reason}). Choose another one, or none.") from problem
        self.token = secrets.token_urlsafe(24)
        self.pages = WatchPages(store, f"/{self.token}/")
        end = "" if self.server_port == HTTP_PORT else f":{self.server_port}"  # browsers leave this port out
        self.hosts = {f"{name}{end}" for name in (HOST, "localhost")}

    @property
    def url(self) -> str:
        """The address of the list of runs."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"


class WatchRequest(BaseHTTPRequestHandler):
    """One request. There are no other addresses than those of `_route`."""

    server_version, sys_version, timeout = "selfloop", "", 10

    def do_GET(self) -> None:
        pages, route = cast(WatchServer, self.server).pages, self._route()
        page = None
        if route is not None:
            name, what = route
            page = pages.list_page() if not name else pages.run_page(name) if not what else None
            page = pages.live_part(name) if what == "status" else page
        self._answer(404 if page is None else 200, page or "There is no such page.")

    def do_POST(self) -> None:
        server, route = cast(WatchServer, self.server), self._route()
        name, what = route or ("", "")
        if what not in ACTIONS or name not in server.pages.runs():
            self._answer(404, "There is no such action.")
        elif self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            self._answer(403, "Actions come from pages of this server alone.")
        else:
            try:
                if (progress := read_progress(server.pages.store, name)) and what in progress.actions:
                    control_run(server.pages.store, name, ACTIONS[what])
            except (OSError, SelfloopError) as problem:
                self._answer(500, f"The store cannot be written: {problem}")
            else:
                page = f"{server.url}runs/{name}"
                self._answer(
                    303, "", Location=page if self.headers.get("Referer", "").endswith(f"/runs/{name}") else server.url
                )

    def _route(self) -> tuple[str, str] | None:
        """Name of a run (empty: the list) and the action or part; None for other addresses, hosts and tokens."""
        server = cast(WatchServer, self.server)
        path = re.fullmatch(r"/([\w-]+)/(?:runs/([0-9a-f]{12})(?:/(status|pause|continue|cancel))?)?", self.path, re.ASCII)
        if self.headers.get("Host") not in server.hosts or path is None:
            return None
        token, name, what = path.groups(default="")
        return (name, what) if hmac.compare_digest(token.encode(), server.token.encode()) else None

    def _answer(self, code: int, text: str, **headers: str) -> None:
        body = text.encode()
        kind = "text/html" if text.startswith("<") else "text/plain"
        fixed = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), "Content-Security-Policy": POLICY}
        self.send_response(code)
        for name, value in (HEADERS | fixed | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # as in http.server
        """Nothing: the token is in every address."""
