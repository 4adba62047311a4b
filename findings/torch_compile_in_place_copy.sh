#!/usr/bin/env bash
# torch 2.14.1 (CPU): a copy of a module compiled by module.compile() runs uncompiled, so its moving average does.
#
# Behaviour: copy.deepcopy of a module that was compiled in place gives a module that is not, without a warning. So does
#   AveragedModel, which is made by deepcopy: the averaged weights, with which one validates and samples, run uncompiled.
#   A copy of torch.compile(module), the other way of compiling the same module, runs compiled.
# Surprise: module.compile() is documented as "Compile this Module's forward using torch.compile". Unlike the wrapper it
#   leaves the names of the weights alone, so training loops prefer it. All else that is set on a module outlives deepcopy:
#   hooks, buffers, the training flag. The results are equal, so that only the time tells.
# Source: torch/nn/modules/module.py, Module.__getstate__, drops _compiled_call_impl, since a compiled function cannot be
#   pickled; copy.deepcopy uses the same method. torch/_dynamo/eval_frame.py, OptimizedModule.__reduce__, builds the other
#   wrapper anew around the copied module.
# Output seen (calls of compiled code per call of the module):
#   compiled by         the module   deepcopy   AveragedModel
#   module.compile()             1          0               0
#   torch.compile(...)           1          1               1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from torch.optim.swa_utils import AveragedModel

calls = 0


def backend(graph, example_inputs):
    """A compiler that counts the calls of what it has compiled."""

    def run(*inputs):
        global calls
        calls += 1
        return graph(*inputs)

    return run


def count(module):
    global calls
    calls = 0
    output = module(torch.ones(2, 4))
    return calls, output


def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.SiLU(), torch.nn.Linear(4, 4))


in_place = build()
in_place.compile(backend=backend)
found = {}
print("compiled by         the module   deepcopy   AveragedModel")
for name, module in {"module.compile()": in_place, "torch.compile(...)": torch.compile(build(), backend=backend)}.items():
    makers = (lambda m: m, copy.deepcopy, AveragedModel)
    counts, outputs = zip(*(count(make(module)) for make in makers))
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    found[name] = counts
    print(f"{name:19} {counts[0]:10} {counts[1]:10} {counts[2]:15}")
print("expected: a copy of a compiled module is compiled, whichever way")
if found != {"module.compile()": (1, 0, 0), "torch.compile(...)": (1, 1, 1)}:
    sys.exit("torch behaves differently now")
PYTHON
