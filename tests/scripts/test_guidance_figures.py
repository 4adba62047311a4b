"""The script that draws guidance: its figures have their expected values, and every part runs with few samples."""

import csv
from pathlib import Path

import figure_files
import guidance_figures
import guidance_tree
import numpy
import pytest
import torch
from PIL import Image
from short_run import SMALL

import diffguide
from diffguide.backbones import UNetEncoder
from diffguide.guidance import Autoguidance, ClassifierFree
from diffguide.models.noisy_classifier import NoisyClassifier


@pytest.fixture(scope="module")
def law():
    return figure_files.build_oracle(*guidance_tree.TREE)


@pytest.fixture(scope="module")
def truth(law):
    return guidance_tree.exact_samples(law, 3000, seed=0)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def colours(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as picture:
        return {colour for _, colour in picture.convert("RGB").getcolors(2**20)}


def test_exact_samples_have_the_errors_of_a_finite_set(law, truth):
    figures = guidance_tree.tree_figures(law, guidance_tree.exact_samples(law, 3000, seed=1), truth)
    assert figures["outliers"] == pytest.approx(0.01, abs=0.009)  # 4.5 standard errors of 3000, twice
    assert figures["thinned"] < 0.02 and figures["misplaced"] < 0.1 and figures["energy_distance"] < 0.002


def test_branches_are_those_of_the_law(law):
    """127 branches; the mean of each component lies on its own branch."""
    weights = guidance_tree.branch_weights(law)
    assert weights.shape == (127,) and float(weights.sum()) == pytest.approx(1)
    own = guidance_tree.branches_of(law, law.means[law.labels == guidance_tree.CLASS])
    assert float((own == torch.arange(127).repeat_interleave(8)).double().mean()) > 0.97  # they overlap at forks


def test_missing_branches_and_outliers_are_measured(law, truth):
    weights, branches = guidance_tree.branch_weights(law), guidance_tree.branches_of(law, truth)
    trunk = guidance_tree.tree_figures(law, truth[branches == 0], truth)
    assert trunk["thinned"] == pytest.approx(1 - float(weights[0])) and trunk["outliers"] < 0.05
    assert trunk["misplaced"] == pytest.approx(1 - float(weights[0]), abs=0.02)
    moved = truth.clone()
    moved[:1000] += 2.0
    outside = guidance_tree.tree_figures(law, moved, truth)
    assert outside["outliers"] == pytest.approx(1 / 3 + 0.01, abs=0.01) and outside["energy_distance"] > 0.3


def test_three_gaussians_are_drawn(tmp_path):
    guidance_figures.three_gaussians(tmp_path, n=12, steps=2)
    assert len(colours(tmp_path / "three_gaussians.png")) > 20


def test_the_tree_is_drawn_for_every_law(law, tmp_path, monkeypatch):
    """A model without condition is the weak model."""
    monkeypatch.setattr(guidance_tree, "GRID", 20)
    bad = guidance_figures.WithoutCondition(law)
    bad.num_classes = law.num_classes
    guided = {
        ("no guidance", 1.0): law,
        ("CFG", 2.0): ClassifierFree(law, 2.0, figure_files.EVERYWHERE),
        ("autoguidance", 2.0): Autoguidance(law, bad, 2.0, figure_files.EVERYWHERE),
    }
    guidance_tree.draw_tree(tmp_path, law, guided, n=60, steps=3)
    rows = table(tmp_path / "tree.csv")
    assert [(row["method"], row["scale"]) for row in rows] == [
        ("exact samples", ""),
        ("no guidance", "1.0"),
        ("CFG", "2.0"),
        ("autoguidance", "2.0"),
    ]
    assert {**rows[2], "method": ""} == {**rows[3], "method": ""}, "their weak sides are the same here"
    assert len(colours(tmp_path / "tree.png")) > 10


def test_methods_agree_on_digits_at_scales_0_and_1(tiny_run, tmp_path, monkeypatch):
    """Scale 0 is the unconditional model, scale 1 the conditional one, for all methods."""
    monkeypatch.setattr(guidance_figures, "DIGIT_SCALES", (0.0, 1.0, 2.0))
    model = diffguide.load(tiny_run)
    encoder = UNetEncoder(
        in_channels=1, out_features=10, size=8, channels=8, multipliers=[1], blocks=1, attention=[], head_channels=8,
        dropout=0.0, noise_conditioned=True, double_differentiable=False, checkpointing=False,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    for parameter in (*model.parameters(), *encoder.parameters()):  # untrained, but not constant
        parameter.data.normal_(std=0.3, generator=rng)
    methods = guidance_figures.digit_methods(model, NoisyClassifier(encoder.eval(), model.schedule))
    guidance_figures.draw_digits(tmp_path, methods, n=10, steps=2)
    rows = table(tmp_path / "digits.csv")
    assert len(rows) == 18 and all(0 <= float(row[key]) <= 1 for row in rows for key in list(row)[2:])
    saved = {path.stem: numpy.load(path) for path in (tmp_path / "samples/digits").iterdir()}
    assert len(saved) == 18 and saved["CFG_2"].shape == (10, 8, 8, 1)
    pairs = [("classifier_0", "CFG_0"), ("CFG_0", "CFG++_0")]
    pairs += [("CFG_1", f"{name}_1") for name in ("cond. + classifier", "APG", "interval")]
    for one, other in pairs:
        assert numpy.abs(saved[one].astype(int) - saved[other]).max() <= 1
    for one, other in (("classifier_2", "CFG_2"), ("APG_2", "CFG_2"), ("CFG++_2", "CFG_2"), ("interval_0", "CFG_0")):
        assert numpy.abs(saved[one].astype(int) - saved[other]).max() > 1
    assert (tmp_path / "digits.png").exists() and len(colours(tmp_path / "digits_trade_off.png")) > 20


def test_a_model_is_trained_once_and_an_interrupted_training_is_resumed(unfinished, tmp_path):
    """A missing run is trained, one without its last checkpoint is resumed, a finished one is not changed."""
    figure_files.load_or_train(tmp_path, "new", *SMALL, "training.images=32", "training.batch_size=32")
    assert figure_files.is_finished(tmp_path / "outputs/train/new/v001")
    run = tmp_path / "outputs/train/digits/v001"
    assert not figure_files.is_finished(run)
    figure_files.load_or_train(tmp_path, "digits")
    assert figure_files.is_finished(run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    model = figure_files.load_or_train(tmp_path, "digits")
    assert model.num_classes == 10 and before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_saved_samples_are_not_drawn_again(tmp_path):
    path = tmp_path / "a/x.npy"
    first = figure_files.load_or_make(path, lambda: torch.arange(3))
    again = figure_files.load_or_make(path, lambda: torch.zeros(3))
    assert torch.equal(first, again) and torch.equal(again, torch.arange(3))
