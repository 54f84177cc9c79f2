"""GeoDiff's network, graphs and loss against the formulas written out, torch-geometric's layers and symmetries."""

from copy import deepcopy
from itertools import combinations

import numpy as np
import pytest
import torch
from geodiff_formulas import (
    CPU,
    build_network,
    chain,
    chains,
    dense_edges,
    dense_kinds,
    distances,
    formula_network,
    formula_vectors,
    positions,
    row_losses,
)

from selfloop.columns import Ragged, select_rows
from selfloop.families.geodiff import diffusion
from selfloop.families.geodiff import network as graphs
from selfloop.families.geodiff.family import GeoDiff
from selfloop.families.geodiff.network import PairSegments, perceptron_pieces


def formula_loss(p, row, noise, sigma, smooth=True, both=True, scale=None):
    x, z, kinds = positions(row).to(noise.dtype), row["z"].values, dense_kinds(row)
    noisy = x + sigma * noise
    d = distances(noisy)
    receives = dense_edges(kinds, d)
    target = (distances(x) - d) / (scale or sigma)
    far, local = formula_network(p, torch.from_numpy(z).long(), kinds, d, receives, smooth)
    beyond, extended = receives & (kinds == 0), kinds > 0
    error_far = formula_vectors(far, beyond, noisy, d, both) - formula_vectors(target, beyond, noisy, d, both)
    error_local = formula_vectors(local, extended, noisy, d, both) - formula_vectors(target, extended, noisy, d, both)
    return 2 * error_far.square().sum() + 5 * error_local.square().sum()


def draw_noise(rows, sigmas, seed=3, dtype=torch.float64):
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(positions(rows).shape)).to(dtype)
    return noise, torch.tensor(sigmas, dtype=dtype)


def formula_losses(network, rows, noise, sigma, **changes):
    p = dict(network.named_parameters())
    ends = rows["z"].offsets
    each = [select_rows(rows, np.array([k])) for k in range(len(rows["z"]))]
    return torch.stack(
        [formula_loss(p, row, noise[ends[k] : ends[k + 1]], sigma[k].item(), **changes) for k, row in enumerate(each)]
    )


SIZES, SIGMAS = (9, 2, 40, 14), (0.05, 1.0, 0.4, 6.0)  # 40 atoms within 10 ångström: not all exchange messages


@pytest.mark.parametrize("smooth", [True, False])
def test_the_loss_agrees_with_the_formulas(smooth):
    rows, network = chains(*SIZES, jitter=1.5), build_network(smooth, dtype=torch.float64)
    noise, sigma = draw_noise(rows, SIGMAS)
    expected = formula_losses(network, rows, noise, sigma, smooth=smooth)
    torch.testing.assert_close(row_losses(network, rows, noise, sigma), expected, rtol=1e-9, atol=0)
    single = build_network(smooth)
    losses = row_losses(single, rows, noise.float(), sigma.float()).double()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("wrong", [{"both": False}, {"scale": 1.0}, {"smooth": False}])
def test_the_test_of_the_loss_would_notice_another_formula(wrong):
    rows, network = chains(9, 14), build_network(dtype=torch.float64)
    noise, sigma = draw_noise(rows, (0.3, 2.0))
    expected = formula_losses(network, rows, noise, sigma, **wrong)
    assert (row_losses(network, rows, noise, sigma) / expected - 1).abs().min() > 1e-3


def test_the_gradients_agree_with_the_formulas():
    rows, network = chains(9, 14, 36), build_network(dtype=torch.float64)
    noise, sigma = draw_noise(rows, (0.3, 2.0, 0.5))
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(row_losses(network, rows, noise, sigma).sum(), parameters.values())
    expected = torch.autograd.grad(formula_losses(network, rows, noise, sigma).sum(), parameters.values())
    for name, mine, theirs in zip(parameters, gradients, expected, strict=True):
        scale = theirs.abs().max()
        assert scale > 0, name
        if name == "global_atoms.weight":  # clipped to norm 10, which has no derivative in the package
            continue
        torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=1e-9, msg=name)


@pytest.mark.slow  # importing torch-geometric takes seconds
def test_the_network_agrees_with_torch_geometrics_layers():
    """The published code's layers, from torch-geometric, on edges in both directions."""
    nn = pytest.importorskip("torch_geometric.nn")
    from torch_geometric.nn.models.schnet import InteractionBlock

    rows, network = chains(12, 20), build_network()
    graph = graphs.build_graphs(rows, CPU)
    extended, edges = graphs.extended_edges(graph, positions(rows)), graphs.cutoff_edges(graph, positions(rows), 10.0)
    local, far = network(graph, extended, edges)
    directed, d = torch.cat([edges.pairs, edges.pairs.flip(0)], 1), edges.length.repeat(2)
    encoder = network.encode_edges
    edge = encoder.second(encoder.first(d[:, None]).relu()) * encoder.of_kind(graph.kinds[edges.kind].repeat(2))
    h = network.global_atoms(graph.z)
    for ours in network.interactions:
        theirs = InteractionBlock(8, 8, 6, 10.0)
        layers = (theirs.mlp[0], theirs.mlp[2], theirs.conv.lin1, theirs.conv.lin2, theirs.lin)
        for layer, name in zip(layers, ("first", "second", "enter", "leave", "last"), strict=True):
            layer.load_state_dict(getattr(ours, name).state_dict())
        h = h + theirs(h, directed, d, edge)
    both = torch.cat([h[edges.pairs[0]] * h[edges.pairs[1]], edge[: len(edges.length)]], 1)
    expected = network.global_head.rest(network.global_head.first(both)).squeeze(1)[: edges.n_outside]
    torch.testing.assert_close(far, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(edges.pairs[:, edges.n_outside :], extended.pairs)  # the extended graph is within the cutoff
    of_local = (edges.kind > 0).repeat(2)
    h = network.local_atoms(graph.z)
    for k, ours in enumerate(network.convolutions):
        theirs = nn.GINEConv(deepcopy(ours.perceptron))  # it initializes its perceptron again
        theirs.nn.load_state_dict(ours.perceptron.state_dict())
        new = theirs(h, directed[:, of_local], edge[of_local])
        h = h + (new.relu() if k < 2 else new)
    both = torch.cat([h[edges.pairs[0]] * h[edges.pairs[1]], edge[: len(edges.length)]], 1)
    expected = network.local_head.rest(network.local_head.first(both)).squeeze(1)[edges.n_outside :]
    torch.testing.assert_close(local, expected, rtol=1e-4, atol=1e-4)


def test_the_pieces_of_a_perceptron_give_its_output():
    torch.manual_seed(2)
    first, second = torch.nn.Linear(1, 16).double(), torch.nn.Linear(16, 5).double()
    with torch.no_grad():
        first.weight[3] = 0.0  # a unit without a breakpoint
    length = torch.cat([torch.linspace(0, 20, 200), torch.tensor([0.0, 1e4])]).double()
    pieces, breakpoints = perceptron_pieces(first, second)
    segments = PairSegments.of(torch.bucketize(length, breakpoints), length, pieces.shape[1])
    torch.testing.assert_close(segments.evaluate(pieces), second(first(length[:, None]).relu()))


def test_the_noise_schedules_are_the_published_ones():
    alphas = GeoDiff()._alphas()
    assert alphas[0] == pytest.approx(0.999995, abs=5e-7)
    assert diffusion.sigmas(alphas)[-1] == pytest.approx(12.168, abs=5e-4)
    assert diffusion.sigmas(GeoDiff(noise_levels=1000, beta_end=9e-3)._alphas())[-1] == pytest.approx(9.52, abs=5e-3)
    assert diffusion.sigmas(GeoDiff(noise_levels=1000)._alphas())[-1] < 2  # 1000 levels need another end


def test_noise_levels_are_mirror_images_and_uniform():
    torch.manual_seed(0)
    levels = diffusion.antithetic_levels(2001, 50, CPU)
    assert len(levels) == 2001
    assert torch.equal(levels[1001:], 49 - levels[:1000])
    counts = torch.bincount(torch.cat([diffusion.antithetic_levels(500, 50, CPU) for _ in range(40)]), minlength=50)
    assert (counts - 400).abs().max() < 5 * (2 * 400) ** 0.5  # pairs: twice the variance


def test_the_default_network_has_the_published_number_of_parameters():
    def layer(a, b):
        return a * b + b

    encoder = layer(1, 128) + layer(128, 128) + 100 * 128
    schnet = 100 * 128 + 6 * (4 * layer(128, 128) + 128 * 128)
    gin = 100 * 128 + 4 * 2 * layer(128, 128)
    heads = 2 * (layer(256, 128) + layer(128, 64) + layer(64, 1))
    count = sum(p.numel() for p in GeoDiff()._network().parameters())
    assert count == encoder + schnet + gin + heads == 764_290


def find_vectors(network, rows, x):
    graph = graphs.build_graphs(rows, CPU)
    edges = graphs.extended_edges(graph, x), graphs.cutoff_edges(graph, x, 10.0)
    return [
        diffusion.atom_vectors(graph, edge_set, coefficients)
        for edge_set, coefficients in zip(edges, network(graph, *edges), strict=True)
    ]


def test_a_rotation_and_a_shift_of_the_atoms_rotate_the_vectors():
    rows, network = chains(30, 45), build_network(hidden=16)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    rotation = rotation * rotation.det()
    before = find_vectors(network, rows, positions(rows))
    after = find_vectors(network, rows, positions(rows) @ rotation.T + torch.tensor([3.0, -1.0, 2.0]))
    for one, other in zip(before, after, strict=True):
        assert one.abs().max() > 0.1
        assert (one @ rotation.T - other).abs().max() < 1e-4
        assert (one - other).abs().max() > 0.05


def test_a_permutation_of_the_atoms_permutes_the_vectors():
    row, network = chain(45), build_network(hidden=16)
    new = np.random.default_rng(0).permutation(45)  # atom k becomes atom new[k]
    ends = np.sort(new[row["edges"].values.astype(int)], axis=1).astype(np.uint16)
    old = np.argsort(new)
    renumbered = {
        "z": Ragged(row["z"].values[old], row["z"].offsets),
        "edges": Ragged(ends, row["edges"].offsets),
        "edge_type": row["edge_type"],
        "position": Ragged(row["position"].values[old], row["z"].offsets),
    }
    before, after = (find_vectors(network, rows, positions(rows)) for rows in (row, renumbered))
    for one, other in zip(before, after, strict=True):
        assert (one[old] - other).abs().max() < 1e-4


def test_pairs_of_a_minibatch_are_those_of_each_molecule():
    rows = chains(5, 1, 2, 33, 7)
    graph = graphs.build_graphs(rows, CPU)
    expected, first = set(), 0
    for size in (5, 1, 2, 33, 7):
        expected |= {(first + i, first + j) for i, j in combinations(range(size), 2)}
        first += size
    assert set(zip(*graph.pairs.tolist(), strict=True)) == expected
    assert len(expected) == graph.pairs.shape[1]
    apart = graph.pairs[1] - graph.pairs[0]
    assert torch.equal(graph.extended.sort().values, (apart <= 3).nonzero()[:, 0])
    ends = zip(*graph.directions.target.view(2, -1).tolist(), strict=True)
    bonds = 1 + graph.row % 2  # of `chains`
    assert graph.kinds[graph.kind].tolist() == [(0, bonds[i], 23, 24)[j - i] for i, j in ends]
    assert graph.row.tolist() == np.repeat(np.arange(5), (5, 1, 2, 33, 7)).tolist()


def test_an_atom_receives_messages_from_its_32_nearest_neighbors_and_its_extended_graph():
    rows = chains(40, jitter=1.5)
    x = 0.5 * positions(rows)
    edges = graphs.cutoff_edges(graphs.build_graphs(rows, CPU), x, 10.0)
    assert edges.length.max() <= 10
    expected = dense_edges(dense_kinds(rows), distances(x))
    receives = torch.zeros_like(expected)
    for a, b in ((0, 1), (1, 0)):
        mask = edges.receives[a] == 1
        receives[edges.pairs[a, mask], edges.pairs[b, mask]] = True
    assert torch.equal(receives, expected)
    assert 32 <= expected.sum(1).max() < 39


def test_a_least_squares_step_solves_the_damped_normal_equations_of_each_row():
    rows = chains(6, 9, 4)
    graph = graphs.build_graphs(rows, CPU)
    x = positions(rows).double()
    edges = graphs.extended_edges(graph, x), graphs.cutoff_edges(graph, x, 10.0)
    count = edges[1].n_outside
    vectors = torch.from_numpy(np.random.default_rng(0).standard_normal((19, 3)))
    moves = diffusion.least_squares(graph, vectors, [(edges[0], len(edges[0].length), 1.0), (edges[1], count, 0.3)])
    pairs = torch.cat([edges[0].pairs, edges[1].pairs[:, :count]], 1)
    weights = torch.cat([torch.full((len(edges[0].length),), 2.0), torch.full((count,), 0.6)]).double()
    jacobian = torch.autograd.functional.jacobian(lambda y: graphs.pair_lengths(y, pairs), x).reshape(len(weights), 57)
    matrix = jacobian.T @ (weights[:, None] * jacobian) + torch.eye(57, dtype=torch.float64)
    torch.testing.assert_close(moves, torch.linalg.solve(matrix, vectors.flatten()).view(19, 3))
