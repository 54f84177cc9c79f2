"""Programs as a family: rows to files and back, models as their files, refusals, and everything that can go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import selfloop
from selfloop.columns import Columns, ColumnType, Ragged, select_rows
from selfloop.commands.export import export_model, find_generation
from selfloop.commands.verify import verify
from selfloop.component import Context, Source
from selfloop.criteria.judging import COLLAPSES
from selfloop.errors import ChainEndedError, DataError, SelfloopError, SettingError, SpecError
from selfloop.families.command.family import CommandFamily, CommandSampler
from selfloop.families.command.model_files import MAX_PACKED_BYTES, pack_folder, unpack_folder
from selfloop.formats.programs import ProgramError
from selfloop.rng import RandomStream
from selfloop.spec.components import make_component
from selfloop.spec.parse import parse_spec
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store.identity import identity
from selfloop.types import RowTake, TrainingRows
from tiny_components import Ticks, files_of, results_of

CTX = Context(RandomStream(("command family",)))
HOSTILE = [
    "plain",
    'a "quoted", text',
    "two\nlines",
    "\r\n and \r",
    "",
    "😀 Ünï\u2028",
    "=1+1",
    "  blanks ",
    "null",
    "NA",
    "'",
    "\\n",
]
# a bootstrap of whole files: the model is its training data, and a sample are rows of it
BOOTSTRAP = """
import csv, random, shutil, sys
csv.field_size_limit(10**8)
stage, seed, *names = sys.argv[1:]
random.seed(int(seed))
if stage == "train":
    shutil.copy(names[0], names[1] + "/data")
else:
    model, n, out = names
    if out.endswith(".csv"):
        rows = list(csv.reader(open(model + "/data", newline="", encoding="utf-8")))
        write = csv.writer(open(out, "w", newline="", encoding="utf-8"))
        write.writerow(rows[0])
        for i in range(int(n)): write.writerow(rows[1 + i % (len(rows) - 1)])
    elif out.endswith(".jsonl"):
        rows = open(model + "/data", newline="", encoding="utf-8").read().split(chr(10))[:-1]
        file = open(out, "w", newline="", encoding="utf-8")
        for i in range(int(n)): file.write(rows[i % len(rows)] + chr(10))
    else:
        import pandas as pd
        frame = pd.read_parquet(model + "/data")
        frame.iloc[[i % len(frame) for i in range(int(n))]].to_parquet(out, index=False)
"""
LINES = {
    "train": (sys.executable, "p.py", "train", "{seed}", "{data}", "{model}"),
    "sample": (sys.executable, "p.py", "sample", "{seed}", "{model}", "{n}", "{out}"),
}


@dataclass(frozen=True, kw_only=True)
class Fixed(Source):
    """The same rows for every seed."""

    name: ClassVar[str] = "fixed"
    rows: Any = None

    def schema(self) -> Mapping[str, ColumnType]:
        return {
            name: ColumnType("utf8") if isinstance(column, Ragged) else ColumnType(str(column.dtype), column.shape[1:])
            for name, column in self.rows.items()
        }

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return select_rows(self.rows, np.arange(first, first + n))


def family_of(table: Mapping[str, Any]) -> CommandFamily:
    """A family from a table, as in a spec."""
    family: CommandFamily = make_component("family", {"name": "command", **table}, "family")
    return family


def command(folder: Path, program: str = BOOTSTRAP, lines: Mapping[str, Any] = LINES, **settings: Any) -> CommandFamily:
    """A family with one program."""
    folder.mkdir(exist_ok=True)
    (folder / "p.py").write_text(program, encoding="utf-8")
    return family_of({"commands": lines, "files": (folder / "p.py",), **settings})


def shell(train: str, sample: str = "exit 1", evaluate: str = "", **settings: Any) -> CommandFamily:
    """A family of shell commands, with the placeholders as $1, $2, ..."""
    commands: dict[str, Any] = {
        "train": ("sh", "-c", train, "sh", "{data}", "{model}", "{scratch}"),
        "sample": ("sh", "-c", sample, "sh", "{model}", "{n}", "{out}"),
    }
    if evaluate:
        commands["evaluate"] = ("sh", "-c", evaluate, "sh", "{model}", "{out}", "{holdout}")
    return family_of({"commands": commands, **settings})


def fit(family: CommandFamily, rows: Columns, ctx: Context = CTX, init: Any = None) -> Any:
    return family.fit(TrainingRows((RowTake(rows),)), ctx, init)


def sample(family: CommandFamily, params: Any, n: int, ctx: Context = CTX, **values: Any) -> Columns:
    return family.sample(params, n, CommandSampler(set=values), {}, ctx)


def assert_equal(a: Columns, b: Columns) -> None:
    assert a.keys() == b.keys()
    for name, column in a.items():
        other = b[name]
        if isinstance(column, Ragged):
            assert column.to_bytes() == other.to_bytes()
        else:
            assert column.dtype == other.dtype
            assert np.array_equal(column, other)


def texts(words: list[str]) -> Ragged:
    return Ragged.of_bytes([word.encode() for word in words])


X: Columns = {"x": np.array([0.5, -1 / 3, 2.0])}
NUMBERS: Columns = {
    "x": np.array([[1 / 3, -1e-300], [5e-324, 1.7976931348623157e308]]), "small": np.array([0.1, 1 / 3], np.float32),
    "count": np.array([2**62 + 1, -3]), "byte": np.array([[0, 255], [7, 1]], np.uint8), "yes": np.array([True, False]),
    "grid": np.arange(12.0).reshape(2, 2, 3),
}  # fmt: skip
MASKED: Columns = {
    "age": np.array([3.5, 0.0]), "age@missing": np.array([False, True]),
    "job": texts(["nurse", ""]), "job@missing": np.array([False, True]),
}  # fmt: skip


@pytest.mark.parametrize("format_", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("rows", [NUMBERS, {"text": texts(HOSTILE)}, {"a": texts(HOSTILE), "b": texts(HOSTILE[::-1])}, MASKED])
def test_rows_come_back_from_every_format_bit_for_bit(tmp_path, rows, format_):
    family = command(tmp_path, format=format_)
    params = fit(family, rows)
    n = len(next(iter(rows.values())))
    assert_equal(sample(family, params, n), rows)
    twice = sample(family, params, 2 * n)
    assert_equal(select_rows(twice, np.arange(n, 2 * n)), rows)


def test_columns_are_in_the_order_of_their_names():
    family, rows = shell("head -1 $1 > $2/head"), {"b": np.zeros(2), "c": texts(["u", "v"]), "a": np.zeros((2, 11))}
    for names in ("abc", "cab"):
        head = bytes(fit(family, {name: rows[name] for name in names})["files"]).decode()
        assert head == ",".join(f'"{name}"' for name in (*(f"a[{i}]" for i in range(11)), "b", "c")) + "\n"


def test_images_come_back_as_images_with_the_other_columns_beside_them(tmp_path):
    family = command(
        tmp_path, "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)", format="images",
        lines={"train": (sys.executable, "p.py", "{data}", "{model}"),
               "sample": (sys.executable, "p.py", "{model}", "{out}", "{n}")},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for shape in ((4, 5), (4, 5, 1), (4, 5, 3)):
        rows = {"image": rng.integers(0, 256, (3, *shape), np.uint8), "label": np.arange(3)}
        params = fit(family, rows)
        assert_equal(sample(family, params, 3), rows)
        assert_equal(sample(family, fit(family, {"image": rows["image"]}), 3), {"image": rows["image"]})
        with pytest.raises(DataError, match=r"sample \(.*\) wrote 3 images into out; expected 4\. Correct"):
            sample(family, params, 4)


def test_empty_texts_and_missing_values_are_refused_in_csv_and_distinct_in_json_lines(tmp_path):
    rows = {"job": texts(["nurse", "", ""]), "job@missing": np.array([False, True, False])}
    with pytest.raises(DataError, match=r"family\.format: got 'csv'; column 'job' has empty texts and missing values"):
        fit(command(tmp_path), rows)
    family = command(tmp_path, format="jsonl")
    assert_equal(sample(family, fit(family, rows), 3), rows)


def test_a_model_is_every_file_of_its_folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "empty" / "folder").mkdir(parents=True)
    (folder / "a").mkdir()
    large = np.random.default_rng(0).bytes(MAX_PACKED_BYTES + 1)
    contents = {"a/large.bin": large, "a/b.txt": b"", "weights 😀": b"\0\1", "edge": large[:-1], "z": b"z"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    params = pack_folder(folder)
    assert sorted(params) == ["file/a/large.bin", "files", "index"]
    unpack_folder(params, tmp_path / "copy")
    assert {
        path.relative_to(tmp_path / "copy").as_posix(): path.read_bytes()
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file()
    } == contents
    assert (tmp_path / "copy" / "empty" / "folder").is_dir()
    again = pack_folder(tmp_path / "copy")
    assert all(np.array_equal(again[name], array) for name, array in params.items())


def test_a_model_with_links_or_without_files_is_refused_and_none_is_written_outside(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ProgramError, match=r"wrote no file into \{model\}"):
        pack_folder(tmp_path / "model")
    (tmp_path / "model" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ProgramError, match=r"wrote link into \{model\}, which is a link"):
        pack_folder(tmp_path / "model")
    for name in ("../x", "/tmp/x"):
        params = {"index": np.frombuffer(json.dumps([[name, 0]]).encode(), np.uint8)}
        with pytest.raises(DataError, match="outside of its folder"):
            unpack_folder(params, tmp_path / "copy")
    with pytest.raises(DataError, match="of another family"):
        unpack_folder({"mean": np.zeros(1)}, tmp_path / "copy")


def test_the_seed_decides_and_settings_of_sampling_are_arguments():
    family = family_of({"commands": {
        "train": ["sh", "-c", "echo $3 > $2/seed", "sh", "{data}", "{model}", "{seed}"],
        "sample": ["sh", "-c", "echo x > $3; for i in $(seq $2); do echo $4$5$6; done >> $3", "sh", "{model}", "{n}", "{out}",
                   "{a}", "{b}", "{c}"],
    }})  # fmt: skip
    first, second = (fit(family, X, CTX.child(i)) for i in (1, 2))
    assert bytes(first["files"]) != bytes(second["files"])
    assert 0 <= int(bytes(first["files"])) < 2**31
    rows = sample(family, fit(family, {"x": texts(["a"])}), 2, a=0.1, b=True, c="{n}")
    assert rows["x"].to_bytes() == [b"0.1true{n}"] * 2  # values are no placeholders


def test_a_fit_may_continue_from_another_model():
    family = shell('[ -n "$4" ] && cat $4/log > $2/log; echo fit >> $2/log')
    lines = replace(family.commands, train=(*family.commands.train, "{init}"))
    assert not family.uses_init
    family = replace(family, commands=lines)
    assert family.uses_init
    first = fit(family, X)
    second = fit(family, X, init=first)
    assert [bytes(params["files"]) for params in (first, second)] == [b"fit\n", b"fit\nfit\n"]


def test_weights_reach_a_program_that_uses_them_and_are_refused_otherwise():
    takes = TrainingRows((RowTake(X, None, 3.0), RowTake(X, np.array([0]), 1.0)))
    family = shell("cp $1 $2")
    with pytest.raises(DataError, match=r"family\.commands\.train: the rows have weights, but it lacks \{weights\}"):
        family.fit(takes, CTX, None)
    family = replace(family, commands=replace(family.commands, train=("cp", "{data}", "{weights}", "{model}")))
    written = bytes(family.fit(takes, CTX, None)["files"]).decode()
    assert [float(line) for line in written.split("\n")[5:-1]] == pytest.approx([1.2, 1.2, 1.2, 0.4])


def test_a_program_ends_a_chain_with_one_word():
    with pytest.raises(ChainEndedError, match=r"^no_progress$"):
        fit(shell("echo no_progress > $2/ended"), X)
    with pytest.raises(DataError, match=r"wrote 'two words' to \{model\}/ended; expected one word"):
        fit(shell("echo two words > $2/ended"), X)


WRONG_SAMPLES = [
    ("exit 7", r"ended with exit code 7 \(it wrote no error\)\. Correct the program; its log is "),
    ("echo working; echo No such layer >&2; exit 1", r"exit code 1 \(No such layer\)"),
    ("sleep 60", r"took more than 1 s and was ended\. Raise time_limit; its log is "),
    ("true", r"wrote no file out\.csv; expected a file"),
    ("mkdir $3", r"wrote a folder out\.csv; expected a file"),
    ("ln -s $1/d.csv $3", r"wrote a link out\.csv"),
    (": > $3", r"wrote out\.csv, which is no CSV file in UTF-8 with a header \(it is empty\)"),
    ("printf 'x\\n1\\n' > $3", "wrote 1 rows; expected 2"),
    ("printf 'x\\n1\\n2\\n3\\n' > $3", "wrote 3 rows; expected 2"),
    ("printf 'y\\n1\\n2\\n' > $3", r"wrote out\.csv, which lacks column 'x'; expected x"),
    ("printf 'x,y\\n1,2\\n3,4\\n' > $3", r"wrote out\.csv, which has a column 'y'; expected x"),
    ("printf 'x,x\\n1,2\\n3,4\\n' > $3", r"wrote out\.csv with two columns of one name"),
    ("printf 'x\\n1\\n2,3\\n' > $3", r"wrote 2 values in row 2 of out\.csv; expected 1"),
    ("printf 'x\\n1\\nnan\\n' > $3", "wrote x = nan in row 2; expected float64, finite"),
    ("printf 'x\\n1\\ninf\\n' > $3", "wrote x = inf in row 2; expected float64, finite"),
    ("printf 'x\\n1\\n\"\"\\n' > $3", "wrote x = no value in row 2; expected float64, finite"),
    ("printf 'x\\n1\\nabc\\n' > $3", "wrote x = 'abc' in row 2; expected float64, finite"),
    ("printf 'x\\n1\\n\\377\\n' > $3", r"which is no CSV file in UTF-8 with a header \(it has text that is not UTF-8\)"),
    ("printf 'x\\n1\\n\"2\\n' > $3", r"which is no CSV file in UTF-8 with a header \(unexpected end of data\)"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "sentence"), WRONG_SAMPLES, ids=[program for program, _ in WRONG_SAMPLES])
def test_wrong_samples_are_one_sentence_with_the_log_and_nothing_stored_is_lost(tmp_path, program, sentence):
    family = shell("cp $1 $2/d.csv", program, time_limit=1.0 if "sleep" in program else 60.0)
    store = tmp_path / "store"
    scratch = store / "scratch" / "0123456789abcdef0123"
    params = fit(family, {"x": np.arange(2.0)}, replace(CTX, scratch=scratch))
    with pytest.raises(DataError, match=sentence) as error:
        sample(family, params, 2, replace(CTX, scratch=scratch))
    assert str(error.value).startswith("family.command: sample (sh -c ")
    log = Path(str(error.value).rpartition("its log is ")[2].removesuffix("."))
    assert log == store / "logs" / "0123456789abcdef-sample.log"
    assert log.is_file()
    assert [path.name for path in scratch.iterdir()] == ["scratch"]  # no folder of a call is left


WRONG_LINES = [
    ('{"x": 1}\n{"x": NaN}\n', "wrote x = nan in row 2; expected float64, finite"),
    ('{"x": 1}\n{"x": 1e999}\n', "wrote x = inf in row 2"),
    ('{"x": 1}\n{"x": null}\n', "wrote x = no value in row 2"),
    ('{"x": 1}\n{"x": "2"}\n', "wrote x = '2' in row 2"),
    ('{"x": 1}\n{"x": [2]}\n', r"wrote x = \[2\] in row 2"),
    ('{"x": 1}\n{"x": true}\n', "wrote x = True in row 2"),
    ('{"x": 1}\n{"x": 2, "y": 3}\n', "which has a column 'y'"),
    ('{"x": 1}\n{"y": 3}\n', "which has a column 'y'"),
    ('{"x": 1}\nx\n', r"wrote line 2 of out\.jsonl, which is no JSON"),
    ('{"x": 1}\n[1]\n', r"wrote \[1\] as line 2 of out\.jsonl; expected an object"),
    ("", r"lacks column 'x'|wrote 0 rows|wrote 1 rows"),
]


@pytest.mark.parametrize(("content", "sentence"), WRONG_LINES)
def test_wrong_json_lines_are_one_sentence(tmp_path, content, sentence):
    (tmp_path / "answer").write_text(content)
    family = shell("cp $1 $2", "cp answer $3", format="jsonl", files=(tmp_path / "answer",))
    with pytest.raises(DataError, match=sentence):
        sample(family, fit(family, {"x": np.arange(2.0)}), 2)


def test_values_must_fit_their_type_exactly(tmp_path):
    family = shell("cp $1 $2", "cp answer $3", files=(tmp_path / "answer",))
    rows = {"k": np.zeros(2, np.uint8), "b": np.zeros(2, bool)}
    for cell, fits in (("255", True), ("3.0", True), ("256", False), ("-1", False), ("2.5", False), ("true", False)):
        (tmp_path / "answer").write_text(f"k,b\n{cell},true\n1,0\n")
        params = fit(family, rows)
        if fits:
            assert sample(family, params, 2)["k"].tolist() == [int(float(cell)), 1]
            assert sample(family, params, 2)["b"].tolist() == [True, False]
        else:
            with pytest.raises(DataError, match=r"wrote k = \S+ in row 1; expected uint8, finite"):
                sample(family, params, 2)


def test_a_text_of_a_megabyte_survives(tmp_path):
    family, rows = command(tmp_path), {"text": texts(["long " * 200_000, "short"])}
    assert_equal(sample(family, fit(family, rows), 2), rows)


@dataclass(frozen=True, kw_only=True)
class Regression(Fixed):
    """Rows whose column x is drawn by the source."""

    name: ClassVar[str] = "regression"

    def has_fixed_design(self) -> bool:
        return True

    def draw_inputs(self, n: int, initial: Columns, ctx: Context) -> Columns:
        return {"x": np.asarray(initial["x"])[np.arange(n) % len(initial["x"])]}


def test_inputs_that_the_source_draws_come_back_beside_the_outcomes():
    rows = {"x": np.array([1.0, 2.0]), "y": np.array([3.0, 4.0])}
    inputs = {"x": rows["x"]}
    plain = shell("cp $1 $2")
    with pytest.raises(SpecError, match=r"family\.commands\.sample: lacks \{inputs\}; regression draws them"):
        plain.check(Regression(rows=rows), CommandSampler())
    with pytest.raises(DataError, match=r"the source draws inputs of rows, but it lacks \{inputs\}"):
        plain.sample(fit(plain, rows), 2, CommandSampler(), inputs, CTX)
    for body, good in (
        ("printf 'y\\n5\\n6\\n' > $3", True),
        ("printf 'y,x\\n5,1\\n6,2\\n' > $3", True),
        ("printf 'y,x\\n5,2\\n6,1\\n' > $3", False),
    ):
        sample_it = "sh", "-c", f"grep -q 1 $4 && {body}", "sh", "{model}", "{n}", "{out}", "{inputs}"
        family = replace(plain, commands=replace(plain.commands, sample=sample_it))
        family.check(Regression(rows=rows), CommandSampler())
        if good:
            assert_equal(
                family.sample(fit(family, rows), 2, CommandSampler(), inputs, CTX), {"x": rows["x"], "y": np.array([5.0, 6.0])}
            )
        else:
            with pytest.raises(DataError, match="wrote other values of the input 'x' than it got"):
                family.sample(fit(family, rows), 2, CommandSampler(), inputs, CTX)


TRAIN, SAMPLE = ["sh", "{data}", "{model}"], ["sh", "{model}", "{n}", "{out}"]


@pytest.mark.parametrize(
    ("commands", "sentence"),
    [
        ({"train": ["sh", "{data}"], "sample": SAMPLE}, r"train: lacks the placeholder \{model\}\. Use \{data\}, \{model\}"),
        ({"train": TRAIN, "sample": ["sh", "{model}", "{out}"]}, r"sample: lacks the placeholder \{n\}"),
        ({"train": TRAIN, "sample": SAMPLE, "evaluate": ["sh", "{out}"]}, r"evaluate: lacks the placeholder \{model\}"),
        ({"train": [*TRAIN, "--t={generation}"], "sample": SAMPLE}, r"train: unknown placeholder 'generation'\. Allowed: data"),
        ({"train": [*TRAIN, "{sead}"], "sample": SAMPLE}, r"train: unknown placeholder 'sead'\. Did you mean 'seed'\?"),
        ({"train": TRAIN, "sample": [*SAMPLE, "{top_p}"]}, r"family\.commands\.sample: unknown placeholder 'top_p'"),
        ({"train": ["no_such", "{data}", "{model}"], "sample": SAMPLE}, r"family\.commands: there is no program 'no_such'"),
        ({"train": TRAIN}, r"family\.commands\.sample: missing"),
        ({"train": [], "sample": SAMPLE}, r"commands\.train: got \[\]; expected"),
        ({"train": "train.sh", "sample": SAMPLE}, r"commands\.train: got 'train\.sh'; expected a list"),
    ],
)  # fmt: skip
def test_commands_that_cannot_run_are_refused_before_any_work(commands, sentence):
    with pytest.raises(SelfloopError, match=sentence):
        Spec(source="moons", family={"name": "command", "commands": commands}, n=5, metrics=["evaluation"]).points()


@pytest.mark.parametrize(
    ("settings", "sampler", "sentence"),
    [
        ({"files": ["missing.py"]}, None, r"family\.files: got missing\.py, which does not exist"),
        ({"format": "images"}, None, r"family\.format: got 'images', which holds images; moons has x"),
        ({"versions": ["sh", "-c", "echo no; exit 3"]}, None, r"family\.versions: sh -c .* ended with exit code 3"),
        ({"versions": ["no_such"]}, None, r"family\.commands: there is no program 'no_such'"),
        ({}, {"top_p": 1}, r"family\.sampler\.set: 'top_p' is no placeholder of sample"),
        ({}, {"n": 1}, r"family\.sampler\.set: got the name 'n'; expected a word that is no other placeholder"),
        ({}, None, "metrics: 'evaluation' needs a family with a program of its own that evaluates models; command is none"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(settings, sampler, sentence):
    family = {"name": "command", "commands": {"train": TRAIN, "sample": SAMPLE}, **settings}
    with pytest.raises(SelfloopError, match=sentence):
        Spec(
            source="moons", family=family, sampler=sampler and {"set": sampler}, n=5, metrics=["evaluation"]
        ).points()  # fmt: skip


def test_rows_of_other_kinds_are_refused():
    family = shell("cp $1 $2")
    with pytest.raises(SpecError, match=r"holds texts and lists of up to 10,000 numbers; fixed has x\. Choose another"):
        family.check(Fixed(rows={"x": np.zeros((1, 10_001))}), CommandSampler())


def test_what_identifies_a_model(tmp_path):
    family = command(tmp_path)
    before = identity(family)
    assert identity(replace(family, time_limit=5.0)) == before
    assert identity(replace(family, reproducible=False)) == before
    assert identity(replace(family, environment={"A": "1"})) != before
    assert identity(replace(family, format="jsonl")) != before
    assert identity(command(tmp_path / "other")) == before  # the same file in another folder
    assert identity(command(tmp_path, BOOTSTRAP + "#")) != before
    (tmp_path / "version").write_text("1")
    versions = [replace(family, versions=("sh", "-c", f"echo {word}")) for word in ("1", "1", "2")]
    assert identity(versions[0]) == identity(versions[1]) != before
    assert identity(versions[0]) != identity(versions[2])
    assert identity(replace(family, versions=("sh", "-c", "echo  1"))) != identity(versions[0])  # the command counts, too


def test_a_loss_that_does_not_exist_is_no_collapse(tmp_path):
    spec = loop(tmp_path)
    evaluate = """printf '{"loss": null, "score": 2}' > $2; test -s $1/d.csv -a -s $3"""
    family = shell("cp $1 $2/d.csv", "head -n $(($2 + 1)) $1/d.csv > $3", evaluate)
    result = selfloop.run(replace(spec, family=family), tmp_path / "store", workers=1)
    assert result.ends("replace", "evaluation", began=False).isdisjoint(COLLAPSES)
    assert all(verdict.answer in ("undecided", "not measured") for verdict in result.verdicts())


def test_versions_that_change_between_two_runs_of_one_process_are_noticed(tmp_path):
    (tmp_path / "versions").write_text("1")
    family = replace(shell("cp $1 $2/d.csv", "cp $1/d.csv $3"), versions=("cat", str(tmp_path / "versions")))
    spec = replace(loop(tmp_path), family=family, metrics=("marginal_distance",), policies=("accumulate",))
    family.check(spec.source, spec.sampler)
    before = identity(family)
    (tmp_path / "versions").write_text("2")
    family.check(spec.source, spec.sampler)
    assert identity(family) != before


EVALUATE = """printf '{"loss": %s, "score": 2, "none": null}' "$(wc -l < $1/d.csv)" > $2; test $(wc -l < $3) = 3"""


def loop(folder: Path, **changes: Any) -> Spec:
    family = shell("cp $1 $2/d.csv", "head -n $(($2 + 1)) $1/d.csv > $3", EVALUATE)
    settings = {"source": Ticks(rows=9), "family": family, "n": 4, "holdout": 2, "generations": 3, "seeds": 2,
                "policies": ["replace", "accumulate"], "metrics": ["evaluation"]}  # fmt: skip
    return Spec(**{**settings, **changes})


def test_a_loop_of_programs_runs_resumes_and_verifies(tmp_path):
    result = selfloop.run(loop(tmp_path), tmp_path / "store", workers=1)
    curves = result.curves()
    assert curves["replace"]["evaluation"].tolist() == [[5, 5, 5]] * 2
    assert curves["accumulate"]["evaluation"].tolist() == [[5, 9, 13]] * 2
    assert curves["replace"]["evaluation_score"].tolist() == [[2, 2, 2]] * 2
    assert "evaluation_none" not in curves["replace"]
    assert result.spec.risk_metric() == "evaluation"
    before = {path: path.stat().st_mtime_ns for path in files_of(tmp_path / "store")}
    selfloop.run(loop(tmp_path), tmp_path / "store", workers=1)
    assert {path: path.stat().st_mtime_ns for path in files_of(tmp_path / "store")} == before
    assert [path.name for path in (tmp_path / "store" / "scratch").iterdir()] == []
    assert [path.name for path in (tmp_path / "store" / "logs").iterdir()] == []
    verification = verify(result.spec, tmp_path / "store", 100)
    assert (verification.wrong, verification.damaged, verification.skipped) == ([], [], 0)
    assert verification.checked == verification.records


def test_another_way_to_evaluate_trains_nothing_again(tmp_path):
    selfloop.run(loop(tmp_path), tmp_path / "store", workers=1)
    family = shell("cp $1 $2/d.csv", "head -n $(($2 + 1)) $1/d.csv > $3", EVALUATE.replace('"score": 2', '"score": 3'))
    result = selfloop.run(loop(tmp_path, family=family), tmp_path / "store", workers=1)
    assert result.curves()["replace"]["evaluation_score"].tolist() == [[3, 3, 3]] * 2
    assert all("fit" not in usage.by_step for usage in [*result.usage.values(), result.shared])


def test_a_run_that_failed_loses_nothing_that_was_stored(tmp_path):
    slow = shell("cp $1 $2/d.csv", "sleep 1; head -n $(($2 + 1)) $1/d.csv > $3", EVALUATE)
    with pytest.raises(DataError, match=r"sample \(.*\) took more than 0\.5 s and was ended"):
        selfloop.run(loop(tmp_path, family=replace(slow, time_limit=0.5), seeds=1), tmp_path / "store", workers=1)
    before = {path: path.stat().st_mtime_ns for path in files_of(tmp_path / "store")}
    assert len(before) >= 4  # real rows and a fit
    selfloop.run(loop(tmp_path, family=slow, seeds=1, generations=1), tmp_path / "store", workers=1)
    after = {path: path.stat().st_mtime_ns for path in files_of(tmp_path / "store")}
    assert before.items() <= after.items()


def test_programs_that_are_not_reproducible_are_noted_and_not_verified(tmp_path):
    family = replace(loop(tmp_path).family, reproducible=False)
    with pytest.warns(
        UserWarning, match="its programs are not reproducible, so policies of one seed differ by their randomness"
    ):
        result = selfloop.run(loop(tmp_path, family=family), tmp_path / "store", workers=1)
    assert any("not reproducible" in warning for usage in (*result.usage.values(), result.shared) for warning in usage.warnings)
    verification = verify(result.spec, tmp_path / "store", 100)
    assert verification.skipped > 0
    assert verification.checked + verification.skipped == verification.records


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("exit 3", r"evaluate \(.*\) ended with exit code 3"),
        ("true", r"wrote no file \{out\}; expected a JSON object"),
        ("echo 1 > $2", r"wrote 1 to \{out\}; expected a JSON object with `loss`"),
        ("echo '{\"accuracy\": 1}' > $2", "expected a JSON object with `loss`"),
        ("echo '{' > $2", r"wrote no JSON to \{out\}"),
        ('echo \'{"loss": "low"}\' > $2', r"wrote loss = 'low' to \{out\}; expected words with numbers or null"),
        ('echo \'{"loss": 1, "a b": 1}\' > $2', "wrote a b = 1"),
    ],
)
def test_wrong_evaluations_are_one_sentence(program, sentence):
    family = shell("cp $1 $2", evaluate=program)
    with pytest.raises(DataError, match=sentence):
        family.evaluate(fit(family, X), X, X, CTX)


def test_infinite_values_of_an_evaluation_do_not_exist(tmp_path):
    family = shell("cp $1 $2/d.csv", "cp $1/d.csv $3", evaluate='echo \'{"loss": NaN, "b": Infinity}\' > $2')
    result = selfloop.run(loop(tmp_path, family=family, generations=1), tmp_path / "store", workers=1)
    assert {row.status for row in result.measurements if row.metric.startswith("evaluation")} == {"not_finite"}


def test_one_setting_of_sampling_can_be_swept_and_the_others_stay(tmp_path):
    sample_it = "echo x > $3; for i in $(seq $2); do echo $4; done >> $3"
    lines = {
        "train": ["cp", "{data}", "{model}/d"],
        "sample": ["sh", "-c", sample_it, "sh", "{model}", "{n}", "{out}", "{a}{b}"],
        "evaluate": ["sh", "-c", """printf '{"loss": %s}' $(tail -n 1 $2) > $3""", "sh", "{model}", "{samples}", "{out}"],
    }
    spec = loop(tmp_path, family={"name": "command", "commands": lines}, sampler={"set": {"a": 1, "b": 2}},
                sweep={"family.sampler.set.b": [2, 7]}, generations=1, seeds=1, policies=["replace"])  # fmt: skip
    result = selfloop.run(spec, tmp_path / "store", workers=1)
    assert [row.value for row in result.measurements if row.metric == "evaluation"] == [12, 17]
    fits = [result for result in results_of(tmp_path / "store").values() if "object" in result]
    assert len(fits) == len({result["object"] for result in fits})  # one fit for both


SLOW = """
import os, sys, time
data, model, scratch, mark = sys.argv[1:]
path = scratch + "/progress"
done = int(open(path).read()) if os.path.exists(path) else 0
for step in range(done, 6):
    open(path, "w").write(str(step + 1))
    open(mark, "a").write(f"{os.getpid()} {step}\\n")
    if step == 2 and done == 0: time.sleep(60)
open(model + "/m", "w").write(open(data).read() + "steps 6")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, *([signal.SIGKILL] if sys.platform == "linux" else [])])
def test_an_interrupted_fit_finds_its_scratch_folder_again_and_continues(tmp_path, number):
    mark, script = tmp_path / "mark", tmp_path / "run.py"
    (tmp_path / "p.py").write_text(SLOW)
    spec = f"""
import selfloop
selfloop.run(selfloop.Spec(source="moons", n=5, holdout=2, generations=1, seeds=1, policies=["replace"], metrics=["evaluation"],
    family={{"name": "command", "files": [{str(tmp_path / "p.py")!r}], "commands": {{
        "train": [{sys.executable!r}, "p.py", "{{data}}", "{{model}}", "{{scratch}}", {str(mark)!r}],
        "sample": ["cp", "{{model}}/m", "{{out}}", "{{n}}"],
        "evaluate": ["sh", "-c", "echo '{{\\"loss\\": 1}}' > $2", "sh", "{{model}}", "{{out}}"]}}}}),
    {str(tmp_path / "store")!r}, workers=1)
"""
    script.write_text(spec)
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (mark.exists() and mark.read_text().count("\n") == 3) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    pid = int(mark.read_text().split()[0])
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.05)
    assert not (sys.platform == "linux" and Path(f"/proc/{pid}/environ").exists() and Path(f"/proc/{pid}/environ").read_bytes())
    subprocess.run([sys.executable, script], check=False, capture_output=True)
    steps = [int(line.split()[1]) for line in mark.read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5]  # the second call continued


def test_a_model_is_exported_as_its_files(tmp_path):
    spec = loop(tmp_path)
    selfloop.run(spec, tmp_path / "store", workers=1)
    export_model(find_generation(spec, tmp_path / "store", "replace", 0, 1), tmp_path / "model")
    assert (tmp_path / "model" / "d.csv").read_text().startswith('"x"\n')
    assert os.listdir(tmp_path / "model") == ["d.csv", "README.md"] or len(os.listdir(tmp_path / "model")) == 2


def test_a_spec_of_programs_can_be_written_and_read_again(tmp_path):
    spec = Spec(
        source="moons",
        family=replace(command(tmp_path), environment={"A": 'b "c"'}),
        n=5,
        metrics=["nll"],
        sampler={"set": {"a": 1}},
    )
    again = parse_spec(spec_text(spec), "again")
    assert identity(again.family) == identity(spec.family)
    assert again.sampler == spec.sampler
    with pytest.raises(SettingError, match="two files of the same name"):
        replace(spec.family, files=(Path("a/x"), Path("b/x")))
