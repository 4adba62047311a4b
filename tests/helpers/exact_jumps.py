"""The exact jumps of guided Gaussians, as the network of a `JumpModel`, and their teacher."""

import torch
from torch import nn

from diffguide.models.protocols import Denoiser, Prediction
from diffguide.schedules import Cosine

__all__ = ["SCHEDULE", "VARIANCES", "ExactBackbone", "JumpBackbone", "Teacher", "exact_pair"]

SCHEDULE = Cosine(10.0, -8.0)
VARIANCES = 0.3, 1.7  # of the class, and without a condition


def exact_pair(x_t, log_snr, log_snr_s, scale, y):
    """The pair of the exact jump of dz / dn = n z sum_i w_i / (v_i + n^2).

    z_s / z_t = prod_i ((v_i + n_s^2) / (v_i + n_t^2))^(w_i / 2).
    """
    n_t, n_s = torch.exp(-log_snr / 2), torch.exp(-log_snr_s / 2)
    alpha, sigma = SCHEDULE.normalisation(log_snr)
    strong, weak = VARIANCES
    none = (y < 0).double()
    powers = (1 - none) * scale / 2, (1 - none) * (1 - scale) / 2 + none / 2
    # the logarithm of z_s / z_t, and eps = (z_s - z_t) / (n_s - n_t) without a division by 0 at s = t
    logs = [p * torch.log((v + n_s**2) / (v + n_t**2)) for p, v in zip(powers, (strong, weak))]
    ratio = torch.expm1(sum(logs)) / torch.where(n_s == n_t, 1.0, n_s - n_t)
    slope = sum(2 * p * n_t / (v + n_t**2) for p, v in zip(powers, (strong, weak)))
    z = x_t / alpha[:, None]
    eps = z * torch.where(n_s == n_t, slope, ratio)[:, None]
    return Prediction(z - n_t[:, None] * eps, eps)


class JumpBackbone(nn.Module):
    """Base: a network that gets what a jump depends on."""

    noise_conditioned, conditional, takes_null, learned_variance = True, True, True, False
    num_classes, further_inputs = 1, 2
    attention_layers = residual_blocks = ()
    is_compiled = False


class ExactBackbone(JumpBackbone):
    """F = p x_0 + q eps of the exact jump, for the parameterization v of a variance-preserving schedule, where c_in = 1."""

    def forward(self, x, numbers, y):
        log_snr, target, scale = numbers.double().unbind(1)
        pair = exact_pair(x.double(), log_snr, target, scale, y)
        alpha, sigma = SCHEDULE.normalisation(log_snr)
        return alpha[:, None] * pair.eps - sigma[:, None] * pair.x_0


class Teacher(Denoiser):
    """The exact denoiser of N(0, v) of a class, and of another variance without a condition."""

    schedule, num_classes, has_null, shape = SCHEDULE, 1, True, (3,)

    def __call__(self, x_t, t, y=None):
        log_snr = SCHEDULE.log_snr(t).expand(len(x_t))
        y = torch.full((len(x_t),), -1) if y is None else y
        return exact_pair(x_t, log_snr, log_snr, torch.ones(len(x_t), dtype=torch.float64), y)
