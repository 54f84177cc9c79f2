"""The whole self-consuming experiment beside the script a researcher would write: transformers' Trainer and generate.

    python benchmarks/language_model.py DATA [--stories 1200] [--generations 5]

DATA is a folder with TinyStories in its official text form (`*-train.txt`, `*-valid.txt`). One seed, replace and
accumulate, five generations, the same GPT-2 (0.9 M parameters), windows, epochs, batch, learning rate, first tokens and
held-out stories on both sides; generation 1 is shared on both. Ours does a little more: it learns the tokenizer from
the whole file, samples the last model, too, and stores every stage. It runs as `selfloop run` does, one thread to each
of the two chains. Ours is timed as a command of its own, in an empty store, with empty caches of compiled code
("first") and again in another empty store ("again").
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTEXT, VOCAB, BATCH, EPOCHS, RATE, WARMUP, HELD = 256, 1024, 16, 2, 3e-3, 20, 300
SPEC = """
n = {n}
generations = {generations}
seeds = 1
policies = ["replace", "accumulate"]
metrics = ["cross_entropy"]
[source]
name = "tinystories"
path = "{path}"
validation_rows = {held}
[family]
name = "transformer"
layers = 4
hidden = 128
heads = 4
context = {context}
vocab = {vocab}
[family.training]
epochs = {epochs}
batch = {batch}
learning_rate = {rate}
warmup = {warmup}
[family.sampler]
prompt = "first_token"
"""


def ours(data, stories, generations, store, cache):
    spec = SPEC.format(
        n=stories, generations=generations, path=data, held=HELD, context=CONTEXT, vocab=VOCAB, epochs=EPOCHS, batch=BATCH,
        rate=RATE, warmup=WARMUP,
    )  # fmt: skip
    path = Path(store) / "spec.toml"
    path.write_text(spec)
    environment = {**os.environ, "HOME": str(cache), "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
    begun = time.perf_counter()
    command = [sys.executable, "-c", "from selfloop.cli import main; main()", "run", path, "--store", Path(store) / "store"]
    done = subprocess.run(
        [*map(str, command), "-q", "--json", "-"], capture_output=True, text=True, env=environment, check=False
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(done.stderr)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    curves = {}
    for row in sorted((r for r in rows if r["metric"] == "cross_entropy"), key=lambda r: r["generation"]):
        curves.setdefault(row["policy"], []).append(round(row["value"], 3))
    return seconds, curves


def script(data, stories, generations):
    import numpy as np
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    def read(name):
        text = next(Path(data).glob(name)).read_text(encoding="utf-8")
        return [story.strip() for story in text.split("<|endoftext|>") if story.strip()]

    begun = time.perf_counter()
    train = [s for _, s in zip(range(stories), read("*-train.txt"), strict=False)]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(train, vocab_size=VOCAB, special_tokens=["<|endoftext|>"])

    def windows(rows):
        stream = np.concatenate([[0, *row] for row in rows])
        count = (len(stream) - 1) // CONTEXT
        return [{"input_ids": w, "labels": w} for w in torch.tensor(stream[: count * CONTEXT]).view(-1, CONTEXT)]

    def encode(texts):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]

    real, held = encode(train), windows(encode(read("*-valid.txt")[:HELD]))

    def fit(rows):
        torch.manual_seed(0)
        shape = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": CONTEXT, "vocab_size": VOCAB}
        model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, learning_rate=RATE, warmup_steps=WARMUP,
                lr_scheduler_type="cosine", report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
            )  # fmt: skip
            Trainer(model=model, args=arguments, train_dataset=windows(rows)).train()
        return model.eval()

    def sample(model):
        made = []
        with torch.inference_mode():
            for first in range(0, stories, 64):
                prompts = torch.tensor([[0, row[0]] for row in real[first : first + 64]])
                out = model.generate(
                    prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0,
                    max_length=CONTEXT, pad_token_id=0,
                )  # fmt: skip
                made += [row[1 : (row.index(0, 1) if 0 in row[1:] else len(row))] for row in out.tolist()]
        return made

    def measure(model):
        with torch.inference_mode():
            batches = [torch.stack([w["input_ids"] for w in held[i : i + 32]]) for i in range(0, len(held), 32)]
            losses = [(model(input_ids=b, labels=b).loss.item(), len(b)) for b in batches]
        return round(sum(loss * n for loss, n in losses) / sum(n for _, n in losses), 3)

    first = fit(real)
    curves, first_sample = {}, sample(first)
    for policy in ("replace", "accumulate"):
        pool, new, curves[policy] = list(real), first_sample, [measure(first)]
        for t in range(2, generations + 1):
            pool = new if policy == "replace" else pool + new
            model = fit(pool)
            curves[policy].append(measure(model))
            new = sample(model) if t < generations else []
    return time.perf_counter() - begun, curves


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--stories", type=int, default=1200)
    parser.add_argument("--generations", type=int, default=5)
    asked = parser.parse_args()
    data = Path(asked.data).resolve()
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("ours, first", "ours, again"):
            with tempfile.TemporaryDirectory() as store:
                results[name] = ours(data, asked.stories, asked.generations, store, cache)
    results["Trainer and generate"] = script(data, asked.stories, asked.generations)
    slow = results["Trainer and generate"][0]
    for name, (seconds, curves) in results.items():
        print(f"{name:22s} {seconds:7.1f} s  {slow / seconds:5.2f}x  {curves}")


if __name__ == "__main__":
    main()
