"""Extinction order: when categories vanish, its laws, its rank correlation and its figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from example_corpus import corpus_spec
from scipy.stats import kendalltau

import selfloop
from selfloop.component import Context, Metric
from selfloop.report.build import build_report
from selfloop.report.extinction import extinction_figure
from selfloop.report.figures import report_figures
from selfloop.report.shares import extinction_orders, order_sentences, rank_correlations
from selfloop.report.theme import policy_styles
from selfloop.report.values import Extinction, ExtinctionOrder
from selfloop.snapshots import Snapshot

REAL = {"Smiling": 0.5, "Bald": 0.02, "Glasses": 0.1, "Hat": 0.0}
SHARES = {  # of three generations; below a tenth of the real share, an attribute is extinct
    "Smiling": (0.6, 0.5, 0.4), "Bald": (0.001, 0.001, 0.001), "Glasses": (0.2, 0.005, 0.001), "Hat": (0.1, 0.0, 0.0),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Faces(Metric):
    """Shares of four attributes. The hat has no real share."""

    name: ClassVar[str] = "attributes"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        sampled = {f"attribute_share_{name}": shares[snap.generation - 1] for name, shares in SHARES.items()}
        return {"attributes": 2.0, **sampled, **{f"attribute_share_{name}_real": share for name, share in REAL.items()}}


def test_an_attribute_is_extinct_from_the_generation_after_its_last_one_above_a_tenth_of_its_real_share(tmp_path: Path) -> None:
    report = build_report(selfloop.run(corpus_spec(metrics=(Faces(),)), tmp_path))
    (order,) = report.extinctions
    found = order.policies["replace"]
    np.testing.assert_array_equal(found.generation, [[4, 1, 2, np.nan]] * 2)
    np.testing.assert_array_equal(found.remains, [[True, False, False, False]] * 2)
    (figure,) = (each for each in report_figures(report) if each.name == "extinction-attribute")
    rows = [row for row in figure.spec["datasets"]["extinctions"] if row["policy"] == "replace"]
    assert [(row["name"], row["mean"], row["remains"]) for row in rows] == [
        ("Bald", 1, False), ("Glasses", 2, False), ("Smiling", 4, True)
    ]  # fmt: skip
    assert [row["name"] for row in figure.spec["datasets"]["names"]] == ["Bald", "Glasses"]
    assert figure.svg().startswith("<svg")
    assert "replace: 2 of 3 extinct" in figure.alt


def test_an_extinct_attribute_that_returns_is_not_extinct() -> None:
    sentences = list(order_sentences(ExtinctionOrder(noun="attribute", names=["a", "b"], real=np.array([[0.1, 0.2]] * 3),
        generations=5, policies={"x": Extinction(np.full((3, 2), 6.0), np.ones((3, 2), bool))})))  # fmt: skip
    assert sentences == [
        "x: none of 3 seeds lost an attribute before or after a rarer one by generation 5: there is no extinction order."
    ]


def test_the_rank_correlation_ties_what_remains_and_leaves_out_what_a_seed_lacks() -> None:
    real = np.array([[0.5, 0.2, 0.1, 0.05], [0.5, 0.2, 0.1, 0.0]])
    generation = np.array([[6.0, 5.9, 3.0, 2.0], [6.0, 6.0, 1.0, np.nan]])
    remains = np.array([[True, True, False, False], [True, True, False, False]])
    taus = rank_correlations(real, Extinction(generation, remains), 5)
    assert taus == pytest.approx([kendalltau([4, 3, 2, 1], [6, 6, 3, 2]).statistic, kendalltau([3, 2, 1], [6, 6, 1]).statistic])
    assert np.isnan(rank_correlations(real, Extinction(np.full((2, 4), 6.0), np.ones((2, 4), bool)), 5)).all()


def test_categories_that_vanish_at_once_and_a_single_one_have_no_order() -> None:
    real = np.array([[0.2, 0.1, 0.0], [0.3, 0.0, 0.0]])
    together = Extinction(np.where(real > 0, 3.0, np.nan), np.zeros((2, 3), bool))
    assert np.isnan(rank_correlations(real, together, 5)).all()  # warnings are errors
    order = ExtinctionOrder(noun="mode", names=["0", "1", "2"], real=real, generations=5, policies={"x": together})
    assert list(order_sentences(order)) == [
        "x: none of 2 seeds lost a mode before or after a rarer one by generation 5: there is no extinction order."
    ]


def test_symbols_have_an_order_with_exact_laws_under_replace_and_accumulate_and_none_under_the_control(tmp_path: Path) -> None:
    spec = selfloop.Spec(
        source={"name": "zipf", "n_symbols": 60}, family="discrete", policies=["replace", "accumulate", "control"],
        n=100, generations=12, seeds=300, metrics=["symbol_survival"],
    )  # fmt: skip
    result = selfloop.run(spec, tmp_path)
    (order,) = extinction_orders(result)
    assert order.laws.keys() == {"replace", "accumulate"}
    kind, expected = order.laws["replace"]
    assert kind == "exact"
    found = order.policies["replace"].generation  # NaN for a seed whose first model lacks the whole group
    error = np.nanstd(found, axis=0) / np.sqrt(np.isfinite(found).sum(axis=0))
    assert (np.abs(np.nanmean(found, axis=0) - expected) < 4 * error).all()
    kept_generations = order.policies["accumulate"].generation
    np.testing.assert_array_equal(kept_generations[np.isfinite(kept_generations)], 13)
    assert (np.diff(expected) < 0).all()  # from the most frequent group to the rarest
    replaced, kept, fresh = order_sentences(order)
    assert replaced.startswith("replace: rarer symbols vanish first: rank correlation of real share and")
    assert kept.startswith(
        "accumulate: none of 300 seeds lost half of a rarity group of symbols before or after a rarer one by"
    )
    assert fresh.endswith("there is no extinction order.")
    figure = extinction_figure(order, policy_styles(list(order.policies)))
    assert len(figure.spec["datasets"]["laws"]) == 2 * len(order.names)
    assert "Dashed lines: exact law." in figure.caption
    assert "names" not in figure.spec["datasets"]


def test_every_point_of_a_sweep_has_its_own_rarity_groups(tmp_path: Path) -> None:
    spec = selfloop.Spec(
        source="zipf", family="discrete", policies=["replace"], n=50, generations=3, seeds=2, metrics=["symbol_survival"],
        sweep={"source.n_symbols": (3, 40)},
    )  # fmt: skip
    few, many = extinction_orders(selfloop.run(spec, tmp_path))
    assert few.names == ["0", "1", "2"]
    assert many.names == ["2", "3", "4", "5", "6", "7"]
    assert few.laws.keys() == many.laws.keys() == {"replace"}


def test_the_interval_of_a_rank_correlation_ends_at_one() -> None:
    generation = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    found = {"x": Extinction(generation, np.zeros((3, 3), bool))}
    order = ExtinctionOrder(
        noun="mode", names=["0", "1", "2"], real=np.array([[0.5, 0.3, 0.2]] * 3), generations=5, policies=found
    )
    (sentence,) = order_sentences(order)
    assert sentence.startswith("x: whether rarer modes vanish first is undecided")
    assert "[−1.0, 1.0]" in sentence
