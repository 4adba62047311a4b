"""Whether two checkouts compute the same, bit for bit: trains, samples and evaluates with each of them and compares.

    python scripts/compare_checkouts.py BEFORE AFTER [--images 2048]

Runs the default training, experiment=vdm_digits and experiment=cdm_digits (seed 0), a sampling from each and an evaluation
of the first, all on the CPU with one thread. Compares every tensor of the last checkpoint, every number of metrics.jsonl except
times, every sample and every figure of the evaluation. Prints a line for each; exit code 1 if anything differs. About five
minutes per checkout on one core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TRAININGS = {
    "digits": ["engine.precision=32-true"],
    "vdm_digits": ["experiment=vdm_digits"],
    "cdm_digits": ["experiment=cdm_digits"],
}
SAMPLINGS = {
    "digits": ["n=20", "guidance=cfg", "guidance.scale=3", "sampler.steps=8"],
    "vdm_digits": ["n=10", "guidance=none", "sampler=ddpm", "sampler.steps=8"],
    "cdm_digits": ["n=10", "sampler.steps=8"],
}
TIMES = {"seconds", "images_per_second", "eta", "data_wait"}


def run_command(checkout: Path, folder: Path, command: str, words: list[str]) -> Path:
    """Runs a command of a checkout in a folder, and returns the run folder, which it prints last."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    words = [sys.executable, "-m", f"diffguide.{command}", *words]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed in {checkout}:\n{done.stderr}")
    return folder / done.stdout.splitlines()[-1]


def flatten(value, name: str = "") -> dict[str, object]:
    """The leaves of a JSON value by their path, without times."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for part, inner in parts for key, leaf in flatten(inner, f"{name}.{part}").items()}
    return {} if name.rpartition(".")[2] in TIMES else {name: value}


def read_training(run: Path) -> dict[str, object]:
    """The tensors of the last checkpoint and the numbers of the log."""
    checkpoint = max((run / "checkpoints").glob("*.safetensors"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return load_file(checkpoint) | flatten(rows)


def compute(checkout: Path, folder: Path, images: int) -> dict[str, dict[str, object]]:
    """Runs the commands of a checkout, and returns for each run its tensors and numbers by name."""
    length = [f"training.{key}={images}" for key in ("images", "sample_images", "checkpoint_images")]
    results, runs = {}, {}
    for name, words in TRAININGS.items():
        runs[name] = run_command(checkout, folder, "train", [*words, *length, "training.validation_images=1024"])
        results[f"train {name}"] = read_training(runs[name])
    for name, words in SAMPLINGS.items():
        sampled = run_command(checkout, folder, "sample", [f"checkpoint={runs[name]}", *words])
        results[f"sample {name}"] = dict(np.load(sampled / "samples.npz"))
    evaluated = run_command(checkout, folder, "evaluate", [f"checkpoint={runs['digits']}", "n=64"])
    figures = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))["figures"]
    return results | {"evaluate digits": flatten(figures)}


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Names of the values that only one side has, or that differ in any bit (nan equals nan)."""

    def same(name: str) -> bool:
        one, two = np.asarray(before[name]), np.asarray(after[name])
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()

    return [name for name in sorted({*before, *after}) if not (name in before and name in after and same(name))]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Whether two checkouts compute the same, bit for bit.")
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--images", type=int, default=2048, help="length of each training")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for number, checkout in enumerate(options.checkouts):
            folder = Path(scratch, str(number))
            folder.mkdir()
            results.append(compute(checkout.resolve(), folder, options.images))
    before, after = results
    found = {run: differences(before[run], after[run]) for run in before}
    for run, names in found.items():
        print(
            f"{run}: {len(before[run])} values, {f'{len(names)} differ: ' + ', '.join(names[:5]) if names else 'equal'}"
        )
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
