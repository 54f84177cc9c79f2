"""Our training of a language model beside transformers' Trainer with GPT2LMHeadModel or LlamaForCausalLM.

    python benchmarks/transformer_training.py [--arch gpt2] [--threads 2] [--steps 30] [--turns 3]

The same windows, batch, steps, optimiser settings and threads on both sides, in turns: one turn of each after the other. The
Trainer neither logs, evaluates nor saves, its data are tensors in memory. "Peak" is the highest float32 product measured
in between with as many threads. On a GPU both run in bfloat16 there, and the 125,553,408-parameter Llama is timed as well.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

LAYERS, HIDDEN, HEADS, CONTEXT, VOCAB, BATCH, RATE = 4, 128, 4, 128, 1024, 32, 2e-3


def tokens(steps, context=CONTEXT, vocab=VOCAB, batch=BATCH):
    """Documents of about 200 tokens, enough for one pass of so many steps."""
    import numpy as np

    from selfloop.types import Ragged

    rng = np.random.default_rng(0)
    values = rng.zipf(1.3, steps * batch * context) % (vocab - 1) + 1
    offsets = np.unique(np.r_[0, np.cumsum(rng.integers(100, 300, len(values) // 200)), len(values)])
    offsets = offsets[offsets <= len(values)]
    values[offsets[1:] - 1] = 0
    return Ragged(values.astype(np.uint16), offsets)


def family(arch, compile_="auto", **shape):
    from selfloop.families.nn.settings import Training
    from selfloop.families.transformer.family import Transformer

    training = Training(epochs=1, batch=shape.pop("batch", BATCH), learning_rate=RATE, weight_decay=0.1, beta2=0.95,
                        precision="auto" if on_gpu() else "float32", compile=compile_)  # fmt: skip
    size = {"layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "context": CONTEXT, "vocab": VOCAB, **shape}
    return Transformer(arch=arch, tied=True, training=training, **size)


def on_gpu():
    import torch

    return torch.cuda.is_available()


def ours(model, rows, threads):
    """Seconds of a fit, and of processors in it."""
    import numpy as np

    from selfloop.component import Context
    from selfloop.rng import RandomStream
    from selfloop.types import TrainingRows

    learned = {"tokenizer/start": np.array(0), "tokenizer/end": np.array(0)}
    data = TrainingRows((({"tokens": rows}, None, 1.0),), learned)
    begun, processor = time.perf_counter(), time.process_time()
    model.fit(data, Context(RandomStream(("fit",)), threads=threads), None)
    return time.perf_counter() - begun, time.process_time() - processor


def network(arch):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if arch == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0,
                       embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM")
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=LAYERS,
                    num_attention_heads=HEADS, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=0,
                    eos_token_id=0)
    )  # fmt: skip


def theirs(arch, rows, threads, bfloat16):
    """Seconds of Trainer.train, and of processors in it."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments, logging

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    stream = torch.from_numpy(rows.values.astype("int64"))
    windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    data = [{"input_ids": window, "labels": window} for window in windows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=RATE, weight_decay=0.1,
            adam_beta2=0.95, lr_scheduler_type="cosine", logging_strategy="no", save_strategy="no", eval_strategy="no",
            report_to=[], disable_tqdm=True, bf16=bfloat16, use_cpu=not on_gpu(), dataloader_pin_memory=on_gpu(),
        )  # fmt: skip
        trainer = Trainer(model=network(arch), args=arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        begun, processor = time.perf_counter(), time.process_time()
        trainer.train()
        return time.perf_counter() - begun, time.process_time() - processor


def peak(threads):
    """Float32 products a second, in GFLOP/s, of large square matrices."""
    import torch

    torch.set_num_threads(threads)
    a, best = torch.randn(1536, 1536), 1e9
    for _ in range(8):
        begun = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begun)
    return 2 * 1536**3 / best / 1e9


def operations(parameters, layers=LAYERS, hidden=HIDDEN, context=CONTEXT):
    """Floating-point operations of a token's step: 6 per parameter, and causal attention's 6 x layers x hidden x context."""
    return 6 * parameters + 6 * layers * hidden * context


def compile_seconds():
    """Of the kernels in a fresh process: with an empty cache folder, and again."""
    code = "import time; from selfloop.families.transformer import kernels; t = time.perf_counter(); "
    code += f"assert kernels.library({HIDDEN // HEADS}); print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as home:
        runs = [
            subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": home}, capture_output=True, check=True)
            for _ in range(2)
        ]
    return [float(run.stdout) for run in runs]


def compare(arch, threads, steps, turns):
    rows, few = tokens(steps), tokens(2)
    model, plain = family(arch), family(arch, False)
    columns = {
        "Trainer": lambda data: theirs(arch, data, threads, False),
        "Trainer, bf16": lambda data: theirs(arch, data, threads, True),
        "selfloop, compile = false": lambda data: ours(plain, data, threads),
        "selfloop": lambda data: ours(model, data, threads),
    }
    for run in columns.values():
        run(few)  # what is loaded and compiled at first use
    times, products = [], []
    for _ in range(turns):
        times.append([run(rows) for run in columns.values()])
        products.append(peak(threads))
    parameters, highest, count = sum(p.numel() for p in network(arch).parameters()), max(products), steps * BATCH * CONTEXT
    print(f"{arch}, {parameters:,} parameters, batches of {BATCH} x {CONTEXT} tokens, {threads} threads")
    print(f"  float32 products at best {highest:.0f} GFLOP/s")
    first = None
    for name, column in zip(columns, zip(*times, strict=True), strict=True):
        wall, processor = (min(each) for each in zip(*column, strict=True))
        first = first or (wall, processor)
        rate = operations(parameters) * count / wall / 1e9
        print(
            f"  {name:26} {count / wall:7.0f} tokens/s ({first[0] / wall:.2f} x), {rate:4.0f} GFLOP/s = {rate / highest:.0%}; "
            f"{1e6 * processor / count:5.1f} us of processor a token ({first[1] / processor:.2f} x)"
        )


def large(steps):
    """The largest of Gerstgrasser et al. 2024 on a GPU."""
    shape = {"layers": 12, "hidden": 768, "heads": 12, "context": 1024, "vocab": 8000}
    model = family("llama", True, batch=32, **shape)
    ours(model, tokens(2, 1024, 8000), 1)
    seconds, _ = ours(model, tokens(steps, 1024, 8000), 1)
    rate = operations(119_409_408, 12, 768, 1024) * steps * 32 * 1024 / seconds  # tied
    speed = steps * 32 * 1024 / seconds
    print(f"llama 126 M on the GPU: {speed:.0f} tokens/s, {rate / 1e12:.0f} TFLOP/s, {rate / 989e12:.0%} of an H100's")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="gpt2", choices=("gpt2", "llama"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    first, second = compile_seconds()
    print(f"kernels compiled in {first:.2f} s, found again in {second:.2f} s")
    compare(given.arch, given.threads, given.steps, given.turns)
    if on_gpu():
        large(given.steps)
