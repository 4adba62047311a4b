"""Overhead of the library over bare network calls: medians of ratios, measured in alternating rounds.

    python scripts/benchmark.py [--device cuda] [--rounds 15] [--parts samplers levels] [--samplers ddim heun]

start: seconds of --help (bar: 0.6 s).
oracle: one call of a mixture of 1,000 components (bar: 100 ms).
samplers: 64 images with the default network, relative to the same number of bare calls of that network (bar: 1.05
    deterministic, 1.15 stochastic), and the time of the sampler with a network that does nothing.
training: images/s of metrics.jsonl, relative to bare forward, backward, clip and step of the same objective (bar: 95 %).
levels: training and sampling steps of a classifier of noise levels, relative to those of a plain denoiser with the same trunk,
    for heads of 64, 128 and 512 channels (bar: 3 up to 128; the paper has 512).

Takes minutes.
"""

import argparse
import contextlib
import copy
import io
import json
import statistics
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from diffguide.config.build import config_dir, fill_label_dropout
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.oracles import GaussianMixture
from diffguide.samplers import generate
from diffguide.schedules import Cosine

BATCH = 64
SAMPLERS = [
    "ddim", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "deis_log_rho", "lms", "ipndm", "pndm", "dpm2",
    "dpmpp_2s", "ddpm", "euler_ancestral", "euler_maruyama", "heun sampler.churn=20", "dpmpp_2m_sde", "dpmpp_3m_sde",
    "sa_solver", "langevin_pc", "annealed_langevin", "restart",
]  # fmt: skip
PARTS = "start", "oracle", "samplers", "training", "levels"
WRAPPERS = "langevin_pc", "restart"  # samplers with the steps of their inner sampler


def build_components(*overrides: str):
    """The composed training configuration, its data and its objective with new weights."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, "name=benchmark"])
    fill_label_dropout(cfg)
    OmegaConf.resolve(cfg)
    torch.manual_seed(0)
    backbone, schedule = instantiate(cfg.backbone), instantiate(cfg.schedule)
    data = instantiate(cfg.dataset)
    return cfg, data, instantiate(cfg.objective, backbone, schedule, _convert_="all")


def time_call(work, device: torch.device) -> float:
    """Seconds of one call, until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alternate(first, second, rounds: int) -> tuple[float, float, float]:
    """Medians of two alternating measurements, and of their ratio per pair, because the speed of a machine drifts.

    The first round is not counted; the order alternates.
    """
    pairs = []
    for k in range(rounds + 1):
        a, b = (first(), second()) if k % 2 else (second(), first())
        pairs.append((a, b) if k % 2 else (b, a))
    medians = [statistics.median(column) for column in zip(*pairs[1:])]
    return *medians, statistics.median(a / b for a, b in pairs[1:])


def measure_samplers(device: torch.device, rounds: int, names: list[str]) -> None:
    _, data, objective = build_components()
    model = objective.model.eval().to(device)
    labels = [i % model.num_classes for i in range(BATCH)]
    x, y = torch.randn(BATCH, *data.shape, device=device), torch.tensor(labels, device=device)
    log_snr = torch.zeros(BATCH, device=device)
    for name in names:
        steps = "sampler.inner.steps=20" if name in WRAPPERS else "sampler.steps=20"
        cfg, _, _ = build_components(*f"sampler={name}".split(), steps)
        sampler = instantiate(cfg.sampler, _convert_="all")
        counter = EvaluationCounter(model)
        list(generate(counter, sampler, range(1), labels[:1], data.shape, 1, device))
        calls = counter.tally.evaluations

        @torch.no_grad()
        def bare():
            for _ in range(calls):
                model.backbone(x, log_snr, y)

        def whole():
            list(generate(model, sampler, range(BATCH), labels, data.shape, BATCH, device))

        _, bare_seconds, ratio = alternate(lambda: time_call(whole, device), lambda: time_call(bare, device), rounds)
        with mock.patch.object(model.backbone, "forward", lambda x, log_snr, y: x):
            overhead = statistics.median(time_call(whole, device) for _ in range(rounds + 1))
        bar = 1.15 if sampler.stochastic else 1.05
        print(
            f"sampler {name:21} {calls:3} calls {1e3 * bare_seconds / calls:8.2f} ms each   {ratio:6.3f} x (bar {bar})"
            f"   without network {1e3 * overhead / calls:5.2f} ms, {overhead / bare_seconds:5.1%}"
        )


def measure_oracle(device: torch.device, rounds: int) -> None:
    """A mixture of 1,000 components with full covariances, 4,096 points of the plane, one noise level, float64."""
    rng = torch.Generator().manual_seed(0)
    weights, means = torch.rand(1000, generator=rng), torch.randn(1000, 2, generator=rng)
    factors = 0.1 * torch.randn(1000, 2, 2, generator=rng, dtype=torch.float64)
    covariances = factors @ factors.mT + 1e-3 * torch.eye(2)
    mixture = GaussianMixture(weights, means, covariances, torch.arange(1000) % 10, Cosine(12.0, -12.0)).to(device)
    x, t = torch.randn(4096, 2, generator=rng, dtype=torch.float64).to(device), torch.tensor(0.3, dtype=torch.float64)
    times = [time_call(lambda: mixture(x, t), device) for _ in range(rounds + 1)][1:]
    print(f"oracle    {1e3 * statistics.median(times):6.1f} ms (bar 100 on two cores)")


def measure_training(device: torch.device, rounds: int, steps: int = 20) -> None:
    size = build_components()[0].training.batch_size
    accelerator = "cuda" if device.type == "cuda" else "cpu"
    cfg, data, fresh = build_components(f"training.images={size * steps}", f"engine.accelerator={accelerator}")
    recipe, engine = instantiate(cfg.training, _convert_="all"), instantiate(cfg.engine)
    engine.launch()

    def loop() -> float:
        with tempfile.TemporaryDirectory() as folder:
            recipe.run(copy.deepcopy(fresh), data, folder, engine=engine)
            lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
            rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
        return rates[-1]

    def bare() -> float:
        objective = copy.deepcopy(fresh).to(device)
        optimizer = recipe.optimizer(objective.parameters(), lr=recipe.learning_rate)
        x, y = data.train.x[:size].to(device), data.train.y[:size].to(device)
        rng = torch.Generator(device).manual_seed(0)

        def work():
            for _ in range(steps):
                objective(x, y, rng).per_example.mean().backward()
                torch.nn.utils.clip_grad_norm_(objective.parameters(), recipe.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()

        return steps * size / time_call(work, device)

    recipe.log_images = size * steps
    with contextlib.redirect_stderr(io.StringIO()):  # hides the progress
        looped, bare_rate, ratio = alternate(loop, bare, rounds)
    print(f"training  {looped:8.0f} images/s of {bare_rate:8.0f} bare   {ratio:6.1%} (bar 95 %)")


def measure_level_classifier(device: torch.device, rounds: int) -> None:
    """objective=cdm, whose prediction is a gradient, compared with a plain denoiser with the same trunk: 64 images."""
    _, data, plain = build_components("objective=eps")
    x, y = data.train.x[:BATCH].to(device), data.train.y[:BATCH].to(device)
    t = torch.tensor(0.5, dtype=torch.float64)

    def step(objective) -> float:
        rng = torch.Generator(device).manual_seed(0)
        return time_call(lambda: objective(x, y, rng).per_example.mean().backward(), device)

    @torch.no_grad()
    def predict(objective) -> float:
        return time_call(lambda: objective.model(x, t, y), device)

    plain = plain.to(device)
    for head in (64, 128, 512):
        objective = build_components("objective=cdm", "backbone=unet_levels", f"backbone.head={head}")[2].to(device)
        for name, work in (("training", step), ("sampling", predict)):
            seconds, plain_seconds, ratio = alternate(lambda: work(objective), lambda: work(plain), rounds)
            bar = " (bar 3)" if head <= 128 else ""
            print(
                f"cdm       head {head}, a {name} step {1e3 * seconds:7.1f} ms, of the plain denoiser "
                f"{1e3 * plain_seconds:7.1f} ms   {ratio:5.2f} x{bar}"
            )


def measure_start() -> None:
    script = Path(sysconfig.get_path("scripts")) / "diffguide-train"
    times = []
    for _ in range(6):
        started = time.perf_counter()
        subprocess.run([script, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    print(f"--help    {statistics.median(times[1:]):6.2f} s (bar 0.6)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds per measurement")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {name}, {arguments.rounds} rounds")
    rounds = arguments.rounds
    work = {
        "start": measure_start,
        "oracle": lambda: measure_oracle(device, rounds),
        "samplers": lambda: measure_samplers(device, rounds, arguments.samplers),
        "training": lambda: measure_training(device, rounds),
        "levels": lambda: measure_level_classifier(device, rounds),
    }
    for part in arguments.parts:
        work[part]()


if __name__ == "__main__":
    main()
