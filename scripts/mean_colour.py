"""The mean colour of samples and of the data, to detect a colour tint. Takes seconds.

    python scripts/mean_colour.py outputs/sample/photo_patches/v001 ...

Prints for each channel of images in 0..255: mean of the training split of the checkpoint, mean of the samples, and their
difference in percent of the mean of the data, with the standard error of the mean of the samples. Classes have equal weights,
as with labels=balanced. Bar: 2 %.
"""

import argparse
import json
from pathlib import Path

import numpy
import torch

from diffguide.checkpoints import store as checkpoints
from diffguide.checkpoints.allowlist import construct
from diffguide.datasets.base import fetch_examples

CHANNELS = {1: ["grey"], 3: ["red", "green", "blue"]}


def mean_colour(x: numpy.ndarray, y: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Mean colour over classes of equal weight, and its standard error; x [N, H, W, C], y [N]."""
    colours = x.reshape(len(x), -1, x.shape[-1]).mean(axis=1, dtype=numpy.float64)
    groups = [colours[y == label] for label in numpy.unique(y)]
    errors = [group.var(axis=0, ddof=1) / len(group) for group in groups]
    return numpy.mean([group.mean(axis=0) for group in groups], axis=0), numpy.sqrt(sum(errors)) / len(groups)


def load_data(run: Path) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The training split of the checkpoint of a sampling run, in 0..255."""
    header = json.loads((run / "manifest.jsonl").read_text().splitlines()[0])
    config = checkpoints.load(header["checkpoint"]).config
    dataset = construct(config["dataset"], "dataset", ())
    x, y = fetch_examples(dataset.train, torch.arange(len(dataset.train.y)))
    return ((dataset.preprocess(x) + 1) * 127.5).permute(0, 2, 3, 1).numpy(), y.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of diffguide-sample")
    for run in parser.parse_args().runs:
        data, _ = mean_colour(*load_data(run))
        with numpy.load(run / "samples.npz") as arrays:
            samples, errors = mean_colour(arrays["arr_0"], arrays["arr_1"])
            print(f"{run}: {len(arrays['arr_0'])} samples")
        for name, mean, sampled, error in zip(CHANNELS[len(data)], data, samples, errors):
            difference = f"{100 * (sampled / mean - 1):+5.2f} % +- {100 * error / mean:.2f}"
            print(f"  {name:5} data {mean:6.2f}  samples {sampled:6.2f}  difference {difference}")


if __name__ == "__main__":
    main()
