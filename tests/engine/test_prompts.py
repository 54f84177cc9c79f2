"""Prompts up to the response template, from the spec to the metrics of a stored chain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import selfloop
from selfloop.columns import Ragged
from selfloop.engine.tasks import plan_tasks, replay_chain
from selfloop.errors import DataError
from selfloop.spec.spec import Spec

TEMPLATE = "assistant:"


def chats(folder: Path, n: int, without: int = 0) -> dict[str, str]:
    """A source of documents of users and assistants, the first ones without an assistant."""
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "far"]
    texts = [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(2 * n)]
    documents = [f"user: {texts[i]} {'' if i < without else TEMPLATE} {texts[n + i]}" for i in range(n)]
    (folder / "chats.txt").write_text("\n\n".join(documents))
    return {"name": "text", "path": str(folder / "chats.txt")}


def chat_spec(source: dict[str, str], unit: str = "rows", **changes: object) -> Spec:
    settings = {
        "source": source, "family": {"name": "ngram", "vocab": 300}, "n": 30 if unit == "rows" else 600, "holdout": 5,
        "generations": 2, "seeds": 1, "policies": ("replace",), "metrics": ("text_length", "vocabulary", "self_cross_entropy"),
        "sampler": {"prompt": "before", "response_template": TEMPLATE, "max_tokens": 200}, "unit": unit,
    }  # fmt: skip
    return Spec(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_rows_begin_with_the_real_rows_up_to_the_template_and_metrics_leave_them_out(tmp_path: Path, unit: str) -> None:
    spec = chat_spec(chats(tmp_path, 60), unit)
    result = selfloop.run(spec, tmp_path / "store")
    world = replay_chain(plan_tasks(spec, tmp_path / "store")[-1][0])
    encoder = spec.family.encoder()  # type: ignore[attr-defined]
    prepared = world.store.open(world.rows.refs["prepared"])
    tables = world.store.open(world.rows.initial), world.store.open(world.samples[2])  # type: ignore[arg-type]
    real, sampled = ([text.decode() for text in encoder.decode(rows, prepared)["text"].to_bytes()] for rows in tables)
    assert len(sampled) == 30 if unit == "rows" else len(sampled) > 5
    beginnings = [text.partition(TEMPLATE)[0] + TEMPLATE for text in real]
    assert all(text.startswith(beginnings[i % len(real)]) for i, text in enumerate(sampled))
    assert any(not text.startswith(real[i % len(real)]) for i, text in enumerate(sampled))
    rows = tables[1]["tokens"]
    assert isinstance(rows, Ragged)
    texts = {"text": Ragged.of_bytes([beginnings[i % len(real)].encode() for i in range(len(sampled))])}
    n_prompt = int((np.diff(encoder.encode(texts, prepared)["tokens"].offsets) - 1).sum())
    n_ends = int((rows.values[rows.offsets[1:] - 1] == prepared["tokenizer/end"]).sum())
    share = result.curves()["replace"]["text_length_prompt_share"][0, 1]
    assert share == pytest.approx(n_prompt / (len(rows.values) - n_ends), abs=0.02)  # a template may end within a token
    assert 0.2 < share < 0.8


def test_rows_without_the_template_are_refused_before_the_first_fit(tmp_path: Path) -> None:
    source = chats(tmp_path, 35, without=35)
    with pytest.raises(DataError, match=r"family\.sampler\.prompt: got 'before'; 30 of 30 initial rows do not contain"):
        selfloop.run(chat_spec(source), tmp_path / "store")
    assert not any("fit" in path.read_text() for path in (tmp_path / "store" / "records").rglob("*.json"))
