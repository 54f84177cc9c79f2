"""Export: what other programs open is what the run has stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

import selfloop
import tiny_components
from bases import POSITIONS, TEXTS, documents, samples_of, save_base
from selfloop.commands.export import export_model, export_samples, find_generation
from selfloop.component import Context, Family, Sampler, Source
from selfloop.engine.steps import sample
from selfloop.errors import ChainEndedError, MissingExtraError, SpecError
from selfloop.families.finetune import hf_model
from selfloop.families.finetune.family import Finetune, Lora
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.config import Shape
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.hf_export import config_of, export_shape, shape_of
from selfloop.families.transformer.network import Network
from selfloop.protocols import SupportsExport
from selfloop.rng import RandomStream
from selfloop.sources.molecules import Sdf
from selfloop.spec.spec import Spec
from selfloop.types import Columns, ColumnType, Params, Ragged, TrainingRows, concat_rows

HERE = Context(RandomStream(("test",)))
SHAPES = {
    "gpt2": Shape(arch="gpt2", layers=2, hidden=16, heads=2, mlp=48, context=POSITIONS, vocab=290),
    "llama": Shape(arch="llama", layers=2, hidden=16, heads=4, kv_heads=2, mlp=40, context=POSITIONS, vocab=290, tied=False,
                   rope_theta=5_000.0, epsilon=1e-6),
    "tied_llama": Shape(arch="llama", layers=1, hidden=16, heads=2, mlp=40, context=POSITIONS, vocab=290),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of the tiny base of an architecture."""
    root = tmp_path_factory.mktemp("bases")

    def folder(arch: str) -> Path:
        return root / arch if (root / arch).exists() else save_base(root / arch, arch)

    return folder


@pytest.fixture(scope="module")
def learned(base):
    return documents(Finetune(base=base("gpt2"), context=9))[1]


def network_of(shape):
    with trainer.seed_torch(RandomStream(("network",))):
        model = Network(shape)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_shape_is_told_by_its_configuration(shape):
    found = shape_of(config_of(shape, 0, 1))
    assert found == (
        shape if shape.kv_heads or shape.arch == "gpt2" else type(shape)(**{**vars(shape), "kv_heads": shape.heads})
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [("gpt2", {"activation_function": "relu"}), ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
     ("llama", {"attention_bias": True}), ("llama", {"hidden_act": "gelu"}), ("llama", {"head_dim": 8}),
     ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}})],
)  # fmt: skip
def test_what_a_shape_cannot_describe_is_not_taken_for_one(name, change):
    config = config_of(SHAPES[name], 0, 1)
    assert shape_of(type(config)(**{**config.to_dict(), **change})) is None


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_exported_transformer_gives_our_logits_and_says_what_it_is(tmp_path, shape, learned):
    ours = network_of(shape)
    params = {name: tensor.numpy() for name, tensor in ours.state_dict().items()}
    export_shape(shape, {**params, "training/loss": np.zeros(3), **learned}, tmp_path, "float32")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    start, end = int(learned["tokenizer/start"]), int(learned["tokenizer/end"])
    assert ids[0, 0] == start
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == TEXTS[0]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, ours.logits(ids), rtol=1e-4, atol=1e-4)
        assert (theirs(ids.flip(1)).logits - ours.logits(ids)).abs().max() > 0.01
    assert theirs.num_parameters() == sum(p.numel() for p in ours.parameters())
    config, drawing = json.loads((tmp_path / "config.json").read_text()), GenerationConfig.from_pretrained(tmp_path)
    assert (config["vocab_size"], config["eos_token_id"], config["bos_token_id"]) == (shape.vocab, end, start)
    assert config["architectures"] == [type(theirs).__name__]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert (drawing.do_sample, drawing.top_k, drawing.eos_token_id, drawing.max_length) == (True, 0, end, POSITIONS)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.model_max_length) == (end, start, POSITIONS)
    if shape.arch == "llama":
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == shape.rope_theta


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_the_transformer_family_exports_the_model_that_it_measures(tmp_path, arch):
    scratch = Transformer(arch=arch, layers=1, hidden=16, heads=2, context=64, vocab=300, packing="documents",
                          training=TrainingSettings(steps=4, batch_size=4, learning_rate=0.01))  # fmt: skip
    text = {"text": Ragged.of_bytes([each.encode() for each in TEXTS])}
    encoder = scratch.encoder()
    learned = encoder.prepare([text], HERE)
    rows = encoder.encode(text, learned)
    params = scratch.fit(TrainingRows(((rows, None, 1.0),), learned), HERE, None)
    assert isinstance(scratch, SupportsExport)
    scratch.export(params, tmp_path, "float32")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.inference_mode():
        scores = torch.log_softmax(model(ids).logits[0], -1)[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
    ours = scratch.token_log_prob(params, rows, HERE).values[: len(scores)]
    assert scores == pytest.approx(ours, abs=1e-4)


def test_weights_can_be_written_as_bfloat16(tmp_path, learned):
    shape = SHAPES["llama"]
    params = {name: tensor.numpy() for name, tensor in network_of(shape).state_dict().items()}
    export_shape(shape, {**params, **learned}, tmp_path, "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(model.state_dict()[name].float().numpy(), torch.tensor(params[name]).bfloat16().float().numpy())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(("arch", "lora"), [("gpt2", None), ("llama", Lora(rank=2)), ("gpt_neox", Lora(rank=2))])
def test_an_exported_fine_tuned_model_is_the_merged_one_and_its_pipeline_samples(tmp_path, base, arch, lora):
    tuned = Finetune(base=base(arch), context=POSITIONS, lora=lora, training=TrainingSettings(steps=8, batch_size=8, learning_rate=3e-3))
    params = tuned.fit(samples_of(tuned), HERE, None)
    tuned.export(params, tmp_path, "float32")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXTS[3], return_tensors="pt").input_ids
    assert ids[0].tolist() == [int(params["tokenizer/start"]), *documents(tuned, TEXTS[3:4])[0]["tokens"].values[:-1].tolist()]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, hf_model.network(tuned, params).eval()(ids).logits, rtol=1e-4, atol=1e-4)
        without = AutoModelForCausalLM.from_pretrained(base(arch))(ids).logits
        assert (theirs(ids).logits - without).abs().max() > 0.01
    torch.manual_seed(0)
    drawn = pipeline("text-generation", model=str(tmp_path), device="cpu")(["a dog"] * 4, num_return_sequences=2)
    texts = {each["generated_text"] for row in drawn for each in row}
    assert len(texts) > 4
    assert all(text.startswith("a dog") for text in texts)


def run(spec: Spec, store: Path) -> Spec:
    selfloop.run(spec, store)
    return spec


def test_a_family_without_a_form_of_its_own_is_one_file_that_runs_can_start_from(tmp_path):
    spec = run(tiny_components.tiny_spec(), tmp_path / "store")
    found = find_generation(spec, tmp_path / "store", "accumulate", 1, 3)
    assert found.title() == "generation 3 of accumulate, seed 1"
    export_model(found, tmp_path / "out")
    mean = load_file(tmp_path / "out" / "model.safetensors")["mean"]
    rows = selfloop.run(spec, tmp_path / "store").rows
    assert float(mean) == next(r.value for r in rows if r[:4] == ("accumulate", 1, 3, "level"))
    assert 'name = "ticks"' in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SpecError, match=r"--dtype: got bfloat16; models of family mean are written as they are"):
        export_model(found, tmp_path / "other", "bfloat16")
    assert not (tmp_path / "other").exists()
    assert tiny_start(spec, tmp_path / "out" / "model.safetensors")


def tiny_start(spec: Spec, file: Path) -> bool:
    return Spec(**{**vars(spec), "start": file}).start == file


def test_samples_are_written_as_tables_and_lines(tmp_path):
    spec = run(tiny_components.tiny_spec(), tmp_path / "store")
    found = find_generation(spec, tmp_path / "store", "replace", 0, 2)
    for format_ in (None, "jsonl", "parquet", "safetensors"):
        export_samples(found, tmp_path / str(format_), format_)
    csv = pd.read_csv(tmp_path / "None" / "samples.csv")["x"]
    lines = [json.loads(line)["x"] for line in (tmp_path / "jsonl" / "samples.jsonl").read_text().splitlines()]
    parquet = pd.read_parquet(tmp_path / "parquet" / "samples.parquet")["x"]
    exact = load_file(tmp_path / "safetensors" / "samples.safetensors")["x"]
    assert len(exact) == 20
    assert all(np.array_equal(np.asarray(values), exact) for values in (csv, lines, parquet))
    with pytest.raises(SpecError, match="--format png: the rows are not images"):
        export_samples(found, tmp_path / "png", "png")
    with pytest.raises(SpecError, match=r"--format: unknown name 'jsnl'. Did you mean 'jsonl'"):
        export_samples(found, tmp_path / "png", "jsnl")
    assert not (tmp_path / "png").exists()


def test_molecules_are_written_as_an_sdf_file_that_is_a_source_again(tmp_path):
    spec = run(
        Spec(
            source={"name": "smiles", "molecules": 20, "conformers": 2},
            family={"name": "geodiff", "hidden": 8, "interactions": 1, "noise_levels": 20, "training": {"steps": 3, "batch_size": 8}},
            n=20, generations=1, seeds=1, policies=["replace"], metrics=["denoising_loss"],
        ),
        tmp_path / "store",
    )  # fmt: skip
    found = find_generation(spec, tmp_path / "store")
    export_samples(found, tmp_path / "out")
    rows = found.open(sample)
    again = concat_rows(list(Sdf(path=tmp_path / "out" / "samples.sdf", conformers=2).chunks()))
    for name in ("z", "charge", "edges", "edge_type"):
        for part in ("values", "offsets"):
            assert np.array_equal(getattr(again[name], part), getattr(rows[name], part)), name
    atoms, first = np.diff(rows["z"].offsets), rows["z"].offsets[:-1]
    means = np.add.reduceat(rows["position"].values, first) / atoms[:, None]  # a source moves molecules to their centres
    assert np.allclose(again["position"].values, rows["position"].values - means.repeat(atoms, 0), atol=1e-3)
    export_samples(found, tmp_path / "lines", "jsonl")
    line = json.loads((tmp_path / "lines" / "samples.jsonl").read_text().splitlines()[0])
    assert line["smiles"] == rows["smiles"][np.array([0])].values.tobytes().decode()
    assert line["z"] == rows["z"].values[: rows["z"].offsets[1]].tolist()
    with pytest.raises(SpecError, match="--format png: the rows are not images"):
        export_samples(found, tmp_path / "png", "png")


def test_what_is_no_molecule_has_no_sdf_file(tmp_path):
    found = find_generation(run(tiny_components.tiny_spec(), tmp_path / "store"), tmp_path / "store", "replace")
    with pytest.raises(SpecError, match="--format sdf: the rows are not molecules"):
        export_samples(found, tmp_path / "out", "sdf")


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    spec = run(tiny_components.tiny_spec(), tmp_path / "store")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"--format parquet: needs pyarrow.*pip install 'selfloop\[hub\]'"):
        export_samples(find_generation(spec, tmp_path / "store", "replace"), tmp_path / "out", "parquet")


@dataclass(frozen=True, kw_only=True)
class Squares(Source):
    """Little grey images."""

    name: ClassVar[str] = "squares"

    def schema(self) -> Mapping[str, ColumnType]:
        return {"image": ColumnType("uint8", (5, 7)), "y": ColumnType("float64", (2,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        grey = np.arange(first, first + n, dtype=np.uint8)
        return {"image": np.tile(grey[:, None, None], (1, 5, 7)), "y": np.tile(grey[:, None], (1, 2)) / 8}


@dataclass(frozen=True, kw_only=True)
class Echo(Family):
    """The rows it was fitted on; none at `ends`."""

    name: ClassVar[str] = "echo"
    ends: float = np.inf

    def fit(self, data: TrainingRows, ctx: Context, start: Params | None) -> Params:
        rows = {name: np.asarray(column) for name, column in data.all().items()}
        if rows["y"].max() > self.ends:
            raise ChainEndedError("too_bright")
        return rows

    def sample(self, params: Params, n: int, sampler: Sampler, given: Columns, ctx: Context) -> Columns:
        return {"image": params["image"][:n] + np.uint8(1), "y": params["y"][:n] + 1}


def echo_spec(**changes) -> Spec:
    settings = {"source": Squares(), "family": Echo(), "n": 4, "holdout": 1, "generations": 3, "seeds": 1}
    return Spec(**{**settings, "policies": ("replace",), "metrics": (), "criteria": ("any_increase",), **changes})


def test_images_are_written_as_pictures(tmp_path):
    from PIL import Image

    found = find_generation(run(echo_spec(), tmp_path / "store"), tmp_path / "store", generation=2)
    export_samples(found, tmp_path / "out")
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert [np.asarray(Image.open(file)).tolist() for file in pictures] == [np.full((5, 7), 3 + i).tolist() for i in range(4)]
    export_samples(found, tmp_path / "table", "csv")
    table = pd.read_csv(tmp_path / "table" / "samples.csv")
    assert table.shape == (4, 5 * 7 + 2)
    assert table["y[1]"].tolist() == [2.125, 2.25, 2.375, 2.5]


def test_what_is_not_stored_or_does_not_exist_is_said_in_a_sentence(tmp_path):
    spec, store = tiny_components.tiny_spec(), tmp_path / "store"
    with pytest.raises(SpecError, match=r"export: generation 4 of replace, seed 0 is not in store .* Run the spec first"):
        export_model(find_generation(spec, store, "replace"), tmp_path / "out")
    assert not store.exists()
    run(spec, store)
    for wanted, sentence in (
        ({}, "--policy: missing. The spec has replace, accumulate, accumulate_subsample; name one"),
        ({"policy": "replce"}, "--policy: unknown name 'replce'. Did you mean 'replace'"),
        ({"policy": "replace", "seed": 7}, "--seed: got 7; the spec has 0, 1"),
        ({"policy": "replace", "generation": 9}, "--generation: got 9; the spec has 1 to 4"),
    ):
        with pytest.raises(SpecError, match=sentence):
            find_generation(spec, store, **wanted)
    with pytest.raises(SpecError, match=r"export: the spec sweeps n. Choose one point: --set sweep=\{\} --set n="):
        find_generation(tiny_components.tiny_spec(sweep={"n": [5, 6]}), store)
    with pytest.raises(SpecError, match="export: all chains of family gaussian run at once in memory"):
        find_generation(Spec(source="gaussian", family="gaussian", n=5), store)


def test_a_chain_that_ended_has_models_before_its_end_only(tmp_path):
    spec = run(echo_spec(family=Echo(ends=1.0)), tmp_path / "store")
    export_model(find_generation(spec, tmp_path / "store", generation=1), tmp_path / "first")
    with pytest.raises(SpecError, match=r"export: replace, seed 0, ended at generation 2 \(too_bright\)"):
        export_model(find_generation(spec, tmp_path / "store", generation=3), tmp_path / "third")


def test_a_metric_that_is_not_stored_yet_does_not_stand_in_the_way(tmp_path):
    run(tiny_components.tiny_spec(), tmp_path / "store")
    more = tiny_components.tiny_spec(metrics=(tiny_components.Level(), tiny_components.Energy()))
    export_model(find_generation(more, tmp_path / "store", "replace", 0, 1), tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    spec = run(tiny_components.tiny_spec(), tmp_path / "store")
    found = find_generation(spec, tmp_path / "store", "replace")
    (tmp_path / "out").mkdir()
    export_model(found, tmp_path / "out")  # an empty one is used
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    for folder in (tmp_path / "out", tmp_path / "out" / "README.md"):
        with pytest.raises(SpecError, match=r"--to .*: exists and is not empty. Name a new folder; nothing was written"):
            export_samples(found, folder)
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert list(tmp_path.glob(".*")) == []


def test_the_command_exports_a_language_models_texts_and_folder(tmp_path, base):
    """The whole way: prompts and responses, a base, two generations, the command line."""
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
format = "user: {{prompt}}\\nassistant: {{response}}"
[family]
name = "finetune"
base = "{base("llama")}"
context = 40
loss_after = "assistant:"
training = {{ steps = 2, batch_size = 4 }}
lora = {{ rank = 2 }}
""")
    store = ("--store", tmp_path / "store")
    assert (ran := tiny_components.selfloop("run", spec, "-q", *store)).code == 0, ran.err
    done = tiny_components.selfloop("export", spec, "--policy", "accumulate", "--to", tmp_path / "model", *store)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"written: {tmp_path / 'model'} (model of generation 2 of accumulate, seed 0)\n"
    assert AutoConfig.from_pretrained(tmp_path / "model").model_type == "llama"
    assert "library_name: transformers" in (tmp_path / "model" / "README.md").read_text()
    assert len({file.stat().st_mode for file in (tmp_path / "model").iterdir()}) == 1  # all can be read by whom the spec can
    chosen = ("--policy", "replace", "--generation", "1", "--what", "samples")
    done = tiny_components.selfloop("export", spec, *chosen, "--to", tmp_path / "texts", *store)
    assert (done.code, done.err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "texts" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert all(isinstance(line["text"], str) for line in lines)
    ended = tiny_components.selfloop(
        "export", spec, "--policy", "replace", "--to", tmp_path / "x", *store
    )  # no chat came out of a random base
    assert (ended.code, ended.err) == (2, "selfloop: export: replace, seed 0, ended at generation 2 (nothing_to_learn).\n")
    wrong = tiny_components.selfloop("export", spec, "--policy", "replace", "--what", "modl", "--to", tmp_path / "x", *store)
    assert (wrong.code, wrong.err) == (
        2,
        "selfloop: --what: unknown name 'modl'. Did you mean 'model'? Allowed: model, samples.\n",
    )
