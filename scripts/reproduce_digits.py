"""A table of all objectives, each trained on the digits, sampled and measured by the same commands.

    scripts/reproduce_digits.sh --seeds 1                  # about an hour on two cores
    scripts/reproduce_digits.sh --seeds 3 --split test     # continues an earlier call
    scripts/reproduce_digits.sh --rows vdm,cdm --folder outputs/mine --jobs 1 --without ode

--jobs rows and seeds run in parallel and share the cores. Each stage is one command of diffguide, run in <folder>, and is
recorded in <row>_<seed>.json with its arguments and its output folder: a stage recorded with the same arguments is skipped,
and an interrupted training is resumed. Both splits use the same trained models and samples. `ROWS` has the numbers of
training images, samples and examples; --images and --examples lower them for a quick check. Prints the table, and writes
<split>.md and <split>.csv: means over the seeds, with their standard deviation if there are several.

Columns: bits/dim by the variational bound, by the probability-flow ODE (100 examples), and by the log-density of the model in
one pass; accuracy on the split, and milliseconds to classify one image; label accuracy, FD (local features, to the training
split), precision and recall of 1000 samples; seconds of training; network evaluations per sample. No setting was chosen on the
test split.

Ablations: cdm_ce and cdm_mse (one term of the loss), energy_ce and jem_ce (the same network and images, cross-entropy only),
and the plain classifier of noisy images.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SAMPLES, ODE = 1000, 100  # samples of a row, examples of an ODE
BOUND = 6.0  # log-SNR of z_0, where the decoder starts: sigma = 0.4 grey values


class Row(NamedTuple):
    """The commands of a row.

    train, sample: arguments, None = no samples. likelihoods: of elbo, ode, log_density. accuracy: the metric of the accuracy.
    start: log-SNR of z_0, None = that of the schedule. density: arguments of all likelihoods. ode: of the ODE only.
    """

    train: tuple[str, ...]
    sample: tuple[str, ...] | None = ()
    likelihoods: tuple[str, ...] = ("elbo", "ode")
    accuracy: str = "zero_shot"
    start: float | None = BOUND
    density: tuple[str, ...] = ()
    ode: tuple[str, ...] = ()

    def add(self, *train: str) -> "Row":
        """Returns a copy with additional training arguments."""
        return self._replace(train=(*self.train, *train))


CDM = Row(
    ("experiment=cdm_digits", "training.images=30000"),
    ("sampler=ddim", "sampler.steps=20"),
    ("log_density",),
    "classification",
    None,
    ("metric/dequantization=uniform",),
)
ENERGY = Row(("experiment=energy_digits",), accuracy="classification")
JEM = Row(("experiment=jem_digits",), ("sampler=sgld", "sampler.steps=100"), (), "classification")
ROWS = {
    "x0": Row(("objective=x0",)),
    "eps": Row(("objective=eps",)),
    "v": Row(("objective=v",)),
    "score": Row(("objective=score",)),
    "flow": Row(("objective=flow", "schedule=flow")),
    "edm": Row(("objective=edm", "schedule=edm")),
    "sliced": Row(("objective=sliced", "backbone.double_differentiable=true", "training.images=30000")),
    "ncsn": Row(("experiment=ncsn_digits",), ("sampler=annealed_langevin",)),
    "vdm": Row(("experiment=vdm_digits",), start=None),
    "cdm": CDM._replace(likelihoods=("log_density", "ode"), ode=("metric/solver=levels",)),
    "cdm_ce": CDM.add("objective=cdm_ce"),
    "cdm_mse": CDM.add("objective=cdm_mse"),
    "tre": CDM.add("objective=tre", "sampler.steps=10")._replace(sample=None),
    "nce": CDM.add("objective=nce")._replace(sample=None),
    "energy": ENERGY,
    "energy_ce": ENERGY.add("objective.mse_weight=0")._replace(sample=None, likelihoods=()),
    "jem": JEM,
    "jem_ce": JEM.add("objective.ml_weight=0", "objective.energy_l2=0")._replace(sample=None),
    "classifier": Row(("experiment=digits_classifier",), None, (), "classification"),
}
COLUMNS = {
    "elbo": ("bits/dim, bound", 3), "ode": ("bits/dim, ODE", 3), "log_density": ("bits/dim, one pass", 3),
    "accuracy": ("accuracy", 3), "classify": ("ms to classify one", 1), "agreed": ("label accuracy", 3), "fd": ("FD", 2),
    "precision": ("precision", 3), "recall": ("recall", 3), "seconds": ("seconds to train", 0),
    "evaluations": ("evaluations per sample", 0),
}  # fmt: skip


class Stages:
    """The stages of one row and seed: {name: {"arguments": of its command, "folder": of its output}}.

    Arguments:
        folder: of the whole table, where the commands run.
        name: of the row and seed.
        threads: of one command.
    """

    def __init__(self, folder: Path, name: str, threads: int = 1):
        self.folder, self.name, self.threads, self.path = folder, name, threads, folder / f"{name}.json"
        self.done = json.loads(self.path.read_text()) if self.path.exists() else {}

    def run(self, stage: str, command: str, *arguments: str, resume: tuple[str, ...] = ()) -> Path:
        """Runs a command unless it was run before, and returns its output folder.

        Arguments:
            resume: replaces the arguments, to continue an interrupted command.
        """
        if self.done.get(stage, {}).get("arguments") != list(arguments):
            print(f"{self.name}: {stage}", file=sys.stderr, flush=True)
            result = subprocess.run(
                [sys.executable, "-m", f"diffguide.{command}", *(resume or arguments), f"name={self.name}_{stage}"],
                cwd=self.folder,
                env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
                stdout=subprocess.PIPE,
                text=True,
            )
            if result.returncode:
                raise SystemExit(f"{self.name}: {stage} failed; run the script again to continue")
            self.record(stage, {"arguments": list(arguments), "folder": result.stdout.strip().splitlines()[-1]})
        return (self.folder / self.done[stage]["folder"]).resolve()

    def train(self, *arguments: str) -> Path:
        """Trains, or resumes an interrupted training; returns the run."""
        runs = sorted((self.folder / "outputs/train" / f"{self.name}_train").glob("v*"))
        if self.done.get("begun", {}).get("arguments") != list(arguments):
            self.record("begun", {"arguments": list(arguments), "earlier": len(runs)})
        new = [run for run in runs[self.done["begun"]["earlier"] :] if any(run.glob("checkpoints/*.safetensors"))]
        resume = (f"resume={new[-1].relative_to(self.folder)}",) if new else ()
        return self.run("train", "train", *arguments, resume=resume)

    def record(self, stage: str, facts: dict[str, object]) -> None:
        self.done[stage] = facts
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.done, indent=1))
        os.replace(temporary, self.path)


def read_figure(folder: Path, start: str) -> float:
    """The figure of an evaluation whose name starts with `start`."""
    figures = json.loads((folder / "metrics.json").read_text())["figures"]
    return next(figure["value"] for name, figure in figures.items() if name.startswith(start))


def seconds_of(run: Path) -> float:
    """The training time of a run, summed over the processes that continued it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    return sum(now for now, after in zip(seconds, [*seconds[1:], 0.0]) if after < now)


def measure_row(
    stages: Stages,
    row: Row,
    seed: int,
    split: str,
    images: int | None,
    examples: int | None,
    without: Sequence[str] = (),
) -> dict[str, float]:
    """Runs all stages of a row for one seed, and returns its figures."""
    run = stages.train(*row.train, f"seed={seed}", *([f"training.images={images}"] if images else []))
    checkpoint, count = f"checkpoint={run}", examples or SAMPLES
    all_examples = [f"split={split}", *([f"n={examples}"] if examples else [])]
    figures = {"seconds": seconds_of(run)}
    if row.sample is not None:
        new = [f"n={count}", f"seed={seed * SAMPLES}", "batch_size=250"]
        samples = stages.run("samples", "sample", checkpoint, *row.sample, *new)
        compared = [f"metric.samples={samples}", f"metric.count={count}"]
        quality = stages.run(f"{split}_quality", "evaluate", checkpoint, f"split={split}", "metric=quality", *compared)
        for name, start in {"agreed": "agreed", "fd": "fd_", "precision": "precision", "recall": "recall"}.items():
            figures[name] = read_figure(quality, start)
        manifest = json.loads((samples / "manifest.jsonl").read_text().splitlines()[0])
        figures["evaluations"] = manifest["network_evaluations"]
    density = [*row.density, *([] if row.start is None else [f"metric.log_snr_max={row.start}"])]
    for estimate in row.likelihoods:
        if estimate in without:
            continue
        chosen = [*all_examples, *density]
        if estimate == "ode":
            chosen = [f"split={split}", f"n={min(ODE, count)}", *density, *row.ode]
        evaluation = stages.run(f"{split}_{estimate}", "evaluate", checkpoint, f"metric={estimate}", *chosen)
        figures[estimate] = read_figure(evaluation, "nll_")
    evaluation = stages.run(f"{split}_accuracy", "evaluate", checkpoint, f"metric={row.accuracy}", *all_examples)
    facts = json.loads((evaluation / "metrics.json").read_text())
    seconds = facts.get("seconds_per_image_and_level", facts["seconds"] / facts["n"])
    return figures | {"accuracy": read_figure(evaluation, "accuracy"), "classify": 1e3 * seconds}


def format_cell(values: list[float], digits: int) -> str:
    """Mean and, for several seeds, standard deviation; a dash if nothing was measured."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{digits}f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="training seeds 0, 1, ...")
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, separated by commas")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--folder", type=Path, default=Path("outputs/reproduce_digits"))
    parser.add_argument("--jobs", type=int, default=2, help="rows and seeds that run in parallel and share the cores")
    parser.add_argument("--images", type=int, help="training images of every row")
    parser.add_argument("--examples", type=int, help="samples, and examples of every measurement; default: 1000, all")
    parser.add_argument("--without", nargs="+", choices=("elbo", "ode"), default=(), help="likelihoods to skip")
    options = parser.parse_args(arguments)
    names = options.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"there is no row {unknown[0]}: {', '.join(ROWS)}")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // options.jobs)
    settings = options.split, options.images, options.examples, options.without
    with ThreadPoolExecutor(options.jobs) as pool:
        rows: dict[str, list[Future]] = {name: [] for name in names}
        for name, seed in itertools.product(names, range(options.seeds)):
            stages = Stages(folder, f"{name}_{seed}", threads)
            rows[name].append(pool.submit(measure_row, stages, ROWS[name], seed, *settings))
        try:
            collect_rows(folder / options.split, rows)
        finally:
            pool.shutdown(cancel_futures=True)
    print(folder.joinpath(f"{options.split}.md").read_text())


def collect_rows(path: Path, rows: dict[str, list[Future]]) -> None:
    """Waits for the rows, and writes the table after each of them."""
    table = []
    for name, runs in rows.items():
        results = [run.result() for run in runs]
        line = {"objective": name}
        for column, (title, digits) in COLUMNS.items():
            line[title] = format_cell([figures[column] for figures in results if column in figures], digits)
        table.append(line)
        write_table(path, table)


def write_table(path: Path, table: list[dict[str, str]]) -> None:
    """Writes path.csv and path.md."""
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    lines = ["| " + " | ".join(table[0]) + " |", "|" + "---|" * len(table[0])]
    lines += ["| " + " | ".join(line.values()) + " |" for line in table]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
