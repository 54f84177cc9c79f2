"""The verdicts of a run: no answer contradicts a law of the same page, and chains that end for other reasons are not judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import selfloop
from selfloop.component import Context, Policy
from selfloop.plugins import presets
from selfloop.published.papers import papers
from selfloop.result import _references
from selfloop.rng import RandomStream
from selfloop.theory.laws import law_curves
from selfloop.types import Measurement, Verdict


def answers(result: selfloop.Result, criterion: str) -> dict[str, Verdict]:
    return {verdict.policy: verdict for verdict in result.verdicts() if verdict.criterion == criterion}


@pytest.mark.parametrize("pair", ["linear", "gaussian"])
def test_where_a_law_applies_it_decides(pair: str, tmp_path: Path) -> None:
    spec = selfloop.Spec(source=pair, family=pair, n=60, generations=6, seeds=4, policies=["replace", "accumulate"])
    result = selfloop.run(spec, tmp_path)
    divergence = answers(result, "divergence")
    expected = {"linear": {"replace": "yes", "accumulate": "no"}, "gaussian": {"replace": "no", "accumulate": "no"}}[pair]
    assert {policy: verdict.answer for policy, verdict in divergence.items()} == expected
    assert {verdict.answer for verdict in answers(result, "any_increase").values()} == {"yes"}
    assert all("(2404.01413)" in verdict.reason or "theory/moments.py" in verdict.reason for verdict in divergence.values())
    assert all(
        verdict.answer != "no" for verdict in answers(result, "collapsing_variance").values() if verdict.policy == "replace"
    )


def test_a_verdict_cites_the_law_that_it_rests_on(tmp_path: Path) -> None:
    unbiased = {"name": "gaussian", "ddof": 1}
    spec = selfloop.Spec(source="gaussian", family=unbiased, n=400, generations=3, seeds=3, policies=["replace"])
    laws = {metric: r for metric, r in _references(spec.points()[0], spec.policies[0]).items() if r.limit}
    assert {metric: reference.limit for metric, reference in laws.items()} == {
        "mean_error": "infinite",
        "variance_ratio": "zero",
        "sd_ratio": "zero",
        "wasserstein": "infinite",
        "kl_divergence": "infinite",
    }
    assert laws["variance_ratio"].limit_by.startswith("'log variance under replacement'")  # the mean variance stays
    assert laws["variance_ratio"].expected_by.startswith("'moments of the variance'")
    assert laws["variance_ratio"].expected == pytest.approx(np.ones(3))


def test_the_law_at_every_n_decides_on_a_scaling_law(tmp_path: Path) -> None:
    spec = selfloop.Spec(
        source="linear",
        family="linear",
        generations=4,
        seeds=2,
        policies=["replace"],
        sweep={"n": (100, 200, 400), "source.dim": (4, 9)},
    )
    for verdict in selfloop.run(spec, tmp_path).verdicts():
        if verdict.criterion == "scaling_law_change":
            assert verdict.answer == "no"
            assert verdict.reason.startswith("by the law 'fixed design'")


CLOSED_FORM = ("gaussian", "discrete", "linear", "kde", "glm")
CLAIMED = {claim.preset for paper in papers().values() for claim in paper.claims}  # their values are judged by claims
PRESETS = [name for name in sorted(presets()) if name not in CLAIMED and selfloop.read_spec(name).family.name in CLOSED_FORM]
PRESETS += ["shumailov2023_gaussian", "seddik2024_discrete"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_no_verdict_of_a_preset_contradicts_a_law(name: str, tmp_path: Path) -> None:
    result = selfloop.run(selfloop.read_spec(name, ["seeds=3", "generations=8"]), tmp_path)
    verdicts = {(v.coordinates, v.policy, v.criterion): v for v in result.verdicts()}
    for point in result.points:
        spec = point.spec
        for label, policy in zip(spec.policy_labels(), spec.policies, strict=True):
            laws = {law.metric: law.values for law in law_curves(spec.scenario(policy, point.n)) if law.kind == "exact"}
            if (law := laws.get(spec.risk_metric() or "")) is not None:
                answer = {c: verdicts[point.coordinates, label, c].answer for c in ("any_increase", "catastrophic_increase")}
                assert answer["any_increase"] == ("yes" if law[-1] > law[0] * (1 + 1e-9) else "no")
                assert answer["catastrophic_increase"] == ("yes" if law[-1] > 10 * law[0] else "no")
                assert_limit_is_right(verdicts[point.coordinates, label, "divergence"], replace(spec, generations=96), policy)
            if (law := laws.get("heterozygosity", laws.get("log_variance_ratio"))) is not None and label == "replace":
                assert law[-1] < law[0]
                assert verdicts[point.coordinates, label, "collapsing_variance"].answer != "no"


def assert_limit_is_right(verdict: Verdict, longer: selfloop.Spec, policy: Policy) -> None:
    """Over twice as many generations, a sum of 1/t grows by as much again, and one of t^-1.5 by 0.7 of it."""
    law = next(law.values for law in law_curves(longer.scenario(policy, longer.points()[0].n)) if law.kind == "exact")
    growth, before = law[95] - law[47], law[47] - law[23]
    if verdict.answer == "yes":
        assert growth > 0.9 * before
    elif verdict.reason.startswith("by the law") and longer.family.settings().get("ddof") != 0:
        assert growth < 0.8 * before
    elif verdict.reason.startswith("by the law"):
        covariance = np.asarray(longer.source.truth(Context(RandomStream(("test",))))["covariance"])
        assert law.max() < np.trace(covariance)  # the bound of the divisor n


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        ("diverged", "yes"),
        ("not_finite", "yes"),
        ("too_few_curated_rows", "undecided"),
        ("separated", "undecided"),
        (None, "undecided"),
    ],
)
def test_a_chain_that_ends_is_the_worst_if_it_diverged_and_cannot_be_judged_else(
    status: str | None, answer: str, tmp_path: Path
) -> None:
    spec = selfloop.Spec(source="moons", family="kde", n=30, generations=4, seeds=12, policies=["replace"], metrics=["nll"])
    result = selfloop.run(spec, tmp_path)
    (curves,) = result.table.values()
    curves.values["nll"] += np.arange(4.0)
    for generation in (3, 4):
        curves.add(Measurement("", 0, generation, "nll", None, status if generation == 3 else "no measurement"), 0)
        curves.values["nll"][0, generation - 1] = np.nan
    if status is None:
        curves.codes["nll"][0, 2] = 1
    verdict = answers(result, "any_increase")["replace"]
    assert verdict.answer == answer
    assert verdict.reason.endswith(f"({status or 'no measurement'})")
    assert verdict.reason.startswith("cannot be judged" if answer == "undecided" else "1 of 12 chains ended and count as worst")
    assert answers(result, "scaling_law_change")["replace"].answer == "not measured"
    curves.values["recall"], curves.codes["recall"] = curves.values["nll"], np.minimum(curves.codes["nll"], 1)
    curves.values["recall"] = np.where(curves.codes["recall"], np.nan, np.arange(5.0, 1.0, -1) + curves.values["nll"][:, :1])
    assert answers(result, "tail_loss")["replace"].answer == answer  # of a secondary value, whose codes have no status
    curves.codes["nll"][0, 0] = curves.codes["nll"][0, 3]
    curves.values["nll"][0, 0] = np.nan
    assert answers(result, "any_increase")["replace"].answer == "yes"  # without a first value, the chain is left out


def test_diversity_is_judged_against_the_control(tmp_path: Path) -> None:
    policies = ["replace", "accumulate", "control", {"name": "control", "of": "accumulate", "rows": "initial"}]
    spec = selfloop.Spec(source="gaussian", family="gaussian", n=10, generations=30, seeds=30, policies=policies)
    result = selfloop.run(spec, tmp_path)
    verdicts, variance = answers(result, "collapsing_variance"), result.curves()
    of = {other: label for label, other in spec.controls().items()}
    for label in ("replace", "accumulate"):
        assert f"{of[label]} in place of the first: geometric mean of last over first" in verdicts[label].reason
    last = [variance[label]["variance_ratio"][:, -1] for label in ("replace", of["replace"])]
    assert verdicts["replace"].estimate == pytest.approx(np.exp(np.log(last[0] / last[1]).mean()))
    assert not any("in place" in verdicts[label].reason for label in variance if label.startswith("control"))
    assert not any("control" in verdict.reason for verdict in answers(result, "any_increase").values())


def test_the_diversity_of_a_network_without_a_control_is_named(tmp_path: Path) -> None:
    spec = selfloop.Spec(source="gaussian", family="gaussian", n=10, generations=3, seeds=4, policies=["replace"])
    network = selfloop.Spec(source="digits", family="vae", n=10, generations=3, seeds=4, policies=["replace"])
    result = selfloop.run(spec, tmp_path)
    for judged, is_network in ((result, False), (replace(result, spec=network), True)):
        reasons = {
            criterion: answers(judged, criterion)["replace"].reason for criterion in ("collapsing_variance", "divergence")
        }
        assert reasons["collapsing_variance"].endswith("; without a control") == is_network
        assert "control" not in reasons["divergence"]
