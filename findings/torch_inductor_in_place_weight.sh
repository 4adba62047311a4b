#!/usr/bin/env bash
# torch 2.14.1 (CPU): compiled by inductor, a 3 x 3 convolution that rewrites its own weight in forward does not rewrite it.
#
# Behaviour: under no_grad, forward copies the normalised weight into the parameter, and then convolves with it. Compiled, the
#   copy is lost without an error or a warning: the parameter keeps its old values, and its gradient is that of the old
#   values. Eager, and with the backend aot_eager, the parameter is normalised. So it is compiled with a 1 x 1 convolution.
# Surprise: networks that keep the norm of their weights by writing it back in training (Karras et al. 2024, arXiv 2312.02696,
#   section 2.3 and algorithm 1, "forced weight normalisation") have this form. Compiled they train on, with growing weights;
#   the outputs of the first step are equal, so that nothing but the weights tells.
# Source: the paper's forced normalisation; torch's guarantee that a compiled function mutates its inputs as the eager one
#   does. The backend aot_eager traces the same graph and keeps the mutation, so the loss is in inductor.
# Output seen (mean square of the weight after a call; 1 = normalised):
#   kernel   eager   aot_eager   inductor
#   1 x 1    1.000       1.000      1.000
#   3 x 3    1.000       1.000      4.174
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 TORCHINDUCTOR_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from torch import nn


def normalised(weight):
    return weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()


class Convolution(nn.Module):
    def __init__(self, side):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(2 * torch.randn(8, 8, side, side))

    def forward(self, x):
        with torch.no_grad():
            self.weight.copy_(normalised(self.weight))
        return nn.functional.conv2d(x, normalised(self.weight), padding=self.weight.shape[2] // 2)


def measure(layer, backend):
    layer = copy.deepcopy(layer)
    if backend:
        layer.compile(backend=backend)
    output = layer(torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1)))
    output.square().sum().backward()
    return layer.weight.detach().square().mean().item(), output.detach()


found = {}
print("kernel   eager   aot_eager   inductor")
for side in (1, 3):
    layer = Convolution(side)
    squares, outputs = zip(*(measure(layer, backend) for backend in (None, "aot_eager", "inductor")))
    assert all(torch.allclose(output, outputs[0], atol=1e-4) for output in outputs)
    found[side] = [abs(square - 1) < 1e-3 for square in squares]
    print(f"{side} x {side}    {squares[0]:.3f}  {squares[1]:10.3f} {squares[2]:10.3f}")
print("expected: 1 everywhere, since forward writes the normalised weight")
if found != {1: [True, True, True], 3: [True, True, False]}:
    sys.exit("torch behaves differently now")
PYTHON
