"""Views of galleries: each kind of row in its own form, on the axes of the real rows."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from example_galleries import HOSTILE, example_faces, molecule_gallery, ragged, story_gallery
from example_reports import faces_report, gallery_report

from selfloop.columns import Column, ColumnType, Ragged
from selfloop.report.gallery import MAX_HIDDEN_CHARACTERS, VISIBLE_CHARACTERS, TextExcerpt, view_gallery
from selfloop.report.picture_grid import CELL, select_generations
from selfloop.report.theme import PAPER, policy_styles
from selfloop.report.values import Gallery

FIRST_WORDS = ["Once", "Tom", "The", "One"]
STYLES = policy_styles(["replace"])


def gallery_of(column: Column, sampled: Column | None = None, name: str = "x", field: ColumnType | None = None) -> Gallery:
    later = column if sampled is None else sampled
    return Gallery(schema={name: field} if field else {}, real={name: column}, samples={"replace": {1: {name: later}}})


def pictures(svg: str) -> list[np.ndarray]:
    from PIL import Image

    matches = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")) for data in matches]


def test_each_kind_of_row_has_its_own_form() -> None:
    report = gallery_report()
    styles = policy_styles(report.policies())
    points, numbers, texts, table = (view_gallery(gallery, styles) for gallery in report.galleries)
    assert "stroke-linecap" in points.svg
    assert "share of rows" in numbers.svg
    assert texts.text_rows
    assert (texts.svg, texts.header) == ("", ())
    assert table.header[-1] == "target (mg/dl)"
    assert len(table.header) == 8
    assert "3 columns before the last are hidden" in table.caption


@pytest.mark.parametrize(
    ("shape", "order"), [((6, 5), None), ((6, 5, 1), None), ((1, 6, 5), None), ((6, 5, 3), None), ((3, 6, 5), (1, 2, 0))]
)
def test_images_keep_their_pixels(shape: tuple[int, ...], order: tuple[int, ...] | None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8)
    real, _ = pictures(view_gallery(gallery_of(images), STYLES).svg)
    assert real.shape == (4 * 7 - 1, 4 * 6 - 1, 4)
    sixth = images[5].transpose(order) if order else images[5]
    expected = np.broadcast_to(sixth.reshape(6, 5, -1), (6, 5, 3))
    np.testing.assert_allclose(real[7:13, 6:11, :3], expected, atol=12)  # gray images are stored with 64 levels
    assert (real[6, :, 3] == 0).all()  # a transparent pixel between images


def test_float_images_are_black_and_white_at_the_lowest_and_highest_real_value() -> None:
    real = np.zeros((4, 8, 8), np.float32)
    real[1] = 2.0
    first, later = pictures(view_gallery(gallery_of(real, np.full((4, 8, 8), 7.0, np.float32)), STYLES).svg)
    assert first[0, 0, 0] == 0
    assert first[0, 9, 0] == 255
    assert later[0, 0, 0] == 255


def test_not_a_number_in_an_image_is_black() -> None:
    real = np.linspace(0, 1, 4 * 64).reshape(4, 8, 8)
    assert pictures(view_gallery(gallery_of(real, np.full((1, 8, 8), np.nan)), STYLES).svg)[1][0, 0, 0] == 0


def photographs(svg: str) -> list[np.ndarray]:
    from PIL import Image

    matches = re.findall(r"data:image/jpeg;base64,([^\"]+)", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in matches]


@pytest.mark.parametrize("depth", [(), (3,)])
def test_photographs_are_large_and_smooth_and_keep_their_content(depth: tuple[int, ...]) -> None:
    faces = example_faces(16)
    images = faces if depth else faces[..., 1]
    view = view_gallery(gallery_of(images, images[::-1]), STYLES)
    real, later = photographs(view.svg)
    assert real.shape == (4 * 64, 4 * 64, *depth)  # four by four if they fit
    error = real[64:128, 64:128].astype(float) - images[5]
    assert np.sqrt((error**2).mean()) < 10
    assert np.abs(later[64:128, 64:128].astype(float) - images[5]).mean() > 15  # another image is at this position
    assert "pixelated" not in view.svg
    assert 'width="256.0" height="256.0"' in view.svg
    assert "first 16 images" in view.caption


def test_with_more_generations_there_are_fewer_photographs_of_the_same_size() -> None:
    (gallery,) = faces_report().galleries
    view = view_gallery(gallery, policy_styles(list(gallery.samples)))
    assert 'width="128.0" height="256.0"' in view.svg
    assert len(photographs(view.svg)) == 1 + 3 * 5  # real images are stored once
    assert int(re.search(r'<svg [^>]*width="(\d+)"', view.svg)[1]) <= 960  # type: ignore[index]
    assert len(view.svg) < 16 * 8 * 4000  # bytes, of 64 x 64 x 3 each


def test_missing_photographs_show_the_background() -> None:
    svg = view_gallery(gallery_of(example_faces(16), example_faces(5)), STYLES).svg
    assert svg.count(f'fill="{PAPER}"') == 11


def test_large_photographs_are_reduced_and_keep_their_aspect_ratio() -> None:
    tall = np.zeros((2, 400, 300), np.uint8)
    tall[:, :200] = 255
    real, _ = photographs(view_gallery(gallery_of(tall), STYLES).svg)
    assert real.shape == (4 * 128, 4 * 96)
    assert real[:60, :96].min() > 250
    assert real[68:128, :96].max() < 5


def test_small_gray_images_keep_every_pixel_and_tiny_images_sharp_edges() -> None:
    tiny, digits = (view_gallery(gallery_of(np.zeros((9, side, side), np.uint8)), STYLES).svg for side in (8, 28))
    assert "image/png" in tiny
    assert "image/png" in digits
    assert "pixelated" in tiny
    assert "pixelated" not in digits


def test_points_outside_the_frame_are_counted_and_not_drawn() -> None:
    rng = np.random.default_rng(1)
    svg = view_gallery(
        gallery_of(rng.normal(size=(100, 2)), rng.normal(0, 10, (100, 2)), field=ColumnType("float64", (2,), "m")), STYLES
    ).svg
    positions = np.array(re.findall(r"M([\d.-]+) ([\d.-]+)h0", svg), float)
    assert positions.min() >= 0
    assert positions.max() <= CELL
    outside = int(re.search(r">(\d+) outside<", svg)[1])  # type: ignore[index]
    assert len(positions) == 200 - outside
    assert "x[0] (m)" in svg
    assert "x[1] (m)" in svg


def test_histograms_have_the_area_of_their_rows() -> None:
    rows = np.random.default_rng(2).uniform(size=1000)
    svg = view_gallery(gallery_of(rows, rows[:500]), STYLES).svg
    bars = re.findall(r'd="M0 128([^"]+)V128Z" fill="#d55e00"', svg)
    heights = np.array([128 - float(y) for y in re.findall(r"V([\d.]+)H", bars[0])])
    real = re.findall(r'd="M0 128([^"]+)V128Z" fill="none"', svg)[0]
    outline = np.array([128 - float(y) for y in re.findall(r"V([\d.]+)H", real)])
    assert heights.sum() == pytest.approx(outline.sum(), rel=0.01)


def test_whole_numbers_have_a_bar_each() -> None:
    svg = view_gallery(gallery_of(np.arange(10) % 5), STYLES).svg
    assert ">−0.500<" in svg
    assert ">4.50<" in svg
    assert len(re.findall(r"V[\d.]+H", re.findall(r'd="M0 128([^"]+)V128Z" fill="#d55e00"', svg)[0])) == 5


def test_texts_are_read_from_strings_bytes_and_tokens() -> None:
    tokens = Ragged(np.array([5, 6, 7], np.int32), np.array([0, 2, 3]))
    for column, expected in (
        (ragged(["a fox", "", "né"]), ["a fox", "", "né"]),
        (tokens, ["5 6", "7"]),
        (np.array(["x", "y"]), ["x", "y"]),
    ):
        rows = view_gallery(gallery_of(column, field=ColumnType("uint8")), STYLES).text_rows
        assert [row.real.head for row in rows if row.real] == expected


def test_a_text_row_has_the_real_text_and_the_samples_with_the_same_prompt() -> None:
    view = view_gallery(story_gallery(10, ["replace", "accumulate"]), policy_styles(["replace", "accumulate"]))
    assert view.generations == select_generations(range(1, 11))
    assert [row.title for row in view.text_rows] == [f"Row {i + 1}, prompt “{w}”" for i, w in enumerate(FIRST_WORDS)]
    for row, word in zip(view.text_rows, FIRST_WORDS, strict=True):
        assert list(row.rows) == ["replace", "accumulate"]
        texts = [row.real, *(text for row in row.rows.values() for text in row)]
        assert len(texts) == 1 + 2 * 7
        assert {text.prompt for text in texts if text} == {word}
        assert not any(text.head.startswith(word) for text in texts if text)
    assert "underlined" in view.caption


def test_texts_without_prompts_have_nothing_underlined() -> None:
    view = view_gallery(gallery_of(ragged(["Once upon a time"]), ragged(["Once more"])), STYLES)
    (row,) = view.text_rows
    assert (row.title, row.real.prompt, row.rows["replace"][0].prompt) == ("Row 1", "", "")  # type: ignore[union-attr]
    assert "underlined" not in view.caption


def test_a_prompt_is_marked_only_if_the_text_begins_with_it_and_only_up_to_its_last_whole_character() -> None:
    sampled = {"text": ragged(["another begin", "né"]), "prompt": ragged(["Once", "n\ufffd"])}
    real = {"text": ragged(["Once upon", "né!"])}
    gallery = Gallery(schema={"text": ColumnType("utf8")}, real=real, samples={"replace": {1: sampled}})
    first, second = view_gallery(gallery, STYLES).text_rows
    assert first.rows["replace"][0] == TextExcerpt("", "another begin", "")
    assert second.rows["replace"][0] == TextExcerpt("n", "é", "")
    assert second.real == TextExcerpt("n", "é!", "")


def test_a_text_is_complete_although_only_its_beginning_is_visible_at_once() -> None:
    long = "word " * 1000
    (row,) = view_gallery(gallery_of(np.array([long])), STYLES).text_rows
    assert row.real
    assert len(row.real.head) == VISIBLE_CHARACTERS
    assert row.real.head + row.real.rest == long
    (book,) = view_gallery(gallery_of(np.array(["x" * 100_000])), STYLES).text_rows
    assert book.real
    assert len(book.real.rest) == MAX_HIDDEN_CHARACTERS
    assert VISIBLE_CHARACTERS + MAX_HIDDEN_CHARACTERS + book.real.n_omitted == 100_000


def test_rows_that_were_not_sampled_are_none() -> None:
    samples = {"replace": {1: {"text": ragged(["a", "b"])}}, "accumulate": {1: {"text": ragged(["a"])}, 2: {}}}
    gallery = Gallery(schema={}, real={"text": ragged(["r"])}, samples=samples)
    first, second = view_gallery(gallery, policy_styles(["replace", "accumulate"])).text_rows
    assert (second.real, second.rows["accumulate"]) == (None, [None, None])
    assert first.rows["replace"] == [TextExcerpt("", "a", ""), None]


def test_names_of_columns_and_units_are_escaped_in_pictures() -> None:
    svg = view_gallery(gallery_of(np.arange(9.0), name=HOSTILE, field=ColumnType("float64", (), HOSTILE)), STYLES).svg
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


def test_a_generation_without_samples_is_labeled_so() -> None:
    rows = {"x": np.arange(9.0)}
    gallery = Gallery(schema={}, real=rows, samples={"replace": {1: rows}, "accumulate": {1: rows, 2: rows}})
    assert view_gallery(gallery, policy_styles(["replace", "accumulate"])).svg.count("no samples") == 1


def test_captions_say_how_many_generations_are_shown() -> None:
    for rows in (
        {"text": ragged(["a"])},
        {"x": np.arange(9.0)},
        {"x": np.ones((9, 2))},
        {"x": np.zeros((4, 8, 8))},
        {"x": np.ones((9, 3))},
    ):
        few, many = (
            view_gallery(
                Gallery(schema={}, real=rows, samples={"replace": dict.fromkeys(range(1, n + 1), rows)}), STYLES
            ).caption
            for n in (7, 8)
        )
        assert "the model of each generation" in few
        assert "the models of 7 of the 8 generations" in many
    prompted = view_gallery(story_gallery(10, ["replace"]), STYLES).caption
    assert prompted.endswith("the models of 7 of the 10 generations wrote the rest.")
    assert (
        "the models of 7 of the 9 generations"
        in view_gallery(molecule_gallery(9), policy_styles(["replace", "accumulate"])).caption
    )


def test_at_most_seven_generations_are_selected_with_the_first_and_the_last() -> None:
    assert select_generations([3, 1, 2]) == [1, 2, 3]
    many = select_generations(range(1, 101))
    assert len(many) == 7
    assert (many[0], many[-1]) == (1, 100)
