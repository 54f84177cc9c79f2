"""Published numbers: read as printed, laid only over runs they belong to, and measured again with an honest z."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from selfloop.commands.reproduce import reproduce, simulate
from selfloop.component import Family, Sampler, Scenario
from selfloop.errors import SpecError
from selfloop.families.gaussian import Gaussian as GaussianFamily
from selfloop.families.kde import Kde
from selfloop.families.linear import Linear as LinearFamily
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Replace, ReplaceMultiple, Window
from selfloop.published.papers import load, published_curves, works
from selfloop.sources.distributions import Gaussian, Linear
from selfloop.sources.shapes import Moons


def scenario(policy=None, source=None, family=None, n=100, generations=100, **rest):
    family = family or GaussianFamily()
    return Scenario(policy or Replace(), source or Gaussian(dim=10), family, family.sampler_class(), n, generations, **rest)


def test_every_published_number_has_a_source_and_its_generations_rise():
    for work in map(load, works()):
        assert work.title
        assert work.tables
        for table in work.tables:
            assert table.cite
            assert bool(table.scale) != bool(table.source)
            for points in table.curves.values():
                generations = [point.generation for point in points]
                assert generations == sorted(set(generations))
                assert all(np.isfinite(point.value) for point in points)


def test_printed_digits_say_how_far_a_number_is_rounded():
    replace = next(t for t in load("kazdan2025").tables if t.metric == "mean_error" and t.n == 1000).curves["replace"]
    assert (replace[0].value, replace[0].digit) == (0.0101, 1e-4)
    assert (replace[-1].generation, replace[-1].value, replace[-1].digit) == (100, 0.966, 1e-3)


def test_the_published_order_of_policies_holds_in_every_table():
    for work in map(load, works()):
        for table in work.tables:
            at = {name: {p.generation: p.value for p in points} for name, points in table.curves.items()}
            risk = table.metric != "variance_ratio"
            for t in set(at["replace"]) & set(at["accumulate"]) - {1, 2}:
                assert (at["accumulate"][t] < at["replace"][t]) == risk


def test_the_grid_of_real_and_synthetic_counts_is_read_cell_by_cell():
    (grid,) = load("kazdan2025").grids
    cells = {(cell.real, cell.synthetic): cell.values.tolist() for cell in grid.cells}
    assert len(grid.cells) == len(cells) == 35
    assert (cells[256, 0], cells[1024, 1024], cells[12000, 40000]) == ([1.395], [1.187], [1.123])
    assert (128, 0) not in cells


def test_an_unknown_work_is_named_with_the_nearest():
    with pytest.raises(SpecError, match="Did you mean 'kazdan2025'"):
        load("kazdan2024")


@pytest.mark.parametrize(
    ("chosen", "values"),
    [
        (scenario(), (0.101, 0.191, 0.457, 0.969, 1.86, 3.99, 6.85)),
        (scenario(Accumulate(), generations=10), (0.101, 0.123, 0.145, 0.154)),
        (scenario(source=Moons(group=100), family=Kde(bandwidth=0.1), generations=5), (0.73, 1.11, 2.04)),
    ],
)
def test_a_published_curve_lies_over_the_run_it_belongs_to(chosen, values):
    (overlay,) = published_curves(chosen)
    assert overlay.values == values
    assert overlay.generations == (1, 2, 5, 10, 20, 50, 100)[: len(values)]
    assert overlay.scale == ""


def test_multipliers_are_overlaid_in_the_units_of_the_metric():
    linear = scenario(ReplaceMultiple(), Linear(dim=10), LinearFamily(), generations=2)
    (overlay,) = published_curves(linear)
    assert overlay.values == pytest.approx((10 / 89, 15 / 89))


@pytest.mark.parametrize(
    "other",
    [
        scenario(n=101),
        scenario(Window(length=2)),
        scenario(AccumulateSubsample(budget=50)),
        scenario(source=Gaussian(dim=10, variance=2.0)),
        scenario(family=GaussianFamily(ddof=1)),
        scenario(source=Linear(dim=10, design="fresh"), family=LinearFamily()),
        scenario(curated=True),
        scenario(start="previous"),
    ],
)
def test_a_published_curve_stays_away_from_other_runs(other):
    assert published_curves(other) == []


@dataclass(frozen=True, kw_only=True)
class Drawn(Sampler):
    """As the sampler of texts."""

    name: ClassVar[str] = "drawn"
    temperature: float = 1.0
    top_k: int | None = None
    prompt: str = "start"


@dataclass(frozen=True, kw_only=True)
class Transformer(Family):
    """As the family of that name."""

    name: ClassVar[str] = "transformer"
    sampler_class: ClassVar[type[Sampler]] = Drawn
    arch: str = "gpt2"
    layers: int = 4
    hidden: int = 128


def beside(policy=None, sampler=None, generations=10, **family):
    """Curves of another scale for a small transformer."""
    made = scenario(policy or Replace(), family=Transformer(**family), generations=generations)
    return published_curves(replace(made, sampler=sampler or Drawn()), another_scale=True)


def test_curves_of_another_scale_come_only_when_asked_for_and_say_so():
    tiny = scenario(Accumulate(), family=Transformer(), generations=10)
    assert published_curves(tiny) == []
    found = published_curves(tiny, another_scale=True)
    assert [overlay.work for overlay in found] == ["gerstgrasser2024", "kazdan2025"]
    assert {overlay.scale for overlay in found} == {"GPT-2 9M, TinyStories"}
    assert found[0].values == (1.82, 1.74)
    assert found[1].values == (1.815, 1.781, 1.777, 1.779, 1.782, 1.796)


def test_they_are_of_the_same_policy_temperature_and_kind_of_model():
    assert [overlay.values for overlay in beside(ReplaceMultiple())] == [(1.82, 2.18)]
    assert [overlay.values for overlay in beside(sampler=Drawn(temperature=0.3))] == [(1.82, 5.82, 9.85)]
    assert [overlay.values[:2] for overlay in beside(sampler=Drawn(prompt="first_token"))] == [(1.82, 2.39), (1.815, 2.072)]
    assert beside(sampler=Drawn(temperature=0.7)) == []
    assert beside(sampler=Drawn(top_k=50)) == []
    assert beside(Window(length=2)) == []
    assert beside(arch="mamba") == []


@pytest.mark.parametrize(
    ("layers", "hidden", "nearest"), [(4, 128, "12M"), (8, 256, "12M"), (8, 480, "42M"), (12, 768, "126M"), (24, 2048, "126M")]
)
def test_of_each_work_the_model_nearest_in_size_is_shown(layers, hidden, nearest):
    found = beside(arch="llama", layers=layers, hidden=hidden)
    assert {overlay.scale for overlay in found} == {f"Llama-2 {nearest}, TinyStories"}
    assert len(found) == 2


def test_a_policy_that_the_nearest_model_was_not_run_with_is_taken_from_the_next():
    (found,) = beside(AccumulateSubsample(), arch="llama", layers=8, hidden=512)
    assert found.scale == "Llama-2 126M, TinyStories"


def published_means(table, seeds, progress, *, wrong=1.0):
    """Chains that scatter around the published numbers, as a correct program's would."""
    rng = np.random.default_rng(table.n)
    curves = {}
    for policy, points in table.curves.items():
        mean = np.interp(np.arange(1, table.generations + 1), [p.generation for p in points], [p.value for p in points])
        noise = 1 + 0.3 * rng.normal(size=(seeds, table.generations))
        curves[policy] = wrong * table.unit * mean * noise
    progress(1, 1)
    return curves


def test_every_number_of_the_chosen_groups_gets_a_line():
    told = []
    lines = reproduce("kazdan2025", ["gaussian", "linear"], measure=published_means, progress=lambda *done: told.append(done))
    tables = [t for t in load("kazdan2025").tables if t.group in ("gaussian", "linear")]
    assert len(lines) == sum(len(points) for t in tables for points in t.curves.values()) == 3 * 18 + 6 * 21
    assert told[-1] == (sum(t.generations * len(t.curves) for t in tables),) * 2
    assert lines[0].scenario == "gaussian, dim 100, ddof 0, n 10"


def test_right_numbers_pass_and_wrong_ones_do_not():
    right = [line.z for line in reproduce("kazdan2025", measure=published_means)]
    assert np.max(np.abs(right)) < 4
    assert np.std(right) < 1.2

    def wrong(table, seeds, progress):
        return published_means(table, seeds, progress, wrong=1.3)

    assert np.mean(np.abs([line.z for line in reproduce("kazdan2025", measure=wrong)]) > 4) > 0.8


def test_a_mean_that_one_chain_carries_is_marked():
    def heavy(table, seeds, progress):
        curves = published_means(table, seeds, progress)
        curves["replace"][0] *= 1000
        return curves

    lines = reproduce("gerstgrasser2024", measure=heavy)
    assert all(("heavy tail" in line.note) == (line.policy == "replace") for line in lines)


def test_an_ended_chain_leaves_a_line_without_a_number():
    def ended(table, seeds, progress):
        return {policy: np.full((seeds, table.generations), np.nan) for policy in table.curves}

    line = reproduce("gerstgrasser2024", measure=ended)[0]
    assert (line.measured, line.low, line.z) == (None, None, None)
    assert line.published == 1


@pytest.mark.parametrize(("only", "scale", "message"), [(["kdee"], "paper", "Did you mean 'kde'"), (None, "tiny", "scale")])
def test_unknown_groups_and_scales_are_refused_before_any_work(only, scale, message):
    with pytest.raises(SpecError, match=message):
        reproduce("kazdan2025", only, scale=scale, measure=lambda *_: pytest.fail("work was done"))


def test_the_laboratory_reproduces_the_linear_multipliers(tmp_path):
    lines = reproduce("gerstgrasser2024", scale="paper", store=tmp_path)
    assert max(abs(line.z) for line in lines) < 4
    (table,) = (table for table in load("gerstgrasser2024").tables if table.source)
    curves = simulate(table, 100, lambda *_: None, store=tmp_path)
    shifted = {policy: np.roll(each, -1, axis=1) for policy, each in curves.items()}  # off by one generation
    wrong = reproduce("gerstgrasser2024", measure=lambda *_: shifted)
    assert max(abs(line.z) for line in wrong if line.generation < 100) > 4
