"""A network guided away from itself perturbed: perturbed attention, smoothed energy, skipped layers."""

import math

import pytest
import torch
from closed_forms import ExactMixture, two_classes
from diffusers import guiders
from networks import dit, mlp, unet
from perturbed_networks import (
    ATTENTION,
    COSINE,
    ROWS,
    denoiser,
    log_snr,
    network,
    replaced,
    same,
    t,
    without_branches,
    x,
    y,
)
from torch import nn

from diffguide.backbones import unet_blocks as unet_file
from diffguide.backbones.conditions import Embedding
from diffguide.guidance import PAG, SEG, SLG, ClassifierFree, Nested, Unguided
from diffguide.guidance.projections import APG
from diffguide.models.evaluation_counters import EvaluationCounter

EVERYWHERE = (0.0, math.inf)
either_time = pytest.mark.parametrize("t", [t, torch.linspace(0.2, 0.9, 5).double()], ids=["0-d", "[B]"])


def weak_of(kind, backbone, layers, x, t, y, monkeypatch):
    """The perturbed network evaluated alone, without `Perturbation`."""
    if kind is SLG:
        return denoiser(without_branches(backbone, layers))(x, t, y)
    with monkeypatch.context() as patch:
        replaced(patch, layers, ATTENTION["pag" if kind is PAG else "seg"][2])
        return denoiser(backbone)(x, t, y)


GUIDANCE = {"pag": (PAG, {}), "seg": (SEG, {"blur": 0.4}), "slg": (SLG, {})}
every_guidance = pytest.mark.parametrize("kind, options", GUIDANCE.values(), ids=GUIDANCE)


class Calls:
    """Counts the calls of a network."""

    def __init__(self, backbone: nn.Module):
        self.count = 0
        backbone.register_forward_hook(self)

    def __call__(self, *_) -> None:
        self.count += 1


@every_guidance
@pytest.mark.parametrize("make, layers", [(unet, [1]), (dit, [0])], ids=["unet", "dit"])
@either_time
@pytest.mark.parametrize("labels", [y, None], ids=["labels", "no labels"])
def test_perturbed_guidance_is_its_formula_by_one_call(monkeypatch, kind, options, make, layers, t, labels):
    """perturbed + w (network - perturbed) by one call of the network, half of it where w is 0 or 1."""
    backbone = network(make)
    strong, weak = denoiser(backbone)(x, t, labels), weak_of(kind, backbone, layers, x, t, labels, monkeypatch)
    assert float((strong.x_0 - weak.x_0).abs().amax((1, 2, 3)).min()) > 1e-4
    for scale, rows in ((1.0, 5), (0.0, 5), (3.0, 10), (-0.5, 10)):
        calls, counter = Calls(backbone), EvaluationCounter(denoiser(backbone))
        found = kind(counter, scale=scale, layers=layers, unconditional=True, **options)(x, t, labels)
        same(found, [b + scale * (a - b) for a, b in zip(strong, weak)], 1e-11)
        assert calls.count == 1 and (t.ndim or counter.tally.evaluations == rows)


@every_guidance
def test_outside_the_interval_nothing_weak_is_evaluated(kind, options):
    counter = EvaluationCounter(denoiser(network()))
    guided = kind(
        counter, scale=3.0, interval=(0.0, float(COSINE.noise_level(t)) / 2), layers=[0], unconditional=True, **options
    )
    same(guided(x, t, y), counter.denoiser(x, t, y), 0)
    assert counter.tally.evaluations == 5


@either_time
def test_rows_without_label_are_unguided_if_unconditional_is_false(monkeypatch, t):
    """They are neither guided nor evaluated twice; y = None is no label at all, and a network without labels is guided."""
    backbone, guided_rows = network(), y >= 0
    strong, weak = denoiser(backbone)(x, t, y), weak_of(PAG, backbone, [1], x, t, y, monkeypatch)
    for scale, evaluations in ((3.0, 8), (0.0, 5)):
        counter = EvaluationCounter(denoiser(backbone))
        guided = PAG(counter, scale, EVERYWHERE, [1], False)
        keep = guided_rows[:, None, None, None]
        same(guided(x, t, y), [torch.where(keep, b + scale * (a - b), a) for a, b in zip(strong, weak)], 1e-11)
        assert t.ndim or counter.tally.evaluations == evaluations
        same(guided(x, t, None), denoiser(backbone)(x, t, None))
    unlabelled = network(num_classes=0)
    found = PAG(denoiser(unlabelled), 3.0, EVERYWHERE, [1], False)(x, t)
    weak = weak_of(PAG, unlabelled, [1], x, t, None, monkeypatch)
    same(found, [b + 3 * (a - b) for a, b in zip(denoiser(unlabelled)(x, t), weak)], 1e-11)


def test_conditions_that_are_vectors(monkeypatch):
    backbone = network(num_classes=0, condition_features=3)
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    condition = Embedding(vectors, ROWS)
    strong, weak = denoiser(backbone)(x, t, condition), weak_of(PAG, backbone, [0], x, t, condition, monkeypatch)
    counter = EvaluationCounter(denoiser(backbone))
    found = PAG(counter, 2.0, EVERYWHERE, [0], False)(x, t, condition)
    same(found, [torch.where(ROWS[:, None, None, None], 2 * a - b, a) for a, b in zip(strong, weak)], 1e-11)
    assert counter.tally.evaluations == 8


DIFFUSERS = {
    "pag": (PAG, {}, lambda g, s: guiders.PerturbedAttentionGuidance(g, s, perturbed_guidance_layers=[1])),
    "seg": (SEG, {"blur": 0.4}, lambda g, s: guiders.SmoothedEnergyGuidance(g, s, seg_guidance_layers=[1])),
    "slg": (SLG, {}, lambda g, s: guiders.SkipLayerGuidance(g, s, skip_layer_guidance_layers=[1])),
}


@pytest.mark.parametrize("kind, options, guider", DIFFUSERS.values(), ids=DIFFUSERS)
def test_the_sum_with_classifier_free_guidance(monkeypatch, kind, options, guider):
    """null + g (cond - null) + s (cond - perturbed cond), as diffusers has it, by 3 B evaluations in two calls."""
    backbone, labels, g, s = network(), y.clamp(min=0), 4.0, 2.5
    strong, null = denoiser(backbone)(x, t, labels), denoiser(backbone)(x, t)
    weak = weak_of(kind, backbone, [1], x, t, labels, monkeypatch)
    counter = EvaluationCounter(denoiser(backbone))
    inner = kind(counter, scale=1 + s / g, layers=[1], unconditional=False, **options)
    found = ClassifierFree(inner, g, EVERYWHERE)(x, t, labels)
    same(found, [guider(g, s).forward(a, b, c).pred for a, b, c in zip(strong, null, weak)], 1e-10)
    assert counter.tally.evaluations == 15
    alone = kind(counter, scale=s, layers=[1], unconditional=True, **options)(x, t, labels)
    same(alone, [guider(1.0, s).forward(a, None, c).pred for a, c in zip(strong, weak)], 1e-10)


def test_inside_another_guidance_both_of_its_sides_are_guided(monkeypatch):
    """Which is the other guidance of the perturbed sides, where the rules are linear; other rules take it as it is."""
    backbone, labels = network(), y.clamp(min=0)
    counter = EvaluationCounter(denoiser(backbone))
    parts = {
        "none": Unguided,
        "pag": lambda d: PAG(d, 2.0, EVERYWHERE, [1], True),
        "cfg": lambda d: ClassifierFree(d, 3.0, EVERYWHERE),
    }
    weak = weak_of(PAG, backbone, [1], x, t, labels, monkeypatch), weak_of(PAG, backbone, [1], x, t, None, monkeypatch)
    free = ClassifierFree(denoiser(backbone), 3.0, EVERYWHERE)(x, t, labels)
    perturbed = [b + 3 * (a - b) for a, b in zip(*weak)]
    same(Nested(counter, parts)(x, t, labels), [b + 2 * (a - b) for a, b in zip(free, perturbed)], 1e-10)
    assert counter.tally.evaluations == 20
    cut = PAG(denoiser(backbone), 2.0, EVERYWHERE, [1], True, rule=APG(1.0, 1e-3, 0.0))(x, t, labels)
    assert float((cut.x_0 - denoiser(backbone)(x, t, labels).x_0).flatten(1).norm(dim=1).max()) < 1.01e-3


def test_layers_are_counted_in_the_order_of_computation():
    """Each with the side of its grid; unless said, all attention layers on the coarsest."""
    for make, options, places, coarsest in (
        (unet, {}, [4, 4, 4, 4], [0, 1, 2, 3]),
        (unet, {"attention": [8]}, [8, 8, 8], [0, 1, 2]),
        (unet, {"multipliers": [1, 2, 2], "attention": [2, 4]}, [4, 2, 2, 2, 2, 4, 4], [1, 2, 3, 4]),
        (dit, {"depth": 3}, [4, 4, 4], [0, 1, 2]),
    ):
        backbone = network(make, **options)
        assert backbone.attention_layers == places
        assert PAG(denoiser(backbone), 2.0, EVERYWHERE, None, True).perturbation.layers == tuple(coarsest)
        if make is unet:
            assert sides(backbone, unet_file.Attention) == places
            assert sides(backbone, unet_file.UNetBlock) == backbone.residual_blocks
    assert backbone.residual_blocks == [4, 4, 4] and network(mlp).residual_blocks == [1, 1]


def sides(backbone: nn.Module, kind: type) -> list[int]:
    """The side of what each module of a kind made, in the order in which the network calls them."""
    called = []
    hooks = [
        module.register_forward_hook(lambda module, _, made: called.append((module.index, made.shape[-1])))
        for module in backbone.modules()
        if isinstance(module, kind)
    ]
    backbone(x, log_snr, y)
    for hook in hooks:
        hook.remove()
    assert [index for index, _ in called] == list(range(len(called)))
    return [side for _, side in called]


EXACT = ExactMixture(two_classes(), COSINE)


@pytest.mark.parametrize("make, sentence", [
    (lambda: PAG(EXACT, 2.0, EVERYWHERE, None, True), "attention layers, .* ExactMixture has none"),
    (lambda: SLG(EXACT, [0]), "residual blocks, .* ExactMixture has none"),
    (lambda: SEG(denoiser(network(mlp)), 2.0, EVERYWHERE, 1.0, None, True), "guidance=seg .* this MLP has none"),
    (lambda: PAG(denoiser(network(attention=[])), 2.0, EVERYWHERE, None, True), "this UNet has none"),
    (lambda: PAG(ClassifierFree(denoiser(network()), 2.0, EVERYWHERE), 2.0, EVERYWHERE, None, True),
     "cannot wrap ClassifierFree: list it first"),
    (lambda: SEG(PAG(denoiser(network()), 2.0, EVERYWHERE, None, True), 2.0, EVERYWHERE, 1.0, None, True), "cannot wrap PAG"),
    (lambda: PAG(denoiser(network()), 2.0, EVERYWHERE, [4], True),
     r"0 to 3 .* \[4, 4, 4, 4\], got \[4\]"),
    (lambda: SLG(denoiser(network(dit)), [-1]), r"residual blocks 0 to 1 .* got \[-1\]"),
    (lambda: PAG(denoiser(network()), 2.0, EVERYWHERE, [], True), r"got \[\]"),
    (lambda: SEG(denoiser(network()), 2.0, EVERYWHERE, -0.1, None, True), "blur must be"),
    (lambda: SEG(denoiser(network()), 2.0, EVERYWHERE, math.nan, None, True), "blur must be"),
    (lambda: PAG(denoiser(network()), math.inf, EVERYWHERE, None, True), "scale must be"),
])  # fmt: skip
def test_invalid_arguments_raise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
