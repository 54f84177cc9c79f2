"""The server of `watch` answers its own pages on this machine alone, and shows names of any kind as text."""

from __future__ import annotations

import html
import http.client
import json
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

import tiny_components
from selfloop.errors import SelfloopError
from selfloop.result import run
from selfloop.spec.parse import parse_spec
from selfloop.store import live
from selfloop.store.live import RunProgress
from selfloop.store.runs import note_run
from selfloop.watch.server import MAX_IDLE, WatchServer

HOSTILE = '</title><script>alert("x")</script>'


@contextmanager
def serve(store: Path, port: int = 0) -> Iterator[WatchServer]:
    with WatchServer(store, port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchServer]:
    run(parse_spec(tiny_components.KDE, "kde"), tmp_path)
    with serve(tmp_path) as server:
        yield server


def ask(server: WatchServer, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={"Host": f"127.0.0.1:{server.server_port}", **headers})
    return connection.getresponse()


def status(server: WatchServer, path: str, method: str = "GET", **headers: str) -> int:
    return ask(server, path, method, **headers).status


def only_run(server: WatchServer) -> str:
    (name,) = server.pages.runs()
    return name


def drawn_page(server: WatchServer, name: str) -> str:
    """The page of a run once its report is drawn."""
    assert status(server, f"/{server.token}/runs/{name}") == 200
    while server.pages.drawn[name].is_busy:
        time.sleep(0.05)
    return ask(server, f"/{server.token}/runs/{name}").read().decode()


def test_only_the_token_opens_a_page(server: WatchServer) -> None:
    assert status(server, f"/{server.token}/") == 200
    wrong = ["/", "//", "/favicon.ico", f"/{server.token}", f"/{server.token[:-1]}/", f"/{server.token}x/", "/%C3%A9/", "/x/"]
    assert [status(server, path) for path in wrong] == [404] * len(wrong)
    assert server.token not in ask(server, "/").read().decode()
    assert len(server.token) >= 32


def test_no_other_host_is_answered(server: WatchServer) -> None:
    port, path = server.server_port, f"/{server.token}/"
    assert server.server_address[0] == "127.0.0.1"
    assert status(server, path, Host=f"localhost:{port}") == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", f"[::1]:{port}", ""):
        assert status(server, path, Host=host) == 404


@pytest.mark.parametrize(
    "path",
    ["../", "%2e%2e/", "runs/", "runs/..", "runs/%2e%2e%2fFORMAT", "runs/000000000000", "runs/../FORMAT", "FORMAT", "?x=1",
     "runs/{name}/", "runs/{name}/other", "runs/{name}/status?x", "runs/{name}.json", "runs/{name}/../../FORMAT",
     "runs/{name}%0a"],
)  # fmt: skip
def test_no_other_address_exists(server: WatchServer, path: str) -> None:
    assert status(server, f"/{server.token}/{path.format(name=only_run(server))}") == 404


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"])
def test_no_other_method_is_answered(server: WatchServer, method: str) -> None:
    assert status(server, f"/{server.token}/", method) == 501


def test_actions_are_posts_from_its_own_pages(server: WatchServer) -> None:
    name, own = only_run(server), f"http://127.0.0.1:{server.server_port}"
    going = live.progress_file(server.pages.store, name)
    going.write_text(json.dumps(json.loads(going.read_text()) | {"state": "running", "pid": os.getpid()}))
    path, file = f"/{server.token}/runs/{name}/pause", live.control_file(server.pages.store, name)
    assert status(server, path) == 404  # by GET
    assert status(server, path, "POST") == 403
    assert status(server, path, "POST", Origin="null") == 403
    assert status(server, path, "POST", Origin="http://evil.example") == 403
    assert status(server, path.replace(server.token, "x"), "POST", Origin=own) == 404
    assert status(server, path.replace("pause", "delete"), "POST", Origin=own) == 404
    assert status(server, path.replace(name, "0" * 12), "POST", Origin=own) == 404
    assert not file.exists()
    answer = ask(server, path, "POST", Origin=own, Referer="http://evil.example/")
    assert (answer.status, answer.headers["Location"]) == (303, server.url)
    assert file.read_text() == "pause"
    assert status(server, path.replace("pause", "continue"), "POST", Origin=own) == 303
    assert not file.exists()


def test_a_run_that_is_over_obeys_nothing(server: WatchServer) -> None:
    name, own = only_run(server), f"http://127.0.0.1:{server.server_port}"
    for action in ("pause", "cancel"):
        assert status(server, f"/{server.token}/runs/{name}/{action}", "POST", Origin=own) == 303
    assert not live.control_file(server.pages.store, name).exists()


def test_at_the_port_of_http_browsers_name_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(parse_spec(tiny_components.KDE, "kde"), tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("selfloop.watch.server.HTTP_PORT", port)  # as 80 needs rights
    with serve(tmp_path, port) as server:
        assert status(server, f"/{server.token}/", Host="localhost") == 200
        assert status(server, f"/{server.token}/", Host="evil.example") == 404


def test_answers_forbid_frames_caches_and_foreign_scripts(server: WatchServer) -> None:
    answer = ask(server, f"/{server.token}/")
    page = html.unescape(answer.read().decode())
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert "default-src 'none'; connect-src 'self'" in policy[1]
    assert re.search(r"script-src 'nonce-[\w-]{16,}'", policy[1])
    assert "unsafe" not in policy[1].replace("style-src 'unsafe-inline'", "")
    assert "Python" not in str(answer.headers)


def test_names_of_runs_are_shown_as_text(tmp_path: Path) -> None:
    run(parse_spec(tiny_components.KDE, "kde"), tmp_path)
    with note_run(tmp_path, HOSTILE, tiny_components.KDE):
        pass
    losses = {HOSTILE: (1, 2.0, 3, 1)}
    body = asdict(RunProgress(os.getpid(), platform.node(), 2, doing=HOSTILE, problem=HOSTILE, risk=HOSTILE, losses=losses))
    with serve(tmp_path) as server:
        name = next(name for name, each in server.pages.runs().items() if each.title == HOSTILE)
        live.progress_file(tmp_path, name).write_text(json.dumps(body))
        pages = [ask(server, f"/{server.token}/").read().decode(), drawn_page(server, name)]
    for page in pages:
        assert page.count("&lt;script&gt;alert(") > 4, "title, present step, problem, metric and policy"
        assert "</b> (t = 1, 3 seeds) 1 ended" in page
        assert "<script>alert(" not in page
    assert "Not finished" not in pages[1]


def test_runs_of_one_title_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    specs = [
        "n = 20\nseeds = 2\n",
        "n = 30\nseeds = 2\n",
        'n = 30\nseeds = 2\nmetrics = [\n    "nll",\n]\n\n[sweep]\n"b" = [1, 2]\n',
    ]
    for spec in specs:
        with note_run(tmp_path, "kde on moons", spec):
            pass
    with note_run(tmp_path, "another", specs[0] + "holdout = 3\n"):
        pass
    with serve(tmp_path) as server:
        page = ask(server, f"/{server.token}/").read().decode()
    titles = [html.unescape(title) for title in re.findall(r'<a id="run-[^>]*>([^<]*)<', page)]
    assert sorted(titles) == [
        "another", "kde on moons; n = 20", "kde on moons; n = 30", 'kde on moons; n = 30, "nll", "b" = [1, 2]',
    ]  # fmt: skip


@pytest.mark.parametrize("body", ["[]", "{", '{"pid": "1"}', '{"pid": 1, "host": 2, "total": 3}', "[" * 100_000])
def test_a_damaged_progress_file_counts_as_none(server: WatchServer, body: str) -> None:
    name = only_run(server)
    live.progress_file(server.pages.store, name).write_text(body)
    assert "not running" in ask(server, f"/{server.token}/").read().decode()


def test_the_page_of_a_run_is_its_report_below_its_status(server: WatchServer) -> None:
    page = drawn_page(server, only_run(server))
    assert page.index('id="live"') < page.index("<main>")
    assert ">finished</strong>" in page
    assert page.count("connect-src 'self'") == 1
    part = ask(server, f"/{server.token}/runs/{only_run(server)}/status").read().decode()
    assert part in page
    assert 'data-version="1"' in part


def test_a_report_is_drawn_again_when_the_run_has_more_and_the_processor_had_time(server: WatchServer) -> None:
    name, pages = only_run(server), server.pages
    drawn_page(server, name)
    drawn, file = pages.drawn[name], live.progress_file(pages.store, name)
    body = json.loads(file.read_text()) | {"state": "running", "pid": os.getpid(), "done": 1}
    file.write_text(json.dumps(body))
    drawn_page(server, name)
    assert drawn.version == 1, "it was drawn a moment ago"
    drawn.due -= MAX_IDLE
    drawn_page(server, name)
    drawn_page(server, name)
    assert drawn.version == 2
    file.write_text(json.dumps(body | {"state": "finished"}))
    drawn_page(server, name)
    assert drawn.version == 3


def test_a_spec_that_cannot_be_opened_here_is_explained(tmp_path: Path) -> None:
    run(tiny_components.tiny_spec(generations=1), tmp_path)  # its components are in no table
    with serve(tmp_path) as server:
        page = drawn_page(server, only_run(server))
        assert "family.name: unknown name &#39;mean&#39;" in page, server.pages.drawn[only_run(server)].problem


def test_relative_paths_of_another_folder_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    Path("rows.csv").write_text("x\n" + "\n".join(map(str, range(40))))
    spec = (
        "n = 10\nholdout = 5\ngenerations = 1\nseeds = 1\n[source]\nname = 'table'\npath = 'rows.csv'\n[family]\nname = 'kde'"
    )
    run(parse_spec(spec, "spec"), tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    with serve(tmp_path / "store") as server:
        page = drawn_page(server, only_run(server))
    assert f"It ran in {tmp_path / 'there'}: for relative paths, start selfloop watch there." in page


def test_a_store_that_cannot_be_written_can_be_watched(tmp_path: Path) -> None:
    run(parse_spec(tiny_components.KDE, "kde"), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with serve(tmp_path) as server:
        drawn_page(server, only_run(server))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_port_that_is_taken_is_refused(server: WatchServer) -> None:
    with pytest.raises(SelfloopError, match=rf"--port {server.server_port}: cannot be used .* Choose another one"):
        WatchServer(server.pages.store, server.server_port)
