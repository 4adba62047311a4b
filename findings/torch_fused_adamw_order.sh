#!/usr/bin/env bash
# torch 2.14.1 (CPU): fused AdamW goes on with the moments of other weights, when these are stored channels last and its state is not.
#
# Behaviour: the state of an optimiser is loaded in the usual order of memory, as safetensors files hold it, for a convolution in
#   channels_last. The next step of fused=True moves weights by the moments of others; fused=False moves them rightly.
# Surprise: load_state_dict casts the state to the type and device of its parameter, and says nothing; the fused kernels are
#   documented as faster implementations of one algorithm, and memory format as an order that changes no result. The kernel for
#   CUDA refuses tensors of different strides; that for the CPU goes through their memory without a look at them.
# Source: aten/src/ATen/native/FusedAdam.cpp and cpu/FusedAdamKernel.cpp, which take data_ptr and numel; Optimizer.load_state_dict;
#   Kingma and Ba, arXiv 1412.6980, algorithm 1, with the decay of Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
# Output seen (largest difference to NumPy after two steps of rate 0.1):
#   fused=False: undisturbed 3.8e-07, state loaded in between 3.8e-07
#   fused=True: undisturbed 3.8e-07, state loaded in between 1.6e-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6 safetensors==0.8.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import torch
from safetensors.torch import load, save

RATE, DECAY, EPS, BETAS = 0.1, 0.01, 1e-8, (0.9, 0.999)
torch.manual_seed(0)
start = torch.randn(4, 3, 3, 3)
gradients = [torch.randn(4, 3, 3, 3) for _ in range(2)]


def exact():
    w, m, v = start.double().numpy(), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        g = gradient.double().numpy()
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g**2
        w = w - RATE * DECAY * w
        w = w - RATE * m / (1 - BETAS[0] ** step) / (np.sqrt(v / (1 - BETAS[1] ** step)) + EPS)
    return w


def train(fused, loaded):
    weight = torch.nn.Parameter(start.to(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW([weight], lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=fused)
    for step, gradient in enumerate(gradients):
        if step and loaded:
            before = optimizer.state_dict()
            state = load(save({name: value.contiguous() for name, value in before["state"][0].items()}))
            optimizer.load_state_dict({**before, "state": {0: state}})
        weight.grad = gradient.to(memory_format=torch.channels_last)
        optimizer.step()
    return np.abs(weight.detach().double().numpy() - exact()).max()


errors = {(fused, loaded): train(fused, loaded) for fused in (False, True) for loaded in (False, True)}
for fused in (False, True):
    print(f"fused={fused}: undisturbed {errors[fused, False]:.1e}, state loaded in between {errors[fused, True]:.1e}")
print("expected: float32's rounding four times")
if errors.pop((True, True)) < 0.01 or max(errors.values()) > 1e-5:
    sys.exit("torch behaves differently now")
PYTHON
