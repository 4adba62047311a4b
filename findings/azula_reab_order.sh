#!/usr/bin/env bash
# azula 0.11.1: the sampler REABSampler is of first order, whatever `order` is.
#
# Behaviour: twice as many steps halve the error for order=1, 2 and 3; order=3 is no better than order=2.
# Surprise: the class's documentation has `order` as the order of the multistep method. The step that it writes down,
#   with sqrt(1 + e^(2s)) before the integral, is of that order: done here in NumPy, order=2 divides its error by four.
#   The code takes alpha at the end of the step and sigma at its start, which for a variance-preserving schedule is a
#   factor near 1 instead of 1. xEABSampler of the same package, measured so, has the orders 1, 2 and 3.
# Source: azula/sample.py, REABSampler.__call__ (its sibling xEABSampler is right); Zheng et al., DPM-Solver-v3, arXiv
#   2310.13268, of which it is a multistep relative.
# Output seen (largest error, of 50, 100, 200, 400 steps, and the order that the last two tell):
#   azula, order=1: 7.9e-03 4.0e-03 2.0e-03 1.0e-03, order 0.99
#   azula, order=2: 5.7e-03 2.9e-03 1.5e-03 7.6e-04, order 0.98
#   azula, order=3: 6.2e-03 3.1e-03 1.5e-03 7.7e-04, order 1.00
#   xEAB, order=2: 6.4e-04 1.5e-04 3.5e-05 8.5e-06, order 2.04
#   xEAB, order=3: 1.0e-04 1.6e-05 2.2e-06 2.8e-07, order 2.94
#   as documented, order=2: 6.4e-04 1.6e-04 4.0e-05 1.0e-05, order 2.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile azula==0.11.1 torch==2.14.1 numpy==2.4.6 scipy==1.17.1
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import VPSchedule
from azula.sample import REABSampler, xEABSampler
from scipy.integrate import quad, solve_ivp

CENTRES, WEIGHTS, VARIANCE = np.array([-1.0, 1.3]), np.array([0.4, 0.6]), 0.25
FIRST, LAST, START = 0.9, 0.2, np.array([[-1.5], [-0.3], [0.2], [1.1]])


def levels(t):
    """azula's VPSchedule, by its documentation."""
    alpha = np.exp(np.log(1e-3) * t**2)
    return alpha, np.sqrt(1 - alpha**2 + 1e-6)


def denoised(x, alpha, sigma):
    """E[x_0 | x_t] of a mixture of two Gaussians."""
    total = alpha**2 * VARIANCE + sigma**2
    logits = np.log(WEIGHTS) - (x - alpha * CENTRES) ** 2 / (2 * total)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return (shares * (CENTRES + alpha * VARIANCE / total * (x - alpha * CENTRES))).sum(-1, keepdims=True)


class Exact(Denoiser):
    def __init__(self):
        super().__init__()
        self.schedule = VPSchedule()

    def forward(self, x_t, t, **options):
        alpha, sigma = self.schedule(t)
        return DiracPosterior(mean=torch.from_numpy(denoised(x_t.numpy(), float(alpha), float(sigma))))


def documented(steps, order):
    """The step of the class's documentation: everything in u = log(sigma / alpha) and x / alpha."""
    alpha, sigma = levels(np.linspace(FIRST, LAST, steps + 1))
    u, x, history = np.log(sigma / alpha), START / alpha[0], []
    for k in range(steps):
        e = np.exp(u[k])
        a = e**2 / (1 + e**2)
        history = [*history, ((1 - a) * x - denoised(alpha[k] * x, alpha[k], sigma[k])) / np.sqrt(a)][-order:]
        nodes, integral = u[k + 1 - len(history) : k + 1], 0
        for j, value in enumerate(history):

            def weight(v, j=j):
                others = [nodes[i] for i in range(len(nodes)) if i != j]
                return np.exp(v) / (1 + np.exp(2 * v)) * np.prod([(v - o) / (nodes[j] - o) for o in others])

            integral = integral + value * quad(weight, u[k], u[k + 1], epsabs=1e-14)[0]
        root = np.sqrt(1 + np.exp(2 * u[k + 1]))
        x = root / np.sqrt(1 + np.exp(2 * u[k])) * x + root * integral
    return alpha[-1] * x


def truth():
    """dx / du = x - E[x_0 | x] in x / alpha, by an adaptive method of eighth order."""
    ends = levels(np.array([FIRST, LAST]))
    u = np.log(ends[1] / ends[0])

    def slope(v, x):
        alpha = np.interp(v, *GRID)
        return x - denoised(alpha * x[:, None], alpha, alpha * np.exp(v))[:, 0]

    solved = solve_ivp(slope, u, START[:, 0] / ends[0][0], method="DOP853", rtol=1e-11, atol=1e-11)
    return ends[0][1] * solved.y[:, -1:]


alphas, sigmas = levels(np.linspace(LAST, FIRST, 2_000_001))
GRID, counts, orders = (np.log(sigmas / alphas), alphas), (50, 100, 200, 400), {}
exact = truth()
for name, order in (("azula", 1), ("azula", 2), ("azula", 3), ("xEAB", 2), ("xEAB", 3), ("as documented", 2)):
    errors = []
    for n in counts:
        if name != "as documented":
            kind = xEABSampler if name == "xEAB" else REABSampler
            sampler = kind(Exact(), order=order, start=FIRST, stop=LAST, steps=n, silent=True, dtype=torch.float64)
            found = sampler(torch.from_numpy(START)).numpy()
        else:
            found = documented(n, order)
        errors.append(np.abs(found - exact).max())
    orders[name, order] = np.log2(errors[-2] / errors[-1])
    print(f"{name}, order={order}: {' '.join(f'{e:.1e}' for e in errors)}, order {orders[name, order]:.2f}")
assert orders["as documented", 2] > 1.8, "the expectation itself is wrong"
if max(orders["azula", 2], orders["azula", 3]) > 1.5:
    sys.exit("azula behaves differently now")
PYTHON
