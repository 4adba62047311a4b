"""Increments of one Brownian path per sample over torch.randn of the same shape, on the device."""

import statistics
from collections.abc import Iterator

import torch

from diffguide.randomness import Noise
from diffguide.schedules import Cosine, Schedule

from .clocks import Work, alternate, median_ratio
from .rows import Row, Session

PART = "noise"
STEPS = 20
SCHEDULE = Cosine(12.0, -10.0)
SHAPES = ((64, 3, 32, 32), (256, 3, 64, 64))
BARS = {"cpu": "at most 6", "cuda": "at most 4"}


def build_run(shape: tuple[int, ...], device: torch.device, schedule: Schedule = SCHEDULE, steps: int = STEPS) -> Work:
    """The increments of a run of `steps` equal steps of t."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    pairs = list(zip(times[:-1], times[1:]))

    def run() -> None:
        noise = Noise(range(shape[0]), shape[1:], schedule, device)
        for t, s in pairs:
            noise.increment(t, s)

    return run


def measure_noise(session: Session, shapes: tuple[tuple[int, ...], ...] = SHAPES, steps: int = STEPS) -> Iterator[Row]:
    """The increments of all steps of a run, and as many draws of torch.randn."""
    device = session.device
    for shape in shapes:

        def draw() -> None:
            for _ in range(steps):
                torch.randn(*shape, device=device)

        works = {"Noise.increment": build_run(shape, device, steps=steps), "torch.randn": draw}
        seconds = alternate(works, session.clock, session.rounds)
        case = f"{' x '.join(map(str, shape))}, {steps} steps"
        for what, spent in seconds.items():
            milliseconds = 1e3 * statistics.median(spent) / steps
            bar = BARS[device.type] if what != "torch.randn" else ""
            ratio = median_ratio(seconds, what, "torch.randn")
            figures = {"milliseconds_per_step": milliseconds}
            yield Row(PART, case, what, f"{milliseconds:.2f} ms a step", ratio, "torch.randn", bar, figures)
