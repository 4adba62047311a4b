"""How fast images come from a folder: a DataLoader with worker processes over a streamed data set.

    python scripts/data_speed.py [--workers 2] [--images 4000]

Writes 4000 JPEGs of 64 x 64 pixels into a temporary folder and reads them all, in a random order as training does, in
batches of 128; the median of three passes, the start of the workers included (bar: 200 images/s with two workers).
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy
from PIL import Image
from torch.utils.data import DataLoader

from diffguide.datasets import ImageFolder


def write_images(folder: Path, count: int) -> None:
    """JPEGs in two classes, with the detail of a photograph: noise that is coarse and fine."""
    rng = numpy.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
    for i in range(count):
        coarse = numpy.kron(rng.integers(0, 200, (8, 8, 3)), numpy.ones((8, 8, 1)))
        pixels = (coarse + rng.integers(0, 56, (64, 64, 3))).astype(numpy.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i}.jpg", quality=90)


def pass_rate(data: ImageFolder) -> float:
    """Images per second of one pass."""
    started = time.perf_counter()
    loader = DataLoader(data.train, batch_size=128, shuffle=True, num_workers=data.workers)
    count = sum(len(x) for x, _ in loader)
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="JPEGs to write")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images)
        data = ImageFolder(
            folder, channels=3, size=64, num_classes=2, resize=None, stretch=False, flip=False, validation=0.05,
            test=0.0, memory=0, workers=arguments.workers,
        )  # fmt: skip
        rate = statistics.median(pass_rate(data) for _ in range(3))
    print(
        f"stream    {rate:8.0f} images/s from {arguments.images} JPEGs of 64 x 64, {arguments.workers} workers (bar 200)"
    )


if __name__ == "__main__":
    main()
