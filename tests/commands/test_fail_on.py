"""`run --fail-on`: exit codes from verdicts, which policies count, and the line that states them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny_components
from selfloop.commands.fail_on import describe_answers, joint_answer, select_verdicts, selected_verdicts
from selfloop.result import run
from selfloop.spec.spec import Spec
from selfloop.types import Answer, Verdict

SPEC = """
n = 20
generations = 6
seeds = 8
policies = ["replace", { name = "mix", real_share = 1.0 }, { name = "control", of = { name = "replace" } }]
metrics = ["mean_error"]
criteria = ["catastrophic_increase", "any_increase", "tail_loss"]
source.name = "gaussian"
family.name = "gaussian"
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text(SPEC)
    return "a.toml"


def fail_on(path: str, *options: str) -> tuple[int, str]:
    """Exit code, and the last line of standard output."""
    done = tiny_components.selfloop("run", path, "-q", *options)
    return done.code, (done.out or done.err).splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["catastrophic_increase"], 0, "--fail-on: verdicts: 0 yes, 0 undecided or not measured, 1 no. Exit code 0."),
        (
            ["any_increase"],
            3,
            "any_increase is yes for replace (mean_error); verdicts: 1 yes, 0 undecided or not measured",
        ),
        (["tail_loss"], 4, "tail_loss is not measured for replace (needs support_size or recall or coverage or tail_mass); "),
        (["any"], 3, "verdicts: 1 yes, 0 undecided or not measured, 1 no. Exit code 3."),
        (["catastrophic_increase", "any_increase"], 3, "verdicts: 1 yes, 0 undecided or not measured, 1 no. Exit code 3."),
        (["catastrophic_increase", "tail_loss"], 4, "verdicts: 0 yes, 1 undecided or not measured, 1 no. Exit code 4."),
        (["any_increase:replace"], 3, "any_increase is yes for replace"),
        (["any_increase:control"], 0, "0 yes"),
    ],
)
def test_the_exit_code_is_0_for_no_3_for_yes_and_4_otherwise(path: str, options: list[str], code: int, line: str) -> None:
    got, text = fail_on(path, *(part for option in options for part in ("--fail-on", option)))
    assert got == code
    assert line in text
    assert text.endswith(f"Exit code {code}.")


def test_undecided_is_allowed_on_request_and_yes_never_is(path: str) -> None:
    assert fail_on(path, "--fail-on", "tail_loss", "--allow-undecided")[0] == 0
    assert fail_on(path, "--fail-on", "tail_loss", "--fail-on", "any_increase", "--allow-undecided")[0] == 3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["--fail-on", "any_incraese"],
            "--fail-on any_incraese: unknown criterion 'any_incraese'. Did you mean",
        ),
        (
            ["--fail-on", "divergence"],
            "unknown criterion 'divergence'. Allowed: any, any_increase, catastrophic",
        ),
        (["--fail-on", "any:replaec"], "--fail-on any:replaec: unknown policy 'replaec'. Did you mean 'replace'?"),
        (["--allow-undecided"], "--allow-undecided: changes nothing without --fail-on."),
        (["--fail-on", "any", "--set", "generations=1"], "no policy trains on synthetic rows in 1 generations, so none counts"),
    ],
)
def test_a_mistake_exits_with_2_before_any_work(path: str, options: list[str], problem: str) -> None:
    done = tiny_components.selfloop("run", path, "-q", *options)
    assert (done.code, done.out) == (2, "")
    assert problem in done.err
    assert [file.name for file in Path().iterdir()] == [path]


def test_without_the_option_a_run_exits_with_0(path: str) -> None:
    assert tiny_components.selfloop("run", path, "-q").code == 0


def test_the_line_is_on_standard_error_beside_json_and_verdicts_follow_the_measurements(path: str) -> None:
    done = tiny_components.selfloop("run", path, "-q", "--json", "-", "--fail-on", "any_increase")
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith("--fail-on: any_increase is yes for replace")
    lines = [json.loads(line) for line in done.out.splitlines()]
    verdicts = [line["verdict"] for line in lines if "verdict" in line]
    assert lines[-len(verdicts) :] == [{"verdict": verdict} for verdict in verdicts]
    assert [(v["criterion"], v["policy"]) for v in verdicts][:3] == [
        ("catastrophic_increase", "replace"), ("any_increase", "replace"), ("tail_loss", "replace"),
    ]  # fmt: skip
    assert verdicts[1]["answer"] == "yes"
    assert verdicts[1].keys() == set(Verdict.__dataclass_fields__) - {"coordinates"}


def spec(**changes: Any) -> Spec:
    settings = {"source": "gaussian", "family": "gaussian", "n": 20, "generations": 3, "seeds": 2, "metrics": ["mean_error"]}
    return Spec(**{**settings, **changes})


def test_policies_without_synthetic_rows_count_only_by_name() -> None:
    mixes = [{"name": "mix", "real_share": share} for share in (0.25, 1.0)]
    one = spec(policies=["replace", *mixes, {"name": "control", "of": {"name": "replace"}}])
    assert {label for _, label in select_verdicts(one, ["any"])} == {"replace", "mix(real_share=0.25)"}
    assert {label for _, label in select_verdicts(one, ["any:mix"])} == {"mix(real_share=0.25)", "mix(real_share=1)"}
    assert select_verdicts(one, ["any:control"]) == {("any", "control")}
    assert select_verdicts(one, ["any:mix(real_share=1)"]) == {("any", "mix(real_share=1)")}
    labels = spec(policies=[{"name": "mix", "real_share": share} for share in (0.5, 1.0)])
    assert select_verdicts(labels, ["any:mix"]) == {("any", "mix")}  # a label stands for itself


def test_a_policy_counts_if_it_trains_on_synthetic_rows_at_one_point_of_a_sweep() -> None:
    swept = {"policies.mix.real_share": [1.0, 0.5]}
    one = spec(policies=[{"name": "mix", "real_share": 1.0}], sweep=swept)
    assert select_verdicts(one, ["any"]) == {("any", "mix")}
    assert select_verdicts(spec(policies=[{"name": "mix", "real_share": 0.5}]), ["any"]) == {("any", "mix")}


def verdicts(**answers: Answer) -> list[Verdict]:
    return [Verdict(criterion, "replace", answer) for criterion, answer in answers.items()]


def test_one_yes_is_yes_and_one_unknown_is_undecided() -> None:
    assert joint_answer(verdicts(a="no", b="yes", c="undecided")) == "yes"
    assert joint_answer(verdicts(a="no", b="not measured")) == "undecided"
    assert joint_answer(verdicts(a="not measured", b="not measured")) == "not measured"
    assert joint_answer(verdicts(a="no", b="no")) == "no"


def test_any_leaves_out_criteria_that_no_policy_measures_unless_none_is_measured(tmp_path: Path) -> None:
    result = run(spec(), tmp_path / "store")
    measured = {v.criterion for v in selected_verdicts(result, ["any"])}
    assert measured == {v.criterion for v in result.verdicts() if v.answer != "not measured"}
    assert "any_increase" in measured
    assert "tail_loss" not in measured
    unmeasured = run(spec(criteria=["tail_loss"]), tmp_path / "store")
    assert {v.answer for v in selected_verdicts(unmeasured, ["any"])} == {"not measured"}
    assert [v.criterion for v in selected_verdicts(result, ["tail_loss:replace"])] == ["tail_loss"]


def test_many_policies_are_counted_in_one_line() -> None:
    many = [Verdict("any_increase", f"p{i}", "yes", "nll") for i in range(5)]
    assert describe_answers(many, 3) == (
        "--fail-on: any_increase is yes for p0, p1, p2 and 2 more (nll); verdicts: 5 yes, 0 undecided or not measured, 0 no. "
        "Exit code 3."
    )
