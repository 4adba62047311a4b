"""Networks of diffusers that attend to the tokens of a conditioning, against their own calls."""

import pytest
import torch
from diffusers_folders import TOKENS, randomize
from text_encoders import write_clip

from diffguide.backbones.diffusers_network import SMALL_UNET, DiffusersNetwork
from diffguide.conditions import ClipText, LowResolution

TEXTS = ["a red dot", "", "egg"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("encoders") / "clip")


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("network", TOKENS)
def test_tokens_and_mask_are_given_as_the_library_takes_them(clip, network, padding):
    """AuraFlow has no mask: its pipeline gives zeros for padding."""
    text = ClipText(str(clip), length=12, padding=padding)
    backbone = DiffusersNetwork(4, size=8, network=network, arguments=TOKENS[network], conditioning=text)
    randomize(backbone.network)
    x, log_snr, y = torch.randn(3, 4, 8, 8), torch.tensor([-1.0, 0.0, 2.0]), text.read(TEXTS)
    context, kind = text(y, x), backbone.kind
    given = {kind.images: x, "timestep": backbone.timesteps(log_snr), **kind.fixed}
    given["encoder_hidden_states"] = context.tokens
    if network == "AuraFlowTransformer2DModel" and not padding:
        given["encoder_hidden_states"] = context.tokens * context.mask[:, :, None]
    elif not padding:
        given["encoder_attention_mask"] = context.mask.float()
    expected = backbone.network(**given, return_dict=False)[0]
    found = backbone(x, log_snr, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone(x, log_snr)[1], found[1], rtol=0, atol=1e-4)
    assert (backbone(x, log_snr)[0] - found[0]).abs().max() > 1e-3 and backbone.takes_null and backbone.conditional


def test_a_network_that_does_not_take_the_tokens_is_refused(clip):
    text = ClipText(str(clip), length=12)
    arguments = TOKENS["UNet2DConditionModel"]
    for network, given, conditioning, expected in (
        ("UNet2DConditionModel", arguments | {"cross_attention_dim": 16}, text, "of length 16"),
        ("UNet2DConditionModel", arguments, LowResolution(3, 8), "channels"),
        ("UNet2DModel", SMALL_UNET, text, "takes no tokens"),
    ):
        with pytest.raises(ValueError, match=expected):
            DiffusersNetwork(4, size=8, network=network, arguments=given, conditioning=conditioning)
    with pytest.raises(ValueError, match="must be 0 with a conditioning"):
        DiffusersNetwork(
            4, size=8, network="UNet2DConditionModel", arguments=arguments, condition_tokens=2, conditioning=text
        )


def test_layers_for_perturbations_are_found(clip):
    text = ClipText(str(clip), length=12)
    arguments = TOKENS["UNet2DConditionModel"]
    ours, plain = (
        DiffusersNetwork(4, size=8, network="UNet2DConditionModel", arguments=arguments, **more)
        for more in ({"conditioning": text}, {"condition_tokens": 12})
    )
    assert list(ours.attention_layers) == list(plain.attention_layers) != []
