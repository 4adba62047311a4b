"""Every sampler option with 1, 2, 3, 5 and 10 steps on exact distributions, compared with Euler's method.

    python scripts/few_steps.py [--laws gmm2d highdim] [--schedules edm flow] [--grids default trailing] [--scales 1 3]
        [--samplers heun dpm2] [--steps 1 2 3 5 10] [--seeds 0 1 2] [--n 256] [--output outputs/few_steps]

Options are those of configs/oracle, configs/schedule, configs/sampler/grid ("default" = that of each sampler) and
configs/sampler. The figures of a run are the Wasserstein-2 distance of its samples from exact ones (with guidance=cfg and a
scale other than 1: from samples by dopri5), the floor, which is the distance of two exact sets, and the largest |value|.

The table has, for each sampler and number of steps, the largest ratio over laws, schedules, grids and scales: the mean distance
over seeds divided by that of Euler on the same grid (or by the floor, if that is larger), where it occurred, and the largest
|value|. few_steps.csv has every run. Nothing is trained. About ten minutes on one core.
"""

import argparse
import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import open_dict
from torch import Tensor

from diffguide.config.build import config_dir
from diffguide.evaluation.quality.distances import wasserstein
from diffguide.files.run_folders import write_atomically
from diffguide.guidance import ClassifierFree
from diffguide.models.protocols import Denoiser, ExactDenoiser
from diffguide.oracles import Oracle
from diffguide.randomness import Noise
from diffguide.samplers import Dopri5, Euler, Sampler
from diffguide.samplers.grids import UniformT

LAWS, SCHEDULES = ["gmm2d", "highdim", "cfg_figure", "anisotropic"], ["edm", "cosine", "flow", "linear", "ve"]
SKIPPED = {"sgld": "a chain without noise levels", "dopri5": "has adaptive steps"}
EVERYWHERE = [0.0, float("inf")]


class Run(NamedTuple):
    """A row of few_steps.csv."""

    law: str
    schedule: str
    grid: str
    scale: float
    sampler: str
    steps: int
    seed: int
    wasserstein_2: float
    floor: float
    euler: float
    largest: float

    @property
    def ratio(self) -> float:
        """The distance divided by that of Euler on the same grid, or by the floor if that is larger: samples that are too
        narrow may be closer to an exact set than another exact set."""
        return self.wasserstein_2 / max(self.euler, self.floor)


class Problem:
    """A law with its guidance, and two independent exact sets for every seed."""

    def __init__(self, law: str, schedule: str, scale: float, n: int):
        cfg = compose("sample", [f"oracle={law}", f"schedule={schedule}"])
        self.oracle: Oracle = instantiate(cfg.oracle, schedule=instantiate(cfg.schedule))
        self.denoiser: Denoiser = self.oracle
        if scale != 1:
            self.denoiser = ClassifierFree(self.oracle, scale, EVERYWHERE)
        self.y = torch.arange(n) % self.oracle.num_classes
        self.exact: dict[int, tuple[Tensor, Tensor]] = {}

    def noise(self, seed: int) -> Noise:
        first = seed * len(self.y)
        return Noise(range(first, first + len(self.y)), self.oracle.shape, self.oracle.schedule, dtype=torch.float64)

    def sets(self, seed: int) -> tuple[Tensor, Tensor]:
        """Two sets of exact samples, independent of the noise of any seed."""
        if seed not in self.exact:
            self.exact[seed] = tuple(self.draw_exact(10**6 + 2 * seed + k) for k in range(2))
        return self.exact[seed]

    def draw_exact(self, seed: int) -> Tensor:
        if self.denoiser is self.oracle:
            return self.oracle.sample(len(self.y), torch.Generator().manual_seed(seed), self.y)[0]
        return self.sample(Dopri5(1, UniformT(), 1e-6, 1e-6, 10**5, 1e-3), seed)

    def sample(self, sampler: Sampler, seed: int) -> Tensor:
        noise, times = self.noise(seed), sampler.times(self.denoiser)
        return sampler(self.denoiser, sampler.begin(self.denoiser, times, noise), times, self.y, noise)


def list_samplers() -> list[str]:
    """The options of configs/sampler with a number of steps."""
    names = sorted(path.stem for path in (Path(config_dir()) / "sampler").glob("*.yaml"))
    return [name for name in names if name not in SKIPPED]


def build_sampler(name: str, steps: int, grid: str) -> Sampler:
    """An option of configs/sampler with a number of steps, or with an inner sampler with this number of steps."""
    overrides = ["oracle=gmm2d", f"sampler={name}"]
    cfg = compose("sample", overrides).sampler
    has_inner = "inner" in cfg
    if grid != "default":
        group = "sampler/grid@sampler.inner.grid" if has_inner else "sampler/grid"
        cfg = compose("sample", [*overrides, f"{group}={grid}"]).sampler
    with open_dict(cfg):
        (cfg.inner if has_inner else cfg).steps = steps
    return instantiate(cfg, _convert_="all")


def run_all(arguments: argparse.Namespace) -> Iterator[Run]:
    """Every run; combinations that raise an error are skipped, and printed once."""
    choices = itertools.product(arguments.samplers, arguments.steps, arguments.grids)
    samplers = {choice: build_sampler(*choice) for choice in choices}
    errors: set[str] = set()
    for law in arguments.laws:
        for schedule in arguments.schedules:
            for scale in arguments.scales:
                problem = Problem(law, schedule, scale, arguments.n)
                for (name, steps, grid), sampler in samplers.items():
                    if scale != 1 and sampler.needs is ExactDenoiser:
                        continue
                    try:
                        results = [measure(problem, sampler, seed) for seed in arguments.seeds]
                    except ValueError as error:
                        errors.add(f"{name}, grid {grid}, {steps} steps: {error}")
                        continue
                    for seed, figures in zip(arguments.seeds, results):
                        yield Run(law, schedule, grid, scale, name, steps, seed, *figures)
    for line in sorted(errors):
        print(f"skipped: {line}")


def measure(problem: Problem, sampler: Sampler, seed: int) -> tuple[float, float, float, float]:
    """Distance, floor, distance of Euler on the same grid, largest |value|."""
    truth, other = (part.flatten(1) for part in problem.sets(seed))
    x = problem.sample(sampler, seed).flatten(1).double()
    by_euler = problem.sample(Euler(sampler.steps, sampler.grid), seed).flatten(1).double()
    distance = wasserstein(x, truth) if bool(x.isfinite().all()) else float("inf")
    return distance, wasserstein(other, truth), wasserstein(by_euler, truth), float(x.abs().max())


def format_table(runs: Sequence[Run], steps: Sequence[int]) -> list[str]:
    """A row per sampler: the worst ratio to Euler over the cases, and the largest |value|."""
    cells: dict = defaultdict(lambda: defaultdict(list))
    for run in runs:
        cells[run.sampler, run.steps][run.law, run.schedule, run.grid, run.scale].append(run)
    lines = ["| sampler | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|"]
    for name in dict.fromkeys(run.sampler for run in runs):
        row = []
        for count in steps:
            cases = cells[name, count]
            if not cases:
                row.append("")
                continue
            ratios = {key: mean(run.ratio for run in case) for key, case in cases.items()}
            worst = max(ratios, key=ratios.get)
            largest = max(run.largest for case in cases.values() for run in case)
            row.append(f"{ratios[worst]:.2f} ({largest:.3g}) {'/'.join(map(str, worst))}")
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", default=LAWS, help="options of configs/oracle")
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES, help="options of configs/schedule")
    parser.add_argument("--grids", nargs="+", default=["default"], help="options of configs/sampler/grid, or default")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 3.0], help="of guidance=cfg; 1 = unguided")
    parser.add_argument("--samplers", nargs="+", help="options of configs/sampler; default: all")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 3, 5, 10], help="numbers of steps")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of samples and exact sets")
    parser.add_argument("--n", type=int, default=256, help="samples of each run")
    parser.add_argument("--output", type=Path, default=Path("outputs/few_steps"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        arguments.samplers = arguments.samplers or list_samplers()
        runs = list(run_all(arguments))
    print("\n".join(format_table(runs, arguments.steps)))
    text = io.StringIO()
    csv.writer(text).writerows([Run._fields, *runs])
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_atomically(
        arguments.output / "few_steps.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8")
    )
    print(arguments.output)


if __name__ == "__main__":
    main()
