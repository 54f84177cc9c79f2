"""GeoDiff: a diffusion model of the conformers of molecular graphs (Xu et al. 2022, 2203.02923)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Array, Columns, Floats, Ints, Params, Ragged, select_rows
from selfloop.component import Context, Sampler, Source
from selfloop.errors import ChainEndedError, DataError, SettingError, SpecError
from selfloop.families.lazy import molecule_diffusion, molecule_networks, torch, trainer
from selfloop.families.nn.settings import NetworkFamily, TrainingSettings
from selfloop.rng import RandomStream
from selfloop.settings import PositiveFloat, Share
from selfloop.types import TrainingRows

MICRO_BATCH_FEATURES = 2048  # CPU micro-batch size in rows x pair features. Larger micro-batches no longer fit in cache.
TRIVIAL_PARTS = 9  # of the noise levels for the trivial model: as many draws as the metric's by default
RETRY_CLIP_LOCAL = 20.0  # longest local vector of an atom at a second attempt, as in the published code
COLUMN_TYPES = {"z": "uint8", "edges": "uint16[2]", "edge_type": "uint8", "position": "float32[3]"}
COLUMNS, GRAPH_COLUMNS = tuple(COLUMN_TYPES), ("z", "edges", "edge_type")
ROWS_PER_BLOCK = 64  # rows that are sampled, or measured, together
MoleculeRows = dict[str, Ragged]


def check_columns(rows: Columns, names: tuple[str, ...]) -> MoleculeRows:
    """The named columns; DataError if their types or values do not fit the family."""
    from selfloop.families.geodiff.network import KINDS

    for name in names:
        column = rows.get(name)
        type_name = "missing" if column is None else "not ragged"
        if isinstance(column, Ragged):
            type_name = f"{column.values.dtype}{list(column.values.shape[1:]) or ''}"
        if type_name != COLUMN_TYPES[name]:
            raise DataError(
                f"geodiff: column {name!r} is {type_name}; expected {COLUMN_TYPES[name]} per row. Use a source of molecules."
            )
    columns = {name: cast(Ragged, rows[name]) for name in names}
    for name in ("z", "edge_type"):
        if (highest := int(columns[name].values.max(initial=0))) >= KINDS:
            raise DataError(f"geodiff: column {name!r} contains {highest}; expected numbers below {KINDS}.")
    return columns


def split_blocks(rows: MoleculeRows) -> list[MoleculeRows]:
    blocks = np.split(np.arange(len(rows["z"])), range(ROWS_PER_BLOCK, len(rows["z"]), ROWS_PER_BLOCK))
    return [cast(MoleculeRows, select_rows(rows, block)) for block in blocks]


@dataclass(frozen=True, kw_only=True)
class GeoDiffSampler(Sampler):
    """Conformers from noise, one call of the network per noise level. The defaults are those of the published code.

    A row that is not finite at the end is sampled a second time with shorter local vectors. Its column `retried` is then 1.
    """

    name: ClassVar[str] = "geodiff"
    method: Annotated[
        Literal["langevin", "ddim", "least_squares"],
        "sampling step: Langevin dynamics, the faster generalized step, or damped least squares without noise, for few levels",
    ] = "langevin"
    steps: Annotated[int | None, Ge(1), "number of noise levels, from the highest; fewer than all leave noise; unset: all"] = (
        None
    )
    step_size: Annotated[PositiveFloat, "Langevin step at sigma = 0.01 ångström; it grows with sigma squared"] = 1e-6
    global_weight: Annotated[float, Ge(0), "weight of the global vectors; 0.3 is slightly better on QM9"] = 1.0
    global_start_sigma: Annotated[float, Ge(0), "sigma in ångström below which global vectors are used"] = 0.5
    clip_global: Annotated[PositiveFloat, "longest global vector of an atom"] = 1000.0
    eta: Annotated[Share, "share of fresh noise in a `ddim` step"] = 1.0

    def unused_settings(self) -> Mapping[str, str]:
        unused = {} if self.method == "ddim" else {"eta": "it belongs to method 'ddim'"}
        if self.method == "least_squares":
            unused["step_size"] = "`method` is 'least_squares'"
        if not self.global_weight:
            unused |= dict.fromkeys(("global_start_sigma", "clip_global"), "`global_weight` is 0")
        return unused


@dataclass(frozen=True, kw_only=True)
class GeoDiff(NetworkFamily):
    """A model of atom positions for molecular graphs. Widths, noise and training are those of the published Drugs model.

    Rows have ragged columns z, edges and edge_type (the extended graph) and position. Training differs from the published
    code's in one way: the learning rate does not fall when a validation loss stalls; it is constant or has a schedule.
    """

    name: ClassVar[str] = "geodiff"
    version: ClassVar[int] = 4
    required_columns: ClassVar[tuple[str, ...]] = COLUMNS
    default_metrics: ClassVar[tuple[str, ...]] = ("denoising_loss", "bond_length_distance", "clash_rate", "retry_rate")
    sampler_class: ClassVar[type[Sampler]] = GeoDiffSampler
    trivial_model: ClassVar[str] = "a model that finds no noise"
    metric_units: ClassVar[Mapping[str, str]] = {"denoising_loss": "weighted squared error per atom"}
    reference_model: ClassVar[str] = "GeoDiff's Drugs model (Xu et al. 2022)"

    hidden: Annotated[int, Ge(2), "features of an atom and of a pair of atoms"] = 128
    filters: Annotated[int, Ge(1), "features of the global encoder's convolutions"] = 128
    interactions: Annotated[int, Ge(1), "layers of the global encoder, SchNet"] = 6
    convolutions: Annotated[int, Ge(1), "layers of the local encoder, GIN with edge features"] = 4
    cutoff: Annotated[PositiveFloat, "ångström; beyond it only pairs of the extended graph interact"] = 10.0
    smooth_cutoff: Annotated[bool, "fade global messages towards the cutoff; the published QM9 model does not"] = True
    noise_levels: Annotated[int, Ge(2), "number of noise levels"] = 5000
    beta_start: Annotated[float, Interval(gt=0, lt=1), "noise variance added at the first level"] = 1e-7
    beta_end: Annotated[float, Interval(gt=0, lt=1), "noise variance added at the last level; 9e-3 suits 1000 levels"] = 2e-3
    training: Annotated[TrainingSettings, "how the network is trained"] = field(
        default_factory=lambda: TrainingSettings(
            batch_size=32, learning_rate=1e-3, lr_schedule="constant", beta1=0.95, max_grad_norm=3e4
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.precision != "float32":
            raise SettingError("training.precision", f"got {self.training.precision!r}; expected 'float32'. Remove the key.")
        if self.beta_end < self.beta_start:
            raise SettingError(
                "beta_end", f"got {self.beta_end}; expected beta_start ({self.beta_start}) or more. Change one of them."
            )

    def check(self, source: Source, sampler: Sampler) -> None:
        assert isinstance(sampler, GeoDiffSampler)
        if sampler.steps is not None and sampler.steps > self.noise_levels:
            raise SpecError(
                f"family.sampler.steps: got {sampler.steps}; expected at most family.noise_levels, {self.noise_levels}. "
                "Change one of them."
            )

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        """The trained network.

        A row's loss is the sum over its atoms divided by the mean number of atoms per row, so that its mean over rows is the
        published loss, the mean over atoms.
        """
        checked = TrainingRows(tuple(take._replace(rows=check_columns(take.rows, COLUMNS)) for take in rows.takes))
        device, weights = trainer.device(), rows.weights()
        sizes = np.diff(cast(Ragged, checked.select_columns("z").all()["z"]).offsets)
        mean_atoms = float(np.average(sizes, weights=weights))
        sigmas = torch.from_numpy(molecule_diffusion.sigmas(self._alphas())).float().to(device)
        with trainer.seed_torch(ctx.stream.child("init")):
            network = self._network()

        def loss(indices: torch.Tensor) -> torch.Tensor:
            minibatch = cast(MoleculeRows, checked.gather(indices.cpu().numpy()))
            position = torch.from_numpy(minibatch["position"].values).to(device)
            levels = molecule_diffusion.antithetic_levels(len(indices), self.noise_levels, device)
            noise, graph = torch.randn_like(position), molecule_networks.build_graphs(minibatch, device)
            return molecule_diffusion.row_losses(network, graph, position, noise, sigmas[levels]) / mean_atoms

        micro_batch = max(MICRO_BATCH_FEATURES // self.hidden, 1) if device.type == "cpu" else None
        return trainer.fit(trainer.TrainingProblem(network, loss, weights, micro_batch), self.training, ctx, init)

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        """The input graphs with new coordinates, ångström, and `retried`: 1 if a row needed a second attempt.

        Up to rounding, a row does not depend on the rows after it: noise is drawn per block of rows, step and atom.
        Raises ChainEndedError("diverged") if a row is not finite at the second attempt either; a warning counts such rows.
        """
        assert isinstance(sampler, GeoDiffSampler)
        graph = check_columns(inputs, GRAPH_COLUMNS)
        network = trainer.load_network(self._network, params, ctx, "sampling")
        blocks = [
            self._sample_block(network, rows, sampler, ctx.stream.child("rows", block))
            for block, rows in enumerate(split_blocks(graph))
        ]
        position, retried, failed = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
        if len(failed):
            warnings.warn(f"geodiff: coordinates of {len(failed)} of {n} rows are not finite.", stacklevel=1)
            raise ChainEndedError("diverged")
        return {**inputs, "position": Ragged(position, graph["z"].offsets), "retried": retried}

    def _sample_block(
        self, network: molecule_networks.GeoDiffNetwork, rows: MoleculeRows, sampler: GeoDiffSampler, stream: RandomStream
    ) -> tuple[Array, Array, Ints]:
        """Coordinates of the rows' atoms, 1 for rows with a second attempt, and indices of rows that are still not finite."""
        device, sizes = trainer.device(), np.diff(rows["z"].offsets)

        def attempt(name: str, indices: Ints, atoms: Ints, clip_local: float | None) -> tuple[Array, Ints]:
            def draw_noise(k: int) -> torch.Tensor:  # an atom's noise does not depend on the rows in this attempt
                noise = stream.child(name, k).generator().standard_normal((len(rows["z"].values), 3), np.float32)
                return torch.from_numpy(noise[atoms]).to(device)

            graph = molecule_networks.build_graphs(cast(MoleculeRows, select_rows(rows, indices)), device)
            with torch.inference_mode():
                x = molecule_diffusion.sample_positions(network, graph, self._alphas(), sampler, draw_noise, clip_local)
                return x.cpu().numpy(), indices[torch.unique(graph.row[~x.isfinite().all(1)]).cpu().numpy()]

        position, failed = attempt("first", np.arange(len(sizes)), np.arange(sizes.sum()), None)
        retried = np.isin(np.arange(len(sizes)), failed)
        if len(failed):
            atoms = np.flatnonzero(np.repeat(retried, sizes))
            position[atoms], failed = attempt("second", failed, atoms, RETRY_CLIP_LOCAL)
        return position, retried.astype(np.uint8), failed

    def denoising_loss(self, params: Params, rows: Columns, parts: int, ctx: Context) -> Floats:
        """Training loss of each row at one noise level in each of `parts` equal parts of all levels: (rows, parts).

        Its mean over rows is the mean over their atoms. Levels and noise are functions of the stream alone.
        """
        molecules, device = check_columns(rows, COLUMNS), trainer.device()
        network = trainer.load_network(self._network, params, ctx, "measuring")
        sigmas, losses = molecule_diffusion.sigmas(self._alphas()), np.empty((len(molecules["z"]), parts))
        for block, batch in enumerate(split_blocks(molecules)):
            graph, position = (
                molecule_networks.build_graphs(batch, device),
                torch.from_numpy(batch["position"].values).to(device),
            )
            in_block = slice(block * ROWS_PER_BLOCK, block * ROWS_PER_BLOCK + len(batch["z"]))
            for part in range(parts):
                rng = ctx.stream.child("rows", block, part).generator()
                levels = (part + rng.random(ROWS_PER_BLOCK)) / parts * self.noise_levels
                sigma = torch.from_numpy(sigmas[levels[: len(batch["z"])].astype(np.int64)]).float().to(device)
                noise = torch.from_numpy(rng.standard_normal(tuple(position.shape), np.float32)).to(device)
                with torch.inference_mode():
                    row_losses = molecule_diffusion.row_losses(network, graph, position, noise, sigma)
                losses[in_block, part] = row_losses.double().cpu().numpy()
        return np.asarray(losses / np.diff(molecules["z"].offsets).mean(), np.float64)

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        if metric != "denoising_loss":
            return None
        params = {name: np.zeros(tensor.shape, np.float32) for name, tensor in self._network().state_dict().items()}
        return float(self.denoising_loss(params, holdout, TRIVIAL_PARTS, ctx).mean())

    def _alphas(self) -> Floats:
        return molecule_diffusion.alphas(self.noise_levels, self.beta_start, self.beta_end)

    def _network(self) -> molecule_networks.GeoDiffNetwork:
        return molecule_networks.GeoDiffNetwork(
            self.hidden, self.filters, self.interactions, self.convolutions, self.cutoff, self.smooth_cutoff
        )
