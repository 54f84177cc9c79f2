"""Pictures decoded once against pictures decoded at every draw, and the memory of decoding them, by their number.

The faces of a CelebA ZIP file, or made-up pictures of the same size, are put into ZIP files several times over; then the stage
of a run reads each file, in its own process. An epoch is all pictures once, in batches in random order: gathered from what
was stored, or opened, cropped, resized and made an array each, as a plain data loader does. Run it with:
    python benchmarks/pictures.py [--faces img_align_celeba.zip] [--times 1 2 4] [--folder /tmp]
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

from corpus import Peak, anonymous
from selfloop.component import Context
from selfloop.engine import steps
from selfloop.rng import RandomStream
from selfloop.sources.celeba import CelebA
from selfloop.store.store import Store
from selfloop.types import TrainingRows, count_rows

BATCH, MADE, DECODED = 128, 2000, 2000  # rows of a batch; made-up pictures; pictures that the plain epoch is timed on


def write_faces(path: Path, faces: Path | None, times: int) -> None:
    """A ZIP file of all the faces, that many times."""
    if faces is not None:
        with zipfile.ZipFile(faces) as archive:
            pictures = [archive.read(name) for name in archive.namelist()]
    else:
        rng, pictures = np.random.default_rng(0), []
        for _ in range(MADE):
            smooth = Image.fromarray(rng.integers(0, 256, (22, 18, 3), np.uint8)).resize((178, 218), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            smooth.save(file, "JPEG", quality=92)
            pictures.append(file.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(times * len(pictures)):
            archive.writestr(f"img_align_celeba/{number + 1:06}.jpg", pictures[number % len(pictures)])


def plain_epoch(path: Path, order: np.ndarray) -> None:
    """Batches of those pictures, each decoded when it is drawn."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for first in range(0, len(order), BATCH):
            np.stack([as_array(archive.read(names[i])) for i in order[first : first + BATCH]])


def as_array(data: bytes) -> np.ndarray:
    """A picture's central square at 64 x 64."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    side, (width, height) = min(picture.size), picture.size
    square = picture.crop(((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
    return np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC))


def measure(path: Path) -> dict[str, Any]:
    """Seconds and megabytes of reading a file of faces, and seconds of an epoch."""
    source, store, ctx = CelebA(path=path), Store(path.parent / "store"), Context(RandomStream(("pictures",)))
    before, started = anonymous(), time.perf_counter()
    count = source.n_rows()
    looked = time.perf_counter() - started
    with Peak() as peak:
        corpus = store.open(store.call(steps.read_rows, source, ctx))
    data, order = TrainingRows(((corpus, None, 1.0),)), np.random.default_rng(0).permutation(count_rows(corpus))
    some, gather_rows, decoded = order[:DECODED], [], []
    for _ in range(3):  # interleaved
        started = time.perf_counter()
        for first in range(0, len(some), BATCH):
            data.gather(some[first : first + BATCH])
        gather_rows.append((time.perf_counter() - started) / len(some))
        started = time.perf_counter()
        plain_epoch(path, some)
        decoded.append((time.perf_counter() - started) / len(some))
    return {
        "pictures": count, "look, s": looked, "read, s": peak.seconds, "peak, MB": peak.megabytes - before,
        "gather, us": 1e6 * min(gather_rows), "decode, us": 1e6 * min(decoded),
    }  # fmt: skip


def main() -> None:
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
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print("   ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
