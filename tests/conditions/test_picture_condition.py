"""Pictures as conditions: fewer pixels and holes, against NumPy; a network takes them beside x."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffguide.backbones import DiT, UNet
from diffguide.backbones.conditions import Picture, remove_condition
from diffguide.conditions import LowResolution, Masked

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_fewer_pixels_are_averages_that_are_interpolated():
    y = LowResolution(3, 8, factor=2).degrade(X, torch.zeros(5, 0))
    small = X.numpy().reshape(5, 3, 4, 2, 4, 2).mean((3, 5))
    place = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)  # centres of the pixels, clamped at the border
    below = np.minimum(place.astype(int), 2)
    weight = np.zeros((8, 4))
    weight[np.arange(8), below], weight[np.arange(8), below + 1] = 1 - (place - below), place - below
    np.testing.assert_allclose(y.x, np.einsum("ih,jw,bchw->bcij", weight, weight, small), rtol=1e-12, atol=1e-12)


def test_a_hole_is_a_rectangle_of_the_drawn_sides():
    masked = Masked(3, 8, least=0.25, most=0.75)
    chance = torch.rand(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = masked.degrade(X, chance).x.numpy()
    for row, (a, b, c, d) in enumerate(chance.tolist()):
        height, width = (round((0.25 + 0.5 * share) * 8) for share in (a, b))
        top, left = int(c * (8 - height + 1)), int(d * (8 - width + 1))
        outside = np.ones((8, 8))
        outside[top : top + height, left : left + width] = 0
        np.testing.assert_array_equal(y[row, 3], outside)
        np.testing.assert_array_equal(y[row, :3], X[row].numpy() * outside)


@pytest.mark.parametrize("make", [LowResolution, Masked])
def test_a_network_takes_it_beside_x_and_none_is_none(make):
    condition = make(3, 8)
    table = condition.tabulate({}, torch.zeros(5))
    chance = torch.rand(5, table.draws, generator=torch.Generator().manual_seed(2))
    assert torch.equal(table(torch.arange(5), X).x, table(torch.arange(5), X).x)  # without chance: by the row
    y = table(torch.arange(5), X, chance)
    for network in (
        UNet(3, size=8, channels=8, multipliers=(1,), attention=(), blocks=1, conditioning=condition),
        DiT(3, size=8, width=16, depth=1, heads=2, conditioning=condition),
    ):
        network.double().eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        log_snr = torch.zeros(5, dtype=torch.float64)
        with torch.no_grad():
            nothing = network(X, log_snr, None)
            assert torch.equal(network(X, log_snr, remove_condition(y)), nothing)
            assert not torch.isclose(network(X, log_snr, y), nothing).all((1, 2, 3)).any()
            assert torch.equal(network(X, log_snr, Picture(y.x, torch.zeros(5, dtype=torch.bool))), nothing)
        with pytest.raises(ValueError, match="y must be a Picture .* got Tensor"):
            network(X, log_snr, torch.zeros(5, dtype=torch.long))


def test_files_are_read(tmp_path):
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    hole = np.zeros((8, 8), dtype=np.uint8)
    hole[2:5, 1:4] = 255
    files = {name: str(tmp_path / f"{name}.png") for name in ("picture", "mask")}
    Image.fromarray(picture).save(files["picture"])
    Image.fromarray(hole).save(files["mask"])
    x = torch.tensor(picture).permute(2, 0, 1) / 127.5 - 1
    y = Masked(3, 8).read([files, ""])
    assert y.keep.tolist() == [True, False] and torch.equal(y.x[0, 3], torch.tensor(hole == 0).float())
    torch.testing.assert_close(y.x[0, :3], x * y.x[0, 3])
    small = LowResolution(3, 16, factor=2).read([files["picture"]]).x
    torch.testing.assert_close(small, torch.nn.functional.interpolate(x[None], scale_factor=2, mode="bilinear"))
    for bad in ("nothing.png", __file__):
        with pytest.raises(ValueError, match="is no file|cannot be read"):
            LowResolution(3, 16).read([bad])
    with pytest.raises(ValueError, match="must be {picture: <file>, mask: <file>}"):
        Masked(3, 8).read([files["picture"]])


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="condition.factor must divide the side of the images, 8 pixels, got 3"):
        LowResolution(3, 8, factor=3)
    with pytest.raises(ValueError, match="condition.least must be at most condition.most=0.2"):
        Masked(3, 8, least=0.5, most=0.2)
