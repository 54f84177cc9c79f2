"""TinyStories from text files and from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from example_texts import CTX, read_corpus, to_texts
from real_data import DATA, needs

from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.rng import RandomStream
from selfloop.sources.hub import HubText
from selfloop.sources.text_corpora import TinyStories
from selfloop.sources.text_files import TextSource
from selfloop.testing import check_source


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """A folder in the official form, with the empty story at the start and end of the official files."""
    for split, count in (("train", 30), ("valid", 7)):
        content = "\n<|endoftext|>\n".join(["", *(f"{split} story\n\nnumber {i}." for i in range(count)), ""])
        (tmp_path / f"TinyStoriesV2-GPT4-{split}.txt").write_text(content)
    return tmp_path


def test_the_holdout_are_validation_stories_and_real_rows_training_stories(stories: Path) -> None:
    source, other = TinyStories(path=stories, holdout_rows=5), Context(RandomStream(("seed", 1, "source")))
    check_source(source)
    assert (source.n_holdout(), source.n_rows()) == (5, 35)
    corpora = [to_texts(source.draw(0, 35, ctx)) for ctx in (CTX, other)]
    for rows in corpora:
        assert all(row.startswith("valid") for row in rows[:5])
        assert sorted(rows[5:]) == sorted(f"train story\n\nnumber {i}." for i in range(30))
    assert set(corpora[0][:5]) != set(corpora[1][:5])
    assert len(read_corpus(source)) == 37
    whole = TinyStories(path=stories / "TinyStoriesV2-GPT4-train.txt", holdout_path=stories / "TinyStoriesV2-GPT4-valid.txt")
    assert (whole.n_holdout(), whole.n_rows()) == (7, 37)


def test_without_validation_stories_the_spec_decides_on_the_holdout(stories: Path) -> None:
    source = TinyStories(path=stories / "TinyStoriesV2-GPT4-train.txt")
    assert (source.n_holdout(), source.n_rows()) == (None, 30)
    corpus, plain = next(source.chunks()), TextSource(path=cast(Path, source.path), separator="<|endoftext|>")
    assert np.array_equal(source.order(corpus, CTX), plain.order(corpus, CTX))


def test_missing_files_and_contradicting_settings_are_errors(stories: Path) -> None:
    (stories / "TinyStories-train.txt").write_text("V1")
    with pytest.raises(DataError, match=r"has 2 files \*train\.txt\* .*Give the file itself"):
        TinyStories(path=stories).n_rows()
    for wrong in ({}, {"path": stories, "hub": "roneneldan/TinyStories"}):
        with pytest.raises(SpecError, match=r"^path: got .*; expected one of them"):
            TinyStories(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"^revision: got .*a local path has no revision"):
        TinyStories(path=stories, revision="b" * 40)


def test_stories_of_the_hub_are_all_of_one_commit() -> None:
    source = TinyStories(hub="someone/stories", revision="b" * 40)
    splits = [split for split in source._splits() if isinstance(split, HubText)]
    assert [(split.path, split.split, split.revision) for split in splits] == [
        ("someone/stories", name, "b" * 40) for name in ("train", "validation")
    ]


@needs("tinystories")
def test_real_stories_are_read() -> None:
    source = TinyStories(path=DATA / "tinystories")
    assert (source.n_rows(), source.n_holdout()) == (10_342 + 500, 500)
    official = (DATA / "tinystories" / "TinyStories-slice-train.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    assert read_corpus(source)[:10_342] == [story.strip() for story in official if story.strip()]
