"""The primary comparison: declared in the spec, checked before any work, judged alone and shown first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

import selfloop
from selfloop.errors import SpecError
from selfloop.report.build import build_report
from selfloop.report.findings import findings
from selfloop.spec.parse import parse_spec
from selfloop.spec.write import spec_text

PRIMARY = {"higher": "replace", "lower": "accumulate", "generation": 4}


def make_spec(**changes: Any) -> selfloop.Spec:
    settings = {"source": "linear", "family": "linear", "n": 60, "generations": 5, "seeds": 8, "primary": PRIMARY}
    return selfloop.Spec(**{**settings, **changes})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"higher": "replce"},
            "primary.higher: unknown policy 'replce'. Did you mean 'replace'? Allowed: accumulate, replace.",
        ),
        ({"lower": "replace"}, "primary.lower: got replace for both policies. Name two different ones."),
        ({"generation": 6}, "primary.generation: got 6; expected 2 to 5, the generations."),
        ({"generation": 0}, "primary.generation: got 0; expected"),
        ({"generation": 1}, "primary.generation: got 1; expected"),
        ({"metric": "nll"}, "primary.metric: unknown metric 'nll'."),
        ({"margin": -1.0}, "primary.margin: got -1.0"),
        ({"generatio": 4}, "primary.generatio: unknown key 'generatio'. Did you mean 'generation'?"),
    ],
)
def test_what_the_spec_does_not_have_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as refusal:
        make_spec(primary={**PRIMARY, **change})
    assert str(refusal.value).startswith(sentence)


def test_an_empty_table_is_none() -> None:
    assert make_spec(primary={}) == make_spec(primary=None)


def test_an_incomplete_or_odd_declaration_is_refused() -> None:
    with pytest.raises(SpecError, match=r"primary\.generation: missing"):
        make_spec(primary={"higher": "replace", "lower": "accumulate"})
    with pytest.raises(SpecError, match="primary: got 'replace'; expected a table"):
        make_spec(primary="replace")
    with pytest.raises(SpecError, match=r"primary\.generation: got 4; expected 2 to 3"):
        make_spec(sweep={"generations": [5, 3]}).points()


def test_it_is_written_and_read_again() -> None:
    spec = make_spec(primary={**PRIMARY, "margin": 0.5})
    assert parse_spec(spec_text(spec), "spec").primary == spec.primary
    assert "primary" not in spec_text(make_spec(primary=None))


def test_it_is_shown_first_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    result = selfloop.run(make_spec(), tmp_path)
    first, *others = result.compare()
    assert (first.higher, first.lower, first.declared, first.metric) == ("replace", "accumulate", True, "excess_risk")
    assert others == selfloop.run(make_spec(primary=None), tmp_path).compare()
    sentence = next(findings(result))
    assert sentence.startswith("Primary comparison: replace > accumulate: ")
    assert "replace − accumulate in excess_risk at t = 4 is " in sentence
    report = build_report(result)
    assert report.findings[0] == sentence
    assert not any(pair.declared for pairs in report.differences.values() for pair in pairs)


def test_it_may_be_about_another_metric_and_has_its_own_margin(tmp_path: Path) -> None:
    metrics = ["mean_error", "variance_ratio"]
    primary = {**PRIMARY, "metric": "variance_ratio", "margin": 10.0}
    spec = make_spec(source="gaussian", family="gaussian", metrics=metrics, primary=primary)
    result = selfloop.run(spec, tmp_path)
    assert [pair.metric for pair in result.compare()] == ["variance_ratio", "mean_error"]
    assert result.compare()[0].reason == "no difference as large as 10"
    assert not any(pair.declared for pair in result.compare(metric="mean_error"))


def test_its_interval_is_the_one_that_decides(tmp_path: Path) -> None:
    result = selfloop.run(make_spec(), tmp_path)
    curves = result.curves()
    difference = curves["replace"]["excess_risk"][:, 3] - curves["accumulate"]["excess_risk"][:, 3]
    interval = result.compare()[0].differences[3]
    low, high = stats.t.interval(0.96, 7, difference.mean(), stats.sem(difference))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert (result.compare()[0].answer == "holds") == (low > 0)
    assert next(findings(result)).endswith("] (96 %).")
