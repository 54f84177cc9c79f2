"""`selfloop check` and the checks of programs, metrics and criteria: each notices a component that breaks its contract."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from selfloop.component import Better, Context, Criterion, Metric
from selfloop.errors import DataError
from selfloop.families.command.family import CommandFamily
from selfloop.plugins import BUILT_IN
from selfloop.snapshots import Snapshot
from selfloop.sources.shapes import Moons
from selfloop.sources.text_corpora import PythonDocs
from selfloop.spec.components import make_component
from selfloop.testing import NothingMeasuredError, check_command, check_criterion, check_metric
from selfloop.types import Verdict
from tiny_components import FAMILIES, METRICS, Level, Mean, Ticks, selfloop, small_source

PICK = "awk -v n=$2 -v s=$4 '{r[NR]=$0} END {for (i = 0; i < n; i++) print r[(i+s)%NR+1]}'"
SAMPLE = f"head -1 $1/d > $3; tail -n +2 $1/d | {PICK} >> $3"


def programs(train: str = "cp $1 $2/d", sample: str = SAMPLE, evaluate: str = "", **settings: Any) -> CommandFamily:
    commands = {
        "train": ["sh", "-c", train, "sh", "{data}", "{model}", "{scratch}", "{seed}"],
        "sample": ["sh", "-c", sample, "sh", "{model}", "{n}", "{out}", "{seed}"],
    }
    if evaluate:
        commands["evaluate"] = ["sh", "-c", evaluate, "sh", "{model}", "{out}"]
    family: CommandFamily = make_component("family", {"name": "command", "commands": commands, **settings}, "family")
    return family


def test_programs_that_keep_their_contract_pass() -> None:
    seconds = check_command(programs(evaluate="echo '{\"loss\": 1}' > $2"), Moons())
    assert all(0 < value < 30 for value in seconds.values())
    assert seconds.keys() == {"train", "sample", "evaluate"}
    with pytest.warns(UserWarning, match="not reproducible"):
        check_command(programs("cp $1 $2/d; date +%N > $2/time", reproducible=False), Moons())


def test_programs_of_texts_pass_if_they_read_quotes_and_newlines() -> None:
    lines = (
        "import json, random, sys; rows = open(sys.argv[1] + '/d').read().split(chr(10))[:-1]; random.seed(int(sys.argv[4]))\n"
    )
    lines += "with open(sys.argv[3], 'w') as f:\n    for _ in range(int(sys.argv[2])): f.write(random.choice(rows) + chr(10))"
    family = make_component("family", {"name": "command", "format": "jsonl", "commands": {
        "train": ["cp", "{data}", "{model}/d"],
        "sample": [sys.executable, "-c", lines, "{model}", "{n}", "{out}", "{seed}"],
    }}, "family")  # fmt: skip
    check_command(family, PythonDocs())
    with pytest.raises(DataError, match="wrote"):  # rows of awk are lines, and a text may have several
        check_command(programs(), PythonDocs())


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        (programs("cp $1 $2/d; date +%N > $2/time"), r"train wrote another model the second time\. Let \{seed\} decide"),
        (programs(sample=SAMPLE.replace(PICK, "shuf -r -n $2")), r"sample wrote other rows the second time"),
        (programs(sample=SAMPLE.replace("-v s=$4", "-v s=1")), r"sample wrote the same rows with another seed\. Use \{seed\}"),
        (programs(sample="cp $1/d $3"), r"wrote 50 rows; expected 1"),
        (
            programs("echo x >> $3/calls; sleep 0.3; cp $1 $2/d; cp $3/calls $2"),
            r"train wrote another model after it was killed\. Write \{scratch\} files whole",
        ),
        (programs(evaluate="echo '{\"loss\": '$(date +1%N)'}' > $2"), "evaluate wrote other values the second time"),
        (programs("exit 1"), r"train \(.*\) ended with exit code 1"),
    ],
)
def test_programs_that_break_their_contract_are_noticed(family: CommandFamily, sentence: str) -> None:
    with pytest.raises((AssertionError, DataError), match=sentence):
        check_command(family, Moons())


def write_spec(folder: Path, train: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(f"""
n = 20
holdout = 10
generations = 2
seeds = 1
policies = ["replace", {{ name = "replace", curators = ["deduplicate"] }}]
metrics = ["evaluation"]
source.name = "moons"
[family]
name = "command"
[family.commands]
train = ["sh", "-c", "{train}", "sh", "{{data}}", "{{model}}"]
sample = ["sh", "-c", "{SAMPLE}", "sh", "{{model}}", "{{n}}", "{{out}}", "{{seed}}"]
evaluate = ["sh", "-c", "echo '{{\\"loss\\": 1}}' > $1", "sh", "{{out}}", "{{model}}"]
""")
    return path


def test_the_command_prints_a_line_for_each_check_and_exits_with_1_if_one_fails(tmp_path: Path) -> None:
    done = selfloop("check", write_spec(tmp_path, "cp $1 $2/d"), "-q")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert all(line.startswith("ok     ") for line in lines)
    for name in ("source moons", "family command: sample again: the same rows", "family command: time per call, train ",
                 "policy replace + deduplicate", "curator deduplicate", "metric evaluation", "criterion diverg"):  # fmt: skip
        assert any(line.startswith(f"ok     {name}") for line in lines), name
    done = selfloop("check", write_spec(tmp_path, "cp $1 $2/d; date +%N > $2/time"), "-q")
    failures = [line for line in done.out.splitlines() if line.startswith("fails  ")]
    assert done.code == 1
    assert failures[0] == (
        "fails  family command: train again: the same model: train wrote another model the second time. Let {seed} decide, or "
        "set reproducible = false."
    )


def test_a_spec_with_a_mistake_is_no_failed_check(tmp_path: Path) -> None:
    path = write_spec(tmp_path, "cp $1 $2/d")
    done = selfloop("check", path, "-q", "--set", "family.format=images")
    assert (done.code, done.out) == (2, "")
    assert "family.format: got 'images'" in done.err


def test_other_families_are_checked_with_few_training_steps(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(
        'n = 50\nholdout = 20\nsource.name = "digits"\nfamily.name = "vae"\nmetrics = ["pixel_std"]\n'
    )
    done = selfloop("check", tmp_path / "spec.toml", "-q")
    assert done.code == 0, done.out
    assert "ok     family vae\n" in done.out


def test_a_default_metric_without_anything_to_measure_is_skipped_and_a_wrong_one_fails(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "rows.csv").write_text("a,b\n" + "".join(f"{a:.3f},{b:.3f}\n" for a, b in rng.normal(size=(80, 2))))
    (tmp_path / "spec.toml").write_text(
        f'n = 40\nholdout = 20\nfamily.name = "copula"\nsource.name = "records"\nsource.path = "{tmp_path}/rows.csv"\n'
    )
    done = selfloop("check", tmp_path / "spec.toml", "-q")
    assert done.code == 0, done.out
    assert "skips  metric lost_categories: it has no value for these rows.\n" in done.out
    assert "ok     metric correlation_distance" in done.out
    with pytest.raises(NothingMeasuredError):
        check_metric(SampleMean(mistake="nothing"), Ticks(), Mean())


@pytest.mark.parametrize("family", ["gaussian", "discrete", "linear", "glm", "kde", "gmm", "agents", "ngram"])
def test_metrics_of_statistical_families_pass(family: str) -> None:
    for metric in METRICS[family]:
        component = make_component("metric", metric, "metrics")
        check_metric(component, small_source(family), make_component("family", FAMILIES[family][0], "family"), n=60)


@dataclass(frozen=True, kw_only=True)
class SampleMean(Metric):
    """The mean of the samples, or a mistake."""

    name: ClassVar[str] = "sample_mean"
    mistake: str = ""

    def directions(self) -> dict[str, Better]:
        return {"sample_mean": "sample_mean_real" if self.mistake == "astray" else "lower"}

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, Any]:
        samples = np.asarray(snap.samples["x"])
        if self.mistake == "nothing":
            return {}
        if self.mistake == "writes":
            samples[:] = 0
        values = {
            "random": np.random.default_rng().normal(),
            "peeks": float(len(snap.holdout.get("x", ()))),  # type: ignore[arg-type]  # a dense column
            "vector": np.zeros(2),
        }
        return {"mean" if self.mistake == "name" else "sample_mean": values.get(self.mistake, float(samples.mean()))}


def test_a_metric_of_a_user_s_own_passes() -> None:
    check_metric(SampleMean(), Ticks(), Mean())
    check_metric(Level(), Ticks(), Mean())


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("name", "measure returned mean; expected one named sample_mean"),
        ("random", "another result the second time"),
        ("peeks", "its values depend on the holdout; set uses_holdout"),
        ("astray", "the best value of 'sample_mean' is that of 'sample_mean_real', which is not measured"),
        ("writes", "read-only"),
        ("vector", "value 'sample_mean' is not a number"),
    ],
)
def test_the_check_of_metrics_notices(mistake: str, sentence: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=sentence):
        check_metric(SampleMean(mistake=mistake), Ticks(), Mean())


def test_a_metric_without_the_ability_that_it_needs_is_noticed() -> None:
    with pytest.raises(AssertionError, match="it needs SupportsLogProb, which mean is not"):
        check_metric(make_component("metric", "nll", "metrics"), Ticks(), Mean())


@pytest.mark.parametrize("name", BUILT_IN["criterion"])
def test_every_criterion_keeps_its_contract(name: str) -> None:
    check_criterion(make_component("criterion", name, "criteria"))


@dataclass(frozen=True, kw_only=True)
class Rise(Criterion):
    """The metric rises."""

    name: ClassVar[str] = "rise"
    metrics: ClassVar[tuple[str, ...]] = ("m",)
    how: str = "mean"

    def judge(self, curves: Mapping[str, Any], directions: Mapping[str, Better] = {}) -> Verdict:
        if "m" not in curves and self.how != "blind":
            return Verdict("rise", "", "not measured")
        m = curves.get("m", np.zeros((2, 2)))
        rises = m[0, -1] > m[-1, -1] if self.how == "first" else m[:, -1].mean() > m[:, 0].mean()
        enough = len(m) > 1 or self.how == "eager"
        return Verdict("rise", "", "maybe" if self.how == "vague" else ("yes" if rises else "no") if enough else "undecided")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("blind", "without m it answers 'no'"),
        ("vague", "judge answered 'maybe'; expected one of"),
        ("first", "the answer depends on the order of the seeds"),
        ("eager", "it answers 'no' for a single seed; expected 'undecided'"),
    ],
)
def test_the_check_of_criteria_notices(how: str, sentence: str) -> None:
    check_criterion(Rise())
    with pytest.raises(AssertionError, match=sentence):
        check_criterion(Rise(how=how), seeds=12)
