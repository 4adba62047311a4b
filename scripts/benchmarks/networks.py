"""A full training step of networks of equal kind: forward, backward, clipped gradient, optimiser, average of the weights."""

import contextlib
import gc
import io
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffguide.conditions.examples import ConditionedData
from diffguide.runtime.compiling import compile_training
from diffguide.runtime.engine import build_fabric
from diffguide.training.loop import Training
from diffguide.training.state import TrainingRun

from . import peer_networks
from .clocks import Work, alternate, build_product, median_ratio
from .components import CLASSES, build_objective, compose_training, random_images
from .rows import Row, Session, why_unavailable

PART = "networks"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
REPEATS = {"cpu": 1, "cuda": 10}  # steps in a row, so that a GPU does not wait for the first
FLOP_IMAGES = 2  # images of the step whose operations are counted


@dataclass
class Contender:
    """A training step, and the size of its network.

    Arguments:
        name: for the table.
        step: takes one step.
        parameters: of the network.
        flops: operations of forward and backward pass per image.
    """

    name: str
    step: Work
    parameters: int
    flops: float


@dataclass(frozen=True)
class Scale:
    """What is trained at one size of image: overrides of diffguide's networks, and the widths of the peers'."""

    side: int
    channels: int
    batch: dict[str, int]  # per type of device
    own: dict[str, tuple[str, ...]]  # name -> overrides; the first is what the others are compared with
    peers: dict[str, Callable[..., peer_networks.PeerNetwork]]


SCALES = {
    "8x8": Scale(
        8,
        1,
        {"cpu": 128, "cuda": 1024},
        {
            "diffguide unet": ("dataset=digits", "backbone=unet"),
            "diffguide unet, channels_last": ("dataset=digits", "backbone=unet", "backbone.channels_last=true"),
        },
        {
            "diffusers": lambda **size: peer_networks.build_diffusers((32, 64), **size),
            "denoising-diffusion-pytorch": lambda **size: peer_networks.build_denoising_diffusion_pytorch(
                40, (1, 2), **size
            ),
            "azula": lambda **size: peer_networks.build_azula((32, 64), **size),
        },
    ),
    "32x32": Scale(
        32,
        3,
        {"cpu": 4, "cuda": 256},
        {
            "diffguide unet_32": ("dataset=cifar10", "backbone=unet_32"),
            "diffguide unet_32, channels_last": ("dataset=cifar10", "backbone=unet_32", "backbone.channels_last=true"),
            "diffguide unet_lean_32": ("dataset=cifar10", "backbone=unet_lean_32"),
            "diffguide dit_s": ("dataset=cifar10", "backbone=dit_s"),
        },
        {
            "diffusers": lambda **size: peer_networks.build_diffusers((128, 256, 256, 256), **size),
            "denoising-diffusion-pytorch": lambda **size: peer_networks.build_denoising_diffusion_pytorch(
                72, (1, 2, 4, 8), **size
            ),
            "azula": lambda **size: peer_networks.build_azula((128, 256, 256, 256), **size),
        },
    ),
}


def count_flops(backward: Work, network: nn.Module) -> float:
    """Operations of a forward and backward pass; attention is written out meanwhile, because the CPU's is not counted."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel([SDPBackend.MATH]):
        backward()
    network.zero_grad()
    return float(counter.get_total_flops())


def build_own(
    name: str,
    overrides: tuple[str, ...],
    shape: tuple[int, ...],
    batch: int,
    precision: str,
    device: torch.device,
    compiled: bool = False,
) -> Contender:
    """A step of diffguide's training loop, data, watch and log included, on random images."""
    objective = build_objective(compose_training(*overrides))
    data = random_images(shape, max(batch, FLOP_IMAGES))
    backbone, rng = objective.model.backbone, torch.Generator().manual_seed(0)
    x, y = data.train.x[:FLOP_IMAGES], data.train.y[:FLOP_IMAGES]
    flops = count_flops(lambda: objective(x, y, rng).per_example.mean().backward(), objective) / FLOP_IMAGES
    if compiled:
        compile_training(backbone)
    training = Training(images=10**9, batch_size=batch)
    with contextlib.redirect_stderr(io.StringIO()):  # without Fabric's notes and the bar of progress
        engine = build_fabric(device.type, precision=FABRIC_PRECISION[precision])
        engine.launch()
        run = TrainingRun(training, objective, ConditionedData(data), None, 0, engine, None, None, None, None)

    def step() -> None:
        loss = run.module(*next(run.batches))
        engine.backward(loss.per_example.mean())
        run.add(loss)
        run.update()

    return Contender(name, step, count_parameters(backbone), flops)


def build_peer(
    package: str,
    build: Callable[..., peer_networks.PeerNetwork],
    shape: tuple[int, ...],
    batch: int,
    precision: str,
    device: torch.device,
) -> Contender:
    """A step as the peer's own training script takes it, on random images."""
    torch.manual_seed(0)
    peer = build(channels=shape[0], side=shape[1], classes=CLASSES, device=device)
    data = random_images(shape, max(batch, FLOP_IMAGES))
    x, y = data.train.x.to(device), data.train.y.to(device)
    flops = count_flops(lambda: peer.loss(x[:FLOP_IMAGES], y[:FLOP_IMAGES]).backward(), peer.network) / FLOP_IMAGES

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = peer.loss(x[:batch], y[:batch])
        loss.backward()
        nn.utils.clip_grad_norm_(peer.network.parameters(), 1.0)
        peer.optimizer.step()
        peer.optimizer.zero_grad()
        peer.average()

    return Contender(package, step, count_parameters(peer.network), flops)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def compare(
    session: Session,
    contender: Contender,
    base: Contender,
    base_name: str,
    case: str,
    batch: int,
    precision: str,
    bar: str = "",
) -> Row:
    """Steps of two contenders and a product of matrices in alternating rounds, as the row of the first contender."""
    dtype = PRECISIONS[precision]
    product, product_flops = build_product(session.device, dtype)
    works = {"own": contender.step, "base": base.step, "product": product}
    if contender is base:
        del works["base"]
    seconds = alternate(works, session.clock, session.rounds, repeats=REPEATS[session.device.type])
    rate = contender.flops * batch / statistics.median(seconds["own"])
    share = median_ratio(seconds, "product", "own") * contender.flops * batch / product_flops
    if session.peak_flops is not None and dtype == torch.bfloat16:
        share = rate / session.peak_flops
    ratio = 1.0 if contender is base else median_ratio(seconds, "own", "base")
    per_parameter, per_flop = (ratio * getattr(base, of) / getattr(contender, of) for of in ("parameters", "flops"))
    images = rate / contender.flops
    text = (
        f"{images:.3g} img/s; {contender.parameters / 1e6:.3g} M parameters, {contender.flops / 1e9:.3g} GFLOP an image; "
        f"{rate / 1e9:.4g} GFLOP/s, {share:.0%} of matmul peak"
    )
    if contender is not base:
        text += f"; per parameter {per_parameter:.2f}, per FLOP {per_flop:.2f}"
    figures = {
        "images_per_second": images,
        "parameters": contender.parameters,
        "flops_per_image": contender.flops,
        "flops_per_second": rate,
        "share_of_peak": share,
        "ratio_per_parameter": per_parameter,
        "ratio_per_flop": per_flop,
    }
    return Row(PART, case, contender.name, text, ratio, base_name, bar, figures)


def measure_networks(session: Session, scales: dict[str, Scale] = SCALES) -> Iterator[Row]:
    """Each network beside diffguide's first one of the same size and precision, and that one in bf16 beside fp32."""
    for size, scale in scales.items():
        shape, batch = (scale.channels, scale.side, scale.side), scale.batch[session.device.type]
        first, *others = scale.own.items()
        single = build_own(*first, shape, batch, "fp32", session.device)
        for precision in PRECISIONS:
            case = f"{size}, batch {batch}, {precision}"
            base = single if precision == "fp32" else build_own(*first, shape, batch, precision, session.device)
            base_name = base.name if precision == "fp32" else f"{base.name}, fp32"
            yield compare(session, base, single, base_name, case, batch, precision)
            for own in others:
                contender = build_own(*own, shape, batch, precision, session.device)
                yield compare(session, contender, base, base.name, case, batch, precision)
            for package, build in scale.peers.items():
                contender = None  # frees the last one before the next is built
                gc.collect()
                if reason := why_unavailable(package):
                    yield Row(PART, case, package, reason)
                    continue
                contender = build_peer(package, build, shape, batch, precision, session.device)
                yield compare(session, contender, base, base.name, case, batch, precision)
