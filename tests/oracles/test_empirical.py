"""The exact denoiser of a finite data set equals NumPy and a Gaussian mixture."""

import numpy as np
import pytest
import torch
from closed_forms import Mixture
from exact_models import SCHEDULES, points, time_of
from torch.utils._python_dispatch import TorchDispatchMode

from diffguide.oracles import Empirical, GaussianMixture
from diffguide.schedules import EDM

SHAPE = (1, 2, 3)
LABELS = torch.arange(40) % 3


def data(n: int = 40) -> torch.Tensor:
    return points(n, 6, seed=5).reshape(n, *SHAPE) * 0.5


def model(width: float, schedule=SCHEDULES["cosine"]) -> Empirical:
    return Empirical(data(), LABELS, schedule, width)


def question(schedule, t: torch.Tensor, n: int = 7) -> torch.Tensor:
    alpha, sigma = schedule.alpha_sigma(t, 4)
    return (alpha * data(n) + sigma * points(n, 6, seed=1).reshape(n, *SHAPE)).float().double()


def mixture(width: float, schedule=SCHEDULES["cosine"]) -> GaussianMixture:
    return GaussianMixture(torch.ones(40), data().flatten(1), width**2, LABELS, schedule)


LEVELS = [time_of(0.1), time_of(0.6), torch.linspace(0.05, 0.95, 7, dtype=torch.float64)]
Y = torch.tensor([-1, 0, 1, 2, -1, 0, 1])


@pytest.mark.parametrize("width", [0.0, 0.3])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_predictions_are_those_of_a_mixture_in_numpy(schedule, width):
    law = Mixture(np.ones(40) / 40, data().flatten(1), np.broadcast_to(width**2 * np.eye(6), (40, 6, 6)), LABELS)
    exact = model(width, schedule)
    for t in LEVELS:
        x = question(schedule, t)
        for y in (None, Y):
            facts = (x.flatten(1).numpy(), *schedule.alpha_sigma(t), None if y is None else y.numpy())
            x_0, eps = exact(x, t, y)
            score = law.score(*facts).reshape(x.shape)
            sigma = facts[2].numpy().reshape(-1, 1, 1, 1)
            np.testing.assert_allclose(x_0, law.mean(*facts).reshape(x.shape), rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(eps, -sigma * score, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(exact.score(x, t, y), score, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(exact.log_density(x, t, y), law.log_density(*facts), atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_posteriors_are_those_of_the_mixture(schedule):
    """Class posteriors, covariance, reverse steps (same example for the same choice), clean density."""
    exact, law = model(0.3, schedule), mixture(0.3, schedule)
    choice, z = torch.linspace(0, 0.99, 7).roll(3), points(7, 6, seed=2)
    for t in LEVELS:
        x = question(schedule, t)
        flat = x.flatten(1)
        np.testing.assert_allclose(exact.log_prob(x, t), law.log_prob(flat, t), atol=1e-9)
        np.testing.assert_allclose(exact.covariance(x, t, Y), law.covariance(flat, t, Y), atol=1e-10)
        for s in (t / 2, None):
            steps = exact.sample_reverse(x, t, s, Y, choice, z.reshape(x.shape))
            np.testing.assert_allclose(steps.flatten(1), law.sample_reverse(flat, t, s, Y, choice, z), atol=1e-9)
    np.testing.assert_allclose(exact.log_density(x, None, Y), law.log_density(flat, None, Y), atol=1e-10)


@pytest.mark.parametrize("width", [0.0, 0.3])
def test_results_do_not_depend_on_the_chunks(monkeypatch, width):
    """Also for chunks without example of a class, and for gradients."""
    exact, x, t = model(width), question(SCHEDULES["cosine"], LEVELS[2]), LEVELS[2]
    x.requires_grad_()

    def asked():
        answers = [
            *exact(x, t, Y), exact.log_density(x, t, Y), exact.log_prob(x, t), exact.covariance(x, t, Y),
            exact.sample_reverse(x, t, t / 2, Y, t, x.detach()),
        ]  # fmt: skip
        return answers + [torch.autograd.grad(answer.square().sum(), x, retain_graph=True)[0] for answer in answers[:4]]

    whole = asked()
    monkeypatch.setattr(Empirical, "block", 12)  # one row, two examples
    monkeypatch.setattr(Empirical, "row_size", 12)
    assert len(exact.chunks(1)) == 20
    for one, other in zip(asked(), whole):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_gradient_of_the_density_is_the_score():
    exact, x = model(0.0), question(SCHEDULES["cosine"], LEVELS[1]).requires_grad_()
    (gradient,) = torch.autograd.grad(exact.log_density(x, LEVELS[1], Y).sum(), x)
    torch.testing.assert_close(gradient, exact.score(x, LEVELS[1], Y).detach(), rtol=1e-9, atol=1e-10)


def test_bytes_are_read_as_images():
    images = torch.randint(256, (40, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stored, read = (Empirical(x, LABELS, SCHEDULES["cosine"], 0.1) for x in (images, images.double() / 127.5 - 1))
    x = question(SCHEDULES["cosine"], LEVELS[1]).float()
    for one, other in zip(stored(x, LEVELS[1], Y), read(x, LEVELS[1], Y)):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    assert stored.data.dtype == torch.uint8


def test_samples_are_the_examples():
    x, y = model(0.0).sample(300, torch.Generator().manual_seed(0), torch.tensor([0, 1, -1] * 100))
    distance = torch.cdist(x.flatten(1), data().flatten(1))
    assert distance.min(1).values.max() < 1e-6 and torch.equal(LABELS[distance.argmin(1)], y)
    assert torch.equal(y.reshape(-1, 3)[:, :2], torch.tensor([[0, 1]]).expand(100, 2))
    wide = model(0.3).sample(300, torch.Generator().manual_seed(0), torch.tensor([0, 1, -1] * 100))[0]
    assert float((wide - x).std()) == pytest.approx(0.3, rel=0.05)


def test_predictions_are_precise_at_low_noise():
    """3072 values, noise level 0.002, near duplicates, compared with extended precision."""
    schedule, t = EDM(14.0, -8.0), EDM(14.0, -8.0).t_of(-2 * np.log(0.002))
    base = (points(4, 3072) / 2).clamp(-1, 1)
    images = torch.cat([base, base + 1e-4 * points(4, 3072, seed=1)])
    sigma = float(schedule.alpha_sigma(t)[1])
    x = images + sigma * points(8, 3072, seed=2)
    exact = Empirical(images, torch.zeros(8, dtype=torch.long), schedule, 0.0)
    long = (x[:, None].numpy().astype(np.longdouble) - images.numpy()) ** 2
    r = -long.sum(2) / (2 * sigma**2)
    r = np.exp(r - r.max(1, keepdims=True))
    r = r / r.sum(1, keepdims=True)
    mean = r @ images.numpy().astype(np.longdouble)
    assert np.sort(r, axis=1)[:, -2].max() > 0.1  # several examples are likely
    x_0, eps = exact(x, t)
    assert np.abs(x_0.numpy() - mean).max() < 1e-10
    assert np.abs(eps.numpy() - (x.numpy() - mean) / sigma).max() < 1e-7


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor of any operation."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


def test_memory_does_not_grow_with_the_data():
    """No working array above 8.4 MB, whatever the number of images; [B, N, D] in float64 would be 3.1 GB here."""
    images = torch.randint(256, (4000, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    exact = Empirical(images, torch.arange(4000) % 10, SCHEDULES["edm"], 0.0)
    x = torch.randn(32, 3, 32, 32)
    with Largest() as largest:
        exact(x, time_of(0.5), torch.arange(32) % 11 - 1)
        exact.log_prob(x, time_of(0.5))
    assert 10**6 < largest.bytes <= 2**20 * 8


MISTAKES = {
    "width": ({"width": -0.1}, "width must be .* got -0.1"),
    "endless": ({"width": float("inf")}, "width must be .* got inf"),
    "no example": ({"data": torch.zeros(0, 2), "labels": torch.zeros(0).long()}, "at least one example"),
    "flat": ({"data": torch.zeros(3)}, r"data must be \[N, ...\]"),
    "labels": ({"labels": torch.tensor([0, 1])}, "labels must be 3 integers"),
    "no class": ({"labels": torch.tensor([0, -1, 0])}, "labels must lie in"),
    "empty class": ({"class_names": ["a", "b", "c"]}, "class 2 has no component"),
    "not finite": ({"data": torch.full((3, 2), torch.nan)}, "data must be finite"),
}


@pytest.mark.parametrize("change, message", MISTAKES.values(), ids=MISTAKES)
def test_arguments_that_are_no_data_are_refused(change, message):
    good = {"data": torch.zeros(3, 2), "labels": torch.tensor([0, 1, 0]), "width": 0.0}
    with pytest.raises(ValueError, match=message):
        Empirical(**good | change, schedule=SCHEDULES["cosine"])


def test_points_without_width_have_no_clean_density():
    with pytest.raises(ValueError, match="width 0 has no density at sigma = 0"):
        model(0.0).log_density(data(), None)
