"""The law of schedulers of diffusers: levels, ends, predictions, and what has no counterpart."""

import warnings

import diffusers
import pytest
import torch

from diffguide.checkpoints.allowlist import construct
from diffguide.checkpoints.diffusers_schedulers import DISCRETE, translate_scheduler
from diffguide.files.safetensors import CheckpointError

BETAS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.001, 0.01, 0.02, 0.4]},
]


def translate(scheduler, **changes):
    law = translate_scheduler(dict(scheduler.config) | {"_class_name": type(scheduler).__name__} | changes)
    return law, construct(law.schedule, "schedule", ())


@pytest.mark.parametrize("settings", BETAS, ids=lambda settings: str(settings.get("beta_schedule")))
@pytest.mark.parametrize("rescale", [False, True])
def test_levels_are_those_of_the_betas(settings, rescale):
    scheduler = diffusers.DDPMScheduler(**settings, rescale_betas_zero_snr=rescale)
    law, schedule = translate(scheduler)
    abar = scheduler.alphas_cumprod.double()
    count = len(abar)
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, count + 1, dtype=torch.float64) / count)
    assert torch.allclose(alpha**2, abar, rtol=2e-4, atol=1e-6)  # theirs are products of 1000 float32 numbers
    assert torch.allclose(sigma**2, 1 - abar, rtol=2e-3, atol=1e-7)
    assert float(schedule.alpha_sigma(0)[1]) < 1e-6
    assert schedule.zero_terminal_snr == rescale
    assert law.timesteps["steps"] == count


def test_every_discrete_scheduler_has_the_defaults_of_its_class():
    warnings.simplefilter("ignore")  # of NumPy, about calls inside diffusers
    for name in DISCRETE:
        if "dummy" in getattr(diffusers, name).__module__:  # it needs a library that is not installed
            continue
        law = translate_scheduler({"_class_name": name})
        abar = getattr(diffusers, name)().alphas_cumprod.double()
        schedule = construct(law.schedule, "schedule", ())
        alpha = schedule.alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)[0]
        assert torch.allclose(alpha**2, abar, rtol=2e-4), name


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_has_the_times_of_the_shift(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    law, schedule = translate(scheduler)
    sigmas = scheduler.sigmas.double().flip(0)
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    assert torch.allclose(sigma, sigmas, rtol=1e-5)
    assert torch.allclose(alpha + sigma, torch.ones(1000, dtype=torch.float64))
    timesteps = construct_timesteps(law)
    log_snr = schedule.log_snr(torch.tensor([0.25, 1.0], dtype=torch.float64))
    assert torch.allclose(timesteps(log_snr), scheduler.timesteps.flip(0)[[249, 999]], rtol=1e-5)


def construct_timesteps(law):
    node = {
        "_target_": "diffguide.backbones.diffusers_network.DiffusersNetwork",
        "network": "UNet2DModel",
        "size": 8,
        "arguments": {
            "block_out_channels": [8],
            "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"],
        },
        "timesteps": law.timesteps,
    }
    return construct(node, "backbone", ()).timesteps


def test_edm_has_its_noise_levels_and_conditioning():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=1.0)
    law, schedule = translate(scheduler)
    scheduler.set_timesteps(10)
    t = 1 - torch.arange(10, dtype=torch.float64) / 9
    assert torch.allclose(schedule.noise_level(t), scheduler.sigmas[:10].double(), rtol=1e-4)
    assert law.parameterization["sigma_data"] == 1.0
    log_snr = schedule.log_snr(t)
    assert torch.allclose(construct_timesteps(law)(log_snr), scheduler.timesteps, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "LCMScheduler"}, "LCMScheduler"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
        ({}, "None"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}, "laplace"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "rubbish"}, "rubbish"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "v_prediction"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
        ({"_class_name": "DDPMScheduler", "trained_betas": 3}, "DDPMScheduler"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(config, named):
    with pytest.raises(CheckpointError, match=named):
        translate_scheduler(config)


def test_settings_of_a_sampler_are_named_and_not_taken_over():
    law = translate_scheduler({"_class_name": "DDIMScheduler", "clip_sample": True, "set_alpha_to_one": False})
    assert law.settings == ["clip_sample=True", "set_alpha_to_one=False"]
