"""Metrics of samples read as many rows of every policy's model: equal models have equal values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import selfloop
from selfloop.columns import Ragged
from selfloop.commands.plan import plan
from selfloop.component import SampleMetric
from selfloop.engine.tasks import plan_tasks, replay_chain
from selfloop.plugins import BUILT_IN, component_class
from selfloop.spec.spec import Spec

METRICS = ("text_length", "vocabulary", "tail_mass", "distinct", "self_bleu", "repetition", "duplicate_rate",
           "self_cross_entropy", "memorization")  # fmt: skip
NO_ROWS = {"name": "mix", "real_share": 1.0}
POLICIES = ("replace", "growing", {"name": "mix", "real_share": 0.4}, NO_ROWS)  # sample n, 2 n, 0.6 n and no rows of model 1


def text_spec(folder: Path, unit: str = "rows", **changes: object) -> Spec:
    """Rows of 10 to 40 tokens of 60 words."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice([*"abcdefgh"], rng.integers(2, 6))) for _ in range(60)]
    rows = [" ".join(rng.choice(words, rng.integers(10, 40))) for _ in range(300)]
    (folder / "rows.txt").write_text("\n\n".join(rows))
    settings = {
        "source": {"name": "text", "path": str(folder / "rows.txt")}, "family": {"name": "ngram", "vocab": 400},
        "n": 60 if unit == "rows" else 1500, "holdout": 10, "generations": 2, "seeds": 1, "policies": POLICIES,
        "metrics": METRICS, "sampler": {"max_tokens": 60}, "unit": unit,
    }  # fmt: skip
    return Spec(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_policies_with_equal_models_have_equal_values_of_every_sample_metric(tmp_path: Path, unit: str) -> None:
    spec = text_spec(tmp_path, unit)
    result = selfloop.run(spec, tmp_path / "store")
    curves = result.curves()
    for name in METRICS:
        values = [measured[name][0, 0] for measured in curves.values()]
        assert np.isfinite(values[0]), name
        assert len({*values}) == 1, (name, values)
    assert len({measured["text_length"][0, 1] for measured in curves.values()}) == len(POLICIES)  # the models differ
    lengths = {}
    for task in plan_tasks(spec, tmp_path / "store")[-1]:  # on the rows that each policy itself samples the values would differ
        world = replay_chain(task)
        if batch := world.samples[1]:
            rows = world.store.open(batch)["tokens"]
            assert isinstance(rows, Ragged)
            lengths[world.policy] = float(np.diff(rows.offsets).mean())
    assert len(lengths) == len({*lengths.values()}) == 3


def test_the_step_that_measures_equal_models_is_shared(tmp_path: Path) -> None:
    list(selfloop.iter_measurements(text_spec(tmp_path, generations=1, metrics=("text_length",)), tmp_path))
    assert count_steps(tmp_path, "measure") == 1
    assert count_steps(tmp_path, "sample") == 3  # of replace, growing and the first mix; the second one reads those of replace


def test_a_spec_without_a_sample_metric_samples_nothing_for_it(tmp_path: Path) -> None:
    spec = text_spec(tmp_path, policies=(NO_ROWS,), metrics=("cross_entropy",))
    list(selfloop.iter_measurements(spec, tmp_path))
    assert count_steps(tmp_path, "sample") == 0
    list(selfloop.iter_measurements(replace(spec, metrics=("cross_entropy", "text_length")), tmp_path))
    assert count_steps(tmp_path, "sample") == 2
    assert [cost.stored for cost in plan(spec, tmp_path)] == [2]


def count_steps(store: Path, step: str) -> int:
    bodies = [json.loads(path.read_bytes())["body"] for path in (store / "records").rglob("*.json")]
    return sum(body["provenance"]["step"] == f"selfloop.{step}@1" for body in bodies)


def test_only_metrics_of_samples_read_samples() -> None:
    classes = [component_class("metric", name, "metric") for name in BUILT_IN["metric"]]
    reading = {cls.name for cls in classes if cls.uses_samples}  # type: ignore[attr-defined]
    assert {cls.name for cls in classes if issubclass(cls, SampleMetric)} | {"conformer_coverage", "evaluation"} == reading
    assert not any(cls.uses_samples and hasattr(cls, "measure_ensemble") for cls in classes)  # an ensemble has no others
