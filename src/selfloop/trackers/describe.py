"""The runs of a spec as trackers receive them: ids, settings, and their ends."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import fields, replace

from PIL import Image

from selfloop.report.charts import on_paper, to_png
from selfloop.report.gallery import GalleryView, read_galleries, view_gallery
from selfloop.report.theme import policy_styles
from selfloop.result import Result
from selfloop.spec.components import policy_settings
from selfloop.spec.point import Point
from selfloop.store.identity import digest, identity
from selfloop.trackers.tracker import RunEnd, TrackedRun
from selfloop.types import Coordinates


def describe_run(point: Point, position: int, seed: int | None) -> TrackedRun:
    """The run of one policy of a point, of one seed or of all. Its id counts what its numbers depend on, and its length."""
    spec, policy, label = point.spec, point.spec.policies[position], point.spec.policy_labels()[position]
    components = (spec.source, spec.family, spec.sampler, policy, spec.metrics, spec.external, spec.second_holdout)
    sizes = (point.n, point.holdout, spec.generations, spec.init_from, spec.merge, spec.unit, point.arrivals)
    others = (spec.policies, spec.seeds) if spec.subsets == "disjoint" else ()  # they decide which rows a seed has
    parts = (components, sizes, others, spec.seeds if seed is None else seed)
    config = {"policy": label, "n": point.n, "generations": spec.generations, **dict(point.coordinates)}
    config |= {"seed": seed} if seed is not None else {"seeds": len(spec.seeds)}
    for key, component in (("source", spec.source), ("family", spec.family), ("policy", policy)):
        config |= policy_settings(component, key)
    config |= {f"family.sampler.{f.name}": getattr(spec.sampler, f.name) for f in fields(spec.sampler)}
    at = "".join(f", {key} = {value}" for key, value in point.coordinates)
    return TrackedRun(
        id=digest(json.dumps(identity(parts)).encode()),
        label=f"{label}{at}" + (f", seed {seed}" if seed is not None else f", {len(spec.seeds)} seeds"),
        group=f"{spec.family.name} on {spec.source.name}",
        config={key: x if isinstance(x, bool | int | float) else str(x) for key, x in config.items() if x is not None},
    )


def describe_ends(result: Result) -> dict[tuple[Coordinates, str], RunEnd]:
    """By point and policy: the answers of the criteria that are measured, and the gallery of the first seed."""
    views, ends = dict(_policy_views(result)), {}
    answers = {key: dict[str, str]() for key in result.table}
    for verdict in result.verdicts():
        if verdict.answer != "not measured":
            answers[verdict.coordinates, verdict.policy][f"verdict/{verdict.criterion}"] = verdict.answer
    for key in result.table:
        view = views.get(key)
        svgs = {"samples": view.svg} if view and view.svg else {}
        svgs |= {f"molecule {i}": molecule.svg for i, molecule in enumerate(view.molecules, 1)} if view else {}
        text = "\n".join(_text_lines(view, key[1])) if view else ""
        ends[key] = RunEnd(
            generation=result.spec.generations,
            summary=answers[key],
            pictures={name: Image.open(io.BytesIO(to_png(on_paper(svg)))) for name, svg in svgs.items()},
            texts={"samples": text} if text else {},
        )
    return ends


def _policy_views(result: Result) -> Iterator[tuple[tuple[Coordinates, str], GalleryView]]:
    styles = policy_styles(result.spec.policy_labels())
    for gallery in read_galleries(result.points, result.store):
        for label, samples in gallery.samples.items():
            yield (gallery.coordinates, label), view_gallery(replace(gallery, samples={label: samples}), styles)


def _text_lines(view: GalleryView, label: str) -> Iterator[str]:
    """Texts and tables of one policy, generation by generation."""
    for row in view.text_rows:
        texts = {"real": row.real, **{f"t = {t}": text for t, text in zip(view.generations, row.rows[label], strict=True)}}
        yield row.title
        yield from (f"{name}: {text.prompt}{text.head}{'…' * bool(text.rest)}" for name, text in texts.items() if text)
    for title, cells in view.tables.get(label, {}).items():
        yield from (title, " | ".join(view.header), *(" | ".join(row) for row in cells))
