"""Metrics of sampled text beyond its tokens: distances to real text on features of a pretrained model, and right rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge, Gt

from selfloop.columns import Floats, Ragged, count_rows
from selfloop.component import Better, Context, SampleMetric, Sampler, Source
from selfloop.errors import SpecError, resolve_local_or_hub
from selfloop.families.nn.hf_folder import FEATURES, HfFolder
from selfloop.metrics.ngrams import cut_length, texts
from selfloop.metrics.text import NO_VALUE, TextMetric
from selfloop.metrics.vector_distances import fit_clusters, frechet_distance, frontier_area
from selfloop.protocols import SupportsTruth, UsesEncoder
from selfloop.snapshots import Snapshot

MAX_TOKENS = 256  # of a row, in tokens of the feature model
CHUNK_ROWS = 32  # rows per pass through the feature model
EXPLAINED_VARIANCE = 0.9  # share that the principal components keep before clustering
N_KMEANS_STARTS = 5


@dataclass(frozen=True, kw_only=True)
class TextFeatureMetric(TextMetric):
    """A metric of the features of equally many sampled and held-out real rows. A subclass writes `compare`.

    Features are the mean of the feature model's last hidden states over the first 256 tokens of a row. Real rows are cut at
    the length at which sampling cut rows. Compare values of the same feature model and number of rows only.
    """

    uses_holdout: ClassVar[bool] = True
    model: Annotated[str | Path, "feature model with its tokenizer: a folder as transformers saves it, or a name on the hub"]
    revision: Annotated[str | None, "commit of a model on the hub, whose content may change"] = None
    max_rows: Annotated[int, Ge(2), "number of sampled and of real rows, at most"] = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "model", resolve_local_or_hub("revision", self.model, self.revision))
        if isinstance(self.model, Path):
            HfFolder("model", self.model, None).check()

    @abstractmethod
    def compare(self, sampled: Floats, real: Floats, ctx: Context) -> float:
        """The value for two arrays of features."""

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        n_rows = min(self.max_rows, count_rows(snap.samples), len(snap.holdout["tokens"]))
        if n_rows < 2:
            return {self.name: NO_VALUE}
        length = cut_length(snap.samples, snap.params)
        encoder = cast(UsesEncoder, snap.family).encoder()
        decoded = list[str]()
        for rows in (snap.samples, snap.holdout):
            tokens = texts(rows, snap.params, max_rows=n_rows, max_length=length)
            text = cast(Ragged, encoder.decode({"tokens": tokens}, snap.params)["text"])
            decoded += [row.decode(errors="replace") for row in text.to_bytes()]
        features = embed_texts(decoded, HfFolder(f"metrics.{self.name}.model", self.model, self.revision), ctx)
        return {self.name: self.compare(features[:n_rows], features[n_rows:], ctx)}


@dataclass(frozen=True, kw_only=True)
class Mauve(TextFeatureMetric):
    """MAUVE of sampled and held-out real rows: 1 if the feature model cannot distinguish them, near 0 if they share nothing.

    Pillutla et al. 2021 (2102.01454). Features of both are scaled to length 1, projected on the principal components that keep
    90 % of the variance, and clustered by k-means into a tenth as many clusters as rows of each. MAUVE is the area under the
    frontier of the two histograms. The paper uses the features of the last token; here they are the mean over tokens.
    """

    name: ClassVar[str] = "mauve"
    title: ClassVar[str] = "MAUVE of sampled text"
    better: ClassVar[Better] = "higher"
    scaling_factor: Annotated[float, Gt(0), "factor of the divergences in the exponent of the frontier"] = 5.0

    def compare(self, sampled: Floats, real: Floats, ctx: Context) -> float:
        return mauve_score(sampled, real, self.scaling_factor, ctx)


@dataclass(frozen=True, kw_only=True)
class TextFrechet(TextFeatureMetric):
    """Squared Frechet distance between features of sampled and held-out real rows.

    The Frechet inception distance (Heusel et al. 2017, 1706.08500) with a text model. Finite samples bias it upwards, the
    more so the fewer rows there are per feature.
    """

    name: ClassVar[str] = "text_frechet"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "Frechet distance of sampled text to real text"
    unit: ClassVar[str] = "squared units of the features"

    def compare(self, sampled: Floats, real: Floats, ctx: Context) -> float:
        return frechet_distance(sampled, real)


def mauve_score(sampled: Floats, real: Floats, scaling_factor: float, ctx: Context) -> float:
    """MAUVE of two sets of feature vectors."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    points = normalize(np.concatenate([sampled, real]))
    if np.ptp(points, axis=0).max() == 0:
        return 1.0
    components = PCA(EXPLAINED_VARIANCE, svd_solver="full").fit_transform(points)
    n_clusters = max(2, round(min(len(sampled), len(real)) / 10))
    clusters = fit_clusters(components, n_clusters, ctx, n_init=N_KMEANS_STARTS, max_iter=500).labels_
    halves = clusters[: len(sampled)], clusters[len(sampled) :]
    p, q = (np.bincount(half, minlength=n_clusters) / len(half) for half in halves)
    return frontier_area(p, q, scaling_factor)


def embed_texts(rows: Sequence[str], folder: HfFolder, ctx: Context) -> Floats:
    """Mean last hidden state of each text, zeros for a text without tokens. SettingError if the model cannot be opened."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from selfloop.families.nn import trainer

    torch.set_num_threads(ctx.threads)
    tokenizer, network = folder.tokenizer()[0], folder.network(FEATURES)
    device = trainer.device()
    ctx.backends["measuring"] = f"torch {device.type} float32"
    network.to(device).eval()
    limits = (folder.tokenizer_settings().get("model_max_length"), getattr(network.config, "max_position_embeddings", None))
    tokenizer.enable_truncation(int(min([MAX_TOKENS, *(limit for limit in limits if isinstance(limit, int | float))])))
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(rows))]
    lengths = np.array([len(row) for row in ids])
    features = np.zeros((len(rows), network.config.hidden_size))
    order = np.argsort(lengths, kind="stable")[np.count_nonzero(lengths == 0) :]
    for chunk in np.split(order, range(CHUNK_ROWS, len(order), CHUNK_ROWS)):
        mask = torch.arange(lengths[chunk].max()) < torch.from_numpy(lengths[chunk])[:, None]
        padded = pad_sequence([torch.tensor(ids[i]) for i in chunk], batch_first=True)
        with torch.inference_mode():
            hidden = network(input_ids=padded.to(device), attention_mask=mask.to(device)).last_hidden_state.double().cpu()
        features[chunk] = ((hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)).numpy()
    return features


@dataclass(frozen=True, kw_only=True)
class CorrectRate(SampleMetric):
    """Share of sampled rows that the source finds right, such as true expressions. Rows that were cut short are wrong."""

    name: ClassVar[str] = "correct_rate"
    title: ClassVar[str] = "sampled rows that are right"
    unit: ClassVar[str] = "share of rows"
    better: ClassVar[Better] = "higher"
    uses_source: ClassVar[bool] = True

    def check(self, source: Source, sampler: Sampler) -> None:
        if not isinstance(source, SupportsTruth):
            raise SpecError(
                f"metrics: 'correct_rate' needs a source that can check whether a row is right, such as expressions; "
                f"{source.title()} cannot. Drop the metric."
            )

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        rows, family = snap.samples, snap.family
        rows = family.encoder().decode(rows, snap.params) if isinstance(family, UsesEncoder) else rows
        return {self.name: float(cast(SupportsTruth, snap.source).is_correct(rows).mean())}
