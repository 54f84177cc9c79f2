"""Rows through vLLM's interface, on a package with that interface: vLLM itself was never run."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import END, GPT2, context, draw, random_model

from selfloop.errors import MissingExtraError, SettingError, SpecError
from selfloop.families.ngram import Ngram
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.hf_network import VllmDecoder
from selfloop.families.transformer.text_sampler import TextSampler
from tiny_language_models import ragged, token_lists

FAMILY = Transformer(arch="gpt2", layers=2, hidden=24, heads=2, mlp_hidden=40, context=24, vocab=40)


@pytest.fixture
def vllm(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("vllm_interface")))
    import vllm

    yield vllm
    sys.modules.pop("vllm")
    torch.set_num_threads(before)


@pytest.fixture
def params(monkeypatch):
    monkeypatch.setattr("selfloop.families.transformer.hf_network._save_tokenizer", lambda *_: None)  # the model has none
    return random_model(GPT2, 0.05)


def rows(params, n, ctx, prompts=None, **settings):
    inputs = {} if prompts is None else {"prompt": ragged(prompts)}
    return token_lists(FAMILY.sample(params, n, TextSampler(decoder="vllm", **settings), inputs, ctx)["tokens"])


def test_without_the_extra_the_setting_is_refused_in_one_sentence():
    with pytest.raises(MissingExtraError, match=r"family.sampler.decoder: needs vllm, .* pip install 'selfloop\[vllm\]'"):
        TextSampler(decoder="vllm")


def test_beams_are_refused(vllm):
    with pytest.raises(SettingError, match="num_beams: got 2; expected 1 with decoder = 'vllm'"):
        TextSampler(decoder="vllm", num_beams=2)


def test_ngram_models_refuse_it(vllm):
    with pytest.raises(SettingError, match=r"family.sampler.decoder: got 'vllm'; n-gram models"):
        Ngram().check(None, TextSampler(decoder="vllm"))


def test_greedy_rows_are_those_of_our_decoder_up_to_float16_and_the_backend_is_recorded(vllm, params):
    prompts, ctx = [[i + 2, 7] for i in range(30)], context("greedy")
    found = rows(params, 30, ctx, prompts, temperature=0.0, max_tokens=20)
    ours = token_lists(draw(GPT2, params, 30, TextSampler(temperature=0.0, max_tokens=20), context("greedy"), ragged(prompts)))
    assert sum(a == b for a, b in zip(found, ours, strict=True)) >= 28
    assert ctx.backends == {"sampling": "vllm 0 float16"}


def test_rows_longer_than_the_context_go_on_and_end_with_one_end_token(vllm, params):
    found = rows(params, 12, context("long"), max_tokens=40)
    assert max(map(len, found)) > 23
    assert all(END not in row[:-1] and (row[-1] == END or len(row) == 40) for row in found)


def test_every_row_of_every_call_has_random_numbers_of_its_own(vllm, params):
    found = rows(params, 66, context("seeds"), max_tokens=20, batch_size=1)  # three calls
    long = [tuple(row) for row in found if len(row) >= 10]
    assert len(set(long)) == len(long) > 20
    assert rows(params, 66, context("seeds"), max_tokens=20, batch_size=1) == found


def test_calls_with_the_same_random_numbers_are_refused(vllm, params, monkeypatch):
    monkeypatch.setattr(vllm, "IGNORES_SEEDS", True)
    with pytest.raises(SpecError, match=r"family.sampler.decoder: vllm drew \d+ of \d+ rows with the random numbers"):
        rows(params, 66, context("seeds"), max_tokens=20, batch_size=1)


def test_duplicates_are_reported_and_a_model_that_repeats_itself_is_not_refused():
    decoder = VllmDecoder.__new__(VllmDecoder)
    decoder.seen, decoder.previous = set(), []
    different = [tuple(np.arange(20) + i) for i in range(50)]
    decoder._compare(different)
    with pytest.warns(UserWarning, match=r"vllm: 49 of 50 rows of 16 or more drawn tokens equal an earlier row \(98\.0%\)"):
        decoder._compare([(3,) * 20] * 50)
    with pytest.warns(UserWarning, match=r"50 of 50"):
        decoder._compare([(3,) * 20] * 50)
