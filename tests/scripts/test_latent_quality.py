"""scripts/latent_quality.py: what equal quality takes, of curves that are powers, and every figure of small networks."""

import json
import math

import latent_quality
import pytest
import torch
from benchmarks.equal_quality import compare_sampling, compare_training, format_equal, images_to_reach

from diffguide.backbones import UNet
from diffguide.datasets import Dataset, Split
from diffguide.objectives import Denoising
from diffguide.schedules import Cosine


def power(start, *images):
    """The curve FD = start / images."""
    return [{"images": count, "fd": start / count} for count in images]


def test_images_follow_a_power_between_points():
    curve = power(1000.0, 10, 100, 1000)
    assert images_to_reach(curve, 1000 / 37) == pytest.approx(37)
    assert images_to_reach(curve, 1000 / 370) == pytest.approx(370)
    assert images_to_reach(curve, 100.0) == 10 and images_to_reach(curve, 200.0) == 10
    assert images_to_reach(curve, 0.5) == math.inf


def test_a_curve_that_rises_counts_where_it_first_falls():
    curve = [{"images": count, "fd": fd} for count, fd in ((1, 8.0), (2, 2.0), (4, 3.0), (8, 1.0))]
    assert images_to_reach(curve, 2.0) == 2


def test_training_is_compared_at_equal_quality():
    curves = {"pixels": power(300.0, 10, 30, 2000), "latents": power(600.0, 40, 400)}
    rows = compare_training(curves, {"train pixels": 0.8, "train latents": 0.1})
    assert [row.amounts[1] for row in rows] == pytest.approx([40, 60, math.inf])  # twice the images, of an eighth
    assert [row.ratio for row in rows] == pytest.approx([2, 4, 0])
    assert [row.exact for row in rows] == [False, True, True]
    table = format_equal("images", rows)
    assert "| 10 | at most 40 |" in table and "| at least 2.00 |" in table
    assert "| 30 | 60 | 24 | 6 | 4.00 |" in table


def test_sampling_is_compared_at_equal_quality():
    curves = {
        "pixels": [{"steps": 3, "fd": 5.0}, {"steps": 10, "fd": 1.0}, {"steps": 20, "fd": 0.1}],
        "latents": [{"steps": 3, "fd": 4.0}, {"steps": 10, "fd": 0.9}],
    }
    seconds = {f"sample pixels {steps}": steps / 10 for steps in (3, 10, 20)}
    seconds |= {f"sample latents {steps}": (steps + 2) / 60 for steps in (3, 10)}
    rows = compare_sampling(curves, seconds)
    assert [row.amounts for row in rows] == [(3, 3), (10, 10), (20, math.inf)]
    assert [row.ratio for row in rows] == pytest.approx([3.6, 5, 0])
    assert [row.exact for row in rows] == [False, True, True]


def test_a_trained_model_is_loaded(tmp_path, monkeypatch):
    x = torch.linspace(-1, 1, 20 * 16).reshape(20, 1, 4, 4)
    data = Dataset(*[Split(x, torch.arange(20) % 10)] * 3, class_names=tuple("0123456789"))
    path = tmp_path / "model.safetensors"
    trained, loaded = (Denoising(UNet(1, None, 10, 4, 4, (1,), 1, ()), Cosine()) for _ in range(2))
    trained = latent_quality.load_or_train(path, trained, data, 32, seed=0)
    monkeypatch.delattr(latent_quality, "Training")
    loaded = latent_quality.load_or_train(path, loaded, data, 32, seed=0)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), dict(trained.state_dict()), rtol=0, atol=0)


def test_every_figure_is_measured(tmp_path, monkeypatch, capsys):
    data = latent_quality.enlarge_digits()
    assert data.shape == (1, 32, 32)
    few = [Split(x[:20], y[:20]) for x, y in (data.train, data.validation, data.test)]
    monkeypatch.setattr(latent_quality, "enlarge_digits", lambda: Dataset(*few, class_names=data.class_names))
    sizes = {"pixels": (1, 32), "latents": (4, 8)}
    shrunk = {kind: lambda c=c, s=s: UNet(c, None, 10, s, 4, blocks=1, attention=()) for kind, (c, s) in sizes.items()}
    for kind in sizes:  # as large as they are stated
        network = latent_quality.build_network(kind)
        assert sum(part.numel() for part in network.parameters()) == pytest.approx(1.2e6, rel=0.05)
    monkeypatch.setattr(latent_quality, "build_network", lambda kind: shrunk[kind]())
    budgets = "--classifier 1 --autoencoder 16 --pixels 16 --latents 32 16 --steps 2 --samples 10 --rounds 1".split()
    latent_quality.main([*budgets, "--output", str(tmp_path / "new")])
    found = json.loads((tmp_path / "new/latent_quality.json").read_text())
    assert [row["images"] for row in found["training"]["latents"]] == [16, 32]
    assert found["sampling"]["pixels"][0].keys() == {"steps", "fd", "agreed", "recall"}
    assert {"train autoencoder", "encode", "sample latents 2"} <= found["seconds"].keys()
    assert found["limits"].keys() == {"held-out digits", "reconstructed"}
    assert {path.name for path in (tmp_path / "new").glob("*.png")} == {"latent_quality.png", "latent_quality_grid.png"}
    printed = capsys.readouterr().out
    assert "| reconstructed |" in printed and "once: autoencoder" in printed and "bar: 3 times" in printed
