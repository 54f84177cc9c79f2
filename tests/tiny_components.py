"""Tiny real components whose chains are stored, and readers of a store and of the command line for tests.

Run as a script it runs their experiment: `tiny_components.py STORE [WORKERS]`, rows to standard output.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from selfloop.columns import Columns, ColumnType, Params
from selfloop.component import Context, Family, Metric, Sampler, Source
from selfloop.engine.run import iter_measurements
from selfloop.errors import ChainEndedError
from selfloop.snapshots import Snapshot
from selfloop.spec.spec import Spec
from selfloop.types import TrainingRows

KDE = """
n = 10
holdout = 5
generations = 2
seeds = 2
policies = ["replace", "accumulate"]
[source]
name = "moons"
[family]
name = "kde"
"""  # a spec of an ensemble, which runs in a moment


@dataclass(frozen=True, kw_only=True)
class Ticks(Source):
    """Standard normal numbers."""

    name: ClassVar[str] = "ticks"
    rows: int | None = None  # None = unlimited

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64")}

    def n_rows(self) -> int | None:
        return self.rows

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": ctx.stream.child("rows").generator().standard_normal(first + n)[first:]}


@dataclass(frozen=True, kw_only=True)
class Mean(Family):
    """Normal numbers of unit variance around the mean of the rows; no model if the mean is above `limit`."""

    name: ClassVar[str] = "mean"
    limit: float = 1e9
    default_metrics: ClassVar[tuple[str, ...]] = ()

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        mean = np.average(np.asarray(rows.all()["x"]), weights=rows.weights())
        if mean > self.limit:
            raise ChainEndedError("too_high")
        return {"mean": np.asarray(mean)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"x": params["mean"] + ctx.stream.generator().standard_normal(n)}


@dataclass(frozen=True, kw_only=True)
class Level(Metric):
    """The model's mean and its newest row."""

    name: ClassVar[str] = "level"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"level": float(snap.params["mean"]), "last": float(np.asarray(snap.samples["x"])[-1])}


@dataclass(frozen=True, kw_only=True)
class Energy(Metric):
    """The model's squared mean."""

    name: ClassVar[str] = "energy"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"energy": float(snap.params["mean"]) ** 2}


FAMILIES: dict[str, tuple[Any, Any]] = {  # every built-in family that needs no files, and a source that it can model
    "gaussian": ("gaussian", {"name": "gaussian", "dim": 3}),
    "discrete": ({"name": "discrete", "n_symbols": 20}, "zipf"),
    "linear": ("linear", {"name": "linear", "dim": 3}),
    "glm": ("glm", {"name": "logistic", "dim": 2}),
    "kernel_ridge": ("kernel_ridge", {"name": "linear", "dim": 2}),
    "random_features": ({"name": "random_features", "width": 10}, {"name": "linear", "dim": 2}),
    "kde": ("kde", "moons"),
    "gmm": ("gmm", "moons"),
    "agents": ("agents", {"name": "gaussian", "dim": 2}),
    "ngram": ({"name": "ngram", "vocab": 257}, {"name": "expressions", "rows": 200, "noise": 0.2}),
    "vae": ({"name": "vae", "latent": 2, "hidden": 8, "training": {"steps": 3, "batch_size": 8}}, "digits"),
    "image_diffusion": ({"name": "image_diffusion", "channels": [8, 8], "training": {"steps": 3, "batch_size": 8}}, "digits"),
    "geodiff": (
        {"name": "geodiff", "hidden": 8, "interactions": 1, "convolutions": 1, "noise_levels": 20, "training": {"steps": 3}},
        {"name": "smiles", "molecules": 35, "conformers": 2},
    ),
    "transformer": (
        {"name": "transformer", "layers": 1, "hidden": 8, "heads": 2, "context": 16, "vocab": 300, "training": {"steps": 3}},
        "python_docs",
    ),
}
METRICS: dict[str, tuple[str, ...]] = {  # metrics that a family of FAMILIES can be measured with
    "gaussian": ("mean_error", "variance_ratio", "log_variance_ratio", "sd_ratio", "wasserstein", "kl_divergence", "nll"),
    "discrete": ("heterozygosity", "support_size", "unseen_mass", "complete_support", "symbol_survival"),
    "linear": ("excess_risk",),
    "glm": ("parameter_error", "log_loss", "accuracy", "predicted_share", "downstream"),
    "kernel_ridge": ("squared_error", "nll"),
    "random_features": ("squared_error", "nll"),
    "kde": ("nll", "second_moment"),
    "gmm": ("nll",),
    "agents": ("nll", "mean_error"),
    "ngram": ("nll", "cross_entropy", "correct_rate"),
    "vae": (
        "negative_elbo", "log_likelihood", "pixel_std", "pixel_frechet", "feature_frechet", "kernel_distance", "precision",
        "coverage", "training_distance", "feature_entropy", "feature_diversity", "modes",
    ),
    "image_diffusion": ("denoising_loss",),
    "geodiff": (
        "denoising_loss", "conformer_coverage", "conformer_diversity", "bond_length_distance", "clash_rate", "strain_energy",
        "retry_rate",
    ),
    "transformer": (
        "cross_entropy", "self_cross_entropy", "text_length", "vocabulary", "tail_mass", "token_survival", "distinct",
        "self_bleu", "repetition", "duplicate_rate", "memorization",
    ),
}  # fmt: skip
METRICS_WITH_FILES = {  # metrics that need a model or data of their own
    "contamination", "evaluation", "mauve", "text_frechet", "attributes", "long_documents", "marginal_distance",
    "correlation_distance", "detectability", "lost_categories", "record_distance",
}  # fmt: skip


def small_source(family: str) -> Source:
    """The source that FAMILIES pairs with a family."""
    from selfloop.spec.components import make_component

    source: Source = make_component("source", FAMILIES[family][1], "source")
    return source


def tiny_spec(**changes: Any) -> Spec:
    """Three policies of the tiny components, two seeds, four generations."""
    settings = {
        "source": Ticks(), "family": Mean(), "metrics": (Level(),), "n": 20, "holdout": 5, "generations": 4, "seeds": 2,
        "policies": ("replace", "accumulate", "accumulate_subsample"), "criteria": ("any_increase",),
    }  # fmt: skip
    return Spec(**{**settings, **changes})


def files_of(store: Path) -> list[Path]:
    """Every stored object and record, without those that were set aside."""
    paths = [path for part in ("objects", "records") for path in (store / part).rglob("*") if path.suffix != ".damaged"]
    return sorted(path for path in paths if path.is_file())


def objects_of(store: Path) -> dict[str, bytes]:
    """Every object's name and bytes."""
    return {path.name: path.read_bytes() for path in (store / "objects").rglob("*.safetensors")}


def results_of(store: Path) -> dict[str, Any]:
    """The result in every record, by key."""
    bodies = [json.loads(path.read_bytes())["body"] for path in (store / "records").rglob("*.json")]
    return {body["key"]: body["result"] for body in bodies}


class CommandResult(NamedTuple):
    """Output and exit code of a command."""

    code: int
    out: str
    err: str


def selfloop(*arguments: str | Path) -> CommandResult:
    """The command line, in this process."""
    from selfloop.commands.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["selfloop", *map(str, arguments)]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = before
    return CommandResult(code, out.getvalue(), err.getvalue())


def environment(**changes: str) -> dict[str, str]:
    """Environment of subprocesses: one thread each, without the user's store."""
    kept = {name: value for name, value in os.environ.items() if name != "SELFLOOP_STORE"}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def main() -> None:
    """Run the crash experiment."""
    store, workers = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    spec = tiny_spec(generations=25, seeds=4)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    rows = sorted(iter_measurements(spec, store, workers=workers, threads=1), key=lambda row: row[:4])
    sys.stdout.write("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()


def vae_spec(n: int, generations: int, steps: int, more: str = "") -> str:
    """The TOML of a tiny VAE on digits, two policies and two seeds; `more`: further lines of its training."""
    return f"""
n = {n}
holdout = 10
generations = {generations}
seeds = 2
policies = ["replace", "accumulate"]
metrics = ["pixel_std"]
criteria = ["any_increase"]
[source]
name = "digits"
[family]
name = "vae"
latent = 2
hidden = 8
[family.training]
steps = {steps}
batch_size = 8
{more}
"""
