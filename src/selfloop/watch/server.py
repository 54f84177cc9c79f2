"""The server of `selfloop watch`: the runs of a store, the report of what one has so far, and three actions on runs.

It listens on the loopback interface. Every address begins with a secret token, and requests for another host are refused, so
that no web page can reach it through a name of its own (DNS rebinding). Actions are POST requests from its own pages.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

from jinja2 import ChoiceLoader, PackageLoader

from selfloop.errors import SelfloopError, first_line, os_error_reason
from selfloop.partial import partial_result
from selfloop.report.build import build_report
from selfloop.report.page import render_page, template_environment
from selfloop.spec.parse import parse_spec
from selfloop.store.live import Action, RunProgress, control_run, read_progress
from selfloop.store.runs import StoredRun, read_run

MAX_SETTINGS = 3  # of a run that tell it from others of the same title
MAX_DRAWN = 8  # reports in memory; one has some megabytes
IDLE_SHARE, MAX_IDLE = 3, 60.0  # times as long as a report took to draw, at most these seconds, pass before the next drawing
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


@dataclass(slots=True)
class DrawnReport:
    """The newest report of a run."""

    page: str = ""
    problem: str = ""  # why there is none
    version: int = 0  # how often it was drawn
    shows: tuple[object, ...] = ()  # done generations and state
    due: float = 0.0  # of the next drawing, on the monotonic clock
    is_busy: bool = False


class WatchPages:
    """Pages whose addresses begin with `root`."""

    def __init__(self, store: Path, root: str) -> None:
        self.store, self.root = store, root
        self.drawn: dict[str, DrawnReport] = {}
        self.lock, self.drawing = threading.Lock(), threading.Lock()  # of the table, and of drawing: one report at a time
        self._read: dict[Path, tuple[int, StoredRun | None]] = {}
        self.templates = template_environment()
        self.templates.loader = ChoiceLoader([PackageLoader("selfloop.watch", ""), PackageLoader("selfloop.report", "")])

    def runs(self) -> dict[str, StoredRun]:
        """The runs of the store by name, the newest first. Files that have not changed are not read again."""
        for file in (self.store / "runs").glob("[0-9a-f]*.json"):
            stamp = file.stat().st_mtime_ns
            if self._read.get(file, (0, None))[0] != stamp:
                self._read[file] = stamp, read_run(file)
        listed = [run for file, (_, run) in list(self._read.items()) if run and file.exists()]
        return {run.name: run for run in sorted(listed, key=lambda run: -run.time)}

    def list_page(self) -> str:
        watched = [(run, read_progress(self.store, run.name)) for run in distinct_titles([*self.runs().values()])]
        return _connected(self._render("list.html", watched=watched, nonce=secrets.token_urlsafe(16)))

    def run_page(self, name: str) -> str | None:
        """The report of a run so far, below its status; None if there is no such run."""
        live = self.live_part(name)
        if live is None:
            return None
        drawn, script = self.drawn.get(name, DrawnReport()), self._render("watch.js")
        page = drawn.page or self._render("empty.html", problem=drawn.problem)
        before, _, _ = page.replace("<main>", f"{live}\n<main>", 1).rpartition("</body>")  # names in a page are escaped
        return _connected(f"{before}<script>{script}</script>\n</body>\n</html>\n")

    def live_part(self, name: str) -> str | None:
        """The part of its page that changes often; None if there is no such run. The report is drawn again if it is due."""
        run = self.runs().get(name)
        if run is None:
            return None
        progress = read_progress(self.store, name)
        return self._render("status.html", run=run, now=progress, drawn=self._draw_if_due(run, progress))

    def _render(self, template: str, **values: object) -> str:
        return self.templates.get_template(template).render(root=self.root, **values)

    def _draw_if_due(self, run: StoredRun, progress: RunProgress | None) -> DrawnReport:
        shows = (progress.done, progress.state not in ("running", "paused")) if progress else ("no progress",)
        with self.lock:
            drawn = self.drawn.setdefault(run.name, DrawnReport())
            is_early = time.monotonic() < drawn.due and not shows[-1]
            if not drawn.is_busy and drawn.shows != shows and not is_early:
                others = [key for key, other in self.drawn.items() if key != run.name and not other.is_busy]
                for key in others[: max(0, len(self.drawn) - MAX_DRAWN)]:
                    del self.drawn[key]
                drawn.is_busy, drawn.shows = True, shows
                threading.Thread(target=self._draw, args=(run, progress, drawn), daemon=True).start()
        return drawn

    def _draw(self, run: StoredRun, progress: RunProgress | None, drawn: DrawnReport) -> None:
        started = time.monotonic()
        try:
            with self.drawing:
                result = partial_result(parse_spec(run.spec, f"run {run.name}"), self.store)
                drawn.page, drawn.problem = render_page([build_report(result)], run.title), ""
        except SelfloopError as problem:
            folder = progress.folder if progress else os.getcwd()
            elsewhere = f" It ran in {folder}: for relative paths, start selfloop watch there."
            drawn.problem = f"{problem}{elsewhere * (folder != os.getcwd())}"
        except Exception as problem:  # of any kind: the page shows it, and the thread's hook prints it
            drawn.problem = f"{type(problem).__name__}: {first_line(problem)}"
            raise
        finally:
            drawn.due = time.monotonic() + min(IDLE_SHARE * (time.monotonic() - started), MAX_IDLE)
            drawn.version, drawn.is_busy = drawn.version + 1, False


def distinct_titles(runs: Sequence[StoredRun]) -> Iterator[StoredRun]:
    """The runs; a title that several have is followed by the lines of the run's spec that not all of these have."""
    lines = {
        run.name: re.findall(r"(?m)^ *([^\[\]\s].*[^\[\n,]),?$", run.spec) for run in runs
    }  # without headings and brackets
    for run in runs:
        shared = set.intersection(*(set(lines[each.name]) for each in runs if each.title == run.title))
        own = [line for line in lines[run.name] if line not in shared]
        words = ", ".join([*own[:MAX_SETTINGS], *["..."] * (len(own) > MAX_SETTINGS)])
        yield replace(run, title="; ".join(filter(None, (run.title, words))))


def _connected(page: str) -> str:
    """A page that may fetch from its server, which a report alone may not."""
    return page.replace("default-src 'none';", "default-src 'none'; connect-src 'self';", 1)


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
