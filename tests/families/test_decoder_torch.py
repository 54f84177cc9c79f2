"""The decoder for GPUs on a processor: rows, random numbers and slots as without its cache in float16 and its blocks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from decoders import END, GPT2, LLAMA, START, distances_of_draws, needs_compiler, random_model
from decoders import c_decoder as build_c_decoder
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from selfloop.families.transformer.decoder import DecodeRequest, build_decoder_weights
from selfloop.families.transformer.decoder_torch import TorchDecoder
from selfloop.families.transformer.text_sampler import TextSampler
from tiny_language_models import ragged

KEY, LONG = 2**63 + 11, 300
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of tiny operations wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def request(n=40, prompts=None, max_tokens=24, end=END, **settings):
    return DecodeRequest(
        np.arange(n), np.full(n, START), ragged(prompts or [[]] * n), KEY, end, max_tokens, TextSampler(**settings)
    )


def build(config, slots=7, **changes):
    return TorchDecoder(
        config, build_decoder_weights(config, random_model(config, 0.05)), slots, torch.device("cpu"), **changes
    )


def rows_of(result):
    tokens, lengths = result
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def next_logits(config, attend):
    """Logits after positions of the first, second and third block of a cache of random numbers."""
    decoder = build(replace(config, context=LONG), slots=5, attend=attend)
    numbers = torch.randn((*decoder.cache.shape[:-2], 384, config.head_size), generator=torch.Generator().manual_seed(0))
    decoder.cache.copy_(numbers[..., : decoder.cache.shape[-2], :])
    return decoder.step(torch.arange(5), torch.tensor([0, 5, 127, 128, 299]))


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=lambda c: c.arch)
def test_flex_attention_is_that_with_a_mask_and_reads_filled_blocks(config):
    seen = []

    def attend(q, k, v, block_mask, **settings):
        seen.append(block_mask.kv_num_blocks.flatten().tolist())
        assert block_mask.kv_indices[:, 0, 0].tolist() == [[0, 1, 2]] * 5
        return flex_attention(q, k, v, block_mask=block_mask, **settings)

    torch.testing.assert_close(next_logits(config, attend), next_logits(config, None), rtol=1e-4, atol=1e-5)
    assert seen == [[1, 1, 1, 2, 3]] * config.layers


def test_positions_that_change_compile_nothing_again():
    counter = CompileCounter()
    decoder = build(LLAMA, slots=2, attend=torch.compile(flex_attention, dynamic=False, backend=counter))
    for position in range(3):
        decoder.step(torch.zeros(2, dtype=torch.int64), torch.full((2,), position))
    assert counter.frame_count == 1


@needs_compiler
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=lambda c: c.arch)
def test_greedy_rows_with_a_cache_in_float16_are_those_of_the_c_decoder(config):
    prompts = [[i % 30 + 2, i % 7 + 2] for i in range(60)]
    asked = request(60, prompts, temperature=0.0)
    rows = rows_of(build(config, cache_dtype=torch.float16).decode(asked))
    in_c = rows_of(build_c_decoder(config, random_model(config, 0.05)).decode(asked, 1))
    assert len({tuple(row) for row in rows}) > 20
    assert sum(a == b for a, b in zip(rows, in_c, strict=True)) >= 59  # two tokens may be equally probable up to rounding


def test_a_cache_in_float16_moves_few_draws():
    rows = rows_of(build(LLAMA, cache_dtype=torch.float16).decode(request(12)))
    assert distances_of_draws(LLAMA, random_model(LLAMA, 0.05), rows, KEY).max() < 2e-3


def test_finished_slots_go_on_with_the_next_rows_until_none_are_left():
    decoder, asked = build(GPT2, slots=3), request(40, [[5] * (i % 9) for i in range(40)])
    steps, advance = [], decoder._advance
    decoder._advance = lambda: (steps.append(int((decoder.rows.row < 40).sum())), advance())[1]
    rows = rows_of(decoder.decode(asked))
    n_inputs = sum(map(len, rows))  # as many as tokens: the first input is the start token
    assert n_inputs / 3 <= len(steps) <= n_inputs / 3 + 2 * max(map(len, rows)), "the slots were full but for the end"
    assert rows == rows_of(build(GPT2, slots=40).decode(asked))
    other = request(17, [[9]] * 17, top_k=5)
    assert rows_of(decoder.decode(other)) == rows_of(build(GPT2, slots=4).decode(other)), "a decoder is used again"
