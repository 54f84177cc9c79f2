"""Training, sampling and a slice of the paper's experiment on one GPU, in at most eight minutes.

    python benchmarks/gpu.py [--device cpu --tiny]

Each part prints its numbers as soon as it has them. A part that fails or takes too long prints its error, the others still
run, and the exit code is 1. With `--tiny` the same code runs on models of a few thousand parameters, on a processor in
seconds: its numbers mean nothing. Hours are extrapolated from steps of full size, not measured.
"""

import argparse
import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import selfloop
from selfloop.columns import Ragged
from selfloop.component import Context
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.rng import RandomStream
from selfloop.types import RowTake, TrainingRows

LIMIT_S, NOMINAL_FLOPS, NOMINAL_BYTES = 480, 989e12, 3.35e12  # all parts; an H100 SXM: bfloat16 products, memory
CORPUS_TOKENS, GENERATIONS = 470e6, 5  # TinyStories; Gerstgrasser et al. 2024
TRAINED_PASSES = 1 + 4 + sum(range(2, 6))  # over one corpus: generation 1, replace, accumulate
SAMPLED_PASSES = 1 + 3 + 3  # the last generation is not trained on
MODELS = {  # presets gerstgrasser2024_gpt2_9m, _llama_12m, _llama_126m
    "9M": {"arch": "gpt2", "layers": 8, "hidden": 256, "heads": 8},
    "12M": {"arch": "llama", "layers": 8, "hidden": 256, "heads": 8},
    "126M": {"arch": "llama", "layers": 12, "hidden": 768, "heads": 12},
}
HOURS = {"12M": "floor 0.5 h, goal 1.25 h", "126M": "floor 3.6 h, goal 6 h"}  # of replace and accumulate on one H100


class TimeUpError(Exception):
    """The time of a part, or of a fit in it, is over."""


@dataclass
class Setup:
    """What the parts share: sizes, and what earlier parts measured."""

    device: str
    tiny: bool
    flops: float = NOMINAL_FLOPS  # of the fastest product
    bandwidth: float = NOMINAL_BYTES
    trained: dict = None  # tokens per second by model
    sampled: dict = None

    def family(self, name, **changes):
        sizes = {"context": 2048, "vocab": 8000, **MODELS[name]}
        if self.tiny:
            sizes |= {"context": 32, "vocab": 64, "layers": 1, "hidden": 32, "heads": 2}
        trainer.MAX_CAPTURED_PASSES = 8 if changes.pop("cuda_graph", True) else 0
        compiled = changes.pop("compile", "auto")
        training = TrainingSettings(epochs=1, batch_size=4, learning_rate=5e-4, precision="auto")
        return Transformer(**sizes, **changes, training=replace(training, compile=compiled))

    def label(self, name):
        return f"tiny {name}" if self.tiny else name

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def rows(self, family, steps):
        """Documents of about 200 tokens for that number of steps."""
        rng, n = np.random.default_rng(0), steps * 4 * family.context
        ends = np.cumsum(rng.integers(100, 300, n // 100 + 1))
        offsets = np.concatenate([[0], ends[ends < n], [n]])
        values = rng.zipf(1.3, n) % (family.vocab - 1) + 1
        values[offsets[1:] - 1] = 0
        return Ragged(values.astype(np.uint16), offsets)


def context(progress=None):
    made = Context(RandomStream(("gpu",)))
    return made if progress is None else replace(made, progress=progress)


@contextmanager
def limited(seconds):
    """Raise TimeUpError in the part when its time is over, as soon as torch returns to Python."""

    def stop(*_):
        raise TimeUpError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def best_seconds(setup, work, turns=8):
    best = np.inf
    for _ in range(turns):
        setup.wait()
        started = time.perf_counter()
        work()
        setup.wait()
        best = min(best, time.perf_counter() - started)
    return best


def measure_peaks(setup):
    """The fastest bfloat16 product and memory copy of this device."""
    n, dtype = (256, torch.float32) if setup.tiny else (8192, torch.bfloat16)
    a, b, out = (torch.randn(n, n, device=setup.device).to(dtype) for _ in range(3))
    setup.flops = 2 * n**3 / best_seconds(setup, lambda: torch.mm(a, b, out=out))
    long = torch.ones(1 << (20 if setup.tiny else 29), device=setup.device)
    target = torch.empty_like(long)
    setup.bandwidth = 8 * len(long) / best_seconds(setup, lambda: target.copy_(long))
    print(f"  product {setup.flops / 1e12:.3g} TFLOP/s (nominal 989), copy {setup.bandwidth / 1e12:.3g} TB/s (nominal 3.35)")


def time_steps(setup, family, seconds):
    """Tokens per second of a fit after its first 20 steps, the operations launched in one later step, and its backend."""
    rows, marks, first = setup.rows(family, 60 if setup.tiny else 3000), [], 20
    profiler = torch.profiler.profile(acc_events=True)

    def progress(step, steps):
        if step == first - 2:
            profiler.start()
        if step == first - 1:
            setup.wait()
            profiler.stop()
        if step == first or (step > first and (step == steps or time.perf_counter() - marks[0][1] > seconds)):
            setup.wait()
            marks.append((step, time.perf_counter()))
        if len(marks) == 2:
            raise TimeUpError

    ctx = context(progress)
    prepared = {"tokenizer/start": np.array(0), "tokenizer/end": np.array(0)}
    with suppress(TimeUpError):
        family.fit(TrainingRows((RowTake({"tokens": rows}),), prepared), ctx, None)
    (begin, started), (end, stopped) = marks
    launches = ("cudaLaunchKernel", "cudaGraphLaunch", "cuLaunchKernel") if setup.device == "cuda" else ("aten::",)
    n_launches = sum(event.count for event in profiler.key_averages() if event.key.startswith(launches))
    return (end - begin) * 4 * family.context / (stopped - started), n_launches, ctx.backends


def measure_training(setup, name, **changes):
    """Tokens per second of training steps of 4 windows, and shares of the peak."""
    family = setup.family(name, **changes)
    speed, n_launches, backends = time_steps(setup, family, 0.3 if setup.tiny else 8)
    c = family.config()
    matrices = c.layers * c.hidden * (4 * c.hidden + (2 if c.arch == "gpt2" else 3) * c.mlp_hidden) + c.hidden * c.vocab
    rate = speed * (6 * matrices + 6 * c.layers * c.hidden * c.context)
    if not changes:
        setup.trained[name] = speed
    unit = "launches" if setup.device == "cuda" else "operations"
    print(
        f"  {setup.label(name)} {changes or ''} {speed:,.0f} tokens/s, {n_launches} {unit} per step, {rate / setup.flops:.1%} "
        f"of the measured peak, {rate / NOMINAL_FLOPS:.1%} of the nominal one ({'; '.join(backends.values())})"
    )


def measure_sampling(setup, name):
    """Tokens per second of sampling, and the share of memory bandwidth that reading weights and filled caches takes."""
    family, slots, longest = setup.family(name), 4 if setup.tiny else 1024, 16 if setup.tiny else 256
    params = random_params(family)
    sampler, ctx = TextSampler(batch_size=slots, max_tokens=longest), context()

    def draw(n):
        return len(family.sample(params, n, sampler, {}, ctx)["tokens"].values)

    draw(slots)  # compiles, and captures the graph of another call
    setup.wait()
    started = time.perf_counter()
    n_tokens = draw(slots * (1 if setup.tiny else 4))
    speed = n_tokens / (time.perf_counter() - started)
    c = family.config()
    weights = 4 * sum(array.size for key, array in params.items() if "." in key)
    caches = 2 * 2 * c.layers * c.hidden * longest / 2  # bytes of keys and values in float16, on average
    setup.sampled[name] = speed
    print(
        f"  {setup.label(name)} {speed:,.0f} tokens/s in {slots} slots, "
        f"{(weights / slots + caches) * speed / setup.bandwidth:.1%} of the measured memory bandwidth "
        f"({ctx.backends['sampling']}, rows of {longest} tokens)"
    )


def random_params(family):
    from selfloop.families.transformer.network import TransformerNetwork

    with trainer.seed_torch(RandomStream(("init",))):
        network = TransformerNetwork(family.config())
    arrays = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    return arrays | {"tokenizer/start": np.array(0), "tokenizer/end": np.array(family.vocab)}  # no row ends


def compare_policies(setup):
    """Two generations of the 9M model on a slice of a corpus: which policy has the larger loss."""
    family, n = setup.family("9M"), 60 if setup.tiny else 4000
    words = np.array(["a", "the", "cat", "dog", "saw", "ran", "to", "home", "and", "then", "big", "red", "it", "was", "he"])
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 12)) + "." for _ in range(n + n // 4)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.jsonl")
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        spec = selfloop.Spec(
            source={"name": "jsonl", "path": str(file)}, holdout=n // 4, family=replace(family, vocab=300), n=n,
            generations=2, seeds=1, policies=["replace", "accumulate"], metrics=["cross_entropy"],
        )  # fmt: skip
        curves = selfloop.run(spec, Path(folder, "store")).curves()
    for policy, curve in curves.items():
        print(f"  {policy}: cross-entropy {np.round(curve['cross_entropy'].mean(0), 3).tolist()} nats per token")


def extrapolate(setup):
    """Hours of replace and accumulate over 5 generations of the paper's corpus at the measured speeds."""
    if setup.tiny:
        print("  none: the models are tiny")
        return
    for name, target in HOURS.items():
        hours = [CORPUS_TOKENS * passes / speed[name] / 3600
                 for passes, speed in ((TRAINED_PASSES, setup.trained), (SAMPLED_PASSES, setup.sampled))]  # fmt: skip
        print(f"  {name}: training {hours[0]:.2f} h + sampling {hours[1]:.2f} h = {sum(hours):.2f} h ({target}; extrapolated)")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    if (options.device == "cuda") != torch.cuda.is_available():
        parser.error(f"--device {options.device}: got a machine {'with' if torch.cuda.is_available() else 'without'} a GPU")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu: the models are too large for a processor. Add --tiny")
    if options.tiny:
        print("--tiny: models of a few thousand parameters run the code of the benchmark; their numbers mean nothing")
    os.environ["KINETO_LOG_LEVEL"] = "6"  # torch's profiler reports each start and stop at level 5
    setup, deadline, failed = Setup(options.device, options.tiny, trained={}, sampled={}), time.monotonic() + LIMIT_S, 0
    faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=sys.__stderr__)  # even if a call of torch never returns
    parts = [
        ("peaks", 20, measure_peaks, {}),
        ("training, operation by operation", 40, measure_training, {"name": "9M", "cuda_graph": False, "compile": False}),
        *((f"training {setup.label(name)}", 60, measure_training, {"name": name}) for name in MODELS),
        ("training inside documents", 60, measure_training,
         {"name": "12M", "cross_document_attention": False, "compile": "auto" if options.tiny else True}),
        *((f"sampling {setup.label(name)}", 45, measure_sampling, {"name": name}) for name in ("12M", "126M")),
        ("hours", 5, extrapolate, {}),
        ("policies", 60, compare_policies, {}),
    ]  # fmt: skip
    for title, seconds, part, settings in parts:
        left = min(seconds, deadline - time.monotonic() - 5)
        print(f"{title} (at most {max(left, 0):.0f} s)", flush=True)
        try:
            if left <= 0:
                raise TimeUpError("no time is left")
            with limited(left):
                part(setup, **settings)
        except Exception as problem:
            failed += 1
            print(f"  failed: {type(problem).__name__}: {problem}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
