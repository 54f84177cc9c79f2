"""The examples of the README and of all pages run without changes, and the pages have what the code has."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest

import selfloop
import selfloop.testing
import tiny_components
from doc_examples import PAGES, ROOT, blocks, run_page, shell_lines, unknown_parts
from selfloop.commands.reproduce import judge_claim
from selfloop.plugins import BUILT_IN
from selfloop.published.papers import find_paper
from selfloop.spec.parse import parse_spec

DOCS = ROOT / "docs"
WITH_CODE = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the examples of all pages, in this session's processes."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "examples-store"


def slow_if_tutorial(page: Path) -> object:
    marks = [pytest.mark.slow] if page.parent.name == "tutorials" else []
    return pytest.param(page, id=page_id(page), marks=marks)


@pytest.mark.parametrize("page", [slow_if_tutorial(page) for page in WITH_CODE])
def test_the_examples_of_a_page_run(
    page: Path, tmp_path: Path, shared_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFLOOP_STORE", str(shared_store))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    run_page(page.read_text(encoding="utf-8"), tmp_path, capsys.readouterr)


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nselfloop run tiny.toml --colour\n```",
        "```sh\nselfloop quikstart\n```",
        "<!-- test: not run, it takes hours -->\n```sh\nselfloop plan tiny.toml --forever\n```",
        "<!-- test: not run -->\n```sh\nselfloop list\n```",
        "```sh\nselfloop list  # exit code 3\n```",
        "```sh\nselfloop list policy\n```\n```text\npolicy     replacement\n```",
        "```sh\nfalse\n```",
        "```toml\npolicies = ['replase']\n```",
        "```python\nimport sys\n\nsys.stderr.write('old')\n```",
    ],
)
def test_a_wrong_example_fails(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, selfloop.SpecError)):
        run_page(text, tmp_path, capsys.readouterr)


def test_titles_are_files_and_changes_reach_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = f'```toml title="a.toml"\n{tiny_components.KDE}```\n'
    text = spec + "<!-- test: --set seeds=3 -->\n```sh\nselfloop run a.toml --json a.jsonl  # three\n```\n"
    assert run_page(text, tmp_path, capsys.readouterr) == 2
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert {line["seed"] for line in lines if "seed" in line} == {0, 1, 2}


def test_relative_links_lead_to_files_of_the_checkout() -> None:
    dead = [
        f"{page_id(page)}: {link}"
        for page in PAGES
        for link in re.findall(
            r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        )
        if not (page.parent / link).exists()
    ]
    assert dead == []


def test_commands_in_sentences_have_existing_options() -> None:
    wrong = [
        f"{page_id(page)}: {code}: no {', '.join(unknown)}"
        for page in PAGES
        for code in re.findall(r"`(selfloop [a-z][^`]*)`", page.read_text(encoding="utf-8").replace("\n", " "))
        if (unknown := unknown_parts(code))
    ]
    assert wrong == []
    assert unknown_parts("selfloop run SPEC --fast, ...") == ["--fast"]
    assert shell_lines("a \\\n  b  # exit code 2\n\n# c\nd  # e\n") == [("a    b", 2), ("d", 0)]


def test_the_curated_specs_run_and_give_what_their_page_states(tmp_path: Path) -> None:
    specs = [parse_spec(block.code, "page") for block in blocks((DOCS / "how-to" / "curators.md").read_text("utf-8"), "toml")]
    verified, chosen = (selfloop.run(spec, tmp_path) for spec in specs)
    plain, strict, lenient = (curves["correct_rate"].mean(axis=0) for curves in verified.curves().values())
    assert plain[0] == strict[0] == lenient[0]
    assert [round(100 * rates[-1]) for rates in (plain, plain[:1], strict, lenient)] == [22, 25, 53, 33]
    plain_error, best_error = (curves["mean_error"].mean(axis=0) for curves in chosen.curves().values())
    assert plain_error[-1] < 0.1
    assert abs(best_error[-1] ** 0.5 - 2) < 0.3
    assert chosen.curves()["replace + best_of"]["variance_ratio"].mean(axis=0)[-1] < 0.1


def test_the_table_of_policies_has_every_policy() -> None:
    page = (DOCS / "how-to" / "policies.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)", page, re.M) == list(BUILT_IN["policy"])


def test_the_reference_of_python_has_every_public_name_once() -> None:
    page, testing = ((DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8") for name in ("python", "testing"))
    assert sorted(re.findall(r"^::: selfloop\.(\w+)$", page, re.M)) == sorted(selfloop.__all__)
    assert sorted(re.findall(r"^::: selfloop\.testing\.(\w+)$", testing, re.M)) == sorted(selfloop.testing.__all__)


def schema(heading: str) -> list[str]:
    """The first column of the table below a heading of the schema of results."""
    page = (DOCS / "reference" / "schema.md").read_text(encoding="utf-8")
    section = page.partition(f"# {heading}\n")[2].partition("\n#")[0]
    return re.findall(r"^\| `(\w+)`", section, re.M)


def test_the_schema_has_exactly_the_keys_and_columns_of_a_run(tmp_path: Path) -> None:
    spec = 'n=20\ngenerations=5\nseeds=4\nsource="gaussian"\nfamily="gaussian"\npolicies=["replace"]\n'
    (tmp_path / "a.toml").write_text(spec + '[sweep]\n"family.ddof" = [0, 1]\n')
    done = tiny_components.selfloop("run", tmp_path / "a.toml", "--json", "-", "--store", tmp_path / "s")
    lines = [json.loads(line) for line in done.out.splitlines()]
    point = ["family.ddof"]
    status = schema("A measurement").index("status")
    keys = schema("A measurement")
    assert {tuple(line) for line in lines if "verdict" not in line} == {(*keys[:status], *point)}
    assert {tuple(sorted(line["verdict"])) for line in lines if "verdict" in line} == {
        tuple(sorted([*schema("A verdict"), *point]))
    }
    result = selfloop.run(selfloop.read_spec(tmp_path / "a.toml"), tmp_path / "s")
    assert [*result.to_pandas()] == [*schema("`to_pandas()`"), *point, "policy.name"]
    at = {"family.ddof": 1}
    metric = result.metrics()[0]
    assert [*result.curve(metric, at)] == [*schema("`curve(metric)`"), "policy.name"]
    assert sorted(result.verdict_frame()) == sorted([*schema("A verdict"), *point, "policy.name"])
    assert [*result.forecast(2, metric, at)] == schema("`forecast(generations)`")
    record = json.loads(next((tmp_path / "s").glob("records/*/*.json")).read_text())
    assert [*record] == ["body", "checksum"]
    assert sorted(record["body"]) == sorted(schema("A record's body"))
    assert [*record["body"]["provenance"]] == schema("Its provenance")


def test_a_measurement_without_a_value_has_a_status() -> None:
    missing = selfloop.Measurement("replace", 0, 2, "nll", None, "diverged", ())
    from selfloop.formats.json_lines import measurement_to_json

    assert [*measurement_to_json(missing)] == schema("A measurement")


def test_every_page_is_two_clicks_from_the_first_one() -> None:
    """Links in the text alone, without the menus."""

    def links(page: Path) -> set[Path]:
        targets = re.findall(r"\]\(([\w./-]+\.md)", page.read_text(encoding="utf-8"))
        return {path for target in targets if (path := (page.parent / target).resolve()).exists()}

    first = links(DOCS / "index.md")
    reached = {DOCS / "index.md"} | first | {page for one in first for page in links(one)}
    assert {page_id(page) for page in PAGES if page not in reached} == {"README.md"}


def test_the_drawing_of_the_architecture_has_the_imports_of_the_code() -> None:
    code = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))

    def boxes_and_arrows(svg: str) -> list[str]:
        return re.findall(r'<text[^>]*class="name">\w+|<path d="M[^"]*"', svg)

    drawn = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert boxes_and_arrows(code["draw"]()) == boxes_and_arrows(drawn)


def test_the_hops_of_the_architecture_page_exist_and_are_at_most_20() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    hops = re.findall(r"^\d+\. .*", page, re.M)
    assert 10 <= len(hops) <= 20
    named = [pair for hop in hops for pair in re.findall(r"`([\w/]+\.py): ([\w.]+)`", hop)]
    assert len(named) >= 18
    for file, name in named:
        text = (ROOT / "src" / "selfloop" / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(?:def|class) {name.rpartition('.')[2]}\b", text, re.M), f"{file}: {name}"


def test_the_claim_of_the_page_holds_and_its_wrong_run_does_not(tmp_path: Path) -> None:
    (block,) = blocks((DOCS / "how-to" / "reproduce.md").read_text(encoding="utf-8"), "toml")
    (tmp_path / "mine.toml").write_text(block.code)
    (claim,) = find_paper(str(tmp_path / "mine.toml")).claims
    assert [judge_claim(claim, tmp_path, wrong=wrong).answer for wrong in (False, True)] == ["holds", "does not hold"]
