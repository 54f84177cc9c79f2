"""Identities are declared names and versions; equal versions give equal results.

`names.json` lists the version of every stored step and component, `goldens.json` summaries of tiny results of every family,
policy, sampler and metric. Changing either is a deliberate act: run `python tests/store/test_identity.py` to write both, and
raise the version of every component whose numbers changed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
import tiny_components
from selfloop.columns import Columns, Ragged
from selfloop.component import Component, Context, Family
from selfloop.engine import arrivals, curation, ensemble, merging, steps
from selfloop.errors import SelfloopError
from selfloop.plugins import BUILT_IN, component_class
from selfloop.policies.schedule import schedule
from selfloop.protocols import UsesEncoder
from selfloop.rng import RandomStream
from selfloop.spec.components import make_component
from selfloop.spec.spec import Spec
from selfloop.store.identity import component_identity, digest, identity, step_identity
from selfloop.types import RowTake, TrainingRows
from tiny_components import FAMILIES, METRICS, METRICS_WITH_FILES, small_source

HERE = Path(__file__).parent
NAMES, GOLDENS = HERE / "names.json", HERE / "goldens.json"
RELATIVE_TOLERANCE = 2e-3  # between processors (AVX2, AVX-512) after a few training steps in float32
CONTEXT = Context(RandomStream(("golden",)))


def declared_names() -> list[str]:
    """Identity of every stored step and of every built-in component, encoders and samplers included."""
    functions = [
        value
        for module in (arrivals, steps, ensemble, curation, merging)
        for value in vars(module).values()
        if hasattr(value, "stored_step")
    ]
    classes = {component_class(kind, name, "test") for kind, names in BUILT_IN.items() for name in names}
    classes |= {cls.sampler_class for cls in classes if issubclass(cls, Family)}
    classes |= set(subclasses(Component)) - {cls for cls in subclasses(Component) if not hasattr(cls, "name")}
    ours = [cls for cls in classes if cls.__module__.startswith("selfloop.")]
    return sorted({*map(step_identity, functions), *map(component_identity, ours)})


def subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def summary(columns: Columns) -> dict[str, Any]:
    """Per column its type, its shape, and the mean and root mean square of its finite values."""
    found: dict[str, Any] = {}
    for name, column in columns.items():
        values = np.asarray(column.values if isinstance(column, Ragged) else column)
        numbers = values[np.isfinite(values)].astype(np.float64)
        shape = [len(column.offsets), len(values)] if isinstance(column, Ragged) else list(values.shape)
        moments = [float(numbers.mean()), float(np.sqrt((numbers**2).mean()))] if numbers.size else []
        found[name] = [str(values.dtype), shape, moments]
    return found


def policy_golden(name: str) -> str:
    """Digest of the schedule of a policy with its default settings."""
    settings = {
        "fixed_counts": {"real_rows": 7, "synthetic_rows": 9},
        "custom": {"takes": [{"batch": "synthetic(1..t-1)"}]},
        "curated": {"curators": ["deduplicate"]},
        "switch": {"to": "accumulate", "at": 3},
    }
    policy = make_component("policy", {"name": name, **settings.get(name, {})}, "policy")
    text = repr([(entry.new_rows, entry.plan) for entry in schedule(policy, 40, 6)])
    return digest(text.replace(", start=0", "").replace(", external=0", "").encode())  # fields that were added later


def family_golden(name: str) -> dict[str, Any]:
    """Summaries of a tiny fit and of a few samples."""
    family, source = make_component("family", FAMILIES[name][0], "family"), small_source(name)
    rows, prepared = source.draw(0, 40, CONTEXT.child("source")), {}
    if isinstance(family, UsesEncoder):
        encoder = family.encoder()
        prepared = dict(encoder.prepare([rows], CONTEXT.child("encoder")))
        rows = encoder.encode(rows, prepared)
    params = family.fit(TrainingRows((RowTake(rows),), prepared), CONTEXT.child("fit"), None)
    inputs = source.draw_inputs(20, rows, CONTEXT.child("source"))
    samples = family.sample(params, 20, family.sampler_class(), inputs, CONTEXT.child("sample"))
    return {"params": summary(params), "samples": summary(samples)}


def metric_goldens(name: str, store: Path) -> dict[str, float | None]:
    """Values of the metrics of a tiny model of a family."""
    family, source = FAMILIES[name]
    common = {"family": family, "source": source, "n": 30, "holdout": small_source(name).n_holdout() or 20, "generations": 1}
    spec = Spec(**common, seeds=1, policies=("replace",), metrics=METRICS[name])
    curves = selfloop.run(spec, store).curves()["replace"]
    return {metric: None if np.isnan(values[0, 0]) else float(values[0, 0]) for metric, values in curves.items()}


def check_close(found: Any, expected: Any, where: str) -> None:
    """Equal structure, numbers equal within the tolerance."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            check_close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            check_close(a, b, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=RELATIVE_TOLERANCE, abs=1e-6), where
    else:
        assert found == expected, where


def test_every_identity_is_listed() -> None:
    found, listed = set(declared_names()), set(json.loads(NAMES.read_text()))
    assert found >= listed, f"gone: {listed - found}"
    assert {name for name in found - listed if name.startswith("selfloop")} == set()


@pytest.mark.parametrize("name", BUILT_IN["policy"])
def test_a_policy_of_the_same_version_has_the_same_schedule(name: str) -> None:
    assert policy_golden(name) == json.loads(GOLDENS.read_text())["policies"][name]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_the_same_version_gives_the_same_models_and_samples(name: str) -> None:
    check_close(family_golden(name), json.loads(GOLDENS.read_text())["families"][name], name)


@pytest.mark.parametrize("name", FAMILIES)
def test_metrics_of_the_same_version_give_the_same_values(name: str, tmp_path: Path) -> None:
    check_close(metric_goldens(name, tmp_path), json.loads(GOLDENS.read_text())["metrics"][name], name)


def test_every_metric_has_a_golden_value() -> None:
    values = [value for metrics in json.loads(GOLDENS.read_text())["metrics"].values() for value in metrics]
    assert set(BUILT_IN["metric"]) - METRICS_WITH_FILES <= set(values)


def test_a_wrong_golden_value_is_noticed() -> None:
    golden = json.loads(GOLDENS.read_text())["families"]["gaussian"]
    golden["params"]["mean"][2][1] *= 1.01
    with pytest.raises(AssertionError, match="mean"):
        check_close(family_golden("gaussian"), golden, "gaussian")


def test_moving_a_file_changes_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(str(importlib.import_module("selfloop.families.kde").__file__))
    moved = tmp_path / "moved_kde.py"
    moved.write_text(source.read_text())
    spec = importlib.util.spec_from_file_location("selfloop.elsewhere.moved_kde", moved)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    original = component_class("family", "kde", "test")
    assert module.Kde.__module__ != original.__module__
    assert identity(module.Kde(bandwidth=0.5)) == identity(original(bandwidth=0.5))  # type: ignore[call-arg]


def test_a_version_a_setting_and_a_package_are_part_of_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    kde: Any = component_class("family", "kde", "test")
    before = json.dumps(identity(kde(bandwidth=0.5)))
    assert json.dumps(identity(kde(bandwidth=0.6))) != before
    monkeypatch.setattr(kde, "version", kde.version + 1)
    changed_version = json.dumps(identity(kde(bandwidth=0.5)))
    monkeypatch.undo()
    monkeypatch.setattr(kde, "__module__", "other.families.kde")
    assert len({before, changed_version, json.dumps(identity(kde(bandwidth=0.5)))}) == 3


@dataclass(frozen=True, kw_only=True)
class Heir(tiny_components.Mean):
    """A subclass without a name of its own."""


def test_a_class_that_inherits_its_name_has_another_identity_than_its_parent() -> None:
    assert component_identity(Heir) != component_identity(tiny_components.Mean)


def test_two_classes_of_one_package_with_one_name_are_refused() -> None:
    first, second = (type(cls, (Component,), {"name": "twin", "__module__": __name__}) for cls in ("First", "Second"))
    assert component_identity(first).startswith("test_identity/component/twin@1+")
    with pytest.raises(SelfloopError, match="Second: has the name 'twin' of First"):
        component_identity(second)
    with pytest.raises(SelfloopError, match="Nameless: has no name"):
        component_identity(type("Nameless", (Component,), {}))


def keep_close(found: Any, written: Any) -> Any:
    """The new values, but with the numbers that are written already where they are equal within the tolerance."""
    if isinstance(found, dict):
        return {key: keep_close(value, written.get(key) if isinstance(written, dict) else None) for key, value in found.items()}
    if isinstance(found, list) and isinstance(written, list) and len(found) == len(written):
        return [keep_close(a, b) for a, b in zip(found, written, strict=True)]
    try:
        check_close(found, written, "")
    except AssertionError:
        return found
    return written


def write_files() -> None:
    """Write names.json, and the numbers in goldens.json that have changed, from the present code."""
    import tempfile

    goldens: dict[str, Any] = {"policies": {name: policy_golden(name) for name in BUILT_IN["policy"]}}
    goldens["families"] = {name: family_golden(name) for name in FAMILIES}
    goldens["metrics"] = {name: metric_goldens(name, Path(tempfile.mkdtemp())) for name in FAMILIES}
    GOLDENS.write_text(json.dumps(keep_close(goldens, json.loads(GOLDENS.read_text())), indent=1) + "\n")
    NAMES.write_text(json.dumps([name for name in declared_names() if name.startswith("selfloop")], indent=1) + "\n")


if __name__ == "__main__":
    write_files()
