"""diffguide-sample oracle=...: laws that are known exactly, sampled without training, and how far the samples are off."""

import csv
import json
import os
import signal
import sys
from pathlib import Path

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from diffguide.datasets.gmm2d import GMM2D
from diffguide.sample import main
from diffguide.sampling import outputs as results
from diffguide.sampling.run import SampleWriter

GMM = ["oracle=gmm2d", "n=200", "sampler.steps=6", "batch_size=50"]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def samples(folder: Path) -> tuple[numpy.ndarray, numpy.ndarray]:
    with numpy.load(folder / "samples.npz") as arrays:
        return arrays["arr_0"], arrays["arr_1"]


def test_a_run_writes_its_files_and_samples_at_the_floor(tmp_path, command):
    """Its files, its default name, what identifies it, and samples at the floor after 40 steps of Heun."""
    done = command(main, "oracle=gmm2d", "n=600", "sampler.steps=40", "batch_size=600", at=tmp_path)
    assert done.code == 0, done.err
    assert str(done.folder) == "outputs/sample/gmm2d/v001"
    folder = tmp_path / done.folder
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.yaml", "grid.png", "manifest.jsonl", "metrics.json", "samples.npz",
    }  # fmt: skip
    x, y = samples(folder)
    assert x.dtype == numpy.float32 and x.shape == (600, 2) and y.tolist() == [k % 4 for k in range(600)]
    header = json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])
    assert header["oracle"]["_target_"].startswith("diffguide.oracles.")
    assert header["schedule"]["_target_"] == "diffguide.schedules.sde.EDM" and header["precision"] == "float64"
    assert not {"checkpoint", "checkpoint_sha256", "weights", "dataset"} & header.keys()
    found = metrics(folder)
    for name in ("wasserstein_2", "sliced_wasserstein_2", "energy_distance"):
        part = found[name]
        assert abs(part["distance"] - part["floor"]) < 4 * part["floor_std"] and set(part["per_class"]) == set("0123")
    assert found["moments"]["mean"]["error"] < 0.1 and found["moments"]["covariance"]["error"] < 0.1
    assert found["log_density"]["samples"] == pytest.approx(found["log_density"]["exact"], abs=0.15)
    assert found["reference"] == "exact samples of the oracle, same labels" and found["network_evaluations"] == 80
    assert (found["steps"], found["n"]) == (40, 600)
    nodes = [found[role]["_target_"].rpartition(".")[2] for role in ("guidance", "sampler")]
    assert nodes == ["Unguided", "Heun"]
    distance = torch.cdist(torch.from_numpy(x).double(), torch.as_tensor(GMM2D.means(), dtype=torch.float64))
    assert (distance.argmin(1) // 2).tolist() == y.tolist()  # each in a mode of its class
    assert "wasserstein_2 0." in done.err and "energy_distance_floor" in done.err


def test_a_guided_run_states_its_distance_to_the_law_that_guidance_names(tmp_path, command):
    """Of two Gaussians on the line, guided at 3; in a sweep as columns; where there is no such law the reason."""
    overlapping = ["oracle=cfg_figure", "sampler.steps=8", "n=300", "batch_size=300"]
    done = command(main, *overlapping, "guidance=cfg", "guidance.scale=3", at=tmp_path)
    assert done.code == 0, done.err
    tilted = metrics(tmp_path / done.folder)["tilted"]
    assert tilted["law"] == "p(x | y)^3 p(x)^-2" and tilted["compared"] == 300
    for name in ("energy_distance", "sliced_wasserstein_2"):
        assert tilted[name]["distance"] > tilted[name]["floor"] > 0 and len(tilted[name]["per_class"]) == 3
    done = command(main, "-m", *overlapping, "guidance=cfg,cfgpp", at=tmp_path)
    assert done.code == 0, done.err
    with open(tmp_path / done.folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["energy_distance_tilted"]) for row in rows] == [True, False]
    found = metrics(tmp_path / rows[1]["folder"])
    assert "names no law" in found["tilted"]["none"]
    line = ["oracle=pair1d", "guidance=cfg", "guidance.scale=-2", "labels=[0]", "n=50", "sampler.steps=4"]
    done = command(main, *line, at=tmp_path)
    assert "not normalisable" in metrics(tmp_path / done.folder)["tilted"]["none"]


def test_fewer_steps_have_a_larger_error(tmp_path, command):
    def distance(steps: int) -> float:
        done = command(main, "oracle=gmm2d", "sampler=euler", f"sampler.steps={steps}", "n=400", at=tmp_path)
        return metrics(tmp_path / done.folder)["sliced_wasserstein_2"]["distance"]

    few, more, many = map(distance, (3, 8, 40))
    assert few > 1.5 * more and more > 1.2 * many


def test_guidance_changes_the_distribution_and_the_file_states_it(tmp_path, command):
    """On the line between N(0, 1) and N(0, 2) / 2 + N(0, 1) / 2, guided at 8: narrower than the class."""
    done = command(main, "oracle=pair1d", "guidance=cfg", "guidance.scale=8", "labels=[0]", "n=300", "trajectory=true",
                   "sampler.steps=8", at=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    found, (x, _) = metrics(tmp_path / done.folder), samples(tmp_path / done.folder)
    assert "unguided" in found["reference"] and found["guidance"]["rule"]["_target_"].endswith("Linear")
    assert x.shape == (300, 1) and x.std() < 0.8
    assert found["wasserstein_2"]["distance"] > 2 * found["wasserstein_2"]["floor"]
    with Image.open(tmp_path / done.folder / "trajectory.gif") as film:
        assert film.n_frames > 4  # equal ones are one frame


def test_an_oracle_is_sampled_in_double_precision(tmp_path, command, monkeypatch):
    """Noise, steps and answers are float64, and only what is stored is float32."""
    kinds, on_step = set(), SampleWriter.on_step

    def note(self, step, x):
        kinds.add(x.dtype)
        on_step(self, step, x)

    monkeypatch.setattr(SampleWriter, "on_step", note)
    assert command(main, "oracle=gmm2d", "n=8", "sampler=ddpm", "sampler.steps=3", at=tmp_path).code == 0
    assert kinds == {torch.float64}


@pytest.mark.parametrize("schedule", ["cosine", "flow", "linear"])
def test_another_schedule_gives_the_same_distribution(tmp_path, command, schedule):
    done = command(main, "oracle=cfg_figure", f"schedule={schedule}", "n=400", "sampler.steps=30", at=tmp_path)
    assert done.code == 0, done.err
    found = metrics(tmp_path / done.folder)["sliced_wasserstein_2"]
    assert found["distance"] < 2 * found["floor"]


def test_many_dimensions_are_shown_along_principal_axes(tmp_path, command):
    done = command(main, "oracle=highdim", "n=60", "sampler.steps=4", "trajectory=true", "labels=null", at=tmp_path)
    assert done.code == 0, done.err
    x, y = samples(tmp_path / done.folder)
    assert x.shape == (60, 64) and set(y.tolist()) == {-1}
    assert (tmp_path / done.folder / "trajectory.gif").is_file()
    assert metrics(tmp_path / done.folder)["wasserstein_2"]["per_class"] == {}


def test_an_empirical_oracle_makes_its_examples(tmp_path, command):
    """At width 0 the flow ends on the training digits, in their class; distances are of bytes, which have no density."""
    from sklearn.datasets import load_digits

    done = command(main, "oracle=empirical", "oracle.width=0.0", "n=20", "png=true", "trajectory=true", at=tmp_path)
    assert done.code == 0, done.err
    folder = tmp_path / done.folder
    x, y = samples(folder)
    assert x.shape == (20, 8, 8, 1) and x.dtype == numpy.uint8 and len(list((folder / "images").iterdir())) == 20
    data, labels = (part[:1000] for part in load_digits(return_X_y=True))
    squares = ((x.reshape(20, 1, 64) / 127.5 - data / 8) ** 2).sum(2)
    nearest = squares.argmin(1)
    assert squares.min(1).max() < 0.05 and labels[nearest].tolist() == y.tolist()
    assert "log_density" not in metrics(folder)
    header = json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])
    assert header["dataset"]["_target_"].endswith("Digits")


def test_the_data_of_an_empirical_oracle_can_be_chosen(tmp_path, command):
    done = command(main, "oracle=empirical", "oracle.width=0.05", "dataset=gmm2d", "n=8", "sampler.steps=3",
                   "dataset.train=100", at=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    assert samples(tmp_path / done.folder)[0].shape == (8, 2)


def test_a_sweep_has_the_figures_as_columns(tmp_path, command):
    done = command(main, "-m", *GMM, "guidance=cfg", "guidance.scale=1,4", at=tmp_path)
    assert done.code == 0, done.err
    assert str(done.folder) == "outputs/sample/gmm2d/sweep_v001-v002"
    with open(tmp_path / done.folder / "sweep.csv", newline="") as file:
        off, on = csv.DictReader(file)
    for row, folder in ((off, "v001"), (on, "v002")):
        found = metrics(tmp_path / "outputs/sample/gmm2d" / folder)
        assert float(row["wasserstein_2"]) == found["wasserstein_2"]["distance"]
        assert float(row["energy_distance_floor"]) == found["energy_distance"]["floor"]
        assert float(row["covariance_error"]) == found["moments"]["covariance"]["error"]
    assert float(on["sliced_wasserstein_2"]) > 1.2 * float(off["sliced_wasserstein_2"]) and "checkpoint" not in on
    assert Image.open(tmp_path / done.folder / "contact_sheet.png").size[0] > 800


def test_images_that_are_not_finite_print_a_note(tmp_path, command):
    arguments = ["oracle=empirical", "guidance=cfg", "n=8", "sampler.steps=4"]
    done = command(main, *arguments, "guidance.scale=1e300", at=tmp_path)
    assert done.code == 0 and "of the 8 samples from 0 on are not finite" in done.err, done.err
    assert "not_finite" not in metrics(tmp_path / done.folder)
    assert "not finite" not in command(main, *arguments, "guidance.scale=1.5", at=tmp_path).err


@pytest.mark.parametrize("sweep", ["oracle=cfg_figure,gmm2d", "oracle=autoguidance_tree oracle.depth=1,2"])
def test_different_distributions_have_a_table_but_no_common_picture(tmp_path, command, sweep):
    """Of different classes, and of the same classes with another law to be drawn under them."""
    done = command(main, "-m", *sweep.split(), "n=8", "sampler.steps=2", "labels=null", at=tmp_path)
    assert done.code == 0 and "Warning" not in done.err, done.err
    assert {path.name for path in (tmp_path / done.folder).iterdir()} == {"sweep.csv"}


def test_one_distribution_has_a_common_picture(tmp_path, command):
    alone = command(main, "-m", "oracle=cfg_figure", "n=8", "sampler.steps=2,3", at=tmp_path)
    assert (tmp_path / alone.folder / "contact_sheet.png").is_file()


def test_a_resumed_run_has_the_same_samples(tmp_path, command, monkeypatch):
    """After SIGTERM, and after a death between metrics.json and samples.npz."""
    whole = command(main, *GMM, "name=whole", at=tmp_path)
    begin = SampleWriter.begin_batch

    def interrupted(self, first):
        if first == 100:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, first)

    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "begin_batch", interrupted)
        stopped = command(main, *GMM, "name=stopped", at=tmp_path)
    assert stopped.code == 143 and not (tmp_path / stopped.folder / "metrics.json").exists()
    assert command(main, f"resume={stopped.folder}", at=tmp_path).code == 0
    folder = Path("outputs/sample/killed/v001")
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_archive", lambda *_: sys.exit(9))
        assert command(main, *GMM, "name=killed", at=tmp_path).code == 9
    assert (tmp_path / folder / "metrics.json").exists() and not (tmp_path / folder / "samples.npz").exists()
    assert command(main, f"resume={folder}", at=tmp_path).code == 0
    for again in (stopped.folder, folder):
        for name in ("samples.npz", "metrics.json", "manifest.jsonl"):
            assert (tmp_path / again / name).read_bytes() == (tmp_path / whole.folder / name).read_bytes()
    done = command(main, f"resume={folder}", at=tmp_path)
    assert done.code == 0 and "nothing is left to do" in done.err


@pytest.fixture
def begun(tmp_path, command, monkeypatch) -> Path:
    """A run of which one batch is done."""

    def interrupted(self, first):
        os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, first)

    begin = SampleWriter.begin_batch
    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "begin_batch", interrupted)
        return command(main, *GMM, at=tmp_path).folder


@pytest.mark.parametrize("arguments, message", {
    "another oracle": (["oracle=highdim"], "cannot change oracle"),
    "another schedule": (["schedule=cosine"], "cannot change schedule"),
    "a checkpoint": (["checkpoint=x"], "checkpoint and oracle are two models"),
    "other weights": (["weights=objective"], "cannot change weights"),
    "data": (["dataset=digits"], "cannot change dataset"),
}.values())  # fmt: skip
def test_a_resumed_run_keeps_its_fixed_keys(begun, tmp_path, command, arguments, message):
    done = command(main, f"resume={begun}", *arguments, at=tmp_path)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err


@pytest.mark.parametrize("key, node", [
    ("oracle", {"_target_": "os.system", "command": "touch canary"}),
    ("oracle", {"_target_": "diffguide.oracles.laws.AutoguidanceTree", "depth": 2, "seed": 0}),
    ("schedule", {"_target_": "pathlib.Path.touch", "self": "canary"}),
    ("dataset", {"_target_": "subprocess.run", "args": ["touch", "canary"]}),
    ("oracle", 3),
])  # fmt: skip
def test_a_changed_run_folder_is_refused(begun, tmp_path, command, key, node):
    """Classes that are no oracle's are not built, and an oracle that is not the one of start.json is not sampled."""
    config = OmegaConf.to_container(OmegaConf.load(tmp_path / begun / "config.yaml")) | {key: node}
    (tmp_path / begun / "config.yaml").write_text(json.dumps(config))
    done = command(main, f"resume={begun}", at=tmp_path)
    assert done.code == 1 and "diffguide-sample: resume: " in done.err and "Traceback" not in done.err, done.err
    assert not (tmp_path / "canary").exists()


REFUSED = {
    "neither": ([], "checkpoint is missing"),
    "both": (["oracle=gmm2d", "checkpoint=x"], "checkpoint and oracle are two models"),
    "a schedule": (["checkpoint=x", "schedule=cosine"], "schedule has no effect"),
    "a part of one": (["checkpoint=x", "schedule.rho=3"], "schedule has no effect"),
    "data": (["checkpoint=x", "dataset=digits"], "only with oracle=empirical"),
    "data of another": (["oracle=gmm2d", "dataset=digits"], "dataset has no effect with diffguide.oracles."),
    "weights": (["oracle=gmm2d", "weights=ema"], "weights has no effect"),
    "trust": (["oracle=gmm2d", "trust=[a.b]"], "trust has no effect"),
    "precision": (["oracle=gmm2d", "engine.precision=bf16-mixed"], "engine.precision=bf16-mixed has no effect"),
    "unknown": (["oracle=gmm"], "oracle=gmm; nearest: gmm2d"),
    "a key": (["oracle=gmm2d", "oracle.size=3"], "there is no key oracle.size"),
    "handed over": (["oracle=gmm2d", "+oracle.schedule=3"], "there is no key oracle.schedule"),
    "a value": (["oracle=highdim", "oracle.std=-1"], "oracle: spread must be at least 0"),
    "beyond memory": (["oracle=highdim", "oracle.dimensions=100000000000"], "oracle: it does not fit into memory"),
    "beyond numbers": (["oracle=highdim", "oracle.std=1e200"], "both below 1e15, got 0.25 and 1e+200"),
    "beyond seeds": (["oracle=autoguidance_tree", "oracle.seed=9999999999"], "seed 0 to 2^32 - 1, got 7 and 9999999999"),
    "no size": (["oracle=gmm2d", "schedule=resolution_shift"], "give schedule.resolution=<value>"),
    "endless restarts": (["oracle=gmm2d", "sampler=restart", "sampler.intervals=[[0.06,0.3,2,inf]]"], "got [2, inf]"),
    "a type": (["oracle=highdim", "oracle.std=x"], "oracle.std must be a number, got 'x'"),
    "no class": (["oracle=gmm2d", "labels=[7]"], "labels: there is no class 7"),
    "no pictures": (["oracle=gmm2d", "png=true"], "png=true needs images"),
    "no data": (["oracle=empirical", "dataset=image_folder"], "dataset.path"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_invalid_input_is_one_line(tmp_path, command, arguments, message):
    done = command(main, *arguments, at=tmp_path)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
    assert done.out == "" and len([line for line in done.err.splitlines() if line]) == 1


def test_a_sampler_that_needs_too_many_evaluations_is_an_error(tmp_path, command):
    done = command(main, "oracle=pair1d", "sampler=dopri5", "sampler.max_evaluations=9", "sampler.atol=1e-12",
                   "sampler.rtol=0", "n=4", at=tmp_path)  # fmt: skip
    assert done.code == 1 and "needs more than max_evaluations=9" in done.err and "Traceback" not in done.err, done.err


def test_the_exact_covariance_is_that_of_an_unguided_oracle(tmp_path, command):
    arguments = ["oracle=pair1d", "sampler=ddpm_exact", "sampler.steps=4", "labels=[0]", "n=400"]
    done = command(main, *arguments, at=tmp_path)
    assert done.code == 0, done.err
    x, _ = samples(tmp_path / done.folder)  # class 0 is N(0, 1): four steps are exact
    assert abs(x.var() - 1) < 4 * (2 / 400) ** 0.5
    done = command(main, *arguments, "guidance=cfg", at=tmp_path)
    assert done.code == 1 and "ExactDDPM needs the exact covariance" in done.err


@pytest.mark.parametrize("oracle", ["gmm2d", "pair1d"])
def test_a_run_that_is_not_finite_finishes_and_reports_it(tmp_path, command, oracle):
    """With its film, whose axes show what is finite."""
    done = command(main, f"oracle={oracle}", "guidance=cfg", "guidance.scale=1e300", "n=8", "sampler.steps=4",
                   "trajectory=true", at=tmp_path)  # fmt: skip
    assert done.code == 0 and "Warning" not in done.err, done.err
    assert metrics(tmp_path / done.folder)["not_finite"] > 0 and "wasserstein_2 nan" in done.err
    assert (tmp_path / done.folder / "trajectory.gif").is_file()
