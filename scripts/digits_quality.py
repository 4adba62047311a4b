"""How good are samples of the digits? Agreed labels, copies, and missed modes, against the real splits.

    python scripts/digits_quality.py outputs/sample/digits/v001 [more sample folders]

Agreed labels: share of samples whose label an RBF support vector machine, trained on the 1000 training digits, shares.
Distance ratio: median distance to the nearest training digit after rounding to the 17 grey values, over that of the
validation block; well below 1 means copies. Recall: share of the validation block that lies nearer to some sample than
that sample's third neighbour among the samples (Kynkaanniemi et al. 2019, arXiv 1904.06991, on pixels); the training
digits in the samples' place give the last line.
"""

import sys
from pathlib import Path

import numpy
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from diffguide.datasets import Digits


def recall(real: numpy.ndarray, samples: numpy.ndarray, k: int = 3) -> float:
    """The share of real points within the k-th-neighbour radius of some sample."""
    radius = NearestNeighbors(n_neighbors=k + 1).fit(samples).kneighbors(samples)[0][:, k]
    distance = numpy.sqrt(((real[:, None] - samples[None]) ** 2).sum(-1))
    return float((distance <= radius).any(axis=1).mean())


def main(folders: list[str]) -> None:
    data = Digits(channels=1, size=8, num_classes=10)
    (train, labels), (validation, _) = ((x.flatten(1).numpy(), y.numpy()) for x, y in (data.train, data.validation))
    judge = SVC(C=10, gamma=0.064).fit(train, labels)
    nearest = NearestNeighbors(n_neighbors=1).fit(train)
    usual = numpy.median(nearest.kneighbors(validation)[0])
    print(f"{'samples':44} {'n':>5} {'agreed':>7} {'distance':>8} {'recall':>6}")
    for folder in folders:
        with numpy.load(Path(folder) / "samples.npz") as arrays:
            x, y = arrays["arr_0"].reshape(len(arrays["arr_0"]), -1) / 127.5 - 1, arrays["arr_1"]
        rounded = numpy.round((x + 1) * 8) / 8 - 1
        distance = numpy.median(nearest.kneighbors(rounded)[0]) / usual
        agreed = (judge.predict(x) == y).mean()
        print(f"{folder:44} {len(x):5} {agreed:7.1%} {distance:8.3f} {recall(validation, x):6.3f}")
    distance = f"{1:8.3f}"
    print(f"{'(the 1000 training digits)':44} {1000:5} {'':7} {distance} {recall(validation, train):6.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
