"""ADM's U-Nets and classifiers, converted, against the published layer equations; and against azula's plugin."""

import math

import pytest
import torch
from converted import convert, relative_error
from published_adm import Settings, classifier, unet
from published_layers import Drawn

from diffguide.conversion.adm import ADM, ADMClassifier
from diffguide.conversion.weights import ConversionError

LEVELS = (0, 17, 400, 777, 999)  # of 1000
SETTINGS = {
    "as ADM 64": (Settings(blocks=1, classes=5, new_attention_order=True), {}),
    "heads in turn, as ADM 128": (Settings(classes=5, heads=3, channels=96, blocks=1, multipliers=(1, 2)), {}),
    "without classes, three sides": (Settings(multipliers=(1, 2, 3), blocks=1, sides=(4, 16), head_channels=32), {}),
    "a first multiplier of a half, as ADM 512": (
        Settings(channels=64, multipliers=(0.5, 1, 2), blocks=1, sides=(8,), classes=3, in_channels=1, out_channels=2), {},
    ),
    "as improved diffusion": (
        Settings(residual_resampling=False, heads=4, blocks=1, out_channels=3, multipliers=(1, 2, 2)),
        {"steps": 4000, "cosine": True},
    ),
    "4000 timesteps, as the class-conditional one of improved diffusion": (
        Settings(residual_resampling=False, heads=4, blocks=1, classes=4, sides=(4,)),
        {"steps": 4000, "cosine": True, "rescale_timesteps": False},
    ),
    "added conditions, one side": (Settings(multipliers=(1,), scale_shift=False, sides=(), classes=4, blocks=1, size=8), {}),
    "convolutions and attention at every side": (
        Settings(residual_resampling=False, sides=(16, 8), blocks=2, classes=2, new_attention_order=True), {},
    ),
}  # fmt: skip


def architecture(s: Settings, **others) -> ADM:
    return ADM(s.size, s.heads, s.head_channels, s.new_attention_order, **others)


def published(s: Settings, network=unet) -> Drawn:
    """Weights of a network, drawn in one call."""
    weights = Drawn(0)
    x, t, y = torch.randn(1, s.in_channels, s.size, s.size), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    network(weights, x, t, y, s) if network is unet else network(weights, x, t, s)
    return weights


@pytest.mark.parametrize("name", SETTINGS)
def test_the_output_is_that_of_the_published_equations(name):
    s, others = SETTINGS[name]
    weights = published(s)
    model, rng = convert(architecture(s, **others), weights), torch.Generator().manual_seed(1)
    steps, scale = (
        others.get("steps", 1000),
        1000 / others.get("steps", 1000) if others.get("rescale_timesteps", True) else 1,
    )
    y = torch.tensor([s.classes - 1, 0]) if s.classes else None
    for level in LEVELS:
        k = level * steps // 1000
        x = torch.randn(2, s.in_channels, s.size, s.size, generator=rng)
        log_snr = model.schedule.log_snr(torch.tensor((k + 1) / steps, dtype=torch.float64))
        ours = model.backbone(x, log_snr.float().expand(2), y)
        theirs = unet(weights, x, torch.full((2,), float(k * scale)), y, s)
        assert ours.std() > 0.05 and relative_error(ours, theirs) < 1e-5
    assert model.has_null == (s.classes == 0) and model.learned_variance == (s.out_channels == 2 * s.in_channels)


def test_the_levels_are_those_of_the_published_betas():
    s = Settings(multipliers=(1,), sides=(), blocks=1)
    weights = published(s)
    linear = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    u = torch.arange(4001, dtype=torch.float64) / 4000
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    cosine = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    for betas, others in ((linear, {}), (cosine, {"cosine": True, "steps": 4000}), (linear / 2, {"steps": 2000})):
        schedule = convert(architecture(s, **others), weights).schedule
        if others.get("steps") == 2000:
            betas = torch.linspace(5e-5, 0.01, 2000, dtype=torch.float64)
        k = torch.tensor([1, 10, 500, len(betas)])
        alpha, _ = schedule.alpha_sigma(k.double() / len(betas))
        assert torch.allclose(alpha.square(), torch.cumprod(1 - betas, 0)[k - 1], rtol=1e-9, atol=0)


def test_the_rows_of_legacy_attention_are_not_those_of_the_new_order():
    """With more than one head the option matters: the wrong one gives another network."""
    s = Settings(blocks=1, heads=2)
    weights = published(s)
    right, wrong = (convert(ADM(s.size, s.heads, new_attention_order=new), weights) for new in (False, True))
    x, log_snr = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(1)
    assert relative_error(wrong.backbone(x, log_snr), right.backbone(x, log_snr)) > 1e-2


CLASSIFIERS = {
    "as published": Settings(blocks=2, classes=7, multipliers=(1, 2, 3), sides=(8, 4)),
    "one side": Settings(size=8, blocks=1, classes=3, multipliers=(2,), sides=(8,), head_channels=64),
    "a half first": Settings(blocks=1, channels=64, classes=4, multipliers=(0.5, 1), sides=(), head_channels=16),
    "convolutions": Settings(
        blocks=1, classes=4, residual_resampling=False, new_attention_order=True, scale_shift=False
    ),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_has_the_published_logits(name):
    s = CLASSIFIERS[name]
    weights = published(s, classifier)
    model = convert(ADMClassifier(s.size, s.head_channels, s.new_attention_order, cosine=False), weights)
    rng = torch.Generator().manual_seed(1)
    for level in LEVELS:
        x, t = torch.randn(3, 3, s.size, s.size, generator=rng), torch.tensor((level + 1) / 1000, dtype=torch.float64)
        theirs = classifier(weights, x, torch.full((3,), float(level)), s).log_softmax(1)
        assert theirs.std() > 0.01
        assert (model.log_prob(x, t) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("changed, size, message", [
    (lambda w: w.pop("time_embed.2.bias"), 16, "no tensor time_embed.2.bias"),
    (lambda w: w.update({"extra.weight": torch.zeros(2)}), 16, "extra.weight has no place in ADM"),
    (lambda w: w.update({"out.2.weight": torch.zeros(5, 32, 3, 3)}), 16, "out.2.weight has 5 outputs"),
    (lambda w: w["middle_block.1.qkv.bias"].fill_(math.nan), 16, "middle_block.1.qkv.bias has NaN"),
    (lambda w: w.update({"input_blocks.0.0.bias": torch.zeros(31)}), 16, "input_blocks.0.0.bias has the shape [31]"),
    (lambda w: w.update({"input_blocks.0.0.bias": torch.zeros(32).long()}), 16, "is of type torch.int64"),
    (lambda w: w.pop("output_blocks.5.0.in_layers.0.weight"), 16, "no tensor output_blocks.5.0.in_layers.0.weight"),
    (lambda w: [w.pop(name) for name in list(w) if name.startswith("output_blocks.5")], 16, "5 output_blocks"),
    (lambda w: w.update({"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}), 16, "takes 6 channels: it is an upsampler"),
    (lambda w: w.clear(), 16, "no tensor time_embed.0.weight, which ADM has"),
])  # fmt: skip
def test_a_mismatch_names_the_tensor(changed, size, message):
    s = Settings()
    weights = published(s)
    changed(weights)
    with pytest.raises(ConversionError) as error:
        convert(architecture(s), weights)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_classifier_for_another_side_is_refused():
    s = CLASSIFIERS["as published"]
    with pytest.raises(ConversionError, match="set architecture.size"):
        convert(ADMClassifier(64, s.head_channels), published(s, classifier))


@pytest.mark.parametrize("options", [
    {"num_head_channels": 32, "use_new_attention_order": True, "resblock_updown": True, "use_scale_shift_norm": True,
     "num_classes": 5},
    {"num_heads": 4, "channel_mult": (0.5, 1, 2), "num_classes": None, "resblock_updown": True},
    {"num_heads": 4, "use_scale_shift_norm": True, "num_classes": 3, "resblock_updown": False},
], ids=["new order", "legacy order", "convolutions"])  # fmt: skip
def test_azula_has_the_same_output(options):
    """An independent implementation, with random weights."""
    source = pytest.importorskip("azula.plugins.adm._src.unet", exc_type=ImportError)
    options = {"channel_mult": (1, 2), "use_scale_shift_norm": False} | options
    network = source.UNetModel(
        image_size=16, in_channels=3, model_channels=64, out_channels=6, num_res_blocks=1, attention_resolutions=[2], **options
    ).eval().requires_grad_(False)  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    for value in network.parameters():
        value.normal_(0, value[0].numel() ** -0.5 if value.ndim > 1 else 0.2, generator=rng)
    new_order = options.get("use_new_attention_order", False)
    model = convert(ADM(16, options.get("num_heads"), 32, new_order), network.state_dict())
    y = torch.tensor([2, 0]) if options["num_classes"] else None
    for level in LEVELS:
        x = torch.randn(2, 3, 16, 16, generator=rng)
        log_snr = model.schedule.log_snr(torch.tensor((level + 1) / 1000, dtype=torch.float64)).float()
        theirs = network(x, torch.full((2,), level), y)
        assert relative_error(model.backbone(x, log_snr.expand(2), y), theirs) < 1e-5
