"""The accuracy of the classifier of noisy digits, and its guidance of a model trained without labels.

    python scripts/classifier_guidance.py [folder = outputs/proofs/classifier_guidance]

Trains three classifiers (seeds 0, 1, 2) by experiment=digits_classifier, and one generator, the default digits model without
classes; about ten minutes on one core. Prints the accuracy on the test split at several noise levels, then the figures of
`digits_quality.py` for 1000 samples per scale: label accuracy, distance ratio, recall.
"""

import sys
from contextlib import chdir
from pathlib import Path

import digits_quality
import numpy
import torch

import diffguide
from diffguide.datasets import Digits
from diffguide.evaluation.classification.metric import accuracies
from diffguide.sample import main as sample
from diffguide.train import main as train

SEEDS, LEVELS, SCALES = (0, 1, 2), (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (0, 1, 2, 4, 8)


def newest_version(parent: Path) -> Path:
    """The newest version of a run."""
    return max(parent.iterdir(), key=lambda folder: folder.name)


def find_or_train(folder: Path, name: str, *arguments: str) -> Path:
    """The run of this name; it is trained if needed."""
    parent = folder / "outputs/train" / name
    if not parent.exists():
        with chdir(folder):
            train([*arguments, f"name={name}"])
    return newest_version(parent).resolve()


def find_or_sample(folder: Path, name: str, *arguments: str) -> Path:
    """The sampling run of this name; it is sampled if needed."""
    parent = folder / "outputs/sample" / name
    if not parent.exists():
        with chdir(folder):
            sample([*arguments, f"name={name}"])
    return newest_version(parent)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data, table = Digits(1, 8, 10), []
    classifiers = [find_or_train(folder, f"classifier_{s}", "experiment=digits_classifier", f"seed={s}") for s in SEEDS]
    print(f"{'accuracy on the test split at sigma/alpha':44}", *(f"{level:6g}" for level in LEVELS))
    for seed, run in zip(SEEDS, classifiers):
        table.append(accuracies(diffguide.load(run), data.test.x, data.test.y, LEVELS, seed))
        print(f"{f'seed {seed}':44}", *(f"{value:6.1%}" for value in table[-1]))
    print(f"{'mean':44}", *(f"{value:6.1%}" for value in numpy.mean(table, axis=0)))
    generator = find_or_train(folder, "unconditional", "backbone.num_classes=0", "guidance=none")
    guided = [f"checkpoint={generator}", "guidance=classifier", f"guidance.classifier={classifiers[0]}"]
    runs = []
    for scale in SCALES:
        scaled = [*guided, f"guidance.scale={scale}", "n=1000", "batch_size=250"]
        runs.append(str(find_or_sample(folder, f"scale_{scale}", *scaled)))
    digits_quality.main(runs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/proofs/classifier_guidance"))
