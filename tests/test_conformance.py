"""Every built-in component passes the checks of `selfloop.testing`, and the checks notice errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given

import selfloop
import tiny_components
from policy_strategies import STRATEGIES, policies
from selfloop.columns import Columns, Params
from selfloop.component import Context, Family, Policy, Sampler
from selfloop.errors import DataError
from selfloop.plugins import BUILT_IN, component_class
from selfloop.sources.image_arrays import Digits
from selfloop.spec.components import make_component
from selfloop.spec.spec import Spec
from selfloop.testing import check_family, check_policy, check_source
from selfloop.types import TrainingRows
from tiny_components import FAMILIES, METRICS

PICTURES, MOLECULES = {"idx", "cifar", "image_folder", "celeba", "hub_images"}, {"sdf", "geom", "qm9"}
FILES = (
    PICTURES | MOLECULES | {"text", "tinystories", "jsonl", "hub_text", "stored_model", "records", "arrivals"}
)  # sources of files; with the tests of sources
BASES = {"finetune", "copula", "command"}  # families of given models, and of files; with their own tests


@given(policies)
def test_every_policy_keeps_its_contract(policy: Policy) -> None:
    check_policy(policy, n=30, generations=6)


@pytest.mark.parametrize("name", sorted(set(BUILT_IN["source"]) - FILES))
def test_every_source_keeps_its_contract(name: str) -> None:
    check_source(make_component("source", name, "source"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_keeps_its_contract(name: str) -> None:
    family, source = FAMILIES[name]
    check_family(make_component("family", family, "family"), make_component("source", source, "source"), n=60)


@pytest.mark.parametrize("name", ["vae", "image_diffusion"])
def test_samples_may_lack_columns_that_a_family_does_not_model(name: str) -> None:
    check_family(make_component("family", FAMILIES[name][0], "family"), Digits(labels=True), n=60)


def test_every_built_in_is_checked() -> None:
    assert set(FAMILIES) | BASES == set(BUILT_IN["family"])
    assert set(STRATEGIES) == set(BUILT_IN["policy"])
    assert all(component_class("source", name, "test") for name in FILES)


def test_components_of_a_user_s_own_pass() -> None:
    check_source(tiny_components.Ticks())
    check_family(tiny_components.Mean(), tiny_components.Ticks())


@dataclass(frozen=True, kw_only=True)
class Own(Family):
    """The mean image, repeated. It does not model labels."""

    name: ClassVar[str] = "own"
    required_columns: ClassVar[tuple[str, ...]] = ("image",)
    less: int = 0  # missing rows of a sample
    column: str = "image"

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        return {"mean": np.asarray(rows.all()["image"]).mean(axis=0)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {self.column: np.repeat(params["mean"].astype(np.uint8)[None], n - self.less, axis=0)}


def own(family: Own) -> Spec:
    return Spec(source=Digits(labels=True), family=family, n=20, holdout=5, generations=3, seeds=1,
                policies=("replace", "accumulate", "fresh"), metrics=("pixel_std",))  # fmt: skip


def test_a_family_of_a_user_s_own_trains_on_real_and_sampled_rows_that_differ_in_other_columns(tmp_path: Path) -> None:
    check_family(Own(), Digits(labels=True))
    curves = selfloop.run(own(Own()), tmp_path).curves()
    assert all(np.isfinite(curves[policy]["pixel_std"]).all() for policy in ("replace", "accumulate", "fresh"))


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        (Own(less=1), r"family\.own: sample returned 19 rows; expected 20"),
        (Own(column="picture"), r"family\.own: sample returned columns picture; expected image"),
    ],
)
def test_wrong_samples_of_a_family_are_one_sentence(family: Own, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence):
        selfloop.run(own(family), tmp_path)


@dataclass(frozen=True, kw_only=True)
class Drifting(tiny_components.Ticks):
    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": ctx.stream.child(first).generator().standard_normal(n)}


@dataclass(frozen=True, kw_only=True)
class Short(tiny_components.Ticks):
    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": np.zeros(max(n - 1, 0))}


@dataclass(frozen=True, kw_only=True)
class Global(tiny_components.Mean):
    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        np.random.rand()  # noqa: NPY002  # forbidden for a family
        return {"x": np.zeros(n)}


@dataclass(frozen=True, kw_only=True)
class Fickle(tiny_components.Mean):
    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"x": np.random.default_rng().standard_normal(n)}


@dataclass(frozen=True, kw_only=True)
class Greedy(tiny_components.Mean):
    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        rows = rows.takes[0].rows["x"]
        assert isinstance(rows, np.ndarray)
        rows += 1
        return {"mean": np.asarray(0.0)}


@dataclass(frozen=True, kw_only=True)
class Endless(tiny_components.Mean):
    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        return {"mean": np.asarray(np.inf)}


@dataclass(frozen=True, kw_only=True)
class Remembering(tiny_components.Mean):
    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        object.__setattr__(self, "limit", 7.0)
        return {"mean": np.asarray(0.0)}


@dataclass(frozen=True, kw_only=True)
class Single(tiny_components.Mean):
    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"x": np.zeros(n, np.float32)}


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (lambda: check_source(Drifting()), "how they are divided|how rows are divided"),
        (lambda: check_source(Short()), "returned 29 rows"),
        (lambda: check_source(tiny_components.Ticks(rows=5)), "it has 5 rows"),
        (lambda: check_family(Global(), tiny_components.Ticks()), "global randomness"),
        (lambda: check_family(Fickle(), tiny_components.Ticks()), "another result the second time"),
        (lambda: check_family(Greedy(), tiny_components.Ticks()), "read-only"),
        (lambda: check_family(Endless(), tiny_components.Ticks()), "not finite"),
        (lambda: check_family(Remembering(), tiny_components.Ticks()), "changed the family's settings"),
        (lambda: check_family(Single(), tiny_components.Ticks()), "float32"),
    ],
)
def test_the_checks_notice(check: Callable[[], None], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=sentence):
        check()


@pytest.mark.parametrize("name", METRICS)
def test_every_secondary_value_of_a_metric_has_a_title_and_every_title_a_value(name: str) -> None:
    goldens = json.loads((Path(__file__).parent / "store" / "goldens.json").read_text())  # of the same metrics, measured there
    metrics = [make_component("metric", metric, "metrics") for metric in METRICS[name]]
    drawn_together = "^(class|attribute)_share_|^(symbols|tokens)_alive_"
    by_no_metric = re.compile(f"{drawn_together}|_trivial$|^training_(steps|tokens)$")
    measured = {value for value in goldens["metrics"][name] if not by_no_metric.search(value)}
    expected = {*METRICS[name], *(title for metric in metrics for title in metric.secondary_titles)}
    assert measured == expected - {"text_length_prompt_share"}  # has a value with prompts only
