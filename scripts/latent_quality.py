"""Diffusion in latents beside diffusion in pixels at equal quality: digits, brought to 32 x 32 pixels.

    python scripts/latent_quality.py [--seed 1] [--autoencoder 4000] [--pixels 2000 4000 8000] [--latents 2000 4000 8000 16000]
        [--steps 3 5 10] [--samples 300] [--output outputs/latent_quality]

The digits of scikit-learn, enlarged by bilinear interpolation. Autoencoder: `SmallKL` with 16 channels, to 4 x 8 x 8. Two
U-Nets of 1.2 M parameters: one in its latents, one in pixels, narrow at the fine sides, which trains three times the images
per second of that of experiment=photo_patches. Each number of images is a training of its own, whose learning rate falls to 0
at its end.
Batches of 16, learning rate 0.002, no dropout, a class in ten dropped; unguided samples by dpmpp_2m in 10 steps.

Quality: the Frechet distance (FD) from the training digits, in the features of a classifier of 32 x 32 digits, of pictures as
bytes, latents decoded; besides, the share whose label the classifier agrees with, and recall. Equal quality: the images and
steps that latents need for the FD of each model in pixels, between budgets interpolated in logarithms. Seconds are CPU seconds
of one thread, from alternating rounds. Bar: 3 times as fast in both, at the best FD that pixels reached. Writes
latent_quality.json, latent_quality.png (curves) and latent_quality_grid.png. Models and samples are kept, so that the same
command goes on where it was stopped. Takes ten minutes of CPU time.
"""

import argparse
import copy
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from benchmarks.clocks import Clock, Work, alternate
from benchmarks.equal_quality import (
    Row,
    compare_sampling,
    compare_training,
    draw_figure,
    format_equal,
    format_qualities,
)
from figure_files import load_or_make
from latent_speed import BAR, training_step
from torch import Tensor
from torch.nn import functional

from diffguide import to_uint8
from diffguide.backbones import UNet
from diffguide.datasets import Dataset, Digits, Split
from diffguide.evaluation.quality.frechet import Moments, frechet_distance
from diffguide.evaluation.quality.local import Local, load_images
from diffguide.evaluation.quality.precision_recall import precision_recall
from diffguide.figures.image_grids import draw_grid, write_png
from diffguide.files import safetensors as archives
from diffguide.first_stages import Autoencoder, SmallKL
from diffguide.first_stages.encoding import encode_dataset
from diffguide.first_stages.latent_data import LatentDataset
from diffguide.objectives import AutoencoderObjective, Denoising, Objective
from diffguide.samplers import DPMpp2M, generate
from diffguide.schedules import Cosine
from diffguide.training import Training

SIDE, CLASSES = 32, 10
BATCH, RATE, STEPS = 16, 0.002, 10
NEIGHBOURS = 3  # of recall


def enlarge_digits() -> Dataset:
    """The digits of 8 x 8 pixels at 32 x 32."""
    data = Digits()
    splits = [
        Split(functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False), y)
        for x, y in (data.train, data.validation, data.test)
    ]
    return Dataset(*splits, class_names=data.class_names)


def build_network(kind: str) -> UNet:
    """The network in pixels or in latents, 1.2 M parameters each."""
    if kind == "latents":
        return UNet(4, None, CLASSES, 8, dropout=0.0, channels_last=True)
    return UNet(
        1, None, CLASSES, SIDE, channels=16, multipliers=(1, 2, 4, 4), blocks=1, attention=(8,), dropout=0.0,
        channels_last=True, narrow_upsampling=True,
    )  # fmt: skip


class Judge:
    """judge(pictures, y) -> figures of quality, of bytes [N, 1, 32, 32] that should show the digits y."""

    def __init__(self, data: Dataset, steps: int, cache: Path):
        self.features = Local(steps, cache=str(cache))
        self.features.prepare(data, torch.device("cpu"), lambda done, total, unit: None)
        self.reference = self.features(load_images(data, "train")[0]).features
        self.moments = Moments(self.reference.shape[1]).add(self.reference)

    def __call__(self, pictures: Tensor, y: Tensor) -> Row:
        features, logits = self.features(pictures)
        assert logits is not None
        moments = Moments(features.shape[1]).add(features)
        return {
            "fd": frechet_distance(moments, self.moments),
            "agreed": float((logits.argmax(1) == y).double().mean()),
            "recall": precision_recall(self.reference, features, NEIGHBOURS).recall,
        }


def load_or_train(path: Path, objective: Objective, data: Dataset, images: int, seed: int) -> Objective:
    """The averaged objective of a training of its own, whose weights are kept in a file."""
    if path.exists():
        objective.load_state_dict(archives.read_sealed(path)[0])
        return objective.eval()
    never = 10**9
    plan = Training(
        images=images, batch_size=BATCH, learning_rate=RATE, warmup_images=images // 10, ema_images=max(1, images // 20),
        validation_images=never, checkpoint_images=never, sample_images=never,
    )  # fmt: skip
    trained = plan.run(objective, data, seed=seed)
    archives.write_sealed(path, trained.state_dict(), {"images": images, "seed": seed})
    return trained


class Comparison:
    """The models of one seed, and their figures.

    Arguments:
        chosen: the options of the command.
    """

    def __init__(self, chosen: argparse.Namespace):
        self.chosen, self.pixels = chosen, enlarge_digits()
        self.folder = chosen.output / f"seed_{chosen.seed}_autoencoder_{chosen.autoencoder}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.judge = Judge(self.pixels, chosen.classifier, chosen.output / "features")
        self.models: dict[str, Objective] = {}
        self.latents = self.train_first_stage()
        self.pictures: dict[str, Tensor] = {}
        self.limits = self.judge_real()
        self.curves: dict[str, list[Row]] = {"pixels": [], "latents": []}
        self.steps: dict[str, list[Row]] = {"pixels": [], "latents": []}

    def train_first_stage(self) -> LatentDataset:
        """The digits, encoded by an autoencoder that is trained first."""
        torch.manual_seed(self.chosen.seed)
        objective = AutoencoderObjective(SmallKL(self.pixels.shape[0], SIDE, channels=16))
        self.models["autoencoder"] = self.train("autoencoder", objective, self.pixels, self.chosen.autoencoder)
        stage = self.models["autoencoder"].model
        assert isinstance(stage, Autoencoder)
        return encode_dataset(stage, self.pixels)

    def train(self, name: str, objective: Objective, data: Dataset, images: int) -> Objective:
        return load_or_train(self.folder / f"{name}_{images}.safetensors", objective, data, images, self.chosen.seed)

    def judge_real(self) -> dict[str, Row]:
        """The quality of held-out digits, and of their reconstructions."""
        original, y = load_images(self.pixels, "validation")
        space = self.latents.space
        made = to_bytes(space.decode(space.encode(self.pixels.preprocess(self.pixels.validation.x))))
        self.pictures |= {"held-out digits": original, "reconstructed": made}
        error = float((made.double() - original.double()).square().mean())
        psnr = 10 * math.log10(255**2 / error)
        return {"held-out digits": self.judge(original, y), "reconstructed": self.judge(made, y) | {"psnr": psnr}}

    @torch.no_grad()
    def draw(self, kind: str, steps: int, count: int) -> Tensor:
        """Samples of the last model of a kind as bytes [N, 1, 32, 32], the classes in turn."""
        data = {"pixels": self.pixels, "latents": self.latents}[kind]
        batches = generate(
            self.models[kind].model,
            DPMpp2M(steps),
            range(count),
            [k % CLASSES for k in range(count)],
            data.shape,
            batch_size=100,
        )
        return to_bytes(torch.cat([self.latents.space.decode(x) if kind == "latents" else x for x in batches]))

    def judge_samples(self, kind: str, images: int, steps: int) -> tuple[Tensor, Row]:
        count = self.chosen.samples
        path = self.folder / f"{kind}_{images}_steps_{steps}_samples_{count}.npy"
        pictures = load_or_make(path, partial(self.draw, kind, steps, count))
        return pictures, self.judge(pictures, torch.arange(len(pictures)) % CLASSES)

    def follow(self, kind: str, budgets: Sequence[int]) -> None:
        """Trains a model of every budget, and samples the last one with every number of steps."""
        for images in budgets:
            torch.manual_seed(self.chosen.seed)
            model = Denoising(build_network(kind), Cosine(), p_uncond=0.1)
            data = self.pixels if kind == "pixels" else self.latents
            self.models[kind] = self.train(kind, model, data, images)
            self.pictures[f"{kind}, {images}"], row = self.judge_samples(kind, images, STEPS)
            self.add(self.curves[kind], kind, {"images": images} | row)
        for steps in self.chosen.steps:
            self.add(self.steps[kind], kind, {"steps": steps} | self.judge_samples(kind, budgets[-1], steps)[1])

    def add(self, rows: list[Row], kind: str, row: Row) -> None:
        rows.append(row)
        print(kind, *(f"{name} {value:.4g}" for name, value in row.items()), sep="  ", flush=True)

    def measure_seconds(self) -> dict[str, float]:
        """Seconds per image of training steps, of encoding, and of drawing with each number of steps."""
        inputs = {"pixels": self.pixels, "latents": self.latents, "autoencoder": self.pixels}
        works: dict[str, Work] = {}
        for name, data in inputs.items():
            x, y = data.preprocess(data.train.x[:BATCH]), data.train.y[:BATCH]
            works[f"train {name}"] = training_step(copy.deepcopy(self.models[name]).train().requires_grad_(True), x, y)
        pictures = self.pixels.preprocess(self.pixels.train.x[:BATCH])
        works["encode"] = partial(self.latents.space.encode, pictures)
        for kind in self.steps:
            works |= {f"sample {kind} {steps}": partial(self.draw, kind, steps, BATCH) for steps in self.chosen.steps}
        spent = alternate(works, Clock(torch.device("cpu")), self.chosen.rounds)
        return {name: statistics.median(values) / BATCH for name, values in spent.items()}


def to_bytes(x: Tensor) -> Tensor:
    """Pictures [N, C, H, W] as bytes."""
    return torch.from_numpy(to_uint8(x)).movedim(-1, 1)


def report(found: Comparison, seconds: Mapping[str, float]) -> str:
    """The figures as Markdown."""
    judged = dict(found.limits)
    judged |= {f"{kind}, {row['images']} images": row for kind, rows in found.curves.items() for row in rows}
    judged |= {f"{kind}, {row['steps']} steps": row for kind, rows in found.steps.items() for row in rows}
    equal = {"images": compare_training(found.curves, seconds), "steps": compare_sampling(found.steps, seconds)}
    best = [min(rows, key=lambda row: row.fd).ratio for rows in equal.values()]
    autoencoder = found.chosen.autoencoder * seconds["train autoencoder"]
    encoding = len(found.pixels.train.y) * seconds["encode"]
    psnr = found.limits["reconstructed"]["psnr"]
    parts = [format_qualities(judged), *(format_equal(unit, rows) for unit, rows in equal.items())]
    parts += [f"once: autoencoder {autoencoder:.0f} s ({psnr:.1f} dB), encoding {encoding:.1f} s"]
    parts += [f"images per second: {', '.join(f'{name} {1 / value:.3g}' for name, value in seconds.items())}"]
    verdict = "reached" if min(best) >= BAR else "missed"
    parts += [f"bar: {BAR:g} times in both at the best FD of pixels: {verdict} ({best[0]:.2f}, {best[1]:.2f})"]
    return "\n\n".join(parts)


def write_files(folder: Path, found: Comparison, seconds: Mapping[str, float]) -> None:
    facts = {"limits": found.limits, "training": found.curves, "sampling": found.steps, "seconds": seconds}
    text = json.dumps({"seed": found.chosen.seed} | facts, indent=1)
    (folder / "latent_quality.json").write_text(text + "\n", encoding="utf-8")
    draw_figure(folder / "latent_quality.png", found.curves, found.steps, seconds)
    rows = [list(pictures[: 2 * CLASSES].movedim(1, -1).numpy()) for pictures in found.pictures.values()]
    write_png(folder / "latent_quality_grid.png", draw_grid(rows, list(found.pictures), []))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--classifier", type=int, default=150, help="steps of the classifier that judges, 100 images each"
    )
    parser.add_argument("--autoencoder", type=int, default=4000, help="training images of the autoencoder")
    parser.add_argument("--pixels", type=int, nargs="+", default=[2000, 4000, 8000], help="of the models in pixels")
    parser.add_argument("--latents", type=int, nargs="+", default=[2000, 4000, 8000, 16000], help="of those in latents")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 10], help="of sampling")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5, help="in which seconds are measured")
    parser.add_argument("--output", type=Path, default=Path("outputs/latent_quality"))
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)
    chosen.output.mkdir(parents=True, exist_ok=True)
    found = Comparison(chosen)
    for kind, budgets in (("pixels", chosen.pixels), ("latents", chosen.latents)):
        found.follow(kind, sorted(budgets))
    seconds = found.measure_seconds()
    print(report(found, seconds))
    write_files(chosen.output, found, seconds)


if __name__ == "__main__":
    main()
