"""Notebooks: what they show of values, progress, workers in a kernel, and the example notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import selfloop
from selfloop.notebook import MAX_SHOWN_ROWS, KernelProgress, Verdicts, format_seconds, in_kernel, table_html
from selfloop.types import Verdict

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))


class CellReader(HTMLParser):
    """The texts of the cells of tables, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
        self.rows += [[]] if tag == "tr" else []
        self.inside = tag in ("th", "td")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1].append(data)


def cells(value: Any) -> list[list[str]]:
    reader = CellReader()
    reader.feed(value if isinstance(value, str) else value._repr_html_())
    return reader.rows


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> selfloop.Result:
    return selfloop.run(
        selfloop.Spec(source="moons", family="kde", n=10, holdout=5, generations=3, seeds=3), tmp_path_factory.mktemp("store")
    )


def test_tables_escape_everything_and_have_no_colors() -> None:
    hostile = "<script>alert(1)</script>&\"'"
    page = table_html(hostile, [{hostile: hostile}], hostile)
    assert "<script" not in page
    assert "color" not in page
    assert cells(page) == [[hostile], [hostile]]


def test_long_tables_are_cut_and_say_so() -> None:
    page = table_html("numbers", [{"i": i} for i in range(MAX_SHOWN_ROWS + 7)])
    assert len(cells(page)) == 1 + MAX_SHOWN_ROWS
    assert "7 more rows are not shown." in page


def test_missing_numbers_are_dashes() -> None:
    assert cells(table_html("", [{"a": None, "b": float("nan"), "c": 1234.5678, "d": 3}]))[1] == ["–", "–", "1,235", "3"]


def test_a_result_shows_its_policies_with_the_change_of_the_risk(result: selfloop.Result) -> None:
    header, *rows = cells(result)
    values = result.curves()["replace"]["nll"]
    change = values[:, 2].mean() - values[:, 0].mean()
    assert header[:3] == ["policy", "nll at 1", "nll at 3"]
    assert [row[0] for row in rows] == ["replace", "accumulate"]
    assert rows[0][header.index("change")] == f"{change:,.4g}"
    n_yes = sum(v.answer == "yes" for v in result.verdicts() if v.policy == "replace")
    assert rows[0][-1].startswith(f"{n_yes} of ")


def test_a_result_counts_what_is_undecided_names_its_level_and_whether_it_is_finished(result: selfloop.Result) -> None:
    for look, level in ((1, "96 %"), (2, "99.5 %")):
        again = replace(result, look=look)
        undecided = sum(v.answer == "undecided" for v in again.verdicts() if v.policy == "replace")
        assert undecided
        assert cells(again)[1][-1].endswith(f", {undecided} undecided")
        assert f"with its {level} interval" in again._repr_html_()
    assert "Not finished: 3 of 18 generations so far." in replace(result, progress=(3, 18))._repr_html_()
    assert "finished" not in result._repr_html_()


def test_verdicts_are_a_list_that_shows_measured_definitions_by_policy(result: selfloop.Result) -> None:
    verdicts = result.verdicts()
    assert isinstance(verdicts, list)
    header, *rows = cells(verdicts)
    assert header == ["definition", "replace", "accumulate"]
    answers = {(v.criterion, v.policy): v.answer for v in verdicts}
    assert rows
    for name, *shown in rows:
        assert shown == [answers[name, policy] for policy in header[1:]]
        assert {*shown} != {"not measured"}
    unmeasured = next(v.criterion for v in verdicts if v.answer == "not measured")
    assert unmeasured in verdicts._repr_html_()


def test_verdicts_of_a_sweep_have_a_row_per_point() -> None:
    both = Verdicts(
        Verdict("any_increase", "replace", answer, coordinates=(("n", n),)) for n, answer in ((10, "yes"), (20, "no"))
    )
    assert cells(both) == [["definition", "n", "replace"], ["any_increase", "10", "yes"], ["any_increase", "20", "no"]]


def test_one_verdict_shows_what_it_rests_on() -> None:
    header, row = cells(Verdict("any_increase", "replace", "yes", "nll", 0.0, 0.5, 0.25, 0.75, "<why>"))
    assert dict(zip(header, row, strict=True)) == {
        "policy": "replace", "answer": "yes", "metric": "nll",
        "estimate": "0.5", "low": "0.25", "high": "0.75", "threshold": "0",
    }  # fmt: skip


def test_a_policy_shows_what_it_trains_on() -> None:
    spec = selfloop.Spec(source="moons", family="kde", n=10, policies=["accumulate", {"name": "fresh", "real_mass": "golden"}])
    assert cells(spec.policies[0])[2] == ["3", "0", "all of real(1), all of synthetic(1), all of synthetic(2)", "100"]
    assert "all of real(2) × 1.236" in cells(spec.policies[1])[1][2]


def test_predictions_and_advice_show_their_numbers() -> None:
    prediction = selfloop.predict("accumulate", n=100, generations=2)
    assert cells(prediction)[2][4] == f"{prediction.mean_error_multiplier[1]:.4g}"
    advice = selfloop.advise(rows=100, generations=5, bound=1.2)
    assert [row[0] for row in cells(advice)[1:]] == [policy.policy for policy in advice.policies]


def test_a_figure_is_an_svg_and_a_png_on_a_light_background(result: selfloop.Result) -> None:
    figure = result.plot("nll")
    bundle = figure._repr_mimebundle_()
    assert str(bundle["image/svg+xml"]).startswith("<svg")
    assert 'fill="#fdfdfc"' in str(bundle["image/svg+xml"])
    assert bytes(bundle["image/png"]).startswith(b"\x89PNG")  # type: ignore[arg-type]
    assert bundle["text/plain"] == figure.alt
    with pytest.raises(selfloop.SpecError, match=r"^metric: unknown name 'nlll'\. Did you mean 'nll'\?"):
        result.plot("nlll")


def test_there_is_no_kernel_here_and_no_line_without_one(result: selfloop.Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert not in_kernel()
    selfloop.run(result.spec, result.store)
    assert capsys.readouterr() == ("", "")


def test_times_have_three_digits_or_two_units() -> None:
    times = {0.00005: "0 s", 0.1462: "0.146 s", 12.34: "12.3 s", 41: "41 s", 125.6: "2 min 6 s", 4320: "1 h 12 min"}
    assert [format_seconds(seconds) for seconds in times] == [*times.values()]


def test_the_progress_line_counts_and_estimates() -> None:
    line = KernelProgress()
    line.started -= 10
    line.done, line.total, line.doing = 5, 20, "<b>replace</b>, seed 0"
    assert line.text() == "5/20 generations, 10 s elapsed, about 30 s remaining; <b>replace</b>, seed 0"
    line.done = 20
    assert line.text() == "20/20 generations, 10 s elapsed"


def execute(source: list[str] | Path, folder: Path) -> Any:
    """A notebook after its execution in a kernel of its own."""
    nbformat = pytest.importorskip("nbformat", reason="the extra dev is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra dev is not installed")
    if isinstance(source, Path):
        notebook = nbformat.read(source, as_version=4)
    else:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in source])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return notebook


def outputs(notebook: Any) -> Iterator[tuple[int, Any]]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    yield from ((i, output) for i, cell in enumerate(code) for output in cell.outputs)


@pytest.mark.slow
def test_workers_and_progress_work_in_a_kernel(tmp_path: Path) -> None:
    run = (
        "import selfloop\n"
        "spec = selfloop.Spec(source='gaussian', family='gaussian', n=10, generations=2, seeds=(0, 300), policies='replace',\n"
        "                     holdout=0)\n"
        "alone = selfloop.run(spec, 'alone')\n"
        "assert list(alone.measurements) == list(selfloop.run(spec, 'workers', workers=2).measurements)"
    )
    quiet = "selfloop.run(spec, 'workers', progress=lambda done, total: None)"
    notebook = execute([run, quiet], tmp_path)
    lines = [output.data for i, output in outputs(notebook) if i == 0]
    assert [data["text/plain"].split(",")[0] for data in lines] == ["4/4 generations"] * 2, "one updated line per run"
    assert all(data["text/html"].startswith('<progress max="4" value="4">') for data in lines)
    assert [output.output_type for i, output in outputs(notebook) if i == 1] == ["execute_result"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_example_notebooks_run_and_show_tables_and_figures(path: Path, tmp_path: Path) -> None:
    shown = [output for _, output in outputs(execute(path, tmp_path))]
    assert any("<table>" in output.get("data", {}).get("text/html", "") for output in shown)
    assert any("image/svg+xml" in output.get("data", {}) and "image/png" in output["data"] for output in shown)
    assert {output.get("name") for output in shown} <= {None, "stdout"}
    if path.stem == "own_model":
        assert shown[-1]["text"].startswith("workers: a component is defined in a notebook")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_example_notebooks_are_stored_without_outputs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count('"outputs": []') == text.count('"cell_type": "code"') > 0
    assert text.count('"execution_count": null') == text.count('"cell_type": "code"')
