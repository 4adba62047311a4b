"""Classes of the user, in the working folder or the folder of a configuration file: found only if they are named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffguide.nodes import user_modules as own_modules
from diffguide.sample import main as sample
from diffguide.train import main as train

HALF = """
from pathlib import Path
import besides
from diffguide.backbones.mlp import MLP
from diffguide.guidance import ClassifierFree
Path("ran").touch()

class Half(ClassifierFree):
    def __init__(self, denoiser, scale):
        super().__init__(denoiser, besides.SHARE * scale, (0.0, float("inf")))

class Net(MLP):
    pass
"""
SHORT = [
    "dataset=gmm2d",
    "backbone=mlp",
    "backbone.width=8",
    "training.images=64",
    "training.batch_size=32",
    "training.checkpoint_images=32",
    "sampler.steps=2",
]
OWN = ["--config-dir", "conf"]


@pytest.fixture
def at(tmp_path) -> Path:
    """A folder with a module, one that it imports, a configuration that names it, and names of installed modules."""
    (tmp_path / "half_guide.py").write_text(HALF)
    (tmp_path / "besides.py").write_text("SHARE = 0.5")
    (tmp_path / "json.py").write_text("raise SystemExit('this json was imported')")
    (tmp_path / "wandb.py").write_text("raise SystemExit('this wandb was imported')")
    (tmp_path / "conf/guidance").mkdir(parents=True)
    (tmp_path / "conf/guidance/mine.yaml").write_text("_target_: half_guide.Half\nscale: 2.0\n")
    return tmp_path


def test_one_file_is_enough_to_train_and_sample(at, command):
    """Training drops labels because the class has needs_null; the checkpoint names no foreign class."""
    done = command(train, *OWN, "guidance=mine", *SHORT, at=at)
    assert done.code == 0, done.err
    config = OmegaConf.load(at / done.folder / "config.yaml")
    assert config.guidance == {"_target_": "half_guide.Half", "scale": 2.0} and config.p_uncond == 0.1
    assert config.objective.p_uncond == 0.1
    said = ["checkpoint=" + str(done.folder), "n=4", "sampler.steps=2"]
    half = command(sample, *OWN, "guidance=mine", *said, at=at)
    full = command(sample, "guidance=cfg", "guidance.scale=1", *said, at=at)
    assert half.code == full.code == 0, half.err
    assert (at / half.folder / "samples.npz").read_bytes() == (at / full.folder / "samples.npz").read_bytes()


def test_modules_of_the_user_are_forgotten_after_a_command(at, command):
    before = list(sys.path), list(sys.meta_path), set(os.environ)
    assert command(sample, *OWN, "guidance=mine", "oracle=gmm2d", "n=2", "sampler.steps=2", at=at).code == 0
    assert before == (list(sys.path), list(sys.meta_path), set(os.environ))
    assert not {"half_guide", "besides", "wandb"} & set(sys.modules)


def test_a_module_beside_the_configuration(at, command):
    for name in ("half_guide.py", "besides.py"):
        (at / name).rename(at / "conf" / name)
    done = command(sample, *OWN, "guidance=mine", "oracle=gmm2d", "n=2", "sampler.steps=2", at=at)
    assert done.code == 0, done.err


def test_a_module_named_on_the_command_line(at, command):
    typed = [
        "guidance=cfg",
        "guidance._target_=half_guide.Half",
        "~guidance.interval",
        "~guidance.rule",
        "~guidance.ramp",
    ]
    done = command(sample, *typed, "oracle=gmm2d", "n=2", "sampler.steps=2", at=at)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "target, message",
    {
        "json.Half": "the installed module json hides",
        "half_gide.Half": "modules of your own are searched in ",
        "half_guide.Hlaf": "nearest: Half",
        "wandb.Half": "SystemExit",
    }.items(),
)
def test_an_import_error_names_the_searched_folders(at, command, target, message):
    (at / "wandb.py").write_text("raise ImportError('SystemExit')")
    (at / "conf/guidance/mine.yaml").write_text(f"_target_: {target}\n")
    done = command(sample, *OWN, "guidance=mine", "oracle=gmm2d", "n=2", at=at)
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1, done.err


def test_a_checkpoint_runs_no_code_that_the_user_did_not_name(at, command):
    """A foreign checkpoint with a foreign module: an error before the import, until the name is trusted."""
    done = command(train, "guidance=none", *SHORT, "backbone._target_=half_guide.Net", at=at)
    assert done.code == 0 and (at / "ran").exists(), done.err
    (at / "ran").unlink()
    said = ["checkpoint=" + str(done.folder), "n=4", "sampler.steps=2"]
    for beside in ([], [*OWN, "guidance=none"], ["trust=[half_guide.Other]"], ["trust=[other_module.Net]"]):
        refused = command(sample, *said, *beside, at=at)
        assert refused.code == 1 and "trust=[half_guide.Net]" in refused.err and not (at / "ran").exists()
    resumed = command(train, f"resume={done.folder}", "training.images=96", at=at)
    assert resumed.code == 1 and "trust=[half_guide.Net]" in resumed.err and not (at / "ran").exists()
    assert command(sample, *said, "trust=[half_guide.Net]", at=at).code == 0 and (at / "ran").exists()
    resumed = command(train, f"resume={done.folder}", "training.images=96", "trust=[half_guide.Net]", at=at)
    assert resumed.code == 0, resumed.err


def test_an_installed_module_is_never_shadowed(at, command):
    """With json.py and wandb.py in the working folder, a library still imports the installed module, or none."""
    (at / "half_guide.py").write_text(HALF + "\nimport json\nassert json.loads('1') == 1\n")
    done = command(sample, *OWN, "guidance=mine", "oracle=gmm2d", "n=2", "sampler.steps=2", at=at)
    assert done.code == 0, done.err
    with own_modules.search_user_modules(["half_guide.Half"], [at]):
        with pytest.raises(ModuleNotFoundError):
            __import__("besides_nothing")
        with pytest.raises(ModuleNotFoundError):
            __import__("wandb")
        assert json is sys.modules["json"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_find_the_module(at, method):
    """Worker processes that unpickle objects of a user's class find its module and the imports of that."""
    code = f"""
import multiprocessing, sys
from diffguide.nodes import user_modules as own_modules
def look(value, queue):
    queue.put((type(value).__module__, value.share()))
if __name__ == "__main__":
    with own_modules.search_user_modules(["readers.Reader"], [{str(at)!r}]):
        with own_modules.allow_neighbour_imports("readers.Reader"):
            from readers import Reader
        context = multiprocessing.get_context({method!r})
        queue = context.Queue()
        process = context.Process(target=look, args=(Reader(), queue))
        process.start()
        print(queue.get(timeout=60))
        process.join()
"""
    (at / "readers.py").write_text(
        "import besides\nclass Reader:\n    def share(self):\n        return besides.SHARE\n"
    )
    (at / "elsewhere").mkdir()
    (at / "elsewhere/program.py").write_text(code)
    done = subprocess.run([sys.executable, "program.py"], cwd=at / "elsewhere", capture_output=True, text=True)
    assert done.stdout == "('readers', 0.5)\n", done.stderr
