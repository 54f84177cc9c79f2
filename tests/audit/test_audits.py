"""Audits of loops with a known excess: some degrade, some are within the bound, some cannot be judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drifting import Centered, drifting_spec

from selfloop.audit.answer import Audit, audit_to_json, first_screen
from selfloop.audit.design import design_audit, parse_seconds
from selfloop.audit.run import AuditRunner, run_audit
from selfloop.audit.share import ShareSearch, add_share, measure_share
from selfloop.errors import SpecError
from selfloop.result import Result
from selfloop.spec.components import make_component
from selfloop.spec.parse import parse_spec, spec_from_table
from selfloop.spec.spec import Spec


def audit(spec: Spec, store: Path, bound: str = "5%", **options: object) -> Audit:
    return run_audit(design_audit(spec, bound=bound), AuditRunner(store, **options))  # type: ignore[arg-type]


def test_a_loop_that_shifts_its_samples_degrades_by_the_excess_that_follows(tmp_path: Path) -> None:
    answer = audit(drifting_spec(shift=0.2), tmp_path)
    # Means of generations 1 to 4: 0, 0.2, 0.4, 0.6, so the loss is 1.36 in place of 1.
    assert answer.verdict == "degrades"
    assert answer.exit_code == 3
    assert answer.excess.estimate == pytest.approx(0.36, abs=0.06)
    assert answer.growth.estimate == pytest.approx(1.36 ** (1 / 3) - 1, abs=0.02)
    assert answer.excess.low is not None
    assert answer.excess.low > 0.05
    assert [interval.estimate for interval in answer.excess_curve][:1] == [0]
    assert answer.seeds in answer.looks
    assert answer.cost.fits == answer.seeds * (1 + 2 * 3)  # generation 1 is shared by the policy and its control


def test_a_loop_without_shift_is_within(tmp_path: Path) -> None:
    answer = audit(drifting_spec(), tmp_path)
    assert (answer.verdict, answer.exit_code) == ("within", 0)
    assert answer.excess.high is not None
    assert answer.excess.high < 0.05


def test_what_fine_tuning_alone_damages_is_not_blamed_on_synthetic_rows(tmp_path: Path) -> None:
    spec = drifting_spec(damage=0.3, init_from="previous", policies=("replace", "accumulate"))
    answer = audit(spec, tmp_path)
    assert [each.verdict for each in answer.all()] == ["within", "within"]
    # The wrong comparison, with generation 1, would blame it: the loss nearly doubles.
    assert answer.result is not None
    losses = answer.result.curves()["replace"]["drift_loss"]
    assert np.log(losses[:, -1] / losses[:, 0]).min() > np.log(1.5)


def test_damage_beside_a_shift_is_blamed_for_the_shift_alone(tmp_path: Path) -> None:
    answer = audit(drifting_spec(damage=0.3, shift=0.3, init_from="previous"), tmp_path)
    assert answer.verdict == "degrades"
    assert answer.excess.estimate == pytest.approx(0.81 / 1.9, abs=0.12)


def test_collapsed_chains_are_evidence_and_others_cannot_be_judged(tmp_path: Path) -> None:
    collapsed = audit(drifting_spec(shift=0.5, limit=0.8), tmp_path / "a")
    assert collapsed.verdict == "degrades"
    assert collapsed.seeds == 8  # 5 chains of 5 are no proof
    assert "8 of 8 chains of the policy collapsed" in collapsed.reason
    assert json.loads(audit_to_json(collapsed))["excess"] == {"estimate": None, "low": None, "high": None, "n": 8}
    other = audit(drifting_spec(shift=0.5, limit=0.8, status="too_few_rows"), tmp_path / "b")
    assert (other.verdict, other.exit_code) == ("not auditable", 4)
    assert "too_few_rows" in other.reason
    assert "NOT AUDITABLE" in first_screen(other)


def test_the_control_repeats_initial_rows_where_there_are_too_few(tmp_path: Path) -> None:
    few, many = (design_audit(drifting_spec(rows=rows)) for rows in (700, 1600))
    assert "initial" in few.pairs[0].note
    assert "fresh" in many.pairs[0].note
    answer = run_audit(few, AuditRunner(tmp_path))
    assert "do not suffice" in answer.control_note
    assert "The initial real rows again" in first_screen(answer)


def test_rows_that_arrive_later_are_those_of_the_control_if_there_are_enough(tmp_path: Path) -> None:
    for t, rows in ((1, 900), (2, 60), (3, 60)):
        lines = (f"{x:.6f},{y:.6f}" for x, y in np.random.default_rng(t).standard_normal((rows, 2)))
        (tmp_path / f"week-{t}.csv").write_text("\n".join(["a,b", *lines]))
    source = {"name": "arrivals", "of": {"name": "records", "path": str(tmp_path)}}
    table = {"source": source, "family": "copula", "holdout": 100, "policies": ["replace"], "metrics": ["nll"]}
    designs = [design_audit(spec_from_table({**table, "generations": 3, "n": n})) for n in (50, 100)]
    assert [design.pairs[0].rows for design in designs] == ["fresh", "initial"]  # the first file alone has enough for both


def test_a_control_of_the_spec_keeps_its_rows() -> None:
    spec = drifting_spec(policies=("replace", {"name": "control", "rows": "initial"}))
    assert "initial" in design_audit(spec).pairs[0].note


def test_an_audit_again_costs_no_fit_and_more_policies_reuse_the_first_model(tmp_path: Path) -> None:
    first = audit(drifting_spec(shift=0.2), tmp_path)
    again = audit(drifting_spec(shift=0.2), tmp_path)
    assert again.cost.fits == 0
    assert again.excess == first.excess
    more = audit(drifting_spec(shift=0.2, policies=("replace", "accumulate_subsample")), tmp_path)
    seeds = more.audits[0].seeds
    assert more.cost.fits == seeds * (1 + 4 * 3) - first.seeds * (1 + 2 * 3)


def test_the_answer_of_a_policy_stays_while_others_are_looked_at(tmp_path: Path) -> None:
    answer = audit(drifting_spec(shift=0.3, policies=("replace", "mix")), tmp_path, bound="12%")
    degrades, mix = answer.all()
    assert degrades.verdict == "degrades"
    assert degrades.seeds <= mix.seeds
    assert degrades.result is not None
    assert len(degrades.result.spec.seeds) == degrades.seeds


def test_a_budget_that_is_spent_leaves_it_undecided_with_what_is_stored(tmp_path: Path) -> None:
    design = design_audit(drifting_spec(shift=0.2))
    none = run_audit(design, AuditRunner(tmp_path, budget=1e-9))
    assert (none.verdict, none.result, none.exit_code) == ("undecided", None, 4)
    assert "budget" in first_screen(none)
    fits = run_audit(design, AuditRunner(tmp_path, max_fits=10))
    assert "10 fits" in fits.reason


def test_seeds_of_an_earlier_look_are_not_counted_in_the_budget_again(tmp_path: Path) -> None:
    spec = drifting_spec(shift=0.08, n=30, generations=3)
    answer = run_audit(design_audit(spec, bound="3%", looks=(3, 4)), AuditRunner(tmp_path, max_fits=24))
    assert (answer.seeds, answer.cost.fits) == (4, 4 * (1 + 2 * 2))


def test_an_undecided_audit_tells_how_many_seeds_would_decide(tmp_path: Path) -> None:
    spec = drifting_spec(shift=0.08, n=30, generations=3)
    answer = run_audit(design_audit(spec, bound="3%", looks=(3, 4)), AuditRunner(tmp_path))
    assert answer.verdict == "undecided"
    assert "seeds would decide" in answer.reason


def test_a_risk_without_a_zero_needs_an_absolute_bound(tmp_path: Path) -> None:
    spec = drifting_spec(shift=0.3, metric=Centered())
    with pytest.raises(SpecError, match=r"--bound: is needed, as centered has no natural zero.*--bound 0\.05points"):
        design_audit(spec)
    with pytest.raises(SpecError, match=r"--bound: got 5%, but centered has no natural zero"):
        design_audit(spec, bound="5%")
    answer = audit(spec, tmp_path, bound="0.2points")
    assert answer.verdict == "degrades"
    assert answer.is_absolute
    assert answer.excess.estimate == pytest.approx(0.81, abs=0.15)
    assert "points" in first_screen(answer)


def test_a_log_density_has_a_bound_in_nats_or_a_share_of_what_the_model_gains(tmp_path: Path) -> None:
    gaussian = 'n = 20\nholdout = 200\nmetrics = ["nll"]\npolicies = ["replace"]\nfamily.name = "{}"\nsource.name = "{}"\n'
    simple = audit(parse_spec(gaussian.format("gaussian", "gaussian"), "x"), tmp_path)
    assert (simple.is_absolute, simple.of) == (True, "nats per row")
    kde = audit(parse_spec(gaussian.format("kde", "moons"), "x"), tmp_path)
    assert not kde.is_absolute
    assert "gain over a normal distribution" in kde.of


@pytest.mark.parametrize("text", ["5", "0%", "-3%", "5000%", "nan%", "1 2%", "0.1nats", "%", "infpoints", ""])
def test_bounds_without_a_meaning_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--bound: got"):
        design_audit(drifting_spec(), bound=text)


def test_specs_that_cannot_be_audited_are_refused() -> None:
    with pytest.raises(SpecError, match="generations"):
        design_audit(drifting_spec(generations=1))
    with pytest.raises(SpecError, match="controls only"):
        design_audit(drifting_spec(policies=("control",)))
    with pytest.raises(SpecError, match="sweep"):
        design_audit(drifting_spec(sweep={"n": [10, 20]}))
    with pytest.raises(SpecError, match="metrics"):
        design_audit(drifting_spec(), metric="nll")
    with pytest.raises(SpecError, match="last look"):
        design_audit(drifting_spec(seeds=(3, 7)))


def test_policies_and_times_are_read_from_text() -> None:
    assert make_component("policy", "mix(real_share=0.3)", "--policy").real_share == 0.3
    assert make_component("policy", "replace", "--policy").name == "replace"
    assert [parse_seconds(text) for text in ("2h", "30m", "90s", "1.5 h")] == [7200, 1800, 90, 5400]
    for text in ("mix(", "mix(real_share)", "2 words", ""):
        with pytest.raises(SpecError, match="--policy"):
            make_component("policy", text, "--policy")
    for text in ("2", "h", "-1h", "0s"):
        with pytest.raises(SpecError, match="--budget"):
            parse_seconds(text)


# The share to keep. Under mix, the mean of generation t is (1 - share) (mean of t - 1 + shift), so the loss is known.


def excess_of_share(share: float, shift: float, generations: int = 4) -> float:
    mean = 0.0
    for _ in range(generations - 1):
        mean = (1 - share) * (mean + shift)
    return mean**2


def search(spec: Spec, store: Path, **settings: object) -> ShareSearch:
    return ShareSearch(spec, AuditRunner(store), **{"seeds": 8, "bound": "10%", **settings})  # type: ignore[arg-type]


def test_the_share_to_keep_is_the_one_that_the_recursion_gives(tmp_path: Path) -> None:
    keep = measure_share(search(drifting_spec(shift=0.4, n=2000), tmp_path))
    grid = np.arange(0, 1, 0.001)
    right = grid[np.argmax([excess_of_share(share, 0.4) < 0.1 for share in grid])]
    assert keep.answer == "keep"
    assert keep.low is not None
    assert keep.high is not None
    assert keep.estimate is not None
    assert keep.low - 0.01 <= right <= keep.high + 0.01
    assert abs(keep.estimate - right) < 0.05
    assert keep.high - keep.low < 0.2
    assert f"{100 * keep.estimate:.0f} %" in keep.text
    assert not keep.low - 0.01 <= right + 0.25 <= keep.high + 0.01, "an interval of everything would pass too"


def test_no_share_is_needed_by_a_loop_within_the_bound_and_some_bounds_are_out_of_reach(tmp_path: Path) -> None:
    assert measure_share(search(drifting_spec(shift=0.01, n=2000), tmp_path)).answer == "none needed"
    keep = measure_share(search(drifting_spec(shift=0.8, n=2000), tmp_path), between=(0.0, 0.3))
    assert keep.answer == "all real rows do not suffice"
    assert keep.estimate is None


def test_a_ratio_is_searched_as_a_share(tmp_path: Path) -> None:
    keep = measure_share(search(drifting_spec(shift=0.4, n=1000), tmp_path, setting="augment.ratio"))
    assert keep.answer == "keep"
    assert keep.estimate is not None
    right = next(share for share in np.arange(0, 1, 0.001) if excess_of_share(share, 0.4) < 0.1)
    assert abs(keep.estimate - right) < 0.08
    assert all(point.real_share == pytest.approx(1 / (1 + point.value)) for point in keep.points)


def test_all_shares_have_the_control_that_the_lowest_one_can_have(tmp_path: Path) -> None:
    asked, specs = search(drifting_spec(shift=0.4, rows=1000), tmp_path), list[Spec]()

    class Recorder(AuditRunner):
        def run(self, spec: Spec) -> Result:
            specs.append(spec)
            return super().run(spec)

    asked.runner = Recorder(tmp_path)
    keep = measure_share(asked)  # from a share of 0.5 on, there are enough rows for a control of fresh ones
    assert max(point.real_share for point in keep.points) > 0.5
    assert {spec.policies[1].settings()["rows"] for spec in specs} == {"initial"}
    assert "initial rows again" in keep.text


def test_an_audit_that_degrades_gets_its_share_and_one_within_gets_none(tmp_path: Path) -> None:
    for shift, has_share in ((0.4, True), (0.0, False)):
        design = design_audit(drifting_spec(shift=shift), bound="10%")
        runner = AuditRunner(tmp_path)
        answer = add_share(run_audit(design, runner), design, runner)
        assert (answer.keep is not None) == has_share
        assert ("KEEP" in first_screen(answer)) == has_share
        assert json.loads(audit_to_json(answer))["exit_code"] == answer.exit_code


def test_wrong_searches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--vary"):
        measure_share(search(drifting_spec(), tmp_path, setting="mix.ratio"))
    with pytest.raises(SpecError, match="--between"):
        measure_share(search(drifting_spec(), tmp_path), between=(0.5, 0.2))
    with pytest.raises(SpecError, match="--between"):
        measure_share(search(drifting_spec(), tmp_path, setting="augment.ratio"), between=(0.5, np.inf))


def test_the_store_saved_only_what_it_had_before_the_audit(tmp_path: Path) -> None:
    fresh = audit(drifting_spec(shift=0.2, policies=("replace", "accumulate")), tmp_path)
    assert fresh.cost.seconds_saved == pytest.approx(0, abs=1e-3)
    assert fresh.result is not None
    naive = sum(usage.seconds_saved for usage in fresh.result.usage.values())
    assert naive > 0, "both policies use the first model, which would count as saved"
    again = audit(drifting_spec(shift=0.2, policies=("replace", "accumulate")), tmp_path)
    assert again.cost.seconds_saved > 0


def test_seeds_that_are_all_the_same_prove_nothing_unless_the_policy_is_its_control(tmp_path: Path) -> None:
    class Rounded(Centered):
        name = "rounded"  # a metric that cannot change
        has_zero = True

        def measure(self, snap: object, ctx: object) -> dict[str, float]:
            return {"rounded": 1.0}

    answer = audit(drifting_spec(shift=0.2, metric=Rounded()), tmp_path)
    assert answer.verdict == "not auditable"
    assert "the same in every seed" in answer.reason
    real = audit(drifting_spec(shift=0.2, policies=({"name": "mix", "real_share": 1.0},)), tmp_path)
    assert real.verdict == "within", "all of its rows are real"


def test_a_bound_above_all_that_the_model_gained_is_pointed_out(tmp_path: Path) -> None:
    spec = parse_spec(NGRAM.format(path=write_words(tmp_path)), "x")
    loose, strict = (audit(spec, tmp_path, bound=bound) for bound in ("900%", "1%"))
    assert "generation 1 gains over the unigram distribution" in loose.reason
    assert "gains over" not in strict.reason
    assert "nats per token)" in first_screen(loose)


NGRAM = """
n = 60
holdout = 20
generations = 2
policies = ["replace"]
metrics = ["cross_entropy"]
source = {{ name = "text", path = "{path}", separator = "\\n" }}
family = {{ name = "ngram", order = 2 }}
"""


def write_words(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    path = folder / "words.txt"
    path.write_text("\n".join(" ".join(rng.choice(["red cat", "blue dog", "sun", "rain", "a tree"], 9)) for _ in range(120)))
    return path
