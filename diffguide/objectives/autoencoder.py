"""Training an autoencoder, the first stage of latent diffusion."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..first_stages import Autoencoder
from ..randomness import Share, normal
from ..runtime.ranges import check_range
from ..schedules import NoSchedule, Schedule
from .base import Loss, Objective

__all__ = ["AutoencoderObjective", "laplacian_pyramid"]

BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)  # Burt & Adelson's generating kernel with a = 3/8, times 16
MIN_SIDE = 4  # pixels of the coarsest level of a pyramid


class AutoencoderObjective(Objective):
    """l1_weight |x - r| + l2_weight (x - r)^2 + pyramid_weight Lap(x, r), means over x, + kl_weight KL / D.

    r is decoded from a sample of q(z | x), KL = KL(q(z | x) || N(0, I)), D the number of elements of x. Kingma & Welling 2014,
    arXiv 1312.6114, eq. 7, with the small KL weight of Rombach et al. 2022, arXiv 2112.10752, section 3.1 (1e-6 times the sum
    over latents, beside the sum of |x - r| over x). The perceptual term needs no trained network: Lap(x, r) is the sum over
    levels j of the mean of |L_j(x) - L_j(r)|, which is the loss Lap_1 of Bojanowski, Joulin, Lopez-Paz & Szlam 2018, arXiv
    1707.05776, sum of 2^(2j) |L_j(x) - L_j(r)|_1, divided by D.

    Arguments:
        backbone: an autoencoder, such as `SmallKL`.
        schedule: NoSchedule or None, since there are no noise levels.
        l1_weight, l2_weight, pyramid_weight: of the terms, at least 0, one of them above 0.
        kl_weight: of the KL divergence, at least 0.

    Raises:
        ValueError: a schedule, a backbone that is no autoencoder, or invalid weights.
    """

    compilable = False  # the two halves are called, not the whole
    model: Autoencoder

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule | None = None,
        l1_weight: float = 1.0,
        l2_weight: float = 1.0,
        pyramid_weight: float = 1.0,
        kl_weight: float = 1e-6,
    ):
        super().__init__()
        if schedule is not None and not isinstance(schedule, NoSchedule):
            name = type(schedule).__name__
            raise ValueError(f"objective=autoencoder has no noise levels, got {name}: take schedule=none")
        self.model = Autoencoder(backbone)
        self.l1_weight = check_range("l1_weight", l1_weight, "[0, inf)")
        self.l2_weight = check_range("l2_weight", l2_weight, "[0, inf)")
        self.pyramid_weight = check_range("pyramid_weight", pyramid_weight, "[0, inf)")
        self.kl_weight = check_range("kl_weight", kl_weight, "[0, inf)")
        if not self.l1_weight + self.l2_weight + self.pyramid_weight:
            raise ValueError("one of l1_weight, l2_weight and pyramid_weight must be above 0")

    def check(self, x_0: Tensor) -> None:
        self.model.latent_shape(x_0.shape[1:])

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        posterior = self.model.posterior(x_0)
        noise = normal(posterior.mean.shape, rng, x_0.dtype)
        error = self.model.reconstruct(posterior.sample(noise)).to(x_0.dtype) - x_0
        l1, mse = error.abs().flatten(1).mean(1), error.square().flatten(1).mean(1)
        kl = posterior.kl()
        loss = self.l1_weight * l1 + self.l2_weight * mse + self.kl_weight * kl / x_0[0].numel()
        terms = {"l1": l1.detach(), "mse": mse.detach(), "kl": kl.detach()}
        if self.pyramid_weight:
            pyramid = pyramid_distance(error)
            loss = loss + self.pyramid_weight * pyramid
            terms["pyramid"] = pyramid.detach()
        return Loss(loss, terms)

    def figures(self, loss: Loss) -> dict[str, float]:
        """The peak signal-to-noise ratio in dB of all held-out examples, 10 log10(2^2 / mse)."""
        mse = float(loss.terms["mse"].double().mean())
        return {"psnr": 10 * math.log10(4 / mse) if mse > 0 else math.inf}


def pyramid_distance(error: Tensor) -> Tensor:
    """The sum over levels of the mean absolute value, [B]: the pyramid is linear, so that of a difference is a difference."""
    return torch.stack([level.abs().flatten(1).mean(1) for level in laplacian_pyramid(error)]).sum(0)


def laplacian_pyramid(x: Tensor) -> list[Tensor]:
    """Bands of images [B, C, H, W] from fine to coarse, each half the side of the one before; the last is the blurred rest.

    Burt & Adelson, "The Laplacian Pyramid as a Compact Image Code", 1983: G_(j+1) = every second element of the blurred G_j,
    L_j = G_j - blurred (G_(j+1) with zeros between, times 4). Borders are mirrored without repeating the edge.
    """
    bands = []
    while min(x.shape[2:]) >= 2 * MIN_SIDE and not any(side % 2 for side in x.shape[2:]):
        smaller = blur(x)[..., ::2, ::2]
        spread = torch.zeros_like(x)
        spread[..., ::2, ::2] = 4 * smaller
        bands.append(x - blur(spread))
        x = smaller
    return [*bands, x]


def blur(x: Tensor) -> Tensor:
    """Images filtered by (1, 4, 6, 4, 1) / 16 along both axes, of the same shape."""
    weights = x.new_tensor(BINOMIAL) / 16
    kernel = (weights[:, None] * weights).expand(x.shape[1], 1, 5, 5)
    return functional.conv2d(functional.pad(x, [2] * 4, mode="reflect"), kernel, groups=x.shape[1])
