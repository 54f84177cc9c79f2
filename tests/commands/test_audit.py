"""`selfloop audit` as a user calls it: exit codes, files, a table, a model, and mistakes in one sentence before any work."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import tiny_components
from selfloop.audit.design import design_audit
from selfloop.audit.entries import AuditEntry
from selfloop.errors import DataError, SpecError
from selfloop.plugins import component_class
from selfloop.policies.builtin import Replace

KDE = """
n = {n}
holdout = 200
generations = 3
policies = ["replace"]
source.name = "moons"
family.name = "kde"
"""  # a kernel density gets wider every generation


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFLOOP_STORE", raising=False)
    path = tmp_path / "kde.toml"
    path.write_text(KDE.format(n=60))
    return path


def write_table(path: Path, rows: int) -> Path:
    rng = np.random.default_rng(0)
    x, kind = rng.standard_normal(rows), rng.choice(["red", "blue", "green, dark"], rows)
    lines = [
        "x,y,kind",
        *(f'{a:.4f},{2 * a + b:.4f},"{k}"' for a, b, k in zip(x, rng.standard_normal(rows), kind, strict=True)),
    ]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_exit_codes_are_the_answer(spec: Path) -> None:
    degrades = tiny_components.selfloop("audit", spec, "-q", "--no-keep", "--bound", "1%")
    assert degrades.code == 3
    assert degrades.out.startswith("DEGRADES  replace: nll ")
    assert "bound 1.0 %" in degrades.out
    assert tiny_components.selfloop("audit", spec, "-q", "--bound", "500%").code == 0
    stopped = "audit", spec, "-q", "--max-generations", "3"
    assert tiny_components.selfloop(*stopped).code == 4
    assert tiny_components.selfloop(*stopped, "--allow-undecided").code == 0
    assert tiny_components.selfloop(*stopped, "--looks", "2").code == 2


def test_the_files_of_an_audit(spec: Path, tmp_path: Path) -> None:
    done = tiny_components.selfloop(
        "audit", spec, "-q", "--bound", "1%", "--json", "a.json", "--spec-out", "out.toml", "--report", "a.html"
    )
    assert done.code == 3
    answer = json.loads((tmp_path / "a.json").read_text())
    assert (answer["verdict"], answer["exit_code"], answer["metric"]) == ("degrades", 3, "nll")
    assert answer["excess"]["low"] > 0.01
    assert answer["keep"]["setting"] == "mix.real_share"
    assert "KEEP" in done.out
    assert "<html" in (tmp_path / "a.html").read_text()
    again = tiny_components.selfloop("run", "out.toml", "-q", "--set", f"seeds={answer['seeds']}")
    assert again.code == 0


def test_json_on_standard_output_is_pure(spec: Path) -> None:
    done = tiny_components.selfloop("audit", spec, "-q", "--no-keep", "--json", "-")
    assert json.loads(done.out)["policy"] == "replace"
    assert "COST" in done.err


def test_policies_of_the_command_take_the_place_of_those_of_the_spec(spec: Path) -> None:
    policies = "--policy", "mix(real_share=0.9)", "--policy", "accumulate"
    done = tiny_components.selfloop("audit", spec, "-q", "--no-keep", *policies, "--json", "-")
    audits = json.loads(done.out)
    assert [audits["policy"], audits["audits"][0]["policy"]] == ["mix", "accumulate"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "nothing to audit"),
        (("kde.toml", "--command", "kde.toml"), "several things"),
        (("kde.toml", "--data", "x.jsonl"), "--data: belongs to --model"),
        (("--model", "nowhere", "--data", "kde.toml"), "name@commit"),
        (("--model", "nowhere"), "--data FILE"),
        (("--command", "kde.toml"), "expected command"),
        (("kde.toml", "--bound", "5"), "--bound"),
        (("kde.toml", "--budget", "5"), "--budget"),
        (("kde.toml", "--looks", "8,5"), "--looks"),
        (("kde.toml", "--vary", "mix.x"), "--vary"),
        (("kde.toml", "--policy", "mixx"), "mix"),
        (("kde.toml", "--report", "kde.toml"), "--report"),
        (("nowhere.csv",), "nowhere.csv"),
        (("empty.csv",), "empty.csv"),
        (("few.csv",), "150"),
        (("nonsense",), "no file or preset 'nonsense'; expected a TOML spec, a preset, or a table (.csv, .parquet, .jsonl)"),
        ((".",), ". is a folder; expected a TOML spec, a preset, or a table"),
        (("--model", "x", "--data", "kde.toml", "--lora", "0"), "--lora: got 0; expected a rank of 1 or more"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(
    spec: Path, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "empty.csv").touch()
    write_table(tmp_path / "few.csv", 40)
    done = tiny_components.selfloop("audit", *arguments, "-q")
    assert done.code == 2, done
    assert problem in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / ".selfloop" / "records").exists()


def test_a_table_gets_sizes_a_family_and_an_answer(spec: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "own.csv.gz", 400)
    options = "--looks", "3,4", "--generations", "2", "--set", 'metrics=["nll"]', "--no-keep", "-q"
    done = tiny_components.selfloop("audit", table, *options, "--json", "-")
    assert done.code in (0, 3, 4), done.err
    answer = json.loads(done.out)
    assert answer["metric"] == "nll"
    assert 'name = "copula"' in answer["spec"]
    assert "n = 320" in answer["spec"]
    assert "holdout = 80" in answer["spec"]
    assert "initial" in answer["control_note"]


def test_json_lines_are_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"x": x, "y": x + 1.0}) + "\n" for x in rng.standard_normal(200)))
    spec = AuditEntry(spec=str(path)).open(2, [Replace()], [])
    assert (spec.source.name, spec.family.name, spec.n) == ("records", "copula", 150)


def test_a_spec_without_generations_has_four(spec: Path) -> None:
    entry = AuditEntry(spec=str(spec))
    assert entry.open(None, [], []).generations == 3
    spec.write_text(KDE.format(n=60).replace("generations = 3\n", ""))
    assert entry.open(None, [], []).generations == 4
    assert entry.open(None, [], ["generations=6"]).generations == 6
    assert entry.open(5, [], []).generations == 5


def test_a_command_with_a_loss_of_its_own_needs_a_bound_and_is_told_the_line(spec: Path, tmp_path: Path) -> None:
    own = """
n = 20
holdout = 10
source.name = "moons"
metrics = [{metric}]
[family]
name = "command"
files = ["kde.toml"]
[family.commands]
train = ["/bin/sh", "{{data}}", "{{model}}", "{{seed}}"]
sample = ["/bin/sh", "{{model}}", "{{n}}", "{{out}}", "{{seed}}"]
evaluate = ["/bin/sh", "{{model}}", "{{out}}"]
"""
    (tmp_path / "own.toml").write_text(own.format(metric='"evaluation"'))
    done = tiny_components.selfloop("audit", "--command", "own.toml", "-q")
    assert done.code == 2
    assert "--bound: is needed, as evaluation has no natural zero" in done.err
    assert "--bound 0.05abs" in done.err
    line = 'metrics = [{ name = "evaluation", zero = true }]'
    assert line in done.err
    for metric, bound in (('{ name = "evaluation", zero = true }', None), ('"evaluation"', "0.05abs")):
        (tmp_path / "own.toml").write_text(own.format(metric=metric))
        opened = AuditEntry(command=str(tmp_path / "own.toml")).open(None, [], [])
        assert design_audit(opened, bound=bound).bound.is_absolute == (bound is not None)


def test_a_large_table_has_fresh_rows_for_its_control(tmp_path: Path) -> None:
    entry = AuditEntry(spec=str(write_table(tmp_path / "own.csv", 20_000)))
    spec = entry.open(4, [Replace()], [])
    assert (spec.n, spec.holdout) == (4000, 4000)
    assert entry.open(4, [Replace()], ["n=1000", "holdout=100"]).n == 1000
    assert [policy.name for policy in entry.open(None, [], []).policies] == ["replace", "accumulate_subsample"]


@pytest.mark.filterwarnings("ignore:family.context")  # a fifth of the documents is too long
def test_a_model_is_fine_tuned_as_it_is_used(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tiny_language_models import save_base

    base, chats = save_base(tmp_path / "base", "llama"), tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"q": f"who {i}?", "a": "the cat sat"}) + "\n" for i in range(120)))
    entry = AuditEntry(model=str(base), data=str(chats), template="user: {q}\\nassistant: {a}", temperature=0.7, top_p=0.9)
    spec = entry.open(2, [Replace()], [])
    family, sampler = spec.family.settings(), spec.sampler.settings()
    assert (family["context"], family["response_template"]) == (64, "assistant:")
    assert (sampler["temperature"], sampler["top_p"], sampler["prompt"]) == (0.7, 0.9, "before")
    assert spec.source.settings()["template"] == "user: {q}\nassistant: {a}"
    assert spec.n is not None
    assert spec.holdout is not None
    assert spec.n + spec.holdout <= 120
    if component_class("family", "finetune", "test") is type(spec.family):
        done = tiny_components.selfloop(
            "audit", "--model", base, "--data", chats, "--template", "{q} {a}", "--looks", "3", "--generations", "2",
            "--policy", "replace", "--set", "n=8", "--set", "holdout=4", "--set", 'metrics=["cross_entropy"]',
            "--set", "family.training.epochs=1", "--set", "family.sampler.max_tokens=16", "--store", tmp_path / "s", "-q",
            "--no-keep",
        )  # fmt: skip
        assert done.code in (0, 3, 4), done.err
        assert "cross_entropy" in done.out
        lines = chats.read_text().splitlines(keepends=True)
        chats.write_text(
            "".join(json.dumps({"q": "who? " * 60, "a": "a"}) + "\n" if i % 5 == 0 else line for i, line in enumerate(lines))
        )
        long = tiny_components.selfloop(
            "audit", "--model", base, "--data", chats, "--template", "user: {q} assistant: {a}", "--looks", "3",
            "--generations", "2", "--policy", "replace", "--set", "n=20", "--set", "holdout=4", "-q", "--no-keep",
            "--set", 'metrics=["cross_entropy"]', "--set", "family.training.epochs=1", "--store", tmp_path / "s",
        )  # fmt: skip
        assert long.code in (0, 3, 4), long.err


def test_a_broken_model_and_too_few_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"text": "a"}\n' * 12)
    with pytest.raises(SpecError, match="--model"):
        AuditEntry(model=str(tmp_path / "base"), data=str(chats)).open(2, [], [])
    with pytest.raises(DataError, match=r"12 usable rows.*60 at least, 40 to train on and 20 to hold out"):
        AuditEntry(model="name@" + "a" * 40, data=str(chats)).open(2, [], [])
    chats.write_text('{"q": "a", "a": "b"}\n' * 80)
    for template, field in ((None, "text"), ("{q} {wrong}", "wrong")):
        with pytest.raises(DataError, match=rf"^--template: .*line 1: field '{field}' is missing; the record has q, a\. Name"):
            AuditEntry(model="name@" + "a" * 40, data=str(chats), template=template).open(2, [], [])
    with pytest.raises(SpecError, match="JSON lines"):
        AuditEntry(model="name@" + "a" * 40, data="x.txt", template="{q}{a}").open(2, [], [])
