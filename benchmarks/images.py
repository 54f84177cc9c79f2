"""Images decoded once compared with images decoded at every draw, and the memory of decoding, by number of images.

The faces of a CelebA ZIP file, or random images of the same size, are repeated in larger ZIP files. The stored step of a run
reads each file in its own process. An epoch is every image once, in minibatches in random order. The images are gathered from
the store, or decoded, cropped and resized one by one as by a plain data loader. Run:
    python benchmarks/images.py [--faces img_align_celeba.zip] [--times 1 2 4] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corpus import PeakMemory, anonymous_memory
from selfloop.columns import count_rows
from selfloop.component import Context
from selfloop.engine import steps
from selfloop.rng import RandomStream
from selfloop.sources.celeba import CelebA
from selfloop.store.store import Store
from selfloop.types import RowTake, TrainingRows

BATCH_SIZE, RANDOM_IMAGES, TIMED_IMAGES = 128, 2000, 2000


def write_faces(path: Path, faces: Path | None, times: int) -> None:
    """Write a ZIP file that repeats all faces that many times."""
    if faces is not None:
        with zipfile.ZipFile(faces) as archive:
            images = [archive.read(name) for name in archive.namelist()]
    else:
        rng, images = np.random.default_rng(0), []
        for _ in range(RANDOM_IMAGES):
            smooth = Image.fromarray(rng.integers(0, 256, (22, 18, 3), np.uint8)).resize((178, 218), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            smooth.save(file, "JPEG", quality=92)
            images.append(file.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(times * len(images)):
            archive.writestr(f"img_align_celeba/{number + 1:06}.jpg", images[number % len(images)])


def plain_epoch(path: Path, order: np.ndarray) -> None:
    """Decode minibatches of these images."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for first in range(0, len(order), BATCH_SIZE):
            np.stack([decode(archive.read(names[i])) for i in order[first : first + BATCH_SIZE]])


def decode(data: bytes) -> np.ndarray:
    """The central square of an image, resized to 64 x 64."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side, (width, height) = min(image.size), image.size
    square = image.crop(((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
    return np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC))


def measure(path: Path) -> dict[str, Any]:
    """Number of images, seconds and megabytes of reading them, and microseconds per image of both kinds of epoch."""
    source, store, ctx = CelebA(path=path), Store(path.parent / "store"), Context(RandomStream(("images",)))
    before, started = anonymous_memory(), time.perf_counter()
    count = source.n_rows()
    seconds = time.perf_counter() - started
    with PeakMemory() as peak:
        corpus = store.open(store.call(steps.read_corpus, source, ctx))
    rows, order = TrainingRows((RowTake(corpus),)), np.random.default_rng(0).permutation(count_rows(corpus))
    timed, gather, decoded = order[:TIMED_IMAGES], [], []
    for _ in range(3):  # interleaved
        started = time.perf_counter()
        for first in range(0, len(timed), BATCH_SIZE):
            rows.gather(timed[first : first + BATCH_SIZE])
        gather.append((time.perf_counter() - started) / len(timed))
        started = time.perf_counter()
        plain_epoch(path, timed)
        decoded.append((time.perf_counter() - started) / len(timed))
    return {
        "images": count, "list, s": seconds, "read, s": peak.seconds, "peak, MB": peak.megabytes - before,
        "gather, us": 1e6 * min(gather), "decode, us": 1e6 * min(decoded),
    }  # fmt: skip


def main() -> None:
    """Print one line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    for times in options.times:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write_faces(Path(folder) / "faces.zip", options.faces, times)
            command = [sys.executable, __file__, "--measure", f"{folder}/faces.zip"]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print("   ".join(f"{name} {value:.4g}" for name, value in result.items()), flush=True)


if __name__ == "__main__":
    main()
