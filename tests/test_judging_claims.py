"""The judge of claims: every statistic on curves whose truth is known, right and wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import tiny_components
from selfloop.columns import Floats
from selfloop.commands import cli_reproduce, reproduce
from selfloop.errors import SpecError
from selfloop.published.claims import Claim, ClaimPoint, Judgment, judge
from selfloop.published.papers import find_paper, papers
from selfloop.spec.parse import read_changed_spec
from selfloop.stats.intervals import Interval

SEEDS, T = 40, 10
TIMES = np.arange(1, T + 1)


def make_claim(**settings: Any) -> Claim:
    usual = {"statistic": "value", "metric": "risk", "policy": "a", "generations": [T], "wrong": {}, "minutes": 0.1}
    words = {"paper": "some2024", "name": "claim", "sentence": "It holds.", "cite": "theorem 1", "preset": "quickstart_linear"}
    return Claim(**{**words, **usual, **settings})


def chains(mean: Floats, deviation: float = 0.1, seed: int = 0) -> Floats:
    """(seeds, generations) values around a curve."""
    return mean + deviation * np.random.default_rng(seed).normal(size=(SEEDS, len(mean)))


def answer(claim: Claim, curves: dict[str, Floats], n: int = 100) -> str:
    return judge(claim, [ClaimPoint({}, n, {policy: {"risk": curve} for policy, curve in curves.items()})]).answer


RISING, FLAT = chains(1.0 * TIMES), chains(np.ones(T), seed=1)
CURVES = {"a": RISING, "b": FLAT}


@pytest.mark.parametrize(
    ("settings", "right", "wrong", "open_"),
    [
        ({}, {"near": "t", "within": 0.05}, {"near": "t + 1", "within": 0.05}, {"near": "t + 0.1", "margin": 0.1}),
        ({"generations": [2, 5]}, {"near": [2, 5], "margin": 0.2}, {"near": [2, 6], "margin": 0.2}, {"below": 5}),
        ({}, {"below": 11}, {"below": 9}, {"below": 10}),
        ({}, {"between": ["n / 11", 12]}, {"between": [0, 9]}, {"between": [10, 11]}),
        ({"statistic": "multiplier", "generations": "3.."}, {"near": "t", "within": 0.15}, {"below": 9}, {"below": 10}),
        ({"statistic": "difference", "against": "b"}, {"above": 8}, {"above": 10}, {"above": 9}),
        ({"statistic": "ratio", "against": "b"}, {"near": 10, "within": 0.1}, {"below": 9}, {"below": 10}),
        ({"statistic": "slope", "generations": [1, T]}, {"near": 1, "within": 0.05}, {"below": 0.9}, {"below": 1}),
        (
            {"statistic": "slope", "over": "log t", "log": True, "generations": [1, T]},
            {"near": 1, "within": 0.1}, {"above": 2}, {"near": 1, "margin": 0.001},
        ),
        ({"statistic": "share", "event": "> 9"}, {"above": 0.8}, {"below": 0.5}, {"above": 0.99}),
        ({"statistic": "argmin", "generations": [1, T]}, {"below": 2}, {"above": 1}, None),
        ({"statistic": "argmax", "generations": [1, T]}, {"above": 9}, {"below": 9}, None),
    ],
)  # fmt: skip
def test_each_statistic_is_inside_its_region_or_not(
    settings: dict[str, Any], right: dict[str, Any], wrong: dict[str, Any], open_: dict[str, Any] | None
) -> None:
    assert answer(make_claim(**settings, **right), CURVES) == "holds"
    assert answer(make_claim(**settings, **wrong), CURVES) == "does not hold"
    if open_:
        assert answer(make_claim(**settings, **open_), CURVES) == "undecided"


def test_an_order_holds_if_every_neighbor_is_above_the_next_at_every_generation() -> None:
    three = {**CURVES, "c": FLAT - 0.5}

    def order(*policies: str, first: int = 3) -> str:
        return answer(make_claim(statistic="order", policies=policies, policy="", generations=f"{first}.."), three)

    assert order("a", "b", "c") == "holds"
    assert order("b", "a", "c") == "does not hold"
    assert order("a", "b", "c", first=1) == "undecided"  # a and b are equal at generation 1


def test_the_best_coordinate_of_a_sweep_is_one_of_those_that_are_not_worse() -> None:
    values = np.array([0.0, 0.5, 1.0, 2.0])
    points = [
        ClaimPoint({"x": x}, 100, {"a": {"risk": chains(np.full(T, (x - 0.6) ** 2), seed=i)}}) for i, x in enumerate(values)
    ]
    best = make_claim(statistic="argmin", over="x", near=0.5, margin=0.1)
    assert judge(best, points).answer == "holds"
    assert judge(best, points).measured.estimate == 0.5
    assert judge(make_claim(statistic="argmin", over="x", above=0.9), points).answer == "does not hold"
    slope = judge(make_claim(statistic="slope", over="x", near=0.84, margin=0.2), points)
    assert slope.measured.estimate == pytest.approx(np.polyfit(values, (values - 0.6) ** 2, 1)[0], abs=0.05)
    point = judge(make_claim(near=1.96, margin=0.2, at={"x": 2.0}), points)
    assert point.answer == "holds"
    paired = make_claim(statistic="difference", at={"x": 2.0}, against_at={"x": 0.5}, near=1.95, margin=0.2)
    assert judge(paired, points).answer == "holds"


def test_an_ended_chain_leaves_a_mean_undecided_and_counts_as_a_seed_without_the_event() -> None:
    ended = RISING.copy()
    ended[:10, -1] = np.nan
    assert answer(make_claim(below=20), {"a": ended}) == "undecided"
    share = judge(make_claim(statistic="share", event="> 0", below=0.95), [ClaimPoint({}, 100, {"a": {"risk": ended}})])
    assert (share.answer, share.measured.estimate) == ("holds", 0.75)


def test_values_that_are_equal_in_all_seeds_are_their_own_interval() -> None:
    equal = {"a": np.full((SEEDS, T), 3.0)}
    assert answer(make_claim(near=3, margin=0), equal) == "holds"
    assert answer(make_claim(above=3), equal) == "does not hold"


def test_a_claim_that_is_right_is_rarely_rejected_and_one_beside_its_tolerance_is() -> None:
    right = [answer(make_claim(near=1, margin=0.05), {"a": chains(np.ones(T), 0.1, seed)}) for seed in range(200)]
    wrong = [answer(make_claim(near=1, margin=0.05), {"a": chains(np.full(T, 1.15), 0.1, seed)}) for seed in range(200)]
    assert right.count("does not hold") == 0
    assert wrong.count("does not hold") == 200


def test_the_measured_number_is_that_of_the_generation_that_decides() -> None:
    judgment = judge(make_claim(generations="1..", below=9.5), [ClaimPoint({}, 100, {"a": {"risk": RISING}})])
    assert (judgment.answer, judgment.generation) == ("does not hold", T)
    assert judgment.region == (-math.inf, 9.5)


def test_the_digest_is_that_of_the_definition_and_not_of_its_words() -> None:
    claim = make_claim(near=1, margin=0.1)
    assert claim.digest() == make_claim(near=1, margin=0.1, sentence="Other words.", explanation="why").digest()
    assert claim.digest() != make_claim(near=1, margin=0.2).digest()


def test_a_metric_that_is_not_measured_is_an_error() -> None:
    with pytest.raises(SpecError, match="risk of policy 'c' is not measured"):
        answer(make_claim(policy="c", near=1, margin=1), CURVES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": [T + 1]}, "at generation 11 is not measured"),
        ({"generations": f"{T + 1}.."}, "at generation 11 is not measured"),
        ({"generations": [0]}, "is not measured"),
        ({"statistic": "slope", "generations": [1, T + 1]}, "at generation 11 is not measured"),
        ({"at": {"x": 3}}, "0 points of quickstart_linear are at {'x': 3}; expected one"),
        ({"at": {}}, "3 points of quickstart_linear are at {}; expected one"),
        ({"statistic": "argmin", "over": "y", "at": {}}, "expected some that differ in y, a number"),
        ({"statistic": "argmin", "over": "kind", "at": {}}, "expected some that differ in kind, a number"),
        ({"statistic": "difference", "against_at": {"x": 3}}, "0 points of quickstart_linear"),
        ({"above": None, "near": 1, "margin": -0.1}, "nothing lies from 1.1 to 0.9"),
        ({"above": None, "between": ["t", 2]}, "nothing lies from 10 to 2"),
        ({"above": "s + 1"}, "got 's \\+ 1', which has no value at t = 10"),
    ],
)
def test_a_claim_that_its_run_cannot_answer_is_an_error(settings: dict[str, Any], message: str) -> None:
    points = [ClaimPoint({"x": x, "kind": "ab"[x > 0]}, 100, {"a": {"risk": RISING}}) for x in (0, 1, 2)]
    with pytest.raises(SpecError, match=message):
        judge(make_claim(**{"at": {"x": 0}, "above": 1, **settings}), points)


def test_points_of_a_sweep_over_lists_are_found_by_lists() -> None:
    points = [
        ClaimPoint({"ridge": (0, r), "x": x}, 100, {"a": {"risk": chains(np.full(T, x + r), seed=10 * r + x)}})
        for r in (1, 5)
        for x in (0, 1, 2)
    ]
    slope = make_claim(statistic="slope", over="x", at={"ridge": [0, 5]}, near=1, margin=0.1)
    assert judge(slope, points).answer == "holds"
    assert judge(make_claim(at={"ridge": [0, 5], "x": 2}, near=7, margin=0.1), points).answer == "holds"


def test_a_ratio_that_is_equal_in_all_seeds_is_its_own_interval_and_one_of_negative_means_is_none() -> None:
    gone = RISING.copy()
    gone[:, -1] = 0
    assert answer(make_claim(statistic="multiplier", below=0.1), {"a": gone}) == "holds"
    assert answer(make_claim(statistic="ratio", against="b", near=2, margin=0), {"a": 2 * RISING, "b": RISING}) == "holds"
    judgment = judge(make_claim(statistic="multiplier", below=9), [ClaimPoint({}, 100, {"a": {"risk": -RISING}})])
    assert (judgment.answer, judgment.reason) == ("undecided", "some chains have no value, or a mean is not above 0")


def test_a_coordinate_that_is_worse_by_as_much_in_all_seeds_is_not_the_best() -> None:
    noise = chains(np.zeros(T))
    points = [ClaimPoint({"x": x}, 100, {"a": {"risk": noise + x}}) for x in (0, 1)]
    assert judge(make_claim(statistic="argmin", over="x", below=0.5), points).answer == "holds"


def test_changes_are_set_in_their_order_and_stay_as_they_are() -> None:
    changes = {"family": {"name": "gaussian"}, "family.ddof": 1, "source": "gaussian", "generations": 3, "seeds": 2, "n": 9}
    assert read_changed_spec("suresh2024_gaussian", changes).family.settings()["ddof"] == 1
    assert changes["family"] == {"name": "gaussian"}


def test_a_budget_takes_the_shortest_claims_that_fit() -> None:
    everything = reproduce.select_claims(None)
    assert len(everything) == sum(len(paper.claims) for paper in papers().values())
    some = reproduce.select_claims(None, budget="1m")
    assert sum(claim.minutes for claim in some) <= 1 + 1e-9
    assert reproduce.select_claims(None, budget="1000h") == everything
    with pytest.raises(SpecError, match="expected a time above 0, such as 15m"):
        reproduce.select_claims(None, budget="soon")


def test_missing_data_are_a_reason_not_to_run(tmp_path: Path) -> None:
    judged = reproduce.judge_claim(make_claim(near=1, margin=1, data={"source.path": "stories"}), None, tmp_path)
    assert judged.answer == "not run"
    assert judged.reason == "stories is not in the folder of data sets (--data)"


def test_the_command_prints_answers_writes_json_and_continues(tmp_path: Path) -> None:
    name = next(paper.name for paper in papers().values() if paper.claims and paper.claims[0].minutes <= 0.2)
    claim = find_paper(name).claims[0].name
    command = "reproduce", name, "--only", claim, "-q", "--store", tmp_path
    done = tiny_components.selfloop(*command, "--json", tmp_path / "a.jsonl")
    assert (done.code, done.err) == (0, "")
    assert f"{name}/{claim}" in done.out
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    keys = {"paper", "claim", "answer", "published", "measured", "low", "high", "seconds", "preset"}
    assert keys <= json.loads(line).keys()
    again = tiny_components.selfloop(*command, "--json", "-")
    assert json.loads(again.out) == json.loads(line)
    wrong = tiny_components.selfloop(*command, "--wrong", "--strict")
    assert (wrong.code, wrong.out.startswith("does not hold")) == (0, True)


def test_an_interrupted_run_shows_its_answers_and_replaces_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(claims: list[Claim], **settings: object) -> Iterator[reproduce.JudgedClaim]:
        yield reproduce.JudgedClaim(claims[0], None, 0.0, "first")
        raise KeyboardInterrupt

    (tmp_path / "all.jsonl").write_text("the answers of a whole run\n")
    monkeypatch.setattr(reproduce, "judge_claims", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli_reproduce.reproduce("xu2025", json=str(tmp_path / "all.jsonl"), store=tmp_path / "store", quiet=True)
    assert "not run: xu2025/" in capsys.readouterr().out
    assert (tmp_path / "all.jsonl").read_text() == "the answers of a whole run\n"


def test_claims_that_are_recorded_as_holding_and_fail_now_are_named() -> None:
    claims = [claim for paper in papers().values() for claim in paper.claims]
    held = next(claim for claim in claims if reproduce.recorded_answers()[claim.key()]["answer"] == "holds")

    def judged(result: Literal["holds", "undecided"]) -> list[reproduce.JudgedClaim]:
        return [reproduce.JudgedClaim(held, Judgment(result, Interval(0, 0, 0, 3), (0, 1), 1), 0.0)]

    assert reproduce.lost_claims(judged("holds")) == []
    assert reproduce.lost_claims(judged("undecided")) == [held.key()]
    assert reproduce.lost_claims(judged("holds"), wrong=True) == [held.key()]
    assert reproduce.lost_claims([reproduce.JudgedClaim(held, None, 0.0)]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected one of near, between, above or below"),
        ({"near": 1}, "goes with a tolerance"),
        ({"above": 1, "within": 0.1}, "goes with a tolerance"),
        ({"statistic": "share", "event": "about 1", "above": 1}, "expected a comparison with a number"),
        ({"above": 1, "generations": "all"}, "expected a list, or a first generation"),
        ({"statistic": "mean", "above": 1}, "statistic: got 'mean'"),
        ({"statistic": "share", "event": "> 1.2.3", "above": 1}, "expected a comparison with a number"),
        ({"near": 1, "within": 0.1, "margin": 1}, "goes with a tolerance"),
        ({"above": 1, "below": 2}, "expected one of near, between, above or below"),
        ({"above": 1, "generations": []}, "expected a list, or a first generation"),
        ({"near": [1, 2, 3], "margin": 1, "generations": [4, 5]}, "near: expected a value for each"),
        ({"near": [1, 2], "margin": 1, "generations": "3.."}, "near: expected a value for each"),
        ({"between": [1]}, "between: got"),
        ({"statistic": "slope", "above": 1, "generations": [5]}, "expected a list, or a first generation"),
        ({"statistic": "ratio", "above": 1}, "against: missing"),
        ({"statistic": "order", "policies": ["a"]}, "policies: expected two or more"),
        ({"above": 1, "log": True}, "log: is of slope only"),
        ({"above": 1, "against": "b"}, "against: is of difference and ratio only"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_claim(**settings)


def test_a_claim_file_of_your_own_is_judged_on_a_spec_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'n = 20\ngenerations = 3\nseeds = 500\npolicies = ["replace"]\nsource = "gaussian"\nfamily = "gaussian"\n'
    )
    claim = (
        'name = "falls"\nsentence = "It falls."\ncite = "mine"\nstatistic = "value"\npolicy = "replace"\nwrong = { n = 500 }\n'
    )
    claim += f'metric = "variance_ratio"\ngenerations = [3]\nbelow = 0.97\nminutes = 0.1\npreset = "{tmp_path / "mine.toml"}"\n'
    (tmp_path / "claims.toml").write_text(f"[[claim]]\n{claim}")
    command = "reproduce", tmp_path / "claims.toml", "-q", "--store", tmp_path / "store"
    assert "does not hold" in tiny_components.selfloop(*command, "--wrong").out
    assert "1 claim holds 1" in tiny_components.selfloop(*command).out.replace(": ", " ")
    (tmp_path / "claims.toml").write_text(f"[[claim]]\n{claim.replace('below', 'beneath')}")
    assert "unknown key 'beneath'" in tiny_components.selfloop(*command).err
    (tmp_path / "claims.toml").write_text(f"[claim]\n{claim}")
    assert "[[claim]]" in tiny_components.selfloop(*command).err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"replace"', '"accumulate"', "sd_ratio of policy 'accumulate' is not measured"),
        ('"sd_ratio"', '"fid"', "fid of policy 'replace' is not measured"),
        ("[3]", "[3, 201]", "at generation 201 is not measured"),
        ("0.97", '"s"', "has no value at t = 3"),
        ("wrong", "changes = { x = 1 }\nwrong", "x: unknown key 'x'"),
        ('"suresh2024_gaussian"', '"suresh2024_gausian"', "no such file or preset"),
    ],
)
def test_a_mistake_in_a_claim_of_your_own_is_one_sentence_before_any_run(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    claim = """[[claim]]
    name = "falls"
    sentence = "It falls."
    cite = "mine"
    statistic = "value"
    policy = "replace"
    wrong = { n = 500 }
    metric = "sd_ratio"
    generations = [3]
    below = 0.97
    minutes = 0.1
    preset = "suresh2024_gaussian"
    """
    first = claim.replace('"falls"', '"first"')
    assert old in claim
    (tmp_path / "claims.toml").write_text(first + claim.replace(old, new))
    done = tiny_components.selfloop("reproduce", tmp_path / "claims.toml", "--store", tmp_path / "store")
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a paper"),
        (("gerstgrasser2024", "--all"), "name a paper"),
        (("gerstgraser2024",), "Did you mean 'gerstgrasser2024'"),
        (("gerstgrasser2024", "--only", "nothing"), "unknown claim 'nothing'"),
        (("--all", "--budget", "0m"), "expected a time"),
        (("--all", "--values"), "is of one paper"),
        (("kazdan2025", "--values", "--json", "-"), "without --json"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    done = tiny_components.selfloop("reproduce", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
