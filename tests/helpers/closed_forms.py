"""Closed forms that the tests compare with: NumPy and SciPy in float64, independent of the package.

Only `ExactMixture` knows diffguide: it shows the mixture to samplers and guidance as a denoiser.
"""

import numpy as np
import torch

from diffguide.models.protocols import Denoiser, Prediction


class Mixture:
    """p_0 = sum_k pi_k N(mu_k, S_k) with a class label per component, noised to x_t = alpha x_0 + sigma eps.

    weights [K], means [K, D], covariances [K, D, D], labels [K]. Everywhere x is [B, D], alpha and sigma are numbers or
    [B], and y is None (every component) or [B], where -1 means every component in that row.
    """

    def __init__(self, weights, means, covariances, labels):
        self.weights, self.means = np.asarray(weights, float), np.asarray(means, float)
        self.covariances, self.labels = np.asarray(covariances, float), np.asarray(labels)
        self.eigenvalues, self.eigenvectors = np.linalg.eigh(self.covariances)  # C_k has the same vectors

    def parts(self, x, alpha, sigma, y):
        """x - alpha mu_k in the eigenbasis of C_k = alpha^2 S_k + sigma^2 I, variances, log(pi_k N(x; .)), alpha."""
        alpha, sigma = (np.broadcast_to(np.asarray(a, float), len(x))[:, None, None] for a in (alpha, sigma))
        z = np.einsum("kde,bkd->bke", self.eigenvectors, x[:, None] - alpha * self.means)
        variance = alpha**2 * self.eigenvalues + sigma**2
        log_joint = np.log(self.weights) - 0.5 * (z**2 / variance + np.log(2 * np.pi * variance)).sum(-1)
        if y is not None:
            y = np.asarray(y)[:, None]
            allowed = (y == -1) | (y == self.labels)
            total = np.log(np.where(allowed, self.weights, 0).sum(1, keepdims=True))  # p(x | y), not p(x, y)
            log_joint = np.where(allowed, log_joint - total, -np.inf)
        return z, variance, log_joint, alpha

    def log_density(self, x, alpha, sigma, y=None):
        """log p_t(x | y) [B]."""
        return np.logaddexp.reduce(self.parts(x, alpha, sigma, y)[2], axis=1)

    def score(self, x, alpha, sigma, y=None):
        """grad log p_t(x | y) = -sum_k r_k C_k^-1 (x - alpha mu_k)."""
        return self.mean_and_score(x, alpha, sigma, y)[1]

    def mean(self, x, alpha, sigma, y=None):
        """E[x_0 | x_t, y] = sum_k r_k (mu_k + alpha S_k C_k^-1 (x - alpha mu_k)); good at alpha = 0 too."""
        return self.mean_and_score(x, alpha, sigma, y)[0]

    def mean_and_score(self, x, alpha, sigma, y=None):
        """Both from r_k = p(k | x_t, y), [B, D] each; SciPy's logsumexp would take most of the time of the tests."""
        z, variance, log_joint, alpha = self.parts(x, alpha, sigma, y)
        r = np.exp(log_joint - log_joint.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        scaled = z / variance
        m = self.means + np.einsum("kde,bke->bkd", self.eigenvectors, alpha * self.eigenvalues * scaled)
        return np.einsum("bk,bkd->bd", r, m), -np.einsum("kde,bke->bd", self.eigenvectors, r[:, :, None] * scaled)

    def sample(self, n, rng):
        """x_0 [n, D] and labels [n]."""
        k = rng.choice(len(self.weights), n, p=self.weights / self.weights.sum())
        z = rng.standard_normal((n, self.means.shape[1])) * np.sqrt(self.eigenvalues[k])
        return self.means[k] + np.einsum("nde,ne->nd", self.eigenvectors[k], z), self.labels[k]


def gaussian(mean, covariance) -> Mixture:
    """A single Gaussian of class 0."""
    return Mixture([1.0], [mean], [covariance], [0])


def two_classes() -> Mixture:
    """A small 2-D mixture with unequal weights and tilted covariances: class 0 has two components, class 1 one."""
    covariances = [[[0.30, 0.10], [0.10, 0.20]], [[0.15, 0.00], [0.00, 0.40]], [[0.25, -0.12], [-0.12, 0.20]]]
    return Mixture([0.5, 0.2, 0.3], [[1.0, 0.5], [-0.5, 1.2], [-0.8, -0.9]], covariances, [0, 0, 1])


def karras_levels(n: int, low: float, high: float, rho: float) -> np.ndarray:
    """sigma_i = (high^(1/rho) + i / (n - 1) (low^(1/rho) - high^(1/rho)))^rho, arXiv 2206.00364, eq. 5."""
    ramp = np.arange(n) / (n - 1)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


class ExactMixture(Denoiser):
    """The mixture's E[x_0 | x_t, y] and E[eps | x_t, y] = -sigma score, float64, as a denoiser for one schedule."""

    has_null = True

    def __init__(self, mixture: Mixture, schedule):
        self.mixture, self.schedule, self.num_classes = mixture, schedule, len(set(mixture.labels.tolist()))

    def __call__(self, x_t, t, y=None):
        alpha, sigma = (a.numpy() for a in self.schedule.alpha_sigma(t))
        x, y = x_t.double().numpy(), None if y is None else y.numpy()
        mean, score = self.mixture.mean_and_score(x, alpha, sigma, y)
        return Prediction(torch.from_numpy(mean), torch.from_numpy(-np.reshape(sigma, (-1, 1)) * score))
