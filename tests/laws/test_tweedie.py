"""Every schedule with every parameterization: one mixture, one truth, read from an exact network."""

import numpy as np
import pytest
import torch
from all_schedules import SCHEDULES
from closed_forms import two_classes

from diffguide.backbones import Backbone
from diffguide.models.parameterizations import EDM, X0, Eps, Flow, Score, V
from diffguide.models.preconditioned import Preconditioned

PARAMETERIZATIONS = {"x0": X0(), "eps": Eps(), "score": Score(), "v": V(), "flow": Flow(), "edm": EDM(0.5)}
MIXTURE = two_classes()


class Exact(Backbone):
    """p E[x_0 | x_t] + q E[eps | x_t] of the mixture: what a network that predicts so would have learned.

    It is given c_in x_t and the log-SNR, and works at alpha = 1 whatever the schedule.
    """

    num_classes = 2

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x, log_snr, y=None):
        s = np.exp(-log_snr.numpy() / 2)[:, None]
        r = np.sqrt(1 + s**2)
        c_in = {"flow": 1 / (1 + s), "edm": 1 / np.sqrt(s**2 + 0.25)}.get(self.name, 1 / r)
        x_t = x.numpy() / c_in
        x_0, eps = MIXTURE.mean(x_t, 1, s[:, 0]), -s * MIXTURE.score(x_t, 1, s[:, 0])
        return torch.from_numpy(
            {
                "x0": x_0,
                "eps": eps,
                "score": -r * eps / s,
                "v": (eps - s * x_0) / r,
                "flow": eps - x_0,
                "edm": (s * x_0 / 0.5 - 0.5 * eps) / np.sqrt(s**2 + 0.25),
            }[self.name]
        )


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_tweedie_at_every_level(kind, name):
    """x_0 = (x_t + sigma^2 score) / alpha and eps = -sigma score, to 1e-9 where the log-SNR is within +-20."""
    schedule = SCHEDULES[kind]
    if schedule.zero_terminal_snr and PARAMETERIZATIONS[name].needs_signal:
        with pytest.raises(ValueError, match="zero terminal SNR"):
            Preconditioned(Exact(name), schedule, PARAMETERIZATIONS[name], has_null=True)
        return
    model = Preconditioned(Exact(name), schedule, PARAMETERIZATIONS[name], has_null=True)
    t = torch.linspace(0.002, 0.998, 40, dtype=torch.float64).repeat_interleave(5)
    t = t[schedule.log_snr(t).abs() <= 20]
    assert len(t) > 100
    alpha, sigma = (part.numpy() for part in schedule.alpha_sigma(t))
    rng = np.random.default_rng(0)
    x_t = alpha[:, None] * MIXTURE.sample(len(t), rng)[0] + sigma[:, None] * rng.standard_normal((len(t), 2))
    x_0, eps = model(torch.from_numpy(x_t), t)
    score = MIXTURE.score(x_t, alpha, sigma)
    np.testing.assert_allclose(eps, -sigma[:, None] * score, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(x_0, MIXTURE.mean(x_t, alpha, sigma), rtol=1e-9, atol=1e-9)
    tweedie = (x_t + sigma[:, None] ** 2 * score) / alpha[:, None]
    np.testing.assert_allclose(x_0, tweedie, rtol=1e-9, atol=1e-9)
