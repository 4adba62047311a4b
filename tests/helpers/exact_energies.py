"""Networks that are the exact log-density of a mixture of two Gaussians at every noise level, and errors of it."""

import math

import torch

from diffguide.backbones import Backbone

MEANS, SPREAD = torch.tensor([[0.9, -0.4], [-0.7, 0.5]], dtype=torch.float64), 0.3
SHARES = torch.tensor([0.7, 0.3], dtype=torch.float64)


def draw(n: int, seed: int = 0) -> torch.Tensor:
    """Exact examples of the mixture, [n, 2] float64."""
    rng = torch.Generator().manual_seed(seed)
    component = torch.multinomial(SHARES, n, replacement=True, generator=rng)
    return MEANS[component] + SPREAD * torch.randn(n, 2, generator=rng, dtype=torch.float64)


def log_law(z: torch.Tensor, log_snr: torch.Tensor, shares: torch.Tensor = SHARES) -> torch.Tensor:
    """log q(z) of z = a x_0 + b eps, [B]."""
    signal = log_snr.sigmoid().reshape(-1, 1)
    variance = signal * SPREAD**2 + 1 - signal
    distance = (z[:, None] - signal.sqrt()[..., None] * MEANS).square().sum(2)
    return (shares.log() - distance / (2 * variance) - (2 * math.pi * variance).log()).logsumexp(1)


ERRORS = {
    "constant": lambda z, log_snr: torch.ones(len(z)).to(z),
    "slope": lambda z, log_snr: z[:, 0],
    "curved": lambda z, log_snr: z[:, 1] ** 2,
    "level": lambda z, log_snr: (log_snr / 3).tanh(),
    "both": lambda z, log_snr: z[:, 0] * (log_snr / 3).tanh(),
}


class ExactEnergy(Backbone):
    """F with log q(z) = log N(z; 0, I) + a F, plus `off` times an error.

    Arguments:
        shares: weights of the two components.
    """

    num_classes, out_features, noise_conditioned, is_compiled, conditional = 0, 1, True, False, False

    def __init__(self, shares=SHARES):
        super().__init__()
        self.shares, self.off, self.error = shares, 0.0, ERRORS["constant"]

    def forward(self, z, log_snr, y=None):
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        exact = (log_law(z, log_snr, self.shares) - normal) / log_snr.sigmoid().sqrt()
        return (exact + self.off * self.error(z, log_snr))[:, None]


class ExactTimeScore(ExactEnergy):
    """F with d log q(z) / d log_snr = (a / 2) sqrt(D (2 a^2 + b^2)) F, plus `off` times an error."""

    def forward(self, z, log_snr, y=None):
        with torch.enable_grad():
            level = log_snr.detach().clone().requires_grad_()
            (rate,) = torch.autograd.grad(log_law(z, level, self.shares).sum(), level, create_graph=True)
        signal = log_snr.sigmoid()
        return (rate / (signal * 2 * (1 + signal)).sqrt() * 2 + self.off * self.error(z, log_snr))[:, None]


def derivatives(objective, backbone, n=3000, seed=1) -> dict[str, dict[str, tuple[float, float]]]:
    """d term / d off of every term of the loss at off = 0, for every error: its mean over n examples, and the standard error.

    The terms are at most quadratic in off, or smooth, so a central difference is the derivative.
    """
    x_0, found = draw(n), {}
    for name, error in ERRORS.items():
        sides = []
        for off in (1e-4, -1e-4):
            backbone.off, backbone.error = off, error
            with torch.no_grad():
                loss = objective(x_0, None, torch.Generator().manual_seed(seed))
            sides.append({"loss": loss.per_example, **loss.terms})
        for term in sides[0]:
            change = (sides[0][term] - sides[1][term]) / 2e-4
            found.setdefault(term, {})[name] = (float(change.mean()), float(change.std()) / n**0.5)
    backbone.off = 0.0
    return found
