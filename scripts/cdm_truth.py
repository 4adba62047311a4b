"""The error of the log-density of a classifier of the noise level, on mixtures with known density.

    python scripts/cdm_truth.py [--datasets gmm2d anisotropic] [--seeds 0 1 2]
        [--objectives cdm cdm_ce cdm_mse tre nce] [--output outputs/cdm_truth]

Trains experiment=cdm_gmm2d (three minutes on one core) for every data set and seed by diffguide-train. Prints the mean
|log p - log p_exact| in nats at t = 0 and over all levels, on new exact samples (bar: 0.10 on gmm2d at t = 0); the excess of
the squared error of eps over that of the exact denoiser, averaged over the levels with noise (bar: 3 %), and the mean of the
ratios of the levels; cross-entropy and accuracy of the levels (metric=levels); seconds of training; and the entropy of the
data. The ablations are --objectives cdm_ce (cross-entropy only) and cdm_mse (squared error only); tre and nce have densities
only, nce at t = 0 only. The figures of every level are written to outputs/cdm_truth/<run>.csv.
"""

import argparse
import csv
import time
from pathlib import Path

import torch

import diffguide
from diffguide.config.build import config_dir
from diffguide.datasets import Dataset
from diffguide.evaluation.classification.level_metric import LevelAccuracy
from diffguide.evaluation.likelihood.density_error import DensityError
from diffguide.evaluation.metric import EvalContext
from diffguide.files.run_folders import write_atomically
from diffguide.train import main as train

COLUMNS = "abs_error", "abs_error_all_levels", "excess", "excess_ratios", "entropy"


def build_data(name: str) -> Dataset:
    """A data set with few examples: the metrics draw new ones from its distribution."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", [f"dataset={name}", "backbone=mlp", "dataset.train=100", "name=data"])
    return instantiate(cfg.dataset, _convert_="all")


def measure_run(data: str, objective: str, seed: int, options: list[str], output: Path) -> list[str]:
    """Trains a run, writes its figures per level, and returns the cells of its row."""
    name, started = f"{data}_{objective}_{seed}", time.perf_counter()
    chosen = ["experiment=cdm_gmm2d", f"dataset={data}", f"objective={objective}", f"seed={seed}"]
    steps = ["sampler.steps=10"] if objective == "tre" else []
    train([*chosen, f"name={name}", f"output_root={output}", *steps, *options])
    seconds = time.perf_counter() - started
    model = diffguide.load(max((output / "train" / name).iterdir()))
    context = EvalContext(model, build_data(data), "test", seed=seed)
    density = DensityError(max(model.steps, 1), 1000, False).measure(context)
    columns = list(dict.fromkeys(column for line in density.curve for column in line))
    with open(output / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(density.curve)
    figures = [f"{density.figures[column].value:.4f}" if column in density.figures else "-" for column in COLUMNS]
    levels = LevelAccuracy(16, False, 20).measure(context).figures
    level_cells = [f"{levels['cross_entropy'].value:.3f}", f"{levels['accuracy'].value:.4f}"]
    return [data, objective, str(seed), *figures, *level_cells, f"{seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["gmm2d", "anisotropic"], help="of a known law")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument("--objectives", nargs="+", choices=("cdm", "cdm_ce", "cdm_mse", "tre", "nce"), default=["cdm"])
    parser.add_argument("--options", nargs="+", default=[], help="more overrides of diffguide-train")
    parser.add_argument("--output", type=Path, default=Path("outputs/cdm_truth"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ["data", "objective", "seed", *COLUMNS, "cross_entropy", "accuracy", "seconds"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    print("\n".join(lines), flush=True)
    for data in arguments.datasets:
        for objective in arguments.objectives:
            for seed in arguments.seeds:
                cells = measure_run(data, objective, seed, arguments.options, arguments.output)
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    write_atomically(arguments.output / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(arguments.output / "table.md")


if __name__ == "__main__":
    main()
