"""The same examples on every run, so that no test flickers."""

from __future__ import annotations

import signal

from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it, and so would their children
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")
