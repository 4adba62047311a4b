"""The excess error of each parameterization, trained on the mixture `gmm2d`, over its exact denoiser.

    python scripts/training_truth.py [--images 1200000] [--seed 0] [--output outputs/training_truth]

Trains every objective for about a minute (one core) by diffguide-train, with noise levels uniform in log-SNR and weight 1 on
the error of the network (score: on the error of eps, which is sigma^2 as in denoising score matching). Prints, per band of
log-SNR, the excess E ||D - D_exact||^2 divided by the posterior variance, in percent. Bar: 3 % in the bands where a
parameterization is well conditioned, marked *: x0 below 2, eps and score above -2, v, flow and edm from -8 to 8. Outside
these bands the excess is large: at high noise x_0 is the output of the network times a large factor (eps, score); at low noise
a small error of x_0 is large compared with the posterior variance (x0).
"""

import argparse
import time
from pathlib import Path

import torch

import diffguide
from diffguide.evaluation.denoising import relative_excess_risk
from diffguide.files.run_folders import write_atomically
from diffguide.oracles import GMM2DLaw
from diffguide.train import main as train

EDGES = list(range(-10, 11, 2))
GOOD = {"x0": (-10, 2), "eps": (-2, 10), "score": (-2, 10), "v": (-8, 8), "flow": (-8, 8), "edm": (-8, 8)}
WEIGHTS = dict.fromkeys(GOOD, "uniform") | {"score": "uniform_eps"}
RECIPE = [
    "experiment=gmm2d", "guidance=none", "schedule=cosine", "objective/levels=uniform_log_snr",
    "training.batch_size=1024", "training.ema_images=100000", "training.log_images=100000",
    "training.validation_images=100000000", "training.checkpoint_images=100000000", "training.sample_images=100000000",
]  # fmt: skip


def measure_objective(objective: str, images: int, seed: int, output: Path) -> list[float]:
    """Trains an objective, and returns the excess per band."""
    chosen = [f"objective={objective}", f"objective/weight={WEIGHTS[objective]}"]
    train(
        [
            *RECIPE,
            *chosen,
            f"training.images={images}",
            f"seed={seed}",
            f"name={objective}",
            f"output_root={output}",
        ]
    )
    denoiser = diffguide.load(max((output / "train" / objective).iterdir()))
    return relative_excess_risk(denoiser, GMM2DLaw(denoiser.schedule), EDGES, 4096, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1200000, help="of training, per objective")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--objectives", nargs="+", choices=GOOD, default=list(GOOD))
    parser.add_argument("--output", type=Path, default=Path("outputs/training_truth"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"{low} to {high}" for low, high in zip(EDGES, EDGES[1:])]
    lines = ["| objective | " + " | ".join(names) + " | worst * |", "|---" * (len(names) + 2) + "|"]
    for objective in arguments.objectives:
        started = time.perf_counter()
        excess = measure_objective(objective, arguments.images, arguments.seed, arguments.output)
        low, high = GOOD[objective]
        has_bar = [low <= a and b <= high for a, b in zip(EDGES, EDGES[1:])]
        cells = [f"{100 * value:.2f}{'*' if bar else ''}" for value, bar in zip(excess, has_bar)]
        worst = max(value for value, bar in zip(excess, has_bar) if bar)
        lines.append(f"| {objective} | " + " | ".join(cells) + f" | {100 * worst:.2f} |")
        print(f"{lines[-1]}  ({time.perf_counter() - started:.0f} s)", flush=True)
    text = "\n".join(lines) + "\n"
    write_atomically(arguments.output / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\nexcess divided by the posterior variance, %, per band of log-SNR\n{text}{arguments.output / 'table.md'}")


if __name__ == "__main__":
    main()
