"""Which statuses are evidence of collapse: every status of the source code is listed, and the others never count as worst."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import selfloop
from selfloop.criteria.judging import COLLAPSES, NO_COLLAPSES
from selfloop.engine.curves import NO_MEASUREMENT, NOT_COMPUTED, NOT_FINITE
from selfloop.report.build import build_report
from selfloop.report.notes import missing_values
from selfloop.types import Measurement

ROOT = Path(selfloop.__file__).parent
ALL_ENDED = "ended"  # of an ensemble whose chains have all had their last measurement: the loop stops, nothing is reported


def constants() -> dict[str, str]:
    """Texts that a module gives a name in capitals."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")]
    assignments = [node for tree in trees for node in tree.body if isinstance(node, ast.Assign)]
    pairs = [(getattr(node.targets[0], "id", ""), getattr(node.value, "value", None)) for node in assignments]
    return {name: value for name, value in pairs if name.isupper() and isinstance(value, str)}


NAMED = {**constants(), "NAMED_FOR_TEST": "new"}


def strings(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        text = each.value if isinstance(each, ast.Constant) else NAMED.get(getattr(each, "id", ""))
        if isinstance(text, str):
            yield text


def statuses(code: str) -> set[str]:
    """Every text that a module raises, returns or assigns as a status."""
    names = set[str]()
    for node in ast.walk(ast.parse(code)):
        called = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and called in ("ChainEndedError", "EnsembleFit"):
            arguments = [*node.args[called == "EnsembleFit" :], *(keyword.value for keyword in node.keywords)]
            assert not any(
                isinstance(argument, ast.JoinedStr | ast.BinOp) and called == "ChainEndedError" for argument in arguments
            )
            names |= {text for argument in arguments if not isinstance(argument, ast.Subscript) for text in strings(argument)}
        elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "status" for target in node.targets):
            names |= {*strings(node.value)}
        elif isinstance(node, ast.FunctionDef) and node.name.endswith("_status"):
            returns = [each for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
            names |= {text for each in returns for text in strings(each)}
    return names


def test_every_status_in_the_source_code_is_listed_as_collapse_or_not() -> None:
    in_code = {NOT_COMPUTED, NOT_FINITE}.union(*(statuses(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")))
    in_code -= {ALL_ENDED}
    assert in_code == {*COLLAPSES, *NO_COLLAPSES}
    assert not {*COLLAPSES} & {*NO_COLLAPSES}


@pytest.mark.parametrize(
    "code",
    [
        'raise ChainEndedError("new")',
        "raise ChainEndedError(NAMED_FOR_TEST)",
        'def f(): return EnsembleFit(params, ["new"] * seeds)',
        'status = [None if fitted else "new" for fitted in has_model]',
        "def _status(self):\n    if a:\n        return 'new'\n    return None if b else c",
    ],
)
def test_a_new_status_is_noticed_in_every_form(code: str) -> None:
    assert statuses(code) == {"new"}
    assert statuses('raise ChainEndedError(result["ended"])\nstatus = path.stat()') == set()


@pytest.mark.parametrize("status", ["diverged", "no_training_tokens", "too_few_rows", "too_few_curated_rows", "of_a_plugin"])
def test_rows_that_run_out_are_no_collapse_in_verdicts_comparisons_findings_and_medians(status: str, tmp_path: Path) -> None:
    policies = ("accumulate", "replace")
    spec = selfloop.Spec(source="moons", family="kde", n=30, generations=6, seeds=5, policies=policies, metrics=("nll",))
    result = selfloop.run(spec, tmp_path)
    ended = result.table[(), "replace"]
    for t in range(3, 7):  # all chains end at generation 3
        for s in range(5):
            ended.values["nll"][s, t - 1] = np.nan
            ended.codes["nll"][s, t - 1] = NO_MEASUREMENT
    for s in range(5):
        ended.add(Measurement("", s, 3, "nll", None, status), s)
    answers = {(verdict.policy, verdict.criterion): verdict for verdict in result.verdicts()}
    for criterion in ("any_increase", "catastrophic_increase", "divergence"):
        verdict = answers["replace", criterion]
        assert (verdict.answer == "yes") == (status == "diverged"), verdict
        assert verdict.reason.startswith("cannot be judged") == (status != "diverged")
        assert verdict.reason.endswith(f"({status})")
        assert not answers["accumulate", criterion].reason.startswith("cannot be judged")
    (comparison,) = result.compare()
    assert comparison.answer == "undecided"
    report = build_report(result)
    (curve,) = [curve for curve in report.panels[0].curves if curve.policy == "replace"]
    assert curve.ends_are_worst == (status == "diverged")
    assert np.isnan(curve.summary.median[2:]).all()
    assert not any("collapse" in sentence for sentence in (*report.findings, *report.notes))


def test_a_median_counts_one_chain_as_worst_only_if_it_diverged(tmp_path: Path) -> None:
    spec = selfloop.Spec(source="moons", family="kde", n=30, generations=2, seeds=3, policies=("replace",), metrics=("nll",))
    medians = {}
    for status in ("diverged", "too_few_rows"):
        result = selfloop.run(spec, tmp_path)
        curves = result.table[(), "replace"]
        curves.values["nll"][:] = [[1.0, 2.0], [1.0, 3.0], [1.0, 4.0]]
        curves.add(Measurement("", 0, 2, "nll", None, status), 0)
        medians[status] = build_report(result).panels[0].curves[0].summary.median
    assert medians["diverged"].tolist() == [1.0, 4.0]
    assert medians["too_few_rows"][0] == 1.0
    assert np.isnan(medians["too_few_rows"][1])


def test_a_result_without_values_explains_its_statuses(tmp_path: Path) -> None:
    spec = selfloop.Spec(source="moons", family="kde", n=30, generations=2, seeds=1, policies=("replace",), metrics=("nll",))
    result = selfloop.run(spec, tmp_path)
    curves = result.table[(), "replace"]
    for t, status in ((1, "too_few_rows"), (2, "of_a_plugin")):
        curves.add(Measurement("", 0, t, "nll", None, status), 0)
    (sentence,) = missing_values(result)
    assert sentence.endswith("(of_a_plugin; too_few_rows: there are too few training rows for a model).")
