"""The variational bound and its control variate: closed forms on Gaussians, unbiased and tight on a mixture."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from diffguide.backbones import MLP
from diffguide.evaluation.likelihood.control_variate import GaussianFit
from diffguide.evaluation.likelihood.dequantization import DecoderDequantization
from diffguide.evaluation.likelihood.elbo import Control, elbo, fit_control, pieces, squared_error
from diffguide.evaluation.likelihood.flow_ode import ExactTrace, FixedGrid, flow_log_density
from diffguide.models.decoders import Discretized, Gaussian
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.parameterizations import Eps
from diffguide.models.protocols import Denoiser, Prediction
from diffguide.objectives.levels import UniformTime
from diffguide.objectives.variational import Variational
from diffguide.oracles import Empirical, GaussianMixture, GMM2DLaw
from diffguide.randomness import Noise
from diffguide.schedules import EDM, VE, Cosine, Flow, SubVP

SCHEDULES = {
    "cosine": Cosine(12.0, -10.0),
    "ve": VE(9.2, -7.8),
    "flow": Flow(12.0, -12.0),
    "edm": EDM(12.43, -8.76),
    "sub_vp": SubVP(18.2, None, 0.1, 20.0),
}
MEAN, COVARIANCE = np.array([0.5, -0.3]), np.array([[0.3, 0.1], [0.1, 0.2]])
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)
FIT = GaussianFit(torch.tensor(MEAN), torch.tensor(VALUES), torch.tensor(VECTORS))


def gaussian(schedule) -> GaussianMixture:
    return GaussianMixture([1.0], [MEAN], [COVARIANCE], [0], schedule)


def noise_of(seeds, schedule, shape=(2,)) -> Noise:
    return Noise(list(seeds), shape, schedule, dtype=torch.float64)


def points(law, n: int, seed: int = 0) -> torch.Tensor:
    return law.sample(n, torch.Generator().manual_seed(seed))[0]


def closed_form(x: np.ndarray, schedule) -> np.ndarray:
    """The bound of the exact Gaussian denoiser, with its diffusion term by quadrature over log-SNR."""
    low, high = schedule.log_snr_min, schedule.log_snr_max
    d = (x - MEAN) @ VECTORS

    def error(log_snr, d):
        g = math.exp(log_snr)
        return (g * (g * VALUES**2 + d**2) / (1 + g * VALUES) ** 2).sum()

    diffusion = [0.5 * quad(error, low, high, args=(row,), epsabs=1e-10, limit=200)[0] for row in d]
    return 0.5 * math.exp(low) * (x**2).sum(1) + math.log(2 * math.pi) + 1 - high + np.array(diffusion)


# the control variate


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_error_of_the_gaussian_is_that_of_its_exact_denoiser(name):
    schedule = SCHEDULES[name]
    x, rng = points(gaussian(schedule), 16), torch.Generator().manual_seed(1)
    eps = torch.randn(16, 2, generator=rng, dtype=torch.float64)
    low, high = schedule.log_snr_min, schedule.log_snr_max
    log_snr = low + (high - low) * torch.rand(16, generator=rng, dtype=torch.float64)
    found = squared_error(gaussian(schedule), x, None, log_snr, eps)
    torch.testing.assert_close(FIT.error(x, eps, log_snr), found, rtol=1e-6, atol=1e-8)


def test_the_mean_error_and_its_integral_are_the_closed_forms():
    x = points(gaussian(SCHEDULES["cosine"]), 3)
    eps = torch.randn(200000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for level in (-3.0, 1.0, 6.0):
        log_snr = torch.tensor(level, dtype=torch.float64)
        errors = FIT.error(x[:1].expand_as(eps), eps, log_snr.expand(len(eps)))
        assert abs(errors.mean() - FIT.mean_error(x, log_snr)[0]) < 4 * errors.std() / math.sqrt(len(eps))
    ends = torch.tensor([-4.0, 7.0], dtype=torch.float64)
    for k, found in enumerate(FIT.integral(x, *ends)):
        one = lambda level, k=k: float(FIT.mean_error(x[k : k + 1], torch.tensor(level, dtype=torch.float64)))  # noqa: E731
        assert float(found) == pytest.approx(quad(one, *ends.tolist(), epsabs=1e-10)[0], abs=1e-8)


def test_a_fit_has_mean_and_covariance_of_the_data():
    """The floor is the variance in directions without spread; above 2048 values the covariance is diagonal."""
    x = points(gaussian(SCHEDULES["cosine"]), 500)
    x = torch.cat([x, torch.full((500, 1), 0.25)], dim=1)
    fit = GaussianFit.to_data(x, floor=0.01)
    covariance = fit.vectors @ fit.values.diag() @ fit.vectors.mT
    expected = np.cov(x.numpy().T, bias=True) + 0.01 * np.eye(3)
    np.testing.assert_allclose(covariance.numpy(), expected, rtol=0, atol=1e-12)
    wide = GaussianFit.to_data(x.repeat(1, 700), floor=0.01)
    assert wide.vectors is None
    np.testing.assert_allclose(wide.values[:3].numpy(), np.diag(expected), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="floor"):
        GaussianFit.to_data(x, floor=0.0)


# the bound


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_of_gaussians_is_the_closed_form(name):
    """Exactly with the exact law as control variate, and within its standard error without one."""
    schedule = SCHEDULES[name]
    law, terms = gaussian(schedule), pieces(schedule, 24)
    x = points(law, 40)
    expected = closed_form(x.numpy(), schedule)
    perfect = Control(FIT, torch.ones(24, dtype=torch.float64))
    found = elbo(law, x, None, Gaussian(), noise_of(range(40), schedule), terms, 2, 2, perfect)
    np.testing.assert_allclose(found.nats.numpy(), expected, rtol=0, atol=1e-6)
    counter = EvaluationCounter(law)
    plain = elbo(counter, x, None, Gaussian(), noise_of(range(40), schedule), terms, 6, 2, None)
    assert counter.tally.evaluations == 40 * 144
    assert ((plain.nats - torch.tensor(expected)).mean() / (plain.noise.square().mean() / 40).sqrt()).abs() < 4
    ratio = (plain.nats - torch.tensor(expected)).square().mean() / plain.noise.square().mean()
    assert 0.5 < ratio < 1.8  # the stated error is the actual error


def test_a_later_start_leaves_the_bound_of_gaussians_exact():
    """With z_0 inside the schedule the bound is that of a schedule that ends there."""
    bounds = []
    for schedule, start in ((SCHEDULES["cosine"], 5.0), (Cosine(5.0, -10.0), None)):
        law, terms = gaussian(schedule), pieces(schedule, 12, None, start)
        x = points(law, 8)
        bounds.append(elbo(law, x, None, Gaussian(), noise_of(range(8), schedule), terms, 2, 2, None).nats)
        bounds.append(flow_log_density(law, x, None, ExactTrace(2), FixedGrid(8), None, log_snr_max=start))
    torch.testing.assert_close(bounds[0], bounds[2])
    torch.testing.assert_close(bounds[1], bounds[3])


def test_the_bound_is_above_the_exact_density():
    """In the mean: the gap is a KL divergence. It goes to 0 as the range of the schedule grows."""
    gaps = []
    for end in (2.0, 4.0, 8.0, 14.0):
        schedule = Cosine(end, -end)
        x = points(gaussian(schedule), 40)
        gaps.append(closed_form(x.numpy(), schedule).mean() + float(gaussian(schedule).log_density(x, None).mean()))
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > -1e-4 and gaps[3] < 1e-3


class Off(Denoiser):
    """A denoiser that adds a constant to eps."""

    def __init__(self, law, offset: float):
        self.law, self.offset, self.schedule, self.num_classes = law, offset, law.schedule, law.num_classes

    def __call__(self, x_t, t, y=None):
        x_0, eps = self.law(x_t, t, y)
        return Prediction(x_0, eps + self.offset)


def test_a_worse_denoiser_has_a_larger_bound_by_its_excess_error():
    """An independent error c in every eps adds 1/2 D c^2 per unit of log-SNR."""
    schedule = SCHEDULES["cosine"]
    law, terms = gaussian(schedule), pieces(schedule, 16)
    x = points(law, 3000)
    exact, off = (
        elbo(model, x, None, Gaussian(), noise_of(range(3000), schedule), terms, 2, 2, None).nats
        for model in (law, Off(law, 0.1))
    )
    cost = (off - exact).double()
    assert abs(cost.mean() - 0.5 * 2 * 0.01 * 22) < 4 * cost.std() / math.sqrt(3000) < 0.05


def test_the_control_variate_changes_the_noise_alone():
    schedule = SCHEDULES["cosine"]
    law, terms = GMM2DLaw(schedule), pieces(schedule, 32)
    fit = GaussianFit.to_data(points(law, 2000, seed=1), floor=1e-3)
    control = fit_control(fit, law, points(law, 64, seed=2), None, noise_of(range(9000, 9064), schedule), terms)
    x = points(law, 600)
    with_control, without = (
        elbo(law, x, None, Gaussian(), noise_of(range(600), schedule), terms, 2, 2, used) for used in (control, None)
    )
    difference = with_control.nats - without.nats
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(600)
    assert float(without.noise.square().mean() / with_control.noise.square().mean()) > 4  # of the variance


def test_an_example_does_not_depend_on_its_batch_and_models_share_random_numbers():
    schedule = SCHEDULES["edm"]
    law, terms = GMM2DLaw(schedule), pieces(schedule, 8)
    x = points(law, 6)
    together = elbo(law, x, None, Gaussian(), noise_of(range(6), schedule), terms, 2, 2, None)
    alone = elbo(law, x[4:5], None, Gaussian(), noise_of([4], schedule), terms, 2, 2, None)
    torch.testing.assert_close(alone.nats, together.nats[4:5], rtol=0, atol=1e-12)
    same = elbo(Off(law, 0.0), x, None, Gaussian(), noise_of(range(6), schedule), terms, 2, 2, None)
    assert torch.equal(same.nats, together.nats)
    classes = [
        elbo(law, x, torch.full((6,), k), Gaussian(), noise_of(range(6), schedule), terms, 2, 2, None) for k in (-1, 2)
    ]
    assert torch.equal(classes[0].nats, together.nats) and not torch.equal(classes[1].nats, together.nats)


def test_discrete_time_bounds_are_looser():
    """T steps: closed form 1/2 sum (SNR_s / SNR_t - 1) E||eps - eps_hat(x_t)||^2, which decreases to continuous time."""
    schedule = SCHEDULES["cosine"]
    law, x = gaussian(schedule), points(gaussian(schedule), 20)
    bounds = []
    for steps in (16, 128, 256):
        times = schedule.t_of(torch.linspace(-10, 12, steps + 1, dtype=torch.float64))
        terms = pieces(schedule, None, times)
        control = Control(FIT, torch.ones(steps, dtype=torch.float64))
        found = elbo(law, x, None, Gaussian(), noise_of(range(20), schedule), terms, 2, 2, control)
        snr = np.exp(schedule.log_snr(times).numpy())
        d = ((x.numpy() - MEAN) @ VECTORS)[:, None]
        g = snr[:-1, None]
        errors = (g * (g * VALUES**2 + d**2) / (1 + g * VALUES) ** 2).sum(2)
        np.testing.assert_allclose(found.prior.numpy(), math.exp(-10) / 2 * (x.numpy() ** 2).sum(1))
        np.testing.assert_allclose(found.diffusion.numpy(), errors @ (snr[1:] / snr[:-1] - 1) / 2, rtol=1e-6)
        bounds.append(float(found.nats.mean()))
    first, second, third = np.array(bounds) - closed_form(x.numpy(), schedule).mean()
    # a gap of the size of a step
    assert first > 5 * second and third > 0 and second / third == pytest.approx(2, rel=0.1)


def test_probabilities_of_discrete_data_sum_to_one_at_most():
    """One pixel of five values: exp(-bound) and exp of the dequantized ODE sum to at most 1, and are close to the data."""
    schedule, shares = Cosine(12.0, -10.0), [0.5, 0.2, 0.1, 0.15, 0.05]
    pixels = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).double()[:, None]
    law = Empirical(
        pixels.repeat_interleave(torch.tensor([10, 4, 2, 3, 1]), 0), torch.zeros(20, dtype=torch.long), schedule, 0.0
    )
    terms, noise = pieces(schedule, 64), noise_of(range(5 * 64), schedule, (1,))
    x = pixels.repeat_interleave(64, 0)
    bound = -elbo(law, x, None, Discretized(5), noise, terms, 2, 4, None).nats.reshape(5, 64)
    mean, error = bound.mean(1), bound.std(1) / 8
    probability = mean.exp()
    assert probability.sum() < 1 + 3 * (probability * error).square().sum().sqrt() < 1.2
    assert (probability.log() - torch.tensor(shares).log()).abs().max() < 4 * error.max() + 0.02
    point, correction = DecoderDequantization()(x, 5, 12.0, noise, 0)
    flow = flow_log_density(law, point, None, ExactTrace(1), FixedGrid(128), None) + correction
    flow = flow.reshape(5, 64).mean(1).exp()
    assert flow.sum() < 1.01 and (flow.log() - torch.tensor(shares).log()).abs().max() < 0.05


@pytest.mark.parametrize("steps", [None, 4])
def test_the_training_objective_estimates_the_bound(steps):
    """`Variational` on an untrained network: the mean loss of one example over many draws, in bits/dim."""
    torch.manual_seed(0)
    network, schedule, n = (
        MLP(2, None, num_classes=0, width=16, layers=2, fourier_features=4, fourier_scale=0.5),
        Cosine(7.0, -4.0),
        4000,
    )
    objective = Variational(network, schedule, Discretized(17), Eps(), UniformTime(True), steps, 0.0)
    x = torch.tensor([[0.25, -1.0]])
    with torch.no_grad():
        loss = objective(x.expand(n, 2), None, torch.Generator().manual_seed(0))
    times = None if steps is None else torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    terms, noise = pieces(schedule, 32, times), Noise(range(500), (2,), schedule)
    found = elbo(objective.model, x.expand(500, 2), None, Discretized(17), noise, terms, 2, 8, None)
    for part in ("prior", "reconstruction", "diffusion"):
        own, other = getattr(found, part) / 2 / math.log(2), loss.terms[part]
        error = math.hypot(own.std() / math.sqrt(500), other.std() / math.sqrt(n))
        assert abs(own.mean() - other.mean()) < 4 * error + 1e-6, part


def test_bound_flow_and_exact_density_agree_on_a_mixture():
    """Within 0.01 nats/dim of each other, with standard errors of the differences below 0.003."""
    schedule, n = SCHEDULES["cosine"], 1000
    law, terms = GMM2DLaw(schedule), pieces(schedule, 128)
    fit = GaussianFit.to_data(points(law, 2000, seed=1), floor=1e-3)
    control = fit_control(fit, law, points(law, 64, seed=2), None, noise_of(range(9000, 9064), schedule), terms)
    x = points(law, n)
    exact = -law.log_density(x, None) / 2
    bound = elbo(law, x, None, Gaussian(), noise_of(range(n), schedule), terms, 8, 2, control).nats / 2
    flow = -flow_log_density(law, x, None, ExactTrace(2), FixedGrid(32), None) / 2
    for one, other in ((bound, exact), (flow, exact), (bound, flow)):
        assert abs((one - other).mean()) < 0.01
        assert (one - other).std() / math.sqrt(n) < 0.003


def test_infinite_ends_missing_replicates_and_other_values_raise():
    schedule, x = SCHEDULES["cosine"], torch.zeros(2, 2).double()
    noise, terms = noise_of(range(2), schedule), pieces(schedule, 2)
    with pytest.raises(ValueError, match="schedule.log_snr_min"):
        pieces(Flow(math.inf, -math.inf), 8)
    with pytest.raises(ValueError, match="levels .*got 0"):
        pieces(schedule, 0)
    with pytest.raises(ValueError, match="replicates .*got 1"):
        elbo(gaussian(schedule), x, None, Gaussian(), noise, terms, 1, 2, None)
    with pytest.raises(ValueError, match="5 "):
        elbo(gaussian(schedule), x + 0.1, None, Discretized(5), noise, terms, 2, 2, None)
