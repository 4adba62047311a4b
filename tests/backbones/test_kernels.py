"""The layers in half precision on the CPU: against float64, and torch's own in every other case, bit for bit."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from diffguide.backbones import UNet
from diffguide.backbones.attention import attention
from diffguide.backbones.kernels import Dropout, GroupNorm

layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


class Recorder(TorchDispatchMode):
    """The operations of a block with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.calls.append((function.overloadpacket.__name__, arguments))
        return function(*arguments, **(keywords or {}))

    def names(self) -> set[str]:
        return {name for name, _ in self.calls}

    def normalised(self) -> list[torch.Tensor]:
        """The images of every group normalisation, forward and backward: their format selects the kernel."""
        places = {"native_group_norm": 0, "native_group_norm_backward": 1}
        return [arguments[places[name]] for name, arguments in self.calls if name in places]


def random_norm(channels: int = 12) -> GroupNorm:
    norm = GroupNorm(3, channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def draws(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Normal numbers that bfloat16 represents exactly, in float64."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng).bfloat16().double() for shape in shapes]


def written_out(x, weight, bias, scale, shift):
    """Wu & He 2018, arXiv 1803.08494, eq. 1 and 6, three groups; then the modulation."""
    grouped = x.unflatten(1, (3, -1))
    mean = grouped.mean((2, 3, 4), keepdim=True)
    variance = ((grouped - mean) ** 2).mean((2, 3, 4), keepdim=True)
    h = ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
    h = h * weight[:, None, None] + bias[:, None, None]
    return h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


@layouts
@pytest.mark.parametrize("modulated", [True, False])
def test_group_norm_in_bfloat16_rounds_once(layout, modulated):
    """Values and the gradients of all inputs; rounding to 8 bits has the relative error 2^-9 at most."""
    norm = random_norm()
    x, scale, shift, gradient = draws((5, 12, 6, 4), (5, 12), (5, 12), (5, 12, 6, 4))
    if not modulated:
        scale, shift = torch.zeros(2, 5, 12, dtype=torch.float64)
    exact = [x + 3, norm.weight.detach().double(), norm.bias.detach().double(), scale, shift]
    exact = [
        value.bfloat16().double().requires_grad_() if value.ndim > 1 else value.requires_grad_() for value in exact
    ]
    expected = written_out(*exact)
    gradients = torch.autograd.grad(expected, exact, gradient)
    half = exact[0].detach().bfloat16().to(memory_format=layout).requires_grad_()
    changes = [value.detach().bfloat16().requires_grad_() for value in exact[3:]] if modulated else []
    with Recorder() as recorder, torch.autocast("cpu", torch.bfloat16):
        found = norm(half, *changes)
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)
    inputs = [half, norm.weight, norm.bias, *changes]
    with recorder:
        found_gradients = torch.autograd.grad(found, inputs, gradient.bfloat16().to(memory_format=layout))
    for own, right in zip(found_gradients, gradients):
        assert (own.double() - right).norm() < 0.004 * right.norm()
    assert len(recorder.normalised()) == 2 and all(map(torch.Tensor.is_contiguous, recorder.normalised()))


@layouts
def test_float32_is_torchs(layout):
    """Bit for bit what was computed before there were other kernels."""
    norm, (x, scale, shift) = random_norm(), [value.float() for value in draws((5, 12, 6, 4), (5, 12), (5, 12))]
    x = x.to(memory_format=layout)
    plain = functional.group_norm(x, 3, norm.weight, norm.bias)
    assert torch.equal(norm(x), plain)
    expected = torch.addcmul(shift[:, :, None, None], plain, 1 + scale[:, :, None, None])
    assert torch.equal(norm(x, scale, shift), expected)
    layer = Dropout(0.1)
    torch.manual_seed(0)
    expected = functional.dropout(x, 0.1)
    torch.manual_seed(0)
    assert torch.equal(layer(x), expected)
    q = draws((2, 3, 16, 4))[0].float().requires_grad_()
    assert torch.equal(attention(q, q, q, False), functional.scaled_dot_product_attention(q, q, q))


@pytest.mark.parametrize("tokens, written", [(16, True), (256, True), (257, False)])
def test_short_attention_in_bfloat16_is_written_out(tokens, written):
    """Against float64 with bfloat16's error; longer sequences use the fused kernel."""
    q, k, v, gradient = draws(*4 * [(2, 2, tokens, 8)])
    half = [value.bfloat16().requires_grad_() for value in (q, k, v)]
    exact = [value.requires_grad_() for value in (q, k, v)]
    expected = (exact[0] @ exact[1].mT / 8**0.5).softmax(-1) @ exact[2]
    with Recorder() as recorder:
        found = attention(*half, False)
        gradients = torch.autograd.grad(found, half, gradient.bfloat16())
    assert ("_scaled_dot_product_flash_attention_for_cpu" in recorder.names()) != written
    pairs = zip((found, *gradients), (expected, *torch.autograd.grad(expected, exact, gradient)))
    assert all((own.double() - right).norm() < 0.02 * right.norm() for own, right in pairs)


@layouts
def test_dropout_from_bits(layout):
    """A million elements, p = 0.1: 26 of 256 lanes are dropped; all bounds are five standard errors."""
    p = 26 / 256
    x = torch.rand(64, 16, 25, 41).add(0.5).bfloat16().to(memory_format=layout).requires_grad_()  # no multiple of 8
    torch.manual_seed(3)
    y = Dropout(0.1)(x)
    assert y.is_contiguous(memory_format=layout)
    (mask,) = torch.autograd.grad(y.sum(), x)
    scale = torch.tensor(256 / 230).bfloat16()
    assert set(mask.unique().tolist()) == {0.0, scale.item()} and torch.equal(y, x * mask)
    assert abs(scale.item() * (1 - p) - 1) < 2**-8  # the mean, up to bfloat16's rounding of the factor
    kept = (mask != 0).double().permute(0, 2, 3, 1).flatten() if layout is torch.channels_last else (mask != 0).double()
    kept = kept.flatten()
    error = 5 * (p * (1 - p) / len(kept)) ** 0.5
    assert abs(kept.mean() - (1 - p)) < error
    assert abs(kept.var() - p * (1 - p)) < error
    for lane in range(8):  # the bytes of a word
        assert abs(kept[lane::8].mean() - (1 - p)) < 8**0.5 * error
    for lag in (1, 2, 4, 7, 8, 16, 64):
        covariance = ((kept[lag:] - 1 + p) * (kept[:-lag] - 1 + p)).mean()
        assert abs(covariance) < 5 * p * (1 - p) / len(kept) ** 0.5


def test_dropout_is_a_function_of_the_seed():
    """Also where the layer is recomputed in the backward pass; not in evaluation."""
    x = torch.ones(333, dtype=torch.bfloat16, requires_grad=True)
    layer, results = Dropout(0.5), []
    for run in (layer, layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(7)
        y = run(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    assert all(torch.equal(found, results[0][0]) for pair in results for found in pair)
    assert not torch.equal(layer(x), results[0][0]) and torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.999])
def test_dropout_that_eight_bits_would_round_is_torchs(p):
    x = torch.ones(1000, dtype=torch.bfloat16)
    torch.manual_seed(1)
    expected = functional.dropout(x, p)
    torch.manual_seed(1)
    assert torch.equal(Dropout(p)(x), expected)


@layouts
def test_a_training_step_in_bfloat16_avoids_slow_kernels(layout):
    """No draw of a double per element, no fused attention for 16 tokens, no group norm with the channels last."""
    network = UNet(1, num_classes=3, size=8, channels=8, head_channels=8, channels_last=layout is torch.channels_last)
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    with Recorder() as recorder:
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(x, torch.zeros(2), y).float().square().mean()
        loss.backward()
    assert not recorder.names() & {"bernoulli_", "native_dropout", "_scaled_dot_product_flash_attention_for_cpu"}
    images = recorder.normalised()
    assert images and all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in images)


def test_compiled_layers_are_torchs():
    """The compiler fuses torch's operations and draws its own masks."""
    norm = random_norm()
    x = torch.randn(2, 12, 4, 4).bfloat16()
    compiled = torch.compile(lambda x: Dropout(0.0)(norm(x)), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), norm(x), rtol=2**-7, atol=1e-3)
