"""Grids: their formulas, exact ends, legal levels, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from closed_forms import karras_levels

from diffguide.samplers.grids import Karras, UniformLogSNR, UniformT, snap
from diffguide.schedules import EDM, Cosine, Flow, Linear

LOW, HIGH = -2 * math.log(0.002), -2 * math.log(80)
SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "linear": Linear(12.0), "edm": EDM(LOW, HIGH)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
EXACT_EDM = EDM(math.inf, HIGH)
GRIDS = {
    "t": UniformT(), "log-snr": UniformLogSNR(), "karras": Karras(7.0, None, None), "karras-1": Karras(1.0, None, None)
}  # fmt: skip


@every_schedule
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_grids_decrease_from_one_to_zero(grid, schedule, steps):
    times = grid(schedule, steps)
    assert times.shape == (steps + 1,) and times.dtype == torch.float64 and times.device.type == "cpu"
    assert bool((times[1:] < times[:-1]).all()) and times[0] == 1 and times[-1] == 0


@every_schedule
@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_grid_is_equation_5(schedule, rho):
    ends = [float(schedule.noise_level(t)) for t in (0, 1)]
    found = schedule.noise_level(Karras(rho, None, None)(schedule, 20))
    np.testing.assert_allclose(found, karras_levels(21, *ends, rho), rtol=1e-9)
    inner = Karras(rho, 0.02, 5.0)(schedule, 20)  # 20 levels, then a jump to t = 0
    np.testing.assert_allclose(schedule.noise_level(inner[:-1]), karras_levels(20, 0.02, 5.0, rho), rtol=1e-9)
    assert inner[-1] == 0 and bool((inner[1:] < inner[:-1]).all())


def test_karras_grid_accepts_the_ends_of_the_schedule_as_levels():
    """EDM's schedule is made from 0.002 and 80; naming the same numbers must not fail by a rounding."""
    times = Karras(7.0, 0.002, 80.0)(EDM(LOW, HIGH), 18)
    torch.testing.assert_close(times, Karras(7.0, None, None)(EDM(LOW, HIGH), 18), rtol=0, atol=1e-12)


def test_uniform_log_snr_is_uniform():
    steps = Cosine(12.0, -10.0).log_snr(UniformLogSNR()(Cosine(12.0, -10.0), 22)).diff()
    torch.testing.assert_close(steps, torch.ones_like(steps), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "grid, schedule, sentence",
    [
        (lambda *a: Karras(0.0, None, None), None, "rho must be positive, got 0"),
        (UniformLogSNR(), Flow(12.0, -math.inf), "needs finite ends, the schedule has log-SNR -inf to 12"),
        (UniformLogSNR(), EXACT_EDM, "needs finite ends"),
        (Karras(7.0, None, None), EXACT_EDM, "got 0 to 80; set noise_level_min"),
        (Karras(7.0, 0.002, None), Flow(math.inf, -math.inf), "got 0.002 to inf; set .* and noise_level_max"),
        (Karras(7.0, 0.001, None), EDM(LOW, HIGH), "within the schedule's 0.002 to 80, got 0.001"),
        (Karras(7.0, None, 81.0), EDM(LOW, HIGH), "got 0.002 to 81"),
        (Karras(7.0, 3.0, 3.0), EDM(LOW, HIGH), "got 3 to 3"),
    ],
)
def test_grids_refuse_levels_that_do_not_exist(grid, schedule, sentence):
    with pytest.raises(ValueError, match=sentence):
        grid(schedule, 10)


def test_explicit_levels_replace_infinite_ends():
    schedule = Flow(math.inf, -math.inf)
    levels = schedule.noise_level(Karras(7.0, 0.002, 80.0)(schedule, 10))
    np.testing.assert_allclose(levels, [*karras_levels(10, 0.002, 80.0, 7.0), 0.0], rtol=1e-9)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("steps, count", [(9, 10), (20, 1001), (700, 1001), (1000, 1001)])
def test_snapped_times_are_distinct_and_legal(grid, steps, count):
    """Also where a grid crowds at one end and neighbours want the same level; levels come in any order."""
    levels = torch.arange(count, dtype=torch.float64) / (count - 1)
    times = grid(Linear(12.0), steps, levels)
    assert len(times) == steps + 1 and bool(torch.isin(times, levels).all())
    assert bool((times[1:] < times[:-1]).all()) and times[0] == 1 and times[-1] == 0


def test_snapping_takes_the_nearest_level():
    times = torch.tensor([1.0, 0.62, 0.27, 0.0], dtype=torch.float64)
    snapped = snap(times, torch.linspace(0, 1, 11, dtype=torch.float64))
    torch.testing.assert_close(snapped, torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert snap(times, None) is times


def test_too_few_levels_are_refused():
    with pytest.raises(ValueError, match="5 steps need 6 distinct noise levels, this model has 5"):
        UniformT()(Linear(12.0), 5, torch.linspace(0, 1, 5, dtype=torch.float64))
