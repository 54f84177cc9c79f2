"""GeoDiff's training step beside a straightforward one on torch-geometric, and sampling.

    python benchmarks/geodiff.py

Both train the published network (hidden 128, six and four convolutions) on 32 molecules of about 45 atoms a step, with the
same loss and optimizer, in turns, one thread. The straightforward one is written like the published code: edges in both
directions, the extended graph from powers of each molecule's dense adjacency matrix each time a molecule is loaded, the
radius graph from all distances of the batch, torch-geometric's SchNet and GINE layers. A second line excludes the
time of extending the graph.
"""

import os
import time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import AllChem
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINEConv
from torch_geometric.nn.models.schnet import InteractionBlock
from torch_geometric.utils import dense_to_sparse, scatter, to_dense_adj

from selfloop.columns import Ragged
from selfloop.component import Context
from selfloop.families.geodiff import diffusion
from selfloop.families.geodiff.family import GeoDiff, GeoDiffSampler
from selfloop.rng import RandomStream
from selfloop.sources.molecule_base import build_graph
from selfloop.types import RowTake, TrainingRows

CONTEXT = Context(RandomStream(("benchmark",)))
BATCH, STEPS, TURNS = 32, 4, 4
SMILES = (  # drugs of 40 to 51 atoms
    "CC(C)Cc1ccc(cc1)C(C)C(=O)NCCc1ccccc1",
    "CN1CCN(CC1)Cc1ccc(cc1)C(=O)Nc1ccc(C)cc1",
    "COc1ccc2cc(ccc2c1)C(C)C(=O)NCC1CCCO1",
    "CC(C)NCC(O)COc1cccc2ccccc12",
    "CCN(CC)CCNC(=O)c1ccc(N)cc1OC",
    "CCOC(=O)C1=C(C)NC(C)=C(C1c1cccc(Cl)c1Cl)C(=O)OC",
    "CN1CCC(CC1)=C1c2ccccc2CCc2cccnc12",
    "OC(CCN1CCCCC1)(C1CCCCC1)c1ccccc1",
)


def molecules():
    """RDKit molecules with one conformer each."""
    embedded = []
    for seed, smiles in enumerate(SMILES * (BATCH // len(SMILES))):
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMolecule(molecule, randomSeed=seed + 1)
        embedded.append(molecule)
    return embedded


def build_rows(molecules):
    """The rows of a source of molecules."""
    graphs = [build_graph(molecule) for molecule in molecules]
    columns = {name: [getattr(graph, name) for graph in graphs] for name in ("z", "edges", "edge_type")}
    columns["position"] = [molecule.GetConformer().GetPositions().astype(np.float32) for molecule in molecules]
    return {name: Ragged(np.concatenate(c), np.cumsum([0, *map(len, c)])) for name, c in columns.items()}


class Plain(nn.Module):
    """The same network on directed edges."""

    def __init__(self, hidden=128):
        super().__init__()
        self.of_length = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.of_kind = nn.Embedding(100, hidden)
        self.global_atoms, self.local_atoms = nn.Embedding(100, hidden, max_norm=10.0), nn.Embedding(100, hidden)
        self.interactions = nn.ModuleList([InteractionBlock(hidden, hidden, hidden, 10.0) for _ in range(6)])

        def two():
            return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

        self.convolutions = nn.ModuleList([GINEConv(two()) for _ in range(4)])
        self.heads = nn.ModuleList([
            nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, 1))
            for _ in range(2)
        ])  # fmt: skip

    def forward(self, z, edge_index, kind, length):
        edge = self.of_length(length[:, None]) * self.of_kind(kind)
        h = self.global_atoms(z)
        clamped = torch.where(length <= 10, length, torch.full_like(length, 10.0))  # at 10 the window is 0
        for interaction in self.interactions:
            h = h + interaction(h, edge_index, clamped, edge)
        of_all = self.heads[0](torch.cat([h[edge_index[0]] * h[edge_index[1]], edge], 1)).squeeze(1)
        local = kind > 0
        edge_index, edge = edge_index[:, local], edge[local]
        h = self.local_atoms(z)
        for k, convolution in enumerate(self.convolutions):
            new = convolution(h, edge_index, edge)
            h = h + (new.relu() if k < 3 else new)
        return of_all, self.heads[1](torch.cat([h[edge_index[0]] * h[edge_index[1]], edge], 1)).squeeze(1)


def extend(data):
    """A torch-geometric transform: pairs two and three bonds apart, by powers of the dense adjacency matrix."""
    kinds = to_dense_adj(data.edge_index, edge_attr=data.edge_type, max_num_nodes=data.num_nodes)[0]
    step = ((kinds > 0) | torch.eye(data.num_nodes, dtype=torch.bool)).float()
    powers = [torch.eye(data.num_nodes), step]
    for _ in range(2):
        powers.append((powers[-1] @ step > 0).float())
    order = sum(k * (powers[k] - powers[k - 1]) for k in (1, 2, 3)).long()
    edge_index, edge_type = dense_to_sparse(torch.where(order > 1, 21 + order, kinds))
    return Data(z=data.z, pos=data.pos, edge_index=edge_index, edge_type=edge_type)


def bonded(molecule):
    z = torch.tensor([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    ends = torch.tensor([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()]).T
    kinds = torch.tensor([int(b.GetBondType()) for b in molecule.GetBonds()])
    pos = torch.from_numpy(molecule.GetConformer().GetPositions()).float()
    return Data(z=z, pos=pos, edge_index=torch.cat([ends, ends.flip(0)], 1), edge_type=kinds.repeat(2))


def radius_graph(pos, batch, kinds):
    """All edges and their types: those of the extended graph, and to the 32 nearest within 10 Å."""
    distances = torch.cdist(pos, pos).masked_fill(batch[:, None] != batch, torch.inf).fill_diagonal_(torch.inf)
    nearest, others = distances.topk(32, dim=1, largest=False)
    targets = torch.arange(len(pos))[:, None].expand_as(others)[nearest <= 10]
    adjacent = torch.zeros_like(distances, dtype=torch.bool)
    adjacent[others[nearest <= 10], targets] = True
    edge_index = (adjacent | (kinds > 0)).nonzero().T
    return edge_index, kinds[edge_index[0], edge_index[1]]


def to_atoms(coefficients, pos, edge_index, length):
    moved = coefficients[:, None] * (pos[edge_index[0]] - pos[edge_index[1]]) / length[:, None]
    return scatter(moved, edge_index[0], dim_size=len(pos)) - scatter(moved, edge_index[1], dim_size=len(pos))


def plain_loss(model, batch, sigmas):
    levels = torch.randint(len(sigmas), (batch.num_graphs // 2 + 1,))
    sigma = sigmas[torch.cat([levels, len(sigmas) - 1 - levels])[: batch.num_graphs]][batch.batch]
    noisy = batch.pos + sigma[:, None] * torch.randn_like(batch.pos)
    kinds = torch.zeros(len(noisy), len(noisy), dtype=torch.long)
    kinds[batch.edge_index[0], batch.edge_index[1]] = batch.edge_type
    edge_index, kind = radius_graph(noisy, batch.batch, kinds)
    length = (noisy[edge_index[0]] - noisy[edge_index[1]]).norm(dim=1)
    true = (batch.pos[edge_index[0]] - batch.pos[edge_index[1]]).norm(dim=1)
    target = (true - length) / sigma[edge_index[0]]
    of_all, of_local = model(batch.z, edge_index, kind, length)
    local = kind > 0
    far = torch.where(local, 0.0, of_all - target)
    error_far = to_atoms(far, noisy, edge_index, length)
    error_local = to_atoms(of_local - target[local], noisy, edge_index[:, local], length[local])
    return (2 * error_far.square().sum(1) + 5 * error_local.square().sum(1)).mean()


class Loaded(torch.utils.data.Dataset):
    """Molecules that are transformed each time they are loaded, as in the published code."""

    def __init__(self, data, transform):
        self.data, self.transform = data, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, k):
        return self.transform(self.data[k])


def plain(data, steps):
    model = Plain()
    sigmas = torch.from_numpy(diffusion.sigmas(GeoDiff()._alphas())).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.95, 0.999))
    for _ in range(steps):
        for batch in DataLoader(data, batch_size=BATCH, shuffle=True):
            loss = plain_loss(model, batch, sigmas)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 3e4)
            optimizer.step()


def ours(rows, steps):
    family = GeoDiff()
    family = replace(family, training=replace(family.training, steps=steps))
    family.fit(TrainingRows((RowTake(rows),)), CONTEXT, None)


def sample(rows, steps):
    """Sample conformers with `steps` noise levels in place of 5000. Two in five of 100 levels have global vectors."""
    family = GeoDiff(noise_levels=steps, beta_end=5000 * 2e-3 / steps)
    inputs = {name: column for name, column in rows.items() if name != "position"}
    with torch.no_grad():
        params = {name: tensor.numpy() for name, tensor in family._network().state_dict().items()}
    family.sample(params, BATCH, GeoDiffSampler(), inputs, CONTEXT)


def seconds(function, *arguments):
    """Wall-clock and processor seconds. Other processes disturb processor seconds less."""
    started = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def main():
    torch.set_num_threads(1)
    embedded = molecules()
    rows = build_rows(embedded)
    atoms, pairs = (len(rows[name].values) / BATCH for name in ("z", "edges"))
    print(f"{BATCH} molecules of {atoms:.0f} atoms and {pairs:.0f} pairs of the extended graph")
    bonds = [bonded(molecule) for molecule in embedded]
    loops = {
        "torch-geometric, graph extended at each step": (plain, Loaded(bonds, extend)),
        "torch-geometric, graph extended beforehand": (plain, [extend(data) for data in bonds]),
        "selfloop": (ours, rows),
    }
    for function, data in loops.values():
        function(data, 1)
    times = [[seconds(function, data, STEPS) for function, data in loops.values()] for _ in range(TURNS)]
    best = np.array(times).min(axis=0)
    for name, (wall, processor) in zip(loops, best, strict=True):
        print(f"{name:46} {BATCH * STEPS / wall:6.1f} molecules/s, {BATCH * STEPS / processor:6.1f} per processor second")
    for name, (wall, processor) in zip(list(loops)[:2], best / best[2], strict=False):
        print(f"selfloop is {wall:.2f} times as fast as {name} ({processor:.2f} by processor time)")
    wall, processor = np.min([seconds(sample, rows, 100) for _ in range(2)], axis=0) * 50
    print(
        f"sampling, 5000 noise levels: {60 * BATCH / wall:.2f} molecules/min ({60 * BATCH / processor:.2f} by processor time)"
    )


if __name__ == "__main__":
    main()
