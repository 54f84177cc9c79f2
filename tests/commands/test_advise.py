"""`selfloop advise`: the first line, the table, JSON, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_components
from selfloop import advise
from selfloop.commands.cli_advise import format_multiplier, format_share, parse_bound
from selfloop.errors import SpecError

REQUEST = ("advise", "--rows", "1000", "--generations", "20", "--bound")


def test_the_first_line_is_the_answer_and_the_table_ranks_the_policies() -> None:
    done = tiny_components.selfloop(*REQUEST, "1.1")
    assert done.code == 0
    first, header, *rows = done.out.splitlines()
    assert first.startswith("KEEP: at least 88.9 % real rows in every training set, under augment: error x1.1 at generation 20")
    assert "22,375 rows trained, 2,375 sampled, 1,000 real." in first
    assert header.split()[:4] == ["policy", "answer", "real", "rows"]
    policies = [policy.policy for policy in advise(rows=1000, generations=20, bound=1.1).policies]
    assert [row.split()[0] for row in rows[: len(policies)]] == policies


def test_json_has_the_request_and_every_policy(tmp_path: Path) -> None:
    done = tiny_components.selfloop(*REQUEST, "10%", "--json", "-")
    answer = json.loads(done.out)
    assert answer == json.loads(json.dumps(advise(rows=1000, generations=20, bound=1.1).to_json()))
    assert answer["policies"][0]["table"] == {"name": "augment", "ratio": 0.125}
    file = tmp_path / "advice.json"
    shown = tiny_components.selfloop(*REQUEST, "10%", "--json", file)
    assert json.loads(file.read_text()) == answer
    assert shown.out.startswith("KEEP")


def test_a_detector_and_rare_rows_are_part_of_the_sentence() -> None:
    done = tiny_components.selfloop(*REQUEST, "2", "--vary", "mix", "--removes-synthetic", "0.9", "--removes-real", "0.05")
    assert "After the detector 92.4 % of the rows are real; without it 63.4 % are needed." in done.out
    rare = tiny_components.selfloop(*REQUEST, "1.1", "--protect", "class", "--class-share", "0.01", "--vary", "mix")
    assert "chance of the class" in rare.out
    none = tiny_components.selfloop(*REQUEST, "1.1", "--vary", "mix", "--removes-real", "0.5")
    assert none.out.startswith("NONE: no policy keeps the error within the bound; the nearest is mix (x2 at generation 20")
    assert none.code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("1",), "--bound: got '1'; expected a multiplier above 1, such as 1.1, or 10%. Raise it."),
        (("much",), "--bound: got 'much'"),
        (("-5%",), "--bound: got '-5%'"),
        (("nan",), "--bound: got 'nan'"),
        (("1.1", "--fresh-rows", "-1"), "--fresh-rows: got -1"),
        (
            ("1.1", "--protect", "class"),
            "--class-share: missing; protect = 'class' needs it. Set the true share of the class, above 0 and below 1.",
        ),
        (("1.1", "--vary", "replace.n"), "--vary: unknown setting 'replace.n'"),
        (("1.1", "--json", "missing/advice.json"), "missing"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(options: tuple[str, ...], message: str) -> None:
    done = tiny_components.selfloop(*REQUEST, *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not done.out


SPEC = 'n = 40\ngenerations = 4\nholdout = 0\nsource.name = "gaussian"\nfamily.name = "gaussian"\nmetrics = ["mean_error"]\n'


def test_with_a_spec_the_share_is_measured_beside_that_of_theory(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    options = ("--bound", "50%", "--seeds", "300", "--store", tmp_path / "store", "--workers", "1", "-q", "--json", "-")
    done = tiny_components.selfloop("advise", tmp_path / "spec.toml", "--between", "0.2..1", *options)
    keep = json.loads(done.out)
    assert keep["setting"] == "mix.real_share"
    assert 0.2 <= keep["low"] <= keep["estimate"] <= keep["high"] <= 1
    assert keep["theory"] == pytest.approx(32 / 40)


def test_options_of_the_other_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    for options, message in (
        ((tmp_path / "spec.toml", "--rows", "10"), "are those of the spec"),
        ((tmp_path / "spec.toml", "--between", "0-1"), "--between: got '0-1'; expected two values, such as 0..1"),
        (("--rows", "10"), "--generations: missing"),
        ((*REQUEST[1:], "1.1", "--between", "0..1"), "--between and --set change runs of a spec"),
    ):
        done = tiny_components.selfloop("advise", *options)
        assert done.code == 2
        assert message in done.err


def test_shares_are_rounded_up_and_bounds_are_multipliers() -> None:
    assert format_share(0.9511) == "95.2 %"
    assert format_share(0.952) == "95.2 %"
    assert parse_bound(" 5 %") == pytest.approx(1.05)
    with pytest.raises(SpecError):
        parse_bound("inf")


def test_a_multiplier_has_the_digits_that_show_its_side_of_the_bound() -> None:
    assert format_multiplier(1.0526, 1.05) == "1.053"  # 1.05 would not be beyond the bound
    assert format_multiplier(1.04999, 1.05) == "1.05"
    assert format_multiplier(2.786, 1.1) == "2.79"


def test_no_heavy_library_is_loaded() -> None:
    code = "import sys, selfloop\nselfloop.advise(rows=100, generations=5, bound=1.1)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=tiny_components.environment())
    assert not {"torch", "pandas", "sklearn", "scipy.stats", "matplotlib"} & set(done.stdout.split())
    assert "numpy" in done.stdout.split()
