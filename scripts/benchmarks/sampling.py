"""Whole runs of samplers with classifier-free guidance over bare calls of their network, and the samplers' own work."""

import statistics
from collections.abc import Iterator
from unittest import mock

import torch
from torch import nn

from diffguide.guidance import ClassifierFree
from diffguide.samplers import DPMpp2M, Heun, Sampler, generate
from diffguide.samplers.grids import Karras
from diffguide.schedules import EVERYWHERE

from .clocks import Work, alternate, median_ratio
from .components import build_objective, compose_training, cycle_labels
from .peer_samplers import PEER_SAMPLERS, Problem
from .rows import Row, Session, why_unavailable

PART = "sampling"
SCALE = 2.0  # of the guidance
KARRAS = Karras(rho=7.0, noise_level_min=None, noise_level_max=None)
CASES: dict[str, tuple[type[Sampler], int, int]] = {  # method -> sampler, steps, calls of the network per step
    "heun": (Heun, 18, 2),
    "dpmpp_2m": (DPMpp2M, 10, 1),
}
OWN_REPEATS = 5  # runs per round where the network does nothing
OWN_BASE = "k-diffusion"
OWN_WORK = "own work"  # ends the case of a run whose network does nothing


def build_problem(batch: int, device: torch.device, *overrides: str) -> Problem:
    """The default network with new weights, and the start of a run."""
    cfg = compose_training(*overrides)
    model = build_objective(cfg).model.eval().to(device)
    shape = (cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size)
    torch.manual_seed(0)
    return Problem(model, torch.randn(batch, *shape, device=device), cycle_labels(batch, device), SCALE)


def build_runs(problem: Problem, method: str) -> tuple[dict[str, Work], dict[str, str]]:
    """(One run per library and the bare calls, the libraries that are not available and why)."""
    kind, steps, calls_per_step = CASES[method]
    sampler, calls = kind(steps, KARRAS), steps * calls_per_step
    guided = ClassifierFree(problem.model, scale=problem.scale, interval=EVERYWHERE)
    x, y = torch.cat([problem.noise] * 2), problem.both_labels
    log_snr, labels = torch.zeros(len(x), device=x.device), problem.labels.tolist()

    def own() -> None:
        list(generate(guided, sampler, range(len(labels)), labels, x.shape[1:], len(labels), x.device))

    @torch.no_grad()
    def bare() -> None:
        for _ in range(calls):
            problem.model.backbone(x, log_snr, y)

    runs: dict[str, Work] = {"diffguide": own, f"{calls} bare calls": bare}
    missing = {}
    for package, build in PEER_SAMPLERS.items():
        if reason := why_unavailable(package):
            missing[package] = reason
        else:
            runs[package] = build(problem, method, steps)
    return runs, missing


def count_calls(run: Work, network: nn.Module) -> int:
    """How often a run calls the network."""
    calls: list[int] = []
    hook = network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    run()
    hook.remove()
    return len(calls)


def measure_sampling(session: Session, batches: tuple[int, ...] = (1, 32), *overrides: str) -> Iterator[Row]:
    """Both samplers at each number of images, with the network and with one that does nothing."""
    for batch in batches:
        problem = build_problem(batch, session.device, *overrides)
        for method, (_, steps, _) in CASES.items():
            runs, missing = build_runs(problem, method)
            case, base = f"{method} {steps}, cfg, {batch} images", list(runs)[1]
            counts = {what: count_calls(run, problem.model.backbone) for what, run in runs.items()}
            seconds = alternate(runs, session.clock, session.rounds)
            for what, spent in seconds.items():
                milliseconds = 1e3 * statistics.median(spent)
                ratio = median_ratio(seconds, what, base)
                bar = "at most 1.05" if what == "diffguide" else ""
                figures = {"milliseconds_per_run": milliseconds, "calls": counts[what]}
                text = f"{milliseconds:.1f} ms a run of {counts[what]} calls"
                yield Row(PART, case, what, text, ratio, base, bar, figures)
            yield from (Row(PART, case, package, reason) for package, reason in missing.items())
            yield from measure_own_work(session, problem, runs, missing, case, counts)


def measure_own_work(
    session: Session,
    problem: Problem,
    runs: dict[str, Work],
    missing: dict[str, str],
    case: str,
    counts: dict[str, int],
) -> Iterator[Row]:
    """The time of the runs with a network that returns its input."""
    case = f"{case}, {OWN_WORK}"
    whole = {what: run for what, run in runs.items() if not what.endswith("bare calls")}
    with mock.patch.object(problem.model.backbone, "forward", lambda x, log_snr, y=None: x):
        seconds = alternate(whole, session.clock, session.rounds, repeats=OWN_REPEATS)
    base = OWN_BASE if OWN_BASE in whole else ""
    for what, spent in seconds.items():
        milliseconds = 1e3 * statistics.median(spent)
        ratio = median_ratio(seconds, what, base) if base else None
        per_call = milliseconds / counts[what]
        figures = {"milliseconds_per_run": milliseconds, "milliseconds_per_call": per_call}
        bar = "at most 1.2" if what == "diffguide" and base else ""
        text = f"{milliseconds:.2f} ms a run, {per_call:.3f} ms a call"
        yield Row(PART, case, what, text, ratio, base, bar, figures)
    yield from (Row(PART, case, package, reason) for package, reason in missing.items())
