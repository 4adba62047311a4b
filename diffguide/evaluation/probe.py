"""Checks that a conditional model uses its class label; otherwise guidance has no effect."""

from collections.abc import Sequence

import torch

from ..models.protocols import Denoiser
from .noise_levels import time_of_log_snr

__all__ = ["check_conditioning", "label_effect"]

PROBE_LEVELS = (3.0, 1.0, 0.3)  # noise levels sigma / alpha at which the prediction depends on the class


@torch.no_grad()
def label_effect(denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu") -> float:
    """The relative change of the predicted noise when the class changes, the maximum over noise levels:

        rms(eps(x_t, y) - eps(x_t, y')) / rms(eps(x_t, y)),  y' the next class, or no class if there is only one.

    Arguments:
        denoiser: with classes.
        shape: of one example.
        device: of the denoiser.
    """
    rng = torch.Generator().manual_seed(0)
    schedule = denoiser.schedule
    effects = []
    y = torch.arange(min(denoiser.num_classes, 16), device=device)
    other = (y + 1) % denoiser.num_classes if denoiser.num_classes > 1 else torch.full_like(y, -1)
    for level in PROBE_LEVELS:
        log_snr = -2 * torch.tensor(level, dtype=torch.float64).log()
        log_snr = log_snr.clamp(schedule.log_snr_min, schedule.log_snr_max)
        t = time_of_log_snr(log_snr, schedule, denoiser.levels)
        alpha, sigma = schedule.alpha_sigma(t)
        x_t = (alpha**2 + sigma**2).sqrt().float() * torch.randn(len(y), *shape, generator=rng)
        eps, other_eps = (denoiser(x_t.to(device), t, label).eps.double() for label in (y, other))
        effects.append(float((eps - other_eps).square().mean().sqrt() / eps.square().mean().sqrt()))
    return max(effects)


def check_conditioning(denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
    """Raises ValueError if a model with classes has the same prediction for all classes."""
    if denoiser.num_classes and not (effect := label_effect(denoiser, shape, device)) > 1e-6:
        raise ValueError(
            f"this model has {denoiser.num_classes} classes and ignores them: another class changes its prediction by "
            f"{effect:.1g} of its size, so guidance has no effect; it was trained without labels, or does not use y"
        )
