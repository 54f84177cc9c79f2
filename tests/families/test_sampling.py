"""Rows drawn from networks: the right law, their own randomness, the same bits whatever happens to the run."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_components
from selfloop.component import Context
from selfloop.errors import ChainEndedError, SpecError
from selfloop.families.transformer import c_library, decoder_c, sample_tokens
from selfloop.families.transformer.config import Shape
from selfloop.families.transformer.decoder import uniforms, weights_of
from selfloop.families.transformer.decoder_torch import Looped
from selfloop.families.transformer.hf_export import config_of, model_of
from selfloop.families.transformer.network import Network
from selfloop.families.transformer.sample_tokens import sample_tokens
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.rng import RandomStream
from selfloop.types import Ragged

START, END, DRAWS = 0, 1, 100_000
GPT2 = Shape(arch="gpt2", layers=2, hidden=24, heads=2, mlp=40, context=24, vocab=40)
LLAMA = Shape(arch="llama", layers=2, hidden=48, heads=4, kv_heads=2, mlp=40, context=24, vocab=40, tied=False)
SHAPES = {
    "gpt2": GPT2, "llama": LLAMA, "gpt2 untied": replace(GPT2, tied=False, vocab=100, hidden=64),
    "llama tied": replace(LLAMA, tied=True, kv_heads=None, vocab=100),
}  # fmt: skip
HAS_COMPILER = c_library.library("decode.c", tuple(decoder_c.constants(GPT2).items())) is not None


@pytest.fixture(params=["compiled", "torch"])
def decoder(request, monkeypatch):
    """Each test runs with either decoder."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "compiled", lambda shape, weights: None)
    elif not HAS_COMPILER:
        pytest.skip("no C compiler")
    return request.param


@pytest.fixture
def only_compiled():
    if not HAS_COMPILER:
        pytest.skip("no C compiler")


def model(shape, spread=0.2):
    """Arrays of a random network whose next tokens are far from equally likely."""
    torch.manual_seed(5)
    network = Network(shape)
    with torch.no_grad():
        for p in network.parameters():
            p += spread * torch.randn_like(p)
    arrays = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    return arrays | {"tokenizer/start": np.array(START), "tokenizer/end": np.array(END)}


def reference(shape, params, tokens):
    """Logits [len(tokens), vocab] of transformers' own class."""
    network = model_of(config_of(shape, START, END), params).eval()
    with torch.no_grad():
        return network(torch.tensor(np.asarray(tokens, np.int64))[None]).logits[0].double().numpy()


def log_softmax(logits):
    return (
        logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
    )


def context(*path, **changes):
    return replace(Context(RandomStream(("seed", 3, *path))), **changes)


def rows_of(rows):
    return [rows.values[a:b].tolist() for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]


def ragged(rows):
    return Ragged(np.array([token for row in rows for token in row], np.uint16), np.cumsum([0, *map(len, rows)]))


NARROW = [(name, f"compiled {flag}") for name in ("gpt2", "llama") for flag in ("-mno-avx512f", "-mno-avx")]


@pytest.mark.parametrize(("name", "vectors"), [*((n, v) for n in SHAPES for v in ("compiled", "torch")), *NARROW])
def test_both_decoders_agree_with_transformers_along_a_sequence(name, vectors, monkeypatch, tmp_path):
    shape = SHAPES[name]
    params, tokens = model(shape, 0.05), np.random.default_rng(0).integers(0, shape.vocab, shape.context).astype(np.uint32)
    if vectors == "torch":
        network = Looped(shape, weights_of(shape, params), 3, torch.device("cpu"))
    else:
        monkeypatch.setattr(native, "FLAGS", (*c_library.FLAGS, *vectors.split()[1:]))
        monkeypatch.setattr(native, "_folders", lambda: [tmp_path])
        c_library.library.cache_clear()
        network = decoder_c.compiled(shape, weights_of(shape, params))
        c_library.library.cache_clear()
        if network is None:
            pytest.skip("no C compiler, or none for this instruction set")
    off = log_softmax(network.logits(tokens)) - log_softmax(reference(shape, params, tokens))
    assert np.abs(off).max() < 1e-4


REAL = Path(__file__).parents[3] / "shared" / "data" / "tinystories" / "stories260K"


def real_model():
    """A trained Llama of 260,000 parameters (llama2.c's form: rotary pairs lie beside each other), and its tokens' texts."""
    if not REAL.is_dir():
        pytest.skip("the folder of real data is not here")
    raw, texts = (REAL / "stories260K.bin").read_bytes(), (REAL / "tok512.bin").read_bytes()
    hidden, mlp, layers, heads, kv_heads, vocab, context = np.frombuffer(raw, np.int32, 7).tolist()
    shape = Shape(
        arch="llama", layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, mlp=mlp, context=context, vocab=vocab
    )
    values, narrow = np.frombuffer(raw, np.float32, offset=28), kv_heads * shape.head_size
    sizes = {
        "embed_tokens": (vocab, hidden), "input_layernorm": (layers, hidden), "self_attn.q_proj": (layers, hidden, hidden),
        "self_attn.k_proj": (layers, narrow, hidden), "self_attn.v_proj": (layers, narrow, hidden),
        "self_attn.o_proj": (layers, hidden, hidden), "post_attention_layernorm": (layers, hidden),
        "mlp.gate_proj": (layers, mlp, hidden), "mlp.down_proj": (layers, hidden, mlp), "mlp.up_proj": (layers, mlp, hidden),
        "norm": (hidden,),
    }  # fmt: skip
    params, at = {"tokenizer/start": np.array(1), "tokenizer/end": np.array(1)}, 0
    for name, size in sizes.items():
        array, at = values[at : at + np.prod(size)].reshape(size).copy(), at + np.prod(size)
        if name[-6:] in ("q_proj", "k_proj"):
            pairs = array.reshape(layers, -1, shape.head_size // 2, 2, hidden)
            array = np.ascontiguousarray(pairs.swapaxes(2, 3)).reshape(size)
        by_layer = {f"model.layers.{i}.{name}.weight": part for i, part in enumerate(array)}
        params |= {f"model.{name}.weight": array} if name in ("embed_tokens", "norm") else by_layer
    pieces, at = [], 4
    while at < len(texts):
        length = int(np.frombuffer(texts, np.int32, 1, at + 4)[0])
        pieces.append(texts[at + 8 : at + 8 + length])
        at += 8 + length
    return shape, params, pieces


def test_a_trained_model_tells_its_story(decoder):
    shape, params, pieces = real_model()
    greedy = sample_tokens(shape, params, 1, TextSampler(temperature=0.0, max_tokens=40, batch=2), None, context("story"))
    story = b"".join(pieces[token] for token in greedy.values)
    assert story.startswith(b" Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")


def test_sixteen_bits_of_keys_and_values_hardly_move_a_trained_model(only_compiled):
    shape, params, _ = real_model()
    rows = rows_of(sample_tokens(shape, params, 10, TextSampler(max_tokens=200), None, context("bits")))
    network, off, mass = decoder_c.compiled(shape, weights_of(shape, params)), [], []
    for row in rows:
        tokens = np.array([1, *row[:-1]], np.uint32)
        ours, theirs = log_softmax(network.logits(tokens)), log_softmax(reference(shape, params, tokens))
        off.append(np.abs(ours - theirs)[np.arange(len(row)), row])
        mass.append(np.abs(np.exp(ours) - np.exp(theirs)).sum(-1) / 2)
    assert np.concatenate(off).mean() < 1e-3  # nats; bfloat16: 2e-2
    assert np.concatenate(mass).mean() < 5e-4  # of the probability goes to other tokens; bfloat16: 1e-2


def law(logits, temperature=1.0, top_k=None, top_p=None):
    """Probabilities of the next token: tempered, the k likeliest, then the fewest likeliest ones that have top_p."""
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    p = np.exp(log_softmax(logits / temperature))
    order = np.argsort(-p)
    p[order[top_k:] if top_k is not None else []] = 0
    p /= p.sum()
    if top_p is not None:
        p[order[1 + np.searchsorted(np.cumsum(p[order]), top_p) :]] = 0
    return p / p.sum()


def excess(counts, p):
    """Chi-square of counts in standard errors; infinite where something impossible was drawn."""
    if counts[p == 0].any():
        return np.inf
    likely = p * counts.sum() > 5
    counts, p = np.append(counts[likely], counts[~likely].sum()), np.append(p[likely], p[~likely].sum())
    counts, p = counts[p > 0], p[p > 0]
    statistic = ((counts - counts.sum() * p) ** 2 / (counts.sum() * p)).sum()
    return (statistic - len(p) + 1) / max(np.sqrt(2 * (len(p) - 1)), 1)


SETTINGS = [  # and one that is nearly the same, which the draws must contradict
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


@pytest.mark.parametrize(("settings", "wrong"), SETTINGS, ids=str)
def test_drawn_tokens_follow_the_model(settings, wrong, decoder):
    shape = replace(LLAMA if decoder == "compiled" else GPT2, context=4)
    params, prompt = model(shape), [5, 17, 2]
    sampler = TextSampler(**settings, max_tokens=4, batch=8192)
    prompts = Ragged(np.tile(np.array(prompt, np.uint16), DRAWS), 3 * np.arange(DRAWS + 1))
    rows = sample_tokens(shape, params, DRAWS, sampler, prompts, context("chi"))
    last = rows.values.reshape(DRAWS, 4)[:, 3]
    counts, logits = np.bincount(last, minlength=shape.vocab), reference(shape, params, [START, *prompt])[-1]
    assert excess(counts, law(logits, **settings)) < 4
    assert excess(counts, law(logits, **wrong)) > 6


def test_whole_rows_follow_the_model_in_slots_that_are_used_again_and_again(decoder):
    shape = replace(GPT2, vocab=6)
    params = model(shape, spread=0.4)
    rows = sample_tokens(shape, params, DRAWS, TextSampler(max_tokens=3, batch=1000), None, context("rows"))
    p = {}

    def follow(row, so_far):
        if (row and row[-1] == END) or len(row) == 3:
            p[tuple(row)] = so_far
            return
        for token, chance in enumerate(law(reference(shape, params, [START, *row])[-1])):
            follow([*row, token], so_far * chance)

    follow([], 1.0)
    found = dict.fromkeys(p, 0)
    for row in rows_of(rows):
        found[tuple(row)] += 1  # a row that cannot be is a KeyError
    assert excess(np.array(list(found.values())), np.array(list(p.values()))) < 4


def test_rows_have_their_prompts_end_once_and_are_cut_at_the_limit(decoder):
    prompts = ragged([[7, 8, 9], [], [3], list(range(2, 14)), [], [2, 2]])
    rows = rows_of(sample_tokens(GPT2, model(GPT2), 6, TextSampler(max_tokens=15, batch=4), prompts, context("rows")))
    assert [row[: len(prompt)] for row, prompt in zip(rows, rows_of(prompts), strict=True)] == rows_of(prompts)
    assert all(END not in row[:-1] and (row[-1] == END or len(row) == 15) for row in rows)
    assert {row[-1] == END for row in rows} == {True, False}, "the test has both kinds of rows"


def test_the_end_token_may_be_the_start_token(decoder):
    params = model(GPT2) | {"tokenizer/start": np.array(END)}
    rows = rows_of(sample_tokens(GPT2, params, 300, TextSampler(), None, context("same")))
    assert any(len(row) == 1 for row in rows)
    assert all(END not in row[:-1] for row in rows)


def test_rows_are_their_own_and_do_not_depend_on_how_many_are_asked_for(decoder):
    shape = replace(GPT2, vocab=100)
    many, few = (
        rows_of(sample_tokens(shape, model(shape, 0.05), n, TextSampler(batch=16), None, context("n"))) for n in (700, 50)
    )
    assert many[:50] == few
    assert sum(len(row) > 5 for row in many) > 500, "the test has long rows"
    assert len({tuple(row) for row in many if len(row) > 5}) == sum(len(row) > 5 for row in many)
    assert rows_of(sample_tokens(shape, model(shape, 0.05), 50, TextSampler(batch=16), None, context("other"))) != few


def test_compiled_rows_are_the_same_bits_with_any_threads_and_slots(only_compiled):
    first, *others = (
        rows_of(sample_tokens(LLAMA, model(LLAMA), 300, TextSampler(batch=batch), None, context("bits", threads=threads)))
        for batch, threads in ((256, 1), (256, 3), (1, 1), (7, 2), (5, 8))
    )
    assert all(other == first for other in others)


def test_both_decoders_draw_the_same_rows_up_to_rounding(only_compiled, monkeypatch):
    def draw():
        return rows_of(sample_tokens(LLAMA, model(LLAMA, 0.05), 300, TextSampler(top_p=0.9), None, context("same")))

    fast = draw()
    monkeypatch.setattr(compiled, "compiled", lambda shape, weights: None)
    assert sum(a == b for a, b in zip(fast, draw(), strict=True)) >= 295


def test_random_numbers_are_uniform_and_independent_between_rows_and_places():
    rows, places = np.meshgrid(np.arange(700), np.arange(300), indexing="ij")
    u = uniforms(2**63 - 5, rows, places)
    assert excess(np.bincount((u.ravel() * 50).astype(int), minlength=50), np.full(50, 1 / 50)) < 4
    for other in (u[1:, :-1], np.roll(u, 1, axis=1)[1:, :-1], uniforms(2**63 - 4, rows, places)[1:, :-1]):
        z = (u[:-1, :-1] - 0.5) * (other - 0.5) * 12  # mean 0, variance 1
        assert abs(z.mean()) * np.sqrt(z.size) < 4


def killed_after(blocks, monkeypatch):
    """Sampling that is interrupted when that many blocks were made."""
    made, cut = [], sample_tokens._cut

    def counted(*result):
        if len(made) == blocks:
            raise KeyboardInterrupt
        made.append(1)
        return cut(*result)

    monkeypatch.setattr(sampling, "_cut", counted)
    return made


def test_an_interrupted_run_continues_to_the_same_bits(decoder, monkeypatch, tmp_path):
    def run(ctx):
        return sample_tokens(GPT2, model(GPT2), 230, TextSampler(batch=2), None, ctx)

    whole = run(context("cut"))
    with monkeypatch.context() as patched:
        killed_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            run(context("cut", scratch=tmp_path))
    with monkeypatch.context() as patched:
        made = killed_after(99, patched)
        assert rows_of(run(context("cut", scratch=tmp_path))) == rows_of(whole)
    assert len(made) == 2, "of four blocks two were kept"
    assert rows_of(run(context("other", scratch=tmp_path))) == rows_of(run(context("other"))), "rows of another stream stay out"


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
from test_sampling import *
sample_tokens(LLAMA, model(LLAMA), 20_000, TextSampler(batch=4), None, context("kill", scratch=Path(sys.argv[1])))
"""


def test_a_killed_process_continues_to_the_same_bits(only_compiled, tmp_path):
    here = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(here), str(here.parent)]
    child = subprocess.Popen(command, env=tiny_components.environment())
    until = time.monotonic() + 60
    while not (tmp_path / "rows-640.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = len(list(tmp_path.glob("rows-*.safetensors")))
    assert 6 <= there < 157, "killed in the middle"
    again = sample_tokens(LLAMA, model(LLAMA), 20_000, TextSampler(batch=4), None, context("kill", scratch=tmp_path))
    assert rows_of(again) == rows_of(sample_tokens(LLAMA, model(LLAMA), 20_000, TextSampler(), None, context("kill")))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_not_finite_end_the_chain(wrong, decoder):
    params = model(GPT2)
    params["transformer.h.1.mlp.c_fc.bias"][3] = wrong
    for temperature in (1.0, 0.0):
        with pytest.raises(ChainEndedError, match="diverged"):
            sample_tokens(GPT2, params, 20, TextSampler(temperature=temperature), None, context("nan", threads=2))


def test_an_interruption_stops_the_threads_at_their_next_step(only_compiled, monkeypatch):
    shape = replace(LLAMA, context=20_000)  # would take minutes
    network = decoder_c.compiled(shape, weights_of(shape, model(shape)))
    job = sample_tokens.Job(0, Ragged(np.zeros(0, np.uint32), np.zeros(65, np.int64)), 1, START, 99, 20_000, TextSampler())

    def ring(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        network.decode(job, 2)
    signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("compiler", ["none", "broken", "makes nothing that loads"])
def test_without_a_working_compiler_torch_decodes(compiler, monkeypatch, tmp_path):
    expected = sample_tokens(GPT2, model(GPT2), 40, TextSampler(batch=8), None, context("no compiler"))
    script = {"broken": "#!/bin/sh\nexit 1\n", "makes nothing that loads": "#!/bin/sh\necho no > ${@: -1}\n"}.get(compiler)
    if script:
        (tmp_path / "cc").write_text(script.replace("/bin/sh", "/bin/bash"))
        (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    c_library.library.cache_clear()
    assert decoder_c.compiled(GPT2, weights_of(GPT2, model(GPT2))) is None
    rows = sample_tokens(GPT2, model(GPT2), 40, TextSampler(batch=8), None, context("no compiler"))
    c_library.library.cache_clear()
    assert sum(a == b for a, b in zip(rows_of(rows), rows_of(expected), strict=True)) >= 35


def test_compiled_code_is_kept_and_found_again(only_compiled, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    files = []
    for _ in range(2):
        c_library.library.cache_clear()
        assert decoder_c.compiled(GPT2, weights_of(GPT2, model(GPT2))) is not None
        files.append([(path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("decode-*")])
    monkeypatch.setenv("HOME", "/proc/nowhere")  # a home that cannot be written to
    c_library.library.cache_clear()
    assert decoder_c.compiled(GPT2, weights_of(GPT2, model(GPT2))) is not None
    c_library.library.cache_clear()
    assert files[0] == files[1]
    assert len(files[0]) == 1


def test_beam_search_is_what_transformers_generates():
    params = model(GPT2)
    rows = sample_tokens(GPT2, params, 3, TextSampler(beams=3, temperature=0.0), ragged([[4], [9, 2], [4]]), context("beams"))
    network = model_of(config_of(GPT2, START, END), params).eval()
    with torch.no_grad():
        best = network.generate(
            torch.tensor([[START, 9, 2]]), num_beams=3, do_sample=False, max_new_tokens=22, eos_token_id=END, pad_token_id=END
        )
    assert rows.values.dtype == np.uint16
    assert rows_of(rows)[1] == best[0, 1:].tolist()
    assert rows_of(rows)[0] == rows_of(rows)[2]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.1}, "family.sampler.temperature: got -0.1"),
        ({"temperature": float("nan")}, "family.sampler.temperature: got nan"),
        ({"top_k": 0}, "family.sampler.top_k: got 0"),
        ({"top_p": 0.0}, "family.sampler.top_p: got 0.0"),
        ({"top_p": 1.1}, "family.sampler.top_p: got 1.1"),
        ({"beams": 0}, "family.sampler.beams: got 0"),
        ({"batch": 0}, "family.sampler.batch: got 0"),
        ({"prefix": 0}, "family.sampler.prefix: got 0"),
        ({"prompt": "bos"}, "family.sampler.prompt: got 'bos'"),
        ({"prompt": "prefix", "prefix": 9, "max_tokens": 9}, "family.sampler.prefix: got 9"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(SpecError, match=sentence):
        TextSampler(**settings)


def test_rows_and_prompts_longer_than_the_network_are_refused():
    with pytest.raises(SpecError, match=r"family.sampler.max_tokens: got 25; the model has 24 positions"):
        sample_tokens(GPT2, {}, 1, TextSampler(max_tokens=25), None, context())
    with pytest.raises(SpecError, match=r"family.sampler.prefix: got prompts of 24 tokens; rows end at 24"):
        sample_tokens(GPT2, {}, 1, TextSampler(), ragged([range(24)]), context())


def test_prompts_are_the_beginnings_of_real_rows_without_their_ends():
    initial = {"tokens": ragged([[5, 6, 7, 8, END], [9, END], [END]])}
    first = TextSampler(prompt="first_token").prompts(5, initial, context())
    assert rows_of(first["prompt"]) == [[5], [9], [], [5], [9]]
    some = TextSampler(prompt="prefix", prefix=3).prompts(4, initial, context())
    assert rows_of(some["prompt"]) == [[5, 6, 7], [9], [], [5, 6, 7]]
    assert TextSampler().prompts(4, initial, context()) == TextSampler(prompt="empty").prompts(4, initial, context()) == {}


def test_no_rows_are_no_rows_and_large_vocabularies_take_wider_numbers():
    assert len(sample_tokens(GPT2, model(GPT2), 0, TextSampler(), None, context())) == 0
    wide = replace(GPT2, vocab=70_000)
    rows = sample_tokens(wide, model(wide, 0.0), 4, TextSampler(max_tokens=2), None, context())
    assert (rows.values.dtype, rows.values.max() > 1 << 16 or len(rows) == 4) == (np.uint32, True)
