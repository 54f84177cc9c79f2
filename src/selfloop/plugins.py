"""Components by kind and name: built-ins by module, entry points for the rest; nothing is imported before it is asked for."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any, cast

from selfloop.component import Component
from selfloop.errors import EXTRAS, SelfloopError, SpecError, first_line, missing_extra, unknown_name


def _targets(*modules: tuple[str, str]) -> dict[str, str]:
    """Name -> "module:Class" of the components of modules. A class is called as its component, or named after `=`."""
    entries = [(module, *entry.partition("=")) for module, names in modules for entry in names.split()]
    return {
        name: f"selfloop.{module}:{cls or ''.join(map(str.capitalize, name.split('_')))}" for module, name, _, cls in entries
    }


BUILT_IN: dict[str, dict[str, str]] = {
    "policy": _targets(
        ("policies.builtin", "replace accumulate accumulate_subsample"),
        ("policies.cycles", "replace_multiple"),
        ("policies.builtin", "window augment mix fresh accumulate_real"),
        ("policies.cycles", "balanced incremental expanding growing"),
        ("policies.custom", "fixed_counts"),
        ("policies.combined", "control switch curated"),
        ("policies.custom", "custom"),
    ),
    "family": _targets(
        ("families.gaussian", "gaussian"),
        ("families.discrete", "discrete"),
        ("families.linear", "linear"),
        ("families.kernel_ridge", "kernel_ridge random_features"),
        ("families.glm", "glm"),
        ("families.kde", "kde"),
        ("families.gmm", "gmm"),
        ("families.copula.family", "copula"),
        ("families.agents", "agents"),
        ("families.ngram", "ngram"),
        ("families.vae.family", "vae"),
        ("families.image_diffusion.family", "image_diffusion"),
        ("families.geodiff.family", "geodiff=GeoDiff"),
        ("families.transformer.family", "transformer"),
        ("families.finetune.family", "finetune"),
        ("families.command.family", "command=CommandFamily"),
    ),
    "source": _targets(
        ("sources.distributions", "gaussian=GaussianSource zipf=ZipfSource linear=LinearSource"),
        ("sources.distributions", "logistic=LogisticSource imbalanced=ImbalancedSource"),
        ("sources.stored_model", "stored_model"),
        ("sources.arrivals", "arrivals"),
        ("sources.shapes", "blobs circles moons swiss_roll"),
        ("sources.tables", "table=TableSource"),
        ("sources.records", "records"),
        ("sources.image_arrays", "digits idx cifar"),
        ("sources.images", "image_folder"),
        ("sources.celeba", "celeba=CelebA"),
        ("sources.hub", "hub_images"),
        ("sources.sdf", "sdf"),
        ("sources.published_molecules", "geom qm9"),
        ("sources.sdf", "smiles"),
        ("sources.expressions", "expressions"),
        ("sources.text_files", "text=TextSource jsonl=JsonlSource"),
        ("sources.text_corpora", "tinystories=TinyStories"),
        ("sources.hub", "hub_text"),
        ("sources.text_corpora", "python_docs"),
    ),
    "metric": _targets(
        ("metrics.true_parameters", "mean_error variance_ratio log_variance_ratio sd_ratio wasserstein kl_divergence"),
        ("metrics.true_parameters", "second_moment heterozygosity support_size unseen_mass complete_support"),
        ("metrics.true_parameters", "symbol_survival excess_risk parameter_error"),
        ("metrics.likelihood", "log_loss accuracy squared_error predicted_share"),
        ("metrics.likelihood", "nll negative_elbo log_likelihood denoising_loss evaluation"),
        ("metrics.downstream", "downstream"),
        ("metrics.tabular", "marginal_distance correlation_distance detectability lost_categories record_distance"),
        ("metrics.image_distances", "pixel_std pixel_frechet feature_frechet kernel_distance"),
        ("metrics.image_neighbors", "precision coverage training_distance feature_entropy"),
        ("metrics.image_distances", "feature_diversity"),
        ("metrics.image_modes", "modes attributes"),
        ("metrics.molecules", "conformer_coverage conformer_diversity bond_length_distance"),
        ("metrics.molecules", "clash_rate strain_energy retry_rate"),
        ("metrics.text", "long_documents cross_entropy self_cross_entropy text_length vocabulary tail_mass"),
        ("metrics.text", "token_survival distinct self_bleu repetition duplicate_rate memorization"),
        ("metrics.text_features", "correct_rate"),
        ("metrics.arrivals", "contamination"),
        ("metrics.text_features", "mauve text_frechet"),
    ),
    "curator": _targets(
        ("curators.selection", "verifier top_share best_of deduplicate entropy_choice detector"),
        ("curators.edits", "corrector token_edit rephrase"),
        ("curators.command", "command"),
    ),
    "score": _targets(
        ("curators.scores", "correctness column=ColumnValue closeness likelihood=LikelihoodScore metric=MetricValue"),
        ("curators.selection", "classifier=ClassProbability"),
    ),
    "criterion": _targets(
        ("criteria.definitions", "catastrophic_increase any_increase divergence scaling_law_change"),
        ("criteria.definitions", "collapsing_variance mode_entanglement tail_loss hallucination"),
    ),
}


@cache
def component_names(kind: str) -> dict[str, str]:
    """Components of a kind, name -> "module:Class": built-ins and installed entry points (group selfloop.<kind>)."""
    installed = {entry.name: entry.value for entry in entry_points(group=f"selfloop.{kind}")}
    return {**installed, **BUILT_IN.get(kind, {})}


def usable_names(kind: str) -> list[str]:
    """Components of a kind whose code can be loaded. A plugin whose code cannot is named in a warning."""
    usable = []
    for name in component_names(kind):
        try:
            component_class(kind, name, kind)
            usable.append(name)
        except SelfloopError as problem:
            warnings.warn(f"{problem} Left out.", stacklevel=2)
    return usable


def component_class(kind: str, name: str, key: str) -> type[Component]:
    """The class of that name; SpecError with the nearest name if it is unknown, MissingExtraError if it needs an extra."""
    targets = component_names(kind)
    if name not in targets:
        raise SpecError(unknown_name(key, name, targets))
    module, _, attribute = targets[name].partition(":")
    try:
        cls = getattr(import_module(module), attribute)
        problem = "" if isinstance(cls, type) and issubclass(cls, Component) else "it is no component"
    except Exception as error:  # whatever happens in the code of others
        library = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if library in EXTRAS:
            raise missing_extra(f"{key}: {name!r}", library) from None
        if name in BUILT_IN.get(kind, {}):
            raise
        problem = f"{type(error).__name__}: {first_line(error)}"
    if problem:
        raise SpecError(
            f"{key}: {name!r} of a plugin cannot be loaded from {targets[name]} ({problem}). Repair or remove that package."
        )
    return cast(type[Component], cls)


def presets() -> dict[str, Any]:
    """Shipped specs by name, as readable resources."""
    folder = files("selfloop") / "presets"
    return {entry.name.removesuffix(".toml"): entry for entry in folder.iterdir() if entry.name.endswith(".toml")}
