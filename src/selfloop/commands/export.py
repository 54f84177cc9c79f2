"""What a run has stored, as files for other programs: a model, or the rows sampled from it. Computes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from selfloop.engine.run import Task, resolved_points, run_task, runs_as_ensemble
from selfloop.engine.steps import fit, sample, sample_curated
from selfloop.errors import SpecError, missing_extra, unknown_name
from selfloop.formats.images import find_images, write_pngs
from selfloop.formats.jsonl import write_jsonl
from selfloop.formats.molecules import MOLECULE_COLUMNS, require_rdkit, write_sdf
from selfloop.formats.safetensors import to_safetensors
from selfloop.formats.tables import write_csv, write_parquet
from selfloop.protocols import SupportsExport, UsesEncoder
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store.identity import ObjectRef
from selfloop.store.store import NotStoredError, Store
from selfloop.types import Columns, Params, Ragged, count_rows

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Found:
    """One generation of one chain of a finished run."""

    spec: Spec  # a point: no sweep
    policy: str
    seed: int
    generation: int
    store: Store

    def title(self) -> str:
        """Which one it is, in words."""
        return f"generation {self.generation} of {self.policy}, seed {self.seed}"

    def open(self, *functions: Callable[..., Any]) -> Columns:
        """The arrays that a stage gave at this generation; SpecError when it did not."""
        made = [
            (call, self.store.recorded(call)) for call in self.store.calls if call.function in (fit, sample, sample_curated)
        ]
        for call, record in made:
            if record and "ended" in record:
                t = call.arguments[-1].stream.path[-1]
                raise SpecError(f"export: {self.policy}, seed {self.seed}, ended at generation {t} ({record['ended']}).")
            if record and call.function in functions and call.arguments[-1].stream.path[-1] == self.generation:
                return self.store.open(cast(ObjectRef, self.store.step(call.function, *call.arguments)))
        raise SpecError(f"export: {self.title()} is not in store {self.store.path}, or has no rows. Run the spec first.")


def find(spec: Spec, path: Path, policy: str | None = None, seed: int | None = None, generation: int | None = None) -> Found:
    """A generation of a run in a store; the only policy, the first seed and the last generation unless others are named."""
    if spec.sweep:
        chosen = " ".join(f"--set {key}=..." for key in spec.sweep)
        raise SpecError(f"export: the spec sweeps {', '.join(spec.sweep)}. Choose one point: --set sweep={{}} {chosen}")
    ((coordinates, point),) = resolved_points(spec)
    labels = point.policy_labels()
    if runs_as_ensemble(point):
        raise SpecError(
            f"export: all chains of family {point.family.name} run at once in memory; neither models nor rows of theirs are "
            "kept. Only families whose stages are stored can be exported."
        )
    if policy is None and len(labels) > 1:
        raise SpecError(f"--policy: missing. The spec has {', '.join(labels)}; name one.")
    label = policy if policy is not None else labels[0]
    if label not in labels:
        raise SpecError(unknown_name("--policy", label, labels))
    of, t = point.seeds[0] if seed is None else seed, point.generations if generation is None else generation
    if of not in point.seeds:
        raise SpecError(f"--seed: got {of}; the spec has {', '.join(map(str, point.seeds))}.")
    if not 1 <= t <= point.generations:
        raise SpecError(f"--generation: got {t}; the spec has 1 to {point.generations}.")
    store = Store(path, looking=True, remembering=True)
    with suppress(NotStoredError):  # a metric may be missing: what is asked for need not be
        list(run_task(Task(coordinates, point, (labels.index(label),), (of,), t, path, 1), store))
    return Found(point, label, of, t, store)


def export_model(found: Found, folder: Path, dtype: str = "float32") -> None:
    """Write a model: a family with a form of its own (a Hugging Face folder) in that, others as one safetensors file."""
    if dtype not in PRECISIONS:
        raise SpecError(unknown_name("--dtype", dtype, PRECISIONS))
    family = found.spec.family
    if not isinstance(family, SupportsExport) and dtype != "float32":
        raise SpecError(f"--dtype: got {dtype}; models of family {family.name} are written as they are. Leave it out.")
    with _new_folder(folder) as part:
        params = cast(Params, found.open(fit))
        if isinstance(family, SupportsExport):
            family.export(params, part, dtype)
        else:
            _write_arrays(params, part / "model.safetensors")
        library = "transformers" if isinstance(family, SupportsExport) else "selfloop"
        tags = f"---\nlibrary_name: {library}\ntags:\n- selfloop\n- synthetic-data\n---\n\n"
        _write_card(part, tags, f"Model of {found.title()}", found.spec)
        for file in part.iterdir():  # some libraries write for the owner only; what is exported is to be shared
            shutil.copymode(part / "README.md", file)


def export_samples(found: Found, folder: Path, format_: str | None = None) -> None:
    """Write the rows sampled from a model; by default images as PNG, molecules as SDF, texts as JSON lines, numbers as CSV."""
    if format_ is not None and format_ not in FORMATS:
        raise SpecError(unknown_name("--format", format_, FORMATS))
    with _new_folder(folder) as part:
        rows = found.open(sample, sample_curated)
        if isinstance(found.spec.family, UsesEncoder):
            rows = found.spec.family.encoder().decode(rows, cast(Params, found.open(fit)))
        texts = {name for name, kind in found.spec.source.schema().items() if kind.dtype == "utf8"}
        FORMATS[format_ or _usual(rows)](rows, part, texts)
        _write_card(part, "", f"{count_rows(rows):,} rows sampled from the model of {found.title()}", found.spec)


def _write_card(folder: Path, head: str, title: str, spec: Spec) -> None:
    text = f"{head}# {title}\n\nMade by selfloop with this spec:\n\n```toml\n{spec_text(spec)}```\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when all is written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"--to {folder}: exists and is not empty. Name a new folder; nothing was written.")
    part = folder.absolute().with_name(f".{folder.absolute().name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        folder.mkdir(exist_ok=True)
        for file in part.iterdir():
            file.rename(folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _usual(rows: Columns) -> str:
    if find_images(rows) is not None:
        return "png"
    if rows.keys() >= MOLECULE_COLUMNS:
        return "sdf"
    return "jsonl" if any(isinstance(column, Ragged) for column in rows.values()) else "csv"


def _write_parquet_file(rows: Columns, folder: Path, text_columns: Set[str]) -> None:
    try:
        write_parquet(rows, folder / "samples.parquet", text_columns)
    except ImportError:
        raise missing_extra("--format parquet", "pyarrow") from None


def _write_png_files(rows: Columns, folder: Path, text_columns: Set[str]) -> None:
    images = find_images(rows)
    if images is None:
        raise SpecError(f"--format png: the rows are not images. Choose another of {', '.join(FORMATS)}.")
    write_pngs(images, folder)


def _write_sdf_file(rows: Columns, folder: Path, text_columns: Set[str]) -> None:
    if not rows.keys() >= MOLECULE_COLUMNS:
        raise SpecError(f"--format sdf: the rows are not molecules. Choose another of {', '.join(FORMATS)}.")
    require_rdkit("--format sdf")
    write_sdf(rows, folder / "samples.sdf")


def _write_arrays(columns: Columns, file: Path) -> None:
    with file.open("wb") as opened:
        opened.writelines(to_safetensors(columns))


FORMATS: dict[str, Callable[[Columns, Path, Set[str]], None]] = {
    "jsonl": lambda rows, folder, text_columns: write_jsonl(rows, folder / "samples.jsonl", text_columns),
    "csv": lambda rows, folder, text_columns: write_csv(rows, folder / "samples.csv", text_columns),
    "parquet": _write_parquet_file,
    "png": _write_png_files,
    "sdf": _write_sdf_file,
    "safetensors": lambda rows, folder, _: _write_arrays(rows, folder / "samples.safetensors"),
}
