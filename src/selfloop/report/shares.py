"""Shares of sampled rows by class or attribute, shares of symbols and tokens that are alive, and which of them vanish first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from selfloop.columns import Floats
from selfloop.metrics.image_modes import LOST_SHARE
from selfloop.metrics.true_parameters import alive_by_rarity
from selfloop.report.theme import describe_coordinates, format_count, format_interval
from selfloop.report.values import GROUPED, CategoryKind, CategoryShares, Extinction, ExtinctionOrder
from selfloop.result import Result
from selfloop.spec.point import Point
from selfloop.stats.intervals import mean_interval
from selfloop.theory.law import Kind
from selfloop.theory.laws import law_of_survival

CATEGORY_SHARE = re.compile("(?P<kind>class_share|attribute_share|symbols_alive|tokens_alive)_(?P<name>.+?)(?P<real>_real)?")
PREFIXES: Mapping[CategoryKind, str] = {
    "class": "class_share", "attribute": "attribute_share", "symbol": "symbols_alive", "token": "tokens_alive"
}  # fmt: skip
HALF = 0.5  # of the members of a rarity group


def category_shares(result: Result) -> Iterator[CategoryShares]:
    """The values named `class_share_3`, `symbols_alive_5` or, of real rows, `attribute_share_Smiling_real`."""
    for kind, prefix in PREFIXES.items():
        for point in result.points:
            curves = result.curves(point.coordinates)
            matches = map(CATEGORY_SHARE.fullmatch, dict.fromkeys(metric for curve in curves.values() for metric in curve))
            names = [match["name"] for match in matches if match and match["kind"] == prefix and not match["real"]]
            if all(name.isdecimal() for name in names):
                names.sort(key=int)  # they are out of order if the first seed's classifier lacks a class
            sampled, real = ([f"{prefix}_{name}{end}" for name in names] for end in ("", "_real"))
            measured = {label: curve for label, curve in curves.items() if curve.keys() >= {*sampled}}
            if names and measured:
                first = next(iter(measured.values()))
                yield CategoryShares(
                    kind=kind,
                    names=names,
                    coordinates=point.coordinates,
                    samples={label: _stack_shares(curve, sampled) for label, curve in measured.items()},
                    real=_stack_shares(first, real)[:, 0] if first.keys() >= {*real} else None,
                )


def _stack_shares(curves: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    """(seeds, generations, names); 0 for a name that a seed lacks if the seed has others."""
    shares = np.stack([curves[name] for name in names], axis=-1)
    return np.where(np.isfinite(shares).any(axis=-1, keepdims=True), np.nan_to_num(shares), shares)


def extinction_orders(result: Result) -> Iterator[ExtinctionOrder]:
    """When every class, attribute or rarity group vanished, for shares with real ones beside them."""
    points = {point.coordinates: point for point in result.points}
    for shares in category_shares(result):
        if shares.real is not None:
            yield ExtinctionOrder(
                noun="mode" if shares.kind == "class" else shares.kind,
                names=shares.names,
                real=shares.real,
                generations=shares.n_generations,
                policies={label: _extinction(shares.kind, values, shares.real) for label, values in shares.samples.items()},
                laws=_laws(points[shares.coordinates], shares.names) if shares.kind == "symbol" else {},
                coordinates=shares.coordinates,
            )


def _extinction(kind: str, values: Floats, real: Floats) -> Extinction:
    last = values.shape[1]
    if kind in GROUPED:
        generation, remains = _group_generation(values), values[:, -1] >= HALF * values[:, 0]
    else:
        alive = values >= LOST_SHARE * real[:, None]
        generation = np.where(alive.any(axis=1), last + 1.0 - np.argmax(alive[:, ::-1], axis=1), 1.0)
        remains = alive[:, -1]
    known = (real > 0) & ~np.isnan(values).any(axis=1) & ~np.isnan(generation)
    return Extinction(np.where(known, generation, np.nan), remains & known)


def _group_generation(alive: Floats) -> Floats:
    """Mean first generation without a member that generation 1 has, from alive shares (..., generations, groups).

    One more than the number of generations with it, if it never returns. NaN if generation 1 has no member.
    """
    first = alive[..., :1, :]
    survival = np.divide(alive, first, out=np.full_like(alive, np.nan), where=first > 0)
    return np.asarray(1 + survival.sum(axis=-2), np.float64)


def _laws(point: Point, names: Sequence[str]) -> dict[str, tuple[Kind, Floats]]:
    """The expected generation of extinction of every rarity group, for each policy with a law."""
    laws = dict[str, tuple[Kind, Floats]]()
    for label, policy in zip(point.spec.policy_labels(), point.spec.policies, strict=True):
        if (law := law_of_survival(point.spec.scenario(policy, point.n))) is not None:
            groups = alive_by_rarity("symbols", np.broadcast_to(law.shares, law.alive.shape), law.alive)
            laws[label] = law.kind, _group_generation(np.stack([groups[f"symbols_alive_{name}"] for name in names], axis=1))
    return laws


def order_sentences(order: ExtinctionOrder) -> Iterator[str]:
    """For each policy, whether rarer categories vanish first, at one point."""
    at = f" at {describe_coordinates(order.coordinates)}" if order.coordinates else ""
    whole = f"half of a rarity group of {order.noun}s" if order.noun in GROUPED else f"a {order.noun}".replace("a a", "an a")
    for label, extinction in order.policies.items():
        defined = (correlations := rank_correlations(order.real, extinction, order.generations))[~np.isnan(correlations)]
        if len(defined) < max(1, HALF * len(correlations)):
            few = f"{len(defined) or 'none'} of {format_count(len(correlations), 'seed')} lost {whole}"
            when = f"before or after a rarer one by generation {order.generations}"
            yield f"{label}{at}: {few} {when}: there is no extinction order."
            continue
        interval = mean_interval(defined)
        if interval.low is not None and interval.high is not None:
            interval = replace(interval, low=max(interval.low, -1.0), high=min(interval.high, 1.0))
        finding = f"whether rarer {order.noun}s vanish first is undecided"
        if (interval.low or 0) > 0 or (interval.high or 0) < 0:
            finding = f"{'rarer' if (interval.low or 0) > 0 else 'more frequent'} {order.noun}s vanish first"
        seeds = format_count(len(defined), "seed") + f" of {len(correlations)}" * (len(defined) < len(correlations))
        number = f"rank correlation of real share and generation of extinction {format_interval(interval)}, {seeds}"
        yield f"{label}{at}: {finding}: {number}."


def rank_correlations(real: Floats, extinction: Extinction, generations: int) -> Floats:
    """Kendall's tau-b of every seed, NaN if nothing vanished or all at once. What remains is tied."""
    from scipy.stats import kendalltau

    vanished = np.where(extinction.remains, generations + 1.0, extinction.generation)
    pairs = ((shares[known], when[known]) for shares, when, known in zip(real, vanished, ~np.isnan(vanished), strict=True))
    taus = [kendalltau(*pair).statistic if len(pair[0]) > 1 else np.nan for pair in pairs]
    return np.array(taus, np.float64)
