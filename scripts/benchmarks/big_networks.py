"""Share of the device's matmul peak that a training step of big networks reaches, and noise as a share of a sampling call."""

import gc
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from .clocks import alternate, median_ratio
from .components import build_objective, compose_training, cycle_labels
from .networks import build_own, compare
from .noise import build_run
from .rows import Row, Session

PART = "device"
NOISE_STEPS = 20


@dataclass(frozen=True)
class BigNetwork:
    """A network of a GPU: its overrides, the shape of its images, images per batch and device, variants, and bars."""

    overrides: tuple[str, ...]
    shape: tuple[int, int, int]
    batch: dict[str, int]
    variants: dict[str, tuple[str, ...]]
    bar: str


BIG_NETWORKS = {
    "dit_b (DiT-B/2)": BigNetwork(
        ("dataset=cifar10", "backbone=dit_b"),
        (3, 32, 32),
        {"cpu": 1, "cuda": 256},
        {"": ()},
        "at least 45 % of peak",
    ),
    "unet_64 (57 M)": BigNetwork(
        ("dataset=cifar10", "dataset.size=64", "backbone=unet_64"),
        (3, 64, 64),
        {"cpu": 1, "cuda": 128},
        {"": (), ", channels_last": ("backbone.channels_last=true",)},
        "at least 35 % of peak",
    ),
}


def measure_device(
    session: Session,
    networks: dict[str, BigNetwork] = BIG_NETWORKS,
    compiled: Sequence[bool] | None = None,
    *overrides: str,
) -> Iterator[Row]:
    """bf16-mixed training steps; then the noise of a stochastic sampler's step over its call.

    Arguments:
        networks: name -> what is trained.
        compiled: whether to compile, one entry per variant; None = both on a GPU, eager on a CPU, where it takes minutes.
        overrides: of every network.
    """
    device = session.device
    if compiled is None:
        compiled = (False, True) if device.type == "cuda" else (False,)
    for name, network in networks.items():
        batch = network.batch[device.type]
        case = f"{name}, batch {batch}, bf16-mixed"
        for variant, changes in network.variants.items():
            for compile_it in compiled:
                what = f"{'compiled' if compile_it else 'eager'}{variant}"
                chosen = (*network.overrides, *changes, *overrides)
                contender = build_own(what, chosen, network.shape, batch, "bf16", device, compile_it)
                row = compare(session, contender, contender, "", case, batch, "bf16", network.bar)
                yield replace(row, part=PART, ratio=None)
                del contender
                gc.collect()
        yield measure_noise_share(session, network, name, batch, *overrides)


@torch.no_grad()
def measure_noise_share(session: Session, network: BigNetwork, name: str, batch: int, *overrides: str) -> Row:
    """The time of a step's increments over that of a call of the network in bf16 with as many images."""
    device = session.device
    model = build_objective(compose_training(*network.overrides, *overrides)).model.eval().to(device)
    x, y = torch.randn(batch, *network.shape, device=device), cycle_labels(batch, device)
    t = torch.tensor(0.5, dtype=torch.float64)
    run = build_run((batch, *network.shape), device, steps=NOISE_STEPS)

    def calls() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            for _ in range(NOISE_STEPS):
                model(x, t, y)

    seconds = alternate({"noise": run, "calls": calls}, session.clock, session.rounds)
    spent = {what: 1e3 * statistics.median(values) / NOISE_STEPS for what, values in seconds.items()}
    ratio = median_ratio(seconds, "noise", "calls")
    text = f"{spent['noise']:.3g} ms a step; a call takes {spent['calls']:.3g} ms; {ratio:.2%} of a call"
    figures = {"noise_milliseconds": spent["noise"], "call_milliseconds": spent["calls"]}
    case = f"{name}, batch {batch}, bf16"
    return Row(PART, case, "Noise.increment", text, ratio, "a call of the network", "at most 0.01", figures)
