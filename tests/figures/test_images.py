"""Grids and contact sheets: exact pixels, integer enlargement, names, columns, notes."""

import numpy
import pytest
import torch
from PIL import Image

from diffguide.figures import image_grids as images
from diffguide.figures.image_grids import (
    choose_contact_rows,
    choose_training_labels,
    draw_grid,
    lay_out_grid,
    to_uint8,
    write_contact_sheet,
    write_samples,
)


def test_uint8_is_exact_on_grey_values():
    u = torch.arange(256).reshape(1, 1, 16, 16)
    assert torch.equal(torch.from_numpy(to_uint8(u / 127.5 - 1)), u.permute(0, 2, 3, 1).to(torch.uint8))


def test_values_outside_the_range_are_clipped():
    assert to_uint8(torch.tensor([-1.5, 1.5]).reshape(2, 1, 1, 1)).ravel().tolist() == [0, 255]


def test_small_images_are_enlarged_by_an_integer_and_stay_grey(tmp_path):
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_samples(tmp_path / "grid.png", x, [0, 1, 2, 0, 1, 2], ["zero", "one", "two"])
    picture = numpy.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert (picture[..., 0] == picture[..., 2]).all()  # grey stays grey
    first = numpy.kron(to_uint8(x)[0, :, :, 0], numpy.ones((7, 7), dtype=numpy.uint8))
    windows = numpy.lib.stride_tricks.sliding_window_view(picture[..., 0], (56, 56))
    assert (windows == first).all(axis=(2, 3)).any()


def test_one_row_per_class_in_order(tmp_path):
    levels = torch.tensor([-1.0, 0.0, 1.0, -1.0]).reshape(4, 1, 1, 1).expand(4, 3, 56, 56)
    write_samples(tmp_path / "grid.png", levels, [2, 0, 1, 2], ["a", "b", "c"])
    picture = numpy.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    column = picture[:, -80]  # in the first column of images
    shades = [column[3 + 59 * row + 28] for row in range(3)]
    assert shades == [128, 255, 0]


def test_the_font_has_accents_greek_and_cyrillic():
    """All letters are drawn differently, and differently from the box of a missing letter."""
    blank = numpy.zeros((8, 8, 1), dtype=numpy.uint8)
    drawn = {draw_grid([[blank]], [name], []).crop((0, 0, 10, 62)).tobytes() for name in "üéøλжч\uffff"}
    assert len(drawn) == 7


def test_contact_sheet_has_a_column_per_run(tmp_path):
    columns = [(f"scale {k}", numpy.full((2, 8, 8, 1), 64 * k, dtype=numpy.uint8)) for k in range(3)]
    write_contact_sheet(tmp_path / "sheet.png", columns, [[0, 1]] * 3, ["0", "1"])
    picture = numpy.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert {0, 64, 128} <= set(picture[picture.shape[0] - 20].tolist())
    titled = [(f"{title}\nguidance dpmpp_2m_sde", x) for title, x in columns]
    write_contact_sheet(tmp_path / "long.png", titled, [[0, 1]] * 3, ["0", "1"])
    long = numpy.asarray(Image.open(tmp_path / "long.png").convert("L"))
    assert long.shape[0] == picture.shape[0] + 3 * 17  # three more lines: guidance, dpmpp_, 2m_sde
    assert long.shape[1] < 1.2 * picture.shape[1]  # the columns are hardly wider
    assert all((long[17 * k : 17 * k + 17] < 128).any() for k in range(4))


@pytest.mark.parametrize(
    "side, shown", [(8, 56), (16, 64), (20, 60), (28, 56), (32, 64), (56, 56), (64, 64), (128, 128)]
)
def test_small_pictures_are_at_least_56_pixels_a_side(side, shown):
    assert draw_grid([[numpy.zeros((side, side, 3), numpy.uint8)]], [], []).size == (shown + 6, shown + 6)


@pytest.mark.parametrize(
    "classes, shown, each, omitted", [(12, 12, 8, ""), (40, 40, 4, ""), (52, 40, 4, "12 of 52 classes")]
)
def test_a_training_figure_shows_every_class_up_to_forty(classes, shown, each, omitted, tmp_path, monkeypatch):
    labels, grids = choose_training_labels(classes, vectors=False), []
    assert labels == [label for label in range(shown) for _ in range(each)]
    monkeypatch.setattr(images, "write_png", lambda path, picture: grids.append(picture))
    monkeypatch.setattr(images, "draw_grid", lambda *arguments: arguments)
    names = [f"c{k}" for k in range(classes)]
    write_samples(tmp_path / "t.png", torch.zeros(len(labels), 1, 8, 8), labels, names, note_missing=True)
    ((rows, row_names, _, note),) = grids
    assert (
        len(rows) == shown and row_names == names[:shown] and note.startswith(omitted) and bool(note) == bool(omitted)
    )
    assert all(name in note for name in names[40:])


def test_a_training_figure_has_80_images_without_classes_and_250_vectors_per_class():
    assert choose_training_labels(0, vectors=False) == [-1] * 80
    assert len(choose_training_labels(4, vectors=True)) == 1000


def test_a_grid_notes_omitted_classes():
    assert lay_out_grid([0, 0], ["a", "b"]).note == ""  # a class without sample is not omitted
    note = lay_out_grid(list(range(45)), [f"c{k}" for k in range(45)]).note
    assert note == "5 of 45 classes are not shown: c40, c41, c42, c43, c44"


def test_a_note_is_below_the_grid():
    blank = [[numpy.zeros((8, 8, 1), numpy.uint8)] * 4]
    notes = "", "two classes are not shown here"
    plain, noted = (numpy.asarray(draw_grid(blank, [], [], note).convert("L")) for note in notes)
    assert noted.shape[1] == plain.shape[1] and (noted[: len(plain)] == plain).all()
    assert len(noted) - len(plain) in (17, 34) and (noted[len(plain) :] < 128).any()


def test_a_contact_sheet_shows_two_of_each_class():
    assert choose_contact_rows([0, 0, 0, 1, 2, 1, 1, 0], (1, 8, 8)) == [0, 1, 3, 4, 5]
    assert choose_contact_rows([-1] * 50, (1, 8, 8)) == list(range(20))
    assert choose_contact_rows([0, 1] * 20000, (2,)) == list(range(20000))


def test_a_grid_shows_the_first_of_each_class():
    names = ["a", "b", "c"]
    assert lay_out_grid([2, 0, 0, 2, -1, 0], names).rows == [[4], [1, 2, 5], [0, 3]]
    assert lay_out_grid([2, 0, 0, 2, -1, 0], names).names == ["", "a", "c"]
    assert lay_out_grid([2, 0, 0, 2, -1, 0], names, max_samples=5).rows == [[4], [1, 2], [0, 3]]
    assert lay_out_grid([1] * 100, names) == ([list(range(20))], ["b"], "")
    assert lay_out_grid([-1] * 11, names).rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert len(lay_out_grid([-1] * 2000, names).indices) == 800
    assert len(lay_out_grid(list(range(1000)), list(range(1000))).rows) == 40


def test_vectors_become_a_scatter_plot(tmp_path):
    write_samples(tmp_path / "plot.png", torch.randn(50, 2), [0, 1] * 25, ["0", "1"], torch.randn(100, 2))
    assert Image.open(tmp_path / "plot.png").size[0] > 300
