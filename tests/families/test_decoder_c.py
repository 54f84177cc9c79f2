"""The decoder in C: its probabilities, compilation, memory safety, and how a machine without a compiler goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import (
    GPT2,
    LLAMA,
    START,
    c_decoder,
    context,
    distances_of_draws,
    draw,
    needs_compiler,
    random_model,
)

from selfloop.columns import Ragged
from selfloop.families.transformer import decoder_c
from selfloop.families.transformer.decoder import DecodeRequest, build_decoder_weights
from selfloop.families.transformer.decoder_torch import TorchDecoder
from selfloop.families.transformer.text_sampler import TextSampler
from tiny_language_models import ragged

CONFIGS = {
    "gpt2": GPT2, "llama": LLAMA, "gpt2 untied": replace(GPT2, tie_embeddings=False, vocab=100, hidden=64),
    "llama tied": replace(LLAMA, tie_embeddings=True, kv_heads=None, vocab=100),
}  # fmt: skip
NARROW = [(name, f"c {flag}") for name in ("gpt2", "llama") for flag in ("-mno-avx512f", "-mno-avx")]


@pytest.fixture
def unloaded():
    """No library is loaded before or after the test."""
    decoder_c.load_decoder.cache_clear()
    yield
    decoder_c.load_decoder.cache_clear()


@pytest.fixture
def empty_cache(unloaded, monkeypatch, tmp_path):
    """Compiled code is stored in this folder of the test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


QUICK = {("llama", "c"), ("gpt2", "torch")}
CASES = [*((name, backend) for name in CONFIGS for backend in ("c", "torch")), *NARROW]


@pytest.mark.parametrize(
    ("name", "backend"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_both_decoders_draw_from_the_probabilities_of_transformers_along_a_sequence(name, backend, monkeypatch, unloaded):
    config, key = CONFIGS[name], 3
    params = random_model(config, 0.05)
    starts = np.full(60, START)
    request = DecodeRequest(
        np.arange(60), starts, ragged([[]] * 60), key, config.vocab, config.context, TextSampler()
    )  # without ends
    if backend == "torch":
        rows, _ = TorchDecoder(config, build_decoder_weights(config, params), 7, torch.device("cpu")).decode(request)
    else:
        monkeypatch.setattr(decoder_c, "FLAGS", (*decoder_c.FLAGS, *backend.split()[1:]))
        decoder = c_decoder(config, params)
        if decoder is None:
            pytest.skip("no C compiler, or none for this instruction set")
        rows, _ = decoder.decode(request, 2)
    assert distances_of_draws(config, params, rows, key).max() < 2e-5
    changed = {array: value if array.startswith("tokenizer/") else value * 1.01 for array, value in params.items()}
    assert distances_of_draws(config, changed, rows, key).max() > 2e-4


@needs_compiler
def test_an_interruption_stops_the_threads_at_their_next_step():
    config = replace(LLAMA, context=20_000)  # the rows would take minutes
    decoder = c_decoder(config, random_model(config))
    prompts = Ragged(np.zeros(0, np.uint32), np.zeros(65, np.int64))
    request = DecodeRequest(
        np.arange(len(prompts)), np.full(len(prompts), START), prompts, 1, 99, config.context, TextSampler()
    )

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        decoder.decode(request, 2)
    signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 5


COMPILERS = {  # scripts in the place of cc
    "failing": ("exit 1", "cannot compile"),
    "writing no file": ("exit 0", "cannot compile"),
    "writing no library": ("echo no > ${@: -1}", "compiles wrong code"),
    "hanging with its children": ("sleep 1000 & echo $! > $0.child; sleep 1000", "cannot compile"),
    "of wrong numbers": ('exec REAL "$@" -UEPSILON -DEPSILON=9.0', "compiles wrong code"),
    "of crashes": ("echo 'int selfloop_decode() { return *(volatile int *)0; }' | REAL -shared -fPIC -x c - -o ${@: -1}",
                   "compiles wrong code"),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiler_that_does_not_work_is_named_and_torch_decodes(compiler, monkeypatch, empty_cache):
    script, problem = COMPILERS[compiler]
    file = empty_cache / "cc"
    file.write_text(f"#!/bin/bash\n{script.replace('REAL', shutil.which('cc') or shutil.which('gcc'))}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{empty_cache}:{os.environ['PATH']}")
    if compiler.startswith("hanging"):
        monkeypatch.setattr(decoder_c, "COMPILE_SECONDS", 2)
    ctx = context("no compiler")
    with pytest.warns(UserWarning, match=f"sampling uses torch, which is slower: {file} {problem}"):
        draw(GPT2, random_model(GPT2), 2, TextSampler(max_tokens=2), ctx)
    assert ctx.backends["sampling"].startswith("torch decoder")
    assert [path for path in (empty_cache / "home").rglob("*") if path.is_file()] == []
    if compiler.startswith("hanging"):
        child = int((empty_cache / "cc.child").read_text())
        for _ in range(100):  # a killed process ends when it is scheduled
            if not (status := Path(f"/proc/{child}/stat")).exists() or "Z" in status.read_text().split()[2]:
                break
            time.sleep(0.05)
        else:
            pytest.fail("the compiler's child still runs")


def test_without_a_compiler_torch_decodes(monkeypatch, empty_cache):
    monkeypatch.setenv("PATH", str(empty_cache))
    ctx = context("no compiler")
    draw(GPT2, random_model(GPT2), 2, TextSampler(max_tokens=2), ctx)
    assert ctx.backends["sampling"].startswith("torch decoder")


@needs_compiler
def test_without_a_folder_for_compiled_code_torch_decodes(monkeypatch, empty_cache):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.warns(UserWarning, match="no folder can hold compiled code"):
        assert decoder_c.load_decoder(GPT2) is None


@pytest.fixture
def compiled(monkeypatch, empty_cache):
    """Function that loads the decoder anew and returns the files of its cache, and the numbers of compilations so far."""
    compilations = []

    def run_for(command, seconds):
        compilations.append(command)
        return run(command, seconds)

    run = decoder_c.run_for
    monkeypatch.setattr(decoder_c, "run_for", run_for)
    monkeypatch.setattr(decoder_c, "FLAGS", (*decoder_c.FLAGS, "-O0"))
    monkeypatch.setattr(decoder_c, "_passes_test", lambda config, path: True)

    def load():
        decoder_c.load_decoder.cache_clear()
        assert c_decoder(GPT2, random_model(GPT2)) is not None
        return sorted((empty_cache / "home").rglob("decoder-*")), len(compilations)

    return load


@needs_compiler
def test_compiled_code_is_stored_and_found_again(compiled, monkeypatch):
    files, n = compiled()
    assert n == len(files) == 1
    assert compiled() == (files, 1)
    assert not files[0].stat().st_mode & 0o077
    monkeypatch.setenv("HOME", "/proc/nowhere")  # a home that nobody can write to
    assert compiled()[1] == 2


@needs_compiler
@pytest.mark.parametrize("change", ["flipped bit", "truncated", "empty", "link", "writable by others"])
def test_compiled_code_that_was_changed_is_not_loaded(change, compiled):
    (file,), _ = compiled()
    content = file.read_bytes()
    if change == "link":
        file.rename(file.with_name("elsewhere"))
        file.symlink_to("elsewhere")
    elif change == "writable by others":
        file.chmod(0o777)
    else:
        file.unlink()  # this process has loaded it
        flipped = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
        file.write_bytes({"flipped bit": flipped, "truncated": content[:9000], "empty": b""}[change])
    files, n = compiled()
    assert n == 2
    assert len(files) == 1
    assert not files[0].is_symlink()
    assert not files[0].stat().st_mode & 0o022
    assert files[0].name == f"{files[0].name.rsplit('-', 1)[0]}-{decoder_c._digest(files[0].read_bytes())}.so"


@needs_compiler
def test_what_processes_left_that_were_killed_while_compiling_is_removed_when_it_is_old(compiled, monkeypatch):
    def leave(config, path):
        shutil.copytree(path.parent, path.parent.with_name(f"left-{path.parent.name}"))
        path.parent.with_name("file.part").touch()  # of an older version
        return True

    monkeypatch.setattr(decoder_c, "_passes_test", leave)
    (file,), _ = compiled()
    left = sorted(file.parent.glob("*.part"))
    assert [path.is_dir() for path in left] == [False, True]
    assert compiled() == ([file], 1)
    assert sorted(file.parent.glob("*.part")) == left
    for path in left:
        os.utime(path, (0, 0))
    assert compiled() == ([file], 1)
    assert [*file.parent.iterdir()] == [file]


@needs_compiler
def test_a_folder_that_others_can_write_is_not_used(compiled):
    (file,), _ = compiled()
    file.parent.chmod(0o777)
    assert compiled()[1] == 2  # in a folder that is gone with the process
    assert file.exists()


def sanitizer_library():
    """Path of the address sanitizer's library; None if the compiler has none."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    path = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    return Path(path).resolve() if os.path.isabs(path) else None


@pytest.mark.slow
@needs_compiler
def test_the_address_and_undefined_behavior_sanitizers_find_no_fault(tmp_path):
    if (library := sanitizer_library()) is None:
        pytest.skip("the compiler has no address sanitizer")
    for name, config in (("gpt2", GPT2), ("llama", LLAMA)):
        (tmp_path / f"{name}.json").write_text(json.dumps(asdict(config)))
        np.savez(tmp_path / f"{name}.npz", **random_model(config))
    environment = {**os.environ, "LD_PRELOAD": str(library), "ASAN_OPTIONS": "detect_leaks=0", "HOME": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).with_name("sanitized_decoding.py")), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
