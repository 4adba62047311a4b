#!/usr/bin/env bash
# onnxruntime 1.32.0: the CPU has no Where whose values are booleans, though ONNX has it and the checker accepts it.
#
# Behaviour: a valid graph of one node, out = Where(condition, a, b), runs for float32 and int64 values. For bool values
#   InferenceSession raises NotImplemented when it is made.
# Surprise: torch.where(condition, mask, other_mask), the usual way to choose between two attention masks row by row, exports
#   without a warning, and the file passes onnx.checker. Only the runtime refuses it, on the machine of the person who got the
#   file. condition & a | ~condition & b says the same and runs.
# Source: ONNX operators, Where, type constraint T (all tensor types, bool among them, since version 9); onnxruntime, the
#   kernels registered in core/providers/cpu/tensor/where_op.cc.
# Output seen:
#   values    checker   InferenceSession
#   FLOAT     valid     runs
#   INT64     valid     runs
#   BOOL      valid     NotImplemented
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import onnx
import onnxruntime
from onnx import TensorProto, helper


def made_session(kind):
    """What comes of a session for out = Where(condition, a, b) with values of a type."""
    kinds = {"condition": TensorProto.BOOL, "a": kind, "b": kind, "out": kind}
    given = [helper.make_tensor_value_info(name, kinds[name], [2]) for name in kinds]
    node = helper.make_node("Where", ["condition", "a", "b"], ["out"])
    graph = helper.make_graph([node], "where", given[:3], given[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return type(error).__name__
    return "runs"


found = {}
print("values    checker   InferenceSession")
for name in ("FLOAT", "INT64", "BOOL"):
    found[name] = made_session(getattr(TensorProto, name))
    print(f"{name:9} valid     {found[name]}")
if found != {"FLOAT": "runs", "INT64": "runs", "BOOL": "NotImplemented"}:
    sys.exit("onnxruntime behaves differently now")
PYTHON
