"""The mean colour of samples and of the data, to detect a colour tint.

    python scripts/mean_colour.py outputs/sample/photo_patches/v001 ...

Per channel, of images in 0..255: mean of the training split of the checkpoint, mean of the samples, and their difference in
percent of the mean of the data, with the standard error of the mean of the samples (per class and combined, for
labels=balanced). Bar: 2 %.
"""

import argparse
import json
from pathlib import Path

import numpy
import torch

from diffguide.checkpoints import store as checkpoints
from diffguide.training.batches import fetch

CHANNELS = {1: ["grey"], 3: ["red", "green", "blue"]}


def mean(x: numpy.ndarray, y: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Mean colour over classes of equal weight, and its standard error; x [N, H, W, C], y [N]."""
    colours = x.reshape(len(x), -1, x.shape[-1]).mean(axis=1, dtype=numpy.float64)
    groups = [colours[y == label] for label in numpy.unique(y)]
    errors = [group.var(axis=0, ddof=1) / len(group) for group in groups]
    return numpy.mean([group.mean(axis=0) for group in groups], axis=0), numpy.sqrt(sum(errors)) / len(groups)


def data(run: Path) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The training split of the checkpoint of a sampling run, as bytes."""
    header = json.loads((run / "manifest.jsonl").read_text().splitlines()[0])
    config = checkpoints.load(header["checkpoint"]).config
    dataset = checkpoints.construct(config["dataset"], "dataset", ())
    x, y = fetch(dataset.train, torch.arange(len(dataset.train.y)))
    return ((dataset.preprocess(x) + 1) * 127.5).permute(0, 2, 3, 1).numpy(), y.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of diffguide-sample")
    for run in parser.parse_args().runs:
        wanted, _ = mean(*data(run))
        with numpy.load(run / "samples.npz") as arrays:
            found, error = mean(arrays["arr_0"], arrays["arr_1"])
            print(f"{run}: {len(arrays['arr_0'])} samples")
        for name, a, b, e in zip(CHANNELS[len(wanted)], wanted, found, error):
            print(
                f"  {name:5} data {a:6.2f}  samples {b:6.2f}  difference {100 * (b / a - 1):+5.2f} % +- {100 * e / a:.2f}"
            )


if __name__ == "__main__":
    main()
