"""Mode and attribute loss: bars that add up, curves beside real shares, and one figure for all classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from example_corpus import corpus_spec
from example_reports import attribute_shares, mode_shares

import selfloop
from selfloop.component import Context, Metric
from selfloop.report.build import build_report
from selfloop.report.category_shares import MAX_ATTRIBUTES, MAX_BARS, MIN_LABELED_SHARE, select_attributes, shares_figure
from selfloop.report.theme import policy_styles
from selfloop.report.values import CategoryShares
from selfloop.snapshots import Snapshot
from selfloop.spec.parse import read_spec
from selfloop.spec.write import spec_text

STYLES = policy_styles(["replace", "accumulate"])


def bars(shares: CategoryShares) -> dict[tuple[str, str], list[dict[str, object]]]:
    """Records of each bar, by policy and generation."""
    records: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in shares_figure(shares, STYLES).spec["datasets"]["classes"]:
        records.setdefault((row["policy"], row["bar"]), []).append(row)
    return records


def test_the_shares_of_a_bar_add_up_and_are_those_of_the_first_seed() -> None:
    shares = mode_shares()
    stacks = bars(shares)
    assert list(stacks) == [(p, bar) for p in ("replace", "accumulate") for bar in ("real", "1", "2", "3", "4", "5")]
    for rows in stacks.values():
        assert rows[0]["low"] == 0
        assert rows[-1]["high"] == pytest.approx(1)
        assert all(a["high"] == b["low"] for a, b in itertools.pairwise(rows))
    assert [row["share"] for row in stacks["replace", "3"]] == pytest.approx(shares.samples["replace"][0, 2], rel=1e-4)
    assert [row["share"] for row in stacks["accumulate", "real"]] == pytest.approx(shares.real[0], rel=1e-4)  # type: ignore[index]


def test_the_last_mode_fills_the_bar_and_the_alternative_text_has_the_mean_over_seeds() -> None:
    shares = mode_shares()  # each seed keeps another mode: their mean would show a third of each
    (row,) = bars(shares)["replace", "5"]
    assert (row["class"], row["share"]) == ("0", 1)
    assert "replace 12 % at generation 1, 100 % at 5" in shares_figure(shares, STYLES).alt


def test_adjacent_modes_differ_in_tone_and_large_modes_carry_their_number() -> None:
    shares = mode_shares()
    rows = bars(shares)["replace", "1"]
    assert all(a["tone"] != b["tone"] for a, b in itertools.pairwise(rows))
    svg = shares_figure(shares, STYLES).svg()
    first = shares.samples["replace"][0]
    assert svg.count(">3</text>") >= int((first[:, 3] >= MIN_LABELED_SHARE).sum())


def test_many_generations_become_twelve_bars() -> None:
    figure = shares_figure(mode_shares(generations=40), STYLES)
    drawn = {row["bar"] for row in figure.spec["datasets"]["classes"]}
    assert len(drawn) == MAX_BARS + 1
    assert {"real", "1", "40"} <= drawn
    assert "12 of 40 generations" in figure.caption


def test_an_ended_chain_has_no_bars_and_no_curve_from_there_on() -> None:
    modes, attributes = mode_shares(), attribute_shares()
    for shares in (modes, attributes):
        shares.samples["replace"][0, 3:] = np.nan
    assert ("replace", "4") not in bars(modes)
    assert "NaN" not in shares_figure(modes, STYLES).svg()
    rows = shares_figure(attributes, STYLES).spec["datasets"]["attributes"]
    assert {row["generation"] for row in rows if row["policy"] == "replace"} == {1, 2, 3}
    assert "replace 48 % to none" in shares_figure(attributes, STYLES).alt


def test_attributes_have_their_interval_and_the_real_share() -> None:
    shares = attribute_shares()
    figure = shares_figure(shares, STYLES)
    rows = [row for row in figure.spec["datasets"]["attributes"] if row["name"] == "Wearing Hat"]
    assert len(rows) == 2 * 5
    assert all(row["low"] < row["mean"] < row["high"] for row in rows)
    assert all(0 <= row["bottom"] < row["mean"] < row["top"] <= 1 for row in rows)
    assert rows[0]["real"] == pytest.approx(shares.real[:, 4].mean(), rel=1e-5)  # type: ignore[index]
    svg = figure.svg()
    for name in ("Smiling", "Wearing Hat", "share of samples"):
        assert f">{name}<" in svg
    assert "dashed: real rows" in figure.caption


def test_a_figure_without_real_shares_does_not_mention_them() -> None:
    modes, attributes = (shares_figure(replace(shares, real=None), STYLES) for shares in (mode_shares(), attribute_shares()))
    for figure in (modes, attributes):
        assert "real rows" not in figure.caption.replace("cluster of real rows", "")
    assert all(row["bar"] != "real" for row in modes.spec["datasets"]["classes"])
    assert all(row["real"] is None for row in attributes.spec["datasets"]["attributes"])


def test_the_attributes_with_the_largest_changes_are_shown_in_their_order() -> None:
    few = attribute_shares()
    still = np.full((3, 5, 20), 0.3)
    samples = {policy: np.concatenate([still, values], axis=-1) for policy, values in few.samples.items()}
    real = np.concatenate([still[:, 0], few.real], axis=-1)  # type: ignore[list-item]
    many = CategoryShares(kind="attribute", names=[*(f"still_{i}" for i in range(20)), *few.names], samples=samples, real=real)
    names = select_attributes(many)
    assert len(names) == MAX_ATTRIBUTES
    assert names[-5:] == list(few.names)
    assert "13 attributes with smaller changes are not shown" in shares_figure(many, STYLES).caption


@dataclass(frozen=True, kw_only=True)
class ThreeModes(Metric):
    """Shares of three modes, of which the first grows, and of an attribute."""

    name: ClassVar[str] = "modes"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        first = snap.generation / 10
        shares = {"class_share_0": first, "class_share_1": 1 - first, "class_share_2": 0.0, "attribute_share_Hat": first}
        return {"modes": 3.0, "mode_entropy": 1.0, **shares, **{f"class_share_{i}_real": (0.2, 0.3, 0.5)[i] for i in range(3)}}


def test_measured_shares_are_one_figure_instead_of_a_curve_each(tmp_path: Path) -> None:
    report = build_report(selfloop.run(corpus_spec(metrics=(ThreeModes(),)), tmp_path))
    assert [panel.metric for panel in report.panels] == ["modes", "mode_entropy"]
    modes, attributes = report.shares
    assert (modes.kind, list(modes.names)) == ("class", ["0", "1", "2"])
    assert list(modes.samples) == ["replace", "accumulate"]
    np.testing.assert_allclose(modes.samples["replace"][:, :, 0], [[0.1, 0.2, 0.3]] * 2)
    np.testing.assert_allclose(modes.real, [[0.2, 0.3, 0.5]] * 2)
    assert (list(attributes.names), attributes.real) == (["Hat"], None)


@dataclass(frozen=True, kw_only=True)
class SomeModes(Metric):
    """Shares of a classifier that was trained on one seed's real rows, which lack class 2 or class 10."""

    name: ClassVar[str] = "modes"
    version: ClassVar[int] = 2  # ThreeModes has the name too

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        lacks = 10 if ctx.stream.path[:2] == ("seed", 0) else 2
        return {"modes": 2.0, **{f"class_share_{name}": 0.5 for name in (2, 10, 1) if name != lacks}}


def test_a_class_that_a_seed_lacks_has_share_0_there(tmp_path: Path) -> None:
    (shares,) = build_report(selfloop.run(corpus_spec(metrics=(SomeModes(),)), tmp_path)).shares
    assert list(shares.names) == ["1", "2", "10"]
    np.testing.assert_allclose(shares.samples["replace"][:, 0], [[0.5, 0.5, 0], [0.5, 0, 0.5]])
    assert [row["class"] for row in bars(shares)["replace", "1"]] == ["1", "2"]


def test_the_spec_of_a_report_can_be_read_back_if_a_metric_has_features(tmp_path: Path) -> None:
    modes = {"name": "modes", "features": {"kind": "pixels", "dimensions": 8}}
    written = selfloop.Spec(source="digits", family="vae", metrics=["negative_elbo", modes])  # type: ignore[arg-type]
    path = tmp_path / "spec.toml"
    path.write_text(spec_text(written))
    assert "dimensions = 8" in path.read_text()
    assert read_spec(path) == written
