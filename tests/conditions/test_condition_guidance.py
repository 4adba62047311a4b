"""Guidance of models with texts and several conditions: negative texts, compositions, a scale per condition, sampling."""

import math

import pytest
import torch

from diffguide.backbones import UNet
from diffguide.backbones.conditions import remove_condition
from diffguide.conditions import ByteText, Classes, SeveralConditions
from diffguide.guidance import ClassComposition, ClassifierFree, NegativeCondition, PartScales
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.samplers import DDIM, generate
from diffguide.schedules import Cosine

X = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor(0.6, dtype=torch.float64)
TEXTS = ["red", "", "a blue square"]


def model(conditioning) -> Preconditioned:
    torch.manual_seed(1)
    network = UNet(
        1, size=4, channels=8, multipliers=(1,), attention=(4,), head_channels=8, blocks=1, conditioning=conditioning
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Preconditioned(network.double().eval().requires_grad_(False), Cosine(), V(), has_null=True)


@pytest.fixture(scope="module")
def of_text() -> Preconditioned:
    return model(ByteText(16, 8, 1, 2))


@pytest.fixture(scope="module")
def of_several() -> Preconditioned:
    return model(SeveralConditions({"text": ByteText(16, 8, 1, 2), "class": Classes(3, 4)}))


def close(found, expected):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def mix(weak, strong, scale):
    return [w + scale * (s - w) for w, s in zip(weak, strong)]


@pytest.mark.parametrize("embedded", [False, True])
def test_a_negative_text_is_the_weak_side(of_text, embedded):
    y, green = of_text.conditioning.read(TEXTS), of_text.conditioning.read(["green"] * 3)
    wanted, weak = of_text(X, T, y), of_text(X, T, green)
    given = of_text.embed(y) if embedded else y
    for guided in (ClassifierFree(of_text, 3.0, negative="green"), NegativeCondition(of_text, "green", 3.0)):
        close(guided(X, T, given), mix(weak, wanted, 3.0))
        close(guided(X, T, None), mix(weak, of_text(X, T, None), 3.0))
        assert guided.acts_at(T[None], labelled=False)
    close(ClassifierFree(of_text, 0.0, negative="green")(X, T, given), weak)
    close(ClassifierFree(of_text, 3.0)(X, T, given), mix(of_text(X, T, remove_condition(y)), wanted, 3.0))


@pytest.mark.parametrize("embedded", [False, True])
def test_a_negative_value_of_several_is_the_weak_side(of_several, embedded):
    """The sampler embeds the texts of a part before the first step, and so must guidance its own."""
    y, weak = (of_several.conditioning.read([value] * 3) for value in ({"text": "red", "class": 1}, {"text": "green"}))
    guided = ClassifierFree(of_several, 3.0, negative={"text": "green"})
    given = of_several.embed(y) if embedded else y
    close(guided(X, T, given), mix(of_several(X, T, weak), of_several(X, T, y), 3.0))


def test_texts_are_composed(of_text):
    guided = ClassComposition(of_text, ["red", "green"], [1.5, -0.5], scale=2.0)
    nothing, *sides = (of_text(X, T, of_text.conditioning.read([text] * 3)) for text in ("", "red", "green"))
    strong = [n + 1.5 * (a - n) - 0.5 * (b - n) for n, a, b in zip(nothing, *sides)]
    close(guided(X, T, None), mix(nothing, strong, 2.0))


@pytest.mark.parametrize("order", [("text", "class"), ("class", "text")])
def test_each_condition_has_a_scale(of_several, order):
    """InstructPix2Pix, eq. 3, written out for two conditions in either order."""
    scales = {"text": 5.0, "class": 2.0}
    y = of_several.conditioning.read([{"text": "red", "class": 1}, "blue", {"class": 2}])
    guided = PartScales(of_several, {name: scales[name] for name in order})
    none, first, both = (of_several(X, T, condition) for condition in (remove_condition(y), y.only(order[:1]), y))
    expected = [n + scales[order[0]] * (a - n) + scales[order[1]] * (b - a) for n, a, b in zip(none, first, both)]
    close(guided(X, T, y), expected)
    close(guided(X, T, of_several.embed(y)), expected)
    close(PartScales(of_several, dict.fromkeys(order, 1.0))(X, T, y), both)
    close(PartScales(of_several, dict.fromkeys(order, 4.0))(X, T, y), mix(none, both, 4.0))  # then it is CFG
    close(PartScales(of_several, {"text": 3.0})(X, T, y), mix(of_several(X, T, y.only(["class"])), both, 3.0))
    level = float(of_several.schedule.noise_level(T))
    close(PartScales(of_several, scales, (level, math.inf))(X, T, y), both)
    rows = torch.tensor([0.6, 0.9, 0.9], dtype=torch.float64)
    some = PartScales(of_several, scales, (level, math.inf))(X, rows, y)
    close([part[:1] for part in some], [part[:1] for part in both])
    close([part[1:] for part in some], [part[1:] for part in PartScales(of_several, scales)(X, rows, y)])


def test_unknown_conditions_are_refused(of_text, of_several):
    with pytest.raises(ValueError, match="cfg_parts needs a model with condition=several"):
        PartScales(of_text, {"text": 2.0})
    with pytest.raises(ValueError, match="conditions text, class, not style"):
        PartScales(of_several, {"style": 2.0})
    with pytest.raises(ValueError, match="allows 15"):
        ClassifierFree(of_text, 2.0, negative="x" * 16)
    with pytest.raises(ValueError, match="a class must be an index from -1 .none. to 2, got red"):
        NegativeCondition(model(Classes(3)), "red", 2.0)


def test_a_sample_is_a_function_of_its_seed_and_text(of_text):
    guided, y = ClassifierFree(of_text, 2.0, negative="green"), of_text.conditioning.read(TEXTS)
    whole = torch.cat(list(generate(guided, DDIM(3), [4, 5, 6], y, (1, 4, 4), 3, dtype=torch.float64)))
    for row in range(3):
        alone = next(iter(generate(guided, DDIM(3), [4 + row], y[row : row + 1], (1, 4, 4), 1, dtype=torch.float64)))
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-9, atol=1e-9)
