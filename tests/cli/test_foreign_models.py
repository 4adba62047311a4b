"""Models of diffusers under the commands: sampling, evaluation, fine-tuning, resuming."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy
import pytest
import torch
from diffusers_folders import TOKENS, save_pipeline, unet
from omegaconf import OmegaConf
from PIL import Image
from short_run import SHORT

import diffguide
from diffguide.checkpoints import store as checkpoints
from diffguide.evaluate import main as evaluate
from diffguide.sample import main as sample
from diffguide.train import main as train

STEPS = ["training.images=64", "training.batch_size=16", "training.learning_rate=1e-3", "training.warmup_images=16",
         "training.checkpoint_images=32", "training.sample_images=1000", "sampler.steps=2"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A conditional U-Net of diffusers whose fourth row means no class, and images of three classes."""
    place = tmp_path_factory.mktemp("foreign")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    save_pipeline(place / "pipe", unet(num_class_embeds=4), scheduler)
    rng = numpy.random.default_rng(0)
    for name in ("ant", "bee", "cow"):
        (place / "images" / name).mkdir(parents=True)
        for index in range(12):
            picture = rng.integers(0, 255, (16, 16, 3), dtype=numpy.uint8)
            Image.fromarray(picture).save(place / "images" / name / f"{index}.png")
    return place


def images(folder: Path, count: int = 3) -> list[str]:
    """Without dataset.size and dataset.channels, which are those of the model."""
    return [f"dataset.path={folder / 'images'}", "dataset=image_folder", f"dataset.num_classes={count}"]


def rows(path: str) -> torch.Tensor:
    return diffguide.load(path).backbone.network.class_embedding.weight


def test_samples_of_a_folder_are_those_of_a_loop_over_its_network(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "guidance=cfg",
        "guidance.scale=2",
        "sampler=ddim",
        "sampler.steps=20",
        "null_class=3",
        "n=3",
        "batch_size=2",
    ]
    sample([f"checkpoint={folder / 'pipe'}", *words])
    run = Path("outputs/sample/pipe/v001")
    with numpy.load(run / "samples.npz") as arrays:
        pictures = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
    model = diffguide.load(folder / "pipe", null_class=3)
    network, scheduler = model.backbone.network, diffusers.DDIMScheduler.from_pretrained(folder / "pipe" / "scheduler")
    scheduler.set_timesteps(20)
    x, y = torch.cat([diffguide_noise(model, seed) for seed in range(3)]), torch.tensor([0, 1, 2])
    for step in scheduler.timesteps:
        strong, weak = (network(x, step, class_labels=labels).sample for labels in (y, torch.full((3,), 3)))
        x = scheduler.step(weak + 2 * (strong - weak), step, x).prev_sample
    wanted = (127.5 * (x + 1)).round().clamp(0, 255)
    assert (pictures - wanted).abs().max() <= 1  # rounded to bytes
    header = json.loads((run / "manifest.jsonl").read_text().splitlines()[0])
    assert header["checkpoint_sha256"] and header["checkpoint"].endswith("unet/diffusion_pytorch_model.safetensors")


def diffguide_noise(model, seed: int) -> torch.Tensor:
    """The start of a sample of the command, as unit noise."""
    from diffguide.randomness import Noise
    from diffguide.samplers import DDIM

    sampler = DDIM(20)
    x = sampler.begin(model, sampler.times(model), Noise([seed], model.shape, model.schedule))
    return x / model.schedule.alpha_sigma(1.0)[1].to(x)


def test_a_guide_may_have_a_row_for_no_class(folder, short_run, tmp_path, monkeypatch, capsys):
    """The model itself as its guide changes nothing."""
    monkeypatch.chdir(tmp_path)
    pipe, pictures = folder / "pipe", []
    words = [f"checkpoint={pipe}", "null_class=3", "n=2", "sampler.steps=2"]
    for guidance in (["none"], ["autoguidance", f"guidance.guide={{path:{pipe},null_class:3}}", "guidance.scale=3"]):
        sample([*words, f"guidance={guidance[0]}", *guidance[1:]])
        with numpy.load(f"outputs/sample/pipe/v00{len(pictures) + 1}/samples.npz") as arrays:
            pictures.append(arrays["arr_0"].astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1  # rounded to bytes
    capsys.readouterr()
    guides = {
        f"{pipe}": "guidance.guide={path:",  # four classes
        f"{{path:{pipe},null_class:7}}": "null_class must be a row",
        f"{{path:{pipe},null_row:3}}": "guidance.guide must be a folder, or",
        f"{{path:{short_run},null_class:3}}": "null_class has no effect",
    }
    for guide, named in guides.items():
        with pytest.raises(SystemExit) as stopped:
            sample([*words, "guidance=autoguidance", f"guidance.guide={guide}"])
        error = capsys.readouterr().err
        assert stopped.value.code == 1 and error.count("\n") == 1 and named in error, error


@pytest.mark.parametrize(
    ("words", "named"),
    [(["metric=zero_shot"], "null_class=<row>"), (["metric=elbo", "null_class=3"], "set log_snr_max of this metric")],
)
def test_an_evaluation_says_what_a_folder_does_not(words, named, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        evaluate([f"checkpoint={folder / 'pipe'}", *images(folder), *words, "n=1"])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.count("\n") == 1 and named in error, error


def test_zero_shot_classes_take_the_names_of_the_data(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["metric=zero_shot", "null_class=3", "n=1", "batch_size=4"]
    evaluate([f"checkpoint={folder / 'pipe'}", *images(folder), *words])
    metrics = json.loads(Path("outputs/evaluate/pipe/v001/metrics.json").read_text())
    assert "accuracy" in json.dumps(metrics)


def test_a_network_that_takes_a_text_is_for_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=3, **TOKENS["UNet2DConditionModel"]
    )
    save_pipeline(tmp_path / "text", network, diffusers.DDIMScheduler())
    with pytest.raises(SystemExit):
        sample(["checkpoint=text", "n=1", "sampler.steps=2"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "vectors of a condition" in error and "Embedding" in error


def test_a_folder_without_data_asks_for_some(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        evaluate([f"checkpoint={folder / 'pipe'}", "metric=denoising"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "dataset=<option>" in error


def test_training_goes_on_from_a_folder_and_resumes_exactly(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"init_from={folder / 'pipe'}", *images(folder), *STEPS, "name=ours"]
    train(words)
    run = Path("outputs/train/ours/v001")
    assert "new: ant, bee, cow" in (run / "log.txt").read_text()
    config = OmegaConf.load(run / "config.yaml")
    assert config.backbone.network == "UNet2DModel" and config.ancestry.sha256
    assert config.objective.parameterization._target_.endswith(".Eps")
    model = diffguide.load(run)
    assert model.class_names == ["ant", "bee", "cow"] and model.has_null
    resumed = Path("outputs/train/ours/v002")
    shutil.copytree(run, resumed)
    last = sorted((resumed / "checkpoints").glob("*64.*"))
    for file in last:
        file.unlink()
    train([f"resume={resumed}"])
    for part in ("objective", "ema"):
        one, other = (checkpoints.load(place, part).model.state_dict() for place in (run, resumed))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert "ancestry" in checkpoints.load(resumed).config


def test_the_row_of_no_class_is_copied_where_it_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    still = ["training.images=16", "training.learning_rate=1e-12", "training.optimizer.weight_decay=0", "name=kept"]
    train([f"init_from={{path:{folder / 'pipe'},null_class:1}}", *images(folder), *STEPS, *still])
    found, theirs = rows("outputs/train/kept/v001"), rows(str(folder / "pipe"))
    backbone = diffguide.load("outputs/train/kept/v001").backbone
    assert torch.allclose(found[backbone.null_class], theirs[1], atol=1e-6) and len(found) == 4


def test_channels_and_side_are_those_of_the_model_unless_they_are_said(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "grey", unet(in_channels=1, out_channels=1), diffusers.DDPMScheduler())
    for name, words, shape in (("own", ["schedule=cosine"], [1, 16, 16]), ("said", ["dataset.size=8"], [1, 8, 8])):
        train(["init_from=grey", *images(folder), *words, *STEPS, "training.images=16", f"name={name}"])
        run = checkpoints.load(f"outputs/train/{name}/v001")
        assert run.facts["shape"] == shape and run.config["dataset"]["size"] == shape[1]


def test_rows_of_classes_follow_their_names(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train([f"init_from={folder / 'pipe'}", *images(folder), *STEPS, "name=three"])
    other = tmp_path / "other"
    for name in ("cow", "dog", "ant"):
        source = folder / "images" / ("bee" if name == "dog" else name)
        shutil.copytree(source, other / name)
    words = [f"dataset.path={other}", "dataset=image_folder", "dataset.size=16", "dataset.num_classes=3"]
    still = [word for word in STEPS if "learning_rate" not in word] + ["training.learning_rate=1e-12"]
    train(["init_from=outputs/train/three/v001", *words, *still, "name=again", "training.optimizer.weight_decay=0"])
    before, after = rows("outputs/train/three/v001"), rows("outputs/train/again/v001")
    assert torch.allclose(after[[0, 1]], before[[0, 2]], atol=1e-6)  # ant, cow; dog is new
    assert torch.allclose(after[3], before[3], atol=1e-6)  # the null row
    assert not torch.allclose(after[2], before[1], atol=1e-2)


def test_our_own_runs_are_ancestors_too(short_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "training.images=64",
        "training.batch_size=32",
        "sampler.steps=2",
        "name=next",
        "training.sample_images=1000",
    ]
    train([f"init_from={short_run}", *words, "training.learning_rate=1e-12"])
    one, other = (diffguide.load(place).state_dict() for place in (short_run, "outputs/train/next/v001"))
    assert all(torch.allclose(value, other[name], atol=1e-6) for name, value in one.items())
    error = capsys.readouterr().err
    assert "10 classes" in error and "close to those of the ancestor" in error


def test_a_recipe_trains_the_network_of_the_ancestor(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=own_images_64", "dataset.size=16", "engine.precision=32-true"]
    train([f"init_from={folder / 'pipe'}", *images(folder), *words, *STEPS, "training.images=16", "name=recipe"])
    config = checkpoints.load("outputs/train/recipe/v001").config
    assert config["backbone"]["network"] == "UNet2DModel"
    assert config["objective"]["parameterization"]["_target_"].endswith(".Eps")
    assert config["dataset"]["flip"] and config["training"]["ema_images"] == 100_000  # of the recipe
    assert "of experiment=own_images_64 all but backbone, schedule, objective" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["init_from=pipe"], ["backbone=diffusers_unet"], ["backbone=diffusers_dit"]])
def test_a_side_that_the_network_does_not_take_is_one_line(words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        train([*words, *images(folder), "dataset.size=17"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "size must be a multiple of 2" in error and "16 or 18 pixels" in error


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["init_from=nowhere"], "init_from"),
        (["init_from=3"], "init_from"),
        (["backbone.channels=24"], "init_from, trained on examples of shape [1, 8, 8]: backbone."),
        (["backbone=mlp", "dataset=gmm2d"], "init_from"),
        (["experiment=digits_classifier"], "experiment=digits_classifier trains by ClassifierObjective"),
        (["backbone=diffusers_dit"], "a UNet, has no tensor in common with backbone, a DiTTransformer2DModel"),
    ],
)
def test_an_ancestor_that_does_not_fit_is_one_line(words, named, short_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train([f"init_from={short_run}", *SHORT[6:], *words])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.count("\n") == 1 and named in error
