"""diffguide-sample and diffguide-eval of models in latents: pictures, latents, and what is refused."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy
import pytest
import torch
from diffusers_folders import dit, randomize, save_pipeline
from latent_run import LATENT, RUN, STAGE
from PIL import Image
from safetensors.torch import load_file, save_file

import diffguide
from diffguide import to_uint8
from diffguide.checkpoints.first_stages import COPY, open_latents
from diffguide.checkpoints.store import find, load
from diffguide.evaluate import main as evaluate
from diffguide.sample import main as sample
from diffguide.samplers import Heun, generate
from diffguide.train import main

SAMPLE = [f"checkpoint={RUN}", "n=6", "sampler.steps=3"]


@pytest.fixture
def home(latent_home, tmp_path) -> Path:
    return Path(shutil.copytree(latent_home, tmp_path / "home"))


def refused(done, *words: str) -> bool:
    return done.code == 1 and len(done.err.strip().splitlines()) == 1 and all(word in done.err for word in words)


def samples(home: Path, done) -> numpy.ndarray:
    assert done.code == 0, done.err
    return numpy.load(home / done.folder / "samples.npz")["arr_0"]


def test_samples_are_decoded_pictures(home, command):
    """Those of Python: latents of the model, scaled back and decoded."""
    done = command(sample, *SAMPLE, "png=true", "trajectory=true", at=home)
    found, loaded = samples(home, done), load(home / RUN)
    space = open_latents(loaded.config, loaded.facts, find(home / RUN))
    (z,) = generate(loaded.model, Heun(steps=3), range(6), range(6), (4, 4, 4), 6)
    raw = z * torch.tensor(space.std)[:, None, None] + torch.tensor(space.mean)[:, None, None]
    assert found.dtype == numpy.uint8 and found.shape == (6, 8, 8, 1)
    assert numpy.array_equal(found, to_uint8(space.stage.decode(raw).detach()))
    assert len(list((home / done.folder / "images").glob("*.png"))) == 6
    with Image.open(home / done.folder / "trajectory.gif") as film:
        film.seek(film.n_frames - 1)
        assert film.n_frames == 3 and film.convert("RGB").getextrema()[0][1] > 100


def test_latents_are_kept_where_asked_for_even_without_a_decoder(home, command):
    pictures = samples(home, command(sample, *SAMPLE, at=home))
    space = open_latents(*load(home / RUN)[1:], find(home / RUN))
    (home / RUN / COPY).unlink()
    shutil.rmtree(home / STAGE)
    latents = samples(home, command(sample, *SAMPLE, "latents=true", at=home))
    assert latents.dtype == numpy.float32 and latents.shape == (6, 4, 4, 4)
    assert numpy.array_equal(pictures, to_uint8(space.stage.decode(torch.from_numpy(latents)).detach()))
    assert refused(command(sample, *SAMPLE, at=home), "first stage", str(STAGE))


def test_a_changed_first_stage_is_refused(home, command):
    assert command(main, "objective=autoencoder", "name=other", "backbone.channels=8", "backbone.multipliers=[1,1]",
                   "backbone.head_channels=8", "training.images=128", at=home).code == 0  # fmt: skip
    (home / RUN / COPY).unlink()
    shutil.rmtree(home / STAGE)
    (home / "outputs/train/other").rename(home / STAGE.parent)
    assert refused(command(sample, *SAMPLE, at=home), "another one in training", "hash")
    (home / RUN / COPY).write_bytes(b"damaged")
    assert refused(command(sample, *SAMPLE, at=home), COPY)
    assert refused(command(evaluate, f"checkpoint={RUN}", "metric=denoising", at=home), COPY)


OWN = [f"checkpoint={RUN}", "first_stage=small_kl", f"first_stage.path={STAGE}"]


@pytest.mark.parametrize("words", [OWN, [*OWN, "latents=true"], ["oracle=gmm2d", "latents=true"]])
def test_options_without_an_effect_are_refused(home, command, words):
    assert refused(command(sample, *words, at=home), "has no effect")


def test_a_run_of_pictures_has_no_latents(tiny_run, tmp_path, command):
    assert refused(command(sample, f"checkpoint={tiny_run}", "latents=true", at=tmp_path), "latents=true")


def test_quality_compares_decoded_pictures(home, command):
    """New samples and those of a run are the same pictures; the reference is that of the data."""
    words = [f"checkpoint={RUN}", "metric=quality", "metric.count=66", "metric/features=pixels", "n=70", "metric.compared=20",
             "sampler@metric.sampler=heun", "metric.sampler.steps=2", "metric.classification=false"]  # fmt: skip
    done = command(evaluate, *words, at=home)
    assert done.code == 0, done.err
    stored = command(sample, f"checkpoint={RUN}", "n=66", "sampler.steps=2", at=home)
    again = command(evaluate, *words, f"metric.samples={stored.folder}", at=home)
    assert again.code == 0, again.err
    mine, theirs = (json.loads((home / run.folder / "metrics.json").read_text()) for run in (done, again))
    assert mine["figures"] == theirs["figures"] and mine["first_stage"] == theirs["first_stage"]


@pytest.mark.parametrize("name", ["inpaint", "deblur", "clip"])
def test_guidance_by_pixels_is_refused(home, command, name):
    text = ["prompt=a seven"] if name == "clip" else []
    assert refused(command(sample, *SAMPLE, f"guidance={name}", *text, at=home), "guidance", "latents")
    measured = [f"checkpoint={RUN}", "metric=quality", f"guidance@metric.guidance={name}"]
    assert refused(command(evaluate, *measured, at=home), "metric", "latents")


@pytest.mark.parametrize("metric", ["likelihood", "elbo", "ode", "ood", "log_density"])
def test_likelihoods_of_latents_are_refused_with_the_reason(home, command, metric):
    done = command(evaluate, f"checkpoint={RUN}", f"metric={metric}", at=home)
    assert refused(done, f"metric={metric}", "latents", "pixels") and not (home / "outputs/evaluate").exists()


@pytest.mark.parametrize("metric", ["auto", "zero_shot"])
def test_errors_and_classes_are_measured_in_latents(home, command, metric):
    done = command(evaluate, f"checkpoint={RUN}", f"metric={metric}", "n=10", at=home)
    assert done.code == 0, done.err


TINY = {"in_channels": 1, "out_channels": 1, "encoder_block_out_channels": [4, 4], "decoder_block_out_channels": [4, 4],
        "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1]}  # fmt: skip


def test_an_autoencoder_of_diffusers_stays_where_it_is(tmp_path, command):
    """It is not copied; a training in its latents samples, and is refused where it is missing or changed."""
    randomize(diffusers.AutoencoderTiny(**TINY)).save_pretrained(tmp_path / "tiny")
    done = command(main, *LATENT, "first_stage=autoencoder_tiny", "first_stage.path=tiny", at=tmp_path)
    assert done.code == 0, done.err
    assert not (tmp_path / RUN / COPY).exists()
    assert samples(tmp_path, command(sample, *SAMPLE, at=tmp_path)).shape == (6, 8, 8, 1)
    weights = tmp_path / "tiny/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({key: value + 1e-3 for key, value in tensors.items()}, weights)
    assert refused(command(sample, *SAMPLE, at=tmp_path), "hash")
    (tmp_path / "tiny").rename(tmp_path / "moved")
    assert refused(command(sample, *SAMPLE, at=tmp_path), "tiny")


def test_a_folder_of_diffusers_is_decoded_by_its_autoencoder(tmp_path, command):
    """Against the decoder of diffusers itself on the latents that the same command keeps."""
    kl = {"block_out_channels": [4, 8], "norm_num_groups": 2, "layers_per_block": 1,
          "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
    vae = randomize(diffusers.AutoencoderKL(**kl))
    save_pipeline(tmp_path / "pipeline", dit(), diffusers.DDIMScheduler())
    vae.save_pretrained(tmp_path / "pipeline/vae")
    words = ["checkpoint=pipeline", "n=4", "sampler=ddim", "sampler.steps=2"]
    latents = torch.from_numpy(samples(tmp_path, command(sample, *words, "latents=true", at=tmp_path)))
    own = command(sample, *words, at=tmp_path)
    decoded = command(sample, *words, "first_stage=autoencoder_kl", "first_stage.path=pipeline", at=tmp_path)
    wanted = to_uint8(vae.decode(latents / 0.18215).sample)
    assert latents.shape == (4, 4, 8, 8) and wanted.shape == (4, 16, 16, 3)
    for done in (own, decoded):
        assert numpy.abs(samples(tmp_path, done).astype(int) - wanted).max() <= 1
    randomize(diffusers.AutoencoderTiny(**TINY, latent_channels=3)).save_pretrained(tmp_path / "three")
    done = command(sample, *words, "first_stage=autoencoder_tiny", "first_stage.path=three", at=tmp_path)
    assert refused(done, "first_stage", "channels")


def test_words_and_latents_go_together(tmp_path, command):
    """Shapes from texts in latents: the judge of pictures reads what is decoded."""
    shapes = ["dataset=shapes", "dataset.train=64", "dataset.validation=8", "dataset.test=8", "training.batch_size=32",
              "training.images=64", "training.warmup_images=0", "backbone.channels=8", "backbone.head_channels=8"]  # fmt: skip
    assert (
        command(main, *shapes, "objective=autoencoder", "backbone.multipliers=[1,1]", "name=ae", at=tmp_path).code == 0
    )
    stage = ["first_stage=small_kl", "first_stage.path=outputs/train/ae/v001", "first_stage.memory=0"]
    network = ["condition=text", "condition.features=16", "sampler.steps=2"]
    done = command(main, *shapes, *stage, *network, at=tmp_path)
    assert done.code == 0, done.err
    drawn = command(
        sample, f"checkpoint={done.folder}", "prompts=[a red circle]", "n=4", "sampler.steps=2", at=tmp_path
    )
    assert samples(tmp_path, drawn).shape == (4, 16, 16, 3)
    words = [f"checkpoint={done.folder}", "metric=alignment", f"metric.samples={drawn.folder}"]
    assert command(evaluate, *words, at=tmp_path).code == 0


def test_an_uploaded_run_is_whole(home, command):
    """Its files alone sample the same pictures; no path of the autoencoder's run is in them."""
    diffguide.push(home / RUN, "ada/latents", "mit", folder=home / "uploaded")
    shutil.rmtree(home / STAGE)
    mine, theirs = (
        samples(home, command(sample, f"checkpoint={run}", *SAMPLE[1:], at=home)) for run in (RUN, "uploaded")
    )
    assert numpy.array_equal(mine, theirs)
    assert str(home).encode() not in (home / "uploaded" / COPY).read_bytes()
