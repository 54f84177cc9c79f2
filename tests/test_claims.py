"""Claims of papers: their form, the judge, and planted wrong runs that must turn every claim to "does not hold"."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import pytest

from selfloop.commands.reproduce import claim_spec, judge_claim, trains_network
from selfloop.plugins import presets
from selfloop.published.papers import papers

CLAIMS = {claim.key(): claim for paper in papers().values() for claim in paper.claims}


@cache
def preset_family(preset: str) -> str:
    return str(tomllib.loads(presets()[preset].read_text(encoding="utf-8"))["family"]["name"])


STATISTICAL = [
    key
    for key, claim in CLAIMS.items()
    if claim.changes.get("family.name", preset_family(claim.preset))
    not in ("vae", "image_diffusion", "transformer", "finetune", "geodiff")
]  # fmt: skip


@pytest.mark.parametrize("key", CLAIMS)
def test_a_claim_is_complete_and_its_scenario_can_be_run(key: str) -> None:
    claim = CLAIMS[key]
    assert claim.sentence.endswith(".")
    assert claim.cite
    expectations = [claim.near, claim.between, claim.above if claim.above is not None else claim.below]
    assert sum(each is not None for each in expectations) == (claim.statistic != "order")
    assert (claim.near is None) == (claim.within is None and claim.margin is None)
    if not claim.data:
        for wrong in (False, True):
            spec = claim_spec(claim, wrong=wrong)
            spec.points()
            assert trains_network(spec) == (key not in STATISTICAL)
        assert set(claim.policies or [claim.policy]) | ({claim.against} - {""}) <= set(claim_spec(claim).policy_labels())
        if trains_network(claim_spec(claim)):
            assert len(claim_spec(claim).seeds) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("key", STATISTICAL)
def test_a_planted_wrong_run_does_not_hold(key: str, tmp_path: Path) -> None:
    judged = judge_claim(CLAIMS[key], tmp_path, wrong=True)
    assert judged.answer == "does not hold", f"{judged.judgment} {judged.expected}"
