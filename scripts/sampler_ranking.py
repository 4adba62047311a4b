"""The error of every ODE sampler against its evaluations, on the tree of the autoguidance paper with its exact denoiser.

    python scripts/sampler_ranking.py [--n 512] [--grid karras] [--output outputs/sampler_ranking]

All samplers go from the same noise at noise level 5 (log-SNR -3.2) to 0.002. The error is the root mean square, over samples
and coordinates, of the distance to the endpoint of the exact flow (dopri5, tolerance 1e-10), for 5 to 100 network evaluations.
Writes ranking.csv and ranking.png, and prints the table. Samplers with two evaluations per step get half the steps; a cell is
empty if no number of steps needs that number of evaluations. Takes minutes.
"""

import argparse
import csv
import io
import math
from pathlib import Path

import torch

from diffguide.files.run_folders import write_atomically
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.oracles import AutoguidanceTree
from diffguide.randomness import Noise
from diffguide.samplers import (
    DEIS,
    DPM2,
    IPNDM,
    LMS,
    PNDM,
    Dopri5,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    Heun,
    LogRhoDEIS,
    UniPC,
)
from diffguide.samplers.grids import Karras, UniformLogSNR
from diffguide.schedules import EDM

EVALUATIONS = [5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 30, 50, 100]
HIGH, LOW = 5.0, 0.002  # first and last noise level, as in the paper
SAMPLERS = {
    "euler = ddim": Euler,
    "heun": Heun,
    "dpm2": DPM2,
    "dpmpp_2s": DPMpp2S,
    "dpmpp_2m": DPMpp2M,
    "dpmpp_3m": DPMpp3M,
    "unipc-2": lambda steps, grid: UniPC(steps, grid, order=2),
    "unipc-3": lambda steps, grid: UniPC(steps, grid, order=3),
    "deis-3": lambda steps, grid: DEIS(steps, grid, order=3),
    "deis_log_rho-3": lambda steps, grid: LogRhoDEIS(steps, grid, order=3),
    "lms-3": lambda steps, grid: LMS(steps, grid, order=3),
    "ipndm-3": lambda steps, grid: IPNDM(steps, grid, order=3),
    "pndm": PNDM,
}
GRIDS = {"karras": Karras(7.0, None, None), "uniform_log_snr": UniformLogSNR()}


def build_problem(n: int):
    """The tree on a schedule between the two levels, n exact noisy samples, and the endpoints of their exact flow."""
    schedule = EDM(log_snr_max=-2 * math.log(LOW), log_snr_min=-2 * math.log(HIGH), rho=7.0)
    tree = AutoguidanceTree(depth=7, seed=2, schedule=schedule)
    x_0, _ = tree.sample(n, torch.Generator().manual_seed(0))
    x = x_0 + HIGH * Noise(range(n), tree.shape, schedule, dtype=torch.float64).normal(1.0, 0)
    flow = Dopri5(1, GRIDS["karras"], atol=1e-10, rtol=1e-10, max_evaluations=100000, noise_level_min=LOW)
    return tree, x, flow(tree, x, flow.times(tree))


def measure_error(make, tree, x, exact, grid, evaluations: int) -> float | None:
    """The RMS error of a sampler with exactly this number of evaluations per sample; None if no number of steps has it."""
    for steps in range(evaluations, 0, -1):
        sampler, counter = make(steps, grid), EvaluationCounter(tree)
        sampler(counter, x[:1], sampler.times(tree))
        if counter.tally.evaluations == evaluations:
            return float((sampler(tree, x, sampler.times(tree)) - exact).square().mean().sqrt())
        if counter.tally.evaluations < evaluations:
            return None
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=512, help="samples")
    parser.add_argument("--grid", choices=GRIDS, default="karras")
    parser.add_argument("--output", type=Path, default=Path("outputs/sampler_ranking"))
    arguments = parser.parse_args()
    tree, x, exact = build_problem(arguments.n)
    print(
        f"RMS of the endpoints {float(exact.square().mean().sqrt()):.3f}, grid {arguments.grid}, {arguments.n} samples"
    )
    grid = GRIDS[arguments.grid]
    table = {
        name: [measure_error(make, tree, x, exact, grid, count) for count in EVALUATIONS]
        for name, make in SAMPLERS.items()
    }
    print("| evaluations | " + " | ".join(map(str, EVALUATIONS)) + " |\n" + "|---" * (len(EVALUATIONS) + 1) + "|")
    for name, errors in table.items():
        print(f"| {name} | " + " | ".join("" if e is None else f"{e:.2g}" for e in errors) + " |")
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text).writerows([["sampler", *EVALUATIONS], *([name, *errors] for name, errors in table.items())])
    write_atomically(arguments.output / "ranking.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))
    write_atomically(arguments.output / "ranking.png", lambda path: plot(path, table, arguments.grid))
    print(arguments.output)


def plot(path: Path, table: dict[str, list[float | None]], grid: str) -> None:
    """Plots the error against evaluations, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, errors) in enumerate(table.items()):
        points = [(count, value) for count, value in zip(EVALUATIONS, errors) if value is not None]
        axes.loglog(*zip(*points), "-" if index < 10 else "--", marker="os^Dv"[index % 5], markersize=4, label=name)
    axes.set(
        xlabel="network evaluations per sample",
        ylabel="RMS distance to the endpoint of the exact flow",
        title=f"autoguidance tree, noise level {HIGH:g} to {LOW:g}, grid {grid}",
        xticks=EVALUATIONS,
        xticklabels=[str(count) if count not in (7, 9, 11) else "" for count in EVALUATIONS],
    )
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize=8)
    figure.savefig(path, dpi=120, format="png")


if __name__ == "__main__":
    main()
