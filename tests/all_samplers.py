"""Every sampler by name, on a grid that every schedule has: a function of the number of steps."""

import pytest

from diffguide.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun
from diffguide.samplers.grids import UniformT

SAMPLERS = {
    "ddim": lambda steps: DDIM(steps, UniformT(), eta=0.0),
    "ddim-1": lambda steps: DDIM(steps, UniformT(), eta=1.0),
    "euler": lambda steps: Euler(steps, UniformT()),
    "ddpm": lambda steps: DDPM(steps, UniformT(), variance=0.0),
    "ddpm-large": lambda steps: DDPM(steps, UniformT(), variance=1.0),
    "heun": lambda steps: Heun(steps, UniformT()),
    "dpmpp_2m": lambda steps: DPMpp2M(steps, UniformT()),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
