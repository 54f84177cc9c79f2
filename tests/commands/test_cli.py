"""The command line: help, measurements on standard output, progress on standard error, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

import tiny_components
from selfloop.commands import cli, cli_run, terminal
from selfloop.commands.cli import app
from selfloop.commands.new import spec_template
from selfloop.errors import SpecError
from selfloop.plugins import BUILT_IN
from selfloop.result import Result, run
from selfloop.spec.parse import parse_spec
from selfloop.store.records import with_checksum

COMMANDS = tuple(get_command(app).commands)  # type: ignore[attr-defined]
SELFLOOP = [sys.executable, "-m", "selfloop"]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny spec in the working folder of the test, which also holds its store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFLOOP_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_components.KDE)
    return path


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("export SPEC -o out --what samples --dtype float32", "--dtype float32: is for --what model. Leave it out, or"),
        ("export SPEC -o out --dtype foo", "--dtype: unknown name 'foo'. Allowed: bfloat16, float32."),
        ("export SPEC -o out --format csv", "--format csv: is for --what samples. Leave it out, or"),
        ("predict replace --figure x.foo", "--figure: got 'x.foo'; expected a file that ends in .svg, .png or .pdf."),
        ("web web.toml --figure x.foo", "--figure: got 'x.foo'; expected a file that ends in .svg, .png or .pdf."),
        ("predict nonsense", "policy: unknown name 'nonsense'."),
        ("compare SPEC quickstart_digits --metric nll", "compare: the specs have no metric in common."),
        ("audit table.csv --policy control", "--policy: got controls only; expected a policy to audit"),
        ("audit SPEC --policy control", "--policy: got controls only; expected a policy to audit"),
        ("audit SPEC --policy nonsense", "--policy: unknown name 'nonsense'."),
        ("plan quickstart_text --set seeds=1000000", "seeds: got 1,000,000, for 3,000,000 chains, each looked up in"),
        ("new mine.toml --family copula", "source: family copula models numbers and categories; column 'image' of digits"),
        ("new mine.toml --family transformer --source digits", "family transformer models the columns"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence_before_any_work(spec: Path, arguments: str, sentence: str) -> None:
    Path("table.csv").write_text("a,b\n" + "".join(f"{i % 7},{i % 11}\n" for i in range(300)))
    Path("web.toml").write_text("")
    done = tiny_components.selfloop(*(str(spec) if word == "SPEC" else word for word in arguments.split()))
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert not Path("out").exists()
    assert not Path("mine.toml").exists()


def test_json_on_standard_output_is_pure_and_progress_is_on_standard_error(spec: Path) -> None:
    done = subprocess.run([*SELFLOOP, "run", spec, "--json", "-"], capture_output=True, text=True, check=True)
    lines = [line for line in map(json.loads, done.stdout.splitlines()) if "verdict" not in line]
    # Policies, seeds, generations; nll and the schedule's two metrics. The trivial model has one value per chain.
    assert len(lines) == 2 * 2 * 2 * 3 + 2 * 2
    assert {tuple(line) for line in lines} == {("policy", "seed", "generation", "metric", "value")}
    assert re.fullmatch(r"8/8 generations, \d+ s elapsed", done.stderr.splitlines()[-1])
    assert tiny_components.selfloop("run", spec, "--json", "-", "-q") == (0, done.stdout, "")


def test_measurements_are_in_the_order_of_the_spec_with_coordinates(spec: Path) -> None:
    assert tiny_components.selfloop("run", spec, "--json", "lines.jsonl", "-q", "--set", "sweep={ n = [6, 9] }").code == 0
    lines = [line for line in map(json.loads, Path("lines.jsonl").read_text().splitlines()) if "verdict" not in line]
    assert [(line["n"], line["policy"], line["seed"], line["generation"], line["metric"]) for line in lines] == [
        (n, policy, seed, t, metric)
        for n in (6, 9)
        for policy in ("replace", "accumulate")
        for seed in (0, 1)
        for t in (1, 2)
        for metric in ("nll", *(["nll_trivial"] if t == 1 else []), "real_mass", "data_age")
    ]
    assert all(isinstance(line["value"], float | int) and "status" not in line for line in lines)


def test_a_chain_that_ended_has_a_last_measurement_with_a_status_and_no_value(spec: Path) -> None:
    spec.write_text(
        'n = 12\ngenerations = 20\nseeds = 4\npolicies = ["replace"]\nmetrics = ["parameter_error"]\n'
        '[source]\nname = "logistic"\n[family]\nname = "glm"\n'
    )
    out = tiny_components.selfloop("run", spec, "--json", "-", "-q").out
    lines = [line for line in map(json.loads, out.splitlines()) if "verdict" not in line]
    ended = [line for line in lines if line.get("status")]
    assert {line["status"] for line in ended} == {"separated"}
    assert all((line["value"] is None) == ("status" in line) for line in lines)
    assert max(sum(line["seed"] == seed for line in ended) for seed in range(4)) == 1


def test_a_run_prints_a_table_and_the_verdicts(spec: Path) -> None:
    done = tiny_components.selfloop("run", spec, "-q")
    assert (done.code, done.err) == (0, "")
    for word in ("kde on moons", "replace", "accumulate", "nll", "verdicts"):
        assert word in done.out
    assert re.search(r"\nComputing time: replace [\d.]+ s; accumulate [\d.]+ s\.\n$", done.out)
    again = tiny_components.selfloop("run", spec, "-q").out
    assert again.endswith("Everything was stored already; nothing was computed.\n")


def test_plan_prints_chains_and_stored_generations_and_writes_nothing(spec: Path) -> None:
    done = tiny_components.selfloop("plan", spec)
    assert (done.code, done.err) == (0, "")
    assert "n = 10, holdout = 5" in done.out
    assert "estimated time left" in done.out
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
    mixes = tiny_components.selfloop("predict", "mix(real_share=0.5)", "--n", "100", "--generations", "2").out.splitlines()
    assert mixes[-1].split()[2:5] == ["0.500", "1.50", "1.7450"]  # real mass, age, error multiplier
    ledger = tiny_components.selfloop("predict", "replace", "--n", "100", "--generations", "3", "--ledger")
    assert (ledger.code, ledger.err) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in ledger.out.splitlines() if line}
    assert lines["synthetic(1)"] == ["0.9900", "0.9900"]  # the noise of each batch stays, in both later models
    assert lines["all"] == ["1.0000", "1.9900", "2.9701"]
    assert tiny_components.selfloop("predict", spec).code == 0


def test_list_names_every_component_and_shows_settings() -> None:
    everything = tiny_components.selfloop("list")
    assert everything.code == 0
    for kind, components in BUILT_IN.items():
        assert all(name in everything.out for name in components), kind
    assert re.search(r'bandwidth +a number above 0.* "scott" +\w+', tiny_components.selfloop("list", "family", "kde").out)
    assert tiny_components.selfloop("list", "preset", "quickstart_linear").out.startswith("# ")
    assert "Did you mean 'family'" in tiny_components.selfloop("list", "familly").err
    assert tiny_components.selfloop("list", "family", "kdee").code == 2


def test_new_writes_a_spec_that_runs_and_overwrites_nothing(spec: Path) -> None:
    assert tiny_components.selfloop("new", "mine.toml", "--family", "gaussian", "--source", "gaussian").code == 0
    assert tiny_components.selfloop("run", "mine.toml", "-q", "--set", "n=10", "--set", "generations=2").code == 0
    before = Path("mine.toml").read_text()
    assert "already exists" in tiny_components.selfloop("new", "mine.toml").err
    assert Path("mine.toml").read_text() == before
    assert tiny_components.selfloop("new", "missing/folder.toml").code == 2


@pytest.mark.parametrize(
    ("family", "source"), [("vae", "digits"), ("gaussian", "gaussian"), ("kde", "moons"), ("linear", "linear")]
)
def test_a_template_is_a_spec_and_describes_every_setting(family: str, source: str) -> None:
    text = spec_template(family, source)
    assert parse_spec(text, "new").points()
    uncommented = re.sub(r"^# ([\w.]+ = |\[)", r"\1", text, flags=re.M)
    spec = parse_spec(re.sub(r"(?m)^(holdout|n|init_from|criteria) = .*|^\[sweep\]|^\"n\".*", "", uncommented), "new", ["n=20"])
    assert (spec.family, spec.source) == (parse_spec(text, "new").family, parse_spec(text, "new").source)
    settings = [line for line in text.partition("[source]")[2].splitlines() if re.match(r"# \w+ = ", line)]
    assert all(re.search(r"  # \S", line) for line in settings)


def test_no_template_is_written_for_a_family_that_cannot_model_the_source() -> None:
    with pytest.raises(SpecError, match="transformer models the columns text; digits has image"):
        spec_template("transformer", "digits")


def test_a_template_has_no_holdout_if_the_source_splits_itself() -> None:
    assert "# holdout = " not in spec_template("transformer", "tinystories")
    assert "# holdout = " in spec_template("vae", "digits")


def test_verify_exits_with_1_if_a_record_is_wrong(spec: Path) -> None:
    nothing = tiny_components.selfloop("verify", spec, "-q")
    assert (nothing.code, nothing.err.endswith("has no record of this spec. Run the spec first.\n")) == (2, True)
    assert not Path(".selfloop").exists()
    tiny_components.selfloop("run", spec, "-q")
    assert tiny_components.selfloop("verify", spec, "-q").code == 0
    records = sorted(Path(".selfloop/records").rglob("*.json"))
    bodies = {path: json.loads(path.read_bytes())["body"] for path in records}
    first, second = (path for path in records if "ensemble_curves" in bodies[path]["provenance"]["step"])
    wrong = {**bodies[first], "result": bodies[second]["result"], "file_stat": bodies[second]["file_stat"]}
    first.write_bytes(with_checksum(json.dumps(wrong).encode()))
    done = tiny_components.selfloop("verify", spec, "--records", "9")
    assert (done.code, done.err.splitlines()[-1][:11]) == (1, "3/3 records")  # with that of the trivial model
    assert re.search(rf"wrong: .*{first.stem}.*\n2 of 3 recomputed records agree \(3 stored\)", done.out)


def test_gc_deletes_the_records_of_given_specs_and_needs_a_store(spec: Path) -> None:
    assert "is not a store" in tiny_components.selfloop("gc").err
    tiny_components.selfloop("run", spec, "-q")
    assert tiny_components.selfloop("gc").out == "nothing to delete.\n"
    assert "gc: unknown run" in tiny_components.selfloop("gc", "--delete", spec, "--set", "n=11").err
    before = tiny_components.files_of(Path(".selfloop"))
    assert tiny_components.selfloop("gc", "--delete", spec, "--dry-run").code == 0
    assert tiny_components.files_of(Path(".selfloop")) == before != []
    assert tiny_components.selfloop("gc", "--delete", spec, "--yes").out.endswith("deleted.\n")
    assert tiny_components.files_of(Path(".selfloop")) == []
    assert tiny_components.selfloop("gc", spec).code == 2


def test_a_report_of_several_specs_is_one_page_and_settings_may_name_a_spec(spec: Path) -> None:
    other = spec.with_name("other.toml")
    other.write_text(tiny_components.KDE)
    settings = ["--set", "generations=3", "--set", f"{other}:n=30", "--set", f"{other}:seeds=3"]
    done = tiny_components.selfloop("report", spec, other, *settings, "-q", "-o", "both.html", "--figures", "figures")
    assert (done.code, done.err) == (0, "")
    page = Path("both.html").read_text(encoding="utf-8")
    assert page.count('<figure id="side') == 2
    assert "30 real rows, 3 generations, 3 seeds" in page
    assert len(re.findall("real rows, 3 generations, 2 seeds", page)) >= 1
    assert Path("figures/side-by-side.png").is_file()
    assert "no spec elsewhere here. Allowed: " in tiny_components.selfloop("report", spec, other, "--set", "elsewhere:n=3").err
    other.write_text("policies = 3")
    assert tiny_components.selfloop("report", spec, other, "-q", "--store", "untouched").code == 2
    assert not Path("untouched").exists()  # a wrong spec is found before any runs


def test_compare_shows_paired_differences(spec: Path) -> None:
    done = tiny_components.selfloop("compare", spec, "-q")
    assert (done.code, done.err) == (0, "")
    assert "replace - accumulate" in done.out
    assert "independent draws" not in done.out
    assert "nll: differences seed by seed, 95 %; lower is better" in done.out
    assert "Allowed: " in tiny_components.selfloop("compare", spec, "-q", "--metric", "nlll").err
    assert "not every spec measures it" in tiny_components.selfloop("compare", spec, "-q", "--metric", "accuracy").err


def test_reproduce_lists_papers_with_their_claims() -> None:
    done = tiny_components.selfloop("reproduce", "--list")
    assert (done.code, done.err) == (0, "")
    assert "kazdan2025" in done.out
    assert "  order_of_mean_errors (holds, " in done.out
    one = tiny_components.selfloop("reproduce", "kazdan2025", "--list").out
    assert set(one.splitlines()[:-1]) <= set(done.out.splitlines())
    assert "name a paper" in tiny_components.selfloop("reproduce").err


def test_the_store_is_the_folder_of_the_option_else_of_the_variable_else_the_default(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_components.selfloop("run", spec, "-q")
    monkeypatch.setenv("SELFLOOP_STORE", "named")
    tiny_components.selfloop("run", spec, "-q")
    tiny_components.selfloop("run", spec, "-q", "--store", "given")
    stores = [tiny_components.objects_of(Path(name)) for name in (".selfloop", "named", "given")]
    assert stores[0]
    assert stores[0] == stores[1] == stores[2]


@pytest.mark.parametrize("target", ["missing/lines.jsonl", "."])
def test_a_file_that_cannot_be_written_is_an_error_before_the_run(spec: Path, target: str) -> None:
    done = tiny_components.selfloop("run", spec, "-q", "--json", target)
    assert done.code == 2
    assert done.err.startswith(f"selfloop: --json {target}: ")
    assert not Path(".selfloop").exists()


@pytest.mark.parametrize(
    "outputs",
    [("--json", "tiny.toml"), ("--json", "../{}/tiny.toml"), ("--report", "corpus/a.html"), ("--json", "x", "--report", "./x")],
)
def test_no_output_replaces_an_input_or_another_output(spec: Path, outputs: tuple[str, ...]) -> None:
    Path("corpus").mkdir()
    Path("corpus/a.txt").write_text("one\n\ntwo\n\nthree")
    spec.write_text('n = 2\nholdout = 1\n[source]\nname = "text"\npath = "corpus"\n[family]\nname = "transformer"\n')
    before = spec.read_text()
    done = tiny_components.selfloop("run", spec, "-q", *(text.format(spec.parent.name) for text in outputs))
    assert done.code == 2
    assert "Choose another file." in done.err
    assert spec.read_text() == before
    assert not Path(".selfloop").exists()


def test_a_home_folder_in_paths_is_the_user_s(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(spec.parent))
    Path("rows.csv").write_text("a,b\n1,2.5\n2,3.5\n4,4.5\n")
    spec.write_text(tiny_components.KDE.replace('"moons"', '"table"\npath = "~/rows.csv"').replace("n = 10\nholdout = 5\n", ""))
    assert parse_spec(spec.read_text(), "test").points()[0].n == 2
    assert tiny_components.selfloop("plan", "~/tiny.toml").code == 0


def test_a_reader_of_standard_output_that_stops_early_causes_no_error(spec: Path) -> None:
    pipe = subprocess.run(
        f"{sys.executable} -m selfloop run {spec} --json - -q --set seeds=200 | head -1",
        shell=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert pipe.stderr == ""
    assert json.loads(pipe.stdout)["policy"] == "replace"


def test_an_error_of_the_spec_is_the_only_line(spec: Path) -> None:
    done = tiny_components.selfloop("run", spec, "--set", "n=many")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("selfloop: n: got 'many'")


def test_progress_prints_lines_while_the_work_reports_nothing_but_none_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "FIRST_SECONDS", 0.3)
    monkeypatch.setattr(terminal, "PRINT_SECONDS", 0.05)
    monkeypatch.setattr(terminal, "POLL_SECONDS", 0.01)
    with terminal.show_progress(quiet=False) as update:
        time.sleep(0.1)
        assert capsys.readouterr().err == ""
        time.sleep(0.3)
        assert capsys.readouterr().err.startswith("starting ..., 0 s elapsed\n")
        assert update is not None
        update(1, 4)
        time.sleep(0.2)
        assert re.match(r"1/4 generations, \d+ s elapsed, about \d+ s remaining\n", capsys.readouterr().err)
    with terminal.show_progress(quiet=True) as update:
        assert update is None
    assert max(terminal.PRINT_SECONDS, terminal.FIRST_SECONDS) + terminal.POLL_SECONDS < 5


@pytest.mark.slow
def test_a_skipped_image_is_one_line_without_the_line_of_code(spec: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 20 * number).save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:45])
    head = 'n = 6\nholdout = 3\ngenerations = 1\nseeds = 1\npolicies = ["replace"]\nmetrics = ["pixel_std"]\n'
    family = '[family]\nname = "vae"\nlatent = 2\nhidden = 4\ntraining = { steps = 2 }\n'
    spec.write_text(f'{head}[source]\nname = "image_folder"\npath = "{folder}"\non_bad_image = "skip"\n{family}')
    done = subprocess.run([*SELFLOOP, "run", spec, "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"selfloop: source: image_folder skipped unusable ones of 12 images \(1\).*05\.png: .*\n", done.stderr)


def test_a_report_and_a_comparison_say_what_they_compute_and_a_second_one_says_nothing(spec: Path) -> None:
    said = "8 generations are not in the store: computing them"
    assert said in tiny_components.selfloop("report", "tiny.toml", "--report", "a.html").err
    assert Path("a.html").exists()
    assert "not in the store" not in tiny_components.selfloop("report", "tiny.toml").err
    done = tiny_components.selfloop("compare", "tiny.toml", "--set", "generations=3")
    assert "tiny.toml: 12 generations are not in the store" in done.err
    assert "not in the store" not in done.out
    more = tiny_components.selfloop("compare", "tiny.toml", "--set", 'policies=["replace", "mix"]')
    assert "tiny.toml: 4 generations are not in the store" in more.err
    assert "not in the store" not in tiny_components.selfloop("report", "tiny.toml", "--set", "seeds=3", "--quiet").err


def test_an_interrupted_run_says_which_files_it_did_not_write(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_run, "run_with_progress", interrupt)
    done = tiny_components.selfloop("run", spec, "--json", "m.jsonl", "--report", "r.html")
    assert done.code == 130
    assert done.err.splitlines()[:2] == [
        "selfloop: m.jsonl and r.html are not written.",
        "selfloop: interrupted. Finished steps are stored; run the same command to continue.",
    ]
    assert "not written" not in tiny_components.selfloop("run", spec, "--json", "-").err


def test_the_quickstart_says_how_long_it_takes_and_which_parts_its_report_has(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = list[str]()
    monkeypatch.setattr(cli, "run_with_progress", lambda *arguments, **named: tiny_result(spec))
    monkeypatch.setattr(cli, "write_report_file", lambda *arguments, title: titles.append(title))
    assert tiny_components.selfloop("quickstart").err.startswith("Three parts, two to three minutes on two cores in all.")
    assert titles == [*(f"selfloop quickstart, {i} of 3 parts so far" for i in (1, 2)), "selfloop quickstart"]


def tiny_result(spec: Path) -> Result:
    return run(spec, spec.parent / "store")
