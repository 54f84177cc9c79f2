"""In what a policy differs from its control: every measured metric whose best value is known, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np

from selfloop.audit.answer import Aspect, Detail
from selfloop.columns import Floats
from selfloop.result import Result
from selfloop.stats.comparison import as_risk, signs
from selfloop.stats.intervals import at_look, mean_interval

ASPECTS: Mapping[Aspect, tuple[str, ...]] = {
    "diversity": (
        "pixel_std", "feature_entropy", "feature_diversity", "distinct", "self_bleu", "variance_ratio", "log_variance_ratio",
        "sd_ratio", "heterozygosity", "coverage", "conformer_diversity", "vocabulary",
    ),
    "tails": (
        "tail_mass", "support_size", "unseen_mass", "complete_support", "symbol_survival", "token_survival", "lost_categories",
        "second_moment",
    ),
    "duplicates": ("duplicate_rate", "memorization", "repetition", "training_distance", "record_distance", "contamination"),
    "classes": ("predicted_share", "attributes", "modes", "accuracy"),
    "loss": (
        "nll", "log_loss", "cross_entropy", "negative_elbo", "denoising_loss", "log_likelihood", "squared_error", "excess_risk",
        "mean_error", "parameter_error", "evaluation", "kl_divergence", "wasserstein",
    ),
    "quality": (
        "pixel_frechet", "feature_frechet", "kernel_distance", "precision", "conformer_coverage", "bond_length_distance",
        "clash_rate", "strain_energy", "correct_rate", "mauve", "text_frechet", "downstream", "marginal_distance",
        "correlation_distance", "detectability", "self_cross_entropy", "perplexity",
    ),
    "length": ("text_length", "long_documents"),
}  # fmt: skip


def aspect_of(metric: str) -> Aspect:
    """What a metric or its secondary value is about: that of the longest metric name that it begins with."""
    names = {name: aspect for aspect, metrics in ASPECTS.items() for name in metrics if metric.startswith(name)}
    return names[max(names, key=len)] if names else "other"


def read_details(result: Result, policy: str, control: str, bound: float, look: int) -> tuple[Detail, ...]:
    """Every metric of known direction at the last generation; `look` (from 1) spends the false answers over the looks.

    "same": both limits of the difference are within the bound, a share of the control's mean, of a metric with a natural zero.
    """
    spec, curves = result.spec, result.curves()
    directions = spec.directions()
    names = [name for name in directions if name in curves[policy].keys() & curves[control].keys()]
    titles = {m.name: (m.title, m.unit) for m in spec.metrics}
    for m in spec.metrics:
        titles |= {name: (title, m.secondary_units.get(name, m.unit)) for name, title in m.secondary_titles.items()}
    last = {name: [curves[label][name][:, -1:] for label in (policy, control)] for name in names}
    last = {name: pair for name, pair in last.items() if not np.isnan(np.hstack(pair)).any()}
    rises = [
        np.subtract(*(as_risk({**curves[label], name: curves[label][name]}, name, directions[name])[:, -1:]
                      for label in (policy, control)))
        for name in last
    ]  # fmt: skip
    with at_look(look):
        worse = [float(sign[0]) for sign in signs(rises)] if rises else []
    details = []
    for (name, pair), sign in zip(last.items(), worse, strict=True):
        title, unit = titles.get(name, ("", ""))
        difference = mean_interval((pair[0] - pair[1])[:, 0])
        margin = bound * abs(float(pair[1].mean())) if name in spec.positive_metrics() else 0.0
        is_same = difference.low is not None and difference.high is not None and max(-difference.low, difference.high) < margin
        details.append(
            Detail(
                metric=name, title=title or name.replace("_", " "), unit=unit, aspect=aspect_of(name),
                policy=float(pair[0].mean()), control=float(pair[1].mean()), difference=difference,
                answer="worse" if sign > 0 else "better" if sign < 0 else "same" if is_same or _is_equal(pair) else "undecided",
            )
        )  # fmt: skip
    return tuple(sorted(details, key=lambda detail: get_args(Aspect).index(detail.aspect)))


def _is_equal(pair: list[Floats]) -> bool:
    return bool((pair[0] == pair[1]).all())
