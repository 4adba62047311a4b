"""A mistake on the command line gives one line and exit code 1; an unexpected exception keeps its traceback."""

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
from diffguide.config.diagnose import Names, format_error
from diffguide.config.files import ConfigFiles
from diffguide.nodes import annotations
from diffguide.sample import main as sample
from diffguide.sampling import outputs as results
from diffguide.train import main as train
from diffguide.training import loop as training

SCRIPTS = Path(sysconfig.get_path("scripts"))
TRAIN = {
    "key": (["training.imges=3"], "imges; nearest: training.images"),
    "root key": (["sed=3"], "there is no key or group sed; nearest: seed"),
    "last part of a key alone": (["images=3"], "nearest: training.images"),
    "group": (["objectve=eps"], "objectve; nearest: objective"),
    "option": (["objective=epss"], "objective=epss; nearest: eps; options: autoencoder, "),
    "option of a nested group": (["sampler/grid=kars"], "sampler/grid=kars; nearest: karras"),
    "recipe": (["experiment=gmm3d"], "experiment=gmm3d; nearest: gmm2d"),
    "option as a key, of a group within itself": (
        ["sampler=restart", "sampler.inner=heun"],
        "an option: sampler@sampler.inner=heun)",
    ),
    "option that does not go with a recipe": (
        ["experiment=vdm_digits", "schedule=edm"],
        "remove it with ~schedule.learned_ends",
    ),
    "several keys of a recipe": (
        ["experiment=edm_cifar10", "backbone=mlp"],
        "remove it with ~backbone.",
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
    "key in a mapping": (["training={images:3,imges:3}"], "imges; nearest: training.images"),
    "added key": (["+new.key=1"], "there is no key new.key"),
    "added and misspelt": (["+trianing.images=3"], "trianing.images; nearest: training.images"),
    "added argument": (["+objective.wieght=1"], "objective.wieght; nearest: objective.weight"),
    "added twice": (["+training.images=3"], "remove + prefix: 'training.images=3'"),
    "added choice": (["+sampler=ddim"], "write sampler=ddim, without +"),
    "two options": (["guidance=[cfg,none]"], "guidance takes one option"),
    "a list of one option": (["sampler/grid=[karras]"], "sampler/grid takes one option"),
    "two values": (["objective=eps,v"], "objective=eps,v has several values"),
    "null for an option": (["sampler=null"], "sampler takes an option, got null"),
    "left out group": (["~objective"], "choose objective=<option>; options: autoencoder, "),
    "left out key": (["~seed"], "give it a value, seed=<value>"),
    "left out argument": (["~backbone.in_channels"], "backbone.in_channels must be given"),
    "left out what is not": (["~objectve"], "objectve; nearest: objective"),
    "several numbers for an option": (["engine=[1,2]"], "engine takes one option, got engine=[1,2]"),
    "node for a value": (["training.keep_checkpoints={_target_:os.getcwd}"], "training.keep_checkpoints must be"),
    "target that is none": (["objective._target_=3"], "objective must be a node with a _target_"),
    "target that Hydra blocks": (
        ["objective.weight._target_=os.system", "+objective.weight._args_=[ls]"],
        "objective: Target 'os.system' is blocklisted",
    ),
    "line break": (["objective=a\nb"], "cannot read 'objective=a\\nb'"),
    "network beyond memory": (["backbone.channels=100000000"], "backbone: it does not fit into memory"),
    "network without end": (["backbone.blocks=100000000"], "backbone: it would have more than 65536"),
    "value for a node": (["training=3"], "training must be a node"),
    "open bracket": (["labels=[1,"], "'labels=[1,': a bracket is not closed"),
    "no value": (["seed"], "cannot read 'seed': write seed=<value>"),
    "empty value": (["training.images="], "training.images must be a whole number"),
    "trailing comma": (["schedule=edm,"], "cannot read 'schedule=edm,'"),
    "space in a key": (["a b=3"], "a character that a key cannot have"),
    "other package": (["objective@x=eps"], "choice objective@x here; write objective=eps"),
    "misspelt part": (
        ["guidance=classifier_cfg", "guidance@guidance.parts.cgf=apg"],
        "write guidance@guidance.parts.cfg=apg",
    ),
    "option of a part": (["guidance=classifier_cfg", "guidance/rule=apg"], "guidance/rule@guidance.parts.cfg.rule=apg"),
    "key of a part": (["guidance=classifier_cfg", "guidance.scale=2"], "nearest: guidance.parts.cfg.scale"),
    "broken reference": (["name=${nope}"], "name: Interpolation key 'nope' not found"),
    "absent variable": (["name=${oc.env:NOPE}"], "Environment variable 'NOPE' not found"),
    "value that is asked for": (["dataset.num_classes=???"], "dataset.num_classes must be given"),
    "argument that is asked for": (["backbone.channels=???"], "backbone.channels must be given"),
    "folder of files": (["--config-dir", "nowhere"], "nowhere' not found"),
    "primary configuration": (["--config-name", "nope"], "Cannot find primary config 'nope'"),
    "flag": (["--nope"], "unrecognized arguments: --nope"),
    "key with dashes": (["--training.images=3"], "keys have no dashes, write training.images=3"),
    "flags that do not go together": (["--resolve"], "--resolve flag can only be used"),
    "Hydra's key": (["hydra.foo=1"], "Could not override 'hydra.foo'"),
    "with --cfg": (["--cfg", "job", "objective=epss"], "there is no option objective=epss"),
    "with --help": (["--help", "objective=epss"], "there is no option objective=epss"),
    "one job of many": (["-m", "objective=eps,epss"], "objective=epss; nearest: eps"),
    "key in every job": (["-m", "seed=1,2", "training.imges=3"], "there is no key training.imges"),
    "key of some jobs": (["-m", "guidance=cfg,none", "guidance.scale=2"], "no key guidance.scale with guidance=none"),
    "endless sweep": (["-m", "seed=interval(1,3)"], "does not support sweep type"),
    "no such device": (["engine.accelerator=cuda"], "engine with accelerator=cuda"),
    "more processes than cores": (["engine.accelerator=cpu", "engine.devices=9999"], "exceeds the"),
    "several values of a list": (["guidance.interval=0.1,5"], "write one list, guidance.interval=[0.1,5]"),
    "several options are no list": (["objective=eps,v"], "run them all with -m\n"),
    "a number as people write it": (["training.images=60,000"], "one number, training.images=60000"),
    "a whole number as a power of ten": (["training.images=1e5"], "got 100000.0; write 100000"),
    "spaces around = in one word": (["guidance.scale = 3"], "no spaces around =, write guidance.scale=3"),
    "a key of another command": (["checkpoint=x"], "a key of diffguide-sample and diffguide-eval"),
    "another program's name": (["lr=0.1"], "nearest: training.learning_rate"),
    "key of an option of a nested group": (["objective.weight.gamma=1"], "weight=uniform; objective/weight=p2 has it"),
    "option with the key of its node": (["guidance.rule=apg"], "an option: guidance/rule=apg)"),
    "node that has no options": (["training.optimizer=adam"], "'+training.optimizer={_target_:"),
    "precision that Fabric discourages": (["engine.precision=bf16"], "one of auto, 32-true, 16-mixed, bf16-mixed, "),
    "precision": (["engine.precision=8-bit"], "precision=8-bit: Precision '8-bit' is invalid"),
    "strategy": (["engine.strategy=foo"], "You selected an invalid strategy name"),
    "no devices": (["engine.devices=0"], "accelerator=auto devices=0"),
}
SAMPLE = {
    "key": (["sampler.stps=3"], "sampler=heun; nearest: sampler.steps"),
    "root key": (["checkpont=x"], "nearest: checkpoint"),
    "another command's group": (["objective=eps"], "objective is no choice of this command"),
    "two options": (["guidance=[cfg,none]"], "guidance takes one option"),
    "key without its option": (["guidance.scale=3"], "guidance=cfg has it"),
    "key of many options": (
        ["sampler=restart", "sampler.steps=3"],
        "nearest: sampler.inner.steps, ",
    ),
    "choice of another option": (
        ["guidance/rule=apg"],
        "guidance=cfg has it",
    ),
    "grid of an inner sampler": (
        ["sampler/grid=uniform_t", "sampler=restart", "sampler.inner.steps=3"],
        "write sampler/grid@sampler.inner.grid=",
    ),
    "in a sweep": (["-m", "guidance.scale=1,2"], "guidance=cfg has it"),
    "key of a late option": (
        ["guidance.condition=3"],
        "with guidance=none; guidance=negative has it",
    ),
    "misspelt key of a late option": (
        ["guidance=cfg", "guidance.backward_step=3"],
        "universal has guidance.backward_steps",
    ),
    "key of an option's option": (
        ["guidance.potential.encoder.nmae=x"],
        "clip has guidance.potential.encoder.name",
    ),
    "pipe": (["checkpoint=pipe"], "checkpoint: no checkpoint in pipe"),
    "foreign file": (
        ["checkpoint=text.safetensors"],
        "text.safetensors is not a checkpoint",
    ),
    "key of a group that is null": (["oracle.width=1"], "oracle=null; oracle=empirical has it"),
    "trust": (["checkpoint=good", "trust=my.Net"], "trust must be a list"),
}


@pytest.fixture
def at(tmp_path):
    """A folder with a pipe, a foreign file and a checkpoint."""
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
def test_a_mistake_in_training_is_one_line(tmp_path, command, arguments, message):
    check(command(train, *arguments, at=tmp_path), "diffguide-train", message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments, message", SAMPLE.values(), ids=SAMPLE)
def test_a_mistake_in_sampling_is_one_line(at, command, arguments, message):
    before = sorted(at.iterdir())
    check(command(sample, *arguments, at=at), "diffguide-sample", message)
    assert sorted(at.iterdir()) == before


RIGHT = {
    "an added argument": ["+training.optimizer.eps=1e-7"],
    "another node": [
        "~training.optimizer",
        "+training.optimizer={_target_:torch.optim.SGD,_partial_:true,momentum:0.9}",
        "training.optimizer.momentum=0.5",
    ],
    "a key of one's own that another refers to": ["+width=16", "backbone.channels=${width}"],
    "an argument that has a default, left out": ["~training.images"],
    "forced": ["++training.images=64"],
    "a list": ["backbone.multipliers=[1,1]"],
    "an element of a list": ["backbone.multipliers.1=1"],
    "a mapping": ["training={images:64}"],
    "a nested option": ["sampler/grid=uniform_t"],
    "a text with a comma": ["output_root='a,b'"],
}


UNTIMED = "engine.precision=32-true"  # auto times steps of a training as long as the default


def run(self, *arguments, **named) -> None:
    """A training run of no steps."""
    folder = next(argument for argument in arguments if isinstance(argument, Path))
    (folder / "samples" / "0.png").touch()


@pytest.mark.parametrize("arguments", RIGHT.values(), ids=RIGHT)
def test_valid_overrides_are_accepted(tmp_path, command, monkeypatch, arguments):
    monkeypatch.setattr(training.Training, "run", run)
    done = command(train, UNTIMED, *arguments, at=tmp_path)
    assert done.code == 0 and (tmp_path / done.folder).is_dir(), done.err


def test_an_unexpected_exception_keeps_its_traceback(at, command, monkeypatch):
    """Also of the types that are reported in one line where Hydra raises them."""

    def fail(error):
        def broken(*arguments, **named):
            raise error

        monkeypatch.setattr(training.Training, "run", broken)
        monkeypatch.setattr(results, "finalize_run", broken)

    for error in (RuntimeError("ours"), ValueError("ours"), OSError("ours"), KeyError("ours")):
        fail(error)
        with pytest.raises(type(error), match="ours"):
            command(train, UNTIMED, at=at)
        with pytest.raises(type(error), match="ours"):
            command(sample, "checkpoint=good", "n=1", "sampler.steps=1", at=at)
    fail(KeyboardInterrupt())
    done = command(train, UNTIMED, at=at)
    assert (
        done.code == 130 and done.err.splitlines()[-1] == "diffguide-train: interrupted" and "Traceback" not in done.err
    )


def test_hydra_full_error_shows_the_traceback(tmp_path, command, monkeypatch):
    """The variable of the user reaches the processes that the command starts, and is unchanged afterwards."""
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
        assert command(train, UNTIMED, at=tmp_path).code == 0
        assert os.environ.get("HYDRA_FULL_ERROR") == value and not any("DIFFGUIDE" in name for name in os.environ)
    assert seen == [None, "0", "1"]
    for arguments in (["objective=epss"], ["seed=-1"]):
        with pytest.raises(Exception, match="epss|seed must be"):
            command(train, *arguments, at=tmp_path)


def test_console_scripts_report_a_mistake_in_one_line(tmp_path):
    """In a process of their own."""
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


def test_an_interrupt_is_reported_in_one_line(tmp_path):
    """Ctrl-C while a command starts: its first line of Python is long past, its first line of output is not."""
    process = Command(train, at=tmp_path / "home", prepare=wait_in_the_building)
    process.wait_for(lambda: "in\n" in process.streams[0].read_text() if process.streams[0].exists() else False)
    process.send_signal(signal.SIGINT)
    out, err = process.finish(130)
    assert err == "diffguide-train: interrupted\n" and out == "in\n"


def test_warnings_of_calls_inside_torch_are_hidden(tmp_path, command):
    """Such as torch.jit, which torch.func.jvp calls for the derivative of a schedule."""
    command(sample, "--nope", at=tmp_path)
    first = next(rule for rule in warnings.filters if issubclass(FutureWarning, rule[2]))
    assert first[0] == "ignore" and first[1].match("`torch.jit.script` is deprecated. Please switch to `torch.compile`")
    assert not first[1].match("ours") and first[2] is FutureWarning


def test_keys_read_from_files_are_those_that_compose():
    """For nested groups, and groups in other packages."""
    files = ConfigFiles("train", [config_dir()])
    for group, names in {
        "guidance": ("clip", "dps", "cfg"),
        "sampler": ("restart",),
        "schedule": ("resolution_shift",),
    }.items():
        options = Names([], files).option_keys(group)
        assert set(options) == set(files.options(group))
        for name in names:
            composed = Names([f"{group}={name}"], files).keys
            others = {"prompt"} & {*options[name]}
            assert {key for key in composed if key.startswith(f"{group}.")} | others == {*options[name]}


def test_an_error_of_hydra_is_shortened_to_one_line():
    error = ValueError("Cannot find it.\n\nConfig search path:\n\tprovider=main, path=x\n\tprovider=schema")
    assert format_error(error) == "Cannot find it"
    assert format_error(KeyError()) == "KeyError"


def test_a_value_fits_its_annotation_or_not():
    assert annotations.fits(1, float) and not annotations.fits(True, float) and not annotations.fits(1.0, int)
    assert annotations.fits(None, int | None) and not annotations.fits("1", int | None)
    assert annotations.object_types(Path | None) == (Path,) and annotations.object_types(int | None) == ()
    assert annotations.parameter_hints(lambda **anything: 0) is None
    assert list(annotations.parameter_hints(Names)) == ["words", "files"]
