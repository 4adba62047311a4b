"""diffguide-sample: what it writes, that image i depends on its seed alone, and what it refuses."""

import csv
import json
from contextlib import chdir
from pathlib import Path

import numpy
import pytest
import torch
from closed_forms import ExactMixture, gaussian
from PIL import Image
from short_run import SMALL

import diffguide
from diffguide.checkpoints import store as checkpoints
from diffguide.class_names import resolve_labels
from diffguide.guidance import ClassifierFree
from diffguide.models.protocols import Denoiser
from diffguide.sample import main
from diffguide.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun, generate
from diffguide.samplers.grids import Karras, UniformLogSNR, UniformT
from diffguide.sampling.sources import training_data
from diffguide.schedules import EDM
from diffguide.train import main as train

KARRAS = Karras(rho=7.0, noise_level_min=None, noise_level_max=None)
SAMPLERS = {
    "ddpm": DDPM(10, UniformT(), 0.0), "ddpm large": DDPM(10, UniformT(), 1.0), "ddim": DDIM(10, UniformT(), 0.0),
    "ddim eta": DDIM(10, UniformT(), 0.5), "euler": Euler(10, KARRAS), "heun": Heun(5, KARRAS),
    "dpmpp_2m": DPMpp2M(10, UniformLogSNR()),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model of digits and one of the eight Gaussians that never dropped a label, each of a few steps."""
    folder = tmp_path_factory.mktemp("home")
    with chdir(folder):
        train([*SMALL, "training.images=512", "training.batch_size=32", "training.learning_rate=0.01",
               "training.sample_images=512"])  # fmt: skip
        train(["experiment=gmm2d", "guidance=none", "training.images=2048", "training.batch_size=1024",
               "training.sample_images=2048"])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def opinionated(home) -> Denoiser:
    """That model of digits with weights that make every image depend on its noise and class at every step."""
    model, rng = diffguide.load(home / "outputs/train/digits/v001"), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=rng)
    return model


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_an_image_depends_on_its_seed_only(opinionated, sampler):
    guided = ClassifierFree(opinionated, 3.0, (0.0, float("inf")))
    seeds, labels = list(range(100, 124)), [i % 10 for i in range(24)]
    together = torch.cat(list(generate(guided, sampler, seeds, labels, (1, 8, 8), 24)))
    by_seven = torch.cat(list(generate(guided, sampler, seeds, labels, (1, 8, 8), 7)))
    alone = torch.cat(list(generate(guided, sampler, seeds[15:17], labels[15:17], (1, 8, 8), 1)))
    torch.testing.assert_close(by_seven, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, together[15:17], rtol=0, atol=1e-5)
    assert (together[0] - together[10]).abs().max() > 0.1  # another seed, the same class, another image


def test_the_command_of_the_front_page_runs(home, command):
    done = command(main, "checkpoint=outputs/train/digits/v001", "guidance=cfg", "guidance.scale=3", "sampler=heun",
                   "sampler.steps=18", "name=literal", at=home)  # fmt: skip
    assert done.code == 0, done.err
    assert str(done.folder) == "outputs/sample/literal/v001"
    folder = home / done.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "config.yaml",
        "grid.png",
        "manifest.jsonl",
        "samples.npz",
    ]
    with numpy.load(folder / "samples.npz") as arrays:
        assert arrays["arr_0"].dtype == numpy.uint8 and arrays["arr_0"].shape == (80, 8, 8, 1)
        assert arrays["arr_1"].tolist() == [i % 10 for i in range(80)]
    header, *lines = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    assert header["guidance"]["scale"] == 3 and header["sampler"]["steps"] == 18
    assert header["network_evaluations"] == 2 * 2 * 18  # two sides, two per Heun step
    assert len(header["checkpoint_sha256"]) == 64 and header["versions"]["torch"] == torch.__version__
    assert lines[17] == {"index": 17, "seed": 17, "label": 7, "class": "7"} and len(lines) == 80
    assert Image.open(folder / "grid.png").size[0] > 8 * 48


def test_one_image_is_sampled(home, command):
    common = ["checkpoint=outputs/train/digits/v001", "guidance=cfg", "sampler=ddpm", "sampler.steps=8", "name=alone"]
    many = command(main, *common, "n=12", "batch_size=5", at=home)
    one = command(main, *common, "n=1", "seed=7", "labels=[7]", at=home)
    arrays = [numpy.load(home / done.folder / "samples.npz")["arr_0"].astype(int) for done in (many, one)]
    assert abs(arrays[0][7] - arrays[1][0]).max() <= 1  # one grey level, where rounding to bytes may tip over


def test_a_network_in_bfloat16_gives_nearly_the_same_images(home, command):
    common = ["checkpoint=outputs/train/digits/v001", "sampler.steps=3", "n=4"]
    runs = [command(main, *common, f"engine.precision={p}", at=home) for p in ("32-true", "bf16-true")]
    arrays = [numpy.load(home / done.folder / "samples.npz")["arr_0"].astype(int) for done in runs]
    assert 0 < abs(arrays[0] - arrays[1]).max() <= 20
    header = json.loads((home / runs[1].folder / "manifest.jsonl").read_text().splitlines()[0])
    assert header["precision"] == "bf16-true"


def test_a_sweep_leaves_a_contact_sheet_and_a_table(home, command):
    done = command(main, "-m", "checkpoint=outputs/train/digits/v001", "guidance=cfg", "guidance.scale=0,1,2,4,8",
                   "sampler.steps=5", "n=20", "name=sweep", at=home)  # fmt: skip
    assert done.code == 0, done.err
    assert str(done.folder) == "outputs/sample/sweep/sweep_v001-v005"
    assert done.out.splitlines()[:5] == [f"outputs/sample/sweep/v00{k}" for k in range(1, 6)]
    with open(home / done.folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["guidance.scale"] for row in rows] == ["0", "1", "2", "4", "8"]
    # wide steps: one; one side at 0 and 1
    assert [float(row["network_evaluations"]) for row in rows] == [
        7,
        7,
        14,
        14,
        14,
    ]
    sheet = Image.open(home / done.folder / "contact_sheet.png")
    assert sheet.size[0] > 5 * 48 and sheet.size[1] > 20 * 48
    assert not (home / "outputs/.sweeps").exists()


def test_a_sweep_may_vary_models_and_labels(home, command):
    """Two runs whose folders have one name, and labels that differ from run to run."""
    models = "checkpoint=outputs/train/digits/v001,./outputs/train/digits/v001"
    done = command(main, "-m", models, "labels=[3],balanced", "n=6", "sampler.steps=2", "name=models", at=home)
    assert done.code == 0, done.err
    with open(home / done.folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["labels"] for row in rows] == ["[3]", "balanced"] * 2
    assert Image.open(home / done.folder / "contact_sheet.png").size[0] > 4 * 48


def test_a_failing_job_does_not_stop_a_sweep(home, command):
    done = command(main, "-m", "checkpoint=outputs/train/digits/v001", "guidance=cfg", "guidance.scale=1,abc,2", "n=4",
                   "sampler.steps=2", "name=failing", at=home)  # fmt: skip
    assert (
        done.code == 1 and "guidance.scale must be a number, got 'abc'" in done.err and "1 of 3 runs failed" in done.err
    )
    assert str(done.folder) == "outputs/sample/failing/sweep_v001-v002"
    assert not (home / "outputs/.sweeps").exists()


def test_exact_data_at_the_end_needs_no_noise():
    """A schedule that ends at sigma = 0: the last ancestral step draws nothing."""
    exact = ExactMixture(gaussian([0.0], [[0.25]]), EDM(float("inf"), -8.0))
    samples = torch.cat(list(generate(exact, DDPM(300, UniformT(), 0.0), range(500), None, (1,), 500)))
    assert samples.isfinite().all() and 0.2 < samples.var() < 0.3


def test_vectors_are_written_as_they_are(home, command):
    done = command(main, "checkpoint=outputs/train/gmm2d/v001", "sampler=heun", "n=40", "labels=all", at=home)
    assert done.code == 0, done.err
    with numpy.load(home / done.folder / "samples.npz") as arrays:
        assert arrays["arr_0"].dtype == numpy.float32 and arrays["arr_0"].shape == (40, 2)
        assert arrays["arr_1"].tolist() == [i // 10 for i in range(40)]
    data = training_data(checkpoints.read(checkpoints.find(home / "outputs/train/gmm2d/v001"))[1]["config"])
    assert data.shape == (20000, 2)  # what the plot lies over
    picture = numpy.asarray(Image.open(home / done.folder / "grid.png").convert("RGB"))
    assert (picture == 204).all(axis=2).sum() > 1000  # its grey


REFUSED = {
    "no checkpoint": ([], "checkpoint is missing"),
    "nowhere": (["checkpoint=nowhere"], "no checkpoint at nowhere"),
    "several": (["checkpoint=[a,b]"], "use -m checkpoint=a,b"),
    "several without -m": (
        ["checkpoint=a/v001,b/v001"],
        "use -m checkpoint=a/v001,b/v001",
    ),
    "unknown class": (["checkpoint=outputs/train/digits/v001", "labels=[12]"], "there is no class 12"),
    "no class": (["checkpoint=outputs/train/digits/v001", "labels=-1"], "labels=null is no condition"),
    "unknown name": (["checkpoint=outputs/train/digits/v001", "labels=[cat]"], "there is no class 'cat'"),
    "no samples": (["checkpoint=outputs/train/digits/v001", "n=0"], "n must be a whole number"),
    "too many samples": (["checkpoint=outputs/train/digits/v001", "n=10000000000000"], "n must be at most 10^7"),
    "too many steps": (["checkpoint=outputs/train/digits/v001", "sampler.steps=1000000000"], "steps must be a whole"),
    "no batch": (["checkpoint=outputs/train/digits/v001", "batch_size=0"], "batch_size must be a whole number"),
    "no steps": (["checkpoint=outputs/train/digits/v001", "sampler.steps=0"], "steps must be a whole number"),
    "never dropped": (["checkpoint=outputs/train/gmm2d/v001", "guidance=cfg"], "train with guidance=cfg"),
    "no null": (["checkpoint=outputs/train/gmm2d/v001", "labels=null"], "labels=null needs"),
    "bad interval": (
        ["checkpoint=outputs/train/digits/v001", "guidance=cfg", "guidance.interval=[3,1]"],
        "interval must be",
    ),
    "a text for a number": (
        ["checkpoint=outputs/train/digits/v001", "sampler.steps=abc"],
        "sampler.steps must be a whole",
    ),
    "no folder": (["checkpoint=3"], "no checkpoint at 3"),
    "unknown precision": (
        ["checkpoint=outputs/train/digits/v001", "engine.precision=64-true"],
        "engine.precision must be",
    ),
    "seed too large": (["checkpoint=outputs/train/digits/v001", "seed=18446744073709551615"], "seed must be"),
    "no truth value": (["checkpoint=outputs/train/digits/v001", "png=1"], "png must be true or false, got 1"),
    "no pictures": (["checkpoint=outputs/train/gmm2d/v001", "png=true"], "png=true needs images"),
    "misspelt": (["checkpoint=outputs/train/digits/v001", "sampler.stps=3"], "stps"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_invalid_input_is_one_line(home, command, arguments, message):
    done = command(main, *arguments, at=home)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err
    assert done.out == "" and len([line for line in done.err.splitlines() if line]) <= 6


def test_labels_are_balanced_all_or_a_list():
    assert resolve_labels("balanced", 5, ["a", "b", "c"]) == [0, 1, 2, 0, 1]
    assert resolve_labels("all", 5, ["a", "b", "c"]) == [0, 0, 1, 1, 2]
    assert resolve_labels(["c", 0], 3, ["a", "b", "c"]) == [2, 0, 2]
    assert resolve_labels("b", 2, ["a", "b", "c"]) == [1, 1]
    assert resolve_labels(None, 2, ["a"]) is None and resolve_labels("all", 2, []) is None
    with pytest.raises(ValueError, match="no class 3"):
        resolve_labels([3], 1, ["a", "b", "c"])
