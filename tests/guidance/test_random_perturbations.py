"""Guidance by a randomly perturbed network: every formula row by row, from the noise of the sample."""

import math

import numpy as np
import pytest
import torch
from networks import dit, edm, mlp, unet
from perturbed_networks import COSINE, denoiser, map_of, network, replaced, same, t, without_branches, x, y
from torch import nn

from diffguide.backbones.diffusers_network import SMALL_UNET, DiffusersNetwork
from diffguide.backbones.dit import DiTBlock
from diffguide.backbones.unet_blocks import Attention
from diffguide.guidance import PAG, S2, TPG, TSG, ClassifierFree, SoftPAG
from diffguide.guidance.draws import FIRST_DRAW
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import SamplingError
from diffguide.randomness import Noise
from diffguide.samplers import Heun
from diffguide.samplers.grids import UniformT

EVERYWHERE = (0.0, math.inf)
TIMES = torch.tensor([1.0, 0.45, 0.0], dtype=torch.float64)
SEEDS = [7, 3, 11, 0, 5]
VECTORS = x[:, 0, 0, :2]


def noise(seeds=SEEDS, shape=(1, 8, 8)) -> Noise:
    return Noise(seeds, shape, COSINE, dtype=torch.float64)


def normals(row: int, shape, space: int, number: int = 0) -> np.ndarray:
    """The numbers of one sample: a function of its seed, the level and the draw."""
    return noise([SEEDS[row]]).of(shape).normal(t, space * FIRST_DRAW + number)[0].numpy()


def shuffled_by_hand(backbone: nn.Module, layers, row: int):
    """The hooks of a network of one row whose tokens are written one by one into their new places."""

    def move(module, inputs):
        if module.index not in layers:
            return inputs
        h, *rest = inputs
        axis = 1 if isinstance(module, DiTBlock) else 2
        tokens = h if axis == 1 else h.flatten(2)
        order = np.argsort(normals(row, (tokens.shape[axis],), 2, module.index))
        moved = torch.empty_like(tokens)
        for place, source in enumerate(order):
            moved.select(axis, place).copy_(tokens.select(axis, int(source)))
        return moved.reshape(h.shape), *rest

    modules = [part for part in backbone.modules() if isinstance(part, DiTBlock | Attention)]
    return [part.register_forward_pre_hook(move) for part in modules]


def noised_by_hand(backbone: nn.Module, row: int, strength: float):
    """The hook that adds noise to the vector of the noise level of one row, number by number."""

    def add(module, inputs, output):
        vector, n = output[0].numpy(), normals(row, output.shape[1:], 4)
        deviation = math.sqrt(sum((value - vector.mean()) ** 2 for value in vector) / (len(vector) - 1))
        changed = [value + strength * deviation * z for value, z in zip(vector, n)]
        return torch.tensor(np.array(changed))[None]

    return [backbone.embedding.noise.register_forward_hook(add)]


def without_hooks(hooks, result):
    for hook in hooks:
        hook.remove()
    return result


def weak_of(kind, backbone: nn.Module, options, data, labels) -> list[torch.Tensor]:
    """The perturbed prediction, sample by sample, each by a network of its own."""
    fields = []
    for row in range(5):
        rows = slice(row, row + 1)
        own = (data[rows], t, None if labels is None else labels[rows])
        if kind is S2:
            count, layers = max(1, round(options["fraction"] * len(backbone.residual_blocks))), options["layers"]
            drawn = np.argsort(normals(row, (len(layers),), 3))[:count]
            found = denoiser(without_branches(backbone, [layers[place] for place in drawn]))(*own)
        elif kind is TPG:
            hooks = shuffled_by_hand(backbone, options["layers"], row)
            found = without_hooks(hooks, denoiser(backbone)(*own))
        else:
            strength = options["strength"] * float(t) ** options["exponent"]
            found = without_hooks(noised_by_hand(backbone, row, strength), denoiser(backbone)(*own))
        fields.append(found)
    return [torch.cat(rows) for rows in zip(*fields)]


CASES = {
    "tpg unet": (TPG, unet, {"layers": [1, 2]}),
    "tpg dit": (TPG, dit, {"layers": [0, 1]}),
    "s2 unet": (S2, unet, {"fraction": 0.3, "layers": [1, 2, 3, 5, 6]}),
    "s2 dit": (S2, lambda: dit(depth=4), {"fraction": 0.5, "layers": [1, 2, 3]}),
    "s2 mlp": (S2, lambda: mlp(layers=3), {"fraction": 0.1, "layers": [0, 1, 2]}),
    "tsg unet": (TSG, unet, {"strength": 2.0, "exponent": 1.5}),
    "tsg dit": (TSG, dit, {"strength": 0.7, "exponent": 0.0}),
    "tsg mlp": (TSG, mlp, {"strength": 1.0, "exponent": 1.0}),
}
every_case = pytest.mark.parametrize("kind, make, options", CASES.values(), ids=CASES)


def diffusers_unet() -> DiffusersNetwork:
    options = {"block_out_channels": [32, 32], "attention_head_dim": 8}
    return DiffusersNetwork(1, size=8, arguments={**SMALL_UNET, **options})


def data_for(backbone: nn.Module) -> torch.Tensor:
    return VECTORS if hasattr(backbone, "linear_in") else x


@every_case
@pytest.mark.parametrize("labels", [y, None], ids=["labels", "no labels"])
def test_guidance_is_its_formula_sample_by_sample(kind, make, options, labels):
    """perturbed + w (network - perturbed); 1 is the network, 0 the perturbed network, each by one call."""
    backbone = network(make)
    data = data_for(backbone)
    strong, weak = denoiser(backbone)(data, t, labels), weak_of(kind, backbone, options, data, labels)
    assert float((strong.x_0 - weak[0]).abs().flatten(1).amax(1).min()) > 1e-5
    for scale, rows in ((1.0, 5), (0.0, 5), (3.0, 10)):
        counter = EvaluationCounter(denoiser(backbone))
        guided = kind(counter, scale, EVERYWHERE, **options).start(noise(), TIMES)
        same(guided(data, t, labels), [b + scale * (a - b) for a, b in zip(strong, weak)], 1e-10)
        assert counter.tally.evaluations == rows


@every_case
def test_a_sample_depends_on_its_seed_alone(kind, make, options):
    """Not on its neighbours; around it, classifier-free guidance perturbs both of its sides alike."""
    backbone = network(make)
    data, whole = data_for(backbone), denoiser(backbone)
    guided = kind(whole, 3.0, EVERYWHERE, **options)
    found = guided.start(noise(), TIMES)(data, t, y)
    for rows in (torch.tensor([3]), torch.tensor([4, 1])):
        alone = guided.start(noise([SEEDS[row] for row in rows]), TIMES)(data[rows], t, y[rows])
        same(alone, [field[rows] for field in found], 1e-12)
    inner = kind(whole, 3.0, EVERYWHERE, **options)
    both = ClassifierFree(inner, 2.0, EVERYWHERE).start(noise(), TIMES)(data, t, y)
    null = guided.start(noise(), TIMES)(data, t, None)
    same(both, [b + 2 * (a - b) for a, b in zip(found, null)], 1e-10)


OFF = {
    "tsg": (TSG, {"strength": 0.0}),
    "s2": (S2, {"fraction": 0.0}),
    "soft_pag": (SoftPAG, {"share": 0.0}),
}


@pytest.mark.parametrize("kind, options", OFF.values(), ids=OFF)
@pytest.mark.parametrize("make", [unet, dit])
def test_no_perturbation_is_the_network(kind, options, make):
    backbone = network(make)
    found = kind(denoiser(backbone), 3.0, EVERYWHERE, **options).start(noise(), TIMES)(x, t, y)
    same(found, denoiser(backbone)(x, t, y), 1e-13)


@pytest.mark.parametrize("make, layers", [(unet, [0, 2]), (dit, [1])], ids=["unet", "dit"])
def test_soft_perturbed_attention_mixes_the_map_with_the_identity(monkeypatch, make, layers):
    backbone, u = network(make), 0.3
    strong = denoiser(backbone)(x, t, y)
    for share, reference in ((u, SoftPAG), (1.0, PAG)):
        found = SoftPAG(denoiser(backbone), 2.5, EVERYWHERE, share, layers)(x, t, y)
        if reference is PAG:
            same(found, PAG(denoiser(backbone), 2.5, EVERYWHERE, layers)(x, t, y), 1e-13)
            continue
        with monkeypatch.context() as patch:
            replaced(patch, layers, lambda q, k, v: ((1 - u) * map_of(q, k) + u * np.eye(q.shape[2])) @ v)
            weak = denoiser(backbone)(x, t, y)
        same(found, [b + 2.5 * (a - b) for a, b in zip(strong, weak)], 1e-11)


def test_by_default_all_blocks_but_the_first_may_be_skipped():
    """A tenth of the blocks of the network, and at least one of them."""
    for depth, count in ((2, 1), (14, 1), (16, 2)):
        perturbation = S2(denoiser(network(lambda: dit(depth=depth)))).perturbation  # noqa: B023
        assert perturbation.layers == tuple(range(1, depth)) and perturbation.count == count
    tokens = TPG(denoiser(network(lambda: unet(multipliers=[1, 2, 2], attention=[2, 4]))))
    assert tokens.perturbation.layers == (1, 2, 3, 4)


@pytest.mark.parametrize("kind, options", [(TPG, {}), (TSG, {}), (S2, {})], ids=["tpg", "tsg", "s2"])
def test_a_sampler_draws_for_each_sample(kind, options):
    """A batch is its samples alone, also with two evaluations per step."""
    guided = kind(denoiser(network(dit)), 1.5, EVERYWHERE, **options)
    times = UniformT()(COSINE, 3)
    whole = Heun()(guided, x, times, y, noise())
    one = Heun()(guided, x[2:3], times, y[2:3], noise([SEEDS[2]]))
    torch.testing.assert_close(whole[2:3], one, rtol=1e-10, atol=1e-10)
    again = Heun()(guided, x, times, y, noise())
    assert torch.equal(whole, again)


@pytest.mark.parametrize("make, sentence", [
    (lambda: TPG(denoiser(network(mlp))), "guidance=tpg perturbs attention layers, and this MLP has none"),
    (lambda: TPG(denoiser(network(edm))), "guidance=tpg perturbs tokens before attention layers, and this EDMUNet has none"),
    (lambda: TSG(denoiser(network(edm))), "guidance=tsg perturbs the vector of the noise level, and this EDMUNet has none"),
    (lambda: TSG(denoiser(network(unet, noise_conditioned=False))), "this UNet has none"),
    (lambda: TPG(denoiser(diffusers_unet())), "this DiffusersNetwork has none"),
    (lambda: TSG(denoiser(diffusers_unet())), "this DiffusersNetwork has none"),
    (lambda: S2(PAG(denoiser(network()))), "guidance=s2 perturbs a network and cannot wrap PAG: list it first"),
    (lambda: TSG(ClassifierFree(denoiser(network()))), "cannot wrap ClassifierFree"),
    (lambda: S2(denoiser(network()), layers=[40]), "layers must be some of the residual blocks"),
    (lambda: S2(denoiser(network()), fraction=1.5), "fraction must be"),
    (lambda: TSG(denoiser(network()), strength=-1.0), "strength must be"),
    (lambda: TSG(denoiser(network()), exponent=-1.0), "exponent must be"),
    (lambda: SoftPAG(denoiser(network()), share=1.1), "share must be"),
    (lambda: TPG(denoiser(network()))(x, t, y), "guidance=tpg draws noise: use it in a run"),
    (lambda: S2(denoiser(network())).start(noise(), TIMES)(x, t.expand(5), y), "same noise level"),
    (lambda: S2(denoiser(network())).start(noise(), TIMES).predict_weak(x, t.expand(5), y), "guidance=s2 .* same noise level"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_noise_for_another_number_of_samples_is_refused():
    guided = TSG(denoiser(network())).start(noise([1, 2]), TIMES)
    with pytest.raises(SamplingError, match="guidance=tsg has noise for samples"):
        guided(x, t, y)
