#!/usr/bin/env bash
# torch 2.14.1: building nn.Embedding on the meta device imports the compiler, over 800 modules, and takes seconds.
#
# Behaviour: the first tensor that is filled with normal numbers under torch.device("meta") imports torch._dynamo, and with
#   it SymPy and torch.distributed. nn.Embedding does so, and every network with init.normal_. On the CPU, and for nn.Linear
#   on "meta", nothing is imported.
# Surprise: the meta device is documented for building a network "without needing to spend time on compute"; the warning
#   there is that single operations in Python may be slower than on small CPU tensors. For every network below some hundred
#   million parameters the import costs more than filling the weights on the CPU would, for the table of ten rows here a
#   thousand times as much. Which layer brings it in depends on its initialiser: uniform_ has a kernel for "meta", normal_
#   is a Python reference.
# Source: torch/_refs/__init__.py, normal_ (registered for "meta"), which calls torch._refs.normal; its wrapper in
#   torch/_prims_common/wrappers.py is wrapped by torch/_compile.py, whose first call imports torch._dynamo.
# Output seen (new entries of sys.modules; the seconds depend on the machine):
#   nn.Embedding on cpu:      0 modules, torch._dynamo no, sympy no
#   nn.Linear on meta:        0 modules, torch._dynamo no, sympy no
#   nn.Embedding on meta:   892 modules, torch._dynamo yes, sympy yes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch

with torch.device("meta"):
    torch.empty(1).uniform_()  # what any use of the device imports
found = {}
for name, device in (("Embedding", "cpu"), ("Linear", "meta"), ("Embedding", "meta")):
    before, started = set(sys.modules), time.process_time()
    with torch.device(device):
        getattr(torch.nn, name)(10, 10)
    seconds, new = time.process_time() - started, set(sys.modules) - before
    found[name, device] = len(new)
    compiler, sympy = ("yes" if module in sys.modules else "no" for module in ("torch._dynamo", "sympy"))
    title = f"nn.{name} on {device}:"
    print(f"{title:22} {len(new):4} modules, torch._dynamo {compiler}, sympy {sympy} ({seconds:.4f} CPU s)")
print("expected: no imports, since nothing is computed")
if max(found["Embedding", "cpu"], found["Linear", "meta"]) > 5 or found["Embedding", "meta"] < 300:
    sys.exit("torch behaves differently now")
PYTHON
