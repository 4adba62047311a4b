"""dry_run=true: describes the data and the network, and estimates the cost. Nothing is trained."""

import copy
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..conditions.examples import ConditionedData
from ..datasets import Dataset, Split
from ..datasets.base import fetch_examples
from ..figures.image_grids import MAX_ROWS, write_samples
from ..files.run_folders import create_version_dir
from ..first_stages.latent_data import LatentData
from ..objectives import Objective
from ..runtime.engine import Fabric
from ..runtime.progress import Progress
from .batches import Batches
from .loop import Training
from .probe import make_probe

__all__ = ["DryRun"]

SHEET_COLUMNS = 10  # examples in a row of the contact sheet
TIMED_STEPS = 3  # maximum number of timed steps, after a first one
TIMED_SECONDS = 15.0  # after this time no further step is timed
PROBE_IMAGES = 8  # images with which activations are measured and smaller networks are timed
LONG_TRAINING = 3600.0  # seconds of a training above which a smaller network is suggested
MAX_ALTERNATIVES = 4  # smaller networks that are timed, the largest first

Smaller = Callable[[], Iterable[tuple[str, Objective]]]


@dataclass
class DryRun:
    """
    Arguments:
        engine: Fabric.
        objective, training, seed: of the training.
        examples: its data with their conditions.
    """

    engine: Fabric
    objective: Objective
    examples: ConditionedData
    training: Training
    seed: int

    @property
    def data(self) -> Dataset:
        return self.examples.data

    def write(self, parent: Path, smaller: Smaller = tuple) -> Path:
        """Writes data_sheet.txt and contact_sheet.png into a new version folder in `parent`, and returns it.

        Arguments:
            smaller: names and objectives of smaller networks, the largest first; called if the training takes long.

        Raises:
            WriteError: a folder that cannot be written.
        """
        data = self.data
        mirrored = ", every second one mirrored in training (dataset.flip=false: none)" if data.flip else ""
        lines = [*data.summary(), f"network input: {list(data.shape)}{mirrored}"]
        print(*lines, sep="\n", file=sys.stderr, flush=True)  # before the slow part
        cost, seconds = self.estimate_cost()
        if seconds > LONG_TRAINING:
            cost += self.suggest_smaller(seconds, smaller)

        def fill(folder: Path) -> None:
            (folder / "data_sheet.txt").write_text("\n".join([*lines, *cost, ""]), encoding="utf-8")
            self.write_examples(folder / "contact_sheet.png")

        folder = create_version_dir(parent, fill)
        print(*cost, f"examples of network inputs: {folder / 'contact_sheet.png'}", sep="\n", file=sys.stderr)
        return folder

    def write_examples(self, path: Path) -> None:
        """Writes preprocessed training examples with random flips and crops: a row per class, at most forty rows."""
        data = self.data.pictures if isinstance(self.data, LatentData) else self.data
        y, classes = data.train.y, len(data.class_names)
        if len(data.shape) == 1:
            rows = torch.arange(min(len(y), 2000))
        elif classes:
            members = [(y == label).nonzero()[:SHEET_COLUMNS, 0] for label in range(min(classes, MAX_ROWS))]
            rows = torch.cat(members)
        else:
            rows = (y == -1).nonzero()[: SHEET_COLUMNS**2, 0]
        x, y = fetch_examples(data.train, rows)
        chance = torch.rand(len(rows), 3, generator=torch.Generator().manual_seed(self.seed))
        write_samples(path, data.preprocess(x, chance), y.tolist(), data.class_names, note_missing=True)

    def suggest_smaller(self, seconds: float, smaller: Smaller) -> list[str]:
        """A line naming the largest smaller network that trains within an hour, or the fastest of those that were timed.

        The training time is assumed to be proportional to that of one step of a few images.
        """
        step_seconds, timed = self.time_step(self.objective), list[tuple[float, str, int]]()
        for name, other in itertools.islice(smaller(), MAX_ALTERNATIVES):
            timed.append((seconds * self.time_step(other) / step_seconds, name, count_parameters(other)))
            if timed[-1][0] <= LONG_TRAINING:
                break
        if not timed or min(timed)[0] >= seconds:
            return ["more than an hour, and no smaller backbone fits these data: use a smaller training.images"]
        shortest, name, count = min(timed)
        return [
            f"more than an hour: backbone={name} ({count:,} parameters) would take about {format_duration(shortest)}"
        ]

    def time_step(self, objective: Objective) -> float:
        """Seconds of the second of two training steps of a few images."""
        device = self.engine.device
        forward = make_probe(objective, self.examples.train, device, self.seed)

        def step() -> None:
            with self.engine.autocast():
                forward(PROBE_IMAGES).backward()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return [seconds_of(step) for _ in range(2)][1]

    def estimate_cost(self) -> tuple[list[str], float]:
        """Lines about parameters, memory and time, and the seconds of the training; from a few steps of a copy."""
        engine, training, data = self.engine, self.training, self.data
        objective = copy.deepcopy(self.objective).to(engine.device).train()
        optimizer, share = training.make_optimizer(objective), training.share(engine.world_size)
        batches = iter(Batches(self.examples.train, self.seed, engine, training.batch_size, share))
        cuda = engine.device.type == "cuda"

        def step() -> None:
            for _ in range(training.accumulate):
                x, y, rng = next(batches)
                with engine.autocast():
                    objective(x, y, rng).per_example.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if cuda:
                torch.cuda.synchronize()

        x, y, rng = next(batches)
        saved = self.measure_activations(lambda: objective(x[:PROBE_IMAGES], y[:PROBE_IMAGES], rng), objective)
        activations = saved * share / min(share, PROBE_IMAGES)
        progress, times = Progress("timing", TIMED_STEPS + 1, "steps"), list[float]()
        while not times or (len(times) <= TIMED_STEPS and sum(times) < TIMED_SECONDS):
            times.append(seconds_of(step))
            progress.advance(1)
            progress.show()
        progress.close()
        state = itertools.chain.from_iterable(values.values() for values in optimizer.state.values())
        weights = sum({tensor.data_ptr(): tensor.nbytes for tensor in objective.state_dict().values()}.values())
        fixed = 3 * weights + sum(value.nbytes for value in state if isinstance(value, torch.Tensor))
        resident = data.train.x.nbytes + data.train.y.nbytes if isinstance(data.train, Split) else 0
        rate = training.batch_size / min(times)
        peak = f", measured peak {format_bytes(torch.cuda.max_memory_allocated())}" if cuda else ""
        seconds = training.images / rate
        lines = [
            f"parameters: {count_parameters(objective):,}",
            f"memory per device: about {format_bytes(fixed + activations + resident)} (weights, gradients, average and "
            f"optimiser {format_bytes(fixed)}; activations of {share} images {format_bytes(activations)}; data "
            f"{format_bytes(resident)}){peak}",
            f"time: about {format_duration(seconds)} for {training.images} images at {rate:.3g} images/s on "
            f"{engine.world_size} x {engine.device.type}, without held-out losses and sample grids",
        ]
        return lines, seconds

    def measure_activations(self, forward: Callable[[], object], objective: Objective) -> int:
        """Bytes that a forward pass saves for the backward pass, without the weights."""
        saved: dict[int, int] = {}  # bytes by address

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), self.engine.autocast():
            forward()
        weights = {tensor.data_ptr() for tensor in objective.state_dict().values()}
        return sum(size for address, size in saved.items() if address not in weights)


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def seconds_of(step: Callable[[], None]) -> float:
    """Seconds of a call."""
    started = time.monotonic()
    step()
    return time.monotonic() - started


def format_bytes(count: float) -> str:
    """A number of bytes with its unit, such as 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_duration(seconds: float) -> str:
    """A duration with its unit, such as 2.5 hours."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
