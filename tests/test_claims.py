"""Claims of papers: their form, the judge, and planted wrong runs that must turn every claim to "does not hold"."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from selfloop.commands.reproduce import claim_spec, judge_claim, recorded_answers, trains_network
from selfloop.plugins import presets
from selfloop.published.papers import papers

DOCS = Path(__file__).parents[1] / "docs"
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
    """With a quarter of the seeds, which is faster, or if these do not decide with all."""
    claim, seeds = CLAIMS[key], claim_spec(CLAIMS[key], wrong=True).seeds
    few = replace(claim, wrong={**claim.wrong, "seeds": list(seeds[: max(len(seeds) // 4, 6)])})
    answers = (judge_claim(each, tmp_path, wrong=True) for each in (few, claim))
    assert "does not hold" in (judged.answer for judged in answers)


def test_the_page_of_claims_is_that_of_the_claim_files_and_recorded_answers() -> None:
    spec = spec_from_file_location("write_reproduction", DOCS / "write_reproduction.py")
    assert spec
    assert spec.loader
    writer = module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert (DOCS / "reproduction.md").read_text(encoding="utf-8") == writer.page(writer.read_answers([]))


@pytest.mark.parametrize("key", CLAIMS)
def test_every_answer_is_of_the_present_definition(key: str) -> None:
    claim, answer = CLAIMS[key], recorded_answers()[key]
    assert answer["digest"] == claim.digest(), "the claim or its preset changed: run it again and record the answer"
    assert answer["answer"] == "holds" or claim.explanation or answer["reason"]


def test_at_least_forty_works_have_seventy_claims() -> None:
    assert len(CLAIMS) >= 70
    assert len({key.partition("/")[0] for key in CLAIMS}) >= 40
