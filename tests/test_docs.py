"""The code of the README and the guide runs without changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from selfloop.plugins import BUILT_IN
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
        exec(compile(block, page.name, "exec"), {"__name__": "__main__"})
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out


def test_the_specs_and_the_policy_table_of_the_guide_can_be_run(tmp_path: Path) -> None:
    whole, policy, language, features = blocks(ROOT / "docs" / "guide.md", "toml")
    assert len(parse_spec(whole, "guide").points()) == 2
    small = 'n = 100\ngenerations = 4\nsource = "gaussian"\nfamily = "gaussian"\n'
    assert parse_spec(small + policy, "guide").points()
    stories = "".join(f"Story number {i}.\n<|endoftext|>\n" for i in range(1200))
    (tmp_path / "tiny-train.txt").write_text(stories)
    (tmp_path / "tiny-valid.txt").write_text(stories)
    assert parse_spec(language.replace('"TinyStories"', f'"{tmp_path}"'), "guide").points()
    (tmp_path / "network.pt2").write_bytes(b"not read before the first measurement")
    images = 'source = "digits"\nfamily = "vae"\n' + features.replace("network.pt2", f"{tmp_path}/network.pt2")
    assert parse_spec(images, "guide").points()


def test_the_table_of_the_readme_has_every_policy() -> None:
    rows = re.findall(r"^\| `(\w+)", PAGES[0].read_text(encoding="utf-8"), re.M)
    assert rows == list(BUILT_IN["policy"])
