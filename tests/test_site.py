"""The documentation site as it was built, opened from its folder without a network: `SITE=site pytest tests/test_site.py`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

SITE = Path(os.environ.get("SITE", "no-site")).resolve()
pytestmark = pytest.mark.skipif(not SITE.is_dir(), reason="needs a built site, named by the variable SITE")
PAGES = (
    "index",
    "how-to/policies",
    "reference/families",
    "reference/python",
    "gallery",
    "tutorials/first_loop",
    "theory/means",
)
NETWORK = re.compile(r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//|<link[^>]+href=\"?(?:https?:)?//")


def test_no_page_names_a_script_a_style_or_a_picture_elsewhere_and_all_are_small() -> None:
    pages = {path.relative_to(SITE).as_posix(): path for path in SITE.rglob("*.html")}
    assert len(pages) > 60
    assert [name for name, path in pages.items() if NETWORK.search(path.read_text(encoding="utf-8"))] == []
    large = {name: path.stat().st_size for name, path in pages.items() if path.stat().st_size > 500_000}
    assert {name.split("/")[0] for name in large} <= {"gallery"}
    assert max(large.values(), default=0) < 5_000_000


@pytest.fixture(params=[(390, "light"), (1280, "dark")], ids=["phone", "dark desktop"])
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    """An empty page; fails for any message in the console and any request to a network."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs the system's chromium")
    width, scheme = request.param
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, troubles = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme), list[str]()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request", lambda sent: troubles.append(sent.url) if not sent.url.startswith(("file:", "data:", "about:")) else None
        )
        yield page
        browser.close()
    assert troubles == []


def test_pages_fit_and_are_accessible(page: Page) -> None:
    findings = []
    for name in PAGES:
        page.goto(f"{SITE.as_uri()}/{name}.html")
        page.wait_for_timeout(200)  # tables are wrapped by a script
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
        violations = Axe().run(page, options={"preload": False}).response["violations"]
        findings += [
            f"{name}: {v['id']}: {v['nodes'][0]['html'][:100]}" for v in violations if v["impact"] in ("serious", "critical")
        ]
    assert findings == []


def test_the_search_works_without_a_server(page: Page) -> None:
    page.goto(f"{SITE.as_uri()}/index.html")
    page.locator("label[for=__search]:visible, .md-search__input:visible").first.click()
    page.locator(".md-search__input").press_sequentially("extinction order")
    link = page.locator(".md-search-result__link[href*='how-to/results.html']").first
    link.wait_for()
    link.click()
    assert "how-to/results.html" in page.url
