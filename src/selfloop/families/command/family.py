"""Programs of the user as a family: they train, sample and, if they like, evaluate. Rows are exchanged as files."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import MinLen

from selfloop.columns import Array, Column, Columns, ColumnType, Params, Ragged, Schema
from selfloop.component import Context, Family, Sampler, Source
from selfloop.errors import ChainEndedError, DataError, SettingError, SpecError, first_line, missing_extra, shown, unknown_name
from selfloop.families.command.model_files import pack_folder, unpack_folder
from selfloop.formats import tables
from selfloop.formats.programs import Program, ProgramError, log_path, sorted_files
from selfloop.formats.safetensors import to_safetensors
from selfloop.protocols import SupportsEvaluate
from selfloop.settings import PositiveFloat, Settings
from selfloop.types import MASK, TrainingRows

EXCHANGE = "exchange"  # folder of the files that programs read and write
COLUMNS = "columns"  # array with the names and types of the rows that a model was trained on
MAX_VERSION_SECONDS = 60.0
NO_IDENTITY = {"identity": False}
WRITERS = {"csv": tables.write_csv, "jsonl": tables.write_jsonl, "parquet": tables.write_parquet}
PLACEHOLDER = re.compile(r"\{(\w+)\}")
NEEDED = {"train": {"data", "model"}, "sample": {"model", "n", "out"}, "evaluate": {"model", "out"}}
OPTIONAL = {"train": {"init", "weights"}, "sample": {"inputs"}, "evaluate": {"holdout", "samples"}}
ANYWHERE = {"seed", "threads", "scratch"}


@dataclass(frozen=True, kw_only=True)
class CommandLines(Settings):
    """Programs with their arguments, without a shell. `{name}` in an argument is a placeholder.

    All may use `{seed}` (31 bits), `{threads}` and `{scratch}`, a folder that an interrupted call finds again. Other braces are
    no placeholders if a blank follows them.
    """

    train: Annotated[tuple[str, ...], MinLen(1), "reads {data}, writes files into {model}; may use {init}, {weights}"]
    sample: Annotated[tuple[str, ...], MinLen(1), "reads {model}, writes {n} rows to {out}; may use {inputs}, sampler.set"]
    evaluate: Annotated[tuple[str, ...], "reads {model}, writes JSON to {out}; may use {holdout}, {samples}"] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage, needed in NEEDED.items():
            arguments, used = getattr(self, stage), self.placeholders(stage)
            if arguments and (missing := needed - used):
                names = ", ".join(f"{{{name}}}" for name in sorted(needed))
                raise SettingError(stage, f"lacks the placeholder {{{min(missing)}}}. Use {names}.")
        for stage in ("train", "evaluate"):
            self.check_placeholders(stage)

    def placeholders(self, stage: str) -> set[str]:
        return {name for argument in getattr(self, stage) for name in PLACEHOLDER.findall(argument)}

    def check_placeholders(self, stage: str, settings: Collection[str] = ()) -> None:
        """Raise SettingError for a placeholder that has no value. `settings`: those of sampling."""
        allowed = NEEDED[stage] | OPTIONAL[stage] | ANYWHERE | {*settings}
        for name in sorted(self.placeholders(stage) - allowed):
            raise SettingError(stage, unknown_name("", name, allowed, "placeholder").removeprefix(": "))


@dataclass(frozen=True, kw_only=True)
class CommandSampler(Sampler):
    """Settings of sampling for the command `sample`."""

    name: ClassVar[str] = "command"
    set: Annotated[Mapping[str, str | bool | int | float], "values of placeholders of `sample`, by name"] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.set:
            if not name.isidentifier() or name in NEEDED["sample"] | OPTIONAL["sample"] | ANYWHERE:
                raise SettingError("set", f"got the name {name!r}; expected a word that is no other placeholder. Rename it.")

    def values(self) -> dict[str, str]:
        """The settings as arguments of a program: true and false in lower case."""
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in self.set.items()}


@dataclass(frozen=True, kw_only=True)
class CommandFamily(Family):
    """A model that programs train and sample, whose files are its parameters.

    Every command runs without a shell, in a new folder with copies of `files`, with few variables in its environment, and with
    all of its child processes for at most `time_limit` seconds. Numbers, texts and images are exchanged as files, with columns
    in the order of their names, and in CSV files a column per element: `x[0]`, `x[1]`, ... A missing value is an empty cell or
    null. A chain ends if `train` writes one word to `{model}/ended`. DataError, with the path of the log, if a program fails or
    writes other rows than it should.
    """

    name: ClassVar[str] = "command"
    default_metrics: ClassVar[tuple[str, ...]] = (
        "evaluation", "marginal_distance", "detectability", "lost_categories", "record_distance"
    )  # fmt: skip
    sampler_class: ClassVar[type[Sampler]] = CommandSampler
    commands: Annotated[CommandLines, "a table of the commands train, sample and evaluate"]
    files: Annotated[tuple[Path, ...], "files and folders that programs find by their names; their content counts"] = ()
    format: Annotated[Literal["csv", "jsonl", "parquet", "images"], "of the rows; images: PNG files and rows.csv"] = "csv"
    versions: Annotated[tuple[str, ...], "a command whose output belongs to the identity, such as pip freeze"] = ()
    environment: Annotated[Mapping[str, str], "variables for the programs, beside PATH, HOME, language and threads"] = field(
        default_factory=dict
    )
    reproducible: Annotated[bool, "false: the same seed may give other results, which `verify` then skips"] = field(
        default=True, metadata=NO_IDENTITY
    )
    time_limit: Annotated[PositiveFloat, "seconds of one command"] = field(default=3600.0, metadata=NO_IDENTITY)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "files", sorted_files(self.files, (EXCHANGE,)))

    @property
    def uses_init(self) -> bool:  # type: ignore[override]  # of one family: that of its command
        """True if `train` continues from another model."""
        return "init" in self.commands.placeholders("train")

    def for_generation(self, t: int) -> CommandFamily:
        return replace(self, commands=replace(self.commands, evaluate=()))  # a fit does not depend on how it is evaluated

    def supports(self, ability: type) -> bool:
        return super().supports(ability) and (ability is not SupportsEvaluate or bool(self.commands.evaluate))

    def program_versions(self) -> Mapping[str, str]:
        if not self.versions:
            return {}
        return {"versions": _read_versions(self.versions, self.files, tuple(sorted(self.environment.items())))}

    def check(self, source: Source, sampler: Sampler) -> None:
        assert isinstance(sampler, CommandSampler)
        for arguments in filter(None, (self.commands.train, self.commands.sample, self.commands.evaluate, self.versions)):
            if problem := self._program(arguments).find_problem():
                raise SpecError(f"family.{problem[0].replace('command', 'commands')}: {problem[1]}")
        try:
            self.commands.check_placeholders("sample", sampler.set)
        except SettingError as problem:
            raise problem.under("family.commands") from None
        if unused := sampler.set.keys() - self.commands.placeholders("sample"):
            raise SpecError(f"family.sampler.set: {min(unused)!r} is no placeholder of sample. Use it or remove it.")
        if source.has_fixed_design() and "inputs" not in self.commands.placeholders("sample"):
            raise SpecError(
                f"family.commands.sample: lacks {{inputs}}; {source.title()} draws them, and programs sample the outcomes. Use "
                "it, or remove the source's target."
            )
        self._check_format(source)
        _read_versions.cache_clear()  # a run begins: programs may have changed since the last one of this process
        self.program_versions()

    def _check_format(self, source: Source) -> None:
        schema = source.schema()
        image = _find_image(schema) if self.format == "images" else None
        others = {name: column for name, column in schema.items() if name != image}
        if not tables.is_tabular(others) or (self.format == "images" and image is None):
            expected = "images" if self.format == "images" else f"texts and lists of up to {tables.MAX_ROW_VALUES:,} numbers"
            raise SpecError(
                f"family.format: got {self.format!r}, which holds {expected}; "
                f"{source.title()} has {', '.join(schema)}. Choose another format or source."
            )
        if self.format == "parquet":
            try:
                import pyarrow  # noqa: F401  # missing extras are noticed before any work
            except ImportError as problem:
                raise missing_extra("family.format: 'parquet'", "pyarrow") from problem

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        columns, weights = rows.all(), rows.weights()
        weighted = "weights" in self.commands.placeholders("train")
        if not weighted and np.ptp(weights) > 1e-9:
            raise DataError("family.commands.train: the rows have weights, but it lacks {weights}. Use it or another policy.")
        if not self.reproducible:
            warnings.warn(
                "family command: its programs are not reproducible, so policies of one seed differ by their randomness, too, "
                "and are not paired",
                stacklevel=2,
            )
        schema = dict(sorted(_find_types(columns).items()))
        names = {"data": self._file("data"), "model": "model", "weights": "weights.txt"}
        names["init"] = "init" if init is not None else ""
        with self._exchange("train", ctx, names) as (folder, run):
            (folder / "model").mkdir()
            self._write_rows(folder / names["data"], columns)
            if init is not None:
                unpack_folder(init, folder / "init")
            if weighted:
                (folder / "weights.txt").write_text("".join(f"{weight!r}\n" for weight in weights.tolist()))
            run()
            params, status = _read_model(folder / "model")
        if status:
            raise ChainEndedError(status)
        return {**params, COLUMNS: np.frombuffer(json.dumps(schema).encode(), np.uint8)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, CommandSampler)
        if inputs and "inputs" not in self.commands.placeholders("sample"):
            raise DataError(
                "family.commands.sample: the source draws inputs of rows, but it lacks {inputs}. Use the placeholder."
            )
        columns = json.loads(np.asarray(params[COLUMNS]).tobytes())
        types = {name: ColumnType(dtype, tuple(shape)) for name, (dtype, shape) in columns.items()}
        names = {"model": "model", "out": self._file("out"), "inputs": self._file("inputs") if inputs else ""}
        with self._exchange("sample", ctx, names, {"n": str(n), **sampler.values()}) as (folder, run):
            unpack_folder(params, folder / "model")
            if inputs:
                self._write_rows(folder / names["inputs"], inputs)
            if self.format == "images":
                (folder / "out").mkdir()
            run()
            return self._read_rows(folder / names["out"], types, n, inputs)

    def evaluate(self, params: Params, holdout: Columns, samples: Columns, ctx: Context) -> Mapping[str, float]:
        batches = {"holdout": holdout, "samples": samples}
        names = {"model": "model", "out": "out.json", **{name: self._file(name) for name in batches}}
        with self._exchange("evaluate", ctx, names) as (folder, run):
            unpack_folder(params, folder / "model")
            for name in batches.keys() & self.commands.placeholders("evaluate"):
                self._write_rows(folder / names[name], batches[name])
            run()
            return _read_values(folder / "out.json")

    def export(self, params: Params, folder: Path, dtype: str) -> None:
        """The files of a model, as the command `train` wrote them."""
        unpack_folder(params, folder)

    def _program(self, arguments: tuple[str, ...], threads: int = 1) -> Program:
        return Program(
            arguments=arguments, files=self.files, variables=self.environment, time_limit=self.time_limit, threads=threads
        )

    @contextmanager
    def _exchange(
        self, stage: str, ctx: Context, names: Mapping[str, str], words: Mapping[str, str] = {}
    ) -> Iterator[tuple[Path, Callable[[], object]]]:
        """A folder for the files that a command reads and writes, and a function that runs it beside the lasting `../scratch`.

        Placeholders: `names` of files in that folder (empty: there is none), and `words`.
        """
        values = {"seed": str(ctx.stream.integer() >> 32), "threads": str(ctx.threads), "scratch": "../scratch", **words}
        values |= {name: f"{EXCHANGE}/{file}" if file else "" for name, file in names.items()}
        command = getattr(self.commands, stage)
        arguments = tuple(PLACEHOLDER.sub(lambda match: values[match[1]], argument) for argument in command)
        log = log_path(ctx.scratch, stage)
        with ExitStack() as stack:
            base = ctx.scratch.absolute() if ctx.scratch else Path(stack.enter_context(TemporaryDirectory(prefix="selfloop-")))
            (base / "scratch").mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="work-", dir=base, ignore_cleanup_errors=True)))
            (folder / EXCHANGE).mkdir()
            try:
                yield folder / EXCHANGE, lambda: self._program(arguments, ctx.threads).run(folder, log)
            except ProgramError as problem:
                line = " ".join(arguments)
                line = line if len(line) <= 100 else f"{line[:100]} ..."
                raise DataError(
                    f"family.command: {stage} ({line}) {problem.problem}. {problem.advice}; its log is {log}."
                ) from problem
        log.unlink()

    def _file(self, name: str) -> str:
        """Name of the file, or folder of images, of some rows."""
        return name if self.format == "images" else f"{name}.{self.format}"

    def _write_rows(self, path: Path, rows: Columns) -> None:
        rows = {name: rows[name] for name in sorted(rows)}  # whatever order a store or a source gives them
        schema = {name: ColumnType(dtype, shape) for name, (dtype, shape) in _find_types(rows).items()}
        if self.format == "images":
            path.mkdir()
            image = _find_image(schema)
            if image is not None:
                tables.write_pngs(np.asarray(rows[image]), path)
            rows, path = {name: column for name, column in rows.items() if name != image}, path / "rows.csv"
            if not rows:
                return
        if self.format in ("csv", "images"):
            _refuse_empty_texts(rows)
            tables.write_csv(rows, path, schema, for_spreadsheets=False)
        else:
            WRITERS[self.format](rows, path, schema)

    def _read_rows(self, path: Path, types: Schema, n: int, inputs: Columns) -> dict[str, Column]:
        """The rows that a program wrote, with the inputs beside them; it may repeat these."""
        if self.format != "images":
            rows = tables.read_rows(path, self.format, types, n, [*inputs])
        else:
            image = _find_image(types)
            assert image is not None
            others = {name: column for name, column in types.items() if name != image}
            rows = {image: tables.read_pngs(path, n, types[image].shape)}
            rows |= tables.read_rows(path / "rows.csv", "csv", others, n, [*inputs]) if others.keys() - inputs.keys() else {}
        for name in inputs.keys() & rows.keys():
            if to_safetensors({name: rows[name]}) != to_safetensors({name: inputs[name]}):
                raise ProgramError(f"wrote other values of the input {name!r} than it got; expected the same rows in order")
        return {name: inputs[name] if name in inputs else rows[name] for name in types}


@cache
def _read_versions(arguments: tuple[str, ...], files: tuple[Path, ...], variables: tuple[tuple[str, str], ...]) -> str:
    """Output of a command that lists versions; SpecError if it fails."""
    program = Program(arguments=arguments, files=files, variables=dict(variables), time_limit=MAX_VERSION_SECONDS)
    with TemporaryDirectory(prefix="selfloop-") as name:
        try:
            return program.run(Path(name), Path(name, ".log"), answers=True).decode(errors="replace")
        except ProgramError as problem:
            raise SpecError(f"family.versions: {' '.join(arguments)[:100]} {problem.problem}. {problem.advice}.") from problem


def _find_types(rows: Columns) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: ("utf8", ()) if isinstance(column, Ragged) else (str(column.dtype), column.shape[1:])
        for name, column in rows.items()
    }


def _find_image(schema: Schema) -> str | None:
    """The first column of images of uint8, gray or RGB; None without one."""
    shapes = {name: column.shape for name, column in schema.items() if column.dtype == "uint8"}
    return next((name for name, shape in shapes.items() if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))), None)


def _refuse_empty_texts(rows: Columns) -> None:
    """Raise DataError for a column that has missing values and empty texts, which are the same cells in a CSV file."""
    for name, column in rows.items():
        mask = rows.get(name + MASK)
        if isinstance(column, Ragged) and mask is not None and (np.diff(column.offsets)[~np.asarray(mask, bool)] == 0).any():
            raise DataError(
                f"family.format: got 'csv'; column {name!r} has empty texts and missing values, which are equal in a CSV file. "
                "Set it to 'jsonl'."
            )


def _read_model(folder: Path) -> tuple[dict[str, Array], str]:
    """The files of a model, or the word in its file `ended`."""
    ended = folder / "ended"
    if not ended.is_file() or ended.is_symlink():
        return pack_folder(folder), ""
    word = ended.read_bytes()[:100].decode(errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z]\w{0,39}", word):
        raise ProgramError(f"wrote {shown(word)} to {{model}}/ended; expected one word")
    return {}, word


def _read_values(path: Path) -> dict[str, float]:
    """The values in the JSON object of an evaluation; NaN for null. ProgramError if it is none, or has no `loss`."""
    if not path.is_file() or path.is_symlink():
        raise ProgramError("wrote no file {out}; expected a JSON object")
    try:
        table: Any = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as problem:
        raise ProgramError(f"wrote no JSON to {{out}} ({first_line(problem)})") from problem
    if not isinstance(table, dict) or "loss" not in table:
        raise ProgramError(f"wrote {shown(table)} to {{out}}; expected a JSON object with `loss`")
    for name, value in table.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not re.fullmatch(r"[A-Za-z]\w{0,59}", name) or not (value is None or is_number):
            raise ProgramError(f"wrote {name} = {shown(value)} to {{out}}; expected words with numbers or null")
    return {name: float("nan") if value is None else float(value) for name, value in table.items()}
