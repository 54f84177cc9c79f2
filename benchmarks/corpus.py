"""Memory and speed of a corpus from its file to training batches, by size: what must not grow is the memory of our own.

A text of about so many tokens is made by repeating Python's documentation; then the stages of a run read it, each size in its
own process. Run it with:
    python benchmarks/corpus.py [--tokens 5 50 500] [--folder /tmp]        (millions of tokens; 500 takes 6 GB of disk)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.component import Context
from selfloop.engine import steps
from selfloop.families.transformer.tokenizer import END, BytePair, _chunks, _parse
from selfloop.rng import RandomStream
from selfloop.sources.python_docs import PythonDocs
from selfloop.sources.text_files import TextSource
from selfloop.store.store import Store
from selfloop.types import Ragged, TrainingRows, count_rows

VOCAB, BYTES_PER_TOKEN, HOLDOUT, BATCH = 8000, 4.4, 500, 64
CTX = Context(RandomStream(("corpus",)))


def anonymous() -> float:
    """Memory of this process that no file backs, in MB: what the system cannot drop."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


class Peak:
    """The highest anonymous memory between enter and exit."""

    def __enter__(self) -> Peak:
        self.megabytes, self.running, self.started = anonymous(), True, time.perf_counter()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.megabytes = max(self.megabytes, anonymous())
            time.sleep(0.01)

    def __exit__(self, *problem: object) -> None:
        self.seconds, self.running = time.perf_counter() - self.started, False
        self.thread.join()


def write_text(path: Path, millions: float) -> None:
    """A text of about so many million tokens."""
    text = f"\n{END}\n".join(PythonDocs().documents()) + f"\n{END}\n"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(max(1, round(millions * 1e6 * BYTES_PER_TOKEN / len(text)))):
            file.write(text)


def measure(path: Path) -> dict[str, Any]:
    """Seconds and peak megabytes of every step, and what came out."""
    source, encoder, store, found = TextSource(path=path, separator=END), BytePair(vocab=VOCAB), Store(path.parent / "store"), {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        with Peak() as peak:
            value = step()
        found[name] = (peak.seconds, peak.megabytes)
        return value

    found["start"] = (0.0, anonymous())
    count = timed("count", source.n_rows)
    timed("digest", lambda: store.key(steps.learn, encoder, source, CTX))
    learned = timed("learn", lambda: store.call(steps.learn, encoder, source, CTX))
    corpus = timed("read", lambda: store.call(steps.read, encoder, source, learned, CTX))
    rows = timed("choose", lambda: store.call(steps.choose, source, corpus, HOLDOUT, (count - HOLDOUT) // 2, CTX))
    samples = TrainingRows(((store.open(rows), None, 1.0),))
    rng = np.random.default_rng(0)
    timed("batches", lambda: [samples.gather(rng.integers(0, len(samples), BATCH)) for _ in range(100)])
    tokens = store.open(corpus)["tokens"]
    assert isinstance(tokens, Ragged)
    assert (count_rows(store.open(corpus)), len(samples)) == (count, (count - HOLDOUT) // 2)
    return {"steps": found, "tokens": len(tokens.values), "documents": count, "bytes": path.stat().st_size}


def compare_with_library(documents: list[str]) -> tuple[float, float]:
    """MB/s of encoding the embedded text: ours, and the library's own batches on all its threads."""
    rows = {"text": Ragged.of_bytes([document.encode() for document in documents])}
    encoder = BytePair(vocab=VOCAB)
    learned = encoder.prepare([rows], CTX)
    tokenizer, _ = _parse(learned["tokenizer/json"].tobytes())
    size, ours, theirs = len(rows["text"].values) / 1e6, [], []
    for _ in range(5):
        started = time.perf_counter()
        encoder.encode(rows, learned)
        between = time.perf_counter()
        for texts in _chunks(rows["text"]):
            tokenizer.encode_batch(texts, add_special_tokens=False)
        ours.append(size / (between - started))
        theirs.append(size / (time.perf_counter() - between))
    return float(np.median(ours)), float(np.median(theirs))


def main() -> None:
    """Print a table of the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, nargs="+", default=[5, 50], help="millions of tokens")
    parser.add_argument("--folder", type=Path, help="where text and store go meanwhile")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    ours, theirs = compare_with_library(list(PythonDocs().documents()))
    print(f"encode {ours:.1f} MB/s; the library's encode_batch {theirs:.1f} MB/s; {ours / theirs:.1f} times\n")
    for millions in options.tokens:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "text.txt"
            write_text(path, millions)
            command = [sys.executable, __file__, "--measure", path]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        print(f"{found['tokens'] / 1e6:.0f} M tokens, {found['documents']:,} documents, {found['bytes'] / 1e6:.0f} MB of text")
        for step, (seconds, megabytes) in found["steps"].items():
            print(f"  {step:8} {seconds:8.2f} s   peak {megabytes:6.0f} MB", end="")
            print(f"   {found['bytes'] / 1e6 / seconds:6.1f} MB/s" if step in ("count", "digest", "read") else "")


if __name__ == "__main__":
    main()
