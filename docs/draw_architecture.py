"""Draws `architecture.svg`: the packages of selfloop in their four bands, and the imports between them, read from the code.

python docs/draw_architecture.py
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "selfloop"
BANDS = {
    "1  base": (
        "columns",
        "types",
        "errors",
        "formulas",
        "rng",
        "source_code",
        "settings",
        "component",
        "transforms",
        "curator",
        "snapshots",
        "protocols",
        "formats",
    ),
    "2  components": ("policies", "sources", "families", "curators", "metrics", "stats", "criteria"),
    "3  engine": ("plugins", "spec", "store", "engine", "theory", "published"),
    "4  surface": ("result", "audit", "report", "trackers", "testing", "watch", "commands"),
}
WIDTH, BAND_HEIGHT, BOX_HEIGHT, LEFT, TOP = 1200, 120, 34, 120, 16


def area(module: str) -> str:
    """The package, or the module beside the packages, of a module's dotted name."""
    return [*module.split("."), ""][1]


def count_lines() -> Counter[str]:
    """Lines of Python and C of every area."""
    files = [file for ending in ("py", "c") for file in ROOT.rglob(f"*.{ending}")]
    lines: Counter[str] = Counter()
    for file in files:
        lines[file.relative_to(ROOT).parts[0].removesuffix(".py")] += len(file.read_text(encoding="utf-8").splitlines())
    return lines


def read_imports() -> Counter[tuple[str, str]]:
    """Number of files of one area that import another one, lazy imports included."""
    arrows: Counter[tuple[str, str]] = Counter()
    for file in ROOT.rglob("*.py"):
        importer = file.relative_to(ROOT).parts[0].removesuffix(".py")
        nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
        modules = {f"selfloop.{name.name}" if n.module == "selfloop" else n.module or "" for n in nodes for name in n.names}
        for imported in {area(module) for module in modules if module.startswith("selfloop.")} - {importer}:
            arrows[importer, imported] += 1
    return arrows


def draw() -> str:
    """The drawing as SVG. An arrow points from the importing box to the imported one; base modules are imported everywhere."""
    lines, arrows, boxes, parts = count_lines(), read_imports(), {}, []
    for row, (title, names) in enumerate(BANDS.items()):
        y = TOP + row * BAND_HEIGHT
        parts.append(f'<text x="8" y="{y + 22}" class="band">{title}</text>')
        step = (WIDTH - LEFT) / len(names)
        for i, name in enumerate(names):
            boxes[name] = x, width = LEFT + i * step, step - 12
            boxes[name] = x, y, width
            parts.append(f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="5"/>')
            parts.append(f'<text x="{x + width / 2:.0f}" y="{y + 15}" class="name">{name}</text>')
            parts.append(f'<text x="{x + width / 2:.0f}" y="{y + 28}" class="lines">{lines[name]:,} lines</text>')
    base = BANDS["1  base"]
    for (importer, imported), count in sorted(arrows.items()):
        if importer not in boxes or imported not in boxes or imported in base or importer in base:
            continue
        (x1, y1, w1), (x2, y2, w2) = boxes[importer], boxes[imported]
        a, b, bend = x1 + w1 / 2, x2 + w2 / 2, 26
        start, leave = (y1 + BOX_HEIGHT, y1 + BOX_HEIGHT + bend) if y1 == y2 else (y1, y1 - bend)
        end = y2 + BOX_HEIGHT
        path = f"M{a:.0f},{start} C{a:.0f},{leave} {b:.0f},{end + bend} {b:.0f},{end + 3}"
        parts.append(f'<path d="{path}" stroke-width="{0.6 + count**0.5 / 2:.1f}"/>')
    parts.append(f'<text x="{LEFT}" y="{TOP + BOX_HEIGHT + 20}">imported by the bands below (no arrows drawn)</text>')
    height = TOP + len(BANDS) * BAND_HEIGHT - BAND_HEIGHT + BOX_HEIGHT + 40
    style = (
        "rect{fill:#eef3fa;stroke:#4269d0}path{fill:none;stroke:#888;opacity:.55;marker-end:url(#head)}"
        "text{font:11px sans-serif;fill:#222}.name{font-weight:600;text-anchor:middle}.lines{font-size:9px;text-anchor:middle}"
        ".band{font-weight:600;fill:#4269d0}"
    )
    head = (
        '<marker id="head" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="5" markerHeight="5" orient="auto">'
        '<path d="M0,0L6,3L0,6z" style="fill:#888;stroke:none"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'<style>{style}</style><defs>{head}</defs><rect width="100%" height="100%" style="fill:#fff;stroke:none"/>'
        + "".join(parts)
        + "</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw(), encoding="utf-8")
