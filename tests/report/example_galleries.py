"""Example rows of every kind for galleries: images, molecules, stories, points, numbers, texts, tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfloop.columns import ColumnType, Ragged
from selfloop.report.values import Gallery

HOSTILE = "</script><script>alert(1)</script><!-- \" ' & \x00\x1b"


def digits_gallery(generations: int) -> Gallery:
    """Gray 8 x 8 images that blur under replace."""
    rng = np.random.default_rng(5)
    images = (example_faces(200)[..., 0].reshape(200, 8, 8, 8, 8).mean((2, 4)) / 255).astype(np.float32)
    samples = {
        policy: {
            t: {
                "image": np.clip(
                    images[rng.integers(0, 200, 16)] * (1 - blur * t)
                    + blur * t * images.mean(0)
                    + rng.normal(0, blur * t, (16, 8, 8)),
                    0,
                    1,
                )
            }
            for t in range(1, generations + 1)
        }
        for policy, blur in (("replace", 0.15), ("accumulate", 0.02), ("accumulate_subsample", 0.06))
    }
    return Gallery(schema={"image": ColumnType("float32", (8, 8))}, real={"image": images[:16]}, samples=samples)


def example_faces(n: int) -> np.ndarray:
    """Ovals of random position, size and color on shaded backgrounds. They compress about as well as small portraits."""
    rng = np.random.default_rng(10)
    y, x = np.mgrid[:64, :64] / 64
    background, skin = rng.uniform(0, 255, (2, n, 1, 1, 3))
    high, wide = rng.uniform(0.2, 0.4, (2, n, 1, 1))
    face = ((x - rng.uniform(0.4, 0.6, (n, 1, 1))) / wide) ** 2 + ((y - rng.uniform(0.4, 0.6, (n, 1, 1))) / high) ** 2 < 1
    images = np.where(face[..., None], skin, background * (0.5 + 0.5 * x[..., None])) + rng.normal(0, 6, (n, 64, 64, 1))
    return np.clip(images, 0, 255).astype(np.uint8)


def molecule_gallery(generations: int = 3) -> Gallery:
    """Ethanol and water, increasingly distorted under replace, every sample with a random rotation."""
    rng = np.random.default_rng(13)
    ethanol = [
        [-0.89, 0.17, 0.0], [0.46, -0.51, 0.0], [1.44, 0.31, 0.3], [-1.0, 0.8, -0.9], [-1.0, 0.8, 0.9], [-1.7, -0.57, 0.0],
        [0.57, -1.14, -0.89], [0.6, -1.2, 0.85], [2.3, -0.1, 0.2],
    ]  # fmt: skip
    pairs = [[0, 1], [1, 2], [0, 3], [0, 4], [0, 5], [1, 6], [1, 7], [2, 8]]
    water = [[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]]
    real = [([6, 6, 8, 1, 1, 1, 1, 1, 1], ethanol, pairs), ([8, 1, 1], water, [[0, 1], [0, 2]])]

    def distort(width: float) -> dict[str, Ragged | np.ndarray]:
        molecules = []
        for z, positions, bonds in real:
            rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
            rotation[:, 0] *= np.sign(np.linalg.det(rotation))
            distorted = np.array(positions) + rng.normal(0, width, (len(z), 3))
            molecules.append((z, (distorted @ rotation).tolist(), bonds))
        return molecule_columns(molecules)

    samples = {p: {t: distort(w * t) for t in range(1, generations + 1)} for p, w in (("replace", 0.2), ("accumulate", 0.0))}
    return Gallery(schema={}, real=molecule_columns(real), samples=samples)


def molecule_columns(rows: Sequence[tuple[list[int], list[list[float]], list[list[int]]]]) -> dict[str, Ragged | np.ndarray]:
    """Molecules (atomic numbers, positions, bonds) as columns, with a second, shifted conformer of each.

    One edge joins atoms without a bond.
    """

    def column(parts: Sequence[np.ndarray]) -> Ragged:
        return Ragged(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))

    twice = [(z, np.reshape(positions, (-1, 3)) + shift, bonds) for z, positions, bonds in rows for shift in (0, 1000)]
    return {
        "molecule": np.repeat(7 + np.arange(len(rows)), 2),
        "z": column([np.array(z, np.uint8) for z, _, _ in twice]),
        "position": column([positions.astype(np.float32) for _, positions, _ in twice]),
        "edges": column([np.array([*bonds, [0, len(z) - 1]], np.uint16).reshape(-1, 2) for z, _, bonds in twice]),
        "edge_type": column([np.array([*[1] * len(bonds), 24], np.uint8) for _, _, bonds in twice]),
    }


def story_gallery(generations: int, policies: Sequence[str]) -> Gallery:
    """Four stories that begin with the first word of the real ones and lose more words under replace."""
    real = [
        "Once upon a time, there was a little girl named Lily. She loved to play in the park.\n\nOne day she saw a big dog. "
        + 'The dog was sad because it had lost its ball. Lily said, "I will help you find it." ' * 8,
        "Tom and his mom went to the shop. Tom wanted a red car, but mom said no.",
        "The sun was hot & bright. <b>Ben</b> sat under a tree  and  ate an apple.\n" * 3,
        "One night, Mia heard a noise. It was a little owl with one eye.",
    ]
    words = " ".join(real).split()
    rng = np.random.default_rng(8)

    def write(i: int, t: int, policy: str) -> str:
        begin, *rest = real[i].split(" ")
        loss = 0.09 * t if policy.startswith("replace") else 0.01 * t
        return " ".join([begin, *(str(rng.choice(words)) if rng.random() < loss else word for word in rest)])

    def columns(texts: list[str]) -> dict[str, Ragged]:
        return {"text": ragged(texts), "prompt": ragged([text.split(" ")[0] for text in real])}

    samples = {p: {t: columns([write(i, t, p) for i in range(4)]) for t in range(1, generations + 1)} for p in policies}
    return Gallery(schema={"text": ColumnType("utf8")}, real={"text": ragged(real)}, samples=samples)


def ragged(texts: Sequence[str]) -> Ragged:
    """Texts as a column of UTF-8 bytes."""
    return Ragged.of_bytes([text.encode() for text in texts])


def moons_gallery(rng: np.random.Generator) -> Gallery:
    """Two half circles that blur under replace."""
    angle, upper = rng.uniform(0, np.pi, 400), rng.integers(0, 2, 400)
    points = np.stack([np.cos(angle) + 1 - upper, (2 * upper - 1) * np.sin(angle) + 0.5 * (1 - upper)], axis=1)
    samples = {
        policy: {t: {"x": points + rng.normal(0, spread * t, points.shape)} for t in range(1, 6)}
        for policy, spread in (("replace", 0.1), ("accumulate", 0.03))
    }
    return Gallery(schema={"x": ColumnType("float64", (2,), "m")}, real={"x": points}, samples=samples)


def numbers_gallery(rng: np.random.Generator) -> Gallery:
    samples = {
        policy: {t: {"x": rng.normal(0, shrink**t, (500, 1))} for t in (1, 5, 10, 20)}
        for policy, shrink in (("replace", 0.93), ("accumulate", 0.995))
    }
    return Gallery(schema={"x": ColumnType("float64", (1,), "mm")}, real={"x": rng.normal(0, 1, (500, 1))}, samples=samples)


def text_gallery() -> Gallery:
    real = np.array(
        ["Once upon a time there was a little fox who liked the rain.", "Tom had a red ball. " * 12, "Anna said: <b>no</b>."]
    )
    samples = {
        policy: {t: {"text": np.array([f"The fox {word * t}.", f"Tom {word * t} ball.", HOSTILE])} for t in (1, 2, 3)}
        for policy, word in (("replace", "the the "), ("accumulate", "likes rain "))
    }
    return Gallery(schema={"text": ColumnType("str")}, real={"text": real}, samples=samples)


def table_gallery(rng: np.random.Generator) -> Gallery:
    def rows() -> dict[str, np.ndarray]:
        return {"inputs": rng.normal(0, 1, (8, 10)), "target": rng.integers(0, 2, 8)}

    schema = {"inputs": ColumnType("float64", (10,)), "target": ColumnType("int64", (), "mg/dl")}
    return Gallery(
        schema=schema, real=rows(), samples={"replace": {1: rows(), 2: rows()}, "accumulate": {1: rows(), 2: rows()}}
    )
