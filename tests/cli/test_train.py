"""diffguide-train: what it writes, that it learns, that it is the same run twice, and what it refuses."""

import json
import math
import shutil
from contextlib import chdir
from itertools import pairwise, product
from pathlib import Path

import numpy
import pytest
import torch
from closed_forms import Mixture
from omegaconf import OmegaConf
from safetensors.torch import load_file
from sklearn.svm import SVC

import diffguide
from diffguide import objectives, schedules
from diffguide.backbones import MLP
from diffguide.datasets import Digits
from diffguide.evaluate import main as evaluate
from diffguide.guidance import ClassifierFree
from diffguide.models import parameterizations
from diffguide.objectives import Loss
from diffguide.objectives.levels import UniformTime
from diffguide.objectives.weights import Uniform
from diffguide.sample import main as sample
from diffguide.samplers import DDIM, DDPM, DPMpp2M, Heun, generate
from diffguide.samplers.grids import Karras, UniformLogSNR, UniformT
from diffguide.train import main
from diffguide.training.divergence import DivergenceWatch
from diffguide.training.loop import Diverged, Training
from diffguide.training.state import TrainingRun

TINY = [
    "backbone.channels=8",
    "backbone.head_channels=8",
    "training.images=64",
    "training.batch_size=32",
    "training.sample_images=64",
    "sampler.steps=2",
]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder of the trained models, shared by the tests of this file."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def digits_run(home) -> Path:
    """A digits model, by the real command: the default configuration, of half the width and depth, a third of its length."""
    with chdir(home):
        main(["backbone.channels=16", "backbone.head_channels=16", "backbone.blocks=1", "training.images=19200",
              "training.checkpoint_images=9600", "training.validation_images=4800",
              "training.sample_images=19200", "training.ema_images=1000", "sampler.steps=5"])  # fmt: skip
    return home / "outputs/train/digits/v001"


@pytest.fixture(scope="module")
def gmm_run(home) -> Path:
    """A model of eight Gaussians, of 200 steps, without guidance: it never dropped a label."""
    with chdir(home):
        main(["experiment=gmm2d", "guidance=none", "training.images=100000", "training.batch_size=512",
              "training.sample_images=100000"])  # fmt: skip
    return home / "outputs/train/gmm2d/v001"


def test_a_run_folder_has_its_files(digits_run):
    wanted = [".lock", "checkpoints", "config.yaml", "data.json", "log.txt", "metrics.jsonl", "samples"]
    assert sorted(path.name for path in digits_run.iterdir()) == wanted
    assert "training 19200/19200 images" in (digits_run / "log.txt").read_text()
    assert [path.name for path in (digits_run / "samples").iterdir()] == ["0000019200.png"]
    config = OmegaConf.load(digits_run / "config.yaml")
    assert config.name == "digits" and config.p_uncond == 0.1 and config.objective.p_uncond == 0.1
    assert {"images", "loss", "mse", "learning_rate", "grad_norm", "data_wait", "images_per_second", "seconds"} == set(
        metrics(digits_run)[0]
    )


def test_training_learns_digits(digits_run):
    held_out = [line["validation_loss"] for line in metrics(digits_run) if "validation_loss" in line]
    assert all(later < earlier for earlier, later in pairwise(held_out))
    assert held_out[-1] < 0.33  # 1.0 untrained, 0.25 after the default run
    guided = ClassifierFree(diffguide.load(digits_run), 2.0, (0.0, float("inf")))
    labels = [i % 10 for i in range(200)]
    sampler = Heun(10, Karras(7.0, None, None))
    samples = torch.cat(list(generate(guided, sampler, range(200), labels, (1, 8, 8), 200)))
    train = Digits(1, 8, 10).train
    judge = SVC(C=10, gamma=0.064).fit(train.x.flatten(1).numpy(), train.y.numpy())
    assert (judge.predict(samples.flatten(1).numpy()) == numpy.array(labels)).mean() > 0.9
    conditional = torch.cat(list(generate(guided.denoiser, sampler, range(200), None, (1, 8, 8), 200)))
    shares = numpy.bincount(judge.predict(conditional.flatten(1).numpy()), minlength=10) / 200
    assert shares.min() > 0.01  # without a condition every class still appears


def test_the_trained_model_classifies(digits_run, tmp_path, command):
    """A fifth of the default training and few evaluations: 60 validation digits, far above chance."""
    done = command(evaluate, f"checkpoint={digits_run}", "metric=zero_shot", "metric.evaluations=12",
                   "metric.stages=[[4,2]]", "metric.margin=null", "metric/spacing=even", "n=60", at=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads((tmp_path / done.folder / "metrics.json").read_text())
    assert found["figures"]["accuracy"]["value"] > 0.75 and found["figures"]["evaluations"]["value"] == 5.6
    assert found["evaluations"] == 60 * (40 + 16) and found["log_snr"] == [-6, 6]
    assert (tmp_path / done.folder / "accuracy.png").exists()


def test_training_learns_the_mixture(gmm_run):
    """E || D - D_exact ||^2 over the posterior variance, per log-SNR, against the closed form."""
    angles = 2 * numpy.pi / 8 * numpy.arange(8)
    means = 1.3 * numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1)
    mixture = Mixture([1 / 8] * 8, means, [0.15**2 * numpy.eye(2)] * 8, numpy.arange(8) // 2)
    denoiser = diffguide.load(gmm_run)
    rng = numpy.random.default_rng(0)
    x_0, y = mixture.sample(4000, rng)
    for log_snr in (-4.0, -2.0, 0.0, 2.0, 4.0):
        t = denoiser.schedule.t_of(log_snr)
        alpha, sigma = (float(a) for a in denoiser.schedule.alpha_sigma(t))
        x_t = alpha * x_0 + sigma * rng.standard_normal(x_0.shape)
        exact = mixture.mean(x_t, alpha, sigma, y)
        learnt = denoiser(torch.from_numpy(x_t).float(), t, torch.from_numpy(y)).x_0.numpy()
        excess = ((learnt - exact) ** 2).sum(1).mean() / ((x_0 - exact) ** 2).sum(1).mean()
        assert excess < 0.05, f"log-SNR {log_snr}: excess {excess:.1%}"


def test_the_command_of_the_front_page_runs(tmp_path, command):
    done = command(main, "objective=eps", "guidance=cfg", "p_uncond=0.15", *TINY, at=tmp_path)
    assert done.code == 0, done.err
    assert str(done.folder) == "outputs/train/digits/v001" and done.out.count("\n") == 1
    config = OmegaConf.load(tmp_path / done.folder / "config.yaml")
    assert config.p_uncond == 0.15 and config.objective.p_uncond == 0.15
    assert diffguide.load(tmp_path / done.folder).parameterization.needs_signal


def test_guidance_none_drops_no_labels(tmp_path, command):
    done = command(main, "guidance=none", *TINY, at=tmp_path)
    assert done.code == 0, done.err
    assert OmegaConf.load(tmp_path / done.folder / "config.yaml").objective.p_uncond == 0
    assert not diffguide.load(tmp_path / done.folder).has_null


def test_a_run_is_repeatable_and_resumable(tmp_path, command):
    steps = ["training.checkpoint_images=32", "training.batch_size=16", "training.accumulate=2"]
    first = command(main, *TINY, *steps, "name=first", at=tmp_path).folder
    again = command(main, *TINY, *steps, "name=again", at=tmp_path).folder
    last = "checkpoints/0000000064.safetensors"
    assert (tmp_path / first / "checkpoints/0000000032.safetensors").exists()
    whole, twin = (load_file(tmp_path / run / last) for run in (first, again))
    assert all(torch.equal(whole[name], twin[name]) for name in whole)
    for stem in ("0000000064.safetensors", "0000000064.optimizer.safetensors"):
        (tmp_path / again / "checkpoints" / stem).unlink()
    resumed = command(main, *TINY, *steps, "name=again", f"resume={again}", at=tmp_path)
    assert resumed.code == 0 and resumed.folder == again, resumed.err
    continued = load_file(tmp_path / again / last)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    clock = {"images_per_second", "seconds"}
    lines = [
        [{k: v for k, v in line.items() if k not in clock} for line in metrics(tmp_path / run)]
        for run in (first, again)
    ]
    assert [line for line in lines[0] if "loss" not in line] == [line for line in lines[1] if "loss" not in line]


def test_every_objective_with_every_schedule_and_sampler():
    """Everything composes: a step of training and two of sampling give finite numbers."""
    tables = [parameterizations.X0(), parameterizations.Eps(), parameterizations.V(), parameterizations.Flow(),
              parameterizations.EDM(0.5)]  # fmt: skip
    curves = [schedules.Cosine(12, -10), schedules.Linear(12), schedules.Flow(12, -12), schedules.EDM(12, -8)]
    samplers = [DDPM(2, UniformT(), 0.0), DDIM(2, UniformT(), 0.0), Heun(2, Karras(7.0, None, None)),
                DPMpp2M(2, UniformLogSNR())]  # fmt: skip
    for table, schedule in product(tables, curves):
        torch.manual_seed(0)
        backbone = MLP(2, None, 4, width=16, layers=1, fourier_features=4, fourier_scale=0.5)
        objective = objectives.Denoising(backbone, schedule, table, Uniform(), UniformTime(True), 0.1)
        rng = torch.Generator().manual_seed(0)
        objective(torch.randn(8, 2), torch.arange(8) % 4, rng).per_example.mean().backward()
        guided = ClassifierFree(objective.model, 2.0, (0.0, float("inf")))
        for sampler in samplers:
            assert all(x.isfinite().all() for x in generate(guided, sampler, range(4), [0, 1, 2, -1], (2,), 4))


def test_learning_rate_warms_up_and_falls():
    amounts = dict.fromkeys(["images", "log_images", "validation_images", "checkpoint_images", "sample_images"], 1000)
    training = Training(**amounts, keep_checkpoints=1, batch_size=10, learning_rate=1.0, warmup_images=100, accumulate=1,
                        max_grad_norm=1.0,
                        ema_images=50, optimizer=torch.optim.SGD)  # fmt: skip
    assert training.plan().rate_at(0) == pytest.approx(0.1)
    assert training.plan().rate_at(500) == pytest.approx(0.5)
    assert training.plan().rate_at(990) < 1e-3
    assert training.ema_decay_at(100) == 0.5 and training.ema_decay_at(900) == pytest.approx(0.5**0.2)


def a_loss(*values: float) -> Loss:
    return Loss(torch.tensor(values), {}, 2 * torch.arange(1.0, 1.0 + len(values)))  # log-SNR 2, 4, ...


def test_a_watch_names_the_noise_levels_of_what_is_not_finite():
    watch, fine = DivergenceWatch(lag=0), torch.tensor(1.0)
    watch.check(0, 0, [a_loss(1.0, 2.0)], fine)
    with pytest.raises(Diverged, match=r"the loss of 2 of 3 examples is not finite at step 4 \(32 images\)") as told:
        watch.check(32, 4, [a_loss(1.0, math.nan), a_loss(math.inf)], fine)
    assert str(told.value).endswith("noise level sigma/alpha 0.1353, 0.3679")  # exp(-log_snr / 2)
    with pytest.raises(Diverged, match="gradient .*step 5"):
        watch.check(40, 5, [a_loss(1.0)], torch.tensor(math.inf))
    watch.check(48, 6, [a_loss(1.0)], None)  # a gradient scaler's infinities are its own affair


def test_a_delayed_check_still_finds_a_divergence():
    watch, fine = DivergenceWatch(lag=1), torch.tensor(1.0)
    watch.check(0, 0, [a_loss(math.nan)], fine)
    with pytest.raises(Diverged, match="step 0"):
        watch.check(8, 1, [a_loss(1.0)], fine)
    watch = DivergenceWatch(lag=1)
    watch.check(8, 1, [a_loss(math.nan)], fine)
    with pytest.raises(Diverged, match="step 1"):
        watch.flush()  # before a checkpoint


@pytest.mark.parametrize("arguments", [[], ["dry_run=true"]])
def test_full_device_memory_is_one_line(tmp_path, command, monkeypatch, arguments):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingRun, "update", full)
    monkeypatch.setattr("diffguide.training.dry_run.DryRun.estimate_cost", full)
    done = command(main, *TINY, *arguments, at=tmp_path)
    assert done.code == 1 and "training.accumulate" in done.err and "Traceback" not in done.err


def test_any_torch_optimiser(tmp_path, command):
    swap = ["~training.optimizer", "+training.optimizer={_target_:torch.optim.SGD,_partial_:true,momentum:0.9}"]
    done = command(main, *TINY, *swap, at=tmp_path)
    assert done.code == 0, done.err
    state = load_file(tmp_path / done.folder / "checkpoints/0000000064.optimizer.safetensors")
    assert {name.split(".")[1] for name in state if name[0].isdigit()} == {"momentum_buffer"}


def test_mixed_precision_trains(tmp_path, command):
    done = command(main, "engine.precision=bf16-mixed", *TINY, at=tmp_path)
    assert done.code == 0, done.err
    weights = load_file(tmp_path / done.folder / "checkpoints/0000000064.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert metrics(tmp_path / done.folder)[-1]["validation_loss"] < 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_training_is_the_same_training(tmp_path, command):
    small = ["experiment=gmm2d", "backbone.width=16", "backbone.layers=1", "training.images=2048", "sampler.steps=2",
             "training.sample_images=2048"]  # fmt: skip
    plain, compiled = (command(main, *small, f"compile={flag}", at=tmp_path) for flag in ("false", "true"))
    assert compiled.code == 0 and "pays off after about 700,000 images" in compiled.err, compiled.err
    last = "checkpoints/0000002048.safetensors"
    tensors = [load_file(tmp_path / done.folder / last) for done in (plain, compiled)]
    for name in tensors[0]:
        torch.testing.assert_close(tensors[0][name], tensors[1][name], rtol=1e-3, atol=1e-4)


def test_a_multirun_has_a_folder_per_job(tmp_path, command):
    done = command(main, "-m", "objective=eps,x0", *TINY, at=tmp_path)
    assert done.code == 0, done.err
    assert done.out.split() == ["outputs/train/digits/v001", "outputs/train/digits/v002"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["train"]


REFUSED = {
    "p_uncond without guidance": (["guidance=none", "p_uncond=0.15"], "guidance=cfg"),
    "p_uncond appended": (["guidance=none", "+p_uncond=0.15"], "p_uncond"),
    "p_uncond too large": (["p_uncond=1.5"], "p_uncond must be in (0, 1]"),
    "p_uncond zero": (["p_uncond=0"], "p_uncond must be in (0, 1]"),
    "eps at zero terminal SNR": (["objective=eps", "schedule=flow", "schedule.log_snr_min=-inf"], "zero terminal SNR"),
    "vectors for the U-Net": (["dataset=gmm2d"], "backbone=mlp"),
    "ends the wrong way round": (["schedule.log_snr_min=20"], "log_snr_min must be below log_snr_max"),
    "wrong fact": (["dataset.num_classes=9"], "dataset.num_classes is 9, but digits has 10"),
    "wrong type": (["training.images=many"], "images must be a whole number"),
    "negative rate": (["training.learning_rate=-1"], "learning_rate must be in (0, inf)"),
    "indivisible batch": (["training.accumulate=3", "training.batch_size=32"], "must be a multiple of"),
    "foreign argument": (["training.optimizer._target_=torch.optim.SGD"], "optimizer: SGD"),
    "not finite": (["training.learning_rate=inf"], "learning_rate must be in (0, inf)"),
    "a text for a number": (["objective.levels.stratified=abc"], "levels.stratified must be true or false"),
    "infinity as in YAML": (["guidance.interval=[0,.inf]"], "on the command line infinity is inf"),
    "guidance completed twice": (["+guidance._partial_=true"], "guidance._partial_: remove it"),
    "no class to avoid": (["guidance=negative"], "guidance.condition must be given (a class"),
    "no list": (["backbone.attention=4"], "backbone.attention must be a list"),
    "option as a key": (["sampler.grid=karras"], "an option: sampler/grid=karras)"),
    "grid outside": (["sampler.grid.noise_level_max=1e9"], "grid=karras needs finite positive"),
    "hidden p_uncond": (["objective.p_uncond=0.5"], "set p_uncond"),
    "images for the MLP": (["backbone=mlp"], "does not fit the data"),
    "channels that differ": (["backbone.in_channels=3"], "does not fit the data"),
    "classes that differ": (["backbone.num_classes=9"], "backbone.num_classes is 9"),
    "output of another width": (["backbone.out_features=2"], "must have the shape of the data"),
    "name with a slash": (["name=../x"], "name must be the name of a folder"),
    "root that is a file": ([*TINY, "output_root=/dev/null"], "output_root: "),
    "root that is no text": (["output_root=null"], "output_root must be a text"),
    "seed too large": (["seed=99999999999999999999999"], "seed must be a whole number"),
    "unknown optimiser": (["training.optimizer._target_=torch.optim.Nope"], "cannot import torch.optim.Nope"),
    "moments left out": (["training.optimizer.betas=[]"], "training: optimizer: "),
    "compile what": (["compile=abc"], "compile must be true or false"),
    "compile twice": (["compile=true", "objective=sliced", "backbone=mlp"], "compile must be false"),
    "no such device": (["engine.accelerator=tpu"], "cannot create the engine with"),
    "misspelt key": (["training.imges=3"], "imges"),
    "misspelt option": (["objective=epss"], "epss"),
    "dry run into a file": ([*TINY, "dry_run=true", "output_root=/dev/null"], "output_root: "),
    "dry run what": (["dry_run=3"], "dry_run must be true or false"),
    "resume from nowhere": (["resume=nowhere"], "no run at nowhere"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_invalid_input_is_one_line(tmp_path, command, arguments, message):
    done = command(main, *arguments, at=tmp_path)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err
    assert done.out == "" and not (tmp_path / "outputs").exists()


def test_a_guidance_of_the_user_trains(tmp_path, command, monkeypatch):
    """As the README describes it: a class that wraps a denoiser, and a file that names it."""
    (tmp_path / "my_guidance.py").write_text(
        "from diffguide.models.protocols import DenoiserWrapper\n"
        "class Mine(DenoiserWrapper):\n"
        "    def __call__(self, x_t, t, y=None):\n"
        "        return self.denoiser(x_t, t, y)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine" / "guidance").mkdir(parents=True)
    (tmp_path / "mine" / "guidance" / "mine.yaml").write_text("_target_: my_guidance.Mine\n")
    done = command(main, "--config-dir", "mine", "guidance=mine", *TINY, at=tmp_path)
    assert done.code == 0, done.err


def test_an_unconditional_model_has_no_classes(tmp_path, command):
    done = command(main, "guidance=none", "backbone.num_classes=0", *TINY, at=tmp_path)
    assert done.code == 0, done.err
    sampled = command(sample, f"checkpoint={done.folder}", "n=5", "sampler.steps=2", at=tmp_path)
    assert sampled.code == 0, sampled.err
    lines = (tmp_path / sampled.folder / "manifest.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["class"] for line in lines] == [None] * 5
