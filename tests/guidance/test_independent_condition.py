"""Guidance away from an independent condition: the class or the embedded text is drawn from the noise of the sample."""

import math

import numpy as np
import pytest
import torch
from networks import lively, mlp, unet
from scipy.stats import norm
from two_class_points import COSINE, EVERYWHERE, exact, t, x, y

from diffguide.backbones.conditions import ClassEmbedding, Embedding
from diffguide.conditions.numbers import Continuous
from diffguide.conditions.text import ByteText
from diffguide.guidance import CADS, ICG, Autoguidance, ClassifierFree
from diffguide.guidance.draws import FIRST_DRAW
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.randomness import Noise
from diffguide.samplers import Heun
from diffguide.samplers.grids import UniformT

TIMES = torch.tensor([1.0, 0.45, 0.0], dtype=torch.float64)
SEEDS = list(range(10, 18))
TEXTS = ["red", "", "a square", "x"]
LENGTH = 9


def noise(seeds=SEEDS, shape=(2,)) -> Noise:
    return Noise(seeds, shape, COSINE, dtype=torch.float64)


def normals(seed: int, shape, number: int = 0) -> np.ndarray:
    return noise([seed]).of(shape).normal(t, 5 * FIRST_DRAW + number)[0].numpy()


def drawn_class(seed: int, count: int) -> int:
    """A class of equal probability: which of `count` equal parts of (0, 1) the normal's distribution function falls into."""
    return min(int(norm.cdf(normals(seed, (1,))[0]) * count), count - 1)


def same(found, expected, tolerance=1e-12):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("labels", [y, torch.tensor([0, -1, 1, 0, -1, 1, 0, 1]), None], ids=["all", "some", "none"])
@pytest.mark.parametrize("has_null", [True, False])
def test_the_weak_side_has_a_random_class(labels, has_null):
    """random + w (own - random), sample by sample; a row without class keeps none, and the model needs no null class."""
    classes = [drawn_class(seed, 2) for seed in SEEDS]
    assert set(classes) == {0, 1}
    if labels is not None:
        classes = [drawn if own >= 0 else -1 for drawn, own in zip(classes, labels.tolist())]
    weak = exact()(x, t, None if labels is None else torch.tensor(classes))
    strong = exact()(x, t, labels)
    for scale, calls in ((1.0, 8), (0.0, 8), (1.4, 16)):
        counter = EvaluationCounter(exact(has_null=has_null))
        guided = ICG(counter, scale).start(noise(), TIMES)
        same(guided(x, t, labels), [b + scale * (a - b) for a, b in zip(strong, weak)])
        assert counter.tally.evaluations == calls or labels is None


def test_classes_are_uniform_and_drawn_anew_at_every_level():
    guided = ICG(exact(), 2.0).start(noise(range(4000)), TIMES)
    points, classes = torch.zeros(4000, 2).double(), torch.zeros(4000, dtype=torch.long)
    first, second = (guided.draw_condition(points, time, classes).double() for time in (t, t / 2))
    assert abs(float(first.mean()) - 0.5) < 0.04 and abs(float((first == second).double().mean()) - 0.5) < 0.04


def test_a_sample_depends_on_its_seed_alone():
    times, guided = UniformT()(COSINE, 4), ICG(exact(), 2.0)
    whole = Heun()(guided, x, times, y, noise())
    alone = Heun()(guided, x[5:6], times, y[5:6], noise([SEEDS[5]]))
    torch.testing.assert_close(whole[5:6], alone, rtol=1e-12, atol=1e-12)


def network(**options) -> Preconditioned:
    backbone = lively(mlp(**options) if "conditioning" not in options else unet(num_classes=0, **options))
    return Preconditioned(backbone.double(), COSINE, V(), True)


def test_vectors_are_replaced_by_noise_of_their_deviation():
    model, rng = network(num_classes=0, condition_features=5), torch.Generator().manual_seed(1)
    vectors, keep = torch.randn(8, 5, generator=rng, dtype=torch.float64), torch.arange(8) % 3 > 0
    drawn = np.stack([vectors[row].numpy().std(ddof=1) * normals(SEEDS[row], (5,)) for row in range(8)])
    strong, weak = (model(x, t, Embedding(side, keep)) for side in (vectors, torch.from_numpy(drawn)))
    found = ICG(model, 3.0).start(noise(), TIMES)(x, t, Embedding(vectors, keep))
    same(found, [b + 3 * (a - b) for a, b in zip(strong, weak)], 1e-10)
    same([field[~keep] for field in found], [field[~keep] for field in strong], 1e-12)


def test_texts_are_replaced_token_by_token():
    """The vectors of the tokens, with the deviation of all of them; padding stays. Then the pooled vector."""
    model = network(conditioning=ByteText(LENGTH, 8, 1, 2))
    points = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = model.embed(model.conditioning.read(TEXTS))
    states, pooled = given.states.numpy().copy(), given.pooled.numpy().copy()
    for row in range(4):
        tokens = [place for place in range(states.shape[1]) if given.mask[row, place]]
        if tokens:
            values = np.concatenate([given.states[row, place].numpy() for place in tokens])
            deviation = math.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1))
            n = normals(SEEDS[row], states.shape[1:], 0)
            for place in tokens:
                states[row, place] = deviation * n[place]
        pooled[row] = given.pooled[row].numpy().std(ddof=1) * normals(SEEDS[row], pooled.shape[1:], 1)
    rest = given.empty_states, given.empty_pooled
    changed = type(given)(torch.from_numpy(states), given.mask, torch.from_numpy(pooled), *rest, keep=given.keep)
    strong, weak = model(points, t, given), model(points, t, changed)
    guided = ICG(model, 2.0).start(noise(SEEDS[:4], (1, 8, 8)), TIMES)
    same(guided(points, t, model.conditioning.read(TEXTS)), [b + 2 * (a - b) for a, b in zip(strong, weak)], 1e-10)


def test_an_embedded_class_gets_an_embedded_class():
    """As inside guidance that embeds the classes."""
    model, classes = network(), torch.tensor([0, 1, 2, -1, 0, 1, 2, 0])
    plain = ICG(model, 2.0).start(noise(), TIMES)
    embedded = model.embed(classes)
    assert isinstance(plain.draw_condition(x, t, embedded), ClassEmbedding)
    same(plain(x, t, embedded), plain(x, t, classes), 1e-11)
    around = CADS(plain, 2.0, clean=1e-9, noisy=1e9).start(noise(), TIMES)(x, t, classes)
    assert all(bool(field.isfinite().all()) for field in around)


@pytest.mark.parametrize("make, sentence", [
    (lambda: ICG(exact(num_classes=0)), "guidance=icg needs a model with a condition"),
    (lambda: ICG(network(conditioning=Continuous(["size"], [0.0], [1.0]))), "and Continuous has none: take guidance=cfg"),
    (lambda: ICG(Autoguidance(network(num_classes=0, condition_features=2), network(num_classes=0, condition_features=2))),
     "list icg before autoguidance"),
    (lambda: ICG(exact())(x, t, y), "guidance=icg draws noise"),
    (lambda: ICG(exact()).start(noise(), TIMES)(x, t.expand(8), y), "the same noise level"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_it_nests_with_classifier_free_guidance():
    inner = ICG(exact(), 2.0)
    found = ClassifierFree(inner, 3.0, EVERYWHERE).start(noise(), TIMES)(x, t, y)
    own, null = inner.start(noise(), TIMES)(x, t, y), exact()(x, t)
    same(found, [b + 3 * (a - b) for a, b in zip(own, null)])
