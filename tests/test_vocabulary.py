"""One vocabulary: old names do not come back, and comments, messages and pages keep the rules of prose."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from selfloop.commands.list import component_settings
from selfloop.plugins import BUILT_IN

ROOT = Path(__file__).parents[1]
SOURCE, HERE = ROOT / "src" / "selfloop", Path(__file__)
PYTHON = sorted(path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py") if path != HERE)
OTHER_CODE = sorted(path for ending in ("c", "css", "js", "html", "toml") for path in (ROOT / "src").rglob(f"*.{ending}"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Old words that mean nothing else: they are in no file.
GONE = {
    # values and the loop
    "as_json": "measurement_to_json", "write_rows": "write_measurements", "emits": "new_rows",
    "join_rows": "concat_rows", "by_generation": "iter_generations", "MOST_ROWS": "MAX_BATCH_ROWS", "MOST_SEEDS": "MAX_SEEDS",
    "MOST_GENERATIONS": "MAX_GENERATIONS",
    # components
    "on_holdout": "uses_holdout", "EnsemblePart": "EnsembleTake", "is_default": "has_default_settings",
    "HasLogProb": "SupportsLogProb", "HasTokenLogProb": "SupportsTokenLogProb", "HasElbo": "SupportsElbo",
    "HasDenoisingLoss": "SupportsDenoisingLoss", "HasSecondMoment": "SupportsSecondMoment",
    "HasPooledLogProb": "SupportsEnsembleLogProb", "EstimatesLikelihood": "SupportsLogLikelihood",
    "MeasuresEnsemble": "SupportsEnsembleMeasure",
    # spec, store, engine, result
    "spec_of": "spec_from_table", "label_of": "policy_label", "resolved_points": "Spec.points",
    "draw_real_again": "redraw_outcomes",
    "give_inputs": "draw_inputs", "give_prompts": "draw_prompts", "learn_features": "prepare_features",
    "_recall": "_read_record",
    "_deliver": "_return_result", "_remake": "_rebuild_object", "_sealed": "_with_checksum", "_unsealed": "_verify_checksum",
    "by_stage": "by_step", "digest_of": "digest", "reason_of": "os_error_reason", "here_or_pinned": "resolve_local_or_hub",
    "is_ours": "is_selfloop_warning", "read_arrays": "read_safetensors", "tasks_of": "plan_tasks",
    "in_processes": "execute",
    "_deaf_children": "_start_with_sigint_blocked", "_serve": "_worker_main", "is_ensemble": "runs_as_ensemble",
    "threads_for": "choose_threads", "LIVE_BYTES": "MAX_ENSEMBLE_BYTES", "ledger_metrics": "schedule_metrics",
    # theory, statistics, published values, report
    "has_law": "moments_are_exact", "summarise": "summarize_seeds",
    "claimable": "unmodified_policies",
    "value_of_real": "fit_data_value", "show_gallery": "view_gallery", "turnable": "makeRotatable", "data-at": "data-positions",
    # families, sources, metrics
    "shape_of": "from_hf_config", "config_of": "to_hf_config", "_kept_memory": "_glibc_keep_memory",
    "masked_positions": "budget_positions",
    "is_masked": "has_budget", "fault_of": "reason_to_exclude",
    # keys
    "attribute_list": "attributes_file", "partition_list": "splits_file", "loss_after": "response_template",
    "over_seeds": "aggregate", "pathwise": "geometric_mean", "global_below": "global_start_sigma",
    "discretised": "discretized_logistic",
    # components, metrics, statuses, presets
    "pixel_spread": "pixel_std", "angle_distance": "bond_angle_distance", "retried_share": "retry_rate",
    "memorisation": "memorization", "unparametrised_share": "unparametrized_rate", "curator_starved": "too_few_curated_rows",
    "nothing_to_learn": "no_training_tokens", "kazdan2025_value": "kazdan2025_real_synthetic_grid",
    "kazdan2025_kde_few": "kazdan2025_kde_10_rows", "gerstgrasser2024_tinystories_first": "..._first_model_quality",
    "gerstgrasser2024_tinystories_real": "..._accumulate_real", "gerstgrasser2024_tinystories_size": "..._data_size",
    "gerstgrasser2024_tinystories_steps": "..._equal_steps", "gerstgrasser2024_tinystories_width": "..._model_size",
}  # fmt: skip

# Old names of classes whose word has other meanings: no class has such a name.
GONE_CLASSES = {
    "Row": "Measurement", "Measured": "SeedMeasurements", "Samples": "TrainingRows", "Part": "Take", "Field": "ColumnType",
    "Emission": "NewRows", "Stage": "ScheduleEntry", "Moments": "MomentsWorld", "Stream": "RandomStream", "Setting": "Scenario",
    "Features": "FeatureExtractor", "ImageFeatures": "ImageFeatureExtractor", "Outcome": "EnsembleFit",
    "Statistics": "SufficientStatistics", "Predicts": "SupportsPredict", "Exports": "SupportsExport", "Checks": "SupportsCheck",
    "Prepares": "SupportsPrepare", "Relabels": "SupportsRelabel", "Ensemble": "SupportsEnsemble",
    "Sufficient": "SupportsSufficientStatistics", "Encodes": "UsesEncoder", "Corpus": "CorpusSource",
    "Arranges": "GroupedCorpusSource", "Axes": "Coordinates", "Ref": "ObjectRef", "Call": "StepCall", "Named": "NamedArrays",
    "Chain": "ChainSettings", "Chains": "EnsembleModel", "Held": "EnsembleBatch", "Block": "SeedBlock", "Done": "TaskOutput",
    "Mapper": "Executor", "Found": "StoredGeneration", "Planned": "PolicyCost",
    "Prediction": "LawCurve", "PublishedPoints": "PanelPublished", "Learner": "MomentEstimator",
    "Summary": "SeedSummary", "Value": "DataValue", "Cell": "GridCell", "Work": "Paper", "Table": "PublishedTable",
    "Grid": "PublishedGrid", "Overlay": "PublishedCurve", "Line": "ReproducedValue", "Ledger": "ScheduleTable",
    "Worth": "DataValuePanel", "Shares": "CategoryShares", "Differences": "Comparison", "Show": "GalleryView",
    "Scene": "MoleculeView", "Story": "TextRow", "Text": "TextExcerpt or TextSource", "Mosaic": "ImageGrid",
    "Shape": "TransformerConfig", "Place": "AttentionContext", "Looped": "TorchDecoder", "Compiled": "CDecoder",
    "Job": "DecodeRequest", "Weights": "DecoderWeights", "Windows": "TokenWindows",
    "_State": "_TrainingState", "_Group": "_ParamGroup", "_Saver": "_Checkpointer", "Training": "TrainingSettings",
    "Path": "NoiseProcess", "Cells": "PairSegments", "Directions": "DirectedPairs",
    "Pictures": "EncodedImageSource", "ImageFiles": "ImageSource", "Form": "ImageForm", "Reading": "ImageReader",
    "Documents": "DocumentSource", "Molecules": "MoleculeSource", "Tally": "Exclusions", "Reach": "BallCounts",
    "Zipf": "ZipfSource", "Network": "GeoDiffNetwork or TransformerNetwork", "Counts": "FixedCounts",
}  # fmt: skip

# Old names of functions, attributes and constants whose word has other meanings: the named files do not define them.
GONE_MEMBERS: Mapping[str, Mapping[str, str]] = {
    "types.py": {"parts": "takes", "learned": "prepared", "only": "select_columns"},
    "component.py": {
        "law": "exact_family", "capacity": "n_rows", "available": "n_usable_rows", "given": "draw_inputs",
        "columns": "required_columns", "units": "secondary_units", "published": "reference_model", "at": "for_generation",
        "prompts": "draw_prompts", "learn": "prepare", "describe": "extract", "new": "samples", "needs": "family_protocols",
        "compares": "true_params", "titles": "secondary_titles",
    },
    "protocols.py": {"arrange": "order_rows", "kept": "cache", "chosen": "indices"},
    "spec/*.py": {
        "component": "make_component", "build": "make_settings", "labels": "policy_labels", "risk": "risk_metric",
        "setting": "scenario", "axes": "coordinates", "start": "init_from",
    },
    "plugins.py": {"names": "component_names"},
    "store/*.py": {
        "stage": "stored_step", "looking": "read_only", "remembering": "record_calls", "recorded": "lookup",
        "_keep": "_write_result", "_ready": "_open_arguments", "_note": "_count_call", "_stamp": "_file_stat",
        "said": "warnings",
        "saved": "seconds_saved",
    },
    "formats/*.py": {"packed": "to_safetensors", "gathered": "gather_rows"},
    "engine/*.py": {
        "choose": "take_corpus_rows", "learn": "prepare_encoder", "read": "encode_corpus", "read_rows": "read_corpus",
        "prepare": "prepare_metric", "describe": "extract_features", "real": "draw_real", "parts": "run_tasks",
        "work": "run_task_in_worker", "stream": "iter_measurements", "in_process": "execute", "rows_of": "cost_in_rows",
        "DOUBLED": "SPEEDUP_PER_DOUBLING", "of": "arrays", "put": "add", "enter": "add_seeds", "ABSENT": "NO_MEASUREMENT",
    },
    "result.py": {"rows": "measurements", "ledger": "schedules", "cells": "grid_cells", "frame": "to_pandas"},
    "theory/*.py": {"predictions": "law_curves", "holds": "is_met", "kernel": "kernel_variance", "known": "known_variances"},
    "stats/*.py": {
        "inflection": "inflection_point", "creep": "rise_after_minimum", "upper": "higher",
        "SINCE": "FIRST_COMPARED", "CLAIMED": "claims in published/",
    },
    "published/*.py": {"works": "papers", "overlays": "published_curves"},
    "families/transformer/*.py": {
        "model_of": "build_hf_model", "compiled": "try_c_decoder", "_mixed": "rng.splitmix64",
    },
    "families/nn/*.py": {"at_once": "micro_batch", "FACTS": "FIT_INFO"},
    "families/image_diffusion/network.py": {
        "told": "network_times", "answer": "prediction", "spread": "times_at", "draw": "draw_times",
        "levels": "signal_and_noise",
    },
    "families/geodiff/*.py": {
        "bends": "breakpoints", "hear": "aggregate_relu", "hears": "receives", "around": "cutoff_edges", "ways": "directions",
    },
    "families/*.py": {
        "lift": "as_one_seed", "added": "sum_in_order", "pick": "gather_across_takes", "multiplicity": "row_counts",
        "split": "split_generator", "root": "matrix_root", "_carry": "_keep_ended_chains",
    },
    "families/finetune/*.py": {"targets": "target_modules"},
    "sources/*.py": {"opened": "open_image"},
    "metrics/*.py": {"mixed": "rng.splitmix64", "reach": "count_in_balls", "nearest": "k_nearest"},
    "*.py": {
        **dict.fromkeys(
            ("TINY", "SMALL", "FLAT", "HEAVY", "WORTH", "REACH", "LOST", "SHOWN", "AT_ONCE", "BLOCK", "PIECE"),
            "a constant with quantity and unit",
        ),
        **dict.fromkeys(("MOST_*", "LARGEST_*", "LONGEST_*", "HEAVIEST*"), "MAX_*"),
        **dict.fromkeys(("FEWEST_*", "LEAST_*", "SHORTEST*", "LOWEST*"), "MIN_*"),
    },
}  # fmt: skip

# Names of arguments and local variables that are no nouns.
GONE_VARIABLES = {
    "found", "made", "taken", "kept", "held", "given", "told", "chosen", "shown", "aside", "here", "there", "whose", "mine",
    "ours", "theirs", "alike", "heard", "where", "each",
}  # fmt: skip

# Old settings, as kind: component.setting.
OLD_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "policy": {
        "mix.real": "real_share", "accumulate_real.share": "real_share", "incremental.share": "replaced_share",
        "expanding.share": "ratio", "fixed_counts.real": "real_rows", "fixed_counts.synthetic": "synthetic_rows",
        "fixed_counts.pool": "sampled_rows", "custom.real": "real_rows", "custom.synthetic": "synthetic_rows",
    },
    "source": {
        "*.colour": "color_mode", "*.color": "color_mode", "*.damaged": "on_bad_image", "celeba.crop": "crop_size",
        "celeba.partition": "split", "jsonl.format": "template", "hub_text.format": "template", "*.validation": "holdout_share",
        "tinystories.validation_rows": "holdout_rows", "*.head": "first_group_size", "*.group": "group_size",
        "table.table": "dataset or path", "logistic.norm": "coefficient_norm", "zipf.size": "n_symbols", "*.optimise": "relax",
    },
    "family": {
        "*.training.batch": "batch_size", "*.training.clip": "max_grad_norm", "*.training.ema": "ema_decay",
        "*.training.schedule": "lr_schedule", "*.training.checkpoint": "checkpoint_seconds", "*.training.grow": "scale_batch",
        "*.training.first_steps": "first_generation_steps", "discrete.symbols": "n_symbols", "*.mlp": "mlp_hidden",
        "*.tied": "tie_embeddings", "*.packing": "cross_document_attention", "finetune.base": "base_model",
        "finetune.long": "long_documents", "image_diffusion.schedule": "noise_schedule",
        "image_diffusion.blocks": "blocks_per_level",
        "image_diffusion.patch": "patch_size", "image_diffusion.classes": "n_classes", "vae.mean": "output_activation",
        "*.sampler.batch": "batch_size", "*.sampler.beams": "num_beams", "*.sampler.prefix": "prefix_tokens",
        "*.sampler.truncation": "temperature", "*.sampler.power": "time_power", "vae.sampler.noise": "sample_pixels",
        "geodiff.levels": "noise_levels", "geodiff.smooth": "smooth_cutoff", "geodiff.sampler.step": "step_size",
        "geodiff.sampler.clip": "clip_global",
    },
    "metric": {
        "*.rows": "max_rows", "*.tokens": "max_tokens", "*.molecules": "max_molecules", "*.samples": "importance_samples",
        "*.draws": "noise_draws", "*.length": "ngram", "*.sure": "min_probability", "*.closest": "radius_factor",
        "*.scale": "scaling_factor",
    },
    "criterion": {"*.evidence": "min_weight", "*.flat": "flat_tolerance", "*.change": "exponent_change"},
}  # fmt: skip

OLD_COMPONENTS = {
    "policy": {"counts"},
    "source": {"hub", "images"},
    "metric": {"frechet", "entropy", "support", "log_variance", "geometry", "clashes", "zipf"},
}

BRITISH = (
    r"colour", r"neighbour", r"(?:un|re)?normalis", r"modell(?:ed|ing)", r"\bgrey", r"memoris", r"optimis(?:e|ation|ing)",
    r"behaviour", r"summaris", r"discretis", r"initialis", r"recognis", r"parametris", r"\bcentre", r"artefact",
    r"analys(?:e|ing)\b",
    r"favour", r"labell(?:ed|ing)", r"generalis", r"regularis", r"tokenis", r"quantis", r"realis(?:e|ing)", r"organis",
    r"randomis",
    r"vectoris", r"standardis", r"penalis", r"minimis", r"maximis", r"utilis", r"\bcancell", r"signall", r"travell", r"honour",
    r"serialis", r"visualis", r"\bhalv(?:e|ing) of\b", r"\bsceptic", r"\bmetre", r"litre", r"programme\b",
)  # fmt: skip
PHRASES = (
    r"slip of the pen", r"\bmend(?:s|ed|ing)?\b", r"\bc[ao]m(?:e|es|ing) into being", r"\bso many\b", r"\balike\b",
    r"\bs gone\b",
    r"\bwhat (?:is|was|are|were)\b", r"\b(?:says|tells|hears|knows|knew|remembers|remembered|told)\b",
    r"^##+ (?:What|How|Why)\b",
)  # fmt: skip
KEPT = (r"https?://\S+", r"`[^`]*`")  # addresses and code are not prose


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_old_words_are_in_no_file() -> None:
    words = re.compile(r"\b(" + "|".join(map(re.escape, GONE)) + r")\b")
    places = [
        f"{path.relative_to(ROOT)}:{i}: {match.group()} is now {GONE[match.group()]}"
        for path in [*PYTHON, *OTHER_CODE, *PAGES]
        for i, line in enumerate(text(path).splitlines(), 1)
        for match in words.finditer(line)
    ]
    assert not places, "\n".join(places)


def members(path: Path) -> Iterator[tuple[str, int]]:
    """Names and lines of the functions, classes, fields and constants that a file defines."""
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        if isinstance(node, ast.Module | ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, ast.Assign | ast.AnnAssign):
                    yield from ((n.id, n.lineno) for n in ast.walk(statement) if isinstance(n, ast.Name) and _is_bound(n))


def _is_bound(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def variables(path: Path) -> Iterator[tuple[str, int]]:
    """Names and lines of the arguments and variables of a file, without those of comprehensions of one line."""
    tree = ast.parse(text(path))
    short = [n for n in ast.walk(tree) if isinstance(n, ast.comprehension) and n.target.lineno == n.iter.end_lineno]
    skipped = {id(name) for node in short for name in ast.walk(node.target)}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and _is_bound(node) and id(node) not in skipped:
            yield node.id, node.lineno


def test_old_class_names_are_gone() -> None:
    classes = [
        f"{path.relative_to(ROOT)}: {node.name} is now {GONE_CLASSES[node.name]}"
        for path in PYTHON
        for node in ast.walk(ast.parse(text(path)))
        if isinstance(node, ast.ClassDef) and node.name in GONE_CLASSES
    ]
    assert not classes, "\n".join(classes)


def test_old_style_classes_are_gone() -> None:
    old = "who|when|rests|wide|turns|live"
    classes = re.compile(rf"(?<=\.)(?:{old})(?=[\s,.:{{>])|class=\"(?:[\w -]* )?(?:{old})[ \"]")
    pages = [path for path in OTHER_CODE if path.suffix in (".css", ".html", ".js")]
    assert {path.name: classes.findall(text(path)) for path in pages} == {path.name: [] for path in pages}


@pytest.mark.parametrize("pattern", GONE_MEMBERS)
def test_old_names_are_not_defined_again(pattern: str) -> None:
    leftovers = [
        f"{path.relative_to(SOURCE)}:{line}: {name} is now {new}"
        for path in SOURCE.rglob("*.py")
        if fnmatch(path.relative_to(SOURCE).as_posix(), pattern)
        for name, line in members(path)
        for old, new in GONE_MEMBERS[pattern].items()
        if fnmatch(name, old)
    ]
    assert not leftovers, "\n".join(leftovers)


def test_variables_have_the_names_of_things() -> None:
    leftovers = [
        f"{path.relative_to(SOURCE)}:{line}: {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for name, line in variables(path)
        if name in GONE_VARIABLES
    ]
    assert not leftovers, "\n".join(leftovers)


@pytest.mark.parametrize("kind", OLD_SETTINGS)
def test_no_component_has_an_old_setting(kind: str) -> None:
    names = [f"{name}.{setting.name}" for name in BUILT_IN[kind] for setting in component_settings(kind, name)[1]]
    assert [f"{name} is now {new}" for name in names for old, new in OLD_SETTINGS[kind].items() if fnmatch(name, old)] == []


def test_no_component_has_an_old_name() -> None:
    assert {kind: old & set(BUILT_IN[kind]) for kind, old in OLD_COMPONENTS.items()} == {kind: set() for kind in OLD_COMPONENTS}


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_setting_has_a_description(kind: str) -> None:
    settings = [(name, setting) for name in BUILT_IN[kind] for setting in component_settings(kind, name)[1]]
    assert [f"{name}.{setting.name}" for name, setting in settings if not setting.description] == []


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Comments, strings and docstrings of a Python file, or the lines of a page, with their line numbers."""
    if path.suffix != ".py":
        yield from enumerate(text(path).splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text(path)).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for i, line in enumerate(token.string.splitlines()):
                yield token.start[0] + i, line


@pytest.mark.parametrize("rules", [BRITISH, PHRASES], ids=["American spelling", "plain phrases"])
def test_prose_keeps_the_rules(rules: tuple[str, ...]) -> None:
    banned, kept = re.compile("|".join(rules), re.I), re.compile("|".join(KEPT))
    places = [
        f"{path.relative_to(ROOT)}:{i}: {match.group()}"
        for path in [*PYTHON, *OTHER_CODE, *PAGES]
        for i, line in prose(path)
        for match in banned.finditer(kept.sub("", line))
    ]
    assert not places, "\n".join(places)


def test_the_rules_find_what_they_ban() -> None:
    assert len(re.findall("|".join(PHRASES), "The store remembers what was drawn.")) == 2
    assert re.search("|".join(BRITISH), "a greyscale colour")
    assert {"GONE", "members"} <= {name for name, _ in members(HERE)}
