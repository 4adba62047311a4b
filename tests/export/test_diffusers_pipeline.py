"""Folders for diffusers: the library's own pipelines sample them as this package does, and read the law that was meant."""

import json
import math
import sys

import diffusers
import diffusers_folders
import numpy as np
import pytest
import torch
from diffusers_folders import DIT, UNET, randomize, save_pipeline
from networks import lively, unet

from diffguide.backbones.diffusers_network import DiffusersNetwork
from diffguide.backbones.timesteps import DiscreteTimesteps, FlowTimesteps, LogNoiseTimesteps
from diffguide.checkpoints.store import Loaded, load
from diffguide.export.diffusers_pipeline import DiffusersPipeline
from diffguide.export.diffusers_scheduler import scheduler_settings
from diffguide.export.errors import ExportError
from diffguide.export.job import ExportJob
from diffguide.guidance import ClassifierFree
from diffguide.models.parameterizations import EDM, X0, Eps, Flow, Score, V
from diffguide.models.preconditioned import Preconditioned
from diffguide.samplers import DDIM, DDPM
from diffguide.samplers.discrete_grids import Linspace
from diffguide.samplers.grids import UniformT
from diffguide.schedules import (
    Cosine,
    Linear,
    ResolutionShift,
    ScaledLinear,
    SigmoidBeta,
    SquaredCosine,
    TrainedBetas,
    ZeroTerminalSNR,
)
from diffguide.schedules import Flow as FlowSchedule

EXACT = Linear(math.inf)
SMALL = UNET | {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4, "down_block_types": ("DownBlock2D",) * 2,
                "up_block_types": ("UpBlock2D",) * 2}  # fmt: skip


def loaded(network="UNet2DModel", classes=0, schedule=EXACT, parameterization=None, **changes) -> Loaded:
    arguments = DIT | {"num_layers": 1} if network == "DiTTransformer2DModel" else SMALL
    channels, learned = arguments["in_channels"], changes.pop("learned_variance", False)
    arguments = arguments | {"out_channels": channels * (1 + learned), "num_embeds_ada_norm": classes}
    if network == "UNet2DModel":
        del arguments["num_embeds_ada_norm"]
    backbone = DiffusersNetwork(channels, None, classes, 8, network, arguments, learned_variance=learned, **changes)
    randomize(backbone)
    model = Preconditioned(backbone, schedule, parameterization or Eps(), backbone.null_class is not None).eval()
    model.shape, model.class_names = [channels, 8, 8], [f"class {k}" for k in range(classes)]
    return Loaded(model, {"name": "mine"}, {"shape": model.shape, "class_names": model.class_names, "images": 7})


class Draws:
    """The noise of a pipeline with the seed 0: first of x, then of its steps."""

    def __init__(self, shape):
        self.shape, self.rng = shape, torch.Generator().manual_seed(0)

    def increment(self, t=None, s=None):
        return torch.randn(self.shape, generator=self.rng)


def close(found, expected, tolerance=1e-4):
    inside = ((expected > 0.01) & (expected < 0.99)).float().mean()
    assert inside > 0.2, f"only {inside:.0%} of the images are not clipped"
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("learned, grid", [(False, UniformT()), (True, Linspace(1000))])
def test_ddpm_pipeline_samples_as_ancestral_sampling(learned, grid, tmp_path):
    model = loaded(parameterization=X0(), learned_variance=learned)  # an untrained eps would leave [-1, 1] at once
    DiffusersPipeline().write(model, tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    images = pipeline(3, rng, num_inference_steps=20, output_type="np").images
    draws, sampler = Draws((3, 3, 8, 8)), DDPM(20, grid, "learned" if learned else 0.0)
    sampler.max_fall = math.inf
    x = sampler(model.model, draws.increment(), sampler.times(model.model), None, draws)
    close(images, (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).detach())


def test_ddpm_pipeline_samples_flow_matching(tmp_path):
    """By Euler's method, which is DDIM, at its own times."""
    schedule = FlowSchedule(math.inf, -math.inf)
    model = loaded(schedule=schedule, parameterization=Flow(), timesteps=FlowTimesteps())
    DiffusersPipeline().write(model, tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(3, torch.Generator().manual_seed(0), num_inference_steps=20, output_type="pt").images
    x = DDIM()(model.model, Draws((3, 3, 8, 8)).increment(), pipeline.scheduler.sigmas.double())
    close(images, (x / 2 + 0.5).clamp(0, 1).detach())
    assert "should divide" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("classes, scale", [(5, 1.0), (1000, 4.0)])
def test_dit_pipeline_samples_as_ddim(classes, scale, tmp_path):
    """Its guidance takes the row 1000 for no class."""
    model = loaded("DiTTransformer2DModel", classes, learned_variance=True)
    DiffusersPipeline().write(model, tmp_path)
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        latent_channels=4, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1
    ).eval()
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path, vae=vae)
    pipeline.set_progress_bar_config(disable=True)
    labels = pipeline.get_label_ids(["class 3", "class 1"])
    rng = torch.Generator().manual_seed(0)
    images = pipeline(labels, scale, rng, num_inference_steps=20, output_type="pt").images
    guided, y = ClassifierFree(model.model, scale), torch.tensor([3, 1])
    sampler = DDIM(20)
    x = sampler(guided, Draws((2, 4, 8, 8)).increment(), sampler.times(guided), y)
    with torch.no_grad():
        close(images, (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1))


def test_the_loop_of_the_readme_samples_rectangles(tmp_path, monkeypatch):
    network = diffusers_folders.unet(sample_size=(8, 16), num_class_embeds=3)
    model = load(save_pipeline(tmp_path / "there", network, diffusers.DDPMScheduler()))
    (tmp_path / "here").mkdir()
    DiffusersPipeline().write(model, tmp_path / "here")
    text = (tmp_path / "here" / "README.md").read_text()
    assert "pipeline clips" not in text
    monkeypatch.chdir(tmp_path / "here")
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0].replace("(50)", "(2)"), names)
    assert names["x"].shape == (4, 3, 8, 16) and names["x"].isfinite().all()


def test_the_loop_of_the_readme_samples_classes(tmp_path, monkeypatch):
    model = loaded(classes=3, null_class=1)
    DiffusersPipeline().write(model, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "0 to 3, and 1 for no class" in text
    assert type(diffusers.DDPMPipeline.from_pretrained(tmp_path).unet) is diffusers.UNet2DModel
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    torch.manual_seed(0)
    exec(text.split("```python\n")[1].split("```")[0], names)
    torch.manual_seed(0)
    draws, sampler = Draws((4, 3, 8, 8)), DDPM(50)
    draws.rng = torch.default_generator
    x = sampler(model.model, draws.increment(), sampler.times(model.model), torch.zeros(4, dtype=torch.long), draws)
    np.testing.assert_allclose(names["x"], x.detach(), rtol=0, atol=1e-4 * float(x.abs().max()))
    assert json.loads((tmp_path / "model_index.json").read_text())["id2label"] == {
        "0": "class 0", "2": "class 1", "3": "class 2",
    }  # fmt: skip


def test_the_folder_is_a_checkpoint_again(tmp_path):
    model = loaded(classes=3, null_class=3, parameterization=V())
    DiffusersPipeline().write(model, tmp_path)
    back, x, y = load(tmp_path, null_class=3).model, torch.randn(4, 3, 8, 8), torch.tensor([0, 2, -1, 1])
    for time in (0.001, 0.25, 0.6, 0.999, 1.0):
        t = torch.tensor(time, dtype=torch.float64)
        for found, wanted in zip(back(x, t, y), model.model(x, t, y)):
            torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_a_folder_of_diffusers_is_exported_with_its_null_class(tmp_path):
    """The class table of UNet2DModel does not say which row that is."""
    (tmp_path / "there").mkdir()
    DiffusersPipeline().write(loaded(classes=3, null_class=3), tmp_path / "there")
    ExportJob(DiffusersPipeline(), tmp_path / "there", tmp_path / "again", null_class=3).run()
    record = json.loads((tmp_path / "again/diffguide.json").read_text())
    assert record["null_label"] == -1 and record["num_classes"] == 3
    network = [
        (tmp_path / place / "unet/diffusion_pytorch_model.safetensors").read_bytes() for place in ("there", "again")
    ]
    assert network[0] == network[1]


LAWS = {
    "linear": Linear(math.inf),
    "another end": Linear(12.0, beta_start=2e-4, beta_end=0.015),
    "scaled_linear": ScaledLinear(),
    "squaredcos_cap_v2": SquaredCosine(),
    "sigmoid": SigmoidBeta(),
    "trained_betas": TrainedBetas(betas=[0.01 * k for k in range(1, 21)]),
    "a truncated curve": Linear(12.0, -6.0),
    "a continuous curve": Cosine(),
    "zero": ZeroTerminalSNR(Linear(), 1e-3),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_scheduler_has_the_levels_of_the_network(name):
    """Whatever the schedule of the run. diffusers computes them in float32."""
    schedule, steps = LAWS[name], 20 if name == "trained_betas" else 1000
    family, settings = scheduler_settings(DiscreteTimesteps(schedule, steps), V(), Cosine())
    assert family == "discrete" and settings["prediction_type"] == "v_prediction"
    scheduler = diffusers.DDPMScheduler(**settings)
    alpha = schedule.alpha_sigma(torch.arange(1, steps + 1, dtype=torch.float64) / steps)[0]
    np.testing.assert_allclose(scheduler.alphas_cumprod, alpha**2, rtol=2e-4, atol=2e-5)
    named = {"linear", "another end", "scaled_linear", "squaredcos_cap_v2", "zero"}
    assert ("trained_betas" in settings) != (name in named)


def test_flow_matching_keeps_its_shift():
    schedule = ResolutionShift(FlowSchedule(math.inf, -math.inf), 3.0, 1.0)
    family, settings = scheduler_settings(FlowTimesteps(1000.0), Flow(), schedule)
    assert (family, settings) == ("flow", {"num_train_timesteps": 1000, "shift": 3.0})
    assert scheduler_settings(FlowTimesteps(1000.0), Flow(), Cosine())[1]["shift"] == 1.0


@pytest.mark.parametrize(
    "timesteps, parameterization",
    [
        (LogNoiseTimesteps(), EDM()),
        (DiscreteTimesteps(), Score()),
        (FlowTimesteps(1.0, from_noise=True), Flow()),
        (FlowTimesteps(), X0()),
    ],
)
def test_laws_without_a_pipeline_are_refused(timesteps, parameterization):
    with pytest.raises(
        ExportError, match=f"{type(timesteps).__name__} that predicts {type(parameterization).__name__}"
    ):
        scheduler_settings(timesteps, parameterization, Cosine())


def test_scaled_timesteps_are_refused():
    with pytest.raises(ExportError, match="scales its timesteps by 0.25"):
        scheduler_settings(DiscreteTimesteps(steps=4000, scale=0.25), Eps(), Cosine())


def test_other_networks_are_refused(tmp_path):
    model = Preconditioned(lively(unet()), Cosine(), V(), True)
    with pytest.raises(ExportError, match="this one is a UNet: to=torch_export, onnx and safetensors take it"):
        DiffusersPipeline().write(Loaded(model, {}, {"shape": [1, 8, 8], "class_names": [], "images": 0}), tmp_path)
    assert not list(tmp_path.iterdir()) and "diffusers" in sys.modules
