"""Overhead of the library over bare network work: medians of ratios, measured in alternating rounds.

    python scripts/benchmark.py [--device cuda] [--rounds 15] [--parts samplers levels] [--samplers ddim heun]

Samplers: one run of 64 images with the default network, relative to as many bare calls of that network (bar: 1.05
deterministic, 1.15 stochastic), and the time of the sampler with a network that does nothing, which does not drift with the
machine. Training: images/s of metrics.jsonl, relative to bare forward, backward, clip and step of the same objective on the
same batches (bar: 95 %). Start: seconds of --help. Oracle: one call (bar: 100 ms). Classifier of the noise level: its training
and sampling steps relative to those of a plain denoiser with the same trunk, for heads of 64, 128 and 512 channels (bar: 3 up
to 128; the paper has 512).
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

from diffguide.config.build import config_dir
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
WRAPPERS = "langevin_pc", "restart"  # their steps are those of what they wrap


def components(*overrides: str):
    """The composed training configuration, its data and its objective with fresh weights."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, "name=benchmark"])
    OmegaConf.resolve(cfg)
    torch.manual_seed(0)
    backbone, schedule = instantiate(cfg.backbone), instantiate(cfg.schedule)
    data = instantiate(cfg.dataset)
    return cfg, data, instantiate(cfg.objective, backbone, schedule, _convert_="all")


def timed(work, device: torch.device) -> float:
    """Seconds of one call, with the queue of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alternating(first, second, rounds: int) -> tuple[float, float, float]:
    """Medians of two alternating measurements, and of their ratio per pair, since the speed of a machine drifts.

    The first round is not counted; the order alternates.
    """
    pairs = []
    for k in range(rounds + 1):
        a, b = (first(), second()) if k % 2 else (second(), first())
        pairs.append((a, b) if k % 2 else (b, a))
    medians = [statistics.median(column) for column in zip(*pairs[1:])]
    return *medians, statistics.median(a / b for a, b in pairs[1:])


def samplers(device: torch.device, rounds: int, names: list[str]) -> None:
    _, data, objective = components()
    model = objective.model.eval().to(device)
    labels = [i % model.num_classes for i in range(BATCH)]
    x, y = torch.randn(BATCH, *data.shape, device=device), torch.tensor(labels, device=device)
    log_snr = torch.zeros(BATCH, device=device)
    for name in names:
        steps = "sampler.inner.steps=20" if name in WRAPPERS else "sampler.steps=20"
        cfg, _, _ = components(*f"sampler={name}".split(), steps)
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

        _, theirs, ratio = alternating(lambda: timed(whole, device), lambda: timed(bare, device), rounds)
        with mock.patch.object(model.backbone, "forward", lambda x, log_snr, y: x):
            own = statistics.median(timed(whole, device) for _ in range(rounds + 1))
        bar = 1.15 if sampler.stochastic else 1.05
        print(
            f"sampler {name:21} {calls:3} calls {1e3 * theirs / calls:8.2f} ms each   {ratio:6.3f} x (bar {bar})"
            f"   own {1e3 * own / calls:5.2f} ms, {own / theirs:5.1%}"
        )


def oracle(device: torch.device, rounds: int) -> None:
    """A mixture of 1,000 components with full covariances, 4,096 points of the plane, one noise level, float64."""
    rng = torch.Generator().manual_seed(0)
    weights, means = torch.rand(1000, generator=rng), torch.randn(1000, 2, generator=rng)
    factors = 0.1 * torch.randn(1000, 2, 2, generator=rng, dtype=torch.float64)
    covariances = factors @ factors.mT + 1e-3 * torch.eye(2)
    mixture = GaussianMixture(weights, means, covariances, torch.arange(1000) % 10, Cosine(12.0, -12.0)).to(device)
    x, t = torch.randn(4096, 2, generator=rng, dtype=torch.float64).to(device), torch.tensor(0.3, dtype=torch.float64)
    times = [timed(lambda: mixture(x, t), device) for _ in range(rounds + 1)][1:]
    print(f"oracle    {1e3 * statistics.median(times):6.1f} ms (bar 100 on two cores)")


def training(device: torch.device, rounds: int, steps: int = 20) -> None:
    size = components()[0].training.batch_size
    accelerator = "cuda" if device.type == "cuda" else "cpu"
    cfg, data, fresh = components(f"training.images={size * steps}", f"engine.accelerator={accelerator}")
    recipe, engine = instantiate(cfg.training, _convert_="all"), instantiate(cfg.engine)
    engine.launch()

    def loop() -> float:
        with tempfile.TemporaryDirectory() as folder:
            recipe.run(copy.deepcopy(fresh), data, folder, seed=0, engine=engine)
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

        return steps * size / timed(work, device)

    recipe.log_images = size * steps
    with contextlib.redirect_stderr(io.StringIO()):  # no progress between the rows
        ours, theirs, ratio = alternating(loop, bare, rounds)
    print(f"training  {ours:8.0f} images/s of {theirs:8.0f} bare   {ratio:6.1%} (bar 95 %)")


def level_classifier(device: torch.device, rounds: int) -> None:
    """objective=cdm, whose prediction is a gradient, against a plain denoiser with the same trunk: 64 images."""
    _, data, plain = components("objective=eps")
    x, y = data.train.x[:BATCH].to(device), data.train.y[:BATCH].to(device)
    t = torch.tensor(0.5, dtype=torch.float64)

    def step(objective) -> float:
        rng = torch.Generator(device).manual_seed(0)
        return timed(lambda: objective(x, y, rng).per_example.mean().backward(), device)

    @torch.no_grad()
    def answer(objective) -> float:
        return timed(lambda: objective.model(x, t, y), device)

    plain = plain.to(device)
    for head in (64, 128, 512):
        objective = components("objective=cdm", "backbone=unet_levels", f"backbone.head={head}")[2].to(device)
        for what, work in (("training", step), ("sampling", answer)):
            ours, theirs, ratio = alternating(lambda: work(objective), lambda: work(plain), rounds)
            bar = " (bar 3)" if head <= 128 else ""
            print(
                f"cdm       head {head}, a {what} step {1e3 * ours:7.1f} ms, of the plain denoiser {1e3 * theirs:7.1f} ms   "
                f"{ratio:5.2f} x{bar}"
            )


def start() -> None:
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
        "start": start,
        "oracle": lambda: oracle(device, rounds),
        "samplers": lambda: samplers(device, rounds, arguments.samplers),
        "training": lambda: training(device, rounds),
        "levels": lambda: level_classifier(device, rounds),
    }
    for part in arguments.parts:
        work[part]()


if __name__ == "__main__":
    main()
