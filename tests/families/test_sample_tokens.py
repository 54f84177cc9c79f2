"""Rows drawn from networks: their distribution, random numbers per row, and the same bits after an interruption."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import (
    END,
    GPT2,
    HAS_COMPILER,
    LLAMA,
    START,
    context,
    draw,
    log_softmax,
    needs_compiler,
    random_model,
    reference_logits,
)

import tiny_components
from selfloop.errors import ChainEndedError, DataError, SpecError
from selfloop.families.transformer import decoder_c, sample_tokens
from selfloop.families.transformer.decoder import token_uniforms
from selfloop.families.transformer.decoder_torch import draw_tokens
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.hf_network import build_hf_model, to_hf_config
from selfloop.families.transformer.text_sampler import TextSampler
from tiny_language_models import ragged, token_lists

DRAWS = 20_000


@pytest.fixture(params=["c", "torch"])
def decoder(request, monkeypatch):
    """Each test runs with either decoder."""
    if request.param == "torch":
        monkeypatch.setattr(decoder_c, "try_c_decoder", lambda config, weights: None)
    elif not HAS_COMPILER:
        pytest.skip("no C compiler")
    return request.param


def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """Tempered, then the k most probable tokens, then the smallest set of them with probability top_p."""
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    p = np.exp(log_softmax(logits / temperature))
    order = np.argsort(-p)
    p[order[top_k:] if top_k is not None else []] = 0
    p /= p.sum()
    if top_p is not None:
        p[order[1 + np.searchsorted(np.cumsum(p[order]), top_p) :]] = 0
    return p / p.sum()


def chi_square_z(counts, p):
    """Chi-square statistic of counts in standard errors; infinite if an impossible outcome was drawn."""
    if counts[p == 0].any():
        return np.inf
    likely = p * counts.sum() > 5
    counts, p = np.append(counts[likely], counts[~likely].sum()), np.append(p[likely], p[~likely].sum())
    counts, p = counts[p > 0], p[p > 0]
    statistic = ((counts - counts.sum() * p) ** 2 / (counts.sum() * p)).sum()
    return (statistic - len(p) + 1) / max(np.sqrt(2 * (len(p) - 1)), 1)


SETTINGS = [  # each with similar settings, whose distribution the draws must contradict
    ({}, {"temperature": 1.1}),
    ({"temperature": 0.5}, {}),
    ({"temperature": 1.7}, {"temperature": 1.5}),
    ({"temperature": 0.0}, {"temperature": 0.5}),
    ({"top_k": 1}, {"top_k": 2}),
    ({"top_k": 7}, {"top_k": 8}),
    ({"top_k": 7, "temperature": 0.8}, {"top_k": 6, "temperature": 0.8}),
    ({"top_p": 0.7}, {"top_p": 0.6}),
    ({"top_p": 0.9, "temperature": 0.7}, {"top_p": 0.9}),
    ({"top_p": 0.6, "top_k": 9}, {"top_p": 0.6}),
    ({"top_p": 1.0, "top_k": 1000}, {"top_k": 30}),
]


@needs_compiler
@pytest.mark.parametrize(("settings", "wrong"), SETTINGS, ids=str)
def test_tokens_of_the_c_decoder_follow_the_models_distribution(settings, wrong):
    config, prompt = replace(LLAMA, context=4), [5, 17, 2]
    params = random_model(config)
    rows = draw(config, params, DRAWS, TextSampler(**settings, max_tokens=4), context("chi"), ragged([prompt] * DRAWS))
    last = rows.values.reshape(DRAWS, 4)[:, 3]
    counts, logits = np.bincount(last, minlength=config.vocab), reference_logits(config, params, [START, *prompt])[-1]
    assert chi_square_z(counts, next_token_probabilities(logits, **settings)) < 4
    assert chi_square_z(counts, next_token_probabilities(logits, **wrong)) > 6


@pytest.mark.parametrize(("settings", "wrong"), SETTINGS, ids=str)
def test_tokens_of_the_torch_decoder_follow_the_models_distribution(settings, wrong):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
    u = torch.from_numpy(token_uniforms(7, np.arange(DRAWS), np.zeros(DRAWS, np.int64)))
    tokens = draw_tokens(logits.float().expand(DRAWS, -1), TextSampler(**settings), u)
    counts = np.bincount(tokens, minlength=40)
    assert chi_square_z(counts, next_token_probabilities(logits.numpy(), **settings)) < 4
    assert chi_square_z(counts, next_token_probabilities(logits.numpy(), **wrong)) > 6


def test_whole_rows_follow_the_models_distribution_in_slots_that_are_used_many_times(decoder):
    config = replace(GPT2, vocab=6)
    params = random_model(config, spread=0.4)
    rows = draw(config, params, DRAWS, TextSampler(max_tokens=3, batch_size=1000), context("rows"))
    p = {}

    def follow(row, probability):
        if (row and row[-1] == END) or len(row) == 3:
            p[tuple(row)] = probability
            return
        logits = reference_logits(config, params, [START, *row])[-1]
        for token, next_probability in enumerate(next_token_probabilities(logits)):
            follow([*row, token], probability * next_probability)

    follow([], 1.0)
    counts = dict.fromkeys(p, 0)
    for row in token_lists(rows):
        counts[tuple(row)] += 1  # an impossible row is a KeyError
    assert chi_square_z(np.array(list(counts.values())), np.array(list(p.values()))) < 4


def test_rows_begin_with_their_prompts_and_have_one_end_token_or_the_longest_length(decoder):
    prompts = ragged([[7, 8, 9], [], [3], list(range(2, 14)), [], [2, 2]])
    sampler = TextSampler(max_tokens=15, batch_size=4)
    rows = token_lists(draw(GPT2, random_model(GPT2), 6, sampler, context("rows"), prompts))
    assert [row[: len(prompt)] for row, prompt in zip(rows, token_lists(prompts), strict=True)] == token_lists(prompts)
    assert all(END not in row[:-1] and (row[-1] == END or len(row) == 15) for row in rows)
    assert {row[-1] == END for row in rows} == {True, False}, "the test needs both kinds of rows"


def test_a_row_longer_than_a_window_goes_on_after_half_a_window(decoder):
    config, prompts = replace(GPT2, context=8), ragged([[7], [], [3, 4, 5], []] * 30)
    params = random_model(config, 0.05)
    whole, ctx = (
        token_lists(draw(config, params, 120, TextSampler(max_tokens=21, batch_size=3), context("long"), prompts)),
        context("long"),
    )
    cut = token_lists(draw(config, params, 120, TextSampler(max_tokens=8), ctx, prompts))
    assert [row[:8] for row in whole] == cut
    assert all(END not in row[:-1] and (row[-1] == END or len(row) == 21) for row in whole)
    long = [i for i, row in enumerate(whole) if len(row) == 21]
    assert len(long) > 20
    for first in (8, 13, 18):  # each window begins with the last 4 tokens of the one before
        key, new = ctx.stream.child("window", first).integer(), np.arange(3, 8)[: 21 - first]
        for i in long[:8]:
            inputs = whole[i][first - 4 : first + len(new) - 1]
            p = np.exp(log_softmax(reference_logits(config, params, inputs)))[3:]
            drawn = np.arange(len(new)), np.array(whole[i][first : first + len(new)])
            ends, u = p.cumsum(-1)[drawn], token_uniforms(key, np.full(len(new), i), new)
            assert np.maximum(ends - p[drawn] - u, u - ends).max() < 2e-5
    few = draw(config, params, 40, TextSampler(max_tokens=21), context("long"), prompts[np.arange(40)])
    assert token_lists(few) == whole[:40]


def test_without_a_limit_rows_are_as_long_as_the_longest_training_row_at_most_eight_windows():
    family = Transformer(arch="gpt2", layers=1, hidden=8, heads=1, context=8, vocab=300)
    params = random_model(family.config(), 0.0) | {"training/longest_row": np.array(20)}
    for longest, expected in ((20, 20), (3, 8), (1000, 64)):
        params["training/longest_row"] = np.array(longest)
        rows = token_lists(family.sample(params, 40, TextSampler(), {}, context("limit"))["tokens"])
        assert max(map(len, rows)) == expected


def test_the_end_token_may_be_the_start_token(decoder):
    params = random_model(GPT2) | {"tokenizer/start": np.array(END)}
    rows = token_lists(draw(GPT2, params, 300, TextSampler(), context("same")))
    assert any(len(row) == 1 for row in rows)
    assert all(END not in row[:-1] for row in rows)


def test_a_row_does_not_depend_on_the_number_of_rows_and_differs_from_other_rows(decoder):
    config = replace(GPT2, vocab=100)
    params = random_model(config, 0.05)
    many, few = (token_lists(draw(config, params, n, TextSampler(batch_size=16), context("n"))) for n in (600, 50))
    assert many[:50] == few
    assert sum(len(row) > 5 for row in many) > 400, "the test needs long rows"
    assert len({tuple(row) for row in many if len(row) > 5}) == sum(len(row) > 5 for row in many)
    assert token_lists(draw(config, params, 50, TextSampler(batch_size=16), context("other"))) != few


@needs_compiler
def test_rows_of_the_c_decoder_have_the_same_bits_with_any_threads_and_slots():
    params = random_model(LLAMA)
    first, *others = (
        token_lists(draw(LLAMA, params, 300, TextSampler(batch_size=batch_size), context("bits", threads=threads)))
        for batch_size, threads in ((256, 1), (256, 3), (1, 1), (7, 2), (5, 8))
    )
    assert all(other == first for other in others)


@needs_compiler
def test_both_decoders_draw_the_same_rows_up_to_rounding_and_enter_which_one_it_was(monkeypatch):
    def rows():
        ctx = context("same")
        return token_lists(draw(LLAMA, random_model(LLAMA, 0.05), 300, TextSampler(top_p=0.9), ctx)), ctx.backends

    in_c, c_backends = rows()
    monkeypatch.setattr(decoder_c, "try_c_decoder", lambda config, weights: None)
    in_torch, torch_backends = rows()
    assert sum(a == b for a, b in zip(in_c, in_torch, strict=True)) >= 295
    assert c_backends == {"sampling": "c decoder"}
    assert torch_backends["sampling"].startswith("torch decoder")


def test_random_numbers_are_uniform_and_independent_between_rows_and_positions():
    rows, positions = np.meshgrid(np.arange(700), np.arange(300), indexing="ij")
    u = token_uniforms(2**63 - 5, rows, positions)
    assert chi_square_z(np.bincount((u.ravel() * 50).astype(int), minlength=50), np.full(50, 1 / 50)) < 4
    for other in (u[1:, :-1], np.roll(u, 1, axis=1)[1:, :-1], token_uniforms(2**63 - 4, rows, positions)[1:, :-1]):
        z = (u[:-1, :-1] - 0.5) * (other - 0.5) * 12  # mean 0, variance 1
        assert abs(z.mean()) * np.sqrt(z.size) < 4


def interrupt_after(chunks, monkeypatch):
    """Count decoded chunks, and interrupt the sampling after a number of them."""
    decoded, cut_rows = [], sample_tokens._cut_rows

    def counting(*result):
        if len(decoded) == chunks:
            raise KeyboardInterrupt
        decoded.append(1)
        return cut_rows(*result)

    monkeypatch.setattr(sample_tokens, "_cut_rows", counting)
    return decoded


def test_an_interrupted_call_continues_to_the_same_bits(decoder, monkeypatch, tmp_path):
    config = replace(GPT2, vocab=6)  # most rows are short
    params = random_model(config)

    def run(ctx):
        return draw(config, params, 230, TextSampler(batch_size=2), ctx)

    whole = run(context("cut"))
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            run(context("cut", scratch=tmp_path))
    with monkeypatch.context() as patched:
        decoded = interrupt_after(99, patched)
        assert token_lists(run(context("cut", scratch=tmp_path))) == token_lists(whole)
    assert len(decoded) == 2, "two of four chunks were stored"
    if decoder == "c":  # rows of another stream are not used
        assert token_lists(run(context("other", scratch=tmp_path))) == token_lists(run(context("other")))


@needs_compiler
def test_calls_that_share_a_folder_keep_the_rows_of_each(monkeypatch, tmp_path):
    config = replace(GPT2, vocab=6)
    params = random_model(config)

    def run():
        return [draw(config, params, 20, TextSampler(), context(name, scratch=tmp_path)) for name in ("first", "second")]

    whole = run()
    with monkeypatch.context() as patched:
        assert not interrupt_after(0, patched)
        assert list(map(token_lists, run())) == list(map(token_lists, whole))


def test_every_window_of_beam_sampling_has_random_numbers_of_its_own():
    family = Transformer(arch="gpt2", layers=2, hidden=24, heads=2, mlp_hidden=40, context=24, vocab=40)
    streams = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("selfloop.families.transformer.hf_network.open_model", lambda *_: None)

        def generate(model, request, ctx):
            streams.append(ctx.stream)
            return ragged([[3] * request.max_tokens] * len(request))

        patched.setattr("selfloop.families.transformer.hf_network.generate", generate)
        family.sample(random_model(GPT2), 2, TextSampler(num_beams=2, max_tokens=60), {}, context("beams"))
    assert len(set(streams)) == len(streams) == 4


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
from test_sample_tokens import *
draw(LLAMA, random_model(LLAMA), 20_000, TextSampler(batch_size=4), context("kill", scratch=Path(sys.argv[1])))
"""


@pytest.mark.slow
@needs_compiler
def test_a_killed_process_continues_to_the_same_bits(tmp_path):
    folder = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(folder), str(folder.parent)]
    child = subprocess.Popen(command, env=tiny_components.environment())
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("rows-640-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    stored = len(list(tmp_path.glob("rows-*.safetensors")))
    assert 6 <= stored < 157, "killed in the middle"
    params = random_model(LLAMA)
    again = draw(LLAMA, params, 20_000, TextSampler(batch_size=4), context("kill", scratch=tmp_path))
    assert token_lists(again) == token_lists(draw(LLAMA, params, 20_000, TextSampler(), context("kill")))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_not_finite_end_the_chain(wrong, decoder):
    params = random_model(GPT2)
    params["transformer.h.1.mlp.c_fc.bias"][3] = wrong
    for temperature in (1.0, 0.0):
        with pytest.raises(ChainEndedError, match="diverged"):
            draw(GPT2, params, 20, TextSampler(temperature=temperature), context("nan", threads=2))


def test_beam_search_is_that_of_transformers():
    family = Transformer(arch="gpt2", layers=2, hidden=24, heads=2, mlp_hidden=40, context=24, vocab=40)
    assert family.config() == GPT2
    params, ctx = random_model(GPT2), context("beams")
    sampler = TextSampler(num_beams=3, temperature=0.0)
    rows = family.sample(params, 3, sampler, {"prompt": ragged([[4], [9, 2], [4]])}, ctx)["tokens"]
    network = build_hf_model(to_hf_config(GPT2, START, END), params).eval()
    with torch.no_grad():
        best = network.generate(
            torch.tensor([[START, 9, 2]]), num_beams=3, do_sample=False, max_new_tokens=22, eos_token_id=END, pad_token_id=END
        )
    assert rows.values.dtype == np.uint16
    assert token_lists(rows)[1] == best[0, 1:].tolist()
    assert token_lists(rows)[0] == token_lists(rows)[2]
    assert ctx.backends["sampling"].startswith("transformers generate")


def test_prompts_longer_than_the_network_and_unknown_tokens_are_refused():
    ids = {"tokenizer/start": np.array(START), "tokenizer/end": np.array(END)}
    with pytest.raises(SpecError, match=r"family.sampler.prefix_tokens: got prompts of 24 tokens; expected less than 24"):
        draw(GPT2, ids, 1, TextSampler(), context(), ragged([range(24)]))
    with pytest.raises(DataError, match=r"got a prompt with token 40; the model has 40"):
        draw(GPT2, ids, 1, TextSampler(), context(), ragged([[3, 40]]))


def test_zero_rows_are_possible_and_large_vocabularies_give_wider_integers():
    assert len(draw(GPT2, random_model(GPT2), 0, TextSampler(), context())) == 0
    wide = replace(GPT2, vocab=70_000)
    rows = draw(wide, random_model(wide, 0.0), 4, TextSampler(max_tokens=2), context())
    assert rows.values.dtype == np.uint32
    assert rows.values.max() > 1 << 16
