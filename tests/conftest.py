"""The same examples on every run, so that no test flickers."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it, and so would their children
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="session")
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFLOOP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield
