"""Texts as bytes: their encoder and the attention to its tokens against NumPy, and the one convention of the null condition."""

import numpy as np
import pytest
import torch

from diffguide.backbones import DiT, UNet
from diffguide.backbones.conditioning import Context
from diffguide.backbones.conditions import TokenIds, concatenate_conditions, remove_condition
from diffguide.backbones.cross_attention import CrossAttention
from diffguide.conditions import ByteText
from diffguide.conditions.text import bytes_to_ids

TEXTS = ["a red circle", "", "zwei blaue Würfel", "円"]


def enliven(module: torch.nn.Module) -> torch.nn.Module:
    """No layer starts at 0."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def normalise(x, layer):
    h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return h * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def apply(x, layer):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("double_differentiable", [False, True])
def test_cross_attention_is_its_equation(double_differentiable):
    """Row by row and head by head, over the tokens of the mask alone."""
    layer = enliven(CrossAttention(8, 6, 2, double_differentiable))
    rng = np.random.default_rng(0)
    h, tokens = rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 4, 6))
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=bool)
    found = layer(torch.tensor(h), Context(None, torch.tensor(tokens), torch.tensor(mask)))
    for row in range(3):
        given = normalise(tokens[row][mask[row]], layer.norm)
        q, kv = apply(h[row], layer.query), apply(given, layer.key_value)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            k, v = kv[:, :8][:, head], kv[:, 8:][:, head]
            heads.append(softmax(q[:, head] @ k.T / 2) @ v)
        expected = apply(np.concatenate(heads, 1), layer.projection)
        np.testing.assert_allclose(found[row].detach(), expected, rtol=1e-10, atol=1e-12)


def merge(h, merger, stride):
    """Each position of each convolution written out, with zeros around the tokens h [L, D]."""
    near, far = (layer.weight.detach().numpy() for layer in (merger.neighbours, merger.merge))  # [out, in, window]
    padded = np.zeros((-(-len(h) // stride) * stride + 4, h.shape[1]))
    padded[2 : 2 + len(h)] = h
    mixed = np.stack([np.einsum("oik,ki->o", near, padded[n : n + 5]) for n in range(len(h))])
    mixed = torch.tensor(mixed + merger.neighbours.bias.detach().numpy())
    padded[2 : 2 + len(h)] += torch.nn.functional.gelu(mixed, approximate="tanh").numpy()
    starts = range(0, len(padded) - 4, stride)
    merged = [np.einsum("oik,ki->o", far, padded[2 + start : 2 + start + stride]) for start in starts]
    return np.stack(merged) + merger.merge.bias.detach().numpy()


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_the_encoder_is_its_equation(stride):
    text = enliven(ByteText(length=24, features=8, layers=2, heads=2, stride=stride))
    pooled, states, mask = text.encode(text.read(TEXTS[:1]).ids)
    ids = [byte + 1 for byte in TEXTS[0].encode()] + [257]
    h = text.tokens.weight.detach().numpy()[ids]
    h = h if stride == 1 else merge(h, text.merger, stride)
    h = h + text.positions.detach().numpy()[: len(h)]
    for block in text.blocks:
        qkv, heads = apply(normalise(h, block.norm_attention), block.qkv), []
        for first in (0, 4):
            q, k, v = (qkv[:, start + first : start + first + 4] for start in (0, 8, 16))
            heads.append(softmax(q @ k.T / 2) @ v)
        h = h + apply(np.concatenate(heads, 1), block.projection)
        hidden = torch.nn.functional.gelu(
            torch.tensor(apply(normalise(h, block.norm_mlp), block.mlp[0])), approximate="tanh"
        )
        h = h + apply(hidden.numpy(), block.mlp[2])
    h = normalise(h, text.norm)
    assert int(mask.sum()) == len(h)
    np.testing.assert_allclose(states[0, : len(h)].detach(), h, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(pooled[0].detach(), h.mean(0), rtol=1e-10, atol=1e-12)


def test_a_detector_finds_its_bytes_wherever_they_stand():
    """The equation window by window; padding has no influence, though its bytes could be the maximum."""
    text = enliven(ByteText(length=24, features=8, layers=1, heads=2, stride=4, detectors=6))
    pooled, states, _ = text.encode(text.read(TEXTS[:1]).ids)
    plain = ByteText(length=24, features=8, layers=1, heads=2, stride=4).double()
    plain.load_state_dict({name: value for name, value in text.state_dict().items() if "detectors" not in name})
    mean, same, _ = plain.encode(text.read(TEXTS[:1]).ids)
    ids = [byte + 1 for byte in TEXTS[0].encode()] + [257]
    padded = np.zeros((len(ids) + 4, 8))
    padded[2:-2] = text.tokens.weight.detach().numpy()[ids]
    layer = text.detectors.convolution
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    found = np.stack([np.einsum("oik,ki->o", weight, padded[n : n + 5]) + bias for n in range(len(ids))])
    found = torch.nn.functional.gelu(torch.tensor(found), approximate="tanh").numpy().max(0)
    expected = np.concatenate([mean[0].detach().numpy(), normalise(found, text.detectors.norm)])
    np.testing.assert_allclose(pooled[0].detach(), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(states, same) and text.vector_features == 14 and text.token_features == 8


@pytest.mark.parametrize("length", [2, 19])
def test_texts_are_their_bytes_an_end_and_padding(length):
    fitting = [text for text in TEXTS if len(text.encode()) < length]
    ids = bytes_to_ids(fitting, length)
    for row, text in zip(ids.tolist(), fitting):
        used = [byte + 1 for byte in text.encode()] + [257] if text else []
        assert row == used + [0] * (length - len(used))
    with pytest.raises(ValueError, match=f"condition.length={length} allows {length - 1}"):
        bytes_to_ids(["x" * length], length)


def test_a_stride_is_at_least_one_and_need_not_divide_the_length():
    with pytest.raises(ValueError, match="condition.stride"):
        ByteText(stride=0)
    text = ByteText(length=10, features=8, heads=2, stride=4)
    assert text.encode(text.read(["ninebytes"]).ids)[1].shape == (1, 3, 8)


def networks(text):
    yield UNet(2, size=8, channels=8, multipliers=(1, 2), attention=(4,), head_channels=8, conditioning=text)
    yield DiT(2, size=8, width=16, depth=2, heads=2, conditioning=text)


@pytest.mark.parametrize(("stride", "detectors", "words"), [(1, 0, 0), (4, 6, 50)])
def test_no_text_is_the_empty_text_and_encoding_once_is_encoding_always(stride, detectors, words):
    """-1 in every convention: None, an empty text, a dropped row; before and after `embed`; padding has no influence."""
    text = ByteText(length=24, features=8, layers=1, heads=2, stride=stride, detectors=detectors, words=words)
    for network in networks(text):
        enliven(network)
        text, x = network.conditioning, torch.randn(4, 2, 8, 8, dtype=torch.float64)
        log_snr = torch.linspace(-3, 3, 4, dtype=torch.float64)
        y = text.read(TEXTS)
        assert isinstance(y, TokenIds) and y.keep.tolist() == [True, False, True, True]
        with torch.no_grad():
            out, nothing = network(x, log_snr, y), network(x, log_snr, None)
            torch.testing.assert_close(network(x, log_snr, network.embed(y)), out, rtol=1e-9, atol=1e-12)
            for removed in (remove_condition(y), remove_condition(network.embed(y)), text.read([""] * 4)):
                torch.testing.assert_close(network(x, log_snr, removed), nothing, rtol=1e-9, atol=1e-12)
            assert [bool((a - b).abs().max() > 1e-3) for a, b in zip(out, nothing)] == y.keep.tolist()
            both = concatenate_conditions([y, remove_condition(y)])
            doubled = network(torch.cat([x, x]), torch.cat([log_snr, log_snr]), both)
            torch.testing.assert_close(doubled, torch.cat([out, nothing]), rtol=1e-9, atol=1e-12)
            shorter = TokenIds(y.ids[:, :20], y.keep)
            torch.testing.assert_close(network(x, log_snr, shorter), out, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("stride", "detectors", "words"), [(1, 0, 0), (4, 6, 50)])
def test_every_part_of_the_encoder_learns(stride, detectors, words):
    text = ByteText(length=24, features=8, layers=1, heads=2, stride=stride, detectors=detectors, words=words)
    for network in networks(text):
        enliven(network)
        network(
            torch.randn(4, 2, 8, 8).double(), torch.zeros(4).double(), network.conditioning.read(TEXTS)
        ).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


def test_a_text_needs_attention_and_is_the_only_condition():
    with pytest.raises(ValueError, match="attention must list a side"):
        UNet(2, size=8, attention=(), conditioning=ByteText())
    for make in (UNet, DiT):
        with pytest.raises(ValueError, match="must be 0 with a conditioning, got 3 and 0"):
            make(2, size=8, num_classes=3, conditioning=ByteText())
    network = next(networks(ByteText()))
    with pytest.raises(ValueError, match="y must be TokenIds .* got Tensor"):
        network(torch.zeros(1, 2, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
