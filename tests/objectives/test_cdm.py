"""Sampling and guiding a classifier of the noise level, its soft targets, its network, its recipes."""

import copy
import json
import math
import weakref

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS
from composing import composed
from exact_levels import SCHEDULE, exact_levels
from networks import lively
from omegaconf import OmegaConf
from small_checkpoint import CONFIG, save

import diffguide
from diffguide.backbones import MLP, UNetLevels
from diffguide.config.build import build
from diffguide.evaluate import main as evaluate
from diffguide.guidance import ClassifierFree, ClassifierGuidance
from diffguide.guidance.potentials import Brightness, PotentialGuidance
from diffguide.guidance.projections import APG
from diffguide.models.level_classifier import LevelClassifier
from diffguide.objectives import CDM
from diffguide.oracles import GMM2DLaw
from diffguide.randomness import Noise
from diffguide.sample import main as sample
from diffguide.samplers import DDIM
from diffguide.samplers.grids import CustomGrid, ModelLevels, UniformT
from diffguide.schedules import TRE, Cosine
from diffguide.train import main as train

T, EVERYWHERE = 24, (0.0, math.inf)
LEAVES = {"dpm2", "dpmpp_2s", "pndm", "dopri5", "heun-churn"}  # its levels
LEFT, LEVEL = torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)


def tiny(classes: int = 3, **changed) -> UNetLevels:
    options = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "head_channels": 8, "dropout": 0.1}
    options |= {"noise_conditioned": False, "condition_features": 0, "checkpointing": False, "fourier": []}
    return UNetLevels(1, 6, 5, classes, 4, **options | changed)


def still(steps: int = T) -> LevelClassifier:
    """Before its training: the law N(0, I) at every level."""
    return LevelClassifier(MLP(2, steps + 2, 4, 8, 1, 4, 0.5, False), SCHEDULE, steps, True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_stay_on_its_levels_or_are_refused(name):
    """A time that is no level would raise; `restart` walks levels of its own, and snaps them too."""
    sampler, model = SAMPLERS[name](7), still()
    if name in LEAVES:
        with pytest.raises(ValueError, match="sampler=ddim"):
            sampler.times(model)
        return
    times = sampler.times(model)
    assert len(times) == 8 and set(times.tolist()) <= set(model.levels.tolist())
    noise = Noise(range(3), (2,), SCHEDULE)
    x = sampler(model, noise.normal(1.0, 0), times, torch.tensor([0, 1, -1]), noise)
    assert x.isfinite().all()


def test_a_list_off_its_levels_is_refused():
    with pytest.raises(ValueError, match="level"):
        DDIM(2, CustomGrid([1.0, 0.51, 0.0], None), 0.0).times(still())
    assert DDIM(2, CustomGrid([1.0, 0.5, 0.0], None), 0.0).times(still()).tolist() == [1.0, 0.5, 0.0]
    assert DDIM(T, ModelLevels(), 0.0).times(still()).tolist() == [k / T for k in range(T, -1, -1)]


def test_exact_logits_sample_and_are_guided_as_the_oracle():
    """Every guidance sees the same denoiser: DDIM with CFG, APG in an interval, and by a classifier, its own p(y | x_t)."""
    law, model = GMM2DLaw(SCHEDULE), exact_levels(T)
    noise = Noise(range(6), (2,), SCHEDULE, dtype=torch.float64)
    x, y = noise.normal(1.0, 0).double(), torch.tensor([0, 1, 2, 3, -1, 0])
    guides = [
        lambda denoiser: ClassifierFree(denoiser, 2.0, EVERYWHERE),
        lambda denoiser: ClassifierFree(denoiser, 3.0, (0.1, 5.0), APG(0.0, 5.0, -0.5)),
        lambda denoiser: ClassifierGuidance(denoiser, denoiser, 1.5, EVERYWHERE),
        lambda denoiser: PotentialGuidance(denoiser, Brightness(), 0.3, EVERYWHERE),
    ]
    sampler = DDIM(8, UniformT(), 0.0)
    for guide in guides:
        found, expected = (sampler(guide(subject), x, sampler.times(model), y, noise) for subject in (model, law))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_no_graph_is_kept_while_sampling():
    """Of what a step made nothing is alive after the next one: memory does not grow with the steps."""
    model, sampler, made = still(), DDIM(6, UniformT(), 0.0), []

    def look(step, x):
        assert x.grad_fn is None and not x.requires_grad
        assert all(reference() is None for reference in made[:-1])
        made.append(weakref.ref(x))

    for parameter in model.parameters():  # as they are while training
        parameter.requires_grad_(True)
    guided = ClassifierFree(model, 2.0, EVERYWHERE)
    sampler(guided, torch.randn(4, 2), sampler.times(model), torch.arange(4), None, look)
    assert len(made) == 6 and all(parameter.grad is None for parameter in model.parameters())


def images() -> LevelClassifier:
    return LevelClassifier(lively(tiny()).double(), Cosine(12.0, -10.0), 4, True)


def test_the_gradient_through_a_network_is_that_of_differences():
    """What DPS, other potentials of x_0 and the divergence of the flow ask for; all of it without training anything."""
    model, x = images(), torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([2, -1])
    guided = PotentialGuidance(model, Brightness(), 0.7, EVERYWHERE)(x, LEVEL, y)
    plain, sigma, h = model(x, LEVEL, y), float(model.schedule.alpha_sigma(LEVEL)[1]), 1e-5
    for pixel in range(16):
        step = torch.zeros(16, dtype=torch.float64)
        step[pixel] = h
        up, down = (model(x + sign * step.reshape(1, 1, 4, 4), LEVEL, y).x_0.flatten(1).sum(1) for sign in (1, -1))
        change = (guided.eps - plain.eps).flatten(1)[:, pixel]
        torch.testing.assert_close(change, -0.7 * sigma * (up - down) / (2 * h), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("make", [tiny, lambda: MLP(2, 6, 3, 8, 1, 4, 0.5, False)], ids=["unet", "mlp"])
def test_gradients_of_gradients(make):
    network = lively(make()).double()
    shape = (1, 1, 4, 4) if isinstance(network, UNetLevels) else (2, 2)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(shape[0])
    assert torch.autograd.gradgradcheck(lambda x: network(x, None, y), [x], fast_mode=True)


def test_the_network_answers_per_image():
    network = lively(tiny())
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, -1])
    whole = network(x, None, y)
    assert whole.shape == (4, 6)
    torch.testing.assert_close(network(x[1:2], None, y[1:2]), whole[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network(x, None, None)[3], whole[3], rtol=1e-5, atol=1e-5)
    assert ((network(x, None, None) - whole)[:3].abs().max(1).values > 1e-4).all()
    assert (network(x.flip(-1), None, y) - whole).abs().max() > 1e-4
    pooled = network.trunk(x, None, y).sum(dim=(2, 3)) / 4
    torch.testing.assert_close(whole, pooled @ network.linear.weight.T + network.linear.bias)
    state = network.state_dict()
    assert len({part.untyped_storage().data_ptr() for part in state.values()}) == len(state)
    with pytest.raises(ValueError, match="out_features and head"):
        UNetLevels(1, 0, 5, 3, 4, 8, [1], 1, [], 8, 0.0, False, 0, False, [])


OBJECTIVE = {
    "_target_": "diffguide.objectives.cdm.CDM",
    "levels": 8,
    "ce_weight": 1.0,
    "mse_weight": 1.0,
    "quantization_levels": 0,
    "prior": None,
    "soft_targets": True,
    "p_uncond": 0.1,
}
SAVED = CONFIG | {
    "name": "levels",
    "objective": OBJECTIVE,
    "backbone": CONFIG["backbone"] | {"out_features": 8, "noise_conditioned": False},
}


def test_a_checkpoint_is_the_model(tmp_path):
    """Its weights are double-checked on a device without memory, where it must not look at numbers."""
    save(tmp_path, SAVED)
    model = diffguide.load(tmp_path)
    again = diffguide.load(tmp_path)
    assert isinstance(model, LevelClassifier) and model.levels.device.type == "cpu" and model.steps == 6
    x, t = torch.randn(3, 2), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(model(x, t, None).eps, again(x, t, None).eps)
    assert model.log_density(x, None).shape == (3,) and model(x, t).eps.abs().max() > 0


PRIOR = [1.0 + k % 3 for k in range(10)]


@pytest.mark.parametrize("top", [12.0, math.inf], ids=["finite", "exact data"])
def test_the_posterior_over_levels(top):
    """Against the densities N(x; alpha_j x_0, sigma_j^2 I) of x itself."""
    schedule, rng = TRE(top, -10.0), torch.Generator().manual_seed(0)
    model = LevelClassifier(MLP(3, 10, 0, 8, 1, 2, 0.5, False), schedule, 8, False, PRIOR)
    x_0, eps = (torch.randn(10, 3, dtype=torch.float64, generator=rng) for _ in range(2))
    k = torch.arange(10)
    found = model.posterior(x_0, eps, k).exp().numpy()
    alpha, sigma = (
        np.append(part.numpy(), end) for part, end in zip(schedule.alpha_sigma(torch.arange(9.0) / 8), (0, 1))
    )
    x = alpha[:, None] * x_0.numpy() + sigma[:, None] * eps.numpy()
    for row in range(10):
        if sigma[row] == 0:
            expected = np.eye(10)[row]
        else:
            with np.errstate(divide="ignore"):
                far = ((x[row] - alpha[:, None] * x_0[row].numpy()) ** 2).sum(1)
                joint = np.log(PRIOR) - 3 * np.log(sigma) - far / (2 * np.maximum(sigma, 1e-150) ** 2)
            joint[sigma == 0] = -np.inf
            expected = np.exp(joint - joint.max()) / np.exp(joint - joint.max()).sum()
        np.testing.assert_allclose(found[row], expected, atol=1e-9)
    assert found[3, 4] > 1e-4  # neighbours look alike


def test_soft_targets_have_the_same_gradient_and_less_variance():
    """Of single examples; in a batch the levels are drawn evenly, which takes off most of what soft targets would."""
    torch.manual_seed(0)
    network = MLP(2, 12, 0, 8, 1, 4, 0.5, False).double()
    torch.nn.init.normal_(network.linear_out.weight, std=0.3)
    data, n = GMM2DLaw(SCHEDULE).sample(1, torch.Generator().manual_seed(1))[0], 200
    gradients = []
    for soft in (False, True):
        objective = CDM(copy.deepcopy(network), SCHEDULE, 12, 1.0, 0.0, 0, None, soft, 0.0)
        weight, drawn = objective.model.backbone.linear_out.weight, []
        for seed in range(n):
            loss = objective(data, None, torch.Generator().manual_seed(n * soft + seed)).per_example.mean()
            drawn.append(torch.autograd.grad(loss, weight)[0][1:])  # the first output moves no difference
        gradients.append(torch.stack(drawn).flatten(1))
    hard, soft = gradients
    error = ((hard.var(0) + soft.var(0)) / n).sqrt()
    assert ((hard.mean(0) - soft.mean(0)).abs() < 4.5 * error).all()
    assert soft.var(0).sum() < 0.8 * hard.var(0).sum()


def test_recipes_and_their_ablation():
    """-m objective=cdm,cdm_ce,cdm_mse changes the weights alone, whatever else the recipe says of the objective."""
    for experiment, values, ce in (("cdm_digits", 17, 0.001), ("cdm_gmm2d", 0, 1.0)):
        found = {}
        for name in ("cdm", "cdm_ce", "cdm_mse"):
            cfg = composed(f"experiment={experiment}", f"objective={name}")
            node = OmegaConf.to_container(cfg.objective, resolve=True)
            assert node["quantization_levels"] == values and node["levels"] == 102
            found[name] = node["ce_weight"], node["mse_weight"]
            assert cfg.backbone.out_features == 102
        assert found == {"cdm": (ce, 1.0), "cdm_ce": (1.0, 0.0), "cdm_mse": (0.0, 1.0)}
    cfg = composed("experiment=cdm_digits")
    assert cfg.objective.p_uncond == 0.1
    build(cfg.objective, "objective", build(cfg.backbone, "backbone"), build(cfg.schedule, "schedule"))


SMALL = [
    "experiment=cdm_gmm2d", "objective.levels=12", "backbone.width=16", "backbone.layers=1", "dataset.train=500",
    "training.images=1024", "training.batch_size=256", "training.validation_images=1024", "sampler.steps=5",
    "backbone.num_classes=4", "guidance=cfg", "training.log_images=512", "name=small",
]  # fmt: skip


def test_from_the_command_line(command, tmp_path):
    """Trained, sampled with guidance, measured; and what it cannot do in one line."""
    trained = command(train, *SMALL, at=tmp_path)
    assert trained.code == 0, trained.err
    lines = map(json.loads, (tmp_path / trained.folder / "metrics.jsonl").read_text().splitlines())
    assert {"ce", "mse", "accuracy"} <= set.union(*({name.split("/")[-1] for name in flat(line)} for line in lines))
    run = f"checkpoint={trained.folder}"
    drawn = command(
        sample, run, "sampler=ddim", "sampler/grid=levels", "sampler.steps=10", "guidance=cfg", "n=4", at=tmp_path
    )
    assert drawn.code == 0, drawn.err
    refused = command(sample, run, "sampler=dpm2", "n=4", at=tmp_path)
    assert refused.code == 1 and "sampler=ddim" in refused.err
    measured = command(evaluate, run, "metric=density_error", "metric.levels=2", "metric.exact=20", "n=10", at=tmp_path)
    assert measured.code == 0, measured.err
    figures = json.loads((tmp_path / measured.folder / "metrics.json").read_text())["figures"]
    assert list(figures) == ["abs_error", "abs_error_all_levels", "entropy", "excess", "excess_ratios"]
    flow = ["metric=likelihood", "metric/solver@metric.ode.solver=levels", "metric.elbo.pilot=2", "n=4"]
    measured = command(evaluate, run, *flow, at=tmp_path)
    assert measured.code == 0, measured.err
    figures = json.loads((tmp_path / measured.folder / "metrics.json").read_text())["figures"]
    assert {"nll_elbo_given_class", "nll_ode_given_class", "nll_exact_given_class"} <= set(figures)
    refused = command(evaluate, run, "metric=ode", "n=4", at=tmp_path)
    assert refused.code == 1 and "metric/solver=levels" in refused.err
    for metric, unit in {"zero_shot": "nll", "levels": "cross_entropy"}.items():
        measured = command(evaluate, run, f"metric={metric}", "n=6", at=tmp_path)
        assert measured.code == 0, measured.err
        record = json.loads((tmp_path / measured.folder / "metrics.json").read_text())
        assert record["figures"][unit]["unit"] == "nats" and math.isfinite(record["figures"][unit]["value"])
    assert record["levels"] == 12 and record["given_class"] and record["guessing"]["accuracy"] == pytest.approx(1 / 12)


def test_the_ablation_by_commands(command, tmp_path):
    """The cross-entropy alone, and the squared error alone, sample and are measured as both together."""
    trained = command(train, "-m", "objective=cdm_ce,cdm_mse", *SMALL, at=tmp_path)
    assert trained.code == 0, trained.err
    runs = [f"outputs/train/small/v00{index}" for index in (1, 2)]
    both = f"checkpoint={','.join(runs)}"
    drawn = command(sample, "-m", both, "sampler=ddim", "sampler.steps=5", "guidance=cfg", "n=4", at=tmp_path)
    assert drawn.code == 0, drawn.err
    for metric in ("levels", "log_density"):
        measured = command(evaluate, "-m", both, f"metric={metric}", "n=10", at=tmp_path)
        assert measured.code == 0, measured.err
    for index, (ce, mse) in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        objective = diffguide.load(tmp_path / runs[index])
        assert isinstance(objective, LevelClassifier) and objective.steps == 10
        last = json.loads((tmp_path / runs[index] / "metrics.jsonl").read_text().splitlines()[-2])
        assert last["loss"] == pytest.approx(ce * last["ce"] + mse * last["mse"] * 11 / 12, rel=1e-4)


def flat(line: dict) -> list[str]:
    return [name for key, value in line.items() for name in [key, *(flat(value) if isinstance(value, dict) else [])]]
