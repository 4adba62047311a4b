"""A mistake on the command line is one clear line and code 1; what nobody foresaw keeps its traceback."""

import os
import signal
import subprocess
import sysconfig
import warnings
from pathlib import Path

import pytest
from forked import Command
from process_faults import wait_in_the_building
from small_checkpoint import save

from diffguide.config.build import config_dir
from diffguide.config.diagnose import Names, brief
from diffguide.config.files import ConfigFiles
from diffguide.nodes import annotations
from diffguide.sample import main as sample
from diffguide.sampling import outputs as results
from diffguide.train import main as train
from diffguide.training import loop as training

SCRIPTS = Path(sysconfig.get_path("scripts"))
TRAIN = {
    "key": (["training.imges=3"], "there is no key training.imges; nearest: training.images"),
    "root key": (["sed=3"], "there is no key or group sed; nearest: seed"),
    "last part of a key alone": (["images=3"], "nearest: training.images"),
    "group": (["objectve=eps"], "there is no key or group objectve; nearest: objective"),
    "option": (["objective=epss"], "there is no option objective=epss; nearest: eps; options: cdm, cdm_ce, cdm_mse"),
    "option of a nested group": (["sampler/grid=kars"], "there is no option sampler/grid=kars; nearest: karras"),
    "recipe": (["experiment=gmm3d"], "there is no option experiment=gmm3d; nearest: gmm2d"),
    "option as a key, of a group within itself": (
        ["sampler=restart", "sampler.inner=heun"],
        "an option: sampler@sampler.inner=heun)",
    ),
    "option that does not go with a recipe": (
        ["experiment=vdm_digits", "schedule=edm"],
        "experiment=vdm_digits sets schedule.learned_ends, for schedule=monotone, and schedule=edm has no such key: leave "
        "schedule as the experiment has it, or take out what it sets, ~schedule.learned_ends",
    ),
    "several keys of a recipe": (
        ["experiment=edm_cifar10", "backbone=mlp"],
        "experiment=edm_cifar10 sets backbone.multipliers and backbone.blocks and backbone.dropout, for backbone=unet_32",
    ),
    "option that goes with the rest of a recipe": (
        ["experiment=vdm_digits", "schedule=edm", "~schedule.learned_ends", "seed=-1"],
        "diffguide-train: seed must be a whole number",
    ),
    "number as an option": (["objective=3"], "there is no option objective=3; options"),
    "key of another option": (["guidance=none", "guidance.scale=3"], "guidance=cfg has it"),
    "misspelt key of another option": (["guidance=none", "guidance.scal=3"], "guidance=cfg has guidance.scale"),
    "key of another sampler": (["sampler.eta=1"], "sampler=ddim has it"),
    "argument in a node": (["objective.weight.gama=3"], "there is no key objective.weight.gama"),
    "key in a mapping": (["training={images:3,imges:3}"], "there is no key training.imges; nearest: training.images"),
    "added key": (["+new.key=1"], "there is no key new.key"),
    "added and misspelt": (["+trianing.images=3"], "there is no key trianing.images; nearest: training.images"),
    "added argument": (["+objective.wieght=1"], "there is no key objective.wieght; nearest: objective.weight"),
    "added twice": (["+training.images=3"], "write training.images=3, without +"),
    "added choice": (["+sampler=ddim"], "write sampler=ddim, without +"),
    "two options": (["guidance=[cfg,none]"], "guidance takes one option, got guidance=[cfg,none]"),
    "a list of one option": (["sampler/grid=[karras]"], "sampler/grid takes one option"),
    "two values": (["objective=eps,v"], "objective=eps,v gives several values: run them all with -m"),
    "null for an option": (["sampler=null"], "sampler takes an option, got null: leave it out, or choose one of annealed_"),
    "left out group": (["~objective"], "objective cannot be left out: choose objective=<option>; options: cdm, "),
    "left out key": (["~seed"], "seed cannot be left out: give it a value"),
    "left out argument": (["~backbone.in_channels"], "backbone.in_channels must be given (a whole number)"),
    "left out what is not": (["~objectve"], "there is no key or group objectve; nearest: objective"),
    "several numbers for an option": (["engine=[1,2]"], "engine takes one option, got engine=[1,2]"),
    "node for a value": (["training.keep={_target_:os.getcwd}"], "training.keep_checkpoints must be a whole number, got {"),
    "target that is none": (["objective._target_=3"], "objective must be a node with a _target_"),
    "target that Hydra blocks": (
        ["objective.weight._target_=os.system", "+objective.weight._args_=[ls]"],
        "objective: Target 'os.system' is blocklisted",
    ),
    "line break": (["objective=a\nb"], "cannot read 'objective=a\\nb'"),
    "network beyond memory": (["backbone.channels=100000000"], "backbone: what it asks for does not fit into memory"),
    "network without end": (["backbone.blocks=100000000"], "backbone: it would have more than 65536 layers and tensors"),
    "value for a node": (["training=3"], "training must be a node with a _target_, got 3"),
    "open bracket": (["labels=[1,"], "cannot read 'labels=[1,': a bracket is not closed"),
    "no value": (["seed"], "cannot read 'seed': write seed=<value>"),
    "empty value": (["training.images="], "training.images must be a whole number, got ''"),
    "trailing comma": (["schedule=edm,"], "cannot read 'schedule=edm,': mismatched input at its end; a list is key=[a,b]"),
    "space in a key": (["a b=3"], "a character that a key cannot have"),
    "other package": (["objective@x=eps"], "choice objective@x here; write objective=eps"),
    "misspelt part": (
        ["guidance=classifier_cfg", "guidance@guidance.parts.cgf=apg"],
        "choice guidance@guidance.parts.cgf here; write guidance@guidance.parts.cfg=apg",
    ),
    "option of a part": (
        ["guidance=classifier_cfg", "guidance/rule=apg"], "write guidance/rule@guidance.parts.cfg.rule=apg"
    ),
    "key of a part": (["guidance=classifier_cfg", "guidance.scale=2"], "nearest: guidance.parts.cfg.scale"),
    "broken reference": (["name=${nope}"], "name: Interpolation key 'nope' not found"),
    "absent variable": (["name=${oc.env:NOPE}"], "Environment variable 'NOPE' not found"),
    "value that is asked for": (["dataset.num_classes=???"], "dataset.num_classes must be given (a whole number)"),
    "argument that is asked for": (["backbone.channels=???"], "backbone.channels must be given (a whole number)"),
    "folder of files": (["--config-dir", "nowhere"], "nowhere' not found"),
    "primary configuration": (["--config-name", "nope"], "Cannot find primary config 'nope'"),
    "flag": (["--nope"], "unrecognized arguments: --nope"),
    "key with dashes": (["--training.images=3"], "keys have no dashes, write training.images=3"),
    "flags that do not go together": (["--resolve"], "--resolve flag can only be used in conjunction with --cfg"),
    "Hydra's key": (["hydra.foo=1"], "Could not override 'hydra.foo'; Key 'foo' not in 'HydraConf'"),
    "with --cfg": (["--cfg", "job", "objective=epss"], "there is no option objective=epss"),
    "with --help": (["--help", "objective=epss"], "there is no option objective=epss"),
    "one job of many": (["-m", "objective=eps,epss"], "there is no option objective=epss; nearest: eps"),
    "key in every job": (["-m", "seed=1,2", "training.imges=3"], "there is no key training.imges"),
    "key of some jobs": (["-m", "guidance=cfg,none", "guidance.scale=2"], "no key guidance.scale with guidance=none"),
    "endless sweep": (["-m", "seed=interval(1,3)"], "does not support sweep type"),
    "no such device": (["engine.accelerator=cuda"], "cannot create the engine with accelerator=cuda"),
    "more processes than cores": (["engine.accelerator=cpu", "engine.devices=9999"], "exceeds the"),
    "several values of a list": (["guidance.interval=0.1,5"], "write one list, guidance.interval=[0.1,5]"),
    "several options are no list": (["objective=eps,v"], "run them all with -m\n"),
    "a number as people write it": (["training.images=60,000"], "one number, training.images=60000"),
    "a whole number as a power of ten": (["training.images=1e5"], "got 100000.0; write 100000"),
    "spaces around = in one word": (["guidance.scale = 3"], "no spaces around =, write guidance.scale=3"),
    "a key of another command": (["checkpoint=x"], "no key or group checkpoint; diffguide-sample and diffguide-eval have"),
    "another program's name": (["lr=0.1"], "nearest: training.learning_rate"),
    "key of an option of a nested group": (["objective.weight.gamma=1"], "weight=uniform; objective/weight=p2 has it"),
    "option with the key of its node": (["guidance.rule=apg"], "an option: guidance/rule=apg)"),
    "node that has no options": (["training.optimizer=adam"], "'+training.optimizer={_target_:<module.Class>,_partial_:true}'"),
    "precision that Fabric discourages": (["engine.precision=bf16"], "one of 32-true, 16-mixed, bf16-mixed, "),
    "precision": (["engine.precision=8-bit"], "precision=8-bit: Precision '8-bit' is invalid"),
    "strategy": (["engine.strategy=foo"], "You selected an invalid strategy name"),
    "no devices": (["engine.devices=0"], "accelerator=auto devices=0"),
}  # fmt: skip
SAMPLE = {
    "key": (["sampler.stps=3"], "there is no key sampler.stps with sampler=heun; nearest: sampler.steps"),
    "root key": (["checkpont=x"], "nearest: checkpoint"),
    "another command's group": (["objective=eps"], "objective is no choice of this command; its choices: "),
    "two options": (["guidance=[cfg,none]"], "guidance takes one option"),
    "key without its option": (["guidance.scale=3"], "guidance=cfg has it"),
    "key of many options": (
        ["sampler=restart", "sampler.steps=3"],
        "nearest: sampler.inner.steps, sampler.intervals, sampler.inner; sampler=lms has it; sampler=ddim has it; "
        "sampler=ddpm has it; so have others\n",
    ),
    "choice of another option": (
        ["guidance/rule=apg"],
        "guidance/rule is no choice with guidance=none; guidance=apg has it; guidance=cfg has it; guidance=fdg has it; so have",
    ),
    "grid of an inner sampler": (
        ["sampler/grid=uniform_t", "sampler=restart", "sampler.inner.steps=3"],
        "choice sampler/grid here; write sampler/grid@sampler.inner.grid=uniform_t",
    ),
    "in a sweep": (["-m", "guidance.scale=1,2"], "guidance=cfg has it"),
    "key of a late option": (
        ["guidance.condition=3"],
        "there is no key guidance.condition with guidance=none; guidance=neg",
    ),
    "misspelt key of a late option": (
        ["guidance=cfg", "guidance.backward_step=3"],
        "; guidance=universal has guidance.backward_steps",
    ),
    "key of an option's option": (
        ["guidance.potential.encoder.nmae=x"],
        "guidance=clip has guidance.potential.encoder.name",
    ),
    "pipe": (["checkpoint=pipe"], "checkpoint: no checkpoint in pipe"),
    "foreign file": (
        ["checkpoint=text.safetensors"],
        "text.safetensors is not a checkpoint of diffguide, or is damaged",
    ),
    "key of a group that is null": (["oracle.width=1"], "oracle.width with oracle=null; oracle=empirical has it"),
    "trust": (["checkpoint=good", "trust=my.Net"], "trust must be a list of dotted names"),
}


@pytest.fixture
def at(tmp_path):
    """A folder with a few things that a user might name."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.safetensors").write_text("weights")
    (tmp_path / "good").mkdir()
    save(tmp_path / "good")
    return tmp_path


def check(done, name: str, message: str) -> None:
    lines = [line for line in done.err.splitlines() if line]
    assert done.code == 1 and message in done.err and done.out == ""
    assert len(lines) == 1 and lines[0].startswith(f"{name}: ") and "Traceback" not in done.err


@pytest.mark.parametrize("arguments, message", TRAIN.values(), ids=TRAIN)
def test_training_tells_a_mistake(tmp_path, command, arguments, message):
    check(command(train, *arguments, at=tmp_path), "diffguide-train", message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments, message", SAMPLE.values(), ids=SAMPLE)
def test_sampling_tells_a_mistake(at, command, arguments, message):
    before = sorted(at.iterdir())
    check(command(sample, *arguments, at=at), "diffguide-sample", message)
    assert sorted(at.iterdir()) == before


RIGHT = {
    "an added argument": ["+training.optimizer.eps=1e-7"],
    "another node": ["~training.optimizer", "+training.optimizer={_target_:torch.optim.SGD,_partial_:true,momentum:0.9}",
                     "training.optimizer.momentum=0.5"],
    "a key of one's own that another refers to": ["+width=16", "backbone.channels=${width}"],
    "an argument that has a default, left out": ["~training.images"],
    "forced": ["++training.images=64"],
    "a list": ["backbone.multipliers=[1,1]"],
    "an element of a list": ["backbone.multipliers.1=1"],
    "a mapping": ["training={images:64}"],
    "a nested option": ["sampler/grid=uniform_t"],
    "a text with a comma": ["output_root='a,b'"],
}  # fmt: skip


def run(self, *arguments, **named) -> None:
    """A training run of no steps."""
    folder = next(argument for argument in arguments if isinstance(argument, Path))
    (folder / "samples" / "0.png").touch()


@pytest.mark.parametrize("arguments", RIGHT.values(), ids=RIGHT)
def test_what_is_right_passes(tmp_path, command, monkeypatch, arguments):
    monkeypatch.setattr(training.Training, "run", run)
    done = command(train, *arguments, at=tmp_path)
    assert done.code == 0 and (tmp_path / done.folder).is_dir(), done.err


def test_an_unforeseen_exception_is_not_swallowed(at, command, monkeypatch):
    """Of any type, those that are told where Hydra raises them too; and the traceback shows where."""

    def fail(error):
        def broken(*arguments, **named):
            raise error

        monkeypatch.setattr(training.Training, "run", broken)
        monkeypatch.setattr(results, "finalize_run", broken)

    for error in (RuntimeError("ours"), ValueError("ours"), OSError("ours"), KeyError("ours")):
        fail(error)
        with pytest.raises(type(error), match="ours"):
            command(train, at=at)
        with pytest.raises(type(error), match="ours"):
            command(sample, "checkpoint=good", "n=1", "sampler.steps=1", at=at)
    fail(KeyboardInterrupt())
    done = command(train, at=at)
    assert (
        done.code == 130 and done.err.splitlines()[-1] == "diffguide-train: interrupted" and "Traceback" not in done.err
    )


def test_full_errors_are_for_who_asks(tmp_path, command, monkeypatch):
    """The user's variable is what children of the command see, and what stays."""
    seen = []

    def look(*arguments, **named):
        seen.append(os.environ.get("HYDRA_FULL_ERROR"))
        run(*arguments, **named)

    monkeypatch.setattr(training.Training, "run", look)
    for value in (None, "0", "1"):
        if value is None:
            monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        else:
            monkeypatch.setenv("HYDRA_FULL_ERROR", value)
        assert command(train, at=tmp_path).code == 0
        assert os.environ.get("HYDRA_FULL_ERROR") == value and not any("DIFFGUIDE" in name for name in os.environ)
    assert seen == [None, "0", "1"]
    for arguments in (["objective=epss"], ["seed=-1"]):
        with pytest.raises(Exception, match="epss|seed must be"):
            command(train, *arguments, at=tmp_path)


def test_console_scripts_report_a_mistake_in_one_line(tmp_path):
    """The console scripts, with nothing of this process around them."""
    for name, arguments, message in (
        ("train", ["objective=epss"], "nearest: eps"),
        ("train", ["-m", "seed=1,2", "sed=3"], "nearest: seed"),
        ("sample", ["--nope"], "unrecognized arguments: --nope"),
    ):
        done = subprocess.run([SCRIPTS / f"diffguide-{name}", *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
    full = os.environ | {"HYDRA_FULL_ERROR": "1"}
    command = [SCRIPTS / "diffguide-train", "objective=epss"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=full)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_one_line(tmp_path):
    """Ctrl-C while a command starts: its first line of Python is long past, its first line of output is not."""
    process = Command(train, at=tmp_path / "home", prepare=wait_in_the_building)
    process.wait_for(lambda: "in\n" in process.streams[0].read_text() if process.streams[0].exists() else False)
    process.send_signal(signal.SIGINT)
    out, err = process.finish(130)
    assert err == "diffguide-train: interrupted\n" and out == "in\n"


def test_warnings_about_what_torch_itself_calls_are_not_shown(tmp_path, command):
    """torch.jit, which torch.func.jvp calls for the rate of a schedule."""
    command(sample, "--nope", at=tmp_path)
    first = next(rule for rule in warnings.filters if issubclass(FutureWarning, rule[2]))
    assert first[0] == "ignore" and first[1].match("`torch.jit.script` is deprecated. Please switch to `torch.compile`")
    assert not first[1].match("ours") and first[2] is FutureWarning


def test_keys_of_options_are_those_that_they_compose():
    """Read from the files, without composing: in both commands, for groups in groups and packages of other places."""
    files = ConfigFiles("train", [config_dir()])
    for group, names in {
        "guidance": ("clip", "dps", "cfg"),
        "sampler": ("restart",),
        "schedule": ("resolution_shift",),
    }.items():
        options = Names([], files).options(group)
        assert set(options) == set(files.options(group))
        for name in names:
            composed = Names([f"{group}={name}"], files).keys
            others = {"prompt"} & {*options[name]}
            assert {key for key in composed if key.startswith(f"{group}.")} | others == {*options[name]}


def test_what_hydra_says_beside_is_left_out():
    error = ValueError("Cannot find it.\n\nConfig search path:\n\tprovider=main, path=x\n\tprovider=schema")
    assert brief(error) == "Cannot find it"
    assert brief(KeyError()) == "KeyError"


def test_a_value_fits_its_annotation_or_not():
    assert annotations.fits(1, float) and not annotations.fits(True, float) and not annotations.fits(1.0, int)
    assert annotations.fits(None, int | None) and not annotations.fits("1", int | None)
    assert annotations.object_types(Path | None) == (Path,) and annotations.object_types(int | None) == ()
    assert annotations.parameter_hints(lambda **anything: 0) is None
    assert list(annotations.parameter_hints(Names)) == ["words", "files"]
