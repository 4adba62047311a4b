"""Mistakes with classifiers that generate (objective=cdm, nce, tre, energy, jem) are one line that says what is right."""

import math

import pytest
from exact_levels import exact_levels

from diffguide.guidance import ClassifierFree
from diffguide.samplers import SGLD
from diffguide.train import main as train

LEVELS = ["backbone=unet_levels", "guidance=none", "sampler=ddim"]
TRAIN = {
    "default network": (["objective=cdm"], "this UNet answers in the shape of the data; take backbone=unet_levels"),
    "default network of a joint energy": (
        ["objective=jem", "schedule=none", "guidance=none"], "take backbone=convnet for images",
    ),
    "levels of another objective": (
        ["backbone=unet_levels", "objective=v"],
        "backbone.out_features of backbone=unet_levels is objective.levels, which objective=v does not have: take another "
        "backbone, or objective=cdm, cdm_ce, cdm_mse, nce, tre",
    ),
    "levels of an objective without": (["backbone=unet_levels", "objective=jem"], "which objective=jem does not have"),
    "prior": (["objective=cdm", *LEVELS, "objective.prior=[1,2]"], "prior must be 102 finite numbers above 0"),
    "text for a prior": (["objective=cdm", *LEVELS, "objective.prior=even"], "must be a list, each a number or null"),
    "schedule that ends too early": (["objective=cdm", *LEVELS, "schedule.log_snr_min=-3"], "schedule.log_snr_min=-10"),
    "more steps than levels": (["objective=tre", *LEVELS, "sampler.steps=18"], "take steps of at most 10"),
    "sampler off the levels": (["objective=cdm", *LEVELS, "sampler=dpm2"], "take sampler=ddim, heun or another one"),
    "vectors for images": (["objective=cdm", "backbone=mlp_levels"], "take backbone=unet, unet_levels where this one is"),
    "images for vectors": (
        ["objective=nce", "backbone=unet_levels", "dataset=gmm2d"], "mlp_levels where this one is unet_levels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("arguments, message", TRAIN.values(), ids=TRAIN)
def test_training_tells_a_mistake(tmp_path, command, arguments, message):
    done = command(train, *arguments, at=tmp_path)
    assert done.code == 1 and message in done.err, done.err
    assert done.err.count("\n") == 1 and done.err.startswith("diffguide-train: ") and list(tmp_path.iterdir()) == []


def test_a_density_that_guidance_hides_is_told_apart_from_none():
    model = exact_levels(20)
    with pytest.raises(ValueError, match="which this model has and its guidance hides: take guidance=none"):
        SGLD(5, 1.0, 0.01).times(ClassifierFree(model, 2.0, [0.0, math.inf]))
    assert len(SGLD(5, 1.0, 0.01).times(model)) == 6
