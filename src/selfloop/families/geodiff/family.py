"""GeoDiff: a diffusion model of the conformers of given molecular graphs (Xu et al. 2022, 2203.02923)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from selfloop.component import Context, Family, Sampler, Source
from selfloop.errors import ChainEndedError, DataError, SpecError
from selfloop.families.nn.settings import Training
from selfloop.rng import RandomStream
from selfloop.types import Array, Columns, Floats, Ints, Params, Ragged, TrainingRows

if TYPE_CHECKING:
    from torch import Tensor

    from selfloop.families.geodiff.network import Network

BLOCK = 64  # rows that are sampled, or measured, together
AT_ONCE = 2048  # features of a pair times rows that a processor trains on together: more leave what memory it keeps at hand
RETRY_CLIP = 20.0  # longest local vector of an atom at a second attempt, as in the published code
FORMS = {"z": "uint8", "edges": "uint16[2]", "edge_type": "uint8", "position": "float32[3]"}
GRAPH = ("z", "edges", "edge_type")
KINDS = 100  # rows of the network's tables of atomic numbers and of edge types
Method = Literal["langevin", "ddim"]
Rows = dict[str, Ragged]


@dataclass(frozen=True, kw_only=True)
class GeoDiffSampler(Sampler):
    """Conformers from noise, one call of the network per noise level; the defaults are the published code's.

    A row that is not finite in the end is sampled once more with shorter local vectors; its column `retried` says so.
    """

    name: ClassVar[str] = "geodiff"
    method: Method = "langevin"
    steps: int | None = (
        None  # only so many noise levels, the highest ones, as in the published code: what is left is noisy; None = all
    )
    step: float = 1e-6  # of Langevin dynamics where sigma is 0.01 ångström; it grows with sigma squared
    global_weight: float = 1.0  # of the global vectors; 0.3 is slightly better on QM9
    global_below: float = 0.5  # sigma in ångström: above it there are no global vectors
    clip: float = 1000.0  # longest global vector of an atom
    eta: float = 1.0  # share of fresh noise in a `ddim` step

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise SpecError(f"family.sampler.method: got {self.method!r}; expected one of {', '.join(get_args(Method))}.")
        if self.steps is not None and self.steps < 1:
            raise SpecError(f"family.sampler.steps: got {self.steps}; expected 1 or more.")
        for name in ("step", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise SpecError(f"family.sampler.{name}: got {getattr(self, name)}; expected a number above 0.")
        for name in ("global_weight", "global_below"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"family.sampler.{name}: got {getattr(self, name)}; expected 0 or more.")
        if not 0 <= self.eta <= 1:
            raise SpecError(f"family.sampler.eta: got {self.eta}; expected 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class GeoDiff(Family):
    """Widths, noise and training of the published Drugs model; new rows are coordinates for given graphs.

    Rows have ragged columns z, edges and edge_type (the extended graph) and position. Training differs from the published
    code's in one way: the learning rate is constant or falls along a curve, not whenever a validation loss stalls.
    """

    name: ClassVar[str] = "geodiff"
    version: ClassVar[int] = 3
    required_columns: ClassVar[tuple[str, ...]] = tuple(FORMS)
    default_metrics: ClassVar[tuple[str, ...]] = ("denoising_loss", "geometry", "clashes", "retried_share")
    sampler_class: ClassVar[type[Sampler]] = GeoDiffSampler
    metric_units: ClassVar[Mapping[str, str]] = {"denoising_loss": "weighted squared error per atom"}
    reference_model: ClassVar[str] = "GeoDiff's Drugs model (Xu et al. 2022)"

    hidden: int = 128  # features of an atom and of a pair of atoms
    filters: int = 128  # of the global encoder's convolutions
    interactions: int = 6  # layers of the global encoder, SchNet
    convolutions: int = 4  # layers of the local encoder, GIN with edge features
    cutoff: float = 10.0  # ångström: pairs further apart are seen along the extended graph alone
    smooth: bool = True  # do global messages fade towards the cutoff? The published QM9 model's do not
    levels: int = 5000  # of noise
    beta_start: float = 1e-7
    beta_end: float = 2e-3  # 9e-3 with 1000 levels
    training: Training = field(
        default_factory=lambda: Training(batch=32, learning_rate=1e-3, schedule="constant", beta1=0.95, clip=3e4)
    )

    def __post_init__(self) -> None:
        for name, lowest in (("hidden", 2), ("filters", 1), ("interactions", 1), ("convolutions", 1), ("levels", 2)):
            if (value := getattr(self, name)) < lowest:
                raise SpecError(f"family.{name}: got {value}; expected {lowest} or more.")
        if self.training.precision != "float32":
            raise SpecError(
                f"family.training.precision: got {self.training.precision!r}; expected 'float32', the only one it has."
            )
        if not 0 < self.cutoff < math.inf:
            raise SpecError(f"family.cutoff: got {self.cutoff}; expected a number above 0.")
        if not 0 < self.beta_start < 1:
            raise SpecError(f"family.beta_start: got {self.beta_start}; expected a number between 0 and 1.")
        if not self.beta_start <= self.beta_end < 1:
            raise SpecError(f"family.beta_end: got {self.beta_end}; expected family.beta_start ({self.beta_start}) to below 1.")

    def check(self, source: Source, sampler: Sampler) -> None:
        assert isinstance(sampler, GeoDiffSampler)
        if sampler.steps is not None and sampler.steps > self.levels:
            raise SpecError(f"family.sampler.steps: got {sampler.steps}; the model has {self.levels} noise levels.")

    def for_generation(self, t: int) -> GeoDiff:
        return replace(self, training=self.training.for_generation(t))

    def fit(self, data: TrainingRows, ctx: Context, start: Params | None) -> Params:
        """The trained network. A row's loss is the sum over its atoms, divided by the mean number of atoms of all rows: so
        its mean over rows is the published loss, the mean over atoms."""
        import torch

        from selfloop.families.geodiff import diffusion, graphs
        from selfloop.families.nn import trainer

        rows = TrainingRows(tuple((_checked(part, tuple(FORMS)), chosen, weight) for part, chosen, weight in data.parts))
        where, weights = trainer.device(), data.weights()
        sizes = [
            np.diff(_ragged(part)["z"].offsets)[slice(None) if chosen is None else chosen] for part, chosen, _ in rows.parts
        ]
        atoms = float(np.average(np.concatenate(sizes), weights=weights))
        sigmas = torch.from_numpy(diffusion.sigmas(self._alphas())).float().to(where)
        with trainer.seeded(ctx.stream.child("init")):
            model = self._network()

        def loss(indices: Tensor) -> Tensor:
            batch = _ragged(rows.gather(indices.cpu().numpy()))
            position = torch.from_numpy(batch["position"].values).to(where)
            levels = diffusion.antithetic(len(indices), self.levels, where)
            noise = torch.randn_like(position)
            return diffusion.losses(model, graphs.place(batch, where), position, noise, sigmas[levels]) / atoms

        at_once = max(AT_ONCE // self.hidden, 1) if where.type == "cpu" else None
        return trainer.fit(trainer.Task(model, loss, weights, at_once), self.training, ctx, start)

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        """The given rows with new coordinates, ångström, and whether a row needed a second attempt.

        Up to rounding, a row does not depend on the rows after it: noise is drawn per block of rows, step and atom.
        ChainEndedError when rows are not finite at the second attempt either; its status counts them.
        """
        from selfloop.families.nn import trainer

        assert isinstance(sampler, GeoDiffSampler)
        graph, model = _checked(inputs, GRAPH), trainer.loaded(self._network, params, ctx)
        blocks = [
            self._conformers(model, rows, sampler, ctx.stream.child("rows", block)) for block, rows in enumerate(_blocks(graph))
        ]
        position, retried, failed = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        if len(failed):
            raise ChainEndedError(f"diverged: {len(failed)} of {n} rows")
        return {**inputs, "position": Ragged(position, graph["z"].offsets), "retried": retried}

    def _conformers(
        self, model: Network, rows: Rows, sampler: GeoDiffSampler, stream: RandomStream
    ) -> tuple[Array, Array, Ints]:
        """Coordinates of the rows' atoms, which rows needed a second attempt, and which are not finite then either."""
        import torch

        from selfloop.families.geodiff import graphs, sampling
        from selfloop.families.nn import trainer

        where, sizes = trainer.device(), np.diff(rows["z"].offsets)

        def attempt(name: str, chosen: Ints, atoms: Ints, clip: float | None) -> tuple[Array, Ints]:
            def draw(k: int) -> Tensor:  # an atom's noise is the same whichever rows are tried
                noise = stream.child(name, k).generator().standard_normal((len(rows["z"].values), 3), np.float32)
                return torch.from_numpy(noise[atoms]).to(where)

            placed = graphs.place(_take(rows, chosen), where)
            with torch.inference_mode():
                x = sampling.conformers(model, placed, self._alphas(), sampler, draw, clip)
                return x.cpu().numpy(), chosen[sampling.failed(placed, x).cpu().numpy()]

        position, failed = attempt("first", np.arange(len(sizes)), np.arange(sizes.sum()), None)
        retried = np.isin(np.arange(len(sizes)), failed)
        if len(failed):
            atoms = np.flatnonzero(np.repeat(retried, sizes))
            position[atoms], failed = attempt("second", failed, atoms, RETRY_CLIP)
        return position, retried.astype(np.uint8), failed

    def denoising_loss(self, params: Params, rows: Columns, parts: int, ctx: Context) -> Floats:
        """Training loss of each row at one noise level in each of `parts` equal parts of all levels: (rows, parts).

        Its mean over rows is the mean over their atoms. Levels and noise are functions of the stream alone.
        """
        import torch

        from selfloop.families.geodiff import diffusion, graphs
        from selfloop.families.nn import trainer

        chosen, model, where = _checked(rows, tuple(FORMS)), trainer.loaded(self._network, params, ctx), trainer.device()
        sigmas, losses = diffusion.sigmas(self._alphas()), []
        for block, batch in enumerate(_blocks(chosen)):
            placed, position = graphs.place(batch, where), torch.from_numpy(batch["position"].values).to(where)
            for part in range(parts):
                rng = ctx.stream.child("rows", block, part).generator()
                levels = (part + rng.random(BLOCK)) / parts * self.levels
                sigma = torch.from_numpy(sigmas[levels[: len(batch["z"])].astype(np.int64)]).float().to(where)
                noise = torch.from_numpy(rng.standard_normal(tuple(position.shape), np.float32)).to(where)
                with torch.inference_mode():
                    losses.append(diffusion.losses(model, placed, position, noise, sigma).double().cpu().numpy())
        by_block = [np.stack(losses[k : k + parts], 1) for k in range(0, len(losses), parts)]
        return np.asarray(np.concatenate(by_block) / np.diff(chosen["z"].offsets).mean(), np.float64)

    def _alphas(self) -> Floats:
        from selfloop.families.geodiff import diffusion

        return diffusion.alphas(self.levels, self.beta_start, self.beta_end)

    def _network(self) -> Network:
        from selfloop.families.geodiff.network import Network

        return Network(self.hidden, self.filters, self.interactions, self.convolutions, self.cutoff, self.smooth)


def _checked(rows: Columns, names: tuple[str, ...]) -> Rows:
    """The columns of those names; DataError when they are not what the family models."""
    for name in names:
        column = rows.get(name)
        found = "missing" if column is None else "not ragged"
        if isinstance(column, Ragged):
            values = column.values
            found = f"{values.dtype}{list(values.shape[1:]) or ''}"
        if found != FORMS[name]:
            raise DataError(f"geodiff: column {name!r} is {found}; expected {FORMS[name]} per row. Use a source of molecules.")
    chosen = {name: column for name in names if isinstance(column := rows[name], Ragged)}
    for name in ("z", "edge_type"):
        if (highest := int(chosen[name].values.max(initial=0))) >= KINDS:
            raise DataError(f"geodiff: column {name!r} has a {highest}; expected numbers below {KINDS}.")
    return chosen


def _ragged(rows: Columns) -> Rows:
    return {name: column for name, column in rows.items() if isinstance(column, Ragged)}


def _take(rows: Rows, indices: Ints) -> Rows:
    return {name: column[indices] for name, column in rows.items()}


def _blocks(rows: Rows) -> list[Rows]:
    """The rows in blocks of `BLOCK`."""
    n = len(rows["z"])
    return [_take(rows, np.arange(first, min(first + BLOCK, n))) for first in range(0, n, BLOCK)]
