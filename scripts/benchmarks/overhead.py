"""Overhead of the library over bare calls of the same network: samplers, training loop, oracles, classifiers of levels."""

import contextlib
import copy
import io
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
from hydra.utils import instantiate

from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.oracles import GaussianMixture
from diffguide.samplers import generate
from diffguide.schedules import Cosine

from .clocks import Clock, alternate, median_ratio
from .components import build_objective, compose_training, cycle_labels
from .rows import Row, Session

BATCH = 64
SAMPLERS = [
    "ddim", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "deis_log_rho", "lms", "ipndm", "pndm", "dpm2",
    "dpmpp_2s", "ddpm", "euler_ancestral", "euler_maruyama", "heun sampler.churn=20", "dpmpp_2m_sde", "dpmpp_3m_sde",
    "sa_solver", "langevin_pc", "annealed_langevin", "restart",
]  # fmt: skip
WRAPPERS = "langevin_pc", "restart"  # samplers with the steps of their inner sampler
HEADS = 64, 128, 512  # channels of the heads of classifiers of noise levels; the paper has 512


def measure_samplers(session: Session, names: Sequence[str] = SAMPLERS, *overrides: str) -> Iterator[Row]:
    """64 images with the default network over as many bare calls, and the same with a network that does nothing."""
    device = session.device
    cfg = compose_training(*overrides)
    model, shape = build_objective(cfg).model.eval().to(device), instantiate(cfg.dataset).shape
    y, log_snr = cycle_labels(BATCH, device), torch.zeros(BATCH, device=device)
    x, labels = torch.randn(BATCH, *shape, device=device), y.tolist()
    for name in names:
        steps = "sampler.inner.steps=20" if name in WRAPPERS else "sampler.steps=20"
        chosen = compose_training(*overrides, *f"sampler={name}".split(), steps)
        sampler = instantiate(chosen.sampler, _convert_="all")
        counter = EvaluationCounter(model)
        list(generate(counter, sampler, range(1), labels[:1], shape, 1, device))
        calls = counter.tally.evaluations

        @torch.no_grad()
        def bare():
            for _ in range(calls):
                model.backbone(x, log_snr, y)

        def whole():
            list(generate(model, sampler, range(BATCH), labels, shape, BATCH, device))

        seconds = alternate({"whole": whole, "bare": bare}, session.clock, session.rounds)
        with mock.patch.object(model.backbone, "forward", lambda x, log_snr, y: x):
            own = statistics.median(alternate({"own": whole}, session.clock, session.rounds)["own"])
        spent = statistics.median(seconds["bare"])
        figures = {"calls": calls, "seconds_per_bare_call": spent / calls, "own_seconds_per_call": own / calls}
        text = f"{1e3 * spent / calls:.2f} ms a call; own work {1e3 * own / calls:.2f} ms, {own / spent:.1%} of a call"
        bar = f"at most {1.15 if sampler.stochastic else 1.05}"
        ratio = median_ratio(seconds, "whole", "bare")
        yield Row("samplers", f"{BATCH} images", name, text, ratio, f"{calls} bare calls", bar, figures)


def measure_oracle(session: Session, components: int = 1000, points: int = 4096) -> Iterator[Row]:
    """One call of a mixture with full covariances, on points of the plane, at one noise level, in float64."""
    rng = torch.Generator().manual_seed(0)
    weights, means = torch.rand(components, generator=rng), torch.randn(components, 2, generator=rng)
    factors = 0.1 * torch.randn(components, 2, 2, generator=rng, dtype=torch.float64)
    covariances = factors @ factors.mT + 1e-3 * torch.eye(2)
    labels = torch.arange(components) % 10
    mixture = GaussianMixture(weights, means, covariances, labels, Cosine(12.0, -12.0)).to(session.device)
    x = torch.randn(points, 2, generator=rng, dtype=torch.float64).to(session.device)
    t = torch.tensor(0.3, dtype=torch.float64)
    spent = statistics.median(alternate({"call": lambda: mixture(x, t)}, session.clock, session.rounds)["call"])
    case, text = f"{points} points, float64", f"{1e3 * spent:.1f} ms a call"
    yield Row("oracle", case, f"{components} components", text, bar="at most 100 ms", figures={"seconds": spent})


def measure_training(session: Session, steps: int = 20, *overrides: str) -> Iterator[Row]:
    """Images/s of metrics.jsonl over those of bare forward, backward, clip and step of the same objective."""
    device = session.device
    size = compose_training(*overrides).training.batch_size
    cfg = compose_training(*overrides, f"training.images={size * steps}", f"engine.accelerator={device.type}")
    recipe, engine = instantiate(cfg.training, _convert_="all"), instantiate(cfg.engine)
    data, fresh = instantiate(cfg.dataset), build_objective(cfg)
    engine.launch()
    recipe.log_images = size * steps

    def loop() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # hides the progress
            recipe.run(copy.deepcopy(fresh), data, folder, engine=engine)
            lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
            rates.append([line["images_per_second"] for line in lines if "images_per_second" in line][-1])

    def bare() -> None:
        for _ in range(steps):
            objective(x, y, rng).per_example.mean().backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    rates: list[float] = []
    objective = copy.deepcopy(fresh).to(device)
    optimizer = recipe.optimizer(objective.parameters(), lr=recipe.learning_rate)
    x, y = data.train.x[:size].to(device), data.train.y[:size].to(device)
    rng = torch.Generator(device).manual_seed(0)
    seconds = alternate({"loop": loop, "bare": bare}, Clock(device, wall=True), session.rounds)
    bare_rates = [steps * size / spent for spent in seconds["bare"]]
    ratio = statistics.median(b / a for a, b in zip(rates[1:], bare_rates))
    text = f"{statistics.median(rates[1:]):.0f} images/s of {statistics.median(bare_rates):.0f} bare"
    figures = {
        "images_per_second": statistics.median(rates[1:]),
        "bare_images_per_second": statistics.median(bare_rates),
    }
    yield Row("training", f"batch {size}", "the loop", text, ratio, "bare steps", "at most 1.05", figures)


def measure_levels(session: Session, heads: Sequence[int] = HEADS, *overrides: str) -> Iterator[Row]:
    """objective=cdm, whose prediction is a gradient, over a plain denoiser with the same trunk."""
    device = session.device
    cfg = compose_training("objective=eps", *overrides)
    data = instantiate(cfg.dataset)
    x, y = data.train.x[:BATCH].to(device), data.train.y[:BATCH].to(device)
    t, rng = torch.tensor(0.5, dtype=torch.float64), torch.Generator(device)
    plain = build_objective(cfg).to(device)

    def step(objective) -> None:
        objective(x, y, rng.manual_seed(0)).per_example.mean().backward()

    @torch.no_grad()
    def predict(objective) -> None:
        objective.model(x, t, y)

    for head in heads:
        chosen = compose_training("objective=cdm", "backbone=unet_levels", *overrides, f"backbone.head={head}")
        levels = build_objective(chosen).to(device)
        for name, work in (("training", step), ("sampling", predict)):
            works = {"levels": lambda: work(levels), "plain": lambda: work(plain)}
            seconds = alternate(works, session.clock, session.rounds)
            milliseconds = 1e3 * statistics.median(seconds["levels"])
            bar, ratio = "at most 3" if head <= 128 else "", median_ratio(seconds, "levels", "plain")
            figures, text = {"milliseconds": milliseconds}, f"{milliseconds:.1f} ms a {name} step"
            yield Row("levels", f"{BATCH} images", f"cdm, head {head}", text, ratio, "a plain denoiser", bar, figures)
