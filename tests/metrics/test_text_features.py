"""Distances between texts on a feature model, against closed forms and distributions that rows are drawn from."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from token_rows import CTX, END, PARAMS, Rows, columns

from selfloop.columns import Columns, Params, Ragged
from selfloop.component import Context, Family, Sampler
from selfloop.errors import SettingError
from selfloop.families.nn.hf_folder import HfFolder
from selfloop.metrics.text_features import Mauve, TextFrechet, embed_texts, mauve_score
from selfloop.metrics.vector_distances import frechet_distance
from selfloop.snapshots import Snapshot
from selfloop.store.identity import identity
from selfloop.transforms import Encoder
from selfloop.types import TrainingRows

N_WORDS, MAX_POSITIONS = 40, 24
COMMON, RARE = range(1, 20), range(20, N_WORDS)


@dataclass(frozen=True, kw_only=True)
class Words(Encoder):
    """Token 7 is the word w7."""

    name: ClassVar[str] = "words"

    def prepare(self, chunks: Iterable[Columns], ctx: Context) -> Params:
        raise NotImplementedError

    def encode(self, rows: Columns, prepared: Params) -> Columns:
        raise NotImplementedError

    def decode(self, rows: Columns, prepared: Params) -> Columns:
        tokens = rows["tokens"]
        assert isinstance(tokens, Ragged)
        texts = [" ".join(f"w{t}" for t in tokens.values[a:b]) for a, b in pairwise(tokens.offsets)]
        return {"text": Ragged.of_bytes([text.encode() for text in texts])}


@dataclass(frozen=True, kw_only=True)
class Writer(Family):
    """A family whose rows are texts of words."""

    name: ClassVar[str] = "writer"

    def encoder(self) -> Encoder:
        return Words()

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        raise NotImplementedError

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        raise NotImplementedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model and its tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("features")
    words = Tokenizer(WordLevel({"[UNK]": 0, **{f"w{i}": i for i in range(1, N_WORDS)}}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(path)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=N_WORDS, max_position_embeddings=MAX_POSITIONS, **sizes)).save_pretrained(path)
    return path


def draw_words(words: Sequence[int], n: int, seed: int) -> list[list[int]]:
    tokens = np.random.default_rng(seed).choice(words, (n, 6))
    return [[*row, END] for row in tokens.tolist()]


def measure(metric: Any, samples: Rows, holdout: Rows) -> Mapping[str, float]:
    real, sampled = columns(holdout), columns(samples) if len(samples) else {}
    return metric.measure(Snapshot(1, Writer(), Sampler(), PARAMS, sampled, real, real, {}), CTX)


def test_features_are_the_mean_hidden_state_of_a_single_text(folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["w1 w2 w3", "w4", "", "w5 w6 w7 w8 w9 w1 w2"] * 20  # more than one chunk
    features = embed_texts(texts, HfFolder("model", folder, None), CTX)
    assert CTX.backends["measuring"].startswith("torch ")
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for i in (0, 1, 3):
        with torch.inference_mode():
            hidden = network(**tokenizer(texts[i], return_tensors="pt")).last_hidden_state[0]
        assert features[i] == pytest.approx(hidden.mean(dim=0).numpy(), abs=1e-5)
    assert (features[2] == 0).all()  # of the empty text
    with torch.inference_mode():
        unmasked = network(input_ids=torch.tensor([[4, 0, 0]])).last_hidden_state[0].mean(dim=0).numpy()
    assert np.abs(features[1] - unmasked).max() > 0.01
    assert (features[4:8] == features[:4]).all()


def test_texts_are_cut_at_the_length_of_the_feature_model(folder: Path) -> None:
    long, cut = " ".join(["w3 w4"] * MAX_POSITIONS), " ".join(["w3 w4"] * (MAX_POSITIONS // 2))
    features = embed_texts([long, cut], HfFolder("model", folder, None), CTX)
    assert features[0] == pytest.approx(features[1], abs=1e-6)


def test_mauve_is_near_one_for_equal_distributions_near_zero_for_distant_ones_and_falls_in_between() -> None:
    rng = np.random.default_rng(0)
    scores = []
    for shift in (0.0, 0.3, 0.6, 3.0):
        real, sampled = rng.standard_normal((2, 300, 8)) * 0.2 + np.eye(8)[0]
        scores.append(mauve_score(sampled + shift * np.eye(8)[1], real, 5.0, CTX))
    assert scores[0] > 0.85
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == pytest.approx(1 / 252, rel=0.01)
    assert mauve_score(np.ones((20, 3)), np.ones((20, 3)), 5.0, CTX) == 1.0


def test_mauve_falls_for_a_writer_of_other_words_and_for_a_collapsed_one(folder: Path) -> None:
    metric = Mauve(model=folder, max_rows=200)
    real, fresh = draw_words(COMMON, 200, 0), draw_words(COMMON, 200, 1)
    same = measure(metric, fresh, real)["mauve"]
    half = measure(metric, fresh[:100] + draw_words(RARE, 100, 2), real)["mauve"]
    collapsed = measure(metric, draw_words(COMMON, 1, 1) * 200, real)["mauve"]
    assert same > 0.85 > half > collapsed
    assert collapsed < 0.05
    assert measure(metric, real, real)["mauve"] == pytest.approx(1)
    assert measure(metric, fresh, real)["mauve"] == same


def test_real_texts_are_cut_at_the_length_at_which_sampling_cut_rows(folder: Path) -> None:
    """Real texts have common words, then rare words. Sampled texts are cut, or end, before the rare words."""
    halves = zip(draw_words(COMMON, 200, 0), draw_words(RARE, 200, 1), strict=True)
    real = [[*common[:-1], *rare] for common, rare in halves]
    finished = draw_words(COMMON, 200, 2)
    cut, whole = (measure(Mauve(model=folder), rows, real)["mauve"] for rows in ([row[:-1] for row in finished], finished))
    assert cut > 0.85 > 0.3 > whole


def test_the_frechet_distance_of_texts_is_that_of_their_features(folder: Path) -> None:
    metric = TextFrechet(model=folder, max_rows=100)
    samples, real = draw_words(COMMON, 150, 0), draw_words(range(10, N_WORDS), 120, 1)
    texts = [[" ".join(f"w{t}" for t in row[:-1]) for row in rows[:100]] for rows in (samples, real)]
    distance = measure(metric, samples, real)["text_frechet"]
    assert distance == pytest.approx(
        frechet_distance(*(embed_texts(rows, HfFolder("model", folder, None), CTX) for rows in texts)), rel=1e-5
    )
    with_end = [embed_texts([f"{text} w{END}" for text in rows], HfFolder("model", folder, None), CTX) for rows in texts]
    assert distance != pytest.approx(frechet_distance(*with_end), rel=0.01)
    assert measure(metric, real, real)["text_frechet"] == pytest.approx(0, abs=1e-6)
    assert measure(metric, draw_words(range(10, N_WORDS), 120, 2), real)["text_frechet"] < distance / 3


@pytest.mark.parametrize("kind", [Mauve, TextFrechet])
def test_there_is_no_value_without_samples_and_a_finite_value_of_empty_texts(folder: Path, kind: Any) -> None:
    real = draw_words(range(1, N_WORDS), 60, 0)
    assert measure(kind(model=folder), [], real) == {}
    assert math.isfinite(measure(kind(model=folder), [[END]] * 60, real)[kind.name])
    assert math.isnan(measure(kind(model=folder), real[:1], real)[kind.name])


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=rf"^model: {tmp_path} has no config\.json\. Give a folder"):
        Mauve(model=tmp_path)


def test_a_model_without_all_its_arrays_is_an_error_but_heads_are_left_out(folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    body = {f"bert.{name}": tensor for name, tensor in weights.items() if not name.startswith("pooler.")}  # as BertForMaskedLM
    save_file(body | {"cls.predictions.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    features = [embed_texts(["w1 w2"], HfFolder("model", path, None), CTX) for path in (folder, tmp_path)]
    assert np.array_equal(features[0], features[1])
    for changed in (dict(list(body.items())[1:]), body | {"bert.encoder.layer.1.output.dense.bias": torch.zeros(16)}):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(SettingError, match=r"^metrics\.mauve\.model: .* has weights that do not fit its config\.json"):
            measure(Mauve(model=tmp_path), [[1, END]] * 4, [[1, END]] * 4)


@pytest.mark.parametrize("kind", [Mauve, TextFrechet])
def test_a_model_of_the_hub_needs_its_commit(folder: Path, kind: Any) -> None:
    for revision in (None, "main"):
        with pytest.raises(SettingError, match=rf"^revision: got {revision!r}; there is no folder 'someone/model'"):
            kind(model="someone/model", revision=revision)
    with pytest.raises(SettingError, match=r"^revision: got .* is a local path, which has no revision"):
        kind(model=folder, revision="c" * 40)
    assert kind(model="someone/model", revision="c" * 40).model == "someone/model"


def test_the_content_of_a_folder_is_part_of_the_identity(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = identity(Mauve(model=str(tmp_path)))
    assert before == identity(Mauve(model=tmp_path)) == identity(Mauve(model=folder))
    (tmp_path / "generation_config.json").write_text('{"layers": 1}')
    assert identity(Mauve(model=str(tmp_path))) != before
