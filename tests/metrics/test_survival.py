"""Symbols and tokens that models still have, by rarity: arithmetic, and the exact law of every rarity group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from token_rows import END, measure

from law_checks import curves, z_scores
from selfloop.columns import Floats
from selfloop.families.discrete import Discrete, DiscreteSampler
from selfloop.metrics.text import TokenSurvival
from selfloop.metrics.true_parameters import SymbolSurvival, alive_by_rarity
from selfloop.policies.builtin import Accumulate, Replace
from selfloop.snapshots import Scenario
from selfloop.sources.distributions import ZipfSource
from selfloop.theory.laws import law_curves, law_of_survival

SCENARIO = Scenario(Replace(), ZipfSource(n_symbols=40), Discrete(), DiscreteSampler(), n=100, generations=8)


def test_groups_are_octaves_of_the_real_share_and_a_seed_without_a_group_has_no_value() -> None:
    shares = np.array([[0.5, 0.3, 0.15, 0.05, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    alive = np.array([[1, 0, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
    values = alive_by_rarity("symbols", shares, alive)
    expected = {0: (1, 0.5), 1: (0, 0.3), 2: (1, 0.15), 4: (1, 0.05)}
    first = {name: value[0] for name, value in values.items()}
    assert first == pytest.approx(
        {f"symbols_alive_{k}{end}": pair[i] for k, pair in expected.items() for i, end in enumerate(("", "_real"))}
    )
    assert [name for name, value in values.items() if value[1] == 1] == ["symbols_alive_0", "symbols_alive_0_real"]
    assert np.isnan([value[1] for value in values.values()]).sum() == 6


def measured(scenario: Scenario, seeds: int = 2048) -> dict[str, Floats]:
    return curves(
        scenario.source, scenario.family, scenario.policy, [SymbolSurvival()], n=scenario.n,
        generations=scenario.generations, seeds=seeds,
    )  # fmt: skip


def group_z(values: dict[str, Floats], law: dict[str, Floats]) -> float:
    """Largest distance of a group's mean alive share from its law in standard errors, where chains differ."""
    differ = {name: np.ptp(values[name], axis=0) > 0 for name in law}
    return max(float(np.abs(z_scores(values[name][:, at], law[name][at])).max(initial=0)) for name, at in differ.items())


def law(scenario: Scenario) -> dict[str, Floats]:
    found = law_of_survival(scenario)
    assert found is not None
    groups = alive_by_rarity("symbols", np.tile(found.shares, (scenario.generations, 1)), found.alive)
    return {name: value for name, value in groups.items() if not name.endswith("_real")}


def test_every_rarity_group_follows_the_exact_law_and_not_that_of_other_generations_or_rows() -> None:
    values, right = measured(SCENARIO), law(SCENARIO)
    assert len(right) == 6
    assert group_z(values, right) < 4
    late = law(replace(SCENARIO, generations=9))
    assert group_z(values, {name: curve[1:] for name, curve in late.items()}) > 4
    assert group_z(values, law(replace(SCENARIO, n=200))) > 4
    (main,) = (curve for curve in law_curves(SCENARIO) if curve.metric == "symbol_survival")
    assert np.abs(z_scores(values["symbol_survival"], main.values)).max() < 4


def test_no_symbol_vanishes_while_initial_rows_stay_and_more_rows_than_the_chain_have_a_bound() -> None:
    scenario = replace(SCENARIO, policy=Accumulate())
    values = measured(scenario, seeds=512)
    assert group_z(values, law(scenario)) < 4 < group_z(values, law(SCENARIO))
    large = law_of_survival(replace(SCENARIO, n=1500))
    exact = law_of_survival(replace(SCENARIO, n=1000))
    assert large is not None
    assert exact is not None
    assert (large.kind, exact.kind) == ("bound", "exact")
    assert law_of_survival(replace(SCENARIO, family=Discrete(smoothing=0.1, n_symbols=40))) is None


def test_tokens_are_alive_if_sampled_rows_have_them_and_rarer_ones_than_min_count_do_not_count() -> None:
    real = [[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, END], [4, 4, 4, 4, 4, 5, END]]
    samples = [[1, 3, 9, END], [4, 7]]
    groups = alive_by_rarity("tokens", np.array([[4, 4, 5]]) / 16, np.array([[1, 0, 1]]))
    expected = {"token_survival": 2 / 3, **{name: value[0] for name, value in groups.items()}}
    assert measure(TokenSurvival(), samples, real) == pytest.approx(expected)
    assert measure(TokenSurvival(min_count=5), samples, real)["token_survival"] == 1
    assert measure(TokenSurvival(min_count=2), samples, real)["token_survival"] == 3 / 4
    assert np.isnan(measure(TokenSurvival(min_count=6), samples, real)["token_survival"])
    assert measure(TokenSurvival(), samples, real, prefix=1)["token_survival"] == 0
