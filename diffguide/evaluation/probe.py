"""Does a network listen to its condition? One that does not makes samples of no class, and guidance does nothing."""

from collections.abc import Sequence

import torch

from ..models.protocols import Denoiser

__all__ = ["check_conditioning", "label_effect"]

PROBE_LEVELS = (3.0, 1.0, 0.3)  # noise levels sigma / alpha, where the class of an image is open


@torch.no_grad()
def label_effect(denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu") -> float:
    """How much the class moves the prediction of the noise, the largest over noise levels:

        rms(eps(x_t, y) - eps(x_t, y')) / rms(eps(x_t, y)),  y' the next class; where there is one class, none.

    Arguments:
        denoiser: with classes; a model of legal times is asked at the nearest.
        shape: of one example.
        device: where it lives.
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
    """Holds a conditional model against its promise.

    Raises:
        ValueError: a model with classes whose answer is the same for all of them.
    """
    if denoiser.num_classes and not (moved := label_effect(denoiser, shape, device)) > 1e-6:
        raise ValueError(
            f"this model has {denoiser.num_classes} classes and ignores them: another class moves its prediction by "
            f"{moved:.1g} of its size, so guidance would do nothing; it never saw labels, or its network does not use y"
        )
