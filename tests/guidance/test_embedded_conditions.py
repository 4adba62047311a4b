"""Guidance that acts on outputs, with classes and with the vectors that a network takes in their place, as of texts."""

import pytest
import torch
from networks import lively, mlp
from two_class_points import COSINE, EVERYWHERE, x, y

from diffguide.guidance import (
    SMC,
    VAGS,
    AdaMaG,
    ClassifierFree,
    Feedback,
    HiGS,
    MomentumGuidance,
    Nested,
    NormLimit,
    PosteriorMeanCap,
    RectifiedCFGPlusPlus,
    RectifiedRatio,
    SummedContrasts,
    TemporalScoreRescaling,
)
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.samplers import DDIM, Heun
from diffguide.samplers.grids import UniformT

MODEL = Preconditioned(lively(mlp()).double(), COSINE, V(), True)
RULES = [SMC(), AdaMaG(), VAGS(), Feedback(), NormLimit(), PosteriorMeanCap(), RectifiedRatio()]
GUIDED = {type(rule).__name__: ClassifierFree(MODEL, 2.0, EVERYWHERE, rule) for rule in RULES} | {
    "RectifiedCFGPlusPlus": RectifiedCFGPlusPlus(MODEL, 2.0),
    "SummedContrasts": SummedContrasts(MODEL, {"cfg": ClassifierFree}, 0.7),
    "Nested": Nested(MODEL, {"cfg": ClassifierFree, "higs": HiGS, "momentum": MomentumGuidance, "tsr": TemporalScoreRescaling}),
}  # fmt: skip


@pytest.mark.parametrize("sampler", [DDIM(4, UniformT(), eta=0.0), Heun(4, UniformT())], ids=["ddim", "heun"])
@pytest.mark.parametrize("guided", GUIDED.values(), ids=GUIDED)
def test_classes_and_their_vectors_are_one(guided, sampler):
    """Some rows have no condition; without any condition it is finite too."""
    classes = torch.where(torch.arange(8) == 2, -1, y)
    times = sampler.times(guided)
    by_class, by_vector, free = (
        sampler(guided, x, times, condition) for condition in (classes, MODEL.embed(classes), None)
    )
    torch.testing.assert_close(by_class, by_vector, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(free[2], by_class[2], rtol=1e-9, atol=1e-9)
    assert float((free - by_class).abs().max()) > 1e-6
