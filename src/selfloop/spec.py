"""The spec: everything that decides an experiment. From TOML or Python; a mistake is one sentence naming its dotted key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from selfloop.component import (
    Component,
    Context,
    Criterion,
    Curator,
    Family,
    HasLogProb,
    Metric,
    Policy,
    Sampler,
    Setting,
    Source,
)
from selfloop.errors import SpecError, unknown_name
from selfloop.identity import reason_of
from selfloop.loop import MOST_ROWS
from selfloop.plugins import component_class, names, presets
from selfloop.rng import Stream

MOST_SEEDS, MOST_GENERATIONS = 1_000_000, 10_000  # beyond is a slip of the pen that would only fill the memory
C = TypeVar("C", bound=Component)
Axes = tuple[tuple[str, object], ...]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An experiment. Components may be given as objects, as names, or as tables `{"name": ..., setting: value}`."""

    source: Source
    family: Family
    sampler: Sampler = None  # type: ignore[assignment]  # set from the family when omitted
    n: int | None = None  # rows of real(1); None = all rows left after the holdout
    holdout: int | None = None  # real rows no fit sees; None = 30 % of a finite source, 500 rows otherwise
    generations: int = 10
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: tuple[Policy, ...] = ("replace", "accumulate")  # type: ignore[assignment]  # names are looked up
    metrics: tuple[Metric, ...] = ()  # none given: the family's own
    criteria: tuple[Criterion, ...] = ()  # none given: all eight
    curators: tuple[Curator, ...] = ()
    start: str | Path = "scratch"
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def set_(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # frozen from here on: names and tables are resolved once

        family, sampler = _family_and_sampler(self.family, self.sampler)
        set_("family", family)
        set_("sampler", sampler)
        set_("source", component("source", self.source, "source"))
        set_("policies", _components("policy", self.policies, "policies"))
        set_("metrics", self._chosen_metrics())
        set_("criteria", _components("criterion", self.criteria or list(names("criterion")), "criteria"))
        set_("curators", _components("curator", self.curators, "curators"))
        set_("seeds", _seeds(self.seeds))
        set_("start", _start(self.start))
        if not isinstance(self.sweep, Mapping):
            raise SpecError(f'sweep: got {self.sweep!r}; expected a table of lists, such as "family.latent" = [8, 16].')
        set_("sweep", {key: _axis(key, values) for key, values in self.sweep.items()})
        self._check()

    def _chosen_metrics(self) -> tuple[Metric, ...]:
        """The metrics named; when none is, those of the family's that this source can answer."""
        if self.metrics:
            return cast(tuple[Metric, ...], _components("metric", self.metrics, "metrics"))
        known = set(self.source.truth(Context(Stream(("probe",)))))
        usual = cast(tuple[Metric, ...], _components("metric", self.family.metrics, "metrics"))
        answered = tuple(metric for metric in usual if set(metric.compares) <= known)
        if not answered and isinstance(self.family, HasLogProb):
            return cast(tuple[Metric, ...], _components("metric", ["nll"], "metrics"))  # the truth is unknown: held-out rows
        return answered or usual

    def _check(self) -> None:
        for name, least, most in (("n", 1, MOST_ROWS), ("holdout", 0, MOST_ROWS), ("generations", 1, MOST_GENERATIONS)):
            value = getattr(self, name)
            if value is None and name != "generations":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise SpecError(f"{name}: got {value!r}; expected a whole number from {least} to {most}.")
        if not self.policies:
            raise SpecError(f"policies: got none; expected at least one of {', '.join(names('policy'))}.")
        for key, given in (
            ("policies", self.labels()),
            ("metrics", [metric.name for metric in self.metrics]),
            ("criteria", [criterion.name for criterion in self.criteria]),
        ):
            twice = [name for i, name in enumerate(given) if name in given[:i]]
            if twice:
                raise SpecError(f"{key}: {twice[0]} is named twice. Name it once.")

    def points(self) -> list[tuple[Axes, Spec]]:
        """The experiments of the sweep, axis values first: the Cartesian product of the axes, in the spec's order."""
        keys = list(self.sweep)
        combinations = list(product(*self.sweep.values()))
        plain = replace(self, sweep={})
        return [(tuple(zip(keys, c, strict=True)), with_values(plain, dict(zip(keys, c, strict=True)))) for c in combinations]

    def labels(self) -> tuple[str, ...]:
        """The policies' names, with the changed fields where two share a name."""
        return tuple(label_of(policy, [p.name for p in self.policies].count(policy.name) > 1) for policy in self.policies)

    def risk(self) -> str | None:
        """The metric that stands for risk: the first of which less is better."""
        return next((metric.name for metric in self.metrics if metric.better == "lower"), None)

    def setting(self, policy: Policy, n: int) -> Setting:
        """What laws and published curves are matched against."""
        curated, start = bool(self.curators), str(self.start)
        return Setting(policy, self.source, self.family, self.sampler, n, self.generations, curated, start)


def label_of(policy: Policy, with_settings: bool) -> str:
    """Name of a policy, followed by the settings that are not default: `fresh(ratio=2)`."""
    changed = [
        f"{f.name}={value:g}" if isinstance(value := getattr(policy, f.name), float) else f"{f.name}={value}"
        for f in fields(policy)  # type: ignore[arg-type]  # components are dataclasses
        if getattr(policy, f.name) != (f.default if f.default is not MISSING else None)
    ]
    return f"{policy.name}({', '.join(changed)})" if changed and with_settings else policy.name


def read_spec(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """The spec of a TOML file or a preset's name, with `key=value` overrides (values as TOML writes them)."""
    shipped = presets()
    if str(path) in shipped:
        text = shipped[str(path)].read_text(encoding="utf-8")
    else:
        file = Path(path)
        try:
            if file.is_dir():
                raise SpecError(f"{file}: is a folder. Give the path of a TOML file, or see `selfloop list`.")
            if not file.is_file():
                near = unknown_name("preset", str(path), shipped).partition(".")[2] if file.suffix != ".toml" else ""
                raise SpecError(f"{path}: no such file or preset.{near} Give the path of a TOML file, or see `selfloop list`.")
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            reason = reason_of(problem) if isinstance(problem, OSError) else f"byte {problem.start} is not UTF-8"
            raise SpecError(f"{path}: cannot be read ({reason}). Give a TOML file, which is UTF-8 text.") from problem
    return parse_spec(text, str(path), overrides)


def parse_spec(text: str, where: str, overrides: Iterable[str] = ()) -> Spec:
    """The spec of a TOML text, with `key=value` overrides."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:  # TOMLDecodeError, and what it lets through
        raise SpecError(f"{where}: not valid TOML ({problem}). Mend that line.") from problem
    for override in overrides:
        _override(table, override)
    return spec_of(table)


def spec_of(table: Mapping[str, Any]) -> Spec:
    """The spec of a table."""
    allowed = [f.name for f in fields(Spec) if f.name != "sampler"]
    for key in table:
        if key not in allowed:
            raise SpecError(unknown_key("spec", key, allowed))
    for key in ("source", "family"):
        if key not in table:
            raise SpecError(f"{key}: missing. Add a table [{key}] with a name: {', '.join(names(key))}.")
    values = dict(table)
    if isinstance(values["family"], dict) and "sampler" in values["family"]:
        values["sampler"] = values["family"]["sampler"]
        values["family"] = {key: value for key, value in values["family"].items() if key != "sampler"}
    return Spec(**values)


def unknown_key(where: str, key: str, allowed: Iterable[str]) -> str:
    """The sentence for a key that is not allowed, with the nearest one suggested."""
    return unknown_name(f"{where}.{key}", key, allowed).replace("unknown name", "unknown key")


def _override(table: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise SpecError(f"--set {override!r}: expected key=value, such as --set generations=3.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text  # a bare word is a string
    *folders, last = key.strip().split(".")
    for folder in folders:
        inner = table.setdefault(folder, {})
        if isinstance(inner, str):
            inner = {"name": inner}
            table[folder] = inner
        if not isinstance(inner, dict):
            raise SpecError(f"--set {override!r}: {folder} is not a table, so it has no keys.")
        table = inner
    table[last] = value


def component(kind: str, value: Any, where: str) -> Any:
    """A component from itself, its name, or a table with its name and settings."""
    if isinstance(value, Component):
        return value
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise SpecError(f"{where}: got {value!r}; expected a name or a table with a name. Allowed: {', '.join(names(kind))}.")
    cls = component_class(kind, table["name"], f"{where}.name" if value is table else where)
    return build(cls, {key: v for key, v in table.items() if key != "name"}, where)


def build(cls: type[C], table: Mapping[str, Any], where: str) -> C:
    """A dataclass of settings from a table, its keys and types checked."""
    values = _checked_settings(cls, table, where)
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]  # a dataclass
    for key in required:
        if key not in values:
            raise SpecError(f"{where}.{key}: missing. {cls.__name__} needs {', '.join(required)}.")
    return cls(**values)


def _checked_settings(cls: type[Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    hints, settings, values = get_type_hints(cls), {f.name: f for f in fields(cls)}, {}
    for key, value in table.items():
        if key not in settings:
            raise SpecError(unknown_key(where, key, settings))
        f, inner = settings[key], f"{where}.{key}"
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if is_dataclass(default) and not isinstance(default, type) and isinstance(value, Mapping):
            values[key] = replace(default, **_checked_settings(type(default), value, inner))  # the owner's defaults stay
        else:
            values[key] = _checked(hints[key], value, inner)
    return values


def _checked(hint: Any, value: Any, where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(hint)
    try:
        text = json.dumps(value)
    except TypeError:
        text = None
    try:
        return adapter.validate_python(value) if text is None else adapter.validate_json(text, strict=True)
    except ValidationError as problem:
        wanted = "; or ".join(dict.fromkeys(error["msg"].replace("Input should be ", "") for error in problem.errors()))
        raise SpecError(f"{where}: got {value!r}; expected {wanted}.") from None


def _components(kind: str, values: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(values, str | Mapping | Component | Iterable):
        raise SpecError(f"{where}: got {values!r}; expected a list of names or tables. Allowed: {', '.join(names(kind))}.")
    many = [values] if isinstance(values, str | Mapping | Component) else list(values)
    return tuple(component(kind, value, f"{where}[{i}]" if len(many) > 1 else where) for i, value in enumerate(many))


def _family_and_sampler(family: Any, sampler: Any) -> tuple[Family, Sampler]:
    made = cast(Family, component("family", family, "family"))
    if sampler is None:
        return made, made.sampler()
    if isinstance(sampler, Sampler):
        if not isinstance(sampler, made.sampler):
            raise SpecError(f"sampler: got {type(sampler).__name__}; family {made.name} takes {made.sampler.__name__}.")
        return made, sampler
    if not isinstance(sampler, Mapping):
        raise SpecError(f"family.sampler: got {sampler!r}; expected a table of settings.")
    return made, build(made.sampler, sampler, "family.sampler")


def _start(start: Any) -> str | Path:
    if start in ("scratch", "previous"):
        return cast(str, start)
    if not isinstance(start, str | Path) or not Path(start).is_file():
        raise SpecError(f"start: {start!r} is no file. Allowed: 'scratch', 'previous', or the safetensors file of a model.")
    return Path(start)


def _seeds(seeds: Any) -> tuple[int, ...]:
    many = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if isinstance(seeds, int) and seeds > MOST_SEEDS:
        raise SpecError(f"seeds: got {seeds}; expected at most {MOST_SEEDS}.")
    if not isinstance(many, Sequence) or isinstance(many, str) or not all(type(s) is int and s >= 0 for s in many) or not many:
        raise SpecError(f"seeds: got {seeds!r}; expected a number of seeds of at least 1, or a list of whole numbers.")
    if len(set(many)) < len(many):
        raise SpecError(f"seeds: got {list(many)}; a seed is named twice. Name every seed once.")
    return tuple(many)


def _axis(key: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple) or not values:
        raise SpecError(f"sweep.{key}: got {values!r}; expected a list of values.")
    axis = tuple(tuple(value) if isinstance(value, list) else value for value in values)
    for i, value in enumerate(axis):
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, str | int | float) for part in parts):
            raise SpecError(f"sweep.{key}: got {value!r}; expected numbers, names or lists of them. Use a spec per table.")
        if value in axis[:i]:
            raise SpecError(f"sweep.{key}: {value!r} is named twice. Name every value once.")
    return axis


def with_values(spec: Spec, values: Mapping[str, Any]) -> Spec:
    """The spec with dotted keys set: "n", "family.latent", "family.sampler.temperature", "source.noise"."""
    for key, value in values.items():
        spec = _with_value(spec, key, value)
    return spec


def _with_value(spec: Spec, key: str, value: Any) -> Spec:
    head, _, rest = key.partition(".")
    if head == "family" and rest.startswith("sampler."):
        head, rest = "sampler", rest.removeprefix("sampler.")
    if head in ("source", "family", "sampler") and rest:
        return replace(spec, **{head: _with_setting(getattr(spec, head), rest, value, key)})
    if rest or head not in ("n", "holdout", "generations", "start"):
        allowed = ["n", "holdout", "generations", "start", "source.*", "family.*", "family.sampler.*"]
        raise SpecError(unknown_key("sweep", key, allowed))
    return replace(spec, **{head: value})


def _with_setting(owner: Any, key: str, value: Any, where: str) -> Any:
    name, _, rest = key.partition(".")
    allowed = [f.name for f in fields(owner)]
    if name not in allowed:
        raise SpecError(unknown_name(f"sweep.{where}", name, allowed))
    inner = getattr(owner, name)
    new = (
        _with_setting(inner, rest, value, where)
        if rest
        else _checked(get_type_hints(type(owner))[name], value, f"sweep.{where}")
    )
    return replace(owner, **{name: new})
