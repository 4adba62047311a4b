"""U-Nets with another number of blocks per level and narrow upsampling, and the cost of backbone=unet_lean_32."""

import pytest
import torch
from hydra.utils import instantiate
from networks import batch, encoder, lively, unet
from omegaconf import OmegaConf
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffguide.config.files import config_dir


def test_a_list_of_equal_numbers_is_the_number():
    inputs = batch(3, 1, 8, 8)
    for make, arguments in ((unet, inputs), (encoder, inputs)):
        number, listed = (lively(make(blocks=blocks)) for blocks in (2, [2, 2]))
        assert list(number.state_dict()) == list(listed.state_dict())
        assert torch.equal(number(*arguments), listed(*arguments))


@pytest.mark.parametrize("narrow", [False, True])
def test_blocks_per_level_compute_the_network_written_out(narrow):
    """One block at side 8 and two at side 4: what each block reads, by its place."""
    network = lively(unet(blocks=[1, 2], attention=[4], narrow_upsampling=narrow))
    x, log_snr, y = batch(3, 1, 8, 8)
    assert network.residual_blocks == [8, 4, 4, 4, 4, 4, 4, 4, 4, 8, 8, 8]
    assert network.attention_layers == [4] * 6
    embedding = functional.silu(network.embedding(x, log_snr, y))
    d0, pool, d1, d2 = network.down
    u0, u1, u2, upsample, u3, u4 = network.up
    assert upsample[0].conv_in.out_channels == (8 if narrow else 16)
    a = network.conv_in(x)
    b = d0(a, embedding)
    c = pool(b, embedding)
    d = d1(c, embedding)
    e = d2(d, embedding)
    h = e
    for block in network.middle:
        h = block(h, embedding)
    for block, skip in ((u0, e), (u1, d), (u2, c)):
        h = block(torch.cat([h, skip], 1), embedding)
    h = upsample(h, embedding)
    for block, skip in ((u3, b), (u4, a)):
        h = block(torch.cat([h, skip], 1), embedding)
    h = network.conv_out(functional.silu(network.norm_out(h)))
    assert torch.equal(network(x, log_snr, y), h)


@pytest.mark.parametrize(
    "blocks, message", [([2], "list of 2 numbers"), ([1, 0], r"blocks=\[1, 0\]"), ([], r"blocks=\[\]")]
)
def test_numbers_that_do_not_fit_the_levels_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        unet(blocks=blocks)


def test_the_lean_network_has_its_stated_cost():
    """Parameters, and FLOPs per image of forward and backward, with attention written out."""
    cfg = OmegaConf.load(f"{config_dir()}/backbone/unet_lean_32.yaml")
    with torch.device("meta"):
        facts = {"dataset": {"channels": 3, "num_classes": 10, "size": 32}}
        network = instantiate(OmegaConf.merge(facts, {"backbone": cfg}).backbone)
        x, log_snr, y = torch.empty(1, 3, 32, 32), torch.empty(1), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as flops, sdpa_kernel([SDPBackend.MATH]):
            network(x, log_snr, y).sum().backward()
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(42.46e6, rel=1e-3)
    assert flops.get_total_flops() == pytest.approx(14.29e9, rel=1e-3)
