"""Pretrained models and tokenizers in folders as transformers saves them, opened file by file: the library repairs in silence.

Only config.json, safetensors files and the tokenizer's JSON are read. Every array must come from them, and no code of a folder
is run.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

from selfloop.columns import Array, Params
from selfloop.errors import DataError, SettingError, first_line
from selfloop.formats.folders import POINTER_PROBLEM, is_pointer, refuse_pointer
from selfloop.formats.safetensors import flatten_columns, read_safetensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("*.json", "*.safetensors", "merges.txt", "*.jinja")  # of a name on the hub
CAUSAL, FEATURES = "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_MAPPING"  # transformers' tables of networks
INDEX, OLD_TOKENS = "model.safetensors.index.json", "added_tokens.json"
NAMED = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]  # in transformers' order
MAX_GROWTH = 1000  # times the length of a text, by replacements of a tokenizer; the usual ones replace a character by one


@dataclass(frozen=True)
class HfFolder:
    """A folder, or a name on the hub with its commit: the value of the setting `key`. All methods raise SettingError."""

    key: str
    base: str | Path
    revision: str | None

    @cached_property
    def path(self) -> Path:
        """The folder; files of a name on the hub are downloaded unless they are in its cache."""
        if isinstance(self.base, Path):
            return self.base
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(self.base, revision=self.revision, allow_patterns=list(FILES), ignore_patterns="*/*")
        except (OSError, ValueError) as problem:
            self.refuse(f"cannot be downloaded ({first_line(problem)})", problem)
        return Path(folder)

    def refuse(self, problem: str, cause: BaseException | None = None) -> NoReturn:
        advice = "Give a folder as transformers saves a model with its tokenizer"
        raise SettingError(self.key, f"{self.base} {problem}. {advice}, or its name on the hub.") from cause

    def check(self) -> Mapping[str, Any]:
        """Settings of the network in config.json, after checks that load no library of networks and read no arrays."""
        if pointers := [file for pattern in FILES for file in self.path.glob(pattern) if is_pointer(file)]:
            raise SettingError(self.key, f"{pointers[0]} {POINTER_PROBLEM}")
        config = self._read("config.json")
        if (self.path / "adapter_config.json").exists():
            self.refuse("holds adapters of another model (adapter_config.json), which would be left out; merge them first")
        for file in self._weight_files():
            try:
                with safe_open(file, framework="np"):
                    pass
            except (OSError, SafetensorError) as problem:
                self.refuse(f"has no complete {file.name} ({first_line(problem)})", problem)
        self.tokenizer_settings()
        return config

    def config(self) -> Any:
        from transformers import AutoConfig

        self._read("config.json")
        try:
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        except Exception as problem:  # a wrong value in config.json may raise anything
            self.refuse(f"has a config.json that transformers cannot read ({first_line(problem)})", problem)

    def weights(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for file in self._weight_files():
            try:
                arrays |= flatten_columns(read_safetensors(file))
            except (OSError, DataError) as problem:
                self.refuse(f"has weights that cannot be read ({first_line(problem)})", problem)
        if wrong := sorted(name for name, array in arrays.items() if not np.isfinite(array).all()):
            self.refuse(f"has values that are not finite numbers in {_listed(map(repr, wrong))}")
        return arrays

    def _weight_files(self) -> list[Path]:
        whole = self.path / "model.safetensors"
        if whole.is_file():
            return [whole]
        if not (self.path / INDEX).is_file():
            self.refuse("has no model.safetensors; other files, such as .bin, can hold code and are not read")
        parts = self._read(INDEX).get("weight_map")
        if not isinstance(parts, dict) or any(Path(str(name)).name != name for name in parts.values()):
            self.refuse(f"has a {INDEX} whose weight_map is no table of files in the same folder")
        return [self.path / name for name in sorted(set(parts.values()))]

    def network(self, mapping: str) -> Any:
        """The network in one of transformers' mappings, in float32, every array of it from the files."""
        config, weights = self.config(), self.weights()
        n_weights = sum(array.size for array in weights.values())
        try:
            if (n := count_parameters(config, mapping)) > 2 * n_weights:  # tied arrays are counted twice
                self.refuse(f"has a config.json of {n:,} parameters and files with {n_weights:,}")
            model, wrong = load_hf_model(config, weights, mapping)
        except SettingError:
            raise
        except Exception as problem:
            self.refuse(f"has no network of {mapping} ({first_line(problem)})", problem)
        if wrong:
            self.refuse(f"has weights that do not fit its config.json: {_listed(wrong)}")
        return model.eval()

    def tokenizer(self) -> tuple[Tokenizer, int | None, int | None]:
        """The tokenizer, and its start and end token if it has them.

        Every special token that the files name is one token. One that is not in tokenizer.json follows the others, in
        transformers' order, if the network has an embedding for it.
        """
        tokenizer, settings = open_tokenizer(self.path, self.key), self.tokenizer_settings()
        entries, embeddings = tokenizer.get_vocab_size(), self.config().get_text_config().vocab_size
        with library_errors(f"{self.key}: {self.base} has special tokens that cannot be read"):
            claimed = self._claimed_ids(settings)
            keys = [*NAMED, *(key for key in settings if key.endswith("_token") and key not in NAMED)]
            named = [settings.get(key) for key in keys if key in NAMED[:2] or entries < embeddings]  # others are in no text
            for kind in ("additional", "extra"):
                tokens = settings.get(f"{kind}_special_tokens") or []
                named += tokens.values() if isinstance(tokens, dict) else tokens
            special = dict.fromkeys(filter(None, [*sorted(claimed, key=lambda text: claimed[text]), *map(_content, named)]))
            ids = tokenizer.get_vocab()
            plain = [text for text in special if tokenizer.encode(text, add_special_tokens=False).ids != [ids.get(text)]]
            tokenizer.add_special_tokens(plain)
        ids = tokenizer.get_vocab()
        if wrong := [text for text, i in claimed.items() if ids[text] != i]:
            self.refuse(f"has files with different ids of the token {wrong[0]!r}")
        if (n := max(ids.values(), default=-1) + 1) > embeddings:
            self.refuse(f"has a tokenizer of {n} entries and a network of {embeddings} embeddings")
        start, end = (ids.get(_content(settings.get(f"{name}_token"))) for name in ("bos", "eos"))
        if "eos_token" not in settings:  # older folders name both in config.json only
            start, end = (self._read("config.json").get(f"{name}_token_id") for name in ("bos", "eos"))
        start, end = (token if token in ids.values() else None for token in (start, end))
        return tokenizer, start, end

    def _claimed_ids(self, settings: Mapping[str, Any]) -> dict[str, int]:
        """Ids of special tokens, by their text, in the tokenizer's settings and in the file of older folders."""
        table = (settings.get("added_tokens_decoder") or {}).items()
        older = self._read(OLD_TOKENS) if (self.path / OLD_TOKENS).exists() else {}
        return older | {_content(token): int(i) for i, token in table if token.get("special")}

    def tokenizer_settings(self) -> dict[str, Any]:
        """Settings of the tokenizer, with the chat template, which may be in a file of its own."""
        if not any((self.path / name).exists() for name in ("tokenizer.json", "merges.txt")):
            self.refuse("has no tokenizer.json")
        names = [name for name in ("special_tokens_map.json", "tokenizer_config.json") if (self.path / name).exists()]
        settings = {key: value for name in names for key, value in self._read(name).items()}
        if (template := self.path / "chat_template.jinja").exists():
            settings["chat_template"] = template.read_text(encoding="utf-8")
        return settings

    def _read(self, name: str) -> dict[str, Any]:
        try:
            table = json.loads((self.path / name).read_text(encoding="utf-8")) if (self.path / name).is_file() else None
        except (OSError, ValueError, RecursionError) as problem:
            self.refuse(f"has no readable {name}", problem)
        if table is None:
            self.refuse(f"has no {name}")
        if not isinstance(table, dict) or "auto_map" in table:
            self.refuse(f"has a {name} that is no table, or that names code of its own (auto_map), which is never run")
        return table


def _listed(arrays: Iterable[str]) -> str:
    """The first array, and the number of others if there are some."""
    first, *others = arrays
    return f"{first} and {len(others)} more" if others else first


def _content(token: Any) -> str:
    """The text of a special token, which may be a table; empty if there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def open_tokenizer(path: Path, key: str = "family.tokenizer") -> Tokenizer:
    """The tokenizer of a tokenizer.json, its folder, or a folder with GPT-2's vocab.json and merges.txt. DataError."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder, file = path, path / "tokenizer.json" if path.is_dir() else path
    advice = "Give a tokenizer.json, or a folder with one or with vocab.json and merges.txt"
    refuse_pointer(f"{key}: {file}", file)
    with library_errors(f"{key}: {path} cannot be read", advice):
        if file.is_file():
            _check_operations(text := file.read_text(encoding="utf-8"))
            return Tokenizer.from_str(text)
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _check_operations(text: str) -> None:
    """ValueError if a tokenizer splits at random, or if its replacements multiply text without bound."""
    growths = [1]

    def collect(table: dict[str, Any]) -> dict[str, Any]:
        if table.get("type") == "Replace":  # a pattern may stand for no character: its text is then put between characters
            growths.append(max(len(table["content"]) + (not table["pattern"].get("String")), 1))
        return table

    if json.loads(text, object_hook=collect)["model"].get("dropout"):
        raise ValueError("its dropout splits texts at random")
    if math.prod(growths) > MAX_GROWTH:
        raise ValueError(f"its replacements make texts more than {MAX_GROWTH} times as long")


@contextmanager
def library_errors(problem: str, advice: str = "Choose another tokenizer") -> Iterator[None]:
    """Inside, every error of the tokenizers library is a DataError, as are panics, which are no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise DataError(f"{problem} ({first_line(error)}). {advice}.") from error


def count_parameters(config: Any, mapping: str = CAUSAL) -> int:
    """Number of parameters of transformers' network, which is built without memory for them."""
    import torch
    import transformers

    with torch.device("meta"), quiet():
        return sum(p.numel() for p in getattr(transformers, mapping)[type(config)](config).parameters())


def load_hf_model(config: Any, params: Params, mapping: str = CAUSAL) -> tuple[Any, list[str]]:
    """transformers' network of a configuration with the arrays of `params`, in float32, and what does not fit it.

    A network of features needs no heads: those of the files, and its own pooler, are left out.
    """
    import torch
    import transformers

    state = {name: torch.tensor(array) for name, array in params.items()}
    network = getattr(transformers, mapping)[type(config)]
    with quiet():
        model, report = network.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    missing, unexpected, mismatched = (report[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    if mapping == FEATURES:
        body = {name for name, _ in model.named_children()}
        missing = [name for name in missing if not name.startswith("pooler.")]
        unexpected = [name for name in unexpected if name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] in body]
    wrong = [f"{name!r} is missing" for name in sorted(missing)]
    wrong += [f"{name!r} has shape {tuple(got)}, expected {tuple(expected)}" for name, got, expected in sorted(mismatched)]
    return model, wrong + [f"{name!r} is unexpected" for name in sorted(unexpected)]


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers and peft print no progress bars and log errors only."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
