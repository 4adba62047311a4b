"""The denoising objective against a NumPy computation, its noise levels and weights against their densities."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from diffguide.backbones import MLP, UNet
from diffguide.objectives import Denoising
from diffguide.objectives.base import drop_condition
from diffguide.objectives.levels import LogNormal, UniformTime
from diffguide.objectives.weights import MinSNR, Uniform
from diffguide.parameterizations import EDM, X0, Eps, Flow, V
from diffguide.schedules import EDM as EDMSchedule
from diffguide.schedules import Cosine, Linear
from diffguide.schedules import Flow as FlowSchedule

PARAMETERIZATIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(), "edm": EDM(0.5)}
SCHEDULES = {
    "cosine": Cosine(6.0, -5.0), "flow": FlowSchedule(6.0, -6.0), "linear": Linear(10.0), "edm": EDMSchedule(6.0, -4.0)
}  # fmt: skip
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Known(nn.Module):
    """A network whose output is known, and which keeps what it was given."""

    num_classes = 10

    def forward(self, x, log_snr, y=None):
        self.seen = x, log_snr, y
        return 0.7 * x + 0.1 * log_snr.reshape(-1, *[1] * (x.ndim - 1))


def objective(parameterization=None, schedule=None, weight=None, levels=None, p_uncond=0.0) -> Denoising:
    return Denoising(
        Known(), schedule or SCHEDULES["cosine"], parameterization or V(), weight or Uniform(),
        levels or UniformTime(stratified=True), p_uncond=p_uncond,
    )  # fmt: skip


x_0 = torch.rand(6, 2, 3, 3, generator=generator(1), dtype=torch.float64) * 2 - 1


def replay(name: str, schedule_name: str, weight):
    """Runs the objective; from what the network saw, in NumPy: the loss, alpha, sigma, x_t, F, and eps."""
    schedule = SCHEDULES[schedule_name]
    method = objective(PARAMETERIZATIONS[name], schedule, weight)
    loss = method(x_0, None, generator())
    scaled, log_snr, _ = (None if a is None else a.numpy() for a in method.model.backbone.seen)
    output = 0.7 * scaled + 0.1 * log_snr.reshape(-1, 1, 1, 1)
    snr = np.exp(log_snr).reshape(-1, 1, 1, 1)
    if schedule_name == "edm":
        alpha, sigma = np.ones_like(snr), snr**-0.5
    elif schedule_name == "flow":
        alpha, sigma = 1 / (1 + snr**-0.5), 1 / (1 + snr**0.5)
    else:
        alpha, sigma = (1 + 1 / snr) ** -0.5, (1 + snr) ** -0.5
    scale = {"flow": alpha + sigma, "edm": np.sqrt(sigma**2 + 0.25 * alpha**2)}.get(name, np.sqrt(alpha**2 + sigma**2))
    x_t = scale * scaled
    return loss, alpha, sigma, x_t, output, (x_t - alpha * x_0.numpy()) / sigma


def target(name, alpha, sigma, eps):
    """What each paper's network is trained to say."""
    x, r, w = x_0.numpy(), np.sqrt(alpha**2 + sigma**2), np.sqrt(sigma**2 + 0.25 * alpha**2)
    return {
        "x0": x, "eps": eps, "v": (alpha * eps - sigma * x) / r, "flow": eps - x,
        "edm": (sigma * x / 0.5 - alpha * 0.5 * eps) / w,
    }[name]  # fmt: skip


@every_schedule_name if False else pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_the_loss_is_the_mean_square_of_the_networks_error(name, schedule_name):
    loss, alpha, sigma, _, output, eps = replay(name, schedule_name, Uniform())
    expected = ((output - target(name, alpha, sigma, eps)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(loss.per_example, expected, rtol=1e-9)
    np.testing.assert_allclose(loss.terms["mse"], expected, rtol=1e-9)
    assert np.abs(eps).max() < 5 and 0.6 < eps.var() < 1.5
