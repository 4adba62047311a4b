"""Networks in bfloat16 in sampling and evaluation."""

import pytest
import torch

from diffguide.backbones import MLP, UNet
from diffguide.guidance import CADS, PAG, Autoguidance, ClassifierFree
from diffguide.models.half_precision import cast_network
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.oracles import GMM2DLaw
from diffguide.runtime.engine import build_fabric, inference_autocast
from diffguide.samplers import Heun, generate
from diffguide.schedules import Cosine, Monotone

LABELS = [k % 4 for k in range(12)]


def network(seed: int = 0) -> Preconditioned:
    """A network whose prediction depends on everything."""
    options = {"channels": 8, "multipliers": [1, 2], "attention": [4], "head_channels": 8, "dropout": 0.0}
    backbone = UNet(in_channels=1, size=8, num_classes=4, **options)
    rng = torch.Generator().manual_seed(seed)
    for parameter in backbone.parameters():
        parameter.data.normal_(std=0.2, generator=rng)
    return Preconditioned(backbone, Cosine(), V(), has_null=True).eval().requires_grad_(False)


def sample(denoiser, batch_size: int, n: int = 12) -> torch.Tensor:
    return torch.cat(list(generate(denoiser, Heun(steps=2), range(n), LABELS[:n], (1, 8, 8), batch_size)))


def test_predictions_keep_the_dtype_of_x_and_are_near_those_of_float32():
    full, half = network(), network()
    cast_network(half, "bf16-true")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    x, t, y = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.4).double(), None
    for one, other in zip(half(x, t, y), full(x, t, y)):
        assert one.dtype == torch.float32
        assert 1e-4 < float((one - other).norm() / other.norm()) < 0.03
    assert half(x.double(), t, y).x_0.dtype == torch.float64


def test_what_is_not_the_network_keeps_its_dtype():
    model = Preconditioned(MLP(in_channels=2, num_classes=4), Monotone(width=8), V(), has_null=True)
    cast_network(model, "bf16-true")
    assert {p.dtype for p in model.schedule.parameters()} == {torch.float32}
    mixed = network()
    cast_network(mixed, "bf16-mixed")
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}
    with inference_autocast(build_fabric("cpu", precision="bf16-true")):
        assert torch.get_default_dtype() == torch.float32 and not torch.is_autocast_enabled("cpu")
    with inference_autocast(build_fabric("cpu", precision="bf16-mixed")):
        assert torch.is_autocast_enabled("cpu")


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="GMM2DLaw: use engine.precision=32-true"):
        cast_network(GMM2DLaw(), "bf16-true")


@pytest.mark.parametrize("guidance", [None, ClassifierFree, CADS, PAG, Autoguidance])
def test_samples_are_near_those_of_float32_in_any_batch(guidance):
    """Guidance changes the condition (CADS), the network (PAG), or asks a second one, which stays in float32."""

    def guided(model):
        if guidance is Autoguidance:
            return Autoguidance(model, network(seed=1), scale=1.5)
        return model if guidance is None else guidance(model)

    half = network()
    cast_network(half, "bf16-true")
    together, exact = sample(guided(half), 12), sample(guided(network()), 12)
    assert together.dtype == torch.float32
    assert 1e-5 < float((together - exact).norm() / exact.norm()) < 0.05
    for batch_size in (1, 5):
        alone = sample(guided(half), batch_size, 5)
        assert float((alone - together[:5]).norm() / exact[:5].norm()) < 0.02  # equal where kernels ignore the batch
