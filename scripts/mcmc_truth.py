"""Samples of sampler=mcmc and sampler=pcg against the law that guidance names: on exact distributions and on trained networks.

    python scripts/mcmc_truth.py [mixtures] [networks] [--n 1000] [--steps 50] [--seeds 1 2 3] [--output outputs/mcmc_truth]

mixtures    the laws of fkc_truth.py, guided by cfg at scale 3: energy distance to the tilted law over its floor, the distance
            of two exact sets, and the evaluations per sample.
networks    trains experiment=cdm_gmm2d with classes for every seed (three minutes on one core; a run that is there is
            used), and samples scale 3 by the ODE, the SDE, and chains with acceptance on the same network. The law is that of
            the true mixture. Bar: half of CFG's distance; an acceptance of 40 to 95 % at every level. Draws scatter.png.

The arguments of the chains were chosen on seed 0. A quarter of an hour on one core, without the trainings.
"""

import argparse
from pathlib import Path

import torch
from fkc_truth import MIXTURE_SCALE, mixtures, sample
from torch import Tensor

import diffguide
from diffguide.evaluation.quality.distances import energy_distance
from diffguide.figures.scatter import build_background, write_scatter
from diffguide.guidance import ClassifierFree
from diffguide.models.evaluation_counters import count_evaluations
from diffguide.models.protocols import Denoiser, Tally
from diffguide.oracles import GMM2DLaw, Oracle, TiltedLaw
from diffguide.samplers import DDIM, DDPM, MCMC, Chain, Sampler, UniformLogSNR
from diffguide.train import main as train

EXACT_SETS = 5
SHOWN = 400  # points of a panel
WIDTH = 0.1  # a component of gmm2d has the standard deviation 0.15
ULA, PAPER = Chain(0.1, adjusted=False, burn_in=0), Chain(None, adjusted=False, burn_in=0)


def exact_sets(oracle: Oracle, labels: Tensor) -> tuple[list[Tensor], float]:
    """Sets of the tilted law, and the mean distance of two."""
    law = TiltedLaw(oracle, ClassifierFree(oracle, MIXTURE_SCALE).tilt())
    sets = [law.sample(len(labels), torch.Generator().manual_seed(k), labels)[0] for k in range(2 * EXACT_SETS)]
    return sets[:EXACT_SETS], float(sum(map(energy_distance, sets[:EXACT_SETS], sets[EXACT_SETS:]))) / EXACT_SETS


def print_row(
    name: str,
    guided: Denoiser,
    tally: Tally,
    sampler: Sampler,
    labels: Tensor,
    sets: list[Tensor],
    floor: float,
    seed: int,
) -> Tensor:
    """Samples, and prints the distance, its ratio to the floor, the evaluations per sample, and the range of acceptance."""
    tally.evaluations, tally.means = 0, {}
    x = sample(guided, sampler, labels, seed)
    distance = float(sum(energy_distance(x, exact) for exact in sets)) / len(sets)
    rates = [total / count for total, count in tally.means.get("acceptance", {}).values()]
    acceptance = f"{min(rates):.2f} to {max(rates):.2f}" if rates else ""
    evaluations = tally.evaluations / len(labels)
    print(f"| {name} | {distance:.5f} | {distance / floor:.2f} | {evaluations:.0f} | {acceptance} |", flush=True)
    return x


def compare_mixtures(options: argparse.Namespace) -> None:
    """Prints a table per law."""

    def move() -> DDIM:
        return DDIM(options.steps, UniformLogSNR())

    samplers = {
        "ODE (ddim)": move(), "SDE (ddpm)": DDPM(options.steps, UniformLogSNR()),
        "mcmc, mala": MCMC(move()), "mcmc, hmc": MCMC(move(), Chain(leapfrogs=4), 8),
        "mcmc, ula": MCMC(move(), ULA), "pcg, 1 correction": MCMC(move(), PAPER, 1, guided_moves=False),
        "pcg, 10 corrections": MCMC(move(), PAPER, 10, guided_moves=False),
    }  # fmt: skip
    for name, oracle in mixtures().items():
        counted, tally = count_evaluations(oracle)
        labels = torch.arange(options.n) % oracle.num_classes
        sets, floor = exact_sets(oracle, labels)
        print(f"\n| {name} | distance | floors | evaluations | acceptance |\n|---|---|---|---|---|")
        for title, sampler in samplers.items():
            guided = ClassifierFree(counted, MIXTURE_SCALE)
            print_row(title, guided, tally, sampler, labels, sets, floor, options.seeds[0])


def train_network(seed: int, output: Path) -> Denoiser:
    """The network of a seed, trained where it is not there yet."""
    name = f"cdm_classes_{seed}"
    if not list((output / "train" / name).glob("v*/samples/*2000384.png")):  # written last
        chosen = ["experiment=cdm_gmm2d", "backbone.num_classes=4", "guidance=cfg", f"seed={seed}"]
        train([*chosen, f"name={name}", f"output_root={output}"])
    model = diffguide.load(max((output / "train" / name).iterdir()))
    assert isinstance(model, Denoiser)
    return model


def compare_networks(options: argparse.Namespace) -> None:
    """Prints a table per seed, and draws the last one."""
    law = GMM2DLaw()
    labels = torch.arange(options.n) % law.num_classes
    sets, floor = exact_sets(law, labels)
    samplers = {
        "ODE (ddim)": DDIM(100), "SDE (ddpm)": DDPM(100),
        "mcmc, mala": MCMC(DDIM(options.steps), Chain(width=WIDTH)),
        "mcmc, hmc": MCMC(DDIM(options.steps // 2), Chain(leapfrogs=4, width=WIDTH), 10),
    }  # fmt: skip
    for seed in options.seeds:
        counted, tally = count_evaluations(train_network(seed, options.output))
        guided = ClassifierFree(counted, MIXTURE_SCALE)
        panels = [("the law", sets[0])]
        print(f"\n| seed {seed} | distance | floors | evaluations | acceptance |\n|---|---|---|---|---|")
        for title, sampler in samplers.items():
            panels.append((title, print_row(title, guided, tally, sampler, labels, sets, floor, seed)))
    shown = [(title, x[:SHOWN].numpy(), labels[:SHOWN].tolist()) for title, x in panels]
    write_scatter(options.output / "scatter.png", shown, list(map(str, range(4))), build_background(None, 2))
    print(options.output / "scatter.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"mixtures": compare_mixtures, "networks": compare_networks}
    parser.add_argument("parts", nargs="*", help=", ".join(parts))
    parser.add_argument("--n", type=int, default=1000, help="samples")
    parser.add_argument("--steps", type=int, default=50, help="levels of the chains")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of training and sampling")
    parser.add_argument("--output", type=Path, default=Path("outputs/mcmc_truth"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.parts or parts:
        parts[part](options)


if __name__ == "__main__":
    main()
