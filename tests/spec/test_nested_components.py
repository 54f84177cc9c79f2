"""Components inside components, and plugins: read, written out, and named when they cannot be loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop import plugins
from selfloop.commands.list import summaries
from selfloop.component import Columns, Context, Family, Params, Sampler
from selfloop.errors import SpecError
from selfloop.families.gaussian import Gaussian
from selfloop.families.kde import Kde
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.metrics.image_neighbors import Precision
from selfloop.settings import Settings
from selfloop.spec.parse import parse_spec
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.types import TrainingRows


@dataclass(frozen=True, kw_only=True)
class Choices(Settings):
    """A table of settings inside a component."""

    word: str = "a"
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wrapped(Family):
    """A family around another one."""

    name: ClassVar[str] = "wrapped"
    inner: Annotated[Family, "the family that is fitted"] = field(default_factory=Gaussian)
    table: Choices = field(default_factory=Choices)
    maybe: Family | None = None

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        return self.inner.fit(rows, ctx, init)

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return self.inner.sample(params, n, sampler, inputs, ctx)


BROKEN = {"broken": "no_such_module_anywhere:Thing", "wrong": "os:sep", "odd": "this_file_raises:Thing"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Plugins as packages would install them, some of which cannot be loaded."""
    (tmp_path / "this_file_raises.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def entry_points(group: str) -> list[EntryPoint]:
        targets = {"selfloop.family": {"wrapped": f"{__name__}:Wrapped"}, "selfloop.criterion": BROKEN}.get(group, {})
        return [EntryPoint(name, target, group) for name, target in targets.items()]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    plugins.component_names.cache_clear()
    yield
    plugins.component_names.cache_clear()


INNER = st.builds(Gaussian, ddof=st.integers(0, 1)) | st.builds(Kde, bandwidth=st.floats(0.1, 9)) | st.just("gaussian")
FAMILIES: Any = st.recursive(
    INNER.filter(lambda family: not isinstance(family, str)),
    lambda inner: st.builds(
        Wrapped,
        inner=inner,
        table=st.builds(
            Choices, word=st.text("ab\"'\\\né😀", max_size=4), numbers=st.lists(st.floats(-1, 1), max_size=2).map(tuple)
        ),
        maybe=st.none() | inner,
    ),
    max_leaves=4,
)
EXTRACTORS = st.builds(ImageFeatureExtractor, kind=st.sampled_from(["classifier", "pixels"]), dimensions=st.integers(1, 99))


@settings(max_examples=60)
@given(FAMILIES, EXTRACTORS, st.integers(1, 9))
def test_components_in_components_survive_being_written_out(family: Family, features: ImageFeatureExtractor, k: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = Spec(source="digits", family=family, metrics=[Precision(features=features, k=k)], criteria=["any_increase"], n=5)
        assert parse_spec(spec_text(spec), "written") == spec


def test_a_component_in_a_table_is_given_by_its_name() -> None:
    text = 'source = "moons"\nn = 9\ncriteria = ["any_increase"]\n[family]\nname = "wrapped"\n'
    assert parse_spec(text + 'inner = { name = "kde", bandwidth = 0.5 }', "a").family == Wrapped(inner=Kde(bandwidth=0.5))
    assert parse_spec(text + "inner = { ddof = 1 }", "a").family == Wrapped(inner=Gaussian(ddof=1))
    with pytest.raises(SpecError, match=r"^family.inner.name: unknown name 'kdf'\. Did you mean 'kde'\?"):
        parse_spec(text + 'inner = { name = "kdf" }', "a")


def test_a_broken_plugin_breaks_only_itself() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec = Spec(source="gaussian", family="gaussian", n=9)
    assert [criterion.name for criterion in spec.criteria] == list(plugins.BUILT_IN["criterion"])
    sentences = [str(warning.message) for warning in caught]
    assert len(sentences) == len(BROKEN)
    assert sentences[2] == (
        "criterion: 'odd' of a plugin cannot be loaded from this_file_raises:Thing (RuntimeError: two). "
        "Repair or remove that package. Left out."
    )
    assert "any_increase" in summaries("criterion")["criterion"]
    with pytest.raises(SpecError, match=r"^criteria: 'broken' of a plugin cannot be loaded from no_such_module_anywhere"):
        Spec(source="gaussian", family="gaussian", n=9, criteria="broken")


@pytest.mark.parametrize("kind", plugins.BUILT_IN)
def test_the_list_has_a_whole_sentence_for_every_component(kind: str) -> None:
    texts = summaries(kind)[kind]
    assert [name for name in plugins.BUILT_IN[kind] if not texts[name].endswith(".")] == []
