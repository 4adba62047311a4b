"""Samples of sampler=fkc against the law that guidance names, on exact distributions, and its cost on a network.

    python scripts/fkc_truth.py [gaussians] [mixtures] [cost] [--n 2000] [--particles 16] [--steps 100] [--eta 4]
        [--seed 0]

gaussians   variances 1 and 2 on the line, guided at 2, 3, 4, 8: variance of the samples over that of the law. Bar: within 3 %.
mixtures    two and four classes in the plane, and the tree of the autoguidance paper, guided by cfg at 3: energy distance to
            the tilted law over its floor, the distance of two exact sets. Bar: at most 2, and at most a third of cfg's.
cost        the network for digits with random weights: CPU time of 1 and of 8 samples over that of a plain run. On one core
            4.3 and 9.8 at K = 16, where 16 times the evaluations are made.

The first two compare fkc with the plain SDE and the ODE. Nothing is trained. For gaussians all
particles count by their weight, in place of one per sample: the expectation is the same, with less noise. Five minutes on one
core.
"""

import argparse
import time

import torch
from cost_scaling import build
from torch import Tensor

from diffguide.evaluation.quality.distances import energy_distance
from diffguide.guidance import ClassifierFree, NegativeCondition
from diffguide.models.protocols import Denoiser
from diffguide.oracles import AutoguidanceTree, GaussianMixture, Oracle, TiltedLaw
from diffguide.samplers import FKC, DPMpp2M, DPMpp2MSDE, Sampler, UniformLogSNR, generate
from diffguide.samplers.generate import initial_state
from diffguide.schedules import EDM

SCALES = [2.0, 3.0, 4.0, 8.0]
MIXTURE_SCALE = 3.0
EXACT_SETS = 5
EXACT, CPU = torch.float64, torch.device("cpu")


def mixtures() -> dict[str, Oracle]:
    """Laws with two or four classes, which overlap."""
    crossed = GaussianMixture(schedule=EDM())
    means = [[0.8, 0.8], [-0.8, 0.8], [-0.8, -0.8], [0.8, -0.8], [0.0, 0.3], [0.4, -0.2]]
    covariances = [0.16, 0.25, 0.09, 0.36, 0.5, 0.16]
    four = GaussianMixture([1, 1, 1, 1, 0.5, 0.5], means, covariances, [0, 1, 2, 3, 0, 2], EDM())
    return {"two classes": crossed, "four classes": four, "tree": AutoguidanceTree(schedule=EDM())}


def make_corrector(options: argparse.Namespace) -> FKC:
    """sampler=fkc, with four times the noise of the reverse SDE as by default."""
    return FKC(DPMpp2MSDE(options.steps, UniformLogSNR(), options.eta), options.particles)


def sample(guided: Denoiser, sampler: Sampler, labels: Tensor, seed: int, batch: int = 2000) -> Tensor:
    seeds = range(seed * 10**6, seed * 10**6 + len(labels))
    assert guided.shape is not None
    return torch.cat(list(generate(guided, sampler, seeds, labels.tolist(), guided.shape, batch, dtype=EXACT)))


def corrected_variance(guided: Denoiser, sampler: FKC, n: int, seed: int) -> tuple[float, float]:
    """The mean of the weighted x^2 over groups, and its standard error, for laws of mean 0."""
    times, groups = sampler.times(guided), []
    for first in range(0, n, 500):
        seeds = range(seed * 10**6 + first, seed * 10**6 + min(first + 500, n))
        x, y, noise = initial_state(guided, sampler, times, seeds, [0] * len(seeds), (1,), CPU, EXACT)
        x, weights = sampler.sample_particles(guided, x, times, y, noise)
        groups.append((weights.shares * x.square().reshape(len(seeds), -1)).sum(1))
    values = torch.cat(groups)
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def compare_gaussians(options: argparse.Namespace) -> None:
    """Prints the ratios of variances."""
    pair = GaussianMixture([1, 1], [[0.0], [0.0]], [1.0, 2.0], [0, 1], EDM())
    inner = DPMpp2MSDE(options.steps, UniformLogSNR())
    print("| scale | law | ODE | SDE | fkc | +- |\n|---|---|---|---|---|---|")
    for scale in SCALES:
        guided, law = NegativeCondition(pair, 1, scale), 2 / (1 + scale)
        zeros = torch.zeros(4 * options.n, dtype=torch.long)
        ode, sde = (
            float(sample(guided, sampler, zeros, options.seed).square().mean())
            for sampler in (DPMpp2M(options.steps), inner)
        )
        found, error = corrected_variance(guided, make_corrector(options), options.n, options.seed)
        ratios = " | ".join(f"{value / law:.3f}" for value in (ode, sde, found, error))
        print(f"| {scale:g} | {law:.4f} | {ratios} |", flush=True)


def compare_mixtures(options: argparse.Namespace) -> None:
    """Prints energy distances to the tilted law over the floor."""
    inner = DPMpp2MSDE(options.steps, UniformLogSNR())
    print("| law | floor | ODE | SDE | fkc |\n|---|---|---|---|---|")
    for name, oracle in mixtures().items():
        guided = ClassifierFree(oracle, MIXTURE_SCALE)
        labels = torch.arange(options.n) % oracle.num_classes
        law = TiltedLaw(oracle, guided.tilt())
        sets = [law.sample(options.n, torch.Generator().manual_seed(k), labels)[0] for k in range(2 * EXACT_SETS)]
        floor = sum(map(energy_distance, sets[:EXACT_SETS], sets[EXACT_SETS:])) / EXACT_SETS
        ratios = []
        for sampler in (DPMpp2M(options.steps), inner, make_corrector(options)):
            x = sample(guided, sampler, labels, options.seed)
            ratios.append(sum(energy_distance(x, exact) for exact in sets[:EXACT_SETS]) / EXACT_SETS / floor)
        print(f"| {name} | {floor:.5f} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


def measure_cost(options: argparse.Namespace) -> None:
    """Prints the time of 8 samples with particles over that of a plain run."""
    objective, shape = build()
    guided = ClassifierFree(objective.model.eval(), MIXTURE_SCALE)
    inner = DPMpp2MSDE(6)

    def seconds(sampler: Sampler, n: int) -> float:
        begun = time.process_time()
        list(generate(guided, sampler, range(n), [k % 10 for k in range(n)], shape, n))
        return time.process_time() - begun

    seconds(inner, 1)
    for n in (1, 8):
        plain = min(seconds(inner, n) for _ in range(4))
        corrected = min(seconds(FKC(inner, options.particles), n) for _ in range(2))
        print(f"{n} samples at once, {options.particles} particles: {corrected / plain:.1f} times a plain run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"gaussians": compare_gaussians, "mixtures": compare_mixtures, "cost": measure_cost}
    parser.add_argument("parts", nargs="*", help=", ".join(parts))
    for name, value in {"n": 2000, "particles": 16, "steps": 100, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--eta", type=float, default=4.0, help="amount of noise of the particles, 1 = the reverse SDE")
    options = parser.parse_args()
    for part in options.parts or parts:
        parts[part](options)


if __name__ == "__main__":
    main()
