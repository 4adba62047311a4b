"""The exact flow map of a denoiser: where the probability-flow ODE carries a point from one time to another."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser
from ..runtime.ranges import check_range
from ..schedules import broadcast_rows

__all__ = ["flow_map"]

LAST_NOISE_LEVEL = (
    1e-5  # sigma / alpha from which a DDIM step reaches sigma = 0: its error is of the order of the square
)


@torch.no_grad()
def flow_map(
    denoiser: Denoiser,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    y: Condition | None = None,
    tolerance: float = 1e-10,
) -> Tensor:
    """x_s on the path of the probability-flow ODE through x_t, of a guided denoiser too; s may lie above or below t.

    In the angle phi = atan(sigma / alpha) and z = x / sqrt(alpha^2 + sigma^2) the ODE is dz / dphi = cos(phi) eps -
    sin(phi) x_0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D), which is regular at both ends. It is integrated by the
    method of Dormand & Prince of order 8 (Hairer, Norsett & Wanner 1993), all rows with the same steps.

    Arguments:
        denoiser: exact (an oracle, guided or not) or trained; stateful ones have no flow.
        x_t: [B, ...]; the integration is in float64.
        t, s: float64, 0-d or [B].
        tolerance: of a step, relative, and absolute in units of the data; in (0, 1).

    Returns:
        x_s in the shape of x_t, float64.

    Raises:
        ValueError: a stateful denoiser, or an integration that fails.
    """
    from scipy.integrate import solve_ivp

    check_range("tolerance", tolerance, "(0, 1)")
    if denoiser.stateful:
        raise ValueError("flow_map needs a denoiser without memory and noise, this one depends on its earlier calls")
    schedule, shape = denoiser.schedule, x_t.shape
    t, s = torch.broadcast_tensors(t.double().cpu(), s.double().cpu())
    start, end = find_angle(denoiser, t), find_angle(denoiser, s)
    stop = end.clamp(min=math.atan(LAST_NOISE_LEVEL))
    place = time_along(denoiser, t, s, start, stop)

    def slope(share: float, z: Tensor) -> Tensor:
        phi = start + share * (stop - start)
        time = place(share, phi)
        scale = torch.hypot(*schedule.alpha_sigma(time, len(shape)))
        x_0, eps = denoiser(scale * z, time, y)
        phi, way = (broadcast_rows(part, len(shape)) for part in (phi, stop - start))
        return way * (phi.cos() * eps.double() - phi.sin() * x_0.double())

    z = x_t.double() / torch.hypot(*schedule.alpha_sigma(t, len(shape)))
    solution = solve_ivp(
        lambda share, flat: slope(share, torch.from_numpy(flat).reshape(shape)).flatten().numpy(),
        (0.0, 1.0),
        z.cpu().flatten().numpy(),
        method="DOP853",
        t_eval=(1.0,),
        rtol=tolerance,
        atol=tolerance,
    )
    if not solution.success:
        raise ValueError(f"flow_map: {solution.message}")
    z = torch.from_numpy(solution.y[:, -1].copy()).reshape(shape)
    if bool((stop > end).any()):
        z = finish(denoiser, z, stop, end, y)
    return (torch.hypot(*schedule.alpha_sigma(s, len(shape))) * z).to(x_t.device)


def find_angle(denoiser: Denoiser, t: Tensor) -> Tensor:
    """phi = atan(sigma / alpha) in [0, pi / 2], in the shape of t."""
    alpha, sigma = denoiser.schedule.alpha_sigma(t)
    return torch.atan2(sigma, alpha)


def time_along(
    denoiser: Denoiser, t: Tensor, s: Tensor, start: Tensor, stop: Tensor
) -> Callable[[float, Tensor], Tensor]:
    """The time at an angle: t at share 0, within the two ends everywhere."""
    low, high = torch.minimum(t, s), torch.maximum(t, s)

    def find(share: float, phi: Tensor) -> Tensor:
        if share == 0 and bool((start == phi).all()):
            return t
        between = denoiser.schedule.t_of(-2 * phi.tan().log())
        return torch.minimum(torch.maximum(between, low), high)

    return find


def finish(denoiser: Denoiser, z: Tensor, stop: Tensor, end: Tensor, y: Condition | None) -> Tensor:
    """z at the angle 0 from `stop`, in the rows that end there."""
    schedule = denoiser.schedule
    time = schedule.t_of(-2 * stop.tan().log()).clamp(0, 1)
    alpha, sigma = schedule.alpha_sigma(time, z.ndim)
    x_0 = denoiser(torch.hypot(alpha, sigma) * z, time, y).x_0.double()
    return torch.where(broadcast_rows(stop > end, z.ndim), x_0, z)
