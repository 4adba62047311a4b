"""Devices, processes and precision: the only module that knows Lightning Fabric."""

import os

from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

__all__ = ["Fabric", "end_others", "fabric", "launched_outside"]


def launched_outside() -> bool:
    """Whether torchrun started this process, so that its siblings are there already."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_others(fabric: Fabric) -> None:
    """Ends the processes that this one has launched, for a failure that they cannot know of: they wait for it for ever."""
    for process in getattr(fabric.strategy.launcher, "procs", []):
        process.kill()


def fabric(accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: str) -> Fabric:
    """A Fabric, not yet launched. Under torchrun the number of processes is torchrun's.

    Arguments:
        accelerator: auto, cpu, cuda, mps.
        devices: processes per machine, or auto.
        num_nodes: machines.
        strategy: auto, ddp, ...
        precision: 32-true, 16-mixed, bf16-mixed, bf16-true, 64-true.

    Raises:
        ValueError: a device that is not there, more processes than cores, an unknown strategy or precision.
    """
    if precision in ("16", "bf16"):  # which Fabric takes, and grumbles
        raise ValueError(f"precision must be one of 32-true, 16-mixed, bf16-mixed, bf16-true, 64-true, got {precision}")
    if launched_outside():  # Fabric's own count would start independent single runs here
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    try:
        found = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, precision=precision
        )
    except (MisconfigurationException, RuntimeError, ValueError, TypeError, ImportError) as error:
        asked = f"accelerator={accelerator} devices={devices} strategy={strategy} precision={precision}"
        raise ValueError(f"this machine cannot provide {asked}: {error}") from error
    cores = os.cpu_count() or 1
    if not launched_outside() and found.device.type == "cpu" and found.world_size > cores * num_nodes:
        raise ValueError(f"devices={devices} are more processes than the {cores} cores of this machine")
    return found
