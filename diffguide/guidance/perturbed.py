"""Contrasts with a perturbed copy of the network: no other model, no null condition, no extra training.

With the linear rule, perturbed + scale (network - perturbed). The papers write network + s (network - perturbed), so that
scale = 1 + s: 1 = off, 0 = the perturbed network.

They perturb a network, not a guided denoiser: in nested guidance they come first. With linear rules, perturbing inside or
around classifier-free guidance is the same. The papers' sum, null + g (cond - null) + s (cond - cond perturbed), guides only
rows with a condition: take `unconditional=False`, scale 1 + s / g, and `ClassifierFree` of scale g around it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, concatenate_conditions, has_condition
from ..backbones.perturbations import (
    BlurredQueries,
    IdentityAttention,
    Perturbation,
    SkippedBlocks,
    SoftIdentityAttention,
)
from ..models.protocols import Denoiser, DenoiserWrapper, Prediction, take_rows
from ..runtime.ranges import check_range
from ..schedules import EVERYWHERE
from .contrast import CONSTANT_RAMP, LINEAR_RULE, Contrast
from .ramps import Ramp
from .rules import Rule

__all__ = ["PAG", "SEG", "SLG", "Perturbed", "SoftPAG"]


class Perturbed(Contrast):
    """Weak: the same network with the same condition, perturbed. Both predictions are one batched call.

    Arguments:
        denoiser: a network; it needs no condition.
        perturbation: of the network.
        unconditional: whether rows without condition are guided too; an unconditional network always is.
        scale: 1 = off (the network as it is), 0 = perturbed.
        interval, rule, ramp: as in `Contrast`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        perturbation: Perturbation,
        unconditional: bool,
        scale: float,
        interval: Sequence[float],
        rule: Rule,
        ramp: Ramp,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp)
        self.perturbation = perturbation
        self.every_row = unconditional or not denoiser.conditional

    def guided_rows(self, x_t: Tensor, y: Condition | None) -> Tensor:
        """Indices of the guided rows."""
        if self.every_row:
            return torch.arange(len(x_t), device=x_t.device)
        if y is None:
            return torch.arange(0, device=x_t.device)
        return has_condition(y).nonzero()[:, 0]

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        rows = self.guided_rows(x_t, y)
        if not len(rows):
            side = self.denoiser(x_t, t, y)
            return side, side
        batch, own = len(x_t), torch.arange(len(x_t), device=x_t.device)
        weak = torch.arange(batch + len(rows), device=x_t.device) >= batch
        both = self.denoiser.predict_perturbed(
            torch.cat([x_t, x_t[rows]]),
            torch.cat([t, t[rows]]) if t.ndim else t,
            None if y is None else concatenate_conditions([y, y[rows]]),
            self.perturb(x_t, t, torch.cat([own, rows]), weak),
        )
        strong = take_rows(both, slice(batch))
        return strong, Prediction(*(side.index_copy(0, rows, field[batch:]) for side, field in zip(strong, both)))

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        nowhere = torch.zeros(len(x_t), dtype=torch.bool, device=x_t.device)
        rows = nowhere.index_fill(0, self.guided_rows(x_t, y), True)
        own = torch.arange(len(x_t), device=x_t.device)
        return self.denoiser.predict_perturbed(x_t, t, y, self.perturb(x_t, t, own, rows))

    def perturb(self, x_t: Tensor, t: Tensor, origin: Tensor, rows: Tensor) -> Perturbation:
        """The perturbation of a call.

        Arguments:
            origin: for each row of the call, its row in x_t.
            rows: which rows of the call are perturbed, bool.
        """
        return self.perturbation.for_rows(rows)


class PAG(Perturbed):
    """Perturbed-attention guidance: weak = the network with identity self-attention maps in some layers.

    Ahn, Cho, Min, Jang, Kim, Kim, Park, Jin, Kim, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance",
    2024, arXiv 2403.17377, section 4, where each position of such a layer keeps its own value. Their s is scale - 1.

    Arguments:
        denoiser: a network with attention; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        layers: indices of attention layers, in the order of computation; None = all on the coarsest grid.
        unconditional: whether rows without condition are guided too; False inside `ClassifierFree` is the paper's sum.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a network without attention or without these layers, or one inside other guidance.
    """

    option = "pag"

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        layers: Sequence[int] | None = None,
        unconditional: bool = True,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        perturbation = IdentityAttention(attention_layers(denoiser, layers, "pag"))
        super().__init__(denoiser, perturbation, unconditional, scale, interval, rule, ramp)


class SoftPAG(Perturbed):
    """Soft perturbed-attention guidance: weak = the network whose attention maps A are (1 - u) A + u I in some layers.

    Ahn et al., "Where and How to Perturb: On the Design of Perturbation Guidance in Diffusion and Flow Models", 2025, arXiv
    2506.10978, eq. 7, in all heads of a layer. Their w is scale - 1, 5 unless they say another; u below 1 was best.

    Arguments:
        denoiser: a network with attention; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        share: u, in [0, 1]; 0 = off, 1 = `PAG`.
        layers, unconditional: as in `PAG`.
        interval, rule, ramp: as in `Contrast`.
    """

    option = "soft_pag"

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 6.0,
        interval: Sequence[float] = EVERYWHERE,
        share: float = 0.5,
        layers: Sequence[int] | None = None,
        unconditional: bool = True,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        share = check_range("share", share, "[0, 1]")
        perturbation = SoftIdentityAttention(attention_layers(denoiser, layers, "soft_pag"), share)
        super().__init__(denoiser, perturbation, unconditional, scale, interval, rule, ramp)


class SEG(Perturbed):
    """Smoothed energy guidance: weak = the network whose queries are blurred over the image in some attention layers.

    Hong, "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention", 2024, arXiv
    2408.00760: as blurring the attention weights before their softmax. Their guidance scale is scale - 1.

    Arguments:
        denoiser: a network with attention; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        blur: standard deviation in positions of the attention (pixels at its resolution, patches), at least 0; inf = the
            mean query everywhere.
        layers, unconditional: as in `PAG`.
        interval, rule, ramp: as in `Contrast`.
    """

    option = "seg"

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        blur: float = math.inf,
        layers: Sequence[int] | None = None,
        unconditional: bool = True,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        blur = check_range("blur", blur, "[0, inf]")
        perturbation = BlurredQueries(attention_layers(denoiser, layers, "seg"), blur)
        super().__init__(denoiser, perturbation, unconditional, scale, interval, rule, ramp)


class SLG(Perturbed):
    """Skip-layer guidance: weak = the network without some of its blocks.

    Hyung et al., "Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling", 2024, arXiv 2411.18664 (residual skip);
    that of Stable Diffusion 3.5. Their s is scale - 1.

    Arguments:
        denoiser: a network; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        layers: indices of blocks, in the order of computation; in a U-Net the outer ones often matter most.
        unconditional: as in `PAG`.
        interval, rule, ramp: as in `Contrast`.
    """

    option = "slg"

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Sequence[int],
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        unconditional: bool = True,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        check_places(denoiser, denoiser.residual_blocks, layers, "slg", "residual blocks")
        perturbation = SkippedBlocks(layers)
        super().__init__(denoiser, perturbation, unconditional, scale, interval, rule, ramp)


def attention_layers(denoiser: Denoiser, layers: Sequence[int] | None, guidance: str) -> Sequence[int]:
    """The indices of the perturbed attention layers; raises ValueError as `PAG`."""
    sides = denoiser.attention_layers
    places = [index for index, side in enumerate(sides) if side == min(sides)] if layers is None else layers
    check_places(denoiser, sides, places, guidance, "attention layers")
    return places


def check_places(denoiser: Denoiser, sides: Sequence[int], layers: Sequence[int], guidance: str, of: str) -> None:
    """Raises ValueError for a denoiser without layers to perturb, or without the given ones."""
    if not sides:
        raise explain_refusal(denoiser, guidance, of)
    if not layers or any(not 0 <= index < len(sides) for index in layers):
        raise ValueError(
            f"layers must be some of the {of} 0 to {len(sides) - 1} of this network, on grids of side {list(sides)}, got "
            f"{list(layers)}"
        )


def explain_refusal(denoiser: Denoiser, guidance: str, of: str) -> ValueError:
    """Why a guidance cannot perturb a denoiser without what it perturbs, in the words of `of`."""
    while isinstance(denoiser, DenoiserWrapper) and denoiser.passthrough:
        denoiser = denoiser.denoiser
    if isinstance(denoiser, DenoiserWrapper):
        return ValueError(
            f"guidance={guidance} perturbs a network and cannot wrap {type(denoiser).__name__}: list it first, and only one "
            "that perturbs"
        )
    network = getattr(denoiser, "backbone", denoiser)
    return ValueError(
        f"guidance={guidance} perturbs {of}, and this {type(network).__name__} has none: take another guidance"
    )
