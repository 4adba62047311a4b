"""Values that depend on the time alone, computed once in a run.

A run asks for the same few times again and again: its sampler, its guidance and its network each need alpha, sigma and the
noise level of every time of the grid. These are scalars on the CPU, which cost as much as the arithmetic on the images of a
small network.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import KEPT_TABLE, Levels, Schedule, as_time, time_key

__all__ = ["Tabulated", "TimeTable", "is_transformed", "ordinary_tensors", "same_schedule", "tabulate"]

MAX_TIMES = 1024  # in a table; a longer run starts a new one, since a step asks for its own times only


class TimeTable(dict):
    """Values by time, or by the time and what else they depend on, of one run: at most `MAX_TIMES`."""

    def add(self, key: Any, value: Any) -> Any:
        """Stores a value and returns it."""
        if len(self) >= MAX_TIMES:
            self.clear()
        self[key] = value
        return value


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """For values that outlive the call: without graph, and valid outside of an inference mode that is on."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def is_transformed() -> bool:
    """Whether a transform of torch.func is active, whose tensors are not valid after it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def forward(name: str) -> property:
    """An attribute of the tabulated schedule."""
    return property(lambda self: getattr(self.source, name))


class Tabulated(Schedule):
    """The same schedule for one run: its values at each single time are computed once.

    Times [B], and times that are differentiated, go to the schedule itself; so do all times where gradients of a learned
    schedule may be wanted. Transcendental functions are evaluated at one time each, since the vectorised ones of torch may
    differ in the last bit; sums, products and quotients do not.

    Arguments:
        source: the schedule; one that is tabulated already is taken apart first.
        times: of the grid, float64 [N] on the CPU.

    Attributes:
        grid: the values at the first `MAX_TIMES` times, [N] each.
        keys: these times as numbers.
    """

    source: Schedule
    log_snr_max = forward("log_snr_max")
    log_snr_min = forward("log_snr_min")
    finest_log_snr = forward("finest_log_snr")
    learned_ends = forward("learned_ends")
    normalisation = forward("normalisation")
    is_learned = forward("is_learned")

    def __init__(self, source: Schedule, times: Tensor):
        nn.Module.__init__(self)
        source = source.source if isinstance(source, Tabulated) else source
        self.__dict__["source"] = source  # no submodule: its parameters are those of the model
        self.fixed = not source.is_learned
        with ordinary_tensors():
            self.times = times.clone()
            self.grid = self.compute(self.times[:MAX_TIMES].unbind())
            self.keys = self.times[:MAX_TIMES].tolist()
            self.table = TimeTable(zip(self.keys, map(Levels, *(values.unbind() for values in self.grid))))
        self.falls = TimeTable()

    def compute(self, times: Sequence[Tensor]) -> Levels:
        """The values at single times, [N] each."""
        log_snrs = [self.source.log_snr(t) for t in times]
        log_snr = torch.stack(log_snrs)
        alpha, sigma = map(torch.stack, zip(*map(self.source.scales, log_snrs)))
        log_level = -log_snr / 2
        return Levels(log_snr, alpha, sigma, log_level, torch.stack([each.exp() for each in log_level.unbind()]))

    def level(self, t: Any) -> Levels | None:
        """The values at a single time; None for any other time."""
        key = time_key(t)
        if key is None or not (self.fixed or not torch.is_grad_enabled()):
            return None
        found = self.table.get(key)
        if found is None and not is_transformed():
            with ordinary_tensors():
                found = self.table.add(key, self.source.levels(as_time(t)))
        return found

    def levels(self, t) -> Levels:
        return self.level(t) or self.source.levels(t)

    def noise_fall(self, t, s) -> float:
        key = time_key(t), time_key(s)
        if None in key or not self.fixed:
            return super().noise_fall(t, s)
        found = self.falls.get(key)
        return self.falls.add(key, super().noise_fall(t, s)) if found is None else found

    def log_snr(self, t) -> Tensor:
        level = self.level(t)
        return self.source.log_snr(t) if level is None else level.log_snr

    def alpha_sigma(self, t, ndim: int = 1) -> tuple[Tensor, Tensor]:
        level = self.level(t)
        return self.source.alpha_sigma(t, ndim) if level is None else level[1:3]

    def noise_level(self, t) -> Tensor:
        level = self.level(t)
        return self.source.noise_level(t) if level is None else level.noise_level

    def t_of(self, log_snr) -> Tensor:
        return self.source.t_of(log_snr)

    def rate(self, t) -> Tensor:
        return self.source.rate(t)

    def log_snr_and_rate(self, t: Tensor, hook: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        return self.source.log_snr_and_rate(t, hook)

    def __getattr__(self, name: str) -> Any:
        """What only the schedule itself has."""
        if "source" not in self.__dict__:  # while it is copied
            raise AttributeError(name)
        return getattr(self.source, name)


def tabulate(schedule: Schedule, times: Tensor) -> Tabulated:
    """The schedule with its values at the times of a grid, float64 [N] on the CPU.

    A fixed schedule without tensors of its own keeps its last table for the next run over the same grid, such as the next
    batch; setting an attribute of the schedule drops it.
    """
    source = schedule.source if isinstance(schedule, Tabulated) else schedule
    kept = source.__dict__.get(KEPT_TABLE)
    if kept is not None and torch.equal(kept.times, times):
        return kept
    table = Tabulated(source, times)
    own = source._parameters or source._buffers or source._modules
    if not own and type(table.grid.log_snr) is Tensor and not is_transformed():
        source.__dict__[KEPT_TABLE] = table
    return table


def same_schedule(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules are one object, tabulated or not."""
    one, other = (s.source if isinstance(s, Tabulated) else s for s in (one, other))
    return one is other
