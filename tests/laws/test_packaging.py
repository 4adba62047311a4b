"""The commands as a newcomer meets them: installed scripts, quick help, every way of running them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import diffguide
from diffguide.nodes import old_names

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
GROUPS = {
    "diffguide-train": "guidance", "diffguide-sample": "guidance", "diffguide-eval": "metric",
    "diffguide-convert": "architecture",
}  # fmt: skip


def run(*command, at: Path, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=at, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CHECKOUT / "configs" / group).glob("*.yaml"))


@pytest.mark.parametrize("name", GROUPS)
def test_help_lists_the_groups_and_imports_neither_torch_nor_numpy(name, tmp_path):
    done = run(SCRIPTS / name, "--help", at=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and name in done.stdout
    assert {*options(GROUPS[name])} <= {*done.stdout.replace(",", " ").replace(f"{GROUPS[name]}=", " ").split()}
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert not {"torch", "numpy", "PIL", "safetensors", "lightning_fabric"} & imported
    assert len(imported) < 600  # about 360 today, torch alone brings 900; seconds are measured by scripts/benchmark.py


def test_the_whole_configuration_is_shown(tmp_path):
    done = run(SCRIPTS / "diffguide-train", "--cfg", "job", "--resolve", "objective=eps", at=tmp_path)
    assert (
        done.returncode == 0
        and "diffguide.models.parameterizations.Eps" in done.stdout
        and "num_classes: 10" in done.stdout
    )
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_overrides_and_is_overridden(tmp_path):
    done = run(SCRIPTS / "diffguide-train", "experiment=gmm2d", "training.batch_size=64", "--cfg", "job", at=tmp_path)
    assert "images: 400000" in done.stdout and "batch_size: 64" in done.stdout and "MLP" in done.stdout


def test_tab_completes_the_options_of_a_group(tmp_path):
    done = run(
        SCRIPTS / "diffguide-train",
        "-sc",
        "query=bash",
        at=tmp_path,
        COMP_LINE="diffguide-train guidance=",
        COMP_POINT="25",
    )
    assert done.stdout.split() == [f"guidance={name}" for name in options("guidance")]


def test_a_bare_checkout_runs_without_an_installation(tmp_path):
    copy = tmp_path / "checkout"
    for part in ("diffguide", "configs"):
        shutil.copytree(CHECKOUT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import diffguide.train; print(diffguide.__file__); diffguide.train.main(['--cfg', 'job'])"
    done = run(sys.executable, "-c", code, at=tmp_path, PYTHONPATH=str(copy))
    assert done.returncode == 0 and str(copy) in done.stdout and "objective:" in done.stdout


def test_own_files_come_by_config_dir_and_a_local_configs_folder_is_ignored(tmp_path):
    own = tmp_path / "mine" / "objective"
    own.mkdir(parents=True)
    (own / "steep.yaml").write_text(
        "defaults: [v]\nweight: {_target_: diffguide.objectives.weights.MinSNR, gamma: 1.0}\n"
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("broken: true\n")
    done = run(SCRIPTS / "diffguide-train", "--config-dir", "mine", "objective=steep", "--cfg", "job", at=tmp_path)
    assert done.returncode == 0 and "gamma: 1.0" in done.stdout and "broken" not in done.stdout


def test_the_top_level_has_only_the_agreed_entries():
    folders = {"configs", "diffguide", "findings", "outputs", "scripts", "tests"}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} | folders
    listed = {path.name for path in CHECKOUT.iterdir() if not path.name.startswith(".")}
    assert listed - {"build", "dist"} == wanted


def test_version_is_stated_once():
    from importlib.metadata import version

    assert version("diffguide") == diffguide.__version__
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == diffguide.__version__ and {"cff-version", "message", "title"} <= {*citation}


def test_the_changelog_names_what_was_renamed():
    words = set(re.findall(r"\w+", (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")))
    options = [pair for renamed in old_names.OPTIONS.values() for pair in renamed.items()]
    classes = [(old.rpartition(".")[2], new.rpartition(".")[2]) for old, new in old_names.CLASSES.items()]
    for old, new in [*options, *classes]:
        assert old == new or {old, new} <= words, f"{old} -> {new}"


def test_the_wheel_ships_the_configuration_and_the_types(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, CHECKOUT]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {"diffguide/py.typed", "diffguide/configs/train.yaml", "diffguide/configs/guidance/cfg.yaml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "outputs/"))]
