"""Folders of diffusers against the library's own networks and schedulers."""

import diffusers
import pytest
import torch
from diffusers_folders import dit, save_pipeline, unet

import diffguide
from diffguide.guidance import ClassifierFree
from diffguide.samplers import DDIM
from diffguide.samplers.discrete_grids import Trailing

LEVELS = (0, 3, 250, 600, 999)  # indices of diffusers; never one alone


def closeness(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["unconditional", "classes", "dit"])
def test_predictions_are_those_of_the_library(tmp_path, prediction_type, kind):
    network = {
        "unconditional": lambda: unet(),
        "classes": lambda: unet(num_class_embeds=4),
        "dit": lambda: dit(),
    }[kind]()
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", prediction_type=prediction_type)
    model = diffguide.load(save_pipeline(tmp_path / "p", network, scheduler))
    x = torch.randn(3, *model.shape)
    labels = None if kind == "unconditional" else torch.tensor([0, 2, 3])
    rows = labels
    if kind == "dit":
        labels, rows = torch.tensor([0, -1, 4]), torch.tensor([0, 5, 4])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # the scheduler's own are rounded to float32
    for k in LEVELS:
        abar = (1 - betas).cumprod(0)[k]
        named = {} if rows is None else {"class_labels": rows}
        out = network(x, timestep=torch.full((3,), k), **named).sample[:, : x.shape[1]]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        x_0, eps = {
            "epsilon": lambda: ((x - sigma * out) / alpha, out),
            "v_prediction": lambda: (alpha * x - sigma * out, sigma * x + alpha * out),
            "sample": lambda: (out, (x - alpha * out) / sigma),
        }[prediction_type]()
        for t in (torch.tensor((k + 1) / 1000, dtype=torch.float64), torch.full((3,), (k + 1) / 1000).double()):
            prediction = model(x, t, labels)
            assert closeness(prediction.x_0, x_0) < 1e-5
            assert closeness(prediction.eps, eps) < 1e-5


def test_ddim_with_guidance_is_that_of_the_library(tmp_path):
    network = unet(num_class_embeds=4)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    model = diffguide.load(save_pipeline(tmp_path / "p", network, scheduler), null_class=3)
    z, y, scale = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), 2.5
    x = z.clone()
    scheduler.set_timesteps(20)
    for k in scheduler.timesteps:
        strong = network(x, k, class_labels=y).sample
        weak = network(x, k, class_labels=torch.full_like(y, 3)).sample
        x = scheduler.step(weak + scale * (strong - weak), k, x).prev_sample
    guided = ClassifierFree(model, scale)
    sampler = DDIM(20, Trailing(1000))
    times = sampler.times(guided)
    mine = sampler(guided, z, times, y, None)
    assert closeness(mine, x) < 1e-4
