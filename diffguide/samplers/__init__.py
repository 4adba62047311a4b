"""Samplers: sampler(denoiser, x, times, y, noise, on_step) -> x, and the grids of times they follow."""

from .adaptive import Dopri5
from .ancestral import DDIM, DDPM, Euler, EulerAncestral, ExactDDPM
from .base import Sampler, SamplingError
from .chains import Chain
from .deis import DEIS, LogRhoDEIS
from .descent import Descent
from .discrete_grids import Leading, Linspace, Trailing
from .dpmpp import DPMpp2M, DPMpp3M
from .dpmpp_sde import DPMpp2MSDE, DPMpp3MSDE, SASolver
from .fkc import FKC
from .generate import generate
from .grids import CustomGrid, Grid, Karras, ModelLevels, Quadratic, UniformLogSNR, UniformT
from .heun import Heun
from .inversion import DDIMInversion
from .jump import Jump
from .langevin import AnnealedLangevin, LangevinPC
from .maruyama import EulerMaruyama, ForwardDiffusion, SigmaDiffusion, SineDiffusion
from .mcmc import MCMC
from .multistep import IPNDM, LMS
from .restart import Restart
from .sgld import SGLD
from .singlestep import DPM2, PNDM, DPMpp2S
from .travel import TimeTravel
from .unipc import UniPC

__all__ = [
    "DDIM", "DDPM", "DEIS", "DPM2", "FKC", "IPNDM", "LMS", "MCMC", "PNDM", "SGLD", "AnnealedLangevin", "Chain",
    "CustomGrid", "DDIMInversion", "DPMpp2M", "DPMpp2MSDE", "DPMpp2S", "DPMpp3M", "DPMpp3MSDE", "Descent", "Dopri5",
    "Euler", "EulerAncestral", "EulerMaruyama", "ExactDDPM", "ForwardDiffusion", "Grid", "Heun", "Jump", "Karras",
    "LangevinPC", "Leading", "Linspace", "LogRhoDEIS", "ModelLevels", "Quadratic", "Restart", "SASolver", "Sampler",
    "SamplingError", "SigmaDiffusion", "SineDiffusion", "TimeTravel", "Trailing", "UniPC", "UniformLogSNR", "UniformT",
    "generate",
]  # fmt: skip
