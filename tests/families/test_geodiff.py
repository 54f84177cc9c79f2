"""GeoDiff: its network and loss against the formulas written out, its checks of symmetry, its samples."""

import json
from copy import deepcopy
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from selfloop import Spec, run
from selfloop.component import Context
from selfloop.engine.run import resolved_points
from selfloop.errors import ChainEndedError, DataError, SpecError
from selfloop.families.geodiff import diffusion, graphs, piecewise_linear, sampling
from selfloop.families.geodiff.family import GeoDiff, GeoDiffSampler
from selfloop.families.geodiff.network import Network
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.metrics.conformers import ConformerCoverage
from selfloop.metrics.denoising import DenoisingLoss
from selfloop.plugins import presets
from selfloop.protocols import SupportsDenoisingLoss
from selfloop.rng import RandomStream
from selfloop.spec.parse import read_spec
from selfloop.types import Ragged, TrainingRows, concat_rows, select_rows

HERE = torch.device("cpu")
SMALL = GeoDiff(hidden=8, filters=6, interactions=2, convolutions=3, noise_levels=20, beta_end=0.5)
SMALL = replace(SMALL, training=replace(SMALL.training, steps=6, batch_size=4))


def context(*path):
    return Context(RandomStream(path))


def chain(atoms, seed=0, spread=0.4):
    """One row: a chain of atoms wound to a helix, its coordinates jostled."""
    rng, k = np.random.default_rng(seed), np.arange(atoms)
    position = np.stack([0.9 * np.cos(1.9 * k), 0.9 * np.sin(1.9 * k), 0.55 * k], 1) + spread * rng.standard_normal((atoms, 3))
    position = (position - position.mean(0)).astype(np.float32)
    pairs = np.array([(i, j) for i, j in combinations(range(atoms), 2) if j - i <= 3], np.uint16).reshape(-1, 2)
    kind = np.array([0, 1 + seed % 2, 23, 24], np.uint8)[np.diff(pairs.astype(int), axis=1)[:, 0]]
    z = rng.choice(np.array([1, 6, 7, 8], np.uint8), atoms)
    return {
        name: Ragged(values, np.array([0, len(values)]))
        for name, values in (("z", z), ("edges", pairs), ("edge_type", kind), ("position", position))
    }


def chains(*sizes, **how):
    return concat_rows([chain(atoms, seed, **how) for seed, atoms in enumerate(sizes)])


def without_position(rows):
    return {name: column for name, column in rows.items() if name != "position"}


def positions(rows):
    return torch.from_numpy(rows["position"].values)


def network(smooth=True, hidden=8, dtype=torch.float32):
    torch.manual_seed(1)
    return GeoDiffNetwork(hidden, 6, 2, 3, 10.0, smooth).to(dtype)


# The model as the formulas say, one row, every number of a dense table: shares nothing with the package but the parameters.


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
    """hears[i, j]: is there an edge from j to i?"""
    hears = kinds > 0
    for i in range(len(d)):
        others = sorted((j for j in range(len(d)) if j != i and d[i, j] <= cutoff), key=lambda j: d[i, j])
        for j in others[:32]:
            hears[i, j] = True
    return hears


def straight_network(p, z, kinds, d, hears, smooth, cutoff=10.0):
    """Numbers (i, j) of the global and of the local branch; p are the network's parameters by name."""

    def layer(name, x):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)

    def ssp(x):
        return torch.log(0.5 * torch.exp(x) + 0.5)

    relu = torch.relu
    edge = (
        layer("encode_edges.second", relu(layer("encode_edges.first", d[..., None]))) * p["encode_edges.of_kind.weight"][kinds]
    )
    window = 0.5 * (torch.cos(d * torch.pi / cutoff) + 1) if smooth else torch.ones_like(d)
    window = window * (d <= cutoff) * hears
    table = p["global_atoms.weight"]
    h = (table * (10 / table.norm(dim=1, keepdim=True)).clamp(max=1))[z]
    for k in range(2):
        name = f"interactions.{k}"
        filters = layer(f"{name}.second", ssp(layer(f"{name}.first", edge)))
        heard = torch.einsum("ijf,ij,jf->if", filters, window, layer(f"{name}.enter", h))
        h = h + layer(f"{name}.last", ssp(layer(f"{name}.leave", heard)))
    out = []
    for branch in ("global", "local"):
        if branch == "local":
            h = p["local_atoms.weight"][z]
            for k in range(3):
                heard = h + (relu(h[None] + edge) * (kinds > 0)[..., None]).sum(1)
                new = layer(f"convolutions.{k}.perceptron.2", relu(layer(f"convolutions.{k}.perceptron.0", heard)))
                h = h + (relu(new) if k < 2 else new)
        x = layer(f"{branch}_head.first", torch.cat([h[:, None] * h[None], edge], -1))
        out.append(layer(f"{branch}_head.rest.3", relu(layer(f"{branch}_head.rest.1", relu(x))))[..., 0])
    return out


def straight_vectors(numbers, chosen, x, d, both=True):
    """Each edge (j to i) moves both ends along their unit vector."""
    vectors = [x.new_zeros(3) for _ in x]
    for i, j in permutations(range(len(x)), 2):
        if chosen[i, j]:
            move = numbers[i, j] * (x[i] - x[j]) / d[i, j]
            vectors[i] = vectors[i] + move
            if both:
                vectors[j] = vectors[j] - move
    return torch.stack(vectors)


def straight_loss(p, row, noise, sigma, smooth=True, both=True, scale=None):
    x, z, kinds = positions(row).to(noise.dtype), row["z"].values, dense_kinds(row)
    noisy = x + sigma * noise
    d = distances(noisy)
    hears = dense_edges(kinds, d)
    target = (distances(x) - d) / (scale or sigma)
    far, local = straight_network(p, torch.from_numpy(z).long(), kinds, d, hears, smooth)
    beyond, extended = hears & (kinds == 0), kinds > 0
    error_far = straight_vectors(far, beyond, noisy, d, both) - straight_vectors(target, beyond, noisy, d, both)
    error_local = straight_vectors(local, extended, noisy, d, both) - straight_vectors(target, extended, noisy, d, both)
    return 2 * error_far.square().sum() + 5 * error_local.square().sum()


def drawn(rows, sigmas, seed=3, dtype=torch.float64):
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(positions(rows).shape)).to(dtype)
    return noise, torch.tensor(sigmas, dtype=dtype)


def losses_of(model, rows, noise, sigma):
    placed = graphs.build_graphs(rows, HERE)
    return diffusion.row_losses(model, placed, positions(rows).to(noise.dtype), noise, sigma)


def straight_losses(model, rows, noise, sigma, **how):
    p = dict(model.named_parameters())
    ends = rows["z"].offsets
    each = [select_rows(rows, np.array([k])) for k in range(len(rows["z"]))]
    return torch.stack(
        [straight_loss(p, row, noise[ends[k] : ends[k + 1]], sigma[k].item(), **how) for k, row in enumerate(each)]
    )


SIZES, SIGMAS = (9, 2, 40, 14), (0.05, 1.0, 0.4, 6.0)  # 40 atoms within 10 ångström: not all hear each other


@pytest.mark.parametrize("smooth", [True, False])
def test_the_loss_is_what_the_formulas_say(smooth):
    rows, model = chains(*SIZES, spread=1.5), network(smooth, dtype=torch.float64)
    noise, sigma = drawn(rows, SIGMAS)
    expected = straight_losses(model, rows, noise, sigma, smooth=smooth)
    torch.testing.assert_close(losses_of(model, rows, noise, sigma), expected, rtol=1e-9, atol=0)
    single = network(smooth)
    found = losses_of(single, rows, noise.float(), sigma.float()).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("wrong", [{"both": False}, {"scale": 1.0}, {"smooth": False}])
def test_the_test_of_the_loss_notices_another_formula(wrong):
    rows, model = chains(9, 14), network(dtype=torch.float64)
    noise, sigma = drawn(rows, (0.3, 2.0))
    expected = straight_losses(model, rows, noise, sigma, **wrong)
    assert (losses_of(model, rows, noise, sigma) / expected - 1).abs().min() > 1e-3


def test_the_gradients_are_those_of_the_formulas():
    rows, model = chains(9, 14, 36), network(dtype=torch.float64)
    noise, sigma = drawn(rows, (0.3, 2.0, 0.5))
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(losses_of(model, rows, noise, sigma).sum(), parameters.values())
    expected = torch.autograd.grad(straight_losses(model, rows, noise, sigma).sum(), parameters.values())
    for name, mine, theirs in zip(parameters, found, expected, strict=True):
        scale = theirs.abs().max()
        assert scale > 0, name
        if name == "global_atoms.weight":  # cut to norm 10, here outside of the derivative
            continue
        torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=1e-9, msg=name)


def test_the_network_is_torch_geometrics():
    """The published code's layers, from torch-geometric, on edges in both directions."""
    nn = pytest.importorskip("torch_geometric.nn")
    from torch_geometric.nn.models.schnet import InteractionBlock

    rows, model = chains(12, 20), network()
    placed = graphs.build_graphs(rows, HERE)
    extended, edges = graphs.extended_edges(placed, positions(rows)), graphs.cutoff_edges(placed, positions(rows), 10.0)
    local, far = model(placed, extended, edges)
    directed, d = torch.cat([edges.pairs, edges.pairs.flip(0)], 1), edges.length.repeat(2)
    encoder = model.encode_edges
    edge = encoder.second(encoder.first(d[:, None]).relu()) * encoder.of_kind(placed.kinds[edges.kind].repeat(2))
    h = model.global_atoms(placed.z)
    for ours in model.interactions:
        theirs = InteractionBlock(8, 8, 6, 10.0)
        layers = (theirs.mlp[0], theirs.mlp[2], theirs.conv.lin1, theirs.conv.lin2, theirs.lin)
        for layer, name in zip(layers, ("first", "second", "enter", "leave", "last"), strict=True):
            layer.load_state_dict(getattr(ours, name).state_dict())
        h = h + theirs(h, directed, d, edge)
    both = torch.cat([h[edges.pairs[0]] * h[edges.pairs[1]], edge[: len(edges.length)]], 1)
    expected = model.global_head.rest(model.global_head.first(both)).squeeze(1)[: edges.n_outside]
    torch.testing.assert_close(far, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(edges.pairs[:, edges.n_outside :], extended.pairs)  # all of it is within the cutoff
    of_local = (edges.kind > 0).repeat(2)
    h = model.local_atoms(placed.z)
    for k, ours in enumerate(model.convolutions):
        theirs = nn.GINEConv(deepcopy(ours.perceptron))  # it starts its perceptron anew
        theirs.nn.load_state_dict(ours.perceptron.state_dict())
        new = theirs(h, directed[:, of_local], edge[of_local])
        h = h + (new.relu() if k < 2 else new)
    both = torch.cat([h[edges.pairs[0]] * h[edges.pairs[1]], edge[: len(edges.length)]], 1)
    expected = model.local_head.rest(model.local_head.first(both)).squeeze(1)[edges.n_outside :]
    torch.testing.assert_close(local, expected, rtol=1e-4, atol=1e-4)


def test_a_perceptron_of_one_number_is_read_off_its_lines():
    torch.manual_seed(2)
    first, second = torch.nn.Linear(1, 16).double(), torch.nn.Linear(16, 5).double()
    with torch.no_grad():
        first.weight[3] = 0.0  # a unit without a bend
    length = torch.cat([torch.linspace(0, 20, 200), torch.tensor([0.0, 1e4])]).double()
    table, bends = piecewise_linear.perceptron_pieces(first, second)
    found = piecewise_linear.PairSegments.of(torch.bucketize(length, bends), length, table.shape[1]).evaluate(table)
    torch.testing.assert_close(found, second(first(length[:, None]).relu()))


def test_the_noise_schedules_are_the_published_ones():
    alphas = GeoDiff()._alphas()
    assert alphas[0] == pytest.approx(0.999995, abs=5e-7)
    assert diffusion.sigmas(alphas)[-1] == pytest.approx(12.168, abs=5e-4)
    assert diffusion.sigmas(GeoDiff(noise_levels=1000, beta_end=9e-3)._alphas())[-1] == pytest.approx(9.52, abs=5e-3)
    assert diffusion.sigmas(GeoDiff(noise_levels=1000)._alphas())[-1] < 2  # 1000 levels need another end


def test_levels_are_mirror_images_and_uniform():
    torch.manual_seed(0)
    levels = diffusion.antithetic_levels(2001, 50, HERE)
    assert len(levels) == 2001
    assert torch.equal(levels[1001:], 49 - levels[:1000])
    counts = torch.bincount(torch.cat([diffusion.antithetic_levels(500, 50, HERE) for _ in range(40)]), minlength=50)
    assert (counts - 400).abs().max() < 5 * (2 * 400) ** 0.5  # pairs: twice the variance


def test_the_published_model_has_as_many_parameters_as_its_widths_say():
    def layer(a, b):
        return a * b + b

    encoder = layer(1, 128) + layer(128, 128) + 100 * 128
    schnet = 100 * 128 + 6 * (4 * layer(128, 128) + 128 * 128)
    gin = 100 * 128 + 4 * 2 * layer(128, 128)
    heads = 2 * (layer(256, 128) + layer(128, 64) + layer(64, 1))
    count = sum(p.numel() for p in GeoDiff()._network().parameters())
    assert count == encoder + schnet + gin + heads == 764_290


def vectors_of(model, rows, x):
    placed = graphs.build_graphs(rows, HERE)
    edges = graphs.extended_edges(placed, x), graphs.cutoff_edges(placed, x, 10.0)
    return [diffusion.atom_vectors(placed, each, along) for each, along in zip(edges, model(placed, *edges), strict=True)]


def test_turning_and_moving_the_atoms_turns_the_vectors():
    rows, model = chains(30, 45), network(hidden=16)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * turn.det()
    before = vectors_of(model, rows, positions(rows))
    after = vectors_of(model, rows, positions(rows) @ turn.T + torch.tensor([3.0, -1.0, 2.0]))
    for one, other in zip(before, after, strict=True):
        assert one.abs().max() > 0.1
        assert (one @ turn.T - other).abs().max() < 1e-4
        assert (one - other).abs().max() > 0.05


def test_numbering_the_atoms_otherwise_numbers_the_vectors_so():
    row, model = chain(45), network(hidden=16)
    new = np.random.default_rng(0).permutation(45)  # atom k becomes atom new[k]
    ends = np.sort(new[row["edges"].values.astype(int)], axis=1).astype(np.uint16)
    old = np.argsort(new)
    renumbered = {
        "z": Ragged(row["z"].values[old], row["z"].offsets),
        "edges": Ragged(ends, row["edges"].offsets),
        "edge_type": row["edge_type"],
        "position": Ragged(row["position"].values[old], row["z"].offsets),
    }
    before, after = (vectors_of(model, each, positions(each)) for each in (row, renumbered))
    for one, other in zip(before, after, strict=True):
        assert (one[old] - other).abs().max() < 1e-4


def test_pairs_of_a_batch_are_those_of_each_molecule():
    rows = chains(5, 1, 2, 33, 7)
    placed = graphs.build_graphs(rows, HERE)
    expected, first = set(), 0
    for size in (5, 1, 2, 33, 7):
        expected |= {(first + i, first + j) for i, j in combinations(range(size), 2)}
        first += size
    assert set(zip(*placed.pairs.tolist(), strict=True)) == expected
    assert len(expected) == placed.pairs.shape[1]
    apart = placed.pairs[1] - placed.pairs[0]
    assert torch.equal(placed.extended.sort().values, (apart <= 3).nonzero()[:, 0])
    ends = zip(*placed.directions.target.view(2, -1).tolist(), strict=True)
    bonds = 1 + placed.row % 2  # of the chains made here
    assert placed.kinds[placed.kind].tolist() == [(0, bonds[i], 23, 24)[j - i] for i, j in ends]
    assert placed.row.tolist() == np.repeat(np.arange(5), (5, 1, 2, 33, 7)).tolist()


def test_an_atom_hears_its_32_nearest_neighbours_and_its_extended_graph():
    rows = chains(40, spread=1.5)
    x = 0.5 * positions(rows)
    edges = graphs.cutoff_edges(graphs.build_graphs(rows, HERE), x, 10.0)
    assert edges.length.max() <= 10
    expected = dense_edges(dense_kinds(rows), distances(x))
    found = torch.zeros_like(expected)
    for a, b in ((0, 1), (1, 0)):
        hearing = edges.receives[a] == 1
        found[edges.pairs[a, hearing], edges.pairs[b, hearing]] = True
    assert torch.equal(found, expected)
    assert 32 <= expected.sum(1).max() < 39


def fitted(family, rows, scratch=None, name="fit"):
    return family.fit(TrainingRows(((rows, None, 1.0),)), Context(RandomStream((name,)), scratch), None)


def test_the_same_stream_gives_the_same_model_and_another_does_not():
    rows = chains(6, 9, 12, 5, 8)
    first, again, other = (fitted(SMALL, rows, name=name) for name in ("a", "a", "b"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["local_head.first.weight"], other["local_head.first.weight"])


def test_a_fit_stopped_at_a_step_continues_to_the_same_bits(tmp_path, monkeypatch):
    rows = chains(6, 9, 12, 5, 8)
    family = replace(SMALL, training=replace(SMALL.training, checkpoint_seconds=0.0))
    whole, losses, calls = fitted(family, rows), diffusion.row_losses, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return losses(*arguments)

    monkeypatch.setattr(diffusion, "losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(family, rows, tmp_path)
    continued = fitted(family, rows, tmp_path)
    assert len(calls) == 7  # of 6 steps, one twice
    assert all(np.array_equal(whole[name], continued[name]) for name in whole)


def test_the_loss_of_a_fit_is_the_mean_over_atoms(monkeypatch):
    rows, seen = chains(6, 30), []
    losses = diffusion.row_losses
    monkeypatch.setattr(diffusion, "losses", lambda *arguments: seen.append(losses(*arguments)) or seen[-1])
    family = replace(SMALL, training=replace(SMALL.training, steps=1, batch_size=2))
    params = fitted(family, rows)
    assert params["training/loss"] == pytest.approx(seen[0].sum().item() / 36)


def helix(atoms, n):
    return select_rows(chain(atoms, spread=0.0), np.zeros(n, np.int64))


@pytest.fixture(scope="module")
def memorised():
    family = GeoDiff(hidden=32, filters=32, interactions=2, convolutions=3, noise_levels=500, beta_end=0.02)
    how = replace(family.training, steps=600, batch_size=16, learning_rate=4e-3, lr_schedule="cosine", ema_decay=0.98)
    family = replace(family, training=how)
    return family, fitted(family, helix(7, 16))


def test_a_model_of_one_conformer_reproduces_its_distances(memorised):
    family, params = memorised
    given = {**without_position(helix(7, 3)), "molecule": np.arange(3)}
    new = family.sample(params, 3, GeoDiffSampler(method="ddim", eta=0.0, step_size=1e-5), given, context("sample"))
    real = distances(positions(helix(7, 1)))
    assert list(new) == ["z", "edges", "edge_type", "molecule", "position", "retried"]
    for k in range(3):
        x = positions(select_rows(new, np.array([k])))
        assert (distances(x) - real).abs().max() < 0.05
        assert x.mean(0).abs().max() < 1e-4
    assert new["retried"].tolist() == [0, 0, 0]
    assert new["retried"].dtype == np.uint8


def test_the_denoising_loss_falls_and_is_the_same_each_time(memorised):
    family, params = memorised
    rows = helix(7, 70)
    assert isinstance(family, SupportsDenoisingLoss)
    loss = family.denoising_loss(params, rows, 6, context("loss"))
    assert loss.shape == (70, 6)
    assert np.array_equal(loss, family.denoising_loss(params, rows, 6, context("loss")))
    few = family.denoising_loss(params, helix(7, 5), 6, context("loss"))
    np.testing.assert_allclose(few, loss[:5], rtol=1e-4)
    barely = replace(family, training=replace(family.training, steps=1))
    untrained = barely.denoising_loss(fitted(barely, helix(7, 16)), rows, 6, context("loss"))
    assert loss.mean() < 0.1 * untrained.mean()
    assert DenoisingLoss.needs == (SupportsDenoisingLoss,)


def test_the_denoising_loss_of_rows_is_the_training_loss_at_their_noise():
    """All levels within a part: its mean over rows is the loss per atom."""
    rows = chains(6, 11, 8)
    params = fitted(SMALL, rows)
    found = SMALL.denoising_loss(params, rows, 2, context("loss"))
    model, sigmas = trainer.load_network(SMALL._network, params, context()), diffusion.sigmas(SMALL._alphas())
    rng = context("loss").stream.child("rows", 0, 1).generator()
    levels = (10 + 10 * rng.random(64)).astype(int)[:3]
    assert levels.min() >= 10
    noise = torch.from_numpy(rng.standard_normal((25, 3), np.float32))
    expected = losses_of(model, rows, noise, torch.from_numpy(sigmas[levels]).float())
    np.testing.assert_allclose(found[:, 1].mean(), expected.sum().item() / 25, rtol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "moves"),
    [(GeoDiffSampler(global_start_sigma=2.0, global_weight=0.3, step_size=2e-5, clip_global=0.01), "langevin"),
     (GeoDiffSampler(method="ddim", eta=0.7, step_size=1.0, steps=9, global_start_sigma=0.0), "ddim"),
     (GeoDiffSampler(method="ddim", eta=0.7, step_size=5e-5, global_start_sigma=0.0), "capped")],
)  # fmt: skip
def test_sampling_takes_the_published_steps(sampler, moves):
    row, model = chain(12), network(dtype=torch.float64)
    for head in (model.local_head, model.global_head):
        head.load_state_dict({name: tensor / 10 for name, tensor in head.state_dict().items()})
    placed, alphas = graphs.build_graphs(row, HERE), SMALL._alphas()
    noises = torch.from_numpy(np.random.default_rng(0).standard_normal((21, 12, 3)))
    with torch.no_grad():
        found = sampling.sample_positions(model, placed, alphas, sampler, lambda k: noises[k], None)
        p, kinds, levels = dict(model.named_parameters()), dense_kinds(row), range(19, 19 - (sampler.steps or 20), -1)
        sigma = np.sqrt((1 - alphas) / alphas)
        x, capped = noises[0] * sigma[-1], []
        for k, i in enumerate(levels):
            d = distances(x)
            hears = dense_edges(kinds, d)
            far, local = straight_network(p, placed.z, kinds, d, hears, smooth=True)
            v = straight_vectors(local, kinds > 0, x, d)
            if sigma[i] < sampler.global_start_sigma:
                w = straight_vectors(far, hears & (kinds == 0), x, d)
                v = v + sampler.global_weight * w * (sampler.clip_global / w.norm(dim=1, keepdim=True)).clamp(max=1)
            step = sampler.step_size * (sigma[i] / 0.01) ** 2
            if moves == "langevin":
                x = x + step / sigma[i] * v + (2 * step) ** 0.5 * noises[k + 1]
            else:
                a, b = alphas[i], alphas[i - 1] if i > levels[-1] else 1.0
                c1 = sampler.eta * ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5
                c2 = (1 - b - c1**2) ** 0.5
                longest = (step / sigma[i], (2 * step) ** 0.5)  # those of Langevin dynamics
                far, loud = 5 * (sigma[i] - c2 / b**0.5), 3 * c1 / b**0.5
                capped.append((far > longest[0], loud > longest[1]))
                x = x + min(far, longest[0]) * v + min(loud, longest[1]) * noises[k + 1]
            x = x - x.mean(0)
    assert moves == "langevin" or np.any(capped, axis=0).tolist() == [moves == "capped"] * 2  # both caps, or none
    assert 0.1 < x.abs().max() < 1e3
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-8)


def test_a_sampled_row_does_not_depend_on_the_rows_after_it():
    rows = chains(6, 9, 12, 5, 8)
    params, given = fitted(SMALL, rows), without_position(rows)
    whole = SMALL.sample(params, 5, GeoDiffSampler(), given, context("sample"))
    few = SMALL.sample(params, 2, GeoDiffSampler(), select_rows(given, np.arange(2)), context("sample"))
    np.testing.assert_allclose(few["position"].values, whole["position"][np.arange(2)].values, rtol=1e-3, atol=1e-3)
    same = SMALL.sample(params, 5, GeoDiffSampler(), given, context("sample"))
    assert np.array_equal(same["position"].values, whole["position"].values)


def test_a_second_block_has_noise_of_its_own():
    rows = select_rows(chain(5), np.zeros(66, np.int64))
    params = fitted(SMALL, rows)
    new = SMALL.sample(params, 66, GeoDiffSampler(), without_position(rows), context("sample"))
    first, later = (new["position"][np.array([k])].values for k in (0, 64))
    assert np.abs(first - later).max() > 0.1


@pytest.fixture(scope="module")
def exploding():
    """A model whose vectors are beyond all bounds for molecules with bromine."""
    rows = chains(6, 9, 5)
    rows["z"].values[7] = 35
    params = dict(fitted(SMALL, rows))
    params["local_atoms.weight"] = params["local_atoms.weight"].copy()
    params["local_atoms.weight"][35] = 1e12
    return rows, params


def test_a_row_that_is_not_finite_is_tried_again_and_says_so(exploding, monkeypatch):
    rows, params = exploding
    given, clips, conformers = without_position(rows), [], sampling.sample_positions
    monkeypatch.setattr(sampling, "conformers", lambda *arguments: clips.append(arguments[-1]) or conformers(*arguments))
    new = SMALL.sample(params, 3, GeoDiffSampler(), given, context("sample"))
    assert new["retried"].tolist() == [0, 1, 0]
    assert clips == [None, 20.0]  # the longest local vector of an atom
    assert np.isfinite(new["position"].values).all()
    calm = chains(6, 9, 5)
    others = SMALL.sample(params, 3, GeoDiffSampler(), without_position(calm), context("sample"))
    for k in (0, 2):
        np.testing.assert_allclose(
            new["position"][np.array([k])].values, others["position"][np.array([k])].values, rtol=1e-3, atol=1e-3
        )


def test_rows_that_are_never_finite_end_the_chain_and_are_counted(exploding):
    rows, params = exploding
    table = params["local_atoms.weight"].copy()
    table[35] = np.nan
    many = select_rows(rows, np.arange(3 * 30) % 3)  # more than a block
    with pytest.raises(ChainEndedError) as caught:
        SMALL.sample({**params, "local_atoms.weight": table}, 90, GeoDiffSampler(), without_position(many), context("sample"))
    assert caught.value.status == "diverged: 30 of 90 rows"


def test_single_atoms_and_molecules_without_bonds_are_no_obstacle():
    rows = chains(1, 1, 6, 1)
    rows["position"].values[:] += 1.0
    params = fitted(SMALL, rows)
    new = SMALL.sample(params, 4, GeoDiffSampler(), without_position(rows), context("sample"))
    assert np.abs(new["position"][np.array([0, 1, 3])].values).max() == 0
    assert np.isfinite(SMALL.denoising_loss(params, rows, 3, context())).all()
    alone = fitted(SMALL, chains(1, 1))
    assert float(alone["training/loss"].max()) == 0


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("z", None, "column 'z' is missing"),
        ("position", np.zeros((9, 2), np.float32), r"column 'position' is float32\[2\]; expected float32\[3\]"),
        ("edges", np.zeros((21, 2), np.int64), r"column 'edges' is int64\[2\]; expected uint16\[2\]"),
        ("z", np.full(9, 118, np.uint8), "column 'z' has a 118; expected numbers below 100"),
    ],
)
def test_rows_that_are_no_conformers_are_refused(column, values, sentence):
    rows = chain(9)
    rows = {name: each for name, each in rows.items() if name != column or values is not None}
    if values is not None:
        rows[column] = Ragged(values, np.array([0, len(values)]))
    with pytest.raises(DataError, match=sentence):
        fitted(SMALL, rows)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden", 1),
        ("filters", 0),
        ("interactions", 0),
        ("convolutions", 0),
        ("levels", 1),
        ("cutoff", 0.0),
        ("beta_end", 1.0),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=rf"family\.{setting}: got"):
        GeoDiff(**{setting: value})


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_another_precision_is_refused(precision):
    with pytest.raises(SpecError, match=rf"family\.training\.precision: got '{precision}'; expected 'float32'"):
        GeoDiff(training=TrainingSettings(precision=precision))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("method", "euler"),
        ("steps", 0),
        ("step", 0.0),
        ("clip", -1.0),
        ("global_weight", -0.1),
        ("global_below", -1.0),
        ("eta", 2),
    ],
)
def test_impossible_settings_of_sampling_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=rf"family\.sampler\.{setting}: got"):
        GeoDiffSampler(**{setting: value})


def test_more_steps_of_sampling_than_noise_levels_are_refused():
    spec = Spec(source="smiles", family=SMALL, sampler=GeoDiffSampler(steps=21), n=10)
    with pytest.raises(SpecError, match=r"family\.sampler\.steps: got 21; the model has 20 noise levels"):
        resolved_points(spec)


def test_a_generation_begins_from_another_models_arrays():
    rows = chains(6, 9)
    first = fitted(SMALL, rows)
    data = TrainingRows(((rows, None, 1.0),))
    slow = replace(SMALL, training=replace(SMALL.training, steps=1, learning_rate=1e-9))
    moved = slow.fit(data, context("fit"), first)
    np.testing.assert_allclose(moved["local_head.first.weight"], first["local_head.first.weight"], atol=1e-7)
    with pytest.raises(SpecError, match="start: array"):
        replace(SMALL, hidden=10).fit(data, context("fit"), first)


def test_training_takes_the_published_momentum():
    assert (GeoDiff().training.beta1, GeoDiff().training.max_grad_norm, GeoDiff().training.batch_size) == (0.95, 3e4, 32)
    rows = chains(6, 9)
    other = replace(SMALL, training=TrainingSettings(steps=6, batch_size=4, learning_rate=1e-3, lr_schedule="constant", max_grad_norm=3e4))
    assert not np.array_equal(fitted(SMALL, rows)["local_head.first.weight"], fitted(other, rows)["local_head.first.weight"])


PRESETS = {  # file of its source, real rows of it, highest noise in ångström, hidden, levels, COV's distance
    "gerstgrasser2024_geodiff": ("geom", 45000, 12.168, 128, 5000, 1.25),
    "gerstgrasser2024_geodiff_1000": ("geom", 45000, 9.52, 128, 1000, 1.25),
    "gerstgrasser2024_geodiff_qm9": ("qm9.npz", 45000, 12.168, 128, 5000, 0.5),
    "gerstgrasser2024_geodiff_small": ("some.sdf", 2670, 12.168, 32, 100, 1.25),
    "gerstgrasser2024_geodiff_qm9_small": ("qm9.npz", 4300, 12.168, 32, 100, 0.5),
}


@pytest.fixture(scope="module")
def promised(tmp_path_factory):
    """Files of as many molecules as the presets say, without coordinates that would be looked at before a run."""
    folder = tmp_path_factory.mktemp("promised")
    (folder / "geom").mkdir()
    summary = {f"C{i}": {"pickle_path": f"{i}.pickle", "uniqueconfs": 5 + i % 3} for i in range(9000)}
    (folder / "geom" / "summary_drugs.json").write_text(json.dumps(summary))
    smiles = np.full(45000, b"O")
    np.savez(folder / "qm9.npz", n_atoms=np.full(45000, 3), Z=np.full(135000, 1), R=np.zeros((135000, 3)), smiles=smiles)
    (folder / "some.sdf").write_text("".join(f">  <MOL_ID>\n{i // 5}\n$$$$\n" for i in range(2670)))
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_settings_and_enough_rows(preset, promised):
    pytest.importorskip("rdkit")
    file, rows, noise, hidden, levels, threshold = PRESETS[preset]
    spec = read_spec(preset, [f"source.path={promised / file}"])
    assert isinstance(spec.family, GeoDiff)
    assert diffusion.sigmas(spec.family._alphas())[-1] == pytest.approx(noise, abs=5e-3)
    assert (spec.family.hidden, spec.family.noise_levels, spec.family.smooth_cutoff) == (hidden, levels, "qm9" not in preset)
    assert {"replace", "accumulate", "accumulate_subsample"} <= {policy.name for policy in spec.policies}
    assert [metric.threshold for metric in spec.metrics if isinstance(metric, ConformerCoverage)] == [threshold]
    ((_, point),) = resolved_points(spec)
    assert point.source.n_rows() == rows
    assert point.n + point.holdout <= rows


def test_every_preset_is_tested():
    assert set(PRESETS) == {name for name in presets() if "geodiff" in name}


def test_replace_loses_what_accumulate_keeps(tmp_path):
    """Held-out loss of a small real set at generation 2 over generation 1, in every seed."""
    pytest.importorskip("rdkit")
    spec = Spec(
        source={"name": "smiles", "molecules": 12, "conformers": 2, "holdout_share": 0.34},
        family={
            "name": "geodiff", "hidden": 16, "filters": 16, "interactions": 1, "convolutions": 2, "noise_levels": 50, "beta_end": 0.2,
            "training": {"steps": 60, "batch_size": 8, "learning_rate": 3e-3, "lr_schedule": "cosine"},
        },
        sampler={"method": "ddim", "eta": 0.0, "step": 4e-6, "global_weight": 0.3},
        n=16, generations=2, seeds=3, policies=["replace", "accumulate"], metrics=["denoising_loss"],
    )  # fmt: skip
    curves = {label: found["denoising_loss"] for label, found in run(spec, tmp_path, threads=1).curves().items()}
    rise = {label: curve[:, 1] / curve[:, 0] for label, curve in curves.items()}
    assert rise["replace"].min() > 2
    assert rise["accumulate"].max() < 1.7
