"""An error in a spec is one sentence with its dotted key, before any work; a spec that is written out reads as itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tiny_components
from policy_strategies import policies
from selfloop.commands.new import spec_template
from selfloop.engine.run import iter_measurements
from selfloop.errors import SpecError
from selfloop.plugins import presets
from selfloop.spec.components import policy_label
from selfloop.spec.parse import parse_spec, read_spec
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text

GAUSSIAN = """
n = 10
holdout = 5
generations = 2
seeds = 2
policies = ["replace"]
[source]
name = "gaussian"
[family]
name = "gaussian"
"""
KDE = GAUSSIAN.replace('source]\nname = "gaussian"', 'source]\nname = "moons"').replace('"gaussian"', '"kde"')
DIGITS = 'generations = 2\nseeds = 1\npolicies = ["replace"]\n[source]\nname = "digits"\n[family]\nname = "vae"\n'


def changed(*pairs: tuple[str, str], text: str = GAUSSIAN) -> str:
    """The text with replacements that each must apply."""
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def table(csv: str) -> str:
    """A spec on a table; FOLDER stands for the test's folder."""
    return changed(('name = "gaussian"\n[family]', f'name = "table"\npath = "FOLDER/{csv}"\n[family]'), ("holdout = 5\n", ""))


WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key at the top": (changed(("seeds", "sedes")), ("sedes: unknown key", "Did you mean 'seeds'?")),
    "unknown key in a source": (changed(("[family]", "dimm = 2\n[family]")), ("source.dimm: unknown key", "'dim'")),
    "unknown key in a family": (GAUSSIAN + "dof = 1", ("family.dof: unknown key", "'ddof'")),
    "unknown key in a nested table": (DIGITS + "[family.training]\nepoch = 1", ("family.training.epoch: unknown", "'epochs'")),
    "unknown key in a sampler": (GAUSSIAN + "[family.sampler]\nheat = 1", ("family.sampler.heat: unknown key",)),
    "unknown key in a policy": (
        changed(('["replace"]', '[{ name = "fresh", ratoi = 2 }]')), ("policies[0].ratoi: unknown key", "'ratio'"),
    ),
    "unknown key in one of many policies": (
        changed(('["replace"]', '["replace", { name = "mix", real_shar = 0.5 }]')),
        ("policies[1].real_shar: unknown key", "'real_share'"),
    ),
    "unknown source": (changed(('"gaussian"\n[family]', '"gausian"\n[family]')), ("source", "'gausian'", "'gaussian'?")),
    "unknown family": (changed(('[family]\nname = "gaussian"', '[family]\nname = "kdee"')), ("family", "'kde'?")),
    "unknown policy": (changed(('"replace"', '"replase"')), ("policies[0]: unknown name 'replase'", "'replace'?")),
    "unknown metric": ('metrics = ["vairance_ratio"]' + GAUSSIAN, ("metrics[0]: unknown name", "'variance_ratio'?")),
    "unknown criterion": ('criteria = ["tail_los"]' + GAUSSIAN, ("criteria[0]: unknown name", "'tail_loss'?")),
    "metric of another family": ('metrics = ["negative_elbo"]' + GAUSSIAN, ("metrics: 'negative_elbo'", "gaussian")),
    "no source": (changed(('[source]\nname = "gaussian"\n', "")), ("source: missing", "gaussian")),
    "no family": (GAUSSIAN.partition("[family]")[0], ("family: missing", "kde")),
    "table without a name": (changed(('[family]\nname = "gaussian"', "[family]\nddof = 1")), ("family: got", "a name")),
    "zero seeds": (changed(("seeds = 2", "seeds = 0")), ("seeds: got 0", "at least 1")),
    "no seeds": (changed(("seeds = 2", "seeds = []")), ("seeds: got []", "at least 1")),
    "negative seed": (changed(("seeds = 2", "seeds = [-1]")), ("seeds: got [-1]", "whole numbers")),
    "seeds that are words": (changed(("seeds = 2", 'seeds = "all"')), ("seeds: got 'all'",)),
    "seeds that are true": (changed(("seeds = 2", "seeds = true")), ("seeds: got True",)),
    "duplicate seeds": (changed(("seeds = 2", "seeds = [1, 2, 1]")), ("seeds: got [1, 2, 1]", "twice")),
    "far too many seeds": (changed(("seeds = 2", "seeds = 1_000_000_000_000")), ("seeds: got 1000000000000", "at most")),
    "no policies": (changed(('["replace"]', "[]")), ("policies: got none", "accumulate")),
    "policies that are a number": (changed(('["replace"]', "5")), ("policies: got 5", "accumulate")),
    "a policy that is a number": (changed(('["replace"]', "[5]")), ("policies[0]: got 5", "accumulate")),
    "a policy twice": (changed(('["replace"]', '["mix", "replace", "mix"]')), ("policies: mix", "twice")),
    "the same policy in other words": (
        changed(('["replace"]', '["fresh", { name = "fresh", ratio = 1.0 }]')), ("policies: fresh", "twice"),
    ),
    "a metric twice": ('metrics = ["mean_error", "mean_error"]' + GAUSSIAN, ("metrics: mean_error", "twice")),
    "metrics that are true": ("metrics = true" + GAUSSIAN, ("metrics: got True",)),
    "negative n": (changed(("n = 10", "n = -10")), ("n: got -10", "from 1")),
    "zero n": (changed(("n = 10", "n = 0")), ("n: got 0", "from 1")),
    "n that is a fraction": (changed(("n = 10", "n = 10.5")), ("n: got 10.5", "whole number")),
    "n that is a word": (changed(("n = 10", 'n = "ten"')), ("n: got 'ten'", "whole number")),
    "n that is true": (changed(("n = 10", "n = true")), ("n: got True", "whole number")),
    "n beyond counting": (changed(("n = 10", f"n = {10**30}")), ("n: got 1000", "whole number")),
    "n beyond memory": (changed(("n = 10", f"n = {10**14}"), text=KDE), ("n: got 100000000000000", "GB of memory")),
    "n larger than the data": ("n = 1797\n" + DIGITS, ("n: ", "holdout = 539", "has 1797")),
    "fresh rows that run out": (
        changed(('["replace"]', '["fresh"]'), text="n = 1200\n" + DIGITS), ("policy fresh", "2939", "has 1797"),
    ),
    "no n for an endless source": (changed(("n = 10\n", "")), ("n: missing", "unlimited")),
    "negative holdout": (changed(("holdout = 5", "holdout = -5")), ("holdout: got -5",)),
    "holdout of everything": ("holdout = 1797\n" + DIGITS, ("holdout: got 1797", "none is left")),
    "holdout of more than everything": ("holdout = 5000\n" + DIGITS, ("holdout: got 5000", "none is left")),
    "zero generations": (changed(("generations = 2", "generations = 0")), ("generations: got 0", "from 1")),
    "far too many generations": (changed(("generations = 2", "generations = 1_000_000_000")), ("generations: got", "to 10000")),
    "wrong type of a setting": (GAUSSIAN + 'ddof = "one"', ("family.ddof: got 'one'", "expected 0 or 1")),
    "setting out of range": (changed(("[family]", "dim = 0\n[family]")), ("source.dim", "0")),
    "wrong type of a nested setting": (DIGITS + '[family.training]\nsteps = "many"', ("family.training.steps: got 'many'",)),
    "sampler that is a number": (GAUSSIAN + "sampler = 3", ("family.sampler: got 3",)),
    "source that is a number": (
        changed(('[source]\nname = "gaussian"\n', ""), text="source = 5" + GAUSSIAN), ("source: got 5",),
    ),
    "init_from that is no file": ('init_from = "nowhere.safetensors"' + GAUSSIAN, ("init_from: got 'nowhere.safetensors'",)),
    "init_from that is a number": ("init_from = 5" + GAUSSIAN, ("init_from: got 5",)),
    "policy that takes a missing batch": (
        changed(('["replace"]', '[{ name = "custom", takes = [{ batch = "real(t)" }] }]')),
        ("policy custom, generation 2: takes real(2), which does not exist",),
    ),
    "policy with a wrong expression": (
        changed(('["replace"]', '[{ name = "custom", takes = [{ batch = "real(1)", rows = "m" }] }]')),
        ("policies[0].takes.rows: got 'm'",),
    ),
    "text without an end": (changed(("replace", "mix(real_share=0.5")), ("policies[0]: got 'mix(real_share", 'such as "mix(')),
    "text with another name": (changed(("replace", "mix(name='a')")), ("policies[0]: got", "expected a name and settings")),
    "text with an unknown setting": (changed(("replace", "mix(share=0.5)")), ("policies[0].share: unknown key",)),
    "text with a wrong value": (changed(("replace", "mix(real_share=2)")), ("policies[0].real_share: got 2",)),
    "sweep over an unknown key": (GAUSSIAN + '[sweep]\n"family.dof" = [0, 1]', ("sweep.family.dof: unknown key", "'ddof'")),
    "sweep over an unknown top key": (GAUSSIAN + '[sweep]\n"generatoins" = [1]', ("sweep.generatoins", "'generations'")),
    "sweep over a wrong value": (GAUSSIAN + '[sweep]\n"n" = [10, "many"]', ("n: got 'many'",)),
    "sweep over nothing": (GAUSSIAN + '[sweep]\n"n" = []', ("sweep.n: got []",)),
    "sweep over no list": (GAUSSIAN + '[sweep]\n"n" = 5', ("sweep.n: got 5",)),
    "sweep over a value twice": (GAUSSIAN + '[sweep]\n"n" = [10, 20, 10]', ("sweep.n: 10", "twice")),
    "sweep over tables": (GAUSSIAN + '[sweep]\npolicies = [{ name = "mix" }]', ("sweep.policies: got",)),
    "sweep that is a number": ("sweep = 3" + GAUSSIAN, ("sweep: got 3",)),
    "not TOML": ("n = \n", ("not valid TOML", "line 1")),
    "a number too long to read": (f"n = {'9' * 5000}", ("not valid TOML",)),
    "lists without end": (f"n = {'[' * 5000}", ("not valid TOML",)),
    "empty": ("", ("source: missing",)),
    "missing data file": (table("none.csv"), ("none.csv", "does not exist")),
    "NaN in a table": (table("nan.csv"), ("column 'b'", "row 2", "Fill or remove")),
    "words in a table": (table("words.csv"), ("column 'b'", "expected numbers")),
    "missing image file": (
        changed(('name = "digits"', 'name = "idx"\nimages = "FOLDER/none.idx"'), text=DIGITS), ("none.idx", "Check the path"),
    ),
    "damaged image file": (
        changed(('name = "digits"', 'name = "idx"\nimages = "FOLDER/nan.csv"'), text=DIGITS), ("nan.csv", "idx file"),
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nan.csv").write_text("a,b\n1,2\n3,\n5,6\n7,8\n")
    (tmp_path / "words.csv").write_text("a,b\n1,x\n3,y\n5,z\n")
    return tmp_path


def check_refused(done: tiny_components.CommandResult, folder: Path, fragments: tuple[str, ...]) -> None:
    """One sentence or two on standard error, exit code 2, and nothing stored."""
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("selfloop: ")
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1
    assert len(done.err) < 700
    for fragment in fragments:
        assert fragment in done.err
    assert tiny_components.files_of(folder / "store") == []


@pytest.mark.parametrize(("text", "fragments"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_mistake_is_one_sentence_before_any_work(folder: Path, text: str, fragments: tuple[str, ...], command: str) -> None:
    (folder / "spec.toml").write_text(text.replace("FOLDER", str(folder)))
    quiet = ["-q"] if command == "run" else []
    done = tiny_components.selfloop(command, folder / "spec.toml", "--store", folder / "store", *quiet)
    check_refused(done, folder, fragments)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (changed(('[family]\nname = "gaussian"', '[family]\nname = "discrete"')), "discrete"),
        (changed(('[family]\nname = "kde"', '[family]\nname = "discrete"'), text=KDE), "discrete"),
        ('metrics = ["support_size"]' + GAUSSIAN, "'probabilities'"),
        (changed(("holdout = 5", "holdout = 0"), text=KDE), "holdout"),
    ],
)
def test_components_that_do_not_fit_each_other_are_one_sentence(folder: Path, text: str, missing: str) -> None:
    (folder / "spec.toml").write_text(text)
    check_refused(tiny_components.selfloop("run", folder / "spec.toml", "--store", folder / "store", "-q"), folder, (missing,))


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("generations", ("--set 'generations'", "key=value")),
        ("=3", ("--set '=3'", "key=value")),
        ("sedes=3", ("sedes", "'seeds'?")),
        ("family.dof=1", ("family.dof", "'ddof'?")),
        ("seeds.more=1", ("--set 'seeds.more=1'", "seeds is not a table")),
        ("generations=[1", ("generations: got '[1'",)),
        ("generations=many", ("generations: got 'many'",)),
        ("family=kdee", ("family: unknown name 'kdee'", "'kde'?")),
        (f"n={'9' * 5000}", ("n: got '999",)),
    ],
)
def test_a_wrong_override_is_one_sentence(folder: Path, override: str, fragments: tuple[str, ...]) -> None:
    (folder / "spec.toml").write_text(GAUSSIAN)
    done = tiny_components.selfloop("run", folder / "spec.toml", "--store", folder / "store", "-q", "--set", override)
    check_refused(done, folder, fragments)


def test_an_unreadable_file_is_one_sentence(folder: Path) -> None:
    (folder / "latin.toml").write_bytes(GAUSSIAN.replace("n = 10", "n = 10 # Zürich").encode("latin-1"))
    (folder / "binary.toml").write_bytes(bytes(range(256)))
    (folder / "t.csv").write_text("a,b\n1,2\n")
    for spec, fragment in {
        folder: "is a folder", folder / "t.csv": "is a table, not a spec. Run `selfloop audit",
        folder / "latin.toml": "is not UTF-8", folder / "binary.toml": "is not UTF-8",
        folder / "none.toml": "no such file or preset", "quickstart_digit": "Did you mean 'quickstart_digits'?",
        "x" * 5000: "selfloop: xxx", "": "is a folder",
    }.items():  # fmt: skip
        done = tiny_components.selfloop("run", spec, "--store", folder / "store", "-q")
        assert done.code == 2, done
        assert fragment in done.err
        assert len(done.err) < 700
        assert not (folder / "store").exists()


def test_overrides_have_the_effect_of_an_edit(folder: Path) -> None:
    (folder / "spec.toml").write_text(GAUSSIAN)
    overrides = ["generations=7", 'policies=["mix"]', "source.dim=3", "seeds=[4, 5]", "family.ddof=1"]
    edited = changed(
        ("generations = 2", "generations = 7"), ('["replace"]', '["mix"]'), ("seeds = 2", "seeds = [4, 5]"),
        ("[family]", "dim = 3\n[family]"),
    )  # fmt: skip
    assert read_spec(folder / "spec.toml", overrides) == parse_spec(edited + "ddof = 1\n", "edited")


def test_a_text_with_settings_is_the_table_with_them() -> None:
    texts = """["mix(real_share=0.25)", "window( length = 3 )", "control(of='mix(real_share=0.25)')", "replace()"]"""
    tables = """[
        { name = "mix", real_share = 0.25 }, { name = "window", length = 3 },
        { name = "control", of = { name = "mix", real_share = 0.25 } }, "replace",
    ]"""
    assert parse_spec(changed(('["replace"]', texts)), "texts") == parse_spec(changed(('["replace"]', tables)), "tables")
    kde = Spec(source="moons", family="kde(bandwidth=0.1)", n=10, policies=["replace"])  # type: ignore[arg-type]
    assert kde == Spec(source="moons", family={"name": "kde", "bandwidth": 0.1}, n=10, policies=["replace"])  # type: ignore[arg-type]
    assert parse_spec(spec_text(kde), "kde", ["family=kde(bandwidth=0.1)"]) == kde


# writing out


@given(
    st.lists(policies, min_size=1, max_size=4, unique_by=str),
    st.integers(1, 10**6),
    st.one_of(st.integers(1, 20), st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True)),
    st.floats(1e-3, 1e3),
)
def test_a_spec_written_out_reads_as_the_same_spec(many: list[Any], n: int, seeds: Any, bandwidth: float) -> None:
    assume(len({policy_label(policy, True) for policy in many}) == len(many))
    family = {"name": "kde", "bandwidth": bandwidth}
    spec = Spec(source="moons", family=family, n=n, seeds=seeds, policies=tuple(many))  # type: ignore[arg-type]
    assert parse_spec(spec_text(spec), "written") == spec


@pytest.mark.parametrize("name", presets())
def test_a_preset_written_out_reads_as_the_same_spec(name: str) -> None:
    spec = read_spec(name)
    assert parse_spec(spec_text(spec), "written") == spec
    assert parse_spec(spec_text(spec, brief=True), "written") == spec


def test_a_brief_spec_has_what_was_given_and_nothing_that_the_family_sets() -> None:
    text = spec_text(read_spec("quickstart_text"), brief=True)
    assert 'prompt = "first_token"\nmax_tokens = 128\n' in text
    assert "longest_row = " in spec_text(read_spec("quickstart_text"))
    assert not re.search("^(longest_row|longest_prompt|init_from|top_k|temperature) = ", text, flags=re.M)


def test_a_sweep_and_nested_settings_survive_being_written_out() -> None:
    spec = parse_spec(DIGITS + "[family.training]\nsteps = 3\n[sweep]\n'family.latent' = [2, 4]\n'n' = [50, 60]\n", "here")
    assert parse_spec(spec_text(spec), "written") == spec
    points = spec.points()
    assert [point.coordinates for point in points] == [
        (("family.latent", latent), ("n", n)) for latent in (2, 4) for n in (50, 60)
    ]  # fmt: skip
    assert [(point.spec.family.latent, point.n, point.spec.family.training.steps) for point in points] == [  # type: ignore[attr-defined]
        (2, 50, 3), (2, 60, 3), (4, 50, 3), (4, 60, 3),
    ]  # fmt: skip


def test_a_text_with_quotes_and_backslashes_survives_being_written_out(tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted" \\ and ü.csv'
    odd.write_text("a,b\n1,2\n3,4\n5,6\n7,8\n")
    spec = parse_spec(
        GAUSSIAN.replace('name = "gaussian"\n[family]', f'name = "table"\npath = {json.dumps(str(odd))}\n[family]'), "x"
    )
    assert parse_spec(spec_text(spec), "written") == spec


@pytest.mark.parametrize(
    ("family", "source"), [("vae", "digits"), ("gaussian", "gaussian"), ("kde", "moons"), ("linear", "linear")]
)
def test_the_template_of_a_new_spec_can_be_read(family: str, source: str) -> None:
    spec = parse_spec(spec_template(family, source), "new")
    assert (spec.family.name, spec.source.name) == (family, source)
    assert spec.points()


def test_no_spec_is_written_for_a_family_that_cannot_model_the_source() -> None:
    with pytest.raises(SpecError, match="transformer models the columns text; digits has image"):
        spec_template("transformer", "digits")


def test_a_new_spec_does_not_offer_a_holdout_that_its_source_sets_aside_itself() -> None:
    assert "# holdout = " not in spec_template("transformer", "tinystories")
    assert "# holdout = " in spec_template("vae", "digits")


# wrong rows of a user's source


class Wrong(tiny_components.Ticks):
    """Its rows never match its schema."""


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (np.array([1.0, np.nan] * 10), "contains NaN or infinity"),
        (np.zeros(20, np.float32), "has rows float32[]; expected float64[]"),
        (np.zeros((20, 2)), "has rows float64[2]; expected float64[]"),
        (None, "column 'x' is missing"),
    ],
)
def test_rows_that_do_not_match_the_schema_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: Any, sentence: str
) -> None:
    rows = {"y": np.zeros(20)} if column is None else {"x": column}
    monkeypatch.setattr(Wrong, "draw", lambda self, first, n, ctx: rows)
    with pytest.raises(Exception, match=r"source\.ticks") as refused:
        list(iter_measurements(tiny_components.tiny_spec(source=Wrong()), tmp_path))
    assert sentence in str(refused.value)
    assert tiny_components.files_of(tmp_path) == []
