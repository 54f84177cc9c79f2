"""Every preset can be read. Language presets have the models of their papers and data that cannot change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.network import TransformerNetwork
from selfloop.plugins import presets
from selfloop.policies.schedule import schedule
from selfloop.protocols import SupportsStepCount
from selfloop.sources.hub import HubText
from selfloop.sources.text_corpora import TinyStories
from selfloop.spec.parse import read_spec
from selfloop.types import synthetic

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
UPPERCASE_WORDS = {"MNIST"}
PARAMETER_COUNTS = {
    "gerstgrasser2024_gpt2_9m": 8_890_880,
    "gerstgrasser2024_llama_12m": 12_488_960,
    "gerstgrasser2024_llama_42m": 41_755_136,
    "gerstgrasser2024_llama_126m": 125_553_408,
}


def count_parameters(preset: str, changes: list[str] | None = None) -> int:
    family = read_spec(preset, changes or []).family
    assert isinstance(family, Transformer)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in TransformerNetwork(family.config()).parameters())


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_can_be_read_and_its_first_line_describes_it(preset: str) -> None:
    spec = read_spec(preset)
    assert spec.policies
    assert presets()[preset].read_text(encoding="utf-8").startswith("# ")


def test_pages_name_existing_presets_only() -> None:
    prefixes = {name.partition("_")[0] for name in presets()}
    names = {
        name
        for page in PAGES
        for name in re.findall(r"\b[a-z]+(?:\d{4})?_\w+", page.read_text(encoding="utf-8"))
        if re.match(r"[a-z]+\d{4}_", name) and name.partition("_")[0] in prefixes
    }
    assert len(names) > 8
    assert names <= presets().keys()


@pytest.mark.parametrize(("preset", "count"), PARAMETER_COUNTS.items())
def test_the_model_of_a_preset_has_the_paper_s_parameter_count(preset: str, count: int) -> None:
    assert count_parameters(preset) == count
    assert count_parameters(preset, ["family.context=1024", "family.vocab=8001"]) != count


def test_no_preset_has_a_placeholder() -> None:
    capitals = {name: set(re.findall(r"\b[A-Z_]{5,}\b", text.read_text(encoding="utf-8"))) for name, text in presets().items()}
    assert {name: words - UPPERCASE_WORDS for name, words in capitals.items() if words - UPPERCASE_WORDS} == {}


@pytest.mark.parametrize("preset", [*PARAMETER_COUNTS, "kazdan2025_gemma"])
def test_data_from_the_hub_are_of_one_commit(preset: str) -> None:
    source = read_spec(preset).source
    assert isinstance(source, TinyStories | HubText)
    assert len(source.revision or "") == 40


@pytest.mark.parametrize("preset", [name for name in presets() if name.startswith("bias_")])
def test_presets_of_bias_differ_in_sampled_rows_only(preset: str) -> None:
    spec = read_spec(preset)
    (_, few), (_, many) = (schedule(policy, spec.n or 0, spec.generations) for policy in spec.policies)
    assert many.trained_rows == 10 * few.trained_rows
    assert [take.batch for take in (*few.plan.takes, *many.plan.takes)] == [synthetic(1)] * 2
    if isinstance(spec.family, SupportsStepCount):
        assert spec.family.training.steps  # type: ignore[attr-defined]
        assert len(spec.seeds) >= 5
