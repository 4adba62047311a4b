"""An energy of clean data whose gradient leads from noise to the data, without noise levels."""

from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.conditions import Condition
from .level_classifier import check_twice_differentiable
from .parameterizations import at_least_float32
from .protocols import Energy

__all__ = ["DotProduct", "EnergyForm", "EquilibriumEnergy", "SquaredNorm"]


class EnergyForm:
    """How the output F of a network, in the shape of x, becomes minus an energy [B]."""

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        raise NotImplementedError


class DotProduct(EnergyForm):
    """<x, F>."""

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        return (x * output).flatten(1).sum(1)


class SquaredNorm(EnergyForm):
    """-||F||^2 / 2, at most 0."""

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        return -output.square().flatten(1).sum(1) / 2


DOT_PRODUCT = DotProduct()


class EquilibriumEnergy(nn.Module, Energy):
    """-E(x) = <x, F(x, y)> or -||F(x, y)||^2 / 2, whose gradient objective=eqm trains.

    It is no log-density of the data: its gradient at x is the mean, over all noise levels that may have made x, of the
    directions from noise to data. Its minima are samples for sampler=descent, and its value orders examples.

    Wang, Du, "Equilibrium Matching: Generative Modeling with Implicit Energy-Based Models", 2025, arXiv 2510.02300: the forms
    with an explicit energy. Their implicit form, F itself as the field, has no energy.

    Arguments:
        backbone: network (x, None, y) -> F in the shape of x, twice differentiable.
        has_null: whether training dropped the condition of some examples, so that y = -1 is trained.
        form: of the energy.

    Raises:
        ValueError: a backbone with noise input, or with another output than the shape of the data.
    """

    normalized = False

    def __init__(self, backbone: Backbone, has_null: bool, form: EnergyForm = DOT_PRODUCT):
        super().__init__()
        what = "an energy without noise levels"
        if backbone.out_features:
            raise ValueError(
                f"{what} needs a network with an output in the shape of the data, but this {type(backbone).__name__} has "
                f"{backbone.out_features} numbers; use backbone=unet_twice_differentiable for images, backbone=mlp for vectors"
            )
        if backbone.noise_conditioned:
            raise ValueError(f"{what} has no noise input: set backbone.noise_conditioned=false")
        check_twice_differentiable(backbone, what)
        self.backbone, self.form = backbone, form
        self.num_classes, self.has_null = backbone.num_classes, bool(has_null) or not backbone.conditional

    @property
    def conditional(self) -> bool:
        return self.backbone.conditional

    def log_density(self, x: Tensor, t: Tensor | None = None, y: Condition | None = None) -> Tensor:
        """-E(x, y), [B]; t is ignored."""
        x = at_least_float32(x)
        return self.form(x, self.backbone(x, None, y).to(x.dtype))
