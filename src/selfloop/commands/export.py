"""Stored models and sampled rows as files for other programs. Computes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from selfloop.columns import Columns, Params, Ragged, Schema, count_rows
from selfloop.engine.stored import StoredWorld
from selfloop.engine.tasks import Task, replay_chain
from selfloop.errors import SpecError, missing_extra, unknown_name
from selfloop.formats.molecules import MOLECULE_COLUMNS, require_rdkit, write_sdf
from selfloop.formats.replacing import replace_file, write_bytes
from selfloop.formats.safetensors import to_safetensors
from selfloop.formats.tables import find_images, write_csv, write_jsonl, write_parquet, write_pngs
from selfloop.protocols import SupportsExport, UsesEncoder
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store.identity import ObjectRef
from selfloop.store.records import place_of

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class StoredGeneration:
    """One generation of one chain of a run."""

    world: StoredWorld
    generation: int

    @property
    def spec(self) -> Spec:
        return self.world.point.spec

    def title(self) -> str:
        return f"generation {self.generation} of {self.world.policy}, seed {self.world.seed}"

    def params(self) -> Params:
        """Arrays of the model; SpecError if they are not stored."""
        return cast(Params, self._open(self.world.models.get(self.generation)))

    def samples(self) -> Columns:
        """Rows sampled from the model, encoded if the family has an encoder; SpecError if they are not stored."""
        return self._open(self.world.samples.get(self.generation))

    def _open(self, ref: ObjectRef | None) -> Columns:
        world = self.world
        if ref is not None:
            return world.store.open(ref)
        if world.ended is not None:
            t, status = world.ended
            raise SpecError(f"export: {world.policy}, seed {world.seed}, ended at generation {t} ({status}).")
        place = place_of(world.store.path)
        raise SpecError(f"export: {self.title()} is not in store {place}, or has no rows. Run the spec first.")


def find_generation(
    spec: Spec, path: Path, policy: str | None = None, seed: int | None = None, generation: int | None = None
) -> StoredGeneration:
    """A generation of a run in a store. Defaults: the only policy, the first seed, the last generation."""
    if spec.sweep:
        options = " ".join(f"--set {key}=..." for key in spec.sweep)
        raise SpecError(f"export: the spec sweeps {', '.join(spec.sweep)}. Choose one point: --set sweep={{}} {options}")
    (point,) = spec.points()
    labels = spec.policy_labels()
    if point.runs_as_ensemble:
        raise SpecError(
            f"export: chains of family {spec.family.name} run together in memory, so their models and rows are not stored. "
            "Export a spec of another family."
        )
    if policy is None and len(labels) > 1:
        raise SpecError(f"--policy: missing. Choose one of {', '.join(labels)}.")
    label = labels[0] if policy is None else policy
    if label not in labels:
        raise SpecError(unknown_name("--policy", label, labels))
    seed = spec.seeds[0] if seed is None else seed
    if seed not in spec.seeds:
        raise SpecError(f"--seed: got {seed}; expected one of {', '.join(map(str, spec.seeds))}.")
    t = spec.generations if generation is None else generation
    if not 1 <= t <= spec.generations:
        raise SpecError(f"--generation: got {t}; expected 1 to {spec.generations}.")
    return StoredGeneration(replay_chain(Task(point, (labels.index(label),), (seed,), t, path, 1)), t)


def export_model(stored: StoredGeneration, folder: Path, dtype: str = "float32") -> None:
    """Write a model: a Hugging Face folder if the family supports it, else one safetensors file."""
    family = stored.spec.family
    if not isinstance(family, SupportsExport) and dtype != "float32":
        raise SpecError(f"--dtype: got {dtype}; models of family {family.name} keep their dtypes. Remove the option.")
    with _new_folder(folder) as part:
        params = stored.params()
        if isinstance(family, SupportsExport):
            family.export(params, part, dtype)
        else:
            write_bytes(part / "model.safetensors", *to_safetensors(params))
        library = "transformers" if isinstance(family, SupportsExport) else "selfloop"
        tags = f"---\nlibrary_name: {library}\ntags:\n- selfloop\n- synthetic-data\n---\n\n"
        _write_card(part, tags, f"Model of {stored.title()}", stored.spec)
        for file in part.iterdir():  # some libraries create files that only their owner can read
            shutil.copymode(part / "README.md", file)


def export_samples(stored: StoredGeneration, folder: Path, format_: str | None = None) -> None:
    """Write the rows sampled from a model. Defaults: images as PNG, molecules as SDF, texts as JSON lines, numbers as CSV."""
    if format_ is not None and format_ not in FORMATS:
        raise SpecError(unknown_name("--format", format_, FORMATS))
    with _new_folder(folder) as part:
        rows, family = stored.samples(), stored.spec.family
        if isinstance(family, UsesEncoder):
            rows = family.encoder().decode(rows, stored.params())
        file_format = format_ or _default_format(rows)
        FORMATS[file_format](rows, part / f"samples.{file_format}", stored.spec.source.schema())
        _write_card(part, "", f"{count_rows(rows):,} rows sampled from the model of {stored.title()}", stored.spec)


def _write_card(folder: Path, head: str, title: str, spec: Spec) -> None:
    text = f"{head}# {title}\n\nMade by selfloop with this spec:\n\n```toml\n{spec_text(spec)}```\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder, which moves to `folder` if everything was written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"--output {folder}: exists and is not empty. Name a new folder; nothing was written.")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with replace_file(folder) as part:
        part.mkdir()
        yield part


def _default_format(rows: Columns) -> str:
    if find_images(rows) is not None:
        return "png"
    if rows.keys() >= MOLECULE_COLUMNS:
        return "sdf"
    return "jsonl" if any(isinstance(column, Ragged) for column in rows.values()) else "csv"


def _write_parquet(rows: Columns, path: Path, schema: Schema) -> None:
    try:
        write_parquet(rows, path, schema)
    except ImportError:
        raise missing_extra("--format parquet", "pyarrow") from None


def _write_png(rows: Columns, path: Path, schema: Schema) -> None:
    images = find_images(rows)
    if images is None:
        raise SpecError(f"--format png: the rows are not images. Choose another of {', '.join(FORMATS)}.")
    write_pngs(images, path.parent)


def _write_sdf(rows: Columns, path: Path, schema: Schema) -> None:
    if not rows.keys() >= MOLECULE_COLUMNS:
        raise SpecError(f"--format sdf: the rows are not molecules. Choose another of {', '.join(FORMATS)}.")
    require_rdkit("--format sdf")
    write_sdf(rows, path)


FORMATS: dict[str, Callable[[Columns, Path, Schema], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": _write_parquet,
    "png": _write_png,
    "sdf": _write_sdf,
    "safetensors": lambda rows, path, schema: write_bytes(path, *to_safetensors(rows)),
}
