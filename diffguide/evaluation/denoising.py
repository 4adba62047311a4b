"""How well a denoiser denoises, where the truth is known."""

from collections.abc import Sequence

import torch

from ..denoisers import Denoiser
from ..oracles import Oracle

__all__ = ["excess"]


@torch.no_grad()
def excess(
    denoiser: Denoiser, oracle: Oracle, edges: Sequence[float], n: int, seed: int, conditional: bool = True, levels: int = 8
) -> list[float]:  # fmt: skip
    """E ||D(x_t) - E[x_0 | x_t]||^2 / E ||x_0 - E[x_0 | x_t]||^2 per band of log-SNR: what training has left, 0 = perfect.

    The posterior variance below is the error of the perfect denoiser, so that 0.03 is a mean squared error 3 % above the
    smallest one possible. In a band it is the mean of the ratios at levels of equal distance.

    Arguments:
        denoiser: under test, on the CPU.
        oracle: the law of its data, with the denoiser's schedule.
        edges: of the bands, increasing, within the schedule's ends; B + 1 of them.
        n: noised examples per level.
        seed: of the examples.
        conditional: whether both get the examples' labels, or no condition.
        levels: per band.

    Returns:
        One ratio per band.

    Raises:
        ValueError: edges that do not increase, or lie outside the schedule.
    """
    schedule, rng = denoiser.schedule, torch.Generator().manual_seed(seed)
    if any(low >= high for low, high in zip(edges, edges[1:])) or not (
        schedule.log_snr_min <= edges[0] and edges[-1] <= schedule.log_snr_max
    ):
        raise ValueError(
            f"edges must increase within the schedule's log-SNR {schedule.log_snr_min:g} to {schedule.log_snr_max:g}, "
            f"got {list(edges)}"
        )
    bands = []
    for low, high in zip(edges, edges[1:]):
        ratios = []
        for k in range(levels):
            t = schedule.t_of(torch.tensor(low + (high - low) * (k + 0.5) / levels, dtype=torch.float64))
            alpha, sigma = schedule.alpha_sigma(t)
            x_0, y = oracle.sample(n, rng)
            x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
            y = y if conditional else None
            exact = oracle(x_t, t, y).x_0
            error = (denoiser(x_t.float(), t, y).x_0.double() - exact).square().mean()
            ratios.append(float(error / (x_0 - exact).square().mean()))
        bands.append(sum(ratios) / levels)
    return bands
