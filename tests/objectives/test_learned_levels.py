"""What an objective learns beside the network: where the loss is large, and a schedule."""

import math
from collections import deque

import numpy as np
import pytest
import torch
from scipy import stats
from small_checkpoint import CONFIG, FACTS, small

from diffguide.backbones import MLP
from diffguide.checkpoints import store as checkpoints
from diffguide.models.parameterizations import X0, V
from diffguide.objectives import Denoising
from diffguide.objectives.levels import LogNormal, UniformLogSNR, UniformTime
from diffguide.objectives.resampling import LossSecondMoment
from diffguide.objectives.weights import LearnedUncertainty, Likelihood, Uniform
from diffguide.randomness import Share
from diffguide.schedules import Cosine, Monotone

COSINE = Cosine(6.0, -5.0)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alone(tensor):
    """`gather` of a single device."""
    return tensor


def fed(batches: int, bins=5, history=3, size=32) -> LossSecondMoment:
    """After so many batches of random times and losses that rise with time."""
    levels, rng = LossSecondMoment(bins, history, 0.05, True), generator(1)
    for _ in range(batches):
        t = torch.rand(size, generator=rng, dtype=torch.float64)
        levels.observe(t, (1 + 9 * t) * torch.rand(size, generator=rng, dtype=torch.float64), rng)
        levels.finish_step(alone)
    return levels


@pytest.mark.parametrize("batches", [1, 2, 9])
def test_the_memory_holds_the_latest_losses_of_each_bin(batches):
    """Against one deque a bin, filled one loss at a time; a batch may fill a ring several times."""
    levels, rng = fed(batches), generator(1)
    rings = [deque(maxlen=3) for _ in range(5)]
    for _ in range(batches):
        t = torch.rand(32, generator=rng, dtype=torch.float64)
        for time, loss in zip(t.tolist(), ((1 + 9 * t) * torch.rand(32, generator=rng, dtype=torch.float64)).tolist()):
            rings[int(time * 5)].append(loss)
    root = np.array([np.sqrt(np.mean(np.square(ring))) for ring in rings])
    np.testing.assert_allclose(levels.shares(), 0.05 + 0.95 * root * 5 / root.sum(), rtol=1e-5)


def test_times_are_uniform_until_every_bin_is_full_and_in_evaluation():
    levels = LossSecondMoment(5, 3, 0.05, True)
    assert levels.shares().tolist() == [1.0] * 5
    levels.observe(torch.full((9,), 0.1, dtype=torch.float64), torch.ones(9), generator())
    levels.finish_step(alone)
    assert levels.shares().tolist() == [1.0] * 5
    assert fed(9).eval().shares().tolist() == [1.0] * 5
    t, density = levels(COSINE, 40, generator())
    expected = UniformTime(True)(COSINE, 40, generator())
    torch.testing.assert_close(t, expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(density, expected[1], rtol=1e-9, atol=0)


def test_times_follow_the_shares():
    """Stratified, so that counts are within one of n p; within a bin uniform (KS at 1e-4)."""
    levels = fed(9)
    t, _ = levels(COSINE, 5000, generator())
    counts = torch.bincount((t * 5).long(), minlength=5)
    assert float((counts - 1000 * levels.shares()).abs().max()) <= 1 + 1e-6
    assert stats.kstest((t[t >= 0.8].numpy() - 0.8) * 5, "uniform").pvalue > 1e-4


def test_the_mean_stays_and_the_variance_falls():
    """Of a loss (1 + 9 t)^2 whose size is known: mean 37 = int (1 + 9 t)^2 to 4 standard errors, half the spread or less."""
    levels = LossSecondMoment(50, 1, 0.001, False)
    levels.observe((torch.arange(50, dtype=torch.float64) + 0.5) / 50, torch.linspace(1.09, 9.91, 50) ** 2, generator())
    levels.finish_step(alone)
    t, _ = levels(COSINE, 20000, generator())
    weighed, plain = levels.importance(t) * (1 + 9 * t) ** 2, (1 + 9 * torch.rand(20000, generator=generator())) ** 2
    assert abs(float(weighed.mean()) - 37) < 4 * float(weighed.std()) / math.sqrt(20000)
    assert float(weighed.std()) < 0.1 * float(plain.std())


def test_the_memory_is_the_same_however_the_batch_is_divided():
    """One device at once; one in two micro-steps; two devices of two micro-steps each, of which each gathers all."""
    t, loss = torch.rand(2, 16, generator=generator(4), dtype=torch.float64)
    whole, parts = fed(3), fed(3)
    devices = [fed(3), fed(3)]
    whole.observe(t, loss, generator())
    whole.finish_step(alone)
    for first in (0, 8):
        parts.observe(t[first : first + 8], loss[first : first + 8], Share(generator(), first, 16))
    parts.finish_step(alone)
    sent = []
    for levels, start in zip(devices, (0, 8)):
        for first in (start, start + 4):
            levels.observe(t[first : first + 4], loss[first : first + 4], Share(generator(), first, 16))
        sent.append(torch.cat(levels.waiting, 1))
    for levels in devices:
        levels.finish_step(lambda tensor: torch.stack(sent))
    for other in (parts, *devices):
        assert torch.equal(other.squares, whole.squares) and torch.equal(other.count, whole.count)


def network(**changed) -> MLP:
    torch.manual_seed(0)
    return MLP(2, None, num_classes=0, width=16, layers=2, fourier_features=4, fourier_scale=0.5, **changed)


def learned() -> Monotone:
    schedule = Monotone(6.0, -5.0, False, 8)
    schedule.centre.data += torch.linspace(-2, 2, 8)
    return schedule


def test_a_learned_schedule_gets_the_gradient_of_the_squared_loss():
    """And the network that of the loss, both by finite differences (to 2e-3, of float32 parameters)."""
    schedule, backbone, x = (
        learned(),
        network().double(),
        torch.randn(16, 2, generator=generator(3), dtype=torch.float64),
    )
    backbone.linear_out.weight.data.normal_(generator=generator(1))
    method = Denoising(backbone, schedule, V(), Likelihood(), UniformTime(True), 0.0)

    def value():
        return method(x, None, generator()).per_example

    value().mean().backward()
    for part, power in ((schedule.centre, 2), (schedule.steep, 2), (backbone.linear_out.bias, 1)):
        slope, h = float(part.grad.flatten()[1]), 2.0**-7
        sides = []
        for sign in (1, -1):
            part.data.view(-1)[1] += sign * h
            sides.append(float((value().detach() ** power).mean()))
            part.data.view(-1)[1] -= sign * h
        assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(slope, rel=2e-3)


def test_a_learned_schedule_lowers_the_variance_of_the_bound_and_leaves_its_mean():
    """For a network at rest; 40 steps on fresh noise, then n = 20000."""
    schedule, backbone, data = learned(), network(), torch.randn(20000, 2, generator=generator(3))
    method = Denoising(backbone.requires_grad_(False), schedule, X0(), Likelihood(), UniformTime(True), 0.0)
    before = method(data, None, generator()).per_example.detach()
    optimiser = torch.optim.Adam(schedule.parameters(), lr=0.1)
    for step in range(40):
        optimiser.zero_grad()
        method(data[:512], None, generator(step)).per_example.mean().backward()
        optimiser.step()
    after = method(data, None, generator()).per_example.detach()
    error = math.sqrt((float(before.var()) + float(after.var())) / 20000)
    assert float(after.var()) < 0.5 * float(before.var())
    assert abs(float(before.mean() - after.mean())) < 4 * error


@pytest.mark.parametrize("make, sentence", [
    (lambda: Denoising(network(), learned(), V(), Uniform(), UniformTime(True), 0.0), "needs weight=likelihood .* Uniform"),
    (lambda: Denoising(network(), learned(), V(), Likelihood(), LogNormal(0, 1), 0.0), "drawn in time.* LogNormal"),
    (lambda: Denoising(network(), learned(), V(), Likelihood(), UniformLogSNR(True), 0.0), "drawn in time.*UniformLogSNR"),
    (lambda: Denoising(network(), COSINE, V(), LearnedUncertainty(Uniform(), 4), LossSecondMoment(2, 1, 0.1, True), 0.0),
     "levels=uniform_t, or another weight"),
    (lambda: Denoising(network(), Monotone(6, -5, True, 8), V(), Likelihood(), UniformTime(True), 0.0), "learned_ends=false"),
])  # fmt: skip
def test_bad_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


OBJECTIVES = "diffguide.objectives."
LEARNED = CONFIG | {
    "schedule": {"_target_": "diffguide.schedules.learned.Monotone", "log_snr_max": 9.0, "log_snr_min": -5.0,
                 "learned_ends": False, "width": 4},
    "objective": CONFIG["objective"] | {
        "weight": {"_target_": OBJECTIVES + "weights.Likelihood"},
        "levels": {"_target_": OBJECTIVES + "resampling.LossSecondMoment", "bins": 3, "history": 2, "floor": 0.1,
                   "stratified": True},
    },
}  # fmt: skip
WRAPPED = CONFIG | {
    "schedule": {"_target_": "diffguide.schedules.wrappers.ResolutionShift", "schedule": CONFIG["schedule"],
                 "resolution": 128, "reference": 64},
    "objective": CONFIG["objective"] | {
        "weight": {"_target_": OBJECTIVES + "weights.LearnedUncertainty", "features": 4,
                   "weight": {"_target_": OBJECTIVES + "weights.Uniform"}},
    },
}  # fmt: skip


@pytest.mark.parametrize("config", [LEARNED, WRAPPED], ids=["learned", "wrapped"])
def test_what_is_learned_is_saved_and_loaded(config, tmp_path):
    """The model for sampling, and everything for resuming: the next times that are drawn are the same."""
    ours, other = small(config), small(config)
    for step in range(3):  # a memory that is not the one of the start
        ours.objective(torch.randn(16, 2), torch.zeros(16).long(), generator(step))
        ours.objective.finish_step(alone)
    ours.ema.load_state_dict(ours.objective.state_dict())
    sums = {"count": torch.tensor(4.0)}
    path = checkpoints.save(tmp_path, *ours, config, checkpoints.TrainingState(FACTS, sums, {}))
    model = checkpoints.load(path).model
    t = torch.linspace(0, 1, 9)
    assert torch.equal(model.schedule.log_snr(t), ours.objective.model.schedule.log_snr(t).detach())
    for part in other.objective.state_dict().values():
        part.zero_()
    checkpoints.load_training_state(path, other.objective, other.ema, other.optimizer)
    x, y = torch.randn(6, 2, generator=generator()), torch.arange(6) % 4
    losses = [method(x, y, generator(1)).per_example for method in (ours.objective, other.objective)]
    assert torch.equal(losses[0], losses[1])
    if config is LEARNED:
        assert int(ours.objective.levels.count.sum()) == 48 + 8 and ours.objective.levels.shares().std() > 0
