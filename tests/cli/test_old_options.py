"""Old names of options: the command uses the new one and prints one notice; in a file the error names the new one."""

import pytest

from diffguide.nodes import old_names
from diffguide.sample import main as sample
from diffguide.train import main as train

ORACLE = ["oracle=gmm2d", "n=2", "sampler.steps=2"]


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setitem(old_names.OPTIONS, "guidance", {"plain": "none", "old": "cfg", "gone": "nowhere"})


@pytest.mark.parametrize(
    "typed, notices",
    [
        (["guidance=plain"], ["guidance=plain is now guidance=none"]),
        (
            ["-m", "guidance=plain,old,'old',apg"],
            ["guidance=plain is now guidance=none", "guidance=old is now guidance=cfg"],
        ),
        (["guidance=compose", "guidance@guidance.parts.cfg=plain", "~guidance.parts"], None),
    ],
)
def test_an_old_option_is_renamed_with_a_notice(tmp_path, command, typed, notices):
    done = command(sample, *ORACLE, *typed, at=tmp_path)
    if notices is not None:
        assert done.code == 0, done.err
    for notice in notices or ["guidance@guidance.parts.cfg=plain is now guidance@guidance.parts.cfg=none"]:
        assert done.err.count(f"{notice}; ") == 1


def test_help_and_added_choices_accept_old_options(tmp_path, command):
    done = command(train, "--help", "guidance=old", at=tmp_path)
    assert done.code == 0 and done.out.startswith("guidance=cfg")
    done = command(train, "+guidance=old", "--cfg", "job", at=tmp_path)
    assert "guidance=cfg, without +" in done.err


def test_an_option_of_the_user_is_not_renamed(tmp_path, command):
    (tmp_path / "mine/guidance").mkdir(parents=True)
    (tmp_path / "mine/guidance/plain.yaml").write_text("# mine\n_target_: diffguide.guidance.Unguided\n")
    for flag in (["--config-dir", "mine"], ["--config-dir=mine"]):
        done = command(sample, *flag, "--help", "guidance=plain", at=tmp_path)
        assert done.code == 0 and done.out.split() == ["guidance=plain", "mine"] and done.err == ""


def test_without_the_new_option_the_old_name_is_a_mistake(tmp_path, command):
    done = command(sample, *ORACLE, "guidance=gone", at=tmp_path)
    assert done.code == 1 and "guidance=gone" in done.err and done.err.count("\n") == 1


def test_a_file_of_the_user_may_name_an_old_option(tmp_path, command):
    (tmp_path / "mine/guidance").mkdir(parents=True)
    (tmp_path / "mine/guidance/own.yaml").write_text("defaults: [old]\n")
    done = command(sample, "--config-dir", "mine", *ORACLE, "guidance=own", at=tmp_path)
    assert done.code == 1 and "its new name is guidance=cfg" in done.err and done.err.count("\n") == 1
