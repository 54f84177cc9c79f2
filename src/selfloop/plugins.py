"""Components by kind and name: one line per built-in, entry points for the rest; nothing is imported before it is asked for."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any, cast

from selfloop.component import Component
from selfloop.errors import EXTRAS, SelfloopError, SpecError, first_line, missing_extra, unknown_name

BUILT_IN: dict[str, dict[str, str]] = {
    "policy": {
        "replace": "selfloop.policies.builtin:Replace",
        "accumulate": "selfloop.policies.builtin:Accumulate",
        "accumulate_subsample": "selfloop.policies.builtin:AccumulateSubsample",
        "replace_multiple": "selfloop.policies.cycles:ReplaceMultiple",
        "window": "selfloop.policies.builtin:Window",
        "augment": "selfloop.policies.builtin:Augment",
        "mix": "selfloop.policies.builtin:Mix",
        "fresh": "selfloop.policies.builtin:Fresh",
        "accumulate_real": "selfloop.policies.builtin:AccumulateReal",
        "balanced": "selfloop.policies.cycles:Balanced",
        "incremental": "selfloop.policies.cycles:Incremental",
        "expanding": "selfloop.policies.cycles:Expanding",
        "growing": "selfloop.policies.cycles:Growing",
        "fixed_counts": "selfloop.policies.custom:FixedCounts",
        "control": "selfloop.policies.combined:Control",
        "switch": "selfloop.policies.combined:Switch",
        "curated": "selfloop.policies.combined:Curated",
        "custom": "selfloop.policies.custom:Custom",
    },
    "family": {
        "gaussian": "selfloop.families.gaussian:Gaussian",
        "discrete": "selfloop.families.discrete:Discrete",
        "linear": "selfloop.families.linear:Linear",
        "kernel_ridge": "selfloop.families.kernel_ridge:KernelRidge",
        "random_features": "selfloop.families.kernel_ridge:RandomFeatures",
        "glm": "selfloop.families.glm:Glm",
        "kde": "selfloop.families.kde:Kde",
        "gmm": "selfloop.families.gmm:Gmm",
        "copula": "selfloop.families.copula.family:Copula",
        "agents": "selfloop.families.agents:Agents",
        "ngram": "selfloop.families.ngram:Ngram",
        "vae": "selfloop.families.vae.family:Vae",
        "image_diffusion": "selfloop.families.image_diffusion.family:ImageDiffusion",
        "geodiff": "selfloop.families.geodiff.family:GeoDiff",
        "transformer": "selfloop.families.transformer.family:Transformer",
        "finetune": "selfloop.families.finetune.family:Finetune",
        "command": "selfloop.families.command.family:CommandFamily",
    },
    "source": {
        "gaussian": "selfloop.sources.distributions:GaussianSource",
        "zipf": "selfloop.sources.distributions:ZipfSource",
        "linear": "selfloop.sources.distributions:LinearSource",
        "logistic": "selfloop.sources.distributions:LogisticSource",
        "imbalanced": "selfloop.sources.distributions:ImbalancedSource",
        "stored_model": "selfloop.sources.stored_model:StoredModel",
        "arrivals": "selfloop.sources.arrivals:Arrivals",
        "blobs": "selfloop.sources.shapes:Blobs",
        "circles": "selfloop.sources.shapes:Circles",
        "moons": "selfloop.sources.shapes:Moons",
        "swiss_roll": "selfloop.sources.shapes:SwissRoll",
        "table": "selfloop.sources.tables:TableSource",
        "records": "selfloop.sources.records:Records",
        "digits": "selfloop.sources.image_arrays:Digits",
        "idx": "selfloop.sources.image_arrays:Idx",
        "cifar": "selfloop.sources.image_arrays:Cifar",
        "image_folder": "selfloop.sources.images:ImageFolder",
        "celeba": "selfloop.sources.celeba:CelebA",
        "hub_images": "selfloop.sources.hub:HubImages",
        "sdf": "selfloop.sources.sdf:Sdf",
        "geom": "selfloop.sources.published_molecules:Geom",
        "qm9": "selfloop.sources.published_molecules:Qm9",
        "smiles": "selfloop.sources.sdf:Smiles",
        "expressions": "selfloop.sources.expressions:Expressions",
        "text": "selfloop.sources.text_files:TextSource",
        "jsonl": "selfloop.sources.text_files:JsonlSource",
        "tinystories": "selfloop.sources.text_corpora:TinyStories",
        "hub_text": "selfloop.sources.hub:HubText",
        "python_docs": "selfloop.sources.text_corpora:PythonDocs",
    },
    "metric": {
        "mean_error": "selfloop.metrics.true_parameters:MeanError",
        "variance_ratio": "selfloop.metrics.true_parameters:VarianceRatio",
        "log_variance_ratio": "selfloop.metrics.true_parameters:LogVarianceRatio",
        "sd_ratio": "selfloop.metrics.true_parameters:SdRatio",
        "wasserstein": "selfloop.metrics.true_parameters:Wasserstein",
        "kl_divergence": "selfloop.metrics.true_parameters:KlDivergence",
        "second_moment": "selfloop.metrics.true_parameters:SecondMoment",
        "heterozygosity": "selfloop.metrics.true_parameters:Heterozygosity",
        "support_size": "selfloop.metrics.true_parameters:SupportSize",
        "unseen_mass": "selfloop.metrics.true_parameters:UnseenMass",
        "complete_support": "selfloop.metrics.true_parameters:CompleteSupport",
        "symbol_survival": "selfloop.metrics.survival:SymbolSurvival",
        "excess_risk": "selfloop.metrics.true_parameters:ExcessRisk",
        "parameter_error": "selfloop.metrics.true_parameters:ParameterError",
        "log_loss": "selfloop.metrics.likelihood:LogLoss",
        "accuracy": "selfloop.metrics.likelihood:Accuracy",
        "squared_error": "selfloop.metrics.likelihood:SquaredError",
        "predicted_share": "selfloop.metrics.likelihood:PredictedShare",
        "nll": "selfloop.metrics.likelihood:Nll",
        "negative_elbo": "selfloop.metrics.likelihood:NegativeElbo",
        "log_likelihood": "selfloop.metrics.likelihood:LogLikelihood",
        "denoising_loss": "selfloop.metrics.likelihood:DenoisingLoss",
        "evaluation": "selfloop.metrics.evaluation:Evaluation",
        "downstream": "selfloop.metrics.downstream:Downstream",
        "marginal_distance": "selfloop.metrics.tabular:MarginalDistance",
        "correlation_distance": "selfloop.metrics.tabular:CorrelationDistance",
        "detectability": "selfloop.metrics.tabular:Detectability",
        "lost_categories": "selfloop.metrics.tabular:LostCategories",
        "record_distance": "selfloop.metrics.tabular:RecordDistance",
        "pixel_std": "selfloop.metrics.image_distances:PixelStd",
        "pixel_frechet": "selfloop.metrics.image_distances:PixelFrechet",
        "feature_frechet": "selfloop.metrics.image_distances:FeatureFrechet",
        "kernel_distance": "selfloop.metrics.image_distances:KernelDistance",
        "precision": "selfloop.metrics.image_neighbors:Precision",
        "coverage": "selfloop.metrics.image_neighbors:Coverage",
        "training_distance": "selfloop.metrics.image_neighbors:TrainingDistance",
        "feature_entropy": "selfloop.metrics.image_neighbors:FeatureEntropy",
        "feature_diversity": "selfloop.metrics.image_distances:FeatureDiversity",
        "modes": "selfloop.metrics.image_modes:Modes",
        "attributes": "selfloop.metrics.image_modes:Attributes",
        "conformer_coverage": "selfloop.metrics.molecules:ConformerCoverage",
        "conformer_diversity": "selfloop.metrics.molecules:ConformerDiversity",
        "bond_length_distance": "selfloop.metrics.molecules:BondLengthDistance",
        "clash_rate": "selfloop.metrics.molecules:ClashRate",
        "strain_energy": "selfloop.metrics.molecules:StrainEnergy",
        "retry_rate": "selfloop.metrics.molecules:RetryRate",
        "long_documents": "selfloop.metrics.text:LongDocuments",
        "cross_entropy": "selfloop.metrics.text:CrossEntropy",
        "self_cross_entropy": "selfloop.metrics.text:SelfCrossEntropy",
        "text_length": "selfloop.metrics.text:TextLength",
        "vocabulary": "selfloop.metrics.text:Vocabulary",
        "tail_mass": "selfloop.metrics.text:TailMass",
        "token_survival": "selfloop.metrics.survival:TokenSurvival",
        "distinct": "selfloop.metrics.text:Distinct",
        "self_bleu": "selfloop.metrics.text:SelfBleu",
        "repetition": "selfloop.metrics.text:Repetition",
        "duplicate_rate": "selfloop.metrics.text:DuplicateRate",
        "memorization": "selfloop.metrics.text:Memorization",
        "correct_rate": "selfloop.metrics.text_features:CorrectRate",
        "contamination": "selfloop.metrics.arrivals:Contamination",
        "mauve": "selfloop.metrics.text_features:Mauve",
        "text_frechet": "selfloop.metrics.text_features:TextFrechet",
    },
    "curator": {
        "verifier": "selfloop.curators.selection:Verifier",
        "top_share": "selfloop.curators.selection:TopShare",
        "best_of": "selfloop.curators.selection:BestOf",
        "deduplicate": "selfloop.curators.selection:Deduplicate",
        "entropy_choice": "selfloop.curators.selection:EntropyChoice",
        "detector": "selfloop.curators.selection:Detector",
        "corrector": "selfloop.curators.edits:Corrector",
        "token_edit": "selfloop.curators.edits:TokenEdit",
        "rephrase": "selfloop.curators.edits:Rephrase",
        "command": "selfloop.curators.command:Command",
    },
    "score": {
        "correctness": "selfloop.curators.scores:Correctness",
        "column": "selfloop.curators.scores:ColumnValue",
        "closeness": "selfloop.curators.scores:Closeness",
        "likelihood": "selfloop.curators.scores:LikelihoodScore",
        "metric": "selfloop.curators.scores:MetricValue",
        "classifier": "selfloop.curators.selection:ClassProbability",
    },
    "criterion": {
        "catastrophic_increase": "selfloop.criteria.definitions:CatastrophicIncrease",
        "any_increase": "selfloop.criteria.definitions:AnyIncrease",
        "divergence": "selfloop.criteria.definitions:Divergence",
        "scaling_law_change": "selfloop.criteria.definitions:ScalingLawChange",
        "collapsing_variance": "selfloop.criteria.definitions:CollapsingVariance",
        "mode_entanglement": "selfloop.criteria.definitions:ModeEntanglement",
        "tail_loss": "selfloop.criteria.definitions:TailLoss",
        "hallucination": "selfloop.criteria.definitions:Hallucination",
    },
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
