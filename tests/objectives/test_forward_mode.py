"""The derivative along the flow: forward mode against two backward passes, through every network, in both modes."""

import pytest
import torch
from networks import jump_network, lively
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffguide.models.jumps import JumpModel
from diffguide.models.parameterizations import V
from diffguide.models.protocols import Prediction
from diffguide.objectives.flow_fields import Noised
from diffguide.objectives.jump_targets import MeanFlow
from diffguide.schedules import Cosine

SCHEDULE = Cosine(10.0, -8.0)


def differentiate_backwards(predict, inputs, tangents):
    """J v as the derivative of (J^T u) v in u: two backward passes, whose first is differentiated."""
    inputs = [part.detach().requires_grad_() for part in inputs]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        output = predict(*inputs)
        u = torch.zeros_like(output, requires_grad=True)
        product = torch.autograd.grad(output, inputs, u, create_graph=True)
        total = sum((part * tangent.to(part)).sum() for part, tangent in zip(product, tangents))
        return torch.autograd.grad(total, u)[0]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", ["mlp", "dit", "unet"])
def test_forward_mode_is_a_double_backward_pass(kind, training):
    """Of eps_hat along (dx/dt, 1), in float64 to 1e-6 of its size."""
    backbone, shape = jump_network(kind)
    model = JumpModel(lively(backbone).double().train(training), SCHEDULE, V(), False)
    rng = torch.Generator().manual_seed(1)
    x_0, eps = (torch.randn(3, *shape, generator=rng, dtype=torch.float64) for _ in range(2))
    t, s = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64), torch.tensor([0.0, 0.5, 0.2], dtype=torch.float64)
    y, scale = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.float64)
    wide = (3, *[1] * len(shape))
    x_t = sum(part.reshape(wide) * side for part, side in zip(SCHEDULE.alpha_sigma(t), (x_0, eps)))
    own, slope = MeanFlow().differentiate(Noised(x_0, eps, x_t, t, y, scale), s, Prediction(x_0, eps), model)
    h = 1e-6
    rates = [(a - b) / (2 * h) for a, b in zip(SCHEDULE.alpha_sigma(t + h), SCHEDULE.alpha_sigma(t - h))]
    velocity = sum(rate.reshape(wide) * side for rate, side in zip(rates, (x_0, eps)))

    def predict(x, time):
        return model.predict_jump(x, time, s, y, scale).eps

    expected = differentiate_backwards(predict, (x_t, t), (velocity, torch.ones_like(t)))
    n_t, n_s = SCHEDULE.noise_level(t), SCHEDULE.noise_level(s)
    way = (n_t - n_s) / (-n_t * SCHEDULE.rate(t) / 2)
    torch.testing.assert_close(slope, way.reshape(wide) * expected, rtol=1e-6, atol=1e-6 * float(slope.abs().max()))
    torch.testing.assert_close(own.eps, predict(x_t, t).detach(), rtol=1e-9, atol=1e-9)
