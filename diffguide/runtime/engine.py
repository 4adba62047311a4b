"""Devices, processes and precision. Only this module imports Lightning Fabric."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .precision import AUTO, FULL
from .put_off import put_off_compiler

with put_off_compiler():
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.utilities.exceptions import MisconfigurationException

__all__ = [
    "Fabric",
    "build_fabric",
    "gather_objects",
    "inference_autocast",
    "kill_launched_processes",
    "launched_by_torchrun",
    "set_mixed_precision",
]


def launched_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def kill_launched_processes(fabric: Fabric) -> None:
    """Ends the processes that this one has launched, which would otherwise wait for ever after its failure."""
    for process in getattr(fabric.strategy.launcher, "procs", []):
        process.kill()


def inference_autocast(fabric: Fabric) -> AbstractContextManager:
    """Autocast of a mixed precision. Of a true one only the network has the dtype (`models.half_precision`): Fabric would
    also make it the default of new tensors, such as grids of noise levels."""
    return nullcontext() if str(fabric.strategy.precision.precision).endswith("-true") else fabric.autocast()


def gather_objects(fabric: Fabric, value: Any) -> list[Any]:
    """The values of all processes by rank; the value must be picklable."""
    if fabric.world_size == 1:
        return [value]
    values = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def set_mixed_precision(fabric: Fabric) -> None:
    """Makes a Fabric of float32 one of bf16-mixed, before anything is set up with it."""
    fabric.strategy.precision = fabric._precision = MixedPrecision("bf16-mixed", fabric.device.type)


def build_fabric(
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: str = "auto",
) -> Fabric:
    """A Fabric, not yet launched. Under torchrun, torchrun sets the number of processes.

    Arguments:
        accelerator: auto, cpu, cuda, mps.
        devices: number of processes per machine, or auto.
        num_nodes: number of machines.
        strategy: auto, ddp, ...
        precision: 32-true, 16-mixed, bf16-mixed, bf16-true, 64-true; auto = 32-true, which a command may change.

    Raises:
        ValueError: a missing device, more processes than cores, an unknown strategy or precision.
    """
    if precision in ("16", "bf16"):  # Fabric would accept them with a warning
        raise ValueError(
            f"precision must be one of auto, 32-true, 16-mixed, bf16-mixed, bf16-true, 64-true, got {precision}"
        )
    if launched_by_torchrun():  # otherwise Fabric would start independent single runs
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    try:
        found = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=FULL if precision == AUTO else precision,  # type: ignore[arg-type]  # checked by Fabric
        )
    except (MisconfigurationException, RuntimeError, ValueError, TypeError, ImportError) as error:
        options = f"accelerator={accelerator} devices={devices} strategy={strategy} precision={precision}"
        raise ValueError(f"cannot create the engine with {options}: {error}") from error
    cores = os.cpu_count() or 1
    if not launched_by_torchrun() and found.device.type == "cpu" and found.world_size > cores * num_nodes:
        raise ValueError(f"devices={devices} exceeds the {cores} CPU cores of this machine")
    return found
