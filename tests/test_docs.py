"""The code of the README and the guide runs without changes."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import selfloop
from selfloop.commands.reproduce import judge_claim
from selfloop.errors import SpecError
from selfloop.plugins import BUILT_IN
from selfloop.published.papers import find_paper
from selfloop.spec.parse import parse_spec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "guide.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks(page, "python")
    assert code
    for block in code:
        (tmp_path / "example.py").write_text(block)  # a class without source code has no identity
        runpy.run_path(str(tmp_path / "example.py"), run_name="__main__")
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out


def test_the_specs_and_the_policy_table_of_the_guide_can_be_run(tmp_path: Path) -> None:
    whole, controls, policy, switches, tables, records, language, *_, features, programs = blocks(
        ROOT / "docs" / "guide.md", "toml"
    )
    assert len(parse_spec(whole, "guide").points()) == 2
    small = 'n = 100\ngenerations = 8\nsource = "gaussian"\nfamily = "gaussian"\n'
    for policies in (controls, policy, switches):
        assert parse_spec(small + policies, "guide").points()
    (tmp_path / "customers.csv").write_text("age,income,churn\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(300)))
    assert parse_spec(tables.replace("customers.csv", f"{tmp_path}/customers.csv"), "guide").points()
    lines = "".join(f"{20 + i / 10},{'xyz'[i % 3]},{'' if i % 7 else i},{i % 2 == 0}\n" for i in range(300))
    (tmp_path / "people.csv").write_text(f"age,job,gain,income\n{lines}")
    spec = parse_spec(records.replace("people.csv", f"{tmp_path}/people.csv"), "guide")
    assert np.isfinite(selfloop.run(spec, tmp_path).curves()["replace"]["nll"]).all()
    stories = "".join(f"Story number {i}.\n<|endoftext|>\n" for i in range(1200))
    (tmp_path / "tiny-train.txt").write_text(stories)
    (tmp_path / "tiny-valid.txt").write_text(stories)
    assert parse_spec(language.replace('"TinyStories"', f'"{tmp_path}"'), "guide").points()
    images = 'source = "digits"\nfamily = "vae"\n' + features.replace("network.onnx", f"{tmp_path}/network.onnx")
    (tmp_path / "model.py").write_text("")
    own = programs.replace('"python"', f'"{sys.executable}"').replace('"model.py"]', f'"{tmp_path}/model.py"]')
    assert parse_spec(own.replace("customers.csv", f"{tmp_path}/customers.csv"), "guide").points()
    with pytest.raises(SpecError, match=r"features\.path: got .*network\.onnx; expected an ONNX file"):
        parse_spec(images, "guide").points()


def test_the_curated_specs_of_the_guide_run_and_give_what_it_states(tmp_path: Path) -> None:
    verified, chosen = (
        selfloop.run(parse_spec(block, "guide"), tmp_path) for block in blocks(ROOT / "docs" / "guide.md", "toml")[7:9]
    )
    plain, strict, lenient = (curves["correct_rate"].mean(axis=0) for curves in verified.curves().values())
    assert plain[0] == strict[0] == lenient[0]
    assert [round(100 * rates[-1]) for rates in (plain, plain[:1], strict, lenient)] == [22, 25, 53, 33]
    plain_error, best_error = (curves["mean_error"].mean(axis=0) for curves in chosen.curves().values())
    assert plain_error[-1] < 0.1
    assert abs(best_error[-1] ** 0.5 - 2) < 0.3
    assert chosen.curves()["replace + best_of"]["variance_ratio"].mean(axis=0)[-1] < 0.1


def test_the_table_of_the_readme_has_every_policy() -> None:
    rows = re.findall(r"^\| `(\w+)", PAGES[0].read_text(encoding="utf-8"), re.M)
    assert rows == list(BUILT_IN["policy"])


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


def test_the_claim_of_the_guide_holds_and_its_wrong_run_does_not(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(blocks(ROOT / "docs" / "inference.md", "toml")[-1])
    (claim,) = find_paper(str(tmp_path / "mine.toml")).claims
    assert [judge_claim(claim, tmp_path, wrong=wrong).answer for wrong in (False, True)] == ["holds", "does not hold"]
