"""The examples run as their first lines state, in small."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import selfloop
from selfloop.spec.parse import read_spec
from selfloop.testing import check_command
from tiny_components import selfloop as command_line

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["generations=2", "seeds=1", 'policies=["replace"]']


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an example in a copy of all, in which the test runs with this Python as `python`."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    folder: Path = tmp_path / "examples" / request.param
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("example", ["mixture"], indirect=True)
def test_a_mixture_of_scikit_learn_runs_and_has_the_loss_of_its_density(example: Path) -> None:
    result = selfloop.run(read_spec("mixture.toml", [*SMALL, "holdout=60"]), "store", workers=1)
    curves = result.curves()["replace"]
    assert curves["evaluation_species"].tolist() == [[3, 3]]
    assert 8 < curves["evaluation"][0, 0] < 12  # nats: log of the species, 2.5 for lengths and 7.5 for grams


@pytest.mark.parametrize("example", ["bootstrap"], indirect=True)
def test_a_shell_program_keeps_its_contract_and_its_means_drift(example: Path) -> None:
    spec = read_spec("bootstrap.toml", ["seeds=2", "generations=3"])
    seconds = check_command(spec.family, spec.source, spec.sampler)
    assert seconds.keys() == {"train", "sample", "evaluate"}
    losses = selfloop.run(spec, "store", workers=1).curves()["replace"]["evaluation"]
    assert losses.shape == (2, 3)
    assert (losses > 0).all()
    assert (losses < 0.2).all()
    assert len(np.unique(losses)) == 6


@pytest.mark.parametrize("example", ["flow"], indirect=True)
def test_a_torch_program_reports_its_own_loss(example: Path) -> None:
    text = Path("flow.toml").read_text().replace('"1000"', '"120"')
    Path("flow.toml").write_text(text)
    small = [*SMALL, "generations=1"]
    done = command_line("run", "flow.toml", *(part for key in small for part in ("--set", key)), "--store", "store", "-q")
    assert done.code == 0, done.err
    losses = selfloop.run(read_spec("flow.toml", small), "store", workers=1).curves()["replace"]["evaluation"]
    assert 0.5 < losses[0, 0] < 3.0  # two standard normal numbers have 2.84 nats and the moons fewer


def test_every_example_is_a_spec_or_a_web() -> None:
    assert {path.parent.name for path in EXAMPLES.glob("*/*.toml")} == {"mixture", "bootstrap", "flow", "web"}
