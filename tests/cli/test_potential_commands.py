"""Potential guidance from the command line: every file, a function of the user, inpainting digits, mistakes."""

import re
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diffguide.checkpoints.allowlist import CheckpointError, validate_config
from diffguide.config.build import build, config_dir, fill_label_dropout
from diffguide.datasets.digits import Digits
from diffguide.guidance.potentials.inverse import Inpaint
from diffguide.guidance.potentials.pictures import Box, FileMask, FilePicture, TestPicture
from diffguide.models.protocols import SamplingError
from diffguide.oracles import Empirical
from diffguide.sample import main
from diffguide.schedules import EDM
from diffguide.train import main as train

FILES = ["potential", "noisy_potential", "mpgd", "freedom", "universal", "lgd", "tfg", "dps", "repaint", "inpaint",
         "super_resolution", "deblur"]  # fmt: skip
DIGITS = ["oracle=empirical", "n=6", "sampler.steps=10"]


def samples(folder: Path) -> numpy.ndarray:
    with numpy.load(folder / "samples.npz") as arrays:
        return arrays["arr_0"][..., 0] / 127.5 - 1


def composed(name: str, *overrides: str):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose(name, list(overrides))


DATA = Digits(1, 8, 10)
DENOISER = Empirical(DATA.train.x[:50], DATA.train.y[:50], EDM(12.4, -8.7), 0.0)


@pytest.mark.parametrize("name", FILES)
def test_every_potential_guidance_file_builds(name):
    """With its defaults; training with it drops no labels."""
    cfg = composed("train", f"guidance={name}")
    fill_label_dropout(cfg)
    assert type(build(cfg.guidance, "guidance", DENOISER)).needs_null is False and cfg.p_uncond == 0.0


@pytest.mark.parametrize("potential", ["inpaint", "super_resolution", "deblur"])
def test_every_method_accepts_every_inverse_problem(potential):
    guided = build(
        composed("sample", "guidance=mpgd", f"guidance/potential={potential}").guidance, "guidance", DENOISER
    )
    assert type(guided).__name__ == "MPGD" and guided.potential.measurement.shape[1] == 1


def test_masks_and_pictures_are_options(tmp_path):
    numpy.savez(tmp_path / "picture.npz", numpy.zeros((1, 8, 8)))
    chosen = ["guidance/potential/picture=file", f"guidance.potential.picture.path={tmp_path}/picture.npz",
              "guidance/potential/mask=random", "guidance.potential.mask.hidden=0.2"]  # fmt: skip
    guided = build(composed("sample", "guidance=inpaint", *chosen).guidance, "guidance", DENOISER)
    assert abs(float(guided.potential.measurement.mean())) < 0.05 and int((~guided.potential.known).sum()) < 32
    chosen = [
        "guidance.potential.picture.label=7",
        "guidance.potential.picture.index=2",
        "guidance.potential.noise=1e-6",
    ]
    seven = build(composed("sample", "guidance=inpaint", *chosen).guidance, "guidance", DENOISER).potential
    expected = DATA.test.x[(DATA.test.y == 7).nonzero()[2, 0]]
    numpy.testing.assert_allclose(seven.measurement[0, 0, 4:], expected[0, 4:], atol=1e-5)


def test_inpainting_digits_keeps_the_known_pixels(tmp_path, command):
    """The lower half of the first test 3: RePaint keeps it to a grey value, in a picture that is a training digit above."""
    three = DATA.test.x[(DATA.test.y == 3).nonzero()[0, 0], 0].numpy()
    chosen = ["guidance.potential.picture.label=3", "guidance.potential.noise=1e-6", "labels=[3]", "sampler=ddpm"]
    done = command(main, *DIGITS, "guidance=repaint", *chosen, at=tmp_path)
    assert done.code == 0, done.err
    numpy.testing.assert_allclose(
        samples(tmp_path / done.folder)[:, 4:], numpy.broadcast_to(three[4:], (6, 4, 8)), atol=0.012
    )


@pytest.mark.parametrize("name", ["inpaint", "dps guidance/potential=inpaint guidance.scale=2"])
def test_posterior_samples_of_digits_fit_what_is_known(tmp_path, command, name):
    """The exact denoiser of the training digits, guided by pixels of a training-like 3, picks digits near it."""
    three = DATA.test.x[(DATA.test.y == 3).nonzero()[0, 0], 0].numpy()
    chosen = ["guidance.potential.picture.label=3", "labels=null", "sampler.steps=20"]

    def distance(*guidance: str) -> float:
        done = command(main, *DIGITS, "n=20", *guidance, "labels=null", "sampler.steps=20", at=tmp_path)
        assert done.code == 0, done.err
        return float(numpy.square(samples(tmp_path / done.folder) - three)[:, 4:].mean())

    assert distance(*f"guidance={name}".split(), *chosen) < 0.75 * distance()


MINE = """
def right(x, y):
    return 3.0 * x[:, 0]


def flat(x, y):
    return x


class Right:
    def __call__(self, x, y):
        return right(x, y)
"""


def test_a_function_of_the_user_is_a_potential(tmp_path, command, monkeypatch):
    """A function and a class of callables give the same samples, moved to the right; a wrong shape is one line."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    means = []
    for guidance in (["none"], ["potential", "mine.right"], ["potential", "mine.Right"]):
        chosen = [f"guidance={guidance[0]}", *(f"guidance.potential._target_={name}" for name in guidance[1:])]
        done = command(main, "oracle=gmm2d", "n=100", "sampler.steps=8", *chosen, at=tmp_path)
        assert done.code == 0, done.err
        with numpy.load(tmp_path / done.folder / "samples.npz") as arrays:
            means.append(arrays["arr_0"].mean(0))
    assert means[1][0] > means[0][0] + 0.02 and (means[1] == means[2]).all()
    done = command(
        main, "oracle=gmm2d", "guidance=potential", "guidance.potential._target_=mine.flat", "n=4", at=tmp_path
    )
    assert done.code == 1 and len(done.err.strip().splitlines()[-1]) < 400 and "Traceback" not in done.err
    assert "flat must return one number per row, [4] for x [4, 2], got [4, 2]" in done.err


LATE = """
def late(x, y):
    if len(x) > 2 and (x.std() < 4).all():
        raise KeyError("never seen before")
    return x.flatten(1).sum(1)
"""


def test_a_potential_that_raises_does_not_stop_a_training(tmp_path, command, monkeypatch):
    """An error in the first call is reported before the run starts; a later one only skips the pictures."""
    (tmp_path / "mine.py").write_text(MINE + LATE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    said = ["experiment=gmm2d", "guidance=potential", "training.images=64", "training.batch_size=32", "sampler.steps=3"]
    done = command(train, *said, "guidance.potential._target_=mine.flat", at=tmp_path)
    assert done.code == 1 and "guidance.potential: flat must return one number per row" in done.err
    assert not (tmp_path / "outputs").exists()
    done = command(train, *said, "guidance.potential._target_=mine.late", at=tmp_path)
    assert done.code == 0, done.err
    assert (
        "no samples: guidance.potential: late raised KeyError: 'never seen before'" in done.err
        and "samples: none" in done.err
    )
    assert (tmp_path / done.folder / "checkpoints/0000000064.safetensors").exists()


@pytest.mark.parametrize("name, sentence", [
    ("raises", r"guidance.potential: raises raised KeyError: 'lost' \(line 3 of .*theirs.py\), for x \[4, 2\]"),
    ("one", r"one raised TypeError: one\(\) takes 1 positional argument but 2 were given, for x"),
    ("steep", r"the gradient of steep is not finite for x \[4, 2\] between"),
    ("rasies", r"_target_: cannot import theirs.rasies: .*; nearest: raises"),
    ("number", "guidance.potential._target_ must name a function or a class, theirs.number is 3"),
    ("Needs", r"argument: 'k'; set \+guidance.potential"),
])  # fmt: skip
def test_an_exception_in_a_function_of_the_user_is_one_line(tmp_path, command, monkeypatch, name, sentence):
    """The message has the line of the user's file; a run without samples leaves no folder."""
    (tmp_path / "theirs.py").write_text(
        "number = 3\ndef raises(x, y):\n    raise KeyError('lost')\ndef one(x):\n    return x.sum(1)\n"
        "def steep(x, y):\n    return (0 * x).sqrt().sum(1)\nclass Needs:\n    def __init__(self, k):\n        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    chosen = ["oracle=gmm2d", "guidance=potential", f"guidance.potential._target_=theirs.{name}", "n=4"]
    done = command(main, *chosen, at=tmp_path)
    assert done.code == 1 and re.search(sentence, done.err) and "Traceback" not in done.err, done.err
    assert len([line for line in done.err.splitlines() if "diffguide-sample:" in line]) == 1
    assert not list(tmp_path.glob("outputs/sample/*/*"))


@pytest.mark.parametrize("chosen, sentence", [
    (["guidance=cfg", "labels=null"], "remove labels=null"),
    (["guidance=cfg", "guidance.interval=[100,200]"], "none of the noise levels 80 to "),
    (["guidance=potential", "guidance.interval=[0,0.001]", "sampler=dpm2"], "none of the noise levels"),
    (["guidance=cfg"], None), (["guidance=none", "labels=null"], None), (["guidance=potential", "labels=null"], None),
    (["guidance=negative", "guidance.condition=1", "labels=null"], None),
])  # fmt: skip
def test_guidance_without_effect_prints_a_note(tmp_path, command, chosen, sentence):
    done = command(main, "oracle=gmm2d", "sampler.steps=3", "n=2", *chosen, at=tmp_path)
    assert done.code == 0 and ("guidance has no effect" in done.err) == (sentence is not None), done.err
    assert sentence is None or sentence in done.err


def npz(path: Path, array) -> str:
    numpy.savez(path, array)
    return str(path)


def test_pictures_and_masks_must_fit_the_model(tmp_path):
    """Three channels for a grey model, bytes in place of [-1, 1], empty and truncated files are errors."""
    colours = Inpaint(
        FilePicture(npz(tmp_path / "colours.npz", numpy.zeros((3, 8, 8))), False), Box(0, 0, 2, 2), 0.1, 0
    )
    with pytest.raises(SamplingError, match="Inpaint cannot measure"):
        colours.residual(torch.zeros(4, 1, 8, 8))
    with pytest.raises(ValueError, match=r"must hold a picture with values in \[-1, 1\], has 0 to 255"):
        FilePicture(npz(tmp_path / "bytes.npz", numpy.linspace(0, 255, 64).reshape(1, 8, 8)), False)
    FilePicture(npz(tmp_path / "vector.npz", numpy.array([3.0, -4.0])), False)
    for name, content in (("empty.npz", b""), ("torn.npz", b"PK\x03\x04 torn")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"path must name an .npz with one array of numbers, got .*{name}"):
            FileMask(str(tmp_path / name))
    with pytest.raises(ValueError, match="label: there is no test example of class 17, the classes are 0 to 9"):
        TestPicture(DATA, 17, 0)


@pytest.mark.parametrize("chosen, sentence", [
    (["guidance=dps", "oracle=gmm2d"], "cannot measure [64, 2]"),
    (["guidance=dps", "guidance/potential=brightness"], "guidance=dps needs a potential that is LinearProblem, got Brightness"),
    (["guidance=inpaint", "guidance.potential.mask.top=-1"], "guidance.potential.mask: top must be"),
    (["guidance=repaint", "guidance/potential=deblur"], "guidance=repaint needs a potential that is Inpaint, got Deblur"),
    (["guidance=inpaint", "guidance.potential.noise=0"], "noise must be"),
    (["guidance=inpaint", "guidance/potential/picture=file"], "guidance.potential.picture.path must be given"),
    (["guidance=clip"], "guidance=clip needs a text: prompt="),
])  # fmt: skip
def test_mistakes_in_potentials_are_one_line(tmp_path, command, chosen, sentence):
    oracle = [] if any(text.startswith("oracle=") for text in chosen) else ["oracle=empirical"]
    done = command(main, *oracle, "sampler.steps=4", *chosen, at=tmp_path)
    assert done.code == 1 and sentence in done.err and "Traceback" not in done.err


def test_a_run_with_a_potential_may_be_resumed(tmp_path, monkeypatch):
    """A saved potential is validated as every other node: a function of the user needs trust."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("potential", "tfg", "dps", "inpaint"):
        validate_config(OmegaConf.to_container(composed("sample", f"guidance={name}").guidance), "guidance")
    node = OmegaConf.to_container(
        composed("sample", "guidance=mpgd", "guidance.potential._target_=mine.right").guidance
    )
    with pytest.raises(CheckpointError, match=r"mine.right, which is not diffguide's; .*trust=\[mine.right\]"):
        validate_config(node, "guidance")
    validate_config(node, "guidance", ["mine.right"])
    with pytest.raises(CheckpointError, match="_partial_"):
        validate_config({**node, "_partial_": True}, "guidance", ["mine.right"])
