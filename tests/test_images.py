"""Pictures: exact pixels, whole-factor enlargement, names, columns."""

import numpy
import torch
from PIL import Image

from diffguide.images import contact_rows, contact_sheet, layout, sample_picture, to_uint8


def test_uint8_is_exact_on_grey_values():
    u = torch.arange(256).reshape(1, 1, 16, 16)
    assert torch.equal(torch.from_numpy(to_uint8(u / 127.5 - 1)), u.permute(0, 2, 3, 1).to(torch.uint8))


def test_values_outside_are_clipped_not_wrapped():
    assert to_uint8(torch.tensor([-1.5, 1.5]).reshape(2, 1, 1, 1)).ravel().tolist() == [0, 255]


def test_small_images_are_enlarged_by_whole_factors_without_tint(tmp_path):
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sample_picture(tmp_path / "grid.png", x, [0, 1, 2, 0, 1, 2], ["zero", "one", "two"])
    picture = numpy.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert (picture[..., 0] == picture[..., 2]).all()  # grey stays grey
    first = numpy.kron(to_uint8(x)[0, :, :, 0], numpy.ones((6, 6), dtype=numpy.uint8))
    windows = numpy.lib.stride_tricks.sliding_window_view(picture[..., 0], (48, 48))
    assert (windows == first).all(axis=(2, 3)).any()


def test_one_row_per_class_in_order(tmp_path):
    levels = torch.tensor([-1.0, 0.0, 1.0, -1.0]).reshape(4, 1, 1, 1).expand(4, 3, 48, 48)
    sample_picture(tmp_path / "grid.png", levels, [2, 0, 1, 2], ["a", "b", "c"])
    picture = numpy.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    column = picture[:, -80]  # through the first column of pictures
    shades = [column[3 + 51 * row + 24] for row in range(3)]
    assert shades == [128, 255, 0]


def test_contact_sheet_has_a_column_per_run(tmp_path):
    columns = [(f"scale {k}", numpy.full((2, 8, 8, 1), 64 * k, dtype=numpy.uint8)) for k in range(3)]
    contact_sheet(tmp_path / "sheet.png", columns, [[0, 1]] * 3, ["0", "1"])
    picture = numpy.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert {0, 64, 128} <= set(picture[picture.shape[0] - 20].tolist())
    whole = [(f"{title}\nguidance cfg", x) for title, x in columns]
    contact_sheet(tmp_path / "two.png", whole, [[0, 1]] * 3, ["0", "1"])
    beside = [(title.replace("\n", " "), x) for title, x in whole]
    contact_sheet(tmp_path / "one.png", beside, [[0, 1]] * 3, ["0", "1"])
    two, one = (numpy.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("two", "one"))
    assert two.shape[0] == picture.shape[0] + 17 and two.shape[1] < 0.8 * one.shape[1]  # a line each, not side by side
    assert (two[:17] < 128).any() and (two[19:36] < 128).any()


def test_a_contact_sheet_shows_two_of_each_class():
    assert contact_rows([0, 0, 0, 1, 2, 1, 1, 0], (1, 8, 8)) == [0, 1, 3, 4, 5]
    assert contact_rows([-1] * 50, (1, 8, 8)) == list(range(20))
    assert contact_rows([0, 1] * 20000, (2,)) == list(range(20000))


def test_a_grid_shows_the_first_of_each_class():
    names = ["a", "b", "c"]
    assert layout([2, 0, 0, 2, -1, 0], names).rows == [[4], [1, 2, 5], [0, 3]]
    assert layout([2, 0, 0, 2, -1, 0], names).names == ["", "a", "c"]
    assert layout([2, 0, 0, 2, -1, 0], names, most=5).rows == [[4], [1, 2], [0, 3]]
    assert layout([1] * 100, names) == ([list(range(20))], ["b"])
    assert layout([-1] * 11, names).rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert len(layout([-1] * 2000, names).indices) == 800
    assert len(layout(list(range(1000)), list(range(1000))).rows) == 40


def test_vectors_become_a_scatter_plot(tmp_path):
    sample_picture(tmp_path / "plot.png", torch.randn(50, 2), [0, 1] * 25, ["0", "1"], torch.randn(100, 2))
    assert Image.open(tmp_path / "plot.png").size[0] > 300
