"""The time at which a model is evaluated for a given noise level."""

from torch import Tensor

from ..schedules import Schedule

__all__ = ["time_of_log_snr"]


def time_of_log_snr(log_snr: Tensor, schedule: Schedule, levels: Tensor | None) -> Tensor:
    """The time t in [0, 1] of each log-SNR, in its shape.

    Arguments:
        levels: times of a model with discrete noise levels, [L]: the result is the nearest of them. None = any time.
    """
    t = schedule.t_of(log_snr).clamp(0, 1)
    if levels is None:
        return t
    levels = levels.to(t.device)
    return levels[(levels - t[..., None]).abs().argmin(-1)]
