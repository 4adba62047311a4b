"""Weak sides made of the network itself, perturbed: no other model, no null condition, no training for it.

With the linear rule, perturbed + scale (network - perturbed). The papers write network + s (network - perturbed), so that
scale = 1 + s: 1 = off, 0 = the perturbed network.

Only a network can be perturbed, not what another guidance made of it: of several guidances these come first, from inside out.
Nothing is lost by that, for with linear rules the perturbed side of classifier-free guidance, and classifier-free guidance of
a perturbed side, are one. The papers' sum, null + g (cond - null) + s (cond - cond perturbed), guides the rows with a
condition alone: `unconditional=False` and scale 1 + s / g, with `ClassifierFree` of scale g around it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, concatenate_conditions
from ..backbones.perturbations import BlurredQueries, IdentityAttention, Perturbation, SkippedBlocks
from ..models.protocols import Denoiser, DenoiserWrapper, Prediction
from .contrast import CONSTANT, LINEAR, Contrast
from .potentials.base import with_class
from .ramps import Ramp
from .rules import Rule

__all__ = ["PAG", "SEG", "SLG", "Perturbed"]


class Perturbed(Contrast):
    """Weak: the same network with the same condition, perturbed. Both sides are one batched call.

    Arguments:
        denoiser: a network; it needs no condition.
        perturbation: what is changed in it.
        unconditional: whether rows without condition are guided too; a network that knows no condition always is.
        scale: 1 = off (the network as it is), 0 = perturbed.
        interval, rule, ramp: as in `Contrast`.
    """

    def __init__(
        self, denoiser: Denoiser, perturbation: Perturbation, unconditional: bool, scale: float, interval: Sequence[float],
        rule: Rule, ramp: Ramp,
    ):  # fmt: skip
        super().__init__(denoiser, scale, interval, rule, ramp)
        self.perturbation, self.every_row = perturbation, unconditional or not denoiser.conditional

    def guided(self, x_t: Tensor, y: Condition | None) -> Tensor:
        """Indices of the rows that are guided."""
        if self.every_row:
            return torch.arange(len(x_t), device=x_t.device)
        if y is None:
            return torch.arange(0, device=x_t.device)
        return with_class(y).nonzero()[:, 0]

    def sides(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        rows = self.guided(x_t, y)
        if not len(rows):
            side = self.denoiser(x_t, t, y)
            return side, side
        batch = len(x_t)
        both = self.denoiser.predict_perturbed(
            torch.cat([x_t, x_t[rows]]), torch.cat([t, t[rows]]) if t.ndim else t,
            None if y is None else concatenate_conditions([y, y[rows]]),
            self.perturbation.for_rows(torch.arange(batch + len(rows), device=x_t.device) >= batch),
        )  # fmt: skip
        strong = Prediction(*(field[:batch] for field in both))
        return strong, Prediction(*(side.index_copy(0, rows, field[batch:]) for side, field in zip(strong, both)))

    def weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        nowhere = torch.zeros(len(x_t), dtype=torch.bool, device=x_t.device)
        rows = nowhere.index_fill(0, self.guided(x_t, y), True)
        return self.denoiser.predict_perturbed(x_t, t, y, self.perturbation.for_rows(rows))


class PAG(Perturbed):
    """Perturbed-attention guidance: weak = the network whose self-attention maps are the identity in some layers.

    Ahn, Cho, Min, Jang, Kim, Kim, Park, Jin, Kim, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance",
    2024, arXiv 2403.17377, section 4, where each place of such a layer keeps its own value. Theirs is scale = 1 + s.

    Arguments:
        denoiser: a network with attention; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        interval: (lo, hi] in noise level sigma / alpha.
        layers: indices of attention layers, in the order of computation; None = all that lie on the coarsest grid.
        unconditional: whether rows without condition are guided too; False inside `ClassifierFree` is the paper's sum.
        rule, ramp: as in `Contrast`.

    Raises:
        ValueError: no network with attention, or one inside another guidance; layers that it has not; as `Contrast`.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: Sequence[float], layers: Sequence[int] | None,
        unconditional: bool, rule: Rule = LINEAR, ramp: Ramp = CONSTANT,
    ):  # fmt: skip
        perturbation = IdentityAttention(attention_layers(denoiser, layers, "pag"))
        super().__init__(denoiser, perturbation, unconditional, scale, interval, rule, ramp)


class SEG(Perturbed):
    """Smoothed energy guidance: weak = the network whose queries are blurred over the image in some attention layers.

    Hong, "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention", 2024, arXiv
    2408.00760: as blurring the attention weights before their softmax. Theirs is scale = 1 + their guidance scale.

    Arguments:
        denoiser: a network with attention; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        interval: (lo, hi] in noise level sigma / alpha.
        blur: standard deviation in places of the attention (pixels at its resolution, patches), at least 0; inf = the mean
            query everywhere.
        layers, unconditional: as in `PAG`.
        rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a negative blur; as `PAG`.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: Sequence[float], blur: float, layers: Sequence[int] | None,
        unconditional: bool, rule: Rule = LINEAR, ramp: Ramp = CONSTANT,
    ):  # fmt: skip
        if not blur >= 0:
            raise ValueError(f"blur must be at least 0 places (inf = the mean query), got {blur}")
        perturbation = BlurredQueries(attention_layers(denoiser, layers, "seg"), float(blur))
        super().__init__(denoiser, perturbation, unconditional, scale, interval, rule, ramp)


class SLG(Perturbed):
    """Skip-layer guidance: weak = the network without some of its blocks.

    Hyung et al., "Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling", 2024, arXiv 2411.18664 (residual skip);
    that of Stable Diffusion 3.5. Theirs is scale = 1 + s.

    Arguments:
        denoiser: a network; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        interval: (lo, hi] in noise level sigma / alpha.
        layers: indices of blocks, in the order of computation; those in the middle of a U-Net may matter little, the outer
            ones much.
        unconditional: as in `PAG`.
        rule, ramp: as in `Contrast`.

    Raises:
        ValueError: as `PAG`.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: Sequence[float], layers: Sequence[int], unconditional: bool,
        rule: Rule = LINEAR, ramp: Ramp = CONSTANT,
    ):  # fmt: skip
        check_places(denoiser, denoiser.residual_blocks, layers, "slg", "residual blocks")
        perturbation = SkippedBlocks(layers)
        super().__init__(denoiser, perturbation, unconditional, scale, interval, rule, ramp)


def attention_layers(denoiser: Denoiser, layers: Sequence[int] | None, guidance: str) -> Sequence[int]:
    """The indices of the attention layers that are perturbed; raises ValueError as `PAG`."""
    sides = denoiser.attention_layers
    chosen = [index for index, side in enumerate(sides) if side == min(sides)] if layers is None else layers
    check_places(denoiser, sides, chosen, guidance, "attention layers")
    return chosen


def check_places(denoiser: Denoiser, sides: Sequence[int], layers: Sequence[int], guidance: str, of: str) -> None:
    """Raises ValueError where a denoiser shows no place that could be perturbed, or not those that are asked for."""
    if not sides:
        while isinstance(denoiser, DenoiserWrapper) and denoiser.passthrough:
            denoiser = denoiser.denoiser
        if isinstance(denoiser, DenoiserWrapper):
            raise ValueError(
                f"guidance={guidance} perturbs the network itself and cannot be around {type(denoiser).__name__}: list it "
                "first, from inside out (one of pag, seg and slg at a time)"
            )
        network = getattr(denoiser, "backbone", denoiser)
        raise ValueError(
            f"guidance={guidance} perturbs {of} of a network, and this {type(network).__name__} has none: take another "
            "network or another guidance"
        )
    if not layers or any(not 0 <= index < len(sides) for index in layers):
        raise ValueError(
            f"layers must be some of the {of} 0 to {len(sides) - 1} of this network, which lie on grids of side "
            f"{list(sides)}, got {list(layers)}"
        )
