"""The whole self-consuming experiment beside the script a researcher would write: transformers' Trainer and generate.

    python benchmarks/language_model.py DATA [--stories 1000] [--generations 5] [--turns 1]

DATA is a folder with TinyStories in its official text form (`*-train.txt`, `*-valid.txt`). One seed of the preset
gerstgrasser2024_tinystories under replace and accumulate; the script takes every setting from the same file: network,
windows, epochs, minibatch, optimizer, first tokens, holdout. Generation 1 is shared on both sides. Our command does a little
more: it learns the tokenizer from the whole file, samples the last model too, and stores every step. The script samples the
number of rows at a time with which `generate` is fastest. Both sides are commands with all cores, timed from outside, imports
included. Our command runs in an empty store with empty caches of compiled code ("first") and in another empty store
("again"). Seconds per part are wall time of the process that ran it, summed over two workers.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path

PRESET = Path(__file__).parents[1] / "src/selfloop/presets/gerstgrasser2024_tinystories.toml"
POLICIES = ("replace", "accumulate")
GENERATE_ROWS = 128  # 64 and 256 are slower
STEP_PARTS = {
    "fit": "fit",
    "sample": "sample",
    "measure": "measure",
    "prepare_encoder": "tokenizer",
    "encode_corpus": "tokenizer",
}


def command(arguments, environment):
    """Standard output of a command, its seconds, and its processor seconds."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout, seconds, sum(getattr(after, part) - getattr(before, part) for part in ("ru_utime", "ru_stime"))


def run_selfloop(options, home, extra):
    """Curves, seconds per part, seconds, and processor seconds."""
    with tempfile.TemporaryDirectory() as store:
        settings = {
            "n": options.stories, "generations": options.generations, "seeds": 1, "policies": json.dumps(POLICIES),
            "metrics": '["cross_entropy"]', "source.path": Path(options.data).resolve(),
        }  # fmt: skip
        changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        run = ["-c", "from selfloop.commands.cli import main; main()", "run", PRESET, *changes, "--store", store, *extra]
        out, seconds, processor = command([*run, "-q", "--json", "-"], {**os.environ, "HOME": str(home)})
        rows = [json.loads(line) for line in out.splitlines()]
        curves, parts = {}, {}
        for row in sorted((r for r in rows if r["metric"] == "cross_entropy"), key=lambda r: r["generation"]):
            curves.setdefault(row["policy"], []).append(round(row["value"], 3))
        for record in Path(store).glob("records/*/*.json"):
            provenance = json.loads(record.read_text())["body"]["provenance"]
            name = STEP_PARTS.get(provenance["step"].removeprefix("selfloop.").split("@")[0], "other steps")
            parts[name] = parts.get(name, 0.0) + provenance["seconds"]
    return curves, parts, seconds, processor


class Script:
    """The script that a researcher would write."""

    def __init__(self, data, stories):
        self.seconds = {}  # by part
        with self.timed("imports"):
            import torch
            import transformers

        self.torch, self.transformers, self.stories = torch, transformers, stories
        self.preset = tomllib.loads(PRESET.read_text())
        self.family, self.training = self.preset["family"], self.preset["family"]["training"]
        with self.timed("tokenizer"):
            self.real, held_out = self.encoded(Path(data))
            self.held_out = self.windows(held_out)

    @contextmanager
    def timed(self, part):
        begun = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun

    def encoded(self, data):
        from tokenizers import ByteLevelBPETokenizer

        texts = [
            next(data.glob(name)).read_text(encoding="utf-8").split("<|endoftext|>") for name in ("*-train.txt", "*-valid.txt")
        ]
        train, held_out = ([story.strip() for story in part if story.strip()] for part in texts)
        train, held_out = train[: self.stories], held_out[: self.preset["source"]["holdout_rows"]]
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(train, vocab_size=self.family["vocab"], special_tokens=["<|endoftext|>"])
        return ([encoding.ids for encoding in tokenizer.encode_batch(part)] for part in (train, held_out))

    def windows(self, rows):
        stream, context = self.torch.tensor([token for row in rows for token in (0, *row)]), self.family["context"]
        count = (len(stream) - 1) // context
        return [{"input_ids": w, "labels": w} for w in stream[: count * context].view(-1, context)]

    def fit(self, rows):
        self.torch.manual_seed(0)
        config = self.transformers.GPT2Config(
            n_layer=self.family["layers"], n_embd=self.family["hidden"], n_head=self.family["heads"],
            n_positions=self.family["context"], vocab_size=self.family["vocab"], bos_token_id=0, eos_token_id=0,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        )  # fmt: skip
        model, data = self.transformers.GPT2LMHeadModel(config), self.windows(rows)
        steps = self.training["epochs"] * math.ceil(len(data) / self.training["batch_size"])
        with tempfile.TemporaryDirectory() as folder:
            arguments = self.transformers.TrainingArguments(
                folder, per_device_train_batch_size=self.training["batch_size"], num_train_epochs=self.training["epochs"],
                learning_rate=self.training["learning_rate"], warmup_steps=math.ceil(self.training["warmup"] * steps),
                weight_decay=0.1, adam_beta2=0.95, lr_scheduler_type="cosine", report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            )  # fmt: skip
            self.transformers.Trainer(model=model, args=arguments, train_dataset=data).train()
        return model.eval()

    def sample(self, model):
        samples = []
        for first in range(0, self.stories, GENERATE_ROWS):
            prompts = self.torch.tensor([[0, row[0]] for row in self.real[first : first + GENERATE_ROWS]])
            with self.torch.inference_mode():
                out = model.generate(
                    prompts, attention_mask=self.torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0,
                    max_length=self.family["context"], pad_token_id=0,
                )  # fmt: skip
            samples += [row[1 : (row.index(0, 1) if 0 in row[1:] else len(row))] for row in out.tolist()]
        return samples

    def measure(self, model):
        with self.torch.inference_mode():
            rows = self.torch.stack([window["input_ids"] for window in self.held_out]).split(32)
            losses = [(model(input_ids=batch, labels=batch).loss.item(), len(batch)) for batch in rows]
        return round(sum(loss * n for loss, n in losses) / sum(n for _, n in losses), 3)

    def call(self, work, argument):
        with self.timed(work.__name__):
            return work(argument)

    def run(self, generations):
        first = self.call(self.fit, self.real)
        begins, first_sample, curves = self.call(self.measure, first), self.call(self.sample, first), {}
        for policy in POLICIES:
            pool, new, curves[policy] = list(self.real), first_sample, [begins]
            for t in range(2, generations + 1):
                pool = new if policy == "replace" else pool + new
                model = self.call(self.fit, pool)
                curves[policy].append(self.call(self.measure, model))
                new = self.call(self.sample, model) if t < generations else []
        return curves, self.seconds


def run_script(options):
    arguments = [__file__, options.data, "--stories", options.stories, "--generations", options.generations, "--script"]
    out, seconds, processor = command(arguments, os.environ)
    return *json.loads(out.splitlines()[-1]), seconds, processor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--stories", type=int, default=1000)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--run", default="", help="further options of our `run`, such as '--threads 1'")
    parser.add_argument("--script", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.script:
        print(json.dumps(Script(options.data, options.stories).run(options.generations)))
        return
    for _ in range(options.turns):
        with tempfile.TemporaryDirectory() as home:
            results = {
                name: run_selfloop(options, home, options.run.split()) for name in ("selfloop, first", "selfloop, again")
            }
        results["Trainer and generate"] = run_script(options)
        *_, wall, work = results["Trainer and generate"]
        for name, (curves, parts, seconds, processor) in results.items():
            ratios = f"{wall / seconds:.2f} x, {work / processor:.2f} x of processor time"
            print(f"{name:20} {seconds:6.1f} s, {processor:6.1f} processor seconds ({ratios})")
            times = {**parts, "rest": seconds - sum(parts.values())}
            print("   ", ", ".join(f"{part} {spent:.1f}" for part, spent in times.items()))
            print("   ", curves, flush=True)


if __name__ == "__main__":
    main()
