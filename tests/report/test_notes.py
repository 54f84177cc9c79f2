"""Notes: how numbers were computed and compared, and which chains ended."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_corpus import Parrot, corpus_spec

import selfloop
from selfloop.commands.console import print_summary
from selfloop.engine.curves import Curves
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
    population, note = notes(selfloop.run(spec, tmp_path))
    assert population == "Intervals over seeds are for the population: linear draws new rows for every seed."
    assert note.startswith("Drawn row by row: accumulate_subsample; from sufficient statistics: replace.")


TABLE = {"name": "table", "dataset": "diabetes"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"source": TABLE}, "are for this data set, the 442 rows of table, and not for .* divides them anew. With subsets = "),
        ({"source": {**TABLE, "split_seed": 1}}, "are for this data set, .* all seeds share them and their holdout"),
        ({"source": TABLE, "subsets": "disjoint"}, "are for the population of which table is a sample: seeds share none"),
        ({"source": "logistic", "n": 20}, "are for the population: logistic draws new rows for every seed"),
    ],
)
def test_the_report_and_the_summary_say_what_intervals_are_for(
    changes: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = selfloop.run(selfloop.Spec(**{"family": "glm", "generations": 2, "seeds": 2, **changes}), tmp_path)
    assert len([note for note in notes(result) if re.search(f"^Intervals over seeds {sentence}", note)]) == 1
    print_summary(result)
    assert re.search(f"Intervals over seeds {sentence}", " ".join(capsys.readouterr().out.split()))


def test_prompts_and_windows_that_change_what_a_number_means_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": f"a cat and {i} dogs ran to the sun"}) + "\n" for i in range(40)))
    family = {"name": "transformer", "layers": 1, "hidden": 8, "heads": 2, "vocab": 300, "training": {"steps": 2}}
    spec = selfloop.Spec(
        source={"name": "jsonl", "path": path},  # type: ignore[arg-type]
        family=family, sampler={"prompt": "prefix", "prefix_tokens": 6, "max_tokens": 12},  # type: ignore[arg-type]
        metrics=("cross_entropy", "text_length"), policies=("replace",), generations=3, seeds=1,  # type: ignore[arg-type]
        sweep={"family.context": (8, 16)},
    )  # fmt: skip
    shares = {"text_length_prompt_share": np.array([[0.52, 0.79, np.nan]])}  # the chain ended
    table = {(point.coordinates, "replace"): Curves((0,), 3, shares) for point in spec.points()}

    def data_notes(changed: selfloop.Spec) -> str:
        return "\n".join(notes(Result(changed, table, tmp_path)))

    assert "real tokens that real mass does not count. 52.0% to 79.0% of the sampled tokens" in data_notes(spec)
    assert "in the windows of training: the shorter the context, " in data_notes(spec)
    half = replace(spec, metrics=({"name": "cross_entropy", "stride": "half"}, "text_length"))  # type: ignore[arg-type]
    assert "windows of training" not in data_notes(half)
    plain = replace(spec, sampler={"prompt": "start"})  # type: ignore[arg-type]
    assert "prompts" not in data_notes(plain)
