"""Label accuracy, copies and recall of samples of the digits, compared with the splits of the data.

    python scripts/digits_quality.py outputs/sample/digits/v001 [more sample folders]

Label accuracy: fraction of samples that a support vector machine, trained on the 1000 training digits, assigns to their label.
Distance ratio: median distance to the nearest training digit after rounding to the 17 grey values, divided by that of the
validation split; well below 1 means copies. Recall: fraction of validation digits that are closer to a sample than its third
neighbour among the samples (Kynkaanniemi et al. 2019, arXiv 1904.06991, on pixels). The last line is for the training digits
as samples. Takes seconds.
"""

import sys
from pathlib import Path

import numpy
import torch

from diffguide.datasets import Digits
from diffguide.evaluation.quality.label_agreement import LabelClassifier
from diffguide.evaluation.quality.precision_recall import distance_ratio, precision_recall


def main(folders: list[str]) -> None:
    data = Digits(channels=1, size=8, num_classes=10)
    train, validation = data.train.x.flatten(1), data.validation.x.flatten(1)
    classifier = LabelClassifier(train, data.train.y)
    print(f"{'samples':44} {'n':>5} {'labels':>7} {'distance':>8} {'recall':>6}")
    for folder in folders:
        with numpy.load(Path(folder) / "samples.npz") as arrays:
            x, y = (torch.from_numpy(arrays[name]) for name in ("arr_0", "arr_1"))
        x = x.flatten(1).double() / 127.5 - 1
        rounded = ((x + 1) * 8).round() / 8 - 1
        distance, recall = distance_ratio(rounded, train, validation), precision_recall(validation, x, 3).recall
        print(f"{folder:44} {len(x):5} {classifier.accuracy(x, y):7.1%} {distance:8.3f} {recall:6.3f}")
    recall = precision_recall(validation, train, 3).recall
    print(f"{'(the 1000 training digits)':44} {1000:5} {'':7} {1:8.3f} {recall:6.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
