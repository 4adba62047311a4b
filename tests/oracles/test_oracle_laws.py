"""Named oracles: each YAML file builds, and has the distribution of its name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from closed_forms import Mixture
from exact_models import SCHEDULES, time_of
from hydra.utils import instantiate
from omegaconf import OmegaConf

from diffguide.config.build import config_dir
from diffguide.datasets import GMM2D
from diffguide.oracles import AutoguidanceTree, HighDimensional

FOLDER = Path(config_dir()) / "oracle"
FACTS = {  # dimensions, components, classes
    "gmm2d": (2, 8, 4),
    "cfg_figure": (2, 3, 3),
    "anisotropic": (2, 4, 2),
    "pair1d": (1, 2, 2),
    "highdim": (64, 8, 8),
    "autoguidance_tree": (2, 2032, 2),
}


def named(name: str, **given):
    node = OmegaConf.load(FOLDER / f"{name}.yaml")
    node.pop("defaults", None)
    return instantiate(node, schedule=SCHEDULES["edm"], **given, _convert_="all")


def test_every_file_is_tested():
    assert {path.stem for path in FOLDER.iterdir()} == {*FACTS, "empirical"}


@pytest.mark.parametrize("name", FACTS)
def test_every_oracle_has_its_size_and_classifies_its_samples(name):
    """Better than chance; at low noise it predicts the clean data."""
    model, (dimensions, components, classes) = named(name), FACTS[name]
    assert (model.shape, len(model.log_weights), model.num_classes) == ((dimensions,), components, classes)
    x, y = model.sample(4000, torch.Generator().manual_seed(0))
    assert model.log_prob(x, time_of(0.0)).exp()[torch.arange(4000), y].mean() > 0.5
    prediction = model(x, time_of(0.0), y)  # noise level 0.002
    assert (prediction.x_0 - x).abs().max() < 0.02


def test_the_empirical_oracle_builds_from_its_file():
    model = named("empirical", data=torch.zeros(3, 1, 2, 2), labels=torch.tensor([0, 1, 0]))
    assert model.shape == (1, 2, 2) and model.width == 0 and model.num_classes == 2


def test_gmm2d_is_the_distribution_of_the_data_set():
    angle = 2 * np.pi * np.arange(8) / 8
    means = 1.3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    law, model = Mixture([1 / 8] * 8, means, [0.15**2 * np.eye(2)] * 8, np.arange(8) // 2), named("gmm2d")
    data = GMM2D(2, None, 4, train=20000, validation=1, test=1, seed=0).train
    log_density = model.log_density(data.x.double(), None, data.y)
    np.testing.assert_allclose(
        log_density, law.log_density(data.x.double().numpy(), 1.0, 0.0, data.y.numpy()), atol=1e-9
    )
    entropy = np.log(2) + np.log(2 * np.pi * np.e * 0.15**2)  # two components with hardly any overlap
    assert float(-log_density.mean()) == pytest.approx(entropy, abs=0.03)


def test_pair1d_has_closed_form_scores():
    """Class 0 and class 1 have the scores of N(0, 1) and N(0, 2), the c and u of the guided closed forms."""
    model, t, x = named("pair1d"), time_of(0.5), torch.linspace(-2, 2, 5).double()[:, None]
    sigma = float(model.schedule.alpha_sigma(t)[1])
    for label, variance in ((0, 1.0), (1, 2.0)):
        torch.testing.assert_close(model.score(x, t, torch.full((5,), label)), -x / (variance + sigma**2))


def branch(draws, label, depth, at, angle):
    """Means, covariances and weights of a branch and of those after it; `draws` yields the normal numbers in order."""
    length = 0.292 * 0.8**depth * (1 + 0.2 * next(draws))
    u, v = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    scale, thick = np.array([1.3136, 1.3844]), 0.2 * 0.8**depth / length
    square = np.outer(u, u) + thick**2 * np.outer(v, v)  # I - u u^T = v v^T in the plane
    size = np.diag(0.06 * length * scale)
    for step in range(8):
        place = 0.07 + step * 0.86 / 7
        yield (at + place * length * u) * scale, size @ square @ size, length / 2**depth, label
    if depth < 6:
        for sign in (1, -1):
            turn = sign * 0.7**depth * (1 + 0.2 * next(draws))
            yield from branch(draws, label, depth + 1, at + length * u, angle + turn)


def test_the_tree_is_that_of_the_paper():
    """arXiv 2406.02507: two classes of 127 branches with 8 Gaussians each, rebuilt here by another recursion."""
    model, draws = named("autoguidance_tree"), iter(np.random.RandomState(2).randn(2 * (127 + 126)))
    parts = [
        part
        for label, angle in enumerate((np.pi / 4, 5 * np.pi / 4))
        for part in branch(draws, label, 0, np.array([0.0030, 0.0325]), angle)
    ]
    assert next(draws, None) is None and len(parts) == 2032
    means, covariances, weights, labels = (np.array(part) for part in zip(*parts))
    np.testing.assert_array_equal(model.labels, labels)
    np.testing.assert_allclose(model.means, means, atol=1e-14)
    np.testing.assert_allclose(model.log_weights.exp(), weights / weights.sum(), rtol=1e-12)
    vectors = model.vectors.permute(2, 0, 1)  # from the decomposition
    rebuilt = vectors * model.values.mT[:, None] @ vectors.mT
    np.testing.assert_allclose(rebuilt, covariances, rtol=1e-9, atol=1e-17)
    assert model.class_names == ("A", "B")
    for label, angle in enumerate((45, 225)):  # the trunks
        first = model.means[1016 * label + 7] / torch.tensor([1.3136, 1.3844]) - torch.tensor([0.0030, 0.0325])
        assert float(torch.rad2deg(torch.atan2(first[1], first[0]))) % 360 == pytest.approx(angle)
    x, _ = model.sample(20000, torch.Generator().manual_seed(0))
    assert x.std() == pytest.approx(0.5, abs=0.06) and x.abs().max() < 1.6  # sigma_data is 0.5 in the paper


def test_trees_depend_on_depth_and_seed():
    schedule = SCHEDULES["edm"]
    assert len(AutoguidanceTree(depth=3, seed=2, schedule=schedule).means) == 2 * 7 * 8
    assert not torch.equal(*(AutoguidanceTree(depth=1, seed=seed, schedule=schedule).means for seed in (2, 3)))
    for change in ({"depth": 0}, {"depth": 11}, {"seed": -1}):
        with pytest.raises(ValueError, match="depth must be 1 to 10 and seed 0 to 2"):
            AutoguidanceTree(**{"depth": 2, "seed": 2} | change, schedule=schedule)


SPACE = {"dimensions": 64, "classes": 3, "components": 2, "spread": 0.25, "std": 0.5, "seed": 0}


def test_the_high_dimensional_mixture_has_its_labels_and_spread():
    model = HighDimensional(**SPACE, schedule=SCHEDULES["edm"])
    assert model.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert float(model.means.std()) == pytest.approx(0.25, rel=0.1)
    x, y = model.sample(3000, torch.Generator().manual_seed(0))
    centres = torch.stack([model.means[:2].mean(0), model.means[2:4].mean(0), model.means[4:].mean(0)])
    spread = ((model.means.reshape(3, 2, 64) - centres[:, None]) ** 2).mean()
    assert float(((x - centres[y]) ** 2).mean()) == pytest.approx(float(0.25 + spread), rel=0.02)
    other = HighDimensional(**SPACE | {"seed": 1}, schedule=SCHEDULES["edm"])
    assert not torch.equal(model.means, other.means)


WRONG = {"dimensions": 0, "classes": 0, "components": 0, "seed": -1, "spread": -0.1, "std": 0.0}


@pytest.mark.parametrize("name", WRONG)
def test_high_dimensional_refuses_arguments_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name}.* must be at least|{name} above 0|seed 0 to 2"):
        HighDimensional(**SPACE | {name: WRONG[name]}, schedule=SCHEDULES["edm"])
