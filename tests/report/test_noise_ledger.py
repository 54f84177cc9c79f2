"""The figure of the noise ledger has a layer per generation, and the report of a scenario with moments shows it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from selfloop.report.build import point_ledgers
from selfloop.report.category_shares import ledger_figure
from selfloop.report.page import render_page
from selfloop.report.theme import policy_styles
from selfloop.report.values import CurveData, Panel, Report
from selfloop.spec.parse import spec_from_table
from selfloop.theory.moments import MomentEstimator, noise_ledger

KNOWN = MomentEstimator(known_variances=(1.0,))


@pytest.mark.parametrize(("policy", "added"), [("replace", [1, 1, 1]), ("accumulate", [1, 1 / 4, 1 / 9])])
def test_layers_are_what_each_generation_adds(policy, added):
    figure = ledger_figure({policy: noise_ledger(policy, 10, 3, KNOWN)}, policy_styles([policy]))
    bar = [row for row in figure.spec["datasets"]["ledgers"] if row["model"] == 3]
    assert [row["added"] for row in bar] == pytest.approx(added)
    assert [row["low"] for row in bar] == pytest.approx([0, *[row["high"] for row in bar][:-1]])
    assert [row["noise of"] for row in bar] == ["generation 1", "generation 2", "generation 3"]
    assert policy in figure.alt
    assert "</svg>" in figure.svg()


def test_many_generations_share_layers_that_still_add_up():
    ledger = noise_ledger("accumulate_subsample", 100, 60)
    rows = ledger_figure({"a": ledger}, policy_styles(["a"])).spec["datasets"]["ledgers"]
    last = [row for row in rows if row["model"] == 60]
    assert len(last) == 20
    assert last[-1]["high"] == pytest.approx(100 * ledger.squared_error[-1].sum())


@pytest.mark.parametrize(("family", "expected"), [("gaussian", {"replace", "accumulate"}), ("kde", set())])
def test_policies_have_a_ledger_where_their_laws_follow_from_moments(family, expected):
    spec = spec_from_table(
        {
            "source": {"name": "gaussian", "dim": 1},
            "family": {"name": family},
            "policies": ["replace", "accumulate"],
            "n": 20,
            "generations": 3,
        }
    )
    assert set(point_ledgers(next(iter(spec.points())))) == expected


def test_the_page_shows_the_ledger():
    panel = Panel(
        metric="mean_error", title="M", curves=[CurveData(policy="replace", values=np.array([[1.0, 2.0], [1.1, 2.0]]))]
    )
    ledgers = {"replace": noise_ledger("replace", 10, 2, KNOWN)}
    with_ledger, without = (
        render_page(
            [
                Report(
                    title="r", spec_text="", versions={}, generated=datetime(2026, 1, 1, tzinfo=UTC), panels=[panel], ledgers=x
                )
            ]
        )
        for x in (ledgers, {})
    )
    assert with_ledger.count("Where the error of the mean comes from") > without.count("Where the error of the mean comes from")
    assert "A layer is what the noise of one generation" in with_ledger
