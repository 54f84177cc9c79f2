"""Our sampler beside transformers' `generate`: the same weights, lengths and distribution, in turns in one run.

    python benchmarks/transformer_sampling.py [--threads 2] [--turns 3] [--batches 32 64 128 256 512] [--contexts 128 512]

A GPT-2 of 4 layers, width 128 and 1,024 tokens draws full rows (no end token) at temperature 1 from the whole vocabulary.
`generate` runs in float32 and bfloat16, each at its fastest batch size, which a first pass finds. On a machine with other
work compare the processor time per token, which is printed beside the wall time.
"""

import argparse
import os
import tempfile
import time
from functools import partial

DTYPES = ("float32", "bfloat16")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1024, help="rows of our sampler per turn")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512])
    return parser.parse_args()


def timed(work):
    """Tokens per second of a callable that returns its number of tokens, and processor microseconds per token."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return tokens / (time.perf_counter() - wall), (time.process_time() - cpu) / tokens * 1e6


def measure_limits():
    """GFLOP/s of a large float32 product and GB/s of reading memory, both on all threads."""
    import torch

    a, long = torch.randn(1024, 1024), torch.ones(1 << 25)
    work = {"product": (lambda: a @ a, 2 * 1024**3), "read": (long.sum, 4 * len(long))}
    best = {}
    for name, (call, amount) in work.items():
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        best[name] = amount / min(seconds) / 1e9
    return best


def build_samplers(config, options):
    """Seconds of compilation, our sampler, and `generate` per data type as a function of the batch size."""
    import numpy as np
    import torch
    from transformers import GenerationConfig

    from selfloop.component import Context
    from selfloop.families.transformer import decoder, decoder_c
    from selfloop.families.transformer.hf_network import build_hf_model, to_hf_config
    from selfloop.families.transformer.network import TransformerNetwork
    from selfloop.families.transformer.sample_tokens import sample_tokens
    from selfloop.families.transformer.text_sampler import TextSampler, read_prompts
    from selfloop.rng import RandomStream

    torch.manual_seed(0)
    arrays = {name: tensor.numpy() for name, tensor in TransformerNetwork(config).state_dict().items()}
    params = arrays | {"tokenizer/start": np.array(0), "tokenizer/end": np.array(config.vocab)}  # no row ends
    context = Context(RandomStream(("benchmark",)), threads=options.threads)

    def ours():
        return len(sample_tokens(config, params, read_prompts({}, options.rows), TextSampler(), context).values)

    def generate(model, batch):
        settings = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=config.context, pad_token_id=0)
        start = torch.zeros(batch, 1, dtype=torch.int64)
        with torch.inference_mode():
            samples = model.generate(start, attention_mask=torch.ones_like(start), generation_config=settings)
        return samples[:, 1:].numel()

    started = time.perf_counter()
    assert decoder_c.try_c_decoder(config, decoder.build_decoder_weights(config, params)), "this benchmark needs a C compiler"
    seconds = time.perf_counter() - started
    hf_config = to_hf_config(config, 0, None)
    models = {dtype: build_hf_model(hf_config, arrays).eval().to(getattr(torch, dtype)) for dtype in DTYPES}
    return seconds, ours, {dtype: partial(generate, model) for dtype, model in models.items()}


def compare(context, options):
    import numpy as np

    from selfloop.families.transformer.decoder import TransformerConfig

    config = TransformerConfig(arch="gpt2", layers=4, hidden=128, heads=4, mlp_hidden=512, context=context, vocab=1024)
    compiling, ours, theirs = build_samplers(config, options)
    speeds = {dtype: {batch: timed(partial(theirs[dtype], batch))[0] for batch in options.batches} for dtype in DTYPES}
    best = {dtype: max(rates, key=rates.get) for dtype, rates in speeds.items()}
    print(f"\ncontext {context}: `generate` is best at batch " + ", ".join(f"{best[dtype]} ({dtype})" for dtype in DTYPES))
    calls = {"selfloop": ours, **{dtype: partial(theirs[dtype], best[dtype]) for dtype in DTYPES}}
    turns = [{name: timed(call) for name, call in calls.items()} for _ in range(options.turns)]
    medians = {name: np.median([turn[name] for turn in turns], axis=0) for name in calls}
    for name, (rate, cpu) in medians.items():
        print(f"  {name:9} {rate:9,.0f} tokens/s {cpu:8.1f} processor microseconds per token")
    for dtype in DTYPES:
        wall = np.median([turn["selfloop"][0] / turn[dtype][0] for turn in turns])
        cpu = np.median([turn[dtype][1] / turn["selfloop"][1] for turn in turns])
        print(f"  selfloop over {dtype:9} {wall:5.1f} times (processor time {cpu:.1f}; target: at least 4)")
    rate = medians["selfloop"][0]
    whole = 1e6 / (1e6 / rate + compiling) / max(medians[dtype][0] for dtype in DTYPES)
    print(f"  compiling took {compiling:.2f} s, once per machine and shape; with it a million tokens: {whole:.1f} times")
    flops = 2 * (
        12 * config.layers * config.hidden**2 + config.hidden * config.vocab + config.layers * config.hidden * (context + 1)
    )
    read = 2 * config.layers * config.hidden * (context + 1)  # keys and values of half the positions, 2 bytes each
    top = measure_limits()
    print(f"  {flops / 1e6:.2f} MFLOP per token: {flops * rate / 1e9 / top['product']:.0%} of {top['product']:.0f} GFLOP/s")
    print(f"  {read / 1e3:.0f} kB of cache per token: {read * rate / 1e9 / top['read']:.0%} of {top['read']:.0f} GB/s")


def main():
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home  # without compiled code
        import torch

        torch.set_num_threads(options.threads)
        for context in options.contexts:
            compare(context, options)


if __name__ == "__main__":
    main()
