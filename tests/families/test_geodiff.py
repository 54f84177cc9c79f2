"""GeoDiff: its fits, samples and losses, and what it refuses."""

import json
from dataclasses import replace

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
    without_position,
)

from selfloop import Spec, read_spec, run
from selfloop.columns import Ragged, select_rows
from selfloop.component import Context
from selfloop.errors import ChainEndedError, DataError, SettingError, SpecError
from selfloop.families.geodiff import diffusion
from selfloop.families.geodiff import network as graphs
from selfloop.families.geodiff.family import GeoDiff, GeoDiffSampler
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.metrics.molecules import ConformerCoverage
from selfloop.plugins import presets
from selfloop.protocols import SupportsDenoisingLoss
from selfloop.rng import RandomStream
from selfloop.types import RowTake, TrainingRows

SMALL = GeoDiff(hidden=8, filters=6, interactions=2, convolutions=3, noise_levels=20, beta_end=0.5)
SMALL = replace(SMALL, training=replace(SMALL.training, steps=6, batch_size=4))


def context(*path):
    return Context(RandomStream(path))


def fitted(family, rows, scratch=None, name="fit"):
    return family.fit(TrainingRows((RowTake(rows),)), Context(RandomStream((name,)), scratch), None)


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

    monkeypatch.setattr(diffusion, "row_losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(family, rows, tmp_path)
    continued = fitted(family, rows, tmp_path)
    assert len(calls) == 7  # of 6 steps, one twice
    assert all(np.array_equal(whole[name], continued[name]) for name in whole)


def test_the_loss_of_a_fit_is_the_mean_over_atoms(monkeypatch):
    rows, results = chains(6, 30), []
    losses = diffusion.row_losses
    monkeypatch.setattr(diffusion, "row_losses", lambda *arguments: results.append(losses(*arguments)) or results[-1])
    family = replace(SMALL, training=replace(SMALL.training, steps=1, batch_size=2))
    params = fitted(family, rows)
    assert params["training/loss"] == pytest.approx(results[0].sum().item() / 36)


def helix(atoms, n):
    return select_rows(chain(atoms, jitter=0.0), np.zeros(n, np.int64))


@pytest.fixture(scope="module")
def memorized():
    family = GeoDiff(hidden=32, filters=32, interactions=2, convolutions=3, noise_levels=500, beta_end=0.02)
    changes = replace(family.training, steps=300, batch_size=16, learning_rate=6e-3, lr_schedule="cosine", ema_decay=0.98)
    family = replace(family, training=changes)
    return family, fitted(family, helix(7, 16))


def test_a_model_of_one_conformer_samples_its_distances(memorized):
    family, params = memorized
    inputs = {**without_position(helix(7, 3)), "molecule": np.arange(3)}
    samples = family.sample(params, 3, GeoDiffSampler(method="ddim", eta=0.0, step_size=1e-5), inputs, context("sample"))
    real = distances(positions(helix(7, 1)))
    assert list(samples) == ["z", "edges", "edge_type", "molecule", "position", "retried"]
    for k in range(3):
        x = positions(select_rows(samples, np.array([k])))
        assert (distances(x) - real).abs().max() < 0.2
        assert x.mean(0).abs().max() < 1e-4
    assert samples["retried"].tolist() == [0, 0, 0]
    assert samples["retried"].dtype == np.uint8


def test_least_squares_sample_the_distances_in_a_tenth_of_the_levels_and_the_generalized_step_does_not(memorized):
    family, params = memorized
    coarse = replace(family, noise_levels=50, beta_end=0.2)  # as much noise; the network does not see the levels
    real, inputs = distances(positions(helix(7, 1))), without_position(helix(7, 20))
    shares = list[float]()
    for changes in ({"method": "least_squares"}, {"method": "ddim", "eta": 0.0, "step_size": 4e-6}):
        sampler = GeoDiffSampler(global_start_sigma=13.0, **changes)
        position = positions(coarse.sample(params, 20, sampler, inputs, context("sample"))).view(20, 7, 3)
        shares.append(np.mean([(distances(x) - real).abs().max() < 0.2 for x in position]))
    assert shares[0] >= 0.9 > 0.6 > shares[1]


def test_the_denoising_loss_falls_and_is_the_same_each_time(memorized):
    family, params = memorized
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


def test_the_denoising_loss_of_rows_is_the_training_loss_at_their_noise():
    """At all noise levels of one part. The mean over rows is the loss per atom."""
    rows = chains(6, 11, 8)
    params = fitted(SMALL, rows)
    losses = SMALL.denoising_loss(params, rows, 2, context("loss"))
    network, sigmas = trainer.load_network(SMALL._network, params, context(), "measuring"), diffusion.sigmas(SMALL._alphas())
    rng = context("loss").stream.child("rows", 0, 1).generator()
    levels = (10 + 10 * rng.random(64)).astype(int)[:3]
    assert levels.min() >= 10
    noise = torch.from_numpy(rng.standard_normal((25, 3), np.float32))
    expected = row_losses(network, rows, noise, torch.from_numpy(sigmas[levels]).float())
    np.testing.assert_allclose(losses[:, 1].mean(), expected.sum().item() / 25, rtol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "variant"),
    [(GeoDiffSampler(global_start_sigma=2.0, global_weight=0.3, step_size=2e-5, clip_global=0.01), "langevin"),
     (GeoDiffSampler(method="ddim", eta=0.7, step_size=1.0, steps=9, global_start_sigma=0.0), "ddim"),
     (GeoDiffSampler(method="ddim", eta=0.7, step_size=5e-5, global_start_sigma=0.0), "capped")],
)  # fmt: skip
def test_sampling_takes_the_published_steps(sampler, variant):
    row, network = chain(12), build_network(dtype=torch.float64)
    for head in (network.local_head, network.global_head):
        head.load_state_dict({name: tensor / 10 for name, tensor in head.state_dict().items()})
    graph, alphas = graphs.build_graphs(row, CPU), SMALL._alphas()
    noises = torch.from_numpy(np.random.default_rng(0).standard_normal((21, 12, 3)))
    with torch.no_grad():
        found = diffusion.sample_positions(network, graph, alphas, sampler, lambda k: noises[k], None)
        p, kinds, levels = dict(network.named_parameters()), dense_kinds(row), range(19, 19 - (sampler.steps or 20), -1)
        sigma = np.sqrt((1 - alphas) / alphas)
        x, capped = noises[0] * sigma[-1], []
        for k, i in enumerate(levels):
            d = distances(x)
            receives = dense_edges(kinds, d)
            far, local = formula_network(p, graph.z, kinds, d, receives, smooth=True)
            v = formula_vectors(local, kinds > 0, x, d)
            if sigma[i] < sampler.global_start_sigma:
                w = formula_vectors(far, receives & (kinds == 0), x, d)
                v = v + sampler.global_weight * w * (sampler.clip_global / w.norm(dim=1, keepdim=True)).clamp(max=1)
            step = sampler.step_size * (sigma[i] / 0.01) ** 2
            if variant == "langevin":
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
    assert variant == "langevin" or np.any(capped, axis=0).tolist() == [variant == "capped"] * 2  # both caps, or none
    assert 0.1 < x.abs().max() < 1e3
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-8)


def test_a_sampled_row_does_not_depend_on_the_rows_after_it():
    rows = chains(6, 9, 12, 5, 8)
    params, inputs = fitted(SMALL, rows), without_position(rows)
    whole = SMALL.sample(params, 5, GeoDiffSampler(), inputs, context("sample"))
    few = SMALL.sample(params, 2, GeoDiffSampler(), select_rows(inputs, np.arange(2)), context("sample"))
    np.testing.assert_allclose(few["position"].values, whole["position"][np.arange(2)].values, rtol=1e-3, atol=1e-3)
    same = SMALL.sample(params, 5, GeoDiffSampler(), inputs, context("sample"))
    assert np.array_equal(same["position"].values, whole["position"].values)


def test_a_second_block_has_other_noise():
    rows = select_rows(chain(5), np.zeros(66, np.int64))
    params = fitted(SMALL, rows)
    samples = SMALL.sample(params, 66, GeoDiffSampler(), without_position(rows), context("sample"))
    first, later = (samples["position"][np.array([k])].values for k in (0, 64))
    assert np.abs(first - later).max() > 0.1


@pytest.fixture(scope="module")
def exploding():
    """A model whose vectors overflow for molecules with bromine."""
    rows = chains(6, 9, 5)
    rows["z"].values[7] = 35
    params = dict(fitted(SMALL, rows))
    params["local_atoms.weight"] = params["local_atoms.weight"].copy()
    params["local_atoms.weight"][35] = 1e12
    return rows, params


def test_a_row_that_is_not_finite_is_sampled_again_and_marked(exploding, monkeypatch):
    rows, params = exploding
    inputs, clips, sample_positions = without_position(rows), [], diffusion.sample_positions
    monkeypatch.setattr(
        diffusion, "sample_positions", lambda *arguments: clips.append(arguments[-1]) or sample_positions(*arguments)
    )
    samples = SMALL.sample(params, 3, GeoDiffSampler(), inputs, context("sample"))
    assert samples["retried"].tolist() == [0, 1, 0]
    assert clips == [None, 20.0]  # the longest local vector of an atom
    assert np.isfinite(samples["position"].values).all()
    calm = chains(6, 9, 5)
    others = SMALL.sample(params, 3, GeoDiffSampler(), without_position(calm), context("sample"))
    for k in (0, 2):
        np.testing.assert_allclose(
            samples["position"][np.array([k])].values, others["position"][np.array([k])].values, rtol=1e-3, atol=1e-3
        )


def test_rows_that_are_never_finite_end_the_chain_and_a_warning_counts_them(exploding):
    rows, params = exploding
    table = params["local_atoms.weight"].copy()
    table[35] = np.nan
    many = select_rows(rows, np.arange(3 * 30) % 3)  # more than a block
    counted = pytest.warns(UserWarning, match="coordinates of 30 of 90 rows are not finite")
    with counted, pytest.raises(ChainEndedError, match=r"^diverged$"):
        SMALL.sample({**params, "local_atoms.weight": table}, 90, GeoDiffSampler(), without_position(many), context("sample"))


def test_single_atoms_can_be_fitted_and_sampled():
    rows = chains(1, 1, 6, 1)
    rows["position"].values[:] += 1.0
    params = fitted(SMALL, rows)
    samples = SMALL.sample(params, 4, GeoDiffSampler(), without_position(rows), context("sample"))
    assert np.abs(samples["position"][np.array([0, 1, 3])].values).max() == 0
    assert np.isfinite(SMALL.denoising_loss(params, rows, 3, context())).all()
    alone = fitted(SMALL, chains(1, 1))
    assert float(alone["training/loss"].max()) == 0


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("z", None, "column 'z' is missing"),
        ("position", np.zeros((9, 2), np.float32), r"column 'position' is float32\[2\]; expected float32\[3\]"),
        ("edges", np.zeros((21, 2), np.int64), r"column 'edges' is int64\[2\]; expected uint16\[2\]"),
        ("z", np.full(9, 118, np.uint8), "column 'z' contains 118; expected numbers below 100"),
    ],
)
def test_rows_that_are_not_conformers_are_refused(column, values, sentence):
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
        ("noise_levels", 1),
        ("cutoff", 0.0),
        ("beta_end", 1.0),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SettingError, match=rf"^{setting}: got"):
        GeoDiff(**{setting: value})


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_another_precision_is_refused(precision):
    with pytest.raises(SettingError, match=rf"^training\.precision: got '{precision}'; expected 'float32'"):
        GeoDiff(training=TrainingSettings(precision=precision))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("method", "euler"),
        ("steps", 0),
        ("step_size", 0.0),
        ("clip_global", -1.0),
        ("global_weight", -0.1),
        ("global_start_sigma", -1.0),
        ("eta", 2),
    ],
)
def test_impossible_settings_of_sampling_are_refused_by_name(setting, value):
    with pytest.raises(SettingError, match=rf"^{setting}: got"):
        GeoDiffSampler(**{setting: value})


def test_more_steps_of_sampling_than_noise_levels_are_refused():
    spec = Spec(source="smiles", family=SMALL, sampler=GeoDiffSampler(steps=21), n=10)
    with pytest.raises(SpecError, match=r"family\.sampler\.steps: got 21; expected at most family.noise_levels, 20"):
        spec.points()


def test_a_fit_can_continue_from_another_model():
    rows = chains(6, 9)
    first = fitted(SMALL, rows)
    data = TrainingRows((RowTake(rows),))
    slow = replace(SMALL, training=replace(SMALL.training, steps=1, learning_rate=1e-9))
    moved = slow.fit(data, context("fit"), first)
    np.testing.assert_allclose(moved["local_head.first.weight"], first["local_head.first.weight"], atol=1e-7)
    with pytest.raises(SpecError, match="init_from: array"):
        replace(SMALL, hidden=10).fit(data, context("fit"), first)


def test_training_uses_the_published_momentum():
    assert (GeoDiff().training.beta1, GeoDiff().training.max_grad_norm, GeoDiff().training.batch_size) == (0.95, 3e4, 32)
    rows = chains(6, 9)
    other = replace(
        SMALL, training=TrainingSettings(steps=6, batch_size=4, learning_rate=1e-3, lr_schedule="constant", max_grad_norm=3e4)
    )
    assert not np.array_equal(fitted(SMALL, rows)["local_head.first.weight"], fitted(other, rows)["local_head.first.weight"])


PRESETS = {  # file of its source, real rows of it, highest noise in ångström, hidden, levels, COV's distance
    "gerstgrasser2024_geodiff": ("geom", 45000, 12.168, 128, 5000, 1.25),
    "gerstgrasser2024_geodiff_1000": ("geom", 45000, 9.52, 128, 1000, 1.25),
    "gerstgrasser2024_geodiff_qm9": ("qm9.npz", 45000, 12.168, 128, 5000, 0.5),
    "gerstgrasser2024_geodiff_qm9_small": ("qm9.npz", 1752, 12.173, 32, 40, 0.5),
}


@pytest.fixture(scope="module")
def molecule_files(tmp_path_factory):
    """Files with the number of molecules that the presets need. Coordinates are not read before a run."""
    folder = tmp_path_factory.mktemp("molecule_files")
    (folder / "geom").mkdir()
    summary = {f"C{i}": {"pickle_path": f"{i}.pickle", "uniqueconfs": 5 + i % 3} for i in range(9000)}
    (folder / "geom" / "summary_drugs.json").write_text(json.dumps(summary))
    smiles = np.full(45000, b"O")
    np.savez(folder / "qm9.npz", n_atoms=np.full(45000, 3), Z=np.full(135000, 1), R=np.zeros((135000, 3)), smiles=smiles)
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_settings_and_enough_rows(preset, molecule_files):
    pytest.importorskip("rdkit")
    file, rows, noise, hidden, levels, threshold = PRESETS[preset]
    spec = read_spec(preset, [f"source.path={molecule_files / file}"])
    assert isinstance(spec.family, GeoDiff)
    assert diffusion.sigmas(spec.family._alphas())[-1] == pytest.approx(noise, abs=5e-3)
    assert (spec.family.hidden, spec.family.noise_levels, spec.family.smooth_cutoff) == (hidden, levels, "qm9" not in preset)
    assert {"replace", "accumulate"} <= {policy.name for policy in spec.policies}
    assert [metric.threshold for metric in spec.metrics if isinstance(metric, ConformerCoverage)] == [threshold]
    (point,) = spec.points()
    assert point.spec.source.n_rows() == rows
    assert point.n + point.holdout <= rows


def test_every_preset_is_tested():
    assert set(PRESETS) == {name for name in presets() if "geodiff" in name}


@pytest.mark.slow
def test_the_loss_rises_more_under_replace_than_under_accumulate(tmp_path):
    """Held-out loss of a small real set at generation 2 over generation 1, in every seed."""
    pytest.importorskip("rdkit")
    spec = Spec(
        source={"name": "smiles", "molecules": 12, "conformers": 2, "holdout_share": 0.34},
        family={
            "name": "geodiff", "hidden": 16, "filters": 16, "interactions": 1, "convolutions": 2, "noise_levels": 50,
            "beta_end": 0.2, "training": {"steps": 40, "batch_size": 8, "learning_rate": 6e-3, "lr_schedule": "cosine"},
        },
        sampler={"method": "ddim", "eta": 0.0, "step_size": 4e-6, "global_weight": 0.3},
        n=16, generations=2, seeds=2, policies=["replace", "accumulate"], metrics=["denoising_loss"],
    )  # fmt: skip
    curves = {label: by_metric["denoising_loss"] for label, by_metric in run(spec, tmp_path, threads=1).curves().items()}
    rise = {label: curve[:, 1] / curve[:, 0] for label, curve in curves.items()}
    assert rise["replace"].min() > 2
    assert (rise["replace"] > 1.5 * rise["accumulate"]).all()
