"""Merge of a fit with the model of the generation before: (1 - share) * older + share * newer, array by array."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import cast

import numpy as np

from selfloop.columns import Array, Bools, Floats, Params
from selfloop.component import Family
from selfloop.errors import ChainEndedError, DataError
from selfloop.formats.safetensors import NamedArrays
from selfloop.protocols import EnsembleFit
from selfloop.store.identity import stored_step

MAX_NEGATIVE_SHARE = 1e-12  # of the largest absolute eigenvalue; a larger negative one is no rounding


@stored_step("merge_models", version=1)
def merge_models(family: Family, older: Params, newer: Params, share: float) -> Params:
    """The merge of two models of one chain. Raises ChainEndedError("diverged") if it is no model."""
    stacked = [{name: array[None] for name, array in params.items()} for params in (older, newer)]
    fitted = merge_ensemble(family, stacked[0], EnsembleFit(stacked[1]), share)
    if fitted.status and fitted.status[0]:
        raise ChainEndedError(fitted.status[0])
    return {name: array[0] for name, array in fitted.params.items()}


def merge_ensemble(family: Family, older: Params, newer: EnsembleFit, share: float) -> EnsembleFit:
    """The merges of many chains, with status `diverged` for one with a negative variance or a number that is not finite.

    Arrays that `Family.mergeable` does not name, and whole numbers, are those of the newer model.
    """
    params = NamedArrays(newer.params)
    status = list(newer.status or [None] * len(next(iter(params.values()))))
    for name, array in newer.params.items():
        rules = [no_negative for pattern, no_negative in family.mergeable.items() if fnmatchcase(name, pattern)]
        if not rules or not np.issubdtype(array.dtype, np.floating):
            continue
        if older[name].shape != array.shape:
            shapes = f"{older[name].shape[1:]} before and {array.shape[1:]} now"
            raise DataError(f"merge: array {name!r} of {family.name} has shape {shapes}; expected one shape. Remove the key.")
        with np.errstate(over="ignore", invalid="ignore"):
            merged = (1 - share) * older[name].astype(np.float64) + share * array.astype(np.float64)
            params[name] = merged.astype(array.dtype)
        valid = _are_valid(params[name], any(rules))
        status = [ended or (None if is_valid else "diverged") for ended, is_valid in zip(status, valid, strict=True)]
    return EnsembleFit(params, status)


def _are_valid(array: Array, no_negative: bool) -> Bools:
    """True for each seed with finite numbers and, if there are to be none, no negative number or eigenvalue of a matrix."""
    flat = cast(Floats, array.reshape(len(array), -1))
    finite = np.asarray(np.isfinite(flat).all(axis=1))
    if not no_negative:
        return finite
    values = np.linalg.eigvalsh(np.where(finite[:, None, None], array, 0)) if array.ndim == 3 else flat
    return np.asarray(finite & (values.min(axis=1) >= -MAX_NEGATIVE_SHARE * np.abs(values).max(axis=1)))
