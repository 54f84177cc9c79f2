"""Every setting changes the key and a number, or is refused where it cannot: none is accepted and then ignored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest

from selfloop.columns import Columns, Ragged
from selfloop.component import Component, Context
from selfloop.errors import ChainEndedError, SelfloopError, SpecError
from selfloop.plugins import component_names
from selfloop.policies.builtin import AccumulateSubsample
from selfloop.policies.schedule import schedule
from selfloop.protocols import UsesEncoder
from selfloop.rng import RandomStream
from selfloop.settings import describe_fields, setting_types
from selfloop.spec.components import make_component
from selfloop.spec.spec import Spec
from selfloop.store.identity import digest, identity
from selfloop.types import RowTake, TrainingRows
from tiny_components import FAMILIES, small_source

CONTEXT = Context(RandomStream(("settings",)))
BASE = 'n = 30\nholdout = 20\ngenerations = 2\nseeds = 1\npolicies = ["replace"]\n'
SPEED_OR_MACHINE = {  # they decide how fast, and on some machines the rounding
    "training.checkpoint_seconds", "training.compile", "training.precision", "sampler.batch_size",
}  # fmt: skip
BY_HAND: dict[str, Any] = {  # a value that differs, where a number or a choice next to the default would not tell
    "glm.link": None,  # Poisson regression of other outcomes
    "discrete.n_symbols": 25,
    "linear.sampler.noise": 2.0,
    "kde.bandwidth": 0.7,
    "gmm.iterations": 2,
    "gmm.tolerance": 10.0,
    "ngram.vocab": 270,
    "ngram.tokenizer": None,  # a file
    "ngram.sampler.num_beams": "refused",
    "vae.channels": (4,),
    "vae.training.scale_batch": None,  # their batch_size would change nothing then, and is refused
    "image_diffusion.training.scale_batch": None,
    "vae.hidden": 9,
    "vae.likelihood": "discretized_logistic",
    "image_diffusion.n_classes": None,  # needs labels
    "image_diffusion.channels": (12, 8),
    "image_diffusion.patch_size": 2,
    "image_diffusion.label_dropout": "refused",
    "image_diffusion.sampler.guidance": "refused",
    "geodiff.training.precision": "refused",
    "geodiff.training.max_grad_norm": 1e-3,
    "geodiff.sampler.steps": 7,
    "geodiff.sampler.clip_global": 1e-6,
    "geodiff.sampler.global_start_sigma": 0.0,
    "geodiff.sampler.eta": "refused",
    "transformer.arch": "llama",
    "transformer.heads": 4,
    "transformer.hidden": 12,
    "transformer.kv_heads": "refused",
    "transformer.mlp_hidden": 12,
    "transformer.tokenizer": None,  # a file
    "transformer.vocab": 290,
    "transformer.tie_embeddings": False,
    "transformer.loss_truncation": 1e-3,
    "sampler.top_k": 3,
    "sampler.top_p": 0.3,
    "transformer.sampler.num_beams": 2,
    "sampler.prompt": "first_token",
    "sampler.prefix_tokens": "refused",
    "sampler.max_tokens": 5,
    "sampler.response_template": None,  # for prompt 'before'
    "sampler.decoder": None,  # for an extra that is absent: tests/families/test_decoder_vllm.py
    "sampler.longest_row": "refused",  # the family sets both
    "sampler.longest_prompt": "refused",
    "training.epochs": "refused",
    "training.first_generation_steps": 2,
    "training.scale_batch": True,
    "training.ema_decay": 0.5,
    "training.max_grad_norm": 1e-3,
    "training.warmup": 2.0,
}


def changed_value(hint: Any, value: Any) -> Any:
    """Another allowed value of a setting."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.6 or 0.25
    if value is None:  # an optional number that is refused whatever it is
        return 2
    choices = [word for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)]
    assert choices, f"{hint}: name another value in BY_HAND"
    return next(word for word in choices if word != value)


def all_settings(component: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(Dotted name, annotation, value) of every setting, in nested tables too."""
    for setting in describe_fields(type(component)):
        value = getattr(component, setting.name)
        if is_dataclass(value):
            yield from all_settings(value, f"{prefix}{setting.name}.")
        else:
            yield prefix + setting.name, setting_types(type(component))[setting.name], value


def cases() -> Iterator[Any]:
    for family in FAMILIES:
        made = make_component("family", FAMILIES[family][0], "family")
        for prefix, component in (("", made), ("sampler.", type(made).sampler_class())):
            for name, hint, value in all_settings(component, prefix):
                if name in SPEED_OR_MACHINE and f"{family}.{name}" not in BY_HAND:
                    continue
                by_hand = BY_HAND.get(f"{family}.{name}", BY_HAND.get(name, ...))
                if by_hand is not None:
                    new = changed_value(hint, value) if by_hand in (..., "refused") else by_hand
                    yield pytest.param(family, name, new, by_hand == "refused", id=f"{family}.{name}")


def with_setting(family: str, name: str, value: Any) -> Spec:
    made = make_component("family", FAMILIES[family][0], "family")
    table: Any = value
    for part in reversed(name.split(".")):
        table = {part: table}
    from selfloop.spec.components import change_settings

    settings = {key: inner for key, inner in table.items() if key != "sampler"}
    return Spec(
        source=small_source(family), family=change_settings(made, settings, "family"), sampler=table.get("sampler"), n=30,
        holdout=None if small_source(family).n_holdout() is not None else 20, generations=2, seeds=1, policies=["replace"],
    )  # fmt: skip


def flat(columns: Columns) -> str:
    """Digest of the numbers in columns, without those that only say how they were made."""
    arrays = [column.values if isinstance(column, Ragged) else column for _, column in sorted(columns.items())]
    return digest(*(np.ascontiguousarray(array).tobytes() for array in arrays))


@cache
def training_rows(family: str) -> tuple[Columns, Columns]:
    source = small_source(family)
    rows = source.draw(0, 40, CONTEXT.child("source"))
    return rows, source.draw_inputs(20, rows, CONTEXT.child("source"))


def numbers(spec: Spec) -> str:
    """Digest of a tiny model and of its samples."""
    family, (rows, inputs), prepared = spec.family.for_generation(1), training_rows(spec.family.name), dict[str, Any]()
    if isinstance(family, UsesEncoder):
        encoder = family.encoder()
        prepared = dict(encoder.prepare([rows], CONTEXT.child("encoder")))
        rows = encoder.encode(rows, prepared)
    try:  # two takes: their weights and means are settings' business
        takes = RowTake(rows, np.arange(15)), RowTake(rows, np.arange(15, 40), 2.0)
        params = family.fit(TrainingRows(takes, prepared), CONTEXT.child("fit"), None)
        inputs = spec.sampler.draw_prompts(20, rows, CONTEXT) or inputs
        samples = family.sample(params, 20, spec.sampler.for_generation(1, {}), inputs, CONTEXT.child("sample"))
    except ChainEndedError as end:
        return end.status
    return f"{flat({k: v for k, v in params.items() if not k.startswith('training/')})} {flat(samples)}"


@cache
def default_numbers(family: str) -> tuple[str, str]:
    spec = with_setting(family, "sampler", {})
    return json.dumps([identity(spec.family), identity(spec.sampler)]), numbers(spec)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name", "value", "is_refused"), list(cases()))
def test_a_setting_of_a_family_changes_its_key_and_its_numbers_or_is_refused(
    family: str, name: str, value: Any, is_refused: bool
) -> None:
    if is_refused:
        with pytest.raises(SelfloopError, match=rf"{name.rpartition('.')[2]}: got"):
            with_setting(family, name, value).points()
        return
    spec = with_setting(family, name, value)
    assert spec.points()
    key, before = default_numbers(family)
    assert json.dumps([identity(spec.family), identity(spec.sampler)]) != key
    assert numbers(spec) != before


POLICY_SETTINGS: dict[str, dict[str, Any]] = {
    "fixed_counts": {"real_rows": 7, "synthetic_rows": 9},
    "switch": {"to": "accumulate", "at": 4},
    "curated": {"curators": ["deduplicate"]},
    "custom": {"takes": [{"batch": "synthetic(1..t-1)"}, {"batch": "real(1)"}], "real_rows": "n", "synthetic_rows": "n"},
}
POLICY_VALUES = {
    "of": AccumulateSubsample(),
    "to": AccumulateSubsample(),
    "rows": "initial",
    "budget": 17,
    "real_mass": 0.2,
    "sampled_rows": 12,
    "real_rows": 5,
    "synthetic_rows": 8,
}
POLICY_CASES = [
    (name, setting.name)
    for name in component_names("policy")
    for setting in describe_fields(type(make_component("policy", {"name": name, **POLICY_SETTINGS.get(name, {})}, "policy")))
    if setting.name not in ("takes", "generations", "curators", "max_rounds")  # curators leave a schedule as it is
]


@pytest.mark.parametrize(("name", "setting"), POLICY_CASES)
def test_a_setting_of_a_policy_changes_its_schedule(name: str, setting: str) -> None:
    policy: Component = make_component("policy", {"name": name, **POLICY_SETTINGS.get(name, {})}, "policy")
    value = getattr(policy, setting)
    new = POLICY_VALUES.get(setting, value * 0.6 or 0.5 if isinstance(value, float) else 3)
    changed = replace(policy, **{setting: new})  # type: ignore[type-var]
    plans = [[(entry.new_rows, entry.plan) for entry in schedule(p, 40, 6)] for p in (policy, changed)]  # type: ignore[arg-type]
    assert plans[0] != plans[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"family": {"name": "vae", "training": {"steps": 3, "epochs": 7}}}, "family.training.epochs: got 7, which changes no"),
        ({"family": {"name": "vae", "likelihood": "bernoulli", "sigma": 0.3}}, "family.sigma: got 0.3, which changes nothing"),
        (
            {"family": {"name": "vae", "training": {"compile": True}}},
            "family.training.compile: got True, which changes nothing",
        ),
        (
            {"family": {"name": "image_diffusion", "objective": "flow", "noise_schedule": "linear"}},
            "family.noise_schedule: got",
        ),
        (
            {"metrics": [{"name": "precision", "features": {"kind": "pixels", "epochs": 9}}]},
            "metrics precision.features.epochs",
        ),
        ({"sweep": {"family.training.steps": [3], "family.training.epochs": [2, 3]}}, "family.training.epochs: got 2"),
        (
            {"policies": [{"name": "replace", "curators": ["deduplicate"], "max_rounds": 3}]},
            "policies curated.max_rounds: got 3, which changes nothing: no curator judges new rows",
        ),
        (
            {"source": "moons", "family": "kde", "init_from": "previous"},
            "init_from: got 'previous', which changes nothing: kde",
        ),
    ],
)
def test_a_setting_that_cannot_change_a_result_is_refused(changes: dict[str, Any], sentence: str) -> None:
    spec = Spec(**{"source": "digits", "family": "vae", "n": 40, **changes})
    with pytest.raises(SelfloopError) as refused:
        spec.points()
    assert str(refused.value).startswith(sentence)
    assert str(refused.value).endswith("Remove the key.")


def test_default_values_of_unused_settings_are_accepted() -> None:
    training = {"steps": 3, "epochs": 30, "batch_size": 8}
    assert Spec(source="digits", family={"name": "vae", "training": training, "sigma": 0.2}, n=40).points()


def test_a_switch_after_the_last_generation_is_refused() -> None:
    spec = Spec(source="gaussian", family="gaussian", n=10, generations=3, policies=[{"name": "switch", "at": 4, "to": "mix"}])  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="at: got 4, which changes nothing in 3 generations"):
        spec.points()
