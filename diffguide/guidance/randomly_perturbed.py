"""Contrasts with a randomly perturbed copy of the network. What is random is drawn for each sample from its own noise.

As in `perturbed`: perturbed + scale (network - perturbed), inside other guidance. The papers draw once for a whole batch.
"""

from collections.abc import Sequence

from torch import Tensor

from ..backbones.perturbations import Perturbation
from ..backbones.random_perturbations import NoisyEmbedding, RandomBlocks, RandomPerturbation, ShuffledTokens
from ..models.protocols import Denoiser
from ..runtime.ranges import check_range
from ..schedules import EVERYWHERE
from .contrast import CONSTANT_RAMP, LINEAR_RULE
from .draws import DrawingContrast
from .perturbed import Perturbed, attention_layers, check_places, explain_refusal
from .ramps import Ramp
from .rules import Rule

__all__ = ["S2", "TPG", "TSG", "RandomlyPerturbed"]


class RandomlyPerturbed(DrawingContrast, Perturbed):
    """Weak: the same network with the same condition, perturbed with random numbers of each sample and noise level."""

    perturbation: RandomPerturbation

    def perturb(self, x_t: Tensor, t: Tensor, origin: Tensor, rows: Tensor) -> Perturbation:
        def draw(shape: Sequence[int], number: int) -> Tensor:
            return self.draw(x_t.flatten(1)[:, 0], shape, t, number)[origin]

        return self.perturbation.for_rows(rows).drawing(draw)


class TPG(RandomlyPerturbed):
    """Token perturbation guidance: weak = the network with shuffled tokens at the inputs of some transformer blocks.

    Rajabi, Mehraban, Sadat, Taati, "Token Perturbation Guidance for Diffusion Models", 2025, arXiv 2506.10036, and its code,
    network + s (network - perturbed), where s = scale - 1 is 3. A block of a U-Net is its attention layer with its skip
    connection. The order of the tokens is random for each sample, noise level and layer, and stays after the block.

    Arguments:
        denoiser: a network with attention; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        layers: indices of attention layers, in the order of computation; None = all on the coarsest grid.
        unconditional: whether rows without condition are guided too; False inside `ClassifierFree` is the paper's sum.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a network without attention or without these layers, one of EDM, EDM2 or diffusers, or one inside other
            guidance; from a call: outside a run, where there is no noise, or with t [B].
    """

    option = "tpg"
    draw_space = 2

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 4.0,
        interval: Sequence[float] = EVERYWHERE,
        layers: Sequence[int] | None = None,
        unconditional: bool = True,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        places = attention_layers(denoiser, layers, self.option)
        if ShuffledTokens not in denoiser.perturbations:
            raise explain_refusal(denoiser, self.option, "tokens before attention layers")
        super().__init__(denoiser, ShuffledTokens(places), unconditional, scale, interval, rule, ramp)


class S2(RandomlyPerturbed):
    """Stochastic self guidance: weak = the network without some of its blocks, drawn anew at every noise level.

    Chen et al., "S^2-Guidance: Stochastic Self Guidance for Training-Free Enhancement of Diffusion Models", 2025, arXiv
    2508.12880, eq. 4 and algorithm 1: cfg + omega (conditional - conditional with skipped blocks), omega = 0.25 for Stable
    Diffusion 3, a tenth of the blocks and never the first, in the middle 80 % of the steps. Here omega = scale - 1.

    Arguments:
        denoiser: a network; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided; inside `ClassifierFree` of scale g, 1 + omega / g.
        fraction: of the blocks of the network, which are skipped, in [0, 1], rounded but at least 1 block; 0 = off.
        layers: indices of the blocks that may be skipped, in the order of computation; None = all but the first.
        unconditional: as in `TPG`.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a network without blocks to skip or without these, or one inside other guidance; from a call: outside a run,
            where there is no noise, or with t [B].
    """

    option = "s2"
    draw_space = 3

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 1.25,
        interval: Sequence[float] = EVERYWHERE,
        fraction: float = 0.1,
        layers: Sequence[int] | None = None,
        unconditional: bool = True,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        blocks = denoiser.residual_blocks
        places = range(1, len(blocks)) if layers is None and len(blocks) > 1 else layers or []
        check_places(denoiser, blocks, places, self.option, "residual blocks")
        count = round(check_range("fraction", fraction, "[0, 1]") * len(blocks))
        count = min(max(count, 1), len(places)) if fraction else 0
        super().__init__(denoiser, RandomBlocks(places, count), unconditional, scale, interval, rule, ramp)


class TSG(RandomlyPerturbed):
    """Time-step guidance: weak = the network with noise on its vector e of the noise level, e + s t^a std(e) n.

    Sadat, Kansy, Hilliges, Weber, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models", 2024,
    arXiv 2407.02687, eq. 8 and appendix G: D(e noisy) + scale (D(e) - D(e noisy)), with scale 2.5, s = 2 and a = 1 for a DiT
    with classes. The vector is the one before that of the class is added, std is over its values, and t the time of the
    schedule in [0, 1]. All layers get the noisy vector; the paper also tries the first 10 alone.

    Arguments:
        denoiser: a network that takes the noise level; it needs no condition.
        scale: 1 = off, 0 = the perturbed network, above 1 = guided.
        strength: s, at least 0; 0 = off.
        exponent: a, at least 0; 0 = the same noise at every time.
        unconditional: as in `TPG`.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a network without such a vector (EDM's, EDM2's and those of diffusers), or one inside other guidance; from a
            call: outside a run, where there is no noise, or with t [B].
    """

    option = "tsg"
    draw_space = 4
    perturbation: NoisyEmbedding

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.5,
        interval: Sequence[float] = EVERYWHERE,
        strength: float = 2.0,
        exponent: float = 1.0,
        unconditional: bool = True,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        if NoisyEmbedding not in denoiser.perturbations:
            raise explain_refusal(denoiser, self.option, "the vector of the noise level")
        self.strength = check_range("strength", strength, "[0, inf)")
        self.exponent = check_range("exponent", exponent, "[0, inf)")
        super().__init__(denoiser, NoisyEmbedding(), unconditional, scale, interval, rule, ramp)

    def perturb(self, x_t: Tensor, t: Tensor, origin: Tensor, rows: Tensor) -> Perturbation:
        perturbation = super().perturb(x_t, t, origin, rows)
        assert isinstance(perturbation, NoisyEmbedding)
        return perturbation.of_strength(self.strength * float(t) ** self.exponent)
