"""A super-resolution model with noisy conditions by commands: resumed bit for bit, sampled at a noise level, refused."""

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffguide.sample import main as sample
from diffguide.train import main as train

WORDS = ["dataset=digits", "condition=low_resolution", "condition.factor=2", "condition.noise=0.5", "backbone=unet",
         "backbone.multipliers=[1]", "backbone.attention=[]", "backbone.blocks=1", "backbone.channels=8",
         "training.batch_size=32", "training.checkpoint_images=32", "training.learning_rate=1", "sampler.steps=2"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from contextlib import chdir

    place = tmp_path_factory.mktemp("cascade")
    Image.new("L", (4, 4), 180).save(place / "small.png")
    with chdir(place):
        train([*WORDS, "training.images=64", "name=whole"])
        train([*WORDS, "training.images=32", "name=begun"])
    return place


def test_a_resumed_run_draws_the_noise_of_an_undisturbed_one(folder, command):
    done = command(
        train, "resume=outputs/train/begun/v001", "training.images=64", "training.extend=as_if_planned", at=folder
    )
    assert done.code == 0, done.err
    whole, resumed = (
        load_file(folder / "outputs/train" / name / "v001/checkpoints/0000000064.safetensors")
        for name in ("whole", "begun")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole.keys() | resumed.keys())


def test_samples_have_the_noise_level_of_their_prompts(folder, command):
    found = []
    for prompt, seed in (("small.png", 0), ("{picture:small.png,noise:0.4}", 0), ("{picture:small.png,noise:0.4}", 1)):
        done = command(sample, "checkpoint=outputs/train/whole/v001", f"prompts=[{prompt}]", "n=2", f"seed={seed}",
                       "weights=objective", "sampler.steps=4", at=folder)  # fmt: skip
        assert done.code == 0, done.err
        with numpy.load(folder / done.folder / "samples.npz") as arrays:
            found.append(arrays["arr_0"].astype(int))
    assert abs(found[0] - found[1]).max() > 4
    assert abs(found[1][1] - found[2][0]).max() <= 1, "the noise is that of the seed"


def test_a_level_that_training_never_had_is_one_line(folder, command):
    done = command(sample, "checkpoint=outputs/train/whole/v001", "prompts=[{picture:small.png,noise:0.9}]", "n=2",
                   at=folder)  # fmt: skip
    assert done.code == 1 and "must be 0 to condition.noise=0.5, got 0.9" in done.err and done.err.count("\n") == 1
