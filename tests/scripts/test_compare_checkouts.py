"""The comparison of two checkouts finds one changed bit, and ignores times."""

import numpy as np
from compare_checkouts import differences, flatten


def test_one_bit_differs():
    weights = np.ones(4, np.float32)
    changed = np.nextafter(weights, 2, where=[False, False, True, False], out=weights.copy())
    before = {"weights": weights, "loss": 0.5, "nan": np.nan, "gone": 1}
    after = {"weights": changed, "loss": 0.5, "nan": np.nan, "new": 1}
    assert differences(before, after) == ["gone", "new", "weights"]
    assert differences(before, before | {"weights": weights.copy()}) == []
    assert differences({"x": np.zeros(1)}, {"x": -np.zeros(1)}) == ["x"]


def test_times_are_not_compared():
    rows = [{"images": 64, "seconds": 1.0, "losses": {"eps": 0.5}}]
    assert flatten(rows) == {".0.images": 64, ".0.losses.eps": 0.5}
