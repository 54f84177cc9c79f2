"""The law of labels that feed back into the training rows."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from selfloop.columns import Floats
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, population_models, schedule_entries

MIN_ROWS_PER_COEFFICIENT = 50


def feedback_multipliers(scenario: Scenario) -> Floats:
    """Bias of the model of every generation over that of the first, at most, if each fit adds that bias to its training rows.

    c_t = 1 + sum of the training mass of synthetic(k) times c_k: theorem 1 of Taori and Hashimoto 2022 (2209.03942) for
    `accumulate_real`, here for any policy. With m real and k synthetic rows per generation the limit is (m + k)/m.
    """
    return 1 + population_models(scenario, np.zeros(1), lambda bias: bias + 1)[:, 0]


def _predicted_share(scenario: Scenario) -> Floats | None:
    source, sampler = scenario.source.settings(), scenario.sampler.settings()
    fewest = min(entry.trained_rows for entry in schedule_entries(scenario))
    is_argmax = sampler["labels"] == "argmax" and scenario.family.settings()["link"] == "logit"
    if not is_argmax or source["share"] >= 0.5 or fewest < MIN_ROWS_PER_COEFFICIENT * (source["dim"] + 1):
        return None
    share, distance = source["share"], source["distance"]
    border = np.log(1 / share - 1) / distance  # on the first coordinate, where both outcomes are equally probable
    predicted = share * ndtr(distance / 2 - border) + (1 - share) * ndtr(-distance / 2 - border)
    return np.asarray(np.maximum(share - (share - predicted) * feedback_multipliers(scenario), 0), np.float64)


LAWS = (
    Law(
        name="feedback, at least", metric="predicted_share", kind="bound",
        source="Share minus first bias (normal tails) times c_t: Taori and Hashimoto 2022 (2209.03942), theorem 1",
        conditions=f"rare outcome 1, link logit, labels by argmax, {MIN_ROWS_PER_COEFFICIENT} rows per coefficient or more.",
        values=_predicted_share,
    ),
)  # fmt: skip
