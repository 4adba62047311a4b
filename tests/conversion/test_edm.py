"""Networks of EDM and EDM2, converted from the published names, against the published layer equations in float64."""

import json
from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
import yaml
from published_edm import edm_precond, edm_tensors
from published_edm2 import edm2_precond, edm2_tensors

from diffguide.backbones import UNet
from diffguide.backbones.edm import EDMUNet
from diffguide.backbones.edm2 import EDM2UNet
from diffguide.checkpoints.store import assemble, load
from diffguide.conversion.edm import EDM
from diffguide.conversion.edm2 import EDM2
from diffguide.conversion.job import ConversionJob
from diffguide.conversion.weights import ConversionError, PublishedWeights
from diffguide.guidance import Autoguidance, ClassifierFree

SONG = {
    "img_resolution": 8, "img_channels": 3, "label_dim": 3, "model_type": "SongUNet", "model_channels": 8,
    "channel_mult": [2, 2], "channel_mult_emb": 4, "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 9,
    "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard", "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}  # fmt: skip
NCSN = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM = {
    "img_resolution": 8, "img_channels": 3, "label_dim": 3, "model_type": "DhariwalUNet", "model_channels": 32,
    "channel_mult": [1, 4], "channel_mult_emb": 4, "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 0,
}  # fmt: skip
UNET2 = {
    "img_resolution": 8, "img_channels": 4, "label_dim": 3, "model_channels": 9, "channel_mult": [1, 2], "num_blocks": 2,
    "attn_resolutions": [8], "channels_per_head": 9,
}  # fmt: skip
EDM_CASES = {
    "DDPM++": SONG,
    "DDPM++ of three levels": SONG | {"channel_mult": [1, 2, 3], "label_dim": 0, "augment_dim": 0, "num_blocks": 2},
    "NCSN++": SONG | NCSN,
    "NCSN++ without labels": SONG | NCSN | {"label_dim": 0, "channel_mult": [1, 2, 2], "attn_resolutions": []},
    "skips at both ends": SONG | {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    "ADM": ADM,
    "ADM without labels": ADM
    | {"label_dim": 0, "augment_dim": 9, "channel_mult": [1, 2, 4], "attn_resolutions": [4, 2]},
}
EDM2_CASES = {
    "EDM2": UNET2,
    "EDM2 of three levels without labels": UNET2 | {"label_dim": 0, "channel_mult": [1, 3, 2], "attn_resolutions": [4, 2]},
    "EDM2 with other arguments": UNET2
    | {
        "model_channels": 12, "channels_per_head": 6, "channel_mult_noise": 2, "channel_mult_emb": 3, "label_balance": 0.3,
        "concat_balance": 0.6, "res_balance": 0.4, "attn_balance": 0.2, "clip_act": None, "resample_filter": [1, 3, 3, 1],
        "sigma_data": 0.7,
    },
}  # fmt: skip
LEVELS = torch.tensor([0.01, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)


def convert(tensors, architecture, options=None):
    """The model of these tensors, and what the user is told."""
    metadata = None if options is None else {"init_kwargs": json.dumps(options)}
    weights = PublishedWeights(tensors, architecture.family, metadata)
    network = architecture.convert(weights)
    weights.finish()
    objective = assemble(network._asdict(), (), "cpu")
    objective.model.backbone.load_state_dict(network.tensors)
    return objective.model.eval(), " ".join(network.notes)


def convert_file(folder, tensors, architecture, options=None):
    """The run folder made of a file of these tensors."""
    metadata = None if options is None else {"init_kwargs": json.dumps(options)}
    safetensors.torch.save_file(tensors, folder / "weights.safetensors", metadata)
    return ConversionJob(architecture, folder / "weights.safetensors", folder / "run", "run").run()


def examples(model, options, classes):
    """Noised data at five levels with every kind of label: x, t, y and sigma."""
    channels, side = options["img_channels"], options["img_resolution"]
    sigma = model.schedule.alpha_sigma(LEVELS)[1].repeat(2)
    x = torch.randn(10, channels, side, side, generator=torch.Generator().manual_seed(1))
    y = torch.arange(10) % (classes + 1) - 1
    return x * (sigma + 0.5).float()[:, None, None, None], LEVELS.repeat(2), y, sigma


def largest_error(model, reference, tensors, options):
    """Of x_0 and of the network's own output, relative to the largest value of the level."""
    x, t, y, sigma = examples(model, options, options["label_dim"])
    d, s = options.get("sigma_data", 0.5), sigma[:, None, None, None]
    wanted = reference(tensors, x, sigma, y, options)
    total = (s**2 + d**2).sqrt()
    with torch.no_grad():
        found = model(x, t, y).x_0, model.backbone((x / total).float(), -2 * sigma.log().float(), y)
    output = (wanted - d**2 / total**2 * x) / (s * d / total)
    return max(map(relative_error, found, (wanted, output)))


def relative_error(found, wanted):
    """The largest of a row of the batch in units of the row's largest value."""
    return float(((found - wanted).abs().amax((1, 2, 3)) / wanted.abs().amax((1, 2, 3))).max())


@pytest.mark.parametrize("options", EDM_CASES.values(), ids=EDM_CASES)
def test_edm_is_the_published_network(options):
    tensors = edm_tensors(options)
    model, notes = convert(tensors, EDM())
    assert isinstance(model.backbone, EDMUNet if options["model_type"] == "SongUNet" else UNet)
    assert model.num_classes == options["label_dim"] and model.has_null == (options["label_dim"] == 0)
    assert largest_error(model, edm_precond, tensors, options) < 1e-5
    assert ("augmentation are left out" in notes) == bool(options["augment_dim"])


@pytest.mark.parametrize("options", EDM2_CASES.values(), ids=EDM2_CASES)
def test_edm2_is_the_published_network(options):
    tensors = edm2_tensors(options)
    model, notes = convert(tensors, EDM2(), options | {"use_fp16": True, "logvar_channels": 128})
    assert isinstance(model.backbone, EDM2UNet) and "uncertainty of the loss is left out" in notes
    assert largest_error(model, edm2_precond, tensors, options) < 1e-5


def test_the_prefix_may_be_missing():
    for options, tensors, prefix, reference, architecture in (
        (SONG, edm_tensors(SONG), "model.", edm_precond, EDM()),
        (UNET2, edm2_tensors(UNET2), "unet.", edm2_precond, EDM2(head_channels=9)),
    ):
        inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        assert largest_error(convert(inner, architecture)[0], reference, tensors, options) < 1e-5


@pytest.mark.parametrize(
    "family, tensors, options, reference",
    [(EDM, edm_tensors, SONG | NCSN, edm_precond), (EDM2, edm2_tensors, UNET2 | {"clip_act": None}, edm2_precond)],
    ids=["edm", "edm2"],
)
def test_a_file_becomes_a_run_that_loads(tmp_path, capsys, family, tensors, options, reference):
    """With the training of the papers, so that it may go on."""
    run = convert_file(tmp_path, tensors(options), family(), None if family is EDM else options)
    assert "left out" in capsys.readouterr().err
    model = load(run / "checkpoints/0000000000.safetensors", "ema").model
    assert largest_error(model, reference, tensors(options), options) < 1e-5
    assert model.schedule.noise_level(torch.tensor([0.0, 1.0]).double()).tolist() == pytest.approx([0.002, 80])
    levels = yaml.safe_load((run / "config.yaml").read_text())["objective"]["levels"]
    assert (levels["mean"], levels["std"]) == ((-1.2, 1.2) if family is EDM else (-0.4, 1.0))


def test_a_null_condition_is_the_zero_label_where_labels_were_dropped():
    """By an argument, or by the metadata: then classifier-free guidance is possible."""
    tensors = edm_tensors(SONG)
    with pytest.raises(ValueError, match="p_uncond"):
        ClassifierFree(convert(tensors, EDM())[0], scale=2.0)
    trained = SONG | {"label_dropout": 0.1, "dropout": 0.2}
    for architecture, options in ((EDM(label_dropout=0.1), None), (EDM(), trained)):
        model, _ = convert(tensors, architecture, options)
        x, t, y, sigma = examples(model, SONG, 3)
        y = y.clamp(min=0)
        strong, weak = (edm_precond(tensors, x, sigma, label, SONG) for label in (y, torch.full_like(y, -1)))
        with torch.no_grad():
            found = ClassifierFree(model, scale=3.0)(x, t, y).x_0
        assert relative_error(found, weak + 3 * (strong - weak)) < 1e-5


@pytest.mark.parametrize(
    "changed", [{"label_dim": 0}, {"model_channels": 6, "channels_per_head": 6}], ids=["cfg", "auto"]
)
def test_a_pair_of_networks_is_guided_as_published(changed):
    """D_weak + w (D_strong - D_weak): EDM2's classifier-free guidance by a network without classes, and autoguidance."""
    pair = [UNET2, UNET2 | changed]
    tensors = [edm2_tensors(options, seed) for seed, options in enumerate(pair)]
    models = [convert(state, EDM2(), options)[0] for state, options in zip(tensors, pair)]
    x, t, y, sigma = examples(models[0], UNET2, 3)
    y = y.clamp(min=0)
    strong, weak = (edm2_precond(state, x, sigma, y, options) for state, options in zip(tensors, pair))
    with torch.no_grad():
        found = Autoguidance(*models, scale=2.5)(x, t, y).x_0
    assert relative_error(found, weak + 2.5 * (strong - weak)) < 1e-5


def without(tensors, part):
    return {name: value for name, value in tensors.items() if part not in name}


REFUSED = {
    "a missing tensor": (EDM(), without(edm_tensors(SONG), "8x8_up.conv1.bias"), None, "no tensor .*8x8_up.conv1.bias"),
    "an unknown tensor": (
        EDM2(),
        edm2_tensors(UNET2) | {"unet.extra": torch.zeros(1)},
        UNET2,
        "unet.extra has no place",
    ),
    "another family": (
        EDM2(),
        edm_tensors(SONG),
        None,
        "no tensor .*, which EDM2 has; choose another|EDM2 needs one at least",
    ),
    "other names": (EDM(), {"a.weight": torch.zeros(2, 2)}, None, "choose another architecture"),
    "another shape": (
        EDM2(),
        edm2_tensors(UNET2) | {"unet.enc.4x4_down.conv_res0.weight": torch.zeros(18, 9, 3, 3)},
        UNET2,
        "conv_res0.weight has the shape",
    ),
    "unknown arguments": (EDM2(), edm2_tensors(UNET2), UNET2 | {"swish": True}, "'swish', which EDM2 does not have"),
    "heads that do not fit": (EDM2(), edm2_tensors(UNET2), None, "head_channels must give a whole number of heads"),
    "filters that differ": (
        EDM(),
        edm_tensors(SONG) | {"model.enc.4x4_down.skip.resample_filter": torch.full((1, 1, 2, 2), 0.3)},
        None,
        "resample_filter is not the product",
    ),
    "both encoders": (
        EDM(),
        edm_tensors(SONG | NCSN) | {"model.enc.4x4_aux_skip.weight": torch.zeros(1)},
        None,
        "both aux_skip and aux_residual",
    ),
    "widths that are no multiples": (
        EDM(),
        edm_tensors(SONG | {"channel_mult": [1, 2]}) | {"model.enc.8x8_conv.weight": torch.zeros(7, 3, 3, 3)},
        None,
        "no multiple of the 7 channels",
    ),
    "sides that are not halved": (
        EDM(),
        {name.replace("4x4", "3x3"): value for name, value in edm_tensors(SONG).items()},
        None,
        r"have the sides \[8, 3\]",
    ),
    "arguments of another type": (EDM2(), edm2_tensors(UNET2), UNET2 | {"res_balance": "half"}, "are no network"),
    "a standard deviation of 0": (EDM2(), edm2_tensors(UNET2), UNET2 | {"sigma_data": 0}, "sigma_data must be"),
}


@pytest.mark.parametrize("architecture, tensors, options, message", REFUSED.values(), ids=REFUSED)
def test_weights_that_do_not_fit_are_refused(architecture, tensors, options, message):
    with pytest.raises(ConversionError, match=message) as caught:
        convert(tensors, architecture, options)
    assert "\n" not in str(caught.value)


def test_another_preconditioning_is_refused():
    """VE and VP networks of the baselines have the same tensors, but other scales."""
    for name, message in (("EDMPrecond", None), ("VPPrecond", "class_name is 'VPPrecond', and only EDMPrecond")):
        weights = PublishedWeights(edm_tensors(SONG), "EDM", {"class_name": name})
        with pytest.raises(ConversionError, match=message) if message else nullcontext():
            EDM().convert(weights)


@pytest.mark.parametrize("text", ["{", "[1]", '"a"', "[" * 10**5])
def test_metadata_that_is_no_mapping_is_refused(text):
    weights = PublishedWeights(edm2_tensors(UNET2), "EDM2", {"init_kwargs": text})
    with pytest.raises(ConversionError, match="init_kwargs"):
        EDM2().convert(weights)
