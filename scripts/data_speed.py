"""The share of the training time that is spent waiting for data.

    python scripts/data_speed.py [--workers 2] [--images 4000] [--rate 200] [--seconds 20]

resident: 50 000 images of 3 x 32 x 32 bytes, like CIFAR-10, on the device; the time to index a batch of 128, relative to the
          whole step of the default network at that size (bar: 1 %).
stream:   JPEGs of 64 x 64 pixels in a temporary folder, read by workers as with `dataset=image_folder dataset.memory=0`:
          reading only (images/s, with the start of the workers), and with steps that keep one core busy like a network that
          trains at 200 images/s, in batches of 64 (bar: waiting below 1 %).

Takes a minute.
"""

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image

from diffguide import objectives, schedules
from diffguide.backbones import UNet
from diffguide.conditions.examples import Examples
from diffguide.datasets import Dataset, ImageFolder, Split
from diffguide.training.batches import Batches

BATCH = 64


class OneProcess(NamedTuple):
    """The attributes of Fabric that `Batches` needs, for one process."""

    device: torch.device
    global_rank: int = 0
    world_size: int = 1


def write_images(folder: Path, count: int) -> None:
    """Writes JPEGs in two classes, with as much detail as photographs."""
    rng = numpy.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
    for i in range(count):
        coarse = numpy.kron(rng.integers(0, 200, (8, 8, 3)), numpy.ones((8, 8, 1)))
        pixels = (coarse + rng.integers(0, 56, (64, 64, 3))).astype(numpy.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i}.jpg", quality=90)


def measure_wait(batches: Batches, step, count: int) -> tuple[float, float]:
    """(share of the time spent waiting for a batch, images per second) over `count` steps after two warm-up steps."""
    parts = iter(batches)
    for part in islice(parts, 2):
        step(*part)
    batches.wait_seconds, started = 0.0, time.perf_counter()
    for part in islice(parts, count):
        step(*part)
    seconds = time.perf_counter() - started
    return batches.wait_seconds / seconds, count * batches.share / seconds


def measure_resident(device: torch.device, steps: int = 4) -> None:
    """Measures the waiting time for data on the device."""
    rng = torch.Generator().manual_seed(0)
    train = Split(torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=rng), torch.arange(50_000) % 10)
    data = Dataset(train, train, train, [str(k) for k in range(10)], flip=True)
    network = UNet(in_channels=3, num_classes=10, size=32, attention=[16], head_channels=32, dropout=0.1)
    objective = objectives.Denoising(network, schedules.Cosine(), p_uncond=0.1).to(device)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)

    def step(x, y, share) -> None:
        objective(x, y, share).per_example.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    share, rate = measure_wait(Batches(Examples(data, data.train), 0, OneProcess(device), 128, 128), step, steps)
    print(f"resident  waits {share:7.3%} of the time at {rate:.0f} images/s on {device.type}   (bar 1 %)")


def measure_stream(workers: int, images: int, rate: float, seconds: float) -> None:
    """Measures the waiting time for data that workers read."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), images)
        data = ImageFolder(
            folder, channels=3, size=64, num_classes=2, flip=True, validation=0.05, test=0.0, memory=0, workers=workers
        )
        engine = OneProcess(torch.device("cpu"))

        def read_only() -> float:
            started = time.perf_counter()
            count = sum(
                len(y)
                for _, y, _ in islice(Batches(Examples(data, data.train), 0, engine, BATCH, BATCH), images // BATCH)
            )
            return count / (time.perf_counter() - started)

        reading = statistics.median(read_only() for _ in range(3))
        matrix, torch_threads = torch.randn(256, 256), torch.get_num_threads()
        torch.set_num_threads(1)

        def step(x, y, share) -> None:
            end = time.perf_counter() + BATCH / rate
            while time.perf_counter() < end:
                matrix @ matrix

        steps = max(int(seconds * rate / BATCH), 10)
        share, reached = measure_wait(Batches(Examples(data, data.train), 0, engine, BATCH, BATCH), step, steps)
        torch.set_num_threads(torch_threads)
    print(
        f"stream    {reading:8.0f} images/s by {workers} workers only; with steps of {rate:.0f} images/s it waits "
        f"{share:7.3%} of the time at {reached:.0f} images/s (bar 1 %)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for resident data")
    parser.add_argument("--images", type=int, default=4000, help="JPEGs to write")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument("--rate", type=float, default=200.0, help="images per second of the simulated network")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the simulated training")
    arguments = parser.parse_args()
    measure_resident(torch.device(arguments.device))
    measure_stream(arguments.workers, arguments.images, arguments.rate, arguments.seconds)


if __name__ == "__main__":
    main()
