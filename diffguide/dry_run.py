"""dry_run=true: what is in the data, what the network will see, what the run will cost. Nothing is trained."""

import copy
import sys
import time
from pathlib import Path

import torch

from .batches import Batches, fetch
from .datasets import Dataset, Split
from .images import ROWS, sample_picture
from .objectives import Objective
from .runs import claim_version

__all__ = ["rehearse"]

EACH = 10  # examples in a row of the contact sheet
STEPS, SECONDS = 3, 15.0  # most steps that are timed after the first, and for how long; a slow first one counts itself
FEW = 8  # images whose activations are measured


def rehearse(engine, objective: Objective, data: Dataset, training, seed: int, parent: Path) -> Path:
    """Writes data_sheet.txt and contact_sheet.png into a version folder below `parent`, which it returns.

    Raises:
        WriteError: a folder that cannot be written.
    """
    lines = [*data.sheet(), f"the network sees: {list(data.shape)}", *cost(engine, objective, data, training, seed)]

    def fill(folder: Path) -> None:
        (folder / "data_sheet.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        contact_sheet(folder / "contact_sheet.png", data, seed)

    folder = claim_version(parent, fill)
    print(*lines, f"what the network sees: {folder / 'contact_sheet.png'}", sep="\n", file=sys.stderr)
    return folder


def contact_sheet(path: Path, data: Dataset, seed: int) -> None:
    """Training examples as the network sees them, mirrored and cut at random: a row per class, of forty at most."""
    y, classes = data.train.y, len(data.class_names)
    shown = range(min(classes, ROWS)) if classes else [-1]
    rows = torch.cat([(y == index).nonzero()[: EACH if classes else EACH**2, 0] for index in shown])
    if len(data.shape) == 1:
        rows = torch.arange(min(len(y), 2000))
    x, y = fetch(data.train, rows)
    chance = torch.rand(len(rows), 3, generator=torch.Generator().manual_seed(seed))
    sample_picture(path, data.view(x, chance), y.tolist(), data.class_names, whole=True)


def cost(engine, objective: Objective, data: Dataset, training, seed: int) -> list[str]:
    """Parameters, memory and time, from a few steps of a copy that is thrown away."""
    objective = copy.deepcopy(objective).to(engine.device).train()
    optimizer, share = training.make_optimizer(objective), training.share(engine.world_size)
    parts, saved = iter(Batches(data, seed, engine, training.batch_size, share)), {}
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
        objective(x[:FEW], y[:FEW], rng)
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in objective.state_dict().values()}
    activations = sum(size for place, size in saved.items() if place not in weights) * share / min(share, FEW)
    times = [timed(step)]
    while len(times) <= STEPS and sum(times) < SECONDS:
        times.append(timed(step))
    state = [
        value for values in optimizer.state.values() for value in values.values() if isinstance(value, torch.Tensor)
    ]
    kept = 3 * sum(weights.values()) + sum(value.nbytes for value in state)
    resident = sum(part.nbytes for part in data.train) if isinstance(data.train, Split) else 0
    rate = training.batch_size / min(times)
    peak = f", measured peak {size(torch.cuda.max_memory_allocated())}" if cuda else ""
    count = sum(parameter.numel() for parameter in objective.parameters())
    return [
        f"parameters: {count:,}",
        f"memory per device: about {size(kept + activations + resident)} (weights, gradients, average and optimiser "
        f"{size(kept)}; activations of {share} images {size(activations)}; data {size(resident)}){peak}",
        f"time: about {duration(training.images / rate)} for {training.images} images at {rate:.0f} images/s on "
        f"{engine.world_size} x {engine.device.type}, without held-out losses and sample grids",
    ]


def timed(step) -> float:
    """Seconds of a call."""
    started = time.monotonic()
    step()
    return time.monotonic() - started


def size(count: float) -> str:
    """Bytes for a reader."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds for a reader."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
