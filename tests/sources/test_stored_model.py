"""Rows of a stored model as a source, and as rows from elsewhere in a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
from selfloop.component import Context
from selfloop.errors import SelfloopError
from selfloop.formats.safetensors import to_safetensors
from selfloop.rng import RandomStream
from selfloop.sources.stored_model import StoredModel
from selfloop.spec.components import make_component
from selfloop.testing import check_source


def save(folder: Path, mean: float = 3.0) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(b"".join(to_safetensors({"mean": np.full(2, mean), "covariance": 0.25 * np.eye(2)})))
    return path


def source(path: Path, family: Any = "gaussian") -> StoredModel:
    made: StoredModel = make_component("source", {"name": "stored_model", "path": path, "family": family}, "source")
    return made


def test_rows_are_those_of_the_model(tmp_path: Path) -> None:
    check_source(source(save(tmp_path)), n=300)
    x = np.asarray(source(save(tmp_path)).draw(100, 5000, Context(RandomStream(("rows",))))["x"])
    assert np.abs(x.mean(axis=0) - 3).max() < 4 * 0.5 / np.sqrt(5000)
    assert np.abs(x.var(axis=0) - 0.25).max() < 4 * 0.25 * np.sqrt(2 / 5000)


def test_a_loop_trains_on_rows_of_a_model_from_elsewhere(tmp_path: Path) -> None:
    takes = [{"batch": "real(1)"}, {"batch": "external(t)"}]
    policy = {"name": "custom", "takes": takes, "external_rows": "n"}
    elsewhere = {"name": "stored_model", "path": save(tmp_path), "family": "gaussian"}
    spec = selfloop.Spec(
        source={"name": "gaussian", "dim": 2}, external=elsewhere, family="gaussian", n=400, generations=3, seeds=8,
        policies=[policy], metrics=["mean_error"],
    )  # fmt: skip
    error = selfloop.run(spec, tmp_path / "store").curves()["custom"]["mean_error"]
    assert np.abs(error[:, 1:].mean() - 2 * 1.5**2) < 0.3  # half of the rows are around 3, in two dimensions
    save(tmp_path, mean=0.0)  # another model is another source
    error = selfloop.run(selfloop.Spec(**{**spec_settings(spec), "external": elsewhere}), tmp_path / "store").curves()
    assert error["custom"]["mean_error"][:, 1:].mean() < 0.1


def spec_settings(spec: selfloop.Spec) -> dict[str, Any]:
    names = ("source", "family", "n", "generations", "seeds", "policies", "metrics")
    return {name: getattr(spec, name) for name in names}


@pytest.mark.parametrize(
    ("family", "message"),
    [("discrete", "is no model of family discrete"), ("linear", "is no model of family linear"), ("ngram", "a family of text")],
)
def test_a_model_of_another_family_is_one_sentence(family: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match=message):
        source(save(tmp_path), family).schema()


def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    for path in (tmp_path / "model.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(SelfloopError):
            source(path).schema()
