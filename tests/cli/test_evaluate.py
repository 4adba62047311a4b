"""diffguide-eval: what it writes, that its figures are the library's, tables of several runs, and what it refuses."""

import csv
import json
import os
import shutil
import signal
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from small_checkpoint import CONFIG, FACTS, change, put, save

import diffguide
from diffguide.checkpoints import store as checkpoints
from diffguide.config.build import config_dir
from diffguide.datasets import GMM2D
from diffguide.evaluate import main
from diffguide.evaluation.classification.metric import Classification
from diffguide.evaluation.denoising import DenoisingError
from diffguide.evaluation.metric import EvalContext
from diffguide.figures import tables
from diffguide.files.run_folders import hash_file

DATA = CONFIG["dataset"] | {"validation": 60, "test": 30}
GENERATOR = CONFIG | {"dataset": DATA}
CLASSIFIER = GENERATOR | {
    "name": "judge",
    "backbone": CONFIG["backbone"] | {"out_features": 4, "num_classes": 0},
    "objective": {
        "_target_": "diffguide.objectives.classifier.ClassifierObjective",
        "levels": {"_target_": "diffguide.objectives.levels.UniformTime", "stratified": True},
    },
}
SMALL, OTHER, JUDGE, LATER = (
    f"outputs/train/{name}" for name in ("small/v001", "small/v002", "judge/v001", "small/v003")
)
FEW = ["metric=denoising", "metric.levels=3", "metric.exact=20"]
FILES = {".lock", "config.yaml", "curve.csv", "metrics.json", "table.csv", "table.md"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with two generators and a classifier of the eight Gaussians, each after one step."""
    folder = tmp_path_factory.mktemp("trained")
    configs = {SMALL: GENERATOR | {"seed": 0}, OTHER: GENERATOR | {"seed": 1}, JUDGE: CLASSIFIER, LATER: GENERATOR}
    for path, config in configs.items():
        (folder / path / "checkpoints").mkdir(parents=True)
        save(folder / path / "checkpoints", config, images=9 if path == LATER else 7)
    return folder


@pytest.fixture
def at(trained, tmp_path) -> Path:
    """A temporary folder with links to these models."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/train").symlink_to(trained / "outputs/train")
    return tmp_path


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def data() -> GMM2D:
    return GMM2D(**{key: value for key, value in DATA.items() if key != "_target_"})


def test_a_denoiser_is_measured_as_the_library_measures_it(at, command):
    """metrics.json also has what is needed to repeat it."""
    done = command(main, f"checkpoint={SMALL}", *FEW, "seed=3", at=at)
    assert done.code == 0, done.err
    assert str(done.folder) == "outputs/evaluate/small/v001"
    folder = at / done.folder
    assert {path.name for path in folder.iterdir()} == FILES | {"denoising.png"}
    subject = EvalContext(diffguide.load(at / SMALL), data(), seed=3, batch_size=250)
    expected, found = DenoisingError(3, True, 20).measure(subject), metrics(folder)
    assert found["figures"] == {name: part._asdict() for name, part in expected.figures.items()}
    assert found["curve"] == json.loads(json.dumps(expected.curve))
    assert found["metric"] == "denoising" and found["law"] == "GMM2DLaw" and found["conditional"] is True
    assert (found["split"], found["n"], found["seed"], found["images"]) == ("validation", 60, 3, 7)
    assert found["evaluations"] == subject.evaluations == 3 * (60 + 20) and found["seconds"] > 0
    file = checkpoints.find(at / SMALL)
    assert Path(found["checkpoint"]).name == file.name and found["checkpoint_sha256"] == hash_file(file)
    assert found["dataset"] == DATA and found["versions"]["torch"] == torch.__version__
    (row,) = table(folder)
    assert float(row["mse_eps"]) == found["figures"]["mse_eps"]["value"] and row["n"] == "60"
    assert float(row["excess_se"]) == found["figures"]["excess"]["standard_error"]
    assert "| small/v001 | 7 | ema | validation | 60 |" in (folder / "table.md").read_text()
    assert "mse_eps " in done.err and " ± " in done.err
    with open(folder / "curve.csv", newline="") as file:
        assert [float(row["mse_x_0"]) for row in csv.DictReader(file)] == [row["mse_x_0"] for row in expected.curve]
    saved = OmegaConf.load(folder / "config.yaml")
    assert saved.metric.levels == 3 and saved.checkpoint == SMALL and "dataset" not in saved


def test_the_default_metric_is_one_that_the_model_supports(at, command):
    """Of a classifier, on examples that are drawn from the test split."""
    done = command(main, f"checkpoint={JUDGE}", "split=test", "n=20", "batch_size=7", "weights=objective", at=at)
    assert done.code == 0, done.err
    assert str(done.folder) == "outputs/evaluate/judge/v001"
    levels = OmegaConf.load(Path(config_dir()) / "metric/classification.yaml").noise_levels
    model = diffguide.load(at / JUDGE, weights="objective")
    expected = Classification(list(levels), 15).measure(EvalContext(model, data(), "test", 20))
    found = metrics(at / done.folder)
    for name, part in expected.figures.items():
        assert found["figures"][name]["value"] == pytest.approx(part.value, rel=1e-6)
        assert found["figures"][name]["standard_error"] == pytest.approx(part.standard_error, rel=1e-6)
    assert found["metric"] == "classification" and found["evaluations"] is None
    assert (found["split"], found["n"], found["weights"]) == ("test", 20, "objective")
    assert {path.name for path in (at / done.folder).iterdir()} == FILES | {"classification.png"}


def test_several_checkpoints_give_one_table(at, command, monkeypatch):
    """With the mean over them, which differ in the seed alone, and one picture with a line each; they share their data."""
    draw, drawn = GMM2D.draw, []
    monkeypatch.setattr(GMM2D, "draw", lambda self, n, rng: (drawn.append(n), draw(self, n, rng))[1])
    done = command(main, f"checkpoint=[{SMALL},{OTHER}]", *FEW, at=at)
    assert done.code == 0, done.err
    assert len(drawn) == 3  # splits of one data set
    runs = ["outputs/evaluate/small/v001", "outputs/evaluate/small/v002"]
    assert done.out.split() == [*runs, "outputs/evaluate/small/sweep_v001-v002"]
    folder = at / done.folder
    assert {path.name for path in folder.iterdir()} == {"table.csv", "table.md", "denoising.png"}
    rows, own = table(folder), [metrics(at / run) for run in runs]
    for row, found in zip(rows, own):
        assert float(row["mse_eps"]) == found["figures"]["mse_eps"]["value"]
        assert row["checkpoint"] == found["checkpoint"] and int(row["images"]) == found["images"]
    assert [row["images"] for row in rows] == ["7", "7"] and [found["training_seed"] for found in own] == [0, 1]
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) == 5 and "| mean ± standard deviation over 2 seeds |" in lines[-1]
    values = torch.tensor([found["figures"]["mse_x_0"]["value"] for found in own], dtype=torch.float64)
    shown = tables.format_figure({"value": float(values.mean()), "standard_error": float(values.std())})
    assert f"| {shown} |" in lines[-1]
    assert Image.open(folder / "denoising.png").size[0] > 800
    config = OmegaConf.load(at / runs[1] / "config.yaml")
    assert config.checkpoint == OTHER  # so that this run can be repeated, and resumed, alone


ROW = {
    "model": "a", "configuration": "c", "training_seed": 0, "images": 5, "weights": "ema", "split": "test", "n": 3, "seed": 0,
    "dataset": {"train": 1}, "metric": "m", "seconds": 1.0,
    "figures": {"f": {"value": 0.5, "standard_error": None, "n": 3, "unit": "nats"}},
}  # fmt: skip
NEXT = {"model": "b", "training_seed": 1}


@pytest.mark.parametrize("other, varied, mean", [
    (NEXT, [{}, {}], True), ({"seed": 1}, [{"seed": "0"}, {"seed": "1"}], True),
    ({"model": "b"}, [{}, {}], False), (NEXT | {"configuration": "d"}, [{}, {}], False),
    (NEXT | {"images": 9}, [{}, {}], False), (NEXT | {"dataset": {"train": 2}}, [{}, {}], False),
    (NEXT | {"weights": "objective"}, [{}, {}], False), (NEXT, [{"metric.levels": "2"}, {"metric.levels": "3"}], False),
    ({"n": 4, "seed": 1}, [{"seed": "0"}, {"seed": "1"}], False),
], ids=["training", "measurement", "twice", "configuration", "images", "data", "weights", "swept", "examples"])  # fmt: skip
def test_the_table_averages_over_seeds_only(tmp_path, other, varied, mean):
    """Of models of other data, length or configuration it would mean nothing."""
    tables.write_tables(tmp_path, [ROW, ROW | other], varied)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 4 + mean and ("mean ± standard deviation over 2 seeds" in lines[-1]) == mean


def test_the_table_does_not_average_over_configurations(at, command):
    """Of one run at two lengths, and of two trainings."""
    done = command(main, f"checkpoint=[{SMALL},{LATER}]", *FEW, "n=5", at=at)
    assert done.code == 0 and "mean" not in (at / done.folder / "table.md").read_text(), done.err
    changed = change(checkpoints.find(at / OTHER), at / "changed.safetensors", put("config.training.batch", 3))
    done = command(main, f"checkpoint=[{SMALL},{changed}]", *FEW, "n=5", at=at)
    assert done.code == 0 and "mean" not in (at / done.folder / "table.md").read_text(), done.err


def test_curves_are_named_by_the_keys_that_differ(tmp_path, monkeypatch):
    """Models, checkpoints of one model, swept keys; equal parts are left out."""
    drawn = {}
    monkeypatch.setattr(
        tables.curves, "write_curve_figure", lambda path, plot, lines: drawn.update({path.stem: list(lines)})
    )

    def names(*runs: tuple[str, int, str]) -> list[str]:
        folders = []
        for model, images, scale in runs:
            (folder := tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
            record = {
                "model": model, "images": images, "metric": "m", "split": "test", "n": 3, "seconds": 1.0, "curve": [],
                "figures": {"f": {"value": 0.1, "standard_error": None, "n": 3, "unit": "nats"}},
                "plots": [{"name": "p", "x": "x", "label": "x", "logarithmic": False, "panels": []}],
            }  # fmt: skip
            (folder / "metrics.json").write_text(json.dumps(record))
            folders.append({"folder": str(folder), "overrides": {"metric.scale": scale, "metric": "m"}})
        tables.write_comparison(folders)
        return drawn["p"]

    assert names(("a", 1, "2"), ("b", 1, "2")) == ["a", "b"]
    assert names(("a", 1, "2"), ("a", 5, "2")) == ["a at 1 images", "a at 5 images"]
    assert names(("a", 1, "2"), ("a", 1, "3")) == ["metric.scale 2", "metric.scale 3"]
    assert names(("a", 1, "2"), ("b", 1, "3")) == ["a, metric.scale 2", "b, metric.scale 3"]


def test_a_multirun_has_a_row_per_model_and_a_column_per_figure(at, command):
    """Metrics that share a model share its row; a run that fails does not stop the others."""
    done = command(main, "-m", f"checkpoint={SMALL},{JUDGE}", "metric=denoising,classification", "n=30", at=at)
    assert done.code == 1 and "2 of 4 runs failed" in done.err, done.err
    assert "metric=classification needs a classifier" in done.err
    assert "metric=denoising needs a denoiser" in done.err
    folder = at / done.folder
    assert {path.name for path in folder.iterdir()} == {"table.csv", "table.md", "denoising.png", "classification.png"}
    generator, judge = table(folder)
    assert float(generator["mse_eps"]) > 0 and generator["accuracy"] == "" and judge["mse_eps"] == ""
    assert float(judge["accuracy"]) > 0
    done = command(main, "-m", f"checkpoint={SMALL}", *FEW, "n=10,20", at=at)
    assert done.code == 0, done.err
    assert [row["n"] for row in table(at / done.folder)] == ["10", "20"]
    assert not (at / "outputs/.sweeps").exists()


def test_two_metrics_may_have_figures_of_the_same_name():
    """Their columns carry the metric's name; what only one of them has does not."""

    def record(metric: str, *figures: str) -> dict:
        return {"metric": metric, "figures": dict.fromkeys(figures, {"unit": "1"})}

    named = tables.name_columns([record("a", "nll", "accuracy"), record("b", "nll"), record("b", "nll")])
    assert named == {("a", "nll", "1"): "a_nll", ("a", "accuracy", "1"): "accuracy", ("b", "nll", "1"): "b_nll"}


@pytest.mark.parametrize("value, error, text", [
    (0.95123, 0.00432, "0.9512 ± 0.0043"), (123.4, 12.3, "123 ± 12"), (1.5, None, "1.5"), (2.0, 0.0, "2"),
    ("inf", None, "inf"), (0.5, "nan", "0.5"), (0.000123456, 0.0000051, "0.0001235 ± 0.0000051"),
])  # fmt: skip
def test_figures_are_rounded_to_their_standard_error(value, error, text):
    assert tables.format_figure({"value": value, "standard_error": error}) == text


def test_a_model_is_measured_on_other_data_of_the_same_shape(at, command, monkeypatch):
    """A metric gets the node of its data; for samples of an oracle, the node says that they are continuous."""
    measure, told = DenoisingError.measure, []
    watched = lambda self, subject: (told.append(subject.config["dataset"]), measure(self, subject))[1]  # noqa: E731
    monkeypatch.setattr(DenoisingError, "measure", watched)
    done = command(
        main, f"checkpoint={SMALL}", "dataset=gmm2d", "dataset.train=10", "dataset.validation=40", *FEW, at=at
    )
    assert done.code == 0, done.err
    assert metrics(at / done.folder)["n"] == 40 and OmegaConf.load(at / done.folder / "config.yaml").dataset.train == 10
    assert told[0]["train"] == 10 and metrics(at / done.folder)["dataset"] == told[0]
    assert command(main, "oracle=gmm2d", *FEW, "n=5", at=at).code == 0 and told[1] == {"quantization_levels": 0}


def test_a_run_of_diffguide_train_is_measured(tiny_run, tmp_path, command):
    """A model of digits, on the data that it was trained on."""
    done = command(
        main, f"checkpoint={tiny_run}", f"output_root={tmp_path}", "metric.denoiser.levels=3", "n=40", at=tmp_path
    )
    assert done.code == 0, done.err
    found = metrics(tmp_path / done.folder)
    assert found["evaluations"] == 120 and found["law"] is None
    assert found["dataset"]["_target_"] == "diffguide.datasets.digits.Digits"


def test_an_oracle_is_measured_on_exact_samples(tmp_path, command):
    """N(0, 1) and N(0, 2), given the class: E |x_0 - E x_0|^2 is the mean of v s^2 / (a^2 v + s^2), v = 1, 2."""
    done = command(
        main, "oracle=pair1d", "schedule=cosine", "metric=denoising", "metric.levels=4", "n=3000", at=tmp_path
    )
    assert done.code == 0, done.err
    assert str(done.folder) == "outputs/evaluate/pair1d/v001"
    found = metrics(tmp_path / done.folder)
    assert (found["split"], found["n"], found["precision"]) == ("exact samples", 3000, "float64")
    assert found["schedule"]["_target_"].endswith("Cosine") and found["evaluations"] == 4 * 3000
    for row in found["curve"]:
        snr = torch.tensor(row["log_snr"]).exp().item()
        assert row["mse_x_0"] == pytest.approx(0.5 / (1 + snr) + 1 / (1 + 2 * snr), abs=4 * row["mse_x_0_se"])
    done = command(main, "oracle=empirical", "oracle.width=0.3", "metric=classification", "n=40", at=tmp_path)
    assert done.code == 0, done.err
    found = metrics(tmp_path / done.folder)  # neighbours name the class of digits that they have not seen
    assert found["split"] == "validation" and found["figures"]["accuracy"]["value"] > 0.8


@pytest.fixture(scope="module")
def stopped_run(trained, tmp_path_factory) -> Path:
    """A folder with the models and an evaluation that a signal stopped after two batches of three."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("stopped") / "home")
    errors = DenoisingError.measure_batch

    def interrupted(self, subject, first, middles):
        if first == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return errors(self, subject, first, middles)

    with pytest.MonkeyPatch.context() as patch, chdir(folder), pytest.raises(SystemExit) as left:
        patch.setattr(DenoisingError, "measure_batch", interrupted)
        main([f"checkpoint={SMALL}", *FEW, "batch_size=20"])
    assert left.value.code == 143
    return folder


@pytest.fixture
def stopped(stopped_run, at) -> str:
    """A copy of that evaluation in a temporary folder."""
    shutil.copytree(stopped_run / "outputs/evaluate", at / "outputs/evaluate")
    return "outputs/evaluate/small/v001"


def test_a_signal_stops_after_a_batch(stopped, at, command, monkeypatch):
    """The finished part is kept, and the message has the command that resumes."""
    assert sorted(path.name for path in (at / stopped / "parts").iterdir()) == ["0000000000.npz", "0000000020.npz"]
    assert not (at / stopped / "metrics.json").exists()
    batch = EvalContext.batch
    monkeypatch.setattr(EvalContext, "batch", lambda *args: (os.kill(os.getpid(), signal.SIGINT), batch(*args))[1])
    done = command(main, f"resume={stopped}", at=at)
    assert (
        done.code == 130
        and f"SIGINT after 60 of 60 examples; continue with: diffguide-eval resume={stopped}" in done.err
    )


def test_a_resumed_evaluation_has_the_same_figures(stopped, at, command, monkeypatch):
    whole = command(main, f"checkpoint={SMALL}", *FEW, "batch_size=20", at=at)
    batch, read = EvalContext.batch, []
    monkeypatch.setattr(EvalContext, "batch", lambda self, first: (read.append(first), batch(self, first))[1])
    done = command(main, f"resume={stopped}", at=at)
    assert done.code == 0 and str(done.folder) == stopped, done.err
    assert read == [40]
    first, second = (metrics(at / folder) for folder in (whole.folder, stopped))
    for record in (first, second):
        record.pop("seconds")
    assert first == second
    assert {path.name for path in (at / stopped).iterdir()} == FILES | {"denoising.png"}
    again = command(main, f"resume={stopped}", at=at)
    assert again.code == 0 and "nothing is left to do" in again.err and str(again.folder) == stopped


@pytest.mark.parametrize("arguments, message", {
    "another n": (["n=50"], "n (None -> 50)"),
    "another metric": (["metric=classification"], "drop metric=classification"),
    "another seed": (["seed=1"], "seed (0 -> 1)"),
    "another model": ([f"checkpoint={OTHER}"], "was evaluated from a checkpoint with SHA-256"),
    "other data": (["dataset=gmm2d"], "dataset (None -> "),
    "a training run": ([f"resume={SMALL}"], "is no run folder"),
    "nowhere": (["resume=nowhere"], "no run at nowhere"),
}.values())  # fmt: skip
def test_a_resumed_run_keeps_its_fixed_keys(stopped, at, command, arguments, message):
    done = command(main, f"resume={stopped}", *arguments, at=at)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err


@pytest.mark.parametrize("node", [
    {"_target_": "os.system", "command": "touch canary"},
    {"_target_": "diffguide.datasets.gmm2d.GMM2D", "channels": 2},
])  # fmt: skip
def test_resuming_a_foreign_folder_runs_no_foreign_code(stopped, at, command, node):
    config = OmegaConf.load(at / stopped / "config.yaml")
    config.metric = node
    OmegaConf.save(config, at / stopped / "config.yaml")
    done = command(main, f"resume={stopped}", at=at)
    assert done.code == 1 and "metric names" in done.err and not (at / "canary").exists(), done.err


def test_a_damaged_part_is_an_error(stopped, at, command):
    part = next((at / stopped / "parts").iterdir())
    part.write_bytes(b"torn")
    done = command(main, f"resume={stopped}", at=at)
    assert done.code == 1 and "is damaged: remove it and resume the run" in done.err and "Traceback" not in done.err
    part.unlink()
    assert command(main, f"resume={stopped}", at=at).code == 0


def test_full_memory_is_one_line(at, command, monkeypatch):
    def full(self, subject):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DenoisingError, "measure", full)
    done = command(main, f"checkpoint={SMALL}", *FEW, at=at)
    assert done.code == 1 and "out of memory" in done.err and "batch_size" in done.err and "Traceback" not in done.err


def test_a_foreign_checkpoint_builds_no_foreign_data_set(at, command):
    """Only data sets of diffguide are built from a checkpoint."""
    foreign = change(
        checkpoints.find(at / SMALL), at / "foreign.safetensors",
        put("config.dataset", {"_target_": "os.system", "command": "touch canary", "channels": 2}),
    )  # fmt: skip
    done = command(main, f"checkpoint={foreign.name}", *FEW, at=at)
    assert done.code == 1 and "dataset names os.system" in done.err, done.err
    assert "dataset=<option>" in done.err and not (at / "canary").exists()
    assert command(main, f"checkpoint={foreign.name}", "dataset=gmm2d", "dataset.validation=9", *FEW, at=at).code == 0


REFUSED = {
    "no checkpoint": ([], "checkpoint is missing"),
    "an empty list": (["checkpoint=[]"], "checkpoint is missing"),
    "nowhere": (["checkpoint=nowhere"], "checkpoint: no checkpoint at nowhere"),
    "several without -m": ([f"checkpoint={SMALL},{OTHER}"],
                           f"checkpoint=[{SMALL},{OTHER}] for one run, or -m checkpoint="),
    "one of two nowhere": ([f"checkpoint=[{SMALL},nowhere]"], "checkpoint: no checkpoint at nowhere"),
    "unknown metric": ([f"checkpoint={SMALL}", "metric=denoise"], "metric=denoise; nearest: denoising"),
    "several metrics": ([f"checkpoint={SMALL}", "metric=[denoising,classification]"], "metric takes one option"),
    "misspelt": ([f"checkpoint={SMALL}", "metric=denoising", "metric.level=3"], "nearest: metric.levels"),
    "misspelt key": ([f"checkpoint={SMALL}", "wieghts=ema"], "wieghts; nearest: weights"),
    "a foreign group": ([f"checkpoint={SMALL}", "sampler=heun"], "sampler"),
    "a type": ([f"checkpoint={SMALL}", "metric=denoising", "metric.levels=x"], "metric.levels must be a whole number"),
    "a value": ([f"checkpoint={SMALL}", "metric=denoising", "metric.levels=0"], "metric: levels must be a whole number from 1"),
    "no denoiser": ([f"checkpoint={JUDGE}", *FEW], "needs a denoiser"),
    "unknown split": ([f"checkpoint={SMALL}", "split=tset"], "split must be train or validation or test"),
    "no examples": ([f"checkpoint={SMALL}", "n=0"], "n must be a whole number from 1"),
    "too many": ([f"checkpoint={SMALL}", "n=61"], "n must be 1 to 60"),
    "no batch": ([f"checkpoint={SMALL}", "batch_size=0"], "batch_size must be a whole number"),
    "a seed": ([f"checkpoint={SMALL}", "seed=-1"], "seed must be a whole number"),
    "unknown weights": ([f"checkpoint={SMALL}", "weights=best"], "weights must be ema or objective"),
    "precision": ([f"checkpoint={SMALL}", "engine.precision=64-true"], "engine.precision must be one of"),
    "a derivative": ([f"checkpoint={SMALL}", "metric=ode", "engine.precision=bf16-true"], "metric=ode needs engine."),
    "of a part": ([f"checkpoint={SMALL}", "metric=likelihood", "engine.precision=bf16-mixed"], "metric=likelihood needs"),
    "no generator": ([f"checkpoint={JUDGE}", "engine.precision=bf16-true"], "this checkpoint holds a NoisyClassifier"),
    "two processes": ([f"checkpoint={SMALL}", "engine.devices=2", "engine.accelerator=cpu"], "engine.devices must be 1, got 2"),
    "other data": ([f"checkpoint={SMALL}", "dataset=digits"], "shape [1, 8, 8], and the model's of [2]"),
    "two models": ([f"checkpoint={SMALL}", "oracle=gmm2d"], "checkpoint and oracle are two models"),
    "of an oracle": ([f"checkpoint={SMALL}", "schedule=cosine"], "schedule has no effect"),
    "of a checkpoint": (["oracle=gmm2d", "weights=ema"], "weights has no effect"),
    "no law of data": (["oracle=gmm2d", "dataset=gmm2d"], "or use oracle=empirical"),
    "no noise levels": (["oracle=gmm2d", "schedule=none"], "schedule=none has no noise levels"),
    "no noise levels for classes": (["oracle=gmm2d", "schedule=none", "metric=classification"], "schedule=none has no noise"),
    "no likelihood": ([f"checkpoint={SMALL}", "metric=likelihood", "metric@metric.elbo=denoising"], "elbo must be a "),
    "too many samples": (["oracle=gmm2d", "n=10000000000"], "n must be at most 10^7 exact samples"),
    "a folder's name": ([f"checkpoint={SMALL}", *FEW, "name=a/b"], "name must be the name of a folder"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_invalid_input_is_one_line(at, command, arguments, message):
    done = command(main, *arguments, at=at)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
    assert done.out == "" and len([line for line in done.err.splitlines() if line]) == 1
    assert not (at / "outputs/evaluate").exists()


def test_other_classes_are_an_error(at, command):
    """The same number of them under other names."""
    file = change(checkpoints.find(at / SMALL), at / "renamed.safetensors", put("class_names", list("abcd")))
    done = command(main, f"checkpoint={file.name}", *FEW, at=at)
    assert done.code == 1 and "0, 1, 2, 3 (4)" in done.err and "a, b, c, d (4)" in done.err, done.err
    assert FACTS["class_names"] == list("0123")
