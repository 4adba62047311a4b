"""The error of the log-density of a classifier of the noise level, and of its rivals, on mixtures with known density.

    python scripts/cdm_truth.py [--datasets gmm2d anisotropic] [--seeds 0 1 2] [--levels 10]
        [--objectives cdm cdm_ce cdm_mse tre nce dual_score ctsm diffclf eqm] [--budget 60] [--output outputs/cdm_truth]

Trains experiment=cdm_gmm2d (three minutes on one core) for every data set and seed by diffguide-train. Prints the mean
|log p - log p_exact| in nats at t = 0 and over all levels, on new exact samples (bar: 0.10 on gmm2d at t = 0); the excess of
the squared error of eps over that of the exact denoiser, averaged over the levels with noise (bar: 3 %), and the mean of the
ratios of the levels; the rank correlation with log p_exact at t = 0; cross-entropy and accuracy of the levels
(metric=levels); CPU seconds of training; and the entropy of the data. The ablations are --objectives cdm_ce (cross-entropy
only) and cdm_mse (squared error only); tre and nce have densities only, nce at t = 0 only; the energy of eqm is no density,
so that it has a rank correlation only. --budget trains each objective for about as many CPU seconds of one core, by the
images per second of `RATES`; without it all see the same images. The figures of every level are written to
outputs/cdm_truth/<run>.csv.
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from torch import Tensor

import diffguide
from diffguide.config.build import config_dir
from diffguide.datasets import Dataset
from diffguide.evaluation.classification.level_metric import LevelAccuracy
from diffguide.evaluation.denoising import find_law
from diffguide.evaluation.likelihood.density_error import DensityError
from diffguide.evaluation.metric import EvalContext
from diffguide.files.run_folders import write_atomically
from diffguide.models.level_classifier import LevelClassifier
from diffguide.models.protocols import LogDensity
from diffguide.schedules import Cosine
from diffguide.train import main as train

COLUMNS = "abs_error", "abs_error_all_levels", "excess", "excess_ratios", "entropy"
# images per CPU second, measured on one core of a laptop; only their ratios matter for a fair budget
RATES = {
    "cdm": 15600, "cdm_ce": 15600, "cdm_mse": 15600, "tre": 23100, "nce": 24000, "dual_score": 13800, "ctsm": 35800,
    "diffclf": 6300, "eqm": 18600,
}  # fmt: skip
ENERGY = ["backbone=mlp_energy", "backbone.num_classes=0"]
OPTIONS = {  # of an objective, beside those of experiment=cdm_gmm2d
    "tre": ["sampler.steps=10"],
    "dual_score": ENERGY,
    "ctsm": [*ENERGY, "sampler.steps=2"],
    "diffclf": [*ENERGY, "objective.compared=2", "training.batch_size=256"],
    "eqm": [
        "backbone=mlp",
        "backbone.num_classes=0",
        "backbone.noise_conditioned=false",
        "schedule=none",
        "sampler=descent",
    ],
}


def build_data(name: str) -> Dataset:
    """A data set with few examples: the metrics draw new ones from its distribution."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", [f"dataset={name}", "backbone=mlp", "dataset.train=100", "name=data"])
    return instantiate(cfg.dataset, _convert_="all")


def rank_correlation(found: Tensor, exact: Tensor) -> float:
    """Spearman's correlation of two lists of numbers."""
    ranks = torch.stack([value.argsort().argsort().double() for value in (found, exact)])
    return float(ranks.corrcoef()[0, 1])


def measure_rank(context: EvalContext, data: str, seed: int) -> float:
    """The rank correlation of the model's log-density, or minus its energy, with the exact one on 5000 exact examples."""
    law = find_law(build_data(data), Cosine())
    assert law is not None
    x, _ = law.sample(5000, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found = context.require(LogDensity).log_density(x.float(), None)
    return rank_correlation(found, law.log_density(x, None))


def measure_run(data: str, objective: str, seed: int, arguments: argparse.Namespace) -> list[str]:
    """Trains a run, writes its figures per level, and returns the cells of its row."""
    output, name, started = arguments.output, f"{data}_{objective}_{seed}", time.process_time()
    chosen = ["experiment=cdm_gmm2d", f"dataset={data}", f"objective={objective}", f"seed={seed}"]
    if arguments.budget:
        images = round(int(arguments.budget * RATES[objective]), -4)
        chosen += [f"training.{key}={images}" for key in ("images", "checkpoint_images", "sample_images")]
        chosen += [f"training.{key}={images // 20}" for key in ("warmup_images", "ema_images", "log_images")]
    train([*chosen, f"name={name}", f"output_root={output}", *OPTIONS.get(objective, []), *arguments.options])
    seconds = time.process_time() - started
    model = diffguide.load(max((output / "train" / name).iterdir()))
    context = EvalContext(model, build_data(data), "test", seed=seed)
    row = [data, objective, str(seed)]
    end = [f"{measure_rank(context, data, seed):.4f}", f"{seconds:.0f}"]
    if objective == "eqm":
        return [*row, *["-"] * (len(COLUMNS) + 2), *end]
    levels = arguments.levels or max(getattr(model, "steps", 100), 1)
    density = DensityError(levels, arguments.exact, False).measure(context)
    columns = list(dict.fromkeys(column for line in density.curve for column in line))
    with open(output / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(density.curve)
    figures = [f"{density.figures[column].value:.4f}" if column in density.figures else "-" for column in COLUMNS]
    level_cells = ["-", "-"]
    if isinstance(model, LevelClassifier):
        found = LevelAccuracy(16, False, 20).measure(context).figures
        level_cells = [f"{found['cross_entropy'].value:.3f}", f"{found['accuracy'].value:.4f}"]
    return [*row, *figures, *level_cells, *end]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["gmm2d", "anisotropic"], help="of a known law")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument("--objectives", nargs="+", choices=list(RATES), default=["cdm"])
    parser.add_argument(
        "--budget", type=float, help="CPU seconds of a training, about; none = the images of the experiment"
    )
    parser.add_argument("--levels", type=int, help="noise levels to measure; none = those of the model, or 100")
    parser.add_argument("--exact", type=int, default=1000, help="examples per level; twenty times as many at t = 0")
    parser.add_argument("--options", nargs="+", default=[], help="more overrides of diffguide-train")
    parser.add_argument("--output", type=Path, default=Path("outputs/cdm_truth"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ["data", "objective", "seed", *COLUMNS, "cross_entropy", "accuracy", "rank", "seconds"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    print("\n".join(lines), flush=True)
    for data in arguments.datasets:
        for objective in arguments.objectives:
            for seed in arguments.seeds:
                cells = measure_run(data, objective, seed, arguments)
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    write_atomically(arguments.output / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(arguments.output / "table.md")


if __name__ == "__main__":
    main()
