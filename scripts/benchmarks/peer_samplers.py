"""Runs of the samplers of other libraries on a network of diffguide that predicts v, with classifier-free guidance."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .clocks import Work


@dataclass
class Problem:
    """What is sampled.

    Arguments:
        model: denoiser of diffguide with a backbone (x, log_snr [B], y [B]) -> v.
        noise: standard normals [B, C, H, W].
        labels: classes [B].
        scale: of the guidance, 1 = off.
    """

    model: nn.Module
    noise: Tensor
    labels: Tensor
    scale: float

    @property
    def both_labels(self) -> Tensor:
        """The classes followed by as many rows without one, [2 B]."""
        return torch.cat([self.labels, torch.full_like(self.labels, -1)])

    @property
    def levels(self) -> tuple[float, float]:
        """The lowest and the highest noise level sigma / alpha."""
        return self.model.schedule.noise_level_range

    @property
    def log_snr_range(self) -> tuple[float, float]:
        low, high = self.levels
        return -2 * math.log(high), -2 * math.log(low)

    def guided_v(self, x: Tensor, log_snr: Tensor, both: Tensor) -> Tensor:
        """v with guidance from one call of 2 B rows; log_snr [2 B]."""
        given, free = self.model.backbone(torch.cat([x, x]), log_snr, both).chunk(2)
        return free + self.scale * (given - free)


def run_k_diffusion(problem: Problem, method: str, steps: int) -> Work:
    """sample_heun or sample_dpmpp_2m on Karras levels; the network is wrapped as theirs are, in x_0 + sigma eps."""
    from k_diffusion import sampling

    sampler = {"heun": sampling.sample_heun, "dpmpp_2m": sampling.sample_dpmpp_2m}[method]
    low, high = problem.levels
    levels = sampling.get_sigmas_karras(steps, low, high, device=problem.noise.device)
    both, log_snr_range = problem.both_labels, problem.log_snr_range

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[:, None, None, None]
        alpha = (1 + level * level).rsqrt()
        log_snr = (-2 * sigma.log()).clamp(*log_snr_range)
        scaled = alpha * x
        return alpha * scaled - level * alpha * problem.guided_v(scaled, torch.cat([log_snr, log_snr]), both)

    return torch.no_grad()(lambda: sampler(denoise, problem.noise * high, levels, disable=True))


def run_diffusers(problem: Problem, method: str, steps: int) -> Work:
    """A scheduler in the loop of diffusers' pipelines."""
    from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler

    kind = {"heun": HeunDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}[method]
    device, both = problem.noise.device, problem.both_labels

    @torch.no_grad()
    def run() -> None:
        schedule = kind(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
        schedule.set_timesteps(steps, device=device)
        table = schedule.alphas_cumprod.log() - (1 - schedule.alphas_cumprod).log()
        log_snr, x = table.to(device, torch.float32), problem.noise * schedule.init_noise_sigma
        for t in schedule.timesteps:
            v = problem.guided_v(schedule.scale_model_input(x, t), log_snr[t.long()].expand(len(both)), both)
            x = schedule.step(v, t, x).prev_sample

    return run


def run_azula(problem: Problem, method: str, steps: int) -> Work:
    """HeunSampler, or the Adams-Bashforth sampler of order 2 that azula has for dpmpp_2m; its guidance calls B rows twice."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import CFGDenoiser
    from azula.noise import CosineSchedule
    from azula.sample import HeunSampler, xEABSampler

    log_snr_range = problem.log_snr_range

    class Adapter(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = CosineSchedule()

        def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> DiracPosterior:
            alpha, sigma = self.schedule(t)
            log_snr = (2 * torch.log(alpha / sigma)).clamp(*log_snr_range).expand(len(x_t))
            return DiracPosterior(mean=alpha * x_t - sigma * problem.model.backbone(x_t, log_snr, y))

    kind = {"heun": HeunSampler, "dpmpp_2m": xEABSampler}[method]
    sampler = kind(CFGDenoiser(Adapter()), steps=steps, silent=True)
    given, free = {"y": problem.labels}, {"y": torch.full_like(problem.labels, -1)}
    scale = problem.scale - 1  # 1 + w there
    return torch.no_grad()(lambda: sampler(problem.noise, positive=given, negative=free, guidance=scale))


PEER_SAMPLERS: dict[str, Callable[[Problem, str, int], Work]] = {
    "k-diffusion": run_k_diffusion,
    "diffusers": run_diffusers,
    "azula": run_azula,
}
