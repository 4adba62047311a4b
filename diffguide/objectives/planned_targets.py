"""Targets of a jump whose short step, or whose tangent, changes with the images that were seen."""

import torch
from torch import Tensor, nn

from ..models.jumps import JumpModel
from ..models.protocols import Prediction
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule, broadcast_rows
from .flow_fields import Noised
from .jump_targets import Consistency, JumpTarget, MeanFlow

__all__ = ["DiscretizedConsistency", "NormalizedMeanFlow", "TighteningConsistency"]


class Planned(JumpTarget, nn.Module):
    """A target that counts the images of training; the count is saved with the objective.

    Arguments:
        every: images of a stage, at least 1.
    """

    images: Tensor

    def __init__(self, every: int):
        nn.Module.__init__(self)
        self.every = every
        self.register_buffer("images", torch.zeros((), dtype=torch.long))

    def count(self, images: int) -> None:
        self.images += images

    def stages(self) -> Tensor:
        """Whole stages so far, 0-d float64."""
        return torch.div(self.images.double(), self.every, rounding_mode="floor")


class DiscretizedConsistency(Consistency, Planned):
    """Steps between neighbours of N + 1 noise levels n_i = (n_0^(1/rho) + i / N (n_N^(1/rho) - n_0^(1/rho)))^rho.

    N = min(first 2^stage, last). A level that is drawn moves up to the next n_i, so that with levels=log_normal n_i has the
    probability of the interval below it. Song & Dhariwal 2023, arXiv 2310.14189, table 1 (mean -1.1, std 2.0; draws beyond
    the ends, 0.8 % there, fall into the first and the last interval). With `PseudoHuber`: iCT.

    Arguments:
        first, last: number of steps at the start and in the end; 10 and 1280 in the paper.
        double_images: after so many images N is doubled; an eighth of the training in the paper.
        rho: of the grid, as in EDM.
    """

    def __init__(self, first: int = 10, last: int = 1280, double_images: int = 10000, rho: float = 7.0):
        Planned.__init__(self, check_whole("double_images", double_images, 1))
        self.first = check_whole("first", first, 1)
        self.last = check_whole("last", last, first)
        self.rho = check_range("rho", rho, "[1, inf)")

    def steps(self) -> Tensor:
        """N, 0-d."""
        return (self.first * 2 ** self.stages().clamp(max=40)).clamp(max=self.last)

    def find_index(self, t: Tensor, schedule: Schedule) -> Tensor:
        """i of each time, not rounded."""
        low, high = (level ** (1 / self.rho) for level in schedule.noise_level_range)
        return (schedule.noise_level(t) ** (1 / self.rho) - low) / (high - low) * self.steps().to(t)

    def find_time(self, index: Tensor, schedule: Schedule) -> Tensor:
        low, high = (level ** (1 / self.rho) for level in schedule.noise_level_range)
        level = (low + index / self.steps().to(index) * (high - low)) ** self.rho
        return torch.where(index <= 0, 0.0, schedule.t_of(-2 * level.log()).clamp(0, 1))

    def place(self, t: Tensor, schedule: Schedule) -> Tensor:
        above = (self.find_index(t, schedule) - 1e-6).ceil().clamp(min=1)
        return self.find_time(torch.minimum(above, self.steps().to(above)), schedule)

    def find_middle(self, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
        return torch.maximum(self.find_time(self.find_index(t, schedule).round() - 1, schedule), s)


class TighteningConsistency(Consistency, Planned):
    """n_m = n_t (1 - (1 + k sigmoid(-b n_t)) / q^(1 + stage)), at least n_s: steps from diffusion to consistency.

    Geng et al. 2024, "Consistency Models Made Easy", arXiv 2406.14548, section 3 (`t_to_r_sigmoid` of their code).

    Arguments:
        q: above 1; 2 in the paper, 4 for ImageNet.
        k, b: of the mapping; 8 and 1 in the paper.
        tighten_images: images of a stage; an eighth of the training in the paper's schedule.
    """

    def __init__(self, q: float = 2.0, k: float = 8.0, b: float = 1.0, tighten_images: int = 10000):
        Planned.__init__(self, check_whole("tighten_images", tighten_images, 1))
        self.q, self.k = check_range("q", q, "(1, inf)"), check_range("k", k, "[0, inf)")
        self.b = check_range("b", b, "[0, inf)")

    def find_middle(self, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
        n_t, n_s = schedule.noise_level(t), schedule.noise_level(s)
        share = (1 + self.k * torch.sigmoid(-self.b * n_t)) / self.q ** (1 + self.stages().to(t))
        level = n_t * (1 - share)
        m = schedule.t_of(-2 * torch.maximum(level, n_s).log()).clamp(0, 1)
        return torch.where(level <= n_s, s, torch.maximum(m, s))


class NormalizedMeanFlow(MeanFlow, Planned):
    """F* = F + g / (||g|| + constant)  with  g = r (F_MeanFlow* - F) + (1 - r) k (F_field - F),  r = min(1, images / warmup).

    For s = 0 and the parameterizations V (data of standard deviation 1) and EDM, F_MeanFlow* - F is the tangent cos(t) df/dt of
    Lu & Song 2024, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", arXiv 2410.11081, eq. 6 to 8, in
    units of sigma_data, and k = 1 - (1 - e_out^2)(1 - n_s / n_t) is cos^2(t): the warm-up leaves out what the network's own
    derivative adds. With `learned_uncertainty` as the weight: sCM.

    Arguments:
        constant: positive; 0.1 / sigma_data in the paper.
        warmup_images: until r = 1, at least 1; those of 10000 steps in the paper.
    """

    def __init__(self, constant: float = 0.2, warmup_images: int = 10000):
        Planned.__init__(self, check_whole("warmup_images", warmup_images, 1))
        self.constant, self.own_field = check_range("constant", constant, "(0, inf)"), False

    @torch.no_grad()
    def __call__(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> Prediction:
        schedule, ndim = model.schedule, batch.x_t.ndim
        own, slope = self.differentiate(batch, s, field, model)
        rows = model.parameterization.rows(*schedule.scales(schedule.log_snr(batch.t), ndim)).to(own.eps)
        n_t, n_s = (broadcast_rows(schedule.noise_level(time), ndim).to(own.eps) for time in (batch.t, s))
        r = (self.images.double() / self.every).clamp(max=1).to(own.eps)
        kept = 1 - (1 - rows.e_out**2) * (1 - n_s / n_t)
        towards = field.eps - own.eps
        g = (r * (towards - slope) + (1 - r) * kept * towards) / rows.e_out
        norm = broadcast_rows(g.flatten(1).norm(dim=1), ndim)
        change = rows.e_out * g / (norm + self.constant)
        return Prediction(own.x_0 - n_t * change, own.eps + change)
