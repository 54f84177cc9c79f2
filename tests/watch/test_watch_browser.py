"""`selfloop watch` in a browser: measurements arrive, the page stays as its reader left it, and buttons act on the run."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

import tiny_components
from selfloop.store.live import RunProgress, progress_file
from selfloop.store.runs import note_run
from selfloop.watch.server import WatchServer

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium")]
SPEC = tiny_components.vae_spec(30, 200, 5)
COMMAND = """
import signal, time
from selfloop.commands.cli import main
from selfloop.families.vae.family import Vae
fit = Vae.fit
def fit_slowly(*arguments):
    time.sleep(0.5)  # leaves the processor to the browser, and the run takes longer than the test
    return fit(*arguments)
Vae.fit = fit_slowly
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
ANCHOR = """(() => {
  const shown = [...document.querySelectorAll("main [id]")].filter((each) => each.getClientRects().length);
  const element = shown.find((each) => each.getBoundingClientRect().top > 0);
  return [element.id, element.getBoundingClientRect().top];
})()"""
ARRIVAL = 120_000  # milliseconds until a report has been drawn, on a slow machine


WIDE, PHONE = pytest.param((1280, "light"), id="wide"), pytest.param((390, "dark"), id="phone")


@pytest.fixture(params=[WIDE, PHONE])
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    width, scheme = request.param
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, problems = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme), list[str]()
        page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        yield page
        assert problems == []
        browser.close()


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")]


def check_looks(page: Page) -> None:
    """Nothing is wider than the screen or hard to read, also in the dark on a phone."""
    size = page.viewport_size
    for width, scheme in ((390, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert serious(page) == []
    assert page.viewport_size == size


def generations_of(text: str) -> int:
    match = re.search(r"(\d+) of 800 generations", text)
    assert match, text
    return int(match[1])


def test_a_button_keeps_its_focus_and_its_click_while_the_page_updates(tmp_path: Path, page: Page) -> None:
    with note_run(tmp_path, "kde on moons", "n = 20\n"):
        pass
    (run,) = tmp_path.glob("runs/*.json")

    def write(done: int) -> None:
        progress = RunProgress(os.getpid(), platform.node(), 800, done, elapsed=done * 10.0, doing="fit")
        progress_file(tmp_path, run.stem).write_text(json.dumps(asdict(progress)))

    write(2)
    with WatchServer(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.url)
        pause = page.get_by_role("button", name=re.compile("^pause"))
        pause.focus()
        pause.hover()
        page.mouse.down()
        element = pause.element_handle()
        assert element
        write(3)
        expect(page.locator("article")).to_contain_text("3 of 800 generations")
        assert element.evaluate("button => button.isConnected && button === document.activeElement")
        page.mouse.up()
        expect(page.locator(".state")).to_have_text("paused")
        server.shutdown()


@pytest.mark.parametrize("page", [WIDE], indirect=True)
def test_a_reader_sees_measurements_arrive_and_cancels_the_run(tmp_path: Path, page: Page) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    store = tmp_path / "store"
    command = [sys.executable, "-c", COMMAND, "run", "spec.toml", "--store", "store", "--threads", "1", "--workers", "1", "-q"]
    child = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=tiny_components.environment()
    )
    try:
        while child.poll() is None and not list(store.glob("runs/*.progress")):
            time.sleep(0.05)
        with WatchServer(store) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page.goto(server.url)
            expect(page.locator(".state")).to_have_text("running")
            check_looks(page)
            page.locator("article h2 a").click()
            expect(page.locator("main article")).to_be_visible(timeout=ARRIVAL)
            check_looks(page)

            before = generations_of(page.locator(".missing").first.inner_text())
            page.evaluate("document.querySelector('main details').open = true")
            page.evaluate("scrollTo({ top: 0.6 * document.body.scrollHeight, behavior: 'instant' })")
            place, top = page.evaluate(ANCHOR)
            expect(page.locator(".missing").first).not_to_contain_text(f" {before} of 800", timeout=ARRIVAL)  # without a click
            assert generations_of(page.locator(".missing").first.inner_text()) > before
            assert page.evaluate("document.querySelector('main details').open")
            now = page.evaluate(f"document.getElementById('{place}').getBoundingClientRect().top")
            assert abs(now - top) < 100, (place, top, now)

            page.get_by_role("button", name=re.compile("^pause")).click()
            expect(page.locator(".state")).to_have_text("paused")
            page.get_by_role("button", name=re.compile("^continue")).click()
            expect(page.locator(".state")).to_have_text("running")
            page.get_by_role("button", name=re.compile("^cancel")).click()
            expect(page.locator(".state")).to_have_text("interrupted", timeout=20_000)
            expect(page.get_by_role("button", name=re.compile("^cancel"))).to_have_count(0)
            server.shutdown()
        assert child.wait(20) == 130
        assert child.stderr
        assert b"run the same command to continue" in child.stderr.read()
    finally:
        child.kill()
