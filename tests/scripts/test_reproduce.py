"""The script of the table of objectives: recorded stages are reused, failed ones are not."""

import json
from threading import Barrier
from types import SimpleNamespace

import pytest
import reproduce_digits


def test_a_recorded_stage_is_not_run_again(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command[2:])
        return SimpleNamespace(returncode=0, stdout=f"outputs/{len(commands)}\n")

    monkeypatch.setattr(reproduce_digits.subprocess, "run", run)
    for seed in (0, 0, 1):  # three calls of the script, the last one with another argument
        stages = reproduce_digits.Stages(tmp_path, "v_0")
        folder = stages.run("train", "train", f"seed={seed}")
    assert commands == [["diffguide.train", f"seed={seed}", "name=v_0_train"] for seed in (0, 1)]
    assert folder == tmp_path / "outputs/2"


def test_an_interrupted_training_is_resumed(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command[3])
        return SimpleNamespace(returncode=1, stdout="")

    monkeypatch.setattr(reproduce_digits.subprocess, "run", run)
    runs, resumed = tmp_path / "outputs/train/x_1_train", "resume=outputs/train/x_1_train/"

    def train(amount, version, checkpoint=True):
        """The first argument of the command that runs if this version exists."""
        if checkpoint:
            (runs / version / "checkpoints").mkdir(parents=True, exist_ok=True)
            (runs / version / "checkpoints/0000000640.safetensors").touch()
        try:
            reproduce_digits.Stages(tmp_path, "x_1").train(f"training.images={amount}")
        except SystemExit:
            return commands[-1]

    assert train(1, "v001", checkpoint=False) == "training.images=1"
    assert train(1, "v001") == resumed + "v001"
    assert train(2, "v001") == "training.images=2"  # not the run of other arguments
    assert train(2, "v002", checkpoint=False) == "training.images=2"
    assert train(2, "v002") == resumed + "v002"


def test_a_failed_stage_is_not_recorded(tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1, stdout="")
    monkeypatch.setattr(reproduce_digits.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(SystemExit, match="v_0: train failed"):
        reproduce_digits.Stages(tmp_path, "v_0").run("train", "train")
    assert not list(tmp_path.glob("*.json"))


def test_rows_run_in_parallel_and_the_table_keeps_their_order(tmp_path, monkeypatch, capsys):
    barrier = Barrier(2, timeout=30)  # a single row would not pass it

    def row(stages, spec, seed, *amounts):
        barrier.wait()
        return {"accuracy": 0.5 + 0.25 * seed, "seconds": len(stages.name)}

    monkeypatch.setattr(reproduce_digits, "measure_row", row)
    reproduce_digits.main(["--rows", "vdm,x0", "--seeds", "2", "--jobs", "2", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()[2:4]
    assert [line.split(" | ")[0] for line in lines] == ["| vdm", "| x0"]
    assert all("| 0.625 +- 0.177 |" in line for line in lines)


def test_a_row_runs_the_metrics_that_its_objective_supports(tmp_path, monkeypatch):
    commands = []

    def run(command, cwd, **options):
        commands.append(next((text for text in command if text.startswith("metric=")), command[2]))
        folder = cwd / f"outputs/{len(list(cwd.glob('outputs/*')))}"
        folder.mkdir(parents=True)
        cost = {"seconds_per_image_and_level": 0.005} if commands[-1] == "metric=classification" else {}
        figures = {
            name: {"value": 0.5} for name in ("nll_x", "accuracy", "agreed_x", "fd_x", "precision_x", "recall_x")
        }
        folder.joinpath("metrics.json").write_text(json.dumps({"figures": figures, "seconds": 7.0, "n": 350} | cost))
        folder.joinpath("metrics.jsonl").write_text("")
        folder.joinpath("manifest.jsonl").write_text('{"network_evaluations": 20}\n')
        return SimpleNamespace(returncode=0, stdout=f"outputs/{folder.name}\n")

    monkeypatch.setattr(reproduce_digits.subprocess, "run", run)
    samples = ["diffguide.train", "diffguide.sample", "metric=quality"]
    expected = {"cdm": [*samples, "metric=log_density", "metric=classification"], "v": [*samples, "metric=zero_shot"]}
    expected["jem_ce"] = ["diffguide.train", "metric=classification"]
    for name, stages in expected.items():
        commands.clear()
        spec, own = reproduce_digits.ROWS[name], tmp_path / name
        own.mkdir()
        found = reproduce_digits.measure_row(
            reproduce_digits.Stages(own, name), spec, 0, "test", None, None, ("elbo", "ode")
        )
        assert commands == stages
        assert found["classify"] == (20.0 if name == "v" else 5.0)
    commands.clear()
    reproduce_digits.measure_row(
        reproduce_digits.Stages(tmp_path / "v", "v"), reproduce_digits.ROWS["v"], 0, "test", None, None
    )
    assert commands == ["metric=elbo", "metric=ode"]  # the other stages are recorded


def test_ablations_add_their_arguments_to_those_of_their_row():
    rows = reproduce_digits.ROWS
    assert rows["jem_ce"].train == (*rows["jem"].train, "objective.ml_weight=0", "objective.energy_l2=0")
    assert rows["cdm_mse"].train == (*rows["cdm"].train, "objective=cdm_mse")


def test_the_seconds_of_a_resumed_training_are_summed(tmp_path):
    lines = [{"images": 1, "seconds": 2.0}, {"images": 1, "validation_loss": 1.0}, {"images": 2, "seconds": 5.0}]
    lines += [{"images": 3, "seconds": 1.5}, {"images": 4, "seconds": 4.0}]  # another process
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert reproduce_digits.seconds_of(tmp_path) == 9.0


def test_a_table_has_means_with_deviations_and_dashes(tmp_path):
    assert [reproduce_digits.format_cell(values, 2) for values in ([], [1.234], [1.0, 3.0])] == [
        "-",
        "1.23",
        "2.00 +- 1.41",
    ]
    reproduce_digits.write_table(tmp_path / "test", [{"objective": "v", "FD": "1.0"}, {"objective": "jem", "FD": "-"}])
    assert (tmp_path / "test.md").read_text() == "| objective | FD |\n|---|---|\n| v | 1.0 |\n| jem | - |\n"
    assert (tmp_path / "test.csv").read_text().splitlines() == ["objective,FD", "v,1.0", "jem,-"]
