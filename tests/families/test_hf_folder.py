"""Folders of pretrained models that hold other things than they seem to: each is refused in one sentence before a fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from selfloop.columns import Array, Params, Ragged
from selfloop.component import Context
from selfloop.errors import DataError, SelfloopError
from selfloop.families.finetune.family import Finetune, base_folder
from selfloop.families.finetune.hf_model import network_arrays, open_base
from selfloop.families.nn.hf_folder import HfFolder, open_tokenizer
from selfloop.families.transformer.tokenizer import encode_texts, tokenizer_arrays
from selfloop.rng import RandomStream
from selfloop.store.identity import identity
from tiny_language_models import TEXTS, VOCAB, encode, save_base, token_lists

Change = Callable[[Path], Any]
CTX = Context(RandomStream(("folders",)))
MARKS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "gpt2", "gpt2")


def changed(base: Path, folder: Path, *changes: Change) -> Path:
    """A copy of the base after some changes."""
    shutil.copytree(base, folder)
    for change in changes:
        change(folder)
    return folder


def prepare(folder: Path) -> Params:
    """What a run does before its first fit."""
    rows = {"text": Ragged.of_bytes([text.encode() for text in TEXTS])}
    return Finetune(base_model=folder, context=8).encoder().prepare(iter([rows]), CTX)


def table(name: str, **entries: Any) -> Change:
    """Entries of a JSON file."""
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **entries}))


def content(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def arrays(change: Callable[[dict[str, Array]], Any], dtype: torch.dtype | None = None) -> Change:
    """Arrays of the weights."""

    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file({name: torch.tensor(array).to(dtype) for name, array in weights.items()}, folder / "model.safetensors")

    return apply


def only_bin(folder: Path) -> None:
    torch.save({name: torch.tensor(array) for name, array in load_file(folder / "model.safetensors").items()},
               folder / "pytorch_model.bin")  # fmt: skip
    (folder / "model.safetensors").unlink()


def shards(prefix: str) -> Change:
    """Weights in two files, with `prefix` before their names in the index."""

    def apply(folder: Path) -> None:
        weights = {name: torch.tensor(array) for name, array in load_file(folder / "model.safetensors").items()}
        parts = {"a.safetensors": sorted(weights)[::2], "b.safetensors": sorted(weights)[1::2]}
        for file, names in parts.items():
            save_file({name: weights[name] for name in names}, folder / prefix / file)
        index = {"weight_map": {name: prefix + file for file, names in parts.items() for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").unlink()

    return apply


def encoder(folder: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        BertLMHeadModel(BertConfig(vocab_size=VOCAB, max_position_embeddings=64, **sizes)).save_pretrained(folder)


def replacements(pattern: str, text: str, n: int) -> Change:
    step = {"type": "Replace", "pattern": {"Regex": pattern}, "content": text}
    return table("tokenizer.json", normalizer={"type": "Sequence", "normalizers": [step] * n})


def dropout(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    table("tokenizer.json", model=model | {"dropout": 0.5})(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
H0 = "transformer.h.0.attn.c_attn.weight"
FAULTS: Mapping[str, tuple[Change, str]] = {
    "missing array": (arrays(lambda a: a.pop(H0)), f"weights that do not fit its config.json: '{H0}' is missing. Give"),
    "unexpected array": (arrays(lambda a: a.update({"transformer.h.7.x": a[H0]})), r"'transformer\.h\.7\.x' is unexpected"),
    "array of another shape": (arrays(lambda a: a.update({H0: a[H0][:, :9]})), rf"'{H0}' has shape \(16, 9\), expected \(16, "),
    "NaN": (arrays(lambda a: a[H0].fill(np.nan)), f"not finite numbers in '{H0}'. Give"),
    "fewer layers": (table("config.json", n_layer=1), "fit .* is unexpected and 10 more"),
    "more layers": (table("config.json", n_layer=3), "fit .* is missing and 11 more"),
    "another architecture": (table("config.json", model_type="llama"), "config.json of 6,477,459,456 parameters"),
    "a vocabulary of 10^12": (table("config.json", vocab_size=10**12), "config.json of 16,000,000,007,616 parameters"),
    "width of text": (table("config.json", n_embd="x"), "config.json that transformers cannot read"),
    "positions of text": (table("config.json", n_positions="x"), "config.json that transformers cannot read"),
    "width that heads do not divide": (table("config.json", n_embd=17), "has no network"),
    "unknown architecture": (table("config.json", model_type="nothing"), "config.json that transformers cannot read"),
    "deep config": (content("config.json", "[" * 100_000), "no readable config.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "code of its own": (table("config.json", auto_map={"AutoModelForCausalLM": "a.B"}), r"code of its own \(auto_map\)"),
    "tokenizer code": (table("tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]}), "code of its own"),
    "encoder": (encoder, "predictions depend on the tokens that they predict"),
    "pointer": (content("model.safetensors", POINTER), r"model\.safetensors is a Git LFS pointer: .* Run: git lfs pull$"),
    "truncated": (lambda folder: os.truncate(folder / "model.safetensors", 5000), "no complete model.safetensors"),
    "pickled weights": (only_bin, r"no model\.safetensors; other files, such as \.bin, can hold code"),
    "shards elsewhere": (shards("../"), "weight_map is no table of files in the same folder"),
    "index of a list": (lambda folder: (shards("")(folder), content("model.safetensors.index.json", "[]")(folder)), "no table"),
    "adapters": (content("adapter_config.json", '{"base_model_name_or_path": "../x"}'), "holds adapters of another model"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
    "pointer to a tokenizer": (content("tokenizer.json", POINTER), r"tokenizer\.json is a Git LFS .* Run: git lfs pull$"),
    "deep tokenizer": (content("tokenizer.json", "[" * 100_000), "cannot be read"),
    "tokenizer without bound": (replacements("a", "aa", 60), "replacements make texts more than 1000 times as long"),
    "tokenizer that adds between characters": (replacements("(?=a)", "a", 60), "texts more than 1000 times as long"),
    "random tokenizer": (dropout, "dropout splits texts at random"),
    "lossy tokenizer": (replacements("[aeiou]", "", 1), "changes 16 of the first 16 texts, such as 'the cat sat"),
    "special token without embedding": (table("tokenizer_config.json", extra_special_tokens=[MARKS[0]]), "291 entries"),
    "end token without embedding": (table("tokenizer_config.json", eos_token="</s>"), "291 entries and a network of 290"),
    "two ids of a token": (content("added_tokens.json", '{"<|endoftext|>": 7}'), "different ids of the token '<.endoftext"),
    "special tokens of numbers": (table("tokenizer_config.json", added_tokens_decoder={"0": 1}), "tokens that cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_base_that_is_not_what_it_seems_is_refused_in_one_sentence(fault: str, base: Path, tmp_path: Path) -> None:
    change, sentence = FAULTS[fault]
    folder = changed(base, tmp_path / "base", change)
    with pytest.raises(SelfloopError, match=sentence) as caught:
        prepare(folder)
    assert str(caught.value).startswith(("base_model: ", "family.base_model: ", "family.tokenizer: "))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_pickled_weights_and_other_files_beside_a_model_are_not_read(base: Path, tmp_path: Path) -> None:
    folder = changed(
        base,
        tmp_path / "base",
        content("pytorch_model.bin", "x"),
        table("config.json", transformers_weights="../w.safetensors"),
    )
    prepare(folder)
    first, second = (network_arrays(open_base(base_folder(path, None))) for path in (base, folder))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def old_names(folder: Path) -> None:
    """GPT-2's own folder: names without a prefix, a mask of every layer, and its tokenizer in two files."""
    weights = load_file(folder / "model.safetensors")
    state = {name.removeprefix("transformer."): torch.tensor(array) for name, array in weights.items()}
    save_file(state | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, folder / "model.safetensors")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0} | model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    table("config.json", bos_token_id=0, eos_token_id=0)(folder)


@pytest.mark.parametrize(
    "change", [shards(""), old_names, arrays(dict, torch.bfloat16)], ids=["shards", "old names", "bfloat16"]
)
def test_other_forms_of_the_same_base_give_the_same_network_and_tokens(change: Change, base: Path, tmp_path: Path) -> None:
    folder = changed(base, tmp_path / "base", change)
    first, second = (network_arrays(open_base(base_folder(path, None))) for path in (base, folder))
    assert first.keys() == second.keys()
    assert all(np.allclose(first[name], second[name], rtol=1e-2) for name in first)
    tokens = [token_lists(encode(Finetune(base_model=path, context=8))["tokens"]) for path in (base, folder)]
    assert tokens[0] == tokens[1]


def test_a_folder_of_links_is_read_and_identified_by_content(base: Path, tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"  # as in the hub's cache
    shutil.copytree(base, blobs)
    folder.mkdir()
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(f"../blobs/{file.name}")
    assert prepare(folder).keys() == prepare(base).keys()
    before = identity(Finetune(base_model=folder, context=8))
    assert before == identity(Finetune(base_model=base, context=8))
    arrays(lambda a: a[H0].fill(0))(blobs)
    assert identity(Finetune(base_model=folder, context=8)) != before


def chat_base(folder: Path) -> None:
    """Two special tokens of a chat format, with embeddings."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": VOCAB + i, "content": mark, **entry} for i, mark in enumerate(MARKS)]
    table("tokenizer.json", added_tokens=[*tokenizer["added_tokens"], *added])(folder)
    table("tokenizer_config.json", eos_token=MARKS[1], extra_special_tokens=list(MARKS), chat_template="{{ messages }}")(folder)
    table("config.json", vocab_size=VOCAB + 2)(folder)
    wte = "transformer.wte.weight"
    arrays(lambda a: a.update({wte: np.concatenate([a[wte], a[wte][:2] + 1])}))(folder)


def test_special_tokens_that_only_the_settings_name_are_added_as_transformers_does(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    names = {"pad_token": "<pad>", "mask_token": "<mask>", "bos_token": "<s>", "extra_special_tokens": list(MARKS[::-1])}
    folder = changed(base, tmp_path / "named", table("tokenizer_config.json", **names), table("config.json", vocab_size=300))
    tokenizer, start, end = HfFolder("x", folder, None).tokenizer()
    theirs = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == theirs.get_vocab()
    assert (start, end) == (theirs.bos_token_id, theirs.eos_token_id)
    assert tokenizer.encode("a<|im_end|>").ids[1:] == [theirs.convert_tokens_to_ids("<|im_end|>")]


def test_a_pad_token_without_an_embedding_is_left_out(base: Path, tmp_path: Path) -> None:
    folder = changed(base, tmp_path / "padded", table("tokenizer_config.json", pad_token="<pad>", unk_token="<unk>"))
    assert prepare(folder).keys() == prepare(base).keys()
    assert HfFolder("x", folder, None).tokenizer()[0].get_vocab_size() == VOCAB


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_folders_that_transformers_saves_with_its_own_tokenizers_are_accepted(arch: str, tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer, LlamaTokenizer

    base = save_base(tmp_path / "base", arch, vocab=300)
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    if arch == "gpt2":
        saved = GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    else:
        letters = sorted({letter for text in TEXTS for letter in text} - {" "})
        saved = LlamaTokenizer(vocab={token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", *letters])}, merges=[])
    saved.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": list(MARKS)})
    saved.save_pretrained(base)
    prepared = prepare(base)
    assert int(prepared["tokenizer/start"]) == saved.bos_token_id
    assert int(prepared["tokenizer/end"]) == saved.eos_token_id
    text = "the cat" + MARKS[0]
    tokens = encode_texts({"text": Ragged.of_bytes([text.encode()])}, prepared, special_tokens=True)["tokens"]
    assert token_lists(tokens)[0] == [*saved.encode(text, add_special_tokens=False), saved.eos_token_id]


def test_special_tokens_of_a_chat_are_one_token_each_and_come_back_as_text(base: Path, tmp_path: Path) -> None:
    tuned = Finetune(base_model=changed(base, tmp_path / "chat", chat_base), context=64)
    chat = "<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\nthe cat<|im_end|>"
    prepared = tuned.encoder().prepare(iter([{"text": Ragged.of_bytes([chat.encode()])}]), CTX)
    encoded = tuned.encoder().encode({"text": Ragged.of_bytes([chat.encode(), b"a dog"])}, prepared)
    tokens = token_lists(encoded["tokens"])
    start, end = VOCAB, VOCAB + 1
    assert [tokens[0].count(start), tokens[0].count(end)] == [2, 3]  # and the end token of the row
    assert tokens[0][0] == start
    assert len(tokens[0]) < 30
    assert tuned.encoder().decode(encoded, prepared)["text"].to_bytes() == [chat.encode(), b"a dog"]
    params = {**network_arrays(open_base(base_folder(tuned.base_model, None))), **prepared}
    tuned.export(params, tmp_path / "exported", "float32")
    again = Finetune(base_model=tmp_path / "exported", context=64)
    assert token_lists(encode(again, (chat,))["tokens"])[0] == tokens[0]
    assert HfFolder("x", tmp_path / "exported", None).tokenizer_settings()["chat_template"] == "{{ messages }}"


def test_a_panic_of_the_tokenizers_library_is_a_sentence(base: Path, tmp_path: Path) -> None:
    endless = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = open_tokenizer(changed(base, tmp_path / "base", table("tokenizer.json", pre_tokenizer=endless)))
    rows = {"text": Ragged.of_bytes([b"a" * 40 + b"b"])}
    with pytest.raises(DataError, match="cannot split the texts"):
        encode_texts(rows, tokenizer_arrays(tokenizer, 0, 0))


def test_few_texts_that_change_are_counted_in_a_warning(base: Path, tmp_path: Path) -> None:
    folder = changed(base, tmp_path / "base", replacements("far away", "near", 1))
    texts = [f"the cat {i}" for i in range(30)] + ["far away"]
    rows = {"text": Ragged.of_bytes([text.encode() for text in texts])}
    with pytest.warns(UserWarning, match="the tokenizer changes 1 of the first 31 texts"):
        Finetune(base_model=folder, context=8).encoder().prepare(iter([rows]), CTX)


def test_a_name_on_the_hub_is_downloaded_without_code_and_read_like_a_folder(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(name: str, **settings: Any) -> str:
        asked.append((name, settings["revision"]))
        if name == "someone/nothing":
            raise OSError("no such name")
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    names = network_arrays(open_base(base_folder("someone/model", "c" * 40))).keys()
    assert names == network_arrays(open_base(base_folder(base, None))).keys()
    with pytest.raises(SelfloopError, match=r"family\.base_model: someone/nothing cannot be downloaded \(no such name\)"):
        open_base(base_folder("someone/nothing", "c" * 40))
    assert asked == [("someone/model", "c" * 40), ("someone/nothing", "c" * 40)]
