"""Training of a language model beside transformers' Trainer with GPT2LMHeadModel or LlamaForCausalLM.

    python benchmarks/transformer_training.py [--arch gpt2] [--threads 2] [--steps 30] [--turns 3]

Both sides have the same windows, minibatch, steps, optimizer settings and threads, and run in turns: one turn of each after
the other, the fastest counts. The Trainer neither logs, evaluates nor saves, and its data are tensors in memory. The share is
that of the fastest float32 matrix product measured in between with the same threads. On a GPU both sides run in bfloat16, and
the Llama with 125,553,408 parameters is timed too.
"""

import argparse
import os
import tempfile
import time

LAYERS, HIDDEN, HEADS, CONTEXT, VOCAB, BATCH_SIZE, LEARNING_RATE = 4, 128, 4, 128, 1024, 32, 2e-3
H200_FLOPS = 989e12  # bfloat16 products per second


def documents(steps, context=CONTEXT, vocab=VOCAB, batch_size=BATCH_SIZE):
    """Documents of about 200 tokens, enough for one pass of `steps` steps."""
    import numpy as np

    from selfloop.columns import Ragged

    rng = np.random.default_rng(0)
    values = rng.zipf(1.3, steps * batch_size * context) % (vocab - 1) + 1
    offsets = np.unique(np.r_[0, np.cumsum(rng.integers(100, 300, len(values) // 200)), len(values)])
    offsets = offsets[offsets <= len(values)]
    values[offsets[1:] - 1] = 0
    return Ragged(values.astype(np.uint16), offsets)


def build_family(arch, batch_size=BATCH_SIZE, **changes):
    from selfloop.families.nn.settings import TrainingSettings
    from selfloop.families.transformer.family import Transformer

    training = TrainingSettings(epochs=1, batch_size=batch_size, learning_rate=LEARNING_RATE, weight_decay=0.1, beta2=0.95,
                                precision="auto" if on_gpu() else "float32")  # fmt: skip
    sizes = {"layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "context": CONTEXT, "vocab": VOCAB, **changes}
    return Transformer(arch=arch, tie_embeddings=True, training=training, **sizes)


def on_gpu():
    import torch

    return torch.cuda.is_available()


def time_selfloop(family, rows, threads):
    """Seconds of a fit, and processor seconds in it."""
    import numpy as np

    from selfloop.component import Context
    from selfloop.rng import RandomStream
    from selfloop.types import RowTake, TrainingRows

    prepared = {"tokenizer/start": np.array(0), "tokenizer/end": np.array(0)}
    training_rows = TrainingRows((RowTake({"tokens": rows}),), prepared)
    started, processor = time.perf_counter(), time.process_time()
    family.fit(training_rows, Context(RandomStream(("fit",)), threads=threads), None)
    return time.perf_counter() - started, time.process_time() - processor


def build_library_model(arch):
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


def time_trainer(arch, rows, threads, bfloat16):
    """Seconds of Trainer.train, and processor seconds in it."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments, logging

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    stream = torch.from_numpy(rows.values.astype("int64"))
    windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    data = [{"input_ids": window, "labels": window} for window in windows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE,
            weight_decay=0.1, adam_beta2=0.95, lr_scheduler_type="cosine", logging_strategy="no", save_strategy="no",
            eval_strategy="no", report_to=[], disable_tqdm=True, bf16=bfloat16, use_cpu=not on_gpu(),
            dataloader_pin_memory=on_gpu(),
        )  # fmt: skip
        trainer = Trainer(model=build_library_model(arch), args=arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        started, processor = time.perf_counter(), time.process_time()
        trainer.train()
        return time.perf_counter() - started, time.process_time() - processor


def measure_peak(threads):
    """Operations per second of large square float32 products."""
    import torch

    torch.set_num_threads(threads)
    a, best = torch.randn(1536, 1536), 1e9
    for _ in range(8):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 1536**3 / best


def count_flops(parameters, layers=LAYERS, hidden=HIDDEN, context=CONTEXT):
    """Floating-point operations per trained token: 6 per parameter, and 6 x layers x hidden x context of causal attention."""
    return 6 * parameters + 6 * layers * hidden * context


def compare(arch, threads, steps, turns):
    rows, few, family = documents(steps), documents(2), build_family(arch)
    columns = {
        "Trainer": lambda data: time_trainer(arch, data, threads, False),
        "Trainer, bf16": lambda data: time_trainer(arch, data, threads, True),
        "selfloop": lambda data: time_selfloop(family, data, threads),
    }
    for run in columns.values():
        run(few)  # loads and compiles what the first use needs
    times, peaks = [], []
    for _ in range(turns):
        times.append([run(rows) for run in columns.values()])
        peaks.append(measure_peak(threads))
    parameters, n_tokens = sum(p.numel() for p in build_library_model(arch).parameters()), steps * BATCH_SIZE * CONTEXT
    print(f"{arch}, {parameters:,} parameters, batches of {BATCH_SIZE} x {CONTEXT} tokens, {threads} threads")
    print(f"  fastest float32 product {max(peaks) / 1e9:.0f} GFLOP/s")
    best = {
        name: [min(turn) for turn in zip(*column, strict=True)]
        for name, column in zip(columns, zip(*times, strict=True), strict=True)
    }
    for name, (seconds, processor) in best.items():
        rate = count_flops(parameters) * n_tokens / seconds
        faster, cheaper = best["Trainer"][0] / seconds, best["Trainer"][1] / processor
        print(
            f"  {name:14} {n_tokens / seconds:7.0f} tokens/s ({faster:.2f} x), {rate / 1e9:4.0f} GFLOP/s = "
            f"{rate / max(peaks):.0%}; {1e6 * processor / n_tokens:5.1f} processor microseconds per token ({cheaper:.2f} x)"
        )


def time_large_llama(steps):
    """The largest model of Gerstgrasser et al. 2024 on a GPU."""
    family = build_family("llama", layers=12, hidden=768, heads=12, context=1024, vocab=8000)
    time_selfloop(family, documents(2, 1024, 8000), 1)
    seconds, _ = time_selfloop(family, documents(steps, 1024, 8000), 1)
    speed = steps * BATCH_SIZE * 1024 / seconds
    rate = count_flops(119_409_408, 12, 768, 1024) * speed  # tied embeddings
    print(f"llama 126 M on the GPU: {speed:.0f} tokens/s, {rate / 1e12:.0f} TFLOP/s, {rate / H200_FLOPS:.0%} of an H100's")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="gpt2", choices=("gpt2", "llama"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    compare(options.arch, options.threads, options.steps, options.turns)
    if on_gpu():
        time_large_llama(options.steps)
