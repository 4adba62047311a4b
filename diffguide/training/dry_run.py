"""dry_run=true: shows the data and what the network sees of them, and estimates the cost. Nothing is trained."""

import copy
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..datasets import Dataset, Split
from ..datasets.base import fetch_examples
from ..figures.image_grids import MAX_ROWS, write_samples
from ..files.run_folders import create_version_dir
from ..objectives import Objective
from ..runtime.engine import Fabric
from ..runtime.progress import Progress
from .batches import Batches
from .loop import Training

__all__ = ["write_dry_run"]

SHEET_COLUMNS = 10  # examples in a row of the contact sheet
TIMED_STEPS = 3  # at most, after the first, which counts only where it is slow
TIMED_SECONDS = 15.0  # no further step is timed after so long
PROBE_IMAGES = 8  # images whose activations are measured, and with which a smaller network is timed
LONG_TRAINING = 3600.0  # seconds of a training from which on a smaller network is named
MAX_ALTERNATIVES = 4  # smaller networks that are timed, the largest first


def write_dry_run(
    engine: Fabric, objective: Objective, data: Dataset, training: Training, seed: int, parent: Path,
    smaller: Callable[[], Iterable[tuple[str, Objective]]] = tuple,
) -> Path:  # fmt: skip
    """Writes data_sheet.txt and contact_sheet.png into a version folder below `parent`, which it returns.

    Arguments:
        smaller: names and objectives of smaller networks, the largest first; called if the training would take long.

    Raises:
        WriteError: a folder that cannot be written.
    """
    mirrored = ", every second one mirrored in training (dataset.flip=false: none)" if data.flip else ""
    lines = [*data.summary(), f"the network sees: {list(data.shape)}{mirrored}"]
    print(*lines, sep="\n", file=sys.stderr, flush=True)  # before what takes its time
    about, seconds = estimate_cost(engine, objective, data, training, seed)
    if seconds > LONG_TRAINING:
        about += suggest_smaller(engine, objective, data, training, seed, seconds, smaller)
    lines += about

    def fill(folder: Path) -> None:
        (folder / "data_sheet.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        write_training_examples(folder / "contact_sheet.png", data, seed)

    folder = create_version_dir(parent, fill)
    print(*about, f"what the network sees: {folder / 'contact_sheet.png'}", sep="\n", file=sys.stderr)
    return folder


def write_training_examples(path: Path, data: Dataset, seed: int) -> None:
    """Training examples as the network sees them, mirrored and cut at random: a row per class, of forty at most."""
    y, classes = data.train.y, len(data.class_names)
    shown = range(min(classes, MAX_ROWS)) if classes else [-1]
    rows = torch.cat([(y == index).nonzero()[: SHEET_COLUMNS if classes else SHEET_COLUMNS**2, 0] for index in shown])
    if len(data.shape) == 1:
        rows = torch.arange(min(len(y), 2000))
    x, y = fetch_examples(data.train, rows)
    chance = torch.rand(len(rows), 3, generator=torch.Generator().manual_seed(seed))
    write_samples(path, data.preprocess(x, chance), y.tolist(), data.class_names, whole=True)


def suggest_smaller(
    engine: Fabric, objective: Objective, data: Dataset, training: Training, seed: int, seconds: float,
    smaller: Callable[[], Iterable[tuple[str, Objective]]],
) -> list[str]:  # fmt: skip
    """A line naming the largest smaller network that trains within an hour, or the fastest of those that were timed.

    The training time is taken to be proportional to that of one step of a few images.
    """
    own, found = time_step(engine, objective, data, seed), list[tuple[float, str, int]]()
    for name, other in itertools.islice(smaller(), MAX_ALTERNATIVES):
        found.append((seconds * time_step(engine, other, data, seed) / own, name, count_parameters(other)))
        if found[-1][0] <= LONG_TRAINING:
            break
    if not found or min(found)[0] >= seconds:
        return ["more than an hour, and no smaller backbone fits these data: use a smaller training.images"]
    shortest, name, count = min(found)
    return [f"more than an hour: backbone={name} ({count:,} parameters) would take about {format_duration(shortest)}"]


def time_step(engine: Fabric, objective: Objective, data: Dataset, seed: int) -> float:
    """Seconds of the second of two training steps of a few images."""
    objective = copy.deepcopy(objective).to(engine.device).train()
    x, y = fetch_examples(data.train, torch.arange(PROBE_IMAGES) % len(data.train.y))
    x, y, rng = (
        data.preprocess(x).to(engine.device),
        y.to(engine.device),
        torch.Generator(engine.device).manual_seed(seed),
    )

    def step() -> None:
        with engine.autocast():
            objective(x, y, rng).per_example.mean().backward()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()

    return [seconds_of(step) for _ in range(2)][1]


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def estimate_cost(
    engine: Fabric, objective: Objective, data: Dataset, training: Training, seed: int
) -> tuple[list[str], float]:
    """Lines about parameters, memory and time, and the seconds of the training, measured on a copy for a few steps."""
    objective = copy.deepcopy(objective).to(engine.device).train()
    optimizer, share = training.make_optimizer(objective), training.share(engine.world_size)
    parts = iter(Batches(data, seed, engine, training.batch_size, share))
    saved: dict[int, int] = {}  # bytes of what is kept for the backward pass, by address
    cuda = engine.device.type == "cuda"

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def step() -> None:
        for _ in range(training.accumulate):
            x, y, rng = next(parts)
            with engine.autocast():
                objective(x, y, rng).per_example.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()

    x, y, rng = next(parts)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), engine.autocast():
        objective(x[:PROBE_IMAGES], y[:PROBE_IMAGES], rng)
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in objective.state_dict().values()}
    activations = sum(size for place, size in saved.items() if place not in weights) * share / min(share, PROBE_IMAGES)
    progress, times = Progress("timing", TIMED_STEPS + 1, "steps"), list[float]()
    while not times or (len(times) <= TIMED_STEPS and sum(times) < TIMED_SECONDS):
        times.append(seconds_of(step))
        progress.advance(1)
        progress.show()
    progress.close()
    state = itertools.chain.from_iterable(values.values() for values in optimizer.state.values())
    kept = 3 * sum(weights.values()) + sum(value.nbytes for value in state if isinstance(value, torch.Tensor))
    resident = sum(part.nbytes for part in data.train) if isinstance(data.train, Split) else 0
    rate = training.batch_size / min(times)
    peak = f", measured peak {format_bytes(torch.cuda.max_memory_allocated())}" if cuda else ""
    seconds = training.images / rate
    lines = [
        f"parameters: {count_parameters(objective):,}",
        f"memory per device: about {format_bytes(kept + activations + resident)} (weights, gradients, average and "
        f"optimiser {format_bytes(kept)}; activations of {share} images {format_bytes(activations)}; data "
        f"{format_bytes(resident)}){peak}",
        f"time: about {format_duration(seconds)} for {training.images} images at {rate:.3g} images/s on "
        f"{engine.world_size} x {engine.device.type}, without held-out losses and sample grids",
    ]
    return lines, seconds


def seconds_of(step: Callable[[], None]) -> float:
    """Seconds of a call."""
    started = time.monotonic()
    step()
    return time.monotonic() - started


def format_bytes(count: float) -> str:
    """Bytes for a reader."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_duration(seconds: float) -> str:
    """Seconds for a reader."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
