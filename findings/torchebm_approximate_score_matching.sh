#!/usr/bin/env bash
# torchebm 0.8.9: ScoreMatching(hessian_method="approx") learns a density that is too wide, by the factor of the dimension.
#
# Behaviour: on data N(0, I) in d dimensions, the energies precision * |x|^2 / 2 have their least loss at precision = 1 / d.
#   hessian_method="exact", and SlicedScoreMatching of the same package, have it at 1. In one dimension all agree.
# Surprise: "approx" is documented as a finite-difference estimate of the Hessian's trace, hence of the same loss. The
#   product of a probe with the Hessian and the probe is the trace in expectation (Hutchinson); the code divides it by d as
#   well, so the smoothness term weighs d times too little. For an image of 3,072 numbers the learned scores would be
#   3,072 times too small. float64 is used here, so that the step of 1e-5 is not the cause.
# Source: torchebm/losses/score_matching.py, ScoreMatching._approx_score_matching; Hyvarinen 2005, "Estimation of
#   non-normalized statistical models by score matching", theorem 1: E[ |s|^2 / 2 + tr(ds/dx) ], s = -grad E.
# Output seen:
#    1 dimensions: least loss at precision 0.95 (approx), 0.95 (exact); expected 1.00
#    2 dimensions: least loss at precision 0.50 (approx), 1.05 (exact); expected 1.00
#    4 dimensions: least loss at precision 0.25 (approx), 1.00 (exact); expected 1.00
#   10 dimensions: least loss at precision 0.10 (approx), 1.00 (exact); expected 1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torchebm==0.8.9 torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import torch
from torchebm.core import BaseModel
from torchebm.losses import ScoreMatching

PRECISIONS = np.arange(1, 31) / 20


class Quadratic(BaseModel):
    def __init__(self, precision):
        super().__init__(dtype=torch.float64)
        self.precision = float(precision)

    def forward(self, x):
        return self.precision / 2 * x.square().sum(1)


def theirs(x, method):
    losses = []
    for precision in PRECISIONS:
        torch.manual_seed(1)
        loss = ScoreMatching(model=Quadratic(precision), hessian_method=method, dtype=torch.float64)
        losses.append(float(loss(torch.from_numpy(x))))
    return losses


def best(losses):
    return PRECISIONS[np.argmin(losses)]


found, truth = {}, {}
for d in (1, 2, 4, 10):
    x = np.random.default_rng(0).standard_normal((4000, d))
    exact = PRECISIONS**2 * (x**2).sum(1).mean() / 2 - PRECISIONS * d  # s = -precision x, tr(ds/dx) = -precision d
    found[d], truth[d], reference = best(theirs(x, "approx")), best(exact), best(theirs(x[:500], "exact"))
    print(f"{d:2} dimensions: least loss at precision {found[d]:.2f} (approx), {reference:.2f} (exact); expected {truth[d]:.2f}")
if not all(abs(found[d] * d / truth[d] - 1) < 0.2 for d in found):
    sys.exit("torchebm behaves differently now")
PYTHON
