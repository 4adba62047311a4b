"""Scripts of few steps: calls are counted as networks are evaluated, and solvers have no more than learned jumps."""

import few_calls
import flow_map_truth
import pytest
import torch
from exact_jumps import SCHEDULE
from networks import unet

from diffguide.models.evaluation_counters import count_evaluations
from diffguide.models.jumps import JumpModel
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.models.protocols import Tally
from diffguide.oracles import GMM2DLaw


def test_a_guided_step_has_two_calls_and_a_jump_has_one():
    tally = Tally()
    teacher = Preconditioned(unet(num_classes=10), SCHEDULE, V(), True).eval()
    student = JumpModel(unet(num_classes=10, further_inputs=2), SCHEDULE, V(), True, (1.0, 4.0)).eval()
    pair = [count_evaluations(model, tally)[0] for model in (teacher, student)]
    methods = few_calls.list_methods(*pair, 2.0, True)
    chosen = ("jump 1", "jump 4", "ddim 4", "heun 2", "dpmpp_2m 2")
    found = {name: few_calls.count_calls(*methods[name], tally) for name in chosen}
    assert found == {"jump 1": 1, "jump 4": 4, "ddim 4": 8, "heun 2": 4, "dpmpp_2m 2": 4}


def test_the_picture_has_a_line_per_method_of_the_first_pair(tmp_path):
    row = {"pair": 0, "calls": 4, "fd": 2.0, "recall": 0.5}
    rows = [row | {"method": name} for name in ("jump 4", "heun 2", "heun 18 of the student")] + [row | {"pair": 1}]
    few_calls.draw_figure(tmp_path / "few.png", rows)
    assert (tmp_path / "few.png").stat().st_size > 1000


@pytest.mark.parametrize("name", list(flow_map_truth.SOLVERS))
def test_a_solver_has_at_most_as_many_evaluations_as_jumps(name):
    law, x, y = GMM2DLaw(SCHEDULE), torch.randn(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    found = flow_map_truth.solve(name, 2, law, law, x, y)
    assert [grid for grid, _ in found] == list(flow_map_truth.GRIDS)
    assert all(ends.shape == (3, 2) and bool(ends.isfinite().all()) for _, ends in found)


def test_the_table_states_the_ratio_to_the_best_solver():
    facts = {"law": "tree", "scale": 2.0, "evaluations": 4}
    rows = [{**facts, "method": name, "error": 0.5 + k, "sd": ""} for k, name in enumerate(flow_map_truth.SOLVERS)]
    (*_, line) = flow_map_truth.compare([*rows, {**facts, "method": "jump", "error": 0.1, "sd": 0.01}])
    assert line.startswith("| tree | 2 | 4 | 0.5000 |") and line.endswith("| 0.1000 ± 0.0100 | 0.20 |")
