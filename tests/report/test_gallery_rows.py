"""Rows of a run in its report: texts are decoded and shown beside the real texts with the same prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_corpus import KeepAll, Parrot, corpus_spec

import selfloop
from selfloop.report.build import build_report
from selfloop.report.gallery import view_gallery
from selfloop.report.page import render_page
from selfloop.report.theme import policy_styles


def test_a_chain_that_ended_while_sampling_has_a_report(tmp_path: Path) -> None:
    report = build_report(selfloop.run(corpus_spec(family=Parrot(max_times=1)), tmp_path))
    assert [sorted(rows) for rows in report.galleries[0].samples.values()] == [[1], [1, 2, 3]]


def test_texts_of_a_corpus_are_decoded_and_shown_beside_the_real_texts_with_the_same_prompts(tmp_path: Path) -> None:
    report = build_report(selfloop.run(corpus_spec(), tmp_path))
    view = view_gallery(report.galleries[0], policy_styles(report.policies()))
    assert len(view.text_rows) == 4
    for row in view.text_rows:
        assert row.real
        prompt = row.real.prompt
        assert row.real.head == f" <i>tale</i> of {ord(prompt) - 65}"
        replace, accumulate = ([(text.prompt, text.head) for text in texts if text] for texts in row.rows.values())
        assert replace == [(prompt, " again" * t) for t in (1, 2, 3)]
        assert [text for text, _ in accumulate] == [prompt] * 3
    page = render_page([report])
    assert "<i>tale</i>" not in page
    assert "&lt;i&gt;tale&lt;/i&gt;" in page


@pytest.mark.parametrize("changes", [{"sampler": {"prompt": "start"}}, {"curators": (KeepAll(),)}])
def test_rows_without_prompts_are_shown_unmarked(tmp_path: Path, changes: dict[str, object]) -> None:
    report = build_report(selfloop.run(corpus_spec(**changes), tmp_path))
    (gallery,) = report.galleries
    label = report.policies()[0]
    assert "prompt" not in gallery.samples[label][1]
    assert all(text.prompt == "" for row in view_gallery(gallery, {}).text_rows for text in row.rows[label] if text)


def test_rows_of_an_ensemble_are_drawn_again_from_the_first_seed(tmp_path: Path) -> None:
    spec = selfloop.Spec(source="moons", family="kde", n=40, generations=3, seeds=2, policies=["replace", "accumulate"])  # type: ignore[arg-type]
    first, second = (build_report(selfloop.run(spec, tmp_path)).galleries for _ in range(2))
    assert first[0].real["x"].shape[0] == 40
    for policy in ("replace", "accumulate"):
        assert list(first[0].samples[policy]) == [1, 2, 3]
        for t in (1, 2, 3):
            np.testing.assert_array_equal(first[0].samples[policy][t]["x"], second[0].samples[policy][t]["x"])


def test_curated_rows_are_those_that_were_kept(tmp_path: Path) -> None:
    verifier = {"name": "verifier", "score": {"name": "column", "column": "x"}}
    policy = {"name": "replace", "curators": [verifier], "max_rounds": 1}
    spec = selfloop.Spec(source="gaussian", family="kde", n=40, generations=3, seeds=2, policies=[policy])  # type: ignore[arg-type]
    (rows,) = build_report(selfloop.run(spec, tmp_path)).galleries[0].samples.values()
    for kept in (np.asarray(rows[1]["x"]), np.asarray(rows[2]["x"])):
        assert 0 < len(kept) < 40
        assert (kept > 0).all()


def test_a_chain_of_an_ensemble_that_ended_has_no_more_rows(tmp_path: Path) -> None:
    never = {"name": "verifier", "score": {"name": "column", "column": "x"}, "threshold": 1e9}
    policies = [{"name": "replace", "curators": [never]}]
    spec = selfloop.Spec(source="gaussian", family="kde", n=40, generations=3, seeds=2, policies=policies)  # type: ignore[arg-type]
    (rows,) = build_report(selfloop.run(spec, tmp_path)).galleries[0].samples.values()
    assert list(rows) == [1]


def test_rows_of_numbers_and_categories_are_a_table_of_all_columns(tmp_path: Path) -> None:
    lines = [f"{20 + i % 40},{('nurse', 'cook', 'driver')[i % 3]}" for i in range(60)]
    (tmp_path / "people.csv").write_text("\n".join(["age,job", *lines]))
    source = {"name": "records", "path": str(tmp_path / "people.csv")}
    spec = selfloop.Spec(source=source, family="copula", n=40, holdout=10, generations=2, seeds=2, policies=["replace"])  # type: ignore[arg-type]
    gallery = build_report(selfloop.run(spec, tmp_path / "store")).galleries[0]
    view = view_gallery(gallery, {})
    assert (set(view.header), list(view.text_rows)) == ({"age", "job"}, [])
    jobs = {cells[list(view.header).index("job")] for cells in view.tables["replace"]["t = 2"]}
    assert jobs <= {"nurse", "cook", "driver"}
    assert jobs


def test_a_missing_number_is_an_empty_cell_and_whole_numbers_have_no_decimals(tmp_path: Path) -> None:
    lines = [f"{20 + i % 40},{'' if i % 2 else 1000 + i},{('nurse', '', 'driver')[i % 3]},{i / 8},{i % 2}" for i in range(60)]
    (tmp_path / "people.csv").write_text("\n".join(["age,income,job,height,churn", *lines]))
    source = {"name": "records", "path": str(tmp_path / "people.csv"), "target": "churn"}
    spec = selfloop.Spec(source=source, family="copula", n=40, holdout=10, generations=2, seeds=2, policies=["replace"])  # type: ignore[arg-type]
    gallery = build_report(selfloop.run(spec, tmp_path / "store")).galleries[0]
    assert "income@missing" in gallery.real
    view = view_gallery(gallery, {})
    assert sorted(view.header) == ["age", "churn", "height", "income", "job"]
    assert "" in {row[list(view.header).index("income")] for cells in view.tables["replace"].values() for row in cells}
    for title, rows in (("real", gallery.real), ("t = 2", gallery.samples["replace"][2])):
        cells = dict(zip(view.header, zip(*view.tables["replace"][title], strict=True), strict=True))
        for i, (gone, value) in enumerate(
            zip(np.asarray(rows["income@missing"])[:5], np.asarray(rows["income"]), strict=False)
        ):
            assert cells["income"][i] == ("" if gone else f"{value:,.0f}")
        assert all(cell.isdigit() for cell in (*cells["age"], *cells["churn"]))
        assert any("." in cell for cell in cells["height"])


def test_a_store_without_the_rows_of_a_run_gives_no_gallery(tmp_path: Path) -> None:
    from selfloop.report.gallery import read_galleries

    assert list(read_galleries(corpus_spec().points(), tmp_path)) == []
