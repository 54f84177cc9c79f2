"""Settings that describe and check themselves: frozen dataclasses whose annotations hold bounds and one sentence each.

A setting is declared as `ratio: Annotated[float, Gt(0), "synthetic rows per real row"] = 1.0`. The bounds are those of
annotated-types, the plain string explains the setting in `selfloop list`, in `selfloop new` and in the documentation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import FunctionType, MethodType, NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from selfloop.errors import SettingError, shown
from selfloop.source_code import source_digests

Share = Annotated[float, Interval(ge=0, le=1)]
PositiveFloat = Annotated[float, Gt(0)]
UNLESS_DEFAULT = {"identity": "unless default"}  # metadata of a setting that was added to a component with stored results
MAX_TEXT, MAX_DEPTH = 100_000, 10  # bytes of a text, depth of lists and tables in a setting
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path", NoneType: "nothing"}


class Settings:
    """A bundle of settings. Subclasses are frozen, keyword-only dataclasses; creating one checks every setting.

    Raises `SettingError`. A `__post_init__` of a subclass checks settings against each other, after `super().__post_init__()`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        source_digests(cls.__module__)  # the files as they are now, when the class is made of them

    def __post_init__(self) -> None:
        for name, hint in setting_types(type(self)).items():
            object.__setattr__(self, name, check_setting(hint, getattr(self, name), name))
        for name, value in self.settings().items():
            check_size(value, name)

    def settings(self) -> dict[str, Any]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # subclasses are dataclasses

    def unused_settings(self) -> Mapping[str, str]:
        """Settings that change no result as the others are: name (dotted in a table) -> why, as in "`steps` is set"."""
        return {}


class SettingInfo(NamedTuple):
    """What a setting is called, which values it takes, its default (MISSING without one) and its one-sentence description."""

    name: str
    type: str
    default: Any
    description: str


def has_default_settings(settings: Any) -> bool:
    """True if every setting has its default value; False if one has none."""
    return all(getattr(settings, f.name) == default_of(f) for f in fields(settings))


def default_of(f: Field[Any]) -> Any:
    """Default value of a dataclass field; MISSING if it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def describe_fields(cls: type[Any], defaults: Any = None) -> Iterator[SettingInfo]:
    """One entry per setting of a class. `defaults`: an instance whose values replace the defaults of the class."""
    hints = setting_types(cls)
    for f in fields(cls):
        default = default_of(f) if defaults is None else getattr(defaults, f.name)
        hint = hints.get(f.name, Any)
        sentences = [note for note in _notes(hint) if isinstance(note, str)]
        yield SettingInfo(f.name, describe_type(hint), default, sentences[0] if sentences else "")


def find_unused(settings: Settings, defaults: Any = None, unused: Mapping[str, str] = {}) -> Iterator[tuple[str, Any, str]]:
    """(Name, value, why) of every setting that is not default although it changes no result, in nested tables too.

    `defaults`: an instance whose values replace the defaults of the class. `unused`: what the settings around it say.
    """
    unused = {**settings.unused_settings(), **unused}
    for setting in describe_fields(type(settings), defaults):
        name, value = setting.name, getattr(settings, setting.name)
        if isinstance(value, Settings):
            inner = {key.removeprefix(f"{name}."): why for key, why in unused.items() if key.startswith(f"{name}.")}
            default = setting.default if type(setting.default) is type(value) else None
            yield from ((f"{name}.{key}", found, why) for key, found, why in find_unused(value, default, inner))
        elif name in unused and value != setting.default:
            yield name, value, unused[name]


def _setting_types(cls: type[Any]) -> dict[str, Any]:
    """Annotation of every setting of a class, but those that name what only exists inside a function or for type checkers."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, annotation in vars(base).get("__annotations__", {}).items():
            alone = type(base.__name__, (), {"__annotations__": {name: annotation}, "__module__": base.__module__})
            try:
                hints |= get_type_hints(alone, include_extras=True)
            except NameError:
                hints.pop(name, None)
    return {f.name: hints[f.name] for f in fields(cls) if f.name in hints}


setting_types: Callable[[type[Any]], dict[str, Any]] = cache(_setting_types)  # type: ignore[assignment]  # unhashable for mypy


def check_setting(hint: Any, value: Any, name: str) -> Any:
    """The value as its annotation types it (lists as tuples, text as paths, ~ as home); SettingError if it is not allowed."""
    if isinstance(value, Settings):  # tables and components, which check themselves
        classes = [cls for cls in allowed_classes(hint) if cls is not Any and not getattr(cls, "_is_protocol", False)]
        if not classes or isinstance(value, tuple(classes)):
            return value
    elif (plain := _without_tables(hint)) is not None and (checked := _validated(plain, value)) is not MISSING:
        return Path(os.path.expanduser(checked)) if isinstance(checked, Path) else checked
    whole = (
        isinstance(value, float) and value.is_integer() and plain is not None and _validated(plain, int(value)) is not MISSING
    )
    advice = f"Write {int(value)}." if whole else "Change it."
    raise SettingError(name, f"got {shown(value)}; expected {describe_type(hint)}. {advice}")


def check_size(value: Any, name: str, depth: int = 0) -> None:
    """Raise SettingError for a value that no setting can hold, wherever it is in lists and tables."""
    if isinstance(value, FunctionType | MethodType):
        raise SettingError(name, "got a function, which does not identify results. Make it a method of the class.")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SettingError(name, f"got {shown(value)}; expected a whole number of less than 64 bits.")
    if isinstance(value, str | Path):
        try:
            allowed = "\0" not in str(value) and len(os.fsencode(value)) <= MAX_TEXT
        except UnicodeEncodeError:  # half of a character
            allowed = False
        if not allowed:
            raise SettingError(name, f"got {shown(value)}; expected Unicode text of up to {MAX_TEXT:,} bytes without NUL.")
    if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
        raise SettingError(name, f"got {shown(value)}; expected text as keys.")
    items = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    if items and depth == MAX_DEPTH:
        raise SettingError(name, f"got lists or tables in one another, more than {MAX_DEPTH} deep. Check the brackets.")
    for item in items:
        check_size(item, name, depth + 1)


def _validated(hint: Any, value: Any) -> Any:
    """The value as pydantic reads it without guessing; MISSING if it does not fit the annotation."""
    from pydantic import ValidationError

    adapter = _adapter(hint)
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError:
        pass
    try:  # JSON has no tuples and no paths: pydantic's strict reading of it accepts lists and text for them, and nothing else
        return adapter.validate_json(json.dumps(value, default=_plain), strict=True)
    except (ValidationError, TypeError, ValueError, RecursionError):
        return MISSING


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
    except PydanticUserError:  # a dataclass of the user, which has its own
        return TypeAdapter(hint)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()  # a number of numpy's
    raise TypeError


def _without_tables(hint: Any) -> Any:
    """The annotation without settings tables; None if nothing is left."""
    tables = settings_tables(hint)
    others = [cls for cls in allowed_classes(hint) if cls not in tables]
    if not tables:
        return hint
    return reduce(or_, others) if others else None


def settings_tables(hint: Any) -> list[type]:
    """The classes of settings that an annotation allows, such as `TrainingSettings`."""
    return [cls for cls in allowed_classes(hint) if issubclass(cls, Settings)]


def allowed_classes(hint: Any) -> list[type]:
    """The classes that an annotation allows."""
    if get_origin(hint) is Annotated:
        return allowed_classes(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [cls for part in get_args(hint) for cls in allowed_classes(part)]
    return [hint] if isinstance(hint, type) else []


def item_classes(hint: Any) -> list[type]:
    """The classes of the items of a list that an annotation allows; empty for other annotations."""
    if get_origin(hint) is Annotated:
        return item_classes(get_args(hint)[0])
    return allowed_classes(get_args(hint)[0]) if get_origin(hint) is tuple else []


def _notes(hint: Any) -> list[Any]:
    """Metadata of an annotation, the outermost first."""
    return list(get_args(hint)[1:][::-1]) if get_origin(hint) is Annotated else []


def describe_type(hint: Any) -> str:
    """Which values an annotation allows, in words: "a whole number from 1 to 9", "'adam' or 'sgd'", "a list of text"."""
    if get_origin(hint) is Annotated:
        return f"{describe_type(get_args(hint)[0])}{_bounds(_notes(hint))}"
    if get_origin(hint) in (Union, UnionType):
        parts = [describe_type(part) for part in get_args(hint) if part is not NoneType]
        return " or ".join(dict.fromkeys(parts))
    if get_origin(hint) is Literal:
        return " or ".join(json.dumps(word) for word in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list, each item {describe_type(get_args(hint)[0])}"
    if get_origin(hint) in (dict, Mapping):
        return "a table"
    return KINDS.get(hint, getattr(hint, "__name__", "a value"))


def _bounds(notes: list[Any]) -> str:
    low = next((note for note in notes if isinstance(note, Ge | Gt | Interval | MinLen)), None)
    high = next((note for note in notes if isinstance(note, Le | Lt | Interval)), None)
    at_least, above = getattr(low, "ge", None), getattr(low, "gt", None)
    at_most, below = getattr(high, "le", None), getattr(high, "lt", None)
    if isinstance(low, MinLen):
        return f", with {low.min_length} or more items"
    if not (low or high):
        return ""
    if at_least is not None and at_most is not None:
        return f" from {at_least} to {at_most}"
    if at_least is not None and below is None:
        return f", {at_least} or more"
    words = (("from", at_least), ("above", above), ("up to", at_most), ("below", below))
    return " " + " and ".join(f"{word} {bound}" for word, bound in words if bound is not None)
