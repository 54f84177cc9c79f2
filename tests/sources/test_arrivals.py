"""Real data that keep arriving: which rows are whose, what stays stored, and copies of the model's own samples among them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import selfloop
import tiny_components
from selfloop.columns import Columns, Params, Ragged, flag_copies
from selfloop.commands.export import export_samples, find_generation
from selfloop.component import Context, Family, Sampler
from selfloop.errors import DataError, SpecError
from selfloop.metrics.arrivals import near_copies
from selfloop.rng import RandomStream
from selfloop.snapshots import ArrivedRows
from selfloop.sources.arrivals import Arrivals
from selfloop.sources.text_files import JsonlSource
from selfloop.spec.parse import parse_spec
from selfloop.spec.write import spec_text
from selfloop.testing import check_source
from selfloop.types import TrainingRows


@dataclass(frozen=True, kw_only=True)
class Kept(Family):
    """Keeps its rows, and samples the first ones."""

    name: ClassVar[str] = "kept"

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        return {"n": np.asarray(len(rows))}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"size": np.arange(n) / 16 + 0.01, "size@missing": np.zeros(n, bool), "color": Ragged.of_bytes([b"red"] * n)}


WORDS = [
    "old", "stone", "bridges", "cross", "rivers", "while", "quiet", "wizards", "mix", "seven", "bitter", "potions", "near",
    "hills",
]  # fmt: skip


def write_week(folder: Path, name: str, texts: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def sentences(week: int, n: int) -> list[str]:
    """Texts of ten words that begin with their week and their number, so that no two are equal."""
    rng = np.random.default_rng(week)
    return [f"week {week} row {i}: {' '.join(rng.choice(WORDS, 10))}" for i in range(n)]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for week in (1, 2, 3):
        write_week(tmp_path / "logs", f"week-{week}.jsonl", sentences(week, 40))
    return tmp_path / "logs"


def spec(logs: Path, **changes: Any) -> selfloop.Spec:
    settings = {
        "source": {"name": "arrivals", "of": {"name": "jsonl", "path": logs}},
        "family": {"name": "ngram", "order": 2, "vocab": 300},
        "n": 20, "holdout": 10, "generations": 3, "seeds": 2, "policies": ["fresh"], "metrics": ["nll", "contamination"],
    }  # fmt: skip
    return selfloop.Spec(**{**settings, **changes})


def texts_of(rows: Columns) -> list[str]:
    column = rows["text"]
    assert isinstance(column, Ragged)
    return [text.decode() for text in column.to_bytes()]


def test_files_arrive_in_the_order_of_the_numbers_in_their_names(tmp_path: Path) -> None:
    for name in ("week-10.jsonl", "week-9.jsonl", "week-2.jsonl", ".hidden.jsonl"):
        write_week(tmp_path / "a", name, ["one", "two"])
    write_week(tmp_path / "a", "README.md", ["no week"])
    of_pattern = Arrivals(of=JsonlSource(path=tmp_path / "a" / "week-*.jsonl"))
    assert [source.title() for source in of_pattern.arrivals()] == [f"jsonl week-{k}.jsonl" for k in (2, 9, 10)]
    of_folder = Arrivals(of=JsonlSource(path=tmp_path / "a"))
    assert len(of_folder.arrivals()) == 4  # the README too: a pattern leaves it out


def test_a_folder_for_every_week_is_one_arrival(tmp_path: Path) -> None:
    for day in ("2025-01-06", "2025-01-13"):
        (tmp_path / "logs" / day).mkdir(parents=True)
        for part in "ab":
            write_week(tmp_path / "logs" / day, f"{part}.jsonl", [f"{day} {part}"])
    first, second = Arrivals(of=JsonlSource(path=tmp_path / "logs")).arrivals()
    rows = second.draw(0, 2, Context(RandomStream(("seed", 0))))
    assert sorted(texts_of(rows)) == ["2025-01-13 a", "2025-01-13 b"]
    assert first.n_rows() == 2


def test_the_first_arrival_stands_for_the_source(logs: Path) -> None:
    source = Arrivals(of=JsonlSource(path=logs))
    check_source(source)
    assert (source.n_rows(), source.title()) == (40, f"arrivals {logs}")


def rows_of(result: selfloop.Result, seed: int) -> dict[str, list[str]]:
    """Texts of every stored batch of a seed by its name: holdout, and real rows by generation."""
    point = result.point()
    stored = find_generation(result.spec, result.store, None, seed, None)
    world = stored.world
    decoded = {}
    refs = {"holdout": world.rows.holdout(), **{f"real {t}": ref for t, ref in world.rows.real_rows.items()}}
    for name, ref in refs.items():
        assert ref is not None
        rows = point.spec.family.encoder().decode(world.store.open(ref), stored.params())  # type: ignore[attr-defined]
        decoded[name] = texts_of(rows)
    return decoded


def test_generation_t_draws_from_week_t_and_holdout_and_initial_rows_are_of_the_first(logs: Path, tmp_path: Path) -> None:
    result = selfloop.run(spec(logs), tmp_path / "store")
    by_seed = [rows_of(result, seed) for seed in (0, 1)]
    for rows in by_seed:
        assert {name: len(texts) for name, texts in rows.items()} == {"holdout": 10, "real 1": 20, "real 2": 20, "real 3": 20}
        for name, week in (("holdout", 1), ("real 1", 1), ("real 2", 2), ("real 3", 3)):
            assert all(text.startswith(f"week {week} ") for text in rows[name])
        assert not set(rows["holdout"]) & set(rows["real 1"])
        numbers = [[text.split()[3] for text in rows[f"real {t}"]] for t in (2, 3)]
        assert numbers[0] != numbers[1]  # two weeks of equal sizes are not in one order
    assert by_seed[0]["real 2"] != by_seed[1]["real 2"]


def test_a_fourth_file_leaves_generations_1_to_3_stored(logs: Path, tmp_path: Path) -> None:
    first = selfloop.run(spec(logs), tmp_path / "store")
    write_week(logs, "week-4.jsonl", sentences(4, 40))
    longer = selfloop.run(spec(logs, generations=4), tmp_path / "store")
    computed = {step: count for step, (count, _) in longer.usage["fresh"].by_step.items()}
    assert computed == {"take_corpus_rows": 2, "fit": 2, "sample": 2, "measure": 4, "warn_of_contamination": 2}  # of two seeds
    assert {step: count for step, (count, _) in longer.shared.by_step.items()} == {"encode_corpus": 1}  # of the fourth file
    curves, before = longer.curves()["fresh"]["nll"], first.curves()["fresh"]["nll"]
    assert (curves[:, :3] == before).all()


def test_another_first_week_stores_everything_anew(logs: Path, tmp_path: Path) -> None:
    selfloop.run(spec(logs), tmp_path / "store")
    write_week(logs, "week-1.jsonl", sentences(5, 40))
    assert "fit" in selfloop.run(spec(logs), tmp_path / "store").shared.by_step


def export_texts(result: selfloop.Result, seed: int, generation: int, folder: Path) -> list[str]:
    export_samples(find_generation(result.spec, result.store, None, seed, generation), folder)
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return list(dict.fromkeys(text for line in lines if (text := json.loads(line)["text"].strip())))


@pytest.fixture
def contaminated(logs: Path, tmp_path: Path) -> Path:
    """Logs whose third week has 3 samples of model 1 and 4 of model 2 of seed 0, with other white space, among 20 rows."""
    result = selfloop.run(spec(logs, generations=2), tmp_path / "store")
    exported = [export_texts(result, 0, t, tmp_path / f"samples-{t}") for t in (1, 2)]
    back = [*exported[0][:3], *exported[1][-4:]]
    assert len(set(back)) == 7
    write_week(logs, "week-3.jsonl", [f" {text}\n" for text in back] + sentences(3, 13))
    return logs


def test_samples_that_come_back_are_counted_in_the_chain_that_made_them(contaminated: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"of 20 rows of jsonl week-3\.jsonl, 7 equal samples of earlier models .*\(seed 0\)$"):
        result = selfloop.run(spec(contaminated), tmp_path / "store")
    curves = result.curves()["fresh"]
    assert curves["contamination_rows"].tolist() == [[0, 0, 7], [0, 0, 0]]
    assert curves["contamination"][0].tolist() == [0, 0, 7 / 20]
    for name in ("contamination_repeat_rate", "contamination_holdout_rate"):
        assert (curves[name][:, 1:] == 0).all()


def test_clean_weeks_have_no_contamination_and_no_warning(logs: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    curves = selfloop.run(spec(logs), tmp_path / "store").curves()["fresh"]
    assert (curves["contamination"] == 0).all()
    assert not [warning for warning in recwarn if "equal" in str(warning.message)]


def table(*texts: str) -> Columns:
    return {"text": Ragged.of_bytes([text.encode() for text in texts])}


def test_a_count_against_the_newest_samples_only_would_miss_older_ones() -> None:
    arrived = ArrivedRows(table("a", "b", "c", "d", "e"), (table("c"),), (table("a", "c"), table("b")), (table("d"),))
    copies, of_real, of_holdout = arrived.find_copies()
    assert copies.tolist() == [True, True, False, False, False]  # c is a real row, whatever the model repeated
    assert (of_real.tolist(), of_holdout.tolist()) == ([False, False, True, False, False], [False, False, False, True, False])
    newest = arrived._replace(samples=arrived.samples[-1:])
    assert newest.find_copies()[0].sum() == 1


def test_copies_are_rows_that_are_equal_in_all_columns_of_both_tables() -> None:
    rows = {"x": np.array([1.0, 2.0, 3.0]), "label": np.array([0, 1, 1]), "@weight": np.array([1.0, 1.0, 1.0])}
    assert flag_copies(rows, [{"x": np.array([2.0, 3.0])}]).tolist() == [False, True, True]
    assert flag_copies(rows, [{"x": np.array([2.0, 3.0]), "label": np.array([0, 1])}]).tolist() == [False, False, True]
    assert flag_copies(rows, [{"y": np.array([2.0])}, {"@weight": np.array([1.0])}]).tolist() == [False] * 3
    assert flag_copies(rows, []).tolist() == [False] * 3


def test_near_copies_share_most_runs_with_samples() -> None:
    sample = "the quick brown fox jumps over the lazy dog while seven wizards mix potions"
    rows = table(sample.replace("seven", "eight"), sample[:40], "the quick brown fox", "x" * 60)
    arrived = ArrivedRows(rows, (), (table(sample),))
    assert near_copies(arrived, 0.4).tolist() == [True, True, False, False]
    assert near_copies(arrived, 0.9).tolist() == [False, True, False, False]
    assert not near_copies(arrived._replace(samples=()), 0.4).any()


def test_near_copies_are_measured_on_request(contaminated: Path, tmp_path: Path) -> None:
    text = (contaminated / "week-3.jsonl").read_text().splitlines()
    longest = max((json.loads(line)["text"].strip() for line in text[:7]), key=len)
    text[-1] = json.dumps({"text": f"{longest} tail"})
    (contaminated / "week-3.jsonl").write_text("\n".join(text))
    metrics = [{"name": "contamination", "near": 0.6}]
    with pytest.warns(UserWarning, match="7 equal samples"):
        curves = selfloop.run(spec(contaminated, seeds=1, metrics=metrics), tmp_path / "store").curves()["fresh"]
    assert curves["contamination_rows"][0, 2] == 7
    assert curves["contamination_near_rate"][0, 2] > curves["contamination"][0, 2]


def test_rows_of_earlier_weeks_and_of_the_holdout_are_counted_once_for_all_seeds(logs: Path, tmp_path: Path) -> None:
    old = [json.loads(line)["text"] for line in (logs / "week-1.jsonl").read_text().splitlines()]
    write_week(logs, "week-2.jsonl", [*old, *sentences(2, 10)])
    with pytest.warns(UserWarning, match=r"equal earlier real rows, \d+ equal held-out rows \(seed 0\)$") as caught:
        curves = selfloop.run(spec(logs, n=30, generations=2), tmp_path / "store").curves()["fresh"]
    assert len([w for w in caught if "held-out rows" in str(w.message)]) == 1
    together = curves["contamination_repeat_rate"] + curves["contamination_holdout_rate"]
    assert (together[:, 1] >= 20 / 30).all()
    assert (curves["contamination"] == 0).all()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"generations": 5},
            r"generations: policy fresh needs fresh real rows at generation 4; only 3 files or folders have arrived \(jsonl "
            r"week-1\.jsonl to jsonl week-3\.jsonl\)\. Lower generations, or add one\.",
        ),
        ({"n": 31}, r"policy fresh with n = 31 and holdout = 10 needs 41 real rows; source jsonl week-1\.jsonl has 40"),
        ({"subsets": "disjoint"}, r"subsets: got 'disjoint'; rows of arrivals .* arrive over time\. Remove the key\."),
        (
            {"second_holdout": "logs"},
            r"second_holdout: got arrivals, whose rows arrive over time\. Choose the source of one file",
        ),
        ({"external": "logs"}, r"external: got arrivals, whose rows arrive over time\. Choose the source of one file"),
        ({"family": "kde"}, r"source: family kde models the columns x; jsonl week-1\.jsonl has text and lacks x"),
    ],
)
def test_what_cannot_run_is_one_sentence_before_work(logs: Path, changes: dict[str, Any], problem: str) -> None:
    arrivals = {"name": "arrivals", "of": {"name": "jsonl", "path": logs}}
    changes = {key: arrivals if value == "logs" else value for key, value in changes.items()}
    with pytest.raises(SpecError, match=problem):
        spec(logs, **changes).points()


def test_a_week_with_too_few_rows_is_named_with_its_number(logs: Path) -> None:
    write_week(logs, "week-3.jsonl", sentences(3, 19))
    with pytest.raises(SpecError, match=r"n: policy fresh with n = 20 needs 20 fresh real rows at generation 3; jsonl week-3"):
        spec(logs).points()
    spec(logs, n=19).points()
    spec(logs, policies=["replace"]).points()  # which needs one week


@pytest.mark.parametrize("path", ["logs/week-1.jsonl", "empty", "logs/month-*.jsonl", "nothing"])
def test_a_path_without_arrivals_is_refused(logs: Path, path: str) -> None:
    (logs.parent / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"source\.of\.path: got .*; expected a folder with a file or folder for every generation"
    ):
        spec(logs, source={"name": "arrivals", "of": {"name": "jsonl", "path": logs.parent / path}}).points()


@pytest.mark.parametrize(
    ("of", "problem"),
    [
        ({"name": "digits"}, r"source\.of: got digits, which has no path; expected a source of files, such as jsonl"),
        ({"name": "image_folder", "path": "a", "labels": True}, r"source\.of\.labels: got true; every arrival would number"),
        ({"name": "table"}, r"source\.of: got table, which has no path"),
    ],
)
def test_a_source_that_cannot_arrive_is_refused(of: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        selfloop.Spec(source={"name": "arrivals", "of": of}, family="gmm")  # type: ignore[arg-type]


def test_near_copies_of_rows_without_texts_are_refused(tmp_path: Path) -> None:
    metrics = ["nll", {"name": "contamination", "near": 0.5}]
    with pytest.raises(SpecError, match=r"metrics contamination\.near: got 0\.5; table week-1\.csv has no texts"):
        tables(tmp_path, metrics=metrics).points()


def tables(tmp_path: Path, *, names: Sequence[str] = ("a,b", "a,b", "a,b"), **changes: Any) -> selfloop.Spec:
    for week, header in enumerate(names, 1):
        lines = np.random.default_rng(week).normal(10 * week, 1, (40, 2))
        (tmp_path / f"week-{week}.csv").write_text("\n".join([header, *(f"{x:.6f},{y:.6f}" for x, y in lines)]))
    settings = {
        "source": {"name": "arrivals", "of": {"name": "table", "path": tmp_path / "week-*.csv"}}, "family": "kde", "n": 20,
        "holdout": 10, "generations": 3, "seeds": 2, "policies": ["fresh", "replace"], "metrics": ["nll", "contamination"],
    }  # fmt: skip
    return selfloop.Spec(**{**settings, **changes})


def test_tables_arrive_in_chains_that_are_stored(tmp_path: Path) -> None:
    one = tables(tmp_path)
    assert set(one.points()[0].worlds) == {"stored"}
    curves = selfloop.run(one, tmp_path / "store").curves()
    world = find_generation(one, tmp_path / "store", "fresh").world
    means = [np.asarray(world.store.open(world.rows.real_rows[t])["x"]).mean() for t in (1, 2, 3)]
    assert np.allclose(means, [10, 20, 30], atol=0.5)
    assert np.isfinite(curves["fresh"]["nll"]).all()
    assert (curves["fresh"]["contamination"] == 0).all()
    assert (curves["replace"]["contamination"] == 0).all()  # it has no fresh real rows


def test_sampled_vectors_that_come_back_are_counted(tmp_path: Path) -> None:
    one = tables(tmp_path)
    result = selfloop.run(replace(one, generations=2, policies=("fresh",)), tmp_path / "store")
    samples = np.asarray(find_generation(result.spec, result.store).samples()["x"])[:5]
    rows = (tmp_path / "week-3.csv").read_text().splitlines()[:16]
    (tmp_path / "week-3.csv").write_text("\n".join([*rows, *(f"{float(x)!r},{float(y)!r}" for x, y in samples)]))
    with pytest.warns(UserWarning, match="of 20 rows of table week-3.csv, 5 equal samples of earlier models"):
        again = selfloop.run(one, tmp_path / "store")
    assert again.curves()["fresh"]["contamination_rows"].tolist() == [[0, 0, 5], [0, 0, 0]]


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError,
        match=r"source: table week-3\.csv: column 'x' is float64\[2\] with b, a; expected .* a, b, as in table",
    ):
        tables(tmp_path, names=("a,b", "a,b", "b,a")).points()
    tables(tmp_path, names=("a,b", "a,b", "b,a"), policies=["replace"]).points()  # which uses week 1 only


def records(tmp_path: Path, *cells: str) -> selfloop.Spec:
    for week, cell in enumerate(cells, 1):
        rows = [f"{i / 8},{'red' if i % 3 else 'blue'}" for i in range(40)]
        (tmp_path / f"week-{week}.csv").write_text("\n".join(["size,color", *rows, f"{cell},red"]))
    return selfloop.Spec(
        source={"name": "arrivals", "of": {"name": "records", "path": tmp_path / "week-*.csv"}},  # type: ignore[arg-type]
        family=Kept(), n=20, holdout=10, generations=2, seeds=1, policies=("fresh",), metrics=("contamination",),  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_week_in_which_nothing_is_missing_has_a_mask_too(tmp_path: Path) -> None:
    one = records(tmp_path, "", "1.5")
    with pytest.warns(UserWarning, match="equal earlier real rows"):
        result = selfloop.run(one, tmp_path / "store")
    world = find_generation(one, result.store).world
    first, second = (world.store.open(world.rows.real_rows[t]) for t in (1, 2))
    assert set(first) == set(second) == {"size", "size@missing", "color"}
    assert not np.asarray(second["size@missing"]).any()


def test_values_that_are_missing_in_a_later_week_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"records week-2\.csv: column 'size' lacks values, which are all there in records week-1"
    ):
        records(tmp_path, "1.5", "").points()


def test_tokens_are_counted_week_by_week(logs: Path, tmp_path: Path) -> None:
    one = spec(logs, unit="tokens", n=200, seeds=1)
    rows = rows_of(selfloop.run(one, tmp_path / "store"), 0)
    assert [text.split()[1] for t in (1, 2, 3) for text in rows[f"real {t}"][:1]] == ["1", "2", "3"]
    with pytest.raises(DataError, match=r"n: 9,000 real tokens are needed"):
        selfloop.run(spec(logs, unit="tokens", n=9000, seeds=1), tmp_path / "store")


def test_a_control_reads_more_rows_of_the_same_week(logs: Path, tmp_path: Path) -> None:
    policies = ["replace", {"name": "control", "of": {"name": "replace"}}]
    one = spec(logs, policies=policies, metrics=["nll"])
    selfloop.run(one, tmp_path / "store")
    world = find_generation(one, tmp_path / "store", "control").world
    assert sorted(world.rows.real_rows) == [1, 2, 3]


def test_the_spec_is_written_and_read_again(logs: Path) -> None:
    one = spec(logs)
    assert parse_spec(spec_text(one), "again").source == one.source


def test_the_spec_of_the_page_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "arriving_data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    logs = tmp_path / "logs"
    logs.mkdir()
    for week in (1, 2, 3):
        lines = (json.dumps({"question": f"{week}?", "answer": text}) + "\n" for text in sentences(week, 1000))
        (logs / f"{week}.jsonl").write_text("".join(lines))
    one = parse_spec(block.replace('"logs/"', f'"{logs}"'), "page")
    assert [source.title() for source in one.points()[0].used_sources()] == [f"jsonl {week}.jsonl" for week in (1, 2, 3)]


def test_weeks_of_a_regression_have_inputs_of_their_own(tmp_path: Path) -> None:
    source = {"name": "arrivals", "of": {"name": "table", "path": tmp_path / "week-*.csv", "target": "b"}}
    one = tables(tmp_path, source=source, family="linear", policies=["fresh"], metrics=["squared_error"], generations=2)
    result = selfloop.run(one, tmp_path / "store")
    assert np.isfinite(result.curves()["fresh"]["squared_error"]).all()
    world = find_generation(one, tmp_path / "store").world
    rows, inputs = world.store.open(world.rows.real_rows[2]), world.inputs[1]
    assert inputs is not None
    assert np.allclose(np.asarray(rows["x"])[:, 1].mean(), 20, atol=0.5)
    assert np.allclose(
        np.asarray(world.store.open(inputs)["x"])[:, 1].mean(), 10, atol=0.5
    )  # sampled rows keep the first design


def test_an_output_never_replaces_a_week(logs: Path) -> None:
    (logs.parent / "a.toml").write_text(spec_text(spec(logs / "week-*.jsonl")))
    before = (logs / "week-2.jsonl").read_text()
    done = tiny_components.selfloop("run", logs.parent / "a.toml", "-q", "--json", logs / "week-2.jsonl")
    assert done.code == 2
    assert "belongs to its data" in done.err
    assert (logs / "week-2.jsonl").read_text() == before
