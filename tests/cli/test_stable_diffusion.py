"""Folders of Stable Diffusion with small random networks: samples are those of diffusers' own pipeline."""

import json
from shutil import copytree

import numpy
import pytest
import torch
from safetensors import safe_open
from stable_diffusion import FIRST, stable_diffusion, stable_diffusion_xl

import diffguide
from diffguide.checkpoints.first_stages import decode_only
from diffguide.checkpoints.text_pipelines import describe_autoencoder
from diffguide.guidance import ClassifierFree
from diffguide.sample import main as sample
from diffguide.samplers import DDIM
from diffguide.samplers.grids import CustomGrid
from diffguide.train import main as train

PROMPTS = ["a red dot", "an egg"]
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pipeline, sd, and the pipeline itself."""
    place = tmp_path_factory.mktemp("pipelines")
    return place, stable_diffusion(place / "sd", **FIRST)


def theirs(pipeline, latents, kind, **more):
    given = {"num_inference_steps": 20, "guidance_scale": 7.5, "output_type": kind} | more
    return pipeline(PROMPTS, latents=latents.clone(), **given).images


def grid(pipeline) -> list[float]:
    """The levels of the last run; Stable Diffusion 1 and 2 end at the first level."""
    return [(int(k) + 1) / 1000 for k in pipeline.scheduler.timesteps] + [1 / 1000]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("negative", [None, "blue"])
def test_ddim_with_guidance_is_that_of_the_pipeline(place, tmp_path, prediction, negative):
    pipeline = stable_diffusion(tmp_path / "sd", **FIRST, prediction_type=prediction)
    expected = theirs(pipeline, LATENTS, "latent", negative_prompt=negative and [negative] * 2)
    model = diffguide.load(tmp_path / "sd")
    guided = ClassifierFree(model, 7.5, negative=negative)
    sampler = DDIM(20, CustomGrid(grid(pipeline)))
    y = model.conditioning.read(PROMPTS)
    found = sampler(guided, LATENTS.clone(), sampler.times(guided), y, None)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()
    if negative is None:
        pictures = theirs(pipeline, LATENTS, "pt")
        space = decode_only(describe_autoencoder(tmp_path / "sd"), [4, 8, 8])
        decoded = (space.decode(found) / 2 + 0.5).clamp(0, 1)
        assert (decoded - pictures).abs().max() < 1e-3 and (pictures[0] - pictures[1]).abs().mean() > 0.01


@pytest.mark.parametrize(("zeros", "negative"), [(True, None), (False, None), (True, "blue")])
def test_two_encoders_and_the_size_of_the_picture_are_those_of_sdxl(tmp_path, zeros, negative):
    pipeline = stable_diffusion_xl(tmp_path / "xl", zeros)
    more = {"negative_prompt": negative and [negative] * 2, "height": 16, "width": 16}
    expected = theirs(pipeline, LATENTS, "latent", **more)
    model = diffguide.load(tmp_path / "xl")
    sampler = DDIM(20, CustomGrid(grid(pipeline)))
    guided = ClassifierFree(model, 7.5, negative=negative)
    found = sampler(guided, LATENTS.clone(), sampler.times(guided), model.conditioning.read(PROMPTS), None)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()
    if negative is None and zeros:
        pictures = theirs(pipeline, LATENTS, "pt", **more)
        space = decode_only(describe_autoencoder(tmp_path / "xl"), [4, 8, 8])
        assert ((space.decode(found) / 2 + 0.5).clamp(0, 1) - pictures).abs().max() < 1e-3
        assert list(model.backbone.attention_layers)


def arrays(folder) -> numpy.ndarray:
    with numpy.load(folder / "samples.npz") as found:
        return found["arr_0"]


def test_the_command_writes_the_pictures_of_the_pipeline(place, command):
    folder, pipeline = place
    pipeline.scheduler.set_timesteps(20)
    times = grid(pipeline)
    words = ["checkpoint=sd", f"prompts=[{','.join(PROMPTS)}]", "n=2", "guidance=cfg", "guidance.scale=7.5",
             "sampler=ddim", "sampler.steps=20", "sampler/grid=list", f"sampler.grid.times={times}"]  # fmt: skip
    done = command(sample, *words, at=folder)
    assert done.code == 0, done.err
    model, sampler = diffguide.load(folder / "sd"), DDIM(20, CustomGrid(times))
    noise = diffguide.randomness.Noise(range(2), [4, 8, 8], model.schedule)
    start = sampler.begin(model, sampler.times(model), noise)
    expected = theirs(pipeline, start, "np")
    found = arrays(folder / done.folder)
    assert found.shape == (2, 16, 16, 3) and abs(found - 255 * expected).max() <= 0.5 + 0.255
    rows = [json.loads(line) for line in (folder / done.folder / "manifest.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows[1:]] == PROMPTS
    assert rows[0]["text_encoders_sha256"] == {"clip_text": model.conditioning.sha256}
    stage = decode_only(describe_autoencoder(folder / "sd"), [4, 8, 8])
    assert rows[0]["first_stage_sha256"] == stage.sha256 and len(stage.sha256) == 64
    kept = command(sample, *words, "latents=true", at=folder)
    latents = arrays(folder / kept.folder)
    expected = theirs(pipeline, start, "latent").numpy()
    assert latents.dtype == numpy.float32 and abs(latents - expected).max() < 1e-4 * abs(expected).max()


@pytest.mark.parametrize("words", [["prompts=[an egg]", "guidance=apg"], ["labels=null"]])
def test_other_guidance_and_no_prompt(place, command, words):
    done = command(sample, "checkpoint=sd", *words, "n=2", "sampler.steps=2", at=place[0])
    assert done.code == 0 and arrays(place[0] / done.folder).shape == (2, 16, 16, 3), done.err


def test_a_prompt_is_needed_and_a_missing_encoder_is_named(place, command):
    folder = place[0]
    done = command(sample, "checkpoint=sd", "n=2", at=folder)
    assert done.code == 1 and "prompts=[...]" in done.err and done.err.count("\n") == 1
    copytree(folder / "sd", folder / "broken")
    (folder / "broken/text_encoder/model.safetensors").unlink()
    done = command(sample, "checkpoint=broken", "prompts=[a]", at=folder)
    assert done.code == 1 and "no model.safetensors" in done.err and done.err.count("\n") == 1


def test_fine_tuning_in_its_latents_with_captions(place, command):
    folder = place[0]
    words = ["init_from=sd", "dataset=shapes", "dataset.train=16", "dataset.validation=4", "dataset.test=4",
             "first_stage=autoencoder_kl", "first_stage.path=sd", "training.images=16", "training.batch_size=8",
             "sampler.steps=2", "name=tuned"]  # fmt: skip
    done = command(train, *words, at=folder)
    assert done.code == 0, done.err
    with safe_open(max((folder / "outputs/train/tuned/v001/checkpoints").glob("*16.safetensors")), "pt") as file:
        assert not any("text_encoder" in name for name in file.keys())
        assert "model.backbone.conditioning.empty_states" in {name.partition(".")[2] for name in file.keys()}
    done = command(
        sample, "checkpoint=outputs/train/tuned/v001", "prompts=[an egg]", "n=1", "sampler.steps=2", at=folder
    )
    assert done.code == 0 and arrays(folder / done.folder).shape == (1, 16, 16, 3), done.err
