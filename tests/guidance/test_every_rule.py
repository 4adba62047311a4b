"""What holds for every rule, whatever its formula."""

import math

import pytest
import torch
from rule_sides import SCHEDULES, TIME, numbers, sides

from diffguide.guidance.feedback import Feedback
from diffguide.guidance.flow_rules import SMC, VAGS, AdaMaG
from diffguide.guidance.norms import NormLimit, PosteriorMeanCap, RectifiedRatio
from diffguide.guidance.projections import APG, FDG, TCFG
from diffguide.guidance.rules import CFGPlusPlus, CFGZero, Linear, Mambo, Rescale, Threshold
from diffguide.models.protocols import Prediction

RULES = {
    "linear": Linear(), "rescale": Rescale(0.7), "apg": APG(0.0, 5.0, 0.0), "cfg_zero": CFGZero(0), "tcfg": TCFG(),
    "fdg": FDG(0.5), "mambo_g": Mambo(2.0), "threshold": Threshold(0.9), "cfgpp": CFGPlusPlus(),
    "smc_cfg": SMC(), "adamag": AdaMaG(), "vags": VAGS(), "pmc_cfg": PosteriorMeanCap(), "norm_limit": NormLimit(),
    "z_image": NormLimit(None, 0.9, 0.0, 1.0), "recfg": RectifiedRatio(), "fbg": Feedback(0.9),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_inner_disagreement_survives(rule):
    """A rule that changes x_0 moves eps along with it: sides that were re-noised with another eps stay so, by as much."""
    schedule = SCHEDULES["vp"]
    alpha, sigma = numbers(schedule)
    x_t, strong, weak = sides(schedule)
    jump = 0.1
    found = rule(
        *(Prediction(side.x_0, side.eps + jump) for side in (strong, weak)),
        torch.tensor(0.6).double(),
        x_t,
        TIME,
        schedule,
        None,
    )
    left = (alpha * found.x_0 + sigma * found.eps - x_t) / sigma
    if not isinstance(rule, CFGPlusPlus):  # which has one of its own on top
        torch.testing.assert_close(left, torch.full_like(left, jump), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_level_per_row_is_the_level_of_the_row(rule):
    """t [B] with a scale [B, 1, ...] gives row by row what 0-d numbers give."""
    schedule = SCHEDULES["vp"]
    x_t, strong, weak = sides(schedule)
    times, scales = torch.tensor([0.3, 0.55, 0.8]).double(), torch.tensor([0.5, 0.9, 0.2]).double()
    found = rule(strong, weak, scales[:, None, None, None], x_t, times, schedule, None)
    for k in range(3):
        row = slice(k, k + 1)
        a, b = (Prediction(*(field[row] for field in side)) for side in (strong, weak))
        alone = rule(a, b, scales[k], x_t[row], times[k], schedule, None)
        for field, expected in zip(found, alone):
            torch.testing.assert_close(field[row], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make, sentence", [
    (lambda: Rescale(1.5), "phi must be in"), (lambda: APG(math.nan, 1.0, 0.0), "eta must be"),
    (lambda: APG(0.0, 0.0, 0.0), "norm_threshold must be"), (lambda: APG(0.0, 1.0, 1.0), "momentum must be in"),
    (lambda: CFGZero(-1), "zero_init_steps must be"), (lambda: Mambo(-1.0), "damping must be"),
    (lambda: Threshold(0.0), "quantile must be in"), (lambda: FDG(-1.0), "low must be"),
])  # fmt: skip
def test_numbers_out_of_range(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_row_that_is_not_finite_stops_no_other(rule, value):
    """It stays so itself, and the other rows are bit for bit those of a batch without it."""
    schedule = SCHEDULES["vp"]
    x_t, strong, weak = sides(schedule)
    others, scale = [0, 2], torch.tensor(0.6).double()
    expected = rule(
        *(Prediction(*(f[others] for f in s)) for s in (strong, weak)), scale, x_t[others], TIME, schedule, None
    )
    for broken in (strong, weak):
        x_0, eps = (field.clone() for field in broken)
        x_0[1], eps[1] = value, -value
        pair = (Prediction(x_0, eps) if side is broken else side for side in (strong, weak))
        found = rule(*pair, scale, x_t, TIME, schedule, None)
        for field, own in zip(found, expected):
            assert torch.equal(field[others], own)
        assert not bool(found.x_0[1].isfinite().all())
