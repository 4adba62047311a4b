"""Tables of a run: the same bits as the schedule, computed once, never where they would be wrong."""

import copy
import math

import pytest
import torch
from all_schedules import SCHEDULES, counted
from torch import nn

from diffguide.schedules import Cosine, Monotone, ResolutionShift, Tabulated, same_schedule, tabulate
from diffguide.schedules.tabulated import MAX_TIMES

GRID = torch.linspace(1, 0, 8, dtype=torch.float64)
BETWEEN = torch.tensor(0.123456, dtype=torch.float64)


def same(one, other) -> bool:
    """Whether two values or tuples of values have the same bits."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(torch.as_tensor(one).nan_to_num(7.0), torch.as_tensor(other).nan_to_num(7.0))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_values_are_those_of_the_schedule_bit_for_bit(schedule):
    table = Tabulated(copy.deepcopy(schedule), GRID)
    for t in [*GRID, BETWEEN, 0.25, GRID[2:5]]:
        for name in ("log_snr", "alpha_sigma", "noise_level", "levels", "rate"):
            assert same(getattr(table, name)(t), getattr(schedule, name)(t)), (name, t)
    for t, s in zip(GRID[:-1], GRID[1:]):
        assert same(table.noise_fall(t, s), float(torch.exp((schedule.log_snr(s) - schedule.log_snr(t)) / 2)))
    for k, t in enumerate(GRID):
        assert all(same(values[k], one) for values, one in zip(table.grid, schedule.levels(t)))
    for name in ("log_snr_max", "log_snr_min", "zero_terminal_snr", "is_learned", "learned_ends", "noise_level_range"):
        assert getattr(table, name) == getattr(schedule, name)
    assert same(table.t_of(schedule.log_snr(BETWEEN)), schedule.t_of(schedule.log_snr(BETWEEN)))
    assert same(table.scales(schedule.log_snr(GRID), 3), schedule.scales(schedule.log_snr(GRID), 3))


def test_each_time_is_evaluated_once():
    schedule, calls = counted(Cosine())
    table = Tabulated(schedule, GRID)
    for _ in range(3):
        for t in [*GRID, BETWEEN]:
            table.log_snr(t), table.alpha_sigma(t), table.noise_level(t.clone()), table.noise_fall(GRID[0], t)
    assert len(calls) == len(GRID) + 1
    table.log_snr(GRID), table.log_snr(GRID)
    assert len(calls) == len(GRID) + 3, "times [B] go to the schedule"


def test_a_table_is_bounded():
    long = torch.linspace(1, 0, MAX_TIMES + 10, dtype=torch.float64)
    table, schedule = Tabulated(Cosine(), long), Cosine()
    assert all(same(table.levels(t), schedule.levels(t)) for t in [*long[-20:], *long[:20]])
    assert len(table.table) <= MAX_TIMES and len(table.keys) == MAX_TIMES


def test_a_differentiated_or_mapped_time_is_not_looked_up():
    schedule = Cosine()
    table, t = Tabulated(schedule, GRID), GRID[3].clone()
    slope = schedule.rate(t)
    assert torch.allclose(torch.func.jvp(table.log_snr, (t,), (torch.ones_like(t),))[1], slope)
    assert torch.allclose(torch.func.grad(table.log_snr)(t), slope)
    assert torch.equal(torch.func.vmap(table.log_snr)(GRID[1:-1]), schedule.log_snr(GRID[1:-1]))
    wanted = GRID[3].clone().requires_grad_()
    (slope_found,) = torch.autograd.grad(table.log_snr(wanted), wanted)
    assert torch.allclose(slope_found, slope)


def test_a_time_first_met_within_a_transform_is_valid_after_it():
    table = Tabulated(Cosine(), GRID)
    torch.func.grad(lambda x: x * table.noise_level(BETWEEN))(torch.tensor(2.0, dtype=torch.float64))
    assert same(table.levels(BETWEEN), Cosine().levels(BETWEEN))
    assert not torch._C._functorch.is_functorch_wrapped_tensor(table.noise_level(BETWEEN))


def test_a_learned_schedule_keeps_its_gradients():
    schedule = Monotone(width=8)
    table = Tabulated(schedule, GRID)
    with torch.no_grad():
        assert not table.log_snr(GRID[2]).requires_grad
    found = torch.autograd.grad(table.log_snr(GRID[2]), schedule.height)[0]
    assert torch.equal(found, torch.autograd.grad(schedule.log_snr(GRID[2]), schedule.height)[0])
    assert float(found.abs().max()) > 0


def test_a_table_made_in_inference_mode_takes_part_in_gradients_later():
    schedule = Cosine()
    with torch.inference_mode():
        table = tabulate(schedule, GRID.clone())
        table.noise_level(BETWEEN)
    assert tabulate(schedule, GRID) is table
    x = torch.ones((), requires_grad=True)
    (x * table.noise_level(BETWEEN) * table.noise_level(GRID[2])).backward()
    assert x.grad is not None


def test_a_fixed_schedule_keeps_its_last_table_until_it_changes():
    schedule = Cosine()
    first = tabulate(schedule, GRID)
    assert tabulate(schedule, GRID.clone()) is first and tabulate(first, GRID) is first
    other = tabulate(schedule, GRID[:-1])
    assert other is not first and len(other.keys) == len(GRID) - 1
    before = other.log_snr(GRID[3])
    schedule.end = 0.9
    changed = tabulate(schedule, GRID[:-1])
    assert changed is not other and torch.equal(changed.log_snr(GRID[3]), schedule.log_snr(GRID[3]))
    assert not torch.equal(changed.log_snr(GRID[3]), before)


def test_a_schedule_with_parts_or_parameters_is_tabulated_anew():
    shifted, learned = ResolutionShift(Cosine(), 128, 64), Monotone(width=8)
    for schedule in (shifted, learned):
        assert tabulate(schedule, GRID) is not tabulate(schedule, GRID)
    shifted.schedule.end = 0.9
    assert same(tabulate(shifted, GRID).log_snr(GRID[3]), shifted.log_snr(GRID[3]))


def test_a_table_is_no_part_of_a_model():
    """Neither of its parameters and state, nor of what is copied and saved."""
    model = nn.Module()
    model.schedule = Monotone(width=8)
    table = tabulate(model.schedule, GRID)
    assert not list(table.parameters()) and not table.state_dict() and not list(table.modules())[1:]
    fixed = Cosine()
    tabulate(fixed, GRID)
    assert not fixed.state_dict() and same(copy.deepcopy(fixed).log_snr(GRID), fixed.log_snr(GRID))


def test_tables_of_one_schedule_are_of_the_same_schedule():
    one, other = Cosine(), Cosine()
    table = Tabulated(one, GRID)
    assert same_schedule(table, one) and same_schedule(one, Tabulated(table, GRID)) and not same_schedule(table, other)
    assert table.noise_level_range == pytest.approx((math.exp(-6), math.exp(5)))
