"""Columns of the rows that GeoDiff models: molecular graphs and the coordinates of their atoms."""

from __future__ import annotations

import numpy as np

from selfloop.columns import Columns, Ragged, select_rows
from selfloop.errors import DataError

COLUMN_TYPES = {"z": "uint8", "edges": "uint16[2]", "edge_type": "uint8", "position": "float32[3]"}
COLUMNS, GRAPH_COLUMNS = tuple(COLUMN_TYPES), ("z", "edges", "edge_type")
KINDS = 100  # rows of the network's tables of atomic numbers and of edge types
ROWS_PER_BLOCK = 64  # rows that are sampled, or measured, together
MoleculeRows = dict[str, Ragged]


def check_columns(rows: Columns, names: tuple[str, ...]) -> MoleculeRows:
    """The named columns; DataError if their types or values do not fit the family."""
    for name in names:
        column = rows.get(name)
        type_name = "missing" if column is None else "not ragged"
        if isinstance(column, Ragged):
            type_name = f"{column.values.dtype}{list(column.values.shape[1:]) or ''}"
        if type_name != COLUMN_TYPES[name]:
            raise DataError(
                f"geodiff: column {name!r} is {type_name}; expected {COLUMN_TYPES[name]} per row. Use a source of molecules."
            )
    columns = {name: column for name, column in ragged_columns(rows).items() if name in names}
    for name in ("z", "edge_type"):
        if (highest := int(columns[name].values.max(initial=0))) >= KINDS:
            raise DataError(f"geodiff: column {name!r} contains {highest}; expected numbers below {KINDS}.")
    return columns


def ragged_columns(rows: Columns) -> MoleculeRows:
    """The columns whose rows differ in length."""
    return {name: column for name, column in rows.items() if isinstance(column, Ragged)}


def split_blocks(rows: MoleculeRows) -> list[MoleculeRows]:
    """The rows in blocks of `ROWS_PER_BLOCK`."""
    blocks = np.split(np.arange(len(rows["z"])), range(ROWS_PER_BLOCK, len(rows["z"]), ROWS_PER_BLOCK))
    return [ragged_columns(select_rows(rows, block)) for block in blocks]
