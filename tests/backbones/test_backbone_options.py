"""Options of every network: no noise input, second derivatives, less memory, other layouts and precisions."""

import copy
import hashlib

import pytest
import safetensors.torch
import torch
from networks import batch, dit, every_backbone, every_network, lively, mlp, unet

from diffguide.backbones import Embedding
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.schedules import Cosine

attentive = pytest.mark.parametrize("make", [unet, dit], ids=["unet", "dit"])


@pytest.mark.parametrize(
    "network, shape, names, mean",
    [
        (lambda: unet(), (1, 8, 8), "88d927b517d608f1", 0.10536511055535727),
        (lambda: mlp(fourier_features=0), (2,), "1a96f84b4b97caec", 0.29139929236270845),
    ],
    ids=["unet", "mlp"],
)
def test_networks_of_early_checkpoints_are_unchanged(network, shape, names, mean):
    """Names, shapes and output are those stored before networks had these options, so that old checkpoints load."""
    network = lively(network()).double()
    listed = "\n".join(f"{name} {list(value.shape)}" for name, value in network.state_dict().items())
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == names
    x, log_snr, y = batch(4, *shape)
    assert float(network(x.double(), log_snr.double(), y).abs().mean()) == pytest.approx(mean, rel=1e-6)


@every_network
def test_a_network_without_noise_input_depends_on_x_and_y(make, shape):
    """log_snr is None, there is no noise embedding, and the output depends on x and y as before."""
    x, log_snr, y = batch(4, *shape)
    network = lively(make(noise_conditioned=False))
    noise = {name for name, _ in make().named_parameters() if name.startswith("embedding.noise")}
    assert noise and {name for name, _ in make().named_parameters()} - noise == dict(network.named_parameters()).keys()
    assert not any("frequencies" in name for name, _ in network.named_buffers())
    out = network(x, None, y)
    assert not torch.isclose(out, network(x, None, (y + 2) % 3)).flatten(1).all(1).any()
    assert not torch.isclose(out, network(x + 0.1, None, y)).flatten(1).all(1).any()
    with pytest.raises(ValueError, match="log_snr must be None"):
        network(x, log_snr, y)
    with pytest.raises(ValueError, match="log_snr .* is required"):
        make()(x, None, y)


@every_network
def test_a_network_without_noise_and_condition_depends_on_x(make, shape):
    network = lively(make(noise_conditioned=False, num_classes=0))
    x, _, _ = batch(4, *shape)
    out = network(x, None)
    assert bool(out.isfinite().all()) and not torch.isclose(out, network(x + 0.1, None)).flatten(1).all(1).any()
    assert network.to(torch.bfloat16)(x, None).dtype == torch.bfloat16


@every_network
def test_a_denoiser_takes_networks_with_and_without_noise_input(make, shape):
    """With c_in = 1 only a network with noise input depends on the level."""
    x, _, y = batch(4, *shape)
    times = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    for noise_conditioned in (False, True):
        network = lively(make(noise_conditioned=noise_conditioned))
        denoiser = Preconditioned(network, Cosine(12.0, -10.0), V(), has_null=True)
        outputs = []
        for t in (*times, times[1].expand(4)):
            rows, level = denoiser.rows_at(x, denoiser.schedule.log_snr(t))
            outputs.append(network(rows.c_in * x, level, y))
        assert torch.equal(outputs[1], outputs[2])
        assert torch.equal(outputs[0], outputs[1]) != noise_conditioned


@attentive
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=["32", "64"])
def test_plain_attention_is_the_fused_one(make, dtype, tolerance):
    x, log_snr, y = (a.to(dtype) if a.is_floating_point() else a for a in batch(3, 1, 8, 8))
    fused, plain = (lively(make(double_differentiable=plain)).to(dtype)(x, log_snr, y) for plain in (False, True))
    torch.testing.assert_close(plain, fused, rtol=0, atol=tolerance * float(fused.abs().max()) + 1e-15)


@pytest.mark.parametrize(
    "make, options",
    [
        (dit, {"depth": 1}),
        (unet, {}),
        (unet, {"channels_last": True}),
        (dit, {"depth": 1, "checkpointing": True}),
    ],
    ids=["dit", "unet", "unet channels last", "dit checkpointing"],
)
def test_second_derivatives_are_finite_differences_of_gradients(make, options):
    """In float64; the fused kernels have no second derivatives."""
    network = lively(make(double_differentiable=True, size=4, **options)).double()
    x, log_snr, y = batch(1, 1, 4, 4)
    x, log_snr = x.double().requires_grad_(), log_snr.double()
    assert torch.autograd.gradgradcheck(lambda x: network(x, log_snr, y), [x], fast_mode=True)


def saved_bytes(network, x, log_snr, y) -> int:
    """Bytes that the forward pass saves for the backward pass, without parameters, each storage once."""
    own, kept = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}, {}

    def keep(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # with the tensor, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(x, log_snr, y)
    assert out.requires_grad
    return sum(nbytes for nbytes, _ in kept.values())


@attentive
def test_checkpointing_saves_memory_and_changes_nothing(make):
    """Loss and gradients bit for bit, dropout included; a third of the bytes at most."""
    x, log_snr, y = batch(4, 1, 8, 8)
    losses, gradients, sizes = [], [], []
    for checkpointing in (False, True):
        options = {"blocks": 3} if make is unet else {"depth": 6}
        network = lively(make(dropout=0.5, checkpointing=checkpointing, **options)).requires_grad_().train()
        torch.manual_seed(1)
        loss = network(x, log_snr, y).square().mean()
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        sizes.append(saved_bytes(network, x, log_snr, y))
    assert torch.equal(*losses) and all(torch.equal(*pair) for pair in zip(*gradients))
    assert sizes[1] < sizes[0] / 3, sizes


def test_checkpointing_does_not_change_evaluation():
    x, log_snr, y = batch(4, 1, 8, 8)
    network = lively(unet(checkpointing=True))
    with torch.no_grad():
        assert torch.equal(network(x, log_snr, y), lively(unet())(x, log_snr, y))


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def test_channels_last_keeps_weights_numbers_and_its_layout(tmp_path):
    """Same weights from the same seed, same output, every activation channels last, also after loading."""
    torch.manual_seed(0)
    plain = unet(3)
    torch.manual_seed(0)
    network = unet(3, channels_last=True)
    assert all(torch.equal(*pair) for pair in zip(plain.state_dict().values(), network.state_dict().values()))
    safetensors.torch.save_file({k: v.contiguous() for k, v in lively(plain).state_dict().items()}, tmp_path / "w")
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "w"))
    kernels = [p for p in network.eval().parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels and all(map(is_channels_last, kernels))
    seen = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.GroupNorm):
            layer.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    x, log_snr, y = batch(4, 3, 8, 8)
    torch.testing.assert_close(network(x, log_snr, y), plain(x, log_snr, y), rtol=1e-5, atol=1e-5)
    assert len(seen) > 40 and all(map(is_channels_last, seen))
    assert all(
        map(is_channels_last, (p for p in copy.deepcopy(network).parameters() if p.ndim == 4 and min(p.shape[1:3]) > 1))
    )


def relative(found, expected) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@every_backbone
def test_half_precision_is_near_full_precision(make, shape):
    """Autocast and weights in bfloat16 (8 bits) are within 3 % of float32."""
    x, log_snr, y = batch(8, *shape)
    network = lively(make())
    expected = network(x, log_snr, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(network(x, log_snr, y), expected) < 0.03
    half = network.to(torch.bfloat16)(x, log_snr, y)
    assert half.dtype == torch.bfloat16 and relative(half, expected) < 0.03


def test_half_precision_keeps_the_noise_level():
    """At log-SNR +-20 rounded frequencies would change the fastest features by a third of a radian."""
    log_snr = torch.linspace(-20, 20, 401)
    embedding = lively(unet(channels=32)).embedding
    expected = embedding(log_snr, log_snr, None)
    half = embedding.to(torch.bfloat16)(log_snr, log_snr, None)
    assert relative(half, expected) < 0.01


@attentive
def test_autocast_trains(make):
    """Every gradient is finite, float32, and near that of full precision."""
    x, log_snr, y = batch(8, 1, 8, 8)
    network = lively(make(dropout=0.0, checkpointing=True)).requires_grad_().train()
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = network(x, log_snr, y).float().square().mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]))
    assert gradients[1].dtype == torch.float32 and relative(gradients[1], gradients[0]) < 0.05


EVERYTHING = {"num_classes": 0, "condition_features": 5, "noise_conditioned": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, options",
    [
        (unet, {}),
        (unet, EVERYTHING | {"double_differentiable": True, "checkpointing": True, "channels_last": True}),
        (dit, {}),
        (dit, EVERYTHING | {"double_differentiable": True, "checkpointing": True}),
        (mlp, {}),
        (mlp, EVERYTHING),
    ],
    ids=["unet", "unet everything", "dit", "dit everything", "mlp", "mlp everything"],
)
def test_compiled_is_eager(make, options):
    """Output and gradients, in one graph without breaks; the backend runs the captured operations as they are."""
    small = {"multipliers": [1], "attention": [8]} if make is unet else {}
    network = lively(make(**small, **options)).requires_grad_()
    x, log_snr, y = batch(4, *((2,) if make is mlp else (1, 8, 8)))
    inputs = (x, None, Embedding(torch.randn(4, 5), y >= 0)) if options else (x, log_snr, y)
    parameters, results = list(network.parameters()), []
    for run in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        out = run(*inputs)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)))
    for found, expected in zip(*results):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))
