"""Metrics on a second set of held-out rows: equal to a computation by hand, without an effect on any other number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_parents import Shifted, stored_curves

import selfloop
from selfloop.columns import Columns, Floats, Ragged
from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.families.kde import Kde
from selfloop.families.ngram import Ngram
from selfloop.report.build import build_report
from selfloop.rng import RandomStream
from selfloop.sources.distributions import GaussianSource
from selfloop.sources.expressions import Expressions
from selfloop.spec.parse import parse_spec
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.types import RowTake, TrainingRows

NOISY, CLEAN = (Expressions(kind="arithmetic", depth=1, rows=120, noise=share) for share in (0.5, 0.0))


def make_spec(**changes: Any) -> Spec:
    texts = {"source": NOISY, "family": {"name": "ngram", "order": 6, "vocab": 257}, "metrics": ["cross_entropy"]}
    sizes = {"n": 40, "holdout": 30, "generations": 2, "seeds": [3], "policies": ["replace"]}
    return Spec(**{**texts, **sizes, **changes})


def points(**changes: Any) -> Spec:
    return make_spec(source=GaussianSource(dim=2), n=20, **{"family": "kde", "metrics": ["nll"], "seeds": 2, **changes})


def run(spec: Spec, store: Path) -> dict[str, Floats]:
    return selfloop.run(spec, store).curves()["replace"]


def test_the_second_rows_are_the_held_out_expressions_with_their_true_values(tmp_path: Path) -> None:
    measured = run(make_spec(second_holdout=CLEAN), tmp_path)
    family = Ngram(order=6, vocab=257)
    encoder = family.encoder()
    prepared = encoder.prepare(NOISY.chunks(), Context(RandomStream(())))
    corpora = {source.noise: encoder.encode(next(source.chunks()), prepared) for source in (NOISY, CLEAN)}
    order = NOISY.order(corpora[0.5], Context(RandomStream(("seed", 3, "source"))))

    def rows(noise: float, first: int, n: int) -> Columns:
        return {"tokens": corpora[noise]["tokens"][order[first : first + n]]}

    model = family.fit(TrainingRows((RowTake(rows(0.5, 30, 40), None, 1.0),), prepared), Context(RandomStream(())), None)
    by_hand = {noise: -float(np.mean(family.token_log_prob(model, rows(noise, 0, 30), Context(RandomStream(()))).values))
               for noise in corpora}  # fmt: skip
    assert measured["cross_entropy"][0, 0] == pytest.approx(by_hand[0.5], rel=1e-6)
    assert measured["cross_entropy_second_holdout"][0, 0] == pytest.approx(by_hand[0.0], rel=1e-6)
    assert abs(by_hand[0.5] - by_hand[0.0]) > 0.001
    seen = {text.partition(b" = ")[0] for text in _texts(NOISY, order[30:70])}
    assert not seen & {text.partition(b" = ")[0] for text in _texts(CLEAN, order[:30])}


def _texts(source: Expressions, positions: np.ndarray[Any, Any]) -> list[bytes]:
    column = next(source.chunks())["text"]
    assert isinstance(column, Ragged)
    return column[positions].to_bytes()


@pytest.mark.parametrize("make", [make_spec, points])
def test_no_other_number_changes(make: Any, tmp_path: Path) -> None:
    second = CLEAN if make is make_spec else Shifted()
    before, after = run(make(), tmp_path / "a"), run(make(second_holdout=second), tmp_path / "b")
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
    added = {name for name in after if name not in before}
    assert added == {f"{name}_second_holdout" for name in before if name in ("cross_entropy", "perplexity", "nll")}


@pytest.mark.parametrize("policy", ["replace", "accumulate"])
def test_both_worlds_measure_it_as_by_hand_although_families_keep_densities_of_the_holdout(policy: str, tmp_path: Path) -> None:
    spec = points(second_holdout=Shifted(mean=2.0), policies=[policy], generations=3)
    together, one_by_one = selfloop.run(spec, tmp_path / "a").curves()[policy], stored_curves(spec, tmp_path / "b")
    for name in ("nll", "nll_second_holdout"):
        np.testing.assert_allclose(together[name], one_by_one[name], rtol=1e-9)
    ctx = Context(RandomStream(("seed", 1, "source")))
    model = Kde().fit(TrainingRows((RowTake(spec.source.draw(30, 20, ctx), None, 1.0),), {}), ctx, None)
    expected = [-float(Kde().log_prob(model, source.draw(0, 30, ctx)).mean()) for source in (spec.source, Shifted(mean=2.0))]
    assert [together[name][1, 0] for name in ("nll", "nll_second_holdout")] == pytest.approx(expected, rel=1e-9)
    assert expected[1] > expected[0] + 0.5


def test_reports_name_the_second_holdout(tmp_path: Path) -> None:
    panels = build_report(selfloop.run(make_spec(second_holdout=CLEAN), tmp_path)).panels
    titles = {panel.metric: (panel.title, panel.unit, panel.curves[0].better) for panel in panels}
    first, second = (titles[f"perplexity{end}"] for end in ("", "_second_holdout"))
    assert second == (f"{first[0]} (second holdout)", *first[1:]) == (second[0], "tokens", "lower")


def test_directions_follow_the_metric_and_a_spec_reads_as_itself() -> None:
    metrics = ["accuracy", "log_loss", "predicted_share"]
    spec = make_spec(source="imbalanced", family="glm", metrics=metrics, second_holdout={"name": "imbalanced", "share": 0.5})
    directions, end = spec.directions(), "_second_holdout"
    assert [directions[f"{name}{end}"] for name in metrics] == ["higher", "lower", f"predicted_share_real{end}"]
    assert f"log_loss{end}" in spec.positive_metrics()
    assert parse_spec(spec_text(spec), "spec").second_holdout == spec.second_holdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["text_length"]}, "second_holdout: unused; no metric measures held-out rows"),
        ({"holdout": 0, "metrics": ["text_length"]}, "second_holdout: unused"),
        ({"second_holdout": "zipf"}, "family ngram models the columns text; zipf has symbol"),
        ({"second_holdout": Expressions(rows=29)}, "second_holdout: 30 rows are held out; expressions has 29. Lower holdout"),
        ({"subsets": "disjoint", "seeds": 1}, "second_holdout: cannot be combined with"),
    ],
)
def test_a_second_holdout_that_cannot_be_measured_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_spec(**{"second_holdout": CLEAN, **changes}).points()


@pytest.mark.parametrize("key", ["second_holdout", "external"])
def test_errors_name_the_table_of_the_source(key: str, tmp_path: Path) -> None:
    takes = {"takes": [{"batch": "external(1)"}], "external_rows": "9", "synthetic_rows": "n"}
    policies = [{"name": "custom", **takes}] if key == "external" else ["replace"]
    absent = {"name": "text", "path": str(tmp_path / "absent.txt")}
    with pytest.raises(DataError, match=rf"^{key}\.path: .* Set it: --set {key}\.path="):
        make_spec(policies=policies, **{key: absent}).points()
    with pytest.raises(SpecError, match=f"^{key}: family ngram models the columns text; digits has image"):
        make_spec(policies=policies, **{key: "digits"}).points()
