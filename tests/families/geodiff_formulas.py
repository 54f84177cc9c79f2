"""GeoDiff's formulas written out on dense tables, one row at a time, and rows to compute them on.

The formulas share nothing with the package but the parameters.
"""

from itertools import combinations, permutations

import numpy as np
import torch

from selfloop.columns import Ragged, concat_rows
from selfloop.families.geodiff import diffusion
from selfloop.families.geodiff import network as graphs
from selfloop.families.geodiff.network import GeoDiffNetwork

CPU = torch.device("cpu")


def chain(atoms, seed=0, jitter=0.4):
    """One row: a chain of atoms wound to a helix, with noise on its coordinates."""
    rng, k = np.random.default_rng(seed), np.arange(atoms)
    position = np.stack([0.9 * np.cos(1.9 * k), 0.9 * np.sin(1.9 * k), 0.55 * k], 1) + jitter * rng.standard_normal((atoms, 3))
    position = (position - position.mean(0)).astype(np.float32)
    pairs = np.array([(i, j) for i, j in combinations(range(atoms), 2) if j - i <= 3], np.uint16).reshape(-1, 2)
    kind = np.array([0, 1 + seed % 2, 23, 24], np.uint8)[np.diff(pairs.astype(int), axis=1)[:, 0]]
    z = rng.choice(np.array([1, 6, 7, 8], np.uint8), atoms)
    return {
        name: Ragged(values, np.array([0, len(values)]))
        for name, values in (("z", z), ("edges", pairs), ("edge_type", kind), ("position", position))
    }


def chains(*sizes, **changes):
    return concat_rows([chain(atoms, seed, **changes) for seed, atoms in enumerate(sizes)])


def without_position(rows):
    return {name: column for name, column in rows.items() if name != "position"}


def positions(rows):
    return torch.from_numpy(rows["position"].values)


def build_network(smooth=True, hidden=8, dtype=torch.float32):
    torch.manual_seed(1)
    return GeoDiffNetwork(hidden, 6, 2, 3, 10.0, smooth).to(dtype)


def row_losses(network, rows, noise, sigma):
    """The package's losses."""
    graph = graphs.build_graphs(rows, CPU)
    return diffusion.row_losses(network, graph, positions(rows).to(noise.dtype), noise, sigma)


def dense_kinds(row):
    kinds = torch.zeros(len(row["z"].values), len(row["z"].values), dtype=torch.long)
    for (i, j), kind in zip(row["edges"].values.astype(int).tolist(), row["edge_type"].values.tolist(), strict=True):
        kinds[i, j] = kinds[j, i] = kind
    return kinds


def distances(x):
    atoms = range(len(x))
    zero = x.new_zeros(())
    return torch.stack([torch.stack([(x[i] - x[j]).square().sum().sqrt() if i != j else zero for j in atoms]) for i in atoms])


def dense_edges(kinds, d, cutoff=10.0):
    """receives[i, j] is True if there is an edge from j to i."""
    receives = kinds > 0
    for i in range(len(d)):
        others = sorted((j for j in range(len(d)) if j != i and d[i, j] <= cutoff), key=lambda j: d[i, j])
        for j in others[:32]:
            receives[i, j] = True
    return receives


def formula_network(p, z, kinds, d, receives, smooth, cutoff=10.0):
    """Coefficients (i, j) of the global and of the local branch; p are the network's parameters by name."""

    def layer(name, x):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)

    def ssp(x):
        return torch.log(0.5 * torch.exp(x) + 0.5)

    relu = torch.relu
    edge = (
        layer("encode_edges.second", relu(layer("encode_edges.first", d[..., None]))) * p["encode_edges.of_kind.weight"][kinds]
    )
    window = 0.5 * (torch.cos(d * torch.pi / cutoff) + 1) if smooth else torch.ones_like(d)
    window = window * (d <= cutoff) * receives
    table = p["global_atoms.weight"]
    h = (table * (10 / table.norm(dim=1, keepdim=True)).clamp(max=1))[z]
    for k in range(2):
        name = f"interactions.{k}"
        filters = layer(f"{name}.second", ssp(layer(f"{name}.first", edge)))
        messages = torch.einsum("ijf,ij,jf->if", filters, window, layer(f"{name}.enter", h))
        h = h + layer(f"{name}.last", ssp(layer(f"{name}.leave", messages)))
    out = []
    for branch in ("global", "local"):
        if branch == "local":
            h = p["local_atoms.weight"][z]
            for k in range(3):
                messages = h + (relu(h[None] + edge) * (kinds > 0)[..., None]).sum(1)
                update = layer(f"convolutions.{k}.perceptron.2", relu(layer(f"convolutions.{k}.perceptron.0", messages)))
                h = h + (relu(update) if k < 2 else update)
        x = layer(f"{branch}_head.first", torch.cat([h[:, None] * h[None], edge], -1))
        out.append(layer(f"{branch}_head.rest.3", relu(layer(f"{branch}_head.rest.1", relu(x))))[..., 0])
    return out


def formula_vectors(coefficients, mask, x, d, both=True):
    """Each edge (j to i) moves both atoms along their unit vector."""
    vectors = [x.new_zeros(3) for _ in x]
    for i, j in permutations(range(len(x)), 2):
        if mask[i, j]:
            move = coefficients[i, j] * (x[i] - x[j]) / d[i, j]
            vectors[i] = vectors[i] + move
            if both:
                vectors[j] = vectors[j] - move
    return torch.stack(vectors)
