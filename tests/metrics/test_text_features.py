"""Distances between texts as a feature model sees them, against closed forms and laws that rows are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfloop.component import Context, Encoder, Family, Sampler, Snapshot
from selfloop.errors import SpecError
from selfloop.metrics.text_features import Mauve, TextFrechet, embedded, mauve_of
from selfloop.metrics.vector_distances import frechet_distance, frontier_area
from selfloop.rng import RandomStream
from selfloop.store.identity import identity
from selfloop.types import Columns, Floats, Params, Ragged

END, WORDS, POSITIONS = 0, 40, 24
LEARNED: Params = {"tokenizer/end": np.asarray(END)}
CTX = Context(RandomStream(("measure",)))
HERE = "metrics.mauve.model"


@dataclass(frozen=True, kw_only=True)
class Words(Encoder):
    """Token 7 is the word w7."""

    def decode(self, rows: Columns, learned: Params) -> Columns:
        tokens = rows["tokens"]
        assert isinstance(tokens, Ragged)
        texts = [" ".join(f"w{t}" for t in tokens.values[a:b]) for a, b in pairwise(tokens.offsets)]
        return {"text": Ragged.of_bytes([text.encode() for text in texts])}


@dataclass(frozen=True, kw_only=True)
class Writer(Family):
    def encoder(self) -> Encoder:
        return Words()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model and its tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    made = tmp_path_factory.mktemp("features")
    words = Tokenizer(WordLevel({"[UNK]": 0, **{f"w{i}": i for i in range(1, WORDS)}}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(made)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=POSITIONS, **sizes)).save_pretrained(made)
    return made


def columns(rows: Sequence[Sequence[int]]) -> Columns:
    values = np.array([token for row in rows for token in row], np.uint16)
    return {"tokens": Ragged(values, np.cumsum([0, *map(len, rows)], dtype=np.int64))}


def drawn(words: Sequence[int], rows: int, seed: int) -> list[list[int]]:
    made = np.random.default_rng(seed).choice(words, (rows, 6))
    return [[*row, END] for row in made.tolist()]


def measure(metric: Any, new: Sequence[Sequence[int]], holdout: Sequence[Sequence[int]]) -> Mapping[str, float]:
    held = columns(holdout)
    snap = Snapshot(1, Writer(), Sampler(), LEARNED, columns(new) if len(new) else {}, held, held, {})
    return metric.measure(snap, CTX)


def test_features_are_the_mean_hidden_state_of_a_text_alone(folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["w1 w2 w3", "w4", "", "w5 w6 w7 w8 w9 w1 w2"] * 20  # more than one batch
    found = embedded(texts, folder, HERE, CTX)
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, features in list(zip(texts, found, strict=True))[:4]:
        if not text:
            assert (features == 0).all()
            continue
        with torch.inference_mode():
            hidden = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert features == pytest.approx(hidden.mean(dim=0).numpy(), abs=1e-5)
    with torch.inference_mode():
        padded = torch.tensor([[4, 0, 0]])
        unmasked = network(input_ids=padded).last_hidden_state[0].mean(dim=0).numpy()
    assert np.abs(found[1] - unmasked).max() > 0.01
    assert (found[4:8] == found[:4]).all()


def test_texts_are_cut_where_the_feature_model_ends(folder: Path) -> None:
    long = " ".join(["w3 w4"] * POSITIONS)
    cut = " ".join(["w3 w4"] * (POSITIONS // 2))
    found = embedded([long, cut], folder, HERE, CTX)
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_the_frontier_of_equal_histograms_has_area_one_and_that_of_disjoint_ones_its_closed_form() -> None:
    """Disjoint: x = (1 - w)^c and y = w^c, so the area is c B(c + 1, c) = 1 / binomial(2 c, c)."""
    p = np.array([0.2, 0.3, 0.5, 0.0])
    assert frontier_area(p, p, 5.0) == pytest.approx(1, abs=1e-12)
    for c in (1, 2, 5):
        assert frontier_area(np.array([0.4, 0.6, 0]), np.array([0, 0, 1.0]), c) == pytest.approx(
            1 / math.comb(2 * c, c), rel=1e-4
        )


def area_by_quadrature(p: Floats, q: Floats, c: float, exclusive: bool = True) -> float:
    """The same area as an integral over w with the curve's slope worked out; else of the wrong way round of the divergence."""
    from scipy.integrate import quad

    def kl(a: Floats, b: Floats) -> float:
        return float(a @ np.log(a / b)) if exclusive else float(b @ np.log(b / a))

    def strip(w: float) -> float:
        r, dw = w * p + (1 - w) * q, 1e-6
        ahead = r + dw * (p - q)
        x, x_ahead = math.exp(-c * kl(q, r)), math.exp(-c * kl(q, ahead))
        return math.exp(-c * kl(p, r)) * (x - x_ahead) / dw

    return math.exp(-c * kl(q, p)) + quad(strip, 0, 1)[0]


@pytest.mark.parametrize("c", [1.0, 5.0])
def test_the_frontier_is_the_integral_under_it_and_that_of_reversed_divergences_is_not(c: float) -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    found = frontier_area(p, q, c)
    assert found == pytest.approx(area_by_quadrature(p, q, c), rel=1e-4)
    assert found == pytest.approx(frontier_area(q, p, c), rel=1e-9)
    assert found != pytest.approx(area_by_quadrature(p, q, c, exclusive=False), rel=0.01)


def test_mauve_is_near_one_for_one_law_near_zero_for_two_and_falls_in_between() -> None:
    rng = np.random.default_rng(0)
    scores = []
    for shift in (0.0, 0.2, 0.4, 0.8, 3.0):
        real, new = rng.standard_normal((2, 600, 8)) * 0.2 + np.eye(8)[0]
        scores.append(mauve_of(new + shift * np.eye(8)[1], real, 5.0, CTX))
    assert scores[0] > 0.9
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == pytest.approx(1 / 252, rel=0.01)
    assert mauve_of(np.ones((20, 3)), np.ones((20, 3)), 5.0, CTX) == 1.0


def test_mauve_tells_a_collapsed_writer_from_one_of_the_real_law(folder: Path) -> None:
    metric = Mauve(model=folder, rows=200)
    common, other = range(1, 20), range(20, WORDS)
    real = drawn(common, 200, 0)
    same = measure(metric, drawn(common, 200, 1), real)["mauve"]
    half = measure(metric, drawn(common, 100, 1) + drawn(other, 100, 2), real)["mauve"]
    collapsed = measure(metric, drawn(common, 1, 1) * 200, real)["mauve"]
    assert same > 0.85 > half > collapsed
    assert collapsed < 0.05
    assert measure(metric, real, real)["mauve"] == pytest.approx(1)
    assert measure(metric, drawn(common, 200, 1), real)["mauve"] == same


def test_real_texts_are_cut_where_sampling_cut_new_ones(folder: Path) -> None:
    """Real texts of common words that end in others; new ones end, or are cut, before those."""
    real = [
        [*start[:-1], *end] for start, end in zip(drawn(range(1, 20), 200, 0), drawn(range(20, WORDS), 200, 1), strict=True)
    ]
    ended = drawn(range(1, 20), 200, 2)
    cut = [row[:-1] for row in ended]
    assert measure(Mauve(model=folder), cut, real)["mauve"] > 0.85 > 0.3 > measure(Mauve(model=folder), ended, real)["mauve"]


def test_the_frechet_distance_of_texts_is_that_of_their_features(folder: Path) -> None:
    metric = TextFrechet(model=folder, rows=100)
    new, real = drawn(range(1, 20), 150, 0), drawn(range(10, WORDS), 120, 1)
    texts = [[" ".join(f"w{t}" for t in row[:-1]) for row in rows[:100]] for rows in (new, real)]
    features = [embedded(each, folder, HERE, CTX) for each in texts]
    found = measure(metric, new, real)["text_frechet"]
    assert found == pytest.approx(frechet_distance(*features), rel=1e-5)
    with_end = [embedded([f"{text} w{END}" for text in each], folder, HERE, CTX) for each in texts]
    assert found != pytest.approx(frechet_distance(*with_end), rel=0.01)
    assert measure(metric, real, real)["text_frechet"] == pytest.approx(0, abs=1e-6)
    assert measure(metric, drawn(range(10, WORDS), 120, 2), real)["text_frechet"] < found / 3


@pytest.mark.parametrize("kind", [Mauve, TextFrechet])
def test_nothing_is_said_without_new_rows_and_empty_stories_are_read(folder: Path, kind: Any) -> None:
    real = drawn(range(1, WORDS), 60, 0)
    assert measure(kind(model=folder), [], real) == {}
    assert math.isfinite(measure(kind(model=folder), [[END]] * 60, real)[kind.name])
    assert math.isnan(measure(kind(model=folder), real[:1], real)[kind.name])


@pytest.mark.parametrize("kind", [Mauve, TextFrechet])
def test_a_model_that_cannot_be_opened_and_bad_settings_are_told(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(SpecError, match=rf"metrics.{kind.name}.rows: got 1"):
        kind(model=tmp_path, rows=1)
    with pytest.raises(SpecError, match=rf"metrics.{kind.name}.model: {tmp_path} cannot be opened .*Give a folder"):
        measure(kind(model=tmp_path), [[1, END]] * 4, [[1, END]] * 4)
    with pytest.raises(SpecError, match=r"metrics\.mauve\.scale: got 0"):
        Mauve(model=tmp_path, scale=0.0)


@pytest.mark.parametrize("kind", [Mauve, TextFrechet])
def test_a_model_of_the_hub_is_that_of_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    for revision in (None, "main"):
        with pytest.raises(SpecError, match=rf"metrics\.{kind.name}\.revision: got {revision!r}; 'someone/model' is no folder"):
            kind(model="someone/model", revision=revision)
    with pytest.raises(SpecError, match=rf"metrics\.{kind.name}\.revision: got .* is a folder, which has none"):
        kind(model=tmp_path, revision="c" * 40)
    from transformers import AutoTokenizer

    asked = []

    def opened(model: str, revision: str) -> None:
        asked.append((model, revision))
        raise OSError("not here")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", opened)
    with pytest.raises(SpecError, match="cannot be opened"):
        measure(kind(model="someone/model", revision="c" * 40), [[1, END]] * 4, [[1, END]] * 4)
    assert asked == [("someone/model", "c" * 40)]


def test_a_folder_is_identified_by_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = identity(Mauve(model=str(tmp_path)))
    assert before == identity(Mauve(model=tmp_path))
    (tmp_path / "config.json").write_text('{"layers": 1}')
    assert identity(Mauve(model=str(tmp_path))) != before
