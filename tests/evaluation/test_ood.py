"""Out-of-distribution scores against closed forms and scikit-learn; metrics of a joint energy by the commands."""

import json

import numpy as np
import pytest
import torch
from joint_energies import TRUTH, exact
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from diffguide.backbones import ConvNet
from diffguide.datasets import Dataset, Split
from diffguide.evaluate import main as evaluate
from diffguide.evaluation.classification.ood import (
    OOD,
    PERTURBATIONS,
    ConfidenceScore,
    DensityScore,
    SlopeScore,
    auroc,
    perturb,
)
from diffguide.evaluation.metric import EvalContext
from diffguide.models.joint_energy import JointEnergy
from diffguide.randomness import Noise
from diffguide.sample import main as sample

SCORES = [DensityScore(), ConfidenceScore(), SlopeScore()]


def dataset(seed: int, n: int = 300, spread: float = 1.0) -> Dataset:
    x, y = TRUTH.sample(n, np.random.default_rng(seed))
    split = Split(torch.from_numpy(x * spread).float(), torch.from_numpy(y))
    return Dataset(split, split, split, class_names=("a", "b"))


def test_auroc_is_that_of_scikit_learn_and_its_error_is_its_spread():
    """Also with ties, and for paired and independent sets."""
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 200), rng.integers(-3, 7, 150)
    found = auroc(torch.tensor(inside), torch.tensor(outside), paired=False)[0]
    labels = np.r_[np.ones(200), np.zeros(150)]
    assert found == pytest.approx(roc_auc_score(labels, np.r_[inside, outside]), abs=1e-12)
    rank = rankdata(np.r_[inside, outside])[:200].sum()
    assert found == pytest.approx((rank - 200 * 201 / 2) / (200 * 150), abs=1e-12)
    for paired in (True, False):
        draws, common = [], rng.normal(size=(400, 80)) * (2.0 if paired else 0.0)
        for own in common:
            a, b = own + rng.normal(size=80) + 0.7, own + rng.normal(size=80)
            draws.append(auroc(torch.from_numpy(a), torch.from_numpy(b), paired))
        values, errors = np.array(draws).T
        # three standard errors of a standard deviation over 400 draws
        assert errors.mean() == pytest.approx(values.std(), rel=0.12)


def test_scores_of_exact_logits_are_the_closed_forms():
    data = dataset(0)
    context = EvalContext(exact(), data, "test", n=200, batch_size=70)
    metric = OOD(SCORES, dataset(1, spread=1.5))
    metric.check(context)
    measured = metric.measure(context)
    x = data.test.x[context.rows].double().numpy()
    sides = {"data": x, "inverted": -x, "constant": np.repeat(x.mean(1, keepdims=True), 2, 1)}

    def density(x):
        return TRUTH.log_density(x, 1.0, 0.0)

    def odds(x):
        joint = [TRUTH.log_density(x, 1.0, 0.0, np.full(len(x), c)) for c in (0, 1)]
        return np.abs(joint[0] - joint[1])

    def slope(x):
        return -np.linalg.norm(TRUTH.score(x, 1.0, 0.0), axis=1)

    labels = np.r_[np.ones(200), np.zeros(200)]
    for name, score in {"density": density, "confidence": odds, "slope": slope}.items():
        for against in ("inverted", "constant"):
            expected = roc_auc_score(labels, np.r_[score(x), score(sides[against])])
            # float32 data
            assert measured.figures[f"auroc_{name}_{against}"].value == pytest.approx(expected, abs=2e-3)
    assert measured.figures["auroc_density_noise"].value > 0.6
    assert measured.figures["auroc_density_other"].value > 0.6
    assert measured.figures["auroc_density_other"].n == 400 and measured.facts["against"][-1] == "other"
    again = metric.measure(EvalContext(exact(), data, "test", n=200, batch_size=200))
    assert again.figures == measured.figures  # for any batch size


def test_images_are_also_blurred_and_mirrored():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    inputs = perturb(x, Noise([0], (1, 4, 4), None))
    assert tuple(inputs) == PERTURBATIONS
    blurred, mirrored = inputs["blurred"], inputs["mirrored"]
    assert blurred.shape == x.shape and blurred[0, 0, 1, 1] == x[0, 0, :3, :3].mean()
    assert blurred[0, 0, 0, 0] == (0 * 4 + 1 * 2 + 4 * 2 + 5) / 9 and torch.equal(mirrored.flip(-1), x)
    images = torch.rand(20, 1, 8, 8)
    network = JointEnergy(ConvNet(1, 2, 8, 4, [1, 2], 8, False))
    split = Split(images, torch.arange(20) % 2)
    context = EvalContext(network, Dataset(split, split, split, class_names=("a", "b")), "test")
    names = {name.removeprefix("auroc_slope_") for name in OOD([SlopeScore()], None).measure(context).figures}
    assert names == {"noise", "constant", "inverted", "blurred", "mirrored"}


def test_invalid_scores_and_other_shapes_raise():
    with pytest.raises(ValueError, match="scores"):
        OOD([], None)
    wide = Dataset(*[Split(torch.zeros(5, 3), torch.zeros(5).long())] * 3, class_names=("a", "b"))
    with pytest.raises(ValueError, match=r"metric.other .*\[3\].*\[2\]"):
        OOD(SCORES, wide).check(EvalContext(exact(), dataset(0)))


def test_a_joint_energy_has_a_classification_and_an_ood_table(jem_run, tmp_path, command):
    """As a classifier without noise levels, with one row; and as a density."""
    done = command(evaluate, f"checkpoint={jem_run}", at=tmp_path)  # metric=auto
    assert done.code == 0, done.err
    record = json.loads((tmp_path / done.folder / "metrics.json").read_text())
    assert record["metric"] == "classification" and set(record["figures"]) == {"accuracy", "nll", "ece"}
    assert record["at"] == "the data, without noise" and len(record["curve"]) == 1
    held = [json.loads(line) for line in (jem_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert record["figures"]["accuracy"]["value"] == pytest.approx(held["accuracy"], abs=1e-6)
    assert record["figures"]["nll"]["value"] == pytest.approx(held["nll"], rel=1e-5)
    done = command(evaluate, f"checkpoint={jem_run}", "metric=ood", "dataset@metric.other=digits", at=tmp_path)
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / done.folder / "metrics.json").read_text())["figures"]
    assert len(figures) == 18 and figures["auroc_density_other"]["value"] == 0.5  # the same examples
    assert all(figure["standard_error"] is not None for figure in figures.values())


def test_new_samples_of_a_joint_energy_are_those_of_diffguide_sample(jem_run, tmp_path, command):
    """New samples equal those of a run with the same seeds, steps and labels, under the same potential."""
    chain = ["sampler.steps=2", "n=80", "guidance=potential", "guidance.scale=0.02"]
    drawn = command(sample, f"checkpoint={jem_run}", "sampler=sgld", *chain, at=tmp_path)
    assert drawn.code == 0, drawn.err
    asked = ["metric=quality", "metric/features=pixels", "metric.count=80", "metric.classification=false"]
    figures, tilt = [], ["guidance@metric.guidance=potential", "metric.guidance.scale=0.02"]
    for source in (
        [f"metric.samples={drawn.folder}"],
        ["sampler@metric.sampler=sgld", "metric.sampler.steps=2", *tilt],
    ):
        done = command(evaluate, f"checkpoint={jem_run}", *asked, *source, at=tmp_path)
        assert done.code == 0, done.err
        record = json.loads((tmp_path / done.folder / "metrics.json").read_text())
        figures.append(record["figures"])
        assert record["evaluations"] == (160 if len(figures) == 2 else None)  # two steps of 80 new chains
    assert 0 < figures[0]["agreed_labels_pixels"]["value"] == figures[1]["agreed_labels_pixels"]["value"]
    assert figures[0]["recall_pixels"]["value"] == figures[1]["recall_pixels"]["value"]


@pytest.mark.parametrize(
    "metric, sentence",
    [
        ("elbo", "metric=elbo needs a denoiser"),
        ("ode", "needs a denoiser"),
        ("likelihood", "needs a denoiser"),
        ("log_density", "metric=log_density needs a normalised density"),
        ("zero_shot", "metric=zero_shot needs a denoiser with classes"),
        ("denoising", "needs a denoiser"),
        ("quality", "sampler=sgld"),
        ("quality guidance@metric.guidance=cfg", "guidance@metric.guidance=none"),
    ],
)
def test_metrics_that_a_joint_energy_does_not_support_are_one_line_errors(jem_run, tmp_path, command, metric, sentence):
    done = command(evaluate, f"checkpoint={jem_run}", *f"metric={metric}".split(), at=tmp_path)
    assert done.code == 1 and sentence in done.err and "Traceback" not in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1
