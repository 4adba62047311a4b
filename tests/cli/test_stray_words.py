"""Words that are neither flags nor key=value are corrected; flags may stand anywhere."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf
from small_checkpoint import save

import diffguide
from diffguide.cli.arguments import read_flags
from diffguide.cli.stray_words import stray_places
from diffguide.config.build import ConfigError, config_dir
from diffguide.config.options import choice_for
from diffguide.evaluate import main as evaluate
from diffguide.nodes.annotations import parameter_hints
from diffguide.sample import main as sample
from diffguide.train import main as train

MAINS = {"train": train, "sample": sample, "eval": evaluate}
TOLD = {  # command line: what is to be typed in its place
    "train run": "resume=run to continue",
    "train run/checkpoints/0000000064.safetensors": "resume=run to continue",
    "train images": "dataset=image_folder dataset.path=images dataset.num_classes=2",
    "train conf/mine.yaml": "--config-dir conf",
    "train nowhere/at/all": "dataset=image_folder dataset.path=nowhere/at/all",
    "sample run": "checkpoint=run for a trained model",
    "sample run/checkpoints/0000000064.safetensors": "checkpoint=run/checkpoints/0000000064.safetensors",
    "sample sampled": "resume=sampled to continue",
    "eval run": "checkpoint=run",
    "eval measured": "resume=measured to continue",
    "sample --checkpoint run": "write checkpoint=run",
    "sample --checkpoint=run": "write checkpoint=run",
    "sample -checkpoint run": "write checkpoint=run",
    "sample checkpoint run": "write checkpoint=run",
    "sample checkpoint: run": "write checkpoint=run",
    "sample checkpoint:run": "write checkpoint=run",
    "sample checkpoint = run": "write checkpoint=run",
    "sample checkpoint= run": "write checkpoint=run",
    "sample checkpoint =run": "write checkpoint=run",
    "sample --n 10": "write n=10\n",
    "sample --n=10": "write n=10\n",
    "sample -n 10": "write n=10\n",
    "sample n 10": "write n=10\n",
    "sample steps 10": "write sampler.steps=10\n",
    "sample --steps -3": "write sampler.steps=-3\n",
    "sample --batch-size 3": "write batch_size=3\n",
    "train --batch-size 3": "write training.batch_size=3\n",
    "train --lr 0.1": "nearest: training.learning_rate",
    "train --dry_run": "write dry_run=true",
    "train --dry-run seed=1": "write dry_run=true",
    "train dry_run": "write dry_run=true",
    "train guidance cfg": "write guidance=cfg\n",
    "train gmm2d": "write experiment=gmm2d or dataset=gmm2d",
    "sample oracle=gmm2d cfg": "write guidance=cfg\n",
    "train help": "write --help",
    "sample labels=[cat, dog]": "write 'labels=[cat, dog]'\n",
    "sample labels={index: [1]}": "write 'labels={index: [1]}'\n",
    "sample guidance.interval=[0.1 5]": "write 'guidance.interval=[0.1,5]'\n",
    "train dataset=image_folder dataset.path=my images": "write 'dataset.path=my images'\n",
    "train name=two words": "if it belongs to the word before, write 'name=two words'",
    "train seed=1 whatever": "write 'seed=1 whatever'",
    "train whatever": "every word is key=value, group=option or a flag",
}  # fmt: skip


@pytest.fixture
def at(tmp_path):
    (tmp_path / "run").mkdir()
    save(tmp_path / "run")
    for folder in ("images/cat", "images/dog", "my images", "conf", "sampled/shards", "measured/parts"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/checkpoints").mkdir(exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("line, message", TOLD.items(), ids=TOLD)
def test_a_stray_word_is_corrected(at, command, line, message):
    name, *words = line.split(" ")
    done = command(MAINS[name], *words, at=at)
    assert done.code == 1 and done.out == "" and message in done.err and done.err.count("\n") == 1, done.err
    assert done.err.startswith(f"diffguide-{name}: ")


@pytest.mark.parametrize("line", [
    "seed=1 --cfg job objective=eps -p seed", "--cfg job seed=1 -p seed objective=eps", "-p seed seed=1 --cfg=job",
    "seed=1 objective=eps --cfg job --package seed", "-c job seed=1 --config-dir conf -p seed",
])  # fmt: skip
def test_flags_stand_anywhere(at, command, line):
    for main in MAINS.values():
        words = [word for word in line.split() if word != "objective=eps" or main is train]
        done = command(main, *words, at=at)
        assert (done.code, done.out, done.err) == (0, "1\n", "")


def test_the_multirun_flag_may_stand_anywhere(tmp_path, command):
    for words in (
        ["-m", "oracle=gmm2d", "seed=0,1"],
        ["oracle=gmm2d", "-m", "seed=0,1"],
        ["oracle=gmm2d", "seed=0,1", "-m"],
    ):
        done = command(sample, *words, "n=2", "sampler.steps=2", at=tmp_path)
        assert done.code == 0 and "sweep" in str(done.folder), done.err


def test_flags_are_formatted_as_parsed():
    words = ["seed=1", "-i", "defaults", "--config-dir", "a b", "-m", "~x"]
    flags, arranged = read_flags(words)
    assert (
        flags.multirun
        and flags.info == "defaults"
        and flags.config_dir == "a b"
        and flags.overrides == ["seed=1", "~x"]
    )
    assert read_flags(arranged) == (flags, arranged) and arranged[-2:] == ["seed=1", "~x"]
    assert list(stray_places(words)) == [] and list(
        stray_places(["--config-dir", "a b", "a", "x=-3", "--cfg=job"])
    ) == [2]
    with pytest.raises(ConfigError, match="expected one argument"):
        read_flags(["--cfg"])


def test_the_version_is_that_of_diffguide(at, command):
    for main in MAINS.values():
        done = command(main, "seed=1", "--version", at=at)
        assert (done.code, done.out) == (0, f"diffguide {diffguide.__version__}\n")


def test_the_help_of_hydra_is_unchanged(at, command):
    done = command(train, "--hydra-help", at=at)
    assert done.code == 0 and "== Flags ==" in done.out and "hydra/launcher" in done.out


PLACES = {  # of choices in options: the command and the line that brings them
    "dataset@metric.other": "evaluate metric=ood", "guidance@metric.guidance": "evaluate metric=quality",
    "sampler@metric.sampler": "evaluate metric=quality", "metric/features": "evaluate metric=quality",
    "metric/trace@metric.ode.trace": "evaluate metric=likelihood", "metric@metric.elbo": "evaluate metric=likelihood",
    "metric@metric.density": "evaluate metric=auto", "metric/weighting": "evaluate metric=zero_shot",
    "schedule@schedule.schedule": "train schedule=resolution_shift", "sampler@sampler.inner": "train sampler=restart",
    "sampler/grid@sampler.inner.grid": "train sampler=restart", "sampler/diffusion": "train sampler=euler_maruyama",
    "guidance@guidance.parts.cfg": "train guidance=classifier_cfg", "guidance/rule": "train guidance=apg",
    "guidance/rule@guidance.parts.cfg.rule": "train guidance=classifier_cfg",
    "guidance/steps@guidance.rho_steps": "train guidance=tfg", "guidance/potential": "train guidance=clip",
    "guidance/potential/encoder": "train guidance=clip", "objective/weight": "train objective=edm",
    "objective/weight@objective.weight.weight": "train objective/weight=learned_uncertainty",
    "objective/decoder": "train objective=vdm",
}  # fmt: skip


def test_the_hint_for_a_node_chooses_it():
    """Found by the classes of the options, in any group; Hydra accepts the override."""
    for place, line in PLACES.items():
        name, said = line.split()
        with initialize_config_dir(config_dir(), version_base="1.3"):
            cfg = compose(name, [said], return_hydra_config=True)
        assert place in cfg.hydra.runtime.choices
        package = place.partition("@")[2] or place.replace("/", ".")
        above, _, last = package.rpartition(".")
        if "_target_" not in OmegaConf.select(cfg, above):  # a mapping of parts
            above, _, last = above.rpartition(".")
        hint = parameter_hints(get_class(OmegaConf.select(cfg, above)._target_))[last]
        assert choice_for(hint, package)[0] == place
