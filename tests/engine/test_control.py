"""A control trains on as many rows, tokens and steps of real data as its policy does in the same chain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import selfloop
import tiny_components
from selfloop.engine import steps
from selfloop.engine.tasks import Task, plan_tasks, run_task
from selfloop.errors import DataError, SelfloopError, SpecError
from selfloop.report.notes import notes
from selfloop.spec.spec import Spec
from selfloop.store.store import Store
from tiny_language_models import ragged, token_lists

POLICIES = ("replace", "accumulate", "control", {"name": "control", "of": "accumulate"})
TRANSFORMER = {"name": "transformer", "layers": 1, "hidden": 8, "heads": 1, "context": 16, "vocab": 300}


def text_spec(folder: Path, **changes: Any) -> Spec:
    rng = np.random.default_rng(0)
    file = folder / "words.txt"
    file.write_text("\n\n".join("a b " * k + str(i) for i, k in enumerate(rng.integers(1, 30, 60))))
    training = {"batch_size": 4, "learning_rate": 0.01}
    settings: dict[str, Any] = {
        "source": {"name": "text", "path": file}, "family": TRANSFORMER | {"training": training}, "n": 12, "holdout": 5,
        "generations": 3, "seeds": 2, "policies": POLICIES, "metrics": ("cross_entropy",),
    }  # fmt: skip
    return Spec(**settings | changes)


def test_a_control_of_text_has_the_tokens_and_steps_of_its_policy(tmp_path: Path) -> None:
    result = selfloop.run(text_spec(tmp_path, sampler={"max_tokens": 9}), tmp_path / "store")
    curves = result.curves()
    for policy, control in (("replace", "control"), ("accumulate", "control(of=accumulate)")):
        assert np.array_equal(curves[policy]["training_tokens"], curves[control]["training_tokens"])
        # a cut text is followed by a start token, which is no target and may begin another window
        assert np.abs(curves[policy]["training_steps"] - curves[control]["training_steps"]).max() <= 1
        assert np.array_equal(curves[policy]["cross_entropy"][:, 0], curves[control]["cross_entropy"][:, 0])
        assert (curves[policy]["cross_entropy"][:, 1:] != curves[control]["cross_entropy"][:, 1:]).all()
    assert (curves["replace"]["training_tokens"][:, 1] != curves["replace"]["training_tokens"][:, 0]).all()
    assert result.schedules()["control"][2].real_mass == 1
    assert not any("control trains on" in note for note in notes(result))


def test_the_control_of_a_policy_whose_curators_keep_fewer_rows_has_their_tokens(tmp_path: Path) -> None:
    curator = {"name": "top_share", "score": "likelihood", "share": 0.5}
    curated = {"name": "replace", "curators": [curator], "max_rounds": 1}
    spec = text_spec(tmp_path, policies=(curated, {"name": "control", "of": curated}), generations=2, sampler={"max_tokens": 9})
    (of, control) = selfloop.run(spec, tmp_path / "store").curves().values()
    assert (of["kept_share"][:, 0] < 1).all()
    assert np.array_equal(of["training_tokens"], control["training_tokens"])


def test_a_control_never_lengthens_real_texts_and_says_so(tmp_path: Path) -> None:
    result = selfloop.run(text_spec(tmp_path), tmp_path / "store")
    tokens = {label: curves["training_tokens"] for label, curves in result.curves().items()}
    assert (tokens["control"][:, 1:] < tokens["replace"][:, 1:]).all(), "the test needs a model whose texts are long"
    share = (tokens["control"] / tokens["replace"]).min()
    assert f"control trains on {share:.0%} to 100% of the tokens of replace" in "".join(notes(result))


def test_a_control_on_the_initial_texts_says_that_it_has_more_tokens(tmp_path: Path) -> None:
    policies = ("replace", {"name": "control", "rows": "initial"})
    result = selfloop.run(text_spec(tmp_path, policies=policies, sampler={"max_tokens": 9}), tmp_path / "store")
    tokens = {label: curves["training_tokens"] for label, curves in result.curves().items()}
    share = (tokens["control"] / tokens["replace"]).max()
    assert share > 1.5
    assert f"control trains on 100% to {share:.0%} of the tokens of replace" in "".join(notes(result))


def test_the_cost_of_a_control_is_that_of_its_own_steps(tmp_path: Path) -> None:
    policies = ("control", "replace")
    for _ in range(2):
        result = selfloop.run(text_spec(tmp_path, policies=policies), tmp_path / "store")
        counts = {label: usage.computed + usage.reused for label, usage in result.usage.items()}
        assert counts["control"] == counts["replace"] + 2 * 2 * 2, counts  # real rows are taken and cut


def test_the_numbers_of_a_control_do_not_depend_on_other_policies_and_workers(tmp_path: Path) -> None:
    many = selfloop.run(text_spec(tmp_path, generations=2), tmp_path / "many", workers=2).curves()["control"]
    alone = selfloop.run(text_spec(tmp_path, generations=2, policies=("control",)), tmp_path / "alone").curves()["control"]
    assert all(np.array_equal(many[metric], alone[metric]) for metric in alone)


def test_a_control_replays_its_policy_and_computes_nothing_twice(tmp_path: Path) -> None:
    result = selfloop.run(text_spec(tmp_path), tmp_path / "store")
    again = selfloop.run(text_spec(tmp_path), tmp_path / "store")
    fits = {label: usage.by_step["fit"] for label, usage in result.usage.items()}
    assert [computed for computed, _ in fits.values()] == [4] * 4  # two seeds, two generations
    assert sum(usage.computed for usage in again.usage.values()) == 0


def test_a_custom_policy_and_its_control_are_one_group(tmp_path: Path) -> None:
    custom = {"name": "custom", "takes": [{"batch": "real(1)"}, {"batch": "synthetic(t-1)"}]}
    policies = ({"name": "control", "of": custom}, "replace", custom)
    spec = text_spec(tmp_path, policies=policies, generations=2, seeds=1, n=6)
    assert [task.policies for task in plan_tasks(spec, tmp_path)[-1]] == [(2, 0), (1,)]
    curves = selfloop.run(spec, tmp_path / "store").curves()
    assert np.isfinite([measured["cross_entropy"] for measured in curves.values()]).all()


def test_a_control_in_an_ensemble_stays_where_its_source_is() -> None:
    spec = Spec(
        source="gaussian", family="gaussian", n=20, generations=6, seeds=300, policies=("replace", "control"),
        metrics=("variance_ratio",),
    )  # fmt: skip
    last = {label: curves["variance_ratio"][:, -1] for label, curves in selfloop.run(spec).curves().items()}
    assert abs(last["control"].mean() / 0.95 - 1) < 4 * last["control"].std() / 300**0.5  # the divisor is n
    assert last["replace"].mean() < 0.85


def test_a_source_with_too_few_rows_can_repeat_the_initial_ones(tmp_path: Path) -> None:
    few: dict[str, Any] = {"policies": ({"name": "control", "of": "accumulate"},), "generations": 5}
    with pytest.raises(SpecError, match=r'policy control with n = 12 .* needs 65 real rows; .* has 60.*rows = "initial"'):
        text_spec(tmp_path, **few).points()
    few["policies"][0]["rows"] = "initial"
    tokens = selfloop.run(text_spec(tmp_path, **few), tmp_path / "store").curves()["control"]["training_tokens"]
    assert np.array_equal(tokens, tokens[:, :1] * np.arange(1, 6))


def test_a_run_of_a_family_without_steps_counts_no_steps(tmp_path: Path) -> None:
    assert "training_steps" not in selfloop.run(tiny_components.tiny_spec(), tmp_path).metrics()


def test_counts_can_be_tokens(tmp_path: Path) -> None:
    policies = ("replace", {"name": "mix", "real_share": 0.25}, "accumulate_subsample", "accumulate", "control")
    spec = text_spec(tmp_path, unit="tokens", n=400, policies=policies)
    result = selfloop.run(spec, tmp_path / "store")
    longest = 16 * 8  # tokens of a sampled row, at most
    for label, curves in result.curves().items():
        tokens, growth = curves["training_tokens"], np.arange(1, 4) if label == "accumulate" else 1
        extra = np.abs(tokens - 400 * growth)  # every take ends with a whole row
        n_takes = np.arange(1, 4) if label == "accumulate" else 2
        assert (extra < longest * n_takes).all()
    assert result.schedules()["mix"][1].real_mass == pytest.approx(0.25)  # now a share of the tokens
    real_rows = text_rows(result, "control")
    assert len({row for batch in real_rows for row in batch}) == sum(map(len, real_rows)), "batches do not overlap"


def text_rows(result: selfloop.Result, label: str) -> list[list[tuple[int, ...]]]:
    """The rows that each generation of a chain with one take was fitted on."""
    task = Task(result.points[0], (result.spec.policy_labels().index(label),), (0,), 3, result.store, 1)
    store = Store(result.store, read_only=True)
    store.record_calls = True
    list(run_task(task, store))
    takes = [call.arguments[1] for call in store.calls if call.step is steps.fit]
    return [[tuple(row) for row in token_lists(store.open(rows)["tokens"])] for ((rows, _, _),) in takes]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n": None}, "n: missing; with unit = 'tokens', set n to the number of initial real tokens"),
        ({"subsets": "disjoint"}, "subsets: cannot be combined with unit = 'tokens'"),
        ({"family": "gaussian", "source": "gaussian", "metrics": ()}, "unit: got 'tokens'; family gaussian models no text"),
        ({"unit": "words"}, "unit: got 'words'; expected \"rows\" or \"tokens\""),
    ],
)  # fmt: skip
def test_counts_that_cannot_be_tokens_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match=re.escape(problem)):
        text_spec(tmp_path, **{"unit": "tokens", "n": 400, **changes}).points()


def test_more_tokens_than_the_source_has_are_refused_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^n: 10,000 real tokens are needed beside the holdout; text has [\d,]+\. Lower n"):
        selfloop.run(text_spec(tmp_path, unit="tokens", n=10_000), tmp_path / "store")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.lists(st.integers(0, 12), max_size=9))
def test_real_rows_are_cut_at_one_length_to_the_tokens_of_the_synthetic_ones(real: list[int], synthetic: list[int]) -> None:
    rows = [[10 * i + j for j in range(length)] for i, length in enumerate(real)]
    matched = token_lists(
        steps.match_tokens({"tokens": ragged(rows)}, {"tokens": ragged([[1] * k for k in synthetic])})["tokens"]
    )
    n_cut = min(len(synthetic), len(real))
    assert all(row == whole[: len(row)] for row, whole in zip(matched, rows, strict=True))
    assert matched[n_cut:] == rows[n_cut:]
    lengths = [len(row) for row in matched[:n_cut]]
    assert sum(lengths) == min(sum(synthetic), sum(real[:n_cut])) if n_cut else True
    longest = max(lengths, default=0)
    assert all(new == old or new >= longest - 1 for new, old in zip(lengths, real, strict=False))
