"""How far sampled text is from held-out real text, as a given feature model sees both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.errors import SpecError, resolve_local_or_hub
from selfloop.metrics.ngrams import cut_of, texts
from selfloop.metrics.text import NO_NUMBER, require
from selfloop.metrics.vector_distances import frechet_distance, frontier_area
from selfloop.protocols import UsesEncoder
from selfloop.types import Floats, Ragged, count_rows

TOKENS = 256  # of a row, as the feature model counts them
BATCH = 32  # rows that go through the feature model at once
EXPLAINED = 0.9  # share of the variance that the principal components keep before clustering
STARTS = 5  # of k-means; the best counts


@dataclass(frozen=True, kw_only=True)
class Mauve(Metric):
    """MAUVE of new and held-out real rows: 1 when a feature model cannot tell them apart, near 0 when they share nothing.

    Pillutla et al. 2021 (2102.01454): features of both scaled to length 1, on the principal components that keep 90 % of the
    variance, clustered by k-means into as many clusters as a tenth of the rows of each; then the area under the frontier of
    the two histograms with scaling 5. Features are the mean of the last hidden states over a row's first 256 tokens, and
    not the last one's as in the paper: compare values of the same model and number of rows only.
    """

    name: ClassVar[str] = "mauve"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "MAUVE of sampled text"
    better: ClassVar[str] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    model: str | Path  # a folder, or a name on the hub, that transformers.AutoModel and AutoTokenizer open
    revision: str | None = None  # commit of the hub, for a name: what it stands for may change
    rows: int = 1000  # of each kind, at most
    scale: float = 5.0

    def __post_init__(self) -> None:
        _check(self)
        if not self.scale > 0:
            raise SpecError(f"metrics.mauve.scale: got {self.scale}; expected a number above 0.")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return _measured(self, snap, ctx, lambda new, real: mauve_of(new, real, self.scale, ctx))


@dataclass(frozen=True, kw_only=True)
class TextFrechet(Metric):
    """Squared Frechet distance between new and held-out real rows on the mean last hidden states of a feature model.

    The Frechet inception distance (Heusel et al. 2017, 1706.08500) with a text model. Biased upwards by finite samples, and
    the more so the fewer rows there are per feature: compare values of the same model and number of rows only.
    """

    name: ClassVar[str] = "text_frechet"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "Frechet distance of sampled text to real text"
    unit: ClassVar[str] = "squared units of the features"
    family_protocols: ClassVar[tuple[type, ...]] = (UsesEncoder,)
    model: str | Path
    revision: str | None = None
    rows: int = 1000

    def __post_init__(self) -> None:
        _check(self)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return _measured(self, snap, ctx, frechet_distance)


def mauve_of(new: Floats, real: Floats, scale: float, ctx: Context) -> float:
    """MAUVE of two sets of feature vectors."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    points = normalize(np.concatenate([new, real]))
    if np.ptp(points, axis=0).max() == 0:
        return 1.0
    few = PCA(EXPLAINED, svd_solver="full").fit_transform(points)
    clusters = min(max(2, round(min(len(new), len(real)) / 10)), len(np.unique(few, axis=0)))
    means = KMeans(clusters, n_init=STARTS, max_iter=500, random_state=ctx.stream.child("clusters").integer() % 2**32)
    found = means.fit_predict(few)
    p, q = (np.bincount(part, minlength=clusters) / len(part) for part in (found[: len(new)], found[len(new) :]))
    return frontier_area(p, q, scale)


def _check(metric: Mauve | TextFrechet) -> None:
    require(metric.name, "rows", metric.rows, least=2)
    object.__setattr__(metric, "model", resolve_local_or_hub(f"metrics.{metric.name}.revision", metric.model, metric.revision))


def _measured(
    metric: Mauve | TextFrechet, snap: Snapshot, ctx: Context, compare: Callable[[Floats, Floats], float]
) -> Mapping[str, float]:
    """A number of the features of equally many new and held-out real rows, these cut where sampling cut new ones."""
    if not snap.samples:
        return {}
    count = min(metric.rows, count_rows(snap.samples), len(snap.holdout["tokens"]))
    if count < 2:
        return {metric.name: NO_NUMBER}
    cut = cut_of(snap.samples, snap.params)
    kinds = [_decoded(texts(rows, snap.params, most_rows=count, longest=cut), snap) for rows in (snap.samples, snap.holdout)]
    where, rows = f"metrics.{metric.name}.model", [text for kind in kinds for text in kind]
    features = embedded(rows, metric.model, where, ctx, metric.revision)
    return {metric.name: compare(features[:count], features[count:])}


def _decoded(tokens: Ragged, snap: Snapshot) -> list[str]:
    decoded = cast(UsesEncoder, snap.family).encoder().decode({"tokens": tokens}, snap.params)["text"]
    return [text.decode(errors="replace") for text in cast(Ragged, decoded).to_bytes()]


def embedded(rows: Sequence[str], model: str | Path, where: str, ctx: Context, revision: str | None = None) -> Floats:
    """The mean last hidden state of each text; zeros for one without tokens. SpecError when there is no such model."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    torch.set_num_threads(ctx.threads)
    tokenizer, network = _opened(model, revision, where)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).eval()
    limit = min(TOKENS, tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", TOKENS))
    ids = tokenizer(list(rows), truncation=True, max_length=limit)["input_ids"]
    lengths = np.array([len(each) for each in ids])
    features = np.zeros((len(rows), network.config.hidden_size))
    order = np.argsort(lengths, kind="stable")[np.count_nonzero(lengths == 0) :]
    for batch in np.split(order, range(BATCH, len(order), BATCH)):
        there = torch.arange(lengths[batch].max()) < torch.from_numpy(lengths[batch])[:, None]
        padded = pad_sequence([torch.tensor(ids[i]) for i in batch], batch_first=True)
        with torch.inference_mode():
            hidden = network(input_ids=padded.to(device), attention_mask=there.to(device)).last_hidden_state.double().cpu()
        features[batch] = ((hidden * there[:, :, None]).sum(dim=1) / there.sum(dim=1, keepdim=True)).numpy()
    return features


def _opened(model: str | Path, revision: str | None, where: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
            return tokenizer, AutoModel.from_pretrained(model, revision=revision, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as problem:
        reason = str(problem).strip().split("\n")[0].rstrip(".")[:200]
        raise SpecError(
            f"{where}: {model} cannot be opened ({reason}). Give a folder with a model and its tokenizer, as transformers "
            "saves them, or a name on the hub."
        ) from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers inside."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
