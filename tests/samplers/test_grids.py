"""Grids: their formulas, exact ends, legal levels, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from closed_forms import karras_levels

from diffguide.samplers.discrete_grids import Leading, Linspace, Trailing
from diffguide.samplers.grids import CustomGrid, Grid, Karras, ModelLevels, Quadratic, UniformLogSNR, UniformT, snap
from diffguide.schedules import EDM, Cosine, Flow, Linear

LOW, HIGH = -2 * math.log(0.002), -2 * math.log(80)
SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "linear": Linear(12.0), "edm": EDM(LOW, HIGH)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
EXACT_EDM = EDM(math.inf, HIGH)
GRIDS = {
    "t": UniformT(),
    "log-snr": UniformLogSNR(),
    "karras": Karras(7.0, None, None),
    "karras-1": Karras(1.0, None, None),
    "quadratic": Quadratic(),
    "trailing": Trailing(1000),
}


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
        (lambda *a: Karras(1e-3, None, None), None, "rho must be"),
        (
            UniformLogSNR(),
            Flow(12.0, -math.inf),
            "log-SNR -inf to 12: take .*uniform_t",
        ),
        (UniformLogSNR(), EXACT_EDM, "needs finite ends"),
        (Karras(7.0, None, None), EXACT_EDM, "got 0 to 80; set noise_level_min"),
        (Karras(7.0, 0.002, None), Flow(math.inf, -math.inf), "ends in noise alone: .* noise_level_max"),
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
    with pytest.raises(ValueError, match="take sampler.steps=4 at most"):
        UniformT()(Linear(12.0), 5, torch.linspace(0, 1, 5, dtype=torch.float64))


def test_quadratic_grid_is_quadratic():
    np.testing.assert_allclose(Quadratic()(Linear(12.0), 4), [1, 9 / 16, 1 / 4, 1 / 16, 0], atol=1e-15)


def test_a_list_is_taken_as_it_is():
    """Times, or noise levels; the schedule's own ends are those exactly; a level of 0 where the schedule has exact data."""
    times = CustomGrid([1.0, 0.5, 0.1], None)(Linear(12.0), 2)
    assert times.tolist() == [1.0, 0.5, 0.1] and times.dtype == torch.float64
    levels = CustomGrid(None, [80.0, 3.0, 0.1, 0.002])(EDM(LOW, HIGH), 3)
    np.testing.assert_allclose(EDM(LOW, HIGH).noise_level(levels), [80.0, 3.0, 0.1, 0.002], rtol=1e-12)
    assert levels[0] == 1 and levels[-1] == 0
    assert CustomGrid(None, [80.0, 1.0, 0.0])(EXACT_EDM, 2)[-1] == 0
    legal = torch.linspace(0, 1, 11, dtype=torch.float64)
    np.testing.assert_allclose(CustomGrid([1, 0.3, 0.0], None)(Linear(12.0), 2, legal), [1, 0.3, 0])


def test_levels_are_the_models_own():
    legal = torch.tensor([0.0, 0.1, 0.15, 0.4, 0.9, 1.0], dtype=torch.float64)
    assert ModelLevels()(Linear(12.0), 5, legal).tolist() == [1.0, 0.9, 0.4, 0.15, 0.1, 0.0]
    assert ModelLevels()(Linear(12.0), 2, legal).tolist() == [1.0, 0.4, 0.0]


class Broken(Grid):
    def __init__(self, *times):
        self.times = torch.tensor(times, dtype=torch.float64)

    def continuous(self, schedule, steps):
        return self.times


@pytest.mark.parametrize(
    "grid, steps, sentence",
    [
        (Broken(1.0, 0.2, 0.4), 2, "a grid must decrease strictly, this one goes from 0.2 to 0.4"),
        (Broken(1.0, math.nan, 0.4), 2, "must decrease strictly, this one goes from 1 to nan"),
        (Broken(1.1, 0.2, 0.0), 2, "must lie within t = 1 to 0, this one goes from 1.1 to 0"),
        (CustomGrid([1.0, 0.5, 0.5], None), 2, "a grid must decrease strictly, this one goes from 0.5 to 0.5"),
        (CustomGrid([1.0, 0.5, -0.1], None), 2, "must lie within t = 1 to 0, this one goes from 1 to -0.1"),
        (CustomGrid(None, [80.0, 1.0, 0.001]), 2, "noise level 0.001 is outside the schedule's 0.002 to 80"),
        (CustomGrid(None, [80.0, 1.0, 0.0]), 2, "noise level 0 is outside the schedule's 0.002 to 80"),
        (CustomGrid(None, [80.0, -1.0]), 1, "noise level -1 is outside"),
        (CustomGrid(None, [1.0, 2.0]), 1, "a grid must decrease strictly"),
        (CustomGrid([1.0, 0.5, 0.0], None), 4, "set sampler.steps=2, got 4"),
        (Linspace(1000), 1, "grid=linspace needs at least 2 steps"),
        (Linspace(1000), 1001, "1001 steps do not fit into timesteps=1000 of the discrete schedule"),
        (Trailing(10), 11, "11 steps do not fit into timesteps=10"),
        (Leading(1000, 1), 1000, "must lie within t = 1 to 0, this one goes from 1.001 to 0"),
        (ModelLevels(), 3, "grid=levels needs a model with noise levels of its own"),
    ],
)
def test_impossible_grids_raise(grid, steps, sentence):
    with pytest.raises(ValueError, match=sentence):
        grid(EDM(LOW, HIGH), steps)


def test_a_list_must_be_on_the_levels_of_the_model():
    legal = torch.linspace(0, 1, 11, dtype=torch.float64)
    with pytest.raises(ValueError, match="t = 0.33 is not a level .* 0.3"):
        CustomGrid([1.0, 0.33, 0.0], None)(Linear(12.0), 2, legal)
    with pytest.raises(ValueError, match="take sampler.steps=4 at most"):
        ModelLevels()(Linear(12.0), 6, legal[::2][:5])


@pytest.mark.parametrize("lists", [(None, None), ([1.0, 0.0], [80.0, 1.0])])
def test_a_list_is_of_times_or_of_levels(lists):
    with pytest.raises(ValueError, match="one of times and noise_levels"):
        CustomGrid(*lists)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Trailing(0), "timesteps must be"),
        (lambda: Leading(1000, -1), "offset must be"),
    ],
)
def test_impossible_discrete_grids_raise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("offset", [0, 1, 500])
def test_one_step_of_leading_has_nothing_to_remove(offset):
    """It would begin at the lowest index, with pure noise where the model expects data; two begin half-way."""
    with pytest.raises(ValueError, match="grid=leading needs at least 2 steps"):
        Leading(1000, offset)(SCHEDULES["linear"], 1)
    assert Leading(1000, 999)(SCHEDULES["linear"], 1).tolist() == [1.0, 0.0]
    assert Leading(1000, 0)(SCHEDULES["linear"], 2).tolist() == [0.501, 0.001, 0.0]
