"""CADS of texts and of several conditions: noise on the vectors of tokens and on the pooled vector, in NumPy loops."""

import math

import numpy as np
import pytest
import torch
from networks import lively, unet

from diffguide.backbones.conditions import Several, TokenStates
from diffguide.conditions.classes import Classes, MultiLabel
from diffguide.conditions.frozen_text import T5Text
from diffguide.conditions.numbers import Continuous
from diffguide.conditions.several import SeveralConditions
from diffguide.conditions.text import ByteText
from diffguide.guidance import CADS, ClassifierFree
from diffguide.guidance.cads import CONDITION_DRAW
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.randomness import Noise
from diffguide.schedules import Cosine

COSINE, LENGTH = Cosine(12.0, -10.0), 9
STRENGTH, CLEAN, NOISY, GAMMA = 0.5, 0.5, 8.0, 0.25
TEXTS = ["red", "", "a square", "x"]
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([1.0, 0.0])


def time_of(level: float) -> torch.Tensor:
    return COSINE.t_of(torch.tensor(-2 * math.log(level), dtype=torch.float64))


T = time_of(CLEAN * (NOISY / CLEAN) ** (1 - GAMMA))  # where gamma is 1/4: it is linear in the log-SNR


def model(conditioning) -> Preconditioned:
    return Preconditioned(lively(unet(num_classes=0, conditioning=conditioning)), COSINE, V(), True)


def byte_text() -> ByteText:
    return ByteText(LENGTH, 8, 1, 2)


def t5_text() -> T5Text:
    conditioning = T5Text("nowhere", length=LENGTH, sha256="0" * 64, features=6)
    conditioning.empty_states.normal_(generator=torch.Generator().manual_seed(1))
    conditioning.empty_mask[1:] = False
    return conditioning


def t5_states() -> TokenStates:
    rng = torch.Generator().manual_seed(2)
    mask = torch.arange(LENGTH) < torch.tensor([3, 0, 9, 1])[:, None]
    return TokenStates(torch.randn(4, LENGTH, 6, generator=rng), mask, torch.randn(4, 6, generator=rng))


def normals(shape, draw: int) -> np.ndarray:
    """The noise of the four samples: a function of their seeds, the level and the draw."""
    return Noise(range(4), shape, COSINE).normal(T, CONDITION_DRAW + draw).double().numpy()


def add_noise(c: np.ndarray, n: np.ndarray, psi: float) -> np.ndarray:
    """Algorithm of the paper for all numbers of one embedding."""
    changed = math.sqrt(GAMMA) * c + STRENGTH * math.sqrt(1 - GAMMA) * n
    if changed.std() == 0:
        return changed
    rescaled = (changed - changed.mean()) / changed.std() * c.std() + c.mean()
    return psi * rescaled + (1 - psi) * changed


def expected(states, mask, pooled, psi: float, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The states [4, L, D] and pooled vectors [4, P], by a loop over samples and tokens; the draws begin with `first`."""
    n_states, n_pooled = normals(states.shape[1:], first), normals(pooled.shape[1:], first + 1)
    states, pooled = states.double().numpy().copy(), pooled.double().numpy().copy()
    for row in range(4):
        tokens = [place for place in range(states.shape[1]) if mask[row, place]]
        if tokens:
            states[row, tokens] = add_noise(states[row, tokens], n_states[row, tokens], psi)
        pooled[row] = add_noise(pooled[row], n_pooled[row], psi)
    return states, pooled


@pytest.mark.parametrize("psi", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["text", "t5"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_noise_on_a_text_is_that_of_its_formula(kind, psi, scale):
    network = model(byte_text() if kind == "text" else t5_text())
    y = network.conditioning.read(TEXTS) if kind == "text" else t5_states()
    embedded = network.embed(y)
    guided = CADS(network, scale, (0, math.inf), STRENGTH, CLEAN, NOISY, psi).start(
        Noise(range(4), X.shape[1:], COSINE), TIMES
    )
    found = guided.add_noise(T, y)
    states, pooled = expected(embedded.states, embedded.mask, embedded.pooled, psi)
    kept = embedded.keep.numpy()
    assert kept.tolist() == [True, False, True, True] and torch.equal(found.keep, embedded.keep)
    assert torch.equal(found.mask, embedded.mask)
    np.testing.assert_allclose(found.states[kept], states[kept], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.pooled[kept], pooled[kept], rtol=1e-4, atol=1e-5)
    assert np.abs(states - embedded.states.numpy())[kept].max() > 0.1
    changed = found.rebuild(
        [torch.from_numpy(states).float(), embedded.mask, torch.from_numpy(pooled).float(), *embedded.tensors()[3:]],
        embedded.keep,
    )
    strong, weak = network(X, T, changed), network(X, T, None)
    for field, a, b in zip(guided(X, T, y), strong, weak):
        np.testing.assert_allclose(field, b + scale * (a - b), rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_rows_without_text_keep_none_and_seeds_decide():
    network = model(byte_text())
    y = network.conditioning.read(TEXTS)
    guided = CADS(network, 2.0, (0, math.inf), STRENGTH, CLEAN, NOISY)
    run = guided.start(Noise(range(4), X.shape[1:], COSINE), TIMES)
    found, plain = run(X, T, y).x_0, ClassifierFree(network, 2.0)(X, T, y).x_0
    assert ((found - plain).abs().flatten(1).amax(1) > 1e-4).tolist() == [True, False, True, True]
    alone = guided.start(Noise([2], X.shape[1:], COSINE), TIMES)(X[2:3], T, y[2:3]).x_0
    torch.testing.assert_close(alone, found[2:3], rtol=1e-3, atol=1e-4)
    clean = time_of(0.4)
    assert torch.equal(run(X, clean, y).x_0, ClassifierFree(network, 2.0)(X, clean, y).x_0)


def test_of_several_conditions_texts_and_classes_get_noise_of_their_own():
    parts = {"text": byte_text(), "kind": Classes(3, 4), "size": Continuous(["u"], [0], [1])}
    network = model(SeveralConditions(parts))
    y = network.conditioning.read([{"text": text, "kind": 1, "size": 0.5} for text in TEXTS])
    embedded = network.embed(y)
    guided = CADS(network, 2.0, (0, math.inf), STRENGTH, CLEAN, NOISY, 0.7)
    found = guided.start(Noise(range(4), X.shape[1:], COSINE), TIMES).add_noise(T, y)
    assert isinstance(found, Several) and torch.equal(found.parts["size"].values, y.parts["size"].values)
    text = embedded.parts["text"]
    states, pooled = expected(text.states, text.mask, text.pooled, 0.7)
    kept = text.keep.numpy()
    np.testing.assert_allclose(found.parts["text"].states[kept], states[kept], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.parts["text"].pooled[kept], pooled[kept], rtol=1e-4, atol=1e-5)
    vectors, n = embedded.parts["kind"].vectors.double().numpy(), normals((4,), 2)
    for row in range(4):
        np.testing.assert_allclose(
            found.parts["kind"].vectors[row], add_noise(vectors[row], n[row], 0.7), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "conditioning", [MultiLabel(["a"]), Continuous(["u"], [0], [1]), SeveralConditions({"a": MultiLabel(["a"])})]
)
def test_a_condition_without_vectors_is_refused_by_name(conditioning):
    with pytest.raises(ValueError, match=f"guidance=cads .* and {type(conditioning).__name__} has none"):
        CADS(model(conditioning))
