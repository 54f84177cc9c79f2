"""A sweep on a Ray cluster of two nodes of one core each, on this machine, beside the same sweep on one core.

Prints how many times as fast the cluster is with fits of a second of processor time, and the seconds that it adds to a chain of
trivial steps, beside those of a Ray task that does nothing. Start it on a machine with three idle cores or more.
Run: python benchmarks/ray_overhead.py [--seconds 1] [--fits 24] [--chains 200]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import selfloop
from selfloop.columns import Columns, Params
from selfloop.component import Context, Family, Metric, Sampler
from selfloop.snapshots import Snapshot
from selfloop.types import TrainingRows


@dataclass(frozen=True, kw_only=True)
class Busy(Family):
    """The mean of the rows, after `seconds` of processor time."""

    name: ClassVar[str] = "busy"
    seconds: float = 1.0

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        started, matrix = time.process_time(), np.ones((64, 64))
        while time.process_time() < started + self.seconds:
            matrix = np.tanh(matrix @ matrix)
        return {"mean": np.mean(np.asarray(rows.all()["x"]), axis=0)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"x": params["mean"] + ctx.stream.generator().standard_normal((n, 1))}


@dataclass(frozen=True, kw_only=True)
class MeanSize(Metric):
    """The size of the mean."""

    name: ClassVar[str] = "mean_size"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"mean_size": float(np.abs(snap.params["mean"]).max())}


def measure(seconds: float, seeds: int, generations: int, on: str | None) -> float:
    """Seconds of a run of one chain per seed in a new store."""
    spec = selfloop.Spec(
        source={"name": "gaussian", "dim": 1}, family=Busy(seconds=seconds), metrics=(MeanSize(),), n=10, holdout=0,
        generations=generations, seeds=seeds, policies=("replace",), criteria=("any_increase",),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as store:
        started = time.perf_counter()
        selfloop.run(spec, store, threads=1, on=on)
        return time.perf_counter() - started


def start_cluster() -> Any:
    """Two nodes of one core, to which this process is connected, and a worker on each that has imported selfloop."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    measure(0.0, 4, 2, "auto")
    return cluster


def measure_ray(tasks: int) -> float:
    """Seconds of the clock that Ray itself takes per task that does nothing, on both nodes together."""
    import ray

    @ray.remote
    def do_nothing() -> None:
        pass

    ray.get([do_nothing.remote() for _ in range(10)])
    started = time.perf_counter()
    ray.get([do_nothing.remote() for _ in range(tasks)])
    return (time.perf_counter() - started) / tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="processor time of a fit")
    parser.add_argument("--fits", type=int, default=24)
    parser.add_argument("--chains", type=int, default=200, help="of trivial steps")
    options = parser.parse_args()
    cluster = start_cluster()
    import ray

    try:
        alone, both = (measure(options.seconds, options.fits // 2, 2, on) for on in (None, "auto"))
        print(f"{options.fits} fits of {options.seconds:g} s: one core {alone:.1f} s, nodes {both:.1f} s, x {alone / both:.2f}")
        alone, both, own = measure(0.0, options.chains, 2, None), measure(0.0, options.chains, 2, "auto"), measure_ray(1000)
        tasks = 2 * options.chains  # generation 1 is a task of its own
        added = (2 * both - alone) / tasks  # on two cores
        print(
            f"{tasks} trivial tasks: one core {alone:.1f} s, two nodes {both:.1f} s, {1000 * added:.1f} ms of a core added to"
        )
        print(f"each; a task of Ray that does nothing takes {1000 * own:.1f} ms")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
