"""Images per second of diffusion in latents beside diffusion in pixels, for 32 x 32 RGB pictures.

    python scripts/latent_speed.py [--rounds 5] [--batch 32] [--steps 18] [--device cpu] [--json speed.json]

pixels:  the network of experiment=photo_patches at 32 x 32 x 3.
latents: backbone=unet, the default network, at 8 x 8 x 4, and backbone=small_kl, whose decoder is part of sampling. Its encoder
         runs once per picture and view, before the training, and is stated apart.

A training step is loss, gradients and AdamW; sampling is Heun with classifier-free guidance, to bytes. Seconds are CPU seconds
of one thread, or those of the GPU, in alternating rounds. Bar: 3 times the images per second in both. Takes two minutes.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from benchmarks.clocks import Clock, Work, alternate, median_ratio

from diffguide import to_uint8
from diffguide.backbones import UNet
from diffguide.datasets import PhotoPatches
from diffguide.first_stages import Autoencoder, SmallKL
from diffguide.first_stages.space import LatentSpace
from diffguide.guidance import ClassifierFree
from diffguide.objectives import AutoencoderObjective, Denoising, Objective
from diffguide.samplers import Heun, generate
from diffguide.schedules import Cosine

SPACES = {"pixels": (3, 32, 32), "latents": (4, 8, 8)}
BAR = 3.0  # images per second in latents over those in pixels


def make_objectives(device: torch.device) -> dict[str, Objective]:
    """The two models of diffusion, and the autoencoder."""
    torch.manual_seed(0)
    networks = {
        "pixels": UNet(3, None, 2, 32, multipliers=(1, 2, 2), blocks=1, attention=(8,), channels_last=True),
        "latents": UNet(4, None, 2, 8),
    }
    objectives: dict[str, Objective] = {
        name: Denoising(network, Cosine(), p_uncond=0.1) for name, network in networks.items()
    }
    return {
        name: made.to(device) for name, made in (objectives | {"autoencoder": AutoencoderObjective(SmallKL())}).items()
    }


def training_step(objective: Objective, x: torch.Tensor, y: torch.Tensor) -> Work:
    """A training step on a batch."""
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    rng = torch.Generator(x.device).manual_seed(0)

    def step() -> None:
        objective(x, y, rng).per_example.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampling_run(
    objective: Objective, name: str, space: LatentSpace, batch: int, steps: int, device: torch.device
) -> Work:
    """A batch of samples as bytes; latents are decoded."""
    guided = ClassifierFree(objective.model, scale=2.0)
    labels = [index % 2 for index in range(batch)]

    @torch.no_grad()
    def sample() -> None:
        objective.eval()
        (x,) = generate(guided, Heun(steps=steps), range(batch), labels, SPACES[name], batch, device)
        to_uint8(space.decode(x) if name == "latents" else x)
        objective.train()

    return sample


def make_works(batch: int, steps: int, device: torch.device) -> dict[str, Work]:
    """What is timed, each for a batch of images."""
    data = PhotoPatches(train=batch, validation=1, test=1)
    x, y = data.preprocess(data.train.x).to(device), data.train.y.to(device)
    objectives = make_objectives(device)
    stage = objectives["autoencoder"].model
    assert isinstance(stage, Autoencoder)
    space = LatentSpace(stage, (3, 32, 32), [0.0] * 4, [1.0] * 4)
    inputs = {"pixels": x, "latents": space.encode(x), "autoencoder": x}
    works = {f"train {name}": training_step(made, inputs[name], y) for name, made in objectives.items()}
    for name in SPACES:
        works[f"sample {name}"] = sampling_run(objectives[name], name, space, batch, steps, device)
    return works | {"encode": lambda: space.encode(x), "decode": lambda: space.decode(inputs["latents"])}


def measure(rounds: int, batch: int, steps: int, device: torch.device) -> dict[str, float]:
    """Images per second by name, and the ratios of latents to pixels."""
    seconds = alternate(make_works(batch, steps, device), Clock(device), rounds)
    figures = {name: batch / statistics.median(spent) for name, spent in seconds.items()}
    for work in ("train", "sample"):
        figures[f"{work}: latents over pixels"] = median_ratio(seconds, f"{work} pixels", f"{work} latents")
    return figures


def format_table(figures: dict[str, float]) -> str:
    """The figures as Markdown."""
    rows = [
        f"| {work} | {figures[f'{work} pixels']:.3g} | {figures[f'{work} latents']:.3g} | "
        f"{figures[f'{work}: latents over pixels']:.2f} |"
        for work in ("train", "sample")
    ]
    once = ", ".join(f"{name} {figures[name]:.3g}" for name in ("encode", "decode", "train autoencoder"))
    head = ["| images per second | pixels | latents | latents over pixels |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, "", f"images per second of the first stage: {once}"])


def main(words: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    figures = measure(options.rounds, options.batch, options.steps, torch.device(options.device))
    print(format_table(figures))
    reached = min(figures[f"{work}: latents over pixels"] for work in ("train", "sample")) >= BAR
    print(f"\nbar: {BAR:g} times in both: {'reached' if reached else 'missed'}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
