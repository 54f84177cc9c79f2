"""Settings check themselves, and describe themselves."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, MinLen

from selfloop.errors import SettingError
from selfloop.settings import PositiveFloat, SettingInfo, Settings, Share, describe_fields, has_default_settings


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    """A table inside another."""

    steps: Annotated[int, Ge(1), "training steps"] = 3


@dataclass(frozen=True, kw_only=True)
class Sample(Settings):
    """One setting of each kind."""

    count: Annotated[int, Ge(1), "rows"]
    share: Annotated[Share, "share of the rows"] = 0.5
    rate: Annotated[PositiveFloat | None, "training rate; None = chosen"] = None
    ratio: Annotated[float, Gt(0), Interval(le=9)] = 1.0
    method: Literal["fast", "exact"] = "fast"
    flag: bool = False
    path: Path | None = None
    names: Annotated[tuple[str, ...], MinLen(1)] = ("a",)
    table: dict[str, object] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"count": 0}, "count: got 0; expected a whole number, 1 or more."),
        ({"count": 1.0}, "count: got 1.0; expected a whole number, 1 or more. Write 1."),
        ({"count": 0.0}, "count: got 0.0; expected a whole number, 1 or more. Change it."),
        ({"count": True}, "count: got True; expected a whole number, 1 or more."),
        ({"count": "3"}, "count: got '3'; expected a whole number, 1 or more."),
        ({"share": 1.5}, "share: got 1.5; expected a number from 0 to 1."),
        ({"share": float("nan")}, "share: got nan; expected a number from 0 to 1."),
        ({"rate": 0.0}, "rate: got 0.0; expected a number above 0."),
        ({"rate": float("inf")}, "rate: got inf; expected a number above 0."),
        ({"method": "slow"}, 'method: got \'slow\'; expected "fast" or "exact".'),
        ({"flag": 1}, "flag: got 1; expected true or false."),
        ({"path": 3}, "path: got 3; expected a path."),
        ({"names": ()}, "names: got (); expected a list, each item text, with 1 or more items."),
        ({"names": "abc"}, "names: got 'abc'; expected a list, each item text, with 1 or more items."),
        ({"inner": 3}, "inner: got 3; expected Inner."),
        ({"maybe": Sample}, "maybe: got <class"),
    ],
)
def test_a_value_that_a_setting_does_not_allow_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError) as refused:
        Sample(**{"count": 3, **changes})
    assert str(refused.value).startswith(sentence)


def test_a_long_value_is_shortened_in_the_sentence() -> None:
    with pytest.raises(SettingError) as refused:
        Sample(count=3, method="x" * 100_000)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 200


def test_values_have_the_type_of_their_annotation() -> None:
    sample = Sample(count=np.int64(3), share=1, path="a/b", names=["a", "b"], maybe=Inner(steps=2))  # type: ignore[arg-type]
    assert [type(value) for value in (sample.count, sample.share, sample.names)] == [int, float, tuple]
    assert (sample.path, sample.maybe) == (Path("a/b"), Inner(steps=2))


def test_an_error_inside_a_table_names_the_whole_key() -> None:
    with pytest.raises(SettingError, match=r"^steps: got 0") as refused:
        Inner(steps=0)
    assert str(refused.value.under("inner").under("family")).startswith("family.inner.steps: got 0")


def test_an_annotation_that_cannot_be_resolved_leaves_the_other_settings_checked() -> None:
    class Unknown(Settings):
        steps: Annotated[int, Ge(1)] = 3
        extra: Missing | None = None  # type: ignore[name-defined]  # as if imported for type checkers only

    settings = dataclass(frozen=True, kw_only=True)(Unknown)
    assert settings(extra="anything").steps == 3
    with pytest.raises(SettingError, match="steps: got 0"):
        settings(steps=0)


def test_a_component_is_allowed_if_the_annotation_names_no_class() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrapper(Settings):
        inner: Any = Inner()  # frozen
        choice: Inner | float = 1.0

    assert Wrapper(inner=Inner(steps=2), choice=1).choice == 1.0
    for choice in (float("nan"), "1"):
        with pytest.raises(SettingError, match="choice: got"):
            Wrapper(choice=choice)


def test_settings_describe_their_type_default_and_meaning() -> None:
    described = {info.name: info for info in describe_fields(Sample)}
    assert described["count"] == SettingInfo("count", "a whole number, 1 or more", MISSING, "rows")
    assert described["share"] == SettingInfo("share", "a number from 0 to 1", 0.5, "share of the rows")
    assert described["rate"].description == "training rate; None = chosen"
    assert described["method"].type == '"fast" or "exact"'
    assert described["inner"].default == Inner()


def test_defaults_made_by_a_factory_count_as_defaults() -> None:
    assert has_default_settings(Inner())
    assert not has_default_settings(Inner(steps=2))
    assert not has_default_settings(Sample(count=3))  # `count` has no default
