"""Every schedule, as the tests of schedules, parameterizations and objectives use them."""

import math

from diffguide.schedules import (
    EDM,
    TRE,
    VE,
    VP,
    Cosine,
    Flow,
    Linear,
    Monotone,
    ResolutionShift,
    ScaledLinear,
    Sigmoid,
    SigmoidBeta,
    SquaredCosine,
    SubVP,
    ZeroTerminalSNR,
)

SCHEDULES = {
    "cosine": Cosine(12.0, -10.0),
    "cosine-exact": Cosine(math.inf, -math.inf),
    "flow": Flow(12.0, -12.0),
    "flow-exact": Flow(math.inf, -math.inf),
    "sigmoid": Sigmoid(12.0, -10.0, -3.0, 3.0, 1.0),
    "sigmoid-skewed": Sigmoid(9.0, -12.0, 0.0, 3.0, 0.3),
    "sigmoid-exact": Sigmoid(math.inf, -math.inf, -3.0, 3.0, 0.9),
    "tre": TRE(12.0, -10.0),
    "tre-exact": TRE(math.inf, -math.inf),
    "linear": Linear(12.0),
    "linear-cut": Linear(10.0, -7.3),
    "scaled_linear": ScaledLinear(9.0, None, 0.00085, 0.012, 1000),
    "sigmoid_beta": SigmoidBeta(12.0, None, 1e-4, 0.02, 1000),
    "squaredcos_cap_v2": SquaredCosine(12.0, None, 1000, 0.008, 0.999),
    "squaredcos_cap_v2-cut": SquaredCosine(12.5, -9.0, 400, 0.0, 0.9),
    "vp": VP(12.0, None, 0.1, 20.0),
    "sub_vp": SubVP(18.2, None, 0.1, 20.0),
    "sub_vp-exact-data": SubVP(math.inf, -9.0, 0.1, 20.0),
    "ve": VE(-2 * math.log(0.01), -2 * math.log(50)),
    "edm": EDM(-2 * math.log(0.002), -2 * math.log(80)),
    "edm-exact": EDM(math.inf, -2 * math.log(80)),
    "zero_terminal-exact": ZeroTerminalSNR(Linear(12.0), 0.001),
    "zero_terminal-cosine-exact": ZeroTerminalSNR(Cosine(12.0, -10.0), 0.0),
    "resolution_shift": ResolutionShift(Cosine(12.0, -10.0), 256, 64),
    "resolution_shift-flow-exact": ResolutionShift(Flow(math.inf, -math.inf), 128, 64),
    "monotone": Monotone(13.3, -5.0, False, 64),
    "monotone-ends": Monotone(13.3, -5.0, True, 64),
}
FINITE = {
    name: schedule
    for name, schedule in SCHEDULES.items()
    if not math.isinf(schedule.log_snr_max) and not math.isinf(schedule.log_snr_min)
}
for name in ("monotone", "monotone-ends"):  # as after training: no longer a straight line
    for k, part in enumerate(SCHEDULES[name].parameters()):
        part.data += (
            2 * (part.new_ones(part.shape).cumsum(0) if part.ndim else part.new_ones(())).mul(0.37 * k + 1).sin()
        )
        part.requires_grad_(False)


def counted(schedule):
    """The schedule, and the list of the shapes of times at which its log-SNR is evaluated."""
    calls, log_snr = [], schedule.log_snr
    schedule.__dict__["log_snr"] = lambda t: calls.append(getattr(t, "shape", ())) or log_snr(t)
    return schedule, calls
