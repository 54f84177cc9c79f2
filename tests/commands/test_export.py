"""Exported files contain the arrays and rows that the run stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import selfloop
import tiny_components
from selfloop.columns import Columns, ColumnType, Params, concat_rows, select_rows
from selfloop.commands.export import export_model, export_samples, find_generation
from selfloop.component import Context, Family, Sampler, Source
from selfloop.errors import ChainEndedError, MissingExtraError, SpecError
from selfloop.formats.tables import write_csv
from selfloop.sources.sdf import Sdf
from selfloop.spec.spec import Spec
from selfloop.types import TrainingRows

TRAINING = {"steps": 3, "batch_size": 8}


def run(spec: Spec, store: Path) -> Spec:
    selfloop.run(spec, store)
    return spec


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, Path]:
    """The spec of tiny components and the store of its run."""
    store = tmp_path_factory.mktemp("tiny") / "store"
    return run(tiny_components.tiny_spec(), store), store


def test_a_family_without_a_folder_format_is_one_file_that_runs_can_start_from(tmp_path, tiny_run):
    spec, store = tiny_run
    stored = find_generation(spec, store, "accumulate", 1, 3)
    assert stored.title() == "generation 3 of accumulate, seed 1"
    export_model(stored, tmp_path / "out")
    mean = load_file(tmp_path / "out" / "model.safetensors")["mean"]
    measurements = selfloop.run(spec, store).measurements
    assert float(mean) == next(m.value for m in measurements if m[:4] == ("accumulate", 1, 3, "level"))
    assert 'name = "ticks"' in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SpecError, match=r"--dtype: got bfloat16; models of family mean keep their dtypes"):
        export_model(stored, tmp_path / "other", "bfloat16")
    assert not (tmp_path / "other").exists()
    file = tmp_path / "out" / "model.safetensors"
    assert replace(spec, init_from=file).init_from == file


def test_a_table_holds_no_formula_and_numbers_stay(tmp_path):
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "plain", "1=1"]
    write_csv({"=name": np.array(texts), "x": -np.arange(8.0)}, tmp_path / "table.csv", {})
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["'=name"].tolist() == [f"'{text}" for text in texts[:6]] + texts[6:]
    assert table["x"].tolist() == (-np.arange(8.0)).tolist()


def test_samples_are_written_as_tables_and_lines(tmp_path, tiny_run):
    stored = find_generation(*tiny_run, "replace", 0, 2)
    for format_ in (None, "jsonl", "parquet", "safetensors"):
        export_samples(stored, tmp_path / str(format_), format_)
    csv = pd.read_csv(tmp_path / "None" / "samples.csv")["x"]
    lines = [json.loads(line)["x"] for line in (tmp_path / "jsonl" / "samples.jsonl").read_text().splitlines()]
    parquet = pd.read_parquet(tmp_path / "parquet" / "samples.parquet")["x"]
    exact = load_file(tmp_path / "safetensors" / "samples.safetensors")["x"]
    assert len(exact) == 20
    assert all(np.array_equal(np.asarray(values), exact) for values in (csv, lines, parquet))
    for format_, sentence in (
        ("png", "--format png: the rows are not images"),
        ("sdf", "--format sdf: the rows are not molecules"),
        ("jsnl", r"--format: unknown name 'jsnl'. Did you mean 'jsonl'"),
    ):
        with pytest.raises(SpecError, match=sentence):
            export_samples(stored, tmp_path / "wrong", format_)
    assert not (tmp_path / "wrong").exists()


def test_molecules_are_written_as_an_sdf_file_that_a_source_reads(tmp_path):
    spec = run(
        Spec(
            source={"name": "smiles", "molecules": 20, "conformers": 2},
            family={"name": "geodiff", "hidden": 8, "interactions": 1, "noise_levels": 20, "training": TRAINING},
            n=20, generations=1, seeds=1, policies=["replace"], metrics=["denoising_loss"],
        ),
        tmp_path / "store",
    )  # fmt: skip
    stored = find_generation(spec, tmp_path / "store")
    export_samples(stored, tmp_path / "out")
    # one conformer of each molecule: a model of one training step samples conformers of several stereo forms
    rows = select_rows(stored.samples(), np.arange(0, 20, 2))
    again = concat_rows(list(Sdf(path=tmp_path / "out" / "samples.sdf", conformers=1).chunks()))
    for name in ("z", "charge", "edges", "edge_type"):
        for part in ("values", "offsets"):
            assert np.array_equal(getattr(again[name], part), getattr(rows[name], part)), name
    atoms, first = np.diff(rows["z"].offsets), rows["z"].offsets[:-1]
    means = np.add.reduceat(rows["position"].values, first) / atoms[:, None]  # a source moves molecules to their centers
    assert np.allclose(again["position"].values, rows["position"].values - means.repeat(atoms, 0), atol=1e-3)
    export_samples(stored, tmp_path / "lines", "jsonl")
    line = json.loads((tmp_path / "lines" / "samples.jsonl").read_text().splitlines()[0])
    assert line["smiles"] == rows["smiles"][np.array([0])].values.tobytes().decode()
    assert line["z"] == rows["z"].values[: rows["z"].offsets[1]].tolist()
    with pytest.raises(SpecError, match="--format png: the rows are not images"):
        export_samples(stored, tmp_path / "png", "png")


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch, tiny_run):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"--format parquet: needs pyarrow.*pip install 'selfloop\[hub\]'"):
        export_samples(find_generation(*tiny_run, "replace"), tmp_path / "out", "parquet")


@dataclass(frozen=True, kw_only=True)
class Squares(Source):
    """Small gray images."""

    name: ClassVar[str] = "squares"

    def schema(self) -> Mapping[str, ColumnType]:
        return {"image": ColumnType("uint8", (5, 7)), "y": ColumnType("float64", (2,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        gray = np.arange(first, first + n, dtype=np.uint8)
        return {"image": np.tile(gray[:, None, None], (1, 5, 7)), "y": np.tile(gray[:, None], (1, 2)) / 8}


@dataclass(frozen=True, kw_only=True)
class Echo(Family):
    """Samples its training rows, one level brighter. A chain ends when a row is above `limit`."""

    name: ClassVar[str] = "echo"
    limit: float | None = None

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        columns = {name: np.asarray(column) for name, column in rows.all().items()}
        if self.limit is not None and columns["y"].max() > self.limit:
            raise ChainEndedError("too_bright")
        return columns

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"image": params["image"][:n] + np.uint8(1), "y": params["y"][:n] + 1}


def echo_spec(**changes) -> Spec:
    settings = {"source": Squares(), "family": Echo(), "n": 4, "holdout": 1, "generations": 3, "seeds": 1}
    return Spec(**{**settings, "policies": ("replace",), "metrics": (), "criteria": ("any_increase",), **changes})


def test_images_are_written_as_png_files_and_arrays_as_columns(tmp_path):
    from PIL import Image

    stored = find_generation(run(echo_spec(), tmp_path / "store"), tmp_path / "store", generation=2)
    export_samples(stored, tmp_path / "out")
    images = [np.asarray(Image.open(file)).tolist() for file in sorted((tmp_path / "out").glob("*.png"))]
    assert images == [np.full((5, 7), 3 + i).tolist() for i in range(4)]
    export_samples(stored, tmp_path / "table", "csv")
    table = pd.read_csv(tmp_path / "table" / "samples.csv")
    assert table.shape == (4, 5 * 7 + 2)
    assert table["y[1]"].tolist() == [2.125, 2.25, 2.375, 2.5]


def test_a_generation_that_is_not_stored_or_does_not_exist_is_an_error_in_one_sentence(tmp_path, tiny_run):
    spec, store = tiny_run
    with pytest.raises(SpecError, match=r"export: generation 4 of replace, seed 0 is not in store .* Run the spec first"):
        export_model(find_generation(spec, tmp_path / "missing", "replace"), tmp_path / "out")
    assert not (tmp_path / "missing").exists()
    for wanted, sentence in (
        ({}, "--policy: missing. Choose one of replace, accumulate, accumulate_subsample"),
        ({"policy": "replce"}, "--policy: unknown name 'replce'. Did you mean 'replace'"),
        ({"policy": "replace", "seed": 7}, "--seed: got 7; expected one of 0, 1"),
        ({"policy": "replace", "generation": 9}, "--generation: got 9; expected 1 to 4"),
    ):
        with pytest.raises(SpecError, match=sentence):
            find_generation(spec, store, **wanted)
    with pytest.raises(SpecError, match=r"export: the spec sweeps n. Choose one point: --set sweep=\{\} --set n="):
        find_generation(tiny_components.tiny_spec(sweep={"n": [5, 6]}), store)
    with pytest.raises(SpecError, match="export: chains of family gaussian run together in memory"):
        find_generation(Spec(source="gaussian", family="gaussian", n=5), store)


def test_a_chain_that_ended_has_models_before_its_end_only(tmp_path):
    spec = run(echo_spec(family=Echo(limit=1.0)), tmp_path / "store")
    export_model(find_generation(spec, tmp_path / "store", generation=1), tmp_path / "first")
    with pytest.raises(SpecError, match=r"export: replace, seed 0, ended at generation 2 \(too_bright\)"):
        export_model(find_generation(spec, tmp_path / "store", generation=3), tmp_path / "third")


def test_a_generation_is_found_if_a_metric_is_not_stored(tmp_path, tiny_run):
    more = replace(tiny_run[0], metrics=(tiny_components.Level(), tiny_components.Energy()))
    export_model(find_generation(more, tiny_run[1], "replace", 0, 1), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_folder_that_is_not_empty_is_not_changed(tmp_path, tiny_run):
    stored = find_generation(*tiny_run, "replace")
    (tmp_path / "out").mkdir()
    export_model(stored, tmp_path / "out")  # an empty folder is used
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    for folder in (tmp_path / "out", tmp_path / "out" / "README.md"):
        with pytest.raises(SpecError, match=r"--output .*: exists and is not empty. Name a new folder; nothing was written"):
            export_samples(stored, folder)
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.slow
def test_the_command_exports_the_texts_and_the_folder_of_a_language_model(tmp_path):
    """The whole way: prompts and responses, a base model, two generations, the command line."""
    from transformers import AutoConfig

    from tiny_language_models import save_base

    lines = [json.dumps({"prompt": f"{i} dogs?", "response": f"the cat and {i}"}) for i in range(20)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    spec = tmp_path / "spec.toml"
    spec.write_text(f"""
n = 8
holdout = 4
generations = 2
seeds = 1
policies = ["replace", "accumulate"]
[source]
name = "jsonl"
path = "{tmp_path / "chats.jsonl"}"
template = "user: {{prompt}}\\nassistant: {{response}}"
[family]
name = "finetune"
base_model = "{save_base(tmp_path / "llama", "llama")}"
context = 40
response_template = "assistant:"
training = {{ steps = 2, batch_size = 4 }}
lora = {{ rank = 2 }}
""")
    store = ("--store", tmp_path / "store")
    assert (ran := tiny_components.selfloop("run", spec, "-q", *store)).code == 0, ran.err

    def export(*options: str, output: str) -> tiny_components.CommandResult:
        return tiny_components.selfloop("export", spec, *options, "-o", tmp_path / output, *store)

    sentence = f"written: {tmp_path / 'model'} (model of generation 2 of accumulate, seed 0)\n"
    assert export("--policy", "accumulate", output="model") == (0, sentence, "")
    assert AutoConfig.from_pretrained(tmp_path / "model").model_type == "llama"
    assert "library_name: transformers" in (tmp_path / "model" / "README.md").read_text()
    assert len({file.stat().st_mode for file in (tmp_path / "model").iterdir()}) == 1
    assert export("--policy", "replace", "--generation", "1", "--what", "samples", output="texts").code == 0
    texts = [json.loads(line)["text"] for line in (tmp_path / "texts" / "samples.jsonl").read_text().splitlines()]
    assert [type(text) for text in texts] == [str] * 8
    # a random base model samples no chat
    ended = "selfloop: export: replace, seed 0, ended at generation 2 (no_training_tokens).\n"
    assert export("--policy", "replace", output="x") == (2, "", ended)
    wrong = "selfloop: --what: unknown name 'modl'. Did you mean 'model'? Allowed: model, samples.\n"
    assert export("--policy", "replace", "--what", "modl", output="x") == (2, "", wrong)
