"""The agreement of samples of MNIST with their labels: counted by hand, with a classifier that reads one pixel."""

from types import SimpleNamespace

import mnist_agreement
import numpy as np
import pytest
import torch
from torch import nn

from diffguide.datasets import Split


def digits(classes):
    """Bytes [N, 1, 28, 28]: black but for one pixel, in the column of its class."""
    x = torch.zeros(len(classes), 1, 28, 28, dtype=torch.uint8)
    x[torch.arange(len(classes)), 0, 14, torch.tensor(classes)] = 255
    return x


class ColumnReader(nn.Module):
    def forward(self, x):
        return x[:, 0, 14, :10]


def test_the_fraction_of_each_folder_is_printed(monkeypatch, tmp_path, capsys):
    splits = {
        "test": Split(digits([1, 2]), torch.tensor([1, 2])),
        "train": Split(digits([3] * 4), torch.tensor([3, 3, 3, 0])),
    }
    monkeypatch.setattr(mnist_agreement, "MNIST", lambda path, validation: SimpleNamespace(**splits))
    trained_on = []
    monkeypatch.setattr(
        mnist_agreement, "train_network", lambda x, y, steps: trained_on.append((x, y)) or ColumnReader()
    )
    images = digits([0, 1, 2, 3, 4, 4, 4, 4]).permute(0, 2, 3, 1)
    np.savez(tmp_path / "samples.npz", arr_0=images.numpy(), arr_1=np.array([0, 1, 2, 3, 4, 4, 4, 5]))
    mnist_agreement.main([str(tmp_path)])
    head, _, row = capsys.readouterr().out.splitlines()
    assert head == "trained on 2 digits, accuracy on 4 others 75.00%"
    assert row.split()[1:] == ["8", "87.5%", "5:", "0.0%"]
    assert torch.equal(trained_on[0][0], splits["test"].x)


def test_images_move_by_at_most_the_stated_amounts(monkeypatch):
    """A lone pixel near the middle stays within 6 pixels; with all amounts 0 the images are unchanged."""
    x = mnist_agreement.scale_pixels(digits([9] * 60).roll(4, 3))
    torch.manual_seed(0)
    moved = mnist_agreement.move_at_random(x)
    where = moved.flatten(1).argmax(1)
    rows, columns = where // 28, where % 28
    assert (rows - 14).abs().max() <= 4 and (columns - 13).abs().max() <= 4
    assert len(rows.unique()) > 3 and len(columns.unique()) > 3
    for name in ("MAX_TURN", "MAX_GROWTH", "MAX_SHIFT"):
        monkeypatch.setattr(mnist_agreement, name, 0.0)
    torch.testing.assert_close(mnist_agreement.move_at_random(x), x, rtol=0, atol=1e-4)


def test_the_classifier_learns_and_is_the_same_each_time(monkeypatch):
    """Two classes, upper and lower half bright: all 20 right after 12 steps."""
    monkeypatch.setattr(mnist_agreement, "BATCH", 16)
    x = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    x[:10, :, :14] = x[10:, :, 14:] = 255
    y = torch.tensor([0] * 10 + [1] * 10)
    first, second = (mnist_agreement.train_network(x, y, steps=12) for _ in range(2))
    assert mnist_agreement.find_agreement(first, x, y).all()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_a_folder_is_required(capsys):
    with pytest.raises(SystemExit):
        mnist_agreement.main([])
    assert "samples" in capsys.readouterr().err
