"""Helpers of the scripts that draw figures: models, samples, plots and tables, which are saved and reused."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path

import numpy
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

import diffguide
from diffguide.checkpoints import store as checkpoints
from diffguide.config.build import build, config_dir
from diffguide.files.run_folders import write_atomically
from diffguide.models.protocols import Denoiser
from diffguide.oracles import GaussianMixture
from diffguide.samplers import Sampler, generate
from diffguide.samplers.grids import Karras
from diffguide.train import main as train

EVERYWHERE = (0.0, math.inf)  # interval of noise levels
KARRAS = Karras(rho=7.0, noise_level_min=None, noise_level_max=None)


def load_or_train(folder: Path, name: str, *arguments: str) -> Denoiser:
    """Loads the model of the run of this name; trains or resumes it if needed."""
    runs = sorted((folder / "outputs/train" / name).glob("v*"))
    with chdir(folder):
        if not runs:
            train([*arguments, f"name={name}"])
        elif not is_finished(runs[-1]):
            train([f"resume=outputs/train/{name}/{runs[-1].name}"])
    return diffguide.load(max((folder / "outputs/train" / name).glob("v*")))


def is_finished(run: Path) -> bool:
    """Whether a training run is complete."""
    files = checkpoints.list_checkpoints(run / "checkpoints")
    return bool(files) and int(files[-1].stem) >= OmegaConf.load(run / "config.yaml").training.images


def load_or_make(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """Calls `make` and saves its output, or loads the output of an earlier call."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        numpy.save(buffer, make().numpy())
        write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return torch.from_numpy(numpy.load(path))


def draw_samples(denoiser: Denoiser, sampler: Sampler, labels: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draws a sample per label, with the seeds 0, 1, ..."""
    return torch.cat(list(generate(denoiser, sampler, range(len(labels)), labels, shape, batch_size=1000)))


def build_oracle(*overrides: str) -> GaussianMixture:
    """Builds the oracle of `diffguide-sample` with these overrides."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("sample", list(overrides))
    return build(cfg.oracle, "oracle", kwargs={"schedule": build(cfg.schedule, "schedule")})


def write_picture(path: Path, figure: Figure) -> None:
    """Writes a PNG with a palette, which has a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    picture = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", optimize=True))


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Writes a CSV file, and prints it as a table."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
    cells = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    print("\n".join(f"| {' | '.join(row)} |" for row in [list(rows[0]), ["---"] * len(rows[0]), *cells]))
