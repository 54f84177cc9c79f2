"""The spec of an audit of a table of one's own, or of a Hugging Face model on one's own texts: sizes and settings filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from selfloop.audit.design import DEFAULT_GENERATIONS, DEFAULT_POLICIES, rows_of_fresh_control
from selfloop.component import Policy, Source
from selfloop.errors import DataError, SpecError, shown
from selfloop.families.nn.hf_folder import HfFolder
from selfloop.plugins import presets
from selfloop.spec.components import make_component
from selfloop.spec.parse import parse_override, parse_toml, read_spec_text, set_key, spec_from_table
from selfloop.spec.spec import Spec

TABLE_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".jsonl", ".jsonl.gz", ".ndjson")
HOLDOUT_SHARE = 0.2
# (rows to train on at least and at most, held-out rows at least and at most), unless --set changes them
TABLE_SIZES, TEXT_SIZES = (100, 5000, 50, 5000), (40, 200, 20, 100)
ENOUGH_FRESH = 0.2  # of the most rows: with as many, a control of fresh rows is better than more rows


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """What the user names: a spec or a table, a spec of the family `command`, or a Hugging Face model with its data."""

    spec: str | None = None
    command: str | None = None
    model: str | None = None
    data: str | None = None
    template: str | None = None
    lora: int | None = None
    temperature: float | None = None
    top_p: float | None = None

    def name(self) -> str:
        """The one thing that is named, after checks of what belongs together; SpecError otherwise."""
        names = [name for name in (self.spec, self.command, self.model) if name is not None]
        if len(names) != 1:
            problem = "nothing to audit" if not names else f"several things to audit ({', '.join(names)})"
            raise SpecError(
                f"audit: got {problem}; expected one spec or table, or --command SPEC, or --model FOLDER --data FILE."
            )
        for option in ("data", "template", "lora", "temperature", "top_p"):
            if self.model is None and getattr(self, option) is not None:
                raise SpecError(f"--{option.replace('_', '-')}: belongs to --model. Leave it out, or name a model.")
        if self.model is not None and self.data is None:
            raise SpecError("--model: needs --data FILE, the JSON lines or text to fine-tune it on. Add it.")
        if self.lora is not None and self.lora < 1:
            raise SpecError(f"--lora: got {self.lora}; expected a rank of 1 or more. Correct it.")
        return names[0]

    def open(self, generations: int | None, policies: Sequence[Policy], overrides: Sequence[str]) -> Spec:
        """The spec to audit. SpecError or DataError for what cannot be read, or has too few rows."""
        name = self.name()
        usual = policies or [make_component("policy", policy, "policies") for policy in DEFAULT_POLICIES]
        if self.model is not None:
            try:
                return self._spec_of_model(self.model, generations or DEFAULT_GENERATIONS, usual, overrides)
            except DataError as error:
                text = str(error).removeprefix("source.path: ").removesuffix("Fix or remove the line.")
                if "is missing; the record has" not in text:
                    raise
                advice = 'Name fields that every line has, such as --template "user: {q}\\nassistant: {a}".'
                raise DataError(f"--template: {text}{advice}") from error
        if self.spec is not None and name.lower().endswith(TABLE_ENDINGS):
            table: dict[str, Any] = {"source": {"name": "records", "path": name}, "family": {"name": "copula"}}
            return _sized_spec(table, generations or DEFAULT_GENERATIONS, usual, overrides, TABLE_SIZES)
        if name not in presets() and not Path(name).expanduser().is_file():
            problem = f"{name} is a folder" if Path(name).expanduser().is_dir() else f"there is no file or preset {shown(name)}"
            raise SpecError(
                f"audit: {problem}; expected a TOML spec, a preset, or a table (.csv, .parquet, .jsonl). Correct it."
            )
        spec = spec_of_file(name, generations, overrides)
        if self.command is not None and spec.family.name != "command":
            raise SpecError(f"--command: {name} has the family {spec.family.name}; expected command. Leave --command out.")
        return spec

    def _spec_of_model(self, model: str, generations: int, policies: Sequence[Policy], overrides: Sequence[str]) -> Spec:
        """Fine-tuning with the settings of Hugging Face's Trainer.

        With a template such as "user: {q}\\nassistant: {a}", samples continue a real row up to its last field, and only tokens
        of that field count.
        """
        base, _, revision = model.partition("@")
        data = self.data or ""
        source: dict[str, Any] = {"name": "jsonl" if ".jsonl" in data.lower() else "text", "path": data}
        rate = 5e-5 if self.lora is None else 2e-4
        training = {"epochs": 3, "batch_size": 8, "learning_rate": rate, "lr_schedule": "linear"}
        family: dict[str, Any] = {"name": "finetune", "base_model": base, "training": training}
        sampler: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p}
        sampler = {name: value for name, value in sampler.items() if value is not None}
        if revision:
            family["revision"] = revision
        elif not Path(base).expanduser().is_dir():
            raise SpecError(
                f"--model: got {model!r}; expected a folder with config.json, or name@commit of a model on the hub."
            )
        else:
            config = HfFolder("--model", Path(base).expanduser(), None).check()
            positions = config.get("n_positions") or config.get("max_position_embeddings")
            family["context"] = min(512, positions) if isinstance(positions, int) else 512
        if self.template is not None:
            if source["name"] == "text":
                raise SpecError("--template: is for fields of JSON lines. Leave it out, or give a file that ends in .jsonl.")
            source["template"] = self.template.replace("\\n", "\n")
            if response := _response_template(source["template"]):
                family["response_template"] = response
                sampler["prompt"] = "before"
        if self.lora is not None:
            family["lora"] = {"rank": self.lora}
        table = {"source": source, "family": {**family, "sampler": sampler}}
        return _sized_spec(table, generations, policies, overrides, TEXT_SIZES)


def _response_template(template: str) -> str:
    """The text before the last field of a template with two or more fields, such as "assistant:"; empty for others."""
    parts = [(text, name) for text, name, _, _ in Formatter().parse(template)]
    fields = [i for i, (_, name) in enumerate(parts) if name is not None]
    return parts[fields[-1]][0].strip() if len(fields) > 1 else ""


def spec_of_file(path: str, generations: int | None, overrides: Sequence[str] = ()) -> Spec:
    """The spec in a file or preset; without policies or generations of its own with those that an audit has by default."""
    table = parse_toml(read_spec_text(path), path)
    table = {"policies": list(DEFAULT_POLICIES), "generations": DEFAULT_GENERATIONS} | table
    _override(table, overrides, generations)
    return spec_from_table(table)


def _override(table: dict[str, Any], overrides: Sequence[str], generations: int | None) -> None:
    if generations is not None:
        table["generations"] = generations
    for override in overrides:
        set_key(table, *parse_override(override), f"--set {override!r}")


def _sized_spec(
    table: dict[str, Any], generations: int, policies: Sequence[Policy], overrides: Sequence[str], sizes: tuple[int, ...]
) -> Spec:
    """The spec with n and holdout that the rows of its source allow."""
    source: Source = make_component("source", table["source"], "source")
    size = source.n_usable_rows()
    least_n, most_n, least_holdout, most_holdout = sizes
    least = least_n + least_holdout
    if size is not None and size < least:
        raise DataError(
            f"{source.title()}: has {size:,} usable rows; an audit needs {least} at least, {least_n} to train on and "
            f"{least_holdout} to hold out. Give more rows, or set n and holdout with --set in a spec of your own."
        )
    holdout = min(max(round(HOLDOUT_SHARE * (size or math.inf)), least_holdout), most_holdout) if size else most_holdout
    rest = (size or most_n * 100) - holdout
    demand = max(rows_of_fresh_control(policy, 1000, generations) for policy in policies) / 1000
    fresh = int(rest / demand)
    n = min(fresh if fresh >= ENOUGH_FRESH * most_n else rest, most_n)
    table |= {"n": n, "holdout": holdout, "generations": generations, "policies": list(policies)}
    _override(table, overrides, None)
    return spec_from_table(table)
