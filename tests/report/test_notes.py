"""Notes: how numbers were computed and compared, and which chains ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from example_corpus import Parrot, corpus_spec

import selfloop
from selfloop.report.notes import notes
from selfloop.result import Result
from selfloop.store.calls import Usage

TORCH, CUDA = ("training", "torch cpu float32"), ("training", "torch cuda float32")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return selfloop.run(corpus_spec(family=Parrot(max_times=1)), tmp_path_factory.mktemp("store"))


def test_ended_chains_are_counted_with_their_status(result: Result) -> None:
    assert "replace: 0 of 2 chains are left at the end (diverged)." in list(notes(result))


def test_mixed_backends_are_named_with_their_records(result: Result) -> None:
    used = {"replace": Usage(backends={TORCH: 5, CUDA: 1}), "accumulate": Usage(backends={TORCH: 4, ("sampling", "C"): 2})}
    mixed = replace(result, usage=used, shared=Usage(backends={TORCH: 2}))
    (sentence,) = [note for note in notes(mixed) if "backends" in note]
    assert sentence == (
        "Different backends, whose numbers agree only within rounding, were used for training: "
        "torch cpu float32 (7 records), torch cuda float32 (1 record)."
    )


def test_one_backend_per_purpose_is_not_mentioned(result: Result) -> None:
    used = {"replace": Usage(backends={TORCH: 5, ("sampling", "C"): 1})}
    assert not any("backends" in note for note in notes(replace(result, usage=used)))


def test_policies_of_an_ensemble_on_rows_and_on_statistics_are_not_paired(tmp_path: Path) -> None:
    policies = ["replace", "accumulate_subsample"]
    spec = selfloop.Spec(source="linear", family="linear", n=60, generations=2, seeds=2, policies=policies)  # type: ignore[arg-type]
    (note,) = notes(selfloop.run(spec, tmp_path))
    assert note.startswith("Drawn row by row: accumulate_subsample; from sufficient statistics: replace.")
