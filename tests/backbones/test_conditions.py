"""Class indices and embeddings behave alike: dropped, batched, guided and sampled."""

import math

import pytest
import torch
from networks import batch, every_network, lively, mlp, same_rows

from diffguide.backbones import Embedding
from diffguide.backbones.base import ConditionEmbedding
from diffguide.backbones.conditions import concatenate_conditions, remove_condition
from diffguide.guidance import ClassifierFree, Unguided
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.objectives import Denoising
from diffguide.objectives.base import drop_condition
from diffguide.objectives.levels import UniformTime
from diffguide.objectives.weights import Uniform
from diffguide.samplers import DDIM, generate
from diffguide.samplers.grids import UniformT
from diffguide.schedules import Cosine

COSINE = Cosine(12.0, -10.0)
EVERYWHERE = (0.0, math.inf)
vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
keep = torch.tensor([True, False, True, True, False, True])
t = torch.tensor(0.45, dtype=torch.float64)


def on_vectors(make, **changed):
    return lively(make(num_classes=0, condition_features=5, **changed))


def denoiser(has_null=True) -> Preconditioned:
    return Preconditioned(on_vectors(mlp), COSINE, V(), has_null)


def test_rows_of_an_embedding_are_selected_and_moved():
    y = Embedding(vectors, keep)
    assert len(y) == 6 and y.device == vectors.device and Embedding(vectors).keep.all()
    for rows in (slice(1, 4), torch.tensor([5, 0]), keep):
        assert torch.equal(y[rows].vectors, vectors[rows]) and torch.equal(y[rows].keep, keep[rows])
    moved = y.to("meta")
    assert moved.vectors.device.type == moved.keep.device.type == "meta"


@pytest.mark.parametrize(
    "bad", [(vectors[0], None), (vectors, keep[:4]), (vectors, keep.long()), (vectors, vectors > 0)]
)
def test_an_embedding_of_other_shapes_is_refused(bad):
    with pytest.raises(ValueError, match="needs vectors .* and keep"):
        Embedding(*bad)


def test_indices_and_embeddings_drop_and_join_alike():
    classes, dropped = torch.arange(6), ~keep
    assert (
        remove_condition(classes, dropped).tolist() == [0, -1, 2, 3, -1, 5]
        and remove_condition(classes).tolist() == [-1] * 6
    )
    y = remove_condition(Embedding(vectors), dropped)
    assert torch.equal(y.vectors, vectors) and torch.equal(y.keep, keep) and not remove_condition(y).keep.any()
    assert remove_condition(y, torch.tensor([True] + [False] * 5)).keep.tolist() == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]
    assert concatenate_conditions([classes, classes[:2]]).tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    both = concatenate_conditions([y, Embedding(vectors[:2])])
    assert torch.equal(both.vectors, torch.cat([vectors, vectors[:2]])) and both.keep.tolist() == [*keep.tolist(), 1, 1]


def test_the_objective_drops_the_same_rows_of_either():
    seeds = (torch.Generator().manual_seed(5) for _ in range(2))
    indices, y = (drop_condition(whole, 0.5, rng) for whole, rng in zip((torch.arange(6), Embedding(vectors)), seeds))
    assert torch.equal(indices >= 0, y.keep) and 0 < int(y.keep.sum()) < 6 and y.vectors is vectors
    assert drop_condition(Embedding(vectors, keep), 1.0, torch.Generator()).keep.any() == torch.tensor(False)


@every_network
def test_the_output_depends_on_the_vector(make, shape):
    x, log_snr, _ = batch(6, *shape)
    network = on_vectors(make)
    assert network.conditional and network.num_classes == 0
    out = network(x, log_snr, Embedding(vectors))
    assert not same_rows(out, network(x, log_snr, Embedding(vectors + 0.1))).any()
    assert not same_rows(out, network(x, log_snr, None)).any()


@pytest.mark.parametrize("other", [0.0, 1e30, math.nan], ids=str)
@every_network
def test_a_row_without_condition_does_not_depend_on_its_vector(make, shape, other):
    """Bit for bit, gradients included, even for nan."""
    x, log_snr, _ = batch(6, *shape)
    network = on_vectors(make).requires_grad_()
    replaced = torch.where(keep[:, None], vectors, other)
    outputs, gradients = [], []
    for y in (Embedding(vectors, keep), Embedding(replaced, keep)):
        outputs.append(network(x, log_snr, y))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), list(network.parameters())))
    assert torch.equal(*outputs) and all(torch.equal(*pair) for pair in zip(*gradients))
    assert network.embedding.null.numel() == 5 and outputs[0].isfinite().all()
    nothing = network(x, log_snr, remove_condition(Embedding(vectors)))
    assert torch.equal(nothing, network(x, log_snr, None))
    assert same_rows(nothing, outputs[0]).tolist() == (~keep).tolist()


def test_the_null_vector_is_learned():
    x, log_snr, _ = batch(6, 2)
    network = on_vectors(mlp).requires_grad_()
    for y, learned in ((Embedding(vectors, keep), True), (Embedding(vectors), False)):
        network.zero_grad()
        network(x, log_snr, y).square().sum().backward()
        assert bool(network.embedding.null.grad.any()) == learned


@every_network
def test_conditions_of_another_kind_or_length_are_refused(make, shape):
    x, log_snr, y = batch(6, *shape)
    with pytest.raises(ValueError, match="num_classes or condition_features must be 0"):
        make(condition_features=5)
    with pytest.raises(ValueError, match="at least 0, got 0 and -1"):
        make(num_classes=0, condition_features=-1)
    with pytest.raises(ValueError, match="y must be class indices .* got Embedding"):
        make()(x, log_snr, Embedding(vectors))
    with pytest.raises(ValueError, match="y must be an Embedding of length 5 .* got Tensor"):
        on_vectors(make)(x, log_snr, y)
    with pytest.raises(ValueError, match="length 5 .* got Embedding of length 4"):
        on_vectors(make)(x, log_snr, Embedding(vectors[:, :4]))


@pytest.mark.parametrize("has_null", [False, True])
def test_a_denoiser_on_vectors_is_conditional_without_classes(has_null):
    """So are its wrappers."""
    found = denoiser(has_null)
    assert (found.conditional, found.num_classes, found.has_null) == (True, 0, has_null)
    assert Unguided(found).conditional and EvaluationCounter(found).conditional
    unconditional = Preconditioned(mlp(num_classes=0), COSINE, V(), has_null=False)
    assert (unconditional.conditional, unconditional.has_null) == (False, True)
    assert not Unguided(unconditional).conditional


@pytest.mark.parametrize("time", [t, t.expand(6)], ids=["0-d", "[B]"])
def test_guidance_extrapolates_the_predictions_for_vectors(time):
    """weak + scale (strong - weak) of two separate calls; rows that keep no condition are not guided."""
    model = denoiser()
    x, _, _ = batch(6, 2)
    y = Embedding(vectors, keep)
    strong, weak = model(x, time, y), model(x, time)
    for scale in (0.0, 1.0, 2.5):
        for found, s, w in zip(ClassifierFree(model, scale, EVERYWHERE)(x, time, y), strong, weak):
            torch.testing.assert_close(found, w + scale * (s - w), rtol=1e-5, atol=1e-6)
    guided = ClassifierFree(model, 2.5, EVERYWHERE)(x, time, y)
    assert same_rows(guided.x_0, strong.x_0).tolist() == (~keep).tolist()


def test_guidance_on_vectors_needs_a_trained_null():
    with pytest.raises(ValueError, match="train with guidance=cfg"):
        ClassifierFree(denoiser(has_null=False), 2.0, EVERYWHERE)


@pytest.mark.parametrize("p_uncond", [0.0, 1.0])
def test_the_loss_depends_on_vectors_unless_all_are_dropped(p_uncond):
    """And the model then has a null condition."""
    method = Denoising(on_vectors(mlp), COSINE, V(), Uniform(), UniformTime(True), p_uncond)
    x_0 = batch(6, 2)[0]
    losses = [
        method(x_0, y, torch.Generator().manual_seed(0)).per_example for y in (Embedding(vectors), Embedding(-vectors))
    ]
    assert method.model.has_null == (p_uncond == 1.0)
    assert torch.isclose(*losses, rtol=0, atol=1e-7).tolist() == [p_uncond == 1.0] * 6


@pytest.mark.parametrize("batch_size", [2, 4])
def test_samples_are_functions_of_their_row(batch_size):
    """In every division into batches."""
    sampler = DDIM(3, UniformT(), eta=0.0)
    arguments = denoiser(), sampler, range(6)
    together = torch.cat(list(generate(*arguments, Embedding(vectors, keep), (2,), 6)))
    parts = torch.cat(list(generate(*arguments, Embedding(vectors, keep), (2,), batch_size)))
    torch.testing.assert_close(parts, together, rtol=1e-5, atol=1e-5)
    without_any = torch.cat(list(generate(*arguments, None, (2,), 6)))
    assert same_rows(without_any, together, 1e-5).tolist() == (~keep).tolist()


def test_a_far_too_large_width_fails_before_any_computation(monkeypatch):
    monkeypatch.setattr(torch, "logspace", lambda *arguments, **options: pytest.fail("computed"))
    with pytest.raises(RuntimeError, match="can't allocate memory|Storage size"):
        ConditionEmbedding(10**10, 0, 0, True)
