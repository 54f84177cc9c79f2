"""Exact expectations of policies given by name, with settings from the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from typing import Any

from selfloop.theory.moments import PolicyPrediction, predict


def predict_policies(names: Sequence[str], n: int, generations: int, overrides: Iterable[str]) -> dict[str, PolicyPrediction]:
    """Prediction of each policy by name. Overrides are `key=value` or `policy.key=value`, with values as in TOML."""
    settings: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        settings[key.strip().removeprefix("policy.")] = value
    return {name: predict({"name": name, **settings}, n, generations) for name in names}
