"""Python's documentation as a corpus."""

from __future__ import annotations

import argparse
import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
from example_texts import read_corpus

from selfloop.errors import DataError, SpecError
from selfloop.sources.text_corpora import MAX_JOINED_LENGTH, MIN_DOCUMENT_LENGTH, PythonDocs, join_paragraphs, read_library


def test_the_documents_are_a_megabyte_of_prose() -> None:
    documents = read_corpus(PythonDocs())
    assert 1_000_000 < sum(map(len, documents)) < 3_000_000
    assert len(set(documents)) == len(documents) > 3000
    assert min(map(len, documents)) >= MIN_DOCUMENT_LENGTH
    assert np.quantile([len(d) for d in documents], 0.99) <= MAX_JOINED_LENGTH + 10
    assert sum(" the " in d for d in documents) > 0.6 * len(documents)


def test_the_documents_contain_the_docstrings_that_a_parser_finds() -> None:
    module = ast.parse(inspect.getsource(argparse))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(module) if isinstance(node, kinds)]
    expected = [document for docstring in docstrings for document in join_paragraphs(docstring)]
    assert len(expected) > 10
    assert set(expected) <= set(read_corpus(PythonDocs()))


def test_another_version_of_python_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"^python: got '3\.4\.0'; expected"):
        PythonDocs(python="3.4.0")


def test_a_library_without_sources_is_an_error_and_broken_modules_are_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no Python sources"):
        read_library(tmp_path)
    prose = "These are words of prose that are long enough to count. " * 2
    (tmp_path / "broken.py").write_bytes(b'class A:\n    """\xff' + prose.encode() + b'"""\n"')
    assert [d.strip("\ufffd") for d in read_library(tmp_path)] == [prose.strip()]
