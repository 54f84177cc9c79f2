"""Shipped presets are of the models that their papers trained, and of data that cannot change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import selfloop
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.network import TransformerNetwork
from selfloop.sources.hub_text import HubText
from selfloop.sources.tinystories import TinyStories
from selfloop.spec.parse import read_spec

PRESETS = Path(selfloop.__file__).parent / "presets"
WORDS = {"MNIST"}  # in capitals that are meant so
COUNTS = {
    "gerstgrasser2024_gpt2_9m": 8_890_880,
    "gerstgrasser2024_llama_12m": 12_488_960,
    "gerstgrasser2024_llama_42m": 41_755_136,
    "gerstgrasser2024_llama_126m": 125_553_408,
}


def parameters(preset: str, changes: list[str] | None = None) -> int:
    family = read_spec(preset, changes or []).family
    assert isinstance(family, Transformer)
    with torch.device("meta"):
        return sum(each.numel() for each in TransformerNetwork(family.config()).parameters())


@pytest.mark.parametrize(("preset", "count"), COUNTS.items())
def test_a_preset_s_model_has_the_paper_s_parameter_count(preset: str, count: int) -> None:
    assert parameters(preset) == count
    assert parameters(preset, ["family.context=1024", "family.vocab=8001"]) != count


def test_no_preset_says_what_is_still_to_be_filled_in() -> None:
    found = {path.name: re.findall(r"\b[A-Z_]{5,}\b", path.read_text()) for path in PRESETS.glob("*.toml")}
    assert len(found) > 30
    assert {name: set(words) - WORDS for name, words in found.items() if set(words) - WORDS} == {}


@pytest.mark.parametrize("preset", [*COUNTS, "kazdan2025_gemma"])
def test_a_preset_s_data_on_the_hub_are_of_one_commit(preset: str) -> None:
    source = read_spec(preset).source
    assert isinstance(source, TinyStories | HubText)
    assert len(source.revision or "") == 40
