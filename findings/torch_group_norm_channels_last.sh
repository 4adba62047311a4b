#!/usr/bin/env bash
# torch 2.14.1 (CPU, float32): group_norm loses its digits in channels_last, and only there, when the mean is large.
#
# Behaviour: for activations of mean 100 and standard deviation 1 the error is 7e-3 in channels_last and 8e-6 in the usual
#   layout; for mean 10,000 the output is off by 1,000, where the true values are within 5.
# Surprise: memory format is documented as an order of memory that changes no result, and float32 has seven digits: the
#   mean and deviation of such numbers are known to 1e-5. batch_norm, on the same numbers, keeps them in channels_last.
#   U-Nets of diffusion models are group norm throughout, and channels_last is the advice for their speed.
# Source: aten/src/ATen/native/cpu/group_norm_kernel.cpp, GroupNormKernelImplChannelsLastInternal, which subtracts the
#   squared mean from the mean square in float32 (the contiguous kernel uses Welford's moments); Wu and He, arXiv
#   1803.08494, equations 1 and 2.
# Output seen (largest error against float64; the last digits depend on the processor):
#   mean     0: contiguous 5.5e-07, channels_last 5.5e-07, batch_norm in channels_last 1.2e-06
#   mean   100: contiguous 7.9e-06, channels_last 7.0e-03, batch_norm in channels_last 7.8e-05
#   mean  1000: contiguous 6.0e-05, channels_last 3.6e-01, batch_norm in channels_last 5.9e-04
#   mean 10000: contiguous 4.5e-04, channels_last 1.2e+03, batch_norm in channels_last 4.3e-03
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
