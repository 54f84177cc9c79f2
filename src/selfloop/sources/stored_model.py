"""A source whose rows are sampled from a stored model, for example as rows from elsewhere (`[external]`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np

from selfloop.columns import Columns, ColumnType, Params, Ragged, concat_rows, select_rows
from selfloop.component import Context, Family, Source
from selfloop.errors import DataError, SettingError
from selfloop.formats.safetensors import read_safetensors
from selfloop.protocols import UsesEncoder
from selfloop.rng import RandomStream
from selfloop.sources.files import cached_until_change

ROWS_PER_BLOCK = 256  # rows that share one random stream


@dataclass(frozen=True, kw_only=True)
class StoredModel(Source):
    """Rows of a model that `selfloop export --what model` wrote as a safetensors file. It is the same for all seeds.

    Models of text or of conditional rows are refused: export samples of text, and read the file as a source.
    """

    name: ClassVar[str] = "stored_model"
    path: Annotated[Path, "the model's safetensors file"]
    family: Annotated[Family, "family of the model, with its settings"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.family, UsesEncoder):
            advice = "Write its samples with `selfloop export --what samples` and read that file"
            raise SettingError(
                "family", f"got {self.family.name}, a family of text; expected one of numbers or images. {advice}."
            )

    def schema(self) -> Mapping[str, ColumnType]:
        columns = self._block(RandomStream(("probe",)))
        if any(isinstance(column, Ragged) for column in columns.values()):
            raise DataError(f"source.family: {self.family.name} has rows of different lengths; expected rows of one shape.")
        arrays = {name: np.asarray(column) for name, column in columns.items()}
        return {name: ColumnType(str(array.dtype), array.shape[1:]) for name, array in arrays.items()}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        blocks = range(first // ROWS_PER_BLOCK, -(-(first + n) // ROWS_PER_BLOCK))
        rows = concat_rows([self._block(ctx.stream.child("rows", block)) for block in blocks])
        return select_rows(rows, first - blocks.start * ROWS_PER_BLOCK + np.arange(n))

    def _block(self, stream: RandomStream) -> Columns:
        params = _read_params(self.path)
        try:
            return self.family.sample(params, ROWS_PER_BLOCK, self.family.sampler_class(), {}, Context(stream))
        except (KeyError, IndexError, ValueError) as problem:
            raise DataError(
                f"source.path: {self.path} is no model of family {self.family.name} with these settings, or its rows need "
                f"inputs ({problem!r}). Give the family that it was exported from."
            ) from problem


@cached_until_change()
def _read_params(path: Path) -> Params:
    return cast(Params, read_safetensors(path))
