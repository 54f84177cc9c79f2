"""Models in the form of Hugging Face: transformers opens an exported folder and computes our logits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from selfloop.columns import Ragged
from selfloop.component import Context
from selfloop.families.finetune.family import Finetune, Lora
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.decoder import TransformerConfig
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.hf_network import from_hf_config, open_model, save_folder, to_hf_config
from selfloop.families.transformer.network import TransformerNetwork
from selfloop.protocols import SupportsExport
from selfloop.rng import RandomStream
from selfloop.types import RowTake, TrainingRows
from tiny_language_models import POSITIONS, TEXTS, encode, logits, prepare_encoder, save_base, training_rows

CTX = Context(RandomStream(("test",)))
CONFIGS = {
    "gpt2": TransformerConfig(arch="gpt2", layers=2, hidden=16, heads=2, mlp_hidden=48, context=POSITIONS, vocab=290),
    "llama": TransformerConfig(arch="llama", layers=2, hidden=16, heads=4, kv_heads=2, mlp_hidden=40,
                               context=POSITIONS, vocab=290, tie_embeddings=False, rope_theta=5_000.0, epsilon=1e-6),
    "tied llama": TransformerConfig(arch="llama", layers=1, hidden=16, heads=2, mlp_hidden=40, context=POSITIONS, vocab=290),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Function that returns the folder of the tiny base of an architecture."""
    root = tmp_path_factory.mktemp("bases")
    return lambda arch: root / arch if (root / arch).exists() else save_base(root / arch, arch)


@pytest.fixture(scope="module")
def prepared(base):
    return prepare_encoder(Finetune(base_model=base("gpt2"), context=9))


def random_network(config):
    with trainer.seed_torch(RandomStream(("network",))), torch.no_grad():
        network = TransformerNetwork(config)
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network.eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_comes_back_from_hugging_faces_form(config):
    expected = config if config.arch == "gpt2" else replace(config, kv_heads=config.kv_heads or config.heads)
    assert from_hf_config(to_hf_config(config, 0, 1)) == expected


@pytest.mark.parametrize(
    ("name", "change"),
    [("gpt2", {"activation_function": "relu"}), ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
     ("llama", {"attention_bias": True}), ("llama", {"hidden_act": "gelu"}), ("llama", {"head_dim": 8}),
     ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}})],
)  # fmt: skip
def test_variants_that_a_configuration_cannot_describe_are_none(name, change):
    config = to_hf_config(CONFIGS[name], 0, 1)
    assert from_hf_config(type(config)(**{**config.to_dict(), **change})) is None


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_exported_transformer_has_our_logits_its_tokens_and_its_settings_of_sampling(tmp_path, config, prepared):
    ours = random_network(config)
    params = {name: tensor.numpy() for name, tensor in ours.state_dict().items()}
    described = {**params, "training/loss": np.zeros(3), **prepared}
    save_folder(open_model(config, described), described, tmp_path, "float32")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    start, end = int(prepared["tokenizer/start"]), int(prepared["tokenizer/end"])
    assert ids[0, 0] == start
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == TEXTS[0]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, logits(ours, ids), rtol=1e-4, atol=1e-4)
        assert (theirs(ids.flip(1)).logits - logits(ours, ids)).abs().max() > 0.01
    assert theirs.num_parameters() == sum(p.numel() for p in ours.parameters())
    written, sampling = json.loads((tmp_path / "config.json").read_text()), GenerationConfig.from_pretrained(tmp_path)
    assert (written["vocab_size"], written["eos_token_id"], written["bos_token_id"]) == (config.vocab, end, start)
    assert written["architectures"] == [type(theirs).__name__]
    assert written["dtype"] == written["torch_dtype"] == "float32"
    assert (sampling.do_sample, sampling.top_k, sampling.eos_token_id, sampling.max_length) == (True, 0, end, POSITIONS)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.model_max_length) == (end, start, POSITIONS)
    if config.arch == "llama":
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == config.rope_theta


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_the_transformer_family_exports_the_model_that_it_measures(tmp_path, arch):
    family = Transformer(arch=arch, layers=1, hidden=16, heads=2, context=64, vocab=300, cross_document_attention=False,
                         training=TrainingSettings(steps=4, batch_size=4, learning_rate=0.01))  # fmt: skip
    text = {"text": Ragged.of_bytes([text.encode() for text in TEXTS])}
    prepared = family.encoder().prepare([text], CTX)
    rows = family.encoder().encode(text, prepared)
    params = family.fit(TrainingRows((RowTake(rows),), prepared), CTX, None)
    assert isinstance(family, SupportsExport)
    family.export(params, tmp_path, "float32")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.inference_mode():
        scores = torch.log_softmax(model(ids).logits[0], -1)[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
    ours = family.token_log_prob(params, rows, CTX).values[: len(scores)]
    assert scores == pytest.approx(ours, abs=1e-4)


def test_weights_can_be_written_as_bfloat16(tmp_path, prepared):
    config = CONFIGS["llama"]
    params = {name: tensor.numpy() for name, tensor in random_network(config).state_dict().items()}
    save_folder(open_model(config, {**params, **prepared}), prepared, tmp_path, "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(model.state_dict()[name].float().numpy(), torch.tensor(params[name]).bfloat16().float().numpy())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(("arch", "lora"), [("gpt2", None), ("llama", Lora(rank=2)), ("gpt_neox", Lora(rank=2))])
def test_an_exported_fine_tuned_model_is_the_merged_one_and_its_pipeline_samples(tmp_path, base, arch, lora):
    training = TrainingSettings(steps=8, batch_size=8, learning_rate=3e-3)
    family = Finetune(base_model=base(arch), context=POSITIONS, lora=lora, training=training)
    params = family.fit(training_rows(family), CTX, None)
    family.export(params, tmp_path, "float32")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXTS[3], return_tensors="pt").input_ids
    assert ids[0].tolist() == [int(params["tokenizer/start"]), *encode(family, TEXTS[3:4])["tokens"].values[:-1].tolist()]
    with torch.inference_mode():
        ours = family._open_merged(params, CTX)(ids).logits
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=1e-4, atol=1e-4)
        without = AutoModelForCausalLM.from_pretrained(base(arch))(ids).logits
        assert (theirs(ids).logits - without).abs().max() > 0.01
    torch.manual_seed(0)
    samples = pipeline("text-generation", model=str(tmp_path), device="cpu")(["a dog"] * 4, num_return_sequences=2)
    texts = {sample["generated_text"] for row in samples for sample in row}
    assert len(texts) > 4
    assert all(text.startswith("a dog") for text in texts)
