#!/usr/bin/env bash
# torch 2.14.1 (CPU, float32): group_norm loses its digits in channels_last, and only there, when the mean is large.
#
# Behaviour: for activations of mean 100 and standard deviation 1 the error is 1e-2 in channels_last and 1e-5 in the usual
#   layout; for mean 10,000 the output is off by 1,000, where the true values are within 5.
# Surprise: memory format is documented as an order of memory that changes no result, and float32 has seven digits: the
#   mean and deviation of such numbers are known to 1e-5. batch_norm, on the same numbers, keeps them in channels_last.
#   U-Nets of diffusion models are group norm throughout, and are commonly run in channels_last.
# Source: aten/src/ATen/native/cpu/group_norm_kernel.cpp, GroupNormKernelImplChannelsLastInternal, which subtracts the
#   squared mean from the mean square in float32 (the contiguous kernel uses Welford's moments); Wu and He, arXiv
#   1803.08494, equations 1 and 2.
# Output seen (largest error against float64; the last digits depend on the processor):
@SEEN@
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import torch

torch.manual_seed(0)
errors = {}
for mean in (0, 100, 1000, 10_000):
    x = torch.randn(2, 8, 16, 16) + mean
    exact = x.double().numpy()

    def normalized(values, axes):
        return (values - values.mean(axes, keepdims=True)) / np.sqrt(values.var(axes, keepdims=True) + 1e-5)

    group = normalized(exact.reshape(2, 2, -1), -1).reshape(exact.shape)
    last, batch = x.to(memory_format=torch.channels_last), torch.nn.BatchNorm2d(8)
    found = {
        "contiguous": (torch.nn.functional.group_norm(x, 2), group),
        "channels_last": (torch.nn.functional.group_norm(last, 2), group),
        "batch_norm in channels_last": (batch(last), normalized(exact, (0, 2, 3))),
    }
    errors[mean] = {name: np.abs(a.detach().double().numpy() - b).max() for name, (a, b) in found.items()}
    print(f"mean {mean:5}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors[mean].items()))
print("expected: the same digits in both layouts")
if not all(
    errors[mean]["channels_last"] > 100 * errors[mean]["contiguous"] and errors[mean]["contiguous"] < 1e-6 * mean
    for mean in (100, 1000, 10_000)
):
    sys.exit("torch behaves differently now")
PYTHON
