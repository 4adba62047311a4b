"""Which guidance names no law, what each refuses, and where it acts."""

import math

import pytest
import torch
from closed_forms import Mixture
from exact_models import oracle
from numpy import eye, zeros
from two_class_points import COSINE, EVERYWHERE, exact, t, x

from diffguide.backbones.conditions import Embedding
from diffguide.datasets.base import Dataset, Split
from diffguide.guidance import (
    APG,
    ClassifierFree,
    ClassifierGuidance,
    Nested,
    PowerGuidance,
    RectifiedTable,
    SummedContrasts,
    TemporalScoreRescaling,
)
from diffguide.guidance.potentials import PotentialGuidance
from diffguide.schedules import Flow

PURE_NOISE = Flow(log_snr_min=-math.inf)


def points(classes: int) -> Dataset:
    split = Split(torch.zeros(2 * classes, 2), torch.arange(classes).repeat(2))
    return Dataset(split, split, split, class_names=tuple(map(str, range(classes))))


def test_powers_of_noise_predictions_need_a_little_signal():
    with pytest.raises(ValueError, match="log_snr_min"):
        PowerGuidance(exact(PURE_NOISE))


@pytest.mark.parametrize(
    "denoiser, classes, reason",
    [
        (lambda: exact(COSINE), 3, "3 classes"),
        (lambda: ClassifierFree(exact(COSINE), 2.0, rule=APG(momentum=-0.5)), 2, "before guidance with memory"),
        (lambda: exact(PURE_NOISE), 2, "zero terminal SNR"),
    ],
)
def test_the_table_of_ratios_refuses(denoiser, classes, reason):
    with pytest.raises(ValueError, match=reason):
        RectifiedTable(denoiser(), 2.0, EVERYWHERE, points(classes), 2)


def test_the_table_of_ratios_is_of_classes():
    guided = RectifiedTable(exact(COSINE), 2.0, EVERYWHERE, points(2), 2)
    side = exact(COSINE)(x, t, None)
    with pytest.raises(ValueError, match="class indices, got Embedding"):
        guided.rectify(side, t, Embedding(torch.zeros(len(x), 3)))


def test_a_classifier_around_a_potential_or_a_model_without_null_names_no_law():
    law = oracle(Mixture([0.5, 0.5], zeros((2, 2)), [eye(2), 2 * eye(2)], [0, 1]), COSINE)
    around = ClassifierGuidance(PotentialGuidance(law), law)
    assert "list potentials after it" in around.explain_no_law()
    law.has_null = False
    assert "label dropout" in ClassifierGuidance(law, law).explain_no_law()


@pytest.mark.parametrize("labelled", [True, False])
def test_several_guidances_act_where_one_of_them_does(labelled):
    parts = {"cfg": lambda d: ClassifierFree(d, 3.0)}
    times = torch.tensor([0.9, 0.5], dtype=torch.float64)
    assert Nested(exact(), parts).acts_at(times, labelled) is labelled
    assert SummedContrasts(exact(), parts).acts_at(times, labelled) is labelled
    assert Nested(exact(), {"none": lambda d: d}).acts_at(times, labelled)


def test_nested_guidance_names_the_law_of_its_outermost_part():
    parts = {"cfg": lambda d: ClassifierFree(d, 3.0)}
    assert Nested(exact(), parts).tilt() == ClassifierFree(exact(), 3.0).tilt()
    with_temperature = Nested(exact(), {"tsr": lambda d: TemporalScoreRescaling(d, 2.0)})
    assert with_temperature.explain_no_law() == TemporalScoreRescaling(exact(), 2.0).explain_no_law()
