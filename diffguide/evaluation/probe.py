"""Checks that a conditional model uses its class label; without that, guidance does nothing."""

from collections.abc import Sequence

import torch

from ..models.protocols import Denoiser

__all__ = ["check_conditioning", "label_effect"]

PROBE_LEVELS = (3.0, 1.0, 0.3)  # noise levels sigma / alpha at which the class of an image matters


@torch.no_grad()
def label_effect(denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu") -> float:
    """How much the class changes the predicted noise, the maximum over noise levels:

        rms(eps(x_t, y) - eps(x_t, y')) / rms(eps(x_t, y)),  y' the next class, or no class if there is only one.

    Arguments:
        denoiser: with classes; one with discrete levels is evaluated at the nearest.
        shape: of one example.
        device: where the denoiser is.
    """
    rng, schedule, found = torch.Generator().manual_seed(0), denoiser.schedule, []
    y = torch.arange(min(denoiser.num_classes, 16), device=device)
    other = (y + 1) % denoiser.num_classes if denoiser.num_classes > 1 else torch.full_like(y, -1)
    for level in PROBE_LEVELS:
        log_snr = -2 * torch.tensor(level, dtype=torch.float64).log()
        t = schedule.t_of(log_snr.clamp(schedule.log_snr_min, schedule.log_snr_max)).clamp(0, 1)
        if denoiser.levels is not None:
            t = denoiser.levels[(denoiser.levels - t).abs().argmin()]
        alpha, sigma = schedule.alpha_sigma(t)
        x_t = (alpha**2 + sigma**2).sqrt().float() * torch.randn(len(y), *shape, generator=rng)
        eps, moved = (denoiser(x_t.to(device), t, label).eps.double() for label in (y, other))
        found.append(float((eps - moved).square().mean().sqrt() / eps.square().mean().sqrt()))
    return max(found)


def check_conditioning(denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
    """Checks that a model with classes uses its class label.

    Raises:
        ValueError: its prediction is the same for all classes.
    """
    if denoiser.num_classes and not (moved := label_effect(denoiser, shape, device)) > 1e-6:
        raise ValueError(
            f"this model has {denoiser.num_classes} classes and ignores them: another class changes its prediction by "
            f"{moved:.1g} of its size, so guidance would do nothing; it was trained without labels, or does not use y"
        )
