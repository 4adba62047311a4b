"""The part `tree` of `guidance_figures.py`: autoguidance (by a weaker model) and classifier-free guidance."""

from collections.abc import Sequence
from pathlib import Path

import torch
from figure_files import (
    EVERYWHERE,
    KARRAS,
    build_oracle,
    draw_samples,
    load_or_make,
    load_or_train,
    write_picture,
    write_table,
)
from matplotlib.figure import Figure
from torch import Tensor

from diffguide.evaluation.quality.distances import energy_distance
from diffguide.guidance import Autoguidance, ClassifierFree
from diffguide.models.protocols import Denoiser
from diffguide.oracles import GaussianMixture
from diffguide.samplers import Heun

END = torch.tensor(0.0, dtype=torch.float64)  # the time t at which samplers end
SHORT = ("backbone.width=32", "training.images=524288")  # the weak model: half the width, an eighth of the training
TREE = ("oracle=autoguidance_tree", "schedule.log_snr_min=-3.2188758248682006")  # from noise level 5, as in training
TREE_SCALES = (1.5, 2.0, 3.0, 4.0)
PICTURED = 2.0  # scale of the plot, the same for both methods, so that neither is tuned
CLASS = 0  # the class that is sampled
PER_BRANCH = 8  # components of a branch


def tree(folder: Path) -> None:
    """Trains a model and a weak one, and measures and draws each method at each scale."""
    law = build_oracle(*TREE)
    good = load_or_train(folder, "tree", "experiment=tree")
    bad = load_or_train(folder, "tree_bad", "experiment=tree", *SHORT)
    guided: dict[tuple[str, float], Denoiser] = {("no guidance", 1.0): good}
    guided |= {("CFG", scale): ClassifierFree(good, scale, EVERYWHERE) for scale in TREE_SCALES}
    guided |= {("autoguidance", scale): Autoguidance(good, bad, scale, EVERYWHERE) for scale in TREE_SCALES}
    draw_tree(folder, law, guided, n=10000, steps=32)


def draw_tree(
    folder: Path, law: GaussianMixture, guided: dict[tuple[str, float], Denoiser], n: int, steps: int
) -> None:
    """Writes tree.csv, a row per method and scale, and tree.png, both methods at the scale `PICTURED` and no guidance."""
    truth, other = (exact_samples(law, n, seed) for seed in (0, 1))
    rows, panels = [{"method": "exact samples", "scale": ""} | tree_figures(law, other, truth)], [("exact law", truth)]
    for (name, scale), denoiser in guided.items():
        path = folder / f"samples/tree/{name}_{scale:g}.npy"
        x = load_or_make(path, lambda: draw_samples(denoiser, Heun(steps, KARRAS), [CLASS] * n, law.shape)).double()
        rows.append({"method": name, "scale": scale} | tree_figures(law, x, truth))
        if scale in (1.0, PICTURED):
            panels.append((name if scale == 1 else f"{name}, scale {scale:g}", x))
    write_table(folder / "tree.csv", rows)
    draw_panels(folder / "tree.png", law, panels)


def exact_samples(law: GaussianMixture, n: int, seed: int) -> Tensor:
    """Exact samples of the class with the noise of the schedule at t = 0, float64."""
    rng = torch.Generator().manual_seed(seed)
    x_0, _ = law.sample(n, rng, torch.full((n,), CLASS))
    alpha, sigma = law.schedule.alpha_sigma(END)
    return alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, dtype=torch.float64)


def tree_figures(law: GaussianMixture, x: Tensor, truth: Tensor) -> dict[str, float]:
    """Errors of samples x [n, 2] of the class relative to its exact law.

    outliers: fraction of samples with a lower log p(x | class) than 99 % of exact samples; 0.01 for exact samples.
    thinned: probability of the branches with less than a quarter of their expected samples.
    misplaced: half the sum over branches of |share of the samples - share of the law|. Outliers are on no branch.
    energy_distance: from exact samples, 4000 of each.
    """
    y = torch.full((len(x),), CLASS)
    density = law.log_density(x, END, y)
    inside = density > law.log_density(truth, END, y[:1].expand(len(truth))).quantile(0.01)
    expected = branch_weights(law)
    counts = branches_of(law, x[inside]).bincount(minlength=len(expected)) / len(x)
    return {
        "outliers": 1 - float(inside.double().mean()),
        "thinned": float(expected[counts < expected / 4].sum()),
        "misplaced": float((counts / counts.sum() - expected).abs().sum() / 2),
        "energy_distance": energy_distance(x[:4000], truth[:4000]),
    }


def branch_weights(law: GaussianMixture) -> Tensor:
    """The probability of each branch of the class, [branches]."""
    weights = torch.where(law.labels == CLASS, law.log_weights.exp(), 0.0)
    return (weights / weights.sum()).reshape(-1, PER_BRANCH).sum(1)[law.labels[::PER_BRANCH] == CLASS]


def branches_of(law: GaussianMixture, x: Tensor) -> Tensor:
    """The most probable branch of the class for each point, [n]."""
    scales = [part.reshape(1, 1) for part in law.schedule.alpha_sigma(END)]
    parts = [law.terms(part, *scales, torch.full((len(part),), CLASS))[1] for part in x.split(500)]
    branches = torch.cat([part.reshape(len(part), -1, PER_BRANCH).logsumexp(2).argmax(1) for part in parts])
    return branches - int((law.labels[::PER_BRANCH] == CLASS).nonzero()[0])


GRID = 300  # points of the density along each side
WHOLE, ZOOM = ((-0.55, 1.55), (-0.45, 1.4)), ((-0.55, 0.19), (0.32, 0.97))


def draw_panels(path: Path, law: GaussianMixture, panels: Sequence[tuple[str, Tensor]]) -> None:
    """Draws samples over the exact law: the whole tree above, the part in the frame below."""
    figure = Figure(figsize=(3.4 * len(panels), 6.4), layout="constrained")
    rows = figure.subplots(2, len(panels))
    for axes, ((left, right), (low, high)), shown, size in zip(rows, (WHOLE, ZOOM), (5000, 10000), (1.5, 5)):
        columns, lines = (torch.linspace(*ends, GRID, dtype=torch.float64) for ends in ((left, right), (low, high)))
        plane = torch.stack(torch.meshgrid(columns, lines, indexing="xy"), dim=-1).flatten(0, 1)
        density = law.log_density(plane, END, torch.full((len(plane),), CLASS)).reshape(GRID, GRID)
        for axis, (_, x) in zip(axes, panels):
            axis.contourf(columns, lines, density, levels=[-1.5, 20], colors=["0.85"])
            axis.scatter(*x[:shown].T, s=size, color="C1", linewidths=0)
            axis.set(xlim=(left, right), ylim=(low, high), aspect="equal", xticks=[], yticks=[])
    for axis, (title, _) in zip(rows[0], panels):
        axis.set_title(title)
        axis.indicate_inset([ZOOM[0][0], ZOOM[1][0], ZOOM[0][1] - ZOOM[0][0], ZOOM[1][1] - ZOOM[1][0]], edgecolor="0.4")
    write_picture(path, figure)
