"""The excess error of a denoiser, of trained models too; the error of samplers at few evaluations."""

import math

import pytest
import torch

import diffguide
from diffguide.evaluation.denoising import relative_excess_risk
from diffguide.models.protocols import Denoiser, Prediction
from diffguide.oracles import AutoguidanceTree, GaussianMixture, GMM2DLaw
from diffguide.samplers import DEIS, IPNDM, LMS, DPMpp2M, DPMpp3M, Heun, UniPC
from diffguide.samplers.grids import Karras
from diffguide.schedules import EDM, Cosine
from diffguide.train import main as train


class Off(Denoiser):
    """The exact denoiser plus a constant in x_0."""

    num_classes, has_null = 1, True

    def __init__(self, oracle, offset: float):
        self.oracle, self.offset, self.schedule = oracle, offset, oracle.schedule

    def __call__(self, x_t, t, y=None):
        prediction = self.oracle(x_t, t, y)
        return Prediction(prediction.x_0 + self.offset, prediction.eps)


@pytest.fixture
def gaussian():
    """N(0, 0.25 I) in the plane."""
    return GaussianMixture([1.0], [[0.0, 0.0]], 0.25, [0], Cosine(12.0, -12.0))


def test_the_exact_denoiser_has_no_excess(gaussian):
    assert relative_excess_risk(Off(gaussian, 0.0), gaussian, [-8, 0, 8], 100, seed=0) == pytest.approx(
        [0, 0], abs=1e-10
    )


def test_a_constant_error_has_the_closed_form(gaussian):
    """The mean of offset^2 / (l sigma^2 / (alpha^2 l + sigma^2)) over the middles of eighths of a band."""
    expected = []
    for low, high in ((-4, 0), (0, 6)):
        snr = [math.exp(low + (high - low) * (k + 0.5) / 8) for k in range(8)]
        expected.append(sum(0.1**2 / (0.25 / (r * 0.25 + 1)) for r in snr) / 8)
    assert relative_excess_risk(Off(gaussian, 0.1), gaussian, [-4, 0, 6], 20000, seed=0) == pytest.approx(
        expected, rel=0.03
    )


@pytest.mark.parametrize("edges", [[0, 0], [2, 1], [-13, 0], [0, 13]])
def test_invalid_bands_raise(gaussian, edges):
    with pytest.raises(ValueError, match="edges .*-12 to 12"):
        relative_excess_risk(gaussian, gaussian, edges, 10, seed=0)


def test_training_reaches_a_small_excess(tmp_path):
    """20 s of v and of eps: v is accurate at all levels, eps only where it is well conditioned."""
    found = {}
    for objective in ("v", "eps"):
        train(
            ["experiment=gmm2d", "guidance=none", "objective/levels=uniform_log_snr", f"objective={objective}",
             "training.images=80000", "training.batch_size=512", "training.ema_images=10000", "sampler.steps=2",
             "training.sample_images=100000", f"output_root={tmp_path}", f"name={objective}"]
        )  # fmt: skip
        denoiser = diffguide.load(tmp_path / f"train/{objective}/v001")
        found[objective] = relative_excess_risk(
            denoiser, GMM2DLaw(denoiser.schedule), [-8, -4, -2, 0, 4, 8], 2000, seed=0
        )
    assert max(found["v"]) < 0.15, found
    assert max(found["eps"][3:]) < 0.15, found
    assert found["eps"][0] > 1, found


def test_multistep_methods_beat_heun_at_few_evaluations():
    """On the tree: the distance to the endpoint of the exact flow from the same noise, below 12 evaluations."""
    schedule = EDM(log_snr_max=-2 * math.log(0.002), log_snr_min=-2 * math.log(5.0), rho=7.0)
    tree, grid = AutoguidanceTree(depth=7, seed=2, schedule=schedule), Karras(7.0, None, None)
    rng = torch.Generator().manual_seed(1)
    x_0, _ = tree.sample(64, rng)
    x = x_0 + 5 * torch.randn(x_0.shape, generator=rng, dtype=torch.float64)

    def end(sampler):
        return sampler(tree, x, sampler.times(tree))

    exact = end(Heun(400, grid))
    multistep = {
        "dpmpp_2m": DPMpp2M,
        "dpmpp_3m": DPMpp3M,
        "unipc": lambda *a: UniPC(*a, order=2),
        "deis": lambda *a: DEIS(*a, order=3),
        "lms": lambda *a: LMS(*a, order=3),
        "ipndm": lambda *a: IPNDM(*a, order=3),
    }
    for evaluations in (6, 8, 10):
        heun = (end(Heun(evaluations // 2, grid)) - exact).square().mean()
        for name, make in multistep.items():
            assert (end(make(evaluations, grid)) - exact).square().mean() < heun, (name, evaluations)
