"""Mistakes with generative classifiers (objective=cdm, nce, tre, energy, jem) give one line with the valid options."""

import math

import pytest
import torch
from exact_levels import exact_levels
from networks import mlp

from diffguide.class_names import class_index
from diffguide.datasets import Dataset, Split
from diffguide.evaluation.auto import Auto
from diffguide.evaluation.classification.metric import Classification
from diffguide.evaluation.classification.ood import OOD, ConfidenceScore, DensityScore
from diffguide.evaluation.denoising import DenoisingError
from diffguide.evaluation.likelihood.dequantization import DecoderDequantization
from diffguide.evaluation.likelihood.metrics import ELBO, ExactDensity
from diffguide.evaluation.metric import EvalContext
from diffguide.guidance import ClassifierFree
from diffguide.models.level_classifier import LevelClassifier
from diffguide.samplers import DDIM, SGLD
from diffguide.samplers.grids import UniformT
from diffguide.schedules import Cosine
from diffguide.train import main as train

LEVELS = ["backbone=unet_levels", "guidance=none", "sampler=ddim"]
TRAIN = {
    "another network": (["objective=cdm", "backbone=unet"], "use backbone=unet_levels"),
    "another network of a joint energy": (["objective=jem", "backbone=unet"], "use backbone=convnet for images"),
    "levels of another objective": (
        ["backbone=unet_levels", "objective=v"],
        "objective=cdm, cdm_ce, cdm_mse, nce, tre",
    ),
    "levels of an objective without": (["backbone=unet_levels", "objective=jem"], "which objective=jem does not have"),
    "prior": (["objective=cdm", *LEVELS, "objective.prior=[1,2]"], "prior must have 102"),
    "text for a prior": (["objective=cdm", *LEVELS, "objective.prior=even"], "must be a list, each a number or null"),
    "schedule that ends too early": (["objective=cdm", *LEVELS, "schedule.log_snr_min=-3"], "schedule.log_snr_min=-10"),
    "more steps than levels": (["objective=tre", *LEVELS, "sampler.steps=18"], "take sampler.steps=10 at most"),
    "sampler off the levels": (["objective=cdm", *LEVELS, "sampler=dpm2"], "sampler=ddim, or heun without churn"),
    "values of continuous data": (
        ["experiment=cdm_gmm2d", "objective.quantization_levels=17"],
        "quantization_levels=17",
    ),
    "values of other data": (
        ["objective=tre", *LEVELS, "sampler.steps=10", "objective.quantization_levels=256"],
        "17 for digits",
    ),
    "label dropout of an energy": (["experiment=jem_digits", "p_uncond=0.1"], "p_uncond=0.1 has no effect"),
    "network without levels": (["experiment=energy_digits", "backbone=convnet"], "use backbone=unet_joint"),
    "vectors for images": (["objective=cdm", "backbone=mlp_levels"], "unet_levels in place of mlp_levels"),
    "images for vectors": (["objective=nce", "dataset=gmm2d"], "mlp_levels in place of unet_levels"),
}


@pytest.mark.parametrize("arguments, message", TRAIN.values(), ids=TRAIN)
def test_a_mistake_in_training_is_one_line(tmp_path, command, arguments, message):
    done = command(train, *arguments, at=tmp_path)
    assert done.code == 1 and message in done.err, done.err
    assert done.err.count("\n") == 1 and done.err.startswith("diffguide-train: ") and list(tmp_path.iterdir()) == []


def test_sgld_names_the_guidance_that_hides_a_density():
    model = exact_levels(20)
    with pytest.raises(ValueError, match="needs a log-density.*changes with the noise level.*guidance=none"):
        SGLD(5, 1.0, 0.01).times(ClassifierFree(model, 2.0, [0.0, 5.0]))
    assert len(SGLD(5, 1.0, 0.01).times(ClassifierFree(model, 2.0, [0.0, math.inf]))) == 6
    assert len(SGLD(5, 1.0, 0.01).times(model)) == 6
    with pytest.raises(ValueError, match="DDIM needs noise levels.*sampler=sgld"):
        DDIM(5, UniformT(), 0.0).times(ratio())


def ratio() -> LevelClassifier:
    """A model of objective=nce: the level of the data and pure noise."""
    return LevelClassifier(mlp(out_features=2, num_classes=0, noise_conditioned=False), Cosine(12.0, -10.0), 0, False)


def plane(model, values: int = 0) -> EvalContext:
    return EvalContext(
        model,
        Dataset(*[Split(torch.full((20, 2), -1.0), torch.arange(20) % 4)] * 3, class_names=tuple("0123")),
        config={"objective": {"quantization_levels": values}},
    )


def test_a_model_of_one_level_supports_density_metrics_only():
    bound, density = (
        ELBO(4, None, 2, 2, 8, 1e-3, None, 0, None),
        ExactDensity(DecoderDequantization(), 2, None, 17, None),
    )
    for metric in (bound, DenoisingError(3, True, 0)):
        with pytest.raises(ValueError, match="noise levels.*metric=log_density"):
            metric.check(plane(ratio()))
    auto = Auto(Classification([1.0], 15), density, DenoisingError(3, True, 0))
    assert auto.resolve(plane(ratio())) is density and auto.resolve(plane(exact_levels(4))) is auto.denoiser
    with pytest.raises(ValueError, match="metric.density.dequantization=uniform"):
        auto.check(plane(ratio(), 17))


def test_a_model_without_classes_has_the_density_score_only():
    with pytest.raises(ValueError, match="score confidence.*metric.scores="):
        OOD([DensityScore(), ConfidenceScore()], None).check(plane(ratio()))
    OOD([DensityScore()], None).check(plane(ratio()))


def test_a_model_without_classes_has_no_class_index():
    with pytest.raises(ValueError, match="this model has no classes, got 1"):
        class_index(1, [])
