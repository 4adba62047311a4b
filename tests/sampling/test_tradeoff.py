"""The end of a sweep: fidelity against diversity, a curve per method, or a message that explains why it is skipped."""

import csv
import json
import socket
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from small_checkpoint import CONFIG, change, put

from diffguide.datasets import Digits
from diffguide.figures import curves
from diffguide.figures.plot_spec import Panel as PlotPanel
from diffguide.figures.plot_spec import Plot
from diffguide.nodes.old_names import update_saved_config
from diffguide.sample import main
from diffguide.sampling import tradeoff
from diffguide.sampling.sources import load_local_dataset
from diffguide.sampling.sweep import create_sweep_dir, describe_overrides, find_axis, load_run
from diffguide.sampling.tradeoff import NoTradeoff, SweepRun
from diffguide.sampling.tradeoff_plot import TradeoffPanel, data_panels, oracle_panels, tradeoff_figure, write_tradeoff

MODEL = "outputs/train/digits/v001"
DIGITS = [f"checkpoint={MODEL}", "guidance=mpgd", "sampler=ddim", "sampler.steps=2"]  # towards brightness


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_a_sweep_of_an_oracle_has_tradeoff_and_curves(tmp_path, command):
    """Two rules: at scale 1 the distance is at its floor; a larger scale makes every class narrower."""
    done = command(main, "-m", "oracle=cfg_figure", "n=240", "sampler.steps=20", "batch_size=240", "guidance=cfg",
                   "guidance/rule=linear,apg", "guidance.scale=1,4", at=tmp_path)  # fmt: skip
    assert done.code == 0 and "no tradeoff.png" not in done.err, done.err
    rows, folder = table(tmp_path / done.folder), tmp_path / done.folder
    assert [row["guidance/rule"] for row in rows] == ["linear", "linear", "apg", "apg"]
    distance, floor, ratio = (
        [float(row[name]) for row in rows] for name in ("energy_distance", "energy_distance_floor", "deviation_ratio")
    )
    assert distance[0] == distance[2] < 1.5 * floor[0] < distance[3] < distance[1] / 4
    assert ratio[0] == ratio[2] == pytest.approx(1, abs=0.05) and ratio[1] < 0.75 < ratio[3] < 0.9
    found = json.loads((tmp_path / rows[1]["folder"] / "metrics.json").read_text())
    assert found["deviation"]["ratio"] == float(rows[1]["deviation_ratio"])
    assert found["deviation"]["exact"] == pytest.approx(1, abs=0.05) and found["deviation"]["exact_std"] < 0.05
    assert size(folder / "tradeoff.png")[0] > 500


def test_a_trained_model_is_compared_with_its_validation_split(at, command):
    """The columns equal those of scikit-learn and of the label classifier on the samples in the run folders."""
    done = command(main, "-m", *DIGITS, "n=30", "guidance.scale=0,0.1", "guidance.interval=[0,inf],[0,1]", at=at)
    assert done.code == 0 and "no tradeoff.png" not in done.err, done.err
    rows, data = table(at / done.folder), Digits(1, 8, 10)
    real, train = (split.x.flatten(1).numpy() for split in (data.validation, data.train))
    ball = NearestNeighbors(n_neighbors=4).fit(real).kneighbors(real)[0][:, 3]
    judge = SVC(C=10, gamma=0.064).fit(train, data.train.y)
    for row in rows:
        with numpy.load(at / row["folder"] / "samples.npz") as arrays:
            x, y = arrays["arr_0"].reshape(30, 64) / 127.5 - 1, arrays["arr_1"]
        distances = numpy.sqrt(((x[:, None] - real[None]) ** 2).sum(2))
        assert float(row["precision"]) == pytest.approx((distances <= ball).any(1).mean())
        own = NearestNeighbors(n_neighbors=4).fit(x).kneighbors(x)[0][:, 3]
        assert float(row["recall"]) == pytest.approx((distances.T <= own).any(1).mean())
        assert float(row["agreed_labels"]) == judge.score(x, y)
        assert float(row["agreed_labels_of_real"]) == judge.score(real, data.validation.y)
        assert {"density", "coverage"} < row.keys() and (
            float(row["potential_evaluations"])
            == (0 if row["guidance.scale"] == "0" else 2 if "inf" in row["guidance.interval"] else 1)
        )
        assert (row["compared"], row["features"], row["reference"]) == ("30", "pixels", "350 validation examples")
    assert size(at / done.folder / "tradeoff.png")[0] > 900  # two panels
    assert {(row["repeated_samples"], row["repeated_real"], row["compared_real"]) for row in rows} == {
        ("0", "0", "350")
    }
    for row in rows:
        assert row["recall_meaningful"] == str(float(row["precision"]) >= 0.05)
    assert ("recall is not meaningful" in done.err) == any(float(row["precision"]) < 0.05 for row in rows)


def test_repeated_samples_are_counted_and_reported(at, command):
    """Every sample occurs four times: recall is 0, and a message explains why."""
    done = command(main, "-m", *DIGITS, "n=40", "guidance.scale=0,0.1", at=at)
    runs = [SweepRun(at / folder, [0] * 40, "", scale) for folder, scale in zip(done.out.split(), ("0", "0.1"))]
    for run in runs:
        file = run.folder / "samples.npz"
        with numpy.load(file) as arrays:
            x, y = arrays["arr_0"], arrays["arr_1"]
        numpy.savez(file, numpy.repeat(x[:10], 4, axis=0), y)
    (file,) = (at / MODEL / "checkpoints").glob("0*64.safetensors")
    columns = tradeoff.compare_with_data(runs, [str(file)] * 2, (1, 8, 8), list("0123456789"))
    assert [(column["repeated_samples"], column["recall"]) for column in columns] == [(30, 0.0)] * 2


def test_a_sweep_over_steps_is_a_curve_over_steps(tmp_path, command, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        curves, "write_curve_figure", lambda path, plot, lines: drawn.update({path.name: (plot, lines)})
    )
    done = command(main, "-m", "oracle=gmm2d", "n=20", "sampler=heun,euler", "sampler.steps=16,2,4", at=tmp_path)
    assert done.code == 0 and size(tmp_path / done.folder / "tradeoff.png")[0] > 400, done.err
    plot, lines = drawn["curves.png"]
    assert (plot.x, plot.logarithmic, list(lines)) == ("sampler.steps", True, ["sampler heun", "sampler euler"])
    rows = table(tmp_path / done.folder)
    for name, line in lines.items():
        assert [row["sampler.steps"] for row in line] == [2, 4, 16]
        own = {row["sampler.steps"]: float(row["energy_distance"]) for row in rows if row["sampler"] == name.split()[1]}
        assert [row["energy_distance"] for row in line] == [own["2"], own["4"], own["16"]]


def test_points_with_meaningless_recall_are_hollow():
    rows = [{"n": 2.0, "recall": 1.0, "recall_meaningful": False}, {"n": 4.0, "recall": 0.5, "recall_meaningful": True}]
    (axis,) = curves.draw_curves(Plot("c", "n", "n", True, [PlotPanel("recall", "recall")]), {"": rows}).axes
    hollow = [line for line in axis.lines if line.get_label() == curves.HOLLOW_LABEL]
    assert [line.get_xydata().tolist() for line in hollow] == [[[2, 1]]] and "0.05" in curves.HOLLOW_LABEL
    assert [text.get_text() for text in axis.get_xticklabels()] == ["2", "4"]
    columns = [{"recall": row["recall"], "precision": k / 10, "recall_meaningful": k > 0} for k, row in enumerate(rows)]
    figure = tradeoff_figure(data_panels(columns)[0], [run("a", "2"), run("a", "4")], columns, "note")
    hollow = [line for line in figure.axes[0].lines if line.get_label() == curves.HOLLOW_LABEL]
    assert [line.get_xydata().tolist() for line in hollow] == [[[1, 0]]]


def test_samples_without_classes_have_no_agreed_labels(at, command):
    done = command(main, "-m", *DIGITS, "n=20,24", "labels=null", at=at)
    assert done.code == 0 and (at / done.folder / "tradeoff.png").is_file(), done.err
    rows = table(at / done.folder)
    assert [row["compared"] for row in rows] == ["20", "20"]  # the same number per run: recall grows with it
    assert "recall" in rows[0] and "agreed_labels" not in rows[0]


NOWHERE = {"_target_": "diffguide.datasets.image_folder.ImageFolder", "path": "moved/away", "channels": 1, "size": 8,
           "num_classes": 10, "resize": None, "stretch": False, "flip": False, "validation": 0.1, "test": 0.1,
           "memory": 1e9, "workers": 0}  # fmt: skip
MNIST = {"_target_": "diffguide.datasets.downloads.MNIST", "root": "data", "download": True, "channels": 1, "size": 8,
         "num_classes": 10, "flip": False, "validation": 5000}  # fmt: skip
FOREIGN = {"_target_": "subprocess.Popen", "args": ["touch", "canary"]}
GONE = {
    "moved": (NOWHERE, "cannot be read (dataset.path is moved/away"),
    "not downloaded": (MNIST, "cannot be read (dataset.path is data"),
    "not ours": (FOREIGN, "cannot be read (dataset names subprocess.Popen"),
}


@pytest.mark.parametrize("node, sentence", GONE.values(), ids=GONE)
def test_unavailable_data_are_one_line_without_a_download(at, command, monkeypatch, node, sentence):
    """One line, no download, and the other files of the sweep."""
    monkeypatch.setattr(socket.socket, "connect", None)  # a connection would raise a TypeError
    (file,) = (at / MODEL / "checkpoints").glob("0*64.safetensors")
    change(file, file, put("config.dataset", node))
    done = command(main, "-m", *DIGITS, "n=20", "guidance.scale=0,0.1", at=at)
    told = [line for line in done.err.splitlines() if line.startswith("no tradeoff.png: ")]
    assert done.code == 0 and len(told) == 1 and sentence in told[0], done.err
    assert {path.name for path in (at / done.folder).iterdir()} == {"contact_sheet.png", "sweep.csv"}
    assert "precision" not in table(at / done.folder)[0] and not (at / "canary").exists() and not (at / "data").exists()


def test_a_stopped_comparison_keeps_the_other_files(at, command, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tradeoff, "compare_with_data", stopped)
    done = command(main, "-m", *DIGITS, "n=20", "guidance.scale=0,0.1", at=at)
    (folder,) = (at / "outputs/sample/digits").glob("sweep_*")
    assert done.code == 130 and len(table(folder)) == 2 and (folder / "contact_sheet.png").is_file()


def test_too_few_samples_skip_the_tradeoff_with_a_message(at, command, tmp_path):
    sentence = "at least 20 samples per run, got n=4"
    for arguments in (DIGITS, ["oracle=gmm2d", "guidance=mpgd", "sampler.steps=2"]):
        done = command(main, "-m", *arguments, "n=4", "guidance.scale=0,0.1", at=at)
        assert done.code == 0 and sentence in done.err, done.err
        assert {path.name for path in (at / done.folder).iterdir()} == {"contact_sheet.png", "sweep.csv"}


def test_data_that_do_not_fit_raise(at):
    """Samples of another shape, two data sets, and too few validation examples."""
    (first,) = (at / MODEL / "checkpoints").glob("0*64.safetensors")
    files = {}
    for name, changes in {"other": {}, "few": {"validation": 5}}.items():
        node = CONFIG["dataset"] | changes
        files[name] = str(change(first, at / f"{name}.safetensors", put("config.dataset", node)))
    for shape, used, sentence in (
        ((1, 8, 8), [files["other"]], r"\[2\].*\[1, 8, 8\]"),
        ((1, 8, 8), [str(first), files["other"]], "different data"),
        ((2,), [files["few"]], "5 validation examples"),
    ):
        with pytest.raises(NoTradeoff, match=sentence):
            tradeoff.compare_with_data([run("", "1")] * len(used), used, shape, list("0123"))


def test_data_sets_are_loaded_from_local_files_only():
    """`download` is off, also if the checkpoint has download=true."""
    node = {"_target_": "diffguide.datasets.digits.Digits", "channels": 1, "size": 8, "num_classes": 10}
    assert torch.equal(load_local_dataset(node).validation.y, torch.from_numpy(load_digits().target[1000:1350]))
    with pytest.raises(ValueError, match="dataset.path is data"):
        load_local_dataset(update_saved_config(MNIST))


def run(method: str, scale: str) -> SweepRun:
    return SweepRun(Path("v001"), [0] * 20, method, scale)


def test_a_curve_per_method_in_the_order_of_its_scales():
    runs = [run("apg", "4"), run("linear", "10"), run("apg", "1"), run("linear", "2"), run("linear", "lost")]
    columns = [{"a": float(k), "b": 10.0 * k} for k in range(4)] + [{"a": float("nan"), "b": 1.0}]
    panels = [
        TradeoffPanel("a", "b", ("wide", "good"), [(7.0, "real")], best=0.5),
        TradeoffPanel("b", "a", ("w", "g"), log=True),
    ]
    first, second = tradeoff_figure(panels, runs, columns, "note").axes
    lines = {line.get_label(): line for line in first.lines}
    assert lines["apg"].get_xydata().tolist() == [[2, 20], [0, 0]]
    assert lines["linear"].get_xydata()[:2].tolist() == [[3, 30], [1, 10]]
    assert [(text.get_text(), *text.xy) for text in first.texts] == [
        ("1", 2, 20),
        ("4", 0, 0),
        ("2", 3, 30),
        ("10", 1, 10),
    ]
    assert list(lines["real"].get_ydata()) == [7, 7] and first.lines[-1].get_xdata() == pytest.approx([0.5, 0.5])
    assert (first.get_xlabel(), first.get_ylabel(), first.get_yscale()) == ("wide", "good", "linear")
    assert second.get_yscale() == "log" and len(second.lines) == 2
    (legend,) = first.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["apg", "linear", "real"]


def test_figures_that_are_not_finite_in_any_run_raise(tmp_path):
    lost = [{"deviation_ratio": float("nan"), "energy_distance": float("nan"), "energy_distance_floor": 0.1}]
    with pytest.raises(NoTradeoff, match="deviation_ratio and energy_distance"):
        write_tradeoff(tmp_path / "t.png", oracle_panels(lost)[0], [run("", "1")], lost, "")


def test_a_method_is_named_by_the_last_parts_of_its_keys():
    """The whole key if two keys end with the same part."""
    overrides = {"guidance/rule": "apg", "guidance.interval": "[0.3,2]", "sampler/grid@guidance.ramp": "linear",
                 "checkpoint": "/far/away/outputs/train/digits/v002", "a.scale": "1", "b.scale": "2"}  # fmt: skip
    assert describe_overrides(overrides, list(overrides)[:3]) == "rule apg interval [0.3,2] ramp linear"
    assert describe_overrides(overrides, ["a.scale", "guidance.interval"], "\n") == "scale 1\ninterval [0.3,2]"
    assert describe_overrides(overrides, ["checkpoint"]) == "checkpoint digits/v002"
    assert describe_overrides(overrides, ["a.scale", "b.scale"]) == "a.scale 1 b.scale 2"


@pytest.mark.parametrize("varying, method, number", [
    (["guidance.scale", "guidance.interval"], "interval [1,2]", "3"),
    (["guidance.scale"], "Nested", "3"),
    (["guidance.parts.apg.scale", "guidance.interval"], "interval [1,2]", "5"),
    (["guidance.parts.apg.scale", "guidance.scale"], "scale 5", "3"),
    (["guidance.parts.apg.scale", "guidance.parts.cfg.scale"], "guidance.parts.apg.scale 5 guidance.parts.cfg.scale 7", ""),
    (["sampler.steps"], "Nested", "18"),
    (["sampler.steps", "guidance.scale"], "steps 18", "3"),
    (["sampler.steps", "n", "sampler"], "n 40 sampler heun", "18"),
    (["guidance.rule.rescale", "seed"], "seed 1", "0.7"),
    (["n", "guidance.rule.rescale"], "n 40 rescale 0.7", ""),
    (["seed"], "seed 1", ""),
    (["sampler"], "sampler heun", ""),
])  # fmt: skip
def test_a_curve_follows_the_scale_else_the_steps_else_the_only_number(tmp_path, varying, method, number):
    numpy.savez(tmp_path / "samples.npz", numpy.zeros((2, 2)), numpy.array([1, -1]))
    overrides = {"guidance.scale": "3", "guidance.interval": "[1,2]", "guidance.parts.apg.scale": "5",
                 "guidance.parts.cfg.scale": "7", "sampler.steps": "18", "sampler": "heun", "n": "40", "seed": "1",
                 "guidance.rule.rescale": "0.7"}  # fmt: skip
    header = {"guidance": {"_target_": "diffguide.guidance.nested.Nested"}}
    job = {"folder": str(tmp_path), "overrides": overrides, "header": header}
    assert load_run(job, varying, find_axis([job], varying)) == SweepRun(tmp_path, [1, -1], method, number)


def test_a_sweep_folder_lies_beside_its_runs(tmp_path):
    """With the runs of one name; for several names beside their folders, with the first and the last name."""
    digits, tree = [tmp_path / "digits" / f"v00{k}" for k in (1, 2)], tmp_path / "tree/v003"
    digits[0].parent.mkdir()
    assert create_sweep_dir(digits) == tmp_path / "digits/sweep_v001-v002"
    assert create_sweep_dir(digits) == tmp_path / "digits/sweep_v001-v002_2"
    assert create_sweep_dir([*digits, tree]) == tmp_path / "sweep_digits_v001-tree_v003"
    assert create_sweep_dir([digits[0], tree, digits[1]]) == tmp_path / "sweep_digits_v001-digits_v002"
