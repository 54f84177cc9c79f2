"""The command line as a user meets it: help, rows on standard output, progress beside it, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_spec import GAUSSIAN, KDE
from typer.main import get_command

import tiny_components
from selfloop.commands.cli import app

COMMANDS = tuple(get_command(app).commands)  # type: ignore[attr-defined]
SELFLOOP = [sys.executable, "-c", "import sys; from selfloop.commands.cli import main; sys.argv[0] = 'selfloop'; main()"]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny spec in the working folder of the test, which is where its store goes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFLOOP_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "tiny.toml"
    path.write_text(KDE.replace('["replace"]', '["replace", "accumulate"]'))
    return path


def test_all_commands_of_the_contract_are_there() -> None:
    expected = {"quickstart", "plan", "run", "predict", "report", "compare", "reproduce", "list", "new", "verify", "gc"}
    assert expected <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = tiny_components.selfloop(command, "--help")
    assert done.code == 0
    assert re.search(rf"Example: selfloop {command}\b", done.out)


def test_help_and_version_exit_with_0_and_an_unknown_command_with_2() -> None:
    for arguments in (("--help",), ("-h",), ("--version",)):
        done = tiny_components.selfloop(*arguments)
        assert (done.code, done.err) == (0, "")
        assert done.out
    assert tiny_components.selfloop("rnu").code == 2
    assert tiny_components.selfloop("run").code == 2
    assert tiny_components.selfloop("run", "x.toml", "--workers", "0").code == 2


def test_json_on_standard_output_is_pure_and_progress_is_on_standard_error(spec: Path) -> None:
    done = subprocess.run([*SELFLOOP, "run", spec, "--json", "-"], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 * 2 * 2 * 3  # policies, seeds, generations; nll and the ledger's two
    assert {tuple(row) for row in rows} == {("policy", "seed", "generation", "metric", "value")}
    assert "generations" in done.stderr
    assert (
        subprocess.run([*SELFLOOP, "run", spec, "--json", "-", "-q"], capture_output=True, text=True, check=True).stderr == ""
    )


def test_rows_are_in_the_spec_s_order_with_axes_and_status(spec: Path) -> None:
    assert tiny_components.selfloop("run", spec, "--json", "rows.jsonl", "-q", "--set", "sweep={ n = [6, 9] }").code == 0
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    places = [(row["n"], row["policy"], row["seed"], row["generation"], row["metric"]) for row in rows]
    assert places == [
        (n, policy, seed, t, metric)
        for n in (6, 9)
        for policy in ("replace", "accumulate")
        for seed in (0, 1)
        for t in (1, 2)
        for metric in ("nll", "real_mass", "data_age")
    ]
    assert all(isinstance(row["value"], float | int) and "status" not in row for row in rows)


def test_a_chain_that_ends_has_a_last_row_with_a_status_and_no_value(spec: Path) -> None:
    spec.write_text(
        'n = 12\ngenerations = 30\nseeds = 4\npolicies = ["replace"]\nmetrics = ["parameter_error"]\n'
        '[source]\nname = "logistic"\n[family]\nname = "glm"\n'
    )
    done = tiny_components.selfloop("run", spec, "--json", "-", "-q")
    rows = [json.loads(line) for line in done.out.splitlines()]
    ended = [row for row in rows if row.get("status")]
    assert ended
    assert {row["status"] for row in ended} == {"separated"}
    assert all(row["value"] is None for row in ended)
    assert all(row["value"] is not None for row in rows if "status" not in row)
    assert max(sum(row["seed"] == seed for row in ended) for seed in range(4)) == 1


def test_a_run_prints_a_table_and_the_verdicts(spec: Path) -> None:
    done = tiny_components.selfloop("run", spec, "-q")
    assert (done.code, done.err) == (0, "")
    for word in ("kde on moons", "replace", "accumulate", "nll", "verdicts"):
        assert word in done.out


def test_plan_says_what_would_run_and_leaves_no_trace(spec: Path) -> None:
    done = tiny_components.selfloop("plan", spec)
    assert (done.code, done.err) == (0, "")
    assert "n = 10" in done.out
    assert "holdout = 5" in done.out
    assert [path.name for path in Path().iterdir()] == ["tiny.toml"]
    tiny_components.selfloop("run", spec, "-q")
    accumulate = next(line for line in tiny_components.selfloop("plan", spec).out.splitlines() if "accumulate" in line)
    assert accumulate.split()[1:4] == ["2", "4", "4"]  # chains, generations, stored


def test_predict_needs_no_spec_and_is_exact(spec: Path) -> None:
    done = tiny_components.selfloop("predict", "replace", "--n", "100", "--generations", "3")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[4] for line in done.out.splitlines() if line.split()[:1] in (["1"], ["2"], ["3"])] == [
        "1.0000", "1.9900", "2.9701",
    ]  # fmt: skip
    assert tiny_components.selfloop("predict", "replase").code == 2
    assert tiny_components.selfloop("predict", spec).code == 0


def test_list_names_every_component_and_shows_settings() -> None:
    from selfloop.plugins import BUILT_IN

    everything = tiny_components.selfloop("list")
    assert everything.code == 0
    for kind, components in BUILT_IN.items():
        assert all(name in everything.out for name in components), kind
    assert "bandwidth" in tiny_components.selfloop("list", "family", "kde").out
    assert "Did you mean 'family'" in tiny_components.selfloop("list", "familly").err
    assert tiny_components.selfloop("list", "family", "kdee").code == 2


def test_new_writes_a_spec_that_runs_and_overwrites_nothing(spec: Path) -> None:
    assert tiny_components.selfloop("new", "mine.toml", "--family", "gaussian", "--source", "gaussian").code == 0
    assert tiny_components.selfloop("run", "mine.toml", "-q", "--set", "n=10", "--set", "generations=2").code == 0
    before = Path("mine.toml").read_text()
    assert "exists already" in tiny_components.selfloop("new", "mine.toml").err
    assert Path("mine.toml").read_text() == before
    assert tiny_components.selfloop("new", "folder/that/is/not.toml").code == 2


def test_verify_exits_with_1_when_a_record_is_wrong(spec: Path) -> None:
    nothing = tiny_components.selfloop("verify", spec)
    assert nothing.code == 2
    assert nothing.err.endswith("has nothing of this spec as it is set. Run it first.\n")
    assert not Path(".selfloop").exists()
    tiny_components.selfloop("run", spec, "-q")
    assert tiny_components.selfloop("verify", spec).code == 0
    records = sorted(Path(".selfloop/records").rglob("*.json"))
    bodies = [json.loads(path.read_bytes())["body"] for path in records]
    from selfloop.store.identity import digest

    bodies[0]["result"], bodies[0]["stamp"] = bodies[1]["result"], bodies[1]["stamp"]
    text = json.dumps(bodies[0]).encode()
    records[0].write_bytes(b'{"body": %b, "check": "%b"}' % (text, digest(text).encode()))
    done = tiny_components.selfloop("verify", spec)
    assert done.code == 1
    assert records[0].stem in done.out


def test_gc_keeps_what_is_used_and_wants_a_store(spec: Path) -> None:
    assert "there is none" in tiny_components.selfloop("gc").err
    tiny_components.selfloop("run", spec, "-q")
    assert tiny_components.selfloop("gc", spec).out.startswith("deleted 0 files")
    Path("other.toml").write_text(GAUSSIAN)
    assert not tiny_components.selfloop("gc", "other.toml").out.startswith("deleted 0 files")
    assert tiny_components.files_of(Path(".selfloop")) == []


def test_compare_shows_paired_differences(spec: Path) -> None:
    done = tiny_components.selfloop("compare", spec, "-q")
    assert (done.code, done.err) == (0, "")
    assert "replace - accumulate" in done.out
    assert "Allowed: " in tiny_components.selfloop("compare", spec, "-q", "--metric", "nlll").err


def test_the_store_is_the_option_s_then_the_variable_s_then_the_folder_s(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_components.selfloop("run", spec, "-q")
    monkeypatch.setenv("SELFLOOP_STORE", "named")
    tiny_components.selfloop("run", spec, "-q")
    tiny_components.selfloop("run", spec, "-q", "--store", "given")
    stores = [tiny_components.objects_of(Path(name)) for name in (".selfloop", "named", "given")]
    assert stores[0]
    assert stores[0] == stores[1] == stores[2]


@pytest.mark.parametrize("target", ["nowhere/rows.jsonl", "."])
def test_a_file_that_rows_cannot_go_to_is_one_sentence_before_any_work(spec: Path, target: str) -> None:
    done = tiny_components.selfloop("run", spec, "-q", "--json", target)
    assert done.code == 2
    assert done.err.startswith(f"selfloop: --json {target}: ")
    assert not Path(".selfloop").exists()


def test_a_reader_that_stops_early_is_no_error(spec: Path) -> None:
    pipe = subprocess.run(
        f'{sys.executable} -c "{SELFLOOP[2]}" run {spec} --json - -q --set seeds=200 | head -1',
        shell=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert pipe.stderr == ""
    assert json.loads(pipe.stdout)["policy"] == "replace"


def test_a_picture_that_is_left_out_is_one_line_and_not_a_line_of_code(spec: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 20 * number).save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:45])
    head = 'n = 6\nholdout = 3\ngenerations = 1\nseeds = 1\npolicies = ["replace"]\nmetrics = ["pixel_std"]\n'
    family = '[family]\nname = "vae"\nlatent = 2\nhidden = 4\ntraining = { steps = 2 }\n'
    spec.write_text(f'{head}[source]\nname = "images"\npath = "{folder}"\ndamaged = "skip"\n{family}')
    done = subprocess.run([*SELFLOOP, "run", spec, "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"selfloop: source\.images: left out 1 of 12 pictures: .*05\.png: .*\n", done.stderr)
