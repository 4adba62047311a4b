"""The endpoints of learned flow maps against the exact guided flow, beside solvers with as many network calls.

    python scripts/flow_map_truth.py [--laws gmm2d tree] [--seeds 1 2 3] [--scales 1 2 3] [--n 1000]
        [--output outputs/flow_map_truth]

Trains objective=flow_map on gmm2d and on the tree of autoguidance, with the exact denoiser under classifier-free guidance as
the teacher, one student for all scales from 1 to 3 (`STUDENTS`), and jumps from noise to data with 1, 2, 4 and 8 calls. Euler,
Heun, DPM-Solver++(2M) and DEIS of order 3 follow the exact denoiser itself on the best of three grids for each number of
calls, so their error has no part of training. The error is the root mean square, over samples and coordinates, of the distance
to the endpoint of the exact guided flow from the same noise.

A guided evaluation of a solver is two calls of a network, at scale 1 one call; a jump is one call at every scale. The table
has both counts. Bar: the curve of the student lies below all solvers up to 8 evaluations, though its evaluations are calls
and theirs are pairs of calls. Writes flow_map_truth.csv, .md and .png. Two minutes of training on gmm2d and four on the tree,
per student on one core.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from figure_files import load_or_make, load_or_train, write_picture, write_table
from torch import Tensor

from diffguide.files.run_folders import write_atomically
from diffguide.guidance import ClassifierFree, Distilled
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import Denoiser
from diffguide.oracles import AutoguidanceTree, GMM2DLaw, Oracle, flow_map
from diffguide.randomness import Noise
from diffguide.samplers import DEIS, DPMpp2M, Euler, Heun, Jump, Sampler
from diffguide.samplers.grids import Grid, Karras, UniformLogSNR, UniformT
from diffguide.schedules import EDM, Cosine, Schedule

CALLS = [1, 2, 4, 8]
GRIDS: dict[str, Grid] = {
    "uniform_t": UniformT(),
    "karras": Karras(7.0, None, None),
    "uniform_log_snr": UniformLogSNR(),
}
SOLVERS: dict[str, Callable[[int, Grid], Sampler]] = {
    "euler": Euler,
    "heun": Heun,
    "dpmpp_2m": DPMpp2M,
    "deis": lambda steps, grid: DEIS(steps, grid, order=3),
}
LAWS: dict[str, tuple[type[Oracle], Schedule]] = {
    "gmm2d": (GMM2DLaw, Cosine()),
    "tree": (AutoguidanceTree, EDM(log_snr_max=-2 * math.log(0.002), log_snr_min=-2 * math.log(5))),
}
COMMON = [
    "backbone=mlp", "objective=flow_map", "objective/jump=shortcut", "objective.scales=[1,3]", "objective.jump_share=0.75",
    "objective.path_share=0.4", "training.images=1600000", "training.learning_rate=0.004", "training.warmup_images=20000",
    "training.log_images=100000",
    *(f"training.{key}_images=100000000" for key in ("validation", "checkpoint", "sample")),
]  # fmt: skip
ORACLES = "+objective.teacher={_target_:diffguide.oracles.laws."
STUDENTS = {  # chosen on seed 0, stated on others
    "gmm2d": ["dataset=gmm2d", "training.batch_size=1024", "training.ema_images=30000", ORACLES + "GMM2DLaw}"],
    "tree": [
        "dataset=tree", "schedule=edm", "schedule.log_snr_max=12.429216196844383", "schedule.log_snr_min=-3.2188758248682006",
        "objective.parameterization._target_=diffguide.models.parameterizations.EDM", "backbone.fourier_scale=1.0",
        "training.images=2400000", "training.batch_size=512", "training.ema_images=20000",
        ORACLES + "AutoguidanceTree,schedule:${schedule}}",
    ],
}  # fmt: skip


def count_calls(sampler: Sampler, denoiser: Denoiser, x: Tensor) -> int:
    """Evaluations of the denoiser per sample."""
    counter = EvaluationCounter(denoiser)
    sampler(counter, x[:1], sampler.times(denoiser))
    return counter.tally.evaluations


def solve(name: str, calls: int, law: Oracle, guided: Denoiser, x: Tensor, y: Tensor) -> list[tuple[str, Tensor]]:
    """(Grid, endpoints) of a solver with as many evaluations as possible, at most `calls`, on every grid."""
    found = []
    for grid_name, grid in GRIDS.items():
        for steps in range(calls, 0, -1):
            sampler = SOLVERS[name](steps, grid)
            if count_calls(sampler, law, x) <= calls:
                found.append((grid_name, sampler(guided, x, sampler.times(guided), y)))
                break
    return found


def root_mean_square(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def measure_law(name: str, students: dict[int, Denoiser], arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of the table: every solver and the students with every number of calls, at every scale."""
    build, schedule = LAWS[name]
    law, n, one = build(schedule=schedule), arguments.n, torch.tensor(1.0, dtype=torch.float64)
    y = torch.arange(n) % law.num_classes
    x = schedule.alpha_sigma(one)[1] * Noise(range(n), law.shape, schedule, dtype=torch.float64).normal(one, 0)
    rows: list[dict[str, object]] = []
    for scale in arguments.scales:
        guided = ClassifierFree(law, scale)
        file = arguments.output / "endpoints" / f"{name}_{scale:g}_{n}.npy"
        exact = load_or_make(file, lambda: flow_map(guided, x, one, 0 * one, y, 1e-8))
        for calls in CALLS:
            facts = {"law": name, "scale": scale, "evaluations": calls}
            for solver in SOLVERS:
                ends = [(root_mean_square(end - exact), grid) for grid, end in solve(solver, calls, law, guided, x, y)]
                error, grid = min(ends)
                network = calls if scale == 1 else 2 * calls
                rows.append(
                    {**facts, "network_calls": network, "method": solver, "grid": grid, "error": error, "sd": ""}
                )
            jump, errors = Jump(calls), []
            for model in students.values():
                student = Distilled(model, scale)
                errors.append(root_mean_square(jump(student, x.float(), jump.times(student), y) - exact))
            spread = stdev(errors) if len(errors) > 1 else ""
            rows.append({**facts, "network_calls": calls, "method": "jump", "grid": "uniform_t", "error": mean(errors),
                         "sd": spread})  # fmt: skip
    return rows


def compare(rows: Sequence[dict[str, object]]) -> list[str]:
    """A row per law and scale: the error of every method with every number of evaluations, and whether the bar is reached."""
    methods = [*SOLVERS, "jump"]
    lines = [
        "| law | scale | evaluations | " + " | ".join(methods) + " | jump / best solver |",
        "|---" * (len(methods) + 4) + "|",
    ]
    cells: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        cells.setdefault((row["law"], row["scale"], row["evaluations"]), {})[str(row["method"])] = row
    for (law, scale, count), found in cells.items():
        errors = [f"{found[name]['error']:.4f}" for name in SOLVERS]
        spread = found["jump"]["sd"]
        errors.append(f"{found['jump']['error']:.4f}" + (f" ± {spread:.4f}" if spread != "" else ""))
        ratio = found["jump"]["error"] / min(found[name]["error"] for name in SOLVERS)
        lines.append(f"| {law} | {scale:g} | {count} | " + " | ".join(errors) + f" | {ratio:.2f} |")
    return lines


def draw(rows: Sequence[dict[str, object]]):
    """Error against evaluations, an axis per law and scale."""
    from matplotlib.figure import Figure

    laws, scales = (list(dict.fromkeys(row[key] for row in rows)) for key in ("law", "scale"))
    figure = Figure(figsize=(3.4 * len(scales), 2.9 * len(laws) + 0.4), layout="constrained")
    axes = figure.subplots(len(laws), len(scales), squeeze=False, sharex=True)
    for i, law in enumerate(laws):
        for j, scale in enumerate(scales):
            axis = axes[i][j]
            for name in [*SOLVERS, "jump"]:
                part = [row for row in rows if (row["law"], row["scale"], row["method"]) == (law, scale, name)]
                style = {"color": "black", "linewidth": 2} if name == "jump" else {}
                label = "jump (student)" if name == "jump" else name
                points = [row["evaluations"] for row in part], [row["error"] for row in part]
                axis.loglog(*points, marker="o", markersize=4, label=label, **style)
            axis.set_xticks(CALLS, list(map(str, CALLS)))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.set_title(f"{law}, scale {scale:g}", fontsize=10)
            if i == len(laws) - 1:
                axis.set_xlabel("evaluations (of a solver: guided)")
            if j == 0:
                axis.set_ylabel("RMS error of the endpoint")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of training")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 2.0, 3.0], help="of guidance, 1 to 3")
    parser.add_argument("--n", type=int, default=1000, help="samples")
    parser.add_argument("--options", nargs="+", default=[], help="more overrides of diffguide-train")
    parser.add_argument("--name", default="student", help="of the runs")
    parser.add_argument("--output", type=Path, default=Path("outputs/flow_map_truth"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    arguments.output.mkdir(parents=True, exist_ok=True)
    for law in arguments.laws:
        words = [*COMMON, *STUDENTS[law], *arguments.options]
        students = {
            seed: load_or_train(arguments.output, f"{law}_{arguments.name}_{seed}", *words, f"seed={seed}")
            for seed in arguments.seeds
        }
        with torch.no_grad():
            rows += measure_law(law, students, arguments)
    write_table(arguments.output / "flow_map_truth.csv", rows)
    text = "\n".join(compare(rows)) + "\n"
    write_atomically(arguments.output / "flow_map_truth.md", lambda path: path.write_text(text, encoding="utf-8"))
    write_picture(arguments.output / "flow_map_truth.png", draw(rows))
    print(text + str(arguments.output))


if __name__ == "__main__":
    main()
