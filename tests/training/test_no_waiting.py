"""A training step gives an accelerator work without waiting for it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffguide.backbones import UNet
from diffguide.conditions.examples import ConditionedData
from diffguide.datasets import Dataset, Split
from diffguide.objectives import Denoising, Diverged
from diffguide.runtime.engine import build_fabric
from diffguide.runtime.signals import Interrupts
from diffguide.schedules import Cosine
from diffguide.training import Training
from diffguide.training.divergence import DivergenceWatch
from diffguide.training.state import UNCHECKED_STEPS, TrainingRun

WAITING = {  # operations whose result or shape the host has to know: .item(), bool(), float(), indexing with a mask, ...
    "_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero", "repeat_interleave",
    "bincount",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """The operations of a block for which the host would wait, except on `of_the_host` and what is computed from it."""

    def __init__(self, *of_the_host: torch.Tensor):
        super().__init__()
        self.of_the_host, self.found = list(of_the_host), []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        name, first = function.overloadpacket.__name__, arguments[0] if arguments else None
        if any(first is tensor for tensor in self.of_the_host):
            self.of_the_host.append(result)
        elif name in WAITING:
            self.found.append(name)
        return result


@pytest.fixture
def run() -> TrainingRun:
    def split(n: int) -> Split:
        return Split(torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 2)

    torch.manual_seed(0)
    objective = Denoising(UNet(1, num_classes=2, size=8, channels=8, head_channels=8), Cosine(), p_uncond=0.1)
    engine = build_fabric("cpu")
    data = Dataset(split(32), split(4), split(4), ["even", "odd"])
    training = Training(images=10**6, batch_size=8)
    return TrainingRun(training, objective, ConditionedData(data), None, 0, engine, None, None, None, None)


def take_step(run: TrainingRun, interrupts: Interrupts) -> None:
    x_0, y, rng = next(run.batches)
    loss = run.module(x_0, y, rng)
    run.engine.backward(loss.per_example.mean())
    run.add(loss)
    run.update()
    run.write(interrupts)


def test_a_step_between_two_lines_of_metrics_does_not_wait(run):
    """With the watch of an accelerator; `n_averaged` stays on the host."""
    run.watch = DivergenceWatch(UNCHECKED_STEPS)
    with Interrupts(silent=True) as interrupts:
        take_step(run, interrupts)
        with Waits(run.ema.n_averaged) as waits:
            take_step(run, interrupts)
    assert run.ema.n_averaged.device.type == "cpu"
    assert waits.found == []


def test_the_test_can_fail(run):
    """The watch of the CPU reads its result after every step."""
    with Interrupts(silent=True) as interrupts, Waits() as waits:
        take_step(run, interrupts)
    assert waits.found


def test_a_divergence_is_found_before_anything_is_written(run):
    """And its message names the step, not the one at which it was found."""
    run.watch = DivergenceWatch(UNCHECKED_STEPS)
    with Interrupts(silent=True) as interrupts:
        take_step(run, interrupts)
        with torch.no_grad():
            next(run.objective.parameters()).fill_(torch.inf)
        for _ in range(3):
            take_step(run, interrupts)
        run.training.log_images = 40
        with pytest.raises(Diverged, match=r"at step 1 \(8 images\)"):
            take_step(run, interrupts)
