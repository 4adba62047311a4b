"""engine.precision=auto: bf16-mixed in training where the device has bfloat16 and a step is faster with it, else 32-true."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["AUTO", "FULL", "MIXED", "choose_precision", "has_bfloat16", "measure_ratio"]

AUTO, FULL, MIXED = "auto", "32-true", "bf16-mixed"
INSTRUCTIONS = "avx512_bf16", "amx_bf16", "bf16"  # of x86 and ARM
STEP_SECONDS = (
    1.0  # a timed step has the rows of the training, or as many as take this time: few rows would measure overhead
)
SECONDS = 0.5  # of alternating steps
WORTHWHILE = 0.95  # of the time of a float32 step

Forward = Callable[[int], Tensor]


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in INSTRUCTIONS)


def choose_precision(device: torch.device, processes: int, forward: Forward, rows: int) -> tuple[str, str]:
    """(The precision of a training, the reason in words).

    On a GPU, and with several processes, which have to agree, the instructions of the device alone decide.

    Arguments:
        processes: of the training.
        forward: number of examples -> their mean loss, as in training.
        rows: examples of a training step.
    """
    if not has_bfloat16(device):
        return FULL, f"the {device.type} has no bfloat16 instructions"
    if device.type == "cuda" or processes > 1:
        return MIXED, f"the {device.type} has bfloat16 instructions"
    ratio = measure_ratio(device, forward, rows)
    return (MIXED if ratio < WORTHWHILE else FULL), f"a step in {MIXED} takes {ratio:.2f} of one in {FULL}"


def measure_ratio(device: torch.device, forward: Forward, rows: int) -> float:
    """The processor time of a training step in bf16-mixed over that in float32, from the fastest of alternating steps.

    Steps of fewer rows are timed where those of the training take long. Other processes do not lengthen processor time.
    """
    count = min(2, rows)
    while time_step(device, forward, count, False) < STEP_SECONDS and count < rows:
        count = min(2 * count, rows)
    time_step(device, forward, count, True)  # allocates
    times = {False: list[float](), True: list[float]()}
    started = time.process_time()
    while not times[True] or time.process_time() - started < SECONDS:
        for mixed, found in times.items():
            found.append(time_step(device, forward, count, mixed))
    return min(times[True]) / min(times[False])


def time_step(device: torch.device, forward: Forward, rows: int, mixed: bool) -> float:
    """Processor seconds of a forward and a backward pass."""
    started = time.process_time()
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        loss = forward(rows)
    loss.backward()
    return time.process_time() - started
