"""Samples of an oracle compared with exact samples of it: distances, moments and log-densities, each with its floor."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ...oracles import Oracle, TiltedLaw
from ...randomness import fold
from .distances import (
    covariance_error,
    deviation_ratio,
    directions,
    energy_distance,
    mean_error,
    sliced_wasserstein,
    wasserstein,
)

__all__ = ["compare_with_oracle", "compare_with_tilted", "select_compared", "table_figures"]

NUM_EXACT_SETS = 5  # pairs of exact sets
NUM_DIRECTIONS = 64
MAX_SAMPLES_OF = {  # costs: n^3, n log n, n^2
    "wasserstein_2": 1000,
    "sliced_wasserstein_2": 20000,
    "energy_distance": 2000,
}
TILTED_DISTANCES = ["sliced_wasserstein_2", "energy_distance"]  # the quick ones
MAX_TILTED = 2000  # samples that are compared with a tilted law, whose exact samples take longer
MAX_NUMBERS = 2**22  # values of a set of samples
END = torch.tensor(0.0, dtype=torch.float64)  # the time t at which samplers end
COMPARED_PURPOSE, DIRECTIONS_PURPOSE, EXACT_SETS_PURPOSE, END_NOISE_PURPOSE = 1, 2, 3, 4  # purposes of the seed
TILTED_PURPOSE = 5

Distance = Callable[[Tensor, Tensor], float]


def seeded_generator(*words: int) -> torch.Generator:
    return torch.Generator().manual_seed(fold(*words))


def select_compared(n: int, dimensions: int, seed: int) -> list[int]:
    """The indices of the samples that are compared, ascending: all, or the maximum number of random ones.

    They are random because the first samples, or every k-th, may have few of the classes.
    """
    count = min(n, max(MAX_SAMPLES_OF.values()), max(1, MAX_NUMBERS // dimensions))
    return torch.randperm(n, generator=seeded_generator(seed, COMPARED_PURPOSE))[:count].sort().values.tolist()


def compare_with_oracle(
    oracle: Oracle,
    x: Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    seed: int,
    store: Callable[[Tensor], Tensor],
) -> dict[str, Any]:
    """Compares samples with the distribution of an oracle with the same labels.

    Every distance is the mean over 5 exact sets; `floor` is the mean distance between 5 pairs of exact sets of the same size
    and labels, `floor_std` their standard deviation. A sampler is exact if its distance is the floor, within a few floor_std.
    Moments are compared with the 5 sets together. Distances are in units of x, moments in standard deviations of the
    distribution. Vectors that are not finite (`not_finite` of them) have the distance nan.

    Arguments:
        oracle: on the CPU.
        x: samples [n, ...] as they are stored.
        labels: class per sample, -1 = no condition.
        class_names: one per class.
        seed: of the exact sets, which are independent of the noise of samples with this seed.
        store: maps exact samples [n, ...] to their stored values, for example by rounding.
    """
    y = torch.tensor(labels)
    sets = []
    for k in range(2 * NUM_EXACT_SETS):
        exact, _ = oracle.sample(len(x), seeded_generator(seed, EXACT_SETS_PURPOSE, k), y)
        sets.append(store(exact).double())
    x = x.double()
    flat = [part.flatten(1) for part in sets]
    samples, first, second = x.flatten(1), flat[:NUM_EXACT_SETS], flat[NUM_EXACT_SETS:]
    result: dict[str, Any] = {}
    if x.ndim == 2:  # images are stored as bytes, which are always finite
        result["not_finite"] = int((~samples.isfinite().all(1)).sum())
    result |= all_distances(samples, first, second, y, name_classes(y, class_names), seed)
    truth = torch.cat(second)
    result["moments"] = {
        name: {"error": error(samples, truth)} | floor_statistics([error(part, truth) for part in first])
        for name, error in {"mean": mean_error, "covariance": covariance_error}.items()
    }
    repeated = y.repeat(NUM_EXACT_SETS)
    ratios = [deviation_ratio(part, truth, y, repeated) for part in first]
    result["deviation"] = {"ratio": deviation_ratio(samples, truth, y, repeated)} | exact_statistics(ratios)
    if x.ndim == 2:
        with suppress(ValueError):  # an empirical distribution has no density if the schedule ends without noise
            result["log_density"] = compare_log_density(oracle, x, y, sets[:NUM_EXACT_SETS], seed)
    return result


def compare_with_tilted(
    law: TiltedLaw,
    x: Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    seed: int,
    store: Callable[[Tensor], Tensor],
) -> dict[str, Any]:
    """The distances of samples from the law that their guidance names, each with its floor, as of `compare_with_oracle`.

    At most MAX_TILTED random ones of the samples are compared.

    Raises:
        ValueError: a law that is not normalisable.
    """
    order = torch.randperm(len(x), generator=seeded_generator(seed, COMPARED_PURPOSE))
    rows = order[:MAX_TILTED].sort().values
    y = torch.tensor(labels)[rows]
    exact, _ = law.sample(
        2 * NUM_EXACT_SETS * len(y), seeded_generator(seed, TILTED_PURPOSE), y.repeat(2 * NUM_EXACT_SETS)
    )
    sets = [store(part).double().flatten(1) for part in exact.split(len(y))]
    samples = x[rows].double().flatten(1)
    first, second = sets[:NUM_EXACT_SETS], sets[NUM_EXACT_SETS:]
    classes = name_classes(y, class_names)
    distances = all_distances(samples, first, second, y, classes, seed, TILTED_DISTANCES)
    truth = torch.cat(second)
    repeated = y.repeat(NUM_EXACT_SETS)
    ratios = [deviation_ratio(part, truth, y, repeated) for part in first]
    deviation = {"ratio": deviation_ratio(samples, truth, y, repeated)} | exact_statistics(ratios)
    return {"law": law.tilt.describe(), "compared": len(y), **distances, "deviation": deviation}


def name_classes(y: Tensor, class_names: Sequence[str]) -> dict[int, str]:
    """The classes of samples with their names; none if some samples have no class."""
    return {} if bool((y < 0).any()) else {label: str(class_names[label]) for label in y.unique().tolist()}


def compare_log_density(oracle: Oracle, x: Tensor, y: Tensor, sets: Sequence[Tensor], seed: int) -> dict[str, float]:
    """mean log p(x | y) of the samples, and of exact sets with the noise of the schedule at t = 0."""
    exact = []
    for k, x_0 in enumerate(sets):
        noisy = noise_at_end(oracle, x_0, seeded_generator(seed, END_NOISE_PURPOSE, k))
        exact.append(mean_log_density(oracle, noisy, y))
    return {"samples": mean_log_density(oracle, x, y)} | exact_statistics(exact)


def all_distances(
    x: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    y: Tensor,
    classes: Mapping[int, str],
    seed: int,
    names: Iterable[str] = MAX_SAMPLES_OF,
) -> dict[str, Any]:
    """The named distances of samples x [n, D] from exact sets, each with its floor, over all classes and per class."""
    frames = directions(x.shape[1], NUM_DIRECTIONS, seeded_generator(seed, DIRECTIONS_PURPOSE))
    distances: dict[str, Distance] = {
        "wasserstein_2": wasserstein,
        "sliced_wasserstein_2": lambda a, b: sliced_wasserstein(a, b, frames),
        "energy_distance": energy_distance,
    }
    order = torch.randperm(len(x), generator=seeded_generator(seed, COMPARED_PURPOSE))
    result: dict[str, Any] = {}
    for name in names:
        distance = distances[name]
        rows = order[: MAX_SAMPLES_OF[name]]
        per_class = {}
        for label, class_name in classes.items():
            members = rows[y[rows] == label]
            if len(members):
                per_class[class_name] = distance_and_floor(distance, x, first, second, members)
        result[name] = distance_and_floor(distance, x, first, second, rows) | {"per_class": per_class}
    result["sliced_wasserstein_2"]["directions"] = len(frames)
    return result


def distance_and_floor(
    distance: Distance, x: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], rows: Tensor
) -> dict[str, Any]:
    """The distance of these rows of x from those of exact sets, and the distance between exact sets."""
    finite = bool(x[rows].isfinite().all())
    value = statistics.mean(distance(x[rows], part[rows]) for part in first) if finite else math.nan
    floor = floor_statistics([distance(a[rows], b[rows]) for a, b in zip(first, second)])
    return {"distance": value, **floor, "n": len(rows)}


def floor_statistics(values: Sequence[float]) -> dict[str, Any]:
    """Statistics of a figure for exact samples; the figure is 0 for infinitely many of them."""
    return {"floor": statistics.mean(values), "floor_std": statistics.stdev(values), "repetitions": len(values)}


def exact_statistics(values: Sequence[float]) -> dict[str, float]:
    """Statistics of any other figure for exact samples."""
    exact = torch.tensor(values, dtype=torch.float64)  # statistics.stdev does not support nan
    return {"exact": exact.mean().item(), "exact_std": exact.std().item()}


def noise_at_end(oracle: Oracle, x_0: Tensor, rng: torch.Generator) -> Tensor:
    """alpha x_0 + sigma eps at t = 0, float64: exact samples with the noise of the schedule at the end of samplers."""
    alpha, sigma = oracle.schedule.alpha_sigma(END)
    return alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, dtype=torch.float64)


def mean_log_density(oracle: Oracle, x: Tensor, y: Tensor) -> float:
    """mean log p(x | y) at t = 0, where samplers end."""
    return oracle.log_density(x, END, y).mean().item()


def table_figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of `compare_with_oracle` for a table."""
    figures: dict[str, float] = {}
    for name in MAX_SAMPLES_OF:
        figures |= {name: metrics[name]["distance"], f"{name}_floor": metrics[name]["floor"]}
    figures |= {f"{name}_error": part["error"] for name, part in metrics["moments"].items()}
    figures["deviation_ratio"] = metrics["deviation"]["ratio"]
    if density := metrics.get("log_density"):
        figures |= {"log_density": density["samples"], "log_density_exact": density["exact"]}
    tilted = metrics.get("tilted", {})
    for name in filter(tilted.__contains__, TILTED_DISTANCES):
        figures |= {f"{name}_tilted": tilted[name]["distance"], f"{name}_tilted_floor": tilted[name]["floor"]}
    if "deviation" in tilted:
        figures["deviation_ratio_tilted"] = tilted["deviation"]["ratio"]
    return figures
