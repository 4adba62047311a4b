"""diffguide-convert: published weights become runs of which every command works, and what it refuses."""

import json
import pickle
from pathlib import Path

import numpy
import pytest
import torch
from image_files import paint
from PIL import Image
from published_adm import Settings as ADMSettings
from published_adm import classifier, unet
from published_dit import Settings as DiTSettings
from published_dit import dit, sit
from published_layers import Drawn
from safetensors import safe_open

import diffguide
from diffguide.convert import main as convert
from diffguide.evaluate import main as evaluate
from diffguide.randomness import Noise
from diffguide.sample import main as sample

ADM = ADMSettings(classes=3, blocks=1, size=8, sides=(4,), heads=2)
TRANSFORMER = DiTSettings()
ADM_WORDS = ["architecture=adm", "architecture.size=8", "architecture.heads=2"]
CLASSIFIER_WORDS = ["architecture=adm_classifier", "architecture.size=8", "architecture.head_channels=32",
                    "architecture.cosine=false"]  # fmt: skip


def images(shape=(1, 3, 8, 8)):
    return torch.randn(shape), torch.zeros(1)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Drawn]:
    """Random weights of each family."""
    found = {name: Drawn(seed) for seed, name in enumerate(("adm", "classifier", "dit"))}
    unet(found["adm"], *images(), torch.zeros(1, dtype=torch.long), ADM)
    classifier(found["classifier"], *images(), ADM)
    dit(found["dit"], *images((1, 4, 8, 8)), torch.zeros(1, dtype=torch.long), TRANSFORMER)
    return found


@pytest.fixture(scope="module")
def home(drawn, tmp_path_factory) -> Path:
    """A folder with the weights as files, and the runs that the command made of them."""
    folder = tmp_path_factory.mktemp("home")
    torch.save(dict(drawn["adm"]), folder / "adm.pt")
    torch.save(dict(drawn["classifier"]), folder / "classifier.pt")
    torch.save({"model": {"x": torch.ones(1)}, "ema": dict(drawn["dit"])}, folder / "dit.pt")
    at = f"{folder}/"
    convert([f"{at}adm.pt", f"{at}adm", *ADM_WORDS])
    convert([f"{at}classifier.pt", f"{at}classifier", *CLASSIFIER_WORDS])
    convert([f"target={at}dit", "architecture=dit", f"{at}dit.pt", "architecture.heads=3"])  # in any order
    convert([f"{at}dit.pt", f"{at}sit", "architecture=sit", "architecture.heads=3", "class_names=[a,b,c,d,e]"])
    return folder


def linear_abar() -> torch.Tensor:
    """abar_k, k = 0..1000, of ADM's linear betas; that of k = 0 by the schedule's end, log-SNR 12."""
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return torch.cat([torch.tensor(12.0, dtype=torch.float64).sigmoid()[None], abar])


def initial_noise(run: Path, shape, n: int) -> torch.Tensor:
    """The normals of seeds 0 to n - 1 with which the command begins."""
    return Noise(range(n), shape, diffguide.load(run).schedule, "cpu", torch.float32).normal(1.0, 0)


def ddim(eps_of, x: torch.Tensor, abar: torch.Tensor, steps: int) -> torch.Tensor:
    """Song et al. 2020, arXiv 2010.02502, eq. 12 with eta 0, from index 999 in equal steps."""
    x = (1 - abar[-1]).sqrt().float() * x
    for step in range(steps):
        k, s = (1000 - i * 1000 // steps for i in (step, step + 1))
        eps = eps_of(x, torch.full((len(x),), float(k - 1)))
        x_0 = (x - (1 - abar[k]).sqrt().float() * eps) / abar[k].sqrt().float()
        x = abar[s].sqrt().float() * x_0 + (1 - abar[s]).sqrt().float() * eps
    return x


def test_samples_of_dit_are_those_of_a_ddim_loop_over_the_published_network(home, drawn, command):
    """20 steps with classifier-free guidance; samples.npz has the latents as they are."""
    done = command(sample, "checkpoint=dit", "guidance=cfg", "guidance.scale=3", "sampler=ddim", "sampler.steps=20", "n=5",
                   "labels=balanced", at=home)  # fmt: skip
    assert done.code == 0 and "they are latents" in done.err and "[n, 4, 8, 8]" in done.err, done.err
    y, null = torch.arange(5), torch.full((5,), 5)

    def eps_of(x, t):
        strong, weak = (dit(drawn["dit"], x, t, labels, TRANSFORMER)[:, :4] for labels in (y, null))
        return weak + 3 * (strong - weak)

    wanted = ddim(eps_of, initial_noise(home / "dit", (4, 8, 8), 5), linear_abar(), 20)
    with numpy.load(home / done.folder / "samples.npz") as arrays:
        found, labels = torch.from_numpy(arrays["arr_0"]), arrays["arr_1"]
    assert found.dtype == torch.float32 and found.shape == (5, 4, 8, 8) and labels.tolist() == [0, 1, 2, 3, 4]
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    with Image.open(home / done.folder / "grid.png") as grid:
        assert grid.mode == "RGB"


def test_samples_of_sit_are_those_of_an_euler_loop_over_the_published_velocity(home, drawn, command):
    """dx/dt = v from noise at t = 0 to data at t = 1, at the times at which our grid ends."""
    done = command(sample, "checkpoint=sit", "guidance=none", "sampler=euler", "sampler.steps=10", "n=3", "labels=[e]",
                   "sampler/grid=uniform_t", at=home)  # fmt: skip
    assert done.code == 0, done.err
    u = torch.tensor([12.0, -12.0], dtype=torch.float64).div(-2).sigmoid()  # sigma / (alpha + sigma) at both ends
    times = 1 - torch.linspace(float(u[1]), float(u[0]), 11, dtype=torch.float64)
    x = (1 - times[0]).float() * initial_noise(home / "sit", (4, 8, 8), 3)
    y = torch.full((3,), 4)
    for t, s in zip(times[:-1], times[1:]):
        x = x + (s - t).float() * sit(drawn["dit"], x, torch.full((3,), float(t)), y, TRANSFORMER)
    with numpy.load(home / done.folder / "samples.npz") as arrays:
        assert numpy.abs(arrays["arr_0"] - x.numpy()).max() < 1e-4 * float(x.abs().max())


def test_images_of_adm_are_those_of_a_ddim_loop(home, drawn, command):
    done = command(sample, "checkpoint=adm", "sampler=ddim", "sampler.steps=10", "n=3", at=home)
    assert done.code == 0, done.err
    y = torch.arange(3)
    wanted = ddim(
        lambda x, t: unet(drawn["adm"], x, t, y, ADM)[:, :3],
        initial_noise(home / "adm", (3, 8, 8), 3),
        linear_abar(),
        10,
    )
    with numpy.load(home / done.folder / "samples.npz") as arrays:
        found = arrays["arr_0"].astype(int)
    assert numpy.abs(found - diffguide.to_uint8(wanted).astype(int)).max() <= 1 and found.std() > 10


def test_the_run_folder_says_where_it_comes_from(home):
    assert sorted(path.name for path in (home / "dit").iterdir()) == ["checkpoints", "config.yaml"]
    with safe_open(home / "dit/checkpoints/0000000000.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["diffguide"])
    origin = facts["origin"]
    assert (
        origin["family"] == "DiT"
        and origin["file"] == "dit.pt"
        and origin["part"] == "ema"
        and len(origin["sha256"]) == 64
    )
    assert facts["class_names"] == ["0", "1", "2", "3", "4"] and facts["shape"] == [4, 8, 8] and facts["images"] == 0
    text = (home / "adm/config.yaml").read_text()
    assert "&id" not in text and "quantization_levels: 256" in text  # bytes, as likelihoods need to know


def test_a_converted_classifier_guides_a_converted_generator(home, command):
    guided = [
        "checkpoint=adm",
        "guidance=classifier",
        "guidance.classifier=classifier",
        "sampler=ddim",
        "sampler.steps=3",
        "n=3",
    ]
    done = command(sample, *guided, at=home)
    plain = command(sample, *guided[:1], *guided[3:], at=home)
    assert done.code == plain.code == 0, done.err
    assert (home / done.folder / "samples.npz").read_bytes() != (home / plain.folder / "samples.npz").read_bytes()


def test_the_learned_variance_is_used(home, command):
    done = command(
        sample, "checkpoint=adm", "sampler=ddpm", "sampler.variance=learned", "sampler.steps=3", "n=2", at=home
    )
    assert done.code == 0, done.err


def test_a_converted_model_is_measured_on_images_of_the_user(home, tmp_path, command):
    for number in range(30):
        paint(tmp_path / "data" / str(number % 3) / f"{number}.png", number, (8, 8))
    data = ["dataset=image_folder", f"dataset.path={tmp_path}/data", "dataset.num_classes=3", "dataset.size=8"]
    done = command(evaluate, f"checkpoint={home}/adm", "metric=denoising", *data, "split=train", "n=8", at=tmp_path)
    assert done.code == 0, done.err


MISTAKES = {
    "no architecture": ([], "neither architecture and to: give architecture=<family>"),
    "no words": (["~source", "architecture=dit"], "source"),
    "a misspelt key": ([*ADM_WORDS, "architecture.sise=8"], "architecture.size"),
    "an unknown family": (["architecture=adn"], "there is no option architecture=adn; nearest: adm"),
    "a third word": ([*ADM_WORDS, "more"], "cannot read 'more'"),
    "another family": (["architecture=dit"], "adm.pt: it has no tensor x_embedder.proj.weight, which DiT has"),
    "the family is named": (["architecture=sit"], "its tensors have the names of ADM (architecture=adm)"),
    "a half of it": (["architecture=adm_classifier"], "its tensors have the names of ADM (architecture=adm)"),
    "no architecture of ours": (["--config-dir", "own", "architecture=linear"], "is no Architecture"),
    "another number of heads": (["architecture=adm", "architecture.heads=7"], "which 7 heads do not divide"),
    "a value out of range": (["architecture=adm", "architecture.size=0"], "architecture: size must be"),
    "another side": (["architecture=adm", "architecture.heads=2", "architecture.size=3"], "architecture: 2 multipliers halve"),
    "too few names": ([*ADM_WORDS, "class_names=[cat,dog]"], "class_names: there are 2 names, and the network has 3 classes"),
    "no file of names": ([*ADM_WORDS, "class_names=names.txt"], "class_names: cannot read names.txt"),
    "a name with a slash": ([*ADM_WORDS, "name=a/b"], "name must be the name of a folder"),
    "cfg without a null row": (None, "needs a model"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(home, tmp_path, command, name):
    words, message = MISTAKES[name]
    if words and "--config-dir" in words:
        own = home / "own/architecture"
        own.mkdir(parents=True)
        (own / "linear.yaml").write_text("# another class\n_target_: diffguide.schedules.discrete.Linear\n")
        words = ["--config-dir", str(own.parent), *words[2:]]
    if words is None:
        done = command(sample, f"checkpoint={home}/adm", "guidance=cfg", at=tmp_path)
    else:
        done = command(convert, f"{home}/adm.pt", "new", *words, at=tmp_path)
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1, done.err
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_is_no_generator(home, tmp_path, command):
    done = command(convert, f"{home}/classifier.pt", "new", *ADM_WORDS, at=tmp_path)
    assert done.code == 1 and "its tensors have the names of ADM's classifier (architecture=adm_classifier)" in done.err


def test_nothing_is_overwritten_and_nothing_is_left_half_written(home, tmp_path, command):
    (tmp_path / "old").mkdir()
    done = command(convert, f"{home}/adm.pt", "old", *ADM_WORDS, at=tmp_path)
    assert done.code == 1 and "target old exists, and nothing is overwritten" in done.err
    (tmp_path / "file").write_text("")
    done = command(convert, f"{home}/adm.pt", "file/run", *ADM_WORDS, at=tmp_path)
    assert done.code == 1 and done.err.startswith("diffguide-convert: target: cannot write file/run")
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == ["file", "old"] and list((tmp_path / "old").iterdir()) == []
    )


def test_a_pickle_is_refused_and_the_message_says_how_to_go_on(tmp_path, command):
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(print))
    done = command(convert, "network.pkl", "new", *ADM_WORDS, at=tmp_path)
    assert done.code == 1 and "holds code or objects" in done.err and "safetensors.torch.save_file" in done.err
    assert done.err.count("\n") == 1 and not (tmp_path / "new").exists()


def test_names_of_classes_come_from_a_file(home, tmp_path, command):
    (tmp_path / "names.txt").write_text("cat\ndog\nfish\n")
    done = command(convert, f"{home}/adm.pt", "new", *ADM_WORDS, "class_names=names.txt", "name=pets", at=tmp_path)
    assert done.code == 0 and done.out == "new\n", done.err
    assert "ADM: " in done.err and "examples [3, 8, 8], 3 classes, learned variance" in done.err
    done = command(sample, "checkpoint=new", "labels=[fish]", "n=1", "sampler.steps=1", at=tmp_path)
    assert done.code == 0 and str(done.folder) == "outputs/sample/pets/v001", done.err
