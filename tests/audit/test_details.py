"""In what a loop gets worse: every metric beside the control, with the number of metrics and looks taken into account."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfloop.audit.answer import Detail
from selfloop.audit.design import design_audit
from selfloop.audit.excess import aspect_of, read_details
from selfloop.plugins import BUILT_IN
from selfloop.result import run
from selfloop.spec.parse import parse_spec

SPEC = """
n = 30
holdout = 200
generations = 8
policies = [{policy}]
metrics = ["kl_divergence", "sd_ratio", "nll"]
source = {{ name = "gaussian", dim = 4 }}
family.name = "gaussian"
"""
POLICIES = {"all real": '{ name = "mix", real_share = 1.0 }', "mostly real": '{ name = "mix", real_share = 0.9 }'}


def details(policy: str, store: Path, look: int = 1, bound: float = 0.05) -> dict[str, Detail]:
    design = design_audit(
        parse_spec(SPEC.format(policy=POLICIES.get(policy, f'"{policy}"')), "x"),
        looks=(12,),
        bound="5%",
        metric="kl_divergence",
    )
    (pair,) = design.pairs
    return {detail.metric: detail for detail in read_details(run(design.spec, store), pair.policy, pair.control, bound, look)}


def test_a_shrinking_loop_is_worse_in_loss_and_in_diversity(tmp_path: Path) -> None:
    found = details("replace", tmp_path)
    assert {name: found[name].answer for name in ("kl_divergence", "sd_ratio")} == dict.fromkeys(
        ("kl_divergence", "sd_ratio"), "worse"
    )
    spread = found["sd_ratio"]
    assert (spread.aspect, found["nll"].aspect) == ("diversity", "loss")
    assert spread.policy < spread.control  # fitted over true: the best value is 1
    assert spread.difference.estimate == pytest.approx(spread.policy - spread.control)
    assert next(iter(found)) == "kl_divergence"  # losses first, in the order of the spec


def test_later_looks_need_more_evidence(tmp_path: Path) -> None:
    order = {"worse": 1, "undecided": 0}
    first, late = details("accumulate_subsample", tmp_path), details("accumulate_subsample", tmp_path, look=12)
    assert all(order[late[name].answer] <= order[first[name].answer] for name in first)
    assert late["nll"].answer == "undecided"


def test_equal_training_sets_make_no_difference(tmp_path: Path) -> None:
    equal = details("all real", tmp_path)
    assert {detail.answer for detail in equal.values()} == {"same"}
    assert {detail.difference.estimate for detail in equal.values()} == {0}


def test_a_difference_within_the_bound_is_none_only_if_it_is_sure(tmp_path: Path) -> None:
    mostly_real = details("mostly real", tmp_path, look=12, bound=10.0)
    assert mostly_real["kl_divergence"].answer == "same"
    assert details("mostly real", tmp_path, look=12, bound=1e-3)["kl_divergence"].answer == "undecided"


def test_metrics_of_text_and_tables_belong_to_an_aspect() -> None:
    assert {name: aspect_of(name) for name in ("lost_categories", "duplicate_rate", "tail_mass", "distinct_2")} == {
        "lost_categories": "tails", "duplicate_rate": "duplicates", "tail_mass": "tails", "distinct_2": "diversity",
    }  # fmt: skip
    assert aspect_of("self_bleu") == "diversity"
    assert sum(aspect_of(name) != "other" for name in BUILT_IN["metric"]) > 30
