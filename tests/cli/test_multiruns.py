"""Multiruns: the folder of their notes, what is removed, and packages of launchers."""

import os
from pathlib import Path

import pytest

from diffguide.evaluate import main as evaluate
from diffguide.sample import main as sample
from diffguide.sampling.sweep import create_sweep_dir
from diffguide.train import main as train

TINY = ["oracle=gmm2d", "n=8", "sampler.steps=2"]


@pytest.fixture
def read_only(tmp_path):
    """A folder that is not writable; for root, which ignores permissions, a folder of the kernel."""
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:
        folder = Path("/sys")
        with pytest.raises(OSError):
            (folder / "outputs").mkdir()
    return folder


def test_a_read_only_folder_with_the_runs_elsewhere(read_only, tmp_path, command):
    root = tmp_path / "a, b = c"
    for text in (f"output_root='{root}'", f"output_root='{root}','{tmp_path}/other'"):
        done = command(sample, "-m", *TINY, "seed=0,1", text, at=read_only)
        assert done.code == 0 and "Warning" not in done.err, done.err
    assert sorted(path.name for path in root.iterdir()) == ["sample"]
    assert sorted(path.name for path in (root / "sample/gmm2d").iterdir())[0].startswith("sweep_")


@pytest.mark.parametrize(
    "main, name, said",
    [
        (train, "train", ["training.images=64"]),
        (sample, "sample", TINY),
        (evaluate, "eval", ["oracle=gmm2d"]),
    ],
)
def test_a_folder_of_runs_that_cannot_be_created_is_one_line(read_only, command, main, name, said):
    done = command(main, "-m", *said, "seed=0,1", at=read_only)
    assert done.code == 1 and done.err.startswith(f"diffguide-{name}: output_root: cannot write "), done.err
    assert done.err.count("\n") == 1


def test_only_notes_are_removed(tmp_path, command):
    """hydra.sweep.dir may be a folder with other things in it, numbered JSON files among them; an empty one stays too."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/00000.json").write_text("{}")
    (tmp_path / "mine/.jobs").mkdir()
    (tmp_path / "mine/.jobs/00007.json").write_text('{"error": "of a multirun that was killed"}')
    done = command(sample, "-m", *TINY, "seed=0,1", "hydra.sweep.dir=mine", at=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "mine/00000.json").read_text() == "{}" and not (tmp_path / "mine/.jobs").exists()
    (tmp_path / "empty").mkdir()
    done = command(sample, "-m", *TINY, "seed=-1,-2", "output_root=empty", at=tmp_path)
    assert done.code == 1 and "2 of 2 runs failed" in done.err and list((tmp_path / "empty").iterdir()) == []
    done = command(sample, "-m", *TINY, "seed=-1,-2", "output_root=new/deep", at=tmp_path)
    assert done.code == 1 and not (tmp_path / "new").exists()


def test_jobs_are_in_the_order_of_their_numbers(tmp_path):
    """Whichever run ended first, and took the lower version."""
    digits = [tmp_path / f"digits/v{number:03d}" for number in (3, 1, 1000, 2)]
    digits[0].parent.mkdir()
    assert create_sweep_dir(digits) == tmp_path / "digits/sweep_v001-v1000"
    names = [tmp_path / name for name in ("b/v002", "a/v004", "b/v001", "a/v003")]
    assert create_sweep_dir(names) == tmp_path / "sweep_b_v001-a_v004"


def test_an_unexpected_exception_at_the_end_keeps_its_traceback(tmp_path, command, monkeypatch):
    """Hydra would turn it into a warning, and exit with code 0."""

    def fail(self, jobs):
        raise KeyError("ours")

    monkeypatch.setattr("diffguide.sample.ContactSheet.finish", fail)
    done = command(sample, "-m", *TINY, "seed=0,1", at=tmp_path)
    assert done.code == 1 and "Traceback" in done.err and "KeyError: 'ours'" in done.err


@pytest.mark.parametrize(
    "text, message",
    {
        "hydra/launcher=joblib": "pip install hydra-joblib-launcher",
        "hydra/launcher=submitit_slurm": "pip install hydra-submitit-launcher",
        "hydra/launcher=jobib": "nearest: joblib",
        "hydra/launcher=slurm": "options: basic, joblib",
        "hydra/sweeper=optuna": "pip install hydra-optuna-sweeper",
        "hydra/job_logging=colorlog": "pip install hydra_colorlog",
        "hydra/laucher=basic": "nearest: hydra/launcher",
    }.items(),
)
def test_options_of_packages_that_are_not_installed(tmp_path, command, text, message):
    done = command(train, "-m", text, "seed=0,1", at=tmp_path)
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_parallel_jobs_are_sorted_by_their_numbers(tmp_path, command):
    """With the launcher of joblib, where it is installed: the first job is the slowest."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    said = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "oracle=gmm2d", "n=500", "sampler.steps=100,0,2,3"]
    done = command(sample, "-m", *said, at=tmp_path)
    assert done.code == 1 and "1 of 4 runs failed" in done.err
    assert str(done.folder) == "outputs/sample/gmm2d/sweep_v001-v003"
    rows = [line.split(",")[0] for line in (tmp_path / done.folder / "sweep.csv").read_text().splitlines()]
    assert rows == ["sampler.steps", "100", "2", "3"]
