"""Networks with low-rank adapters, against the weights W + alpha / rank B A written out."""

import copy

import pytest
import torch
from networks import batch, dit, edm, edm2, lively, unet

from diffguide.backbones.diffusers_network import DiffusersNetwork
from diffguide.backbones.lora import LoRA, merge_adapters
from diffguide.backbones.perturbations import IdentityAttention
from diffguide.checkpoints.allowlist import construct
from diffguide.files.safetensors import CheckpointError

peft = pytest.importorskip("peft")

DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 2, "norm_num_groups": 2}
UNET2D = {
    "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
NETWORKS = {
    "unet": unet,
    "dit": dit,
    "edm": edm,
    "diffusers' DiT": lambda: DiffusersNetwork(1, None, 3, 8, "DiTTransformer2DModel", DIT),
    "diffusers' U-Net": lambda: DiffusersNetwork(1, None, 3, 8, "UNet2DModel", UNET2D),
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
x, log_snr, y = batch(4, 1, 8, 8)


def drawn(network: LoRA) -> LoRA:
    """With random numbers in the matrices that train."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    return network.eval()


@every_network
def test_a_new_adapter_changes_nothing_and_a_trained_one_its_layers(make):
    torch.manual_seed(0)
    plain = lively(make())
    network = LoRA(copy.deepcopy(plain), rank=2, alpha=3.0)
    assert torch.equal(network.eval()(x, log_snr, y), plain(x, log_snr, y))
    state, expected, changed = drawn(network).state_dict(), plain.state_dict(), 0
    for name in expected:
        a, b = (state.get(f"network.{name.removesuffix('.weight')}.lora_{part}.default.weight") for part in "AB")
        if a is not None:
            update = 3 / 2 * b.flatten(1) @ a.flatten(1)
            expected[name], changed = expected[name] + update.reshape(expected[name].shape), changed + 1
    assert changed >= 2
    written = copy.deepcopy(plain)
    written.load_state_dict(expected)
    found = network(x, log_snr, y).detach()
    torch.testing.assert_close(found, written(x, log_snr, y), rtol=1e-5, atol=1e-5)
    assert float((found - plain(x, log_snr, y)).abs().max()) > 1e-3
    merged = merge_adapters(network)
    assert list(merged.state_dict()) == list(plain.state_dict()) and type(merged) is type(plain)
    torch.testing.assert_close(merged(x, log_snr, y), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, -2.0])
@every_network
def test_merged_at_a_scale_is_peft_apart_at_this_scale(make, scale):
    """And at 0 the network is the one before, bit for bit."""
    torch.manual_seed(0)
    plain = lively(make())
    network = drawn(LoRA(copy.deepcopy(plain), rank=2, alpha=3.0))
    for layer in network.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.scaling["default"] = scale * 3 / 2
    apart = network(x, log_snr, y).detach()
    merged = merge_adapters(network, scale)
    torch.testing.assert_close(merged(x, log_snr, y), apart, rtol=1e-5, atol=1e-5)
    if scale == 0:
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in merged.state_dict().items())
    else:
        assert float((apart - plain(x, log_snr, y)).abs().max()) > 1e-3


@every_network
def test_every_linear_and_convolutional_layer_may_have_an_adapter(make):
    torch.manual_seed(0)
    plain = lively(make())
    names = [name for name, part in plain.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    network = drawn(LoRA(copy.deepcopy(plain), rank=2, targets=names))
    adapted = {name.partition(".lora_A")[0] for name in network.network.state_dict() if ".lora_A" in name}
    assert adapted == {name for name in names if f"{name}.weight" not in plain.class_tables()}
    found = network(x, log_snr, y).detach()
    torch.testing.assert_close(merge_adapters(network)(x, log_snr, y), found, rtol=1e-4, atol=1e-4)


def test_only_the_adapter_trains():
    network = LoRA(lively(unet()), rank=2).train()
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(2):
        network(x, log_snr, y).square().sum().backward()
        optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and moved == {name for name in before if ".lora_" in name}


def test_tables_of_classes_train_where_asked():
    network = LoRA(lively(unet()), trains_classes=True)
    trained = [name for name, value in network.named_parameters() if value.requires_grad and ".lora_" not in name]
    assert trained == list(network.class_tables()) == ["network.embedding.classes.weight"] and network.class_row(1) == 2
    with pytest.raises(ValueError, match="trains_classes must be false"):
        LoRA(unet(num_classes=0), trains_classes=True)


@every_network
def test_perturbations_reach_the_layers(make):
    torch.manual_seed(0)
    network = drawn(LoRA(lively(make())))
    assert len(network.attention_layers) > 1 and list(network.residual_blocks) == list(network.network.residual_blocks)
    change = IdentityAttention([1]).for_rows(torch.tensor([True, False, True, True]))
    found, plain = network(x, log_snr, y, change), network(x, log_snr, y)
    assert torch.isclose(found, plain, atol=1e-6).flatten(1).all(1).tolist() == [False, True, False, False]


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"targets=\['other'\] are the ends of no name .* qkv"):
        LoRA(dit(), targets=["other"])
    with pytest.raises(ValueError, match="EDM2UNet has no linear or convolutional layers"):
        LoRA(edm2())
    for changed in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            LoRA(unet(), **changed)


def test_a_saved_network_is_built_on_meta_without_memory():
    """And its inner node is vetted as any other."""
    inner = {"_target_": "diffguide.backbones.unet.UNet", "in_channels": 1, "num_classes": 3, "size": 8}
    node = {"_target_": "diffguide.backbones.lora.LoRA", "network": inner, "rank": 4}
    network = construct(node, "backbone", (), device="meta")
    assert all(value.is_meta for value in network.state_dict().values())
    for target in ("diffguide.schedules.curves.Cosine", "os.system", "torch.nn.Linear"):
        with pytest.raises(CheckpointError):
            construct(node | {"network": {"_target_": target}}, "backbone", (), device="meta")
