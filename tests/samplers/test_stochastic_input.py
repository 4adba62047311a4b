"""What the stochastic samplers refuse."""

import math

import pytest
import torch
from all_samplers import published
from closed_forms import ExactMixture, two_classes

from diffguide.guidance import ClassifierFree
from diffguide.models.protocols import ExactDenoiser
from diffguide.randomness import Noise
from diffguide.samplers import (
    AnnealedLangevin,
    DPMpp2MSDE,
    EulerAncestral,
    EulerMaruyama,
    ExactDDPM,
    Heun,
    LangevinPC,
    Restart,
    SASolver,
)
from diffguide.samplers.grids import UniformT
from diffguide.samplers.maruyama import SigmaDiffusion
from diffguide.schedules import EDM, Cosine

LOW, HIGH = -2 * math.log(0.002), -2 * math.log(80)
HEUN, GRID = Heun(5, UniformT()), UniformT()


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: EulerAncestral(9, GRID, 1.5, 1.0), "eta must be"),
        (lambda: EulerAncestral(9, GRID, 1.0, -1.0), "s_noise must be"),
        (lambda: EulerMaruyama(9, GRID, SigmaDiffusion(math.nan)), "scale must be"),
        (lambda: Heun(9, GRID, churn=-1.0), "churn must be"),
        (lambda: Heun(9, GRID, 1.0, 5.0, 5.0), "churn_min and churn_max must be"),
        (lambda: DPMpp2MSDE(9, GRID, -0.1, 1.0), "eta must be"),
        (lambda: SASolver(9, GRID, 5, 0, 1.0, 0.0, 1.0), "predictor_order must be"),
        (lambda: SASolver(9, GRID, 2, -1, 1.0, 0.0, 1.0), "corrector_order must be"),
        (lambda: SASolver(9, GRID, 2, 2, math.inf, 0.0, 1.0), "tau must be"),
        (lambda: SASolver(9, GRID, 2, 2, 1.0, 2.0, 1.0), "tau_min and tau_max must be"),
        (lambda: LangevinPC(HEUN, 1, 0.0), "snr must be"),
        (lambda: LangevinPC(HEUN, 0, 0.1), "corrections must be"),
        (lambda: AnnealedLangevin(9, GRID, 1, 1.5), "step_size must be"),
        (lambda: LangevinPC(LangevinPC(HEUN, 1, 0.1), 1, 0.1), "inner must be .* got LangevinPC"),
        (lambda: LangevinPC(AnnealedLangevin(9, GRID, 1, None), 1, 0.1), "inner must be .* got AnnealedLangevin"),
        (lambda: Restart(Restart(HEUN, [[0.1, 0.3, 2, 1]]), [[0.1, 0.3, 2, 1]]), "inner must not be a Restart"),
        (lambda: Restart(HEUN, []), "intervals is empty"),
        (lambda: Restart(HEUN, [[0.3, 0.1, 2, 1]]), "0 < low < high"),
        (lambda: Restart(HEUN, [[0.1, 0.3, 2]]), "intervals must be"),
        (lambda: Restart(HEUN, [[0.1, 0.3, 2.5, 1]]), "whole steps and repeats"),
    ],
)
def test_impossible_arguments_raise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_what_a_denoiser_does_not_allow_is_refused():
    schedule = EDM(LOW, HIGH)
    denoiser = ExactMixture(two_classes(), schedule)

    class Certain(ExactMixture, ExactDenoiser):
        pass

    with pytest.raises(ValueError, match="the exact covariance"):
        ExactDDPM(3, UniformT()).times(denoiser)
    with pytest.raises(ValueError, match="take guidance=none"):
        ExactDDPM(3, UniformT()).times(ClassifierFree(Certain(two_classes(), schedule), 2.0, [0.0, math.inf]))
    with pytest.raises(ValueError, match="0.002 to 80, got 0.1 to 81"):
        Restart(HEUN, [[0.1, 81.0, 2, 1]]).times(denoiser)
    denoiser.levels = torch.linspace(0, 1, 41, dtype=torch.float64)
    with pytest.raises(ValueError, match="sampler=ddim"):
        Heun(5, UniformT(), churn=1.0).times(denoiser)


def test_restart_keeps_to_the_levels_of_a_model():
    schedule, seen = Cosine(12.0, -10.0), []

    class Levels(ExactMixture):
        levels = torch.linspace(0, 1, 41, dtype=torch.float64)

        def __call__(self, x_t, t, y=None):
            assert float(t) in self.levels.tolist()
            seen.append(float(t))
            return super().__call__(x_t, t, y)

    sampler, denoiser = Restart(published(Heun(10, UniformT())), [[0.3, 2.0, 3, 2]]), Levels(two_classes(), schedule)
    sampler(denoiser, torch.randn(4, 2), sampler.times(denoiser), noise=Noise(range(4), (2,), schedule))
    assert len(seen) == 20 + 12
    crowded = Restart(Heun(10, UniformT()), [[0.3, 0.5, 20, 2]])
    with pytest.raises(ValueError, match="distinct noise levels"):
        crowded(denoiser, torch.randn(4, 2), crowded.times(denoiser), noise=Noise(range(4), (2,), schedule))
