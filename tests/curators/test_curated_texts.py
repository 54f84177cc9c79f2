"""Curators that need a language model or a program, in chains of texts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfloop
from selfloop.errors import SpecError
from selfloop.spec.parse import parse_spec
from tiny_language_models import TEXTS, save_base

SPEC = """
n = 24
holdout = 6
generations = 2
seeds = 1
metrics = ["cross_entropy", "text_length"]
criteria = []
[source]
name = "text"
path = "FOLDER/texts.txt"
separator = "\\n"
[family]
name = "transformer"
layers = 1
hidden = 16
heads = 2
context = 16
vocab = 290
[family.training]
steps = 20
batch_size = 4
[family.sampler]
max_tokens = 24
prompt = "prefix"
prefix_tokens = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, a program and a tiny model."""
    folder = tmp_path_factory.mktemp("curated")
    texts = [text.replace("\n", " ") for text in (*TEXTS, *(text[5:] for text in TEXTS))]
    (folder / "texts.txt").write_text("\n".join(texts))
    (folder / "judge.py").write_text(
        "import json, sys\nfor line in sys.stdin:\n    text = json.loads(line)['text']\n"
        "    print(json.dumps({'keep': 't' in text, 'weight': 2, 'row': {'text': text.replace('cat', 'CAT')}}))\n"
    )
    save_base(folder / "base")
    return folder


def curves(folder: Path, *curators: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Curves of replace, and of replace with each of the curators."""
    spec = parse_spec(SPEC.replace("FOLDER", str(folder)), "test")
    policies = ["replace", *({"name": "replace", "curators": [curator]} for curator in curators)]
    return selfloop.run(replace(spec, policies=policies), folder / "store").curves()


def test_an_edit_of_no_token_changes_no_number_and_others_do(folder: Path) -> None:
    command = {"name": "command", "command": [sys.executable, "judge.py"], "files": [str(folder / "judge.py")]}
    model = {"name": "finetune", "base_model": str(folder / "base"), "context": 64}
    rephrase = {"name": "rephrase", "model": model, "template": "{text}", "max_tokens": 12}
    result = curves(
        folder,
        {"name": "token_edit", "threshold": 1.0},
        {"name": "token_edit", "threshold": 0.0, "temperature": 3.0},
        {"name": "token_edit", "threshold": 0.0, "temperature": 3.0, "applies_to": "training_rows"},
        command,
        rephrase,
    )
    plain, unchanged, *changed = result.values()
    assert np.array_equal(plain["cross_entropy"], unchanged["cross_entropy"])
    for curve in changed:
        assert curve["cross_entropy"][0, 0] == plain["cross_entropy"][0, 0]
        assert curve["cross_entropy"][0, 1] != plain["cross_entropy"][0, 1]
        assert np.isfinite(curve["cross_entropy"]).all()


def test_a_curator_that_does_not_fit_is_refused_before_any_work(folder: Path) -> None:
    small = {"n": 10, "generations": 2, "seeds": 1, "source": "gaussian", "family": "gaussian"}
    with pytest.raises(SpecError, match="token_edit needs a language model"):
        selfloop.run(selfloop.Spec(policies=[{"name": "replace", "curators": ["token_edit"]}], **small), folder / "other")
    assert not (folder / "other").exists()
