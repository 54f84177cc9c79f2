"""The folder of real data beside the repository, and a mark that skips a test without it."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def needs(name: str) -> pytest.MarkDecorator:
    """Skip a test if this file or folder of the real data does not exist."""
    return pytest.mark.skipif(not (DATA / name).exists(), reason=f"{name} does not exist beside the repository")
