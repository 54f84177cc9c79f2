"""The scripts of `docs` and `benchmarks` that write numbers into pages."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from selfloop.report.theme import format_number
from selfloop.result import run
from selfloop.spec.parse import read_spec

ROOT = Path(__file__).parents[1]
SPEC = """
source = "gaussian"
family = "gaussian"
n = 20
generations = 3
seeds = 4
policies = ["replace"]
metrics = ["mean_error"]
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- tiny.toml -->\n\nold\n\n<!-- end -->\nafter\n<!-- other -->\nstays\n<!-- end -->\n")
    (tmp_path / "tiny.toml").write_text(SPEC)
    return page


def test_a_table_of_the_results_has_the_means_of_the_run_and_nothing_else_changes(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(ROOT / "docs" / "write_results.py"))
    script["main"].__globals__["PAGE"] = page
    script["main"]("store", "tiny.toml")
    text = page.read_text()
    curve = run(read_spec("tiny.toml"), "store").curves()["replace"]["mean_error"]
    means = " | ".join(format_number(float(mean)) for mean in curve.mean(axis=0))
    assert f"| replace | {means} |" in text
    assert "old" not in text
    assert "- 4 seeds, 0 minutes of one core together: `selfloop run tiny.toml`." in text
    assert text.startswith("before\n<!-- tiny.toml -->\n")
    assert text.endswith("<!-- end -->\nafter\n<!-- other -->\nstays\n<!-- end -->\n")
    script["main"]("store", "tiny.toml")
    assert page.read_text() == text


def test_a_preset_without_a_place_on_the_page_is_refused(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page.write_text("nothing\n")
    script = runpy.run_path(str(ROOT / "docs" / "write_results.py"))
    script["main"].__globals__["PAGE"] = page
    with pytest.raises(SystemExit, match=r"has no <!-- tiny\.toml -->"):
        script["main"]("store", "tiny.toml")
    assert page.read_text() == "nothing\n"


def test_bias_and_noise_are_separated_by_ten_times_as_many_rows() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "modalities.py"))
    first, bias, noise = np.array([10.0, 11, 12]), np.array([2.0, 1, 3]), np.array([1.0, 4, 2])
    split = script["split_rise"](first, first + bias + noise, first + bias + noise / 10)
    assert np.allclose(split, [noise, bias])
    assert not np.allclose(script["split_rise"](first, first + bias + noise, first + bias + noise / 5)[0], noise)
    share = script["share_interval"](bias, bias + noise)
    assert share.estimate == pytest.approx(6 / 13)
    assert share.low < 6 / 13 < share.high
