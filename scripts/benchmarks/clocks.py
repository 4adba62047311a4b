"""Seconds of calls on a device, measured in alternating rounds, and the device's peak of matrix multiplication."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed
PRODUCTS = 10  # in a row


class Clock:
    """clock(work) -> seconds of one call.

    On a CPU these are CPU seconds of this process, which other processes do not lengthen; with several threads they add up.
    On a GPU they are the seconds between two events, until the device has finished.

    Arguments:
        device: where the work is done.
        wall: whether to take the seconds of the wall on a CPU too.
    """

    def __init__(self, device: torch.device, wall: bool = False):
        self.device, self.now = device, time.perf_counter if wall else time.process_time

    def __call__(self, work: Work, repeats: int = 1) -> float:
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            first.record()
            for _ in range(repeats):
                work()
            last.record()
            last.synchronize()
            return first.elapsed_time(last) / 1e3 / repeats
        started = self.now()
        for _ in range(repeats):
            work()
        return (self.now() - started) / repeats


def alternate(works: Mapping[str, Work], clock: Callable[..., float], rounds: int, **options) -> dict[str, list[float]]:
    """Seconds of each work in every round; the order alternates, because the speed of a machine drifts.

    The first round is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for k in range(rounds + 1):
        for name in works if k % 2 else reversed(works):
            spent = clock(works[name], **options)
            if k:
                seconds[name].append(spent)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """The median over the rounds of the time of one work over that of another in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base]))


def build_product(device: torch.device, dtype: torch.dtype) -> tuple[Work, float]:
    """(Products of two square matrices, which reach the peak of the device; their floating-point operations)."""
    side = PEAK_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def work() -> None:
        for _ in range(PRODUCTS):
            a @ b

    return work, PRODUCTS * 2.0 * side**3
