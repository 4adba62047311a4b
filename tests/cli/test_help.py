"""What --help prints: every key with its comment and its default, the groups of the command, and one option alone."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diffguide.config.build import config_dir
from diffguide.config.files import ConfigFiles, dotted_keys
from diffguide.config.key_comments import describe_file
from diffguide.convert import main as convert
from diffguide.evaluate import main as evaluate
from diffguide.sample import main as sample
from diffguide.train import main as train

MAINS = {"train": train, "sample": sample, "evaluate": evaluate, "convert": convert}


def words(text: str) -> str:
    """A page without its line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize("name", MAINS)
@pytest.mark.parametrize("columns", [80, 120])
def test_every_key_has_its_comment_and_every_group_is_of_the_command(tmp_path, command, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = command(MAINS[name], "--help", at=tmp_path)
    assert done.code == 0 and done.err == "" and list(tmp_path.iterdir()) == []
    lines, page = done.out.splitlines(), words(done.out)
    assert max(map(len, lines)) <= columns and len(lines) < 240
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose(name, [])
    for key in dotted_keys(OmegaConf.to_container(cfg)):
        if not re.search(r"\.\d+$|_target_|_partial_", key) and not OmegaConf.is_dict(OmegaConf.select(cfg, key)):
            assert f" {key}=" in page, key
    for key, comment in describe_file(ConfigFiles(name, [config_dir()]).path(name)).keys.items():
        if key.split(".")[0] not in ("hydra", "defaults") and not key.endswith("_"):
            assert comment in page, key
    others = {"train": ["oracle=", "metric=", "label_dropout"], "sample": ["objective=", "metric=", "experiment="],
              "evaluate": ["objective=", "sampler=heun", "experiment="],
              "convert": ["objective=", "sampler=", "experiment="]}  # fmt: skip
    assert not [group for group in others[name] if f" {group}" in page]


@pytest.mark.parametrize("said, shown, hidden", [
    ("dataset=image_folder", ["dataset.path=... must be given: the folder", "dataset.size=64 side of "], "backbone"),
    ("guidance=apg", ["guidance/rule=apg", "guidance.rule.norm_threshold=15 largest", "guidance.interval=[0,inf]"], "seed"),
    ("sampler=heun", ["sampler.steps=18 steps from noise to data", "sampler.grid.rho=7 exponent"], "guidance"),
    ("objective/weight=p2", ["objective.weight.gamma=1 how strongly", "objective.weight.k=1"], "objective.p_uncond"),
    ("experiment=vdm_digits", ["objective=vdm", "schedule.learned_ends=true whether", "training.images=180000"], "seed"),
    ("schedule=edm", ["schedule.log_snr_max=12.429216196844383"], "seed"),
    ("guidance", ["* guidance=cfg classifier-free guidance", "guidance=none no guidance"], "scale=2"),
    ("training", ["training.keep_checkpoints=3 newest checkpoints", "training.optimizer={AdamW} any torch optimiser"], "seed"),
    ("sampler.steps", ["sampler.steps=18 steps from noise to data"], "churn"),
    ("seed=3", ["seed=3 of weights, data order and noise"], "training"),
    ("name", ["name=<dataset> of the run"], "seed"),
    ("p_uncond", ["p_uncond=null probability"], "seed"),
])  # fmt: skip
def test_one_word_is_explained_alone(tmp_path, command, said, shown, hidden):
    done = command(train, "--help", said, at=tmp_path)
    assert done.code == 0 and done.err == "" and all(text in words(done.out) for text in shown), done.out
    assert hidden not in done.out


def test_resolve_shows_the_values_of_references(tmp_path, command):
    done = command(train, "dataset=gmm2d", "--help", "name", "--resolve", "backbone.num_classes", at=tmp_path)
    assert "name=gmm2d " in words(done.out) and "backbone.num_classes=4 " in words(done.out)


def test_help_shows_the_options_of_the_user(tmp_path, command):
    (tmp_path / "mine/guidance").mkdir(parents=True)
    (tmp_path / "mine/guidance/steep.yaml").write_text("# steeper\n_target_: my.Steep\nslope: 3  # per level\n")
    done = command(sample, "--help", "guidance=steep", "--config-dir", "mine", at=tmp_path)
    assert words(done.out) == "guidance=steep steeper guidance.slope=3 per level"


def test_a_misspelt_word_is_explained(tmp_path, command):
    done = command(train, "--help", "sed", at=tmp_path)
    assert done.code == 1 and done.err == "diffguide-train: there is no key or group sed; nearest: seed\n"
    done = command(sample, "--help", "objective=eps", at=tmp_path)
    assert done.code == 1 and "objective is no choice of this command" in done.err


def test_a_closed_pipe_prints_no_error():
    """--help | head prints no error."""
    script = Path(sysconfig.get_path("scripts")) / "diffguide-train"
    done = subprocess.run(f"{script} --help --hydra-help | true", shell=True, capture_output=True, text=True)
    assert done.stderr == ""
