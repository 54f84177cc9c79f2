"""Risks of trivial models, which ignore the structure of the rows that they are fitted on."""

from __future__ import annotations

from typing import cast

import numpy as np

from selfloop.columns import Column, Columns, Params, Ragged


def normal_nll(column: Column, holdout: Column, truth: Params) -> float | None:
    """Mean negative log density of held-out rows under a normal distribution of each element of a row, fitted to a column.

    None for a constant element, and if the rows are independent normal numbers in truth: no model of them is better.
    """
    x, held_out = (np.asarray(rows, np.float64).reshape(len(rows), -1) for rows in (column, holdout))
    mean, spread = x.mean(axis=0), x.std(axis=0)
    covariance = truth.get("covariance")
    is_right = covariance is not None and not np.any(covariance - np.diag(np.diagonal(covariance)))
    if is_right or (spread <= 1e-12 * np.abs(mean)).any():
        return None
    nats = 0.5 * ((held_out - mean) / spread) ** 2 + np.log(spread * np.sqrt(2 * np.pi))
    return float(nats.sum(axis=1).mean())


def risk_without_inputs(metric: str, truth: Params) -> float | None:
    """Excess risk or parameter error of a regression whose coefficients are all 0; None for other metrics."""
    scales = {"excess_risk": truth.get("variances"), "parameter_error": np.ones(1)}
    scale, coefficients = scales.get(metric), truth.get("coefficients")
    return None if scale is None or coefficients is None else float(np.sum(scale * np.square(coefficients)))


def squared_error_of_mean(y: Column, holdout: Column) -> float:
    """Mean squared deviation of held-out outcomes from the mean of other outcomes."""
    return float(np.mean((np.asarray(holdout, np.float64) - np.mean(np.asarray(y, np.float64))) ** 2))


def unigram_cross_entropy(rows: Columns, holdout: Columns, vocab: int) -> float:
    """Mean negative log probability of a held-out token under the shares of the tokens in the rows, nats.

    The shares are smoothed (Witten and Bell 1991): if T of the `vocab` tokens occur among N, a token that occurs k times has
    (k + T / vocab) / (N + T). One more row per token of the vocabulary would hide the shares in those of a large one.
    """
    tokens, held_out = (np.asarray(cast(Ragged, part["tokens"]).values, np.int64) for part in (rows, holdout))
    counts = np.bincount(tokens, minlength=vocab)
    n_distinct = np.count_nonzero(counts)
    shares = (counts + n_distinct / vocab) / (len(tokens) + n_distinct)
    return -float(np.log(shares[held_out]).mean())
