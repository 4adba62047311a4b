"""Langevin chains on a log-density: their law, their noise, what they can sample, and by the real command."""

import json
import math
import os
import signal
from contextlib import chdir

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, two_classes
from joint_energies import COVARIANCES, LABELS, MEANS, TRUTH, WEIGHTS, MixtureLogits, exact

from diffguide.guidance import ClassifierFree, Unguided
from diffguide.guidance.potentials import NoisyPotentialGuidance, Potential, PotentialEnergy, PotentialGuidance
from diffguide.models.evaluation_counters import count_evaluations
from diffguide.models.joint_energy import JointEnergy
from diffguide.oracles import GaussianMixture
from diffguide.randomness import Noise
from diffguide.sample import main as sample
from diffguide.samplers import SGLD, Heun, generate
from diffguide.samplers.grids import UniformT
from diffguide.sampling.run import SampleWriter
from diffguide.schedules import Cosine
from diffguide.train import main as train


def chains(model, sampler, n, labels=None, batch_size=10**6, seed=0):
    return torch.cat(
        [*generate(model, sampler, range(seed, seed + n), labels, [2], batch_size, dtype=torch.float64)]
    ).numpy()


def test_chains_with_proper_noise_have_the_law_of_the_density_and_cold_ones_less():
    """x' = (1 - a / v) x + b z has the variance b^2 / (1 - (1 - a / v)^2) in the end: with b^2 = 2 a, v / (1 - a / (2 v))."""
    variances, mean, a = np.array([0.09, 0.3]), np.array([0.4, -0.3]), 0.05
    model = JointEnergy(MixtureLogits([1.0], [mean.tolist()], [np.diag(variances).tolist()], [0]))
    for scale, b in ((None, math.sqrt(2 * a)), (0.1, 0.1)):
        x = chains(model, SGLD(60, a, scale), 4000)
        expected = b**2 / (1 - (1 - a / variances) ** 2)
        np.testing.assert_allclose(x.var(0), expected, rtol=0.08)  # three standard errors are 0.067
        np.testing.assert_allclose(x.mean(0), mean, atol=0.03)


def test_chains_start_uniform_and_follow_their_labels():
    flat = JointEnergy(MixtureLogits([1.0], [[0.0, 0.0]], [[[1e9, 0.0], [0.0, 1e9]]], [0]))
    x = chains(flat, SGLD(1, 1.0, 0.0), 4000)
    assert np.abs(x).max() <= 1 and abs(x.var() - 1 / 3) < 0.01 and abs(x.mean()) < 0.02
    labels = [0, 1, -1] * 700
    x, y = chains(exact(), SGLD(150, 0.005, None), 2100, labels), np.array(labels)
    exactly, of = TRUTH.sample(20000, np.random.default_rng(0))
    for label in (0, 1):  # class 1 has two components that a chain seldom leaves: it begins near one or the other
        np.testing.assert_allclose(x[y == label].mean(0), exactly[of == label].mean(0), atol=0.15)
    assert 0.3 < (TRUTH.log_density(x[y == -1], 1.0, 0.0, 0 * y[y == -1]) > -3).mean() < 0.8  # both classes


def test_a_chain_is_a_function_of_its_seed_and_label_alone():
    sampler, labels = SGLD(10, 0.01, 0.05), [0, 1, -1, 0, 1]
    whole = chains(exact(), sampler, 5, labels)
    np.testing.assert_allclose(chains(exact(), sampler, 5, labels, batch_size=2), whole, atol=1e-12)
    np.testing.assert_allclose(chains(exact(), sampler, 1, labels[3:4], seed=3), whole[3:4], atol=1e-12)
    assert np.abs(chains(exact(), sampler, 5, labels, seed=1) - whole).max() > 0.01


def test_sgld_samples_every_log_density_and_counts_evaluations():
    """An oracle's log-density at t = 0 is that of the joint energy, so the chains are the same."""
    law = (torch.tensor(part, dtype=torch.float64) for part in (WEIGHTS, MEANS, COVARIANCES))
    schedule = Cosine(math.inf, -10.0)  # exact data at t = 0
    oracle = GaussianMixture(*law, torch.tensor(LABELS), schedule, None)
    sampler, labels = SGLD(10, 0.01, 0.05), [0, 1, -1, 0]
    (counter, first), (energy, second) = (count_evaluations(model) for model in (oracle, exact()))
    ours = [chains(model, sampler, 4, labels) for model in (Unguided(counter), energy)]
    np.testing.assert_allclose(*ours, atol=1e-9)
    assert [tally.evaluations for tally in (first, second)] == [40, 40]
    assert [tally.potential_evaluations for tally in (first, second)] == [0, 0]


def bowl(x, y):
    return -0.5 * (x - 0.5).square().sum(1) / 0.1


class BowlOfClass(Potential):
    """Of class 1 alone."""

    of_class = True

    def __call__(self, x, y):
        return bowl(x, y) * y


@pytest.mark.parametrize("guidance", [PotentialGuidance, NoisyPotentialGuidance])
def test_an_energy_takes_potentials(guidance):
    """N(0.4, 0.2) exp(2 bowl): the precision is 1 / 0.2 + 2 / 0.1, the law exact to a / (2 v) = 1 %; 4000 chains."""
    energy = JointEnergy(MixtureLogits([1.0], [[0.4, 0.4]], [[[0.2, 0.0], [0.0, 0.2]]], [0]))
    counted, tally = count_evaluations(energy)
    tilted = guidance(counted, bowl, 2.0)
    assert isinstance(tilted, PotentialEnergy) and tilted.num_classes == 1 and not tilted.normalized
    x, v = chains(tilted, SGLD(60, 0.004, None), 4000), 1 / 25
    np.testing.assert_allclose(x.var(0), v / (1 - 0.004 / (2 * v)), rtol=0.08)
    np.testing.assert_allclose(x.mean(0), v * (0.4 / 0.2 + 0.5 * 20), atol=0.015)
    assert tally.evaluations == tally.potential_evaluations == 4000 * 60


def test_a_potential_of_the_class_leaves_rows_without():
    """And one that is off has the chains of the energy itself."""
    labels, sampler = [1, -1, 0], SGLD(10, 0.01, 0.05)
    plain = chains(exact(), sampler, 3, labels)
    tilted = chains(NoisyPotentialGuidance(exact(), BowlOfClass(), 1.0), sampler, 3, labels)
    assert np.array_equal(plain[1:], tilted[1:]) and np.abs(plain[0] - tilted[0]).max() > 1e-3
    assert np.array_equal(plain, chains(PotentialGuidance(exact(), BowlOfClass(), 0.0), sampler, 3, labels))
    assert np.array_equal(chains(PotentialGuidance(exact(), BowlOfClass()), sampler, 3), chains(exact(), sampler, 3))


def test_guidance_with_a_law_is_sampled_at_the_data():
    """Classes of an oracle at scale 3, from closed forms: one step of the gradient of log p(x | y)^3 p(x)^-2."""
    law = (torch.tensor(part, dtype=torch.float64) for part in (WEIGHTS, MEANS, COVARIANCES))
    counted, tally = count_evaluations(GaussianMixture(*law, torch.tensor(LABELS), Cosine(math.inf, -10.0), None))
    sampler, labels = SGLD(1, 0.01, 0.0), [0, 1, 1]
    x = chains(ClassifierFree(counted, 3.0), sampler, 3, labels)
    start = sampler.begin(counted, torch.ones(1), Noise(range(3), [2], None, dtype=torch.float64)).numpy()
    score = 3 * TRUTH.score(start, 1.0, 0.0, np.array(labels)) - 2 * TRUTH.score(start, 1.0, 0.0)
    np.testing.assert_allclose(x, start + 0.01 * score, atol=1e-9)
    assert tally.evaluations == 6


def test_models_and_samplers_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="SGLD needs a log-density"):
        SGLD(5, 1.0, 0.01).times(ExactMixture(two_classes(), Cosine(12.0, -10.0)))
    for model in (exact(), count_evaluations(exact())[0]):
        with pytest.raises(ValueError, match="Heun needs a denoiser.* sampler=sgld"):
            Heun(5, UniformT()).times(model)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 1.0, 0.1), "steps must be"),
        ((5, 0.0, 0.1), "step_size must be"),
        ((5, math.inf, 0.1), "step_size"),
        ((5, 1.0, -0.1), "noise_scale must be"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SGLD(*arguments)


def test_the_noise_needs_seeds():
    with pytest.raises(ValueError, match="SGLD draws noise"):
        SGLD(2, 1.0, 0.1)(exact(), torch.zeros(1, 2), SGLD(2, 1.0, 0.1).times(exact()))
    start = SGLD(2, 1.0, 0.1).begin(exact(), torch.ones(1), Noise(range(3), [2], None))
    assert start.shape == (3, 2) and start.dtype == torch.float32


def test_the_command_samples_with_it(jem_run, tmp_path, command):
    """Labels, manifest, another batch size, a trajectory; a run that was stopped goes on."""
    arguments = [f"checkpoint={jem_run}", "sampler=sgld", "sampler.steps=4", "n=12", "labels=[3,7]"]
    done = command(sample, *arguments, "trajectory=true", at=tmp_path)
    assert done.code == 0, done.err
    folder = tmp_path / done.folder
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert lines[0]["network_evaluations"] == 4 and [line["label"] for line in lines[1:]] == [3, 7] * 6
    assert (folder / "trajectory.gif").exists() and (folder / "grid.png").exists()
    whole = np.load(folder / "samples.npz")["arr_0"]
    assert whole.shape == (12, 8, 8, 1) and whole.std() > 10

    def interrupted(self, first):
        if first == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, first)

    begin = SampleWriter.begin_batch
    with pytest.MonkeyPatch.context() as patch, chdir(tmp_path):
        patch.setattr(SampleWriter, "begin_batch", interrupted)
        stopped = command(sample, *arguments, "batch_size=5", at=tmp_path)
    assert stopped.code == 143
    again = command(sample, f"resume={stopped.folder}", at=tmp_path)
    assert again.code == 0, again.err
    close = np.load(tmp_path / again.folder / "samples.npz")["arr_0"].astype(int) - whole
    assert np.abs(close).max() <= 1  # a batch of another size sums in another order


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["sampler=heun"],
            "sampler: Heun needs a denoiser, and this model is an energy without noise levels: take sampler=sgld",
        ),
        (["sampler=sgld", "guidance=cfg"], "a JointEnergy is an energy"),
        (
            ["sampler=sgld", "guidance=potential", "guidance.interval=[0.1,5]"],
            "interval must be [0, inf] for an energy",
        ),
        (["sampler=sgld", "sampler.step_size=0"], "sampler: step_size must be"),
    ],
)
def test_mistakes_end_in_one_line(jem_run, tmp_path, command, arguments, sentence):
    done = command(sample, f"checkpoint={jem_run}", "n=2", *arguments, at=tmp_path)
    assert done.code == 1 and sentence in done.err and "Traceback" not in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["sampler=heun"], "sampler: Heun needs a denoiser, and this model is an energy"),
        (["guidance=cfg"], "guidance=none"),
        (["schedule=cosine"], "got Cosine: take schedule=none"),
        (["compile=true"], "compile must be false with objective JEM, which differentiates its network by its input"),
        (["training.accumulate=2"], "training.accumulate and engine.devices must be 1 with objective JEM"),
        (["backbone=unet_encoder"], "set backbone.noise_conditioned=false"),
    ],
)
def test_mistakes_of_training_end_in_one_line(tmp_path, command, arguments, sentence):
    done = command(train, "experiment=jem_digits", *arguments, at=tmp_path)
    assert done.code == 1 and sentence in done.err and "Traceback" not in done.err, done.err
    assert not list(tmp_path.iterdir())


def test_jem_is_rejected_as_a_guiding_classifier_and_has_a_dry_run(jem_run, tiny_run, tmp_path, command):
    guidance = ["guidance=classifier", f"guidance.classifier={jem_run}", "n=1"]
    done = command(sample, f"checkpoint={tiny_run}", *guidance, at=tmp_path)
    assert done.code == 1 and "got a JointEnergy" in done.err and "Traceback" not in done.err
    done = command(train, "experiment=jem_digits", "dry_run=true", at=tmp_path)
    assert done.code == 0 and "parameters: 159,626" in done.err, done.err


def test_no_schedule_is_for_energies_alone(tmp_path, command):
    done = command(train, "schedule=none", at=tmp_path)
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert done.err.startswith("diffguide-train: objective: schedule=none") and "schedule=cosine" in done.err
