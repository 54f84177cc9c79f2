"""Texts that another model rewrites: prompts and answers, long texts, other networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfloop.columns import Ragged, select_rows
from selfloop.component import Context
from selfloop.curator import CuratorView
from selfloop.curators.edits import Rephrase
from selfloop.errors import SettingError, SpecError
from selfloop.families.finetune.family import Finetune
from selfloop.families.gaussian import Gaussian
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.rng import RandomStream
from selfloop.sources.distributions import GaussianSource
from selfloop.sources.text_corpora import PythonDocs
from selfloop.store.identity import identity
from tiny_language_models import POSITIONS, TEXTS, prepare_encoder, save_base

CTX = Context(RandomStream(("rephrase",)))
ROWS = {"text": Ragged.of_bytes([text.encode() for text in TEXTS[:6]])}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny GPT-2 that nobody trained."""
    return Finetune(base_model=str(save_base(tmp_path_factory.mktemp("base") / "gpt2")), context=POSITIONS)


def texts_of(curator, rows=ROWS, ctx=CTX):
    n = len(rows["text"])
    view = CuratorView(1, PythonDocs(), Gaussian(), TextSampler(), {}, None, rows, {}, np.arange(n), np.ones(n, bool), {})
    judged = curator.judge(rows, view, ctx)
    return [text.decode() for text in judged.rows["text"].to_bytes()], judged.keep


def test_the_greedy_answer_is_the_continuation_of_the_template(model):
    from selfloop.families.finetune import hf_model
    from selfloop.families.finetune.family import base_folder

    texts, keep = texts_of(Rephrase(model=model, template="the {text} a", max_tokens=6, temperature=0.0))
    prepared, network = prepare_encoder(model), hf_model.open_base(base_folder(model.base_model, None))
    import torch

    for text, answer in zip(TEXTS, texts, strict=False):
        prompt = {"text": Ragged.of_bytes([f"the {text} a".encode()])}
        tokens = [int(prepared["tokenizer/start"]), *model.encoder().encode(prompt, prepared)["tokens"].values[:-1].tolist()]
        n_prompt = len(tokens)
        for _ in range(6):
            with torch.inference_mode():
                tokens.append(int(network(torch.tensor([tokens])).logits[0, -1].argmax()))
        expected = model.encoder().decode({"tokens": Ragged(np.array(tokens[n_prompt:]), np.array([0, 6]))}, prepared)["text"]
        assert answer == expected.to_bytes()[0].decode().strip()
    assert keep.tolist() == [bool(text) for text in texts]


def test_an_answer_depends_on_its_text_and_position_only(model):
    curator = Rephrase(model=model, template="{text}", max_tokens=8)
    texts, _ = texts_of(curator)
    assert len(set(texts)) == 6
    assert texts_of(curator)[0] == texts
    few = {"text": Ragged.of_bytes([b"the", *ROWS["text"].to_bytes()[1:3]])}
    assert texts_of(curator, few)[0][1:] == texts[1:3]
    assert texts_of(curator, ctx=CTX.child("other"))[0] != texts
    assert texts_of(curator, select_rows(ROWS, np.zeros(6, np.int64)))[0] != [texts[0]] * 6  # a row has numbers of its own


def test_texts_that_are_too_long_for_the_model_are_not_kept(model):
    long = {"text": Ragged.of_bytes([TEXTS[0].encode() * 5, TEXTS[0].encode()])}
    texts, keep = texts_of(Rephrase(model=model, template="{text}", max_tokens=20), long)
    assert keep.tolist() == [False, True]
    assert texts[0] == ""
    assert not texts_of(Rephrase(model=model, template="{text}", max_tokens=POSITIONS), long)[1].any()


def test_a_network_of_another_architecture_rewrites(tmp_path):
    model = Finetune(base_model=str(save_base(tmp_path / "neox", "gpt_neox")), context=POSITIONS)
    curator = Rephrase(model=model, template="{text}", max_tokens=8)
    texts, keep = texts_of(curator)
    assert keep.any()
    assert texts_of(curator)[0] == texts


def test_wrong_settings_are_refused_before_any_work(model):
    with pytest.raises(SettingError, match="model: got gaussian; expected a family with a pretrained language model"):
        Rephrase(model=Gaussian())
    for template in ("the same", "{text} {text}"):
        with pytest.raises(SettingError, match=r"expected \{text\} in it once"):
            Rephrase(model=model, template=template)
    with pytest.raises(SpecError, match="rephrase needs text; source gaussian has x"):
        Rephrase(model=model).check(GaussianSource(), Gaussian(), Gaussian.sampler_class())
    curator = Rephrase(model=model)
    assert identity(curator) != identity(replace(curator, max_tokens=5))
