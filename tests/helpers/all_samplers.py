"""Every sampler by name, on a grid that every schedule has: a function of the number of steps."""

import math

import pytest

from diffguide.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun
from diffguide.samplers.adaptive import Dopri5
from diffguide.samplers.ancestral import EulerAncestral
from diffguide.samplers.deis import DEIS, LogRhoDEIS
from diffguide.samplers.dpmpp import DPMpp3M
from diffguide.samplers.dpmpp_sde import DPMpp2MSDE, DPMpp3MSDE, SASolver
from diffguide.samplers.grids import UniformT
from diffguide.samplers.langevin import AnnealedLangevin, LangevinPC
from diffguide.samplers.maruyama import EulerMaruyama, ForwardDiffusion, SigmaDiffusion
from diffguide.samplers.multistep import IPNDM, LMS
from diffguide.samplers.restart import Restart
from diffguide.samplers.singlestep import DPM2, PNDM, DPMpp2S
from diffguide.samplers.travel import TimeTravel
from diffguide.samplers.unipc import UniPC

SAMPLERS = {
    "ddim": lambda steps: DDIM(steps, UniformT(), eta=0.0),
    "ddim-1": lambda steps: DDIM(steps, UniformT(), eta=1.0),
    "euler": lambda steps: Euler(steps, UniformT()),
    "ddpm": lambda steps: DDPM(steps, UniformT(), variance=0.0),
    "ddpm-large": lambda steps: DDPM(steps, UniformT(), variance=1.0),
    "heun": lambda steps: Heun(steps, UniformT()),
    "dpmpp_2m": lambda steps: DPMpp2M(steps, UniformT()),
    "dpmpp_3m": lambda steps: DPMpp3M(steps, UniformT()),
    "unipc-1": lambda steps: UniPC(steps, UniformT(), order=1),
    "unipc-2": lambda steps: UniPC(steps, UniformT(), order=2),
    "unipc-3": lambda steps: UniPC(steps, UniformT(), order=3),
    "deis": lambda steps: DEIS(steps, UniformT(), order=3),
    "deis_log_rho": lambda steps: LogRhoDEIS(steps, UniformT(), order=3),
    "lms": lambda steps: LMS(steps, UniformT(), order=4),
    "ipndm": lambda steps: IPNDM(steps, UniformT(), order=4),
    "pndm": lambda steps: PNDM(steps, UniformT()),
    "dpm2": lambda steps: DPM2(steps, UniformT()),
    "dpmpp_2s": lambda steps: DPMpp2S(steps, UniformT()),
    "dopri5": lambda steps: Dopri5(steps, UniformT(), 0.05, 0.05, 1000, 0.002),
    "heun-churn": lambda steps: Heun(steps, UniformT(), churn=2.0, churn_min=0.05, s_noise=1.01),
    "euler_ancestral": lambda steps: EulerAncestral(steps, UniformT(), eta=1.0, s_noise=1.0),
    "euler_maruyama": lambda steps: EulerMaruyama(steps, UniformT(), SigmaDiffusion(1.0)),
    "euler_maruyama-forward": lambda steps: EulerMaruyama(steps, UniformT(), ForwardDiffusion(1.0)),
    "dpmpp_2m_sde": lambda steps: DPMpp2MSDE(steps, UniformT(), eta=1.0, s_noise=1.0),
    "dpmpp_3m_sde": lambda steps: DPMpp3MSDE(steps, UniformT(), eta=1.0, s_noise=1.0),
    "sa_solver": lambda steps: SASolver(steps, UniformT(), 3, 3, tau=1.0, tau_min=0.05, tau_max=5.0),
    "langevin_pc": lambda steps: LangevinPC(DDPM(steps, UniformT(), variance=1.0), corrections=1, snr=0.16),
    "annealed_langevin": lambda steps: AnnealedLangevin(steps, UniformT(), corrections=2, step_size=None),
    "restart": lambda steps: Restart(Heun(steps, UniformT()), [[0.1, 0.5, 1, 2]]),
    "restart-ddpm": lambda steps: Restart(DDPM(steps, UniformT(), variance=0.0), [[0.2, 1.0, 1, 2]]),
    "time_travel": lambda steps: TimeTravel(DDPM(steps, UniformT(), variance=0.0), 1, [0.0, float("inf")]),
}


def published(sampler):
    """The sampler with its method as the paper has it, in steps of any width: no step of first order in its place."""
    sampler.max_fall, sampler.corrects = math.inf, False
    return sampler


every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
