"""Memory and speed of a corpus from its file to minibatches, by size. Anonymous memory must not grow with the corpus.

A text of that many tokens repeats Python's documentation. The stored steps of a run read it, each size in its own process. Run:
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

from selfloop.columns import Ragged, count_rows
from selfloop.component import Context
from selfloop.engine import steps
from selfloop.families.transformer.tokenizer import END, BytePair, _chunks, _parse
from selfloop.rng import RandomStream
from selfloop.sources.text_corpora import PythonDocs
from selfloop.sources.text_files import TextSource
from selfloop.store.store import Store
from selfloop.types import RowTake, TrainingRows

VOCAB, BYTES_PER_TOKEN, HOLDOUT, BATCH_SIZE = 8000, 4.4, 500, 64
CTX = Context(RandomStream(("corpus",)))


def anonymous_memory() -> float:
    """Memory of this process in MB that no file backs, so that the system cannot drop it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


class PeakMemory:
    """Maximum of the anonymous memory between enter and exit, and the seconds between them."""

    def __enter__(self) -> PeakMemory:
        self.megabytes, self.running, self.started = anonymous_memory(), True, time.perf_counter()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.megabytes = max(self.megabytes, anonymous_memory())
            time.sleep(0.01)

    def __exit__(self, *problem: object) -> None:
        self.seconds, self.running = time.perf_counter() - self.started, False
        self.thread.join()


def write_text(path: Path, millions: float) -> None:
    """Write a text of about that many million tokens."""
    text = f"\n{END}\n".join(PythonDocs().documents()) + f"\n{END}\n"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(max(1, round(millions * 1e6 * BYTES_PER_TOKEN / len(text)))):
            file.write(text)


def measure(path: Path) -> dict[str, Any]:
    """Seconds and peak megabytes of every step, and the size of the corpus."""
    source, encoder, store = TextSource(path=path, separator=END), BytePair(vocab=VOCAB), Store(path.parent / "store")
    costs = {"start": (0.0, anonymous_memory())}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        with PeakMemory() as peak:
            value = step()
        costs[name] = (peak.seconds, peak.megabytes)
        return value

    count = timed("count", source.n_rows)
    timed("digest", lambda: store.key(steps.prepare_encoder, encoder, source, CTX))
    prepared = timed("prepare", lambda: store.call(steps.prepare_encoder, encoder, source, CTX))
    corpus = timed("encode", lambda: store.call(steps.encode_corpus, encoder, source, prepared, CTX))
    n = (count - HOLDOUT) // 2
    initial = timed("take", lambda: store.call(steps.take_corpus_rows, source, corpus, HOLDOUT, n, CTX))
    rows = TrainingRows((RowTake(store.open(initial)),))
    rng = np.random.default_rng(0)
    timed("minibatches", lambda: [rows.gather(rng.integers(0, len(rows), BATCH_SIZE)) for _ in range(100)])
    tokens = store.open(corpus)["tokens"]
    assert isinstance(tokens, Ragged)
    assert (count_rows(store.open(corpus)), len(rows)) == (count, n)
    return {"steps": costs, "tokens": len(tokens.values), "documents": count, "bytes": path.stat().st_size}


def compare_with_library(documents: list[str]) -> tuple[float, float]:
    """MB/s of encoding the documents: by selfloop, and by the library's encode_batch on all its threads."""
    rows = {"text": Ragged.of_bytes([document.encode() for document in documents])}
    encoder = BytePair(vocab=VOCAB)
    prepared = encoder.prepare([rows], CTX)
    tokenizer, _ = _parse(prepared["tokenizer/json"].tobytes())
    size, selfloop_speeds, library_speeds = len(rows["text"].values) / 1e6, [], []
    for _ in range(5):
        started = time.perf_counter()
        encoder.encode(rows, prepared)
        between = time.perf_counter()
        for texts in _chunks(rows["text"]):
            tokenizer.encode_batch(texts, add_special_tokens=False)
        selfloop_speeds.append(size / (between - started))
        library_speeds.append(size / (time.perf_counter() - between))
    return float(np.median(selfloop_speeds)), float(np.median(library_speeds))


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, nargs="+", default=[5, 50], help="millions of tokens")
    parser.add_argument("--folder", type=Path, help="folder for the temporary text and store")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    speed, library = compare_with_library(list(PythonDocs().documents()))
    print(f"encode {speed:.1f} MB/s; the library's encode_batch {library:.1f} MB/s; {speed / library:.1f} times\n")
    for millions in options.tokens:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "text.txt"
            write_text(path, millions)
            command = [sys.executable, __file__, "--measure", path]
            result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        size = result["bytes"] / 1e6
        print(f"{result['tokens'] / 1e6:.0f} M tokens, {result['documents']:,} documents, {size:.0f} MB of text")
        for step, (seconds, megabytes) in result["steps"].items():
            print(f"  {step:11} {seconds:8.2f} s   peak {megabytes:6.0f} MB", end="")
            print(f"   {size / seconds:6.1f} MB/s" if step in ("count", "digest", "encode") else "")


if __name__ == "__main__":
    main()
